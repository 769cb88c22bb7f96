"""Which pixels hang together, when only a few rows of the raster are in memory?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geoseg.vector.corners import IntArray, Strip, Values
from geoseg.vector.scores import Scores

BoolArray = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.integer]


def join(count: int, *pairs: tuple[Indices, Indices]) -> tuple[int, IntArray]:
    """Group ``count`` things so that the two of each pair are in one group.

    Returns
    -------
    tuple
        Number of groups, and the ``(count,)`` group of each thing.
    """
    one = np.concatenate([pair[0] for pair in pairs])
    other = np.concatenate([pair[1] for pair in pairs])
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(count, count))
    groups, label = connected_components(graph, directed=False)
    return int(groups), label.astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True)
class Labelling:
    """Components (joined by sides) that are open or occur in a strip, numbered from 0."""

    count: int
    of_run: IntArray
    """``(runs,)`` component of each run of the strip; -1 for void."""
    of_open: IntArray
    """``(open,)`` component that each component open before the strip has become part of."""

    @classmethod
    def of(cls, strip: Strip, above: IntArray, open_count: int) -> Labelling:
        """Join the strip's runs with each other and with the components above.

        Parameters
        ----------
        strip
            Runs to label.
        above
            Open component of each run of the row above the strip; -1 for void.
        open_count
            Number of open components.
        """
        solid = strip.padded.ravel()[strip.run_position()] != strip.void
        solid[: len(above)] = False
        node = np.full(len(solid), -1, np.int64)
        node[: len(above)] = above
        fresh = np.flatnonzero(solid)
        node[fresh] = open_count + np.arange(len(fresh))
        upper, lower = strip.touching_runs()
        count, label = join(open_count + len(fresh), (node[upper], node[lower]))
        of_run = np.where(node >= 0, label[node], -1) if len(label) else node
        return cls(count, of_run, label[:open_count])


@dataclass(frozen=True, slots=True)
class Numbered:
    """A strip whose components have numbers that go on through all strips."""

    row: int
    """Scene row of its first pixel row."""
    strip: Strip
    labels: Labelling
    first: int
    """Number of its component 0."""
    carried: tuple[IntArray, IntArray]
    """Numbers that components of the strip above had there and have here."""
    still_open: IntArray
    """Components that reach the last row and may go on."""


class Numbering:
    """Numbers the components of a raster strip by strip; one that goes on gets a number in each.

    Parameters
    ----------
    width
        Columns of the raster.
    void
        Value of pixels that belong to no component.
    """

    def __init__(self, width: int, void: int) -> None:
        self._width = width
        self._void = void
        self.rewind()

    def rewind(self) -> None:
        """Begin again with the first row; the numbers will be the same."""
        self._row = 0
        self._numbered = 0
        self._above: Values | None = None
        self._above_open = np.zeros(0, np.int64)
        self._open_number = np.zeros(0, np.int64)

    def advance(self, rows: Values) -> Numbered:
        """Label the next rows; components get the next numbers."""
        if self._above is None:
            self._above = np.full(self._width, self._void, rows.dtype)
        strip = Strip.from_rows(self._above, rows, self._void)
        labels = Labelling.of(strip, self._above_open, len(self._open_number))
        first = self._numbered
        carried = self._open_number, first + labels.of_open
        last_row = labels.of_run[strip.run_start >= strip.stride * strip.height]
        still_open = np.unique(last_row[last_row >= 0])
        place = np.full(labels.count + 1, -1)
        place[still_open] = np.arange(len(still_open))
        self._above_open = place[last_row]
        self._open_number = first + still_open
        self._numbered += labels.count
        self._above = rows[-1].copy()
        self._row += len(rows)
        return Numbered(self._row - len(rows), strip, labels, first, carried, still_open)


@dataclass(frozen=True, slots=True)
class Tallies:
    """What is counted of every component while its pixels go by; one value a component."""

    value: IntArray
    """Pixel value."""
    pixels: IntArray
    last: IntArray
    """Flat position of the last pixel, row by row: when the component ends."""
    touches: BoolArray
    """A side of it lies at the edge of the raster or at void."""
    score_sum: npt.NDArray[np.float64]
    score_count: IntArray
    score_min: npt.NDArray[np.float64]
    """Sum, number and minimum of the scores under it (infinity where there is none)."""
    spare: npt.NDArray[np.float64]
    """Pixels that a metre of its boundary may take from it; infinity for any number."""

    @classmethod
    def none(cls, count: int) -> Tallies:
        """Nothing counted yet."""
        zeros = np.zeros(count, np.int64)
        return cls(
            value=zeros,
            pixels=zeros.copy(),
            last=zeros.copy(),
            touches=np.zeros(count, np.bool_),
            score_sum=np.zeros(count),
            score_count=zeros.copy(),
            score_min=np.full(count, np.inf),
            spare=np.full(count, np.inf),
        )

    @classmethod
    def concatenated(cls, parts: Sequence[Tallies]) -> Tallies:
        """All entries of the parts, one part after the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def __getitem__(self, chosen: IntArray | BoolArray) -> Tallies:
        return Tallies(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def add(self, part: Tallies, to: IntArray) -> None:
        """Add each entry of ``part`` to the entry of this one that ``to`` names, in place."""
        self.value[to] = part.value
        self.spare[to] = part.spare
        for name in ("pixels", "score_sum", "score_count"):
            np.add.at(getattr(self, name), to, getattr(part, name))
        np.maximum.at(self.last, to, part.last)
        np.logical_or.at(self.touches, to, part.touches)
        np.minimum.at(self.score_min, to, part.score_min)


def tally_runs(strip: Strip, row: int, scores: Scores | None) -> Tallies:
    """Count every run of a strip by itself; the runs of the row above count nothing.

    Parameters
    ----------
    strip
        Runs to count.
    row
        Scene row of the strip's first pixel row.
    scores
        Scores of the strip's rows.
    """
    width = strip.stride - 1
    line, col, stop = strip.run_places()
    tallies = Tallies.none(len(line))
    tallies.value[:] = strip.padded.ravel()[strip.run_position()]
    tallies.pixels[:] = np.where(line > 0, stop - col, 0)
    tallies.last[:] = (row + line - 1) * width + stop - 1
    if scores is not None:
        _tally_scores(tallies, scores, (line - 1) * width + col)
    return tallies


def _tally_scores(tallies: Tallies, scores: Scores, start: IntArray) -> None:
    """Sum, number and minimum of the scores under each run, which starts at a flat position."""
    scored = np.flatnonzero(tallies.pixels > 0)
    if not len(scored):
        return
    # reduceat goes on to the next start: the pixels between two runs become lists of their own.
    bounds = np.column_stack([start[scored], start[scored] + tallies.pixels[scored]]).ravel()
    if bounds[-1] == scores.values.size:
        bounds = bounds[:-1]
    values, known = scores.values.ravel(), scores.known.ravel()
    lowest = values
    if not known.all():
        top = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
        values, lowest = np.where(known, values, 0), np.where(known, values, top)
    counts = np.add.reduceat(known, bounds, dtype=np.int64)[::2]
    tallies.score_sum[scored] = np.add.reduceat(values, bounds, dtype=np.float64)[::2]
    tallies.score_count[scored] = counts
    minimum = np.minimum.reduceat(lowest, bounds)[::2]
    tallies.score_min[scored] = np.where(counts > 0, minimum, np.inf)
