"""Overlapping windows put together cell by cell.

The last step of upsampling is most of its work, and its kernels depend on the guidance alone. So it
is done for a cell of the windows' lattice at once: when the last window that covers a cell has got
that far, the cell's kernels are made, used for all of its windows and dropped::

    +----+----+----+
    | 1  | 12 | 2  |     windows 1, 2, 3, 4 of two cells a side, in this order: the last one
    +----+----+----+     completes the cell in the middle, which all four cover
    | 13 |1234| 24 |
    +----+----+----+
    | 3  | 34 | 4  |
    +----+----+----+

Windows may be worked on side by side, as long as they begin in order.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from geoseg.inference.merge import Part
from geoseg.inference.runners.shared.kernels import Place, SharedKernels
from geoseg.inference.runners.shared.windows import BegunWindow, finish_cell
from geoseg.types import Window

Begin = Callable[[Callable[[Tensor], Tensor]], BegunWindow]
"""Begins a window, given all steps of its upsampling but the last; see `begin_window`."""


class CellByCell:
    """Windows of one lattice in one area.

    Parameters
    ----------
    shared
        Kernels of the area.
    windows
        In the order in which they will begin.
    core
        Cells that share no pixel with it are not put together.
    text
        ``(Q, D)`` unit text embeddings.
    weight
        ``(H, W)`` of a window's pixels.
    """

    def __init__(
        self,
        shared: SharedKernels,
        windows: Sequence[Window],
        core: Window,
        text: Tensor,
        weight: Tensor,
    ) -> None:
        self._shared, self._text = shared, text
        self._weight = None if bool((weight == 1).all()) else weight
        self._covering: dict[Place, list[Place]] = defaultdict(list)
        places = [self._place(window) for window in windows]
        for place in places:
            for cell in shared.cells(place):
                self._covering[cell].append(place)
        for cell in [c for c in self._covering if self.piece(c).intersection(core) is None]:
            del self._covering[cell]
        self._completed_by: dict[Place, list[Place]] = defaultdict(list)
        for cell, covering in self._covering.items():
            self._completed_by[covering[-1]].append(cell)
        self._begun: dict[Place, Future[BegunWindow]] = {place: Future() for place in places}
        self._needed = Counter(p for covering in self._covering.values() for p in covering)
        self._lock = threading.Lock()

    def _place(self, window: Window) -> Place:
        place = self._shared.place(window.row, window.col)
        assert place is not None
        return place

    def completed_by(self, window: Window) -> Sequence[Place]:
        """Cells of the core of which a window is the last one."""
        return self._completed_by.get(self._place(window), ())

    def begin(self, window: Window, begin: Begin) -> None:
        """Begin a window."""
        place = self._place(window)
        future = self._begun[place]
        try:
            future.set_result(begin(functools.partial(self._shared.before_last, place)))
        except BaseException as error:
            future.set_exception(error)
            raise

    @torch.no_grad()
    def finish(self, cell: Place) -> Part:
        """Put a cell together; waits for its windows, which must have begun."""
        covering = self._covering[cell]
        windows = [self._begun[place].result() for place in covering]

        def upsample(chosen: Sequence[int], coarse: Sequence[Tensor]) -> Iterator[Tensor]:
            return self._shared.last(cell, [covering[k] for k in chosen], coarse)

        piece = self.piece(cell)
        if self._weight is None:
            weights, total = None, torch.full(piece.shape, float(len(windows)))
        else:
            own = [self._weight[self._within(cell, place).slices()] for place in covering]
            image = torch.stack(own, dim=-1)
            weights, total = self._shared.blocks(image), image.sum(-1)
        logits = self._shared.image(finish_cell(windows, self._text, upsample, weights))
        with self._lock:
            self._needed.subtract(covering)
            for place in covering:
                if not self._needed[place]:
                    del self._begun[place]
        return Part(piece, logits, total)

    def piece(self, cell: Place) -> Window:
        """Pixels of a cell in the area."""
        return Window(*self._shared.position(cell), self._shared.stride, self._shared.stride)

    def _within(self, cell: Place, window: Place) -> Window:
        """Pixels of a cell in a window."""
        row, col = self._shared.position(window)
        return self.piece(cell).relative_to(Window(row, col, 0, 0))

    def forget_before(self, window: Window) -> None:
        """Drop what only windows before this one need, once all of those are done."""
        self._shared.forget_before(self._place(window))
