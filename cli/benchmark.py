"""``geoseg benchmark``: a published data set, scored as the paper does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options
from geoseg.options.reading import ResizeRule
from geoseg_cli import _run, options
from geoseg_cli.fields import takes
from geoseg_cli.options import METHOD_FOR_LABELS

if TYPE_CHECKING:
    from geoseg.evaluation.registry import Dataset
    from geoseg.inference.segmenter import Segmenter

DATA, RESULT = "Data", "Result"


@takes(Options, *METHOD_FOR_LABELS, "threshold")
def benchmark(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="Name of the data set; without it all are listed, without --root it says where "
            "to get it."
        ),
    ] = None,
    *,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the data, as it was downloaded.", rich_help_panel=DATA
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only the first N image files.", rich_help_panel=DATA),
    ] = None,
    resize: Annotated[
        ResizeRule,
        typer.Option(
            help="opencv as the paper (no antialiasing), antialias, or none for the images' own "
            "pixels.",
            rich_help_panel=DATA,
        ),
    ] = "opencv",
    long_side: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Long side that images are resized to. \\[default: 448]",
            rich_help_panel=DATA,
        ),
    ] = None,
    model: options.ModelOption = DEFAULT_MODEL,
    chosen: Options,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for images.csv and benchmark.json. \\[default: benchmark-DATASET]",
            rich_help_panel=RESULT,
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    resume: options.ResumeOption = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Score a model on a published data set, beside the reported scores.

    Example: geoseg benchmark loveda --root LoveDA --limit 20
    """
    from geoseg.errors import OptionError
    from geoseg.evaluation.registry import load_dataset

    if dataset is None:
        _list(as_json=as_json)
        return
    data = load_dataset(dataset)
    if root is None:
        expected = "; or ".join(layout.describe() for layout in data.layouts)
        raise OptionError(
            f"--root is missing: the folder of {data.title} with {expected}; get the data from "
            f"{data.home} ({data.licence})"
        )
    data.find(root)  # Fail before the model is loaded.

    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from geoseg.evaluation.benchmark import run_benchmark
    from geoseg.evaluation.benchmark_result import as_dict, as_tables

    segmenter, facts = _segmenter(
        data,
        model,
        device,
        chosen,
    )
    console = _run.console(stderr=True)

    def progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not quiet and not console.is_terminal and done % -(-total // 20) == 0:
            typer.echo(f"{done} of {total} images", err=True)

    with Progress(
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    ) as bar:
        task = bar.add_task(data.id, total=None)
        result = run_benchmark(
            data,
            root,
            segmenter,
            out=out if out is not None else Path(f"benchmark-{data.id}"),
            facts=facts,
            limit=limit,
            resize=resize,
            long_side=long_side,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        _run.print_json(as_dict(result))
    elif not quiet:
        _run.console().print(as_tables(result, f"geoseg, {model}"))


def _segmenter(
    data: Dataset, model: str, device: str, given: Any
) -> tuple[Segmenter, dict[str, Any]]:
    """Load the model for a data set, and say what its scores depend on."""
    from dataclasses import asdict

    from geoseg.evaluation.benchmark import paper_options
    from geoseg.inference.segmenter import Segmenter
    from geoseg.model.loading import load_model

    loaded = load_model(model, device=device)
    segmenter = Segmenter(loaded, data.vocabulary, paper_options(data, given))
    resolved = asdict(segmenter.options)
    # How windows are batched and where options came from does not change scores.
    del resolved["batch_size"], resolved["sources"]
    return segmenter, {"model": model, "weights": loaded.fingerprint, "options": resolved}


def _list(*, as_json: bool) -> None:

    from geoseg.evaluation.registry import dataset_ids, load_dataset
    from geoseg.evaluation.report import plain_table

    found = [load_dataset(name) for name in dataset_ids()]
    if as_json:
        _run.print_json(
            {
                "datasets": [
                    {
                        "id": data.id,
                        "title": data.title,
                        "task": data.task,
                        "metric": data.metric,
                        "classes": list(data.vocabulary.names),
                        "home": data.home,
                        "licence": data.licence,
                        "layouts": [layout.describe() for layout in data.layouts],
                    }
                    for data in found
                ]
            }
        )
        return
    table = plain_table("Data sets of the SegEarth-OV paper")
    table.add_column("name")
    table.add_column("data set")
    table.add_column("classes", justify="right")
    table.add_column("metric")
    for data in found:
        table.add_row(data.id, data.title, str(len(data.vocabulary.names)), data.metric)
    _run.console().print(table)
