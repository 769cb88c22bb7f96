"""Where on the ground do arcs lie, and what do they measure there?"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.ndimage import map_coordinates

from geoseg.io.crs import horizontal
from geoseg.io.grid import Geodetic, Grid, plane_unit
from geoseg.types import Window
from geoseg.vector.measure import Ellipsoid
from geoseg.vector.ragged import FloatArray, IntArray
from geoseg.vector.trace import Measures

_AREA_NODES = (129, 17)
_NO_AREA = 1e30
_FAR_DEGREES = 90
_ROUND_STEPS = 361


class Ground:
    """Places pixel coordinates by a raster's affine transform and measures on its ellipsoid.

    Parameters
    ----------
    grid
        Placement of the raster. Where its `Grid.unmeasured` says why there are no metres, lengths
        and areas become NaN. A local grid is measured as the plane that it is.
    """

    def __init__(self, grid: Grid) -> None:
        unmeasured = grid.unmeasured
        self.grid = grid = grid.drawn
        t = grid.transform
        # Left turns in pixel coordinates (rows downwards) stay left turns on the map if the
        # transform mirrors, as the usual north-up one does.
        self.mirrors = t.a * t.e - t.b * t.d < 0
        self._ellipsoid: Ellipsoid | None = None
        self._unit: float | None = None
        if grid.crs is None or unmeasured is not None:
            return
        crs = horizontal(grid.crs)
        self._unit = plane_unit(crs)
        geod = crs.get_geod()
        if geod is None:
            return
        self._to_degrees = Geodetic(crs)
        x, y = grid.to_ground(grid.width / 2, grid.height / 2)
        _, latitude = self._to_degrees(np.array([x]), np.array([y]))
        self._ellipsoid = Ellipsoid(geod, float(np.nan_to_num(latitude[0], posinf=0, neginf=0)))

    @property
    def measures(self) -> bool:
        """True if lengths and areas have a meaning."""
        return self._ellipsoid is not None or self._unit is not None

    def place(self, points: FloatArray) -> FloatArray:
        """Coordinates in the CRS of ``(n, 2)`` pixel coordinates."""
        return np.column_stack(self.grid.to_ground(points[:, 0], points[:, 1]))

    def measure(self, points: FloatArray, offsets: IntArray) -> Measures:
        """Measure lines that are given in pixel coordinates, ``(n, 2)``."""
        if self._unit is not None and len(offsets) > 1:
            return self._measure_plane(points, offsets, self._unit)
        if self._ellipsoid is None or len(offsets) < 2:
            unknown = np.full(len(offsets) - 1, np.nan)
            return Measures(unknown, unknown.copy())
        x, y = self.grid.to_ground(points[:, 0], points[:, 1])
        lon, lat = self._to_degrees(x, y)
        lengths, areas = self._ellipsoid.edges(lon, lat)
        for edge in self._far_round(lon, offsets):
            # Its ends alone do not tell on which side of the Earth it runs.
            steps = np.linspace(points[edge], points[edge + 1], _ROUND_STEPS)
            x, y = self.grid.to_ground(steps[:, 0], steps[:, 1])
            length, area = self._ellipsoid.edges(*self._to_degrees(x, y))
            lengths[edge], areas[edge] = length.sum(), area.sum()
        if not self.mirrors:
            areas = -areas
        return Measures(_sum_along(lengths, offsets), _sum_along(areas, offsets))

    def _measure_plane(self, points: FloatArray, offsets: IntArray, unit: float) -> Measures:
        t = self.grid.transform
        x, y = (points @ [[t.a, t.d], [t.b, t.e]] * unit).T
        lengths = np.hypot(np.diff(x), np.diff(y))
        areas = (x[:-1] * y[1:] - x[1:] * y[:-1]) / 2
        if not self.mirrors:
            areas = -areas
        return Measures(_sum_along(lengths, offsets), _sum_along(areas, offsets))

    def _far_round(self, lon: FloatArray, offsets: IntArray) -> list[int]:
        """Edges that run a quarter of the way around the Earth or more."""
        if self.grid.crs is None or not self.grid.crs.is_geographic:
            return []
        far = np.abs(np.diff(lon)) >= _FAR_DEGREES
        far[offsets[1:-1] - 1] = False  # from one line to the next
        return [int(edge) for edge in np.flatnonzero(far)]

    def pixel_area(self, row: FloatArray, col: FloatArray) -> FloatArray:
        """Area in m² of pixels around these positions, interpolated between some of them."""
        height, width = self.grid.shape
        nodes = min(height, _AREA_NODES[0]), min(width, _AREA_NODES[1])
        at = np.stack([(row - 0.5) / max(height - 1, 1), (col - 0.5) / max(width - 1, 1)])
        at *= np.array(nodes)[:, None] - 1
        result: FloatArray = map_coordinates(self._node_areas, at, order=1, mode="nearest")
        return result

    def pixel_areas(self, window: Window) -> FloatArray:
        """Area in m² of every pixel of a window, interpolated as by `pixel_area`."""
        height, width = self.grid.shape
        nodes = self._node_areas
        rows = _between(np.arange(window.row, window.row_stop) / max(height - 1, 1), nodes.shape[0])
        cols = _between(np.arange(window.col, window.col_stop) / max(width - 1, 1), nodes.shape[1])
        areas: FloatArray = rows @ nodes @ cols.T
        return areas

    @cached_property
    def _node_areas(self) -> FloatArray:
        """Areas of single pixels, evenly spread over the raster."""
        height, width = self.grid.shape
        nodes = min(height, _AREA_NODES[0]), min(width, _AREA_NODES[1])
        row, col = (
            axis.ravel()
            for axis in np.meshgrid(
                np.linspace(0, height - 1, nodes[0]),
                np.linspace(0, width - 1, nodes[1]),
                indexing="ij",
            )
        )
        around = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)])
        rings = np.stack([col, row], axis=1)[:, None] + around
        found = self.measure(rings.reshape(-1, 2), 5 * np.arange(len(row) + 1))
        # A pixel off the Earth has no area and is not to be taken for a small one.
        return np.nan_to_num(np.abs(found.area), nan=_NO_AREA).reshape(nodes)

    def metres_per_pixel(self) -> FloatArray:
        """Ground vectors in metres, at the centre, of one pixel to the right and one down."""
        if self._unit is not None:
            t = self.grid.transform
            return np.array([(t.a, t.d), (t.b, t.e)]) * self._unit
        if self._ellipsoid is None:
            return np.full((2, 2), np.nan)
        centre = np.array([self.grid.width / 2, self.grid.height / 2])
        steps = np.array([(-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)])
        lon, lat = self._to_degrees(*self.grid.to_ground(*(centre + steps).T))
        azimuth, _, distance = self._ellipsoid.geod.inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
        angle = np.radians(azimuth)
        vectors: FloatArray = np.column_stack([np.sin(angle), np.cos(angle)]) * distance[:, None]
        return vectors


def _between(at: FloatArray, nodes: int) -> FloatArray:
    """Weights of evenly spread nodes, a row for each place from 0 (first node) to 1 (last)."""
    away = np.abs(at[:, None] * (nodes - 1) - np.arange(nodes))
    weights: FloatArray = np.maximum(0, 1 - away)
    return weights


def _sum_along(edges: FloatArray, offsets: IntArray) -> FloatArray:
    """Add up each arc's edges; the ones that lead from one arc to the next count nothing."""
    padded = np.append(edges, 0.0)
    padded[offsets[1:] - 1] = 0.0
    total: FloatArray = np.add.reduceat(padded, offsets[:-1])
    return total
