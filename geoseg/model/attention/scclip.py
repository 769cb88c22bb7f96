"""SC-CLIP: outliers repaired, tokens gathered by likeness, several blocks fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.methods import Within
from geoseg.model.attention.middle import Blocks, OneBlock, ReadsEarlier, scaled_blocks
from geoseg.model.attention.trunk import Block, Context, Grid, Trunk

_EPS = 1e-6
_TINY = 1e-12
_SHARPNESS = 3.0
"""Factor on the middle block's similarities before their softmax."""


@dataclass(frozen=True)
class ScClip(ReadsEarlier):
    """Bai et al., "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation", 2024.

    Patches that stick out of their neighbours in the space of tokens (local outlier factor) are
    replaced by the mean of those around; tokens are gathered by the similarity of a middle block's
    tokens, before and after the last block; and the sum of several blocks' tokens takes the same
    way. There is no CLS token of the result, and so no CLS bias. The outlier factor is the released
    program's, whose reachability is a token's own distance.
    """

    neighbours: Annotated[int, Within(1, 1000)] = 30
    """Of the outlier factor; fewer where a window has fewer patches."""
    outliers: Annotated[float, Within(0, 0.5)] = 0.05
    """Share of a window's patches that are taken for outliers."""
    beta: Annotated[float, Within(0, 0.99)] = 0.4
    """Cosines below it count nothing where tokens are gathered."""
    middle: OneBlock = 9
    """Block whose tokens are compared, from 1, as of a model of 12 blocks."""
    post: OneBlock = 4
    """Block whose tokens are compared after the last block."""
    fused: Blocks = (4, 5, 6, 7, 8, 9, 10)
    """Blocks whose tokens are added up."""
    cls_weight: Annotated[float, Within(0, 100)] = 0.3
    """Factor on the CLS token that is added to all patches."""

    antialias_positions: ClassVar[bool] = False
    has_cls: ClassVar[bool] = False

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Ordinary blocks, then the two streams through the last one."""
        depth = len(trunk.blocks)
        middle, post = scaled_blocks((self.middle, self.post), depth)
        fused = scaled_blocks(self.fused, depth)
        total, kept = torch.zeros_like(x, dtype=torch.float32), {}
        for number, block in enumerate(trunk.blocks[:-1], 1):
            x = trunk.ordinary(block, x)
            if number in (middle, post):
                kept[number] = x[:, 1:].float()
            total = total + fused.count(number) * x
        patches = x[:, 1:].float()
        bad = self.outlying(patches)
        repaired, compared = (repair(each, bad, context.grid) for each in (patches, kept[middle]))
        alike, after = similarity(compared), self._gathering(similarity(kept[post]))
        sharp = self._sharpened(alike)
        gathered = self._gathering(alike) @ repaired
        both = torch.zeros_like(gathered)
        for tokens, cls in ((gathered, x[:, :1]), (total[:, 1:], total[:, :1])):
            out = self.through_last(trunk, tokens.to(x.dtype), sharp)
            both += after @ (out.float() + self.cls_weight * cls.float())
        return F.pad(both, (0, 0, 1, 0)).to(x.dtype), context.grid

    def outlying(self, tokens: Tensor) -> Tensor:
        """Which of the tokens ``(B, N, Dv)`` are outliers, ``(B, N)`` bool."""
        factor = self.factor(tokens)
        limit = torch.quantile(factor, 1 - self.outliers, dim=1, keepdim=True)
        return factor > limit

    def factor(self, tokens: Tensor) -> Tensor:
        """Local outlier factor ``(B, N)``."""
        count = min(self.neighbours, tokens.shape[1] - 1)
        if count < 1:
            return torch.zeros(tokens.shape[:2], device=tokens.device)
        centred = tokens - tokens.mean(1, keepdim=True)
        squares = centred.square().sum(-1)
        apart = squares[:, :, None] + squares[:, None, :] - 2 * centred @ centred.mT
        near, order = apart.clamp_min(0).topk(count + 1, dim=-1, largest=False)
        density = 1 / near[:, :, -1].clamp_min(_TINY)
        others = density[:, None, :].expand_as(apart).gather(2, order[:, :, 1:])
        return others.mean(-1) / density

    def _gathering(self, alike: Tensor) -> Tensor:
        """Weights ``(B, N, N)`` from cosines: what is below beta counts nothing."""
        kept = alike.masked_fill(alike < self.beta, 0)
        return kept / (kept.sum(-1, keepdim=True) + _EPS)

    def _sharpened(self, alike: Tensor) -> Tensor:
        """Row softmax of the cosines above their mean; each patch always sees itself."""
        scores = _SHARPNESS * (alike - alike.mean((1, 2), keepdim=True))
        itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
        return scores.masked_fill((scores < 0) & ~itself, -torch.inf).softmax(-1)

    @staticmethod
    def through_last(trunk: Trunk, tokens: Tensor, sharp: Tensor) -> Tensor:
        """Patches ``(B, N, Dv)`` through the last block, half by ``sharp``, half by its k·k."""
        last: Block = trunk.blocks[-1]
        kv = trunk.heads(last, last.ln_1(tokens), "kv")
        k, value = kv["k"], kv["v"]
        out = torch.empty_like(value, memory_format=torch.contiguous_format)
        for item, each in enumerate(sharp):
            own = ((k[item] @ k[item].mT).float() * k.shape[-1] ** -0.5).softmax(-1)
            weights = own.add_(each).mul_(0.5).to(value.dtype)
            torch.matmul(weights, value[item], out=out[item])
        return trunk.project(last, out)


def similarity(tokens: Tensor) -> Tensor:
    """Cosines ``(B, N, N)`` of tokens ``(B, N, Dv)``."""
    unit = F.normalize(tokens, dim=-1)
    return unit @ unit.mT


def repair(tokens: Tensor, bad: Tensor, grid: Grid) -> Tensor:
    """Tokens ``(B, N, Dv)``, the bad ones replaced by the mean of the good among their eight."""
    planes = torch.unflatten(tokens.transpose(1, 2), 2, grid)
    good = torch.unflatten((~bad).to(tokens.dtype), 1, grid)[:, None]
    total, known = (
        9 * F.avg_pool2d(each, 3, stride=1, padding=1) for each in (planes * good, good)
    )
    mean = torch.where(known > 0.5, total / known.clamp_min(1), planes)
    return torch.where(bad[..., None], mean.flatten(2).transpose(1, 2), tokens)
