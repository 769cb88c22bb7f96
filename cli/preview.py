"""`geoseg preview`: a picture of a label raster on its scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg.options import Reading
from geoseg_cli import options
from geoseg_cli.fields import takes


@takes(Reading, "bands", "stretch", "nodata", "ignore_alpha")
def preview(
    scene: Annotated[str, typer.Argument(metavar="SCENE", help="The scene.")],
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="Its label raster.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="Picture to write.")],
    reading: Reading,
    classes: options.LegendOption = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the picture. \\[default: the scene's file name]")
    ] = None,
    opacity: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Opacity of the class colours.")
    ] = 0.55,
    max_width: Annotated[
        int, typer.Option(metavar="PX", min=400, help="Largest width of the picture.")
    ] = 2000,
    overwrite: options.OverwriteOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Draw the scene beside its map, with legend and scale bar."""
    from geoseg._address import scene_name
    from geoseg.preview import preview_files

    preview_files(
        scene,
        labels,
        out,
        classes=classes,
        bands=reading.bands,
        stretch=reading.stretch,
        nodata=reading.fill,
        ignore_alpha=reading.ignore_alpha,
        title=title or scene_name(scene),
        opacity=opacity,
        max_width=max_width,
        overwrite=overwrite,
    )
    if not quiet:
        typer.echo(str(out), err=True)
