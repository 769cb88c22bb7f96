"""``geoseg stats``: how much of each class lies in every zone?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg_cli import _progress, _run, options

_ZONES = "Zones"
_RESULT = "Output"


def stats(
    labels: Annotated[
        list[str],
        typer.Argument(
            metavar="LABELS",
            help="Label raster; several on one grid and of the same classes count as one.",
        ),
    ],
    zones: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Vector file with the zones as polygons, in any CRS."),
    ],
    classes: options.LegendOption = None,
    zone_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Field that names the zones. Default: they are numbered from 1.",
            rich_help_panel=_ZONES,
        ),
    ] = None,
    zone_layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layer of the vector file. Default: the one with polygons.",
            rich_help_panel=_ZONES,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Table to write, .csv, .json or .parquet. Default: CSV on standard output.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Add up class areas in every zone of a vector file, on the ellipsoid.

    Pixels on the border of a zone count with the part that lies inside. `coverage` is the share of
    the zone that has a label.
    """
    from geoseg.vector.stats import as_csv, check_stats_target, write_stats, zone_stats

    if out is not None:
        check_stats_target(out, overwrite=overwrite)
    with _progress.share_bar("zones", quiet=quiet) as progress:
        table = zone_stats(
            labels if len(labels) > 1 else labels[0],
            zones,
            column=zone_column,
            layer=zone_layer,
            classes=classes,
            progress=progress,
        )
    _run.warn_of_nameless(labels, table.class_name.unique())
    if out is not None:
        write_stats(table, out, overwrite=overwrite)
    if as_json:
        _run.print_json({"zones": table.astype(object).to_dict(orient="records")})
    elif out is None:
        typer.echo(as_csv(table), nl=False)
