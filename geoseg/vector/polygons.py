"""From a label raster to a polygon file: what the command line and the pipeline call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from geoseg._fields import as_made
from geoseg._files import local_target
from geoseg.bars import shown
from geoseg.errors import OptionError, warn
from geoseg.io.joined import JoinedLabels
from geoseg.io.labels import LabelRaster
from geoseg.io.objects import on_disk
from geoseg.io.times import TIFF_TIME, read_time
from geoseg.legend import open_labels
from geoseg.options import VectorOptions
from geoseg.runtime.gdal import bounded_cache
from geoseg.text.vocabulary import VocabularySource
from geoseg.types import Window
from geoseg.vector import style
from geoseg.vector.components import Tallies
from geoseg.vector.corners import Values
from geoseg.vector.ground import Ground
from geoseg.vector.merge import SmallMerger
from geoseg.vector.scores import JoinedScores, ScoreRaster, Scores, refuse_other_grid
from geoseg.vector.shape import Shaper
from geoseg.vector.split import CODES, Splitter
from geoseg.vector.strips import Strips
from geoseg.vector.trace import Polygoniser, Polygons
from geoseg.vector.write import Layer, VectorFile, check_target

Progress = Callable[[int, int], None]
Columns = dict[str, npt.NDArray[Any]]
FloatArray = npt.NDArray[np.float64]

STRIP_PIXELS = 2_000_000
"""Pixels that are in memory at a time."""
_BATCH = 10_000
_ORIGIN = (*(f"GEOSEG_{name}" for name in ("SCENE", "MODEL", "CLASSES", "VERSION")), TIFF_TIME)
"""Tags that tell where a map comes from."""
_KINDS = {"scene": "object", "date": "datetime64[ms]"}


@dataclass(frozen=True, slots=True)
class VectorSummary:
    """What a vector file holds."""

    path: Path
    count: int
    """Number of polygons."""
    count_by_class: Mapping[str, int]
    area_m2: Mapping[str, float] | None
    """Geodesic area by class name; None where the labels have no coordinate system."""


def vectorize(
    labels: str | Path | Sequence[str | Path] | Any,
    out: str | Path | None = None,
    *,
    confidence: str | Path | Any = None,
    runner_up: str | Path | Any = None,
    classes: VocabularySource | None = None,
    options: VectorOptions | Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> VectorSummary | Any:
    """Turn a label raster into polygons that partition it exactly.

    Neighbours share their boundary vertex for vertex, also when it is simplified or smoothed;
    holes are holes; nodata becomes no polygon. The raster is read in strips, and memory depends
    on the strip and on the polygons that are still open at its end, not on the scene.

    Every feature has ``id`` (from 1, in the order in which objects end, row by row), ``class_id``,
    ``class_name``, ``area_m2`` and ``perimeter_m`` (geodesic, of the polygon as written, with the
    boundaries of its holes; null without a coordinate system), ``touches_edge`` (a side lies at
    the edge of the raster or at nodata, so the object may go on), with a confidence raster
    ``confidence`` (mean) and ``confidence_min`` in per cent, with a raster of second best classes
    ``runner_up``, the class that comes second in most of its pixels, and on request ``scene`` and
    ``date``.

    Parameters
    ----------
    labels
        Label raster: a path, several of the same classes on one grid, whose polygons go on across
        their borders, or the labels that `geoseg.segment` gives (a DataArray, or the Dataset with
        them).
    out
        File to write: ``.gpkg`` (with the style for QGIS in ``.qml`` beside it), ``.parquet``,
        ``.fgb`` or ``.geojson``. Without one the polygons come back.
    confidence
        Raster of per cent on the grid of the labels, a path or an array; of several label rasters
        one for each, in their order.
    runner_up
        Raster of the second best class on the grid of the labels, a path or an array.
    classes
        Names and colours of the values, in place of the raster's own, see
        `geoseg.legend.open_labels`.
    options
        What becomes of small polygons and of boundaries, and the layer's name.
    overwrite
        Replace ``out`` if it exists.
    progress
        Called with rows done and rows in all; True shows a bar.

    Returns
    -------
    VectorSummary or geopandas.GeoDataFrame
        What was written; without ``out`` the polygons with their attributes, and a column
        ``color`` with the ``#rrggbb`` of their class.

    Raises
    ------
    SceneError
        If a raster cannot be read, or the two do not lie on one grid.
    OptionError
        If the format is not known, or metres are asked for where there is no coordinate system.
    OutputError
        If ``out`` cannot be written.
    MissingExtraError
        If the format needs a package that is not installed.
    """
    with (
        on_disk(labels, confidence, runner_up) as (raster, scores, second),
        shown(progress, "polygons", "row") as said,
        bounded_cache(),
    ):
        given: dict[str, Any] = {
            "confidence": scores,
            "runner_up": second,
            "classes": classes,
            "options": options,
            "progress": said,
        }
        if out is not None:
            return _to_file(raster, local_target(out), overwrite=overwrite, **given)
        with TemporaryDirectory(prefix="geoseg-") as folder:
            target = Path(folder) / "polygons.gpkg"
            _to_file(raster, target, overwrite=False, **given)
            colours = {c.index: c.color for c in open_labels(raster, classes).classes}
            table = gpd.read_file(target, engine="pyogrio")
            return table.assign(color=table["class_id"].map(colours))


def _to_file(
    labels: str | Path | Sequence[str | Path],
    target: Path,
    *,
    confidence: Scored,
    runner_up: str | Path | None,
    classes: VocabularySource | None,
    options: VectorOptions | Mapping[str, Any] | None,
    overwrite: bool,
    progress: Progress | None,
) -> VectorSummary:
    check_target(target, overwrite=overwrite)
    chosen = as_made(VectorOptions, options)
    job = _Job.prepare(open_labels(labels, classes), confidence, runner_up, chosen)
    nowhere = job.raster.grid.without_degrees
    if target.suffix.lower() == ".geojson" and nowhere is not None:
        raise OptionError(
            f"{target}: GeoJSON needs longitude and latitude, and {job.raster.path} has none, "
            f"{nowhere}; "
            "write .gpkg, .fgb or .parquet"
        )
    multi = job.options.connectivity == 8
    description = Layer(
        chosen.layer,
        job.raster.grid.crs,
        job.raster.classes,
        "MultiPolygon" if multi else "Polygon",
        {name: job.raster.tags[name] for name in _ORIGIN if name in job.raster.tags},
    )
    totals = _Totals({item.index: item.name for item in job.raster.classes})
    with VectorFile(target, description, overwrite=overwrite) as file:
        for batch in _batches(job.polygons(progress)):
            wkb, columns = job.features(batch, totals)
            file.write(wkb, columns)
            # A polygon may span the scene: it shall not stay while the next ones are traced.
            del wkb
            totals.add(columns)
    if target.suffix.lower() == ".gpkg":
        style.write_polygon_style(target, job.raster.classes)
    return totals.summary(target, measured=job.ground.measures)


Scored = str | Path | Sequence[str | Path] | None
"""Rasters of confidence."""


class Stage(Protocol):
    """Changes values before polygons are traced, after it has seen all rows once."""

    def count(self, rows: Values) -> None:
        """Take the next rows into account."""

    def decide(self) -> None:
        """Settle what changes; the first rows come again."""

    def relabel(self, rows: Values) -> Values:
        """Return the next rows, changed."""

    def rewind(self) -> None:
        """Let the first rows come again."""


def _open_scores(
    confidence: str | Path | Sequence[str | Path], raster: LabelRaster
) -> ScoreRaster | JoinedScores:
    paths = [confidence] if isinstance(confidence, str | Path) else list(confidence)
    if isinstance(raster, JoinedLabels):
        return JoinedScores(paths, raster)
    if len(paths) != 1:
        raise OptionError(f"confidence: {len(paths)} rasters given for one label raster; give one")
    return ScoreRaster(paths[0], raster.grid, raster.path)


@dataclass(frozen=True)
class _Job:
    """Everything a run needs to know, checked."""

    raster: LabelRaster
    confidence: Scored
    runner_up: LabelRaster | None
    options: VectorOptions
    ground: Ground
    strips: Strips
    told: Mapping[str, Any]
    """What the tags of the labels say, by the name of the attribute."""

    @classmethod
    def prepare(
        cls,
        raster: LabelRaster,
        confidence: Scored,
        runner_up: str | Path | None,
        options: VectorOptions,
    ) -> _Job:
        ground = Ground(raster.grid)
        if (options.min_area_m2 or options.simplify_m) and not ground.measures:
            why = raster.grid.unmeasured or "its CRS has no ellipsoid"
            raise OptionError(f"{raster.path}: min area and simplify need metres, but {why}")
        second = None if runner_up is None else LabelRaster.open(runner_up)
        if second is not None:
            refuse_other_grid(second.path, second.grid, raster.grid, raster.path)
        if confidence is not None:
            _open_scores(confidence, raster).close()
        strips = Strips(raster, STRIP_PIXELS)
        told = _told(raster, options.attributes)
        return cls(raster, confidence, second, options, ground, strips, told)

    def polygons(self, progress: Progress | None) -> Iterator[Polygons]:
        """Go through the raster and yield polygons as they end."""
        stages, passes = self._stages(progress)
        codes = CODES if self.options.split else 1
        strips = self.strips
        tracer = Polygoniser(
            strips.shape,
            void=self.void * codes,
            place=lambda points: self.ground.place(strips.to_raster(points)),
            measure=lambda points, offsets: self.ground.measure(strips.to_raster(points), offsets),
            shape_arcs=self._shaper(),
            connectivity=self.options.connectivity,
            codes=codes,
        )
        with ExitStack() as stack:
            scores = None
            if self.confidence is not None:
                scores = stack.enter_context(closing(_open_scores(self.confidence, self.raster)))
            for done, (window, values) in strips.with_rows_done():
                yield tracer.feed(
                    _relabelled(values, stages),
                    None if scores is None else scores.read(window),
                    self._second(window),
                    next((s.spare for s in reversed(stages) if isinstance(s, SmallMerger)), None),
                )
                if progress is not None:
                    height = strips.shape[0]
                    progress((passes - 1) * height + done, passes * height)
        self.raster.close()
        if self.runner_up is not None:
            self.runner_up.close()
        yield tracer.finish()

    def _second(self, window: Window) -> Scores | None:
        if self.runner_up is None:
            return None
        values = self.runner_up.read(window)
        return Scores(values, values != (-1 if (none := self.runner_up.nodata) is None else none))

    @property
    def void(self) -> int:
        """Value of pixels without a label, as the strips have it."""
        return -1 if self.raster.nodata is None else self.raster.nodata

    def _shaper(self) -> Shaper | None:
        if not self.options.simplify_m and not self.options.smooth:
            return None
        metres = self.ground.metres_per_pixel()
        if self.options.simplify_m and not np.isfinite(metres).all():
            raise OptionError(
                f"{self.raster.path}: its centre has no place on the Earth, so simplify has no "
                f"metres"
            )
        return Shaper(self.options.simplify_m, metres, self.options.smooth)

    def _stages(self, progress: Progress | None) -> tuple[list[Stage], int]:
        """What changes values before the tracing, each settled in a pass; and passes in all."""
        strips, options = self.strips, self.options
        height, width = strips.shape
        stages: list[Stage] = []
        merges = options.min_area_m2 > 0 and not options.drop_small
        if merges:
            stages.append(self._merger(1))
        if options.split:
            splitter = Splitter(
                width,
                void=self.void,
                side=options.split,
                connectivity=options.connectivity,
            )
            stages.append(splitter)
            if merges:
                stages.append(self._merger(CODES))
        for before, stage in enumerate(stages):
            for done, (_, values) in strips.with_rows_done():
                stage.count(_relabelled(values, stages[:before]))
                if progress is not None:
                    progress(before * height + done, (len(stages) + 1) * height)
            stage.decide()
            for earlier in stages[:before]:
                earlier.rewind()
        return stages, len(stages) + 1

    def _merger(self, codes: int) -> SmallMerger:
        """What gives small polygons to a neighbour, or small parts to another of their polygon."""
        wide, high = np.hypot(*self.ground.metres_per_pixel().T)

        def pixel_area(row: FloatArray, col: FloatArray) -> FloatArray:
            col, row = self.strips.to_raster(np.column_stack([col, row])).T
            return self.ground.pixel_area(row, col)

        return SmallMerger(
            self.strips.shape[1],
            void=self.void * codes,
            pixel_area=pixel_area,
            pixel_size=(float(wide), float(high)),
            min_area=self.options.min_area_m2,
            connectivity=self.options.connectivity,
            codes=codes,
        )

    def features(
        self, batch: list[Polygons], totals: _Totals
    ) -> tuple[npt.NDArray[np.object_], Columns]:
        """Geometries and attributes of a batch, in the order of the fields; empties the batch."""
        wkb = np.concatenate([part.wkb for part in batch])
        tallies = Tallies.concatenated([part.tallies for part in batch])
        area = np.concatenate([part.area for part in batch])
        perimeter = np.concatenate([part.perimeter for part in batch])
        second = np.concatenate([_second_of(part) for part in batch])
        if self.options.split:
            tallies.value[:] //= CODES
        # What reads ahead holds the batch until the next one.
        batch.clear()
        if self.options.drop_small:
            large = area >= self.options.min_area_m2
            wkb, tallies = wkb[large], tallies[large]
            area, perimeter, second = area[large], perimeter[large], second[large]
        if not self.ground.mirrors:
            wkb = shapely.to_wkb(shapely.orient_polygons(shapely.from_wkb(wkb)))
        columns: Columns = {
            "id": totals.count + 1 + np.arange(len(wkb)),
            "class_id": tallies.value.astype(np.int32),
            "class_name": totals.names_of(tallies.value),
            "area_m2": area,
            "perimeter_m": perimeter,
            "touches_edge": tallies.touches,
        }
        if self.confidence is not None:
            scored = tallies.score_count > 0
            mean = tallies.score_sum / np.maximum(tallies.score_count, 1)
            columns["confidence"] = np.where(scored, mean, np.nan)
            columns["confidence_min"] = np.where(scored, tallies.score_min, np.nan)
        if self.runner_up is not None:
            columns["runner_up"] = totals.names_of(second)
        for name, value in self.told.items():
            columns[name] = np.full(len(wkb), value, _KINDS[name])
        return wkb, columns


def _relabelled(rows: Values, stages: Sequence[Stage]) -> Values:
    for stage in stages:
        rows = stage.relabel(rows)
    return rows


def _second_of(part: Polygons) -> npt.NDArray[np.int64]:
    assert part.second is not None
    return part.second


def _told(raster: LabelRaster, wanted: Sequence[str]) -> dict[str, Any]:
    """Scene and date of a map, from its tags.

    Warns
    -----
    GeosegWarning
        Where there is no such tag.
    """
    tags = {"scene": "GEOSEG_SCENE", "date": TIFF_TIME}
    known: dict[str, Any] = {name: raster.tags.get(tags[name]) for name in wanted}
    if "date" in known:
        known["date"] = read_time(known["date"] or "")
    for name in wanted:
        if known[name] is None:
            warn(
                f"{Path(raster.path).name}: no tag {tags[name]} says its {name}, so the polygons' "
                "stays empty"
            )
    return known


class _Totals:
    """What has been written so far."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self.count = 0
        self._count_by_class = dict.fromkeys(names, 0)
        self._area = dict.fromkeys(names, 0.0)

    def names_of(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        """Class names of pixel values; None for -1."""
        present, which = np.unique(values, return_inverse=True)
        for value in set(present.tolist()) - set(self._names) - {-1}:
            # A value that nobody named: keep the polygon, say what is known.
            self._names = {**self._names, value: f"class {value}"}
            self._count_by_class[value], self._area[value] = 0, 0.0
        return np.array([self._names.get(int(value)) for value in present], object)[which]

    def add(self, columns: Columns) -> None:
        """Count a batch."""
        self.count += len(columns["id"])
        values, which = np.unique(columns["class_id"], return_inverse=True)
        counts, areas = np.bincount(which), np.bincount(which, columns["area_m2"])
        for value, count, area in zip(values, counts, areas, strict=True):
            self._count_by_class[int(value)] += int(count)
            self._area[int(value)] += float(area)

    def summary(self, path: Path, *, measured: bool) -> VectorSummary:
        """Return what there is to say in the end."""
        # Two values may have one name.
        counts = dict.fromkeys(self._names.values(), 0)
        area = dict.fromkeys(self._names.values(), 0.0)
        for value, name in self._names.items():
            counts[name] += self._count_by_class[value]
            area[name] += self._area[value]
        return VectorSummary(
            path,
            self.count,
            MappingProxyType(counts),
            MappingProxyType(area) if measured else None,
        )


def _batches(parts: Iterator[Polygons]) -> Iterator[list[Polygons]]:
    """Collect polygons into batches worth writing; the last one may be empty."""
    held: list[Polygons] = []
    for part in parts:
        held.append(part)
        del part
        if sum(map(len, held)) >= _BATCH:
            yield held
            held = []
    yield held or [Polygons.none()]
