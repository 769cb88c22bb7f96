"""`geoseg correct`: a map anew from a few corrected places."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg._fields import INPUT, OUTPUT
from geoseg.options import Products
from geoseg_cli import _progress, _run, options
from geoseg_cli.fields import takes


@takes(Products)
def correct(
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
    points: Annotated[
        str,
        typer.Option(
            "--points",
            metavar="FILE",
            rich_help_panel=INPUT,
            help="Points or polygons with a column class: what is really there.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            rich_help_panel=OUTPUT,
            help="Folder for the new map.",
        ),
    ],
    products: Products,
    scene: options.SceneOfStoreOption = None,
    model: options.ModelOfStoreOption = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Map the scene of STORE anew, so that a few places you know come out right.

    Example: geoseg correct town.store --map map --points known.gpkg --out better
    """
    import geoseg

    with _progress.progress_bar(quiet=quiet) as progress:
        done = geoseg.correct(
            geoseg.open_store(store, scene=scene, model=model),
            map_,
            points,
            out,
            products=products,
            overwrite=overwrite,
            progress=progress,
        )
    moved = [
        {"from": old, "to": new, "pixels": count}
        for (old, new), count in sorted(done.moved.items(), key=lambda one: -one[1])
    ]
    told = {
        "out": str(done.run.out),
        "right_before": done.before,
        "right_left_out": done.after,
        "spread": done.spread,
        "moved": moved,
    }
    if as_json:
        _run.print_json(told)
    elif not quiet:
        words = f"right: {100 * done.before:.0f} % before, {100 * done.after:.0f} % left out"
        typer.echo(words, err=True)
        if not done.spread:
            typer.echo("the places say nothing that mends the map; it stays as it is", err=True)
        for one in moved:
            line = f"{one['from']} -> {one['to']}: {one['pixels']:,} pixels"
            typer.echo(_run.printable(line), err=True)
