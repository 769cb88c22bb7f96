"""Where on the ground do arcs lie, and what do they measure there?"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyproj
from pyproj.exceptions import ProjError

from geoseg.io.grid import Grid
from geoseg.vector.arcs import Arcs
from geoseg.vector.measure import Ellipsoid
from geoseg.vector.trace import Lines

FloatArray = npt.NDArray[np.float64]


class Ground:
    """Places pixel coordinates by a raster's affine transform and measures on its ellipsoid.

    Parameters
    ----------
    grid
        Placement of the raster. Without a coordinate system there are no metres: lengths and
        areas become NaN.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        t = grid.transform
        # Left turns in pixel coordinates (rows downwards) stay left turns on the map if the
        # transform mirrors, as the usual north-up one does.
        self.mirrors = t.a * t.e - t.b * t.d < 0
        self._ellipsoid: Ellipsoid | None = None
        crs = None if grid.crs is None else pyproj.CRS.from_user_input(grid.crs)
        geod = None if crs is None else crs.get_geod()
        if crs is None or geod is None:
            return
        self._to_degrees = _Geodetic(crs)
        x, y = grid.to_ground(grid.width / 2, grid.height / 2)
        _, latitude = self._to_degrees(np.array([x]), np.array([y]))
        self._ellipsoid = Ellipsoid(geod, float(np.nan_to_num(latitude[0], posinf=0, neginf=0)))

    @property
    def measures(self) -> bool:
        """True if lengths and areas have a meaning."""
        return self._ellipsoid is not None

    def place(self, arcs: Arcs) -> Lines:
        """Put arcs on the ground."""
        pixels = arcs.xy.astype(np.float64)
        x, y = self.grid.to_ground(pixels[:, 0], pixels[:, 1])
        length, area = self._measure(x, y, arcs)
        return Lines(np.column_stack([x, y]), arcs.offsets, length, area)

    def _measure(self, x: FloatArray, y: FloatArray, arcs: Arcs) -> tuple[FloatArray, FloatArray]:
        if self._ellipsoid is None or not len(arcs):
            unknown = np.full(len(arcs), np.nan)
            return unknown, unknown.copy()
        lengths, areas = self._ellipsoid.edges(*self._to_degrees(x, y))
        if not self.mirrors:
            areas = -areas
        return tuple(_sum_along(v, arcs.offsets) for v in (lengths, areas))  # type: ignore[return-value]


class _Geodetic:
    """From a CRS to longitude and latitude in degrees, on the CRS's own datum."""

    def __init__(self, crs: pyproj.CRS) -> None:
        self._factor: float | None = None
        self._transformer: pyproj.Transformer | None = None
        if crs.is_geographic:
            self._factor = math.degrees(crs.axis_info[0].unit_conversion_factor)
        elif crs.geodetic_crs is not None:
            self._transformer = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)

    def __call__(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
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


def _sum_along(edges: FloatArray, offsets: npt.NDArray[np.int64]) -> FloatArray:
    """Add up each arc's edges; the ones that lead from one arc to the next count nothing."""
    padded = np.append(edges, 0.0)
    padded[offsets[1:] - 1] = 0.0
    total: FloatArray = np.add.reduceat(padded, offsets[:-1])
    return total
