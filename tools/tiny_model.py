"""The architecture of ``geoseg-tiny``, and how its folder is written.

A plain open_clip CLIP, so that it takes every code path that the large models take.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

EMBEDDING = 128
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

VISION: dict[str, Any] = {
    "image_size": 128,
    "patch_size": 8,
    "width": 144,
    "layers": 5,
    "head_width": 72,
}
TEXT: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": EMBEDDING,
    "heads": 4,
    "layers": 2,
}


def model_config(vision: dict[str, Any] | None = None) -> dict[str, Any]:
    """open_clip's model configuration; ``vision`` overrides single entries."""
    return {
        "embed_dim": EMBEDDING,
        "vision_cfg": {**VISION, **(vision or {})},
        "text_cfg": dict(TEXT),
    }


def build(config: dict[str, Any]) -> CLIP:
    """Make a freshly initialised model."""
    return CLIP(**config)


def read_checkpoint(files: Sequence[Path]) -> dict[str, Any]:
    """A training checkpoint; of several the mean of their weights and the last one's facts."""
    saved = [torch.load(file, weights_only=True, map_location="cpu") for file in files]
    mean: dict[str, Any] = saved[-1]
    mean["state_dict"] = {
        name: sum(one["state_dict"][name].float() for one in saved) / len(saved)
        for name in mean["state_dict"]
    }
    return mean


def restore(checkpoint: dict[str, Any]) -> CLIP:
    """Model of a checkpoint."""
    model = build(checkpoint["config"])
    model.load_state_dict(checkpoint["state_dict"])
    return model


def normalise(pictures: Tensor) -> Tensor:
    """``(B, H, W, 3)`` uint8 to ``(B, 3, H, W)`` float32 as the encoder wants it."""
    pixels = pictures.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def text_state(model: CLIP) -> dict[str, Tensor]:
    """Weights of the text tower alone."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith("visual.")}


def write_folder(
    folder: Path, model: CLIP, config: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Write config, half-precision weights and geoseg's defaults; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    clip_config = {
        "model_cfg": config,
        "preprocess_cfg": {
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    temporary = folder / "open_clip_model.safetensors.part"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # it is written for the owner alone, and this one is installed
    temporary.replace(folder / "open_clip_model.safetensors")
    _write_json(folder / "open_clip_config.json", clip_config)
    _write_json(folder / "geoseg.json", defaults)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
