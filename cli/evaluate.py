"""``geoseg evaluate``: how good are labels, held against the truth?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg_cli import _progress, _run, options

_MEANING = "What the truth means"
_AREA = "What is compared"
_RESULT = "Output"


def evaluate(
    labels: Annotated[
        Path,
        typer.Argument(help="Label raster, or a folder of them (or of folders with labels.tif)."),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            help="Truth: GeoTIFF in the same CRS, plain image of the same size, vector file in "
            "any CRS, or a folder of files named like the label rasters."
        ),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            help='Class file or "building,roof;road;water"; matched by name with labels and truth. '
            "Default: the names in the label raster.",
            rich_help_panel=_MEANING,
        ),
    ] = None,
    truth_values: Annotated[
        str | None,
        typer.Option(
            metavar="MAP",
            help='What truth values mean, like "0=ignore;1=background;2=building"; keys are '
            "numbers, colours #rrggbb or words of the truth column, * is every other value.",
            rich_help_panel=_MEANING,
        ),
    ] = None,
    truth_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column of a vector truth with the class. Default: class_name, class, label or "
            "name, the first there is.",
            rich_help_panel=_MEANING,
        ),
    ] = None,
    truth_layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layer of a vector truth. Default: the one with polygons.",
            rich_help_panel=_MEANING,
        ),
    ] = None,
    outside: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Class of pixels that no feature of a vector truth covers.",
            rich_help_panel=_MEANING,
        ),
    ] = "ignore",
    aoi: Annotated[
        str | None,
        typer.Option(
            metavar="AREA",
            help="Compare only inside minx,miny,maxx,maxy (labels' CRS) or a vector file.",
            rich_help_panel=_AREA,
        ),
    ] = None,
    aoi_layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layer of the --aoi file. Default: the one with polygons.",
            rich_help_panel=_AREA,
        ),
    ] = None,
    confidence: Annotated[
        Path | None,
        typer.Option(
            help="Raster of whole per cents for the calibration. Default: confidence.tif beside "
            "a labels.tif.",
            rich_help_panel=_AREA,
        ),
    ] = None,
    boundary: Annotated[
        bool, typer.Option(help="Also score outlines.", rich_help_panel=_AREA)
    ] = True,
    boundary_tolerance: Annotated[
        float,
        typer.Option(
            metavar="PIXELS",
            min=0,
            help="Greatest distance of matching outlines.",
            rich_help_panel=_AREA,
        ),
    ] = 3.0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Also write evaluation.json, CSV tables and confusion.png into this folder.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Score labels against the truth: IoU, F1, accuracy, outlines, calibration."""
    from geoseg.evaluation import evaluate as run
    from geoseg.evaluation.report import as_dict, as_tables, write_report

    with _progress.share_bar("compare", quiet=quiet) as progress:
        evaluation = run(
            labels,
            truth,
            classes=classes,
            truth_values=truth_values,
            truth_column=truth_column,
            truth_layer=truth_layer,
            outside=outside,
            aoi=aoi,
            aoi_layer=aoi_layer,
            confidence=confidence,
            boundary_tolerance=boundary_tolerance if boundary else None,
            progress=progress,
        )
    if out is not None:
        write_report(evaluation, out, overwrite=overwrite)
    if as_json:
        _run.print_json(as_dict(evaluation))
    elif not quiet:
        _run.console().print(as_tables(evaluation))
