"""A model's own defaults, kept in ``geoseg.json`` beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from geoseg._fields import choices
from geoseg._inputs import named_path, shown
from geoseg.errors import ModelError, OptionError
from geoseg.model.config import read_json
from geoseg.options import Options

DEFAULTS_FILE = "geoseg.json"
_FILE = "file of model defaults"
_WEIGHTS = "upsampler_weights"
_LARGEST_NUMBER = 1e6
"""Beyond all that a default says: pixels of a window, factors on logits."""


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
        If the file is not a JSON object or a value has the wrong type or cannot be.
    """
    file = folder / DEFAULTS_FILE
    if named_path(file, _FILE, ModelError) is None:
        return {}
    content = read_json(file, _FILE)
    types = get_type_hints(Options) | {_WEIGHTS: str}
    allowed = [name for name, chosen in choices(Options).items() if chosen.preferred is not None]
    found = {k: content[k] for k in (*allowed, _WEIGHTS) if content.get(k) is not None}
    for name, value in found.items():
        if not _fits(value, types[name]):
            raise ModelError(
                f"{shown(file)}: {name} is {shown(repr(value))}, which is not a usable value"
            )
    try:
        Options().resolve(found)
    except OptionError as error:
        raise ModelError(f"{shown(file)}: {error}") from error
    if _WEIGHTS in found:
        found[_WEIGHTS] = str(folder / found[_WEIGHTS])
    return found


def _fits(value: Any, hint: Any) -> bool:
    if get_args(hint) and get_origin(hint) is not tuple:
        return value in get_args(hint)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= _LARGEST_NUMBER  # NaN is not
    if hint is int:
        return type(value) is int and abs(value) <= _LARGEST_NUMBER
    return type(value) is hint
