"""ProxyCLIP: CLIP's values, gathered by how alike another model finds the patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.methods import Factor, Within
from geoseg.model.attention.trunk import Context, Grid, Trunk


@dataclass(frozen=True)
class Proxy:
    """Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation",
    ECCV 2024.

    Cosines of the backbone's patches, less ``beta`` times their mean over the window, weigh the
    last block's values where they are above 0; a patch always sees itself. Tokens lie on the
    backbone's grid. There is no CLS token of the result, and so no CLS bias.
    """

    backbone: str = "vit_base_patch8_224.dino"
    """timm's name of a vision transformer: DINO, DINOv2, DINOv3 and others."""
    beta: Annotated[float, Within(0, 100)] = 1.2
    """Factor on the mean cosine that is taken away."""
    gamma: Factor = 3.0
    """Factor on what is left, before the softmax."""

    antialias_positions: ClassVar[bool] = False
    has_cls: ClassVar[bool] = False
    on_its_grid: ClassVar[bool] = True

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Ordinary blocks, then the last one's values on the backbone's grid."""
        assert context.backbone is not None
        for block in trunk.blocks[:-1]:
            x = trunk.ordinary(block, x)
        seen, _, grid = context.backbone.tokens(context.images)
        last = trunk.blocks[-1]
        value = resized(trunk.heads(last, last.ln_1(x[:, 1:]), "v")["v"], context.grid, grid)
        out = torch.empty_like(value)
        for item, each in enumerate(F.normalize(seen.float(), dim=-1)):
            torch.matmul(self._weights(each).to(value.dtype), value[item], out=out[item])
        return F.pad(trunk.project(last, out), (0, 0, 1, 0)), grid

    def _weights(self, unit: Tensor) -> Tensor:
        """Row softmax ``(N, N)`` of one window's unit features ``(N, D)``."""
        alike = unit @ unit.T
        scores = self.gamma * (alike - self.beta * alike.mean())
        itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        return scores.masked_fill_((scores < 0) & ~itself, -torch.inf).softmax(-1)


def resized(per_head: Tensor, grid: Grid, size: Grid) -> Tensor:
    """Values ``(B, heads, N, d)`` of patches, bilinear on another grid, half-pixel centres."""
    if grid == size:
        return per_head.contiguous()
    batch, heads, _, width = per_head.shape
    planes = per_head.transpose(2, 3).reshape(batch, heads * width, *grid)
    wide = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return wide.view(batch, heads, width, -1).transpose(2, 3).contiguous()
