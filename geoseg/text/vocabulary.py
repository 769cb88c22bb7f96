"""Which classes are looked for, under which words, colours and thresholds?"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from geoseg._files import whole_file, writing_to
from geoseg._html import swatch, table
from geoseg._inputs import shown
from geoseg.errors import OptionError, OutputError, VocabularyError
from geoseg.text._sources import RawVocabulary, read_source
from geoseg.text._words import MOST_CLASSES, MOST_QUERIES, clean_name, clean_prompt
from geoseg.text.colors import expected_color
from geoseg.types import LabelClass, default_color

_LONGEST_REPR = 200
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class VocabularyClass:
    """What is one class called, and by which words is it found?

    White space in the words is collapsed, the colour is written in lower case.

    Raises
    ------
    VocabularyError
        If a word is empty, too long (200 letters for a name, 1,000 for a prompt) or has characters
        that XML cannot hold, the class has no prompt, the colour is not ``#rrggbb``, the threshold
        lies outside 0 to 1 or the offset outside -1 to 1.
    """

    name: str
    """Display name."""
    prompts: tuple[str, ...]
    """The queries: the class scores as its best query does."""
    color: str
    """``#rrggbb``."""
    threshold: float | None = None
    """Probability in [0, 1] that a pixel of this class needs, or None for the run's own."""
    offset: float = 0.0
    """Added to the cosine logits of the class's queries, in [-1, 1]: above 0 favours the class."""
    descriptions: tuple[str, ...] = ()
    """Sentences that say what the class is, for ``--vocabulary-step describe``."""
    example: tuple[float, ...] = ()
    """What is to be seen where examples lie: a direction in a model's space, see
    `geoseg.examples`. A class with one needs no prompt."""
    share: float = 0.5
    """Of the example in the class's queries, beside its prompts."""

    def __post_init__(self) -> None:
        described = tuple(clean_prompt(text) for text in self.descriptions)
        object.__setattr__(self, "descriptions", described)
        object.__setattr__(self, "name", clean_name(self.name))
        object.__setattr__(self, "prompts", tuple(clean_prompt(prompt) for prompt in self.prompts))
        object.__setattr__(self, "example", tuple(float(value) for value in self.example))
        if not self.prompts and not self.example:
            raise VocabularyError(f"class '{self.name}' has no prompt")
        if not all(map(math.isfinite, self.example)) or (self.example and not any(self.example)):
            raise VocabularyError(f"class '{self.name}': its example is no direction")
        if not 0 <= self.share <= 1:
            raise VocabularyError(
                f"class '{self.name}': share {shown(self.share)} is not between 0 and 1"
            )
        if not _COLOR.fullmatch(self.color):
            raise VocabularyError(
                f"class '{self.name}': '{shown(self.color)}' is not a colour; write it like #1f7a3d"
            )
        object.__setattr__(self, "color", self.color.lower())
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise VocabularyError(
                f"class '{self.name}': threshold {shown(self.threshold)} is not between 0 and 1"
            )
        if self.threshold is not None:
            object.__setattr__(self, "threshold", float(self.threshold))
        if not -1 <= self.offset <= 1:
            raise VocabularyError(
                f"class '{self.name}': offset {shown(self.offset)} is not in -1 to 1"
            )
        object.__setattr__(self, "offset", float(self.offset))


@dataclass(frozen=True)
class Vocabulary:
    """Which classes does a run tell apart? Their order is the order of label values.

    A mapping from names to classes; `parse` makes one of whatever people write.

    Parameters
    ----------
    classes
        Names, prompts and colours (``#rrggbb``) of the classes.
    hidden
        What a map does not show, known by examples: where one of them is best, a pixel is
        background.

    Raises
    ------
    VocabularyError
        If there are fewer than two classes or more than 65,534, more than 100,000 queries, or two
        share a name or a query (in any case).
    """

    classes: tuple[VocabularyClass, ...]
    hidden: tuple[VocabularyClass, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for entry in self.hidden:
            if not entry.example or entry.prompts:
                raise VocabularyError(
                    f"hidden class '{entry.name}' is known by an example, and by no words"
                )
        places = [f"class {number}" for number in range(1, len(self.classes) + 1)]
        _refuse_clashes(self.classes, places, "vocabulary")

    @classmethod
    def parse(cls, source: VocabularySource) -> Vocabulary:
        """Read classes in any of the ways people write them.

        Parameters
        ----------
        source
            A vocabulary (returned as it is); a text file with one class a line, synonyms after
            commas, ``#`` comments; a TOML file of ``[[class]]`` tables with ``name``, ``prompts``,
            ``color``, ``threshold``, ``offset`` and ``descriptions``; a CSV file whose header names
            such columns (``name`` or ``class`` among them); a JSON file with an object of names and
            prompts, or a list of names or of such objects; an inline string
            ``"building,roof;road;water"``; a sequence with one string or list of prompts a class;
            a mapping from names to prompts, or to mappings with ``prompts``, ``color``,
            ``threshold`` and ``offset``; a DataFrame with the columns of a CSV file. A colour
            (``#rrggbb``) among the words is the class's and is not asked for.
            A string that is the path of an existing file is read; one that ends in ``.txt``,
            ``.toml``, ``.csv``, ``.tsv`` or ``.json``, or has a path separator and no ``;``,
            must be a file.

        Raises
        ------
        VocabularyError
            With the file and the place in it, and what to write instead.

        Warns
        -----
        GeosegWarning
            Where an empty name between separators is skipped.

        Examples
        --------
        >>> Vocabulary.parse("building, roof; road; water").names
        ('building', 'road', 'water')
        """
        if isinstance(source, Vocabulary):
            return source
        raw = read_source(source)
        shown_ones = tuple(entry for entry in raw.classes if not entry.hidden)
        hidden = _build(RawVocabulary(raw.origin, tuple(e for e in raw.classes if e.hidden)))
        classes = _build(RawVocabulary(raw.origin, shown_ones))
        _refuse_clashes(classes, [entry.where for entry in shown_ones], raw.origin)
        return cls(classes, hidden)

    def __repr__(self) -> str:
        names = shown(", ".join(self.names))
        names = names if len(names) <= _LONGEST_REPR else f"{names[:_LONGEST_REPR]}…"
        return f"Vocabulary({len(self.classes)} classes: {names})"

    def _repr_html_(self) -> str:
        rows = [
            (value, swatch(entry.color), entry.name, ", ".join(entry.prompts))
            for value, entry in enumerate(self.classes)
        ]
        return table(f"{len(rows)} classes", ("value", "", "name", "words"), rows)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in map(str.casefold, self.names)

    def __getitem__(self, name: str | int) -> VocabularyClass:
        return self.classes[self._place(name)]

    def keys(self) -> tuple[str, ...]:
        """The names, in the order of label values."""
        return self.names

    def items(self) -> tuple[tuple[str, VocabularyClass], ...]:
        """Names and classes, in the order of label values."""
        return tuple(zip(self.names, self.classes, strict=True))

    def with_class(
        self, name: str, prompts: Sequence[str] = (), color: str | None = None
    ) -> Vocabulary:
        """Return the vocabulary with one class more, which has the next label value."""
        given = {"name": name, "prompts": list(prompts) or [name]}
        added = given if color is None else given | {"color": color}
        return replace(Vocabulary.parse([*self.classes, added]), hidden=self.hidden)

    def with_prompts(self, name: str, *prompts: str) -> Vocabulary:
        """Return the vocabulary with other words for a class."""
        return self._changed(name, prompts=prompts)

    def with_color(self, name: str, color: str) -> Vocabulary:
        """Return the vocabulary with another colour, ``#rrggbb``, for a class."""
        return self._changed(name, color=color)

    def without(self, *names: str) -> Vocabulary:
        """Return the vocabulary without some classes; those that are left are counted anew."""
        gone = {self._place(name) for name in names}
        return replace(self, classes=tuple(c for i, c in enumerate(self.classes) if i not in gone))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a class file, ``.toml``, that `parse` reads back to the same value."""
        target = Path(path)
        if target.suffix.lower() != ".toml":
            raise OptionError(f"{target}: a class file ends in .toml")
        if target.exists() and not overwrite:
            raise OutputError(f"{target}: exists already; replace it with --overwrite")
        with writing_to(target), whole_file(target, replaces=overwrite) as part:
            part.write_text(self.to_toml(), encoding="utf-8")
        return target

    def _changed(self, name: str, **values: Any) -> Vocabulary:
        place = self._place(name)
        changed = replace(self.classes[place], **values)
        return replace(self, classes=(*self.classes[:place], changed, *self.classes[place + 1 :]))

    def _place(self, name: str | int) -> int:
        if isinstance(name, int):
            return range(len(self.classes))[name]
        known = [own.casefold() for own in self.names]
        if name.casefold() in known:
            return known.index(name.casefold())
        raise VocabularyError(
            f"there is no class '{shown(name)}'; there are {shown(', '.join(self.names))}"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Display name of every class."""
        return tuple(entry.name for entry in self.classes)

    @property
    def queries(self) -> tuple[str, ...]:
        """All queries, class after class: the Q rows of the text embeddings."""
        return tuple(prompt for entry in self.classes for prompt in entry.prompts)

    @property
    def query_classes(self) -> npt.NDArray[np.int32]:
        """``(Q,)`` int32: index of the class that each word belongs to."""
        counts = [len(entry.prompts) for entry in self.classes]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    @property
    def label_classes(self) -> tuple[LabelClass, ...]:
        """Value, name and colour of every class, as label rasters carry them."""
        return tuple(
            LabelClass(index, entry.name, entry.color) for index, entry in enumerate(self.classes)
        )

    def to_toml(self) -> str:
        """Write the vocabulary as a TOML class file; `parse` reads it back to the same value."""
        hidden = (f"{_toml_table(entry)}hidden = true\n" for entry in self.hidden)
        return "\n".join([*map(_toml_table, self.classes), *hidden])


VocabularySource: TypeAlias = Vocabulary | str | Path | Sequence[Any] | Mapping[str, Any] | Any
"""What `Vocabulary.parse` takes; a DataFrame too."""


def _build(raw: RawVocabulary) -> tuple[VocabularyClass, ...]:
    """Check every class and colour those that have no colour of their own."""
    _refuse_too_many(len(raw.classes), MOST_CLASSES, "classes", raw.origin)
    colors = fill_colors(
        [entry.name for entry in raw.classes], [entry.color for entry in raw.classes]
    )
    classes = []
    for entry, color in zip(raw.classes, colors, strict=True):
        try:
            classes.append(
                VocabularyClass(
                    entry.name,
                    entry.prompts,
                    color,
                    entry.threshold,
                    entry.offset,
                    entry.descriptions,
                    entry.example,
                    entry.share,
                )
            )
        except VocabularyError as error:
            raise VocabularyError(f"{raw.origin}, {entry.where}: {error}") from None
    return tuple(classes)


def fill_colors(names: Sequence[str], given: Sequence[str | None]) -> list[str]:
    """Fill gaps with the colour a reader expects for the name, else a default.

    None comes twice while there are any left.
    """
    taken = {color.lower() for color in given if color is not None}
    colors = list(given)
    for index, name in enumerate(names):
        expected = expected_color(name)
        if colors[index] is None and expected is not None and expected not in taken:
            colors[index] = expected
            taken.add(expected)
    # Default colours are not endless: where all are taken, one comes twice.
    spare = (
        color
        for index, color in enumerate(map(default_color, count()))
        if color not in taken or index > MOST_CLASSES
    )
    return [next(spare) if color is None else color for color in colors]


def _others(only: VocabularyClass) -> list[str]:
    """Words for what else a scene may hold, none of which the class has already."""
    known = {word.lower() for word in (only.name, *only.prompts)}
    return [word for word in ("vegetation", "road", "water", "bare ground") if word not in known]


def _refuse_clashes(classes: Sequence[VocabularyClass], places: Sequence[str], origin: str) -> None:
    """Refuse a vocabulary whose labels would be ambiguous or meaningless."""
    if not classes:
        raise VocabularyError(f"{origin}: there is no class in it")
    if len(classes) == 1:
        raise VocabularyError(
            f"{origin}: '{classes[0].name}' is the only class, and the probability of one class "
            "alone is 100 % everywhere; add what else can be seen, for example "
            f"'{';'.join([classes[0].name, *_others(classes[0])])}'"
        )
    _refuse_too_many(len(classes), MOST_CLASSES, "classes", origin)
    total = sum(len(entry.prompts) for entry in classes)
    _refuse_too_many(total, MOST_QUERIES, "queries", origin)
    names: dict[str, str] = {}
    queries: dict[str, str] = {}
    for entry, place in zip(classes, places, strict=True):
        _refuse_repeats(names, [entry.name], place, f"{origin}: class name")
        _refuse_repeats(queries, entry.prompts, place, f"{origin}: query")


def _refuse_too_many(count: int, most: int, what: str, origin: str) -> None:
    if count > most:
        raise VocabularyError(f"{origin}: {count:,} {what}, and there may be {most:,}")


def _refuse_repeats(seen: dict[str, str], words: Iterable[str], place: str, what: str) -> None:
    for word in words:
        key = word.casefold()
        if key in seen:
            twice = "twice" if seen[key] == place else f"in {seen[key]} and again"
            raise VocabularyError(f"{what} '{word}' stands {twice} in {place}; keep one of them")
        seen[key] = place


def _toml_table(entry: VocabularyClass) -> str:
    # JSON strings and lists of strings are valid TOML, control characters being refused above.
    lines = [
        "[[class]]",
        f"name = {json.dumps(entry.name, ensure_ascii=False)}",
        f"prompts = {json.dumps(entry.prompts, ensure_ascii=False)}",
        f'color = "{entry.color}"',
    ]
    if entry.threshold is not None:
        lines.append(f"threshold = {entry.threshold!r}")
    if entry.offset:
        lines.append(f"offset = {entry.offset!r}")
    if entry.descriptions:
        lines.append(f"descriptions = {json.dumps(entry.descriptions, ensure_ascii=False)}")
    if entry.example:
        lines += [f"example = {list(entry.example)!r}", f"share = {entry.share!r}"]
    return "\n".join([*lines, ""])
