"""Bent model folders, weights, class files and template files: refused in one line."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tools.faults.stand import LostError, Try, WrongError, content

SHORT_TRIES = 6
USES = ("labels alone",)

Bend = Callable[[Path, random.Random], Any]
_WEIGHTS, _CONFIG, _DEFAULTS = "open_clip_model.safetensors", "open_clip_config.json", "geoseg.json"
_ROWS = {_WEIGHTS: "weights", _CONFIG: "config", _DEFAULTS: "model defaults",
         "classes.toml": "class file", "templates.txt": "template file"}  # fmt: skip
_PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>no</body></html>\n"
_DEEP = 5000


def attempt(t: Try, *, short: bool) -> None:
    """Bend one file and run: exit 1 or 2, or the map that the sound file gives."""
    bends = list(BENDS)
    step = 13 if short else 1
    file, name = bends[t.number * step % len(bends)]
    t.fault, t.detail = f"bent {_ROWS[file]}", name
    model, out = t.here / "model", t.here / "out"
    shutil.copytree(t.stand.root / "model", model)
    shutil.copy(t.stand.root / "classes.toml", model)
    (model / "templates.txt").write_text("a photo of a {}\n")
    BENDS[file, name](model / file, t.rng)
    words = t.stand.arguments("labels alone", out, model)
    if file.startswith("classes"):
        words[words.index("--classes") + 1] = str(model / file)
    if file.startswith("templates"):
        words[words.index("--templates") + 1] = str(model / file)
    ended = t.run("labels alone", out, args=words)
    sound = t.stand.reference("labels alone") / "labels.tif"
    if ended.code == 0 and content(out / "labels.tif") != content(sound):
        raise WrongError("exit 0 with another map")
    if ended.code not in (0, 1, 2):
        raise LostError(str(ended))


def _tensor(name: str, change: Callable[[torch.Tensor, random.Random], torch.Tensor]) -> Bend:
    """Change one tensor."""

    def bend(file: Path, rng: random.Random) -> None:
        state = load_file(file)
        state[name] = change(state[name].clone(), rng).contiguous()
        save_file(state, file)

    return bend


def _one(value: float) -> Callable[[torch.Tensor, random.Random], torch.Tensor]:
    def change(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
        tensor.view(-1)[rng.randrange(tensor.numel())] = value
        return tensor

    return change


def _state(change: Callable[[dict[str, torch.Tensor], str], Any]) -> Bend:
    """Change the names of tensors, or all of them."""

    def bend(file: Path, rng: random.Random) -> None:
        state = load_file(file)
        change(state, rng.choice(sorted(state)))
        save_file(state, file)

    return bend


def _as(dtype: torch.dtype) -> Bend:
    return _state(lambda state, _: state.update({k: v.to(dtype) for k, v in state.items()}))


def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Bend:
    return lambda file, rng: file.write_bytes(change(file.read_bytes(), rng))


def _json(*path: str, value: Any) -> Bend:
    def bend(file: Path, rng: random.Random) -> None:
        inner = content = json.loads(file.read_text())
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        file.write_text(json.dumps(content))

    return bend


def _text(content: str | bytes) -> Bend:
    made = content.encode() if isinstance(content, str) else content
    return lambda file, rng: file.write_bytes(made)


def _pickled(make: Callable[[dict[str, torch.Tensor]], Any]) -> Bend:
    """Put a pickle in place of the safetensors file."""

    def bend(file: Path, rng: random.Random) -> None:
        state = load_file(file)
        file.unlink()
        torch.save(make(state), file.with_name("open_clip_pytorch_model.bin"))

    return bend


def _folder(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _pipe(file: Path, rng: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


_ANY_FILE: dict[str, Bend] = {
    "a page": _text(_PAGE),
    "empty": _text(b""),
    "zeros": _text(bytes(5000)),
    "noise": lambda file, rng: file.write_bytes(rng.randbytes(5000)),
    "a folder": _folder,
    "a pipe": _pipe,
    "a dangling link": lambda file, rng: (file.unlink(), file.symlink_to("nowhere")),
}
_VISUAL = "visual.transformer.resblocks.0.attn.in_proj_weight"
_BY_FILE: dict[str, dict[str, Bend]] = {
    _WEIGHTS: {
        "a NaN in the image tower": _tensor(_VISUAL, _one(float("nan"))),
        "a NaN in the text tower": _tensor("text_projection", _one(float("nan"))),
        "an infinity": _tensor("visual.proj", _one(float("inf"))),
        "a value near the largest": _tensor("visual.conv1.weight", _one(3e38)),
        "cut": _bytes(lambda data, rng: data[: rng.randrange(len(data))]),
        "cut by one byte": _bytes(lambda data, rng: data[:-1]),
        "its header flipped": _bytes(lambda data, rng: bytes([data[0] ^ 64]) + data[1:]),
        "float64": _as(torch.float64),
        "int64": _as(torch.int64),
        "bool": _as(torch.bool),
        "complex": _as(torch.complex64),
        "a tensor renamed": _state(lambda s, name: s.update({f"{name}x": s.pop(name)})),
        "a tensor missing": _state(lambda s, name: s.pop(name)),
        "all renamed": _state(lambda s, _: [s.update({f"x.{k}": s.pop(k)}) for k in list(s)]),
        "no tensors": _state(lambda s, _: s.clear()),
        "a tensor turned": _tensor("visual.positional_embedding", lambda x, _: x.T),
        "a tensor cut": _tensor("visual.proj", lambda x, _: x[:, :-1]),
        "a pickle of a list": _pickled(lambda state: [1, 2, 3]),
        "a pickle of code": _pickled(lambda state: random.Random(1)),
        "a pickle of names": _pickled(lambda state: dict.fromkeys(state, "x")),
    },
    _CONFIG: {
        "a list": _text("[1]"),
        "deep": _text("[" * _DEEP + "]" * _DEEP),
        "no architecture": _text('{"preprocess_cfg": {}}'),
        "patch 0": _json("model_cfg", "vision_cfg", "patch_size", value=0),
        "patch of words": _json("model_cfg", "vision_cfg", "patch_size", value="big"),
        "half a layer": _json("model_cfg", "vision_cfg", "layers", value=1.5),
        "another width": _json("model_cfg", "vision_cfg", "width", value=96),
        "a negative size": _json("model_cfg", "vision_cfg", "image_size", value=-64),
        "no vision": _json("model_cfg", "vision_cfg", value=None),
        "heads of 0": _json("model_cfg", "vision_cfg", "head_width", value=0),
        "text heads of 0": _json("model_cfg", "text_cfg", "heads", value=0),
        "another embedding": _json("model_cfg", "embed_dim", value=-1),
        "std 0": _json("preprocess_cfg", "std", value=[0, 0, 0]),
        "std NaN": _json("preprocess_cfg", "std", value=[float("nan")] * 3),
        "mean of two": _json("preprocess_cfg", "mean", value=[0.5, 0.5]),
        "mean of words": _json("preprocess_cfg", "mean", value="grey"),
        "mean infinite": _json("preprocess_cfg", "mean", value=[float("inf")] * 3),
    },
    _DEFAULTS: {
        "a list": _text("[1]"),
        "deep": _text("[" * _DEEP + "]" * _DEEP),
        "window of less than nothing": _json("window", value=-64),
        "window of words": _json("window", value="big"),
        "a stride beyond the window": _json("stride", value=4096),
        "bias NaN": _json("cls_bias", value=float("nan")),
        "scale infinite": _json("logit_scale", value=float("inf")),
        "no such attention": _json("attention", value="nope"),
        "no such upsampler": _json("upsampler", value="nope"),
    },
    "classes.toml": {
        "nested": _text("x = " + "[" * _DEEP + "]" * _DEEP),
        "no classes": _text("# nothing\n"),
        "a number": _text("[[class]]\nname = 3\n"),
        "a name of nothing": _text('[[class]]\nname = ""\n'),
        "UTF-16": _text("﻿[[class]]\nname = 'x'\n".encode("utf-16")),
        "cut": _bytes(lambda data, rng: data[:-2]),
    },
    "templates.txt": {
        "no place": _text("a photo\n"),
        "only comments": _text("# none\n"),
    },
}
_ANY_FILES_OF = {_DEFAULTS: ("a page", "empty", "noise", "a folder"),
                 _CONFIG: ("a page", "empty", "noise", "a folder", "a pipe")}  # fmt: skip
BENDS: dict[tuple[str, str], Bend] = {
    (file, name): bend
    for file, bends in _BY_FILE.items()
    for name, bend in (
        {n: b for n, b in _ANY_FILE.items() if n in _ANY_FILES_OF.get(file, _ANY_FILE)} | bends
    ).items()
}
TRIES = len(BENDS)
