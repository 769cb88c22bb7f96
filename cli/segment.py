"""`geoseg segment`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoseg._fields import OUTPUT
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Products, Reading, Scorer
from geoseg_cli import _progress, _run, options
from geoseg_cli.config import ConfigOption
from geoseg_cli.fields import flag, takes

if TYPE_CHECKING:
    from geoseg.run.result import Batch, Run
    from geoseg.run.scenes import Outlook


@takes(Options)
@takes(Scorer)
@takes(Reading)
@takes(Products)
def segment(
    scenes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE",
            help="Rasters, folders or patterns, @FILE with one a line, or - for lines on standard "
            "input. A scene that is named as a file goes to --out itself; others get a folder each "
            "in it.",
        ),
    ],
    out: Annotated[
        str,
        flag(
            "--out",
            "-o",
            metavar="DIR",
            panel=OUTPUT,
            help="Folder for the results; at an address of an object store (s3://…, gs://…) they "
            "are uploaded when they are whole.",
        ),
    ],
    reading: Reading,
    chosen: Options,
    scorer: Scorer,
    products: Products,
    classes: options.ClassesOrNone = None,
    examples: options.ExamplesOption = None,
    examples_from: options.ExamplesFromOption = None,
    out_name: Annotated[
        str,
        flag(
            "--out-name",
            metavar="PATTERN",
            panel=OUTPUT,
            help="Name of the folder of each of several scenes: {stem}, {name} (with the suffix) "
            "and {parent} (the folder that the scene lies in) are filled in.",
        ),
    ] = "{stem}",
    manifest: Annotated[
        str | None,
        flag(
            "--manifest",
            metavar="FILE",
            panel=OUTPUT,
            help="Append a line of JSON as each scene ends: done, resumed, skipped or failed, "
            "files, areas, warnings, error.",
        ),
    ] = None,
    mosaic: options.MosaicOption = False,
    model: options.ModelOption = DEFAULT_MODEL,
    tile: options.TileOption = None,
    device: options.DeviceOption = "auto",
    workers: options.WorkersOption = 0,
    scheduler: options.SchedulerOption = None,
    dashboard: Annotated[
        bool, flag("--dashboard", help="Serve Dask's dashboard of --workers on this machine.")
    ] = False,
    threads: options.ThreadsOption = None,
    config: Annotated[str | None, ConfigOption] = None,
    dry_run: Annotated[
        bool, flag("--dry-run", help="Only say what would become of each scene, a line each.")
    ] = False,
    log_json: Annotated[
        bool,
        flag(
            "--log-json",
            help="Progress, warnings and errors on standard error as lines of JSON: time, level, "
            "scene, stage, tiles.",
        ),
    ] = False,
    naclip_std: Annotated[float | None, typer.Option(hidden=True)] = None,
    gem_depth: Annotated[int | None, typer.Option(hidden=True)] = None,
    resume: options.ResumeOption = False,
    update: options.UpdateOption = False,
    keep_going: Annotated[
        bool,
        flag(
            "--keep-going",
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
    from geoseg._address import is_address
    from geoseg.errors import OptionError
    from geoseg.io.expand import expand_scenes, is_one_scene
    from geoseg.pipeline import segment_jobs
    from geoseg.run.cluster import connect
    from geoseg.run.scenes import Job, jobs_of, warn_of_neighbours
    from geoseg.run.stored import output_folder
    from geoseg.run.times import now
    from geoseg.runtime.threads import use_threads

    chosen = _with_retired_options(chosen, {"naclip:std": naclip_std, "gem:depth": gem_depth})
    started, clock = _run.started()
    if mosaic and reading.rgb:
        raise OptionError("--mosaic and --rgb: files side by side, or bands of one scene; give one")
    paths, as_one = expand_scenes(scenes), mosaic or reading.rgb
    several = not (as_one or is_one_scene(scenes))
    if several:
        jobs = jobs_of(paths, out, out_name)
    else:
        jobs = [Job(paths if as_one else paths[0], out if is_address(out) else Path(out))]
    asked = None if scorer.call is None else scorer
    if examples is not None:
        _refuse_examples(asked, examples_from, of_one_file=not (several or as_one))
    before = {"overwrite": overwrite, "resume": resume, "update": update}
    if dry_run:
        _refuse_words(classes, examples, chosen, asked)
        _say_what_would_be([job.outlook(reading, **before) for job in jobs], as_json=as_json)
        return
    use_threads(threads)
    try:
        with (
            connect(
                workers=workers, scheduler=scheduler, threads=threads, dashboard=dashboard
            ) as client,
            _progress.progress_bar(quiet=quiet) as progress,
        ):
            if client is not None and (dashboard or scheduler) and not quiet:
                typer.echo(f"Dask dashboard: {client.dashboard_link}", err=True)
            words, loaded = options.vocabulary(
                classes,
                examples,
                examples_from or paths[0],
                model=model,
                options=chosen,
                reading=reading,
                device=device,
            )
            if several:
                warn_of_neighbours(paths)
            done = segment_jobs(
                jobs,
                words,
                model=loaded,
                scorer=asked,
                device=device,
                options=chosen,
                on_scene=_announce(quiet=quiet, debug=debug) if several else None,
                manifest=manifest,
                reading=reading,
                products=products,
                tile=tile,
                keep_going=keep_going,
                client=client,
                progress=progress,
                **before,
            )
    except KeyboardInterrupt as stop:
        if any(output_folder(job.out).journal.exists() for job in jobs):
            again = "" if update else " with --resume"
            stop.add_note(f"run the same command{again} to go on")
        raise
    code = _exit_code(done, several=several)
    if as_json:
        times = {"started": started, "finished": now(), "seconds": round(clock(), 3)}
        _run.print_json(_as_json(done) | times | {"exit_code": code})
    elif not quiet:
        for run in filter(None, done.runs):
            summarise(run)
    _say_what_failed(done, several=several, debug=debug)
    if code:
        raise typer.Exit(code)


def _refuse_examples(asked: Scorer | None, examples_from: str | None, *, of_one_file: bool) -> None:
    from geoseg.errors import OptionError

    if asked is not None and asked.weight is None:
        raise OptionError(
            "--examples and --scorer: a scorer knows no examples; give one, or --scorer-weight to "
            "ask both"
        )
    if examples_from is None and not of_one_file:
        raise OptionError(
            "--examples and several scenes: say with --examples-from which one they lie in"
        )


def _refuse_words(
    classes: str | None, examples: str | None, chosen: Options, asked: Scorer | None
) -> None:
    """Refuse options and classes that no scene could be mapped with."""
    from geoseg.inference.fusion import vocabulary_of

    chosen.resolve({})
    if classes is None:
        options.refuse_silence(examples)
    else:
        _ = vocabulary_of(classes, asked)


def _say_what_would_be(outlooks: list[Outlook], *, as_json: bool) -> None:
    """One line a scene on standard output; exit code 1 if one of them could not be mapped."""
    if as_json:
        _run.print_json({"scenes": [one.record() for one in outlooks]})
    else:
        for one in outlooks:
            typer.echo(_run.printable(str(one)))
    if any(one.error for one in outlooks):
        raise typer.Exit(_run.FAILED)


def _exit_code(done: Batch, *, several: bool) -> int:
    failed = [one for one in done.outcomes if one.status == "failed"]
    if not several and failed and failed[0].error is not None:
        return _run.code_of(failed[0].error)
    if several and failed and all(one.error is not None for one in done.outcomes):
        return _run.NONE_DONE
    return _run.FAILED if failed else 0


def _say_what_failed(done: Batch, *, several: bool, debug: bool) -> None:
    """Lines that come last; those of each of several scenes have been said."""
    from geoseg._address import shown_address
    from geoseg.run.result import in_a_line

    for one in done.outcomes:
        if one.run is not None:
            for hole in one.run.report["holes"]:
                _run.say_error(f"{one.run.report['scene']}: {hole['error']}")
        if one.error is not None and not several:
            _run.say_error(in_a_line(one.error), error=one.error if debug else None)
    if several and done.errors:
        names = ", ".join(map(shown_address, done.errors))
        _run.say_error(f"{len(done.errors)} of {len(done.outcomes)} scenes failed: {names}")


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

    def say(scene: str, folder: Path | str, error: Exception | None) -> None:
        if error is not None:
            _run.say_error(_of_scene(scene, error), error=error if debug else None)
        else:
            _run.say_scene(scene, folder, quiet=quiet)

    return say


def _of_scene(scene: str, error: Exception) -> str:
    """What went wrong, with the scene's name."""
    from geoseg._address import shown_address
    from geoseg.run.result import in_a_line

    words, name = in_a_line(error), shown_address(scene)
    return words if name in words else f"{name}: {words}"


def _as_json(done: Batch) -> dict[str, Any]:
    """What came of each scene: the report of a run with the paths of its files, or the error."""
    runs = []
    for one in done.outcomes:
        if one.run is None:
            continue
        report = dict(one.run.report)
        checksums = report.pop("files")
        runs.append(one.record() | report | {"checksums": checksums})
    failed = [one.record() for one in done.outcomes if one.run is None]
    return {"runs": runs, "failed": failed}


def summarise(run: Run) -> None:
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
    files = ", ".join(run.names)
    console.print(_run.printable(f"{run.out}: {files}"), soft_wrap=True)


def _area(square_metres: float | None) -> str:
    if square_metres is None:
        return "-"
    if square_metres >= 1e6:
        return f"{square_metres / 1e6:,.2f} km²"
    if square_metres >= 1e4:
        return f"{square_metres / 1e4:,.2f} ha"
    return f"{square_metres:,.0f} m²"
