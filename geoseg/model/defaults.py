"""A model's own defaults, kept in ``geoseg.json`` beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from geoseg.errors import ModelError
from geoseg.options import Options, choices

DEFAULTS_FILE = "geoseg.json"
_WEIGHTS = "upsampler_weights"


def read_defaults(folder: Path) -> Mapping[str, Any]:
    """Read ``geoseg.json`` in a model's folder; nothing where there is none.

    Parameters
    ----------
    folder
        Where the model's weights lie.

    Returns
    -------
    Mapping
        Values by the names of those fields of `geoseg.options.Options` that a model may set.
        The path of ``upsampler_weights``, relative to the folder in the file, is absolute.

    Raises
    ------
    ModelError
        If the file is not a JSON object or a value has the wrong type.
    """
    file = folder / DEFAULTS_FILE
    if not file.is_file():
        return {}
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file} is not a JSON object of model defaults: {error}") from error
    types = get_type_hints(Options) | {_WEIGHTS: str}
    allowed = [name for name, chosen in choices(Options).items() if chosen.preferred is not None]
    found = {k: content[k] for k in (*allowed, _WEIGHTS) if content.get(k) is not None}
    for name, value in found.items():
        if not _fits(value, types[name]):
            raise ModelError(f"{file}: {name} is {value!r}, which is not a usable value")
    if _WEIGHTS in found:
        found[_WEIGHTS] = str(folder / found[_WEIGHTS])
    return found


def _fits(value: Any, hint: Any) -> bool:
    if get_args(hint) and get_origin(hint) is not tuple:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint
