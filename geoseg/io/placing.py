"""Where the pixels of an array lie: dimensions, coordinates, transform."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import rioxarray  # noqa: F401  registers the .rio accessor
import xarray
from affine import Affine
from rasterio.crs import CRS
from rioxarray.exceptions import MissingSpatialDimensionError

from geoseg.errors import SceneError
from geoseg.io.grid import Grid

NAME = "the array"
"""In messages."""
_HALF = 1e-3
"""Pixels by which half a pixel may be rounded."""
_UNEVEN = 0.1
"""Pixels by which a coordinate may lie off its place."""
_Y, _X = ("y", "lat", "latitude"), ("x", "lon", "longitude")


def spatial_dims(array: xarray.DataArray) -> tuple[Hashable, Hashable]:
    """Dimensions of rows and columns.

    Raises
    ------
    SceneError
        If nothing tells them.
    """
    names = [str(dim) for dim in array.dims]
    try:
        y, x = array.rio.y_dim, array.rio.x_dim
    except MissingSpatialDimensionError:
        y = next((name for name in names if name.lower() in _Y), "")
        x = next((name for name in names if name.lower() in _X), "")
    if not y or not x:
        raise SceneError(
            f"{NAME} has dimensions {', '.join(names) or 'none'}; geoseg reads (band, y, x) or "
            "(y, x, band): rename or select them, or name them with rio.set_spatial_dims"
        )
    return y, x


def order_dims(
    array: xarray.DataArray,
) -> tuple[xarray.DataArray, tuple[Hashable, Hashable], Hashable]:
    """Bring the dimensions to ``(band, y, x)``; and what rows and columns, and bands, are called.

    Raises
    ------
    SceneError
        If there are others.
    """
    y, x = spatial_dims(array)
    others = [dim for dim in array.dims if dim not in (y, x)]
    if len(others) > 1:
        raise SceneError(
            f"{NAME} has dimensions {', '.join(map(str, array.dims))}; geoseg reads (band, y, x) "
            "or (y, x, band), and with time (time, band, y, x): rename or select them"
        )
    if not others:
        if "band" in array.coords:
            array = array.drop_vars("band")
        array, others = array.expand_dims("band"), ["band"]
    wanted = ((others[0], "band"), (y, "y"), (x, "x"))
    renamed = {old: new for old, new in wanted if old != new}
    # A scalar coordinate may have one of these names already.
    array = array.drop_vars([new for new in renamed.values() if new in array.coords])
    return array.rename(renamed).transpose("band", "y", "x"), (y, x), others[0]


def grid_of(place: xarray.DataArray, crs: CRS | None) -> tuple[Grid, bool]:
    """Grid of an array ``(y, x)`` as its rows and columns come, and whether coordinates tell it.

    Raises
    ------
    SceneError
        If rows or columns lie unevenly, or their coordinates are no numbers.
    """
    _refuse_uneven(place)
    transform = _transform(place)
    corrected = transform
    if {"x", "y"} <= set(place.coords):
        corrected = _corrected(place, transform)
    grid = Grid(crs, corrected, place.sizes["y"], place.sizes["x"])
    if _count_pixels(place):
        carried = _carried(place) or Affine.identity()
        if carried == Affine.identity() and crs is None:
            return replace(grid, transform=carried), True
        if (carried.a, carried.e) != (1, 1):  # else it may be a part of what has such pixels
            return replace(grid, transform=carried), True
    return grid, corrected == transform


def directions(grid: Grid) -> tuple[bool, bool]:
    """Whether rows come from the south, columns from the east."""
    t = grid.transform
    if not grid.with_transform or t.b or t.d:
        return False, False
    return t.e > 0, t.a < 0


def turn(data: Any, turned: tuple[bool, bool]) -> Any:
    """Pixels ``(band, y, x)`` from north to south and from west to east."""
    rows, cols = (slice(None, None, -1 if turn else None) for turn in turned)
    return data[:, rows, cols] if any(turned) else data


def north_up(grid: Grid, turned: tuple[bool, bool]) -> Grid:
    """Grid of pixels that have been turned."""
    t, (rows, cols) = grid.transform, turned
    if not rows and not cols:
        return grid
    flipped = Affine(
        -t.a if cols else t.a,
        0.0,
        t.c + t.a * grid.width if cols else t.c,
        0.0,
        -t.e if rows else t.e,
        t.f + t.e * grid.height if rows else t.f,
    )
    return replace(grid, transform=flipped)


def axes_of(place: xarray.DataArray) -> dict[str, xarray.Variable]:
    """One-dimensional coordinates of rows and columns."""
    return {
        dim: place.coords[dim].variable.to_base_variable()
        for dim in ("y", "x")
        if dim in place.coords and place.coords[dim].dims == (dim,)
    }


def _count_pixels(place: xarray.DataArray) -> bool:
    """Whether the coordinates only count rows and columns, as those of a plain picture do."""
    for dim in ("y", "x"):
        if dim not in place.coords or place.coords[dim].dtype.kind not in "iuf":
            return False
        values = np.asarray(place.coords[dim].values, np.float64)
        if values[0] not in (0, 0.5, 1) or not (np.diff(values) == 1).all():
            return False
    return True


def _transform(array: xarray.DataArray) -> Affine:
    """Affine transform; the identity if the array has nothing to tell it by."""
    has_coords = {"x", "y"} <= set(array.coords)
    if "spatial_ref" not in array.coords and not has_coords:
        return Affine.identity()
    stored: Affine = array.rio.transform()
    if not has_coords or min(array.sizes["y"], array.sizes["x"]) < 2:
        return stored
    # A slice keeps the stored transform of the whole; the coordinates know better, but only to
    # rounding.
    counted: Affine = array.rio.transform(recalc=True)
    tolerance = 1e-6 * abs(counted.a)
    return stored if stored.almost_equals(counted, precision=tolerance) else counted


def _corrected(array: xarray.DataArray, counted: Affine) -> Affine:
    """Transform that coordinates tell, half a pixel on where they are the pixels' corners.

    They are, as stackstac gives them, if the transform that the array carries lies whole pixels
    and a half away: the array may be a slice.
    """
    stored = _carried(array)
    if stored is None or stored.determinant == 0:
        return counted
    col, row = ~stored * (counted.c, counted.f)
    alike = np.allclose(stored[:6:3], counted[:6:3]) and np.allclose(stored[1:6:3], counted[1:6:3])
    if alike and all(abs(away % 1 - 0.5) < _HALF for away in (col, row)):
        return counted * Affine.translation(0.5, 0.5)
    return counted


def _carried(array: xarray.DataArray) -> Affine | None:
    """Transform in the attributes of an array or of its grid mapping."""
    mapping = array.coords.get(array.rio.grid_mapping)
    text = None if mapping is None else mapping.attrs.get("GeoTransform")
    try:
        if text is not None:
            return Affine.from_gdal(*map(float, str(text).split()))
        return Affine(*map(float, array.attrs["transform"][:6]))
    except (KeyError, TypeError, ValueError):
        return None


def _refuse_uneven(array: xarray.DataArray) -> None:
    for name, what in (("y", "rows"), ("x", "columns")):
        if name not in array.coords or array.sizes[name] < 2:
            continue
        places = np.asarray(array.coords[name].values)
        if places.ndim != 1:
            continue
        if places.dtype.kind not in "iuf":
            raise SceneError(
                f"{NAME} has {what} whose coordinates {name} are {places.dtype}, no numbers; give "
                f"them numbers, or leave them out: drop_vars('{name}')"
            )
        even = np.linspace(places[0], places[-1], len(places), dtype=np.float64)
        step = abs(even[1] - even[0])
        # Degrees are often kept as float32, which rounds them.
        rounding = np.abs(even).max() * float(
            np.finfo(places.dtype).eps if places.dtype.kind == "f" else 0
        )
        with np.errstate(invalid="ignore"):
            off = np.abs(places - even).max()
        if not step or not off <= _UNEVEN * step + rounding:
            raise SceneError(
                f"{NAME} has {what} that lie unevenly along {name}; bring it on an even grid "
                "first, for example with rio.reproject, or dates on one grid with "
                "rio.reproject_match"
            )
