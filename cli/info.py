"""`geoseg info`: what geoseg sees in a scene, and what a run would cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from geoseg.model.spec import DEFAULT_MODEL
from geoseg_cli import _run, options


def info(
    scene: Annotated[str, typer.Argument(metavar="SCENE", help="The scene.")],
    model: options.ModelOption = DEFAULT_MODEL,
    bands: options.BandsOption = None,
    stretch: options.StretchOption = "auto",
    gsd: options.GsdOption = None,
    aoi: options.AoiOption = None,
    window: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Side of the encoder window. \\[default: as segment]"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(metavar="PX", help="Step between windows. \\[default: as segment]")
    ] = None,
    tile: Annotated[int, typer.Option(metavar="PX", help="Side of a tile.")] = 2048,
    device: options.DeviceOption = "auto",
    json_: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Show size, GSD, bands, nodata, CRS and stretch, and the windows, memory and time of a run.

    The time comes from encoding a few windows here and now; without the model's weights on this
    machine it is left out.
    """
    with _run.reporting(debug=debug, quiet=quiet):
        from geoseg.inference.options import Options
        from geoseg.inspect import inspect_scene
        from geoseg.pipeline import Reading

        facts = inspect_scene(
            scene,
            model=model,
            options=Options(window=window, stride=stride),
            reading=Reading(options.parse_bands(bands), stretch, gsd, aoi),
            tile=tile,
            device=device,
        )
        if json_:
            _run.print_json(facts)
        else:
            _print(facts)


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for section, values in facts.items():
        table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
        table.add_column(style="dim", min_width=18)
        table.add_column(overflow="fold")
        for name, value in values.items():
            table.add_row(name.replace("_", " "), _text(value))
        console.print(f"[bold]{section}[/bold]")
        console.print(table)
        console.print()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return str(value)
