"""How are lists of different lengths kept in flat arrays, and taken from them?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def offsets_of(sizes: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> IntArray:
    """Return where each list starts, and where the last one ends: ``(n,)`` to ``(n + 1,)``."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def summed(which: npt.NDArray[np.integer], values: FloatArray, count: int) -> FloatArray:
    """Add up the values of each of ``count`` groups."""
    return np.bincount(which, values, count).astype(np.float64, copy=False)


def is_first(values: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Tell where a run of equal values begins."""
    first = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first


def positions_in(sizes: IntArray) -> IntArray:
    """Count from 0 inside every list: sizes ``[2, 3]`` give ``[0, 1, 0, 1, 2]``."""
    offsets = offsets_of(sizes)
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)


def in_pieces(offsets: IntArray, most: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Go through the items of all lists, at most ``most`` at a time.

    Yields
    ------
    tuple
        For each item, the number of its list and its position there.
    """
    total = int(offsets[-1])
    for first in range(0, total, most):
        stop = min(first + most, total)
        low = int(np.searchsorted(offsets, first, side="right")) - 1
        high = int(np.searchsorted(offsets, stop))
        bounds: IntArray = np.clip(offsets[low : high + 1], first, stop)
        which = np.repeat(np.arange(low, high), np.diff(bounds))
        yield which, np.arange(first, stop) - offsets[which]


def take_lists(offsets: IntArray, chosen: IntArray) -> tuple[IntArray, IntArray]:
    """Return flat indices of the chosen lists' items, and the offsets of the result."""
    sizes = offsets[chosen + 1] - offsets[chosen]
    return _stepping(offsets[chosen], np.ones(len(chosen), np.int8), sizes), offsets_of(sizes)


def take_directed(
    first: IntArray, last: IntArray, backwards: npt.NDArray[np.bool_], sizes: IntArray
) -> IntArray:
    """Return flat indices of ``sizes`` items of lists from ``first`` to ``last``.

    Backwards the list is taken from its last item on.
    """
    step = np.where(backwards, np.int8(-1), np.int8(1))
    return _stepping(np.where(backwards, last, first), step, sizes)


def _stepping(start: IntArray, step: npt.NDArray[np.int8], sizes: IntArray) -> IntArray:
    """Count from each start by its step, ``sizes`` numbers each.

    One running sum over steps and jumps, in place: a large polygon has millions of them.
    """
    some = sizes > 0
    start, step, sizes = start[some], step[some], sizes[some]
    if not len(sizes):
        return np.zeros(0, np.int64)
    index = np.repeat(step, sizes).astype(np.int64)
    stop = start + step * (sizes - 1)
    index[offsets_of(sizes)[:-1]] = start - np.append(0, stop[:-1])
    return np.cumsum(index, out=index)
