"""Where a raster's pixels lie on the ground."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.crs import CRS

from geoseg.io.crs import crs_name, horizontal
from geoseg.types import Window

FloatArray = npt.NDArray[np.float64]

_EDGE_POINTS = 32
_WIDE_DEGREES = 90
_TRUE_SCALE_TOLERANCE = 0.01
_MOST_DEGREES = 540
"""A longitude may be counted once more around the Earth."""
_AREA_MARGIN = 3
"""Degrees by which scenes commonly leave the area that their CRS is meant for."""
_LEAST_METRES = 1e-3
"""Smaller pixels are more likely parts of degrees."""


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
        return self.crs is not None and self.with_transform

    @property
    def with_transform(self) -> bool:
        """True if pixels have coordinates of their own."""
        return self.transform != Affine.identity()

    @property
    def drawn(self) -> Grid:
        """The grid as GIS software draws it: an image without transform has y upwards from -h."""
        if self.with_transform:
            return self
        return replace(self, transform=Affine.scale(1, -1))

    @cached_property
    def unmeasured(self) -> str | None:
        """Why there are no metres here, for a message; None if there are."""
        if self.crs is None:
            return "it has no CRS"
        if not self.placed:
            return "it has no transform"
        if self.misfit is not None:
            return self.misfit
        flat = horizontal(self.crs)
        if flat.geodetic_crs is None and plane_unit(flat) is None:
            return f"its CRS, {crs_name(self.crs)}, is not on the Earth and has no metres"
        return None

    @property
    def without_degrees(self) -> str | None:
        """Why there are no longitudes and latitudes here, for a message; None if there are."""
        if self.crs is not None and self.unmeasured is None:
            flat = horizontal(self.crs)
            return (
                f"its CRS, {crs_name(self.crs)}, is a local grid"
                if flat.geodetic_crs is None
                else None
            )
        return self.unmeasured

    @cached_property
    def misfit(self) -> str | None:
        """How the coordinates cannot be right in the CRS, for a message; None if they can."""
        return None if self.crs is None or not self.placed else _misfit(self)

    @property
    def profile(self) -> dict[str, Any]:
        """Placement and size, as keywords for rasterio."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Least x and y, greatest x and y of the corners, in the CRS."""
        x, y = self.to_ground(
            np.array([0, self.width, 0, self.width]), np.array([0, 0, self.height, self.height])
        )
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())

    @cached_property
    def bbox_wgs84(self) -> tuple[float, float, float, float] | None:
        """West, south, east and north in degrees on WGS 84; None where there are none.

        West is greater than east where the grid crosses the antimeridian, as GeoJSON has it.
        """
        if self.crs is None or self.without_degrees is not None:
            return None
        try:
            to_degrees = pyproj.Transformer.from_crs(horizontal(self.crs), 4326, always_xy=True)
            box = to_degrees.transform_bounds(*self.bounds, densify_pts=21)
        except ProjError:
            return None
        if not np.isfinite(box).all():
            return None
        west, south, east, north = (float(value) for value in box)
        if abs(west) > 180 or abs(east) > 180:
            whole = east - west >= 360
            west, east = (-180.0, 180.0) if whole else ((v + 180) % 360 - 180 for v in (west, east))
        return west, max(south, -90.0), east, min(north, 90.0)

    @property
    def corners_wgs84(self) -> list[tuple[float, float]] | None:
        """Longitude and latitude of the four corners, in turn; None where there are none."""
        if self.bbox_wgs84 is None:
            return None
        cols, rows = (
            np.array([0, 0, self.width, self.width]),
            np.array([0, self.height, self.height, 0]),
        )
        to_degrees = pyproj.Transformer.from_crs(horizontal(self.crs), 4326, always_xy=True)
        east, north = to_degrees.transform(*self.to_ground(cols, rows))
        return [(float(x), float(y)) for x, y in zip(east, north, strict=True)]

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

        Geodesic on the CRS's own ellipsoid for geographic CRSs. On a local grid (an engineering
        CRS) it is the grid's. In a projected CRS it is the
        projected size, except where the projection stretches lengths by more than a per cent at
        the scene's centre (web mercator away from the equator): there the ground decides. None
        if the grid is not placed or the centre has no geographic position.
        """
        if self.crs is None or self.unmeasured is not None:
            return None
        x, y = self.to_ground(self.width / 2, self.height / 2)
        scale = _metres_per_unit(horizontal(self.crs), x, y)
        if scale is None:
            return None
        t, (sx, sy) = self.transform, scale
        size = math.hypot(t.a * sx, t.d * sy), math.hypot(t.b * sx, t.e * sy)
        return size if all(math.isfinite(side) and side > 0 for side in size) else None

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
        if self.crs is None or self.unmeasured is not None or window.area == 0:
            return None
        flat = horizontal(self.crs)
        unit = plane_unit(flat)
        if unit is not None:
            return abs(self.transform.determinant) * unit**2
        area = self._area_m2(flat, window)
        return None if area is None else area / window.area

    def _area_m2(self, crs: pyproj.CRS, window: Window) -> float | None:
        ring = _outline(window)
        lon, lat = Geodetic(crs)(*self.to_ground(ring[:, 0], ring[:, 1]))
        geod = crs.get_geod()
        if geod is None or not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            return None
        if is_plain_degrees(crs) and np.ptp(lon) > _WIDE_DEGREES and window.width > 1:
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
        if is_plain_degrees(crs):
            self._factor = math.degrees(crs.axis_info[0].unit_conversion_factor)
        elif crs.is_geographic:  # on a turned globe
            self._transformer = pyproj.Transformer.from_crs(crs, crs.source_crs, always_xy=True)
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


def is_plain_degrees(crs: pyproj.CRS) -> bool:
    """Whether coordinates are longitudes and latitudes (of the Earth's own axis)."""
    return bool(crs.is_geographic and not crs.is_derived)


def plane_unit(crs: pyproj.CRS) -> float | None:
    """Metres in a unit of a local grid, which is flat; None for every other CRS."""
    if not crs.is_engineering or not crs.axis_info:
        return None
    axis = crs.axis_info[0]
    angle = re.search("deg|grad|rad|unity|unknown", axis.unit_name.lower())
    return None if angle or not axis.unit_conversion_factor else axis.unit_conversion_factor


def _misfit(grid: Grid) -> str | None:
    assert grid.crs is not None
    flat = horizontal(grid.crs)
    corners = np.array([(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)]) * (grid.width, grid.height)
    x, y = grid.to_ground(*corners.T)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return "its transform holds what is no number"
    t = grid.transform
    if t.determinant == 0:
        return "its transform has pixels without a size"
    kind = None
    step = math.hypot(t.b, t.e)
    if flat.is_geographic:
        kind = _angles_misfit(x, y, step, math.degrees(flat.axis_info[0].unit_conversion_factor))
    elif flat.is_projected:
        kind = _lengths_misfit(flat, x, y, math.sqrt(abs(t.determinant)))
    if kind is None:
        return None
    spans = ", ".join(f"{low:.8g} to {high:.8g}" for low, high in [_span(x), _span(y)])
    return f"its coordinates ({spans}) do not fit its CRS, {crs_name(grid.crs)}: {kind}"


def _span(values: FloatArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _angles_misfit(x: FloatArray, y: FloatArray, step: float, degrees: float) -> str | None:
    lon, lat = np.abs(x * degrees).max(), np.abs(y * degrees).max()
    if lat <= 90 + step * degrees and lon <= _MOST_DEGREES:  # half a pixel beyond a pole is usual
        return None
    return "x and y seem swapped" if lon <= 90 and lat <= 360 else "these are no degrees"


def _lengths_misfit(flat: pyproj.CRS, x: FloatArray, y: FloatArray, pixel: float) -> str | None:
    unit = flat.axis_info[0].unit_conversion_factor if flat.axis_info else 1.0
    where = _on_earth(flat, x, y)
    degrees = np.abs(x).max() <= 360 and np.abs(y).max() <= 90
    if degrees and (where != "inside" or pixel * unit < _LEAST_METRES):
        return "these seem to be degrees"
    if where == "outside" and _on_earth(flat, y, x) == "inside":
        return "x and y seem swapped"
    return "nothing on the Earth lies there" if where == "nowhere" else None


def _on_earth(flat: pyproj.CRS, x: FloatArray, y: FloatArray) -> str:
    """Tell whether points lie ``inside`` of what a CRS is meant for, ``outside`` or ``nowhere``.

    ``unknown`` where nobody has said what it is meant for.
    """
    lon, lat = Geodetic(flat)(x, y)
    known = np.isfinite(lon) & np.isfinite(lat)
    if not known.any():
        return "nowhere"
    code = flat.to_authority()
    area = flat.area_of_use or (None if code is None else pyproj.CRS(code).area_of_use)
    if area is None:
        return "unknown"
    east = (area.east - area.west) % 360 or 360.0
    lon = (lon[known] - area.west + _AREA_MARGIN) % 360
    inside = (lon <= east + 2 * _AREA_MARGIN) & (
        np.abs(lat[known] - (area.south + area.north) / 2)
        <= (area.north - area.south) / 2 + _AREA_MARGIN
    )
    return "inside" if inside.any() else "outside"


def _metres_per_unit(proj_crs: pyproj.CRS, x: float, y: float) -> tuple[float, float] | None:
    """Metres on the ground for one CRS unit eastwards and northwards at a point."""
    local = plane_unit(proj_crs)
    if local is not None:
        return local, local
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
