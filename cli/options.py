"""Options that several commands share, and how fields of dataclasses become options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from geoseg._fields import INPUT, MODEL, SCENE, Choice, choices
from geoseg.methods import help_of

RUN = "Run"
METHOD_FOR_LABELS = (
    "preset",
    "attention",
    "backbone_weights",
    "upsampler",
    "upsampler_weights",
    "cls_bias",
    "views",
    "refine",
    "templates",
    "batch_size",
    "precision",
)
"""Options of the method for the commands on labelled data."""

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="GEOSEG_MODEL",
        metavar="SPEC",
        rich_help_panel="Model",
        help="geoseg-tiny (bundled, offline), ARCH/PRETRAINED as open_clip names them, "
        "ARCH:/path/to/checkpoint, hf-hub:ORG/NAME, local-dir:/path or talk2dino:/path/to/json.",
    ),
]
ClassesOption = Annotated[
    str,
    typer.Option(
        "--classes",
        "-c",
        envvar="GEOSEG_CLASSES",
        metavar="FILE|LIST",
        rich_help_panel="Input",
        help="Class names: a text file (one class a line, synonyms after commas), a TOML, "
        'JSON or CSV file, or inline "building,roof;road;water".',
    ),
]
ClassesOrNone = Annotated[str | None, *ClassesOption.__metadata__]
ExamplesOption = Annotated[
    str | None,
    typer.Option(
        "--examples",
        envvar="GEOSEG_EXAMPLES",
        metavar="FILE",
        rich_help_panel="Input",
        help="Polygons or points with a column class: more of this. They go beside the words of "
        "--classes, or make the classes where there are none.",
    ),
]
ExamplesFromOption = Annotated[
    str | None,
    typer.Option(
        "--examples-from",
        envvar="GEOSEG_EXAMPLES_FROM",
        metavar="SCENE|STORE",
        rich_help_panel="Input",
        help="What the --examples lie in, where that is another scene, or the store of one.",
    ),
]
LegendOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        "-c",
        metavar="FILE|LIST",
        help="Names and colours of the values of LABELS, in place of its own: a CSV file with "
        "columns value, name and color, a QGIS style (.qml), an attribute table (.aux.xml, "
        ".vat.dbf), or classes as segment takes them, which count from 0.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="GEOSEG_DEVICE",
        metavar="NAME",
        rich_help_panel=RUN,
        help="auto (a GPU when there is one), cpu, cuda or cuda:N.",
    ),
]


MosaicOption = Annotated[
    bool,
    typer.Option(
        "--mosaic",
        envvar="GEOSEG_MOSAIC",
        rich_help_panel=SCENE,
        help="Map all scenes as one, on one grid and without seams between the files.",
    ),
]


def _side(text: str) -> int | None:
    return None if text == "auto" else int(text)


TileOption = Annotated[
    int | None,
    typer.Option(
        parser=_side,
        envvar="GEOSEG_TILE",
        metavar="PX|auto",
        rich_help_panel="Windows and tiles",
        help="Side of a tile, the unit of work and memory; the map does not depend on it. auto: "
        "wide and short, so that few windows run twice.",
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers",
        envvar="GEOSEG_WORKERS",
        metavar="N",
        rich_help_panel=RUN,
        help="Dask worker processes on this machine; 0 runs in this process.",
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        envvar="GEOSEG_SCHEDULER",
        metavar="ADDRESS",
        rich_help_panel=RUN,
        help="Address of a running Dask scheduler whose workers run the tiles.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        envvar="GEOSEG_THREADS",
        metavar="N",
        rich_help_panel=RUN,
        help="CPUs to compute with, for each worker too. [default: all that the process may "
        "use]".replace("[", "\\["),
    ),
]
StoreArgument = Annotated[
    str,
    typer.Argument(metavar="STORE", help="What geoseg encode has made.", show_default=False),
]
FastOption = Annotated[
    bool,
    typer.Option(
        "--fast",
        envvar="GEOSEG_FAST",
        rich_help_panel=INPUT,
        help="Ask the fast tier: nearly the same in a fraction of the time.",
    ),
]
AreaOfStoreOption = Annotated[
    str | None,
    typer.Option(
        "--aoi",
        envvar="GEOSEG_AOI",
        metavar="BOX|FILE",
        rich_help_panel=INPUT,
        help="Only this part: minx,miny,maxx,maxy in the scene's CRS, or a vector file.",
    ),
]
SceneOfStoreOption = Annotated[
    str | None,
    typer.Option(
        "--scene",
        envvar="GEOSEG_SCENE",
        metavar="FILE",
        rich_help_panel=INPUT,
        help="Where the scene lies now, if it has been moved.",
    ),
]
ModelOfStoreOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="SPEC",
        rich_help_panel=MODEL,
        help="Where the store's model lies now, if it has been moved.",
    ),
]
UpdateOption = Annotated[
    bool,
    typer.Option(
        "--update",
        envvar="GEOSEG_UPDATE",
        rich_help_panel=RUN,
        help="Do what is to be done: skip what is there and the same, finish what was "
        "interrupted, make anew what has changed. Replaces geoseg's own files alone.",
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", envvar="GEOSEG_RESUME", rich_help_panel=RUN, help="Finish an interrupted run."
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        envvar="GEOSEG_OVERWRITE",
        rich_help_panel=RUN,
        help="Replace what an earlier run left there.",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", envvar="GEOSEG_JSON", rich_help_panel=RUN, help="Print one JSON object on stdout."
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        envvar="GEOSEG_QUIET",
        rich_help_panel=RUN,
        help="No progress, warnings or summary; errors only.",
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="GEOSEG_DEBUG",
        rich_help_panel=RUN,
        help="Show tracebacks and library warnings.",
    ),
]


def refuse_silence(examples: str | None) -> None:
    """Refuse a map of which neither words nor examples say anything."""
    from geoseg.errors import OptionError

    if examples is None:
        raise OptionError(
            'nothing says what to look for; give --classes "building,roof; road; water", or '
            "--examples FILE"
        )


def vocabulary(
    classes: str | None,
    examples: str | None,
    place: Any,
    *,
    model: Any,
    options: Any,
    reading: Any = None,
    device: str = "auto",
) -> tuple[Any, Any]:
    """Return what to look for, from words or examples or both, and the model, loaded if need be.

    Parameters
    ----------
    classes, examples
        As they were given.
    place
        Scene or store that the examples lie in; the path of either.
    model, options, reading, device
        As for `geoseg.examples`.
    """
    if classes is None:
        refuse_silence(examples)
    if examples is None:
        return classes, model
    import geoseg
    from geoseg.store.layout import GROUP

    if isinstance(place, str) and (Path(place) / GROUP).exists():
        place = geoseg.open_store(place)
    if not isinstance(place, geoseg.Store) and isinstance(model, str):
        model = geoseg.load_model(model, device=device)
    given = {} if isinstance(place, geoseg.Store) else {"model": model, "reading": reading}
    found = geoseg.examples(place, examples, classes, options=options, device=device, **given)
    return found, model


Command = Callable[..., None]


def takes(kind: type[Any], *only: str, panel: str | None = None) -> Callable[[Command], Command]:
    """Give a command the fields of a dataclass as options.

    The command's parameter of that type disappears from the command line, and each field that
    declares itself (see `geoseg.options.option`) becomes an option in its place.

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
