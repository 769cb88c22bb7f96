"""The part of a scene that the user wants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import shapely
from pyproj.exceptions import ProjError
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from geoseg._files import plain_path
from geoseg._inputs import file_looks_like, named_path, shown
from geoseg.errors import OptionError, SceneError
from geoseg.io.grid import Grid, pieces
from geoseg.types import BoolArray, Window

_EDGE_PARTS = 100
_STRIP_ROWS = 1024
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
    def open(cls, text: str | Path, grid: Grid) -> Aoi:
        """Lay a box or a vector file on a scene's grid.

        Parameters
        ----------
        text
            ``minx,miny,maxx,maxy`` in the scene's CRS, or a vector file with polygons in any CRS.
        grid
            The scene's grid.

        Raises
        ------
        OptionError
            If the text is neither, or no pixel's centre lies inside.
        SceneError
            If the file cannot be read, has no polygons or no CRS to place them by.
        """
        numbers = _numbers(str(text))
        area = _box(numbers) if numbers is not None else _read_polygons(str(text), grid)
        outline = _to_pixels(area, grid)
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


def _box(numbers: tuple[float, float, float, float]) -> BaseGeometry:
    minx, miny, maxx, maxy = numbers
    if not (all(map(math.isfinite, numbers)) and minx < maxx and miny < maxy):
        raise OptionError(
            f"aoi {minx:g},{miny:g},{maxx:g},{maxy:g}: give minx,miny,maxx,maxy with min below max"
        )
    return shapely.box(minx, miny, maxx, maxy)


def _read_polygons(text: str, grid: Grid) -> BaseGeometry:
    path = shown(text)
    if "://" not in text and not text.startswith("/vsi"):
        found = named_path(text, "aoi", OptionError)  # a folder is a File Geodatabase
        if found is None:
            raise OptionError(
                f"aoi {path}: no such file; give a vector file or minx,miny,maxx,maxy"
            )
        text = str(found)
    try:
        with plain_path(text) as plain:
            table = geopandas.read_file(plain, engine="pyogrio", columns=[])
    except Exception as error:  # whatever a file or an answer makes of four libraries
        reason = file_looks_like(text) or shown((str(error) or repr(error)).splitlines()[0])
        raise SceneError(f"{path}: is not a vector file that can be read ({reason})") from error
    if not isinstance(table, geopandas.GeoDataFrame):
        raise SceneError(f"{path}: has no geometries")
    shapes = table.geometry[table.geometry.geom_type.isin(["Polygon", "MultiPolygon"])]
    shapes = shapes[~shapes.is_empty]
    if shapes.empty:
        raise SceneError(f"{path}: has no polygons to take as an area of interest")
    if (shapes.crs is None) != (grid.crs is None):
        which = "the file" if shapes.crs is None else "the scene"
        raise SceneError(f"{path}: cannot be laid on the scene, {which} has no CRS")
    if not np.isfinite(shapely.get_coordinates(shapes.to_numpy())).all():
        raise SceneError(f"{path}: has corners that are no numbers")
    try:
        if shapes.crs is not None and grid.crs is not None:
            minx, miny, maxx, maxy = shapes.total_bounds
            # A straight edge in one CRS is a curve in another. Outlines that cross themselves are
            # mended first: with more points on them, parts would be lost.
            step = max(maxx - minx, maxy - miny) / _EDGE_PARTS
            shapes = shapes.make_valid()
            shapes = (shapes.segmentize(step) if step > 0 else shapes).to_crs(grid.crs.to_wkt())
        return shapely.union_all(shapely.make_valid(shapes.to_numpy()))
    except ProjError as error:
        raise SceneError(f"{path}: cannot be brought into the scene's CRS") from error
    except (shapely.errors.ShapelyError, ValueError) as error:
        raise SceneError(f"{path}: has outlines that are no areas ({shown(error)})") from error


def _to_pixels(area: BaseGeometry, grid: Grid) -> BaseGeometry:
    moved = shapely.transform(area, lambda points: np.column_stack(grid.to_pixels(*points.T)))
    if moved.is_empty or not all(map(math.isfinite, moved.bounds)):
        raise OptionError("aoi: lies where the scene's CRS is not defined")
    if max(map(abs, moved.bounds)) > _FURTHEST_PIXELS:
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
    corners = [grid.to_ground(c, r) for c in (0, grid.width) for r in (0, grid.height)]
    xs, ys = zip(*corners, strict=True)
    digits = 6 if grid.crs is not None and grid.crs.is_geographic else 2
    return ",".join(f"{value:.{digits}f}" for value in (min(xs), min(ys), max(xs), max(ys)))
