"""Which polygons are too large to be one feature, and where are they cut?

A class that covers a scene makes one polygon with all others as its holes: every look at a part of
the map draws all of it, and no spatial index helps. Cut along pixel edges such a polygon is several
regions of the raster, and these are traced as any others are: parts share the cut vertex for
vertex and partition the polygon. The price is a pass over the raster, to know which are so large.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geoseg.vector.components import Numbering, join
from geoseg.vector.corners import IntArray, Values, Vertices

CODES = 5
"""Values that stand for one class: whole polygons, and four kinds of cells of the grid."""


class Splitter:
    """Gives the parts of large polygons values of their own, by which they are told apart.

    A value becomes ``CODES`` times itself, plus 1 to 4 in cells of the grid where its polygon is
    cut; cells that touch differ. Feed all rows once with :meth:`count`, then :meth:`decide`, then
    put the same rows through :meth:`relabel`, cut into the same strips.

    Parameters
    ----------
    width
        Columns of the raster.
    void
        Value of pixels that belong to no polygon.
    side
        Of the grid's cells, in pixels; a polygon that reaches over more is cut.
    connectivity
        4 or 8, as for the polygons.
    """

    def __init__(self, width: int, *, void: int, side: int, connectivity: int = 4) -> None:
        self._void = void
        self._side = side
        self._corners = connectivity == 8
        self._numbering = Numbering(width, void)
        self._boxes: list[npt.NDArray[np.int32]] = []
        self._joined: list[tuple[IntArray, IntArray]] = []
        self._cut = np.zeros(0, np.bool_)

    def count(self, rows: Values) -> None:
        """Take the next rows into account."""
        now = self._numbering.advance(rows)
        strip, of_run = now.strip, now.labels.of_run
        line, col, stop = strip.run_places()
        inside = np.flatnonzero((of_run >= 0) & (line > 0))
        row = now.row + line[inside] - 1
        # Least row and column, and least of the negative ones: -1 times the greatest.
        box = np.full((now.labels.count, 4), np.iinfo(np.int32).max, np.int32)
        places = np.column_stack([row, col[inside], -row, 1 - stop[inside]])
        np.minimum.at(box, of_run[inside], places.astype(np.int32))
        self._boxes.append(box)
        self._joined.append(now.carried)
        if self._corners:
            one, other = Vertices.of(strip).diagonal_runs(strip)
            self._joined.append((now.first + of_run[one], now.first + of_run[other]))

    def decide(self) -> None:
        """Settle which polygons are cut."""
        boxes = np.concatenate(self._boxes)
        count, component = join(len(boxes), *self._joined)
        self._boxes, self._joined = [], []
        whole = np.full((count, 4), np.iinfo(np.int32).max, np.int32)
        np.minimum.at(whole, component, boxes)
        extent = 1 - whole[:, :2] - whole[:, 2:]
        large: npt.NDArray[np.bool_] = (extent > self._side).max(axis=1)
        self._cut = large[component]
        self._numbering.rewind()

    def rewind(self) -> None:
        """Begin again with the first rows to relabel."""
        self._numbering.rewind()

    def relabel(self, rows: Values) -> Values:
        """Return the next rows with their codes."""
        now = self._numbering.advance(rows)
        of_run = now.labels.of_run
        cut_runs = np.append(self._cut, False)[np.where(of_run >= 0, now.first + of_run, -1)]
        cut = now.strip.painted(cut_runs, False)
        row = (now.row + np.arange(rows.shape[0])) // self._side % 2
        col = np.arange(rows.shape[1]) // self._side % 2
        code = 1 + 2 * row[:, None] + col
        coded: Values = rows.astype(np.int32) * CODES + np.where(cut, code, 0).astype(np.int32)
        return coded
