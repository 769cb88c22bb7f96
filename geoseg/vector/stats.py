"""How much of each class lies in every zone of a vector file?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio
import pyproj
import shapely
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio import features

from geoseg._files import csv_cell, plain_path, whole_file, writing_to
from geoseg._optional import require
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.io.grid import pieces
from geoseg.io.labels import LabelRaster
from geoseg.runtime.gdal import bounded_cache
from geoseg.types import Window
from geoseg.vector.ground import Ground

FloatArray = npt.NDArray[np.float64]

_STRIP_PIXELS = 4_000_000
_PIECES = 256
COLUMNS = ("zone", "class_id", "class_name", "area_m2", "share", "zone_area_m2", "coverage")
"""Columns of a table of zones, in this order."""


@bounded_cache()
def zone_stats(
    labels: str | Path,
    zones: str | Path,
    *,
    column: str | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Add up the classes in every zone, pixels on the border by the part that lies inside.

    Parameters
    ----------
    labels
        Label raster.
    zones
        Vector file with polygons, in any coordinate system. Zones may overlap.
    column
        Field that names the zones; without it they are numbered from 1.
    layer
        Layer of ``zones``; without it the first one.

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
    raster = LabelRaster.open(labels)
    ground = Ground(raster.grid)
    if not ground.measures:
        raise SceneError(f"{labels}: has no coordinate system, so zones cannot be placed in it")
    frame = _read_zones(zones, layer)
    if column is not None and column not in frame.columns:
        known = ", ".join(str(name) for name in frame.columns if name != frame.geometry.name)
        raise OptionError(f"{zones}: has no column {column!r}; it has {known or 'none'}")
    names = frame[column] if column is not None else range(1, len(frame) + 1)
    whole = _geodesic_areas(frame)
    inside = _to_pixels(frame, raster)
    parts = []
    for name, zone, area in zip(names, inside, whole, strict=True):
        by_value = _areas_by_value(raster, ground, zone)
        parts.append(_rows(name, by_value, area, raster))
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
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
    target = Path(out)
    write = check_stats_target(target, overwrite=overwrite)
    with writing_to(target), whole_file(target, replaces=overwrite) as part:
        write(table, part)
    return target


def check_stats_target(target: Path, *, overwrite: bool) -> Callable[[pd.DataFrame, Path], None]:
    """Return how to write such a file; raise what ``write_stats`` would, before the work."""
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


def _read_zones(path: str | Path, layer: str | None) -> gpd.GeoDataFrame:
    try:
        with plain_path(path) as plain:
            if layer is None:
                layer = str(pyogrio.list_layers(plain)[0, 0])
            frame = gpd.read_file(plain, layer=layer)
    except (DataSourceError, DataLayerError, OSError, IndexError) as error:
        reason = "cannot be read as vectors" if Path(path).exists() else "no such file"
        raise SceneError(f"{path}: {reason}") from error
    if (
        not isinstance(frame, gpd.GeoDataFrame)
        or not frame.geom_type.isin(["Polygon", "MultiPolygon"]).all()
    ):
        raise SceneError(f"{path}: zones must be polygons, every one of them")
    if frame.crs is None:
        raise SceneError(f"{path}: has no coordinate system, so it cannot be placed")
    return frame


def _geodesic_areas(frame: gpd.GeoDataFrame) -> list[float]:
    crs = pyproj.CRS.from_user_input(frame.crs)
    geod = crs.get_geod()
    geodetic = crs.geodetic_crs
    if geod is None or geodetic is None:
        return [float("nan")] * len(frame)
    # Rings of one orientation, or holes and parts would count with the wrong sign.
    degrees = shapely.orient_polygons(frame.to_crs(geodetic).geometry.values)
    return [abs(geod.geometry_area_perimeter(zone)[0]) for zone in degrees]


def _to_pixels(frame: gpd.GeoDataFrame, raster: LabelRaster) -> npt.NDArray[np.object_]:
    """Zones in pixel coordinates, in which the raster is a plain array whatever its transform."""
    zones = frame.geometry.values
    bounds = shapely.bounds(zones)
    # Long straight sides bend when they change their coordinate system.
    longest = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]) / _PIECES
    fine = gpd.GeoSeries(shapely.segmentize(zones, np.maximum(longest, 1e-12)), crs=frame.crs)
    placed = fine.to_crs(raster.grid.crs).values
    back = ~raster.grid.transform
    pixels = shapely.transform(
        placed, lambda xy: xy @ [[back.a, back.d], [back.b, back.e]] + [back.c, back.f]
    )
    mended: npt.NDArray[np.object_] = np.where(
        shapely.is_valid(pixels), pixels, shapely.make_valid(pixels)
    )
    return mended


def _areas_by_value(raster: LabelRaster, ground: Ground, zone: Any) -> FloatArray:
    """Area in m² of every pixel value inside a zone."""
    total = np.zeros(int(np.iinfo(raster.dtype).max) + 1)
    for window in _windows(raster, zone):
        weights = _weights(zone, window)
        row, col = np.nonzero(weights)
        if not len(row):
            continue
        centre = np.array([window.row + row, window.col + col], np.float64) + 0.5
        area = ground.pixel_area(centre[0], centre[1])
        values = raster.read(window)[row, col]
        total += np.bincount(values, area * weights[row, col], len(total))
    if raster.nodata is not None:
        total[raster.nodata] = 0
    return total


def _windows(raster: LabelRaster, zone: Any) -> Iterator[Window]:
    """Strips of the raster that a zone in pixel coordinates reaches."""
    bounds = shapely.bounds(zone)
    if not np.isfinite(bounds).all():
        return
    left, top = (max(0, int(np.floor(v))) for v in bounds[:2])
    right = min(raster.grid.width, int(np.ceil(bounds[2])))
    bottom = min(raster.grid.height, int(np.ceil(bounds[3])))
    if right > left and bottom > top:
        area = Window(top, left, bottom - top, right - left)
        yield from pieces(area, max(1, _STRIP_PIXELS // area.width), area.width)


def _weights(zone: Any, window: Window) -> FloatArray:
    """Part of each pixel of a window that lies inside the zone, 0 to 1."""
    box = (window.col, window.row, window.col_stop, window.row_stop)
    inside = shapely.clip_by_rect(zone, *box)
    if shapely.is_empty(inside):
        return np.zeros(window.shape)
    at = {"out_shape": window.shape, "transform": Affine(1, 0, window.col, 0, 1, window.row)}
    weights = features.rasterize([(inside, 1)], **at, dtype="uint8").astype(np.float64)
    border = features.rasterize(
        [(shapely.boundary(inside), 1)], **at, dtype="uint8", all_touched=True
    )
    row, col = np.nonzero(border)
    shapely.prepare(inside)
    cells = shapely.box(
        window.col + col, window.row + row, window.col + col + 1, window.row + row + 1
    )
    weights[row, col] = shapely.area(shapely.intersection(cells, inside))
    result: FloatArray = weights
    return result


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
