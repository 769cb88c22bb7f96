"""How fields of dataclasses become options, and options get their environment variables."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from geoseg._fields import Choice, choices
from geoseg.methods import help_of

RUN = "Run"
"""Heading of options that change no map."""

Command = Callable[..., None]


def flag(name: str, *short: str, help: str, panel: str = RUN, **more: Any) -> Any:  # noqa: A002
    """Declare an option that its environment variable sets too."""
    return typer.Option(
        name, *short, envvar=_variable(name), rich_help_panel=panel, help=help, **more
    )


def takes(kind: type[Any], *only: str, panel: str | None = None) -> Callable[[Command], Command]:
    """Give a command the fields of a dataclass as options.

    The command's parameter of that type disappears from the command line, and each field that
    declares itself (see `geoseg._fields.option`) becomes an option in its place.

    Parameters
    ----------
    kind
        The dataclass; it is made of what was given, so that it fills in and refuses.
    only
        Names of the fields; all by default.
    panel
        Heading in the help; the fields' own by default.
    """
    found = {
        name: choice
        for name, choice in choices(kind).items()
        if name in (only or (name,)) and (choice.table is None or choice.table.entries)
    }
    hints = get_type_hints(kind)
    defaults = {f.name: f.default for f in fields(kind)}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()
        ]
        place = [p.annotation for p in parameters].index(kind)
        target = parameters[place].name
        # Where two dataclasses have a field of one name, one of them goes by its flag.
        taken = {parameter.name for parameter in parameters}
        called = {
            name: _plain(choice.flag or name) if name in taken else name
            for name, choice in found.items()
        }
        parameters[place : place + 1] = [
            _parameter(called[name], hints[name], defaults[name], choice, panel)
            for name, choice in found.items()
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {
                name: _value(choice, values.pop(called[name])) for name, choice in found.items()
            }
            command(**values, **{target: kind(**given)})

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(
    name: str, hint: Any, default: Any, choice: Choice, panel: str | None
) -> inspect.Parameter:
    """One option, as typer wants it."""
    option = typer.Option(
        *filter(None, [choice.flag]),
        envvar=_variable(choice.flag or name),
        help=_help(choice),
        metavar=choice.metavar or (None if choice.table is None else "METHOD"),
        rich_help_panel=panel or choice.panel,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if isinstance(default, tuple) else default,
        annotation=Annotated.__class_getitem__((_typed(hint, default), option)),  # type: ignore[attr-defined]
    )


def _variable(flag: str) -> str:
    """Environment variable that sets an option's default."""
    return "GEOSEG_" + _plain(flag).upper()


def _plain(flag: str) -> str:
    """A flag as a name of Python."""
    return flag.removeprefix("--").replace("-", "_")


def _typed(hint: Any, default: Any) -> Any:
    """Type of an option's value on the command line."""
    if get_origin(hint) is tuple:
        return list[str]
    if get_origin(hint) is Literal:
        return hint | None if default is None else hint
    if hint is Any:  # what Python takes more ways of, a command line takes as text
        return str | None
    plain = next((kind for kind in get_args(hint) if kind in (int, float, str)), hint)
    plain = plain if plain in (int, float, str, bool) else str
    return plain | None if default is None else plain


def _help(choice: Choice) -> str:
    text = choice.help
    if choice.table is not None:
        text += f" {help_of(choice.table)}."
    if choice.preferred is not None:
        general = choice.preferred
        general = f"{general:g}" if isinstance(general, float) else general
        text += f" [default: the model's, else {general}]"
    return text.replace("[", "\\[")


def _value(choice: Choice, given: Any) -> Any:
    if isinstance(given, list):
        return tuple(given)
    return choice.parse(given) if choice.parse is not None and given is not None else given
