"""CLIPer: all earlier blocks' attention gathers every block's tokens, and each is classified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.model.attention.middle import check_weight, scaled_blocks
from geoseg.model.attention.trunk import Context, Grid, Trunk, Words, row_softmax


@dataclass(frozen=True)
class Cliper:
    """Sun et al., "CLIPer: Hierarchically Improving Spatial Representation of CLIP", 2024.

    Its first part, without the diffusion model. The scores of patches are probabilities, the mean
    over blocks plus those of the last block spread by its attention: 0 to about 2, without CLS
    bias. The mean of all classes' words is a further word that takes what is like all of them. A
    window at a time; the original adds half of what one pass over the whole image gives.

    Raises
    ------
    OptionError
        If the scale or the share cannot be.
    """

    scale: float = 100.0
    """Factor on cosines before their softmax over the words."""
    cut: float = 0.1
    """Last-block probabilities below this share of a word's largest in the window become 0."""

    antialias_positions: ClassVar[bool] = False
    has_cls: ClassVar[bool] = False
    bilinear_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight("cliper", "cut", self.cut)
        if not 0 < self.scale < float("inf"):
            raise OptionError(f"cliper: scale is {self.scale:g}; give a number above 0")

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Tokens of the last block alone, gathered by the earlier blocks' attention."""
        found = []
        for layers in self._walk(trunk, x):
            *_, (tokens, _) = layers
            found.append(tokens)
        return torch.cat(found), context.grid

    def score(
        self, trunk: Trunk, x: Tensor, context: Context, words: Words
    ) -> tuple[Tensor, Grid, Tensor]:
        """Tokens of the last block, and what all blocks say of the patches."""
        rejected = F.normalize(words.vectors[words.shown].mean(0, keepdim=True), dim=-1)
        text = torch.cat([words.vectors, rejected])
        found, scores = [], []
        for layers in self._walk(trunk, x):
            said = []
            for tokens, spread in layers:  # noqa: B007 - the last one is used below
                unit = F.normalize(trunk.embed(tokens)[:, 1:], dim=-1)
                said.append((self.scale * (unit @ text.T)).softmax(-1)[..., :-1])
            last = said[-1]
            last[last < self.cut * last.amax(1, keepdim=True)] = 0  # in the mean too
            found.append(tokens)
            scores.append(spread.mT @ last + sum(said) / len(said))
        return torch.cat(found), context.grid, torch.cat(scores)

    def _walk(self, trunk: Trunk, x: Tensor) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """All blocks, and then of some windows at a time what `_layers` makes of them."""
        scaled_blocks((1,), len(trunk.blocks))  # there must be earlier blocks
        inputs, maps = [], _zero_maps(trunk, x)
        for block in trunk.blocks[:-1]:
            inputs.append(block.ln_1(x))
            x, seen = trunk.watched(block, x)
            for total, q, k in zip(maps, seen["q"], seen["k"], strict=True):
                total += row_softmax(q, k, q.shape[-1] ** -0.5)
        inputs.append(x)
        for first in range(0, len(x), _WINDOWS_AT_A_TIME):
            some = slice(first, first + _WINDOWS_AT_A_TIME)
            yield self._layers(trunk, [each[some] for each in inputs], maps[some])

    @staticmethod
    def _layers(
        trunk: Trunk, inputs: Sequence[Tensor], maps: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens ``(B, 1+N, Dv)`` of each block through the last one, gathered.

        With them the mean over heads of what they were gathered with, patches only ``(B, N, N)``.
        """
        last = trunk.blocks[-1]
        for each in inputs:
            maps /= maps.sum(-2, keepdim=True)
            maps /= maps.sum(-1, keepdim=True)  # again for every block, as released
            weights = (maps + maps.mT).mul_(0.5)
            weights.sub_(weights.mean(-2, keepdim=True)).clamp_min_(0)
            weights /= weights.sum(-1, keepdim=True)
            value = trunk.heads(last, last.ln_1(each), "v")["v"]
            tokens = trunk.project(last, weights.to(value.dtype) @ value)
            yield tokens, weights[:, :, 1:, 1:].mean(1)


def _zero_maps(trunk: Trunk, x: Tensor) -> Tensor:
    """``(B, heads, T, T)`` float32."""
    heads = trunk.blocks[-1].attn.num_heads
    return x.new_zeros(len(x), heads, x.shape[1], x.shape[1], dtype=torch.float32)


_WINDOWS_AT_A_TIME = 4
"""Whose maps are worked on at once: they are several times the size of all else."""
