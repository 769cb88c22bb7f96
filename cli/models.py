"""`geoseg models`: which models there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from geoseg.errors import OptionError
from geoseg_cli import _run, options


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[TEXT]|check FILE",
            help="Show only specifications that contain this; or check a checkpoint file, or a "
            "--model, alone.",
        ),
    ] = None,
    file: Annotated[str | None, typer.Argument(metavar="", hidden=True)] = None,
    cached: Annotated[
        bool, typer.Option("--cached", help="Show only models whose weights are on this machine.")
    ] = False,
    upsampler_weights: Annotated[
        str | None,
        typer.Option(
            "--upsampler-weights", metavar="FILE", help="With check: whether this upsampler fits."
        ),
    ] = None,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """List the bundled model and the pretrained models that open_clip knows.

    Besides these, --model takes a checkpoint (ARCH:/path), the mean of several (ARCH:A.pt+B.pt), a
    folder (local-dir:/path) and a hub repository (hf-hub:ORG/NAME). `geoseg models check FILE` says
    whether architecture, activation, tokenizer and context of a checkpoint belong together.
    """
    if name == "check" and file is not None:
        _check(file, upsampler_weights, as_json)
        return
    if name == "check" or file is not None or upsampler_weights is not None:
        raise OptionError("write geoseg models [TEXT], or geoseg models check FILE")
    from geoseg.model.catalogue import known_models
    from geoseg.model.published import PUBLISHED, SOURCE

    entries = [
        entry
        for entry in known_models()
        if (name is None or name.lower() in entry.spec.lower()) and (entry.cached or not cached)
    ]
    files = [e for e in PUBLISHED if name is None or name.lower() in e.name.lower()]
    if as_json:
        published = {"source": SOURCE, "encoders": [each.as_dict() for each in files]}
        models = [entry.as_dict() for entry in entries]
        _run.print_json({"models": models, "published": published})
        return
    if entries:
        _print(entries)
        print()
    if files and not cached:
        _print_files(files, SOURCE)


def _check(file: str, upsampler_weights: str | None, as_json: bool) -> None:
    from geoseg.model.check import check_model

    checked = check_model(file, upsampler_weights)
    if as_json:
        _run.print_json(checked.as_dict())
    else:
        mark = {True: "ok", False: "wrong", None: "-"}
        for each in checked.findings:
            print(f"{mark[each.ok]:<5}  {each.what}: {each.said}")
        if checked.ok:
            print(f"       --model {checked.spec}")
    if not checked.ok:
        raise typer.Exit(1)


def _print_files(files: list[Any], source: str) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("files of others", "B/16", "B/32", "for dense maps"):
        table.add_column(column, justify="right" if column.startswith("B/") else "left")
    for each in files:
        scores = ("" if value is None else f"{value:.1f}" for value in (each.b16, each.b32))
        table.add_row(each.name, *scores, each.advice)
    console = _run.console()
    console.print(table)
    console.print(f"{source[0].upper()}{source[1:]}.", style="dim")


def _print(entries: list[Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("model", "patch", "native", "weights"):
        table.add_column(column, justify="right" if column in ("patch", "native") else "left")
    for entry in entries:
        where = "bundled" if entry.bundled else "cached" if entry.cached else "download"
        table.add_row(entry.spec, str(entry.patch_size), str(entry.image_size), where)
    _run.console().print(table)
