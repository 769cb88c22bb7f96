"""Fields of options: each declares its type, help and limits once, and refuses all else."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import operator
import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from geoseg._inputs import shown
from geoseg.errors import OptionError, as_spoken
from geoseg.methods import Table, help_of

INPUT, SCENE, MODEL, METHOD = "Input", "Scene", "Model", "Method"
WINDOWS, OUTPUT, SHAPE, STORE = "Windows and tiles", "Output", "Polygons", "Store"
"""Headings of options in a command's help."""


@dataclass(frozen=True)
class Choice:
    """What an option's field says about itself, besides its name, type and default."""

    help: str
    panel: str
    metavar: str | None = None
    flag: str | None = None
    """Its name on the command line, where that is not the field's."""
    preferred: Any = None
    """General default of an option that a model may set; None if models have no say."""
    table: Table | None = None
    """The methods that it chooses from."""
    parse: Callable[[str], Any] | None = None
    """From the word on the command line to the value."""
    holds: Callable[[Any], bool] | None = None
    """Whether a value of its type, or each of several, is possible; all are by default."""
    wanted: str = ""
    """What to give, for messages; by its type if there is nothing else to say."""


def option(default: Any, help: str, panel: str, **more: Any) -> Any:  # noqa: A002
    """Declare one field."""
    return field(default=default, metadata={"choice": Choice(help, panel, **more)})


def by_model(preferred: Any, help: str, panel: str, **more: Any) -> Any:  # noqa: A002
    """Declare a field that is None until the model's default, or else this one, fills it."""
    return option(None, help, panel, preferred=preferred, **more)


def choices(kind: type[Any]) -> Mapping[str, Choice]:
    """Return what the fields of a class say about themselves, by their names."""
    return {f.name: f.metadata["choice"] for f in fields(kind) if "choice" in f.metadata}


Chosen = TypeVar("Chosen")


def as_made(kind: type[Chosen], given: Chosen | Mapping[str, Any] | None) -> Chosen:
    """Return `Options`, `Reading` or the like from itself, from a dict of its fields, or None.

    Raises
    ------
    OptionError
        If it is none of these, or a field is not known.
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    known = [f.name for f in fields(cast(Any, kind))]
    if not isinstance(given, Mapping):
        raise OptionError(
            f"{kind.__name__.lower()} is a {type(given).__name__}; give geoseg.{kind.__name__}(…) "
            f"or a dict of its fields, like {{'{known[1]}': …}}"
        )
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise OptionError(f"geoseg.{kind.__name__} has no option {shown(name)}; {hint}")
    return kind(**given)


def documented(kind: type[Chosen]) -> type[Chosen]:
    """Say in a class's docstring what its fields are, in their own words."""
    lines = ["Parameters", "----------"]
    for f in fields(cast(Any, kind)):
        choice: Choice = f.metadata["choice"]
        text = as_spoken(choice.help)
        if choice.table is not None:
            text += f" {help_of(choice.table)}."
        if choice.preferred is not None:
            text += f" [default: the model's, else {choice.preferred}]"
        lines += [f"{f.name} : {f.type}", textwrap.indent(textwrap.fill(text, 92), "    ")]
    head, raises, rest = inspect.cleandoc(kind.__doc__ or "").partition("Raises\n------")
    kind.__doc__ = "\n".join([head.rstrip(), "", *lines, "", raises + rest]).rstrip() + "\n"
    return kind


def settle(values: Any) -> None:
    """Bring the fields of a frozen dataclass to their types, and refuse what cannot be.

    A list becomes a tuple, one value the tuple of it, a path its text, a number of numpy's one of
    Python's. Of methods, the name has to be known, which loads none of them.

    Raises
    ------
    OptionError
        That says what to give.
    """
    hints = _hints(cast(Any, type(values)))
    for name, choice in choices(type(values)).items():
        given, hint = getattr(values, name), hints[name]
        if given is None and (choice.preferred is not None or NoneType in get_args(hint)):
            continue
        if hint is not Any:
            object.__setattr__(values, name, _settled(given, hint, name, choice))


_hints = functools.cache(get_type_hints)


def _settled(given: Any, hint: Any, name: str, choice: Choice) -> Any:
    try:
        value = _typed(given, hint)
    except (TypeError, ValueError, OverflowError):
        raise _refusal(given, hint, name, choice) from None
    for one in value if isinstance(value, tuple) else (value,):
        if choice.table is not None:
            choice.table.check(one)
        elif choice.holds is not None and not choice.holds(one):
            raise _refusal(one if isinstance(value, tuple) else given, hint, name, choice)
    return value


def _typed(given: Any, hint: Any) -> Any:
    """The value as its type has it; TypeError or ValueError if it is none."""
    if get_origin(hint) in (UnionType, Union):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        for kind in kinds[:-1]:
            try:
                return _typed(given, kind)
            except (TypeError, ValueError):
                continue
        return _typed(given, kinds[-1])
    if get_origin(hint) is Literal:
        if given not in get_args(hint):
            raise ValueError(given)
        return given
    if get_origin(hint) is tuple:
        several = given if isinstance(given, list | tuple | set) or _is_array(given) else (given,)
        return tuple(_typed(one, get_args(hint)[0]) for one in several)
    if hint is str:
        text = os.fspath(given)
        if not isinstance(text, str):
            raise TypeError(given)
        return text
    truth = isinstance(given, bool) or getattr(getattr(given, "dtype", None), "kind", "") == "b"
    if truth != (hint is bool) or not (truth or isinstance(given, numbers.Real)):
        raise TypeError(given)
    return operator.index(given) if hint is int else hint(given)


def _is_array(given: Any) -> bool:
    return getattr(given, "ndim", 0) == 1


def _refusal(given: Any, hint: Any, name: str, choice: Choice) -> OptionError:
    flag = choice.flag or f"--{name.replace('_', '-')}"
    words = f"a {type(given).__name__}"
    if given is None or isinstance(given, str | numbers.Real):
        words = shown(repr(given) if isinstance(given, str) else given)
    literal = next((one for one in (hint, *get_args(hint)) if get_origin(one) is Literal), None)
    if literal is not None:
        *most, last = get_args(literal)
        wrong = f"{words} is not known" if isinstance(given, str) else f"is {words}"
        return OptionError(f"{flag} {wrong}; choose {', '.join(most)} or {last}")
    if hint is bool:  # which a command line cannot get wrong
        return OptionError(f"{name} is {words}; give True or False")
    return OptionError(f"{flag} is {words}; give {choice.wanted or _kind(hint)}")


def _kind(hint: Any) -> str:
    """Say what a type is."""
    if get_origin(hint) is tuple:
        return f"{_kind(get_args(hint)[0])}, or several"
    if get_origin(hint) in (UnionType, Union):
        kinds = [_kind(kind) for kind in get_args(hint) if kind is not NoneType]
        kinds = [one for one in kinds if not any(o.startswith(f"{one},") for o in kinds)]
        return " or ".join(kinds)
    return {int: "a whole number", float: "a number"}.get(hint, "a text")


def positive(value: float) -> bool:
    """Whether a number is above 0, and finite."""
    return 0 < value < math.inf


def not_negative(value: float) -> bool:
    """Whether a number is 0 or more, and finite."""
    return 0 <= value < math.inf
