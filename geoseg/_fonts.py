"""With which of this machine's fonts can a text be drawn, and which of its letters cannot?"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

from geoseg.errors import warn

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FIRST = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "Arial.ttf",
)
"""Looked for before all others, by their names."""
_NO_LETTER = "\uffff"
"""What no font has: it is drawn as the box that stands for missing letters."""
_MOST_NAMED = 12
_MOST_FONTS = 500


def font_for(text: str, size: int) -> Font:
    """Pillow's own font, or that of the machine's that has the most letters of a text."""
    path, _ = _choice(_letters(text))
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def warn_of_boxes(texts: Iterable[str], where: str) -> None:
    """Name the letters that no font has, which are drawn as boxes.

    Warns
    -----
    GeosegWarning
        Where there are any.
    """
    every = [_letters(text) for text in texts]
    _choice(frozenset().union(*every))  # all at once: each font is opened once
    lacking = sorted(set().union(*(_choice(letters)[1] for letters in every)))
    if not lacking:
        return
    named = " ".join(lacking[:_MOST_NAMED]) + (" …" if len(lacking) > _MOST_NAMED else "")
    warn(
        f"{where}: no font on this machine has the letters {named}, which are drawn as boxes; "
        "install one that has them, of the Noto family for example"
    )


def _letters(text: str) -> frozenset[str]:
    """Letters that leave ink by themselves: no spaces, no marks on others."""
    return frozenset(c for c in text if unicodedata.category(c)[0] not in "ZCM")


@cache
def _choice(letters: frozenset[str]) -> tuple[str | None, frozenset[str]]:
    """Path of the best font, None for Pillow's own, and the letters that even it lacks."""
    best: tuple[str | None, frozenset[str]] = None, _lacking(None, letters)
    for path in _paths():
        if not best[1]:
            break
        lacking = _lacking(path, letters)
        if len(lacking) < len(best[1]):
            best = path, lacking
    return best


_has: dict[str | None, dict[str, bool]] = {}
"""Of each font, which letters it has, as far as somebody asked."""


def _lacking(path: str | None, letters: frozenset[str]) -> frozenset[str]:
    known = _has.setdefault(path, {})
    if new := letters - known.keys():
        try:
            font = ImageFont.load_default(16) if path is None else ImageFont.truetype(path, 16)
            box = _ink(font, _NO_LETTER)
            known.update({letter: _ink(font, letter) != box for letter in new})
        except (OSError, ValueError):  # not there, or no outlines of this size
            known.update(dict.fromkeys(new, False))
    return frozenset(letter for letter in letters if not known[letter])


def _ink(font: Font, letter: str) -> tuple[object, bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _paths() -> Iterator[str]:
    yield from _FIRST
    files = (file for folder in _folders() for file in folder.rglob("*"))
    found = (file for file in files if file.suffix.lower() in (".ttf", ".ttc", ".otf"))
    # The order decides between fonts that have the same letters.
    order = sorted(found, key=lambda p: ("Noto" not in p.name, "Regular" not in p.name, p.name))
    yield from map(str, order[:_MOST_FONTS])


def _folders() -> list[Path]:
    """Where operating systems keep fonts."""
    home = Path(os.environ.get("HOME") or "~")
    if sys.platform == "win32":
        given = [os.environ.get("WINDIR", "C:/Windows"), os.environ.get("LOCALAPPDATA", "")]
        return [Path(given[0]) / "Fonts", Path(given[1]) / "Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    data = os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [home / ".fonts", *(Path(p) / "fonts" for p in [data, *shared.split(":")] if p)]
