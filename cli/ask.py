"""`geoseg ask`: any words on a store."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.options import INPUT, MODEL, OUTPUT, Options, Products
from geoseg_cli import _run, options
from geoseg_cli.config import ConfigOption
from geoseg_cli.options import RUN, takes


@takes(Options)
@takes(Products)
def ask(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="What geoseg encode has made.", show_default=False),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            envvar="GEOSEG_OUT",
            metavar="DIR",
            rich_help_panel=OUTPUT,
            help="Folder for the results.",
        ),
    ],
    chosen: Options,
    products: Products,
    classes: options.ClassesOrNone = None,
    examples: options.ExamplesOption = None,
    examples_from: options.ExamplesFromOption = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            envvar="GEOSEG_FAST",
            rich_help_panel=INPUT,
            help="Ask the fast tier: nearly the same map in a fraction of the time.",
        ),
    ] = False,
    aoi: Annotated[
        str | None,
        typer.Option(
            "--aoi",
            envvar="GEOSEG_AOI",
            metavar="BOX|FILE",
            rich_help_panel=INPUT,
            help="Map only this part: minx,miny,maxx,maxy in the scene's CRS, or a vector file.",
        ),
    ] = None,
    scene: Annotated[
        str | None,
        typer.Option(
            "--scene",
            envvar="GEOSEG_SCENE",
            metavar="FILE",
            rich_help_panel=INPUT,
            help="Where the scene lies now, if it has been moved.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="SPEC",
            rich_help_panel=MODEL,
            help="Where the store's model lies now, if it has been moved.",
        ),
    ] = None,
    tile: options.TileOption = None,
    device: options.DeviceOption = "auto",
    workers: options.WorkersOption = 0,
    scheduler: options.SchedulerOption = None,
    threads: options.ThreadsOption = None,
    config: Annotated[str | None, ConfigOption] = None,
    resume: options.ResumeOption = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            envvar="GEOSEG_UPDATE",
            rich_help_panel=RUN,
            help="Skip what is there and the same, finish what was interrupted, make anew what "
            "has changed.",
        ),
    ] = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Label the scene of STORE with the classes you name, without encoding it again.

    Leaves in --out what geoseg segment does.

    Example: geoseg ask town.store --classes "building,roof; road; water" --out map
    """
    import geoseg
    from geoseg.run.cluster import connect
    from geoseg.runtime.threads import use_threads
    from geoseg_cli.segment import summarise

    use_threads(threads)
    with (
        connect(workers=workers, scheduler=scheduler, threads=threads) as client,
        _run.progress_bar(quiet=quiet) as progress,
    ):
        opened = geoseg.open_store(store)
        words, _ = options.vocabulary(
            classes, examples, examples_from or opened, model=opened.model, options=chosen
        )
        run = opened.to_files(
            words,
            out,
            fast=fast or None,
            options=chosen,
            aoi=aoi,
            products=products,
            model=model,
            device=device,
            scene=scene,
            tile=tile,
            overwrite=overwrite,
            resume=resume,
            update=update,
            client=client,
            progress=progress,
        )
    if as_json:
        _run.print_json(dict(run.report) | {"out": str(run.out)})
    elif not quiet:
        summarise(run)
