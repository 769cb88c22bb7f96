"""Which class does a pixel value stand for, where somebody says more than the raster does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from geoseg._inputs import shown
from geoseg.errors import VocabularyError, warn
from geoseg.io.joined import join_labels
from geoseg.io.labels import LabelRaster
from geoseg.io.legends import Legend, legend_file
from geoseg.text._sources import RawVocabulary, read_source
from geoseg.text.vocabulary import Vocabulary, VocabularyClass, VocabularySource, fill_colors
from geoseg.types import LabelClass


def open_labels(
    path: str | Path | Sequence[str | Path], classes: VocabularySource | None = None
) -> LabelRaster:
    """Open a label raster, its values named and coloured as a legend says.

    Parameters
    ----------
    path
        Label raster, see `LabelRaster.open`; several are shown as one, see
        `geoseg.io.joined.join_labels`.
    classes
        A QGIS style (``.qml``), an attribute table (``.aux.xml``, ``.vat.dbf``), or anything that
        `Vocabulary.parse` takes. Classes in a table with a column ``value`` (or ``id``, ``code``,
        …) have these pixel values, others count from 0 in their order. What the legend leaves out
        stays as the raster has it.

    Raises
    ------
    VocabularyError, SceneError
        If the legend cannot be read, or classes in their order do not name a value that occurs.

    Warns
    -----
    GeosegWarning
        Where neither the legend nor the raster names a value that occurs.
    """
    if not isinstance(path, str | Path):
        return join_labels([open_labels(one, classes) for one in path])
    raster = LabelRaster.open(path, named=classes is not None)
    if classes is None:
        return raster
    legend, origin, in_order = _read(classes)
    occurring = {value for value, pixels in raster.counts().items() if pixels}
    missing = sorted(occurring - legend.keys())
    if in_order and missing:
        raise VocabularyError(
            f"{path}: holds value {missing[-1]}, and {origin} names {len(legend)} classes, which "
            f"are the values 0 to {len(legend) - 1} in their order; where values are others, give "
            "a CSV file with columns value and name"
        )
    own = {item.index: item.name for item in raster.classes}
    nameless = [value for value in missing if own.get(value, "") in ("", f"class {value}")]
    if nameless:
        warn(f"{path}: {origin} does not name {_listed(nameless)}, which occurs in it")
    possible = set(range(np.iinfo(raster.dtype).max + 1)) - {raster.nodata}
    names = {value: own.get(value) or f"class {value}" for value in missing}
    names |= {value: name for value, (name, _) in legend.items() if value in possible}
    names = dict(sorted(names.items()))
    colours = {value: colour for value, (_, colour) in legend.items() if colour}
    filled = _filled(names, dict(raster.colours) | colours)
    return replace(
        raster,
        classes=tuple(LabelClass(v, name, filled[v]) for v, name in names.items()),
        colours=filled,
    )


def named_classes(source: VocabularySource) -> tuple[LabelClass, ...]:
    """Read the classes of a legend, as `open_labels` takes it.

    Raises
    ------
    VocabularyError
        If it cannot be read.
    """
    legend, _, _ = _read(source)
    names = {value: name for value, (name, _) in sorted(legend.items())}
    filled = _filled(names, {value: colour for value, (_, colour) in legend.items() if colour})
    return tuple(LabelClass(value, name, filled[value]) for value, name in names.items())


def _read(classes: VocabularySource) -> tuple[Legend, str, bool]:
    """Read a legend: what it says, its name for messages, and whether only its order counts."""
    if isinstance(classes, str | Path) and (found := legend_file(classes)) is not None:
        return found, str(classes), False
    if isinstance(classes, Vocabulary):
        named = {item.index: (item.name, item.color) for item in classes.label_classes}
        return dict(named), "the vocabulary", True
    raw = read_source(classes)
    if not raw.classes:
        raise VocabularyError(f"{raw.origin}: there is no class in it")
    in_order = all(entry.number is None for entry in raw.classes)
    legend: Legend = {}
    for place, entry in enumerate(raw.classes):
        value = place if in_order else _value(raw, place)
        if value in legend:
            raise VocabularyError(f"{raw.origin}, {entry.where}: value {value} stands in it twice")
        try:
            checked = VocabularyClass(entry.name, (entry.name,), entry.color or "#000000")
        except VocabularyError as error:
            raise VocabularyError(f"{raw.origin}, {entry.where}: {error}") from None
        legend[value] = checked.name, checked.color if entry.color else None
    return legend, raw.origin, in_order


def _value(raw: RawVocabulary, place: int) -> int:
    """Pixel value of a class in a table that has some."""
    entry = raw.classes[place]
    try:
        value = float(entry.number or "")
        if value.is_integer():
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise VocabularyError(
        f"{raw.origin}, {entry.where}: '{shown(entry.number or '')}' is no pixel value; give a "
        "whole number to every class"
    )


def _filled(names: Mapping[int, str], colours: Mapping[int, str]) -> dict[int, str]:
    found = fill_colors(list(names.values()), [colours.get(value) for value in names])
    return dict(zip(names, found, strict=True))


def _listed(values: list[int]) -> str:
    shown_values = ", ".join(map(str, values[:5]))
    return f"value {shown_values}" + (f" and {len(values) - 5} more" if len(values) > 5 else "")
