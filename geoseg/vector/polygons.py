"""From a label raster to a polygon file: what the command line and the pipeline call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.errors import OptionError
from geoseg.io.labels import LabelRaster
from geoseg.options import VectorOptions
from geoseg.runtime.gdal import bounded_cache
from geoseg.vector.components import Tallies
from geoseg.vector.ground import Ground
from geoseg.vector.merge import SmallMerger
from geoseg.vector.scores import ScoreRaster
from geoseg.vector.shape import Shaper
from geoseg.vector.strips import Strips
from geoseg.vector.trace import Polygoniser, Polygons
from geoseg.vector.write import Layer, VectorFile, check_target

Progress = Callable[[int, int], None]
Columns = dict[str, npt.NDArray[Any]]
FloatArray = npt.NDArray[np.float64]

STRIP_PIXELS = 2_000_000
"""Pixels that are in memory at a time."""
_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class VectorSummary:
    """What a vector file holds."""

    path: Path
    count: int
    """Number of polygons."""
    count_by_class: Mapping[str, int]
    area_m2: Mapping[str, float] | None
    """Geodesic area by class name; None where the labels have no coordinate system."""


@bounded_cache()
def vectorize(
    labels: str | Path,
    out: str | Path,
    *,
    confidence: str | Path | None = None,
    options: VectorOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> VectorSummary:
    """Turn a label raster into polygons that partition it exactly.

    Neighbours share their boundary vertex for vertex, also when it is simplified or smoothed;
    holes are holes; nodata becomes no polygon. The raster is read in strips, and memory depends
    on the strip and on the polygons that are still open at its end, not on the scene.

    Every feature has ``id`` (from 1, in the order in which objects end, row by row), ``class_id``,
    ``class_name``, ``area_m2`` and ``perimeter_m`` (geodesic, of the polygon as written, with the
    boundaries of its holes; null without a coordinate system), ``touches_edge`` (a side lies at
    the edge of the raster or at nodata, so the object may go on) and, with a confidence raster,
    ``confidence`` (mean) and ``confidence_min`` in per cent.

    Parameters
    ----------
    labels
        Label raster.
    out
        File to write: ``.gpkg``, ``.parquet``, ``.fgb`` or ``.geojson``.
    confidence
        Raster of per cent on the grid of the labels.
    options
        What becomes of small polygons and of boundaries, and the layer's name.
    overwrite
        Replace ``out`` if it exists.
    progress
        Called with rows done and rows in all.

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
    target = Path(out)
    check_target(target, overwrite=overwrite)
    chosen = options or VectorOptions()
    job = _Job.prepare(labels, confidence, chosen)
    nowhere = job.raster.grid.without_degrees
    if target.suffix.lower() == ".geojson" and nowhere is not None:
        raise OptionError(
            f"{target}: GeoJSON needs longitude and latitude, and {labels} has none, {nowhere}; "
            "write .gpkg, .fgb or .parquet"
        )
    multi = job.options.connectivity == 8
    description = Layer(
        chosen.layer,
        job.raster.grid.crs,
        job.raster.classes,
        "MultiPolygon" if multi else "Polygon",
    )
    totals = _Totals({item.index: item.name for item in job.raster.classes})
    with VectorFile(target, description, overwrite=overwrite) as file:
        for batch in _batches(job.polygons(progress)):
            wkb, columns = job.features(batch, totals)
            file.write(wkb, columns)
            # A polygon may span the scene: it shall not stay while the next ones are traced.
            del wkb
            totals.add(columns)
    return totals.summary(target, measured=job.ground.measures)


@dataclass(frozen=True)
class _Job:
    """Everything a run needs to know, checked."""

    raster: LabelRaster
    confidence: str | Path | None
    options: VectorOptions
    ground: Ground
    strips: Strips

    @classmethod
    def prepare(
        cls, labels: str | Path, confidence: str | Path | None, options: VectorOptions
    ) -> _Job:
        raster = LabelRaster.open(labels)
        ground = Ground(raster.grid)
        if (options.min_area_m2 or options.simplify_m) and not ground.measures:
            why = raster.grid.unmeasured or "its CRS has no ellipsoid"
            raise OptionError(f"{labels}: min area and simplify need metres, but {why}")
        return cls(raster, confidence, options, ground, Strips(raster, STRIP_PIXELS))

    def polygons(self, progress: Progress | None) -> Iterator[Polygons]:
        """Go through the raster and yield polygons as they end."""
        strips = self.strips
        tracer = Polygoniser(
            strips.shape,
            void=self.void,
            place=lambda points: self.ground.place(strips.to_raster(points)),
            measure=lambda points, offsets: self.ground.measure(strips.to_raster(points), offsets),
            shape_arcs=self._shaper(),
            connectivity=self.options.connectivity,
        )
        height, done = (1 + self._merges) * strips.shape[0], self._merges * strips.shape[0]
        relabel = self._merger(progress, height).relabel if self._merges else None
        with ExitStack() as stack:
            scores = None
            if self.confidence is not None:
                scores = stack.enter_context(
                    closing(ScoreRaster(self.confidence, self.raster.grid, self.raster.path))
                )
            for window, values in strips:
                rows = values if relabel is None else relabel(values)
                yield tracer.feed(rows, None if scores is None else scores.read(window))
                done += window.height
                if progress is not None:
                    progress(done, height)
        self.raster.close()
        yield tracer.finish()

    @property
    def void(self) -> int:
        """Value of pixels without a label, as the strips have it."""
        return -1 if self.raster.nodata is None else self.raster.nodata

    @property
    def _merges(self) -> bool:
        return self.options.min_area_m2 > 0 and not self.options.drop_small

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

    def _merger(self, progress: Progress | None, height: int) -> SmallMerger:
        """Look at all components once and settle which of them change their class."""
        wide, high = np.hypot(*self.ground.metres_per_pixel().T)
        strips, done = self.strips, 0

        def pixel_area(row: FloatArray, col: FloatArray) -> FloatArray:
            col, row = strips.to_raster(np.column_stack([col, row])).T
            return self.ground.pixel_area(row, col)

        merger = SmallMerger(
            strips.shape[1],
            void=self.void,
            pixel_area=pixel_area,
            pixel_size=(float(wide), float(high)),
            connectivity=self.options.connectivity,
        )
        for window, values in strips:
            merger.count(values)
            done += window.height
            if progress is not None:
                progress(done, height)
        merger.decide(self.options.min_area_m2)
        return merger

    def features(
        self, batch: list[Polygons], totals: _Totals
    ) -> tuple[npt.NDArray[np.object_], Columns]:
        """Geometries and attributes of a batch, in the order of the fields; empties the batch."""
        wkb = np.concatenate([part.wkb for part in batch])
        tallies = Tallies.concatenated([part.tallies for part in batch])
        area = np.concatenate([part.area for part in batch])
        perimeter = np.concatenate([part.perimeter for part in batch])
        # What reads ahead holds the batch until the next one.
        batch.clear()
        if self.options.drop_small:
            large = area >= self.options.min_area_m2
            wkb, tallies = wkb[large], tallies[large]
            area, perimeter = area[large], perimeter[large]
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
        return wkb, columns


class _Totals:
    """What has been written so far."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self.count = 0
        self._count_by_class = dict.fromkeys(names, 0)
        self._area = dict.fromkeys(names, 0.0)

    def names_of(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        """Class names of pixel values."""
        present, which = np.unique(values, return_inverse=True)
        for value in set(present.tolist()) - set(self._names):
            # A value that nobody named: keep the polygon, say what is known.
            self._names = {**self._names, value: f"class {value}"}
            self._count_by_class[value], self._area[value] = 0, 0.0
        return np.array([self._names[int(value)] for value in present], object)[which]

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
        counts = {self._names[value]: count for value, count in self._count_by_class.items()}
        area = {self._names[value]: total for value, total in self._area.items()}
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
