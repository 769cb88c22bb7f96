"""Scene to files: the one place that knows every room."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from geoseg._address import scene_name, without_secrets
from geoseg._fields import as_made
from geoseg._files import writing_to
from geoseg._optional import require
from geoseg.bars import counted, shown
from geoseg.errors import (
    GeosegError,
    OptionError,
    OutputError,
    SceneError,
    heard_warnings,
    in_words,
    warn,
)
from geoseg.inference.fusion import probed, segmenter_of, vocabulary_of
from geoseg.inference.lane import TileResult
from geoseg.inference.network import windows_of
from geoseg.inference.refine.scene import with_measures
from geoseg.inference.segmenter import Segmenter
from geoseg.io.crs import crs_name, is_storable
from geoseg.io.fingerprint import remember
from geoseg.io.grid import Grid
from geoseg.io.objects import is_array, on_disk, scene_on_disk
from geoseg.io.regions import GivenRegions, PolygonRegions, open_regions
from geoseg.io.scene import Scene
from geoseg.io.scores import ScoredScene, SeenScene, refuse_bands_of_array, with_scores
from geoseg.io.times import source_date
from geoseg.io.write import provenance
from geoseg.model.checkpoint import file_digest
from geoseg.model.loading import Model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import (
    CLASS_RASTERS,
    ITEM,
    REGION_TABLE,
    Options,
    Products,
    Reading,
    is_beside_words,
)
from geoseg.preview import preview_files
from geoseg.run.cluster import client_there
from geoseg.run.folder import REPORT, OutputFolder
from geoseg.run.item import write_item
from geoseg.run.journal import Journal, TileRecord, digest
from geoseg.run.manifest import Manifest
from geoseg.run.progress import TileBar
from geoseg.run.rasters import WorkRasters, Writers, is_intact, write_tile
from geoseg.run.regions import RegionTable, SumFiles, Sums
from geoseg.run.report import (
    SCHEMA,
    Method,
    class_report,
    method_report,
    place_report,
    run_facts,
    scene_report,
    source_report,
    versions,
)
from geoseg.run.result import Batch, Outcome, Progress, ProgressCallback, Run
from geoseg.run.scenes import (
    OUT_NAME,
    Job,
    SceneSource,
    jobs_of,
    open_area,
    open_input,
    passing_mosaic,
    warn_of_neighbours,
)
from geoseg.run.stored import output_folder
from geoseg.run.tally import Tally
from geoseg.run.tiles import PixelSource, TileJob, run_tiles
from geoseg.run.times import now
from geoseg.runtime.allocator import give_back_memory, kept_memory
from geoseg.runtime.gdal import bounded_cache
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.types import BoolArray, Window
from geoseg.vector import style, vectorize
from geoseg.vector.regions import write_polygons, write_table

logger = logging.getLogger(__name__)

_MANY = 0.5
"""Share of the polygons on a scene that ought to have pixels."""
_SUMS = "regions"
"""Name of the sums of a tile among its checksums."""

__all__ = [
    "Batch", "Job", "Outcome", "Progress", "Run",
    "segment_jobs", "segment_many", "segment_to_files",
]  # fmt: skip


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


def run_scene(
    scene: SceneSource,
    out: str | Path,
    make: Callable[[Scene], tuple[Segmenter, PixelSource]],
    *,
    options: Options,
    reading: Reading,
    products: Products,
    tile: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    update: bool = False,
    keep_going: bool = False,
    client: Any = None,
    progress: ProgressCallback | None = None,
    colours: bool = True,
) -> Run:
    """Map one scene with whatever makes labels of its pixels.

    Parameters
    ----------
    scene, out, reading, products, tile, overwrite, resume, update, keep_going, client, progress
        As for `segment_to_files`.
    make
        Gives the segmenter of the opened scene, and what its windows see.
    options
        Those of the segmenter, for its regions.
    colours
        Whether pixels are to be red, green and blue.
    """
    with heard_warnings() as heard:
        started, clock = now(), time.perf_counter()
        folder = output_folder(out)
        check = partial(
            folder.check, overwrite=overwrite, resume=resume, update=update, item=products.stac
        )
        check()
        if products.stac:
            require("pystac", extra="stac", feature="--stac")
        folder.probe()
        with folder.claimed(), bounded_cache(), passing_mosaic(scene, folder.path):
            source = open_input(
                scene, reading, folder.path, travels=client is not None, colours=colours
            )
            sources = [source.path, *(str(file) for file, *_ in source.source.all_files)]
            check(sources=sources)
            remember(folder.recorded().get("sources", ()))
            _check_products(source, products)
            regions = _open_regions(source, options)
            loading = time.perf_counter()
            # The model has no name here, so that the run can let go of it when no tile needs it.
            segmenter, pixels = make(source)
            run = _SceneRun(
                source,
                segmenter,
                reading,
                products,
                folder,
                tile,
                client,
                progress or (lambda state: None),
                keep_going=keep_going,
                pixels=pixels,
                regions=regions,
                started=started,
                clock=clock,
                heard=heard,
            )
            del segmenter
            run.seconds["model"] = time.perf_counter() - loading
            return run.execute(resume=resume, update=update)


def segment_many(
    scenes: Sequence[str | Path],
    classes: VocabularySource,
    out: str | Path,
    *,
    out_name: str = OUT_NAME,
    **settings: Any,
) -> Batch:
    """Map several scenes one after another with one model, a folder in ``out`` for each.

    Parameters
    ----------
    scenes
        Their paths.
    classes
        As for `segment_to_files`.
    out
        Folder for the folders.
    out_name
        Names of the folders: ``{stem}``, ``{name}`` and ``{parent}`` are what a scene is called
        without and with its suffix, and the folder it lies in.
    **settings
        Everything else that `segment_jobs` takes.

    Returns
    -------
    Batch
        A scene that fails, for whatever reason, does not stop the others.

    Raises
    ------
    GeosegError
        For what is wrong with all of them: options, classes, model, or names that two scenes have.
    """
    jobs = jobs_of(scenes, out, out_name)
    warn_of_neighbours(scenes)
    return segment_jobs(jobs, classes, **settings)


def segment_jobs(
    jobs: Sequence[Job],
    classes: VocabularySource,
    *,
    model: str | Model = DEFAULT_MODEL,
    scorer: Any = None,
    device: str = "auto",
    options: Options | None = None,
    on_scene: Callable[[str, Path | str, Exception | None], None] | None = None,
    manifest: str | Path | None = None,
    **settings: Any,
) -> Batch:
    """Map scenes one after another with one model, each into the folder that is given for it.

    Parameters
    ----------
    jobs
        Scenes, or files that make one, and their folders.
    classes, model, scorer, device, options
        As for `segment_to_files`.
    on_scene
        Called with scene, folder and None before a scene, and with its error if it fails.
    manifest
        File that gets a line of JSON as each scene ends, see `geoseg.run.manifest.Manifest`.
    **settings
        Everything else that `segment_to_files` takes.

    Returns
    -------
    Batch
        A scene that fails, for whatever reason, does not stop the others.

    Raises
    ------
    GeosegError
        For what is wrong with all of them: options, classes, or the model.
    """
    say = on_scene or (lambda scene, folder, error: None)
    outcomes: list[Outcome] = []
    with Manifest(manifest) as lines:
        try:
            with heard_warnings() as common:
                vocabulary = vocabulary_of(classes, scorer)
                if len(jobs) > 1 and any(_is_free(job, settings) for job in jobs):
                    # One model for all; and impossible options show before the first scene.
                    first = segmenter_of(model, vocabulary, options, device, scorer)
                    model = getattr(first, "model", model)  # a scorer alone has none
                    del first
        except GeosegError as error:
            for job in jobs:
                lines.add(Outcome(job.name, job.out, 0.0, tuple(common), error=error))
            raise
        settings |= {"model": model, "scorer": scorer, "device": device, "options": options}
        several = settings.get("progress") is True and len(jobs) > 1
        for job in counted(jobs, "scenes", "scene") if several else jobs:
            say(job.name, job.out, None)
            run, failure, clock = None, None, time.perf_counter()
            with heard_warnings() as heard:
                heard |= common
                try:
                    run = segment_to_files(job.scene, vocabulary, job.out, **settings)
                except Exception as error:  # whatever it is, the other scenes are not to blame
                    failure = error
            seconds = time.perf_counter() - clock
            outcomes.append(Outcome(job.name, job.out, seconds, tuple(heard), run, failure))
            lines.add(outcomes[-1])
            if failure is not None:
                say(job.name, job.out, failure)
    return Batch(tuple(outcomes))


def _is_free(job: Job, settings: Mapping[str, Any]) -> bool:
    """Whether a scene's folder can be written, as far as is known before its turn."""
    overwrite, resume, update = (
        settings.get(name, False) for name in ("overwrite", "resume", "update")
    )
    try:
        folder = output_folder(job.out)
        folder.check(overwrite=overwrite, resume=resume, update=update)
        folder.probe()
    except OutputError:
        return False
    return True


def _warn_if_untold(scene: dict[str, Any]) -> None:
    """Say so where a resumed run cannot know whether its scene is still the same."""
    if scene["pixels"] is not None:
        warn(
            f"{scene['path']}: nothing tells whether it is still the scene of the interrupted run; "
            "start anew with --overwrite if it may have been replaced"
        )


def _check_products(scene: Scene, products: Products) -> None:
    """Refuse, before any work, polygons that a scene without such a place cannot have."""
    grid = scene.native_grid
    if not is_storable(grid.crs):
        raise SceneError(
            f"{scene.path}: no GeoTIFF can hold its CRS, {crs_name(grid.crs)}, so its map could "
            "not be placed; bring the scene into another one first, for example with gdalwarp "
            "-t_srs EPSG:4326"
        )
    if products.polygons == "geojson" and grid.without_degrees is not None:
        raise OptionError(
            f"{scene.path}: GeoJSON needs longitude and latitude, but {grid.without_degrees}; "
            "take --polygons gpkg, fgb or parquet"
        )
    measured = products.min_area_m2 or products.simplify_m
    if products.polygons != "none" and measured and grid.unmeasured is not None:
        raise OptionError(
            f"{scene.path}: --min-area and --simplify need metres, but {grid.unmeasured}; leave "
            "them out"
        )


def _open_regions(scene: Scene, options: Options) -> GivenRegions | None:
    """Lay the regions of a file on a scene, before any work; None without."""
    if not options.regions_given:
        return None
    grid = scene.grid
    if options.region_min_area_m2 and grid.unmeasured is not None:
        raise OptionError(
            f"{scene.path}: --region-min-area needs metres, but {grid.unmeasured}; leave it out"
        )
    return open_regions(
        options.regions, grid, layer=options.regions_layer, overlap=options.region_overlap
    )


@dataclass
class _SceneRun:
    """One run over one scene; its methods are the stages, in order."""

    scene: Scene
    segmenter: Segmenter | None
    """None once all tiles are done."""
    reading: Reading
    products: Products
    folder: OutputFolder
    tile: int | None
    client: Any
    progress: ProgressCallback
    keep_going: bool = False
    pixels: PixelSource | None = None
    """What the windows see, where that is not the scene."""
    regions: GivenRegions | None = None
    """Those of a file."""
    started: str = field(default_factory=now)
    clock: float = field(default_factory=time.perf_counter)
    heard: Iterable[str] = ()
    """What was warned of so far, which grows."""

    def __post_init__(self) -> None:
        assert self.segmenter is not None
        grid, reading = self.scene.grid, self.reading
        self.area = open_area(reading, grid)
        region = self.area.window if self.area is not None else None
        cut = self.area is not None and region != grid.window
        self.plan = self.segmenter.plan(grid.shape, self.tile, region)
        self.method = Method.of(self.segmenter)
        if self.regions is not None and not self.regions.touches(self.plan.region):
            raise OptionError(f"{self.regions.path}: no polygon of the regions lies in --aoi")
        self.facts = run_facts(
            self.scene, reading, self.area, self.method, self.products, self.plan.tile
        )
        if self.regions is not None:
            self.facts |= {"--regions": in_words(self.regions.identity())}
        self.sums = SumFiles(self.folder.work / "regions")
        self.decision = self.segmenter.decision
        self.rasters = WorkRasters(
            self.folder.work,
            self.products.rasters,
            (grid.drawn if cut else grid).crop(self.plan.region),
            self.method.vocabulary.label_classes,
            provenance(
                self.scene.path,
                self.method.spec,
                [entry.prompts for entry in self.method.vocabulary.classes],
                opened=self.scene.source.opened,
                taken=self.scene.source.taken,
            ),
        )
        self.seconds: dict[str, float] = {}
        self.holes: dict[int, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Final file names, in the order in which they appear."""
        *names, report = self.products.names
        kind = self.products.polygons
        if isinstance(self.regions, PolygonRegions):
            names += [] if kind == "none" else [f"regions.{kind}"]
        elif self.regions is not None:
            names.append(REGION_TABLE)
        return (*names, report)

    def execute(self, *, resume: bool, update: bool) -> Run:
        names, side_files = self.names, self.products.side_files
        if resume or update:
            done = self.folder.finished(digest(self.facts), names, side_files, update=update)
            if done is not None:
                _warn_if_untold(self.facts["the scene"])
                files = tuple(self.folder.file(name) for name in names)
                return Run(self.folder.place, files, done, "skipped")
        journal = self.folder.open_journal(self.facts, resume=resume, update=update)
        resumed = bool(journal.finished)
        if resumed:
            _warn_if_untold(self.facts["the scene"])
        with kept_memory():
            self._segment(journal)
        self._let_go_of_model()
        voted = self._vote(journal)
        report = self._make_products(self._on_output_grid(), journal, voted)
        files = self.folder.publish(names, side_files, finished=not self.holes)
        return Run(self.folder.place, files, report, "resumed" if resumed else "done")

    def _segment(self, journal: Journal) -> None:
        assert self.segmenter is not None
        job = TileJob(
            self.pixels or self.scene,
            self.segmenter,
            self.plan,
            self.area,
            self.products.rasters,
            self.regions,
            scored=self.regions is not None and self._scored,
        )
        self._verify(journal)
        with ExitStack() as stack:
            stack.enter_context(self._timed("segment"))
            writers = stack.enter_context(self.rasters.writing(resume=bool(journal.finished)))
            todo = [index for index in range(len(self.plan)) if index not in journal.finished]
            bar = TileBar("segment", self.plan, todo, self.progress)
            results = run_tiles(
                job, todo, client=self.client, keep_going=self.keep_going, seen=bar.windows
            )
            # Closed at once when this block is left, so that tiles under way stop too.
            stack.enter_context(closing(results))
            for index, result in results:
                if isinstance(result, GeosegError):
                    self.holes[index] = str(result)
                    # What a run that was killed may have left there is no part of the map.
                    write_tile(writers, self._place(index), self._nodata(index))
                elif result is None:
                    journal.add(TileRecord(index, 0, {}))
                else:
                    checksums = write_tile(writers, self._place(index), result)
                    if self.regions is not None:
                        sums = result.regions or self._no_sums()
                        checksums[_SUMS] = self.sums.write(index, sums)
                    journal.add(TileRecord(index, result.windows, checksums, result.retried))
                bar.tile(index, result.windows if isinstance(result, TileResult) else 0)

    @property
    def _scored(self) -> bool:
        """Whether regions need the scores of their pixels."""
        return self.method.options.region_rule == "mean"

    def _no_sums(self) -> Sums:
        classes = len(self.rasters.classes)
        return Sums.none(classes, classes + 1 if self._scored else 0)

    def _nodata(self, index: int) -> TileResult:
        classes = len(self.rasters.classes)
        return TileResult.empty(self.plan.core(index), classes, self.products.rasters)

    def _verify(self, journal: Journal) -> None:
        """Forget recorded tiles whose pixels are not in the work files as they were."""
        if not journal.finished:
            return
        with self.rasters.writing(resume=True) as writers:
            damaged = [
                record.tile
                for record in journal.finished.values()
                if record.tile >= len(self.plan) or not self._is_intact(writers, record)
            ]
        if damaged:
            logger.warning("%s: %d tiles are run again", self.folder.work, len(damaged))
            journal.forget(damaged)
            written = [r.tile for r in journal.finished.values() if r.checksums]
            self.rasters.rebuild(map(self._place, written))

    def _is_intact(self, writers: Writers, record: TileRecord) -> bool:
        checksums = dict(record.checksums)
        sums = checksums.pop(_SUMS, None)
        return (sums is None or self.sums.checksum(record.tile) == sums) and is_intact(
            writers, self._place(record.tile), checksums
        )

    def _place(self, index: int) -> Window:
        """Pixels of a tile in the work files."""
        return self.plan.core(index).relative_to(self.plan.region)

    def _let_go_of_model(self) -> None:
        """Make room for the products, which need memory of their own.

        A model that the caller has loaded stays with the caller.
        """
        assert self.segmenter is not None
        self.method = Method.of(self.segmenter)  # how many windows fit is known only now
        self.segmenter = None
        give_back_memory()

    def _vote(self, journal: Journal) -> RegionTable | None:
        """Decide what regions are, and give it to the map; None without regions of a file."""
        if self.regions is None:
            return None
        with self._stage("regions"):
            tiles = [record.tile for record in journal.finished.values() if record.checksums]
            table = RegionTable.of(
                self.sums.total(sorted(tiles), self._no_sums()),
                self.decision,
                self.method.options,
                self.scene.grid,
                self.products.rasters,
            )
            self._warn_if_few(len(table.numbers))
            self.rasters = self.rasters.in_regions(self.regions, table, self.plan.region)
        return table

    def _warn_if_few(self, found: int) -> None:
        """Say so where most regions have no pixels, and the whole scene was mapped."""
        regions = self.regions
        assert regions is not None
        if self.holes or self.area is not None:
            return
        if not isinstance(regions, PolygonRegions):
            if not found:
                warn(f"{regions.path}: no pixel of the scene with data lies in a region")
            return
        given = len(regions.shapes)
        if found < _MANY * given:
            warn(
                f"{regions.path}: {given - found} of {given} regions on the scene have no class, "
                "because no pixel with data has its centre in them"
            )

    def _write_regions(self, table: RegionTable, ready: Path) -> None:
        """Write what became of the regions of a file."""
        assert self.regions is not None
        classes = self.method.vocabulary.label_classes
        columns = table.columns([item.name for item in classes])
        if not isinstance(self.regions, PolygonRegions):
            with self._stage(REGION_TABLE):
                write_table(ready / REGION_TABLE, table.numbers, columns)
        elif self.products.polygons != "none":
            assert self.regions.table is not None
            with self._stage(name := f"regions.{self.products.polygons}"):
                write_polygons(
                    ready / name, self.regions.table, table.numbers, columns, classes,
                    self.rasters.tags,
                )  # fmt: skip

    def _on_output_grid(self) -> WorkRasters:
        """Bring the work files to the grid of the outputs."""
        if self.reading.gsd is None or self.products.output_grid == "working":
            return self.rasters
        native = self.scene.native_grid
        area = open_area(self.reading, native)
        region = native.window if area is None else area.window
        mask = self.scene.source.left_out

        def left_out(window: Window) -> BoolArray:
            assert mask is not None
            row, col = region.row + window.row, region.col + window.col
            return mask.read(Window(row, col, *window.shape), window.shape)

        with self._timed("regrid"):
            return self.rasters.on_grid(native.crop(region), left_out if mask else None)

    def _make_products(
        self, rasters: WorkRasters, journal: Journal, voted: RegionTable | None
    ) -> dict[str, Any]:
        """Make every product, complete, in the work folder; return the report."""
        ready, products = self.folder.make_ready(), self.products
        labels, confidence = ready / "labels.tif", ready / "confidence.tif"
        for name in rasters.names:
            with self._stage(f"{name}.tif"):
                rasters.finish(name, ready / f"{name}.tif")
        tally = Tally.of_raster(labels, len(rasters.classes))
        if not tally.counts.any() and not self.holes:
            warn(
                f"{self.scene.path}: no pixel holds data, so nothing was labelled; check the "
                "scene's nodata value, --bands, --mask and --aoi"
            )
        self._describe(ready, rasters, tally)
        polygons = {}
        if products.polygons != "none":
            with self._stage(f"polygons.{products.polygons}"):
                summary = vectorize(
                    labels,
                    ready / f"polygons.{products.polygons}",
                    confidence=confidence if products.confidence else None,
                    runner_up=ready / "runner_up.tif" if products.runner_up else None,
                    options=products,
                )
                polygons = {"polygons": summary.count}
        if voted is not None:
            self._write_regions(voted, ready)
        if products.preview:
            with self._stage("preview.png"):
                picture = self.scene.picture()
                preview_files(
                    picture if rasters.grid == self.rasters.grid else picture.native(),
                    labels,
                    ready / "preview.png",
                    title=scene_name(self.scene.path),
                )
        files = {
            name: {"bytes": (ready / name).stat().st_size, "sha256": file_digest(ready / name)}
            for name in (*self.names, *products.side_files)
            if name not in (REPORT, ITEM)
        }
        report = self._report(rasters.grid, tally, journal) | polygons | {"files": files}
        if voted is not None:
            assert self.regions is not None
            report["regions"] = without_secrets(voted.report(self.regions, self.method.options))
        with writing_to(self.folder.path / REPORT):
            (ready / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            if products.stac:
                write_item(ready, self.names, report, rasters.grid)
        return dict(json.loads((ready / REPORT).read_text(encoding="utf-8")))

    def _describe(self, ready: Path, rasters: WorkRasters, tally: Tally) -> None:
        """Write what other programs need beside the rasters: names, colours, styles."""
        contents: dict[Path, str] = {}
        for name in rasters.names:
            raster = ready / f"{name}.tif"
            if name in CLASS_RASTERS:
                own = tally if name == "labels" else Tally.of_raster(raster, len(rasters.classes))
                counts = dict(enumerate(map(int, own.counts)))
                contents |= style.side_files(raster, rasters.classes, counts)
            else:
                contents[raster.with_suffix(".qml")] = style.per_cent_qml()
        for path, text in contents.items():
            with writing_to(self.folder.path / path.name):
                path.write_text(text, encoding="utf-8")

    def _report(self, grid: Grid, tally: Tally, journal: Journal) -> dict[str, Any]:
        seconds = self.seconds | {"total": time.perf_counter() - self.clock}
        report = {
            "schema": SCHEMA,
            "started": self.started,
            "finished": now(),
            **scene_report(self.scene, self.reading, grid),
            **place_report(grid),
            "sources": source_report(self.scene, self.folder.path),
            **class_report(self.method.vocabulary, grid, tally),
            **method_report(self.method),
            "products": asdict(self.products),
            "tile": list(self.plan.core(0).shape),
            "tiles": len(self.plan),
            "windows": sum(record.windows for record in journal.finished.values()),
            "windows_of_lattice": self.plan.windows,
            "holes": self._reasons(self.holes),
            "retried": self._reasons(
                {record.tile: record.retried for record in journal.finished.values()}
            ),
            # What the clock says has no place among files that are to be the same, byte by byte.
            "seconds": {} if source_date() else {k: round(v, 3) for k, v in seconds.items()},
            "warnings": list(self.heard),
            "versions": versions(),
            "identity": digest(self.facts),
        }
        return dict(without_secrets(report))

    def _reasons(self, errors: dict[int, str]) -> list[dict[str, Any]]:
        """Where tiles failed, and why."""
        return [
            {"window": asdict(self.plan.core(index)), "error": error}
            for index, error in sorted(errors.items())
            if error
        ]

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.progress(Progress(name, len(self.plan), len(self.plan), 0, 0))
        try:
            with self._timed(name):
                yield
        except OutputError as error:  # in the words of the user's folder
            ready, out = str(self.folder.ready), str(self.folder.place)
            raise OutputError(str(error).replace(ready, out)) from error

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        give_back_memory()
