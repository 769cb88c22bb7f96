"""What fills a store, tile by tile: tokens of windows, then the direction field made of them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.inference.lane import USUAL, TilePixels
from geoseg.inference.merge import merged
from geoseg.inference.recipe import Recipe
from geoseg.inference.scorer import PixelEncoder
from geoseg.inference.segmenter import Segmenter, with_data
from geoseg.model.loading import Model
from geoseg.model.vision import DenseFeatures, padding_to_patch
from geoseg.options import Options
from geoseg.run.tiles import PixelSource
from geoseg.runtime.matmul import full_width
from geoseg.store.channels import Channels, in_steps
from geoseg.store.field import Block, Cells, quantised
from geoseg.store.layout import BLOCK, StoreFile
from geoseg.store.recorded import RecordedModel, RecordedSegmenter
from geoseg.text.queries import Queries
from geoseg.tiling.tiles import Lane
from geoseg.types import BoolArray, FloatArray, UInt8Array, Window

WORDS = "a; b"
"""A segmenter needs some, and features do not."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Features of the windows of a shard."""

    places: Sequence[Window]
    arrays: Mapping[str, npt.NDArray[Any]]
    """``(B, …)`` by the names that they have in the store."""
    windows: int
    retried: str = ""


class Encoding(Segmenter):
    """A segmenter that stops at features.

    Raises
    ------
    OptionError
        If the features would depend on the words of a map.
    """

    def __init__(self, model: Model, vocabulary: Any, options: Options) -> None:
        super().__init__(model, WORDS, replace(options, templates="none"))
        self._channels: Channels | None = None
        if self.reads_words:
            raise OptionError(
                f"attention {self.options.attention} reads the words of a map, and what is encoded "
                "here is there before them; take another"
            )

    def keeping(self, channels: Channels) -> Encoding:
        """The same encoder, of whose tokens some channels are kept."""
        made = copy.copy(self)
        made._channels = channels.to(self.device)
        return made

    @property
    def recipe(self) -> EncodingRecipe:
        """What another process needs to make the same encoder."""
        known = super().recipe
        return EncodingRecipe(
            **{each.name: getattr(known, each.name) for each in fields(Recipe)},
            channels=self._channels,
        )

    def seen(self, scene: PixelSource, window: Window) -> DenseFeatures:
        """Features of one window of a scene."""
        images = self.encoder.normalise(scene.read(window))[None]
        return self.encode(F.pad(images, self._padding(window.shape)))

    def patches(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Patches of windows of a size, down and across."""
        left, right, top, bottom = self._padding(shape)
        step = self.pixels.step
        return (shape[0] + top + bottom) // step, (shape[1] + left + right) // step

    @property
    def pixels(self) -> PixelEncoder:
        """What makes its windows of pixels."""
        assert isinstance(self.encoder, PixelEncoder)
        return self.encoder

    def _padding(self, shape: tuple[int, int]) -> tuple[int, int, int, int]:
        patch = self.pixels.patch
        if self.whole:  # one pass sees whole patches alone
            return 0, -(shape[1] % patch), 0, -(shape[0] % patch)
        least = 1 if self._upsampler is None else self._upsampler.min_grid
        return padding_to_patch(*shape, patch, least)

    def segment_lane(  # type: ignore[override]
        self,
        lane: Lane,
        tiles: Iterable[TilePixels],
        *,
        rasters: Sequence[str] = USUAL,
        stop: threading.Event | None = None,
    ) -> Generator[Tokens, None, None]:
        """Encode the windows of each tile.

        Raises
        ------
        TileError
            If features are not finite.
        """
        for each in tiles:
            windows, here = with_data(each), each.tile.read
            if not windows:
                yield Tokens((), {}, 0)
                continue
            area = replace(
                self._area(each.block, windows, here, each.sent), corner=(here.row, here.col)
            )
            padding = self._padding(windows[0].shape)

            def work(some: Sequence[Window]) -> dict[str, npt.NDArray[Any]]:
                found = self.encode(F.pad(area.batch(some), padding))  # noqa: B023
                return {name: made.cpu().numpy() for name, made in self._kept(found)}

            run = self._batches.run(work, area, stop=stop, share_threads=False)
            with closing(run):
                found = [features for _, features in run]
            arrays = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
            yield Tokens(area.places(windows), arrays, len(windows))

    def _kept(self, found: DenseFeatures) -> Iterator[tuple[str, Tensor]]:
        """What is kept of some windows, by the names of arrays."""
        yield "cls", found.cls
        if self._channels is None:
            numbers, steps = in_steps(found.patches)
        else:
            numbers, steps, worst = self._channels.kept(found.patches.float())
            yield "full/worst", worst
        yield "full/patches", numbers
        yield "full/steps", steps


@dataclass(frozen=True)
class EncodingRecipe(Recipe):
    """An encoder on its way, with the channels that it keeps."""

    channels: Channels | None = field(default=None, compare=False)

    def segmenter(self) -> Encoding:
        """Make the encoder, whose model is loaded once in a process.

        Raises
        ------
        OptionError, WeightsError
            As `Recipe.segmenter`.
        """
        made = super().segmenter()
        assert isinstance(made, Encoding)
        return made if self.channels is None else made.keeping(self.channels)


@dataclass(frozen=True, eq=False)
class FieldTile:
    """Some blocks of the direction field, by their rows and columns."""

    blocks: Mapping[tuple[int, int], Block | None]
    valid: UInt8Array
    residual: float
    """Largest part of a unit token that lies in none of the directions."""
    windows: int
    retried: str = ""


class FieldSegmenter(RecordedSegmenter):
    """A store's own tokens, asked for directions instead of words.

    Parameters
    ----------
    store
        With the tokens of all windows.
    directions
        ``(D, r)``, orthonormal.
    """

    def __init__(self, store: StoreFile, directions: FloatArray, device: str) -> None:
        self._directions, self._residual = directions, 0.0
        exact = bool(store.facts["options"]["exact"])
        options = Options(templates="none", cls_bias=0.0, exact=exact)
        super().__init__(store, RecordedModel.of(store, device), WORDS, options)
        self._noting = threading.Lock()

    def _ask(self) -> Queries:
        vectors = np.ascontiguousarray(self._directions.T)
        count = len(vectors)
        return Queries(
            vectors, np.arange(count, dtype=np.int32), np.zeros(count, np.float32), count
        )

    @full_width()
    def features(self, images: Tensor, places: Sequence[Window]) -> DenseFeatures:
        """Features from the store; how much of them the directions miss is noted."""
        found = super().features(images, places)
        inside = (F.normalize(found.patches, dim=-1) @ self._text.T).square().sum(-1)
        missed = float((1 - inside.min()).clamp_min(0).sqrt())
        with self._noting:
            self._residual = max(self._residual, missed)
        return found

    def cells(
        self, each: TilePixels, stop: threading.Event | None = None
    ) -> tuple[FloatArray, BoolArray, int]:
        """Mean of the field over the cells of a tile's grown core, which have one, and windows."""
        area, cell = each.tile.grown, self.store.layout.cell
        there = area.relative_to(each.tile.read)
        valid = each.block.valid[there.slices()]
        here = each.tile.read
        windows = self.known(with_data(each), (here.row, here.col))
        sums = Cells(area, cell, len(self._text))
        with closing(self._steps(area, [(each, windows)], stop)) as run:
            for first, rows in merged(run, area):
                sums.add(first, rows, valid[first : first + len(rows)])
        return *sums.means(), len(windows)

    def segment_lane(  # type: ignore[override]
        self,
        lane: Lane,
        tiles: Iterable[TilePixels],
        *,
        rasters: Sequence[str] = USUAL,
        stop: threading.Event | None = None,
    ) -> Generator[FieldTile, None, None]:
        """Blocks of the field of each tile, which is a lane by itself."""
        for each in tiles:
            self._residual = 0.0
            cells, known, windows = self.cells(each, stop)
            blocks = dict(self._blocks(each, cells, known))
            yield FieldTile(blocks, each.keep.astype(np.uint8), self._residual, windows)

    def _blocks(
        self, each: TilePixels, cells: FloatArray, known: BoolArray
    ) -> Iterator[tuple[tuple[int, int], Block | None]]:
        core, grown, layout = each.tile.core, each.tile.grown, self.store.layout
        corner = grown.row // layout.cell, grown.col // layout.cell
        for row in range(core.row // layout.block, -(-core.row_stop // layout.block)):
            for col in range(core.col // layout.block, -(-core.col_stop // layout.block)):
                # Beyond the scene, and beyond the cells that are there, the last one goes on.
                at = np.ix_(
                    *(
                        np.clip(np.arange(BLOCK + 2) - 1 + k * BLOCK - first, 0, count - 1)
                        for k, first, count in zip((row, col), corner, known.shape, strict=True)
                    )
                )
                yield (row, col), quantised(cells[at], known[at])
