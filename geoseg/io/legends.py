"""Names and colours of pixel values, from where GDAL, QGIS and ArcGIS keep them beside a raster."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from geoseg._address import as_given, is_address
from geoseg._inputs import is_file
from geoseg.errors import SceneError, not_found

Legend: TypeAlias = dict[int, tuple[str, str | None]]
"""Name of a value, and its colour ``#rrggbb`` if it has one."""

_VALUES = ("value", "val", "gridcode", "code", "id", "class_id")
_NAMES = ("class_name", "classname", "class", "label", "name", "category", "description", "legend")
_COLOURS = (("red", "r"), ("green", "g"), ("blue", "b"))
_USAGES = {"name": 2, "value": 5, "red": 6, "green": 7, "blue": 8}
"""What GDAL says a column of an attribute table is for."""


def legend_beside(path: str | Path) -> Legend:
    """Names and colours beside a raster: a QGIS style, an attribute table, or category names.

    The first that names a value counts; a file that cannot be understood is passed over.
    """
    raster = Path(path)
    found: Legend = {}
    for file in (
        raster.with_suffix(".qml"),
        raster.with_name(f"{raster.name}.aux.xml"),
        raster.with_name(f"{raster.name}.vat.dbf"),
        raster.with_suffix(".vat.dbf"),
    ):
        found = _read(file) | found
    return found


def legend_file(path: str | Path) -> Legend | None:
    """Names and colours in one such file that somebody gives; None for files of other kinds.

    Raises
    ------
    SceneError
        If it is there but names no value.
    """
    file = Path(path)
    if file.suffix.lower() not in _READERS:
        return None
    if is_address(path):
        raise SceneError(f"{as_given(path)}: such a file is read from this machine; fetch it first")
    found = _read(file)
    if not found:
        reason = "names no pixel value" if is_file(file) else "no such file"
        kind = not_found(SceneError) if reason == "no such file" else SceneError
        raise kind(f"{file}: {reason}")
    return found


def _read(file: Path) -> Legend:
    read = _READERS[file.suffix.lower()]
    try:
        if not file.is_file():
            return {}
        return {value: (name, colour) for value, name, colour in read(file) if name}
    except (OSError, ValueError, RuntimeError, OverflowError, ET.ParseError):
        return {}


def _of_style(file: Path) -> Iterator[tuple[int, str, str | None]]:
    for entry in ET.parse(file).iter("paletteEntry"):
        value = float(entry.get("value", "nan"))
        if value.is_integer():
            yield int(value), " ".join(entry.get("label", "").split()), entry.get("color")


def _of_metadata(file: Path) -> Iterator[tuple[int, str, str | None]]:
    root = ET.parse(file).getroot()
    band = root.find("PAMRasterBand")
    if band is None:
        return
    for value, category in enumerate(band.iterfind("CategoryNames/Category")):
        yield value, " ".join((category.text or "").split()), None
    table = band.find("GDALRasterAttributeTable")
    if table is None:
        return
    heads = [head.findtext("Name", "") for head in table.iterfind("FieldDefn")]
    usages = [int(head.findtext("Usage", "0")) for head in table.iterfind("FieldDefn")]
    rows = [[cell.text or "" for cell in row.iterfind("F")] for row in table.iterfind("Row")]
    yield from _of_table(heads, rows, usages)


def _of_dbf(file: Path) -> Iterator[tuple[int, str, str | None]]:
    import pyogrio

    table = pyogrio.read_dataframe(file, read_geometry=False)
    rows = [[str(cell) for cell in row] for row in table.itertuples(index=False)]
    yield from _of_table(list(map(str, table.columns)), rows, [0] * len(table.columns))


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, str, str | None]]]] = {
    ".qml": _of_style,
    ".xml": _of_metadata,
    ".dbf": _of_dbf,
}


def _of_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], usages: Sequence[int]
) -> Iterator[tuple[int, str, str | None]]:
    """Rows of an attribute table, whose columns are told by their use or their head."""
    known = [head.strip().lower() for head in heads]

    def column(use: str, words: Sequence[str]) -> int | None:
        by_use = [i for i, usage in enumerate(usages) if usage == _USAGES[use]]
        by_head = [known.index(word) for word in words if word in known]
        return next(iter(by_use + by_head), None)

    value, name = column("value", _VALUES), column("name", _NAMES)
    rgb = [column(words[0], words) for words in _COLOURS]
    if value is None or name is None:
        return
    for row in rows:
        number = float(row[value])
        if number.is_integer():
            yield (
                int(number),
                " ".join(row[name].split()),
                _colour([row[i] for i in rgb if i is not None]),
            )


def _colour(levels: Sequence[str]) -> str | None:
    """``#rrggbb`` of three levels, 0 to 255 or, as ArcGIS writes them too, 0 to 1."""
    if len(levels) != 3:
        return None
    numbers = [float(level) for level in levels]
    if all(0 <= n <= 1 for n in numbers) and any(n % 1 for n in numbers):
        numbers = [255 * n for n in numbers]
    if not all(0 <= n <= 255 for n in numbers):
        return None
    return "#" + "".join(f"{round(n):02x}" for n in numbers)
