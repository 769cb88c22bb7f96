"""Label rows in, whole polygons out: the streaming polygoniser.

GDAL's polygonizer drops the vertices where a third region meets a straight side, so its polygons
are not a coverage; here rings are put together from arcs that both neighbours share, which makes
the coverage valid by construction, and lets arcs be simplified or smoothed once for both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import shapely

from geoseg.vector.arcs import Arcs, ArcTracer, BoolArray, Ends
from geoseg.vector.chains import order_chains
from geoseg.vector.components import Labelling, Tallies, join, tally_runs
from geoseg.vector.corners import TURN, IntArray, Strip, Values, Vertices
from geoseg.vector.ragged import in_pieces, is_first, offsets_of, summed, take_lists
from geoseg.vector.scores import Scores
from geoseg.vector.shape import Surroundings, turning
from geoseg.vector.votes import Votes
from geoseg.vector.wkb import WellKnownBinary

FloatArray = npt.NDArray[np.float64]
PointArray = npt.NDArray[np.integer] | FloatArray

ShapeArcs = Callable[
    [Arcs, Surroundings, tuple[FloatArray, FloatArray]], tuple[PointArray, IntArray]
]
_AT_ONCE = 50_000
"""Points that are put on the ground at a time."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What is measured along arcs on the ground."""

    length: FloatArray
    """``(m,)`` length of each arc."""
    area: FloatArray
    """``(m,)`` contribution of each arc to the area of the face on its left."""


@dataclass(frozen=True, slots=True)
class Polygons:
    """Finished polygons, in the order in which they end."""

    wkb: npt.NDArray[np.object_]
    """``(n,)`` polygons as well-known binary; multipolygons if faces may hang together by corners.
    """
    tallies: Tallies
    area: FloatArray
    perimeter: FloatArray
    second: IntArray | None = None
    """Value that most pixels of each have in a second raster, besides its own; -1 for none."""

    def __len__(self) -> int:
        return len(self.wkb)

    @property
    def geometry(self) -> npt.NDArray[np.object_]:
        """``(n,)`` shapely geometries, made anew."""
        found: npt.NDArray[np.object_] = shapely.from_wkb(self.wkb)
        return found

    @classmethod
    def none(cls) -> Polygons:
        """No polygon at all."""
        empty = np.zeros(0, np.int64)
        return cls(np.empty(0, object), Tallies.none(0), np.zeros(0), np.zeros(0), empty)


class _Points:
    """Points in pixel coordinates, in the smallest type that has held them so far.

    The array grows where it is, so that a large polygon that stays open is neither copied for every
    strip nor held twice.
    """

    def __init__(self, points: PointArray) -> None:
        self._array = points
        self._used = len(points)

    def __len__(self) -> int:
        return self._used

    def __getitem__(self, chosen: IntArray) -> PointArray:
        return self._array[chosen]

    def append(self, points: PointArray) -> None:
        """Add points at the end."""
        dtype = np.result_type(self._array, points)
        if dtype != self._array.dtype:
            self._array = self._array.astype(dtype)
        used = self._used + len(points)
        if used > len(self._array):
            self._array.resize((used + used // 8, 2), refcheck=False)
        self._array[self._used : used] = points
        self._used = used


@dataclass(frozen=True, slots=True)
class _Table:
    """Arcs that a polygon still to come needs.

    Among the points are gaps where arcs are done with.
    """

    points: _Points
    first: IntArray
    """Place of each arc's first and last point."""
    last: IntArray
    start: Ends
    stop: Ends
    left: IntArray
    right: IntArray
    turning: IntArray
    """Twice the area in pixels that each arc adds to the face on its left; negative for shells."""
    length: FloatArray
    area: FloatArray

    @classmethod
    def none(cls) -> _Table:
        empty, ends, points = np.zeros(0, np.int64), Ends.none(), np.zeros((0, 2), np.uint8)
        return cls(
            _Points(points), empty, empty, ends, ends, empty, empty, empty, np.zeros(0),
            np.zeros(0),
        )  # fmt: skip

    @property
    def sizes(self) -> IntArray:
        """Number of points of each arc."""
        return self.last - self.first + 1

    def extended(
        self, arcs: Arcs, points: PointArray, offsets: IntArray, measures: Measures
    ) -> _Table:
        """Add arcs; the points become part of this table too."""
        used = len(self.points)
        self.points.append(points)
        return _Table(
            self.points,
            np.append(self.first, used + offsets[:-1]),
            np.append(self.last, used + offsets[1:] - 1),
            self.start.followed_by(arcs.start),
            self.stop.followed_by(arcs.stop),
            np.append(self.left, arcs.left),
            np.append(self.right, arcs.right),
            np.append(self.turning, turning(arcs.xy, arcs.offsets)),
            np.append(self.length, measures.length),
            np.append(self.area, measures.area),
        )

    def renumbered(self, number: IntArray) -> _Table:
        """Give components new numbers; -1 for those that are done with."""
        number = np.append(number, -1)
        return replace(self, left=number[self.left], right=number[self.right])

    def needed(self) -> _Table:
        """Forget arcs that have no face any more, and close the gaps if they are large."""
        alive = np.flatnonzero((self.left >= 0) | (self.right >= 0))
        columns = {f.name: getattr(self, f.name)[alive] for f in fields(self)[1:]}
        kept = _Table(self.points, **columns)
        offsets = offsets_of(kept.sizes)
        if 2 * offsets[-1] > len(self.points):
            return kept
        points = _Points(self.points[np.zeros(0, np.int64)])
        for arc, place in in_pieces(offsets, _AT_ONCE):
            points.append(self.points[kept.first[arc] + place])
        return replace(kept, points=points, first=offsets[:-1], last=offsets[1:] - 1)


class Polygoniser:
    """Turns label rows, fed from top to bottom, into polygons.

    What comes out, and in which order, does not depend on how many rows are fed at a time.
    Memory holds one strip, and of earlier ones only what belongs to polygons still open.

    Parameters
    ----------
    shape
        ``(height, width)`` of the raster.
    void
        Value of pixels that become no polygon.
    place
        Coordinates on the ground of ``(n, 2)`` pixel coordinates; any part of a polygon's at a
        time.
    measure
        Measures lines there: gets ``(n, 2)`` pixel coordinates and offsets.
    shape_arcs
        Simplifies or smooths arcs; None leaves them as the pixels' edges have them. Whole numbers
        are corners of pixels.
    connectivity
        4: pixels hang together by sides. 8: also by corners, which makes multipolygons.
    codes
        How many values stand for one class: it is the value divided by that.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        void: int,
        place: Callable[[FloatArray], FloatArray],
        measure: Callable[[FloatArray, IntArray], Measures],
        shape_arcs: ShapeArcs | None = None,
        connectivity: int = 4,
        codes: int = 1,
    ) -> None:
        self._height, self._width = shape
        self._void = void
        self._place = place
        self._measure = measure
        self._shape_arcs = shape_arcs
        self._corners = connectivity == 8
        self._codes = codes
        self._row = 0
        self._above: Values | None = None
        self._above_component = np.zeros(0, np.int64)
        self._tallies = Tallies.none(0)
        self._votes = Votes.none()
        self._group = np.zeros(0, np.int64)
        self._arcs = ArcTracer(self._width)
        self._table = _Table.none()
        self._seen = np.zeros(0, np.int64)
        self._straight = np.zeros((0, 2), np.int64)

    def feed(
        self,
        rows: Values,
        scores: Scores | None = None,
        second: Scores | None = None,
        spare: npt.NDArray[np.float32] | None = None,
    ) -> Polygons:
        """Take the next rows and return the polygons that have ended above the last of them.

        Parameters
        ----------
        rows
            ``(h, W)`` values.
        scores
            Scores of the same pixels, to average under each polygon.
        second
            Values of the same pixels, of which each polygon gets the most frequent one.
        spare
            ``(h, W)`` pixels that a metre of the boundary may take from the polygon there when it
            is simplified or smoothed; any number without it.
        """
        if self._above is None:
            self._above = np.full(self._width, self._void, rows.dtype)
        strip = Strip.from_rows(self._above, rows, self._void)
        vertices = Vertices.of(strip)
        labels = Labelling.of(strip, self._above_component, len(self._group))
        group = self._join_groups(strip, vertices, labels)
        tallies = self._tally(strip, labels, scores, spare)
        votes = self._votes.renumbered(labels.of_open)
        if second is not None:
            votes = votes.followed_by(Votes.of_strip(strip, labels.of_run, second))
        arcs = self._arcs.feed(strip, vertices, self._row, labels.of_run)
        tallies.touches[arcs.left[(arcs.right < 0) & (arcs.left >= 0)]] = True
        tallies.touches[arcs.right[(arcs.left < 0) & (arcs.right >= 0)]] = True
        points, offsets = self._shaped(arcs, vertices, np.append(tallies.spare, np.inf))
        measures = self._measure(points.astype(np.float64), offsets)
        table = self._table.renumbered(labels.of_open).extended(
            arcs, self._compact(points), offsets, measures
        )

        below = strip.run_start >= strip.stride * strip.height
        open_group = np.zeros(int(group.max(initial=-1)) + 1, np.bool_)
        last_row = labels.of_run[below]
        open_group[group[last_row[last_row >= 0]]] = True
        is_open = open_group[group]
        polygons = _finish(
            table,
            ~is_open,
            group,
            tallies,
            votes,
            self._place,
            multi=self._corners,
            codes=self._codes,
        )

        number = np.where(is_open, np.cumsum(is_open) - 1, -1)
        self._table = table.renumbered(number).needed()
        self._tallies = tallies[is_open]
        self._votes = votes.renumbered(number)
        self._group = np.unique(group[is_open], return_inverse=True)[1]
        self._above_component = np.append(number, -1)[last_row]
        self._above = rows[-1].copy()
        self._row += len(rows)
        return polygons

    def finish(self) -> Polygons:
        """Return the polygons that reach the last row."""
        dtype = np.dtype(np.uint8) if self._above is None else self._above.dtype
        return self.feed(np.full((1, self._width), self._void, dtype))

    def _compact(self, points: PointArray) -> PointArray:
        """Give corners of pixels the smallest type that the raster's size allows."""
        if points.dtype.kind == "f":
            return points
        return points.astype(np.min_scalar_type(max(self._height, self._width)))

    def _shaped(
        self, arcs: Arcs, vertices: Vertices, spare: FloatArray
    ) -> tuple[PointArray, IntArray]:
        """Points of the arcs in pixel coordinates, simplified and smoothed."""
        if self._shape_arcs is None:
            return arcs.xy, arcs.offsets
        stride = self._width + 1
        self._seen = np.append(self._seen, (vertices.row + self._row) * stride + vertices.col)
        around = Surroundings(self._seen, stride, self._straight)
        points, offsets = self._shape_arcs(arcs, around, (spare[arcs.left], spare[arcs.right]))
        straight = np.diff(offsets) == 2
        ends = np.column_stack([arcs.start.corner[straight], arcs.stop.corner[straight]])
        self._straight = np.concatenate([self._straight, ends])
        self._forget_surroundings(stride)
        return points, offsets

    def _forget_surroundings(self, stride: int) -> None:
        """Drop what lies above every arc that is still open: no arc to come will look there."""
        row = self._arcs.highest_open_row
        if row is None:
            self._seen, self._straight = self._seen[:0], self._straight[:0]
            return
        self._seen = self._seen[np.searchsorted(self._seen, row * stride) :]
        self._straight = self._straight[self._straight[:, 0] >= row * stride]

    def _join_groups(self, strip: Strip, vertices: Vertices, labels: Labelling) -> IntArray:
        """Group of each component: itself, or all that hang together by corners."""
        if not self._corners:
            return np.arange(labels.count)
        one, other = vertices.diagonal_runs(strip)
        old = int(self._group.max(initial=-1)) + 1
        _, label = join(
            labels.count + old,
            (labels.of_run[one], labels.of_run[other]),
            (labels.of_open, labels.count + self._group),
        )
        return np.unique(label[: labels.count], return_inverse=True)[1]

    def _tally(
        self,
        strip: Strip,
        labels: Labelling,
        scores: Scores | None,
        spare: npt.NDArray[np.float32] | None,
    ) -> Tallies:
        tallies = Tallies.none(labels.count)
        tallies.add(self._tallies, labels.of_open)
        known = np.flatnonzero(labels.of_run >= 0)
        known = known[strip.run_start[known] >= strip.stride]
        runs = tally_runs(strip, self._row, scores)
        if spare is not None:
            line, col, _ = strip.run_places()
            runs.spare[known] = spare[line[known] - 1, col[known]]
        tallies.add(runs[known], labels.of_run[known])
        return tallies


@dataclass(frozen=True, slots=True)
class _Sides:
    """Arcs as the faces to be finished see them: each walked with the face on its left."""

    arc: IntArray
    backwards: BoolArray
    face: IntArray
    key: IntArray
    """Corner and direction of the start, in one number; ascending, no two alike."""
    following: IntArray
    """Side with which the boundary goes on."""

    @classmethod
    def of(cls, table: _Table, done: BoolArray) -> _Sides:
        done = np.append(done, False)
        left, right = np.flatnonzero(done[table.left]), np.flatnonzero(done[table.right])
        arc = np.concatenate([left, right])
        backwards = np.repeat([False, True], [len(left), len(right)])
        face = np.concatenate([table.left[left], table.right[right]])
        start = table.start[arc].swapped(table.stop[arc], backwards)
        stop = table.stop[arc].swapped(table.start[arc], backwards)
        key = start.corner * 4 + start.leaving
        order = np.argsort(key)
        arc, backwards, face, key, stop = (
            arc[order], backwards[order], face[order], key[order], stop[order],
        )  # fmt: skip
        arriving = stop.leaving ^ 2
        following_key = stop.corner * 4 + TURN[stop.mask, arriving]
        following = np.searchsorted(key, following_key)
        # Where a face meets itself across a corner, keeping left would make one ring that touches
        # itself; crossing over to the other side makes two, as simple features want it.
        crossing = np.flatnonzero(stop.mask == 15)
        across = np.searchsorted(key, following_key[crossing] ^ 2)
        across = np.minimum(across, len(key) - 1)
        same = (key[across] == following_key[crossing] ^ 2) & (face[across] == face[crossing])
        following[crossing[same]] = across[same]
        return cls(arc, backwards, face, key, following)

    @property
    def sign(self) -> IntArray:
        """1 where the arc is walked in its own direction, else -1."""
        return np.where(self.backwards, -1, 1)


def _finish(
    table: _Table,
    done: BoolArray,
    group: IntArray,
    tallies: Tallies,
    votes: Votes,
    place: Callable[[FloatArray], FloatArray],
    *,
    multi: bool,
    codes: int,
) -> Polygons:
    """Make polygons of the components that are done."""
    features, feature = np.unique(group[done], return_inverse=True)
    total = Tallies.none(len(features))
    total.add(tallies[done], feature)
    by_end = np.argsort(total.last)
    rank = np.empty(len(features), np.int64)
    rank[by_end] = np.arange(len(features))
    feature_of = np.full(len(done), -1, np.int64)
    feature_of[done] = rank[feature]
    sides = _Sides.of(table, done)
    owner = feature_of[sides.face]
    total = total[by_end]
    return Polygons(
        _geometry(table, sides, owner, place, multi=multi),
        total,
        summed(owner, sides.sign * table.area[sides.arc], len(features)),
        summed(owner, table.length[sides.arc], len(features)),
        votes.renumbered(feature_of).most(total.value // codes),
    )


def _geometry(
    table: _Table,
    sides: _Sides,
    owner: IntArray,
    place: Callable[[FloatArray], FloatArray],
    *,
    multi: bool,
) -> npt.NDArray[np.object_]:
    """String sides to rings, and rings to polygons in ascending order of their owner."""
    if not len(owner):
        return np.empty(0, object)
    preceding = np.empty_like(sides.following)
    preceding[sides.following] = np.arange(len(preceding))
    chains = order_chains(np.column_stack([sides.following, preceding]))
    first = chains.order[chains.offsets[:-1]]
    turning = (sides.sign * table.turning[sides.arc])[chains.order]
    hole = np.add.reduceat(turning, chains.offsets[:-1]) > 0
    # Shells first: the shell's key stands for its polygon among those of one owner.
    faces = int(sides.face.max()) + 1
    shell_key = np.zeros(faces, np.int64)
    shell_key[sides.face[first[~hole]]] = sides.key[first[~hole]]
    polygon = shell_key[sides.face[first]]
    ring_order = np.lexsort((sides.key[first], hole, polygon, owner[first]))
    index, ring_offsets = take_lists(chains.offsets, ring_order)
    walk = chains.order[index]
    # Every side leaves its last corner to the next one, but for the last side of a ring.
    arc = sides.arc[walk]
    sizes = table.sizes[arc] - 1
    sizes[ring_offsets[1:] - 1] += 1
    offsets = offsets_of(sizes)
    shells = np.flatnonzero(~hole[ring_order])
    starts = np.flatnonzero(is_first(owner[first[ring_order[shells]]]))
    binary = WellKnownBinary(
        np.diff(offsets[ring_offsets]),
        np.append(shells, len(ring_order)),
        np.append(starts, len(shells)) if multi else None,
    )
    ring = np.repeat(np.arange(len(ring_order)), np.diff(ring_offsets))
    before = offsets[:-1] - offsets[ring_offsets[ring]]
    for side, position, points in _walked(table, sides, walk, offsets):
        binary.put(ring[side], before[side] + position, place(points))
    return binary.features()


def _walked(
    table: _Table, sides: _Sides, walk: IntArray, offsets: IntArray
) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Points of sides in walking order, some at a time, so that their indices are never all there.

    Yields
    ------
    tuple
        For each point its side's place in the walk, its number in that side, and itself.
    """
    arc, backwards = sides.arc[walk], sides.backwards[walk]
    start = np.where(backwards, table.last[arc], table.first[arc])
    step = np.where(backwards, -1, 1)
    for side, number in in_pieces(offsets, _AT_ONCE):
        yield side, number, table.points[start[side] + step[side] * number].astype(np.float64)
