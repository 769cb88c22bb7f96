"""How much of each class lies in every zone of a vector file?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geoseg._files import csv_cell, local_target, whole_file, writing_to
from geoseg._optional import require
from geoseg.bars import shown
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.io.crs import horizontal
from geoseg.io.grid import plane_unit
from geoseg.io.labels import LabelRaster
from geoseg.io.objects import on_disk
from geoseg.io.vectors import Laid, read_polygons
from geoseg.legend import open_labels
from geoseg.runtime.gdal import bounded_cache
from geoseg.text.vocabulary import VocabularySource
from geoseg.vector.coverage import areas_by_value
from geoseg.vector.ground import Ground

FloatArray = npt.NDArray[np.float64]

COLUMNS = ("zone", "class_id", "class_name", "area_m2", "share", "zone_area_m2", "coverage")
"""Columns of a table of zones, in this order."""


def zone_stats(
    labels: str | Path | Sequence[str | Path] | Any,
    zones: str | Path | Any,
    *,
    column: str | None = None,
    layer: str | None = None,
    classes: VocabularySource | None = None,
    progress: Callable[[float], None] | bool | None = None,
) -> pd.DataFrame:
    """Add up the classes in every zone, pixels on the border by the part that lies inside.

    Parameters
    ----------
    labels
        Label raster: a path, several of the same classes on one grid, which count as one, or an
        array as `geoseg.segment` gives it.
    zones
        Vector file with polygons, in any coordinate system, or a GeoDataFrame. Zones may overlap.
    column
        Field that names the zones; without it they are numbered from 1.
    layer
        Layer of ``zones``; without it the one that has polygons.
    classes
        Names of the values, in place of the raster's own, see `geoseg.legend.open_labels`.
    progress
        Called with the share that is done, 0 to 1; True shows a bar.

    Returns
    -------
    DataFrame
        A row for every zone and class: ``zone``, ``class_id``, ``class_name``, ``area_m2``
        (geodesic), ``share`` of the labelled part of the zone (0 to 1), ``zone_area_m2``
        (geodesic, the whole zone) and ``coverage``, the share of the zone that has a label.

    Raises
    ------
    SceneError
        If a file cannot be read or has no coordinate system, or the zones are no polygons.
    OptionError
        If there is no such column.
    """
    with (
        on_disk(labels, zones, needed=2) as (raster, polygons),
        shown(progress, "zones") as said,
        bounded_cache(),
    ):
        return _zone_stats(raster, polygons, column, layer, classes, said)


def _zone_stats(
    labels: str | Path,
    zones: str | Path,
    column: str | None,
    layer: str | None,
    classes: VocabularySource | None,
    progress: Callable[[float], None] | None,
) -> pd.DataFrame:
    raster = open_labels(labels, classes)
    ground = Ground(raster.grid)
    if not ground.measures:
        why = raster.grid.unmeasured or "its CRS has no ellipsoid"
        raise SceneError(f"{raster.path}: zones have no areas there, {why}")
    laid = _read_zones(zones, raster, layer)
    frame = laid.table
    if column is not None and column not in frame.columns:
        known = ", ".join(str(name) for name in frame.columns if name != frame.geometry.name)
        raise OptionError(f"{zones}: has no column {column!r}; it has {known or 'none'}")
    names = frame[column] if column is not None else frame.index + 1
    whole = _geodesic_areas(laid.whole)
    inside = _to_pixels(frame, raster)
    if frame.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    counted = areas_by_value(raster, ground, inside, progress)
    parts = [
        _rows(name, by_value, area, raster)
        for name, by_value, area in zip(names, counted, whole, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def write_stats(table: pd.DataFrame, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a table of zones as ``.csv``, ``.json`` (a list of objects) or ``.parquet``.

    In CSV, a name that a spreadsheet would take for a formula, because it begins with ``=``,
    ``+``, ``-``, ``@``, a tab or a carriage return, gets an apostrophe in front.

    Raises
    ------
    OptionError
        If the suffix is not known.
    OutputError
        If the file exists and ``overwrite`` is False, or cannot be written.
    MissingExtraError
        If Parquet is asked for and pyarrow is not installed.
    """
    target = local_target(out)
    write = check_stats_target(target, overwrite=overwrite)
    with writing_to(target), whole_file(target, replaces=overwrite) as part:
        write(table, part)
    return target


def check_stats_target(out: str | Path, *, overwrite: bool) -> Callable[[pd.DataFrame, Path], None]:
    """Return how to write such a file; raise what ``write_stats`` would, before the work."""
    target = local_target(out)
    suffix = target.suffix.lower()
    if suffix not in _WRITERS:
        raise OptionError(f"{target}: zone tables can be written as {', '.join(_WRITERS)}")
    if suffix == ".parquet":
        require("pyarrow", extra="parquet", feature="Parquet")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; replace it with --overwrite")
    return _WRITERS[suffix]


def as_csv(table: pd.DataFrame) -> str:
    """Return a table of zones as `write_stats` writes it to ``.csv``."""
    return str(_safe(table).to_csv(index=False))


def _safe(table: pd.DataFrame) -> pd.DataFrame:
    """Names that a spreadsheet does not take for formulas."""
    return table.assign(**{name: table[name].map(csv_cell) for name in ("zone", "class_name")})


_WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": lambda table, path: _safe(table).to_csv(path, index=False),
    ".json": lambda table, path: table.to_json(path, orient="records", indent=2),
    ".parquet": lambda table, path: table.to_parquet(path, index=False, compression="zstd"),
}


def _read_zones(path: str | Path, raster: LabelRaster, layer: str | None) -> Laid:
    """Zones in the CRS of the labels, cut to their surroundings, and as they are in the file."""
    return read_polygons(path, raster.grid, what="zone", layer=layer)


def _geodesic_areas(zones: gpd.GeoSeries) -> list[float]:
    crs = horizontal(zones.crs)
    unit = plane_unit(crs)
    if unit is not None:
        return [float(area) * unit**2 for area in shapely.area(zones.values)]
    geod = crs.get_geod()
    geodetic = crs.geodetic_crs
    if geod is None or geodetic is None:
        return [float("nan")] * len(zones)
    # Rings of one orientation, or holes and parts would count with the wrong sign.
    degrees = shapely.orient_polygons(zones.to_crs(geodetic).values)
    return [abs(geod.geometry_area_perimeter(zone)[0]) for zone in degrees]


def _to_pixels(frame: gpd.GeoDataFrame, raster: LabelRaster) -> npt.NDArray[np.object_]:
    """Zones in pixel coordinates, in which the raster is a plain array whatever its transform."""
    back = ~raster.grid.transform
    pixels: npt.NDArray[np.object_] = shapely.transform(
        np.asarray(frame.geometry.values),
        lambda xy: xy @ [[back.a, back.d], [back.b, back.e]] + [back.c, back.f],
    )
    return pixels


def _rows(name: object, areas: FloatArray, zone_area: float, raster: LabelRaster) -> pd.DataFrame:
    labelled = float(areas.sum())
    found = areas[[item.index for item in raster.classes]]
    count = len(raster.classes)
    return pd.DataFrame(
        {
            "zone": [name] * count,
            "class_id": [item.index for item in raster.classes],
            "class_name": [item.name for item in raster.classes],
            "area_m2": found,
            "share": found / labelled if labelled else np.zeros(count),
            "zone_area_m2": np.full(count, zone_area),
            "coverage": np.full(count, min(1.0, labelled / zone_area) if zone_area else 0.0),
        },
        columns=list(COLUMNS),
    )
