"""Regions that somebody gave, with what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from rasterio.crs import CRS

from geoseg._files import csv_cell, whole_file, writing_to
from geoseg.errors import warn
from geoseg.io.vectors import field_names
from geoseg.types import LabelClass
from geoseg.vector.write import Layer, VectorFile

Columns = Mapping[str, npt.NDArray[Any]]
LAYER = "regions"
_BATCH = 10_000


def write_polygons(
    path: Path,
    table: gpd.GeoDataFrame,
    numbers: npt.NDArray[np.int64],
    columns: Columns,
    classes: tuple[LabelClass, ...],
    tags: Mapping[str, str],
) -> None:
    """Write polygons with all their attributes and what became of them.

    Parameters
    ----------
    path
        File to write; its suffix decides the format.
    table
        The polygons.
    numbers
        Rows of the table, counted from 1 in ascending order, of which something is known.
    columns
        What is known of those; the others get nothing, and 0 pixels.
    classes
        Of the map.
    tags
        Where the map comes from.

    Warns
    -----
    GeosegWarning
        Where attributes of the table have a name that is needed, and get another.
    """
    own = table.drop(columns=table.geometry.name)
    names = field_names([str(name) for name in own], columns)
    kept = {name: _plain(own.iloc[:, k]) for k, name in enumerate(names)}
    renamed = [name for name in names if name not in own]
    if renamed:
        warn(f"{path.name}: attributes of the regions are written as {', '.join(renamed)}")
    kept |= {name: _spread(values, numbers - 1, len(table)) for name, values in columns.items()}
    shapes = shapely.force_2d(table.geometry.to_numpy())
    several = bool((shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON).any())
    if several:
        shapes = np.array([_as_several(shape) for shape in shapes], object)
    kind = "MultiPolygon" if several else "Polygon"
    crs = None if table.crs is None else CRS.from_wkt(table.crs.to_wkt())
    wkb = shapely.to_wkb(shapely.orient_polygons(shapes))
    with VectorFile(path, Layer(LAYER, crs, classes, kind, tags)) as file:
        for first in range(0, max(len(wkb), 1), _BATCH):
            some = slice(first, first + _BATCH)
            file.write(wkb[some], {name: values[some] for name, values in kept.items()})


def write_table(path: Path, numbers: npt.NDArray[np.int64], columns: Columns) -> None:
    """Write what became of regions that have nothing but a number, as CSV."""
    table = pd.DataFrame({"region": numbers, **columns})
    for name in ("class_name", "runner_up"):
        table[name] = table[name].map(csv_cell)
    with writing_to(path), whole_file(path) as part:
        table.to_csv(part, index=False)


def _plain(column: pd.Series) -> npt.NDArray[Any]:
    """Values of an attribute as every format can hold them."""
    values: npt.NDArray[Any] = column.to_numpy()
    if values.dtype.kind in "iu":
        return values if values.dtype in (np.int32, np.int64) else values.astype(np.int64)
    if values.dtype.kind in "bf":
        return values.astype(np.float64) if values.dtype.kind == "f" else values
    if isinstance(column.dtype, pd.api.extensions.ExtensionDtype) and (
        pd.api.types.is_numeric_dtype(column.dtype)
    ):
        missing = column.isna().to_numpy()
        dtype = column.dtype.numpy_dtype
        return np.ma.MaskedArray(column.fillna(0).to_numpy(dtype), missing)
    if values.dtype.kind == "M":
        return values.astype("datetime64[ms]")
    missing = pd.isna(column).to_numpy()
    return np.array(
        [None if none else str(one) for one, none in zip(column, missing, strict=True)], object
    )


def _spread(values: npt.NDArray[Any], rows: npt.NDArray[np.int64], count: int) -> Any:
    """Values in their rows of a table; nothing in the others, which have no pixel."""
    if values.dtype == object:
        found = np.full(count, None, object)
        found[rows] = values
        return found
    made, none = np.zeros(count, values.dtype), np.ones(count, np.bool_)
    made[rows], none[rows] = values, False
    if values.dtype.kind == "f":
        made[none] = np.nan
    return np.ma.MaskedArray(made, none) if values.dtype == np.int32 else made


def _as_several(shape: Any) -> Any:
    return shape if shape.geom_type == "MultiPolygon" else shapely.MultiPolygon([shape])
