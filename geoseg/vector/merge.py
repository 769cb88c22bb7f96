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

from geoseg.vector.components import Labelling, Tallies, join, tally_runs
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
        connectivity: int = 4,
    ) -> None:
        self._width = width
        self._void = void
        self._pixel_area = pixel_area
        self._pixel_size = pixel_size
        self._corners = connectivity == 8
        self._parts: list[_Part] = []
        self._new_value = np.zeros(0, np.int64)
        self._rewind()

    def _rewind(self) -> None:
        self._row = 0
        self._numbered = 0
        self._above: Values | None = None
        self._above_open = np.zeros(0, np.int64)
        self._open_number = np.zeros(0, np.int64)

    def count(self, rows: Values) -> None:
        """Take the next rows into account."""
        row, first, carried = self._row, self._numbered, self._open_number
        strip, labels = self._advance(rows)
        runs = tally_runs(strip, row, None)
        inside = np.flatnonzero((labels.of_run >= 0) & (runs.pixels > 0))
        of_run = labels.of_run[inside]
        line, col = np.divmod(strip.run_start[inside], strip.stride)
        pixels = runs.pixels[inside]
        area = pixels * self._pixel_area(row + line - 0.5, col + pixels / 2)
        total = Tallies.none(labels.count)
        total.add(runs[inside], of_run)
        joined = carried, first + labels.of_open
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
                joined,
                _boundaries(strip, first + labels.of_run, self._pixel_size),
            )
        )

    def decide(self, min_area: float) -> None:
        """Settle what becomes of every component smaller than ``min_area`` m²."""
        parts, self._parts = self._parts, []
        value = np.concatenate([part.value for part in parts])
        last = np.concatenate([part.last for part in parts])
        area = np.concatenate([part.area for part in parts])
        count, component = join(len(value), *(part.joined for part in parts))
        shared = _Shared.summed(
            component[np.concatenate([part.shared.one for part in parts])],
            component[np.concatenate([part.shared.other for part in parts])],
            np.concatenate([part.shared.length for part in parts]),
        )
        graph = _Graph.of(count, component, value, last, area, shared)
        self._new_value = graph.settle(min_area)[component]
        self._rewind()

    def relabel(self, rows: Values) -> Values:
        """Return the next rows with the values of merged components."""
        first = self._numbered
        strip, labels = self._advance(rows)
        below = strip.run_start >= strip.stride
        at = strip.run_start[below] - strip.stride
        of_run = labels.of_run[below]
        value = np.where(of_run >= 0, self._new_value[first + of_run], self._void)
        # A run reaches to the next one; before the first one lies void.
        line, col = np.divmod(at, strip.stride)
        starts = line * self._width + col
        flat = np.repeat(
            np.append(self._void, value), np.diff(np.concatenate([[0], starts, [rows.size]]))
        )
        return flat.reshape(rows.shape).astype(rows.dtype)

    def _advance(self, rows: Values) -> tuple[Strip, Labelling]:
        """Label the next rows; components get the next numbers."""
        if self._above is None:
            self._above = np.full(self._width, self._void, rows.dtype)
        strip = Strip.from_rows(self._above, rows, self._void)
        labels = Labelling.of(strip, self._above_open, len(self._open_number))
        last_row = labels.of_run[strip.run_start >= strip.stride * strip.height]
        still_open = np.unique(last_row[last_row >= 0])
        place = np.full(labels.count + 1, -1)
        place[still_open] = np.arange(len(still_open))
        self._above_open = place[last_row]
        self._open_number = self._numbered + still_open
        self._numbered += labels.count
        self._above = rows[-1].copy()
        self._row += len(rows)
        return strip, labels


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
        area: FloatArray,
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
        areas = summed(place[component], area, count)
        moved = _Shared.summed(place[shared.one], place[shared.other], shared.length)
        return cls(values, areas, moved, place)

    def settle(self, min_area: float) -> IntArray:
        """Return the new value of each component of the caller.

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
                return value[group[self.place]]
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


def _rounded(values: FloatArray) -> npt.NDArray[np.float32]:
    """Drop the last digits, which depend on the order of summation and so on the strips."""
    return values.astype(np.float32)


def _of_any(groups: int, label: IntArray, value: IntArray) -> IntArray:
    result = np.zeros(groups, np.int64)
    result[label] = value
    return result
