"""ResCLIP: middle blocks' maps, and a first labelling that says what belongs together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.methods import Factor, Share
from geoseg.model.attention.last_block import Patches, gaussian_bias
from geoseg.model.attention.middle import Blocks, MiddleBlocks, Pairs
from geoseg.model.attention.trunk import Context, Grid, Trunk, Words, attend
from geoseg.model.pamr import averaged, weights_of_neighbours

_BASES = {"naclip": ("k",), "clearclip": ("q",), "sclip": ("q", "k")}
"""What each base compares with itself."""
_PAMR_DILATIONS, _PAMR_ITERATIONS = (8, 16), 10
_EPS = 1e-8


@dataclass(frozen=True)
class ResClip(MiddleBlocks):
    """Yang et al., "ResCLIP: Residual Attention for Training-free Dense Vision-language Inference".

    CVPR 2025. The maps of middle blocks are mixed into those of a base attention. With
    ``feedback`` a first labelling of the window says which patches belong together: logits of all
    words, PAMR along the window's image, the most frequent word of each patch; patches of one word
    attend to each other. That runs the last block twice, and PAMR once a window.
    """

    weight: Share = 0.4
    """Share of the middle blocks; 0 leaves them out, factor and all."""
    blocks: Blocks = (6, 7, 8, 9)
    base: Literal["naclip", "sclip", "clearclip"] = "naclip"
    std: Patches = 5.0
    """Width of naclip's Gaussian and of the blur of the feedback, in patches."""
    strength: Factor = 2.0
    """Factor on the mixture with the middle blocks."""
    feedback: bool = True
    feedback_weight: Share = 0.7
    """Share of the feedback in the similarities; 0 leaves it out, factor and all."""
    feedback_strength: Factor = 1.8
    """Factor on the similarities with the feedback."""
    threshold: Share = 0.35
    """First labels below this probability become the first word."""
    scale: Factor = 40.0
    """Factor on the first logits."""
    decay: bool = True
    """Patches of one word with others between them belong together less, the farther they are."""

    mean = True

    @property
    def reads_words(self) -> bool:
        """Whether it needs the queries."""
        return self.feedback and self.feedback_weight > 0

    @property
    def needed(self) -> str:
        """Of the last block."""
        return "v" + "".join(_BASES[self.base])

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Ordinary blocks, the last one, and the last one again if there is feedback."""
        pairs: Pairs = []
        if self.weight:
            x, pairs = self.walk(trunk, x)
        else:
            for block in trunk.blocks[:-1]:
                x = trunk.ordinary(block, x)
        last = trunk.blocks[-1]
        qkv = trunk.heads(last, last.ln_1(x), self.needed)
        middle = attend(pairs, qkv["v"]) if pairs else None
        out = self.finished(trunk, x, self._gathered(qkv, context.grid, middle, None))
        if self.reads_words:
            if context.words is None:
                raise OptionError(
                    "attention resclip labels windows by the words of a map, and features have "
                    "none; write resclip:feedback=no"
                )
            first = trunk.embed(out)[:, 1:]
            labels = self.first_labels(first, context, context.words)
            together = self.feedback_map(labels, context.grid)
            together /= together.amax((1, 2), keepdim=True)
            together = F.pad(together, (1, 0, 1, 0))
            out = self.finished(trunk, x, self._gathered(qkv, context.grid, middle, together))
        return out, context.grid

    def _gathered(
        self, qkv: dict[str, Tensor], grid: Grid, middle: Tensor | None, together: Tensor | None
    ) -> Tensor:
        """Values by the base's similarities, with feedback ``(B, T, T)``, and the middle maps'."""
        value, own = qkv["v"], 1.0
        bias = gaussian_bias(grid, self.std, value.device) if self.base == "naclip" else None
        if together is not None:
            own = self.feedback_strength * (1 - self.feedback_weight)
            added = together * (self.feedback_strength * self.feedback_weight)
            bias = added if bias is None else added.add_(bias)
        compared = [(qkv[name], qkv[name]) for name in _BASES[self.base]]
        if own != 1:
            compared = [(a * own, b) for a, b in compared]
        base = attend(compared, value, bias)
        if middle is None:
            return base
        share = self.weight / len(self.blocks)
        base = base.mul_(self.strength * (1 - self.weight))
        return base.add_(middle, alpha=self.strength * share)

    def first_labels(self, tokens: Tensor, context: Context, words: Words) -> Tensor:
        """Most frequent word of each patch ``(B, N)``, by tokens in the joint space."""
        (rows, cols), images = context.grid, context.images.float()
        side = images.shape[2] // rows
        images = images[:, :, : rows * side, : cols * side]
        logits = F.normalize(tokens, dim=-1) @ words.vectors.T
        planes = torch.unflatten(logits.transpose(1, 2), 2, (rows, cols))
        found = []
        for image, coarse in zip(images, planes, strict=True):
            size = (image.shape[1], image.shape[2])
            fine = F.interpolate(coarse[None], size=size, mode="bilinear")[0]
            valid = torch.ones(size, dtype=torch.bool, device=image.device)
            near = weights_of_neighbours(image, valid, _PAMR_DILATIONS)
            fine = averaged(fine, near, _PAMR_DILATIONS, _PAMR_ITERATIONS)
            best, labels = (self.scale * fine).softmax(0).max(0)
            labels[best < self.threshold] = 0
            cut = labels.view(rows, side, cols, side).transpose(1, 2)
            patches = cut.reshape(rows * cols, side * side)
            counts = torch.zeros(rows * cols, len(coarse), device=image.device)
            counts.scatter_add_(1, patches, torch.ones_like(patches, dtype=counts.dtype))
            found.append(counts.argmax(1))
        return torch.stack(found)

    def feedback_map(self, labels: Tensor, grid: Grid) -> Tensor:
        """How much patches belong together ``(B, N, N)``; rows sum to one, or nearly."""
        together = (labels[:, :, None] == labels[:, None, :]).float()
        if self.decay:
            straight, far = paths(labels, grid)
            together = torch.where(straight, together, together * far)
        return self._blurred(together)

    def _blurred(self, rows: Tensor) -> Tensor:
        """Each row along the flat index of patches, then divided by its sum."""
        count = rows.shape[-1]
        length = min(count, int(6 * self.std + 1))
        length += 1 - length % 2
        at = torch.arange(length, dtype=torch.float32, device=rows.device) - length // 2
        bell = torch.exp(-at.square() / (2 * self.std**2))
        flat = rows.reshape(-1, 1, count)
        blurred = F.conv1d(flat, (bell / bell.sum())[None, None], padding=length // 2)
        blurred = blurred.view_as(rows).relu()
        return blurred / (blurred.sum(-1, keepdim=True) + _EPS)


def paths(labels: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Which patches see each other across patches of their own label, and how far they are.

    Parameters
    ----------
    labels
        ``(B, N)``.
    grid
        Rows and columns of the patches.

    Returns
    -------
    tuple of torch.Tensor
        ``(B, N, N)`` bool, and ``exp(-d / M)`` as ``(N, N)`` with the Chebyshev distance d of two
        patches and the largest one M of the grid. The original walks the line in steps of
        ``1 / M`` of it, d of them: only its first ``d / M`` are looked at.
    """
    height, width = grid
    device = labels.device
    y = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
    x = torch.arange(width, device=device, dtype=torch.float32).repeat(height)
    apart = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    most = max(height, width) - 1
    straight = torch.ones(len(labels), len(y), len(y), dtype=torch.bool, device=device)
    # float32 and made on the CPU, so that halves are rounded as in the original everywhere.
    for step, t in enumerate(torch.linspace(0, 1, most + 1).tolist()):
        share, rest = torch.tensor(t, device=device), 1 - torch.tensor(t, device=device)
        row = (y[:, None] * rest + y * share).round().long()
        col = (x[:, None] * rest + x * share).round().long()
        here = labels[:, row * width + col]
        straight &= (here == labels[:, :, None]) | (apart < step)
    return straight, torch.exp(-apart / max(most, 1))
