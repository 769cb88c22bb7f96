"""A model's own defaults, kept in ``geoseg.json`` beside its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from geoseg.errors import ModelError

DEFAULTS_FILE = "geoseg.json"


@dataclass(frozen=True)
class ModelDefaults:
    """Options a model prefers; None leaves the general default. An option given always wins."""

    window: int | None = None
    stride: int | None = None
    cls_bias: float | None = None
    logit_scale: float | None = None
    attention: str | None = None
    blend: str | None = None
    upsampler: str | None = None
    upsampler_weights: str | None = None
    """Absolute path after reading; relative to the folder in the file."""

    @classmethod
    def beside(cls, folder: Path) -> ModelDefaults:
        """Read ``geoseg.json`` in a model's folder; empty defaults where there is none.

        Raises
        ------
        ModelError
            If the file is not a JSON object or a value has the wrong type.
        """
        file = folder / DEFAULTS_FILE
        if not file.is_file():
            return cls()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            known = {
                f.name: content[f.name] for f in fields(cls) if content.get(f.name) is not None
            }
        except (ValueError, AttributeError, TypeError) as error:
            raise ModelError(f"{file} is not a JSON object of model defaults: {error}") from error
        for name, value in known.items():
            wanted = _TYPES[name]
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise ModelError(f"{file}: {name} is {value!r}, which is not a usable value")
        if "upsampler_weights" in known:
            known["upsampler_weights"] = str(folder / known["upsampler_weights"])
        return cls(**known)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "window": int,
    "stride": int,
    "cls_bias": (int, float),
    "logit_scale": (int, float),
    "attention": str,
    "blend": str,
    "upsampler": str,
    "upsampler_weights": str,
}
