"""Windows that overlap become one image: their weighted mean, strip by strip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geoseg.options.segmentation import Blend
from geoseg.types import Window

_NUMBERS_AT_A_TIME = {"cpu": 2**21, "cuda": 2**24}
"""Of a strip: what is worked out of them takes little memory beside the open rows, and stays in a
processor's cache."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one or several windows add to a piece of an image."""

    window: Window
    """The piece."""
    logits: Tensor
    """``(H, W, C)`` float32: weighted sum."""
    weight: Tensor
    """``(H, W)`` float32: sum of weights."""

    def moved(self, rows: int, cols: int) -> Part:
        """The same, so many rows further down and columns to the right."""
        here = self.window
        window = Window(here.row + rows, here.col + cols, here.height, here.width)
        return Part(window, self.logits, self.weight)


Strip = tuple[int, Tensor]
"""First row and finished rows ``(rows, W, C)`` of an image."""


def blend_weight(blend: Blend, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Weight of a window's pixels, ``(H, W)``."""
    if blend == "uniform":
        return torch.ones(shape, device=device)
    rows, cols = (
        torch.sin(torch.pi * (torch.arange(n, device=device) + 0.5) / n) ** 2 for n in shape
    )
    return rows[:, None] * cols


def merged(steps: Iterable[tuple[int, Sequence[Part]]], core: Window) -> Iterator[Strip]:
    """Average parts over a core.

    Parameters
    ----------
    steps
        A row above which nothing is added any more, and parts; in the order of rows.
    core
        What is wanted; parts may lie partly outside.

    Yields
    ------
    int, torch.Tensor
        Finished strips, from the first row of the core on. Memory holds only rows that later
        parts can still reach. Rows that no part reaches are left out.
    """
    merger = StripMerger(core)
    for first_row, parts in steps:
        yield from merger.finish_above(first_row)
        for part in parts:
            merger.add(part)
    yield from merger.finish_above(core.row_stop)


class StripMerger:
    """Weighted mean of parts over a core, kept only while parts can still reach it.

    Open rows lie in a ring: row ``r`` of the core in row ``r % len(ring)`` of it.
    """

    def __init__(self, core: Window) -> None:
        self._core = core
        self._first = self._stop = 0  # core rows that are open
        self._sum: Tensor | None = None
        self._weight = torch.zeros(0, core.width)

    def add(self, part: Part) -> None:
        """Add what of a part lies in the core."""
        shared = part.window.intersection(self._core)
        assert shared is not None
        here, there = shared.relative_to(self._core), shared.relative_to(part.window)
        total = self._open(part.logits, here.row_stop)
        cols, own = here.slices()[1], there.slices()[1]
        for start, ring in self._pieces(here.row, here.row_stop):
            rows = slice(there.row + start, there.row + start + ring.stop - ring.start)
            total[ring, cols] += part.logits[rows, own]
            self._weight[ring, cols] += part.weight[rows, own]

    def _open(self, like: Tensor, stop: int) -> Tensor:
        """Open rows down to one of the core, in a larger ring if they must be."""
        self._stop = max(self._stop, stop)
        rows, old = self._stop - self._first, self._sum
        if old is None or rows > len(old):
            width, size = self._core.width, rows if old is None else rows + rows // 4
            self._sum = _zeros(size, width, like)
            weight, self._weight = self._weight, like.new_zeros(size, width)
            if old is not None:
                back = torch.arange(self._first, self._first + len(old), device=like.device)
                self._sum[back % size] = old[back % len(old)]
                self._weight[back % size] = weight[back % len(old)]
        assert self._sum is not None
        return self._sum

    def _pieces(self, first: int, stop: int) -> Iterator[tuple[int, slice]]:
        """Where rows of the core lie in the ring: offset of a piece, and its rows there."""
        size, row = len(self._weight), first
        while row < stop:
            start = row % size
            count = min(stop - row, size - start)
            yield row - first, slice(start, start + count)
            row += count

    def finish_above(self, row: int) -> Iterator[Strip]:
        """Yield the mean of the open rows above ``row`` and let them go.

        Rows that no part has reached hold no data and are left out.
        """
        first, stop = self._first, row - self._core.row
        if self._sum is None or stop <= first:
            return
        pieces = list(self._pieces(first, min(stop, self._stop)))
        self._first, self._stop = stop, max(self._stop, stop)
        numbers = self._core.width * self._sum.shape[-1]
        step = max(1, _NUMBERS_AT_A_TIME[self._sum.device.type] // numbers)
        for offset, ring in pieces:
            for start in range(ring.start, ring.stop, step):
                rows = slice(start, min(start + step, ring.stop))
                # Corners that no window with data covers have weight 0; they are nodata. The corner
                # of a large window has next to none, and counts all the same.
                weight = self._weight[rows, :, None].clamp_min(torch.finfo(torch.float32).tiny)
                mean = self._sum[rows] / weight
                self._sum[rows].zero_()
                self._weight[rows].zero_()
                yield first + offset + start - ring.start, mean


def _zeros(rows: int, width: int, like: Tensor) -> Tensor:
    """Zeros ``(rows, width, C)``, plane after plane in memory if logits ``(H, W, C)`` are."""
    channels = like.shape[-1]
    if like.stride(-1) > like.stride(0):
        return like.new_zeros(channels, rows, width).permute(1, 2, 0)
    return like.new_zeros(rows, width, channels)


def cropped(strips: Iterable[Strip], outer: Window, inner: Window) -> Iterator[Strip]:
    """Keep what of an outer window's strips lies in an inner one, counted from its first row."""
    here = inner.relative_to(outer)
    for first, rows in strips:
        start, stop = max(here.row - first, 0), min(here.row_stop - first, len(rows))
        if start < stop:
            yield first + start - here.row, rows[start:stop, here.col : here.col_stop]
