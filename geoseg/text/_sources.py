"""The ways people write down classes, each read into the same raw entries."""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geoseg._address import as_given, is_address, scene_name
from geoseg._inputs import shown
from geoseg.errors import VocabularyError, warn
from geoseg.text._files import collapse, content_lines, read_utf8

_FILE = "class file"
# A dotted key of 100 parts: the time that tomllib takes grows with the square of their number.
_ENDLESS_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){100}""")
_COLUMNS = {
    **dict.fromkeys(("name", "class", "class_name", "classname", "label"), "name"),
    **dict.fromkeys(("prompts", "prompt", "synonyms", "queries", "words"), "prompts"),
    **dict.fromkeys(("color", "colour", "hex"), "color"),
    "threshold": "threshold",
    "offset": "offset",
    **dict.fromkeys(("descriptions", "description", "definition"), "descriptions"),
    "example": "example",
    "share": "share",
    "hidden": "hidden",
}
"""Heads of columns, and keys of JSON objects, and what they mean."""
_RUNS = "geoseg/run/"
"""How a ``run.json`` says what it is."""
_OF_RUN = ("name", "queries", "color", "threshold", "offset", "descriptions", "example", "share")
_HIDDEN = ("name", "color", "offset", "example", "share")
_NUMBERS = ("value", "class_id", "code", "index", "id")
"""Heads of columns that may hold pixel values, the likeliest first."""
_LEVELS = ("red", "green", "blue")
_HEX = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6}|[0-9a-fA-F]{8})")
_TOML_KEYS = (
    *("name", "prompts", "color", "threshold", "offset", "descriptions", "example", "share"),
    "hidden",
)


@dataclass(frozen=True)
class RawClass:
    """One class as it was written, and where."""

    where: str
    """Place inside the source, for messages: "line 3"."""
    name: str
    prompts: tuple[str, ...]
    color: str | None = None
    threshold: float | None = None
    offset: float = 0.0
    descriptions: tuple[str, ...] = ()
    example: tuple[float, ...] = ()
    share: float = 0.5
    hidden: bool = False
    """Whether it only takes what is none of the others."""
    number: str | None = None
    """As it stands in a table: the pixel value in a legend, no matter elsewhere."""


@dataclass(frozen=True)
class RawVocabulary:
    """All classes of one source."""

    origin: str
    """The source itself, for messages: a file name, or "class list"."""
    classes: tuple[RawClass, ...]


def read_source(source: object) -> RawVocabulary:
    """Read classes from a path, an inline string, a sequence or a mapping.

    Raises
    ------
    VocabularyError
        If the source is of another type, or unreadable, or breaks its own format.
    """
    if isinstance(source, Path) or (isinstance(source, str) and _means_a_file(source)):
        return _from_file(as_given(source))
    if isinstance(source, str):
        return RawVocabulary("class list", _from_inline(source))
    if isinstance(source, Mapping):
        return RawVocabulary("class mapping", _from_mapping(source))
    if hasattr(source, "columns") and hasattr(source, "itertuples"):
        return RawVocabulary("class table", _from_frame(source))
    if isinstance(source, Sequence) and not isinstance(source, bytes | bytearray):
        return RawVocabulary("class list", _from_sequence(source))
    raise VocabularyError(
        f"classes cannot be read from a {type(source).__name__}: give a file, a string like "
        "'building,roof;road;water', a list, a mapping from names to prompts or a DataFrame"
    )


def _means_a_file(text: str) -> bool:
    """Decide between a path and inline classes.

    What exists is a file, or a pipe or device, which is refused as one. Inline classes need a
    ``;`` (one class alone is refused anyway), so a string without one is meant as a file if its
    ending or a separator says so.
    """
    if not text.strip() or "\n" in text or "\0" in text:
        return False
    if is_address(text.strip()) and ";" not in text.partition("?")[0]:
        return True
    try:
        path = Path(text).expanduser()
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            return True
    except (OSError, RuntimeError, ValueError):  # longer than a path may be; an unknown "~user"
        pass
    if text.lower().endswith(_SUFFIXES):
        return True
    separators = {"/", os.sep, os.altsep or os.sep}
    return ";" not in text and any(separator in text for separator in separators)


def _from_file(path: str) -> RawVocabulary:
    suffix = Path(scene_name(path)).suffix.lower()
    if suffix in _NOT_READ:
        raise VocabularyError(f"{_origin(path)} is {_NOT_READ[suffix]}; save it as .csv or .txt")
    return RawVocabulary(_origin(path), _READERS.get(suffix, _from_text)(path))


def _origin(path: str) -> str:
    return f"{_FILE} {shown(path)}"


def _from_text(path: str) -> tuple[RawClass, ...]:
    origin = _origin(path)
    lines = content_lines(path, _FILE)
    _refuse_other_formats([line for _, line in lines], origin)
    return tuple(_from_words(line, origin, f"line {number}") for number, line in lines)


def _refuse_other_formats(lines: Sequence[str], origin: str) -> None:
    """Refuse JSON, tables, TOML and XML under a name that does not say so."""
    first = lines[0]
    if first.startswith("[["):
        raise VocabularyError(f"{origin} holds TOML; name it .toml")
    if first in ("{", "[") or (first[0] in "{[" and lines[-1][-1] in "}]"):
        raise VocabularyError(f"{origin} holds JSON; name it .json")
    if all(line.startswith("- ") for line in lines):
        raise VocabularyError(f"{origin} holds YAML; write one class a line, without the dash")
    if first.startswith(("<?xml", "<!DOCTYPE", "<qgis")):
        raise VocabularyError(f"{origin} holds XML; write one class a line, synonyms after commas")
    header = [_plain(cell) for cell in re.split(r"[,;\t]", first)]
    meant = {_COLUMNS.get(cell, "number" if cell in _NUMBERS else None) for cell in header}
    if len(meant - {None}) > 1:
        raise VocabularyError(
            f"{origin} begins like a table ('{shown(first)}'); name it .csv, or leave that line out"
        )


def _from_csv(path: str) -> tuple[RawClass, ...]:
    """A table whose header says which column holds names, and maybe prompts and colours."""
    origin = _origin(path)
    text = read_utf8(path, _FILE)
    rows = [line for line in text.split("\n") if line.strip()]
    if not rows:
        raise VocabularyError(f"{origin} is empty")
    separator = max(",;\t", key=rows[0].count)
    try:
        table = list(csv.reader(text.split("\n"), delimiter=separator, strict=True))
    except csv.Error as error:
        raise VocabularyError(f"{origin} is not valid CSV: {shown(error)}") from None
    lines = [(n, cells) for n, cells in enumerate(table, start=1) if any(c.strip() for c in cells)]
    if lines[0][1][0].startswith("#"):
        lines[0][1][0] = lines[0][1][0].lstrip("# ")
    header = [_COLUMNS.get(_plain(cell)) for cell in lines[0][1]]
    if header.count("name") != 1:
        raise VocabularyError(
            f"{origin}, line {lines[0][0]}: no one column is headed name or class; it has "
            f"{', '.join(shown(cell) for cell in lines[0][1])}; write a header like name,prompts,"
            "color"
        )
    plain = [_plain(cell) for cell in lines[0][1]]
    numbered = next((plain.index(head) for head in _NUMBERS if head in plain), len(plain))
    levels = [plain.index(head) for head in _LEVELS if head in plain]

    def read(line: int, cells: list[str]) -> RawClass:
        row = _row(header, cells, f"{origin}, line {line}")
        if len(levels) == len(_LEVELS) and "color" not in row and len(cells) > max(levels):
            row["color"] = _hex([cells[at] for at in levels])
        number = collapse("".join(cells[numbered : numbered + 1])) or None
        return replace(_from_table(row, origin, f"line {line}"), number=number)

    return tuple(read(line, cells) for line, cells in lines[1:])


def _hex(levels: Sequence[str]) -> str | None:
    """``#rrggbb`` of red, green and blue from 0 to 255; None for other words."""
    words = [collapse(level) for level in levels]
    if not all(word.isdecimal() and len(word) < 4 and int(word) <= 255 for word in words):
        return None
    return "#" + "".join(f"{int(word):02x}" for word in words)


def _row(header: Sequence[str | None], cells: Sequence[str], where: str) -> dict[str, Any]:
    """One line of a table as the table of a TOML file would be; empty cells are left out."""
    if len(cells) > len(header):
        raise VocabularyError(
            f"{where}: {len(cells)} cells under a header of {len(header)}; put a cell that holds "
            "the separator in double quotes"
        )
    row: dict[str, Any] = {}
    for key, cell in zip(header, map(collapse, cells), strict=False):
        if key is None or not cell:
            continue
        if key == "prompts":
            row[key] = [word for word in map(collapse, re.split(r"[,;|]", cell)) if word]
        elif key in ("threshold", "offset"):
            row[key] = _number(cell, key, where)
        elif key == "descriptions":
            row[key] = [cell]
        else:
            row[key] = cell
    if "prompts" in row and "name" in row and row["name"] not in row["prompts"]:
        row["prompts"] = [row["name"], *row["prompts"]]
    return row


def _number(cell: str, key: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise VocabularyError(f"{where}: {key} '{shown(cell)}' is not a number") from None


def _plain(cell: str) -> str:
    return collapse(cell).strip("\"'# ").lower().replace(" ", "_")


def _from_json(path: str) -> tuple[RawClass, ...]:
    """An object of names and prompts, or a list of names, of lists of prompts or of objects."""
    origin = _origin(path)
    try:
        found = json.loads(read_utf8(path, _FILE), object_pairs_hook=_unique_keys)
    except RecursionError:
        raise VocabularyError(f"{origin} is nested too deeply") from None
    except ValueError as error:
        raise VocabularyError(f"{origin} is not valid JSON: {shown(error)}") from None
    if isinstance(found, Mapping) and str(found.get("schema", "")).startswith(_RUNS):
        found = [
            {key: value for key, value in one.items() if key in kept} | more
            for name, kept, more in (
                ("classes", _OF_RUN, {}),
                ("hidden", _HIDDEN, {"hidden": True, "prompts": []}),
            )
            for one in found.get(name, ())
            if isinstance(one, Mapping)
        ]
    if isinstance(found, Mapping) and set(found) == {"classes"}:
        found = found["classes"]
    if isinstance(found, Mapping):
        for name, value in found.items():
            if not isinstance(value, str | list) or (
                isinstance(value, list) and not all(isinstance(word, str) for word in value)
            ):
                raise VocabularyError(
                    f"{origin}, '{shown(name)}': write prompts as a list of strings, like "
                    '{"water": ["lake", "river"], "tree": []}'
                )
        return _from_mapping({name: _with_name(name, value) for name, value in found.items()})
    if not isinstance(found, list):
        raise VocabularyError(f"{origin}: write an object of names and prompts, or a list of names")
    return tuple(
        replace(
            _from_table(_unaliased(item, f"{origin}, class {n}"), origin, f"class {n}"),
            number=_number_in(item),
        )
        if isinstance(item, Mapping)
        else _from_items(item, origin, n)
        for n, item in enumerate(found, start=1)
    )


def _number_in(item: Mapping[str, Any]) -> str | None:
    """Number of a class in a JSON object."""
    numbers = {_plain(key): value for key, value in item.items() if _plain(key) in _NUMBERS}
    return next((str(numbers[key]) for key in _NUMBERS if key in numbers), None)


def _from_items(item: object, origin: str, number: int) -> RawClass:
    try:
        return replace(_from_sequence([item])[0], where=f"class {number}")
    except VocabularyError:
        raise VocabularyError(
            f"{origin}, class {number}: write a name, a list of prompts or an object with name"
        ) from None


def _with_name(name: str, prompts: str | list[str]) -> list[str]:
    """Prompts with the class's name before them, which is what its key says it is."""
    words = [collapse(word) for word in prompts.split(",")] if isinstance(prompts, str) else prompts
    known = {word.casefold() for word in words}
    return words if name.casefold() in known else [name, *words]


def _unaliased(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An object with the keys of a TOML table; numbers of classes play no part."""
    table: dict[str, Any] = {}
    for key, value in item.items():
        known = _COLUMNS.get(_plain(key))
        if known is None and _plain(key) in _NUMBERS:
            continue
        if known in table:
            raise VocabularyError(f"{where}: two keys mean {known}; keep one of them")
        table[known or key] = value
    return table


def _as_written(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A mapping of Python's, whose prompts may be one string."""
    table = _unaliased(item, where)
    if isinstance(table.get("prompts"), str):
        table["prompts"] = [w for w in map(collapse, table["prompts"].split(",")) if w]
    return table


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key '{key}' stands in it twice")
        seen[key] = value
    return seen


def _from_inline(text: str) -> tuple[RawClass, ...]:
    pieces = [collapse(piece) for piece in re.split(r"[;\r\n]", text)]
    if not any(pieces):
        raise VocabularyError("class list: it is empty; write it like 'building,roof;road;water'")
    if not all(pieces) and ";" in text:
        _warn("class list", f"a class is empty in '{shown(collapse(text))}' and is skipped")
    kept = [piece for piece in pieces if piece]
    if len(kept) == 1 and "," in kept[0]:
        raise VocabularyError(
            f"class list: '{shown(kept[0])}' is one class with synonyms, and one class cannot be "
            "told from anything; separate classes with ';', as in 'building,roof;road;water'"
        )
    return tuple(
        _from_words(piece, "class list", f"class {number}")
        for number, piece in enumerate(kept, start=1)
    )


def _from_words(words: str, origin: str, where: str) -> RawClass:
    """Read ``name, synonym, synonym``; empty ones are skipped with a warning.

    A colour among them is the class's.
    """
    pieces = [collapse(piece) for piece in words.split(",")]
    kept, color = _without_color(tuple(piece for piece in pieces if piece), origin, where)
    if not kept:
        raise VocabularyError(f"{origin}, {where}: '{shown(words)}' names no class")
    if not all(pieces):
        _warn(origin, f"{where}: an empty name between commas in '{shown(words)}' is skipped")
    return RawClass(where, kept[0], kept, color)


def _without_color(
    words: Sequence[str], origin: str, where: str
) -> tuple[tuple[str, ...], str | None]:
    """Words that are asked for, and the colour that stood among them, if one did."""
    colors = [word for word in words if _HEX.fullmatch(word)]
    if len(colors) > 1:
        raise VocabularyError(f"{origin}, {where}: has two colours, {' and '.join(colors[:2])}")
    color = colors[0].lower() if colors else None
    if color is not None and len(color) < 7:
        color = "#" + "".join(2 * digit for digit in color[1:4])
    kept = tuple(word for word in words if not _HEX.fullmatch(word))
    return kept, None if color is None else color[:7]


def _from_item(item: Sequence[Any], where: str) -> RawClass:
    """A class as a list: name or prompts, and maybe a colour, also as three levels."""
    words: list[str] = []
    color = None
    for part in item:
        if _is_level(part):
            levels = [value for value in item if _is_level(value)]
            color = _hex([str(value) for value in levels])
            if len(levels) != len(_LEVELS) or color is None:
                raise VocabularyError(
                    f"class list, {where}: write a colour as '#rrggbb' or as three numbers from 0 "
                    "to 255"
                )
        elif isinstance(part, list | tuple):
            nested = _from_item(part, where)
            words += nested.prompts
            color = nested.color or color
        elif part is not None:
            words += _strings([part], "class list", where)
    kept, told = _without_color(words, "class list", where)
    name = kept[0] if kept else ""
    return RawClass(where, name, tuple(dict.fromkeys(kept)), told or color)


def _is_level(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer()


def _from_frame(frame: Any) -> tuple[RawClass, ...]:
    """A table as pandas has it, with the columns of a CSV file."""
    header = [_COLUMNS.get(_plain(str(column))) for column in frame.columns]
    if header.count("name") != 1:
        raise VocabularyError(
            "class table: no one column is headed name or class; it has "
            f"{shown(', '.join(map(str, frame.columns)) or 'none')}"
        )
    plain = [_plain(str(column)) for column in frame.columns]
    numbered = next((plain.index(head) for head in _NUMBERS if head in plain), len(plain))
    classes = []
    for line, row in enumerate(frame.itertuples(index=False), start=1):
        cells = [
            ",".join(map(str, cell))
            if isinstance(cell, list | tuple)
            else ""
            if cell is None or cell != cell
            else str(cell)
            for cell in row
        ]
        where = f"row {line}"
        number = collapse("".join(cells[numbered : numbered + 1])) or None
        table = _row(header, cells, f"class table, {where}")
        classes.append(replace(_from_table(table, "class table", where), number=number))
    return tuple(classes)


def _from_sequence(items: Sequence[object]) -> tuple[RawClass, ...]:
    classes = []
    for number, item in enumerate(items, start=1):
        where = f"class {number}"
        if isinstance(item, str):
            classes.append(_from_words(item, "class list", where))
            continue
        if isinstance(item, Mapping):
            table = _as_written(item, f"class list, {where}")
            classes.append(_from_table(table, "class list", where))
            continue
        if hasattr(item, "prompts") and hasattr(item, "color"):  # a VocabularyClass
            one: Any = item
            classes.append(
                RawClass(
                    where,
                    one.name,
                    one.prompts,
                    one.color,
                    one.threshold,
                    one.offset,
                    one.descriptions,
                    one.example,
                    one.share,
                )
            )
            continue
        if not isinstance(item, list | tuple):
            raise VocabularyError(f"class list, {where}: prompts must be a list of strings")
        found = _from_item(item, where)
        if not found.prompts:
            raise VocabularyError(f"class list, {where}: the list of its prompts is empty")
        classes.append(found)
    return tuple(classes)


def _from_mapping(items: Mapping[Any, Any]) -> tuple[RawClass, ...]:
    classes = []
    for number, (name, value) in enumerate(items.items(), start=1):
        where = f"class {number}"
        if not isinstance(name, str):
            raise VocabularyError(
                f"class mapping, {where}: its name {shown(repr(name))} is not a string"
            )
        if isinstance(value, Mapping):
            table = {"name": name} | _as_written(value, f"class mapping, '{shown(name)}'")
            classes.append(_from_table(table, "class mapping", where))
            continue
        words = value.split(",") if isinstance(value, str) else value
        if not isinstance(words, list | tuple):
            raise VocabularyError(f"class mapping, {where}: prompts must be a list of strings")
        found = _from_item([collapse(w) if isinstance(w, str) else w for w in words], where)
        prompts = tuple(word for word in found.prompts if word)
        if isinstance(value, str) and not prompts and found.color is None:
            raise VocabularyError(f"class mapping, {where}: '{shown(value)}' names no class")
        classes.append(RawClass(where, name, prompts or (name,), found.color))
    return tuple(classes)


def _from_toml(path: str) -> tuple[RawClass, ...]:
    origin = _origin(path)
    text = read_utf8(path, _FILE)
    nested = f"{origin} is nested too deeply; write [[class]] tables"
    if _ENDLESS_KEY.search(text):
        raise VocabularyError(nested)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise VocabularyError(nested) from None
    except ValueError as error:  # of TOML, or of Python where a number has thousands of digits
        raise VocabularyError(f"{origin} is not valid TOML: {shown(error)}") from None
    _refuse_unknown(table, ("class",), origin)
    entries = table.get("class", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise VocabularyError(f"{origin}: write classes as [[class]] tables, with two brackets")
    if not entries:
        raise VocabularyError(f"{origin} has no [[class]] table")
    return tuple(
        _from_table(entry, origin, f"class {number}")
        for number, entry in enumerate(entries, start=1)
    )


def _from_table(table: dict[str, Any], origin: str, where: str) -> RawClass:
    _refuse_unknown(table, _TOML_KEYS, f"{origin}, {where}")
    name, color, threshold = table.get("name"), table.get("color"), table.get("threshold")
    offset = table.get("offset", 0.0)
    if not isinstance(name, str):
        raise VocabularyError(f'{origin}, {where}: name must be a string, as in name = "road"')
    if color is not None and not isinstance(color, str):
        raise VocabularyError(f'{origin}, {where}: color must be a string like "#1f7a3d"')
    if threshold is not None and not _is_number(threshold):
        raise VocabularyError(f"{origin}, {where}: threshold must be a number from 0 to 1")
    if not _is_number(offset):
        raise VocabularyError(f"{origin}, {where}: offset must be a number from -1 to 1")
    example, share = table.get("example", ()), table.get("share", 0.5)
    if not isinstance(example, list | tuple) or not all(map(_is_number, example)):
        raise VocabularyError(f"{origin}, {where}: example must be a list of numbers")
    if not _is_number(share):
        raise VocabularyError(f"{origin}, {where}: share must be a number from 0 to 1")
    hidden = table.get("hidden", False)
    if not isinstance(hidden, bool):
        raise VocabularyError(f"{origin}, {where}: hidden must be true or false")
    given = table.get("prompts", [name])
    prompts, own = _without_color(_strings(given, origin, where), origin, where)
    color = color or own
    if not prompts and not example:
        raise VocabularyError(f"{origin}, {where}: prompts is empty; leave it out or fill it")
    described = _strings(table.get("descriptions", ()), origin, where, "descriptions")
    return RawClass(
        where, name, prompts, color, threshold, offset, described, tuple(example), share, hidden
    )


def _strings(value: object, origin: str, where: str, key: str = "prompts") -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise VocabularyError(f"{origin}, {where}: {key} must be a list of strings")
    return tuple(value)


def _refuse_unknown(table: dict[str, Any], known: Sequence[str], origin: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(shown(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise VocabularyError(f"{origin}: unknown key {shown(key)}; {hint}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_READERS = {".toml": _from_toml, ".json": _from_json, ".csv": _from_csv, ".tsv": _from_csv}
_SUFFIXES = (".txt", *_READERS)
_NOT_READ = {
    ".xlsx": "an Excel workbook",
    ".xls": "an Excel workbook",
    ".ods": "a spreadsheet",
    ".yaml": "YAML",
    ".yml": "YAML",
    ".xml": "XML",
    ".qml": "a QGIS style",
    ".docx": "a Word document",
    ".pdf": "a PDF",
}
"""Files that people keep classes in and that are refused by name."""


def _warn(origin: str, message: str) -> None:
    warn(f"{origin}: {message}")
