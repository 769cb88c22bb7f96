"""From a label raster to a polygon file: what the command line and the pipeline call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.errors import OptionError
from geoseg.io.labels import LabelRaster
from geoseg.types import Window
from geoseg.vector.ground import Ground
from geoseg.vector.lattice import Values
from geoseg.vector.trace import Polygoniser, Polygons
from geoseg.vector.write import Layer, VectorFile, check_target

Progress = Callable[[int, int], None]

_STRIP_PIXELS = 8_000_000
_BATCH = 50_000


@dataclass(frozen=True, slots=True)
class VectorSummary:
    """What a vector file holds."""

    path: Path
    polygons: int
    """Number of features."""
    polygons_by_class: Mapping[str, int]
    area_m2: Mapping[str, float] | None
    """Geodesic area by class name; None where the labels have no coordinate system."""


def vectorize(
    labels: str | Path,
    out: str | Path,
    *,
    confidence: str | Path | None = None,
    min_area_m2: float = 0.0,
    drop_small: bool = False,
    simplify_m: float = 0.0,
    smooth: int = 0,
    connectivity: int = 4,
    layer: str = "segments",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> VectorSummary:
    """Turn a label raster into polygons that partition it exactly.

    Neighbours share their boundary vertex for vertex, holes are holes, nodata becomes no polygon.
    The raster is read in strips, and memory depends on the strip and on the polygons that are
    still open at its end, not on the scene.

    Every feature has ``id`` (from 1, in the order in which objects end from north to south),
    ``class_id``, ``class_name``, ``area_m2`` and ``perimeter_m`` (geodesic, of the polygon as
    written, holes' boundaries included; null without a coordinate system), ``touches_edge``
    (a side lies at the edge of the raster or at nodata, so the object may go on) and, if there is
    a confidence raster, ``confidence`` and ``confidence_min`` in per cent.

    Parameters
    ----------
    labels
        Label raster.
    out
        File to write; ``.gpkg``, ``.parquet``, ``.fgb`` or ``.geojson``.
    confidence
        Raster of per cent on the same grid.
    connectivity
        4: pixels of one object share sides. 8: or corners; the objects are multipolygons then.
    layer
        Name of the layer.
    overwrite
        Replace ``out`` if it exists.
    progress
        Called with rows done and rows in all.

    Raises
    ------
    SceneError
        If a raster cannot be read, or the two do not lie on one grid.
    OptionError
        If an option is impossible.
    OutputError
        If ``out`` cannot be written.
    """
    target = Path(out)
    check_target(target, overwrite=overwrite)
    if connectivity not in (4, 8):
        raise OptionError(f"connectivity is 4 or 8, not {connectivity}")
    raster = LabelRaster.open(labels)
    ground = Ground(raster.grid)
    names = {item.index: item.name for item in raster.classes}
    description = Layer(
        layer, raster.grid.crs, raster.classes, "MultiPolygon" if connectivity == 8 else "Polygon"
    )
    count: dict[str, int] = dict.fromkeys(names.values(), 0)
    area: dict[str, float] = dict.fromkeys(names.values(), 0.0)
    done = 0
    with VectorFile(target, description, overwrite=overwrite) as file:
        for batch in _batches(_polygons(raster, ground, connectivity, progress)):
            geometry, columns = _features(batch, ground, names, done, scored=False)
            file.write(geometry, columns)
            done += len(geometry)
            for value, n in zip(*np.unique(columns["class_id"], return_counts=True), strict=True):
                count[names[int(value)]] += int(n)
                area[names[int(value)]] += float(
                    columns["area_m2"][columns["class_id"] == value].sum()
                )
    return VectorSummary(
        target,
        done,
        MappingProxyType(count),
        MappingProxyType(area) if ground.measures else None,
    )


def _polygons(
    raster: LabelRaster, ground: Ground, connectivity: int, progress: Progress | None
) -> Iterator[Polygons]:
    height, width = raster.shape
    rows = max(1, _STRIP_PIXELS // width)
    void, convert = _void(raster)
    tracer = Polygoniser(raster.shape, void=void, place=ground.place, connectivity=connectivity)
    for window, values in raster.strips(rows):
        yield tracer.feed(convert(values))
        if progress is not None:
            progress(window.row_stop, height)
    yield tracer.finish()


def _void(raster: LabelRaster) -> tuple[int, Callable[[Values], Values]]:
    """Value for "no label", and how to make room for it where every value is a label."""
    if raster.nodata is not None:
        return raster.nodata, lambda values: values
    return -1, lambda values: values.astype(np.int32)


def _batches(parts: Iterator[Polygons]) -> Iterator[list[Polygons]]:
    """Collect polygons into batches worth writing; the last one may be empty."""
    held: list[Polygons] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= _BATCH:
            yield held
            held = []
    yield held


def _features(
    batch: list[Polygons], ground: Ground, names: Mapping[int, str], done: int, *, scored: bool
) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
    """Geometries and attribute columns of a batch."""
    geometry = np.concatenate([part.geometry for part in batch])
    if not ground.mirrors:
        geometry = shapely.orient_polygons(geometry)
    value = np.concatenate([part.tallies.value for part in batch])
    columns: dict[str, npt.NDArray[Any]] = {
        "id": done + 1 + np.arange(len(geometry)),
        "class_id": value.astype(np.int32),
        "class_name": np.array([names[int(v)] for v in value], object),
        "area_m2": np.concatenate([part.area for part in batch]),
        "perimeter_m": np.concatenate([part.perimeter for part in batch]),
        "touches_edge": np.concatenate([part.tallies.touches for part in batch]),
    }
    return geometry, columns
