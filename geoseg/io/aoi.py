"""The part of a scene that the user wants."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from pyproj.exceptions import ProjError
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from geoseg._inputs import shown
from geoseg.errors import OptionError
from geoseg.io.grid import Grid, pieces
from geoseg.io.vectors import lay_polygons, read_polygons
from geoseg.types import BoolArray, Window

_STRIP_ROWS = 1024
_WKT = re.compile(r"\s*((MULTI)?POLYGON|GEOMETRYCOLLECTION)\s*Z?M?\s*(\(|EMPTY)", re.IGNORECASE)
_FURTHEST_PIXELS = 2**30
"""From the scene's corner: GDAL counts pixels in 32 bits, and burns nothing beyond."""


@dataclass(frozen=True)
class Aoi:
    """An area of interest, laid on one scene's pixels.

    A pixel belongs to it if its centre lies inside. Made by :meth:`open`.
    """

    outline: BaseGeometry
    """The area in pixel coordinates: x is the column, y the row."""
    window: Window
    """Pixels of the scene within the area's bounds."""

    @classmethod
    def open(cls, text: str | Path, grid: Grid, layer: str | None = None) -> Aoi:
        """Lay a box or a vector file on a scene's grid.

        Parameters
        ----------
        text
            ``minx,miny,maxx,maxy`` in the scene's CRS, a polygon as WKT (with ``CRS;`` before it if
            it is in another one), or a vector file with polygons in any CRS.
            On a scene without transform a box lies as its map does, with y from minus the height
            to 0, or is columns and rows.
        grid
            The scene's grid.
        layer
            Layer of the vector file; None for the one that has polygons.

        Raises
        ------
        OptionError
            If the text is neither, or no pixel's centre lies inside.
        SceneError
            If the file cannot be read, has no polygons or no CRS to place them by.
        """
        numbers, shape = _numbers(str(text)), _shape(str(text))
        if shape is not None:
            laid = lay_polygons(shape, grid, what="aoi").table.geometry
            outline = _to_pixels(shapely.union_all(laid.to_numpy()), grid.drawn)
        elif numbers is not None:
            outline = _to_pixels(_box(numbers), _plane(numbers, grid))
        else:
            laid = read_polygons(text, grid, what="aoi", layer=layer).table.geometry
            outline = _to_pixels(shapely.union_all(laid.to_numpy()), grid.drawn)
        window = None
        if not outline.is_empty:
            window = _window_of(outline).intersection(grid.window)
        if window is not None and any(
            _burn(outline, part).any() for part in pieces(window, _STRIP_ROWS, window.width)
        ):
            return cls(outline, window)
        raise OptionError(
            f"aoi {shown(text)}: does not cover any pixel of the scene ({_extent(grid)})"
        )

    def mask(self, window: Window) -> BoolArray:
        """Tell which pixels of a window (of the scene) lie in the area, ``(h, w)``."""
        return _burn(self.outline, window)


def _numbers(text: str) -> tuple[float, float, float, float] | None:
    parts = text.split(",")
    if len(parts) != 4:
        return None
    try:
        minx, miny, maxx, maxy = (float(part) for part in parts)
    except ValueError:
        return None
    return minx, miny, maxx, maxy


def _shape(text: str) -> gpd.GeoDataFrame | None:
    """Polygon of a WKT, with its CRS if that stands before it."""
    crs, _, wkt = text.rpartition(";")
    if not _WKT.match(wkt):
        return None
    try:
        shape = shapely.from_wkt(wkt)
        return gpd.GeoDataFrame(geometry=[shape], crs=crs or None)
    except (shapely.errors.ShapelyError, ProjError) as error:
        raise OptionError(f"aoi {shown(text)}: is no polygon ({shown(error)})") from None


def _box(numbers: tuple[float, float, float, float]) -> BaseGeometry:
    minx, miny, maxx, maxy = numbers
    if not (all(map(math.isfinite, numbers)) and minx < maxx and miny < maxy):
        raise OptionError(
            f"aoi {minx:g},{miny:g},{maxx:g},{maxy:g}: give minx,miny,maxx,maxy with min below max"
        )
    return shapely.box(minx, miny, maxx, maxy)


def _plane(numbers: tuple[float, float, float, float], grid: Grid) -> Grid:
    """Grid on which a box lies: without a transform, y below 0 are the map's, the others rows."""
    _, miny, _, maxy = numbers
    if grid.with_transform or miny >= 0:
        return grid
    if maxy > 0:
        raise OptionError(
            f"aoi {','.join(f'{n:g}' for n in numbers)}: the scene has no transform; give y from "
            f"-{grid.height} to 0, as its map lies, or rows from 0 to {grid.height}, not both"
        )
    return grid.drawn


def _to_pixels(area: BaseGeometry, grid: Grid) -> BaseGeometry:
    moved = shapely.transform(area, lambda points: np.column_stack(grid.to_pixels(*points.T)))
    if not moved.is_empty and not all(map(math.isfinite, moved.bounds)):
        raise OptionError("aoi: lies where the scene's CRS is not defined")
    if not moved.is_empty and max(map(abs, moved.bounds)) > _FURTHEST_PIXELS:
        raise OptionError("aoi: reaches too far beyond the scene; give a smaller one")
    return moved


def _window_of(outline: BaseGeometry) -> Window:
    """Pixels whose centres lie within the bounds of an outline."""
    col, row, col_stop, row_stop = (math.ceil(bound - 0.5) for bound in outline.bounds)
    return Window(row, col, row_stop - row, col_stop - col)


def _burn(outline: BaseGeometry, window: Window) -> BoolArray:
    shifted = shapely.transform(outline, lambda points: points - (window.col, window.row))
    burnt = rasterize([shifted], out_shape=window.shape, fill=0, default_value=1, dtype="uint8")
    return np.asarray(burnt, np.bool_)


def _extent(grid: Grid) -> str:
    corners = [grid.drawn.to_ground(c, r) for c in (0, grid.width) for r in (0, grid.height)]
    xs, ys = zip(*corners, strict=True)
    digits = 6 if grid.crs is not None and grid.crs.is_geographic else 2
    return ",".join(f"{value:.{digits}f}" for value in (min(xs), min(ys), max(xs), max(ys)))
