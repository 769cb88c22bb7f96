"""`geoseg encode`: features of a scene, for any words that come later."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg._fields import OUTPUT
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Reading, StoreOptions
from geoseg_cli import _progress, _run, options
from geoseg_cli.config import ConfigOption
from geoseg_cli.fields import flag, takes

ENCODER_OPTIONS = (
    "attention",
    "backbone_weights",
    "residual",
    "last_blocks",
    "cls_source",
    "upsampler",
    "upsampler_weights",
    "precision",
    "exact",
    "window",
    "stride",
    "blend",
    "batch_size",
)
"""Options of `Options` that say how a scene is encoded; the others are about words."""


@takes(Options, *ENCODER_OPTIONS)
@takes(Reading)
@takes(StoreOptions)
def encode(
    scenes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE",
            help="A raster; several with --mosaic or --rgb.",
        ),
    ],
    out: Annotated[
        str,
        flag(
            "--out",
            "-o",
            metavar="STORE",
            panel=OUTPUT,
            help="Folder for the store, for example town.store.",
        ),
    ],
    reading: Reading,
    chosen: Options,
    wanted: StoreOptions,
    mosaic: options.MosaicOption = False,
    model: options.ModelOption = DEFAULT_MODEL,
    tile: options.TileOption = None,
    device: options.DeviceOption = "auto",
    workers: options.WorkersOption = 0,
    scheduler: options.SchedulerOption = None,
    threads: options.ThreadsOption = None,
    config: Annotated[str | None, ConfigOption] = None,
    resume: options.ResumeOption = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Encode SCENE once, so that geoseg ask can map it with any words.

    Example: geoseg encode town.tif --out town.store
    """
    import geoseg
    from geoseg.errors import OptionError
    from geoseg.io.expand import expand_scenes
    from geoseg.run.cluster import connect
    from geoseg.runtime.threads import use_threads

    paths = expand_scenes(scenes)
    as_one = mosaic or reading.rgb
    if len(paths) > 1 and not as_one:
        raise OptionError(
            f"{len(paths)} scenes and one store: give one scene, or --mosaic where they are one"
        )
    use_threads(threads)
    try:
        with (
            connect(workers=workers, scheduler=scheduler, threads=threads) as client,
            _progress.progress_bar(quiet=quiet) as progress,
        ):
            store = geoseg.encode(
                paths if as_one else paths[0],
                out,
                model=model,
                options=chosen,
                reading=reading,
                store=wanted,
                tile=tile,
                device=device,
                overwrite=overwrite,
                resume=resume,
                client=client,
                progress=progress,
            )
    except KeyboardInterrupt as stop:
        stop.add_note("run the same command with --resume to go on")
        raise
    if as_json:
        names = ("geoseg", "identity", "layout", "channels", "options")
        told = {name: store.facts[name] for name in names if name in store.facts}
        _run.print_json({"store": str(store.path), "bytes": store.size} | told)
    elif not quiet:
        console = _run.console(stderr=True)
        held = store.summary["store"]
        size, density = held["bytes"] / 1e6, held["bytes_a_pixel"]
        words = f"{store!r}: {size:,.1f} MB, {density:.1f} bytes a pixel"
        console.print(_run.printable(words), soft_wrap=True)
