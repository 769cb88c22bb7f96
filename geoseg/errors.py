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

A message says what is wrong, in which file or option, and what to do about it, in one line. The
command line prints it as it stands; anything else that is raised keeps its traceback, because it
is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from geoseg._address import shown_address


def _shown(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(shown_address(a) if isinstance(a, str) else a for a in arguments)


class GeosegError(Exception):
    """Base class of all errors that geoseg raises on purpose; none holds an address's secrets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*_shown(arguments))


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


class GeosegWarning(UserWarning):
    """The run goes on, but the user should know."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*_shown(arguments))
        for heard in tuple(_listening):
            heard.setdefault(" ".join(str(self).split()))


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
