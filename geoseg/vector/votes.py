"""Which value of a second raster do most pixels of a polygon have, counted strip by strip?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geoseg.vector.corners import IntArray, Strip
from geoseg.vector.ragged import is_first
from geoseg.vector.scores import Scores

_SPAN = 2**16
"""Values are below it."""


@dataclass(frozen=True, slots=True)
class Votes:
    """Pixels of each component that have each value; in ascending order of both."""

    component: IntArray
    value: IntArray
    count: IntArray

    @classmethod
    def none(cls) -> Votes:
        """Nothing counted yet."""
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, empty)

    @classmethod
    def of_strip(cls, strip: Strip, of_run: IntArray, second: Scores) -> Votes:
        """Count the values under a strip's runs, given the component of each run."""
        height, width = second.values.shape
        values = np.where(second.known, second.values.astype(np.int64), _SPAN)
        below = strip.run_start >= strip.stride
        line, col = np.divmod(strip.run_start[below] - strip.stride, strip.stride)
        runs, component = line * width + col, of_run[below]
        flat = values.ravel()
        starts = np.concatenate(
            [width * np.arange(height), runs, np.flatnonzero(flat[1:] != flat[:-1]) + 1]
        )
        starts = np.sort(starts[starts < flat.size])
        starts = starts[is_first(starts)]
        count = np.diff(np.append(starts, flat.size))
        # A run reaches to the next one; before the first one lies void.
        component = np.append(component, -1)[np.searchsorted(runs, starts, side="right") - 1]
        known = (component >= 0) & (flat[starts] < _SPAN)
        return cls(component[known], flat[starts[known]], count[known]).collected()

    def followed_by(self, other: Votes) -> Votes:
        """Return both counts as one."""
        return Votes(
            np.append(self.component, other.component),
            np.append(self.value, other.value),
            np.append(self.count, other.count),
        ).collected()

    def renumbered(self, number: IntArray) -> Votes:
        """Give components new numbers; those with -1 are done with."""
        component = number[self.component]
        kept = component >= 0
        return Votes(component[kept], self.value[kept], self.count[kept]).collected()

    def collected(self) -> Votes:
        """Add up what is said of a pair several times."""
        key = self.component * _SPAN + self.value
        order = np.argsort(key, kind="stable")
        first = is_first(key[order])
        key, which = key[order[first]], np.cumsum(first) - 1
        count = np.zeros(len(key), np.int64)
        np.add.at(count, which, self.count[order])
        return Votes(key // _SPAN, key % _SPAN, count)

    def most(self, own: IntArray) -> IntArray:
        """Value that most pixels of each component have, besides its ``own``; -1 for none.

        Of equally frequent ones the smallest.
        """
        winner = np.full(len(own), -1, np.int64)
        other = np.flatnonzero(self.value != own[self.component])
        # Assigned in ascending order of pixels, the most frequent value speaks last.
        order = other[np.lexsort((-self.value[other], self.count[other]))]
        winner[self.component[order]] = self.value[order]
        return winner
