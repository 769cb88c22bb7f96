"""`geoseg ask`: any words on a store."""

from __future__ import annotations

from typing import Annotated

from geoseg._fields import OUTPUT
from geoseg.options import Options, Products
from geoseg_cli import _progress, _run, options
from geoseg_cli.config import ConfigOption
from geoseg_cli.fields import flag, takes


@takes(Options)
@takes(Products)
def ask(
    store: options.StoreArgument,
    out: Annotated[
        str, flag("--out", "-o", metavar="DIR", panel=OUTPUT, help="Folder for the results.")
    ],
    chosen: Options,
    products: Products,
    classes: options.ClassesOrNone = None,
    examples: options.ExamplesOption = None,
    examples_from: options.ExamplesFromOption = None,
    fast: options.FastOption = False,
    aoi: options.AreaOfStoreOption = None,
    scene: options.SceneOfStoreOption = None,
    model: options.ModelOfStoreOption = None,
    tile: options.TileOption = None,
    device: options.DeviceOption = "auto",
    workers: options.WorkersOption = 0,
    scheduler: options.SchedulerOption = None,
    threads: options.ThreadsOption = None,
    config: Annotated[str | None, ConfigOption] = None,
    resume: options.ResumeOption = False,
    update: options.UpdateOption = False,
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
        _progress.progress_bar(quiet=quiet) as progress,
    ):
        opened = geoseg.open_store(store, scene=scene, model=model)
        words, _ = options.vocabulary(
            classes,
            examples,
            examples_from or opened,
            model=model or opened.model,
            options=chosen,
            device=device,
        )
        run = opened.to_files(
            words,
            out,
            fast=fast or None,
            options=chosen,
            aoi=aoi,
            products=products,
            device=device,
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
