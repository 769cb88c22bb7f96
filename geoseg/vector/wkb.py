"""How do millions of points become polygons in well-known binary, each of them copied once?

A polygon may span the scene. As a geometry object, and as what a general writer makes of it while
its output grows, it would be in memory several times.

References
----------
OGC 06-103r4: Simple feature access, part 1, section 8 (well-known binary representation).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_HEADER = np.dtype([("little_endian", "u1"), ("kind", "<u4"), ("parts", "<u4")])
_POLYGON, _MULTIPOLYGON = 3, 6
_COUNT_BYTES, _POINT_BYTES = 4, 16


class WellKnownBinary:
    """Polygons or multipolygons whose points are filled in piece by piece.

    Parameters
    ----------
    sizes
        ``(rings,)`` points of each ring, its first one repeated at the end.
    polygons
        ``(p + 1,)`` which rings belong to each polygon; the first of them is its shell.
    multipolygons
        ``(m + 1,)`` which polygons belong to each multipolygon; None for plain polygons.
    """

    def __init__(
        self, sizes: IntArray, polygons: IntArray, multipolygons: IntArray | None = None
    ) -> None:
        header = _HEADER.itemsize
        # Where a ring starts: after the rings and headers before it.
        ends = np.cumsum(_COUNT_BYTES + _POINT_BYTES * sizes)
        ends += header * (1 + _group_of(polygons))
        if multipolygons is not None:
            ends += header * (1 + _group_of(polygons[multipolygons]))
        counts = ends - _COUNT_BYTES - _POINT_BYTES * sizes
        self._points = counts + _COUNT_BYTES
        self._bytes = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        self._scatter(counts, sizes.astype("<u4"))
        starts = counts[polygons[:-1]] - header
        self._scatter(starts, _headers(_POLYGON, polygons))
        if multipolygons is not None:
            starts = starts[multipolygons[:-1]] - header
            self._scatter(starts, _headers(_MULTIPOLYGON, multipolygons))
        self._features = np.append(starts, len(self._bytes))

    def put(self, ring: IntArray, number: IntArray, xy: FloatArray) -> None:
        """Fill in ``(n, 2)`` points, given the ring of each and its number there."""
        at = self._points[ring] + _POINT_BYTES * number
        # Points start at any byte, but 16 bytes apart: what lies on one grid is written at once.
        points = np.ascontiguousarray(xy, "<f8").view("<c16").ravel()
        lane = (at % _POINT_BYTES).astype(np.uint8)
        for shift in range(_POINT_BYTES):
            chosen = np.flatnonzero(lane == shift)
            if len(chosen):
                whole = (len(self._bytes) - shift) // _POINT_BYTES * _POINT_BYTES
                places = self._bytes[shift : shift + whole].view("<c16")
                places[at[chosen] // _POINT_BYTES] = points[chosen]

    def features(self) -> npt.NDArray[np.object_]:
        """Return the binary of each polygon, or of each multipolygon."""
        features = np.empty(len(self._features) - 1, object)
        bounds = pairwise(self._features.tolist())
        features[:] = [self._bytes[start:stop].tobytes() for start, stop in bounds]
        return features

    def _scatter(self, at: IntArray, values: npt.NDArray[np.generic]) -> None:
        raw = values.view(np.uint8).reshape(len(values), values.dtype.itemsize)
        self._bytes[at[:, None] + np.arange(raw.shape[1])] = raw


def _headers(kind: int, offsets: IntArray) -> npt.NDArray[np.void]:
    headers = np.empty(len(offsets) - 1, _HEADER)
    headers["little_endian"], headers["kind"], headers["parts"] = 1, kind, np.diff(offsets)
    return headers


def _group_of(offsets: IntArray) -> IntArray:
    """Group of each item: offsets ``[0, 2, 5]`` give ``[0, 0, 1, 1, 1]``."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
