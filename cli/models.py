"""`geoseg models`: which models there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from geoseg_cli import _run, options


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="Show only specifications that contain this."),
    ] = None,
    cached: Annotated[
        bool, typer.Option("--cached", help="Show only models whose weights are on this machine.")
    ] = False,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """List the bundled model and the pretrained models that open_clip knows.

    Besides these, --model takes a checkpoint (ARCH:/path), a folder (local-dir:/path) and a hub
    repository (hf-hub:ORG/NAME).
    """
    from geoseg.model.catalogue import known_models

    entries = [
        entry
        for entry in known_models()
        if (name is None or name.lower() in entry.spec.lower()) and (entry.cached or not cached)
    ]
    if as_json:
        _run.print_json({"models": [entry.as_dict() for entry in entries]})
    else:
        _print(entries)


def _print(entries: list[Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("model", "patch", "native", "weights"):
        table.add_column(column, justify="right" if column in ("patch", "native") else "left")
    for entry in entries:
        where = "bundled" if entry.bundled else "cached" if entry.cached else "download"
        table.add_row(entry.spec, str(entry.patch_size), str(entry.image_size), where)
    _run.console().print(table)
