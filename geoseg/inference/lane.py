"""Tiles while they are labelled: pixels in, rows of labels put together, finished tiles out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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

USUAL = ("labels", "confidence", "margin")
"""Rasters that a tile gives if nobody says which."""


@dataclass(frozen=True)
class TileResult:
    """What a tile sends back: small blocks of its core, those that were asked for."""

    core: Window
    labels: LabelArray
    """``(H, W)`` class index; the dtype's largest value where there is no data."""
    confidence: UInt8Array | None = None
    """``(H, W)`` per cent of the winning class's probability, 255 for nodata."""
    margin: UInt8Array | None = None
    """``(H, W)`` per cent by which the winner is ahead of the second class, 255 for nodata."""
    probabilities: UInt8Array | None = None
    """``(K, H, W)`` per cent of every class, 255 for nodata."""
    runner_up: LabelArray | None = None
    """``(H, W)`` class that comes next to the label's."""
    scores: npt.NDArray[np.int16] | None = None
    """``(K + 1, H, W)`` per mille of every class, and of a hidden background; 0 for nodata."""
    regions: Any = None
    """What the tile says of the regions in it, see `geoseg.run.regions.Sums`."""
    windows: int = 0
    """How many windows were encoded."""
    retried: str = ""
    """Why it was tried again; empty if it was not."""

    @classmethod
    def empty(cls, core: Window, classes: int, rasters: Sequence[str] = USUAL) -> TileResult:
        """Nodata everywhere, in these rasters."""
        dtype = label_dtype(classes)
        labels = np.full(core.shape, label_nodata(dtype), dtype=dtype)
        per_cents: dict[str, Any] = {
            name: np.full(
                (classes, *core.shape) if name == "probabilities" else core.shape,
                PER_CENT_NODATA,
                np.uint8,
            )
            for name in rasters
            if name not in ("labels", "runner_up", "scores")
        }
        second = labels.copy() if "runner_up" in rasters else None
        scores = np.zeros((classes + 1, *core.shape), np.int16) if "scores" in rasters else None
        return cls(core, labels, **per_cents, runner_up=second, scores=scores)


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
    classes
        How many there are.
    rasters
        Names of what is wanted.
    not_finite
        What to say of logits that are not.
    """

    def __init__(self, top: int, classes: int, rasters: Sequence[str], not_finite: str) -> None:
        self._top, self._classes, self._rasters = top, classes, rasters
        self._not_finite = not_finite
        self._waiting: deque[tuple[TileResult, BoolArray]] = deque()

    def expect(self, pixels: TilePixels, windows: int) -> None:
        """Take in the next tile, for which so many windows are run."""
        empty = TileResult.empty(pixels.tile.core, self._classes, self._rasters)
        self._waiting.append((replace(empty, windows=windows), pixels.keep))

    def put(self, first: int, arrays: Sequence[npt.NDArray[Any]]) -> Iterator[TileResult]:
        """Put decided rows where they belong, and yield the tiles that are finished with them.

        Parameters
        ----------
        first
            Their first row in the lane's core.
        arrays
            Whether all logits are finite, and rows of every raster: ``(rows, W)``, or
            ``(rows, W, K)`` for probabilities.

        Raises
        ------
        TileError
            If logits are not finite.
        """
        finite, *rasters = arrays
        if not finite.all():
            raise TileError(self._not_finite)
        row = self._top + first
        stop = row + len(rasters[0])
        while self._waiting:
            into, keep = self._waiting[0]
            start, end = max(row, into.core.row), min(stop, into.core.row_stop)
            if start < end:
                given = slice(start - row, end - row)
                rows = slice(start - into.core.row, end - into.core.row)
                for name, values in zip(self._rasters, rasters, strict=True):
                    _keep(getattr(into, name), keep, rows, values[given])
            if stop < into.core.row_stop:
                return
            yield self._waiting.popleft()[0]

    def rest(self) -> Iterator[TileResult]:
        """Yield what is left when no rows come any more; rows that never came hold no data."""
        while self._waiting:
            yield self._waiting.popleft()[0]


def _keep(into: npt.NDArray[Any], keep: BoolArray, rows: slice, values: npt.NDArray[Any]) -> None:
    """Put values where they are kept; those of several classes into a plane each."""
    planes = np.moveaxis(values, 2, 0) if values.ndim == 3 else values
    np.copyto(into[..., rows, :], planes, where=keep[rows], casting="unsafe")
