"""Dense encoding: one visual forward of ours over a classic open_clip vision transformer.

open_clip's own forward neither resizes position embeddings nor exposes the last block, so geoseg
walks the same weights itself: stem, blocks, a modified last block, ``ln_post``, projection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.model.attention.trunk import Attention, Checking, Context, Scoring, Trunk, Words
from geoseg.options.segmentation import ClsSource
from geoseg.runtime.matmul import full_width

if TYPE_CHECKING:
    from geoseg.model.backbone import Backbone


@dataclass(frozen=True)
class DenseFeatures:
    """Projected tokens of a batch of windows; nothing is normalised."""

    cls: Tensor
    """``(B, D)`` float32, row 0 of the modified last block, or the usual image embedding."""
    patches: Tensor
    """``(B, N, D)`` float32 patch tokens, row-major over the grid."""
    grid: tuple[int, int]
    """Patch rows and columns, ``N = rows * cols``."""
    scores: Tensor | None = None
    """``(B, N, Q)`` float32 in place of cosines with the words, of attentions that make them."""


def resample_positions(
    embedding: Tensor,
    grid: tuple[int, int],
    native: tuple[int, int],
    *,
    antialias: bool = False,
    bilinear: bool = False,
) -> Tensor:
    """Position embeddings for a patch grid other than the trained one.

    Parameters
    ----------
    embedding
        ``(1 + N0, Dv)``, the CLS position first.
    grid, native
        Wanted and trained ``(rows, cols)``. Grids are compared, not token counts: 7 x 28 tokens
        are resampled from 14 x 14 although both are 196.
    antialias
        False samples as the DINO-derived forks do: bicubic with the scale factors
        ``(rows + 0.1) / rows0``, where the 0.1 shifts the sampling grid slightly and is part of
        the method. True resamples to the exact size with antialiasing (GEM).
    bilinear
        To the exact size, bilinearly (CLIPer).

    Returns
    -------
    torch.Tensor
        ``(1 + N, Dv)``; the CLS position untouched.
    """
    if grid == native:
        return embedding
    patch = embedding[1:].reshape(1, *native, -1).permute(0, 3, 1, 2).float()
    if bilinear:
        patch = F.interpolate(patch, size=grid, mode="bilinear")
    elif antialias:
        patch = F.interpolate(patch, size=grid, mode="bicubic", antialias=True)
    else:
        factors = ((grid[0] + 0.1) / native[0], (grid[1] + 0.1) / native[1])
        patch = F.interpolate(
            patch, scale_factor=factors, mode="bicubic", recompute_scale_factor=False
        )
    flat = patch.flatten(2).squeeze(0).transpose(0, 1).to(embedding.dtype)
    return torch.cat([embedding[:1], flat])


class DenseEncoder:
    """Windows in, projected patch tokens out.

    Parameters
    ----------
    visual
        An open_clip ``VisionTransformer`` with CLS pooling (see `geoseg.model.loading`).
    attention
        How tokens attend to each other, see `geoseg.methods.ATTENTIONS`.
    cls_source
        Whether the CLS token is that of the ``modified`` attention, where it has one, or of the
        ``vanilla`` model: the usual image embedding.
    backbone
        The model that the attention names, if it names one.

    Raises
    ------
    OptionError
        If the attention wants more blocks than there are, or another backbone.
    """

    def __init__(
        self,
        visual: Any,
        attention: Attention,
        cls_source: ClsSource = "modified",
        backbone: Backbone | None = None,
    ) -> None:
        self.visual = visual
        self.backbone = backbone
        self.attention = attention
        self.cls_source = cls_source
        if isinstance(attention, Checking):
            attention.check(Trunk(visual), backbone)
        self.native_grid: tuple[int, int] = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self._known_positions: dict[tuple[int, int], Tensor] = {}

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embedding added for this grid, ``(1 + N, Dv)``.

        Without gradients weights are taken as frozen, and those of the last grid are kept.
        """
        known = None if torch.is_grad_enabled() else self._known_positions.get(grid)
        if known is not None:
            return known
        positions = resample_positions(
            self.visual.positional_embedding,
            grid,
            self.native_grid,
            antialias=self.attention.antialias_positions,
            bilinear=getattr(self.attention, "bilinear_positions", False),
        )
        if not torch.is_grad_enabled():
            # Windows have one size; images in one pass may have many, and are not kept.
            self._known_positions = {grid: positions}
        return positions

    def stem(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens entering the first block, ``(B, 1 + N, Dv)``, and the patch grid."""
        visual = self.visual
        x, grid = _patch_embeddings(visual.conv1, images)
        cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positions(grid).to(x.dtype)
        return visual.ln_pre(x), grid

    @full_width()
    @torch.no_grad()
    def __call__(
        self, images: Tensor, words: Words | None = None, regions: Tensor | None = None
    ) -> DenseFeatures:
        """Encode a batch of windows.

        Parameters
        ----------
        images
            ``(B, 3, H, W)`` normalised pixels in the weights' precision; sides are cut to a
            multiple of the patch size.
        words
            The queries, for attentions that read them.
        regions
            ``(B, H, W)`` numbers of the regions of pixels, for attentions that read them.
        """
        x, grid = self.stem(images)
        context, scores = Context(grid, images, words, self.backbone, regions), None
        attention = self.attention
        trunk, before = Trunk(self.visual), x
        if words is not None and isinstance(attention, Scoring):
            x, grid, scores = attention.score(trunk, x, context, words)
        else:
            x, grid = attention.run(trunk, x, context)
        tokens = x if getattr(attention, "embeds", False) else trunk.embed(x)
        cls = tokens[:, 0]
        if self.cls_source == "vanilla":
            walked = before if trunk.walked is None else trunk.walked
            cls = trunk.embed(trunk.plain_cls(walked))[:, 0]
        elif not getattr(attention, "has_cls", True):
            cls = torch.zeros_like(cls)
        return DenseFeatures(cls, tokens[:, 1:], grid, scores)


def _patch_embeddings(conv: Any, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """``(B, N, Dv)`` of the patches of ``(B, 3, H, W)``, and the patch grid."""
    if images.device.type == "cpu":
        x = conv(images)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
    # As a product: cuDNN would round a convolution's float32 to ten bits by default.
    side = int(conv.kernel_size[0])
    cut = images.unfold(2, side, side).unfold(3, side, side)
    patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return F.linear(patches, conv.weight.flatten(1), conv.bias), (cut.shape[2], cut.shape[3])


def padding_to_patch(
    height: int, width: int, patch: int, min_grid: int = 1
) -> tuple[int, int, int, int]:
    """Zero padding ``(left, right, top, bottom)`` that makes both sides multiples of ``patch``.

    Half before and the larger half after, as in the original; sides grow to at least ``min_grid``
    patches.
    """

    def split(side: int) -> tuple[int, int]:
        missing = max(math.ceil(side / patch), min_grid) * patch - side
        return missing // 2, missing - missing // 2

    return *split(width), *split(height)


def split_features(features: DenseFeatures, size: int) -> Iterator[DenseFeatures]:
    """Features of so many windows at a time."""
    for first in range(0, len(features.cls), size):
        some = slice(first, first + size)
        scores = None if features.scores is None else features.scores[some]
        cls, patches = features.cls[some], features.patches[some]
        yield replace(features, cls=cls, patches=patches, scores=scores)
