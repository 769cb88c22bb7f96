"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geoseg._fields import INPUT, MODEL, SCENE, WINDOWS
from geoseg_cli.fields import flag

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
    flag(
        "--model",
        "-m",
        metavar="SPEC",
        panel=MODEL,
        help="geoseg-tiny (bundled, offline), ARCH/PRETRAINED as open_clip names them, "
        "ARCH:/path/to/checkpoint, hf-hub:ORG/NAME, local-dir:/path or talk2dino:/path/to/json.",
    ),
]
ClassesOption = Annotated[
    str,
    flag(
        "--classes",
        "-c",
        metavar="FILE|LIST",
        panel=INPUT,
        help="Class names: a text file (one class a line, synonyms after commas), a TOML, "
        'JSON or CSV file, or inline "building,roof;road;water".',
    ),
]
ClassesOrNone = Annotated[str | None, *ClassesOption.__metadata__]
ExamplesOption = Annotated[
    str | None,
    flag(
        "--examples",
        metavar="FILE",
        panel=INPUT,
        help="Polygons or points with a column class: more of this. They go beside the words of "
        "--classes, or make the classes where there are none.",
    ),
]
ExamplesFromOption = Annotated[
    str | None,
    flag(
        "--examples-from",
        metavar="SCENE|STORE",
        panel=INPUT,
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
    flag("--device", metavar="NAME", help="auto (a GPU when there is one), cpu, cuda or cuda:N."),
]


MosaicOption = Annotated[
    bool,
    flag(
        "--mosaic",
        panel=SCENE,
        help="Map all scenes as one, on one grid and without seams between the files.",
    ),
]


def _side(text: str) -> int | None:
    return None if text == "auto" else int(text)


TileOption = Annotated[
    int | None,
    flag(
        "--tile",
        metavar="PX|auto",
        panel=WINDOWS,
        parser=_side,
        help="Side of a tile, the unit of work and memory; the map does not depend on it. auto: "
        "wide and short, so that few windows run twice.",
    ),
]
WorkersOption = Annotated[
    int,
    flag(
        "--workers",
        metavar="N",
        help="Dask worker processes on this machine; 0 runs in this process.",
    ),
]
SchedulerOption = Annotated[
    str | None,
    flag(
        "--scheduler",
        metavar="ADDRESS",
        help="Address of a running Dask scheduler whose workers run the tiles.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    flag(
        "--threads",
        metavar="N",
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
    flag(
        "--fast", panel=INPUT, help="Ask the fast tier: nearly the same in a fraction of the time."
    ),
]
AreaOfStoreOption = Annotated[
    str | None,
    flag(
        "--aoi",
        metavar="BOX|FILE",
        panel=INPUT,
        help="Only this part: minx,miny,maxx,maxy in the scene's CRS, or a vector file.",
    ),
]
SceneOfStoreOption = Annotated[
    str | None,
    flag(
        "--scene",
        metavar="FILE",
        panel=INPUT,
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
    flag(
        "--update",
        help="Do what is to be done: skip what is there and the same, finish what was "
        "interrupted, make anew what has changed. Replaces geoseg's own files alone.",
    ),
]
ResumeOption = Annotated[bool, flag("--resume", help="Finish an interrupted run.")]
OverwriteOption = Annotated[
    bool, flag("--overwrite", help="Replace what an earlier run left there.")
]
JsonOption = Annotated[bool, flag("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[
    bool, flag("--quiet", "-q", help="No progress, warnings or summary; errors only.")
]
DebugOption = Annotated[bool, flag("--debug", help="Show tracebacks and library warnings.")]


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
