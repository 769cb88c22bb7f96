"""What the values of a label array stand for, in the attributes that CF and GDAL know."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from geoseg.types import LabelClass, default_color

NAMELESS = (
    "its values are not those of its class names, or 0 and 1 alone as in a mask, so that they have "
    "no names; --classes names them"
)
"""What is said of a file with names that its values do not have."""
_TAG = re.compile(r"CLASS_(\d+)")
_COLOUR = re.compile("#[0-9a-fA-F]{6}")


def flags_of(classes: Sequence[LabelClass], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Attributes of labels: values, names and colours.

    Parameters
    ----------
    classes
        What the values stand for.
    dtype
        Type of the labels.

    Returns
    -------
    dict
        ``flag_values`` (of that type), ``flag_meanings`` and ``flag_colors`` (blanks between them,
        underscores for those in names), ``long_name``, ``units``, and a tag ``CLASS_i`` with the
        name as it is for each value.
    """
    return {
        **{f"CLASS_{item.index}": item.name for item in classes},
        "flag_values": np.array([item.index for item in classes], dtype),
        "flag_meanings": " ".join("_".join(item.name.split()) for item in classes),
        "flag_colors": " ".join(item.color for item in classes),
        "long_name": "class",
        "units": "1",
    }


def classes_in(attributes: Mapping[Any, Any]) -> tuple[LabelClass, ...]:
    """Classes that attributes, or tags of a file, tell; none where they do not.

    Names of ``CLASS_i`` are taken before those of ``flag_meanings``, which have lost their blanks.
    """
    named = {
        int(hit[1]): str(name)
        for key, name in attributes.items()
        if (hit := _TAG.fullmatch(str(key)))
    }
    values = _numbers(attributes.get("flag_values"))
    meanings = str(attributes.get("flag_meanings", "")).split()
    if len(values) == len(meanings):
        named = {v: m.replace("_", " ") for v, m in zip(values, meanings, strict=True)} | named
    colours = str(attributes.get("flag_colors", "")).split()
    if not (len(colours) == len(values) and all(map(_COLOUR.fullmatch, colours))):
        colours = []
    own = dict(zip(values, colours, strict=False))
    return tuple(
        LabelClass(value, name, own.get(value, default_color(value)).lower())
        for value, name in sorted(named.items())
    )


def without_flags(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """The attributes that `classes_in` does not look at."""
    return {
        key: value
        for key, value in attributes.items()
        if not _TAG.fullmatch(str(key)) and not str(key).startswith("flag_")
    }


def looks_like_mask(found: Collection[float], names: int) -> bool:
    """Whether values are 0 and 1 alone, as those of a mask, where more classes have names.

    What is computed of labels keeps their attributes, and a file does not say that it is a mask.
    """
    return set(found) == {0, 1} and names > 2


def _numbers(values: Any) -> list[int]:
    """Whole numbers of an attribute, which GDAL keeps as the text of an array."""
    if isinstance(values, str):
        values = re.findall(r"-?\d+", values)
    try:
        return [int(value) for value in np.ravel([] if values is None else values)]
    except (TypeError, ValueError):
        return []
