"""Where a raster's pixels lie on the ground."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.crs import CRS

from geoseg.types import Window

FloatArray = npt.NDArray[np.float64]

_EDGE_POINTS = 32
_WIDE_DEGREES = 90
_TRUE_SCALE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Grid:
    """Placement of a raster: coordinate system, affine transform and size.

    Parameters
    ----------
    crs
        Coordinate system, or None for a plain image.
    transform
        From (column, row) of a pixel's upper left corner to CRS coordinates. The identity stands
        for "not placed", as rasterio has it.
    height, width
        Size in pixels.
    """

    crs: CRS | None
    transform: Affine
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""
        return self.height, self.width

    @property
    def window(self) -> Window:
        """Window that covers the whole grid."""
        return Window(0, 0, self.height, self.width)

    @property
    def placed(self) -> bool:
        """True if pixels have a place on the ground: a CRS and a transform."""
        return self.crs is not None and self.transform != Affine.identity()

    @property
    def profile(self) -> dict[str, Any]:
        """Placement and size, as keywords for rasterio."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def window_transform(self, window: Window) -> Affine:
        """Affine transform of the pixels of a window."""
        t = self.transform
        x, y = self.to_ground(window.col, window.row)
        return Affine(t.a, t.b, x, t.d, t.e, y)

    def to_ground(self, cols: Any, rows: Any) -> tuple[Any, Any]:
        """CRS coordinates of pixel positions; whole numbers are upper left corners."""
        t = self.transform
        return t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f

    def to_pixels(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Columns and rows of CRS coordinates; the inverse of :meth:`to_ground`."""
        t = ~self.transform
        return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f

    def crop(self, window: Window) -> Grid:
        """Grid of the pixels of a window."""
        return Grid(self.crs, self.window_transform(window), window.height, window.width)

    def scaled(self, factor_x: float, factor_y: float) -> Grid:
        """Grid over the same ground with pixels larger by these factors (rounded up in size).

        Parameters
        ----------
        factor_x, factor_y
            New pixel width and height in pixels of this grid.
        """
        t, fx, fy = self.transform, factor_x, factor_y
        return Grid(
            self.crs,
            Affine(t.a * fx, t.b * fy, t.c, t.d * fx, t.e * fy, t.f),
            # A pixel more is not worth a sliver of ground that rounding alone has made.
            max(1, math.ceil(self.height / factor_y - 1e-6)),
            max(1, math.ceil(self.width / factor_x - 1e-6)),
        )

    @cached_property
    def pixel_size_m(self) -> tuple[float, float] | None:
        """How wide and high a pixel at the centre is on the ground, in metres.

        Geodesic on the CRS's own ellipsoid for geographic CRSs. In a projected CRS it is the
        projected size, except where the projection stretches lengths by more than a per cent at
        the scene's centre (web mercator away from the equator): there the ground decides. None
        if the grid is not placed or the centre has no geographic position.
        """
        if self.crs is None or not self.placed:
            return None
        x, y = self.to_ground(self.width / 2, self.height / 2)
        scale = _metres_per_unit(self.crs, x, y)
        if scale is None:
            return None
        t, (sx, sy) = self.transform, scale
        return math.hypot(t.a * sx, t.d * sy), math.hypot(t.b * sx, t.e * sy)

    @property
    def gsd_m(self) -> float | None:
        """Ground sampling distance: metres a pixel at the scene's centre (geometric mean)."""
        size = self.pixel_size_m
        return None if size is None else math.sqrt(size[0] * size[1])

    def pixel_area_m2(self, window: Window | None = None) -> float | None:
        """Mean area on the ellipsoid of the pixels of a window, in square metres.

        The geodesic area of the window's outline, divided by its pixels: right in any CRS, for
        windows that are small against the Earth.

        Parameters
        ----------
        window
            Part of the grid; all of it if None.

        Returns
        -------
        float or None
            None if the grid is not placed or part of the outline lies off the Earth.
        """
        window = window if window is not None else self.window
        if self.crs is None or not self.placed or window.area == 0:
            return None
        area = self._area_m2(pyproj.CRS.from_user_input(self.crs), window)
        return None if area is None else area / window.area

    def _area_m2(self, crs: pyproj.CRS, window: Window) -> float | None:
        ring = _outline(window)
        lon, lat = Geodetic(crs)(*self.to_ground(ring[:, 0], ring[:, 1]))
        geod = crs.get_geod()
        if geod is None or not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            return None
        if crs.is_geographic and np.ptp(lon) > _WIDE_DEGREES and window.width > 1:
            # A ring around the Earth has no inside.
            half = window.width // 2
            left = Window(window.row, window.col, window.height, half)
            right = Window(window.row, window.col + half, window.height, window.width - half)
            parts = self._area_m2(crs, left), self._area_m2(crs, right)
            return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
        area, _ = geod.polygon_area_perimeter(lon, lat)
        return abs(float(area))


class Geodetic:
    """From a CRS to longitude and latitude in degrees, on its own datum."""

    def __init__(self, crs: pyproj.CRS) -> None:
        self._factor: float | None = None
        self._transformer: pyproj.Transformer | None = None
        if crs.is_geographic:
            self._factor = math.degrees(crs.axis_info[0].unit_conversion_factor)
        elif crs.geodetic_crs is not None:
            self._transformer = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)

    def __call__(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return longitudes and latitudes; NaN where a point has none."""
        if self._factor is not None:
            return x * self._factor, y * self._factor
        if self._transformer is None:
            return np.full_like(x, np.nan), np.full_like(y, np.nan)
        try:
            lon, lat = self._transformer.transform(x, y)
        except ProjError:
            return np.full_like(x, np.nan), np.full_like(y, np.nan)
        off = ~np.isfinite(lon) | ~np.isfinite(lat)
        return np.where(off, np.nan, lon), np.where(off, np.nan, lat)


def pieces(area: Window, height: int, width: int) -> Iterator[Window]:
    """Cut an area into windows of at most this size, row by row."""
    for row in range(area.row, area.row_stop, height):
        for col in range(area.col, area.col_stop, width):
            yield Window(
                row, col, min(height, area.row_stop - row), min(width, area.col_stop - col)
            )


def _outline(window: Window) -> FloatArray:
    """Corners of a window with points between them, as ``(N, 2)`` columns and rows."""
    steps = np.linspace(0, 1, _EDGE_POINTS, endpoint=False)
    corners = np.array(
        [
            (window.col, window.row),
            (window.col_stop, window.row),
            (window.col_stop, window.row_stop),
            (window.col, window.row_stop),
        ],
        dtype=np.float64,
    )
    ends = np.roll(corners, -1, axis=0)
    points = corners[:, None] + (ends - corners)[:, None] * steps[None, :, None]
    return points.reshape(-1, 2)


def _metres_per_unit(crs: CRS, x: float, y: float) -> tuple[float, float] | None:
    """Metres on the ground for one CRS unit eastwards and northwards at a point."""
    proj_crs = pyproj.CRS.from_user_input(crs)
    if not proj_crs.is_geographic:
        return _projected_metres_per_unit(proj_crs, x, y)
    geod = proj_crs.get_geod()
    if geod is None:
        return None
    unit = math.degrees(proj_crs.axis_info[0].unit_conversion_factor)
    lon, lat = x * unit, y * unit
    half = 5e-4
    lat = min(max(lat, -90 + half), 90 - half)
    east = geod.inv(lon - half, lat, lon + half, lat)[2]
    north = geod.inv(lon, lat - half, lon, lat + half)[2]
    return east / (2 * half) * unit, north / (2 * half) * unit


def _projected_metres_per_unit(crs: pyproj.CRS, x: float, y: float) -> tuple[float, float]:
    unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    try:
        lon, lat = Geodetic(crs)(np.asarray(x), np.asarray(y))
        areal = float(pyproj.Proj(crs).get_factors(float(lon), float(lat)).areal_scale)
    except ProjError:
        return unit, unit
    stretch = math.sqrt(areal) if math.isfinite(areal) and areal > 0 else 1.0
    if abs(stretch - 1) <= _TRUE_SCALE_TOLERANCE:
        stretch = 1.0
    return unit / stretch, unit / stretch
