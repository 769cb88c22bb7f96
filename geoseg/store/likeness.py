"""Where a scene is like one direction: cosines of its pixels, as numbers."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from geoseg.inference.lane import USUAL, TilePixels
from geoseg.options import Options
from geoseg.store.encoding import WORDS
from geoseg.store.layout import StoreFile
from geoseg.store.recorded import FastSegmenter, RecordedModel, RecordedSegmenter
from geoseg.text.queries import Queries
from geoseg.tiling.tiles import Lane, TilePlan
from geoseg.types import FloatArray, Window

NOTHING = -9999.0
"""Of a pixel without data."""
_SIDE = 1024


@dataclass(frozen=True, eq=False)
class Cosines:
    """Of the pixels of a tile."""

    core: Window
    values: FloatArray
    windows: int
    retried: str = ""


class _OneQuery(RecordedSegmenter):
    """Asks a store for one direction, and gives its cosines.

    Parameters
    ----------
    store, model
        As for `RecordedSegmenter`.
    vector
        ``(D,)``, of unit length.
    """

    def __init__(self, store: StoreFile, model: RecordedModel, vector: FloatArray) -> None:
        self._vector = vector
        super().__init__(store, model, WORDS, Options(templates="none", cls_bias=0.0))

    def _ask(self) -> Queries:
        one = np.ascontiguousarray(self._vector, np.float32)[None]
        return Queries(one, np.zeros(1, np.int32), np.zeros(1, np.float32), 1)

    def cut(self, shape: tuple[int, int], region: Window | None) -> TilePlan:
        """Tiles that are worked on each by itself."""
        return TilePlan(self.lattice(*shape), _SIDE, region, alone=True)

    def segment_lane(  # type: ignore[override]
        self,
        lane: Lane,
        tiles: Iterable[TilePixels],
        *,
        rasters: Sequence[str] = USUAL,
        stop: threading.Event | None = None,
    ) -> Generator[Cosines, None, None]:
        """Cosines of each tile, which is a lane by itself."""
        for each in tiles:
            values = np.clip(self.core_logits(each, stop)[..., 0], -1, 1)
            self.store.refuse_other()
            values[~each.keep] = NOTHING
            yield Cosines(each.tile.core, values, len(each.tile.windows))


class Likeness(_OneQuery):
    """By the full tier."""


class FastLikeness(_OneQuery, FastSegmenter):
    """By the fast tier."""
