"""`geoseg segment`: the main job."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoseg.model.spec import DEFAULT_MODEL
from geoseg_cli import _run, options

if TYPE_CHECKING:
    from geoseg.pipeline import Run

METHOD, WINDOWS, OUTPUT = "Method", "Windows and tiles", "Output"


class Attention(StrEnum):
    """Presets of the last block's attention."""

    vanilla = "vanilla"
    maskclip = "maskclip"
    sclip = "sclip"
    clearclip = "clearclip"
    segearth = "segearth"
    naclip = "naclip"
    gem = "gem"


class Upsampler(StrEnum):
    """From patch grid to pixels."""

    none = "none"
    jbu = "jbu"
    simfeatup = "simfeatup"
    featup = "featup"


class Blend(StrEnum):
    """Weights of overlapping windows."""

    uniform = "uniform"
    hann = "hann"


class Precision(StrEnum):
    """Arithmetic of the encoder."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Polygons(StrEnum):
    """Vector formats."""

    gpkg = "gpkg"
    parquet = "parquet"
    fgb = "fgb"
    geojson = "geojson"
    none = "none"


class OutputGrid(StrEnum):
    """Pixels of the outputs when --gsd is given."""

    native = "native"
    working = "working"


def segment(
    scenes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE",
            help="Rasters, folders or glob patterns; several scenes get a folder each.",
        ),
    ],
    classes: options.ClassesOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", rich_help_panel=OUTPUT, help="Folder for the results."
        ),
    ],
    bands: options.BandsOption = None,
    stretch: options.StretchOption = "auto",
    gsd: options.GsdOption = None,
    aoi: options.AoiOption = None,
    mosaic: Annotated[
        bool,
        typer.Option(
            "--mosaic",
            rich_help_panel="Scene",
            help="Map all scenes as one, on one grid and without seams between the files.",
        ),
    ] = False,
    model: options.ModelOption = DEFAULT_MODEL,
    templates: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            rich_help_panel="Model",
            help="Prompt templates: imagenet (80), remote-sensing, none, or a text file with {} "
            "in every line.",
        ),
    ] = "imagenet",
    precision: Annotated[
        Precision,
        typer.Option(
            rich_help_panel="Model", help="Arithmetic of the encoder; auto is bf16 on a GPU."
        ),
    ] = Precision.auto,
    attention: Annotated[
        Attention | None,
        typer.Option(
            rich_help_panel=METHOD,
            help="Attention of the last block. \\[default: the model's, else segearth]",
        ),
    ] = None,
    residual: Annotated[
        bool,
        typer.Option(
            "--residual/--no-residual",
            rich_help_panel=METHOD,
            help="Keep the last block's residual and FFN.",
        ),
    ] = False,
    upsampler: Annotated[
        Upsampler | None,
        typer.Option(
            rich_help_panel=METHOD,
            help="From patches to pixels: jbu needs no weights, simfeatup and featup do. "
            "\\[default: the model's, else jbu]",
        ),
    ] = None,
    upsampler_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=METHOD,
            help="Checkpoint of simfeatup (JBU-One) or featup (JBU-Stack).",
        ),
    ] = None,
    cls_bias: Annotated[
        float | None,
        typer.Option(
            metavar="λ",
            rich_help_panel=METHOD,
            help="Subtract λ times the window's global logits from every pixel. "
            "\\[default: the model's, else 0.3]",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            rich_help_panel=METHOD,
            help="Normalise upsampled features exactly; otherwise logits of simfeatup and featup "
            "may differ by up to 0.0005 where that is faster.",
        ),
    ] = False,
    naclip_std: Annotated[
        float | None,
        typer.Option(
            metavar="PATCHES",
            rich_help_panel=METHOD,
            help="Width of naclip's Gaussian. \\[default: 5]",
        ),
    ] = None,
    gem_depth: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=METHOD,
            help="Depth of gem's parallel stream, which runs over the last N - 1 blocks. "
            "\\[default: 7]",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=METHOD,
            help="Below this confidence a pixel becomes background. Confidence is that of a "
            "class's best name: many synonyms share it.",
        ),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=METHOD,
            help="Class for pixels below the threshold. \\[default: the first class]",
        ),
    ] = None,
    logit_scale: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=METHOD,
            help="Factor on logits before the softmax. \\[default: the model's, else 50]",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            rich_help_panel=WINDOWS,
            help="Side of the encoder window; 0 takes the whole scene in one pass. "
            "\\[default: the model's, else 224]",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            rich_help_panel=WINDOWS,
            help="Step between windows. \\[default: the model's, else half the window]",
        ),
    ] = None,
    blend: Annotated[
        Blend | None,
        typer.Option(
            rich_help_panel=WINDOWS,
            help="Weights of overlapping windows: uniform as the original, or hann. "
            "\\[default: the model's, else uniform]",
        ),
    ] = None,
    tile: Annotated[
        int,
        typer.Option(
            metavar="PX",
            rich_help_panel=WINDOWS,
            help="Side of a tile, the unit of work and memory; the map does not depend on it.",
        ),
    ] = 2048,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=WINDOWS,
            help="Windows encoded at once; fewer if they do not fit. "
            "\\[default: picked for the device]",
        ),
    ] = None,
    polygons: Annotated[
        Polygons, typer.Option(rich_help_panel=OUTPUT, help="Format of the polygons.")
    ] = Polygons.gpkg,
    min_area: Annotated[
        float,
        typer.Option(
            metavar="M2", rich_help_panel=OUTPUT, help="Merge polygons smaller than this."
        ),
    ] = 0.0,
    simplify: Annotated[
        float,
        typer.Option(
            metavar="METRES",
            rich_help_panel=OUTPUT,
            help="Simplify outlines; shared edges stay shared.",
        ),
    ] = 0.0,
    connectivity: Annotated[
        int,
        typer.Option(
            metavar="4|8",
            rich_help_panel=OUTPUT,
            help="Whether pixels that touch at a corner belong together (8) or not (4).",
        ),
    ] = 4,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence/--no-confidence",
            rich_help_panel=OUTPUT,
            help="Write confidence.tif, per cent of the winning class.",
        ),
    ] = True,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities/--no-probabilities",
            rich_help_panel=OUTPUT,
            help="Write probabilities.tif, a per-cent band a class.",
        ),
    ] = False,
    margin: Annotated[
        bool,
        typer.Option(
            "--margin",
            rich_help_panel=OUTPUT,
            help="Write margin.tif, per cent between the two best classes.",
        ),
    ] = False,
    output_grid: Annotated[
        OutputGrid,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="With --gsd: labels on the scene's own pixels or on the working ones.",
        ),
    ] = OutputGrid.native,
    device: options.DeviceOption = "auto",
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=options.RUN,
            help="Dask worker processes on this machine; 0 runs in this process.",
        ),
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=options.RUN,
            help="Address of a running Dask scheduler whose workers run the tiles.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel=options.RUN, help="Finish an interrupted run."),
    ] = False,
    overwrite: options.OverwriteOption = False,
    json_: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Label every pixel of SCENE… with the classes you name.

    Leaves labels.tif, confidence.tif, polygons, preview.png and run.json in --out.

    Example: geoseg segment town.tif --classes "building,roof; road; water" --out map
    """
    with _run.reporting(debug=debug, quiet=quiet):
        from geoseg.inference.cluster import connect
        from geoseg.inference.options import Options
        from geoseg.pipeline import JOURNAL, WORK_FOLDER, Products, Reading

        settings: dict[str, Any] = {
            "options": Options(
                attention=attention,
                residual=residual,
                upsampler=upsampler,
                upsampler_weights=None if upsampler_weights is None else str(upsampler_weights),
                cls_bias=cls_bias,
                templates=templates,
                threshold=threshold,
                background=background,
                logit_scale=logit_scale,
                window=window,
                stride=stride,
                blend=None if blend is None else blend.value,
                batch_size=batch_size,
                precision=precision.value,
                exact=exact,
                naclip_std=naclip_std,
                gem_depth=gem_depth,
            ),
            "reading": Reading(options.parse_bands(bands), stretch, gsd, aoi),
            "products": Products(
                polygons=polygons.value,
                min_area_m2=min_area,
                simplify_m=simplify,
                connectivity=connectivity,
                confidence=confidence,
                probabilities=probabilities,
                margin=margin,
                output_grid=output_grid.value,
            ),
            "tile": tile,
            "overwrite": overwrite,
            "resume": resume,
        }
        try:
            with connect(workers=workers, scheduler=scheduler) as client:
                if client is not None and not quiet:
                    typer.echo(f"Dask dashboard: {client.dashboard_link}", err=True)
                runs, failed = _segment_all(
                    _jobs(scenes, out, mosaic=mosaic),
                    classes,
                    model,
                    device,
                    settings | {"client": client},
                    quiet,
                )
        except KeyboardInterrupt:
            kept = any(out.glob(f"**/{WORK_FOLDER}/{JOURNAL}"))
            hint = "; run the same command with --resume to go on" if kept else ""
            _run.fail(f"interrupted{hint}", _run.INTERRUPTED, debug=debug)
        if json_:
            _run.print_json({"runs": [_as_json(run) for run in runs]})
        elif not quiet:
            for run in runs:
                _summarise(run)
        if failed:
            raise typer.Exit(_run.FAILED)


def _jobs(scenes: list[str], out: Path, *, mosaic: bool) -> list[tuple[str | list[str], Path]]:
    """What to map, each with its folder."""
    from geoseg.io.expand import expand_scenes

    paths = expand_scenes(scenes)
    if mosaic:
        return [(paths, out)]
    if len(paths) == 1:
        return [(paths[0], out)]
    return [(path, out / name) for path, name in zip(paths, _folder_names(paths), strict=True)]


def _segment_all(
    jobs: list[tuple[str | list[str], Path]],
    classes: str,
    model: str,
    device: str,
    settings: dict[str, Any],
    quiet: bool,
) -> tuple[list[Run], bool]:
    """Run the scenes one after another; one of several that fails does not stop the others."""
    from geoseg.errors import GeosegError
    from geoseg.inference.segmenter import Segmenter
    from geoseg.model.loading import Model, load_model
    from geoseg.pipeline import check_output, open_input, segment_to_files
    from geoseg.text.vocabulary import Vocabulary

    vocabulary = Vocabulary.parse(classes)
    alone = len(jobs) == 1

    def opened(scene: str | list[str], folder: Path) -> Any:
        travels = settings["client"] is not None
        return open_input(scene, settings["reading"], folder, travels=travels)

    # A taken folder, a bad scene, impossible options: all show before much is loaded or computed.
    for _, folder in jobs:
        check_output(folder, None, overwrite=settings["overwrite"], resume=settings["resume"])
    first = opened(*jobs[0]) if alone else None
    # The run of a single scene loads the model itself, and lets go of it before the polygons.
    loaded: str | Model = model
    if not alone:
        loaded = load_model(model, device=device)
        Segmenter(loaded, vocabulary, settings["options"])
    runs, failed = [], False
    for scene, folder in jobs:
        if not alone and not quiet:
            typer.echo(f"{scene} -> {folder}", err=True)
        try:
            with _run.progress_bar(quiet=quiet) as progress:
                run = segment_to_files(
                    first or opened(scene, folder),
                    vocabulary,
                    folder,
                    model=loaded,
                    device=device,
                    progress=progress,
                    **settings,
                )
            runs.append(run)
        except GeosegError as error:
            if alone:
                raise
            _run.say_error(str(error))
            failed = True
    return runs, failed


def _folder_names(paths: list[str]) -> list[str]:
    """A folder name for each scene: its stem, numbered where two are the same."""
    names: list[str] = []
    for path in paths:
        stem = Path(path.split("?")[0]).stem or "scene"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def _as_json(run: Run) -> dict[str, Any]:
    return {"out": str(run.out), "files": [str(file) for file in run.files]} | run.report


def _summarise(run: Run) -> None:
    """Class shares and where the files are, on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_column("per cent", justify="right")
    table.add_column("area", justify="right")
    for entry in sorted(run.report["classes"], key=lambda c: -c["pixels"]):
        table.add_row(entry["name"], f"{entry['per_cent']:.1f}", _area(entry["area_m2"]))
    console = Console(stderr=True)
    console.print(table)
    console.print(f"{run.out}: " + ", ".join(file.name for file in run.files), soft_wrap=True)


def _area(square_metres: float | None) -> str:
    if square_metres is None:
        return "-"
    if square_metres >= 1e6:
        return f"{square_metres / 1e6:,.2f} km²"
    if square_metres >= 1e4:
        return f"{square_metres / 1e4:,.2f} ha"
    return f"{square_metres:,.0f} m²"
