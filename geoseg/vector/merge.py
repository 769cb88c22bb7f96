"""Which neighbour takes in a polygon that is too small?

The question is settled on the graph of all components before any boundary is traced: nodes with
areas, edges with the lengths of shared boundaries. Afterwards the polygons of the relabelled raster
are as whole and as well matched as any. The price is a second pass over the raster.

On a noisy map most pixels are a component of their own. Edges therefore lie on the disk, strip by
strip, until the first round has made a few groups of many components, and of a component nothing
is kept but its value, its area and a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from tempfile import SpooledTemporaryFile

import numpy as np
import numpy.typing as npt

from geoseg.runtime.allocator import give_back_memory
from geoseg.vector.components import Indices, Numbered, Numbering, Tallies, join, tally_runs
from geoseg.vector.corners import IntArray, Strip, Values, Vertices
from geoseg.vector.ragged import is_first, summed

FloatArray = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int32]
"""Of components and groups, of which there may be hundreds of millions."""
PixelArea = Callable[[FloatArray, FloatArray], FloatArray]

_SPOOL_BYTES = 64 * 2**20
"""From here on edges go to the disk."""
_AT_ONCE = 4_000_000
"""Edges that are sorted at a time."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """Lengths of the boundaries between two components each, in the order of the components."""

    one: Numbers
    other: Numbers
    length: FloatArray

    @classmethod
    def summed(cls, one: Indices, other: Indices, length: FloatArray) -> _Shared:
        """Add up what is said of a pair several times; drop what lies inside one component."""
        low, high = np.minimum(one, other), np.maximum(one, other)
        between = low != high
        span = int(high.max(initial=0)) + 1
        key = (low * np.int64(span) + high)[between]
        # np.unique hashes first, which is slower than to sort once.
        order = np.argsort(key, kind="stable")
        first = is_first(key[order])
        key, which = key[order[first]], np.cumsum(first) - 1
        return cls(
            (key // span).astype(np.int32),
            (key % span).astype(np.int32),
            summed(which, length[between][order], len(key)),
        )

    @classmethod
    def merged(cls, parts: Sequence[_Shared], count: int) -> _Shared:
        """Add up parts between ``count`` components, some of them at a time."""
        pieces = max(1, -(-sum(len(part.one) for part in parts) // _AT_ONCE))
        bounds = np.linspace(0, count, pieces + 1).astype(np.int64)
        return cls.joined(
            [
                cls.summed(*cls.joined([p.between(low, high) for p in parts]).columns)
                for low, high in pairwise(bounds)
            ]
        )

    @classmethod
    def joined(cls, parts: Sequence[_Shared]) -> _Shared:
        """All edges of the parts, one part after the other."""
        if not parts:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))
        columns = zip(*(part.columns for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    @property
    def columns(self) -> tuple[Numbers, Numbers, FloatArray]:
        """Both ends, and the length."""
        return self.one, self.other, self.length

    def between(self, low: int, high: int) -> _Shared:
        """Edges whose first end lies in a range."""
        return self.where(slice(*np.searchsorted(self.one, np.array((low, high), np.int32))))

    def where(self, some: slice | npt.NDArray[np.bool_]) -> _Shared:
        """Some of the edges, in their order."""
        return _Shared(self.one[some], self.other[some], self.length[some])


Pieces = Callable[[], Iterable[_Shared]]
"""All edges, as often as they are asked for; what is said of a pair is said in one piece."""


class _Spool:
    """Edges of one strip after the other, on the disk when there are many."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(_SPOOL_BYTES, prefix="geoseg-edges-")  # noqa: SIM115
        self._counts: list[int] = []

    def add(self, shared: _Shared) -> None:
        """Keep the edges of the next strip."""
        for column in shared.columns:
            self._file.write(column.tobytes())
        self._counts.append(len(shared.one))

    def __iter__(self) -> Iterator[_Shared]:
        self._file.seek(0)
        for count in self._counts:
            ends = [np.frombuffer(self._file.read(4 * count), np.int32) for _ in range(2)]
            yield _Shared(ends[0], ends[1], np.frombuffer(self._file.read(8 * count), np.float64))

    def close(self) -> None:
        """Let go of the disk."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Components or groups of them, in the order in which they end."""

    value: Numbers
    area: FloatArray
    pixels: FloatArray
    several: npt.NDArray[np.bool_]
    """Seen in more than one strip."""

    @classmethod
    def joined(cls, parts: list[_Nodes]) -> _Nodes:
        """Nodes of the parts, one part after the other; empties the list, and holds none twice."""
        columns = [[getattr(part, name) for part in parts] for name in cls.__slots__]
        parts.clear()
        joined = []
        for column in columns:
            joined.append(np.concatenate(column))
            column.clear()
        return cls(*joined)

    def grouped(self, label: Indices, count: int) -> _Nodes:
        """Sum up the nodes of each group, which have one value."""
        value, several = np.zeros(count, np.int32), np.zeros(count, np.bool_)
        value[label] = self.value
        several[label[self.several]] = True
        area, pixels = (summed(label, size, count) for size in (self.area, self.pixels))
        return _Nodes(value, area, pixels, several)


class SmallMerger:
    """Gives small components another value.

    Feed all rows once with :meth:`count`, then :meth:`decide`, then put the same rows through
    :meth:`relabel`, cut into the same strips.

    Parameters
    ----------
    width
        Columns of the raster.
    void
        Value of pixels that belong to no polygon; they take nothing in.
    pixel_area
        Area in m² of the pixels around some rows and columns, which need not be whole.
    pixel_size
        Width and height of a pixel in m, to weigh boundaries with.
    min_area
        In m²; components below it are small.
    connectivity
        4 or 8, as for the polygons.
    codes
        Values that stand for one class; small components join others of their own class alone,
        unless each value is a class.
    """

    def __init__(
        self,
        width: int,
        *,
        void: int,
        pixel_area: PixelArea,
        pixel_size: tuple[float, float],
        min_area: float,
        connectivity: int = 4,
        codes: int = 1,
    ) -> None:
        self._numbering = Numbering(width, void)
        self._codes = codes
        self._void = void
        self._pixel_area = pixel_area
        self._pixel_size = pixel_size
        self._min_area = min_area
        self._corners = connectivity == 8
        self._spool = _Spool()
        self._ended: list[_Nodes] = []
        self._ended_count = 0
        self._open = _Nodes(np.zeros(0, np.int32), np.zeros(0), np.zeros(0), np.zeros(0, bool))
        self._open_last = np.zeros(0, np.int64)
        self._numbers: list[Numbers] = []
        """Of each strip: the number of every component, once it has ended."""
        self._carried: list[tuple[IntArray, IntArray]] = []
        """Of each strip: components that may go on, and what has become of those before it."""
        self._across: list[tuple[IntArray, IntArray]] = []
        """Of each strip: components that hang together by corners."""
        self._strip = 0
        self._new_value = np.zeros(0, np.int32)
        self._spare = np.zeros(0, np.float32)
        self.spare = np.zeros((0, 0), np.float32)
        """``(h, W)`` `Tallies.spare` for the rows that `relabel` gave last."""

    def count(self, rows: Values) -> None:
        """Take the next rows into account."""
        now = self._numbering.advance(rows)
        strip, of_run, count = now.strip, now.labels.of_run, now.labels.count
        nodes, last = self._seen(now)
        ended = np.ones(count, np.bool_)
        ended[now.still_open] = False
        number = self._end(nodes, last, np.flatnonzero(ended))
        self._numbers.append(number)
        self._carried.append((now.still_open, now.labels.of_open))
        if self._corners:
            one, other = Vertices.of(strip).diagonal_runs(strip)
            self._across.append((of_run[one], of_run[other]))
        self._open = _Nodes(*(getattr(nodes, name)[now.still_open] for name in _Nodes.__slots__))
        self._open_last = last[now.still_open]
        self._spool.add(_boundaries(strip, of_run, self._pixel_size))

    def _seen(self, now: Numbered) -> tuple[_Nodes, IntArray]:
        """What is known of a strip's components by its end, and the last pixel of each."""
        strip, labels = now.strip, now.labels
        runs = tally_runs(strip, now.row, None)
        inside = np.flatnonzero((labels.of_run >= 0) & (runs.pixels > 0))
        of_run = labels.of_run[inside]
        line, col = np.divmod(strip.run_start[inside], strip.stride)
        pixels = runs.pixels[inside]
        area = pixels * self._pixel_area(now.row + line - 0.5, col + pixels / 2)
        total = Tallies.none(labels.count)
        total.add(runs[inside], of_run)
        value, last = total.value.astype(np.int32), total.last
        areas = summed(of_run, area, labels.count)
        sizes = summed(of_run, pixels.astype(np.float64), labels.count)
        several = np.zeros(labels.count, np.bool_)
        several[now.still_open] = several[labels.of_open] = True
        # Of a component that ended in the row above, this strip has seen no value.
        np.maximum.at(value, labels.of_open, self._open.value)
        np.maximum.at(last, labels.of_open, self._open_last)
        np.add.at(areas, labels.of_open, self._open.area)
        np.add.at(sizes, labels.of_open, self._open.pixels)
        return _Nodes(value, areas, sizes, several), last

    def _end(self, nodes: _Nodes, last: IntArray, ended: IntArray) -> Numbers:
        """Number the components that have ended; the order does not depend on the strips."""
        ended = ended[np.argsort(last[ended])]
        number = np.full(len(last), -1, np.int32)
        number[ended] = self._ended_count + np.arange(len(ended))
        self._ended.append(_Nodes(*(getattr(nodes, name)[ended] for name in _Nodes.__slots__)))
        self._ended_count += len(ended)
        return number

    def decide(self) -> None:
        """Settle what becomes of every component that is too small."""
        group, nodes, around = _settle(self._nodes(), self._edges, self._min_area, self._codes)
        self._numbers = [group[number] for number in self._numbers]
        self._new_value = nodes.value
        self._spare = _spare(nodes, around, self._min_area)
        self._spool.close()
        self.rewind()

    def _nodes(self) -> _Nodes:
        """All components, now that the last ones have ended; and their numbers in every strip."""
        following = self._end(self._open, self._open_last, np.arange(len(self._open_last)))
        for number, (still_open, of_open) in zip(
            reversed(self._numbers), reversed(self._carried), strict=True
        ):
            number[still_open] = following
            following = number[of_open]
        self._carried = []
        nodes = _Nodes.joined(self._ended)
        if self._corners:
            nodes = self._joined_by_corners(nodes)
        give_back_memory()  # of the strips, which came in small pieces
        return nodes

    def _joined_by_corners(self, nodes: _Nodes) -> _Nodes:
        pairs = zip(self._numbers, self._across, strict=True)
        ends = [(number[one], number[other]) for number, (one, other) in pairs]
        count, label = join(len(nodes.value), *ends)
        last = np.zeros(count, np.int64)
        np.maximum.at(last, label, np.arange(len(label)))
        rank = np.empty(count, np.int64)
        rank[np.argsort(last)] = np.arange(count)
        label, self._across = rank[label], []
        self._numbers = [label[number].astype(np.int32) for number in self._numbers]
        # A component that was whole in its strip may now hang together with one of another.
        several = nodes.several | (np.bincount(label, minlength=count) > 1)[label]
        return _Nodes(nodes.value, nodes.area, nodes.pixels, several).grouped(label, count)

    def _edges(self, several: npt.NDArray[np.bool_]) -> Iterator[_Shared]:
        """All edges; those between components of several strips come last, summed up."""
        later = []
        for number, shared in zip(self._numbers, self._spool, strict=True):
            one, other = number[shared.one], number[shared.other]
            twice = several[one] & several[other]
            later.append(_Shared.summed(one[twice], other[twice], shared.length[twice]))
            yield _Shared.summed(one[~twice], other[~twice], shared.length[~twice])
        yield _Shared.merged(later, len(several))

    def relabel(self, rows: Values) -> Values:
        """Return the next rows with the values of merged components."""
        now = self._numbering.advance(rows)
        solid = now.labels.of_run >= 0
        group = self._numbers[self._strip][now.labels.of_run[solid]]
        self._strip += 1
        value = np.full(len(solid), self._void, np.int32)
        spare = np.full(len(solid), np.inf, np.float32)
        value[solid], spare[solid] = self._new_value[group], self._spare[group]
        self.spare = now.strip.painted(spare, np.inf)
        return now.strip.painted(value, self._void).astype(rows.dtype)

    def rewind(self) -> None:
        """Begin again with the first rows to relabel."""
        self._numbering.rewind()
        self._strip = 0


def _boundaries(strip: Strip, number: IntArray, pixel_size: tuple[float, float]) -> _Shared:
    """Measure the boundaries between the components that meet in a strip."""
    width, height = pixel_size
    starts, stride = strip.run_start, strip.stride
    solid = strip.padded.ravel()[strip.run_position()] != strip.void
    line = starts // stride
    right = np.flatnonzero(solid[1:] & solid[:-1] & (line[1:] == line[:-1]) & (line[1:] > 0)) + 1
    # Between two rows, the pair of runs changes wherever one of the rows has a new run.
    breaks = np.sort(np.append(starts[line > 0], starts[line < strip.height] + stride))
    breaks = breaks[is_first(breaks)]
    row, col = np.divmod(breaks, stride)
    upper, lower = strip.run_at(row - 1, col), strip.run_at(row, col)
    meeting = np.flatnonzero((upper >= 0) & (lower >= 0))
    overlap = np.diff(np.append(breaks, 0))[meeting] * width
    return _Shared.summed(
        np.append(number[right - 1], number[upper[meeting]]),
        np.append(number[right], number[lower[meeting]]),
        np.append(np.full(len(right), height), overlap),
    )


def _settle(
    nodes: _Nodes,
    edges: Callable[[npt.NDArray[np.bool_]], Iterable[_Shared]],
    min_area: float,
    codes: int,
) -> tuple[Numbers, _Nodes, FloatArray]:
    """Return the group of each component, the groups, and the length of their boundaries.

    In every round each group that is too small joins the neighbour with which it shares the
    longest boundary (of equal ones the larger, then the earlier). What has come together takes
    the value of its largest group, and neighbours that now have one value are one group. A
    small component with nothing but void around it stays.
    """
    count, group = len(nodes.value), None
    pieces: Pieces = partial(edges, nodes.several)
    while (target := _targets(nodes, pieces, min_area, codes)) is not None:
        count, label = _trees(target)
        del target
        value = _of_largest(count, label, nodes)
        count, again = join(count, _of_one_value(pieces, label, value))
        value, label = value[label], again[label].astype(np.int32)
        nodes = _Nodes(value, nodes.area, nodes.pixels, nodes.several).grouped(label, count)
        del value, again
        shared = _Shared.merged(
            [_Shared.summed(label[p.one], label[p.other], p.length) for p in pieces()], count
        )
        pieces = _only(shared)
        group = label if group is None else label[group]
    if group is None:
        group = np.arange(count, dtype=np.int32)
    around = np.zeros(len(nodes.value))
    for part in pieces():
        for ends in (part.one, part.other):
            around += summed(ends, part.length, len(around))
    return group, nodes, around


def _only(shared: _Shared) -> Pieces:
    return lambda: [shared]


def _targets(nodes: _Nodes, pieces: Pieces, min_area: float, codes: int) -> Numbers | None:
    """Neighbour that each group joins; -1 for one that stays, None if all do."""
    areas = _rounded(nodes.area)
    small = areas < min_area
    if not small.any():
        return None
    longest = np.zeros(len(areas), np.float32)
    target = np.full(len(areas), -1, np.int32)
    for part in pieces():
        if codes > 1:
            part = part.where(nodes.value[part.one] // codes == nodes.value[part.other] // codes)
        length = _rounded(part.length)
        asks = np.flatnonzero(small[part.one])
        _offer(part.one[asks], part.other[asks], length[asks], areas, longest, target)
        asks = np.flatnonzero(small[part.other])
        asks = asks[np.argsort(part.other[asks], kind="stable")]
        _offer(part.other[asks], part.one[asks], length[asks], areas, longest, target)
    return target if (target >= 0).any() else None


def _offer(
    one: Numbers, other: Numbers, length: Floats, areas: Floats, longest: Floats, target: Numbers
) -> None:
    """Take the best of the neighbours that each group, in ascending order, is shown."""
    if not len(one):
        return
    best = _greatest(one, length)
    one, other, length = one[best], other[best], length[best]
    best = _greatest(one, areas[other])
    best[best] = is_first(one[best])  # of equal ones the earlier: they stand in ascending order
    one, other, length = one[best], other[best], length[best]
    known, before = target[one], longest[one]
    equal = (length == before) & (known >= 0)
    area, area_before = areas[other], areas[known]
    better = (length > before) | (
        equal & ((area > area_before) | ((area == area_before) & (other < known)))
    )
    longest[one[better]], target[one[better]] = length[better], other[better]


def _greatest(one: Numbers, figure: Floats) -> npt.NDArray[np.bool_]:
    """Where the figure is the greatest that its number, of those in ascending order, has."""
    starts = np.flatnonzero(is_first(one))
    greatest = np.maximum.reduceat(figure, starts)
    found: npt.NDArray[np.bool_] = figure == np.repeat(
        greatest, np.diff(np.append(starts, len(one)))
    )
    return found


def _trees(target: Numbers) -> tuple[int, Numbers]:
    """Groups of what joins each other, in the order of their first members; how many, and which.

    Each joins one other, so that a group is a tree whose root stays, or two that join each other.
    What is given is overwritten, and nothing held for longer than it is needed: each array has a
    number for every component.
    """
    count, root = len(target), target
    every = np.arange(count, dtype=np.int32)
    np.copyto(root, every, where=root < 0)
    mutual = np.flatnonzero((root[root] == every) & (root > every))
    root[mutual] = mutual
    while not np.array_equal(further := root[root], root):
        root[:] = further
    del further
    first = np.empty(count, np.int32)
    first[root[::-1]] = every[::-1]  # what is assigned last stays
    first = first[root]
    number = np.cumsum(first == every, dtype=np.int32)
    del every
    number -= 1
    return int(number[-1]) + 1, number[first]


def _of_one_value(pieces: Pieces, label: Numbers, value: Numbers) -> tuple[Numbers, Numbers]:
    """Pairs of groups that have come to the same value."""
    found = []
    for part in pieces():
        one, other = label[part.one], label[part.other]
        same = (one != other) & (value[one] == value[other])
        found.append(_Shared.summed(one[same], other[same], part.length[same]))
    pairs = _Shared.joined(found)
    return pairs.one, pairs.other


def _of_largest(groups: int, label: Numbers, nodes: _Nodes) -> Numbers:
    """Value of the largest member of each group, of equal ones of the first."""
    areas = _rounded(nodes.area)
    largest = np.zeros(groups, np.float32)
    np.maximum.at(largest, label, areas)
    speaks = np.flatnonzero(areas == largest[label])[::-1]
    value = np.zeros(groups, np.int32)
    value[label[speaks]] = nodes.value[speaks]
    return value


def _spare(nodes: _Nodes, around: FloatArray, min_area: float) -> Floats:
    """Spread what groups have above the least area over their boundaries with others."""
    tiny = np.finfo(float).tiny
    above = np.maximum(1 - min_area / np.maximum(nodes.area, tiny), 0) * nodes.pixels
    with np.errstate(over="ignore"):  # without a boundary there is no end to it
        return (above / np.maximum(around, tiny)).astype(np.float32)


def _rounded(values: FloatArray) -> Floats:
    """Drop the last digits, which depend on the order of summation and so on the strips."""
    return values.astype(np.float32)
