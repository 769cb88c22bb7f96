"""Windows that overlap become one image: their weighted mean, strip by strip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.options import Blend
from geoseg.types import Window


@dataclass(frozen=True, eq=False)
class Part:
    """What one or several windows add to a piece of an image."""

    window: Window
    """The piece."""
    logits: Tensor
    """``(H, W, C)`` float32: weighted sum."""
    weight: Tensor
    """``(H, W)`` float32: sum of weights."""


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
        parts can still reach. Rows below the last part are left out.
    """
    merger = StripMerger(core)
    for first_row, parts in steps:
        yield from merger.finish_above(first_row)
        for part in parts:
            merger.add(part)
    yield from merger.finish_above(core.row_stop)


class StripMerger:
    """Weighted mean of parts over a core, kept only while parts can still reach it."""

    def __init__(self, core: Window) -> None:
        self._core = core
        self._first = 0  # first core row still open
        self._sum: Tensor | None = None
        self._weight = torch.zeros(0, core.width)

    def add(self, part: Part) -> None:
        """Add what of a part lies in the core."""
        shared = part.window.intersection(self._core)
        assert shared is not None
        total = self._grown(part, shared.row_stop - self._core.row)
        source = shared.relative_to(part.window).slices()
        target = shared.relative_to(
            Window(self._core.row + self._first, self._core.col, 0, 0)
        ).slices()
        total[target] += part.logits[source]
        self._weight[target] += part.weight[source]

    def _grown(self, part: Part, stop: int) -> Tensor:
        """Open rows down to one of the core."""
        if self._sum is None:
            self._sum = part.logits.new_zeros(0, self._core.width, part.logits.shape[-1])
            self._weight = self._weight.to(part.logits.device)
        missing = stop - self._first - len(self._sum)
        if missing > 0:
            self._sum = F.pad(self._sum, (0, 0, 0, 0, 0, missing))
            self._weight = F.pad(self._weight, (0, 0, 0, missing))
        return self._sum

    def finish_above(self, row: int) -> Iterator[Strip]:
        """Yield the mean of the open rows above ``row`` and let them go."""
        count = 0 if self._sum is None else min(row - self._core.row - self._first, len(self._sum))
        if self._sum is None or count <= 0:
            return
        # Rows or corners that no window with data covers have weight 0; they are nodata. The
        # corner of a large window has next to none, and counts all the same.
        weight = self._weight[:count, :, None].clamp_min(torch.finfo(torch.float32).tiny)
        mean = self._sum[:count] / weight
        yield self._first, mean
        self._first += count
        self._sum, self._weight = self._sum[count:].clone(), self._weight[count:].clone()


def cropped(strips: Iterable[Strip], outer: Window, inner: Window) -> Iterator[Strip]:
    """Keep what of an outer window's strips lies in an inner one, counted from its first row."""
    here = inner.relative_to(outer)
    for first, rows in strips:
        start, stop = max(here.row - first, 0), min(here.row_stop - first, len(rows))
        if start < stop:
            yield first + start - here.row, rows[start:stop, here.col : here.col_stop]
