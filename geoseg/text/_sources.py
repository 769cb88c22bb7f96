"""The ways people write down classes, each read into the same raw entries."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg._inputs import shown
from geoseg.errors import GeosegWarning, VocabularyError
from geoseg.text._files import collapse, content_lines, read_utf8

_FILE = "class file"
# A dotted key of 100 parts: the time that tomllib takes grows with the square of their number.
_ENDLESS_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){100}""")
_TOML_KEYS = ("name", "prompts", "color", "threshold", "offset")


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
        return _from_file(Path(source))
    if isinstance(source, str):
        return RawVocabulary("class list", _from_inline(source))
    if isinstance(source, Mapping):
        return RawVocabulary("class mapping", _from_mapping(source))
    if isinstance(source, Sequence) and not isinstance(source, bytes | bytearray):
        return RawVocabulary("class list", _from_sequence(source))
    raise VocabularyError(
        f"classes cannot be read from a {type(source).__name__}: give a file, a string like "
        "'building,roof;road;water', a list or a mapping from names to prompts"
    )


def _means_a_file(text: str) -> bool:
    """Decide between a path and inline classes.

    What exists is a file, or a pipe or device, which is refused as one. Inline classes need a
    ``;`` (one class alone is refused anyway), so a string without one is meant as a file if its
    ending or a separator says so.
    """
    if not text.strip() or "\n" in text or "\0" in text:
        return False
    try:
        path = Path(text).expanduser()
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            return True
    except (OSError, RuntimeError, ValueError):  # longer than a path may be; an unknown "~user"
        pass
    if text.lower().endswith((".txt", ".toml")):
        return True
    separators = {"/", os.sep, os.altsep or os.sep}
    return ";" not in text and any(separator in text for separator in separators)


def _from_file(path: Path) -> RawVocabulary:
    read = _from_toml if path.suffix.lower() == ".toml" else _from_text
    return RawVocabulary(_origin(path), read(path))


def _origin(path: Path) -> str:
    return f"{_FILE} {shown(path)}"


def _from_text(path: Path) -> tuple[RawClass, ...]:
    origin = _origin(path)
    return tuple(
        _from_words(line, origin, f"line {number}") for number, line in content_lines(path, _FILE)
    )


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
    """Read ``name, synonym, synonym``; empty ones are skipped with a warning."""
    pieces = [collapse(piece) for piece in words.split(",")]
    kept = tuple(piece for piece in pieces if piece)
    if not kept:
        raise VocabularyError(f"{origin}, {where}: '{shown(words)}' names no class")
    if len(kept) < len(pieces):
        _warn(origin, f"{where}: an empty name between commas in '{shown(words)}' is skipped")
    return RawClass(where, kept[0], kept)


def _from_sequence(items: Sequence[object]) -> tuple[RawClass, ...]:
    classes = []
    for number, item in enumerate(items, start=1):
        where = f"class {number}"
        if isinstance(item, str):
            classes.append(_from_words(item, "class list", where))
            continue
        prompts = _strings(item, "class list", where)
        if not prompts:
            raise VocabularyError(f"class list, {where}: the list of its prompts is empty")
        classes.append(RawClass(where, prompts[0], prompts))
    return tuple(classes)


def _from_mapping(items: Mapping[Any, Any]) -> tuple[RawClass, ...]:
    classes = []
    for number, (name, value) in enumerate(items.items(), start=1):
        where = f"class {number}"
        if not isinstance(name, str):
            raise VocabularyError(
                f"class mapping, {where}: its name {shown(repr(name))} is not a string"
            )
        if isinstance(value, str):
            prompts = _from_words(value, "class mapping", where).prompts
        else:
            prompts = _strings(value, "class mapping", where)
        classes.append(RawClass(where, name, prompts or (name,)))
    return tuple(classes)


def _from_toml(path: Path) -> tuple[RawClass, ...]:
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
    prompts = _strings(table.get("prompts", [name]), origin, where)
    if not prompts:
        raise VocabularyError(f"{origin}, {where}: prompts is empty; leave it out or fill it")
    return RawClass(where, name, prompts, color, threshold, offset)


def _strings(value: object, origin: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise VocabularyError(f"{origin}, {where}: prompts must be a list of strings")
    return tuple(value)


def _refuse_unknown(table: dict[str, Any], known: Sequence[str], origin: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(shown(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise VocabularyError(f"{origin}: unknown key {shown(key)}; {hint}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _warn(origin: str, message: str) -> None:
    warnings.warn(f"{origin}: {message}", GeosegWarning, stacklevel=2)
