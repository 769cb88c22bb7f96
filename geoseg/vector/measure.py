"""How long are lines, and how large are the faces beside them, on the ellipsoid?

Exact geodesics through PROJ cost microseconds an edge, which is seconds for every million. Edges of
label polygons are short against the Earth, so a series does: with ``Q`` the authalic function
(``dQ = M r dφ``; ``M`` and ``r`` the radii of the meridian and of the parallel), the area between a
geodesic and the line ``Q = Q0`` is

    (Q1 + Q2 - 2 Q0) Δλ / 2 + sin φ Δλ (3 (M Δφ)² + (r Δλ)²) / 12 + fifth order,

and a geodesic is ``1 + c² / (24 ρ²)`` times its chord ``c`` long, ``ρ`` being the normal radius of
curvature. Edges too long for that are divided along the geodesic first. The tests hold the results
against ``pyproj.Geod`` to nine digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pyproj import Geod

from geoseg.vector.ragged import FloatArray, IntArray, offsets_of, positions_in

_LONGEST_M = 4000.0
_LONGEST_RADII = 6e-4
_MOST_PIECES = 4096
_POLAR_DEGREES = 80.0


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid to measure on.

    Parameters
    ----------
    geod
        Its size and shape.
    reference_latitude
        Latitude in degrees near which most lines lie. Areas are counted from there, which keeps
        digits; beyond 80° from the pole itself, so that rings around it come out right.
    """

    geod: Geod
    reference_latitude: float

    def edges(self, lon: FloatArray, lat: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Measure the geodesic from every point to the next one.

        Parameters
        ----------
        lon, lat
            ``(n,)`` degrees.

        Returns
        -------
        tuple
            ``(n - 1,)`` lengths in metres, and ``(n - 1,)`` areas in m² that each edge adds to the
            polygon on its left, with north up. Their sum around a ring is the ring's area. NaN
            where a point has no position.
        """
        lengths, areas = self._short(lon, lat)
        too_long = np.flatnonzero(lengths > self._longest(lat[:-1], lat[1:]))
        if len(too_long):
            lengths[too_long], areas[too_long] = self._long(lon, lat, too_long)
        return lengths, areas

    def _longest(self, one: FloatArray, other: FloatArray) -> FloatArray:
        """Length up to which the series keeps ten digits; short near the poles."""
        from_axis = self.geod.a * np.cos(np.radians(np.maximum(np.abs(one), np.abs(other))))
        scale = _LONGEST_M * self.geod.a / 6.4e6
        longest: FloatArray = np.minimum(scale, np.maximum(from_axis * _LONGEST_RADII, 1e-3))
        return longest

    def _short(self, lon: FloatArray, lat: FloatArray) -> tuple[FloatArray, FloatArray]:
        e2 = self.geod.es
        phi, lam = np.radians(lat), np.radians(lon)
        sine, cosine = np.sin(phi), np.cos(phi)
        across = self.geod.a / np.sqrt(1 - e2 * sine**2)
        parallel = across * cosine
        position = parallel * np.cos(lam), parallel * np.sin(lam), across * (1 - e2) * sine
        chord = np.sqrt(sum(np.diff(p) ** 2 for p in position))

        turn = np.radians(_wrapped(np.diff(lon)))
        sine, across, parallel = (_between(v) for v in (sine, across, parallel))
        meridian = across**3 * (1 - e2) / self.geod.a**2
        east = (parallel * turn) ** 2
        north = (meridian * np.diff(phi)) ** 2
        both = east + north
        with np.errstate(invalid="ignore", divide="ignore"):
            curvature = np.where(both > 0, (north / meridian + east / across) / both, 0.0)
        lengths = chord * (1 + (chord * curvature) ** 2 / 24)
        bulge = sine * turn * (3 * north + east) / 12
        # Whoever walks westwards has what lies south, the counted side, on the left.
        return lengths, -(_between(self._authalic(phi)) * turn + bulge)

    def _long(
        self, lon: FloatArray, lat: FloatArray, chosen: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """Divide edges along the geodesic and add the pieces up."""
        starts, stops = (lon[chosen], lat[chosen]), (lon[chosen + 1], lat[chosen + 1])
        azimuth, _, distance = self.geod.inv(*starts, *stops)
        pieces = np.ceil(distance / self._longest(starts[1], stops[1])).astype(np.int64)
        pieces = np.clip(pieces, 1, _MOST_PIECES)
        # The points of a path are its start, those between the pieces, and its stop.
        points = pieces + 1
        place = positions_in(points)
        path_lon, path_lat, _ = self.geod.fwd(
            np.repeat(starts[0], points),
            np.repeat(starts[1], points),
            np.repeat(azimuth, points),
            np.repeat(distance / pieces, points) * place,
        )
        first, last = offsets_of(points)[:-1], offsets_of(points)[1:] - 1
        for path, start, stop in zip((path_lon, path_lat), starts, stops, strict=True):
            path[first], path[last] = start, stop
        _, areas = self._short(path_lon, path_lat)
        areas = np.append(areas, 0.0)
        areas[last] = 0.0
        return distance, np.add.reduceat(areas, first)

    def _authalic(self, phi: FloatArray) -> FloatArray:
        """Area north of the reference latitude for one radian of longitude, in m²."""
        start = np.radians(self.reference_latitude)
        if abs(self.reference_latitude) > _POLAR_DEGREES:
            start = np.copysign(np.pi / 2, start)
        return self._from_equator(phi) - self._from_equator(np.array(start))

    def _from_equator(self, phi: FloatArray) -> FloatArray:
        e = np.sqrt(self.geod.es)
        sine = np.sin(phi)
        tail = np.arctanh(e * sine) / e if e > 0 else sine
        result: FloatArray = self.geod.b**2 / 2 * (sine / (1 - (e * sine) ** 2) + tail)
        return result


def _wrapped(degrees: FloatArray) -> FloatArray:
    """Differences of longitude, the short way round."""
    return degrees - 360 * np.round(degrees / 360)


def _between(values: FloatArray) -> FloatArray:
    return (values[:-1] + values[1:]) / 2
