"""Tiles while they are labelled: pixels in, rows of labels put together, finished tiles out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from geoseg.errors import TileError
from geoseg.tiling.tiles import Tile
from geoseg.types import (
    PER_CENT_NODATA,
    BoolArray,
    LabelArray,
    PixelBlock,
    UInt8Array,
    Window,
    label_dtype,
    label_nodata,
)


@dataclass(frozen=True)
class TileResult:
    """What a tile sends back: small blocks of its core."""

    core: Window
    labels: LabelArray
    """``(H, W)`` class index; the dtype's largest value where there is no data."""
    confidence: UInt8Array
    """``(H, W)`` per cent of the winning class's probability, 255 for nodata."""
    margin: UInt8Array
    """``(H, W)`` per cent by which the winner is ahead of the second class, 255 for nodata."""
    probabilities: UInt8Array | None
    """``(K, H, W)`` per cent, 255 for nodata; only on request."""
    windows: int
    """How many windows were encoded."""
    retried: str = ""
    """Why it was tried again; empty if it was not."""

    @classmethod
    def empty(
        cls, core: Window, classes: int, *, probabilities: bool, windows: int = 0
    ) -> TileResult:
        """Nodata everywhere."""
        dtype = label_dtype(classes)
        return cls(
            core,
            np.full(core.shape, label_nodata(dtype), dtype=dtype),
            np.full(core.shape, PER_CENT_NODATA, dtype=np.uint8),
            np.full(core.shape, PER_CENT_NODATA, dtype=np.uint8),
            np.full((classes, *core.shape), PER_CENT_NODATA, np.uint8) if probabilities else None,
            windows,
        )


@dataclass(frozen=True, eq=False)
class TilePixels:
    """What is needed to label a tile."""

    tile: Tile
    """With only those windows that are worth running."""
    block: PixelBlock
    """Pixels of ``tile.read``."""
    keep: BoolArray
    """``(H, W)``: pixels of the core that get a label."""
    sent: Tensor | None = None
    """The block's normalised pixels, ``(3, H, W)``, if they are on the device already."""


class Unfinished:
    """Tiles of a lane whose rows are not all decided.

    Parameters
    ----------
    top
        First row of the lane's core.
    classes, probabilities
        How many classes, and whether all of them get their per cents.
    """

    def __init__(self, top: int, classes: int, *, probabilities: bool) -> None:
        self._top, self._classes, self._probabilities = top, classes, probabilities
        self._waiting: deque[tuple[TileResult, BoolArray]] = deque()

    def expect(self, pixels: TilePixels, windows: int) -> None:
        """Take in the next tile, for which so many windows are run."""
        core, classes = pixels.tile.core, self._classes
        empty = TileResult.empty(core, classes, probabilities=self._probabilities, windows=windows)
        self._waiting.append((empty, pixels.keep))

    def put(self, first: int, arrays: Sequence[npt.NDArray[Any]]) -> Iterator[TileResult]:
        """Put decided rows where they belong, and yield the tiles that are finished with them.

        Parameters
        ----------
        first
            Their first row in the lane's core.
        arrays
            ``(rows, W)`` class index, whether all logits are finite, ``(rows, W)`` per cent and
            margin, and on request ``(rows, W, K)`` per cents.

        Raises
        ------
        TileError
            If logits are not finite.
        """
        index, finite, *per_cents = arrays
        if not finite.all():
            raise TileError(
                "a window's logits are not finite, so the model's weights, its precision or the "
                "scene's pixels are out of bounds; try --precision fp32"
            )
        row = self._top + first
        stop = row + len(index)
        while self._waiting:
            into, keep = self._waiting[0]
            start, end = max(row, into.core.row), min(stop, into.core.row_stop)
            if start < end:
                given = slice(start - row, end - row)
                taken = slice(start - into.core.row, end - into.core.row)
                _keep(into, keep, taken, index[given], [share[given] for share in per_cents])
            if stop < into.core.row_stop:
                return
            yield self._waiting.popleft()[0]

    def rest(self) -> Iterator[TileResult]:
        """Yield what is left when no rows come any more; rows that never came hold no data."""
        while self._waiting:
            yield self._waiting.popleft()[0]


def _keep(
    into: TileResult,
    keep: BoolArray,
    rows: slice,
    index: npt.NDArray[Any],
    per_cents: Sequence[npt.NDArray[Any]],
) -> None:
    where = keep[rows]
    np.copyto(into.labels[rows], index, where=where, casting="unsafe")
    np.copyto(into.confidence[rows], per_cents[0], where=where)
    np.copyto(into.margin[rows], per_cents[1], where=where)
    if into.probabilities is not None:
        np.copyto(into.probabilities[:, rows], per_cents[2].transpose(2, 0, 1), where=where)
