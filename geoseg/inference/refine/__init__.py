"""Refiners: averaged logits, sharpened along the image, without seeing where tiles end.

A refiner says how far it reaches. Tiles grow by that much (`geoseg.tiling.tiles.TilePlan`), so
that a pixel gets the same value from every tile: no statistic of a tile, a fixed number of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from geoseg.inference.merge import Strip
from geoseg.inference.rows import PixelRows
from geoseg.runtime.transfer import to_device

_ROWS_AT_A_TIME = 192
"""Rows that are refined at once, besides what is reached around them."""


class Refiner(Protocol):
    """Changes averaged logits; a frozen dataclass, a line in `geoseg.methods.REFINERS`."""

    @property
    def reach(self) -> int:
        """Pixels on each side on which a pixel's value depends."""

    def __call__(self, logits: Tensor, rgb: Tensor, valid: Tensor) -> Tensor:
        """Return logits of the same shape.

        Parameters
        ----------
        logits
            ``(H, W, C)`` float32, to be left as they are; where not valid they mean nothing, and
            must not be used. Channels are refined each by itself: there may be more than queries.
        rgb
            ``(3, H, W)`` float32 in [0, 1]; 0 where not valid.
        valid
            ``(H, W)`` bool. Beyond the array there is no scene, as far as a refiner can know.
        """


@dataclass(frozen=True, eq=False)
class Asked:
    """What a map asks of every pixel, for refiners that look at more than pixels and logits."""

    text: Tensor | None = None
    """``(Q, D)`` unit vectors of the queries; None if a network of the user's gives the scores."""
    scale: float = 1.0
    """Factor on logits before the softmax."""
    cls_bias: float = 0.0


class SceneRefiner(Protocol):
    """A refiner that knows where in the scene an array begins."""

    @property
    def reach(self) -> int:
        """As a `Refiner`'s."""

    def __call__(
        self, logits: Tensor, rgb: Tensor, valid: Tensor, origin: tuple[int, int]
    ) -> Tensor:
        """As a `Refiner`; ``origin`` is the scene's row and column of the first pixel."""


@runtime_checkable
class Preparing(Protocol):
    """A line in `geoseg.methods.REFINERS` that has to know the words first."""

    def prepared(self, asked: Asked) -> SceneRefiner:
        """Make the refiner."""


@dataclass(frozen=True, eq=False)
class _Anywhere:
    """A refiner that does not mind where an array lies."""

    refiner: Refiner

    @property
    def reach(self) -> int:
        return self.refiner.reach

    def __call__(
        self, logits: Tensor, rgb: Tensor, valid: Tensor, origin: tuple[int, int]
    ) -> Tensor:
        return self.refiner(logits, rgb, valid)


def prepared(methods: Iterable[Refiner | Preparing], asked: Asked) -> tuple[SceneRefiner, ...]:
    """Refiners ready for the words of a map."""
    return tuple(
        each.prepared(asked) if isinstance(each, Preparing) else _Anywhere(each) for each in methods
    )


def refined(
    strips: Iterable[Strip],
    refiners: Sequence[SceneRefiner],
    pixels: PixelRows,
    origin: tuple[int, int],
) -> Iterator[Strip]:
    """Refine the strips of an area, some rows at a time.

    Parameters
    ----------
    strips
        From its first row on, in order; rows that are left out hold no data.
    refiners
        In the order in which they are applied.
    pixels
        Of the area: those of a strip are there when the strip comes.
    origin
        Scene row and column of the area's first pixel.
    """
    for refiner in refiners:
        strips = _refined(strips, refiner, pixels, origin)
    yield from strips


def _refined(
    strips: Iterable[Strip], refiner: SceneRefiner, pixels: PixelRows, origin: tuple[int, int]
) -> Iterator[Strip]:
    height, reach = pixels.height, refiner.reach
    waiting: Tensor | None = None
    begin, first = 0, 0  # scene rows: of what waits, and of what is wanted next
    for rows in _all_rows(strips, height):
        waiting = rows if waiting is None else torch.cat([waiting, rows])
        known = begin + len(waiting)
        while first < height:
            stop = min(first + _ROWS_AT_A_TIME, height)
            below = min(stop + reach, height)
            if below > known:
                break
            above = max(first - reach, 0)
            block, device = pixels.crop(above, below), waiting.device
            found = refiner(
                waiting[above - begin : below - begin],
                to_device(block.rgb, device),
                to_device(block.valid, device),
                (origin[0] + above, origin[1]),
            )
            yield first, found[first - above : stop - above]
            first = stop
        drop = max(first - reach, 0) - begin
        waiting, begin = waiting[drop:], begin + drop


def _all_rows(strips: Iterable[Strip], height: int) -> Iterator[Tensor]:
    """Rows of strips, and zeros for those that are left out."""
    done, like = 0, None
    for first, rows in strips:
        yield from _zeros(rows, first - done)
        yield rows
        done, like = first + len(rows), rows
    if like is not None:
        yield from _zeros(like, height - done)


def _zeros(like: Tensor, count: int) -> Iterator[Tensor]:
    for first in range(0, count, _ROWS_AT_A_TIME):
        yield like.new_zeros(min(_ROWS_AT_A_TIME, count - first), *like.shape[1:])
