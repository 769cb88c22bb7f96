"""What do the values of a truth mean? Value maps, colours and the classes they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg.errors import EvaluationError, OptionError
from geoseg.evaluation.metrics import IGNORE, IndexArray

IGNORED_NAME = "ignore"
"""Class name that stands for pixels that count nowhere."""

ANY_VALUE = "*"
"""Key for every value that has no entry of its own."""

UNKNOWN = -2
"""Class number of a value that no entry covers."""

_COLOR = re.compile(r"#[0-9a-f]{6}")
_EXAMPLE = '"0=ignore;1=background;2=building"'
_TRUTH_HINT = f"say what values mean with --truth-values, like {_EXAMPLE}; '*' is every other value"


@dataclass(frozen=True)
class ValueMap:
    """Which class does a value stand for?

    Keys are written as people write them: whole numbers, colours ``#rrggbb``, or the words in a
    column of a vector file; ``*`` covers every other value. Names are class names, or ``ignore``.

    Raises
    ------
    OptionError
        If there is no entry.
    """

    entries: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.entries:
            raise OptionError(f"the value map is empty; write it like {_EXAMPLE}")

    @classmethod
    def parse(cls, text: str) -> ValueMap:
        """Read ``"0=ignore;1=background;2=building"``.

        Raises
        ------
        OptionError
            If an entry is not ``VALUE=NAME``, or a value is mapped twice.
        """
        entries: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            key, equals, name = (piece.strip() for piece in part.partition("="))
            if not (key and equals and name):
                raise OptionError(
                    f"value map: '{part}' is not VALUE=NAME; write it like {_EXAMPLE}"
                )
            key = canonical(key)
            if key in entries:
                raise OptionError(f"value map: {key} is mapped twice")
            entries[key] = name
        return cls(entries)

    @classmethod
    def of(cls, source: ValueMapSource | None) -> ValueMap | None:
        """Read a map in any of the ways people write it; None stays None."""
        if source is None or isinstance(source, ValueMap):
            return source
        if isinstance(source, str):
            return cls.parse(source)
        return cls({canonical(str(key)): name for key, name in source.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """Class names that occur, each once, without ``ignore``."""
        return tuple(n for n in dict.fromkeys(self.entries.values()) if not is_ignored(n))

    @property
    def colored(self) -> bool:
        """True if a key is a colour."""
        return any(_COLOR.fullmatch(key) for key in self.entries)


ValueMapSource = ValueMap | str | Mapping[int | str, str]
"""A value map, the text of one, or a mapping from values to names."""


def canonical(key: str) -> str:
    """Write a key in its one form: whole numbers without zeros, colours in lower case."""
    if re.fullmatch(r"[+-]?\d+(\.0*)?", key):
        return str(int(float(key)))
    return key.lower() if _COLOR.fullmatch(key.lower()) else key


def is_ignored(name: str) -> bool:
    """Tell whether a name stands for pixels that count nowhere."""
    return name.casefold() == IGNORED_NAME


class ClassNumbers:
    """Which number has a class? By its name or one of its synonyms, in any case.

    Parameters
    ----------
    names
        Class names; their order is their number.
    synonyms
        Further words for the classes, one sequence a class.
    """

    def __init__(self, names: Sequence[str], synonyms: Sequence[Sequence[str]] = ()) -> None:
        self.names = tuple(names)
        self._numbers: dict[str, int] = {}
        for number, words in enumerate(synonyms):
            for word in words:
                self._numbers.setdefault(word.casefold(), number)
        self._numbers |= {name.casefold(): number for number, name in enumerate(self.names)}

    def __contains__(self, name: str) -> bool:
        return name.casefold() in self._numbers

    def number(self, name: str) -> int:
        """Class number of a name; :data:`IGNORE` for ``ignore``.

        Raises
        ------
        OptionError
            If no class has this name.
        """
        if is_ignored(name) and name not in self:
            return IGNORE
        try:
            return self._numbers[name.casefold()]
        except KeyError:
            raise OptionError(
                f"the truth's class '{name}' is not among the classes ({', '.join(self.names)}); "
                "add it to the classes, or map its value to 'ignore'"
            ) from None


class ValueCoder:
    """Turn pixel values into class numbers.

    Parameters
    ----------
    numbers
        Class number, :data:`IGNORE` or :data:`UNKNOWN` for each known value.
    other
        Class number of every other value.
    hint
        What to do about a value that is not covered, for the message.
    """

    def __init__(
        self, numbers: Mapping[int, int], other: int = UNKNOWN, *, hint: str = _TRUTH_HINT
    ) -> None:
        self._hint = hint
        self._values = np.array(sorted(numbers), np.int64)
        self._classes = np.array([numbers[int(v)] for v in self._values], np.int32)
        self._other = other
        self._tables: dict[np.dtype[np.number], IndexArray] = {}

    def encode(self, values: npt.NDArray[np.number], where: str) -> IndexArray:
        """Class number of every pixel.

        Parameters
        ----------
        values
            Pixel values of any type; NaN counts nowhere.
        where
            File, for the message.

        Raises
        ------
        EvaluationError
            If a value is not covered; the message names it.
        """
        table = self._table(values.dtype)
        index = self._search(values) if table is None else table[values]
        if (index == UNKNOWN).any():
            found = np.unique(values[index == UNKNOWN])[:5]
            raise EvaluationError(
                f"{where}: no class is known for value {', '.join(_shown(v) for v in found)}; "
                f"{self._hint}"
            )
        return index

    def _table(self, dtype: np.dtype[np.number]) -> IndexArray | None:
        """Class number of every value of a small type, looked up instead of searched."""
        if dtype not in (np.uint8, np.uint16):
            return None
        if dtype not in self._tables:
            self._tables[dtype] = self._search(np.arange(2 ** (8 * dtype.itemsize)))
        return self._tables[dtype]

    def _search(self, values: npt.NDArray[np.number]) -> IndexArray:
        index = np.full(values.shape, self._other, np.int32)
        if len(self._values):
            place = np.minimum(np.searchsorted(self._values, values), len(self._values) - 1)
            index = np.where(self._values[place] == values, self._classes[place], index)
        index[np.isnan(values)] = IGNORE
        return index


def pack_colors(red_green_blue: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """One number a colour, ``(3, H, W)`` to ``(H, W)``, in the order of ``#rrggbb``."""
    packed: npt.NDArray[np.int32] = red_green_blue[0].astype(np.int32)
    for band in red_green_blue[1:]:
        packed = packed << 8 | band
    return packed


def coder_for_numbers(values: ValueMap, classes: ClassNumbers) -> ValueCoder:
    """Coder for rasters of one band whose pixels are whole numbers."""
    return _coder(values, classes, _as_number)


def coder_for_colors(values: ValueMap, classes: ClassNumbers) -> ValueCoder:
    """Coder for packed colours of three bands."""
    return _coder(values, classes, _as_color)


def _coder(values: ValueMap, classes: ClassNumbers, read: Callable[[str], int]) -> ValueCoder:
    names = dict(values.entries)
    other = names.pop(ANY_VALUE, None)
    numbers = {read(key): classes.number(name) for key, name in names.items()}
    return ValueCoder(numbers, UNKNOWN if other is None else classes.number(other))


def _as_number(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise OptionError(
            f"value map: '{key}' is not a whole number, but the truth is a raster of one band; "
            f"write it like {_EXAMPLE}"
        ) from None


def _as_color(key: str) -> int:
    if not _COLOR.fullmatch(key):
        raise OptionError(
            f"value map: '{key}' is not a colour, but the truth is a colour image; "
            'write it like "#000000=ignore;#ff0000=building"'
        )
    return int(key[1:], 16)


def _shown(value: np.number) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)
