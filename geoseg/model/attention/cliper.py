"""CLIPer: all earlier blocks' attention gathers every block's tokens, and each is classified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.methods import Factor, Share
from geoseg.model.attention.middle import ReadsEarlier
from geoseg.model.attention.trunk import Context, Grid, Trunk, Words


@dataclass(frozen=True)
class Cliper(ReadsEarlier):
    """Sun et al., "CLIPer: Hierarchically Improving Spatial Representation of CLIP", 2024.

    Its first part, without the diffusion model. The scores of patches are probabilities, the mean
    over blocks plus those of the last block spread by its attention: 0 to about 2, without CLS
    bias. The mean of all classes' words is a further word that takes what is like all of them. A
    window at a time; the original adds half of what one pass over the whole image gives.
    """

    scale: Factor = 100.0
    """Factor on cosines before their softmax over the words."""
    cut: Share = 0.1
    """Last-block probabilities below this share of a word's largest in the window become 0."""

    antialias_positions: ClassVar[bool] = False
    has_cls: ClassVar[bool] = False
    bilinear_positions: ClassVar[bool] = True

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Tokens of the last block alone, gathered by the earlier blocks' attention."""
        found = [tokens[-1] for tokens, _ in self._walk(trunk, x, every=False)]
        return torch.cat(found), context.grid

    def score(
        self, trunk: Trunk, x: Tensor, context: Context, words: Words
    ) -> tuple[Tensor, Grid, Tensor]:
        """Tokens of the last block, and what all blocks say of the patches."""
        rejected = F.normalize(words.vectors[words.shown].mean(0, keepdim=True), dim=-1)
        text = torch.cat([words.vectors, rejected])
        found, scores = [], []
        for tokens, spread in self._walk(trunk, x, every=True):
            unit = F.normalize(trunk.embed(tokens)[:, :, 1:], dim=-1)
            said = (self.scale * (unit @ text.T)).softmax(-1)[..., :-1]
            last = said[-1]
            last[last < self.cut * last.amax(1, keepdim=True)] = 0  # in the mean too
            found.append(tokens[-1])
            scores.append(spread.mT @ last + said.mean(0))
        return torch.cat(found), context.grid, torch.cat(scores)

    def _walk(self, trunk: Trunk, x: Tensor, *, every: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """All blocks, and then of some windows at a time what `_gathered` makes of them."""
        inputs, maps = [], _zero_maps(trunk, x)
        for block in trunk.blocks[:-1]:
            if every:
                inputs.append(block.ln_1(x))
            x, weights = trunk.mapped(block, x)
            maps += weights
        inputs.append(x)
        step = _WINDOWS_AT_A_TIME[x.device.type]
        for first in range(0, len(x), step):
            some = slice(first, first + step)
            yield self._gathered(trunk, torch.stack([each[some] for each in inputs]), maps[some])

    @staticmethod
    def _gathered(trunk: Trunk, inputs: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``(L, B, 1+N, Dv)`` of the last blocks' inputs through the last one, gathered.

        With them the mean over heads of what the last were gathered with, patches only
        ``(B, N, N)``.
        """
        last, rounds, count = trunk.blocks[-1], len(trunk.blocks), len(inputs)
        # One product for all blocks.
        values = trunk.heads(last, last.ln_1(inputs.flatten(0, 1)), "v")["v"]
        values = torch.unflatten(values, 0, (count, -1))
        gathered, tokens = torch.empty_like(values), maps.shape[-1]
        columns = maps.sum(-2, keepdim=True)
        for number in range(rounds):
            maps /= columns
            maps /= maps.sum(-1, keepdim=True)  # again for every block, as released
            columns = maps.sum(-2, keepdim=True)
            place = number - rounds + count
            if place >= 0:
                # Rows sum to one, so that columns of the symmetric map sum to that and theirs.
                weights = torch.add(maps, maps.mT)
                weights.sub_((columns + 1) / tokens).clamp_min_(0)
                weights /= weights.sum(-1, keepdim=True)
                gathered[place] = weights.to(values.dtype) @ values[place]
        projected = torch.unflatten(trunk.project(last, gathered.flatten(0, 1)), 0, (count, -1))
        return projected, weights[:, :, 1:, 1:].mean(1)


def _zero_maps(trunk: Trunk, x: Tensor) -> Tensor:
    """``(B, heads, T, T)`` float32."""
    heads = trunk.blocks[-1].attn.num_heads
    return x.new_zeros(len(x), heads, x.shape[1], x.shape[1], dtype=torch.float32)


_WINDOWS_AT_A_TIME = {"cpu": 1, "cuda": 4}
"""Whose maps are worked on at once: they are several times the size of all else."""
