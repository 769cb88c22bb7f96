"""Which neighbour takes in a polygon that is too small?

The question is settled on the graph of all components before any boundary is traced: nodes with
areas, edges with the lengths of shared boundaries. That is a small table compared with geometry,
and afterwards the polygons of the relabelled raster are as whole and as well matched as any. The
price is a second pass over the raster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg.vector.components import Numbering, Tallies, join, tally_runs
from geoseg.vector.corners import IntArray, Strip, Values, Vertices
from geoseg.vector.ragged import is_first, summed

FloatArray = npt.NDArray[np.float64]
Pairs = tuple[IntArray, IntArray]
PixelArea = Callable[[FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class _Shared:
    """Lengths of the boundaries between two components each."""

    one: IntArray
    other: IntArray
    length: FloatArray

    @classmethod
    def summed(cls, one: IntArray, other: IntArray, length: FloatArray) -> _Shared:
        """Add up what is said of a pair several times; drop what lies inside one component."""
        low, high = np.minimum(one, other), np.maximum(one, other)
        between = low != high
        span = int(high.max(initial=0)) + 1
        key = (low * span + high)[between]
        # np.unique hashes first, which is slower than to sort once.
        order = np.argsort(key, kind="stable")
        first = is_first(key[order])
        key, which = key[order[first]], np.cumsum(first) - 1
        return cls(key // span, key % span, summed(which, length[between][order], len(key)))


@dataclass(frozen=True, slots=True)
class _Part:
    """What one strip tells about its components, which are numbered through all strips."""

    value: IntArray
    last: IntArray
    area: FloatArray
    pixels: FloatArray
    joined: Pairs
    shared: _Shared


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
    ) -> None:
        self._numbering = Numbering(width, void)
        self._void = void
        self._pixel_area = pixel_area
        self._pixel_size = pixel_size
        self._min_area = min_area
        self._corners = connectivity == 8
        self._parts: list[_Part] = []
        self._new_value = np.zeros(0, np.int64)
        self._spare = np.zeros(0)
        self.spare = np.zeros((0, 0), np.float32)
        """``(h, W)`` `Tallies.spare` for the rows that `relabel` gave last."""

    def count(self, rows: Values) -> None:
        """Take the next rows into account."""
        now = self._numbering.advance(rows)
        row, first, strip, labels = now.row, now.first, now.strip, now.labels
        runs = tally_runs(strip, row, None)
        inside = np.flatnonzero((labels.of_run >= 0) & (runs.pixels > 0))
        of_run = labels.of_run[inside]
        line, col = np.divmod(strip.run_start[inside], strip.stride)
        pixels = runs.pixels[inside]
        area = pixels * self._pixel_area(row + line - 0.5, col + pixels / 2)
        total = Tallies.none(labels.count)
        total.add(runs[inside], of_run)
        joined = now.carried
        if self._corners:
            one, other = Vertices.of(strip).diagonal_runs(strip)
            joined = (
                np.append(joined[0], first + labels.of_run[one]),
                np.append(joined[1], first + labels.of_run[other]),
            )
        self._parts.append(
            _Part(
                total.value,
                total.last,
                summed(of_run, area, labels.count),
                summed(of_run, pixels.astype(np.float64), labels.count),
                joined,
                _boundaries(strip, first + labels.of_run, self._pixel_size),
            )
        )

    def decide(self) -> None:
        """Settle what becomes of every component that is too small."""
        parts, self._parts = self._parts, []
        value = np.concatenate([part.value for part in parts])
        last = np.concatenate([part.last for part in parts])
        area = np.concatenate([part.area for part in parts])
        pixels = np.concatenate([part.pixels for part in parts])
        count, component = join(len(value), *(part.joined for part in parts))
        shared = _Shared.summed(
            component[np.concatenate([part.shared.one for part in parts])],
            component[np.concatenate([part.shared.other for part in parts])],
            np.concatenate([part.shared.length for part in parts]),
        )
        graph = _Graph.of(count, component, value, last, (area, pixels), shared)
        new_value, spare = graph.settle(self._min_area)
        self._new_value, self._spare = new_value[component], spare[component]
        self.rewind()

    def relabel(self, rows: Values) -> Values:
        """Return the next rows with the values of merged components."""
        now = self._numbering.advance(rows)
        of_run = now.labels.of_run
        value = np.where(of_run >= 0, self._new_value[now.first + of_run], self._void)
        spare = np.where(of_run >= 0, np.append(self._spare, np.inf)[now.first + of_run], np.inf)
        self.spare = now.strip.painted(spare.astype(np.float32), np.inf)
        return now.strip.painted(value, self._void).astype(rows.dtype)

    def rewind(self) -> None:
        """Begin again with the first rows to relabel."""
        self._numbering.rewind()


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


@dataclass(frozen=True, slots=True)
class _Graph:
    """Components, in the order in which they end, and what they share."""

    value: IntArray
    area: FloatArray
    pixels: FloatArray
    shared: _Shared
    place: IntArray
    """Where in this order each component of the caller is."""

    @classmethod
    def of(
        cls,
        count: int,
        component: IntArray,
        value: IntArray,
        last: IntArray,
        sizes: tuple[FloatArray, FloatArray],
        shared: _Shared,
    ) -> _Graph:
        """Sum up the parts of each component.

        The order makes decisions on ties independent of how the raster was cut into strips.
        """
        ends = np.zeros(count, np.int64)
        np.maximum.at(ends, component, last)
        place = np.empty(count, np.int64)
        place[np.argsort(ends)] = np.arange(count)
        values = np.zeros(count, np.int64)
        # Of a component that ended in the row above a strip, that strip has seen no value.
        np.maximum.at(values, place[component], value)
        areas, pixels = (summed(place[component], size, count) for size in sizes)
        moved = _Shared.summed(place[shared.one], place[shared.other], shared.length)
        return cls(values, areas, pixels, moved, place)

    def settle(self, min_area: float) -> tuple[IntArray, FloatArray]:
        """Return the new value of each component of the caller, and its `Tallies.spare`.

        In every round each group that is too small joins the neighbour with which it shares the
        longest boundary (of equal ones the larger, then the earlier). What has come together takes
        the value of its largest group, and neighbours that now have one value are one group. A
        small component with nothing but void around it stays.
        """
        group = np.arange(len(self.value))
        value, area, shared = self.value, self.area, self.shared
        while True:
            small, target = _longest(_rounded(area) < min_area, area, shared)
            if not len(small):
                of_caller = group[self.place]
                pixels = summed(group, self.pixels, len(value))
                return value[of_caller], _spare(area, pixels, shared, min_area)[of_caller]
            groups, label = join(len(value), (small, target))
            value = _of_largest(groups, label, area, value)
            same = value[label[shared.one]] == value[label[shared.other]]
            groups, again = join(groups, (label[shared.one[same]], label[shared.other[same]]))
            label, value = again[label], _of_any(groups, again, value)
            area = summed(label, area, groups)
            shared = _Shared.summed(label[shared.one], label[shared.other], shared.length)
            group = label[group]


def _longest(small: npt.NDArray[np.bool_], area: FloatArray, shared: _Shared) -> Pairs:
    """Small groups that have neighbours, and the neighbour each of them joins."""
    one = np.append(shared.one, shared.other)
    other = np.append(shared.other, shared.one)
    length = np.append(shared.length, shared.length)
    asks = small[one]
    one, other, length = one[asks], other[asks], length[asks]
    order = np.lexsort((other, -_rounded(area)[other], -_rounded(length), one))
    one, other = one[order], other[order]
    first = np.flatnonzero(is_first(one))
    return one[first], other[first]


def _of_largest(groups: int, label: IntArray, area: FloatArray, value: IntArray) -> IntArray:
    """Value of the largest member of each group."""
    result = np.zeros(groups, np.int64)
    # Assigned in ascending order of area, the largest member speaks last.
    order = np.lexsort((-np.arange(len(area)), _rounded(area)))
    result[label[order]] = value[order]
    return result


def _spare(area: FloatArray, pixels: FloatArray, shared: _Shared, min_area: float) -> FloatArray:
    """Spread what groups have above the least area over their boundaries with others."""
    above = np.maximum(1 - min_area / np.maximum(area, np.finfo(float).tiny), 0) * pixels
    ends = np.append(shared.one, shared.other)
    around = summed(ends, np.append(shared.length, shared.length), len(area))
    return above / np.maximum(around, np.finfo(float).tiny)


def _rounded(values: FloatArray) -> npt.NDArray[np.float32]:
    """Drop the last digits, which depend on the order of summation and so on the strips."""
    return values.astype(np.float32)


def _of_any(groups: int, label: IntArray, value: IntArray) -> IntArray:
    result = np.zeros(groups, np.int64)
    result[label] = value
    return result
