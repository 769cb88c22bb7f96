"""Checkpoint files in the formats people have, read without running code from them."""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from geoseg._inputs import file_looks_like, looks_like, named_file, shown
from geoseg.errors import WeightsError

StateDict = dict[str, Tensor]

_FILE = "weights file"
_SECOND_TABLE = "positional_embedding_res"
_KEPT_POSITIONS, _LONG_CONTEXT = 20, 248
"""Of LongCLIP: positions kept from CLIP, and all of them."""
# What torch's three formats begin with: today's, the one before 1.6, the one before 0.1.10.
_ZIP, _PICKLE, _TAR = b"PK", b"\x80", b"ustar"
_TAR_PLACE = 257
_HEAD_BYTES = 1024
_LEGACY_PICKLES = 5
"""Mark, version, machine, content, names of the arrays that follow."""
_LONGEST_CLASS_LETTERS = 500


def read_state_dict(path: str | Path) -> StateDict:
    """Tensors of a checkpoint file, by name.

    Reads ``.safetensors``, a plain state dict, and a training checkpoint that keeps it under
    ``state_dict`` or ``model``; the ``module.`` prefix of distributed training is stripped. Files
    are loaded with ``weights_only=True``, so nothing in them is executed.

    Raises
    ------
    WeightsError
        If the file is missing, is not a checkpoint, holds more than tensors, is a TorchScript
        archive, or a tensor is none of finite real numbers.
    """
    file = named_file(path, _FILE, WeightsError)
    content = _load_safetensors(file) if file.suffix == ".safetensors" else _load_torch(file)
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{_FILE} {shown(file)} holds no state dict")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{_FILE} {shown(file)} holds no tensors under names")
    for name, tensor in tensors.items():
        if reason := _unusable(tensor):
            raise WeightsError(
                f"{_FILE} {shown(file)}: the tensor {shown(name)} {reason}; get the file again or "
                "save its state dict anew"
            )
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def mean_of_files(files: Sequence[tuple[float, Path]]) -> StateDict:
    """Weighted mean of checkpoints of one architecture, tensor by tensor, in float32.

    Parameters
    ----------
    files
        Shares, which are brought to a sum of one, and the files.

    Raises
    ------
    WeightsError
        If a file cannot be read, or does not hold the same tensors as the first.
    """
    total: StateDict = {}
    whole = sum(share for share, _ in files)
    for share, file in files:
        state = read_state_dict(file)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in total.items()} or shapes
        if shapes != wanted:
            odd = min(name for name, _ in shapes.items() ^ wanted.items())
            raise WeightsError(
                f"{_FILE} {shown(file)} cannot be averaged with {shown(files[0][1])}: the tensor "
                f"{shown(odd)} is not in both with one shape; give files of one architecture"
            )
        for name, tensor in state.items():
            part = tensor.float() * (share / whole) if tensor.is_floating_point() else tensor
            total[name] = total[name] + part if name in total and part is not tensor else part
    return total


def folded_text(state: StateDict, file: Path) -> tuple[StateDict, int | None]:
    """Make a LongCLIP text tower (FarSLIP, LRSCLIP) an ordinary one with a longer context.

    Its first 20 positions are those of ``positional_embedding``, all later ones of
    ``positional_embedding_res``; ``mask1`` and ``mask2`` say so where they were saved.

    Parameters
    ----------
    state
        Tensors of a checkpoint.
    file
        Where they come from, for messages.

    Returns
    -------
    tuple
        The tensors with one table of positions, and the length of the context where the table
        says that it is not the usual one.

    Raises
    ------
    WeightsError
        If the two tables do not belong together.
    """
    second = state.get(_SECOND_TABLE)
    table = state.get("positional_embedding")
    if second is None or table is None:
        long = table is not None and table.ndim == 2 and len(table) == _LONG_CONTEXT
        return state, _LONG_CONTEXT if long else None
    if table.ndim != 2 or table.shape != second.shape:
        raise WeightsError(
            f"{_FILE} {shown(file)}: positional_embedding is {tuple(table.shape)} and "
            f"{_SECOND_TABLE} {tuple(second.shape)}; a LongCLIP text tower has two tables of one "
            "shape"
        )
    first = torch.zeros(len(table), 1, dtype=torch.bool)
    first[:_KEPT_POSITIONS] = True
    masks = state.get("mask1"), state.get("mask2")
    for mask, expected in zip(masks, (first, ~first), strict=True):
        if mask is not None and not torch.equal(mask.reshape(-1, 1).bool(), expected):
            raise WeightsError(
                f"{_FILE} {shown(file)}: its masks do not keep the first {_KEPT_POSITIONS} "
                "positions, as those of a LongCLIP text tower do"
            )
    left = {k: v for k, v in state.items() if k not in (_SECOND_TABLE, "mask1", "mask2")}
    return left | {"positional_embedding": torch.where(first, table, second)}, len(table)


def _unusable(tensor: Tensor) -> str | None:
    """Say why a tensor is no array of real, finite numbers."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "is not a plain one (but sparse, quantised or without its numbers)"
    if tensor.is_complex():
        return "holds complex numbers"
    if not tensor.is_floating_point():
        return None
    # A sum of numbers one of which is NaN or infinite is not finite, and is taken at the speed of
    # memory. The other way round it need not be true, so that is looked at number by number.
    if tensor.element_size() > 1 and bool(tensor.detach().sum(dtype=torch.float32).isfinite()):
        return None
    finite = tensor.detach().float().isfinite()
    if bool(finite.all()):
        return None
    return f"holds NaN or infinite numbers ({int((~finite).sum()):,} of {finite.numel():,})"


def _load_safetensors(file: Path) -> object:
    from safetensors.torch import load_file

    try:
        return cast(object, load_file(file))
    except Exception as error:  # whatever a damaged file makes of the reader
        reason = file_looks_like(file) or _reason(error)
        raise WeightsError(f"{_FILE} {shown(file)} cannot be read as safetensors: {reason}") from (
            error
        )


def _load_torch(file: Path) -> object:
    if reason := _no_checkpoint(file):
        raise WeightsError(f"{_FILE} {shown(file)} is not a PyTorch checkpoint ({reason})")
    try:
        return cast(object, torch.load(file, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{_FILE} {shown(file)} holds more than tensors and would have to run code to load, or "
            "is damaged; get it again, save its state dict alone "
            "(torch.save(model.state_dict(), …)) or as .safetensors"
        ) from error
    except Exception as error:  # whatever a damaged file makes of torch's own unpickler
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{_FILE} {shown(file)} is a TorchScript archive (the original OpenAI release); "
                "use the tag instead, e.g. ViT-B-16/openai, or save its state dict as .safetensors"
            ) from error
        raise WeightsError(
            f"{_FILE} {shown(file)} is not a PyTorch checkpoint: {_reason(error)}"
        ) from error


def _no_checkpoint(file: Path) -> str | None:
    """Say why a file cannot be a checkpoint of torch, from how it begins."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not head:
        return "it is empty"
    if head.startswith((_ZIP, _PICKLE)):
        return _damaged(file)
    if head[_TAR_PLACE:].startswith(_TAR):
        return None
    return looks_like(head) or "it begins with something else"


def _damaged(file: Path) -> str | None:
    """Look through the pickles of a checkpoint, without making anything of them.

    The time that torch takes to complain of a name grows with the square of its length.
    """
    try:
        with ExitStack() as stack:
            opened: IO[bytes] = stack.enter_context(file.open("rb"))
            count = _LEGACY_PICKLES
            if opened.read(len(_ZIP)) == _ZIP:
                archive = stack.enter_context(zipfile.ZipFile(file))
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                opened, count = stack.enter_context(archive.open(names[0])), 1
            else:
                opened.seek(0)
            for _ in range(count):
                for code, argument, _place in pickletools.genops(opened):
                    if code.name == "GLOBAL" and len(argument or "") > _LONGEST_CLASS_LETTERS:
                        return "it is damaged: a name in it has no end"
                if opened.tell() == file.stat().st_size:
                    break
    except Exception as error:  # whatever a damaged file makes of two libraries
        return f"it is damaged: {_reason(error)}"
    return None


def _reason(error: Exception) -> str:
    return shown((str(error) or type(error).__name__).splitlines()[0])


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
