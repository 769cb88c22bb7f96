"""Small vision transformers that timm knows by name while tests run, and files of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def tiny_dino(pretrained: bool = False, **more: Any) -> VisionTransformer:
    """As DINO's: patches of 8, a table of positions with one for the CLS token."""
    return VisionTransformer(**{"img_size": 32, "patch_size": 8} | SMALL | _own(more))


def tiny_registers(pretrained: bool = False, **more: Any) -> VisionTransformer:
    """As DINOv2's with registers: patches of 14."""
    given = {
        "img_size": 70, "patch_size": 14, "reg_tokens": 4, "no_embed_class": True,
        "init_values": 0.1,
    }  # fmt: skip
    return VisionTransformer(**given | SMALL | _own(more))


def tiny_rotary(pretrained: bool = False, **more: Any) -> Eva:
    """As DINOv3's: no table of positions, registers, keys without bias."""
    given = {
        "img_size": 64, "patch_size": 16, "qkv_bias": False, "init_values": 0.1,
        "rope_type": "dinov3", "rope_rotate_half": True, "use_rot_pos_emb": True,
        "use_abs_pos_emb": False, "num_reg_tokens": 4, "use_fc_norm": False,
    }  # fmt: skip
    return Eva(**given | SMALL | _own(more))


def golden_dino(pretrained: bool = False, **more: Any) -> VisionTransformer:
    """The reference data's."""
    given = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
    return VisionTransformer(**given | _own(more))


def golden_registers(pretrained: bool = False, **more: Any) -> VisionTransformer:
    """The reference data's, with registers."""
    given = {
        "img_size": 70, "patch_size": 14, "embed_dim": 48, "depth": 3, "num_heads": 3,
        "reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5,
    }  # fmt: skip
    return VisionTransformer(**given | _own(more))


def _own(more: dict[str, Any]) -> dict[str, Any]:
    """What timm's factory adds and a class does not take is left out."""
    return {k: v for k, v in more.items() if k in ("num_classes", "dynamic_img_size")}


NAMES = ("tiny_dino", "tiny_registers", "tiny_rotary")
for _make in (tiny_dino, tiny_registers, tiny_rotary, golden_dino, golden_registers):
    timm.models.register_model(_make)


def random_backbone(folder: Path, name: str, seed: int = 0) -> str:
    """File of random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = timm.create_model(name, num_classes=0).state_dict()
        state = {k: torch.randn_like(v) * 0.2 for k, v in state.items()}
    file = folder / f"{name}-{seed}.pth"
    torch.save(state, file)
    return str(file)
