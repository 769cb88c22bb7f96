"""Scenes that training cuts its crops from: a fixed number in memory, renewed one by one."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools.scenes.classes import Cover
from tools.scenes.draw import draw_scene

log = logging.getLogger(__name__)

_THIN = 4
"""Presence of a class is looked up on every fourth pixel."""


class ScenePool:
    """A ring of drawn scenes with consecutive seeds; `renew` replaces the oldest by the next.

    Parameters
    ----------
    capacity
        Scenes held at once.
    size
        Side of a scene in pixels.
    first_seed
        Seed of the first scene.
    """

    def __init__(self, capacity: int, *, size: int = 384, first_seed: int = 0) -> None:
        self.size = size
        self.pictures = np.zeros((capacity, size, size, 3), np.uint8)
        self.labels = np.zeros((capacity, size, size), np.uint8)
        self._present = np.zeros((capacity, len(Cover)), np.bool_)
        self._first_seed = first_seed
        self.drawn = 0
        """Scenes drawn so far."""

    def __len__(self) -> int:
        return min(self.drawn, len(self.labels))

    def fill(self, count: int, cache: Path | None = None) -> None:
        """Draw the first ``count`` scenes, or take those that an earlier run left in ``cache``."""
        if cache is not None and cache.is_file():
            with np.load(cache) as kept:
                for picture, labels in zip(kept["pictures"], kept["labels"], strict=True):
                    if self.drawn < count:
                        self._put(picture, labels)
        start, already = time.monotonic(), self.drawn
        while self.drawn < count:
            self.renew()
        if self.drawn > already:
            log.info("drew %d scenes in %.0f s", self.drawn - already, time.monotonic() - start)
            if cache is not None:
                np.savez(cache, pictures=self.pictures[:count], labels=self.labels[:count])

    def renew(self) -> None:
        """Draw one more scene in the place of the oldest."""
        scene = draw_scene(self._first_seed + self.drawn, self.size)
        self._put(scene.picture, scene.labels)

    def _put(self, picture: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
        place = self.drawn % len(self.labels)
        self.pictures[place], self.labels[place] = picture, labels
        votes = np.bincount(labels[::_THIN, ::_THIN].ravel(), minlength=len(Cover))
        self._present[place] = votes >= 4
        self.drawn += 1

    def scenes_with(self, cover: Cover) -> npt.NDArray[np.int64]:
        """Places of the scenes in which a class covers more than a few pixels."""
        return np.flatnonzero(self._present[: len(self), cover])
