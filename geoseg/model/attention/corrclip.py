"""CorrCLIP: patches gather values within given regions, by another model's likeness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.methods import Within
from geoseg.model.attention.middle import ReadsEarlier, scaled_blocks
from geoseg.model.attention.proxy import resized
from geoseg.model.attention.trunk import Block, Context, Grid, Trunk

_SPATIAL = (6, 7, 8, 9, 10)
"""Blocks of a model of 12 whose mean output makes the second values."""


@dataclass(frozen=True)
class CorrClip(ReadsEarlier):
    """Zhang et al., "CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary
    Semantic Segmentation", ICCV 2025.

    Regions whose patches the backbone finds alike are one. A patch gathers values of its own
    region alone; where it or the other lies in none, of those that are more alike than the mean.
    To the last block's values come those of the mean of earlier blocks, and a copy of the CLS
    token for every region that has seen nothing else. There is no CLS token of the result, and so
    no CLS bias. The released program takes the smallest number in a window for no region, also
    where every pixel has one; here only 0 is none.
    """

    backbone: str = "vit_base_patch8_224.dino"
    """timm's name of a vision transformer."""
    sharpness: Annotated[float, Within(0, 1000)] = 4.0
    """Factor on the backbone's cosines before the softmax."""
    distance: Annotated[float, Within(0, 2)] = 0.2
    """Regions nearer than this, in cosines of their means, are one."""
    spatial: Annotated[float, Within(0, 100)] = 1.0
    """Share of the earlier blocks' values."""
    semantic: Annotated[float, Within(0, 100)] = 0.5
    """Share of the regions' CLS tokens."""

    antialias_positions: ClassVar[bool] = False
    has_cls: ClassVar[bool] = False
    on_its_grid: ClassVar[bool] = True
    reads_regions: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    """Tokens come out in the joint space."""

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """The three branches, each through the last layer norm and the projection."""
        assert context.backbone is not None
        assert context.regions is not None
        q, k, grid = context.backbone.queries_and_keys(context.images)
        unit = F.normalize(q.float() + k.float(), dim=-1)
        given = nearest(context.regions, grid).flatten(1)
        merged = torch.stack([self.merged(*each) for each in zip(given, unit, strict=True)])
        coarse = nearest(torch.unflatten(merged, 1, grid), context.grid)

        # A token for each region, which attends and is attended by nobody.
        count = int(merged.max()) + 1
        numbers = torch.arange(count, device=x.device).view(1, -1, 1)
        seen = F.pad(coarse.flatten(1)[:, None] == numbers, (1, 0), value=True)
        tokens, spatial = x[:, :1].expand(-1, count, -1), torch.zeros_like(x)
        blocks, last = trunk.blocks, trunk.blocks[-1]
        wanted = scaled_blocks(_SPATIAL, len(blocks))
        for number, block in enumerate(blocks[:-1], 1):
            after, kv = trunk.watched(block, x)
            tokens = _regional(trunk, block, tokens, kv, seen)
            x = after
            spatial = spatial + wanted.count(number) / len(wanted) * x
        main = trunk.heads(last, last.ln_1(x), "kv")
        tokens = _regional(trunk, last, tokens, main, seen)

        others = trunk.heads(last, last.ln_1(spatial), "v")["v"][:, :, 1:]
        values = [resized(v, context.grid, grid) for v in (main["v"][:, :, 1:], others)]
        mixed = [torch.empty_like(v) for v in values]
        for item, (each, region) in enumerate(zip(unit, merged, strict=True)):
            weights = self.weights(each, region)
            for value, out in zip(values, mixed, strict=True):
                torch.matmul(weights.to(value.dtype), value[item], out=out[item])
        found, more = (trunk.embed(trunk.project(last, out)) for out in mixed)
        place = nearest(coarse, grid).flatten(1)[..., None].expand(-1, -1, found.shape[-1])
        regional = trunk.embed(tokens).gather(1, place)
        found = found + self.spatial * more + self.semantic * regional
        return F.pad(found, (0, 0, 1, 0)), grid

    def merged(self, regions: Tensor, unit: Tensor) -> Tensor:
        """Regions ``(N,)`` of a window, like ones joined, counted from 0, which is none."""
        from scipy.sparse.csgraph import connected_components

        numbers = torch.cat([regions.new_zeros(1), regions])
        known, found = torch.unique(numbers, return_inverse=True)
        index: Tensor = found[1:]
        if len(known) < 3:
            return index
        members = F.one_hot(index, len(known)).to(unit.dtype)[:, 1:]
        means = F.normalize(members.T @ unit / members.sum(0)[:, None], dim=-1)
        alike = means @ means.T
        near = (alike.max() - alike <= self.distance).cpu().numpy()
        labels = torch.from_numpy(connected_components(near, directed=False)[1]).to(index)
        joined: Tensor = F.pad(labels + 1, (1, 0))[index]
        return joined

    def weights(self, unit: Tensor, regions: Tensor) -> Tensor:
        """Row softmax ``(N, N)`` of one window's cosines, where a patch may look."""
        alike = unit @ unit.T
        none = regions == 0
        same = regions[:, None] == regions
        free = (none[:, None] | none) & (alike > alike.mean())
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        allowed = (same & ~none) | free | itself
        scores = (self.sharpness * alike).masked_fill_(~allowed, -torch.inf)
        found: Tensor = scores.softmax(-1)
        return found


def nearest(regions: Tensor, grid: Grid) -> Tensor:
    """Numbers ``(B, H, W)`` at the places of a grid."""
    rows, cols = (
        torch.arange(size, device=regions.device) * side // size
        for size, side in zip(grid, regions.shape[1:], strict=True)
    )
    return regions[:, rows][:, :, cols]


def _regional(
    trunk: Trunk, block: Block, tokens: Tensor, kv: dict[str, Tensor], seen: Tensor
) -> Tensor:
    """Tokens of regions through a block; they see what ``seen`` ``(B, regions, 1 + N)`` says."""
    query = trunk.heads(block, block.ln_1(tokens), "q")["q"]
    out = F.scaled_dot_product_attention(query, kv["k"], kv["v"], attn_mask=seen[:, None])
    return trunk.ffn(block, tokens + block.ls_1(trunk.project(block, out)))
