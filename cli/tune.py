"""``geoseg tune``: settings for your own data from a handful of labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoseg.options import Options, Reading
from geoseg_cli import _run, options
from geoseg_cli.fields import takes
from geoseg_cli.options import METHOD_FOR_LABELS

if TYPE_CHECKING:
    from geoseg.evaluation.tune import Tuning

LABELS, RESULT = "Labels", "Result"


@takes(Options, *METHOD_FOR_LABELS, "background")
@takes(Reading, "bands", "stretch", "gsd", "nodata", "ignore_alpha")
def tune(
    scenes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE|STORE…",
            help="Labelled chips or scenes; folders and patterns too. Or stores of them.",
        ),
    ],
    truth: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="Labels: a raster, plain image or vector file (polygons or points), or a folder "
            "with one file a scene, of the same name.",
            rich_help_panel=LABELS,
        ),
    ],
    classes: options.ClassesOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="TOML", help="Class file to write.", rich_help_panel=RESULT
        ),
    ],
    *,
    truth_values: Annotated[
        str | None,
        typer.Option(
            metavar="MAP",
            help='What label values mean, like "0=ignore;1=background;2=building".',
            rich_help_panel=LABELS,
        ),
    ] = None,
    truth_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column of vector labels with the class. Default: class_name, class, label or "
            "name, the first there is.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    truth_layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layer of vector labels. Default: the one with polygons.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    outside: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Class of pixels that no feature of vector labels covers.",
            rich_help_panel=LABELS,
        ),
    ] = "ignore",
    samples: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Pixels drawn of each class.", rich_help_panel=LABELS
        ),
    ] = 1000,
    reading: Reading,
    chosen: Options,
    model: Annotated[str | None, *options.ModelOption.__metadata__] = None,
    device: options.DeviceOption = "auto",
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Suggest settings from a few labels: CLS bias, synonyms to drop, offsets, threshold.

    Writes a class file and prints what it gains on labels that took no part in the choice.

    Example: geoseg tune chips --truth labels --classes classes.txt --out tuned.toml
    """
    from geoseg._files import local_target
    from geoseg.errors import OptionError, OutputError

    local_target(out)
    if out.suffix.lower() != ".toml":
        raise OptionError(f"--out {out}: a class file ends in .toml")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; add --overwrite to replace it")

    from rich.progress import Progress

    from geoseg.evaluation.tune import as_dict, as_tables
    from geoseg.evaluation.tune_samples import tune_on_scenes

    console = _run.console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("segment", total=None)
        tuning = tune_on_scenes(
            scenes,
            truth,
            classes,
            model=model,
            device=device,
            options=replace(chosen, background=None),
            reading=reading,
            background=chosen.background,
            truth_values=truth_values,
            truth_column=truth_column,
            truth_layer=truth_layer,
            outside=outside,
            per_class=samples,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _write(tuning, out)
    if as_json:
        _run.print_json(as_dict(tuning))
    elif not quiet:
        _run.console().print(as_tables(tuning))


def _write(tuning: Tuning, out: Path) -> None:
    from geoseg.evaluation.report import write_whole

    write_whole({out: lambda path: path.write_text(tuning.to_toml(), encoding="utf-8")})
