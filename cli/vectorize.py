"""``geoseg vectorize``: label raster to polygons."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from geoseg_cli import options
from geoseg_cli._run import print_json, reporting

_SHAPE = "Polygons"
_RESULT = "Output"


def vectorize(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Label raster.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=_RESULT,
            help="Vector file to write; the suffix decides: .gpkg, .parquet, .fgb or .geojson.",
        ),
    ],
    confidence: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Raster of per cents on the grid of the labels: gives every polygon its mean and "
            "its minimum.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    min_area: Annotated[
        float,
        typer.Option(
            metavar="M2",
            help="Polygons below this area go to the neighbour with the longest shared boundary.",
            rich_help_panel=_SHAPE,
        ),
    ] = 0.0,
    drop_small: Annotated[
        bool,
        typer.Option(
            "--drop-small",
            help="Leave polygons below --min-area out instead, which makes holes in the map.",
            rich_help_panel=_SHAPE,
        ),
    ] = False,
    simplify: Annotated[
        float,
        typer.Option(
            metavar="METRES",
            help="How far a simplified boundary may lie from the pixels' edges; neighbours keep "
            "one common boundary.",
            rich_help_panel=_SHAPE,
        ),
    ] = 0.0,
    smooth: Annotated[
        int,
        typer.Option(
            metavar="TIMES",
            help="How often corners are cut; neighbours keep one common boundary.",
            rich_help_panel=_SHAPE,
        ),
    ] = 0,
    connectivity: Annotated[
        int,
        typer.Option(
            metavar="4|8",
            help="Whether pixels of one object share sides (4), or sides or corners (8).",
            rich_help_panel=_SHAPE,
        ),
    ] = 4,
    raster_style: Annotated[
        bool,
        typer.Option(
            "--raster-style",
            help="Also write class names and colours beside LABELS: a QGIS style (.qml) and "
            "GDAL's category names (.aux.xml).",
            rich_help_panel=_RESULT,
        ),
    ] = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Turn a label raster into polygons that share their boundaries exactly."""
    with reporting(debug=debug, quiet=quiet):
        from geoseg.vector import VectorOptions
        from geoseg.vector import vectorize as run
        from geoseg.vector.style import write_raster_style

        options = VectorOptions(
            min_area_m2=min_area,
            drop_small=drop_small,
            simplify_m=simplify,
            smooth=smooth,
            connectivity=connectivity,
        )
        with _rows_bar(quiet=quiet) as progress:
            summary = run(
                labels,
                out,
                confidence=confidence,
                options=options,
                overwrite=overwrite,
                progress=progress,
            )
        if raster_style:
            write_raster_style(labels, overwrite=overwrite)
        if as_json:
            print_json(
                {
                    "path": str(summary.path),
                    "count": summary.count,
                    "count_by_class": dict(summary.count_by_class),
                    "area_m2": None if summary.area_m2 is None else dict(summary.area_m2),
                }
            )
        elif not quiet:
            typer.echo(f"{summary.path}: {summary.count} polygons", err=True)


@contextmanager
def _rows_bar(*, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Bar over the rows of the raster, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("polygons", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
