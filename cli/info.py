"""`geoseg info`: what geoseg sees in a scene, and what a run would cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Reading
from geoseg_cli import _run, options
from geoseg_cli.options import takes


@takes(Options, "window", "stride")
@takes(Reading, "bands", "stretch", "gsd", "aoi", "nodata", "ignore_alpha")
def info(
    scene: Annotated[str, typer.Argument(metavar="SCENE", help="The scene.")],
    *,
    model: options.ModelOption = DEFAULT_MODEL,
    reading: Reading,
    chosen: Options,
    tile: options.TileOption = 2048,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Show size, GSD, bands, nodata, CRS and stretch, and the windows, memory and time of a run.

    The time comes from encoding a few windows here and now; without the model's weights on this
    machine it is left out.
    """
    from geoseg.inspect import inspect_scene

    facts = inspect_scene(
        scene,
        model=model,
        options=chosen,
        reading=reading,
        tile=tile,
        device=device,
    )
    if as_json:
        _run.print_json(facts)
    else:
        _print(facts)


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _run.console()
    for section, values in facts.items():
        table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
        table.add_column(style="dim", min_width=18)
        table.add_column(overflow="fold")
        for name, value in values.items():
            table.add_row(name.replace("_", " "), _text(value))
        console.print(Text(section, style="bold"))
        console.print(table)
        console.print()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return _run.printable(str(value))
