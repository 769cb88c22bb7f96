"""The fast tier: the direction field of a scene in a few directions, in blocks of small cells.

The field is what the merged logits would be if the leading directions of the scene's tokens were
the queries: it knows no words, and a query's logits are a product with it. It is averaged over
cells and kept as eight bits; each block and direction has a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import TileError
from geoseg.inference.merge import blend_weight
from geoseg.options.segmentation import Blend
from geoseg.store.layout import BLOCK, LOST, StoreFile
from geoseg.types import BoolArray, FloatArray, Window

_AVERAGING = ("none", "jbu")
"""Upsamplers whose pixels are means of tokens."""
_ROUNDING = 1e-4
_LEVELS = 127
_FINEST, _LEAST_SCALE = 0.25, 1e-6
"""Step of a direction, as a share of the coarsest one's, below which finer ones gain little: what
is left of weak directions are few levels, which take few bytes. And the least that a step can be.
"""


Known = dict[tuple[int, int], Tensor | None]
"""Logits at the cells of blocks, by their rows and columns."""


def averages(upsampler: str) -> bool:
    """Whether pixels of an upsampler are means of tokens, so that a bound of these is theirs."""
    return upsampler.partition(":")[0] in _AVERAGING


def near(bound: float | None, found: float | None) -> dict[str, float | None]:
    """What ``run.json`` says of how near logits are; None for what is not known."""
    errors = {"logit_error_bound": bound, "logit_error_found": found}
    return {name: None if error is None else round(error, 6) for name, error in errors.items()}


class Cells:
    """Means of a field over the cells of an area, from strips that come one after another.

    Parameters
    ----------
    area
        Pixels; its corner lies on the corner of a cell.
    cell
        Pixels of a side of a cell.
    channels
        Of the field.
    """

    def __init__(self, area: Window, cell: int, channels: int) -> None:
        self._cell = cell
        self._shape = -(-area.height // cell), -(-area.width // cell)
        self._sum = torch.zeros(*self._shape, channels)
        self._count = torch.zeros(*self._shape)

    def add(self, first: int, rows: Tensor, valid: BoolArray) -> None:
        """Add rows ``(h, W, C)`` of the area, of which pixels count that hold data.

        What no window has seen is 0 in all channels, and counts no more.
        """
        seen = torch.from_numpy(valid) & (rows != 0).any(-1).cpu()
        at = torch.arange(first, first + len(rows)) // self._cell
        fill = self._shape[1] * self._cell - rows.shape[1]
        wide = F.pad(rows.cpu() * seen[..., None], (0, 0, 0, fill))
        parts = wide.view(len(rows), self._shape[1], self._cell, -1).sum(2)
        counts = F.pad(seen.float(), (0, fill)).view(len(rows), self._shape[1], -1).sum(2)
        self._sum.index_add_(0, at, parts)
        self._count.index_add_(0, at, counts)

    def means(self) -> tuple[FloatArray, BoolArray]:
        """``(h, w, C)`` and which cells have one; cells beside those get their neighbours' mean."""
        known = self._count > 0
        mean = self._sum / self._count.clamp_min(1)[..., None]
        if not known.all():
            mean, known = _spread(mean, known)
        return mean.numpy(), known.numpy()


def _spread(mean: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Give cells without a mean that of the cells around them that have one."""
    planes = torch.cat([mean, known[..., None]], -1).permute(2, 0, 1)[None]
    around = F.avg_pool2d(planes, 3, stride=1, padding=1)[0].permute(1, 2, 0)
    near = ~known & (around[..., -1] > 0)
    filled = mean.clone()
    filled[near] = around[near][:, :-1] / around[near][:, -1:]
    return filled, known | near


@dataclass(frozen=True)
class Block:
    """One block of the field, ``b + 2`` cells a side."""

    field: npt.NDArray[np.int8]
    """``(r, b + 2, b + 2)``."""
    scale: FloatArray
    offset: FloatArray


def quantised(cells: FloatArray, known: BoolArray) -> Block | None:
    """Eight bits of cells ``(b + 2, b + 2, r)``; None if none is known."""
    if not known.any():
        return None
    some = cells[known]
    low, high = some.min(0), some.max(0)
    offset = (low + high) / 2
    scale = (high - low) / (2 * _LEVELS)
    scale = np.maximum(scale, max(_FINEST * float(scale.max()), _LEAST_SCALE))
    levels = np.rint((cells - offset) / scale).clip(-_LEVELS, _LEVELS)
    levels[~known] = 0
    planes = np.ascontiguousarray(levels.astype(np.int8).transpose(2, 0, 1))
    return Block(planes, scale.astype(np.float32), offset.astype(np.float32))


class Field:
    """Logits of queries from the fast tier of a store.

    Parameters
    ----------
    store
        With a fast tier.
    text
        ``(Q, D)`` unit vectors of the queries.
    cls_bias
        Weight of the windows' global logits.
    blend
        How the windows were averaged.
    """

    def __init__(self, store: StoreFile, text: Tensor, cls_bias: float, blend: Blend) -> None:
        self._store, self._layout = store, store.layout
        basis = torch.from_numpy(store.read("fast/basis"))
        self._all = text.cpu()
        self._text = self._all @ basis  # (Q, r)
        self._outside = (self._all - self._text @ basis.T).norm(dim=-1)
        self._averages = averages(store.facts["options"]["upsampler"])
        self.queries = len(text)
        cls = torch.from_numpy(store.cls_tokens)
        self._run = cls.isfinite().all(-1)
        unit = F.normalize(cls.nan_to_num(), dim=-1)
        self._cls = cls_bias * (unit @ text.cpu().T) if cls_bias else None
        self._profiles = _profiles(blend, self._layout.lattice.window_shape)

    def logits(self, window: Window) -> Tensor:
        """Logits ``(H, W, Q)`` of the pixels of a window.

        Raises
        ------
        TileError
            If a block is missing that holds data.
        """
        out = torch.empty(self.queries, *window.shape).permute(1, 2, 0)
        self.fill(out, window, {})
        return out

    def fill(self, out: Tensor, window: Window, known: Known) -> None:
        """Put the logits of a window's pixels into ``(H, W, Q)``.

        What `at_cells` has said of blocks is ``known``; what it says now is added.
        """
        side = self._layout.block
        for row in range(window.row // side, -(-window.row_stop // side)):
            for col in range(window.col // side, -(-window.col_stop // side)):
                here = Window(row * side, col * side, side, side)
                shared = here.intersection(window)
                assert shared is not None
                rows, cols = shared.relative_to(window).slices()
                if (row, col) not in known:
                    known[row, col] = self.at_cells(row, col)
                part = shared.relative_to(here)
                if (cells := known[row, col]) is None:
                    self._refuse_gap(row, col, part)
                    out[rows, cols] = 0
                else:
                    out[rows, cols] = self._between(cells, part)

    def at_cells(self, row: int, col: int) -> Tensor | None:
        """Logits ``(Q, b + 2, b + 2)`` of a block's cells, and of those around it."""
        logits = self._plain(row, col)
        return logits if logits is None or self._cls is None else logits - self._bias(row, col)

    def _plain(self, row: int, col: int) -> Tensor | None:
        """The same without the CLS bias; None of a block that holds no data."""
        scale = torch.from_numpy(self._store.read("fast/scale", row, col))
        if not bool(scale.isfinite().all()):
            return None
        offset = torch.from_numpy(self._store.read("fast/offset", row, col))
        levels = torch.from_numpy(self._store.read("fast/field", row, col))
        if int(levels[0, 0, 0]) == LOST:
            raise TileError(f"{self._store.path}: a part of the fast tier is gone; encode anew")
        flat = levels.flatten(1).float()
        logits = torch.addmm((self._text @ offset)[:, None], self._text * scale, flat)
        return logits.view(-1, *levels.shape[1:])

    def error(self) -> tuple[float, float | None]:
        """How far a logit may be from that of the exact field, and the most that it is found to be.

        The bound is for upsamplers that average tokens; a learned one's pixels may lie outside of
        the directions by any angle. What is found is None where the store kept no places to look.
        """
        store = self._store
        residual = store.read("fast/residual")
        scale = torch.from_numpy(np.nan_to_num(store.read("fast/scale")))
        known = residual[np.isfinite(residual)]
        missed = float(known.max()) if self._averages and known.size else 1.0
        steps = (scale.flatten(0, 1) @ self._text.abs().T).amax() / 2
        bound = missed * float(self._outside.max()) + float(steps) + _ROUNDING
        exact = torch.from_numpy(store.read("fast/probes"))
        found = 0.0
        places = store.read("fast/places").tolist()
        for vectors, (row, col) in zip(exact, places, strict=True):
            cells = self._plain(row // BLOCK, col // BLOCK)
            if cells is None:
                continue
            top, left, side = row % BLOCK + 1, col % BLOCK + 1, len(vectors)
            near = cells[:, top : top + side, left : left + side].permute(1, 2, 0)
            found = max(found, float((vectors @ self._all.T - near).abs().max()))
        # What the tokens of a store with channels lack, the exact vectors lack too.
        found += (store.nearness(self._all) or (0.0, 0.0))[1]
        return bound, found if len(exact) else None

    def _between(self, cells: Tensor, part: Window) -> Tensor:
        """Logits of some pixels of a block, bilinear between its cells."""
        cell = self._layout.cell
        down = slice(part.row // cell, -(-part.row_stop // cell) + 2)
        across = slice(part.col // cell, -(-part.col_stop // cell) + 2)
        near = cells[:, down, across]
        if cell > 1:
            near = F.interpolate(
                near[None], scale_factor=cell, mode="bilinear", align_corners=False
            )[0]
        top, left = part.row % cell + cell, part.col % cell + cell
        found = near[:, top : top + part.height, left : left + part.width]
        return found.permute(1, 2, 0)

    def _refuse_gap(self, row: int, col: int, part: Window) -> None:
        side = self._layout.block
        rows, cols = Window(
            row * side + part.row, col * side + part.col, part.height, part.width
        ).slices()
        valid = self._store.read("fast/valid", rows, cols)
        if (valid == 1).any():
            raise TileError(f"{self._store.path}: a block of the fast tier is gone; encode anew")

    def _bias(self, row: int, col: int) -> Tensor:
        """What the CLS bias takes away at a block's cells, ``(Q, b + 2, b + 2)``."""
        assert self._cls is not None
        layout, side = self._layout, BLOCK + 2
        starts = layout.lattice.row_starts, layout.lattice.col_starts
        weights, parts = [], []
        for at, known, profile, length in zip(
            (row, col), starts, self._profiles, (layout.height, layout.width), strict=True
        ):
            middle = (np.arange(side) - 1 + at * BLOCK) * layout.cell + (layout.cell - 1) / 2
            middle = middle.clip(0, length - 1)
            first = max(int(known.searchsorted(middle[0] - len(profile), side="right")), 0)
            last = int(known.searchsorted(middle[-1], side="right"))
            inside = middle[:, None] - known[None, first:last]
            there = (inside > -0.5) & (inside <= len(profile) - 0.5)
            near = np.interp(inside, np.arange(len(profile)), profile)
            weights.append(torch.from_numpy(np.where(there, near, 0).astype(np.float32)))
            parts.append(slice(first, last))
        run = self._run[parts[0], parts[1]].float()
        known_cls = self._cls[parts[0], parts[1]] * run[..., None]
        total = weights[0] @ run @ weights[1].T
        found = torch.einsum("hr,rcq,wc->qhw", weights[0], known_cls, weights[1])
        return found / total.clamp_min(torch.finfo(torch.float32).tiny)


def _profiles(blend: Blend, shape: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Weight of a window's rows, and of its columns; their product is that of its pixels."""
    return tuple(  # type: ignore[return-value]
        blend_weight(blend, (length, 1), torch.device("cpu"))[:, 0].numpy() for length in shape
    )
