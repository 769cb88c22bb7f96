"""GEM: a self-self stream beside the last blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.methods import Within
from geoseg.model.attention.trunk import Block, Context, Grid, Trunk, row_softmax

if TYPE_CHECKING:
    from geoseg.model.backbone import Backbone


@dataclass(frozen=True)
class Gem:
    """GEM's parallel stream over the last ``depth - 1`` blocks.

    Bousselham et al., "Grounding Everything: Emerging Localization Properties in Vision-Language
    Transformers", CVPR 2024.
    """

    depth: Annotated[int, Within(2, 65)] = 7
    """In models of fewer blocks the default is all of them."""
    residual: bool = False
    """Add up the blocks' outputs instead of taking the last one."""

    antialias_positions: ClassVar[bool] = True

    def check(self, trunk: Trunk, backbone: Backbone | None) -> None:
        """Refuse a model with fewer blocks.

        Raises
        ------
        OptionError
            That says so.
        """
        most = len(trunk.blocks) + 1
        if self.depth > max(most, Gem.depth):
            raise OptionError(
                f"gem's depth is {self.depth}, and the model has {most - 1} blocks; give {most} or "
                "less"
            )

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Return the GEM stream."""
        blocks = trunk.blocks
        first = max(len(blocks) - (self.depth - 1), 0)
        for block in blocks[:first]:
            x = trunk.ordinary(block, x)
        stream = x
        for i, block in enumerate(blocks[first:], start=first + 1):
            out = self._ensemble(trunk, block, block.ln_1(x))
            stream = stream + out if self.residual else out
            if i < len(blocks):
                x = trunk.ordinary(block, x)
        return stream, context.grid

    @staticmethod
    def _ensemble(trunk: Trunk, block: Block, y: Tensor) -> Tensor:
        qkv = trunk.heads(block, y)
        value = qkv["v"]
        norms = y.float().norm(dim=-1).mean(-1)
        temperature = (norms * value.shape[-1] ** -0.5)[:, None, None, None]
        total = torch.zeros_like(value)
        for name in "vkq":
            unit = F.normalize(qkv[name], dim=-1)
            unit = F.normalize(row_softmax(unit, unit, temperature) @ unit, dim=-1)
            total = total + row_softmax(unit, unit, temperature) @ value
        return trunk.project(block, total / 3)
