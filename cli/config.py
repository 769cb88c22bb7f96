"""Options from a file: a TOML file of them, or the record of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from geoseg_cli.fields import flag

_RUNS = "geoseg/run/"
_MOST_BYTES = 16 * 2**20
_NOT_AGAIN = ("batch_size", "precision")
"""Of a run's options: what was picked for its machine."""


def read_config(context: typer.Context, path: str | None) -> str | None:
    """Make a file's values the defaults of the command's options; what is given goes first."""
    if path is None:
        return None
    from geoseg._inputs import shown
    from geoseg.errors import OptionError
    from geoseg_cli import _run

    known = {
        parameter.name: parameter
        for parameter in context.command.params
        if parameter.name and parameter.name not in ("config", "scenes", "help")
    }
    with _run.reporting(debug=False):
        values = _values(path)
        names = {name: _parameter(name, known) for name in values}
        if unknown := [name for name, found in names.items() if found is None]:
            import difflib

            flags = [_flag(parameter) for parameter in known.values()]
            near = difflib.get_close_matches(unknown[0], flags, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise OptionError(f"{shown(path)}: there is no option '{shown(unknown[0])}'{hint}")
        try:
            context.default_map = {
                found.name: _as_given(value, found, context)
                for value, found in zip(values.values(), names.values(), strict=True)
                if found is not None
            }
        except TypeError as error:
            raise OptionError(f"{shown(path)}: {error}") from None
    return path


def _values(path: str) -> dict[str, Any]:
    """What a file says, by the names of options."""
    import json
    import tomllib

    from geoseg import _inputs, _remote
    from geoseg._address import is_address, scene_name
    from geoseg._inputs import shown
    from geoseg.errors import OptionError

    what = "configuration"
    if is_address(path):
        data = _remote.read_at_most(path, what, OptionError, _MOST_BYTES)
    else:
        file = _inputs.named_file(path, what, OptionError)
        data = _inputs.read_at_most(file, what, OptionError, _MOST_BYTES)
    try:
        text = data.decode("utf-8-sig")
        found = json.loads(text) if scene_name(path).endswith(".json") else tomllib.loads(text)
    except UnicodeDecodeError:
        raise OptionError(f"{shown(path)}: is no text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{shown(path)} cannot be understood: {shown(error)}") from None
    if not isinstance(found, dict):
        raise OptionError(f"{shown(path)}: holds no options by their names")
    return _of_run(found, path) if str(found.get("schema", "")).startswith(_RUNS) else found


def _of_run(report: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What an earlier run was given; which device and tiles is for each machine to say."""
    from geoseg._fields import choices
    from geoseg.errors import OptionError
    from geoseg.options import Options, Products, Reading

    try:
        if {"scorer", "beside"} & report["model"].keys():
            raise OptionError(
                f"{path}: is of a run with --scorer, which no such record holds whole"
            )
        values: dict[str, Any] = {"model": report["model"]["spec"], "classes": path}
        for kind, part in ((Options, "options"), (Reading, "reading"), (Products, "products")):
            names = [name for name in choices(kind) if name not in _NOT_AGAIN]
            values |= {name: report[part][name] for name in names if name in report[part]}
        if report["reading"]["bands_told_by"] != "given":
            del values["bands"]
    except (KeyError, TypeError):
        raise OptionError(f"{path}: is no whole record of a run") from None
    return {name: value for name, value in values.items() if value not in (None, [])}


def _parameter(name: str, known: Mapping[str, Any]) -> Any:
    plain = name.replace("-", "_")
    by_flag = {_flag(parameter).replace("-", "_"): parameter for parameter in known.values()}
    return known.get(plain) or by_flag.get(plain)


def _flag(parameter: Any) -> str:
    return str(max(parameter.opts, key=len)).removeprefix("--")


def _as_given(value: Any, parameter: Any, context: typer.Context) -> Any:
    """A value as the command line would have it, which its option can take."""
    given = _in_words(value, parameter)
    try:
        parameter.process_value(context, given)
    except typer.BadParameter as error:
        raise TypeError(f"'{_flag(parameter)}': {error.message}") from None
    except ValueError:
        raise TypeError(f"'{_flag(parameter)}': '{value}' cannot be its value") from None
    return given


def _in_words(value: Any, parameter: Any) -> Any:
    """A value as the command line would have it: words, lists of words, switches."""
    flag = _flag(parameter)
    if isinstance(value, Mapping):
        raise TypeError(f"'{flag}' is a table; write one value, or a list")
    if parameter.multiple:
        return [str(one) for one in (value if isinstance(value, list) else [value])]
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise TypeError(f"'{flag}' is a switch; write true or false")
        return value
    if isinstance(value, list):
        return (";" if flag == "classes" else ",").join(map(str, value))
    return str(value)


ConfigOption = flag(
    "--config",
    metavar="FILE",
    is_eager=True,
    callback=read_config,
    help="Options from a TOML file (classes = …, gsd = 0.5), or those of an earlier run from its "
    "run.json. The command line and the environment go first.",
)
