"""What should change for my data? Settings fitted to a few labels, with an honest gain.

Only arrays here: logits of labelled pixels go in, settings come out. The settings are those that
cost nothing at run time: the CLS bias, synonyms to drop, an offset for each class, and the
threshold of the background.

The gain is measured on pixels that took no part in the choice. Pixels that lie together are alike,
so they are left out together, a whole group (a chip, or a block of a scene) at a time, and the
choice of which steps to take is made anew without the group that is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.text import Text

from geoseg._html import table
from geoseg.errors import EvaluationError, OptionError
from geoseg.evaluation.metrics import CountArray, IndexArray, Scores
from geoseg.evaluation.report import percent, plain_table, scores_as_dict
from geoseg.text.vocabulary import Vocabulary

LEAST_GAIN = 0.001
"""Gain in mean IoU below which a change is not worth making."""

_FOLDS = 5
_CLS_BIASES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_OFFSETS = tuple(round(0.005 * step, 3) for step in range(-8, 9))
_OFFSET_ROUNDS = 2
_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))

FloatMatrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabelledPixels:
    """Logits of pixels whose class is known.

    The logits with CLS bias λ are ``patch - λ * cls`` (methods' equation for every window, and
    averaging windows keeps it), so one pair of arrays covers every λ.
    """

    patch: FloatMatrix
    """``(N, Q)`` logits without CLS bias."""
    cls: FloatMatrix
    """``(N, Q)`` what one unit of CLS bias subtracts."""
    truth: IndexArray
    """``(N,)`` class numbers."""
    weight: npt.NDArray[np.float64]
    """``(N,)`` labelled pixels that each stands for."""
    group: npt.NDArray[np.int64]
    """``(N,)`` pixels of one group are left out together."""

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> LabelledPixels:
        return LabelledPixels(*(getattr(self, f.name)[rows] for f in fields(self)))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(np.unique(self.group))

    def folds(self) -> Iterator[tuple[LabelledPixels, LabelledPixels]]:
        """Pixels to choose on and pixels to check on, group by group, at most five times."""
        names = np.random.default_rng(0).permutation(np.unique(self.group))
        for fold in range(min(_FOLDS, len(names))):
            out = np.isin(self.group, names[fold::_FOLDS])
            yield self[~out], self[out]


@dataclass(frozen=True)
class Settings:
    """What can be changed without touching the model."""

    cls_bias: float
    threshold: float | None = None
    """Probability below which a pixel becomes background; None for no threshold."""
    dropped: frozenset[int] = frozenset()
    """Queries that are not asked."""
    offsets: tuple[tuple[int, float], ...] = ()
    """Class number and what is added to its cosine logits, for classes where that is not 0."""


@dataclass(frozen=True)
class Step:
    """One kind of change, and what it was worth."""

    name: str
    score: float
    """Mean IoU, cross-validated, with this step on top of those taken before it."""
    taken: bool


@dataclass(frozen=True)
class Tuning:
    """Suggested settings, and what they gain on pixels they were not chosen on."""

    vocabulary: Vocabulary
    """With the dropped synonyms left out, and with the offsets."""
    background: str | None
    before: Settings
    after: Settings
    """Equal to `before` where nothing is gained."""
    scores_before: Scores
    scores_after: Scores
    """Cross-validated: every pixel labelled by settings chosen without its group."""
    steps: tuple[Step, ...]
    dropped: tuple[str, ...]
    pixels: int
    """Pixels that were used."""
    groups: int
    """Groups they came from."""

    def __repr__(self) -> str:
        return f"Tuning(gain {100 * self.gain:+.1f} % mIoU, {self.pixels:,} pixels: {self.options})"

    def _repr_html_(self) -> str:
        rows = [
            (one.name, f"{100 * one.score:.1f} %", "taken" if one.taken else "left out")
            for one in self.steps
        ]
        return table(repr(self), ("step", "mIoU", ""), rows)

    @property
    def gain(self) -> float:
        """Cross-validated gain in mean IoU, 0 to 1; may be negative."""
        return self.scores_after.miou - self.scores_before.miou

    @property
    def options(self) -> str:
        """Options of ``geoseg segment`` that go with the class file."""
        words = [f"--cls-bias {self.after.cls_bias:g}"]
        if self.after.threshold is not None:
            words.append(f"--threshold {self.after.threshold:g} --background '{self.background}'")
        return " ".join(words)

    def to_toml(self) -> str:
        """Class file with the synonyms that stay; a comment names the options that go with it."""
        return f"# Use with: {self.options}\n\n{self.vocabulary.to_toml()}"


class Tuner:
    """Choose settings for a vocabulary.

    Parameters
    ----------
    vocabulary
        Classes and their queries.
    logit_scale
        Factor on logits before the softmax.
    background
        Class for pixels below the threshold; None leaves the threshold alone.

    Raises
    ------
    OptionError
        If the background is not one of the classes.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, logit_scale: float = 50.0, background: str | None = None
    ) -> None:
        if background is not None and background not in vocabulary.names:
            raise OptionError(
                f"background '{background}' is not one of the classes: "
                f"{', '.join(vocabulary.names)}"
            )
        self._vocabulary = vocabulary
        self._scale = logit_scale
        self._background = background
        self._fallback = vocabulary.names.index(background or vocabulary.names[0])
        self._query_classes = vocabulary.query_classes
        self._firsts = np.flatnonzero(np.diff(self._query_classes, prepend=-1))
        self._steps: dict[str, Callable[[Settings, LabelledPixels], Settings]] = {
            "CLS bias": self._fit_cls_bias,
            "synonyms": self._fit_synonyms,
            "offsets": self._fit_offsets,
        }
        if background is not None:
            self._steps["threshold"] = self._fit_threshold

    def tune(self, pixels: LabelledPixels, before: Settings) -> Tuning:
        """Choose settings and measure what they gain.

        Parameters
        ----------
        pixels
            Labelled pixels of at least two groups.
        before
            Settings to start from, and to compare with.

        Raises
        ------
        EvaluationError
            If all pixels belong to one group, or to one class.
        """
        if pixels.groups < 2:
            raise EvaluationError(
                "all labelled pixels lie together, so a gain could not be checked on others; label "
                "at least two chips, or places further apart than the window"
            )
        if len(np.unique(pixels.truth)) < 2:
            raise EvaluationError("all labelled pixels are of one class; label at least two")
        honest = self._empty()
        for train, test in pixels.folds():
            honest += self._confusion(self._choose(train, before)[0], test)
        after, steps = self._choose(pixels, before)
        names = self._vocabulary.names
        scores_before = Scores.from_confusion(_counts(self._confusion(before, pixels)), names)
        scores_after = Scores.from_confusion(_counts(honest), names)
        if scores_after.miou <= scores_before.miou:
            after = before
        return Tuning(
            vocabulary=self._changed(after),
            background=self._background,
            before=before,
            after=after,
            scores_before=scores_before,
            scores_after=scores_after,
            steps=steps,
            dropped=tuple(self._vocabulary.queries[q] for q in sorted(after.dropped)),
            pixels=len(pixels),
            groups=pixels.groups,
        )

    # Choosing

    def _choose(self, part: LabelledPixels, before: Settings) -> tuple[Settings, tuple[Step, ...]]:
        """Take the steps that gain in a cross-validation within the part, and fit them to it."""
        taken: list[str] = []
        steps = []
        if part.groups < 2:
            return self._fit(list(self._steps), part, before), ()
        best = self._cross_validated(taken, part, before)
        for name in self._steps:
            score = self._cross_validated([*taken, name], part, before)
            gains = score >= best + LEAST_GAIN
            steps.append(Step(name, score, gains))
            if gains:
                taken.append(name)
                best = score
        return self._fit(taken, part, before), tuple(steps)

    def _cross_validated(
        self, steps: Sequence[str], part: LabelledPixels, before: Settings
    ) -> float:
        total = self._empty()
        for train, test in part.folds():
            total += self._confusion(self._fit(steps, train, before), test)
        return _miou(total)

    def _fit(self, steps: Sequence[str], part: LabelledPixels, before: Settings) -> Settings:
        for name in steps:
            before = self._steps[name](before, part)
        return before

    def _fit_cls_bias(self, settings: Settings, part: LabelledPixels) -> Settings:
        return self._best(settings, (replace(settings, cls_bias=b) for b in _CLS_BIASES), part)

    def _fit_threshold(self, settings: Settings, part: LabelledPixels) -> Settings:
        tried = (replace(settings, threshold=t) for t in (None, *_THRESHOLDS))
        return self._best(settings, tried, part)

    def _fit_synonyms(self, settings: Settings, part: LabelledPixels) -> Settings:
        """Drop the query that costs most, again and again, while that gains."""
        while True:
            tried = (
                replace(settings, dropped=settings.dropped | {query})
                for query in self._droppable(settings, part)
            )
            better = self._best(settings, tried, part)
            if better == settings:
                return settings
            settings = better

    def _fit_offsets(self, settings: Settings, part: LabelledPixels) -> Settings:
        """Move one class at a time, the labelled ones in turn, while that gains."""
        for _ in range(_OFFSET_ROUNDS):
            start = settings
            for number in sorted(set(part.truth.tolist())):
                others = {n: offset for n, offset in settings.offsets if n != number}
                tried = (
                    replace(settings, offsets=tuple(sorted({**others, number: value}.items())))
                    for value in _OFFSETS
                )
                settings = self._best(settings, tried, part)
            if settings == start:
                break
        return replace(settings, offsets=tuple(pair for pair in settings.offsets if pair[1]))

    def _droppable(self, settings: Settings, part: LabelledPixels) -> list[int]:
        """Queries of labelled classes, of which each keeps at least one."""
        kept = [q for q in range(len(self._query_classes)) if q not in settings.dropped]
        count = np.bincount(self._query_classes[kept])
        labelled = set(part.truth.tolist())
        return [
            query
            for query in kept
            if count[self._query_classes[query]] > 1 and int(self._query_classes[query]) in labelled
        ]

    def _best(self, start: Settings, tried: Iterator[Settings], part: LabelledPixels) -> Settings:
        """Return the best settings; the start, unless another is better by a margin."""
        score = _miou(self._confusion(start, part))
        best, highest = start, score + LEAST_GAIN
        for settings in tried:
            score = _miou(self._confusion(settings, part))
            if score > highest:
                best, highest = settings, score
        return best

    # Predicting

    def _confusion(self, settings: Settings, part: LabelledPixels) -> npt.NDArray[np.float64]:
        classes = len(self._vocabulary.names)
        pairs = part.truth.astype(np.int64) * classes + self.predict(settings, part.patch, part.cls)
        counted: npt.NDArray[np.float64] = np.bincount(
            pairs, part.weight, minlength=classes * classes
        ).astype(np.float64)
        return counted.reshape(classes, classes)

    def predict(self, settings: Settings, patch: FloatMatrix, cls: FloatMatrix) -> IndexArray:
        """Class numbers of pixels, as the segmenter would give them with these settings."""
        logits = patch - np.float32(settings.cls_bias) * cls
        logits += self._offsets(settings)
        if settings.dropped:
            logits[:, list(settings.dropped)] = -np.inf
        best = np.maximum.reduceat(logits, self._firsts, axis=1)
        labels: IndexArray = best.argmax(axis=1).astype(np.int32)
        least = self._least(settings)
        if least is not None:
            top = best.max(axis=1)
            probability = 1 / np.exp(self._scale * (logits - top[:, None])).sum(axis=1)
            below = probability < least[labels]
            labels[below] = self._fallback
        return labels

    def _least(self, settings: Settings) -> npt.NDArray[np.float64] | None:
        """Probability that each class needs, or None: a class's own threshold goes first."""
        own = [entry.threshold for entry in self._vocabulary.classes]
        if settings.threshold is None and all(each is None for each in own):
            return None
        return np.array([settings.threshold or 0.0 if t is None else t for t in own])

    def _offsets(self, settings: Settings) -> FloatMatrix:
        """``(Q,)`` what is added to each query: the class's own offset, or the one on trial."""
        offsets = np.array([entry.offset for entry in self._vocabulary.classes], np.float32)
        for number, value in settings.offsets:
            offsets[number] = value
        return offsets[self._query_classes]

    def _changed(self, settings: Settings) -> Vocabulary:
        offsets = dict(settings.offsets)
        classes = []
        for number, entry in enumerate(self._vocabulary.classes):
            first = int(self._firsts[number])
            kept = [p for i, p in enumerate(entry.prompts) if first + i not in settings.dropped]
            offset = offsets.get(number, entry.offset)
            classes.append(replace(entry, prompts=tuple(kept), offset=offset))
        return Vocabulary(tuple(classes))

    def _empty(self) -> npt.NDArray[np.float64]:
        classes = len(self._vocabulary.names)
        return np.zeros((classes, classes))


def as_dict(tuning: Tuning) -> dict[str, Any]:
    """Settings and scores, as JSON has them."""
    return {
        "miou_before": tuning.scores_before.miou,
        "miou_after": tuning.scores_after.miou,
        "gain": tuning.gain,
        "cls_bias": tuning.after.cls_bias,
        "threshold": tuning.after.threshold,
        "background": tuning.background if tuning.after.threshold is not None else None,
        "dropped": list(tuning.dropped),
        "offsets": {c.name: c.offset for c in tuning.vocabulary.classes if c.offset},
        "options": tuning.options,
        "steps": [
            {"name": step.name, "miou": step.score, "taken": step.taken} for step in tuning.steps
        ],
        "pixels": tuning.pixels,
        "groups": tuning.groups,
        "before": scores_as_dict(tuning.scores_before),
        "after": scores_as_dict(tuning.scores_after),
    }


def as_tables(tuning: Tuning) -> RenderableType:
    """Steps, classes and the suggestion, for a terminal."""
    steps = plain_table("Mean IoU, cross-validated, in per cent", "step", ">mean IoU", "taken")
    steps.add_row("as it is", percent(tuning.scores_before.miou), "")
    for step in tuning.steps:
        steps.add_row(f"+ {step.name}", percent(step.score), "yes" if step.taken else "no")
    steps.add_row("tuned, on labels left out", percent(tuning.scores_after.miou), "", style="bold")
    classes = plain_table("IoU of the classes, in per cent", "class", ">as it is", ">tuned")
    pairs = zip(tuning.scores_before.classes, tuning.scores_after.classes, strict=True)
    for old, new in pairs:
        classes.add_row(Text(old.name), percent(old.iou), percent(new.iou))
    return Group(steps, classes, Text(_verdict(tuning)))


def _verdict(tuning: Tuning) -> str:
    where = f"{tuning.pixels:,} labelled pixels in {tuning.groups} groups"
    gain = 100 * tuning.gain
    if tuning.gain <= 0:
        return f"Nothing gained on {where} ({gain:+.1f} points): keep the settings as they are."
    said = [f"Gain {gain:+.1f} points of mean IoU on {where}. Use {tuning.options}"]
    if tuning.dropped:
        said.append(
            f"without {', '.join(json.dumps(q, ensure_ascii=False) for q in tuning.dropped)}"
        )
    moved = [f"{c.name} {c.offset:+g}" for c in tuning.vocabulary.classes if c.offset]
    if moved:
        said.append(f"with offsets {', '.join(moved)} (in the class file)")
    return " ".join(said) + "."


def _counts(confusion: npt.NDArray[np.float64]) -> CountArray:
    return np.rint(confusion).astype(np.int64)


def _miou(confusion: npt.NDArray[np.float64]) -> float:
    """Mean IoU over the classes in the truth, of weighted counts."""
    hits = np.diag(confusion)
    support = confusion.sum(axis=1)
    union = support + confusion.sum(axis=0) - hits
    return float((hits[support > 0] / union[support > 0]).mean())
