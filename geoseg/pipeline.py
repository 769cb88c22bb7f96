"""Scene to files: the one place that knows every room."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from geoseg.errors import GeosegWarning, OptionError, OutputError
from geoseg.inference.allocator import give_back_memory, settle_memory
from geoseg.inference.graph import TileJob, run_tiles
from geoseg.inference.options import Options, Resolved
from geoseg.inference.segmenter import Segmenter, TileResult
from geoseg.io.aoi import Aoi
from geoseg.io.grid import Grid
from geoseg.io.labels import LabelRaster
from geoseg.io.mosaic import build_mosaic
from geoseg.io.regrid import regrid_nearest
from geoseg.io.scene import Scene
from geoseg.io.write import (
    RasterWriter,
    confidence_writer,
    label_writer,
    margin_writer,
    probability_writer,
)
from geoseg.journal import Journal, TileRecord, digest
from geoseg.model.checkpoint import file_digest
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.preview import preview_files
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.tiling.tiles import TilePlan
from geoseg.types import Window, label_nodata
from geoseg.vector import VectorOptions, vectorize

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

POLYGON_FORMATS = ("gpkg", "parquet", "fgb", "geojson", "none")
WORK_FOLDER = ".geoseg-work"
JOURNAL = "journal.jsonl"
MOSAIC = "mosaic.vrt"


@dataclass(frozen=True)
class Reading:
    """How a scene is read."""

    bands: tuple[int, ...] | None = None
    """Red, green and blue band, or one band, counted from 1; None for the file's own colours."""
    stretch: str = "auto"
    """``auto``, ``none``, ``P1,P2`` percentiles or ``min:max`` values."""
    gsd: float | None = None
    """Metres a pixel to work at; None for the scene's own pixels."""
    aoi: str | None = None
    """``minx,miny,maxx,maxy`` in the scene's CRS, or a vector file: map only this part."""


@dataclass(frozen=True)
class Products:
    """Which files a run leaves, and how."""

    polygons: Literal["gpkg", "parquet", "fgb", "geojson", "none"] = "gpkg"
    min_area_m2: float = 0.0
    simplify_m: float = 0.0
    connectivity: int = 4
    confidence: bool = True
    probabilities: bool = False
    margin: bool = False
    """``margin.tif``: how far the best class is ahead of the second."""
    preview: bool = True
    output_grid: Literal["native", "working"] = "native"
    """With a working GSD: on which pixels labels are returned."""

    def __post_init__(self) -> None:
        if self.polygons not in POLYGON_FORMATS:
            raise OptionError(
                f"polygons {self.polygons!r} is not a known format; "
                f"choose from {', '.join(POLYGON_FORMATS)}"
            )
        if self.output_grid not in ("native", "working"):
            raise OptionError(f"output grid {self.output_grid!r} is not native or working")
        self.vector_options()  # refuses what cannot be before anything runs

    def vector_options(self) -> VectorOptions:
        """Return the polygons' options as the vector room takes them."""
        return VectorOptions(
            min_area_m2=self.min_area_m2,
            simplify_m=self.simplify_m,
            connectivity=self.connectivity,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Final file names, in the order in which they appear."""
        chosen = (
            ("labels.tif", True),
            ("confidence.tif", self.confidence),
            ("probabilities.tif", self.probabilities),
            ("margin.tif", self.margin),
            (f"polygons.{self.polygons}", self.polygons != "none"),
            ("preview.png", self.preview),
            ("run.json", True),
        )
        return tuple(name for name, wanted in chosen if wanted)


ALL_PRODUCTS = (
    "labels.tif",
    "confidence.tif",
    "probabilities.tif",
    "margin.tif",
    *(f"polygons.{suffix}" for suffix in POLYGON_FORMATS if suffix != "none"),
    "preview.png",
    "run.json",
)


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str
    """``segment``, then the names of the products being made."""
    tiles_done: int
    tiles: int
    pixels_done: int
    """Scene pixels mapped in this run."""
    pixels: int
    """Scene pixels to map in this run."""


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Run:
    """What a run left."""

    out: Path
    files: tuple[Path, ...]
    report: dict[str, Any] = field(repr=False)
    """The content of ``run.json``."""


def segment_to_files(
    scene: str | Path | Scene | Sequence[str | Path],
    classes: VocabularySource,
    out: str | Path,
    *,
    model: str | Model = DEFAULT_MODEL,
    options: Options | None = None,
    reading: Reading | None = None,
    products: Products | None = None,
    tile: int = 2048,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    client: Any = None,
    progress: ProgressCallback | None = None,
) -> Run:
    """Map one scene and leave the products in a folder.

    Parameters
    ----------
    scene
        Path of anything rasterio reads, or an opened `Scene`; several paths are mapped as one
        mosaic, whose ``mosaic.vrt`` stays in ``out``.
    classes
        A class file, an inline list (``"building,roof;road;water"``) or a `Vocabulary`.
    out
        Folder for the products; made if it is not there.
    model
        Specification, see `load_model`, or a loaded model.
    options
        How pixels become labels.
    reading
        Bands, stretch, working GSD, area of interest.
    products
        Which files to make.
    tile
        Side of a tile in pixels: the unit of work and of memory. It does not change the map.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ignored for a loaded model.
    overwrite
        Replace the products of an earlier run in ``out``.
    resume
        Go on with an interrupted run in ``out``.
    client
        A ``distributed.Client`` whose workers run the tiles; None for this process.
    progress
        Called after every tile and before every product.

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
    reading, products = reading or Reading(), products or Products()
    vocabulary = Vocabulary.parse(classes)
    target = Path(out)
    check_output(target, None, overwrite=overwrite, resume=resume)
    source = open_input(scene, reading, target, travels=client is not None)
    check_output(target, source, overwrite=overwrite, resume=resume)
    # The model has no name here, so that the run can let go of it when no tile needs it any more.
    run = _SceneRun(
        source,
        Segmenter(
            model if isinstance(model, Model) else load_model(model, device=device),
            vocabulary,
            options,
        ),
        reading,
        products,
        target,
        tile,
        client,
        progress,
    )
    return run.execute(resume=resume)


def open_input(
    scene: str | Path | Scene | Sequence[str | Path],
    reading: Reading,
    out: Path,
    *,
    travels: bool = False,
) -> Scene:
    """Open what `segment_to_files` was given.

    Parameters
    ----------
    scene, reading, out
        As there; the VRT of a mosaic is written to ``out``.
    travels
        Other processes will open the scene, wherever they work.
    """
    if isinstance(scene, Scene):
        return scene
    if not isinstance(scene, str | Path):
        scene = build_mosaic(scene, out / MOSAIC)
    return open_scene(absolute(scene) if travels else scene, reading)


def absolute(path: str | Path) -> str | Path:
    """Return the path as another process finds it, whatever folder it works in."""
    return Path(path).absolute() if Path(path).exists() else path


def open_scene(path: str | Path, reading: Reading) -> Scene:
    """Open a scene as ``reading`` says."""
    return Scene.open(path, bands=reading.bands, stretch=reading.stretch, gsd=reading.gsd)


def check_output(out: Path, scene: Scene | None, *, overwrite: bool, resume: bool) -> None:
    """Fail before anything is loaded if the outputs of a run would replace something.

    Parameters
    ----------
    out
        Folder for the products.
    scene
        What will be mapped; None if it is not known yet.
    overwrite, resume
        As for `segment_to_files`.

    Raises
    ------
    OutputError
        If products are there and neither ``overwrite`` nor ``resume`` is set, or one of them is
        the scene itself.
    OptionError
        If both are set.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a folder with --out")
    if overwrite and resume:
        raise OptionError("--overwrite starts anew and --resume goes on; give one of them")
    existing = [name for name in ALL_PRODUCTS if (out / name).exists()]
    for file, _, _ in () if scene is None else scene.source.files:
        if any(Path(file).samefile(out / name) for name in existing):
            raise OutputError(
                f"{file} is the scene itself and would be replaced; give another --out"
            )
    interrupted = (out / WORK_FOLDER / JOURNAL).exists()
    if overwrite or (resume and (interrupted or not existing or (out / "run.json").exists())):
        return
    if interrupted:
        raise OutputError(
            f"{out} holds an interrupted run; finish it with --resume "
            "or start anew with --overwrite"
        )
    if existing:
        way_out = "" if resume else "finish an interrupted run with --resume, "
        raise OutputError(
            f"{out} already holds {existing[0]}; replace it with --overwrite, {way_out}"
            "or give another --out"
        )


@dataclass(frozen=True)
class _Method:
    """What there is to say about a segmenter, without its weights."""

    options: Resolved
    vocabulary: Vocabulary
    spec: str
    weights: str
    """Name of the checkpoint file."""
    weights_sha256: str
    fingerprint: str
    """Of the weights and the architecture."""
    device: torch.device
    batch_size: int
    precision: str

    @classmethod
    def of(cls, segmenter: Segmenter) -> _Method:
        """Describe a segmenter as it is now."""
        model = segmenter.model
        return cls(
            segmenter.options,
            segmenter.vocabulary,
            model.spec,
            model.weights.name,
            model.weights_sha256,
            model.fingerprint,
            segmenter.device,
            segmenter.batch_size,
            segmenter.precision,
        )


@dataclass
class _SceneRun:
    """One run over one scene; its methods are the stages, in order."""

    scene: Scene
    segmenter: Segmenter | None
    """None once all tiles are done."""
    reading: Reading
    products: Products
    out: Path
    tile: int
    client: Any
    progress: ProgressCallback | None

    def __post_init__(self) -> None:
        assert self.segmenter is not None
        grid = self.scene.grid
        self._check_products(grid)
        self.area = Aoi.open(self.reading.aoi, grid) if self.reading.aoi is not None else None
        region = self.area.window if self.area is not None else None
        self.plan = TilePlan(self.segmenter.lattice(*grid.shape), self.tile, region)
        self.grid = grid.crop(self.plan.region)
        self.work = self.out / WORK_FOLDER
        self.method = _Method.of(self.segmenter)
        self.classes = self.method.vocabulary.label_classes
        self.seconds: dict[str, float] = {}

    def _check_products(self, grid: Grid) -> None:
        """Refuse, before any work, polygons that a scene without a place cannot have."""
        products = self.products
        if grid.placed or products.polygons == "none":
            return
        where = f"{self.scene.path}: has no place on the ground (no CRS or no transform), so"
        if products.polygons == "geojson":
            raise OptionError(
                f"{where} there is no GeoJSON, which needs longitude and latitude; take "
                "--polygons gpkg, fgb or parquet"
            )
        if products.min_area_m2 or products.simplify_m:
            raise OptionError(f"{where} --min-area and --simplify have no metres; leave them out")

    def execute(self, *, resume: bool) -> Run:
        if resume and (done := self._already_done()):
            return done
        journal = None
        made_out = not self.out.exists()
        try:
            with self._claimed():
                journal = self._begin(resume=resume)
                self._segment(journal)
                self._let_go_of_model()
                folder, grid, tally = self._output_grid(journal)
                made = self._make_products(folder, grid, tally, journal)
                return self._publish(made)
        finally:
            self._tidy(journal, remove_out=made_out)
            settle_memory()

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Hold the work folder, so that two runs never write into one output folder."""
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            lock = (self.work / "lock").open("w")
        except OSError as error:
            raise OutputError(f"{self.out} cannot be made: {error.strerror}") from error
        with lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise _OccupiedError(
                        f"another run is writing to {self.out}; wait for it or give another --out"
                    ) from error
            yield

    def _begin(self, *, resume: bool) -> Journal:
        """Open the record of finished tiles, beside work files that fit it."""
        record = self.work / JOURNAL
        if not (resume and record.exists()):
            self._clear_work()
            self.work.mkdir()
        journal = Journal(record, self._facts(), resume=resume)
        if journal.finished:
            for name in self._raster_names:
                if not _work_file(self.work, name).exists():
                    raise OutputError(
                        f"{_work_file(self.work, name)} of the interrupted run is gone; "
                        "start anew with --overwrite"
                    )
        return journal

    def _clear_work(self) -> None:
        # The record goes first: without it, what is left behind is never taken for a run.
        (self.work / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)

    # -- identity ---------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """Everything the outputs depend on, by the name the user knows it by."""
        options = asdict(self.method.options)
        del options["sources"]
        weights = options["upsampler_weights"]
        options["upsampler_weights"] = None if weights is None else file_digest(weights)
        options["templates"] = digest(list(load_templates(options["templates"])))
        return {
            "geoseg's version": version("geoseg"),
            "the scene": self.scene.fingerprint(),
            "--bands, --stretch or --gsd": [
                self.scene.bands,
                self.scene.stretch,
                self.reading.gsd,
            ],
            "--aoi": self._area_identity(),
            "--classes": digest(asdict(self.method.vocabulary)),
            "--model": self.method.fingerprint,
            **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
            "--tile": self.plan.tile,
            "the wanted products": asdict(self.products),
            "the kind of device": self.method.device.type,
        }

    def _area_identity(self) -> Any:
        return None if self.area is None else digest([self.area.window, self.area.outline.wkt])

    def _already_done(self) -> Run | None:
        """Return the earlier run's result if it was finished with the same facts."""
        record = self.out / "run.json"
        if (self.work / JOURNAL).exists() or not record.is_file():
            return None
        try:
            report = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OutputError(
                f"{record} is not a record of a run; replace it with --overwrite"
            ) from error
        files = tuple(self.out / name for name in self.products.names)
        if report.get("identity") != digest(self._facts()) or not all(f.exists() for f in files):
            raise OutputError(
                f"{self.out} holds a finished run with other input or options; "
                "replace it with --overwrite"
            )
        self._clear_work()
        return Run(self.out, files, report)

    # -- stages -----------------------------------------------------------------------------

    def _segment(self, journal: Journal) -> None:
        assert self.segmenter is not None
        job = TileJob(self.scene, self.segmenter, self.plan, self.area, self.products.probabilities)
        todo = [index for index in range(len(self.plan)) if index not in journal.finished]
        pixels = sum(self.plan.core(index).area for index in todo)
        state = Progress("segment", len(journal.finished), len(self.plan), 0, pixels)
        self._report(state)
        nothing = (0,) * len(self.classes)
        with self._timed("segment"), ExitStack() as stack:
            writers = self._writers(stack, resume=bool(journal.finished))
            # Closed at once when this loop is left, so that tiles under way stop too.
            results = stack.enter_context(closing(run_tiles(job, todo, client=self.client)))
            for index, result in results:
                if result is None:
                    journal.add(TileRecord(index, nothing, 0))
                else:
                    self._write(writers, result)
                    journal.add(TileRecord(index, self._count(result.labels), result.windows))
                state = replace(
                    state,
                    tiles_done=state.tiles_done + 1,
                    pixels_done=state.pixels_done + self.plan.core(index).area,
                )
                self._report(state)

    def _let_go_of_model(self) -> None:
        """Make room for the products, which need memory of their own.

        A model that the caller has loaded stays with the caller.
        """
        assert self.segmenter is not None
        self.method = _Method.of(self.segmenter)  # how many windows fit is known only now
        self.segmenter = None
        give_back_memory()

    def _writers(self, stack: ExitStack, *, resume: bool) -> dict[str, RasterWriter]:
        writers = {}
        for name in self._raster_names:
            writer = self._writer(self.work, name, self.grid, resume=resume)
            writers[name] = stack.enter_context(writer)
            writer.flush()  # a resumed run may count on the file
        return writers

    @property
    def _raster_names(self) -> tuple[str, ...]:
        wanted = {
            "labels": True,
            "confidence": self.products.confidence,
            "probabilities": self.products.probabilities,
            "margin": self.products.margin,
        }
        return tuple(name for name, chosen in wanted.items() if chosen)

    def _writer(self, folder: Path, name: str, grid: Grid, *, resume: bool) -> RasterWriter:
        file = _work_file(folder, name)
        plain = {"confidence": confidence_writer, "margin": margin_writer}
        if name in plain:
            return plain[name](file, grid, resume=resume)
        make = label_writer if name == "labels" else probability_writer
        return make(file, grid, self.classes, resume=resume)

    def _write(self, writers: dict[str, RasterWriter], result: TileResult) -> None:
        window = result.core.relative_to(self.plan.region)
        for name, writer in writers.items():
            writer.write(window, getattr(result, name))
            writer.flush()

    def _count(self, labels: npt.NDArray[Any]) -> tuple[int, ...]:
        return _class_counts(labels, len(self.classes))

    def _output_grid(self, journal: Journal) -> tuple[Path, Grid, _Tally]:
        """Bring the work files to the grid of the outputs; return folder, grid, class counts."""
        if self.reading.gsd is None or self.products.output_grid == "working":
            tally = _Tally(self.grid, len(self.classes))
            cores = {
                record.tile: self.plan.core(record.tile).relative_to(self.plan.region)
                for record in journal.finished.values()
            }
            if tally.even:
                for index, core in cores.items():
                    tally.add(core, journal.finished[index].counts)
            else:
                labels = LabelRaster.open(_work_file(self.work, "labels"))
                for core in cores.values():
                    tally.add_labels(core, labels.read(core))
            return self.work, self.grid, tally
        native = self._native_region()
        folder = self.work / "native"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tally = _Tally(native, len(self.classes))
        with self._timed("regrid"):
            for name in self._raster_names:
                with self._writer(folder, name, native, resume=False) as writer:
                    for window, block in regrid_nearest(_work_file(self.work, name), writer):
                        if name == "labels":
                            tally.add_labels(window, block)
        return folder, native, tally

    def _native_region(self) -> Grid:
        native = self.scene.native_grid
        if self.reading.aoi is None:
            return native
        return native.crop(Aoi.open(self.reading.aoi, native).window)

    def _make_products(self, folder: Path, grid: Grid, tally: _Tally, journal: Journal) -> Path:
        """Make every product, complete, in the work folder."""
        if not tally.counts.any():
            warnings.warn(
                f"{self.scene.path}: no pixel holds data, so nothing was labelled; check the "
                "scene's nodata value, --bands and --aoi",
                GeosegWarning,
                stacklevel=2,
            )
        ready = self.work / "ready"
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        labels, confidence = ready / "labels.tif", ready / "confidence.tif"
        for name in self._raster_names:
            with self._stage(f"{name}.tif"):
                writer = self._writer(folder, name, grid, resume=True)
                writer.finish(ready / f"{name}.tif")
        summary = None
        if self.products.polygons != "none":
            with self._stage(f"polygons.{self.products.polygons}"):
                summary = vectorize(
                    labels,
                    ready / f"polygons.{self.products.polygons}",
                    confidence=confidence if self.products.confidence else None,
                    options=self.products.vector_options(),
                )
        if self.products.preview:
            with self._stage("preview.png"):
                preview_files(
                    self.scene if grid == self.grid else self.scene.native(),
                    labels,
                    ready / "preview.png",
                    title=Path(self.scene.path).name,
                )
        report = self._run_report(grid, tally, journal)
        if summary is not None:
            report["polygons"] = summary.count
        (ready / "run.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        return ready

    def _publish(self, ready: Path) -> Run:
        """Give complete files their final names.

        An earlier run's ``run.json`` goes first and the new one comes last, so that a folder that
        has one holds the files of one run.
        """
        names = self.products.names
        report = json.loads((ready / "run.json").read_text(encoding="utf-8"))
        for stale in ("run.json", *(name for name in ALL_PRODUCTS if name not in names)):
            (self.out / stale).unlink(missing_ok=True)
        for name in names:
            (ready / name).replace(self.out / name)
        self._clear_work()
        return Run(self.out, tuple(self.out / name for name in names), report)

    def _tidy(self, journal: Journal | None, *, remove_out: bool) -> None:
        """After a failure keep what a resumed run can use, and nothing else."""
        if isinstance(sys.exc_info()[1], _OccupiedError):
            return
        if not self.work.exists() or (journal is not None and journal.finished):
            return
        if journal is None and (self.work / JOURNAL).exists():
            return  # an earlier run's record that this run could not use
        self._clear_work()
        if remove_out and not any(self.out.iterdir()):
            self.out.rmdir()

    # -- report -----------------------------------------------------------------------------

    def _run_report(self, grid: Grid, tally: _Tally, journal: Journal) -> dict[str, Any]:
        total = max(int(tally.counts.sum()), 1)
        method = self.method
        options = asdict(method.options)
        sources = options.pop("sources")
        classes = [
            {
                "index": c.index,
                "name": c.name,
                "queries": list(v.prompts),
                "pixels": int(n),
                "per_cent": round(100 * int(n) / total, 3),
                "area_m2": None if area is None else round(float(area), 2),
            }
            for c, v, n, area in zip(
                self.classes,
                method.vocabulary.classes,
                tally.counts,
                tally.areas_m2 if tally.areas_m2 is not None else repeat(None),
                strict=False,
            )
        ]
        return {
            "scene": self.scene.path,
            "size": list(grid.shape),
            "crs": None if grid.crs is None else grid.crs.to_string(),
            "gsd_m": grid.gsd_m,
            "classes": classes,
            "nodata_pixels": int(grid.height * grid.width - tally.counts.sum()),
            "model": {
                "spec": method.spec,
                "weights": method.weights,
                "weights_sha256": method.weights_sha256,
            },
            "options": options | {"batch_size": method.batch_size, "precision": method.precision},
            "option_sources": sources,
            "reading": asdict(self.reading)
            | {"bands": list(self.scene.bands), "limits": self.scene.stretch},
            "products": asdict(self.products),
            "tile": self.plan.tile,
            "tiles": len(self.plan),
            "windows": sum(r.windows for r in journal.finished.values()),
            "device": str(method.device),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "versions": _versions(),
            "identity": digest(self._facts()),
        }

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._report(Progress(name, len(self.plan), len(self.plan), 0, 0))
        with self._timed(name):
            yield

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        give_back_memory()

    def _report(self, progress: Progress) -> None:
        if self.progress is not None:
            self.progress(progress)


_EVEN = 1e-4
"""Share by which areas of pixels may differ and still be taken for one."""
_SAMPLE = 64
"""Pixels a side whose area is looked at here and there."""


class _OccupiedError(OutputError):
    """Another process is at work in the same output folder."""


class _Tally:
    """Pixels and area of every class, added up window by window."""

    def __init__(self, grid: Grid, classes: int) -> None:
        self._grid = grid
        # Some hundred strips a scene: over each a pixel's area hardly changes.
        self._strip = max(1, grid.height // 512)
        self.counts = np.zeros(classes, dtype=np.int64)
        self.areas_m2: npt.NDArray[np.float64] | None = np.zeros(classes)

    @cached_property
    def even(self) -> bool:
        """Whether pixels have the same area all over the grid, or none is known."""
        height, width = self._grid.shape
        rows, cols = (max(1, min(side // 8, _SAMPLE)) for side in (height, width))
        areas = [
            self._grid.pixel_area_m2(Window(row, col, rows, cols))
            for row in (0, (height - rows) // 2, height - rows)
            for col in (0, (width - cols) // 2, width - cols)
        ]
        known = [area for area in areas if area is not None]
        return len(known) < len(areas) or max(known) <= min(known) * (1 + _EVEN)

    def add_labels(self, window: Window, labels: npt.NDArray[Any]) -> None:
        """Count the labels of one window of the grid."""
        step = len(labels) if self.even else self._strip
        for first in range(0, len(labels), step):
            part = labels[first : first + step]
            where = Window(window.row + first, window.col, len(part), window.width)
            self.add(where, _class_counts(part, len(self.counts)))

    def add(self, window: Window, counts: Sequence[int]) -> None:
        """Add the class counts of one window of the grid; its pixels have one area."""
        found = np.array(counts, dtype=np.int64)
        self.counts += found
        if self.areas_m2 is None or not found.any():
            return
        pixel = self._grid.pixel_area_m2(window)
        self.areas_m2 = None if pixel is None else self.areas_m2 + found * pixel


def _work_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.work.tif"


def _class_counts(labels: npt.NDArray[Any], classes: int) -> tuple[int, ...]:
    nodata = label_nodata(labels.dtype)
    counts = np.bincount(labels.ravel(), minlength=nodata + 1)
    return tuple(int(n) for n in counts[:classes])


def _versions() -> dict[str, str]:
    packages: Sequence[str] = ("geoseg", "torch", "open_clip_torch", "rasterio", "numpy", "dask")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
