"""`geoseg similar`: where a store's scene is like words or a place."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any

import typer

from geoseg._fields import INPUT, OUTPUT
from geoseg.options import Options
from geoseg_cli import _progress, _run, options
from geoseg_cli.fields import takes


@takes(Options, "templates")
def similar(
    store: options.StoreArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="WORDS|X,Y|WKT",
            rich_help_panel=INPUT,
            help="What is looked for: words, a point in the scene's CRS, or a polygon as WKT.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.tif",
            rich_help_panel=OUTPUT,
            help="Cloud-optimised GeoTIFF of the cosine of similarity, float32.",
        ),
    ],
    chosen: Options,
    fast: options.FastOption = False,
    aoi: options.AreaOfStoreOption = None,
    scene: options.SceneOfStoreOption = None,
    model: options.ModelOfStoreOption = None,
    device: options.DeviceOption = "auto",
    overwrite: options.OverwriteOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Say how much every pixel of the scene of STORE is like some words, or like a place in it.

    Example: geoseg similar town.store --to "solar panel" --out solar.tif
    """
    import geoseg

    with _progress.progress_bar(quiet=quiet) as progress:
        geoseg.open_store(store).similar(
            _place(to),
            out=out,
            fast=fast or None,
            options=chosen,
            aoi=aoi,
            scene=scene,
            model=model,
            device=device,
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        typer.echo(_run.printable(out), err=True)


_WKT = re.compile(
    r"\s*(SRID=\d+;)?\s*((MULTI)?(POINT|LINESTRING|POLYGON)|GEOMETRYCOLLECTION)\s*Z?M?\s*"
    r"(\(|EMPTY\b)",
    re.IGNORECASE,
)


def _place(to: str) -> Any:
    """Words, or the place that they write down."""
    if _WKT.match(to):
        import shapely

        from geoseg.errors import OptionError

        if "=" in to.partition("(")[0]:
            raise OptionError("--to takes a geometry in the scene's CRS; leave SRID=… out")
        try:
            return shapely.from_wkt(to)
        except shapely.errors.ShapelyError as error:
            raise OptionError(f"--to is no geometry: {error}") from None
    parts = to.split(",")
    if len(parts) == 2:
        with suppress(ValueError):
            return float(parts[0]), float(parts[1])
    return to
