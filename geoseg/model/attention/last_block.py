"""Attentions that change only the last block: which similarities, and what is kept around them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.methods import Within
from geoseg.model.attention.trunk import Block, Context, Grid, Trunk, attend

if TYPE_CHECKING:
    from geoseg.model.backbone import Backbone

_QQ, _KK, _VV, _QK = ("q", "q"), ("k", "k"), ("v", "v"), ("q", "k")


Patches = Annotated[float, Within(0.1, 1000)]
"""Width of a Gaussian over patches: narrower ones see one patch, wider ones all alike."""


@dataclass(frozen=True)
class LastBlock:
    """Sum of the softmaxes of some similarities, times the values."""

    residual: bool = False
    """Add the block's input."""
    ffn: bool = False
    """Apply the block's MLP afterwards."""

    terms: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Similarities; their softmaxes are summed, not averaged. Without any, each token sees only
    itself."""
    antialias_positions: ClassVar[bool] = False

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Ordinary blocks, then the modified last one (its ordinary half is never computed)."""
        for block in trunk.blocks[:-1]:
            x = trunk.ordinary(block, x)
        last = trunk.blocks[-1]
        qkv = trunk.heads(last, last.ln_1(x), self.needed)
        return self.finished(trunk, x, self._attend(qkv, context.grid)), context.grid

    @property
    def needed(self) -> str:
        """Which of q, k and v the last block has to make."""
        return "v" + "".join(map("".join, self.terms))

    def finished(
        self, trunk: Trunk, x: Tensor, mixed: Tensor, block: Block | None = None
    ) -> Tensor:
        """Mixed values through the rest of a block, the last one; ``x`` is what came into it."""
        last = trunk.blocks[-1] if block is None else block
        out = trunk.project(last, mixed)
        if self.residual:
            out = x + last.ls_1(out)
        return trunk.ffn(last, out) if self.ffn else out

    def _attend(self, qkv: dict[str, Tensor], grid: Grid) -> Tensor:
        value = qkv["v"]
        if not self.terms:
            return value
        bias = self._bias(grid, value.device)
        return attend([(qkv[a], qkv[b]) for a, b in self.terms], value, bias)

    def _bias(self, grid: Grid, device: torch.device) -> Tensor | None:
        """What is added to every similarity, ``(1+N, 1+N)``."""
        return None


@dataclass(frozen=True)
class LastBlocks(LastBlock):
    """The same attention in several last blocks beside the ordinary stream, their outputs summed.

    SegEarth-OV-2's rule. Each block's input is that of the ordinary model.
    """

    last: Annotated[int, Within(1, 64)] = 1
    """How many blocks."""

    def check(self, trunk: Trunk, backbone: Backbone | None) -> None:
        """Refuse a model with fewer blocks.

        Raises
        ------
        OptionError
            That says so.
        """
        if self.last > len(trunk.blocks):
            raise OptionError(
                f"the attention is asked for in the last {self.last} blocks, and the model has "
                f"{len(trunk.blocks)}; give fewer"
            )

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Ordinary blocks, and the modified ones among them."""
        if self.last == 1:
            return super().run(trunk, x, context)
        first = len(trunk.blocks) - self.last
        total: Tensor | None = None
        for number, block in enumerate(trunk.blocks):
            if number < first:
                x = trunk.ordinary(block, x)
                continue
            if number == len(trunk.blocks) - 1:
                qkv = trunk.heads(block, block.ln_1(x), self.needed)
                after = x
            else:
                after, qkv = trunk.watched(block, x)
            out = self.finished(trunk, x, self._attend(qkv, context.grid), block)
            total, x = out if total is None else total + out, after
        assert total is not None
        return total, context.grid


@dataclass(frozen=True)
class Vanilla(LastBlocks):
    """CLIP's own attention."""

    terms = (_QK,)


@dataclass(frozen=True)
class MaskClip(LastBlocks):
    """Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022."""


@dataclass(frozen=True)
class Sclip(LastBlocks):
    """Wang et al., "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference", 2024."""

    terms = (_QQ, _KK)


@dataclass(frozen=True)
class ClearClip(LastBlocks):
    """Lan et al., "ClearCLIP: Decomposing CLIP Representations for Dense Inference", ECCV 2024."""

    terms = (_QQ,)


@dataclass(frozen=True)
class SegEarth(LastBlocks):
    """Li et al., "SegEarth-OV: Towards Training-Free Open-Vocabulary Segmentation", CVPR 2025."""

    terms = (_QQ, _KK, _VV)


@dataclass(frozen=True)
class ClipTrase(LastBlocks):
    """Shao et al., "Explore the Potential of CLIP for Training-Free Open Vocabulary Semantic
    Segmentation", ECCV 2024: its attention.

    Its second half, votes in clusters of patches, has no place here: clusters of one window have
    no counterpart in the next.
    """

    residual: bool = True
    ffn: bool = True

    terms = (_QQ, _KK, _VV)


@dataclass(frozen=True)
class Naclip(LastBlocks):
    """Hajimiri et al., "Pay Attention to Your Neighbours", WACV 2025."""

    std: Patches = 5.0
    """Width of the Gaussian over patch distance, in patches."""

    terms = (_KK,)

    def _bias(self, grid: Grid, device: torch.device) -> Tensor | None:
        return gaussian_bias(grid, self.std, device)


@functools.lru_cache(maxsize=1)
def gaussian_bias(grid: tuple[int, int], std: float, device: torch.device) -> Tensor:
    """NACLIP's neighbourhood term ``(1+N, 1+N)``: ``exp(-d² / 2 std²)`` between patches.

    ``d`` is the distance in patches; the CLS row and column are 0.
    """
    height, width = grid
    rows = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
    cols = torch.arange(width, device=device, dtype=torch.float32).repeat(height)
    squared = (rows[:, None] - rows) ** 2 + (cols[:, None] - cols) ** 2
    return F.pad(torch.exp(-squared / (2 * std**2)), (1, 0, 1, 0))
