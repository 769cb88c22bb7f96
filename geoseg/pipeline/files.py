"""One scene to files, as `geoseg.segment_to_files` takes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from geoseg._fields import as_made
from geoseg.bars import shown
from geoseg.inference.fusion import probed, segmenter_of
from geoseg.inference.network import windows_of
from geoseg.inference.refine.scene import with_measures
from geoseg.inference.segmenter import Segmenter
from geoseg.io.objects import is_array, on_disk, scene_on_disk
from geoseg.io.scene import Scene
from geoseg.io.scores import ScoredScene, SeenScene, refuse_bands_of_array, with_scores
from geoseg.model.loading import Model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Products, Reading
from geoseg.options.scorer import is_beside_words
from geoseg.pipeline.scene import run_scene
from geoseg.run.cluster import client_there
from geoseg.run.result import ProgressCallback, Run
from geoseg.run.scenes import SceneSource
from geoseg.text.vocabulary import Vocabulary, VocabularySource


def _takes_arrays(run: Callable[..., Run]) -> Callable[..., Run]:
    """Let a function that maps files map arrays as well, and show a bar."""

    @functools.wraps(run)
    def run_any(scene: Any, *given: Any, **settings: Any) -> Run:
        with shown(settings.pop("progress", None), "segment", "window") as progress:
            settings["progress"] = progress
            if settings.get("client") is None and not is_array(scene):
                settings["client"] = client_there()
            settings["client"] = settings.get("client") or None
            if not is_array(scene):
                return run(scene, *given, **settings)
            refuse_bands_of_array(settings.get("scorer"))
            reading = as_made(Reading, settings.pop("reading", None))
            with scene_on_disk(scene, reading) as (path, how):
                return run(path, *given, reading=how, **settings)

    return run_any


@_takes_arrays
def segment_to_files(
    scene: SceneSource | Any,
    classes: VocabularySource,
    out: str | Path,
    *,
    model: str | Model = DEFAULT_MODEL,
    scorer: Any = None,
    options: Options | Mapping[str, Any] | None = None,
    window: int | None = None,
    stride: int | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    products: Products | Mapping[str, Any] | None = None,
    tile: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    update: bool = False,
    keep_going: bool = False,
    client: Any = None,
    progress: ProgressCallback | bool | None = None,
) -> Run:
    """Map one scene and leave the products in a folder.

    Parameters
    ----------
    scene
        Path of anything rasterio reads, or an opened `Scene`; several paths are mapped as one
        mosaic, whose ``mosaic.vrt`` stays in ``out``, or with ``Reading(rgb=True)`` as the red,
        green and blue of one scene (``rgb.vrt``). An ``xarray.DataArray`` or ``Dataset`` is
        written to a file for the time of the run.
    classes
        A class file, an inline list (``"building,roof;road;water"``) or a `Vocabulary`.
    out
        Folder for the products; made if it is not there. At an address of an object store
        (``s3://…``) they are uploaded when they are whole.
    model
        Specification, see `load_model`, or a loaded model.
    scorer
        A `Scorer`, or what one calls, in the model's place; ``classes`` are then the names of its
        classes, in their order. A `Scorer` with a ``weight`` is asked beside the words.
    options
        How pixels become labels.
    window, stride
        As in ``options``, where nothing else of them is wanted.
    reading
        Bands, stretch, working GSD, area of interest.
    products
        Which files to make.
    tile
        Side of a tile in pixels: the unit of work and of memory. It does not change the map. None
        picks tiles that are wide and short, for which few windows run twice.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ignored for a loaded model.
    overwrite
        Replace the products of an earlier run in ``out``.
    resume
        Go on with an interrupted run in ``out``.
    update
        Have the map of this scene with these options in ``out``, whatever is there of geoseg's:
        nothing is done if it is there already, an interrupted run is gone on with, and what was
        made of another scene or with other options is made anew.
    keep_going
        Map the rest where a tile fails twice, and leave nodata there; ``run.json`` lists such
        holes, and a run with ``resume`` tries them again. Tiles that a second try could map are
        listed there too, as ``retried``.
    client
        A ``distributed.Client`` whose workers run the tiles; None for the one that is there, if
        there is one, else this process, and False for this process. An array is mapped here.
    progress
        Called with a `Progress` now and then, after every tile and before every product; True
        shows a bar, which counts windows.

    Returns
    -------
    Run
        Paths and the content of ``run.json``.

    Raises
    ------
    GeosegError
        With one line that says what is wrong and what to do. Nothing is left under a final name
        unless it is complete.
    """
    vocabulary, how = Vocabulary.parse(classes), as_made(Reading, reading)
    given = windows_of(options, window, stride)

    def make(source: Scene) -> tuple[Segmenter, SeenScene]:
        pixels = with_scores(source, scorer, how)
        chosen = given
        if not isinstance(pixels, ScoredScene):
            chosen = with_measures(chosen, source)
        made = segmenter_of(model, vocabulary, chosen, device, scorer)
        return probed(made, pixels, travels=client is not None), pixels

    with regions_on_disk(given) as given:
        return run_scene(
            scene,
            out,
            make,
            options=given,
            reading=how,
            products=as_made(Products, products),
            tile=tile,
            overwrite=overwrite,
            resume=resume,
            update=update,
            keep_going=keep_going,
            client=client,
            progress=progress if callable(progress) else None,
            colours=scorer is None or is_beside_words(scorer),
        )


@contextmanager
def regions_on_disk(options: Options) -> Iterator[Options]:
    """Options whose regions are a path, as long as this is open, where they are an object."""
    if not options.regions_given or isinstance(options.regions, str):
        yield options
        return
    with on_disk(options.regions) as (path,):
        yield replace(options, regions=str(path))
