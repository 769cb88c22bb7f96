"""Labels against truth: classes matched by name, pixels counted window by window."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rasterio.errors import RasterioError

from geoseg._html import table
from geoseg._optional import require
from geoseg._texts import area_as_text
from geoseg.bars import shown
from geoseg.errors import EvaluationError, OptionError, warn
from geoseg.evaluation.metrics import (
    IGNORE,
    BoundaryCounts,
    BoundaryScores,
    ConfidenceCounts,
    CountArray,
    IndexArray,
    Scores,
    confusion_matrix,
)
from geoseg.evaluation.pairs import confidence_beside, find_pairs
from geoseg.evaluation.truth import Truth, open_raster, open_truth
from geoseg.evaluation.values import ClassNumbers, ValueCoder, ValueMap, ValueMapSource
from geoseg.io.aoi import Aoi
from geoseg.io.grid import pieces
from geoseg.io.labels import LabelRaster
from geoseg.io.objects import on_disk
from geoseg.runtime.gdal import bounded_cache
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.types import Window

_WINDOW_PIXELS = 2**22
_WINDOW_WIDTH = 2**15
_LEAST_ROWS = 64

Progress = Callable[[float], None]
"""Called with the share of the work that is done, 0 to 1."""


@dataclass(frozen=True)
class EvaluatedPair:
    """One label raster and what it was held against."""

    labels: Path
    truth: Path
    scores: Scores


@dataclass(frozen=True)
class Evaluation:
    """How good are the labels? Everything that was counted, over all pairs together."""

    scores: Scores
    boundary: tuple[BoundaryScores, ...] | None
    """Outlines of every class, or None if not asked for."""
    boundary_tolerance: float | None
    """Distance in pixels up to which outlines match."""
    confidence: ConfidenceCounts | None
    """Confidence against accuracy, or None without a confidence raster."""
    pairs: tuple[EvaluatedPair, ...]
    ignored_pixels: int
    """Pixels that the truth leaves out, or the area of interest within its bounds."""
    nodata_pixels: int
    """Pixels with a true class that the labels leave out as nodata."""

    def __repr__(self) -> str:
        scores = self.scores
        return (
            f"Evaluation(mIoU {100 * scores.miou:.1f} %, accuracy {100 * scores.accuracy:.1f} %, "
            f"{len(scores.classes)} classes, {scores.pixels:,} pixels)"
        )

    def _repr_html_(self) -> str:
        rows = [
            (row.name, *(f"{100 * value:.1f} %" for value in row[2:6]), f"{row.support:,}")
            for row in self.to_dataframe().itertuples()
        ]
        head = ("class", "IoU", "F1", "precision", "recall", "pixels")
        return table(repr(self), head, rows)

    def to_dataframe(self) -> pd.DataFrame:
        """Scores of every class, 0 to 1: ``name``, ``iou``, ``f1``, ``precision``, ``recall``.

        ``support`` are its pixels in the truth, ``predicted`` those in the labels.
        """
        return pd.DataFrame([asdict(one) for one in self.scores.classes])

    def plot_confusion(self, ax: Any = None) -> Any:
        """Draw which class (rows) was taken for which (columns), as shares of the true pixels."""
        require("matplotlib", extra="notebooks", feature="A plot")
        from matplotlib import pyplot as plt

        names = [one.name for one in self.scores.classes]
        counts = self.scores.confusion
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        ax.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
        ax.set_yticks(range(len(names)), names)
        ax.set_xlabel("labels")
        ax.set_ylabel("truth")
        ax.set_title("per cent of the truth's pixels", fontsize="medium")
        for (row, col), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            ax.text(col, row, f"{100 * share:.0f}", ha="center", va="center", color=color)
        return ax


def evaluate(
    labels: str | Path | Any,
    truth: str | Path | Any,
    *,
    classes: VocabularySource | None = None,
    truth_values: ValueMapSource | None = None,
    truth_column: str | None = None,
    truth_layer: str | None = None,
    outside: str = "ignore",
    aoi: str | Path | Any = None,
    aoi_layer: str | None = None,
    confidence: str | Path | Any = None,
    boundary_tolerance: float | None = None,
    progress: Progress | bool | None = None,
) -> Evaluation:
    """Compare label rasters with the truth.

    Classes are matched by name, in any case; synonyms of `classes` count as their class. The
    classes scored are those of `classes`, or else those the label rasters carry. A class that
    only the labels know is added and scored (it can only be wrong); one that only the truth
    knows must be added to `classes` or mapped to ``ignore``.

    Pixels count where the truth has a class and the labels are not nodata. The work goes window
    by window, so memory does not depend on the size of the rasters.

    Parameters
    ----------
    labels
        Label raster, or a folder of them: ``*.tif``, or one folder a scene with ``labels.tif``;
        or an array as `geoseg.segment` gives it.
    truth
        Truth for it: a raster in the same CRS (on another grid: nearest pixel, with a warning), a
        plain image of the same size, a vector file in any CRS, or a folder of such files named
        like the label rasters (or their folders); or an array or a GeoDataFrame.
    classes
        Vocabulary. It also names the values of label rasters that carry no class names.
    truth_values
        What the values of the truth mean, ``"0=ignore;1=background;2=building"`` or a mapping;
        keys are whole numbers, colours ``#rrggbb`` or words of the truth column, ``*`` is every
        other value. Without it value i is class i (rasters), or words are names (vector files).
    truth_column
        Column of a vector truth with the class.
    truth_layer
        Layer of a vector truth; by default the one that has polygons.
    outside
        Class of pixels that no feature of a vector truth covers.
    aoi
        Only compare inside: ``minx,miny,maxx,maxy`` in the labels' CRS, or a vector file; or
        bounds, a polygon or a GeoDataFrame.
    aoi_layer
        Layer of that file; by default the one that has polygons.
    confidence
        Raster of whole per cents on the labels' grid; by default ``confidence.tif`` beside a
        ``labels.tif``, if there is one. Only for a single label raster.
    boundary_tolerance
        Also score outlines: greatest distance in pixels between matching ones.
    progress
        Called with the share done, 0 to 1; True shows a bar.

    Returns
    -------
    Evaluation
        Scores from 0 to 1, of all and of every class; `to_dataframe`, `plot_confusion`.

    Raises
    ------
    EvaluationError
        If labels and truth do not fit together, or no pixel can be compared.
    OptionError
        If the value map or a class name does not fit.
    VocabularyError
        If the classes cannot be read.

    Warns
    -----
    GeosegWarning
        Where the truth is resampled, or labels and `classes` differ.
    """
    with (
        on_disk(labels, truth, confidence, needed=2) as (rasters, known, scores),
        shown(progress, "evaluate") as said,
    ):
        return _evaluate(
            rasters,
            known,
            scores,
            classes,
            truth_values,
            truth_column,
            truth_layer,
            outside,
            aoi if aoi is None else area_as_text(aoi),
            aoi_layer,
            boundary_tolerance,
            said,
        )


def _evaluate(
    labels: str | Path,
    truth: str | Path,
    confidence: str | Path | None,
    classes: VocabularySource | None,
    truth_values: ValueMapSource | None,
    truth_column: str | None,
    truth_layer: str | None,
    outside: str,
    aoi: str | None,
    aoi_layer: str | None,
    boundary_tolerance: float | None,
    progress: Progress | None,
) -> Evaluation:
    pairs = find_pairs(Path(labels), Path(truth))
    if confidence is not None and len(pairs) > 1:
        raise OptionError("a confidence raster can only be given for a single label raster")
    if boundary_tolerance is not None and boundary_tolerance < 0:
        raise OptionError(f"the boundary tolerance must be 0 or more, not {boundary_tolerance}")
    with bounded_cache():
        rasters = [LabelRaster.open(path) for path, _ in pairs]
        vocabulary = Vocabulary.parse(classes) if classes is not None else None
        numbers = _match_classes(rasters, vocabulary)
        values = ValueMap.of(truth_values)
        totals = _Totals(numbers, boundary_tolerance)
        done: list[EvaluatedPair] = []

        def report(share: float) -> None:
            if progress is not None:
                progress((len(done) + share) / len(rasters))

        for (labels_path, truth_path), raster in zip(pairs, rasters, strict=True):
            sources = _Sources(
                labels=raster,
                coder=_label_coder(raster, numbers, vocabulary),
                truth=open_truth(
                    truth_path, raster.grid, numbers, values, truth_column, outside, truth_layer
                ),
                aoi=Aoi.open(aoi, raster.grid, aoi_layer) if aoi is not None else None,
                confidence=_open_confidence(confidence, labels_path, raster),
            )
            with contextlib.closing(sources):
                confusion = totals.add(sources, report)
            scores = Scores.from_confusion(confusion, numbers.names)
            done.append(EvaluatedPair(labels_path, truth_path, scores))
    return totals.evaluation(done)


@dataclass(frozen=True)
class _Sources:
    """Everything that is read for one label raster."""

    labels: LabelRaster
    coder: ValueCoder
    truth: Truth
    aoi: Aoi | None
    confidence: Any | None

    @property
    def limits(self) -> Window:
        """Part of the labels that has to be read at all."""
        return self.labels.grid.window if self.aoi is None else self.aoi.window

    def read(self, window: Window) -> tuple[IndexArray, IndexArray]:
        """Return true and predicted class numbers of a window."""
        truth = self.truth.read(window)
        if self.aoi is not None:
            truth = np.where(self.aoi.mask(window), truth, np.int32(IGNORE))
        return truth, self.coder.encode(self.labels.read(window), self.labels.path)

    def read_confidence(self, window: Window) -> npt.NDArray[np.integer] | None:
        """Whole per cents of a window, or None without a confidence raster."""
        if self.confidence is None:
            return None
        try:
            values: npt.NDArray[np.integer] = self.confidence.read(1, window=window.slices())
        except RasterioError as error:
            raise EvaluationError(f"{self.confidence.name}: cannot be read: {error}") from error
        return values

    def close(self) -> None:
        self.truth.close()
        if self.confidence is not None:
            self.confidence.close()


class _Totals:
    """Counts over all windows and pairs."""

    def __init__(self, numbers: ClassNumbers, boundary_tolerance: float | None) -> None:
        self._numbers = numbers
        size = len(numbers.names)
        self._confusion: CountArray = np.zeros((size, size), np.int64)
        self._boundary = (
            BoundaryCounts(size, boundary_tolerance) if boundary_tolerance is not None else None
        )
        self._confidence = ConfidenceCounts()
        self._has_confidence = False
        self._ignored = self._nodata = 0

    def add(self, sources: _Sources, report: Progress) -> CountArray:
        """Count one label raster and return its own confusion matrix."""
        size = len(self._numbers.names)
        confusion: CountArray = np.zeros((size, size), np.int64)
        done = 0
        for core in _windows(sources.limits):
            confusion += self._add_window(sources, core)
            done += core.area
            report(done / sources.limits.area)
        self._confusion += confusion
        return confusion

    def _add_window(self, sources: _Sources, core: Window) -> CountArray:
        halo = self._boundary.halo if self._boundary is not None else 0
        window = core.grown(halo).intersection(sources.labels.grid.window) or core
        truth, predicted = sources.read(window)
        inside = core.relative_to(window).slices()
        if self._boundary is not None:
            self._boundary.add(truth, predicted, inside)
        truth, predicted = truth[inside], predicted[inside]
        per_cent = sources.read_confidence(core)
        if per_cent is not None:
            self._confidence.add(per_cent, truth, predicted)
            self._has_confidence = True
        unknown = truth == IGNORE
        self._ignored += int(unknown.sum())
        self._nodata += int((predicted[~unknown] == IGNORE).sum())
        return confusion_matrix(truth, predicted, len(self._numbers.names))

    def evaluation(self, pairs: Sequence[EvaluatedPair]) -> Evaluation:
        """All scores; refuses if nothing could be compared."""
        names = self._numbers.names
        if not self._confusion.any():
            raise EvaluationError(
                "no pixel can be compared: where the labels are not nodata, the truth is ignored "
                f"or missing ({self._ignored} pixels without truth, {self._nodata} with truth but "
                "without label)"
            )
        boundary = self._boundary
        return Evaluation(
            scores=Scores.from_confusion(self._confusion, names),
            boundary=boundary.scores(names) if boundary is not None else None,
            boundary_tolerance=boundary.tolerance if boundary is not None else None,
            confidence=self._confidence if self._has_confidence else None,
            pairs=tuple(pairs),
            ignored_pixels=self._ignored,
            nodata_pixels=self._nodata,
        )


def _windows(whole: Window) -> Iterator[Window]:
    """Cut an area into broad strips, so that untiled files are read once from top to bottom."""
    width = min(whole.width, _WINDOW_WIDTH)
    height = max(_WINDOW_PIXELS // width, _LEAST_ROWS)
    for column in pieces(whole, whole.height, width):
        yield from pieces(column, height, width)


def _match_classes(rasters: Sequence[LabelRaster], vocabulary: Vocabulary | None) -> ClassNumbers:
    """Number the classes: the vocabulary's, then those that only label rasters know."""
    carried = _unique(
        entry.name
        for raster in rasters
        if vocabulary is None or not _is_nameless(raster)
        for entry in raster.classes
    )
    if vocabulary is None:
        return ClassNumbers(carried)
    synonyms = [entry.prompts for entry in vocabulary.classes]
    known = ClassNumbers(vocabulary.names, synonyms)
    extra = [name for name in carried if name not in known]
    if extra:
        warn(
            f"the labels have classes that are not in --classes: {', '.join(extra)}; they are "
            "scored as classes of their own, which the truth never has"
        )
    found = {known.number(name) for name in carried if name in known}
    missing = [name for number, name in enumerate(vocabulary.names) if number not in found]
    if carried and missing:
        warn(
            f"the labels do not have the class {', '.join(missing)}; where the truth has it, "
            "they are wrong"
        )
    return ClassNumbers([*vocabulary.names, *extra], synonyms)


def _is_nameless(raster: LabelRaster) -> bool:
    """Tell whether the names are only made up from the values."""
    return all(entry.name == f"class {entry.index}" for entry in raster.classes)


def _unique(names: Iterable[str]) -> list[str]:
    """Names in order, each once whatever its case."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name.casefold(), name)
    return list(first.values())


def _label_coder(
    raster: LabelRaster, numbers: ClassNumbers, vocabulary: Vocabulary | None
) -> ValueCoder:
    """Coder from the values of a label raster to class numbers."""
    if vocabulary is not None and _is_nameless(raster):
        table = {number: number for number in range(len(vocabulary.names))}
    else:
        table = {entry.index: numbers.number(entry.name) for entry in raster.classes}
    if raster.nodata is not None:
        table[raster.nodata] = IGNORE
    return ValueCoder(table, hint="name the values in order with --classes, or set nodata")


def _open_confidence(path: str | Path | None, labels_path: Path, labels: LabelRaster) -> Any | None:
    picked = Path(path) if path is not None else confidence_beside(labels_path)
    if picked is None:
        return None
    source = open_raster(picked)
    if (source.height, source.width) != labels.grid.shape:
        raise EvaluationError(
            f"{picked}: {source.width} x {source.height} pixels, the labels have "
            f"{labels.grid.width} x {labels.grid.height}; they must lie on one grid"
        )
    return source
