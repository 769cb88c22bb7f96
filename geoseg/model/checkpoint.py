"""Checkpoint files in the formats people have, read without running code from them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from geoseg.errors import WeightsError

StateDict = dict[str, Tensor]


def read_state_dict(path: str | Path) -> StateDict:
    """Tensors of a checkpoint file, by name.

    Reads ``.safetensors``, a plain state dict, and a training checkpoint that keeps it under
    ``state_dict`` or ``model``; the ``module.`` prefix of distributed training is stripped. Files
    are loaded with ``weights_only=True``, so nothing in them is executed.

    Raises
    ------
    WeightsError
        If the file is missing, is not a checkpoint, holds more than tensors, or is a TorchScript
        archive.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"weights file {file} does not exist; check the path")
    content = _load_safetensors(file) if file.suffix == ".safetensors" else _load_torch(file)
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"weights file {file} holds no state dict")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"weights file {file} holds no tensors under names")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _load_safetensors(file: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return cast(object, load_file(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"weights file {file} cannot be read as safetensors: {error}") from error


def _load_torch(file: Path) -> object:
    try:
        return cast(object, torch.load(file, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights file {file} holds more than tensors and would have to run code to load; "
            "save its state dict alone (torch.save(model.state_dict(), …)) or as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"weights file {file} is a TorchScript archive (the original OpenAI release); "
                "use the tag instead, e.g. ViT-B-16/openai, or save its state dict as .safetensors"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"weights file {file} is not a PyTorch checkpoint: {reason}") from error


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
