"""PAMR: neighbours of a like colour share their logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from geoseg.methods import Within
from geoseg.model.pamr import averaged, weights_of_neighbours


@dataclass(frozen=True)
class Pamr:
    """Pixel-adaptive mask refinement.

    A pixel's logits become the mean of its neighbours', weighted by how near their colours are
    in units of the spread around it, again and again. Neighbours lie in rings of eight, at
    several distances. Beyond the edge of the scene the edge is repeated; nodata takes no part.

    Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020.
    """

    iterations: Annotated[int, Within(1, 100)] = 10
    dilations: Annotated[tuple[int, ...], Within(1, 64)] = (1, 2, 4)
    """Distances of the rings in pixels; papers take 8 and 16 for photographs."""

    any_pixels: ClassVar[bool] = True
    """Whether it looks at any number of bands, of any values."""

    @property
    def reach(self) -> int:
        """Every iteration sees as far as the widest ring."""
        return self.iterations * max(self.dilations)

    def __call__(self, logits: Tensor, rgb: Tensor, valid: Tensor) -> Tensor:
        """Refine ``(H, W, C)`` logits under ``(3, H, W)`` pixels."""
        planes = logits.permute(2, 0, 1)
        found = averaged(planes, self.weights(rgb, valid), self.dilations, self.iterations)
        return found.permute(1, 2, 0)

    def weights(self, rgb: Tensor, valid: Tensor) -> Tensor:
        """Weights of all neighbours, ``(8 D, H, W)``; they sum to one, or are zero."""
        return weights_of_neighbours(rgb, valid, self.dilations)
