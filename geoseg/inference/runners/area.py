"""What a runner is given: windows, the pixels they see, and how many go together."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from geoseg.inference.scorer import PixelMaker
from geoseg.runtime.threads import in_order, threads_of_process
from geoseg.types import PixelBlock, Window

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

_GPU_TOKENS = 25_600
"""Tokens that a GPU encodes at once: fewer, and it waits for the host to start its kernels."""
_GPU_SHARE = 8
"""Part of a GPU's memory that the logits of one batch may take."""
_PRODUCT_TOKENS, _WINDOWS_PER_CORE = 800, 4
"""Tokens that make a product large, and windows beyond which more gain nothing."""
_LOGIT_BYTES = 2**30
"""Bytes that the logits of windows side by side may take on a CPU."""
_LOGIT_COPIES = 4
"""How many times a window's logits are in memory while they are made."""


class Watch(threading.Event):
    """Set from another thread, it gives a lane up; and it tells how many windows have run."""

    windows = 0


@dataclass(frozen=True, eq=False)
class Area:
    """Windows of one part of a scene, row by row, and the pixels they see."""

    encoder: PixelMaker
    block: PixelBlock
    """Pixels that hold all windows."""
    windows: Sequence[Window]
    """All of one size, counted from the block's corner."""
    core: Window
    """What is wanted of them."""
    weight: Tensor
    """``(H, W)`` of a window's pixels."""
    stride: int
    """Step between windows, in pixels."""
    sent: Tensor | None = None
    """Normalised pixels of the block that are on the device already."""
    corner: tuple[int, int] = (0, 0)
    """Row and column of the block in the scene."""

    def pixels(self, window: Window) -> Tensor:
        """Normalised pixels of a window, and which region each is in, if somebody reads that."""
        here = window.slices()
        if self.sent is not None:
            pixels = self.sent[(slice(None), *here)]
        else:
            rgb, valid = self.block.rgb[(slice(None), *here)], self.block.valid[here]
            pixels = self.encoder.normalise(PixelBlock(rgb, valid))
        if self.block.regions is None:
            return pixels
        # Few enough for a float; 0 stays.
        numbers = np.append(self.block.regions[here].ravel(), 0)
        counted = np.unique(numbers, return_inverse=True)[1].ravel()[:-1].reshape(window.shape)
        return torch.cat([pixels, torch.from_numpy(counted).to(pixels)[None]])

    def weighted(self, logits: Tensor) -> Tensor:
        """Logits ``(B, H, W, Q)`` times the weight of their pixels, where it is not 1 for all."""
        return logits if self._even else logits * self.weight[..., None]

    @functools.cached_property
    def _even(self) -> bool:
        return bool((self.weight == 1).all())

    def batch(self, windows: Sequence[Window]) -> Tensor:
        """Normalised pixels of some windows, ``(B, 3, H, W)``; see `pixels`."""
        return torch.stack([self.pixels(window) for window in windows])

    def places(self, windows: Sequence[Window]) -> list[Window]:
        """Where some windows lie in the scene."""
        row, col = self.corner
        return [Window(w.row + row, w.col + col, *w.shape) for w in windows]


@dataclass
class Batches:
    """How many windows are encoded at once, and how many batches are worked on side by side."""

    device: torch.device
    given: int | None
    """What was asked for; None picks what suits the device."""
    window_pixels: int
    """Pixels of a window; 0 if windows are whole images."""
    patch_pixels: int
    queries: int
    fitting: int | None = field(default=None, init=False)
    """How many fit the device at most, once more did not."""

    @property
    def size(self) -> int:
        """Windows at once; fewer than asked for once so many did not fit the device."""
        wanted = self.given or self._suitable
        return wanted if self.fitting is None else min(wanted, self.fitting)

    @property
    def _suitable(self) -> int:
        """Windows that the device, or one core of a CPU, encodes at once."""
        if not self.window_pixels:
            return 1
        tokens = self.window_pixels // self.patch_pixels
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory
            fit = self._side_by_side(self.window_pixels, memory // _GPU_SHARE)
            return max(1, min(_GPU_TOKENS // tokens, fit))
        fit = self._side_by_side(self.window_pixels, _LOGIT_BYTES) // threads_of_process()
        # Each reads all of the model's weights.
        return max(1, min(_PRODUCT_TOKENS // tokens, _WINDOWS_PER_CORE, fit))

    def _side_by_side(self, pixels: int, memory: int) -> int:
        """How many windows of so many pixels may be worked on at once."""
        return memory // (_LOGIT_COPIES * 4 * pixels * self.queries)

    def of(self, windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
        """Windows to encode at once; fewer and fewer on a CPU, if it was not said how many."""
        if self.device.type == "cpu" and self.given is None:
            return fewer_and_fewer(windows, self.size)
        size = self.size
        return (windows[first : first + size] for first in range(0, len(windows), size))

    def run(
        self,
        work: Callable[[Sequence[Window]], R],
        area: Area,
        *,
        stop: threading.Event | None,
        share_threads: bool,
    ) -> Generator[tuple[Sequence[Window], R], None, None]:
        """Work on an area's windows, batch by batch, in order; smaller ones if they must be."""
        if self.device.type == "cpu" and threads_of_process() > 1:
            some = list(self.of(area.windows))
            with closing(
                self.side_by_side(work, some, area, stop=stop, share_threads=share_threads)
            ) as done:
                for batch, found in zip(some, done, strict=True):
                    count(stop, batch)
                    yield batch, found
            return
        waiting = list(area.windows)
        while waiting:
            go_on(stop)
            batch = next(iter(self.of(waiting)))
            try:
                found = work(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self._halve(len(batch))
            else:
                del waiting[: len(batch)]
                count(stop, batch)
                yield batch, found

    def _halve(self, tried: int) -> None:
        self.fitting = tried // 2
        log.warning(
            "%d windows at once do not fit the device; going on with %d", tried, self.fitting
        )

    def side_by_side(
        self,
        work: Callable[[T], R],
        items: Sequence[T],
        area: Area,
        *,
        stop: threading.Event | None,
        share_threads: bool,
    ) -> Generator[R, None, None]:
        """Results of work on items, in order, as many at once as a CPU has threads."""

        def unless_stopped(item: T) -> R:
            go_on(stop)
            return work(item)

        most = self._side_by_side(area.windows[0].area, _LOGIT_BYTES) // self.size
        return in_order(unless_stopped, items, most=most, share=share_threads)


def go_on(stop: threading.Event | None) -> None:
    """Raise `CancelledError` if a lane was given up."""
    if stop is not None and stop.is_set():
        raise CancelledError


def count(watch: threading.Event | None, windows: Sequence[Window]) -> None:
    """Tell a watch that some windows have run."""
    if isinstance(watch, Watch):
        watch.windows += len(windows)


def fewer_and_fewer(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Pieces of work for the threads: smaller towards the end, so that none waits for another."""
    first, threads = 0, threads_of_process()
    while first < len(items):
        some = min(max((len(items) - first) // (2 * threads), 1), most)
        yield items[first : first + some]
        first += some
