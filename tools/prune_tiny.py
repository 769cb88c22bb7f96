"""Make the MLPs of the image tower narrower without training.

``python -m tools.prune_tiny WORK/wide.pt WORK/narrow.pt`` takes hidden units away one by one, each
time the one whose loss can best be made up for by the weights of those that stay (Hassibi and
Stork, "Optimal Brain Surgeon", 1993, here layer by layer), on the activations of drawn crops. The
first half of the units of ``geoseg-tiny`` goes with 0.4 to 4 % of a layer's variance, half of the
rest with 2 to 10 %, which has to be learned again.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoseg.model.attention.last_block import Naclip
from geoseg.model.vision import DenseEncoder
from tools.crops import CropSampler
from tools.scenes.pool import ScenePool
from tools.tiny_model import normalise, read_checkpoint, restore

log = logging.getLogger(__name__)

_ROWS = 3000
"""Tokens taken of each batch."""


def fewer_units(
    activations: Tensor, weight: Tensor, bias: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Choose hidden units of a layer ``activations weightᵀ + bias``, and refit it to them.

    Parameters
    ----------
    activations
        ``(N, H)`` of all units.
    weight, bias
        ``(D, H)`` and ``(D,)``.
    keep
        Units that stay.

    Returns
    -------
    tuple
        Indices of those units ``(keep,)`` in order, their weight ``(D, keep)``, the bias ``(D,)``,
        and the share of the output's variance that is lost.
    """
    activations, old, shift = activations.double(), weight.double(), bias.double()
    mean = activations.mean(0)
    covariance = (activations - mean).T @ (activations - mean) / len(activations)
    damping = 1e-5 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)
    inverse = torch.linalg.inv(covariance + damping)
    new = old.clone()
    left = torch.ones(len(mean), dtype=torch.bool)
    for _ in range(len(mean) - keep):
        costs = new.square().sum(0) / inverse.diagonal()
        worst = int(costs.where(left, torch.inf).argmin())
        direction, pivot = inverse[worst].clone(), inverse[worst, worst].clone()
        new -= torch.outer(new[:, worst] / pivot, direction)
        inverse -= torch.outer(direction, direction) / pivot
        inverse[worst, worst] = 1.0  # any number but 0: the unit is gone
        new[:, worst] = 0.0
        left[worst] = False
    chosen = left.nonzero()[:, 0]
    change = new - old
    lost = torch.einsum("dh,hk,dk->", change, covariance, change)
    whole = torch.einsum("dh,hk,dk->", old, covariance, old)
    shift = shift + old @ mean - new @ mean
    return chosen, new[:, chosen].float(), shift.float(), float(lost / whole)


@contextmanager
def _recorded(blocks: Any) -> Iterator[list[list[Tensor]]]:
    """Some rows of every block's hidden activations, batch by batch."""
    seen: list[list[Tensor]] = [[] for _ in blocks]

    def recorder(into: list[Tensor]) -> Callable[[Any, Any, Tensor], None]:
        def record(_module: Any, _given: Any, result: Tensor) -> None:
            rows = result.flatten(0, -2)
            into.append(rows[torch.randperm(len(rows))[:_ROWS]].clone())

        return record

    hooks = [
        block.mlp.gelu.register_forward_hook(recorder(into))
        for block, into in zip(blocks, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def prune(saved: dict[str, Any], ratio: float, pool: ScenePool, batches: int, seed: int) -> None:
    """Narrow the MLPs of a training checkpoint to ``ratio`` times the width, in place."""
    model = restore(saved)
    torch.manual_seed(seed)
    sampler, visual = CropSampler(pool, seed), model.visual
    encoder, native = DenseEncoder(visual, Naclip()), int(visual.image_size[0])
    patch = int(visual.patch_size[0])
    with _recorded(visual.transformer.resblocks) as seen:
        for batch in range(batches):
            count, side = ((24, native), (8, 28 * patch))[batch % 2]
            pictures = normalise(sampler.batch(count, side, patch).pictures)
            encoder(pictures)
            visual(pictures[:, :, :native, :native])  # the scene's embedding: all of the MLPs
    keep = int(ratio * saved["config"]["vision_cfg"]["width"])
    for index, rows in enumerate(seen):
        name, state = f"visual.transformer.resblocks.{index}.mlp", saved["state_dict"]
        outer = state[f"{name}.c_proj.weight"], state[f"{name}.c_proj.bias"]
        chosen, weight, bias, lost = fewer_units(torch.cat(rows), *outer, keep)
        log.info("block %d: %d units, %.3f of the variance lost", index, keep, lost)
        state[f"{name}.c_fc.weight"] = state[f"{name}.c_fc.weight"][chosen]
        state[f"{name}.c_fc.bias"] = state[f"{name}.c_fc.bias"][chosen]
        state[f"{name}.c_proj.weight"], state[f"{name}.c_proj.bias"] = weight, bias
    saved["config"]["vision_cfg"]["mlp_ratio"] = ratio


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", help="of several the mean")
    parser.add_argument("result", type=Path)
    parser.add_argument("--ratio", type=float, default=2.0, help="hidden units over the width")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pool = ScenePool(options.scenes, first_seed=options.seed * 10_000_000)
    pool.fill(options.scenes)
    saved = read_checkpoint(options.checkpoints)
    prune(saved, options.ratio, pool, options.batches, options.seed)
    torch.save(saved, options.result)


if __name__ == "__main__":
    main()
