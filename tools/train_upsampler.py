"""Train the bundled model's own SimFeatUp (JBU-One) weights.

FeatUp's multi-view idea, adapted: pixel features, moved and zoomed as the picture was and averaged
down to patches, must be what the encoder says of the moved picture. The drawn scenes have labels,
so pixel features must also name what they show. The encoder is locked; features are the tokens of
the model's default attention, because those are what is upsampled at inference.

``python -m tools.train_upsampler WORK --model FOLDER --minutes 8`` writes ``WORK/simfeatup.pt`` in
the format of the original's checkpoints.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoseg import methods
from geoseg.model.loading import load_model
from geoseg.model.upsampling.blocks import StepGeometry
from geoseg.model.upsampling.learned import LearnedJbu, PlainStep, StepWeights
from geoseg.model.vision import DenseEncoder
from tools.crops import CropSampler
from tools.export_tiny import DEFAULTS
from tools.scenes.pool import ScenePool
from tools.tiny_model import EMBEDDING, normalise
from tools.train_tiny import TextBank

log = logging.getLogger(__name__)

RATE = 4e-3
CHANNELS = 32
"""Directions that are upsampled while training: those of the classes first, random ones after."""


class JbuStep(nn.Module):
    """Weights of one learned doubling, with the parameter names of the published checkpoints."""

    def __init__(self, radius: int = 5, guidance: int = 3, key: int = 32) -> None:
        super().__init__()
        taps = (2 * radius + 1) ** 2
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.sigma_spatial = nn.Parameter(torch.tensor(0.35))
        self.range_proj = nn.Sequential(
            nn.Conv2d(guidance, key, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(key, key, 1)
        )
        self.fixup_proj = nn.Sequential(
            nn.Conv2d(guidance + taps, taps, 1),
            nn.GELU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(taps, taps, 1),
        )
        # A short training must not spend itself on undoing a random start: begin as a smooth
        # enlargement, a narrower Gaussian than the original's without any fix-up.
        nn.init.zeros_(self.fixup_proj[3].weight)
        nn.init.zeros_(self.fixup_proj[3].bias)

    def weights(self) -> StepWeights:
        """Parameters as inference takes them; gradients flow back."""

        def matrix(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
            assert layer.bias is not None
            return layer.weight[:, :, 0, 0], layer.bias

        return StepWeights(
            matrix(self.range_proj[0]),
            matrix(self.range_proj[3]),
            matrix(self.fixup_proj[0]),
            matrix(self.fixup_proj[3]),
            self.range_temp,
            self.sigma_spatial,
        )


class JbuOne(nn.Module):
    """SimFeatUp's upsampler: one step used for every doubling, and a 1 x 1 convolution at the end.

    The steps are those of inference, without the original's dropout, which a training this short
    does not need.

    Li et al., "SegEarth-OV", CVPR 2025.
    """

    def __init__(self, channels: int = EMBEDDING) -> None:
        super().__init__()
        self.up = JbuStep()
        self.fixup_proj = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(channels, channels, 1))
        nn.init.zeros_(self.fixup_proj[1].weight)
        nn.init.zeros_(self.fixup_proj[1].bias)

    def forward(self, tokens: Tensor, guidance: Tensor, basis: Tensor) -> Tensor:
        """Pixel features along the columns of ``basis``.

        The convolution acts on channels and the steps on pixels, so the order may be exchanged;
        only the bias has to wait for the end.

        Parameters
        ----------
        tokens
            ``(B, D, h, w)``.
        guidance
            ``(B, 3, H, W)`` normalised picture.
        basis
            ``(D, C)``.
        """
        conv = self.fixup_proj[1]
        folded = tokens + 0.1 * F.conv2d(tokens, conv.weight)
        x = torch.einsum("bdhw,dc->bhwc", folded, basis)
        weights = self.up.weights()
        sizes = LearnedJbu.ladder(tuple(guidance.shape[2:]), tuple(tokens.shape[2:]))
        for coarse, fine in pairwise(sizes):
            geometry = StepGeometry.of(fine, coarse, weights.radius, guidance.device)
            pooled = F.adaptive_avg_pool2d(guidance, fine).permute(0, 2, 3, 1)
            x = PlainStep(geometry, weights, pooled).apply(x)
        return x.permute(0, 3, 1, 2) + 0.1 * (conv.bias @ basis)[:, None, None]


def class_basis(text: Tensor, random: torch.Generator) -> Tensor:
    """Orthonormal directions ``(D, CHANNELS)``: the span of the class words, then random ones."""
    extra = torch.randn(text.shape[1], CHANNELS - len(text), generator=random)
    return torch.linalg.qr(torch.cat([text.T, extra], 1))[0]


class _View:
    """A move and zoom of the picture that can be repeated on features."""

    def __init__(self, count: int, random: torch.Generator) -> None:
        zoom = 1 / (1 + 0.8 * torch.rand(count, generator=random))
        shift = (torch.rand(count, 2, generator=random) * 2 - 1) * (1 - zoom)[:, None]
        turn = (torch.rand(count, generator=random) < 0.5).float() * 2 - 1
        self._matrix = torch.zeros(count, 2, 3)
        self._matrix[:, 0, 0], self._matrix[:, 1, 1] = zoom * turn, zoom
        self._matrix[:, :, 2] = shift

    def __call__(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self._matrix, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _as_map(encoder: DenseEncoder, pictures: Tensor) -> Tensor:
    found = encoder(pictures)
    return found.patches.transpose(1, 2).reshape(len(pictures), -1, *found.grid)


def train(
    upsampler: JbuOne, encoder: DenseEncoder, bank: TextBank, sampler: CropSampler,
    minutes: float, seed: int, batch: int = 2,
    grid: int = 12,
) -> int:  # fmt: skip
    """Train until the clock says stop; returns the number of steps."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.NAdam(upsampler.parameters(), lr=RATE)
    patch = int(encoder.visual.patch_size[0])
    side = grid * patch
    start, step = time.monotonic(), 0
    recent: list[tuple[float, float]] = []
    while (elapsed := time.monotonic() - start) < minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = RATE * max(0.01, 0.5 * (1 + math.cos(math.pi * elapsed / minutes / 60)))
        crops, labels = sampler.with_labels(batch, side)
        pictures = normalise(crops)
        text = bank.draw()
        basis = class_basis(text, random)
        pixels = upsampler(_as_map(encoder, pictures), pictures, basis)
        named = _naming_loss(pixels, labels, text, basis)
        view = _View(batch, random)
        wanted = torch.einsum("bdhw,dc->bchw", _as_map(encoder, view(pictures)), basis)
        told = F.avg_pool2d(view(pixels), patch)
        moved = 1 - F.cosine_similarity(told, wanted, dim=1).mean()
        loss = named + moved
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        recent.append((named.item(), moved.item()))
        if step % 50 == 0:
            names, views = np.mean(recent, 0)
            log.info("%d, %.0f s: labels %.3f, views %.3f", step, elapsed, names, views)
            recent.clear()
    return step


def _naming_loss(pixels: Tensor, labels: Tensor, text: Tensor, basis: Tensor) -> Tensor:
    cosines = torch.einsum("bchw,kc->bkhw", F.normalize(pixels, dim=1), text @ basis)
    weight = (torch.bincount(labels.flatten(), minlength=len(text)) + 1000).rsqrt()
    return F.cross_entropy(20 * cosines, labels, weight=weight / weight.mean())


def save(upsampler: JbuOne, file: Path) -> None:
    """Write the checkpoint as the original does: a dict with prefixed names."""
    state = {f"upsampler.{name}": value for name, value in upsampler.state_dict().items()}
    temporary = file.with_suffix(".part")
    torch.save({"state_dict": state}, temporary)
    temporary.replace(file)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="geoseg-tiny", help="model specification")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    clip = load_model(options.model, device="cpu").clip
    pool = ScenePool(options.scenes, first_seed=options.seed * 10_000_000)
    pool.fill(options.scenes, options.work / f"scenes_{options.seed}_{options.scenes}.npz")
    upsampler = JbuOne()
    steps = train(
        upsampler,
        DenseEncoder(clip.visual, methods.resolve(methods.ATTENTIONS, DEFAULTS["attention"])),
        TextBank(clip, options.seed),
        CropSampler(pool, options.seed),
        options.minutes,
        options.seed,
    )
    save(upsampler, options.work / "simfeatup.pt")
    log.info("%d steps", steps)


if __name__ == "__main__":
    main()
