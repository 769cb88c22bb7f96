"""`geoseg info`: what geoseg sees in a scene, and what a run would cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Reading, Scorer
from geoseg_cli import _run, options
from geoseg_cli.fields import takes


@takes(Options, *options.METHOD_FOR_LABELS, "window", "stride")
@takes(Scorer)
@takes(Reading)
def info(
    scenes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE",
            help="The scene; several files with --rgb or --mosaic. Or a store of geoseg encode.",
        ),
    ],
    *,
    model: options.ModelOption = DEFAULT_MODEL,
    reading: Reading,
    chosen: Options,
    scorer: Scorer,
    mosaic: options.MosaicOption = False,
    tile: options.TileOption = None,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Show size, GSD, bands, nodata, CRS and stretch, and the windows, memory and time of a run.

    The time comes from the start of this command and from encoding a few windows here and now, and
    its range from how much those differ; without the model's weights on this machine it is left
    out. Of a store: what it holds, and how it was encoded.
    """
    from geoseg.ask import is_store, open_store
    from geoseg.errors import OptionError
    from geoseg.inspect import inspect_scene
    from geoseg.io.expand import expand_scenes
    from geoseg_cli.start import CLOCK

    if mosaic and reading.rgb:
        raise OptionError("--mosaic and --rgb: files side by side, or bands of one scene; give one")
    as_one = mosaic or reading.rgb
    if len(scenes) > 1 and not as_one:
        raise OptionError("info is of one scene; files that are one go with --rgb or --mosaic")
    if not as_one and is_store(scenes[0]):
        facts = open_store(scenes[0]).summary
    else:
        facts = inspect_scene(
            expand_scenes(scenes) if as_one else scenes[0],
            model=model,
            scorer=None if scorer.call is None else scorer,
            options=chosen,
            reading=reading,
            tile=tile,
            device=device,
            begun=CLOCK,
        )
    if as_json:
        _run.print_json(facts)
    else:
        _print(facts)


_AS_STORED = ("transform", "nodata")
"""Facts whose numbers are not rounded."""


def _print(facts: dict[str, Any]) -> None:
    """Two columns, folded to a terminal; whole lines where something else reads them."""
    from rich.table import Table
    from rich.text import Text

    console = _run.console()
    if not console.is_terminal:
        for section, values in facts.items():
            lines = [f"{name.replace('_', ' '):<19} {_text(v, name)}" for name, v in values.items()]
            typer.echo("\n".join([section, *lines, ""]))
        return
    for section, values in facts.items():
        table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
        table.add_column(style="dim", min_width=18)
        table.add_column(overflow="fold")
        for name, value in values.items():
            table.add_row(name.replace("_", " "), _text(value, name))
        console.print(Text(section, style="bold"))
        console.print(table)
        console.print()


def _text(value: Any, name: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return repr(value).removesuffix(".0") if name in _AS_STORED else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(v, name) for v in value)
    return _run.printable(str(value))
