"""How does a staircase of pixel edges become a line, without gaps, overlaps or lost neighbours?

``shapely.coverage_simplify`` wants the whole coverage in memory. Arcs can be simplified as they
come: both faces share them, so no gap can open, and junctions stay. What is left to see to is that
a chord jumps over nothing. A chord may replace a stretch of an arc if no corner of any other
boundary lies in the region between the two, its border included. If that holds for two chords,
they do not cross: by parity, the second one would have to enter and leave the region of the first
through an end. Corners are known as soon as their row has been read, so the test is local, and the
result does not depend on strips or on the order of work.

References
----------
Douglas, Peucker: Algorithms for the reduction of the number of points required to represent a
digitized line or its caricature. Cartographica 10 (1973).
Chaikin: An algorithm for high-speed curve generation. Computer Graphics and Image Processing 3
(1974).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg.vector.arcs import Arcs, BoolArray
from geoseg.vector.corners import DEGREE, IntArray
from geoseg.vector.ragged import offsets_of, positions_in, take_lists

FloatArray = npt.NDArray[np.float64]

_QUARTER = 0.25
_SAFE_CUT = 0.5
_NOTHING = 1e-9
_AT_ONCE = 4_000_000


def turning(xy: IntArray | FloatArray, offsets: IntArray) -> IntArray | FloatArray:
    """Twice the area in pixels that each line adds to what lies on its left; negative for shells.

    Rows count downwards.
    """
    if len(offsets) < 2:
        return np.zeros(0, np.int64)
    x, y = xy[:, 0], xy[:, 1]
    cross = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
    # Not from one line to the next.
    cross[offsets[1:] - 1] = 0
    sums: IntArray | FloatArray = np.add.reduceat(cross, offsets[:-1])
    return sums


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies around new arcs."""

    corners: IntArray
    """Ascending flat lattice positions of all vertices in the rows that the arcs reach."""
    stride: int
    """Lattice positions in a row."""
    straight: IntArray
    """``(n, 2)`` start and stop of earlier arcs that are one straight line."""


@dataclass(frozen=True)
class Shaper:
    """Simplifies and smooths arcs between two polygons.

    Arcs beside void stay as they are: the map goes on to cover the same ground.

    Parameters
    ----------
    tolerance
        How far, in metres, a simplified arc may lie from the original.
    metres
        ``(2, 2)`` the ground vectors, in metres, of one pixel to the right and one down.
    smooth
        How often corners are cut, by a quarter of the shorter side each.
    """

    tolerance: float
    metres: FloatArray
    smooth: int

    def __call__(
        self, arcs: Arcs, around: Surroundings, spare: tuple[FloatArray, FloatArray]
    ) -> tuple[IntArray | FloatArray, IntArray]:
        """Return the arcs' new points in pixel coordinates, ``(n, 2)``, and their offsets.

        Points that are still corners of pixels are whole numbers. An arc stays as it is where it
        would take more pixels from the polygon on its left or right than it has to spare there,
        ``(m,)`` each, for every metre of the arc.
        """
        points, offsets = self._shaped(arcs, around)
        if not np.isfinite(np.append(*spare)).any():
            return points, offsets
        steps = np.append(np.abs(np.diff(arcs.xy, axis=0)), [[0, 0]], axis=0)
        steps[arcs.offsets[1:] - 1] = 0
        metres = np.add.reduceat(steps @ np.hypot(*self.metres.T), arcs.offsets[:-1])
        # From the arc's start, where digits count; what is between the two lines is the same there.
        start = arcs.xy[arcs.offsets[:-1]]
        before = turning(arcs.xy - np.repeat(start, np.diff(arcs.offsets), axis=0), arcs.offsets)
        after = turning(points - np.repeat(start, np.diff(offsets), axis=0), offsets)
        gain = (before - after) / 2
        takes = (-gain > spare[0] * metres + _NOTHING) | (gain > spare[1] * metres + _NOTHING)
        if not takes.any():
            return points, offsets
        both = np.concatenate([points, arcs.xy])
        lists = np.concatenate([offsets, len(points) + arcs.offsets[1:]])
        m = len(arcs)
        index, new_offsets = take_lists(lists, np.where(takes, m + np.arange(m), np.arange(m)))
        return both[index], new_offsets

    def _shaped(self, arcs: Arcs, around: Surroundings) -> tuple[IntArray | FloatArray, IntArray]:
        keep = np.ones(len(arcs.xy), np.bool_)
        if self.tolerance > 0 and len(arcs):
            # Not a matrix product: its rounding depends on how many points there are at once.
            ground = arcs.xy[:, :1] * self.metres[0] + arcs.xy[:, 1:] * self.metres[1]
            keep = _Simplification(arcs, around, ground, self._reach).run(self.tolerance)
        kept = np.flatnonzero(keep)
        corners, offsets = arcs.xy[kept], offsets_of(keep)[arcs.offsets]
        if not self.smooth or not len(arcs):
            return corners, offsets
        closed = DEGREE[arcs.start.mask] == 2
        fixed = _beside_void(arcs)
        free = _free_corners(arcs, around, kept, offsets, closed & ~fixed)
        points, offsets = _cut_corners(corners.astype(np.float64), offsets, closed, fixed, free)
        for _ in range(self.smooth - 1):
            points, offsets = _cut_corners(points, offsets, closed, fixed, None)
        return points, offsets

    @property
    def _reach(self) -> float:
        """The tolerance in pixels, at most."""
        return self.tolerance / float(np.linalg.svd(self.metres, compute_uv=False).min())


class _Simplification:
    """Douglas and Peucker's algorithm for all arcs at once, level by level."""

    def __init__(self, arcs: Arcs, around: Surroundings, ground: FloatArray, reach: float) -> None:
        self._arcs = arcs
        self._around = around
        self._ground = ground
        self._reach = reach
        self._keep = np.zeros(len(arcs.xy), np.bool_)

    def run(self, tolerance: float) -> BoolArray:
        """Mark the vertices that stay."""
        first, last = self._arcs.offsets[:-1], self._arcs.offsets[1:] - 1
        fixed = _beside_void(self._arcs)
        self._keep[np.repeat(fixed, np.diff(self._arcs.offsets))] = True
        self._keep[first] = self._keep[last] = True
        loop = (self._arcs.start.corner == self._arcs.stop.corner) & ~fixed
        line = ~loop & ~fixed
        # A closed arc keeps four vertices, so that it stays an area: its start, the farthest
        # from it, and the farthest from the line between them on either side.
        halves = self._split(first[loop], last[loop])
        quarters = self._split(*halves)
        self._refine(
            np.append(first[line], quarters[0]), np.append(last[line], quarters[1]), tolerance
        )
        doubled = self._doubled()
        self._refine(*self._split(first[doubled], last[doubled]), tolerance)
        return self._keep

    def _refine(self, first: IntArray, last: IntArray, tolerance: float) -> None:
        """Split stretches until their chords are near enough and jump over nothing."""
        while True:
            inner = last - first > 1
            first, last = first[inner], last[inner]
            if not len(first):
                return
            distance, _ = self._farthest(first, last)
            split = distance > tolerance
            near = np.flatnonzero(~split)
            regions = _Regions.of_chords(self._arcs, first[near], last[near])
            split[near] = regions.occupied(self._arcs.xy, self._around, self._reach)
            first, last = self._split(first[split], last[split])

    def _split(self, first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
        """Keep the farthest vertex of each stretch; return the two stretches it makes."""
        inner = last - first > 1
        first, last = first[inner], last[inner]
        _, middle = self._farthest(first, last)
        self._keep[middle] = True
        return np.append(first, middle), np.append(middle, last)

    def _farthest(self, first: IntArray, last: IntArray) -> tuple[FloatArray, IntArray]:
        """Distance and number of the vertex that is farthest from the chord."""
        if not len(first):
            return np.zeros(0), np.zeros(0, np.int64)
        sizes = last - first - 1
        index = np.repeat(first + 1, sizes) + positions_in(sizes)
        start, chord = self._ground[first], self._ground[last] - self._ground[first]
        square = np.maximum((chord**2).sum(axis=1), np.finfo(float).tiny)
        away = self._ground[index] - np.repeat(start, sizes, axis=0)
        chord = np.repeat(chord, sizes, axis=0)
        along = np.clip((away * chord).sum(axis=1) / np.repeat(square, sizes), 0, 1)
        distance = np.hypot(*(away - along[:, None] * chord).T)
        starts = offsets_of(sizes)[:-1]
        most = np.maximum.reduceat(distance, starts)
        places = np.flatnonzero(distance == np.repeat(most, sizes))
        # Of equally far vertices the first one.
        return most, index[places[np.searchsorted(places, starts)]]

    def _doubled(self) -> IntArray:
        """Arcs that have become straight between two corners that another straight one joins.

        The one that ends in the higher row stays; it is also the one that is known first.
        """
        arcs = self._arcs
        kept = offsets_of(self._keep)[arcs.offsets]
        straight = np.flatnonzero(np.diff(kept) == 2)
        if not len(straight):
            return straight
        pair = np.column_stack([arcs.start.corner, arcs.stop.corner])[straight]
        lowest = np.maximum.reduceat(arcs.xy[:, 1], arcs.offsets[:-1])[straight]
        bent = np.diff(arcs.offsets)[straight] > 2
        order = np.lexsort((arcs.start.leaving[straight], bent, lowest, pair[:, 1], pair[:, 0]))
        ordered = pair[order]
        again = np.zeros(len(order), np.bool_)
        again[1:] = (ordered[1:] == ordered[:-1]).all(axis=1)
        scale = int(arcs.stop.corner.max()) + 1
        taken = self._around.straight
        taken = taken[taken[:, 1] < scale]
        again |= np.isin(ordered[:, 0] * scale + ordered[:, 1], taken[:, 0] * scale + taken[:, 1])
        result: IntArray = straight[order[again & bent[order]]]
        return result


@dataclass(frozen=True, slots=True)
class _Regions:
    """Regions between a stretch of an arc and the line that is to replace it."""

    first: IntArray
    """First and last vertex of the stretch, whose own vertices may lie in the region."""
    last: IntArray
    xy: IntArray
    """Outlines, in lattice units times ``scale``, not closed."""
    offsets: IntArray
    scale: int

    @classmethod
    def of_chords(cls, arcs: Arcs, first: IntArray, last: IntArray) -> _Regions:
        sizes = last - first + 1
        index = np.repeat(first, sizes) + positions_in(sizes)
        return cls(first, last, arcs.xy[index], offsets_of(sizes), 1)

    def __getitem__(self, chosen: IntArray) -> _Regions:
        index, offsets = take_lists(self.offsets, chosen)
        return _Regions(self.first[chosen], self.last[chosen], self.xy[index], offsets, self.scale)

    def occupied(self, xy: IntArray, around: Surroundings, reach: float | None) -> BoolArray:
        """Tell for each region whether a foreign corner lies in it or on its border.

        Parameters
        ----------
        xy
            Vertices that the stretches are of.
        around
            Corners.
        reach
            Farthest distance of the stretch from the line between its ends, if that is known.
        """
        result = np.zeros(len(self.first), np.bool_)
        if not len(result):
            return result
        lowest = np.minimum.reduceat(self.xy, self.offsets[:-1]) // self.scale
        highest = -(-np.maximum.reduceat(self.xy, self.offsets[:-1]) // self.scale)
        rows = highest[:, 1] - lowest[:, 1] + 1
        cost = np.cumsum(rows)
        for part in np.split(
            np.arange(len(rows)), np.searchsorted(cost, np.arange(_AT_ONCE, cost[-1], _AT_ONCE))
        ):
            region, corner = self._candidates(
                part, lowest[part], highest[part], rows[part], around, reach
            )
            hit = self._contain(xy, around, region, corner)
            result[region[hit]] = True
        return result

    def _candidates(
        self,
        part: IntArray,
        lowest: IntArray,
        highest: IntArray,
        rows: IntArray,
        around: Surroundings,
        reach: float | None,
    ) -> tuple[IntArray, IntArray]:
        """Pairs of a region and a corner that may lie in it."""
        row = np.repeat(lowest[:, 1], rows) + positions_in(rows)
        left, right = np.repeat(lowest[:, 0], rows), np.repeat(highest[:, 0], rows)
        if reach is not None:
            # No farther from the line, in this row, than the stretch is at all.
            start = self.xy[self.offsets[part]]
            step = self.xy[self.offsets[part + 1] - 1] - start
            height = np.where(step[:, 1] == 0, 1, step[:, 1])
            slope = np.repeat(step[:, 0] / height, rows)
            middle = np.repeat(start[:, 0], rows) + slope * (row - np.repeat(start[:, 1], rows))
            margin = reach * np.repeat(np.hypot(*step.T) / np.abs(height), rows) + 1e-6
            level = np.repeat(step[:, 1] == 0, rows)
            left = np.where(level, left, np.maximum(left, np.ceil(middle - margin)))
            right = np.where(level, right, np.minimum(right, np.floor(middle + margin)))
            left, right = left.astype(np.int64), right.astype(np.int64)
        begin = np.searchsorted(around.corners, row * around.stride + left)
        end = np.searchsorted(around.corners, row * around.stride + right, side="right")
        counts = np.maximum(end - begin, 0)
        totals = np.add.reduceat(counts, offsets_of(rows)[:-1])
        if reach is not None:
            # The stretch's own vertices are all among them: more than those, or nothing to do.
            own = self.last[part] - self.first[part] + 1
            counts[np.repeat(totals <= own, rows)] = 0
        index = np.repeat(begin, counts) + positions_in(counts)
        return np.repeat(np.repeat(part, rows), counts), around.corners[index]

    def _contain(
        self, xy: IntArray, around: Surroundings, region: IntArray, corner: IntArray
    ) -> BoolArray:
        """Tell for each pair whether the corner is foreign and lies in the region."""
        if not len(region):
            return np.zeros(0, np.bool_)
        inside = np.zeros(len(region), np.bool_)
        size = self.last[region] - self.first[region] + np.diff(self.offsets)[region]
        cost = np.cumsum(size)
        cuts = np.searchsorted(cost, np.arange(_AT_ONCE, cost[-1], _AT_ONCE))
        for part in np.split(np.arange(len(region)), cuts):
            if len(part):
                row, col = np.divmod(corner[part], around.stride)
                inside[part] = self._foreign(xy, region[part], col, row)
                inside[part] &= self._covers(region[part], col * self.scale, row * self.scale)
        return inside

    def _foreign(self, xy: IntArray, region: IntArray, col: IntArray, row: IntArray) -> BoolArray:
        sizes = self.last[region] - self.first[region] + 1
        index = np.repeat(self.first[region], sizes) + positions_in(sizes)
        match = (xy[index, 0] == np.repeat(col, sizes)) & (xy[index, 1] == np.repeat(row, sizes))
        return ~np.logical_or.reduceat(match, offsets_of(sizes)[:-1])

    def _covers(self, region: IntArray, x: IntArray, y: IntArray) -> BoolArray:
        """Point in polygon by the even-odd rule, in whole numbers; the border counts as inside."""
        sizes = np.diff(self.offsets)[region]
        place = positions_in(sizes)
        base = np.repeat(self.offsets[region], sizes)
        one = self.xy[base + place]
        other = self.xy[base + (place + 1) % np.repeat(sizes, sizes)]
        x, y = np.repeat(x, sizes), np.repeat(y, sizes)
        cross = (other[:, 0] - one[:, 0]) * (y - one[:, 1]) - (other[:, 1] - one[:, 1]) * (
            x - one[:, 0]
        )
        upward = (one[:, 1] <= y) & (y < other[:, 1])
        downward = (other[:, 1] <= y) & (y < one[:, 1])
        crossed = (upward & (cross > 0)) | (downward & (cross < 0))
        on_border = (
            (cross == 0)
            & (np.minimum(one, other) <= np.column_stack([x, y])).all(axis=1)
            & (np.maximum(one, other) >= np.column_stack([x, y])).all(axis=1)
        )
        starts = offsets_of(sizes)[:-1]
        odd = np.add.reduceat(crossed, starts, dtype=np.int64) % 2 == 1
        result: BoolArray = odd | np.logical_or.reduceat(on_border, starts)
        return result


def _beside_void(arcs: Arcs) -> BoolArray:
    return (arcs.left < 0) | (arcs.right < 0)


def _free_corners(
    arcs: Arcs, around: Surroundings, kept: IntArray, offsets: IntArray, closed: BoolArray
) -> BoolArray:
    """Tell for each kept vertex whether nothing foreign lies where a cut would take its corner."""
    free = np.zeros(len(kept), np.bool_)
    inner = np.ones(len(kept), np.bool_)
    inner[offsets[:-1]] = inner[offsets[1:] - 1] = False
    at = np.flatnonzero(inner)
    start, stop = offsets[:-1][closed], offsets[1:][closed] - 1
    # Around the start of a closed arc, the stretch is its last part followed by its first one.
    tail, head = kept[stop] - kept[stop - 1] + 1, kept[start + 1] - kept[start]
    seam = offsets_of(tail + head)
    index = _ranges(kept[stop - 1], tail, kept[start] + 1, head)
    xy = np.concatenate([arcs.xy, arcs.xy[index]])
    first = np.append(kept[at - 1], len(arcs.xy) + seam[:-1])
    last = np.append(kept[at + 1], len(arcs.xy) + seam[1:] - 1)
    at = np.append(at, start)
    if not len(at):
        return free
    scale = round(1 / _QUARTER)
    corner = arcs.xy[kept[at]]
    outline = np.stack(
        [
            (scale - 1) * corner + xy[first],
            scale * corner,
            (scale - 1) * corner + xy[last],
        ],
        axis=1,
    )
    regions = _Regions(first, last, outline.reshape(-1, 2), 3 * np.arange(len(at) + 1), scale)
    free[at] = ~regions.occupied(xy, around, None)
    return free


def _ranges(one: IntArray, sizes: IntArray, other: IntArray, other_sizes: IntArray) -> IntArray:
    """Consecutive numbers from ``one`` and then from ``other``, for each entry."""
    starts = np.column_stack([one, other]).ravel()
    both = np.column_stack([sizes, other_sizes]).ravel()
    return np.repeat(starts, both) + positions_in(both)


def _cut_corners(
    points: FloatArray,
    offsets: IntArray,
    closed: BoolArray,
    fixed: BoolArray,
    free: BoolArray | None,
) -> tuple[FloatArray, IntArray]:
    """Replace every corner by two points on its sides; ends of open arcs stay.

    Where a corner is not free, the cut takes half a pixel at most: nearer to a lattice corner than
    that there is no other one.
    """
    closed = closed & ~fixed
    cut = np.repeat(~fixed, np.diff(offsets))
    cut[offsets[:-1]] = cut[offsets[1:] - 1] = False
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    # A closed arc repeats its first point: that corner is cut once, between last but one and next.
    start, stop = offsets[:-1][closed], offsets[1:][closed] - 1
    before[start] = points[stop - 1]
    cut[start] = True
    pairs = []
    for neighbour in (before, after):
        side = neighbour - points
        length = np.maximum(np.hypot(*side.T), np.finfo(float).tiny)
        share = np.full(len(points), _QUARTER)
        if free is not None:
            share = np.where(free, share, np.minimum(share, _SAFE_CUT / length))
        pairs.append(points + share[:, None] * side)
    sizes = np.where(cut, 2, 1)
    base = offsets_of(sizes)
    result = np.repeat(points, sizes, axis=0)
    at = base[:-1][cut]
    result[at], result[at + 1] = pairs[0][cut], pairs[1][cut]
    new_offsets = base[offsets]
    result[new_offsets[1:][closed] - 1] = result[new_offsets[:-1][closed]]
    return result, new_offsets
