"""Train the image tower of ``geoseg-tiny`` on drawn scenes, densely, against the locked text tower.

Patches go through the same stem, blocks and ``naclip`` or ``segearth`` last block as at inference;
each one's embedding must be nearest to the words of what it shows. With half of the batches the CLS
row of the modified block is subtracted, as ``--cls-bias`` does, so that this row learns what to
take away; the ordinary CLS embedding learns the scene's words, as in any CLIP.

``python -m tools.train_tiny WORK --minutes 75`` needs ``WORK/text_tower.pt`` (tools.text_distill);
it draws its own scenes and writes ``WORK/NAME.pt`` every few minutes, and once
``WORK/NAME_middle.pt``. Towards the end the model gets better at drawn scenes and worse at real
ones; the mean of the weights of earlier and later states keeps most of both.

With ``--teacher WORK/LARGER.pt`` labels are left alone: the tower learns to embed patches as the
larger one does, right or wrong. That is how a pruned tower gets back what it lost.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from geoseg.model.attention.last_block import LastBlock, Naclip, SegEarth, gaussian_bias
from geoseg.model.attention.trunk import Trunk
from geoseg.model.vision import DenseEncoder
from geoseg.text.templates import load_templates
from tools.crops import Batch, CropSampler
from tools.scenes import WORDS
from tools.scenes.pool import ScenePool
from tools.text_distill import encode_short
from tools.tiny_model import build, model_config, normalise, read_checkpoint, restore

log = logging.getLogger(__name__)


class TextBank:
    """Embeddings of every class word in every template, drawn from at random."""

    def __init__(self, model: CLIP, seed: int) -> None:
        tokenizer = SimpleTokenizer()
        templates = ("{}", *load_templates("imagenet"), *load_templates("remote-sensing"))
        self._random = np.random.default_rng(seed)
        self._vectors = []
        with torch.no_grad():
            for words in WORDS.values():
                texts = [t.format(word) for word in words for t in templates]
                self._vectors.append(F.normalize(encode_short(model, tokenizer(texts)), dim=-1))

    def draw(self) -> Tensor:
        """One embedding for each class, ``(K, D)``."""
        return torch.stack([v[self._random.integers(len(v))] for v in self._vectors])


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives."""

    patches: Tensor
    """``(B, N, D)`` through the modified last block."""
    bias: Tensor
    """``(B, D)``: the modified block's CLS row."""
    cls: Tensor
    """``(B, D)``: the ordinary image embedding."""


def forward(encoder: DenseEncoder, images: Tensor, attention: LastBlock) -> Outputs:
    """Dense and ordinary embeddings with gradients.

    The same sums as `DenseEncoder`, but with attention written out: its backward pass in bfloat16
    on a CPU takes half as long as that of PyTorch's fused attention.
    """
    visual = encoder.visual
    trunk = Trunk(visual)
    x, grid = encoder.stem(images)
    for block in trunk.blocks[:-1]:
        x = _ordinary(trunk, block, x, x)
    last = trunk.blocks[-1]
    qkv = trunk.heads(last, last.ln_1(x))
    near = isinstance(attention, Naclip)
    bias = gaussian_bias(grid, attention.std, x.device) if near else None
    weights = [_weights(qkv[a], qkv[b], bias) for a, b in attention.terms]
    dense = trunk.project(last, torch.stack(weights).sum(0) @ qkv["v"])
    plain = _ordinary(trunk, last, x, x[:, :1])
    dense, plain = ((visual.ln_post(t.float()) @ visual.proj).float() for t in (dense, plain))
    return Outputs(dense[:, 1:], dense[:, 0], plain[:, 0])


def _weights(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    scale = left.shape[-1] ** -0.5
    scores = left * scale @ right.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1)


def _ordinary(trunk: Trunk, block: Any, x: Tensor, rows: Tensor) -> Tensor:
    """The unmodified block, for the first rows of ``x`` only."""
    q, k, v = trunk.heads(block, block.ln_1(x)).values()
    q = q[:, :, : rows.shape[1]]
    return trunk.ffn(block, rows + trunk.project(block, _weights(q, k) @ v))


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts."""

    region: float = 0.5
    scene: float = 0.15
    cls_bias: float = 0.3


def dense_loss(
    out: Outputs, batch: Batch, text: Tensor, scale: Tensor, weights: Weights, subtract: bool
) -> tuple[Tensor, dict[str, float]]:
    """Patch, region and scene terms.

    Patches: cross-entropy to the class shares, rarer classes weighted by the inverse square root
    of their count. Regions: the mean embedding of each class in each crop. Scene: the ordinary
    CLS against the mean word of what the crop holds.
    """
    shares = batch.shares
    cosines = F.normalize(out.patches, dim=-1) @ text.T
    logits = cosines
    if subtract:
        bias = F.normalize(out.bias, dim=-1) @ text.T
        logits = logits - weights.cls_bias * bias[:, None]
    logits = scale * logits
    count = shares.sum((0, 1))
    rarity = (count + 30).rsqrt()
    rarity = rarity * count.sum() / (rarity * count).sum()
    patch = -(shares * rarity * F.log_softmax(logits, -1)).sum() / count.sum()

    held = shares.sum(1)
    pooled = torch.einsum("bnk,bnd->bkd", shares, F.normalize(out.patches, dim=-1))
    present = held > 2.0
    region_logits = scale * F.normalize(pooled[present], dim=-1) @ text.T
    region = F.cross_entropy(region_logits, present.nonzero()[:, 1])

    holds = (held / held.sum(1, keepdim=True) > 0.04).float()
    caption = F.normalize(holds @ text, dim=-1)
    same = (holds @ holds.T == holds.sum(1)[:, None]) & (holds @ holds.T == holds.sum(1)[None])
    target = same.float() / same.sum(1, keepdim=True)
    contrast = 20 * F.normalize(out.cls, dim=-1) @ caption.T
    scene = -(target * F.log_softmax(contrast, 1)).sum(1).mean()

    right = (logits.argmax(-1) == shares.argmax(-1)).float().mean()
    parts = {"patch": patch.item(), "region": region.item(), "scene": scene.item()}
    parts["right"] = right.item()
    return patch + weights.region * region + weights.scene * scene, parts


def likeness_loss(out: Outputs, wanted: Outputs) -> tuple[Tensor, dict[str, float]]:
    """One minus the cosine of patches to the teacher's; the two CLS rows count a third each."""
    parts = {
        name: 1 - F.cosine_similarity(getattr(out, name), getattr(wanted, name), dim=-1).mean()
        for name in ("patches", "bias", "cls")
    }
    loss = parts["patches"] + (parts["bias"] + parts["cls"]) / 3
    return loss, {name: part.item() for name, part in parts.items()}


class Optimizers:
    """Muon on the blocks' matrices, AdamW on everything else."""

    def __init__(self, model: CLIP, rate: float) -> None:
        visual = model.visual
        matrices = [p for n, p in visual.transformer.named_parameters() if p.ndim == 2]
        known = {id(p) for p in matrices}
        rest = [p for p in visual.parameters() if id(p) not in known]
        self._all = [
            torch.optim.Muon(
                matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(
                [*rest, model.logit_scale], lr=rate, weight_decay=0.0, betas=(0.9, 0.98)
            ),
        ]  # fmt: skip
        self._rates = (rate, rate / 2)
        self._parameters = [*matrices, *rest, model.logit_scale]

    def step(self, loss: Tensor, fraction: float) -> None:
        """One step at a fraction of the full rate."""
        for optimizer, rate in zip(self._all, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * fraction
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._all:
            optimizer.step()


def rate_at(progress: float, step: int, warm_up: int = 60, flat_until: float = 0.3) -> float:
    """Warm-up, flat, then down to nothing along a cosine."""
    if progress > flat_until:
        tail = (progress - flat_until) / (1 - flat_until)
        return max(0.005, 0.5 * (1 + math.cos(math.pi * min(1.0, tail))))
    return min(1.0, (step + 1) / warm_up)


def prepare(model: CLIP) -> None:
    """Lock the text tower and give the image tower positions it can start from."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("visual.") or name == "logit_scale")
    with torch.no_grad():
        model.logit_scale.fill_(math.log(15))
        grid = int(model.visual.grid_size[0])
        model.visual.positional_embedding[1:] = 0.5 * _waves(grid, model.visual.proj.shape[0])


def _waves(grid: int, width: int) -> Tensor:
    """Sine and cosine of row and column at several wavelengths, ``(grid², width)``."""
    quarter = width // 4
    frequency = math.pi / grid * torch.logspace(0, math.log10(grid / 1.5), quarter)
    at = torch.arange(grid).float()
    rows, cols = (
        at.repeat_interleave(grid)[:, None] * frequency,
        at.repeat(grid)[:, None] * frequency,
    )
    waves = torch.cat([rows.sin(), rows.cos(), cols.sin(), cols.cos()], 1)
    return F.pad(waves, (0, width - waves.shape[1]))


_ATTENTIONS = (Naclip(), Naclip(), Naclip(), SegEarth(), SegEarth())
"""Last blocks to train through, drawn from at random."""
_MIDDLE = 0.4
"""Share of the time after which weights are kept for averaging, while the rate is still high."""


@dataclass(frozen=True)
class Run:
    """Settings of one training run."""

    minutes: float
    batch: int
    rate: float
    seed: int
    save_every_s: float
    average: float = 0.997


def train(
    model: CLIP,
    config: dict[str, Any],
    pool: ScenePool,
    run: Run,
    file: Path,
    teacher: CLIP | None = None,
) -> None:
    """Train until the clock says stop; ``file`` always holds the newest averaged weights."""
    encoder = DenseEncoder(model.visual, Naclip())
    larger = None if teacher is None else DenseEncoder(teacher.visual, Naclip())
    bank, sampler = TextBank(model, run.seed), CropSampler(pool, run.seed)
    optimizers = Optimizers(model, run.rate)
    averaged = copy.deepcopy(model.visual)
    patch, side = int(encoder.visual.patch_size[0]), int(model.visual.image_size[0])
    random = np.random.default_rng(run.seed)
    weights = Weights()
    start = saved = time.monotonic()
    step = crops = 0
    recent: list[dict[str, float]] = []
    middle = file.with_stem(f"{file.stem}_middle")
    middle.unlink(missing_ok=True)
    while (elapsed := time.monotonic() - start) < run.minutes * 60:
        # Other window sizes too, so that resampled positions are nothing new. Windows of 40
        # patches, the default, see more than training can afford and gain by it.
        grid = int(random.choice([side // patch, side // patch, 11, 21, 28, 28, 28]))
        count = max(4, round(run.batch * (side // patch) ** 2 / grid**2))
        batch = sampler.batch(count, grid * patch, patch)
        attention = _ATTENTIONS[random.choice(len(_ATTENTIONS))]
        pictures = normalise(batch.pictures)
        with torch.autocast("cpu", torch.bfloat16):
            out = forward(encoder, pictures, attention)
        scale = model.logit_scale.exp().clamp(max=50)
        if larger is None:
            subtract = bool(random.random() < 0.5)
            loss, parts = dense_loss(out, batch, bank.draw(), scale, weights, subtract)
        else:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                wanted = forward(larger, pictures, attention)
            loss, parts = likeness_loss(out, wanted)
        optimizers.step(loss, rate_at(elapsed / (run.minutes * 60), step))
        keep = min(run.average, (step + 1) / (step + 20))
        with torch.no_grad():
            for mean, value in zip(averaged.parameters(), model.visual.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        pool.renew()
        step, crops = step + 1, crops + count
        recent.append(parts)
        if step % 50 == 0:
            _report(recent, step, crops, elapsed, scale.item())
            recent.clear()
        if elapsed > _MIDDLE * run.minutes * 60 and not middle.exists():
            _save(middle, model, averaged, config, run, step, crops, pool.drawn, elapsed)
        if time.monotonic() - saved > run.save_every_s:
            _save(file, model, averaged, config, run, step, crops, pool.drawn, elapsed)
            saved = time.monotonic()
    _save(file, model, averaged, config, run, step, crops, pool.drawn, time.monotonic() - start)


def _report(
    recent: list[dict[str, float]], step: int, crops: int, seconds: float, scale: float
) -> None:
    means = {name: sum(p[name] for p in recent) / len(recent) for name in recent[0]}
    told = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    log.info(
        "%d, %.0f s, %.1f crops/s: %s, scale %.1f", step, seconds, crops / seconds, told, scale
    )


def _save(
    file: Path,
    model: CLIP,
    averaged: torch.nn.Module,
    config: dict[str, Any],
    run: Run,
    step: int,
    crops: int,
    scenes: int,
    seconds: float,
) -> None:
    state = model.state_dict()
    state.update({f"visual.{name}": value for name, value in averaged.state_dict().items()})
    facts = {
        "steps": step,
        "crops": crops,
        "scenes": scenes,
        "minutes": round(seconds / 60, 1),
        "planned_minutes": run.minutes,
        "seed": run.seed,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    temporary = file.with_suffix(".part")
    torch.save({"config": config, "state_dict": state, "facts": facts}, temporary)
    temporary.replace(file)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", type=int, default=1200, help="to start from, and to keep")
    parser.add_argument("--name", default="tiny")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=120, metavar="SECONDS")
    parser.add_argument(
        "--vision", type=json.loads, default={}, help="JSON that overrides vision_cfg"
    )
    parser.add_argument("--init", type=Path, help="continue from this checkpoint's weights")
    parser.add_argument(
        "--teacher", type=Path, nargs="+", help="checkpoint to learn from, of several the mean"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    config = model_config(options.vision)
    model = build(config)
    prepare(model)
    model.load_state_dict(
        torch.load(options.work / "text_tower.pt", weights_only=True), strict=False
    )
    with torch.no_grad():
        model.logit_scale.fill_(math.log(15))
    if options.init:
        model.load_state_dict(torch.load(options.init, weights_only=True)["state_dict"])
    pool = ScenePool(options.scenes, first_seed=options.seed * 10_000_000)
    pool.fill(options.scenes, options.work / f"scenes_{options.seed}_{options.scenes}.npz")
    run = Run(options.minutes, options.batch, options.rate, options.seed, options.save_every)
    teacher = restore(read_checkpoint(options.teacher)) if options.teacher else None
    train(model, config, pool, run, options.work / f"{options.name}.pt", teacher)


if __name__ == "__main__":
    main()
