"""`geoseg suggest`: where a look at a map is worth most."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg._fields import INPUT, OUTPUT
from geoseg_cli import _progress, _run, options


def suggest(
    store: options.StoreArgument,
    map_: Annotated[
        str,
        typer.Option(
            "--map",
            metavar="DIR",
            rich_help_panel=INPUT,
            help="Map of its scene, as segment or ask left it.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="Points with an empty column class, .gpkg or .geojson.",
        ),
    ],
    n: Annotated[
        int,
        typer.Option("-n", metavar="N", min=1, rich_help_panel=OUTPUT, help="How many points."),
    ] = 20,
    distance: Annotated[
        float | None,
        typer.Option(
            metavar="PX",
            min=0,
            rich_help_panel=OUTPUT,
            help="The least between two points, in pixels. Default: half of what lay between them "
            "if they stood evenly.",
        ),
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Suggest places at which your look at a map of STORE is worth most.

    Fill in the column class of the points, and geoseg correct learns from them.

    Example: geoseg suggest town.store --map map -n 20 --out points.gpkg
    """
    import geoseg

    with _progress.progress_bar(quiet=quiet) as progress:
        points = geoseg.suggest(
            geoseg.open_store(store),
            map_,
            n,
            distance=distance,
            out=out,
            overwrite=overwrite,
            progress=progress,
        )
    told = {"out": out, "points": len(points), "distance": points.attrs["distance"]}
    if as_json:
        _run.print_json(told | {"margin": float(points.margin.mean())})
    elif not quiet:
        words = f"{out}: {len(points)} points, {told['distance']:.4g} pixels apart or more"
        typer.echo(_run.printable(words), err=True)
