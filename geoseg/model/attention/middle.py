"""Attentions that mix the maps of middle blocks into the last one's.

Middle blocks attend more locally than the last one. With base ``B``, the last block's own sum of
softmaxes, and ``A_l``, those of middle blocks, values are gathered with

    A = factor [ (1 - weight) B + weight · share · Σ_l A_l ]

per head. Attention is linear in its weights, so the middle blocks' queries and keys are kept, not
their maps: all softmaxes of one window are summed in place, some rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.methods import Share, Within
from geoseg.model.attention.last_block import LastBlock
from geoseg.model.attention.trunk import Context, Grid, Trunk, attend

if TYPE_CHECKING:
    from geoseg.model.backbone import Backbone

_QQ, _KK, _VV, _QK = ("q", "q"), ("k", "k"), ("v", "v"), ("q", "k")
_DEPTH = 12
"""Blocks of the model in whose numbers blocks are named."""

Pairs = list[tuple[Tensor, Tensor]]
_Earlier = Within(1, _DEPTH - 1)
OneBlock = Annotated[int, _Earlier]
"""Number of a block before the last, from 1, as of a model of 12."""
Blocks = Annotated[tuple[int, ...], _Earlier]


def scaled_blocks(blocks: Sequence[int], depth: int) -> list[int]:
    """Numbers of blocks, from 1, that lie where those of a model of 12 do; never the last one.

    Raises
    ------
    OptionError
        If there is only the last one.
    """
    if depth < 2:
        raise OptionError(
            "the model has one block, and this attention reads those before the last; take another"
        )
    return [min(max(round(n * depth / _DEPTH), 1), depth - 1) for n in blocks]


class ReadsEarlier:
    """What attentions of blocks before the last have in common: there must be one."""

    def check(self, trunk: Trunk, backbone: Backbone | None) -> None:
        """Refuse a model of one block.

        Raises
        ------
        OptionError
            That says so.
        """
        scaled_blocks((1,), len(trunk.blocks))


@dataclass(frozen=True)
class MiddleBlocks(ReadsEarlier, LastBlock):
    """A base attention and the maps of middle blocks."""

    weight: Share = 0.6
    """Share of the middle blocks; 0 leaves the base attention as it is, factor and all."""
    blocks: Blocks = (2, 5, 8, 11)
    """Which, from 1, as of a model of 12 blocks; others take those at the same share of depth."""

    middle: ClassVar[tuple[tuple[str, str], ...]] = (_QK,)
    """Similarities whose softmaxes are a middle block's map."""
    factor: ClassVar[float] = 3.0
    mean: ClassVar[bool] = False
    """Take the mean of the middle maps, not their sum."""

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Ordinary blocks, whose queries and keys are kept where wanted, then the last one."""
        if self.weight == 0:
            return super().run(trunk, x, context)
        x, pairs = self.walk(trunk, x)
        last = trunk.blocks[-1]
        qkv = trunk.heads(last, last.ln_1(x), self.needed)
        mixed = self.mixed(self._attend(qkv, context.grid), attend(pairs, qkv["v"]))
        return self.finished(trunk, x, mixed), context.grid

    def walk(self, trunk: Trunk, x: Tensor) -> tuple[Tensor, Pairs]:
        """Tokens before the last block, and what the middle blocks compare."""
        wanted, pairs = scaled_blocks(self.blocks, len(trunk.blocks)), []
        for number, block in enumerate(trunk.blocks[:-1], 1):
            x, seen = trunk.watched(block, x)
            # In a shallow model two of them may be the same block, which then counts twice.
            pairs += wanted.count(number) * [(seen[a], seen[b]) for a, b in self.middle]
        return x, pairs

    def mixed(self, base: Tensor, middle: Tensor) -> Tensor:
        """Values gathered by the base and by the sum of the middle maps, together."""
        share = self.weight / len(self.blocks) if self.mean else self.weight
        return base.mul(self.factor * (1 - self.weight)).add_(middle, alpha=self.factor * share)


@dataclass(frozen=True)
class SegEarthRcs(MiddleBlocks):
    """SegEarth-OV's attention with the maps of middle blocks, as ConInfer bases on it.

    "ConInfer", CVPR 2026 Findings. Its rows sum to ``3 [3 (1 - weight) + 4 weight]``.
    """

    terms = (_QQ, _KK, _VV)


@dataclass(frozen=True)
class SclipRcs(MiddleBlocks):
    """SCLIP's attention, without residual, with the maps of middle blocks, as ConInfer's."""

    terms = (_QQ, _KK)


@dataclass(frozen=True)
class ClearClipRcs(MiddleBlocks):
    """ClearCLIP's attention with the maps of middle blocks, as ConInfer's."""

    terms = (_QQ,)


@dataclass(frozen=True)
class ItaClip(MiddleBlocks):
    """Aydın et al., "ITACLIP: Boosting Training-Free Semantic Segmentation", CVPRW 2025.

    Half the last block's q·q and k·k, half their mean over middle blocks; the residual is kept.
    """

    residual: bool = True
    weight: Share = 0.5
    blocks: Blocks = (7, 8, 10)

    terms = middle = (_QQ, _KK)
    factor = 1.0
    mean = True


@dataclass(frozen=True)
class ReAttn(MiddleBlocks):
    """Experimental: what is known of ReAttnCLIP, CVPR 2026, with what is not chosen by us.

    Patches gather values by middle blocks' maps and by how alike the tokens of late blocks are;
    nothing reaches a patch from the CLS token, and the CLS token gathers by the middle maps alone.
    Ours: middle blocks weigh the same; likeness is the row softmax of ``X Xᵀ / √width``, averaged
    over the late blocks; a patch's row is without the CLS token before its softmax; windows are not
    turned (``--views d4`` averages logits over turns instead).
    """

    weight: Share = 0.8
    """Share of the middle blocks among patches; the rest is likeness of tokens."""
    blocks: Blocks = (6, 7, 8, 9)
    late: Blocks = (9, 10, 11)
    """Blocks whose tokens are compared, numbered as ``blocks``."""

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Ordinary blocks, then values gathered by what they have seen."""
        depth = len(trunk.blocks)
        wanted, late = scaled_blocks(self.blocks, depth), scaled_blocks(self.late, depth)
        pairs: Pairs = []
        tokens: list[Tensor] = []
        for number, block in enumerate(trunk.blocks[:-1], 1):
            x, seen = trunk.watched(block, x)
            pairs += wanted.count(number) * [(seen["q"], seen["k"])]
            tokens += late.count(number) * [x[:, 1:]]
        last = trunk.blocks[-1]
        value = trunk.heads(last, last.ln_1(x), "v")["v"]
        unseen = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float32)
        unseen[1:, 0] = -torch.inf
        middle = attend(pairs, value, unseen) / len(pairs)
        patches = value[:, :, 1:]
        alike = sum(_gathered(each, patches) for each in tokens) / len(tokens)
        both = self.weight * middle[:, :, 1:] + (1 - self.weight) * alike
        mixed = torch.cat([middle[:, :, :1], both], dim=2)
        return self.finished(trunk, x, mixed), context.grid


def _gathered(tokens: Tensor, value: Tensor) -> Tensor:
    """Values ``(B, heads, N, d)`` by the likeness of tokens ``(B, N, Dv)``, one map a window."""
    scale = tokens.shape[-1] ** -0.5
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    for item, each in enumerate(tokens):
        alike = ((each @ each.T).float() * scale).softmax(-1).to(value.dtype)
        torch.matmul(alike, value[item], out=out[item])
    return out
