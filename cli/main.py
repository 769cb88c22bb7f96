"""The `geoseg` command: one file a command, nothing heavy imported until one runs."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from geoseg_cli import (
    _run,
    ask,
    benchmark,
    correct,
    encode,
    evaluate,
    info,
    models,
    preview,
    segment,
    similar,
    stats,
    suggest,
    tune,
    vectorize,
)

app = typer.Typer(
    name="geoseg",
    help="Maps from plain words: scenes and class names in, label rasters and polygons out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    segment.segment,
    encode.encode,
    ask.ask,
    similar.similar,
    suggest.suggest,
    correct.correct,
    info.info,
    models.models,
    vectorize.vectorize,
    stats.stats,
    preview.preview,
    evaluate.evaluate,
    benchmark.benchmark,
    tune.tune,
):
    app.command()(_run.reported(command))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"geoseg {version('geoseg')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Maps from plain words: scenes and class names in, label rasters and polygons out."""


def run() -> None:
    """Entry point of the `geoseg` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A pipe may have fewer letters than a name or the help.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:  # before a command has begun
        raise SystemExit(_run.INTERRUPTED) from None
