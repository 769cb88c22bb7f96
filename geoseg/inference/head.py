"""From a window's features and the queries to the logits of its pixels: no pixels of a file here.

Everything is in pixels-first order, ``(..., Q)`` last, because the products over queries and the
softmax run along that axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from geoseg.inference.cosines import as_grid, upsampled_cosines
from geoseg.inference.steps import WindowStep
from geoseg.model.upsampling.base import FeatureUpsampler, Upsampler
from geoseg.model.upsampling.resize import resize_matrix
from geoseg.model.vision import DenseFeatures
from geoseg.runtime.matmul import full_width


@dataclass(frozen=True, eq=False)
class Head:
    """Cosines of upsampled features with the queries, and the window steps after them."""

    text: Tensor
    """``(Q, D)`` unit vectors of the queries."""
    upsampler: Upsampler | None
    """None resizes logits bilinearly."""
    steps: tuple[WindowStep, ...] = ()
    """In the order in which they are taken."""
    exact: bool = True
    """Whether learned upsamplers normalise exactly; see `geoseg.inference.cosines`."""

    @property
    def min_grid(self) -> int:
        """Fewest patches that a window needs on each side."""
        return 1 if self.upsampler is None else self.upsampler.min_grid

    @full_width()
    def __call__(self, features: DenseFeatures, guidance: Tensor) -> Tensor:
        """Logits ``(B, H, W, Q)`` float32, before scale and softmax.

        Parameters
        ----------
        features
            Tokens of the windows.
        guidance
            ``(B, 3, H, W)`` normalised windows, the ones that were encoded.
        """
        logits = self._cosines(features, guidance)
        if self.steps:
            cls = F.normalize(features.cls, dim=-1) @ self.text.T
            for step in self.steps:
                logits = step(logits, cls, features, guidance)
        return logits

    def _cosines(self, features: DenseFeatures, guidance: Tensor) -> Tensor:
        upsampler, grid = self.upsampler, features.grid
        if features.scores is not None:
            return self._enlarged(features.scores, grid, guidance)
        if isinstance(upsampler, FeatureUpsampler):
            operator = upsampler.operator(guidance, grid)
            return upsampled_cosines(features, self.text, upsampler, operator, exact=self.exact)
        cosines = F.normalize(features.patches, dim=-1) @ self.text.T
        return self._enlarged(cosines, grid, guidance)

    def _enlarged(self, tokens: Tensor, grid: tuple[int, int], guidance: Tensor) -> Tensor:
        """Values ``(B, N, Q)`` of patches on pixels."""
        if self.upsampler is None:
            return _bilinear(tokens, grid, (guidance.shape[2], guidance.shape[3]))
        return self.upsampler.operator(guidance, grid)(as_grid(tokens, grid))


def _bilinear(tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Resize ``(B, N, C)`` to pixels ``(B, H, W, C)``, half-pixel centres.

    As two matrix products, columns first: several times as fast as ``interpolate``, and what comes
    out is in the order wanted.
    """
    batch, _, channels = tokens.shape
    down, across = (
        resize_matrix(n, m, "linear", tokens.device) for n, m in zip(grid, size, strict=True)
    )
    wide = across @ tokens.view(batch, *grid, channels)
    return (down @ wide.view(batch, grid[0], -1)).view(batch, *size, channels)
