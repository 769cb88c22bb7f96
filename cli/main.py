"""The `geoseg` command: one file a command, nothing heavy imported until one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg_cli import benchmark, evaluate, info, models, preview, segment, stats, tune, vectorize

app = typer.Typer(
    name="geoseg",
    help="Maps from plain words: scenes and class names in, label rasters and polygons out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(segment.segment)
app.command()(info.info)
app.command()(models.models)
app.command()(vectorize.vectorize)
app.command()(stats.stats)
app.command()(preview.preview)
app.command()(evaluate.evaluate)
app.command()(benchmark.benchmark)
app.command()(tune.tune)


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
    app()
