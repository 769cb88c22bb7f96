"""What fills a store, tile by tile: tokens of windows, then the direction field made of them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError, TileError
from geoseg.inference.lane import USUAL, TilePixels
from geoseg.inference.merge import merged
from geoseg.inference.scorer import PixelEncoder
from geoseg.inference.segmenter import Segmenter, with_data
from geoseg.model.loading import Model
from geoseg.model.vision import DenseFeatures, padding_to_patch
from geoseg.options import Options
from geoseg.store.field import Block, Cells, quantised
from geoseg.store.layout import BLOCK, STEPS, StoreFile
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
    cls: FloatArray
    """``(B, D)``."""
    patches: npt.NDArray[np.int16]
    """``(B, N, D)``, in steps."""
    steps: FloatArray
    """``(B, N)``."""
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
        if self.reads_words:
            raise OptionError(
                f"attention {self.options.attention} reads the words of a map, and what is encoded "
                "here is there before them; take another"
            )

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
                none = np.empty((0, 0), np.float32)
                yield Tokens((), none, none.astype(np.int16), none, 0)
                continue
            area = replace(
                self._area(each.block, windows, here, each.sent), corner=(here.row, here.col)
            )
            padding = self._padding(windows[0].shape)

            def work(some: Sequence[Window]) -> tuple[npt.NDArray[Any], ...]:
                found = self.encode(F.pad(area.batch(some), padding))  # noqa: B023
                return found.cls.cpu().numpy(), *_in_steps(found.patches)

            run = self._batches.run(work, area, stop=stop, share_threads=False)
            with closing(run):
                found = [features for _, features in run]
            cls, patches, steps = (np.concatenate(parts) for parts in zip(*found, strict=True))
            yield Tokens(area.places(windows), cls, patches, steps, len(windows))


def _in_steps(patches: Tensor) -> tuple[npt.NDArray[np.int16], FloatArray]:
    """Tokens as whole numbers of steps of their own: as small as float16, and ten times nearer."""
    largest = patches.abs().amax(-1)
    if not bool(largest.isfinite().all()):
        raise TileError(
            "features of a window are not finite, so the model's weights, its precision or the "
            "scene's pixels are out of bounds; try --precision fp32"
        )
    steps = (largest.float() / STEPS).clamp_min(torch.finfo(torch.float32).tiny)
    numbers = (patches.float() / steps[..., None]).round_().to(torch.int16)
    return numbers.cpu().numpy(), steps.cpu().numpy()


def leading_directions(store: StoreFile, windows: Sequence[tuple[int, int]], r: int) -> FloatArray:
    """Leading directions ``(D, r)`` of the unit patch tokens of some windows."""
    size = store.layout.embedding
    moment = torch.zeros(size, size, dtype=torch.float64)
    for row, col in windows:
        unit = F.normalize(store.patches(row, col).double(), dim=-1)
        moment += unit.T @ unit
    _, vectors = torch.linalg.eigh(moment)
    directions: FloatArray = vectors[:, -r:].flip(1).float().contiguous().numpy()
    return directions


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
