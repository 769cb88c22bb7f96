"""``geoseg vectorize``: label raster to polygons."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from geoseg._fields import SHAPE
from geoseg.options import VectorOptions
from geoseg.options.polygons import POLYGON_FORMATS
from geoseg_cli import _progress, _run, options
from geoseg_cli.fields import takes

_RESULT = "Output"
_SUFFIXES = ", ".join(f".{name}" for name in POLYGON_FORMATS if name != "none")


@takes(VectorOptions)
def vectorize(
    labels: Annotated[
        list[str],
        typer.Argument(
            metavar="LABELS",
            help="Label raster; several on one grid and of the same classes are joined.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=_RESULT,
            help=f"Vector file to write; the suffix decides: {_SUFFIXES}.",
        ),
    ],
    *,
    classes: options.LegendOption = None,
    confidence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Raster of per cents on the grid of the labels: gives every polygon its mean and "
            "its minimum. For several label rasters one each, in their order.",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    runner_up: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Raster of the second best class on the grid of the labels: gives every polygon "
            "the one that comes second in most of its pixels.",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    shape: VectorOptions,
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
    from geoseg.errors import OptionError
    from geoseg.vector import vectorize as run
    from geoseg.vector.style import raster_style as style_beside

    if raster_style and len(labels) > 1:
        raise OptionError("--raster-style lies beside one label raster; give each by itself")
    style = (
        style_beside(labels[0], classes=classes, overwrite=overwrite)
        if raster_style
        else nullcontext()
    )
    with style, _progress.share_bar("polygons", quiet=quiet) as show:
        summary = run(
            labels if len(labels) > 1 else labels[0],
            out,
            confidence=confidence[0] if confidence and len(confidence) == 1 else confidence or None,
            runner_up=runner_up,
            classes=classes,
            options=shape,
            overwrite=overwrite,
            progress=show and (lambda done, total: show(done / total)),
        )
    _run.warn_of_nameless(labels, summary.count_by_class)
    if as_json:
        _run.print_json(
            {
                "path": str(summary.path),
                "count": summary.count,
                "count_by_class": dict(summary.count_by_class),
                "area_m2": None if summary.area_m2 is None else dict(summary.area_m2),
            }
        )
    elif not quiet:
        typer.echo(f"{summary.path}: {summary.count} polygons", err=True)
