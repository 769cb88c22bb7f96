"""`geoseg segment`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import OUTPUT, Options, Products, Reading, Scorer
from geoseg_cli import _run, options
from geoseg_cli.options import RUN, takes

if TYPE_CHECKING:
    from geoseg.run.result import Run


@takes(Options)
@takes(Scorer)
@takes(Reading)
@takes(Products)
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
    reading: Reading,
    chosen: Options,
    scorer: Scorer,
    products: Products,
    mosaic: options.MosaicOption = False,
    model: options.ModelOption = DEFAULT_MODEL,
    tile: options.TileOption = None,
    device: options.DeviceOption = "auto",
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=RUN,
            help="Dask worker processes on this machine; 0 runs in this process.",
        ),
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=RUN,
            help="Address of a running Dask scheduler whose workers run the tiles.",
        ),
    ] = None,
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard",
            rich_help_panel=RUN,
            help="Serve Dask's dashboard of --workers on this machine.",
        ),
    ] = False,
    naclip_std: Annotated[float | None, typer.Option(hidden=True)] = None,
    gem_depth: Annotated[int | None, typer.Option(hidden=True)] = None,
    resume: options.ResumeOption = False,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            rich_help_panel=RUN,
            help="Map the rest where a part of a scene fails twice; it stays nodata, run.json "
            "lists it, and --resume tries it again.",
        ),
    ] = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Label every pixel of SCENE… with the classes you name.

    Leaves labels.tif, confidence.tif, polygons, preview.png and run.json in --out.

    Example: geoseg segment town.tif --classes "building,roof; road; water" --out map
    """
    from geoseg._address import shown_address
    from geoseg.errors import OptionError
    from geoseg.io.expand import expand_scenes
    from geoseg.pipeline import JOURNAL, WORK_FOLDER, segment_many, segment_to_files
    from geoseg.run.cluster import connect

    chosen = _with_retired_options(chosen, {"naclip:std": naclip_std, "gem:depth": gem_depth})
    paths = expand_scenes(scenes)
    if mosaic and reading.rgb:
        raise OptionError("--mosaic and --rgb: files side by side, or bands of one scene; give one")
    several = len(paths) > 1 and not (mosaic or reading.rgb)
    try:
        with (
            connect(workers=workers, scheduler=scheduler, dashboard=dashboard) as client,
            _run.progress_bar(quiet=quiet) as progress,
        ):
            if client is not None and (dashboard or scheduler) and not quiet:
                typer.echo(f"Dask dashboard: {client.dashboard_link}", err=True)
            run_all: Any = segment_many if several else segment_to_files
            done = run_all(
                paths if several or mosaic or reading.rgb else paths[0],
                classes,
                out,
                model=model,
                scorer=None if scorer.call is None else scorer,
                options=chosen,
                reading=reading,
                products=products,
                tile=tile,
                device=device,
                overwrite=overwrite,
                resume=resume,
                keep_going=keep_going,
                client=client,
                progress=progress,
                **({"on_scene": _announce(quiet=quiet, debug=debug)} if several else {}),
            )
    except KeyboardInterrupt as stop:
        if any(out.glob(f"**/{WORK_FOLDER}/{JOURNAL}")):
            stop.add_note("run the same command with --resume to go on")
        raise
    runs = [run for run in done.runs if run is not None] if several else [done]
    if as_json:
        failed = [
            {"scene": shown_address(scene), "error": _of_scene(scene, error)}
            for scene, error in (done.errors if several else {}).items()
        ]
        _run.print_json({"runs": [_as_json(run) for run in runs], "failed": failed})
    elif not quiet:
        for run in runs:
            _summarise(run)
    for run in runs:
        for hole in run.report["holes"]:
            _run.say_error(f"{run.report['scene']}: {hole['error']}")
    if several and done.errors:
        names = ", ".join(map(shown_address, done.errors))
        _run.say_error(f"{len(done.errors)} of {len(paths)} scenes failed: {names}")
    if (several and done.errors) or any(run.report["holes"] for run in runs):
        raise typer.Exit(_run.FAILED)


def _with_retired_options(chosen: Options, retired: dict[str, float | None]) -> Options:
    """Write options that are gone the way they are written now, and say so."""
    import warnings
    from dataclasses import replace

    from geoseg.errors import GeosegWarning

    for new, value in retired.items():
        option, name = new.replace(":", "-"), new.partition(":")[0]
        if value is None:
            continue
        if chosen.attention in (None, name):
            chosen = replace(chosen, attention=f"{new}={value}")
            words = f"this run takes --attention {chosen.attention}, write that"
        else:
            words = f"it changes nothing about --attention {chosen.attention}"
        warnings.warn(f"--{option} is gone; {words}", GeosegWarning, stacklevel=2)
    return chosen


def _announce(*, quiet: bool, debug: bool) -> Any:
    """Name each of several scenes before it is mapped, and what went wrong with it after."""

    def say(scene: str, folder: Path, error: Exception | None) -> None:
        if error is not None:
            _run.say_error(_of_scene(scene, error), error=error if debug else None)
        elif not quiet:
            typer.echo(_run.printable(f"{scene} -> {folder}"), err=True)

    return say


def _of_scene(scene: str, error: Exception) -> str:
    """What went wrong, with the scene's name."""
    from geoseg._address import shown_address

    words, name = _run.in_a_line(error), shown_address(scene)
    return words if name in words else f"{name}: {words}"


def _as_json(run: Run) -> dict[str, Any]:
    return {"out": str(run.out), "files": [str(file) for file in run.files]} | run.report


def _summarise(run: Run) -> None:
    """Class shares and where the files are, on stderr."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_column("per cent", justify="right")
    table.add_column("area", justify="right")
    for entry in sorted(run.report["classes"], key=lambda c: -c["pixels"]):
        table.add_row(
            _run.printable(entry["name"]), f"{entry['per_cent']:.1f}", _area(entry["area_m2"])
        )
    console = _run.console(stderr=True)
    console.print(table)
    files = ", ".join(file.name for file in run.files)
    console.print(_run.printable(f"{run.out}: {files}"), soft_wrap=True)


def _area(square_metres: float | None) -> str:
    if square_metres is None:
        return "-"
    if square_metres >= 1e6:
        return f"{square_metres / 1e6:,.2f} km²"
    if square_metres >= 1e4:
        return f"{square_metres / 1e4:,.2f} ha"
    return f"{square_metres:,.0f} m²"
