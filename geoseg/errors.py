"""Every error geoseg raises on purpose, and the warnings it gives.

::

    GeosegError
    ├── SceneError (also OSError)       a scene cannot be opened, read or understood
    ├── OutputError (also OSError)      a result cannot be written, or would overwrite something
    ├── OptionError (also ValueError)   an option is impossible, alone or with the others
    │   └── TilingError                 window, stride or tile size cannot work
    ├── VocabularyError (also ValueError)  class names, synonyms, colours or templates
    ├── ModelError                      a model cannot be used
    │   ├── UnknownModelError           the name is not known; near names are listed
    │   ├── UnsupportedModelError       the architecture is not a classic CLIP ViT
    │   └── WeightsError                weights are missing, unreachable or do not fit
    ├── TileError                       a tile of a scene cannot be mapped, whatever is tried
    ├── EvaluationError (also ValueError)  labels and truth cannot be compared
    └── MissingExtraError (also ImportError)  an optional package is not installed

    GeosegWarning (UserWarning)         the run goes on, but the user should know

Where it is a file that is not there, an error is a FileNotFoundError too (`not_found`).

A message says what is wrong, in which file or option, and what to do about it, in one line. The
command line prints it as it stands, and Python gets the names that options have there; anything
else that is raised keeps its traceback, because it is a bug of ours.
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geoseg._address import shown_address

_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)( (?=[\"']))?")
_FLAGS = {
    "drop-small", "exact", "fast", "ignore-alpha", "keep-going", "overwrite", "residual", "resume",
    "rgb",
}  # fmt: skip
"""Options of the command line that take no value."""
_PYTHON = {
    "min-area": "min_area_m2",
    "scorer-bands": "Scorer.bands",
    "scorer-classes": "Scorer.names",
    "scorer-stretch": "Scorer.stretch",
    "scorer-weight": "Scorer.weight",
    "simplify": "simplify_m",
    "vocabulary-step": "vocabulary_steps",
    "window-step": "window_steps",
}
"""Options that have another name in Python, beside the dashes."""
_HERE = str(Path(__file__).parent)
_LIBRARY = str(Path(traceback.__file__).parent)

_on_command_line = False


@contextmanager
def on_command_line(told: bool = True) -> Iterator[None]:
    """Call options in messages what they are called on the command line, while this is open."""
    global _on_command_line
    before, _on_command_line = _on_command_line, told
    try:
        yield
    finally:
        _on_command_line = before


def as_spoken(text: str) -> str:
    """Call options what they are called where the message is read."""
    if _on_command_line or "--" not in text:
        return text

    def in_python(found: re.Match[str]) -> str:
        name = _PYTHON.get(found[1], found[1].replace("-", "_"))
        return f"{name}=True" if found[1] in _FLAGS else name + ("=" if found[2] else "")

    return _OPTION.sub(in_python, text)


def _is_users(file: str) -> bool:
    """Whether a line of Python is one of the user's own, and not of a library's."""
    ours = file.startswith((_HERE, _LIBRARY, "<frozen")) or "geoseg_cli" in file
    return not ours and "site-packages" not in file


def warn(message: str) -> None:
    """Give a `GeosegWarning` that points at the user's line."""
    frame, level = sys._getframe(1), 2
    while not _is_users(frame.f_code.co_filename) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, GeosegWarning, stacklevel=level)


def _shown(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_in_words(shown_address(a)) if isinstance(a, str) else a for a in arguments)


_passing: dict[str, dict[str, str]] = {}


@contextmanager
def passing_files(folder: str) -> Iterator[dict[str, str]]:
    """Call files that stand for the user's objects what those are, while this is open.

    What comes is filled with what `in_words` says of a file, by its path.
    """
    _passing[folder] = {}
    try:
        yield _passing[folder]
    finally:
        del _passing[folder]


def in_words(value: Any) -> Any:
    """A JSON-able value that names no file that is soon gone, but what it stands for."""
    if isinstance(value, str):
        return next((known[value] for known in _passing.values() if value in known), value)
    return [in_words(item) for item in value] if isinstance(value, list | tuple) else value


def _in_words(text: str) -> str:
    for folder in _passing:
        text = re.sub(
            rf"{re.escape(folder)}[\w./-]*\.(\w+)",
            lambda file: "the table" if file[1] == "gpkg" else "the array",
            text,
        )
    return text


class GeosegError(Exception):
    """Base class of all errors that geoseg raises on purpose; none holds an address's secrets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*_shown(arguments))

    def __str__(self) -> str:
        return as_spoken(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the user's line and the message."""
        frames = traceback.extract_tb(self.__traceback__)
        own = [frame for frame in frames if _is_users(frame.filename)]
        where = [f"{Path(own[-1].filename).name}, line {own[-1].lineno}"] if own else []
        line = [f"    {own[-1].line}"] if own and own[-1].line else []
        return [*where, *line, "", f"{type(self).__name__}: {self}"]


class SceneError(GeosegError, OSError):
    """A scene cannot be opened, read or understood."""


class OutputError(GeosegError, OSError):
    """A result cannot be written, or would overwrite an existing file."""


class OptionError(GeosegError, ValueError):
    """An option is impossible, alone or together with the others."""


class TilingError(OptionError):
    """Window, stride or tile size cannot work for this scene or model."""


class VocabularyError(GeosegError, ValueError):
    """Class names, synonyms, colours or prompt templates are not usable."""


class ModelError(GeosegError):
    """A model cannot be used."""


class UnknownModelError(ModelError, ValueError):
    """The model's name is not known; the message lists near names."""


class UnsupportedModelError(ModelError):
    """The architecture is not a classic CLIP vision transformer with a CLS token."""


class WeightsError(ModelError):
    """Weights are missing, unreachable or do not fit the architecture."""


class TileError(GeosegError):
    """A tile of a scene cannot be mapped, whatever is tried."""


class EvaluationError(GeosegError, ValueError):
    """Labels and truth cannot be compared."""


class MissingExtraError(GeosegError, ImportError):
    """An optional package is not installed; the message names the extra to install."""


def _file_not_found(cls: type[FileNotFoundError], *arguments: Any) -> FileNotFoundError:
    """Make an error that is one of a value and of a file; Python wants to be told which way."""
    return FileNotFoundError.__new__(cls, *arguments)


class SceneNotFoundError(SceneError, FileNotFoundError):
    """There is no such scene, label raster or vector file."""

    __new__ = _file_not_found  # type: ignore[assignment]


class OptionFileNotFoundError(OptionError, FileNotFoundError):
    """There is no file that an option names."""

    __new__ = _file_not_found  # type: ignore[assignment]


class VocabularyNotFoundError(VocabularyError, FileNotFoundError):
    """There is no such class file."""

    __new__ = _file_not_found  # type: ignore[assignment]


class TruthNotFoundError(EvaluationError, FileNotFoundError):
    """There are no such labels, or no such truth."""

    __new__ = _file_not_found  # type: ignore[assignment]


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no such folder or file of a model."""

    __new__ = _file_not_found  # type: ignore[assignment]


_NOT_FOUND: dict[type[GeosegError], type[GeosegError]] = {
    SceneError: SceneNotFoundError,
    OptionError: OptionFileNotFoundError,
    VocabularyError: VocabularyNotFoundError,
    EvaluationError: TruthNotFoundError,
    ModelError: ModelNotFoundError,
}


def not_found(kind: type[GeosegError]) -> type[GeosegError]:
    """Return the kind of error that is a FileNotFoundError as well."""
    return _NOT_FOUND.get(kind, kind)


class GeosegWarning(UserWarning):
    """The run goes on, but the user should know."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*_shown(arguments))
        for heard in tuple(_listening):
            heard.setdefault(" ".join(str(self).split()))

    def __str__(self) -> str:
        return as_spoken(super().__str__())


_listening: list[dict[str, None]] = []


@contextmanager
def heard_warnings() -> Iterator[dict[str, None]]:
    """Give what geoseg warns of while this is open, each text once, whatever is shown of it."""
    heard: dict[str, None] = {}
    _listening.append(heard)
    try:
        yield heard
    finally:
        _listening[:] = [one for one in _listening if one is not heard]
