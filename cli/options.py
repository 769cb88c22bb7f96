"""Options that several commands share, defined once."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.errors import OptionError

RUN = "Run"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="SPEC",
        rich_help_panel="Model",
        help="geoseg-tiny (bundled, offline), ARCH/PRETRAINED as open_clip names them, "
        "ARCH:/path/to/checkpoint, hf-hub:ORG/NAME or local-dir:/path.",
    ),
]
ClassesOption = Annotated[
    str,
    typer.Option(
        "--classes",
        "-c",
        metavar="FILE|LIST",
        rich_help_panel="Input",
        help="Class names: a text file (one class a line, synonyms after commas), a TOML file, "
        'or inline "building,roof;road;water".',
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        rich_help_panel=RUN,
        help="auto (a GPU when there is one), cpu, cuda or cuda:N.",
    ),
]
BandsOption = Annotated[
    str | None,
    typer.Option(
        "--bands",
        metavar="R,G,B",
        rich_help_panel="Input",
        help="Bands to use as red, green and blue, counted from 1; one band alone is grey. "
        "\\[default: the file's colour bands, else 1,2,3]",
    ),
]
StretchOption = Annotated[
    str,
    typer.Option(
        "--stretch",
        metavar="RULE",
        rich_help_panel="Input",
        help="How values become colours: auto (none for 8-bit, else 2,98), none, P1,P2 "
        "percentiles of the whole scene, or min:max values.",
    ),
]
GsdOption = Annotated[
    float | None,
    typer.Option(
        "--gsd",
        metavar="METRES",
        rich_help_panel="Input",
        help="Work at this ground sampling distance instead of the scene's own.",
    ),
]
AoiOption = Annotated[
    str | None,
    typer.Option(
        "--aoi",
        metavar="BOX|FILE",
        rich_help_panel="Input",
        help="Map only this part: minx,miny,maxx,maxy in the scene's CRS, or a vector file.",
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite", rich_help_panel=RUN, help="Replace what an earlier run left there."
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=RUN, help="Print one JSON object on stdout."),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", rich_help_panel=RUN, help="No progress, warnings or summary; errors only."
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option("--debug", rich_help_panel=RUN, help="Show tracebacks and library warnings."),
]


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """Read ``"3,2,1"`` or ``"1"``.

    Raises
    ------
    OptionError
        If it is not one or three band numbers.
    """
    if text is None:
        return None
    try:
        bands = tuple(int(part) for part in text.split(","))
    except ValueError:
        bands = ()
    if len(bands) not in (1, 3) or min(bands) < 1:
        raise OptionError(
            f"--bands {text!r} is not one band or three; write for example --bands 3,2,1"
        )
    return bands
