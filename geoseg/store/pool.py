"""What places of a scene look like: their tokens, from a store or from the encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import torch
import torch.nn.functional as F
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from geoseg.errors import OptionError, SceneError
from geoseg.inference.merge import blend_weight
from geoseg.io.grid import Grid
from geoseg.io.scene import Scene
from geoseg.model.loading import Model
from geoseg.options import Options
from geoseg.store.encoding import WORDS, Encoding
from geoseg.store.layout import StoreFile
from geoseg.store.recorded import RecordedModel
from geoseg.tiling.lattice import Lattice
from geoseg.types import Window

_SURVEYED = {"store": 256, "scene": 32}
"""Windows that say what the scene is like as a whole: read from a store, or encoded for it."""
_WINDOWS, _TOKENS = 256, 2**16
"""Windows at most that say what an outline is like, and tokens at most of all outlines together:
256 MiB of 512 numbers each."""
_BLOCKS = 64
"""Of the fast tier that say what the scene is like."""


@dataclass(frozen=True)
class Seen:
    """Windows of a scene whose tokens can be had."""

    grid: Grid
    lattice: Lattice
    model: Model
    step: int
    """Pixels from one token to the next."""
    tokens: Callable[[Window], tuple[Tensor, Tensor]]
    """Unit patch tokens ``(N, D)`` float64 of a window, and its CLS token ``(D,)``."""
    holds: Callable[[Window], bool]
    """Whether a window has data."""
    padding: tuple[int, int, int, int]
    blend: Any
    surveyed: int

    def without_bias(self, weight: float) -> Seen:
        """The same, with so much of the CLS token taken off all: products with words are logits."""

        def tokens(window: Window) -> tuple[Tensor, Tensor]:
            units, cls = self.tokens(window)
            return units - weight * _units(cls), cls

        return replace(self, tokens=tokens) if weight else self


def seen_by_store(file: StoreFile, grid: Grid, device: str) -> Seen:
    """Tokens of a store.

    Parameters
    ----------
    file
        The store.
    grid
        Of its scene.
    device
        Of its model.

    Raises
    ------
    OptionError
        If it has no full tier.
    """
    if "full" not in file.layout.tiers:
        raise OptionError(
            f"{file.path} holds no full tier, whose tokens places are known by; encode the scene "
            "with --tier full, or give the scene"
        )
    layout, named = file.layout, RecordedModel.of(file, device)
    height, width = layout.lattice.window_shape
    down, across = layout.grid[0] * named.step - height, layout.grid[1] * named.step - width
    before = (max(across, 0) // 2, max(down, 0) // 2)
    padding = (before[0], across - before[0], before[1], down - before[1])
    cls, lattice = file.cls_tokens, layout.lattice

    def at(window: Window) -> tuple[int, int]:
        row = int(lattice.row_starts.searchsorted(window.row))
        return row, int(lattice.col_starts.searchsorted(window.col))

    def tokens(window: Window) -> tuple[Tensor, Tensor]:
        return file.units(*at(window)), torch.from_numpy(cls[at(window)])

    def holds(window: Window) -> bool:
        return bool(np.isfinite(cls[at(window)][0]))

    return Seen(
        grid, lattice, named, named.step, tokens, holds, padding,
        file.facts["options"]["blend"], _SURVEYED["store"],
    )  # fmt: skip


def seen_by_encoder(source: Scene, model: Model, options: Options) -> Seen:
    """Tokens of a scene, encoded where they are asked for."""
    encoding = Encoding(model, WORDS, options)
    lattice = encoding.lattice(*source.shape)
    padding = encoding._padding(lattice.window_shape)

    def tokens(window: Window) -> tuple[Tensor, Tensor]:
        found = encoding.seen(source, window)
        return F.normalize(found.patches[0].double(), dim=-1).cpu(), found.cls[0].cpu()

    return Seen(
        source.grid, lattice, model, encoding.pixels.step, tokens,
        lambda window: not source.is_empty(window), padding, encoding.options.blend,
        _SURVEYED["scene"],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Survey:
    """What a scene looks like as a whole."""

    mean: npt.NDArray[np.float64]
    """``(D,)`` mean token."""
    covariance: npt.NDArray[np.float64]
    """``(D, D)`` of the tokens about it."""
    cls: npt.NDArray[np.float64]
    """``(D,)`` mean direction of the CLS tokens, of unit length; 0 where an attention gives none:
    then there is no bias to be even with."""

    @classmethod
    def of(
        cls,
        mean: npt.NDArray[np.float64],
        square: npt.NDArray[np.float64],
        units: npt.NDArray[np.float64],
    ) -> Survey:
        """From the mean of tokens, that of their squares ``(D, D)``, and unit CLS tokens."""
        overall = units.mean(axis=0)
        return cls(
            mean,
            square - np.outer(mean, mean),
            overall / max(float(np.linalg.norm(overall)), 1e-12),
        )


def survey(seen: Seen) -> Survey:
    """Look at a fixed sample of windows."""
    windows = seen.lattice.touching(Window(0, 0, seen.grid.height, seen.grid.width))
    at = np.linspace(0, len(windows) - 1, min(len(windows), 4 * seen.surveyed)).astype(int)
    some = [windows[k] for k in at if seen.holds(windows[k])]
    some = some[:: -(-len(some) // seen.surveyed)] if some else []
    if not some:
        raise SceneError("the scene holds no data, so that nothing is like anything in it")
    size = seen.model.embedding_size
    mean, square, cls = np.zeros(size), np.zeros((size, size)), []
    for window in some:
        tokens, one = seen.tokens(window)
        mean += tokens.mean(0).numpy() / len(some)
        square += (tokens.T @ tokens).numpy() / (len(tokens) * len(some))
        cls.append(_units(one).numpy())
    return Survey.of(mean, square, np.array(cls))


def survey_of_field(file: StoreFile) -> Survey:
    """Look at a fixed sample of blocks of the fast tier, in whose directions all lies."""
    known = np.argwhere(np.isfinite(file.read("fast/scale")[..., 0]))
    if not len(known):
        raise SceneError("the scene holds no data, so that nothing is like anything in it")
    some = known[np.linspace(0, len(known) - 1, min(len(known), _BLOCKS)).astype(int)]
    size, side, cell = file.layout.directions, file.layout.block, file.layout.cell
    mean, square, count = np.zeros(size), np.zeros((size, size)), 0
    for row, col in some.tolist():
        here = Window(row * side, col * side, side, side).slices()
        valid = file.read("fast/valid", *here)[::cell, ::cell] > 0
        inner = (slice(1, 1 + length) for length in valid.shape)
        cells = _cells(file, (row, col), *inner)[valid.ravel()]
        mean += cells.sum(0)
        square += cells.T @ cells
        count += len(cells)
    mean, square = mean / max(count, 1), square / max(count, 1)
    basis = file.read("fast/basis").astype(np.float64)
    cls = file.cls_tokens[np.isfinite(file.cls_tokens).all(-1)]
    return Survey.of(basis @ mean, basis @ square @ basis.T, _units(torch.from_numpy(cls)).numpy())


def tokens_in(
    outline: BaseGeometry, seen: Seen, outlines: int = 1
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit tokens ``(n, D)`` in an outline, of the windows that see it, and how much of each.

    Of an outline that many windows see it is a fixed sample of them and of their tokens, whose
    shares stand for the others: memory has a bound, for so many ``outlines`` together.
    """
    left, top, right, bottom = outline.bounds
    row, col = int(top), int(left)
    box = Window(row, col, max(int(np.ceil(bottom)) - row, 1), max(int(np.ceil(right)) - col, 1))
    tokens, shares = [np.zeros((0, seen.model.embedding_size))], [np.zeros(0)]
    shapely.prepare(outline)
    windows = [
        one
        for one in seen.lattice.touching(box)
        if outline.intersects(shapely.box(one.col, one.row, one.col_stop, one.row_stop))
        and seen.holds(one)
    ]
    if len(windows) > _WINDOWS:
        some = np.random.default_rng(0).choice(len(windows), _WINDOWS, replace=False)
        windows = [windows[k] for k in np.sort(some)]
    most = max(_TOKENS // (outlines * max(len(windows), 1)), 1)
    for window in windows:
        inside = _shares(outline, window, seen)
        places = np.flatnonzero(inside)
        if len(places):
            kept = places[np.linspace(0, len(places) - 1, min(len(places), most)).astype(int)]
            found = seen.tokens(window)[0].numpy()
            tokens.append(found[kept])
            shares.append(inside[kept] * (inside.sum() / inside[kept].sum()))
    return np.concatenate(tokens), np.concatenate(shares)


def directions_at(
    file: StoreFile, pixels: npt.NDArray[np.int64], grid: Grid
) -> npt.NDArray[np.float64]:
    """What some pixels, rows and columns, look like: ``(n, r)`` numbers of the fast tier's field.

    Without a fast tier it is the mean unit token there, ``(n, D)``.
    """
    if "fast" not in file.layout.tiers:
        seen = seen_by_store(file, grid, "cpu")
        found = (tokens_in(shapely.Point(col + 0.5, row + 0.5), seen) for row, col in pixels)
        return np.stack([shares @ tokens / max(shares.sum(), 1e-12) for tokens, shares in found])
    side, cell = file.layout.block, file.layout.cell
    blocks, here = np.divmod(pixels, side)
    vectors = np.zeros((len(pixels), file.layout.directions))
    for block in np.unique(blocks, axis=0).tolist():
        own = (blocks == block).all(1)
        vectors[own] = _cells(file, block, *(here[own].T // cell + 1))
    return vectors


def _cells(file: StoreFile, block: Sequence[int], rows: Any, cols: Any) -> npt.NDArray[np.float64]:
    """Some cells ``(n, r)`` of a block of the fast tier."""
    levels = file.read("fast/field", *block)[:, rows, cols].reshape(file.layout.directions, -1).T
    scale, offset = (file.read(f"fast/{name}", *block) for name in ("scale", "offset"))
    return np.asarray(levels * scale.astype(np.float64) + offset)


def _units(vectors: Tensor) -> Tensor:
    """Of unit length, ``(…, D)`` float64; what has no length stays 0."""
    return F.normalize(vectors.double(), dim=-1)


def _shares(outline: BaseGeometry, window: Window, seen: Seen) -> npt.NDArray[np.float64]:
    """How much of an outline lies in every patch of a window, times the window's weight there."""
    here = shapely.transform(outline, lambda points: points - (window.col, window.row))
    inside = rasterize(
        [here], out_shape=window.shape, all_touched=bool(outline.area < 4), dtype="uint8"
    )
    weighted = torch.from_numpy(inside) * blend_weight(
        seen.blend, window.shape, torch.device("cpu")
    )
    padded = F.pad(weighted, seen.padding)[None].double()
    patches: npt.NDArray[np.float64] = F.avg_pool2d(padded, seen.step)[0].flatten().numpy()
    return patches
