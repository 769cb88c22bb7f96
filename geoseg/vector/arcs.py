"""Which boundary lines lie between the regions of a raster, while it goes by in strips?

An arc is a boundary line between two junctions, or a closed line without any. Both faces beside an
arc use the same arc, so neighbours match vertex for vertex whatever is done to its vertices in
between. An arc that leaves a strip at its lower side is kept as a fragment and goes on in the next
strip; what comes out does not depend on where the strips were cut.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from geoseg.vector.chains import Chains, order_chains
from geoseg.vector.corners import (
    DEGREE,
    EAST,
    NORTH,
    RANK,
    SOUTH,
    WEST,
    IntArray,
    Strip,
    Vertices,
)
from geoseg.vector.ragged import offsets_of, take_directed, take_lists

BoolArray = npt.NDArray[np.bool_]

SmallArray = npt.NDArray[np.int8]
"""Directions and masks: a large polygon has a million of them."""

_NTH = np.zeros((16, 4), np.int8)
for _mask in range(16):
    _NTH[_mask, : DEGREE[_mask]] = [d for d in range(4) if _mask >> d & 1]


@dataclass(frozen=True, slots=True)
class Ends:
    """One end of each arc: the corner, and how the arc leaves it."""

    corner: IntArray
    """Flat lattice position ``y * (W + 1) + x``; -1 where the arc is cut at the strip's end."""
    leaving: SmallArray
    """Direction of the arc's first edge, seen from here."""
    mask: SmallArray
    """Edges at the corner."""

    @classmethod
    def none(cls) -> Ends:
        """No ends."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int8), np.zeros(0, np.int8))

    def __getitem__(self, chosen: IntArray | BoolArray) -> Ends:
        return Ends(self.corner[chosen], self.leaving[chosen], self.mask[chosen])

    def followed_by(self, other: Ends) -> Ends:
        """Return these entries and then those of ``other``."""
        return Ends(
            *(np.append(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        )

    def swapped(self, other: Ends, swap: BoolArray) -> Ends:
        """Return the entries of ``other`` where ``swap`` is True, these elsewhere."""
        return Ends(
            *(np.where(swap, getattr(other, f.name), getattr(self, f.name)) for f in fields(self))
        )


@dataclass(frozen=True, slots=True)
class Arcs:
    """Boundary lines, as ragged lists of lattice corners."""

    xy: IntArray
    """``(n, 2)`` corners as (column, row); both ends included, a closed arc repeats its first."""
    offsets: IntArray
    """``(m + 1,)``"""
    start: Ends
    stop: Ends
    left: IntArray
    """Component to the left of someone who walks the arc, with rows downwards; -1 for void."""
    right: IntArray

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True, slots=True)
class _Fragments:
    """Arcs that are cut at the lower side of the strip seen last."""

    xy: IntArray
    offsets: IntArray
    start: Ends
    """Their junction; corner -1 where both ends are cut."""
    port_fragment: IntArray
    """Fragment of each vertical edge that crosses the cut, from left to right."""
    port_is_start: BoolArray
    """That edge is at the fragment's start."""

    @classmethod
    def none(cls) -> _Fragments:
        empty = np.zeros(0, np.int64)
        return cls(
            np.zeros((0, 2), np.int64),
            np.zeros(1, np.int64),
            Ends.none(),
            empty,
            np.zeros(0, np.bool_),
        )


class ArcTracer:
    """Follows boundaries through the strips of one raster.

    Parameters
    ----------
    width
        Columns of the raster.
    """

    def __init__(self, width: int) -> None:
        self._stride = width + 1
        self._open = _Fragments.none()

    @property
    def highest_open_row(self) -> int | None:
        """Scene row of the highest vertex of arcs that are not complete; None without any."""
        return int(self._open.xy[:, 1].min()) if len(self._open.xy) else None

    def feed(self, strip: Strip, vertices: Vertices, row: int, component: IntArray) -> Arcs:
        """Go through one strip and return the arcs that end in it.

        Parameters
        ----------
        strip
            Pixel rows.
        vertices
            Vertices on their upper sides.
        row
            Scene row of the first one.
        component
            Component of each run of the strip.
        """
        nodes = _Nodes.of(strip, vertices, self._open)
        chains = order_chains(nodes.links)
        walk = _Walk(nodes, chains, self._open)
        xy, offsets = walk.coordinates(row)
        left, right = walk.faces(strip, component)
        start, stop = walk.ends(row, self._stride)
        done = chains.closed | ((start.corner >= 0) & (stop.corner >= 0))
        self._open = _keep_open(xy, offsets, start, stop, ~done, walk)
        ended = np.flatnonzero(done)
        index, ended_offsets = take_lists(offsets, ended)
        arcs = Arcs(xy[index], ended_offsets, start[ended], stop[ended], left[ended], right[ended])
        return _canonical(arcs, chains.closed[ended], self._stride)


@dataclass(frozen=True, slots=True)
class _Nodes:
    """What boundary lines are strung from: vertices, stubs of junctions, ports at the cuts."""

    links: IntArray
    """``(n, 2)`` neighbours, as ``order_chains`` wants them."""
    vertex: IntArray
    """Vertex of each node that is no port."""
    row: IntArray
    """Lattice row within the strip, of every node."""
    col: IntArray
    leaving: SmallArray
    """Direction of the first link."""
    mask: SmallArray
    """Edges at the corner; 0 for ports."""
    top: int
    """First node that is a port at the upper cut."""
    bottom: int
    """First node that is a port at the lower cut."""

    @classmethod
    def of(cls, strip: Strip, vertices: Vertices, above: _Fragments) -> _Nodes:
        mask = vertices.mask.astype(np.int8)
        # A junction ends the arcs that meet there: it gets a node for each of its edges.
        sizes = np.where(DEGREE[mask] == 2, 1, DEGREE[mask])
        base = offsets_of(sizes)
        vertex = np.repeat(np.arange(len(mask)), sizes)
        leaving = _NTH[mask[vertex], np.arange(base[-1]) - base[vertex]]
        top_col = np.flatnonzero(strip.vertical[0])
        bottom_col = np.flatnonzero(strip.vertical[-1])
        top = int(base[-1])
        bottom = top + len(top_col)
        ports = len(top_col) + len(bottom_col)
        nodes = cls(
            links=np.repeat(np.arange(top + ports)[:, None], 2, axis=1),
            vertex=vertex,
            row=np.concatenate(
                [
                    vertices.row[vertex],
                    np.zeros(len(top_col), np.int64),
                    np.full(len(bottom_col), strip.height),
                ]
            ),
            col=np.concatenate([vertices.col[vertex], top_col, bottom_col]),
            leaving=np.concatenate(
                [
                    leaving,
                    np.full(len(top_col), SOUTH, np.int8),
                    np.full(len(bottom_col), NORTH, np.int8),
                ]
            ),
            mask=np.concatenate([mask[vertex], np.zeros(ports, np.int8)]),
            top=top,
            bottom=bottom,
        )
        nodes._link_rows(vertices, base)
        nodes._link_columns(vertices, base)
        nodes._link_fragments(above)
        return nodes

    def _slots(self, vertices: Vertices, base: IntArray, chosen: IntArray, to: int) -> IntArray:
        """Flat indices into ``links`` for the edges that leave the vertices in one direction."""
        mask = vertices.mask[chosen]
        rank = RANK[mask, to]
        slots: IntArray = 2 * base[chosen] + np.where(DEGREE[mask] == 2, rank, 2 * rank)
        return slots

    def _tie(self, one: IntArray, other: IntArray) -> None:
        flat = self.links.reshape(-1)
        flat[one] = other // 2
        flat[other] = one // 2

    def _link_rows(self, vertices: Vertices, base: IntArray) -> None:
        # Row by row, the vertex at the other end of an edge to the east is simply the next one.
        west_end = vertices.with_edge(EAST)
        self._tie(
            self._slots(vertices, base, west_end, EAST),
            self._slots(vertices, base, west_end + 1, WEST),
        )

    def _link_columns(self, vertices: Vertices, base: IntArray) -> None:
        # Column by column, upper and lower ends of vertical lines alternate, cuts included.
        upper, lower = vertices.with_edge(SOUTH), vertices.with_edge(NORTH)
        top, bottom = np.arange(self.top, self.bottom), np.arange(self.bottom, len(self.links))
        upper_slot = np.append(2 * top, self._slots(vertices, base, upper, SOUTH))
        lower_slot = np.append(self._slots(vertices, base, lower, NORTH), 2 * bottom)
        upper_col = np.append(self.col[top], vertices.col[upper])
        lower_col = np.append(vertices.col[lower], self.col[bottom])
        self._tie(upper_slot[_by_column(upper_col)], lower_slot[_by_column(lower_col)])

    def _link_fragments(self, above: _Fragments) -> None:
        both_cut = above.start.corner[above.port_fragment] < 0
        at_start = np.flatnonzero(both_cut & above.port_is_start)
        at_stop = np.flatnonzero(both_cut & ~above.port_is_start)
        start = np.zeros(len(above.start.corner), np.int64)
        start[above.port_fragment[at_start]] = at_start
        partner = start[above.port_fragment[at_stop]]
        self._tie(2 * (self.top + partner) + 1, 2 * (self.top + at_stop) + 1)


def _by_column(col: IntArray) -> IntArray:
    # NumPy sorts 16-bit integers by radix, several times faster than wider ones.
    small = len(col) == 0 or int(col.max()) <= np.iinfo(np.uint16).max
    return np.argsort(col.astype(np.uint16 if small else np.int32), kind="stable")


class _Walk:
    """Nodes in walking order, read as lines."""

    def __init__(self, nodes: _Nodes, chains: Chains, above: _Fragments) -> None:
        self.nodes = nodes
        self.chains = chains
        self.above = above
        self.first = chains.order[chains.offsets[:-1]]
        self.last = chains.order[chains.offsets[1:] - 1]

    def coordinates(self, row: int) -> tuple[IntArray, IntArray]:
        """Corners of every line as ``(n, 2)`` (column, row), and their offsets."""
        nodes, above = self.nodes, self.above
        count = len(nodes.links)
        vertices = nodes.top
        # Lists to take from: one for every node at a corner, then one for every fragment.
        source = np.concatenate(
            [np.column_stack([nodes.col[:vertices], nodes.row[:vertices] + row]), above.xy]
        )
        lists = np.concatenate([np.arange(vertices), vertices + above.offsets])
        chosen = np.zeros(count, np.int64)
        chosen[:vertices] = np.arange(vertices)
        size = np.zeros(count, np.int64)
        size[:vertices] = 1
        backwards = np.zeros(count, np.bool_)
        port, flipped = self._fragment_ports()
        chosen[port] = vertices + np.arange(len(port))
        size[port] = np.diff(above.offsets)
        backwards[port] = flipped
        order = self.chains.order
        taken = chosen[order]
        index = take_directed(lists[taken], lists[taken + 1] - 1, backwards[order], size[order])
        offsets = offsets_of(size[order])[self.chains.offsets]
        return source[index], offsets

    def _fragment_ports(self) -> tuple[IntArray, BoolArray]:
        """Node at which each fragment is walked, and whether from its stop to its start."""
        nodes, above = self.nodes, self.above
        fragments = len(above.start.corner)
        place = np.empty(len(nodes.links), np.int64)
        place[self.chains.order] = np.arange(len(place))
        port = nodes.top + np.arange(len(above.port_fragment))
        at_start, at_stop = np.full(fragments, -1), np.full(fragments, -1)
        at_start[above.port_fragment[above.port_is_start]] = port[above.port_is_start]
        at_stop[above.port_fragment[~above.port_is_start]] = port[~above.port_is_start]
        both = at_start >= 0
        opens = np.zeros(len(place), np.bool_)
        opens[self.first] = True
        flipped = np.where(both, place[at_start] > place[at_stop], ~opens[at_stop])
        return np.where(both & ~flipped, at_start, at_stop), flipped

    def ends(self, row: int, stride: int) -> tuple[Ends, Ends]:
        """Start and stop of every line."""
        nodes, above = self.nodes, self.above
        corner = (nodes.row + row) * stride + nodes.col
        corner[nodes.bottom :] = -1
        leaving, mask = nodes.leaving.copy(), nodes.mask.copy()
        # A port at which a line ends continues a fragment up to the junction it came from.
        port = slice(nodes.top, nodes.bottom)
        corner[port] = above.start.corner[above.port_fragment]
        leaving[port] = above.start.leaving[above.port_fragment]
        mask[port] = above.start.mask[above.port_fragment]
        every = Ends(corner, leaving, mask)
        return every[self.first], every[self.last]

    def faces(self, strip: Strip, component: IntArray) -> tuple[IntArray, IntArray]:
        """Component on the left and on the right of every line; -1 for void."""
        nodes, first = self.nodes, self.first
        # Only the edge above an upper port surely belongs to its line: look at it backwards.
        at_top = (first >= nodes.top) & (first < nodes.bottom)
        leaving = np.where(at_top, NORTH, nodes.leaving[first])
        left, right = strip.sides(nodes.row[first], nodes.col[first], leaving)
        left, right = np.where(at_top, right, left), np.where(at_top, left, right)
        known = np.append(component, -1)
        return known[left], known[right]


def _keep_open(
    xy: IntArray, offsets: IntArray, start: Ends, stop: Ends, cut: BoolArray, walk: _Walk
) -> _Fragments:
    """Lines that leave the strip, turned so that a junction comes first."""
    lines = np.flatnonzero(cut)
    flip = (start.corner[lines] < 0) & (stop.corner[lines] >= 0)
    sizes = offsets[lines + 1] - offsets[lines]
    index = take_directed(offsets[lines], offsets[lines + 1] - 1, flip, sizes)
    nodes = walk.nodes
    fragment = np.full(len(nodes.links), -1, np.int64)
    is_start = np.zeros(len(nodes.links), np.bool_)
    begins, ceases = walk.first[lines], walk.last[lines]
    for node, starts in ((begins, ~flip), (ceases, flip)):
        fragment[node] = np.arange(len(lines))
        is_start[node] = starts
    return _Fragments(
        xy[index],
        offsets_of(sizes),
        start[lines].swapped(stop[lines], flip),
        fragment[nodes.bottom :],
        is_start[nodes.bottom :],
    )


def _canonical(arcs: Arcs, closed: BoolArray, stride: int) -> Arcs:
    """Give every arc the start and the direction that it has whatever the strips were."""
    flip = (arcs.stop.corner * 4 + arcs.stop.leaving) < (arcs.start.corner * 4 + arcs.start.leaving)
    sizes = np.diff(arcs.offsets)
    origin = np.where(flip, sizes - 1, 0)
    corner = arcs.xy[:, 1] * stride + arcs.xy[:, 0]
    loops = np.flatnonzero(closed)
    start, stop = arcs.start, arcs.stop
    if len(loops):
        inner, inner_offsets = take_lists(arcs.offsets, loops)
        lowest = np.minimum.reduceat(corner[inner], inner_offsets[:-1])
        at = np.flatnonzero(corner[inner] == np.repeat(lowest, sizes[loops]))
        origin[loops] = at - inner_offsets[:-1]
        # The upper left corner has edges to the east and the south only; walk east first.
        after = arcs.offsets[loops] + (origin[loops] + 1) % sizes[loops]
        flip[loops] = arcs.xy[after, 1] != lowest // stride
        start, stop = _loop_ends(start, stop, loops, lowest)
    turned = start.swapped(stop, flip & ~closed), stop.swapped(start, flip & ~closed)
    length = sizes + closed
    steps = np.repeat(np.where(flip, -1, 1), length) * (
        np.arange(length.sum()) - np.repeat(offsets_of(length)[:-1], length)
    )
    place = (np.repeat(origin, length) + steps) % np.repeat(sizes, length)
    return Arcs(
        arcs.xy[np.repeat(arcs.offsets[:-1], length) + place],
        offsets_of(length),
        *turned,
        np.where(flip, arcs.right, arcs.left),
        np.where(flip, arcs.left, arcs.right),
    )


def _loop_ends(start: Ends, stop: Ends, loops: IntArray, corner: IntArray) -> tuple[Ends, Ends]:
    """Both ends of a closed arc at its upper left corner."""
    both = []
    for ends, leaving in ((start, EAST), (stop, SOUTH)):
        at = Ends(ends.corner.copy(), ends.leaving.copy(), ends.mask.copy())
        at.corner[loops] = corner
        at.leaving[loops] = leaving
        at.mask[loops] = 1 << EAST | 1 << SOUTH
        both.append(at)
    return both[0], both[1]
