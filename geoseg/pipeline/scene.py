"""The run of one scene, stage by stage: tiles, regions, products, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from geoseg._address import without_secrets
from geoseg._files import writing_to
from geoseg._optional import require
from geoseg.errors import GeosegError, OptionError, OutputError, heard_warnings, in_words, warn
from geoseg.inference.lane import TileResult
from geoseg.inference.segmenter import Segmenter
from geoseg.io.fingerprint import remember
from geoseg.io.grid import Grid
from geoseg.io.regions import GivenRegions, PolygonRegions, open_regions
from geoseg.io.scene import Scene
from geoseg.io.times import source_date
from geoseg.io.write import provenance
from geoseg.options import Options, Products, Reading
from geoseg.options.products import REGION_TABLE
from geoseg.pipeline.products import Maker, check_products, on_native_grid
from geoseg.run.folder import REPORT, OutputFolder
from geoseg.run.item import write_item
from geoseg.run.journal import Journal, TileRecord, digest
from geoseg.run.progress import TileBar
from geoseg.run.rasters import WorkRasters
from geoseg.run.regions import RegionTable, SumFiles
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
from geoseg.run.result import Progress, ProgressCallback, Run
from geoseg.run.scenes import SceneSource, open_area, open_input, passing_mosaic
from geoseg.run.stored import output_folder
from geoseg.run.tally import Tally
from geoseg.run.tiles import PixelSource, TileJob, run_tiles
from geoseg.run.times import now
from geoseg.run.work import TileFiles
from geoseg.runtime.allocator import give_back_memory, kept_memory
from geoseg.runtime.gdal import bounded_cache

_MANY = 0.5
"""Share of the polygons on a scene that ought to have pixels."""


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
            check_products(source, products)
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


def _warn_if_untold(scene: dict[str, Any]) -> None:
    """Say so where a resumed run cannot know whether its scene is still the same."""
    if scene["pixels"] is not None:
        warn(
            f"{scene['path']}: nothing tells whether it is still the scene of the interrupted run; "
            "start anew with --overwrite if it may have been replaced"
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
    keep_going: bool
    pixels: PixelSource
    """What the windows see."""
    regions: GivenRegions | None
    """Those of a file."""
    started: str
    clock: float
    heard: Iterable[str]
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
        self.decision = self.segmenter.decision
        rasters = WorkRasters(
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
        sums = None if self.regions is None else SumFiles(self.folder.work / "regions")
        scored = self.regions is not None and self.method.options.region_rule == "mean"
        self.tiles = TileFiles(self.plan, rasters, sums, scored)
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
        report = self._make_products(*self._vote(journal), journal)
        files = self.folder.publish(names, side_files, finished=not self.holes)
        return Run(self.folder.place, files, report, "resumed" if resumed else "done")

    def _segment(self, journal: Journal) -> None:
        assert self.segmenter is not None
        job = TileJob(
            self.pixels,
            self.segmenter,
            self.plan,
            self.area,
            self.products.rasters,
            self.regions,
            scored=self.tiles.scored,
        )
        self.tiles.forget_damaged(journal)
        with ExitStack() as stack:
            stack.enter_context(self._timed("segment"))
            writers = stack.enter_context(self.tiles.rasters.writing(resume=bool(journal.finished)))
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
                    self.tiles.write_nodata(writers, index)
                elif result is None:
                    journal.add(TileRecord(index, 0, {}))
                else:
                    journal.add(self.tiles.write(writers, index, result))
                bar.tile(index, result.windows if isinstance(result, TileResult) else 0)

    def _let_go_of_model(self) -> None:
        """Make room for the products, which need memory of their own.

        A model that the caller has loaded stays with the caller.
        """
        assert self.segmenter is not None
        self.method = Method.of(self.segmenter)  # how many windows fit is known only now
        self.segmenter = None
        give_back_memory()

    def _vote(self, journal: Journal) -> tuple[WorkRasters, RegionTable | None]:
        """Decide what regions are, and give it to the map; None without regions of a file."""
        rasters = self.tiles.rasters
        if self.regions is None:
            return rasters, None
        with self._stage("regions"):
            table = RegionTable.of(
                self.tiles.total(journal),
                self.decision,
                self.method.options,
                self.scene.grid,
                self.products.rasters,
            )
            self._warn_if_few(len(table.numbers))
            return rasters.in_regions(self.regions, table, self.plan.region), table

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

    def _make_products(
        self, rasters: WorkRasters, voted: RegionTable | None, journal: Journal
    ) -> dict[str, Any]:
        """Make every product, complete, in the work folder; return the report."""
        products, worked_on = self.products, rasters.grid
        if self.reading.gsd is not None and products.output_grid == "native":
            with self._timed("regrid"):
                rasters = on_native_grid(rasters, self.scene, self.reading)
        ready = self.folder.make_ready()
        maker = Maker(self.scene, products, rasters, self.folder, self._stage)
        tally = maker.make_rasters()
        if not tally.counts.any() and not self.holes:
            warn(
                f"{self.scene.path}: no pixel holds data, so nothing was labelled; check the "
                "scene's nodata value, --bands, --mask and --aoi"
            )
        maker.describe(tally)
        polygons = maker.make_polygons()
        if voted is not None:
            assert self.regions is not None
            maker.write_regions(self.regions, voted)
        maker.make_preview(native=rasters.grid != worked_on)
        files = maker.digests((*self.names, *products.side_files))
        report = self._report(rasters.grid, tally, journal) | polygons | {"files": files}
        if voted is not None:
            assert self.regions is not None
            report["regions"] = without_secrets(voted.report(self.regions, self.method.options))
        with writing_to(self.folder.path / REPORT):
            (ready / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            if products.stac:
                write_item(ready, self.names, report, rasters.grid)
        return dict(json.loads((ready / REPORT).read_text(encoding="utf-8")))

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
