"""A model's ``open_clip_config.json``: an architecture and numbers that can be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoseg._inputs import looks_like, named_file, read_at_most, shown
from geoseg.errors import ModelError

CONFIG_FILE = "open_clip_config.json"

_LARGEST_FILE_BYTES = 2**20
_FILE = "model config"
# Largest whole numbers, several times those of the largest CLIP there is (ViT-bigG).
_SECTIONS: dict[str, dict[str, int]] = {
    "vision_cfg": {
        "layers": 512,
        "width": 2**14,
        "head_width": 2**14,
        "patch_size": 512,
        "image_size": 2**13,
    },
    "text_cfg": {
        "layers": 512,
        "width": 2**14,
        "heads": 2**10,
        "context_length": 2**13,
        "vocab_size": 2**22,
    },
}
_LARGEST_EMBEDDING = 2**14
_LARGEST_RATIO = 64.0
_STD_RANGE = (1e-6, 1e6)
_MEAN_RANGE = (-1e6, 1e6)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a small JSON file that holds an object.

    Raises
    ------
    ModelError
        If it is not there, not a regular file, too large, or something else.
    """
    file = named_file(path, what, ModelError)
    data = read_at_most(file, what, ModelError, _LARGEST_FILE_BYTES)
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = looks_like(data) or shown(error)
        raise ModelError(f"{what} {shown(file)} is not JSON: {reason}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{what} {shown(file)} is not a JSON object, as in {{…}}")
    return content


def read_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a config of open_clip: the ``model_cfg`` and the ``preprocess_cfg``.

    Raises
    ------
    ModelError
        If the file is no such config or a number in it cannot be; the message names its key.
    """
    content = read_json(file, _FILE)
    if "model_cfg" not in content:
        raise ModelError(f"{shown(file)} is not an open_clip config with a model_cfg")
    where = shown(file)
    model = _section(content, "model_cfg", where)
    preprocess = _section(content, "preprocess_cfg", where)
    if "embed_dim" in model:
        _require_whole(model["embed_dim"], _LARGEST_EMBEDDING, f"{where}: model_cfg.embed_dim")
    for name, limits in _SECTIONS.items():
        section = _section(model, name, where)
        for key in limits.keys() & section.keys():
            if (name, key) == ("vision_cfg", "layers") and isinstance(section[key], list):
                continue  # a ResNet, which is refused as one
            for value in _sides(section[key]) if key == "image_size" else (section[key],):
                _require_whole(value, limits[key], f"{where}: model_cfg.{name}.{key}")
        if "mlp_ratio" in section:
            place = f"{where}: model_cfg.{name}.mlp_ratio"
            _require_within(section["mlp_ratio"], (1 / _LARGEST_RATIO, _LARGEST_RATIO), place)
    for key, limits_of_key in (("mean", _MEAN_RANGE), ("std", _STD_RANGE)):
        if preprocess.get(key) is None:
            continue
        values, place = preprocess[key], f"{where}: preprocess_cfg.{key}"
        if not isinstance(values, list) or len(values) != 3:
            raise ModelError(f"{place} is {shown(values)}; give three numbers")
        for value in values:
            _require_within(value, limits_of_key, place)
    return model, preprocess


def described_weights(model: Mapping[str, Any]) -> int:
    """How many numbers the weights of a ``model_cfg`` have, roughly; never far too many."""
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    rows, columns = (_sides(vision.get("image_size", 224)) * 2)[:2]
    tokens = (rows // vision.get("patch_size", 16)) * (columns // vision.get("patch_size", 16))
    words = text.get("vocab_size", 49408)
    return _of_blocks(vision, 768, tokens) + _of_blocks(text, 512, words)


def _of_blocks(section: Mapping[str, Any], usual_width: int, rows: int) -> int:
    """Weights of a tower: those of its blocks, and a vector of each of so many rows."""
    width, layers = section.get("width", usual_width), section.get("layers", 12)
    block = (4 + 2 * section.get("mlp_ratio", 4.0)) * width**2
    return int(layers * block + rows * width)


def _section(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    section = content.get(key, {})
    if not isinstance(section, dict):
        raise ModelError(f"{where}: {key} is {shown(repr(section))}; it must be a JSON object")
    return section


def _sides(size: Any) -> list[Any]:
    return size if isinstance(size, list) and len(size) == 2 else [size]


def _require_whole(value: Any, most: int, place: str) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ModelError(f"{place} is {shown(repr(value))}; give a whole number from 1 to {most}")


def _require_within(value: Any, limits: tuple[float, float], place: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and limits[0] <= value <= limits[1]):  # nor is NaN
        raise ModelError(
            f"{place} has {shown(repr(value))} in it; "
            f"give numbers from {limits[0]:g} to {limits[1]:g}"
        )
