"""How good are labels? Scores from counts, so that any number of windows adds up exactly.

Everything here works on small arrays of counts or on one window of pixels; who reads the pixels
is of no concern. Classes are numbered from 0; :data:`IGNORE` marks pixels that count nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt

IGNORE = -1
"""Class number of pixels that count nowhere."""

IndexArray = npt.NDArray[np.int32]
CountArray = npt.NDArray[np.int64]

CONFIDENCE_FRACTIONS = (0.5, 0.8, 0.95)
"""Shares of the most confident pixels whose accuracy is reported."""

_BITS = 64


def confusion_matrix(truth: IndexArray, predicted: IndexArray, classes: int) -> CountArray:
    """Count which class was labelled as which.

    Parameters
    ----------
    truth, predicted
        Class numbers of the same shape, 0 to ``classes`` - 1, or :data:`IGNORE`. A pixel that is
        ignored in either counts nowhere.
    classes
        Number of classes.

    Returns
    -------
    ndarray
        ``(classes, classes)`` int64; row = truth, column = prediction.
    """
    counted = (truth != IGNORE) & (predicted != IGNORE)
    pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How well one class was found. A ratio without a denominator is NaN."""

    name: str
    iou: float
    """Intersection over union; NaN where the class is in neither truth nor prediction."""
    f1: float
    precision: float
    """Share of the pixels labelled so that are so; NaN where none was labelled so."""
    recall: float
    """Share of the true pixels that were found; NaN where the truth has none."""
    support: int
    """Compared pixels of this class in the truth."""
    predicted: int
    """Compared pixels labelled as this class."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Every score that follows from one confusion matrix."""

    classes: tuple[ClassScores, ...]
    confusion: CountArray
    """``(K, K)`` pixel counts; row = truth, column = prediction."""
    accuracy: float
    """Share of compared pixels that are right."""
    kappa: float
    """Cohen's kappa: agreement beyond what the class frequencies alone would give."""
    miou: float
    """Mean IoU over the classes that occur in the truth."""
    miou_mmseg: float
    """Mean IoU as mmsegmentation's IoUMetric has it: over the classes that occur in truth or
    prediction, so a class predicted but never true counts with 0."""
    mean_f1: float
    """Mean F1 over the classes that occur in the truth."""

    @property
    def pixels(self) -> int:
        """Number of compared pixels."""
        return int(self.confusion.sum())

    @classmethod
    def from_confusion(cls, confusion: CountArray, names: Sequence[str]) -> Scores:
        """Work out all scores.

        Parameters
        ----------
        confusion
            ``(K, K)`` pixel counts; row = truth, column = prediction.
        names
            K class names.
        """
        hits = np.diag(confusion).astype(np.float64)
        support = confusion.sum(axis=1)
        predicted = confusion.sum(axis=0)
        total = float(confusion.sum())
        iou = _ratio(hits, support + predicted - hits)
        f1 = _ratio(2 * hits, support + predicted)
        precision = _ratio(hits, predicted)
        recall = _ratio(hits, support)
        accuracy = float(hits.sum() / total) if total else math.nan
        chance = float((support / total) @ (predicted / total)) if total else math.nan
        occurs = support > 0
        columns = (v.tolist() for v in (iou, f1, precision, recall, support, predicted))
        return cls(
            classes=tuple(ClassScores(*row) for row in zip(names, *columns, strict=True)),
            confusion=confusion,
            accuracy=accuracy,
            kappa=(accuracy - chance) / (1 - chance) if chance < 1 else math.nan,
            miou=_mean(iou[occurs]),
            miou_mmseg=_mean(iou[~np.isnan(iou)]),
            mean_f1=_mean(f1[occurs]),
        )


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pixels of similar confidence: what the model promised and what it kept."""

    low: float
    """Lowest confidence of the bin, 0 to 1, included."""
    high: float
    """Highest confidence of the bin; excluded, except in the last bin."""
    pixels: int
    confidence: float
    """Mean confidence of the pixels."""
    accuracy: float
    """Share of the pixels that are right."""


@dataclass(slots=True)
class ConfidenceCounts:
    """Does the confidence mean what it says? Pixels and right pixels per per cent of confidence.

    Confidence rasters hold whole per cents, so 101 pairs of counts are all there is to know, and
    windows and scenes add up exactly.
    """

    pixels: CountArray = field(default_factory=lambda: np.zeros(101, np.int64))
    correct: CountArray = field(default_factory=lambda: np.zeros(101, np.int64))

    def add(
        self, confidence: npt.NDArray[np.integer], truth: IndexArray, predicted: IndexArray
    ) -> None:
        """Count one window.

        Parameters
        ----------
        confidence
            Whole per cents, 0 to 100; any other value marks a pixel without confidence.
        truth, predicted
            Class numbers of the same shape; a pixel ignored in either counts nowhere.
        """
        known = (confidence >= 0) & (confidence <= 100)
        counted = (truth != IGNORE) & (predicted != IGNORE) & known
        per_cent = confidence[counted].astype(np.int64)
        right = truth[counted] == predicted[counted]
        self.pixels += np.bincount(per_cent, minlength=101)
        self.correct += np.bincount(per_cent[right], minlength=101)

    def reliability(self, bins: int = 10) -> tuple[ReliabilityBin, ...]:
        """Group the counts into bins of equal width that are not empty."""
        edges = np.linspace(0, 100, bins + 1)
        found = []
        for low, high in pairwise(edges):
            inside = (np.arange(101) >= low) & ((np.arange(101) < high) | (high == 100))
            pixels = int(self.pixels[inside].sum())
            if pixels:
                found.append(
                    ReliabilityBin(
                        low=float(low) / 100,
                        high=float(high) / 100,
                        pixels=pixels,
                        confidence=float(np.arange(101)[inside] @ self.pixels[inside])
                        / 100
                        / pixels,
                        accuracy=float(self.correct[inside].sum()) / pixels,
                    )
                )
        return tuple(found)

    def expected_calibration_error(self, bins: int = 10) -> float:
        """Mean distance between confidence and accuracy over the bins, weighted by pixels.

        Guo et al., "On Calibration of Modern Neural Networks", 2017. 0 is perfect.
        """
        total = self.pixels.sum()
        if not total:
            return math.nan
        return sum(
            each.pixels / float(total) * abs(each.accuracy - each.confidence)
            for each in self.reliability(bins)
        )

    def accuracy_of_most_confident(self, fraction: float) -> float:
        """Accuracy of the given share of pixels with the highest confidence.

        Confidence comes in whole per cents, so the cut falls among pixels of equal confidence;
        they enter with their mean accuracy, which is what a random choice among them would give.
        """
        wanted = float(self.pixels.sum()) * fraction
        if not wanted:
            return math.nan
        taken = right = 0.0
        for per_cent in range(100, -1, -1):
            pixels = float(self.pixels[per_cent])
            if not pixels:
                continue
            share = min(pixels, wanted - taken) / pixels
            taken += pixels * share
            right += float(self.correct[per_cent]) * share
            if taken >= wanted:
                break
        return right / taken


@dataclass(frozen=True, slots=True)
class BoundaryScores:
    """How well one class's outline was found. Ratios without a denominator are NaN."""

    name: str
    f1: float
    precision: float
    recall: float


@dataclass(slots=True)
class BoundaryCounts:
    """Do the outlines lie where they should? Boundary pixels of each class, matched by distance.

    A boundary pixel of a class is a compared pixel of that class with at least one of its four
    neighbours compared and of another class; so neither the edge of the image nor the rim of an
    ignored area is an outline. Precision is the share of predicted boundary pixels of the class
    that lie within ``tolerance`` pixels (Euclidean, between pixel centres) of a true boundary
    pixel of the same class, recall the share of true ones near a predicted one, and the boundary
    F-score their harmonic mean (Csurka et al., "What is a good evaluation measure for semantic
    segmentation?", 2013, with the tolerance in pixels instead of in image diagonals).

    Parameters
    ----------
    classes
        Number of classes.
    tolerance
        Greatest distance of a match in pixels, 0 or more.
    """

    classes: int
    tolerance: float = 3.0
    predicted: CountArray = field(init=False)
    predicted_hits: CountArray = field(init=False)
    true: CountArray = field(init=False)
    true_hits: CountArray = field(init=False)

    def __post_init__(self) -> None:
        for name in ("predicted", "predicted_hits", "true", "true_hits"):
            setattr(self, name, np.zeros(self.classes, np.int64))

    @property
    def halo(self) -> int:
        """Pixels a window needs around those it counts, for exact results at its edges."""
        return math.floor(self.tolerance) + 1

    def add(
        self, truth: IndexArray, predicted: IndexArray, core: tuple[slice, slice] | None = None
    ) -> None:
        """Count one window.

        Parameters
        ----------
        truth, predicted
            Class numbers of the same shape, with :attr:`halo` pixels around the core where the
            scene goes on.
        core
            Rows and columns to count; the rest is only looked at. Everything by default.
        """
        counted = (truth != IGNORE) & (predicted != IGNORE)
        inside = core if core is not None else (slice(None), slice(None))
        truth = np.where(counted, truth, IGNORE)
        predicted = np.where(counted, predicted, IGNORE)
        true_edge = np.where(_is_boundary(truth), truth, IGNORE)
        predicted_edge = np.where(_is_boundary(predicted), predicted, IGNORE)
        for first in range(0, self.classes, _BITS):
            self._match(predicted_edge, true_edge, inside, first, self.predicted_hits)
            self._match(true_edge, predicted_edge, inside, first, self.true_hits)
        self.predicted += _count(predicted_edge[inside], self.classes)
        self.true += _count(true_edge[inside], self.classes)

    def _match(
        self,
        edge: IndexArray,
        other: IndexArray,
        inside: tuple[slice, slice],
        first: int,
        hits: CountArray,
    ) -> None:
        """Count boundary pixels of classes ``first`` onwards that have a match in ``other``."""
        near = _dilate(_as_bits(other, first, min(self.classes - first, _BITS)), self.tolerance)
        found = (near[inside] & _as_bits(edge[inside], first, 0, near.dtype)) != 0
        hits += _count(edge[inside][found], self.classes)

    def scores(self, names: Sequence[str]) -> tuple[BoundaryScores, ...]:
        """Precision, recall and F-score of every class's outline."""
        precision = _ratio(self.predicted_hits, self.predicted)
        recall = _ratio(self.true_hits, self.true)
        f1 = _ratio(2 * precision * recall, precision + recall)
        # With both outlines there but no match, 0 / 0 means "nothing found", which is 0.
        f1[(precision == 0) & (recall == 0)] = 0
        return tuple(
            BoundaryScores(name, float(f1[i]), float(precision[i]), float(recall[i]))
            for i, name in enumerate(names)
        )


def _is_boundary(index: IndexArray) -> npt.NDArray[np.bool_]:
    """Pixels with a neighbour above, below, left or right that is counted and of another class."""
    boundary = np.zeros(index.shape, bool)
    everything = slice(None)
    for before, after in (
        ((slice(None, -1), everything), (slice(1, None), everything)),
        ((everything, slice(None, -1)), (everything, slice(1, None))),
    ):
        first, second = index[before], index[after]
        differs = (first != second) & (first != IGNORE) & (second != IGNORE)
        boundary[before] |= differs
        boundary[after] |= differs
    return boundary


def _as_bits(
    index: IndexArray, first: int, classes: int, dtype: npt.DTypeLike | None = None
) -> npt.NDArray[np.unsignedinteger]:
    """One bit a class, for classes ``first`` onwards, so that all are dilated in one go."""
    picked = np.dtype(dtype) if dtype is not None else np.min_scalar_type(2**classes - 1)
    width = picked.itemsize * 8
    table = np.zeros(width + 1, picked)
    table[:width] = np.left_shift(np.ones((), picked), np.arange(width, dtype=picked))
    place = index - first
    place = np.where((place >= 0) & (place < width) & (index != IGNORE), place, width)
    return cast("npt.NDArray[np.unsignedinteger]", table[place])


def _dilate(
    bits: npt.NDArray[np.unsignedinteger], radius: float
) -> npt.NDArray[np.unsignedinteger]:
    """Spread every bit over a disc: the result has a bit where the nearest is within ``radius``."""
    height, width = bits.shape
    out = np.zeros_like(bits)
    for dy, dx in _disc(radius):
        if abs(dy) >= height or abs(dx) >= width:
            continue
        target = out[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
        target |= bits[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
    return out


def _disc(radius: float) -> Iterator[tuple[int, int]]:
    reach = math.floor(radius)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dy * dy + dx * dx <= radius * radius:
                yield dy, dx


def _count(index: IndexArray, classes: int) -> CountArray:
    return np.bincount(index[index != IGNORE].astype(np.int64), minlength=classes)


def _ratio(top: npt.NDArray[np.number], bottom: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    out = np.full(np.shape(top), np.nan)
    np.divide(top, bottom, out=out, where=np.asarray(bottom) != 0)
    return out


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan
