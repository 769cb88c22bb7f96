"""Encode a scene once, then ask for any words: a store, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rioxarray
import shapely
import xarray as xr
from shapely.geometry.base import BaseGeometry

from geoseg._address import as_given
from geoseg._fields import as_made, choices
from geoseg._files import local_target, refuse_source
from geoseg._html import table
from geoseg._inputs import is_there, shown
from geoseg._texts import area_as_text
from geoseg.bars import shown as progress_shown
from geoseg.errors import OptionError, OutputError, SceneError, not_found
from geoseg.inference.network import windows_of
from geoseg.inference.refine.scene import with_measures
from geoseg.inference.segmenter import Segmenter
from geoseg.io.aoi import Aoi
from geoseg.io.scene import Scene, open_scene
from geoseg.io.write import RasterWriter, provenance, similarity_writer
from geoseg.lazy import mapped
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Products, Reading, StoreOptions
from geoseg.pipeline.files import regions_on_disk
from geoseg.pipeline.scene import run_scene
from geoseg.run.result import Progress, ProgressCallback, Run
from geoseg.run.scenes import (
    MOSAIC,
    STACK,
    SceneSource,
    open_area,
    open_input,
    passing_mosaic,
)
from geoseg.run.tiles import PixelSource, TileJob, run_tiles
from geoseg.runtime.gdal import bounded_cache
from geoseg.store.encode import EncodeRun, StoreFolder
from geoseg.store.encoding import WORDS, Encoding
from geoseg.store.layout import GROUP, WORK_FOLDER, StoreFile
from geoseg.store.likeness import NOTHING, Cosines, FastLikeness, Likeness
from geoseg.store.pool import seen_by_store, tokens_in
from geoseg.store.recorded import FastSegmenter, RecordedModel, RecordedSegmenter, StoredPixels
from geoseg.text.embedding import embed_queries
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.types import FloatArray, Window


def encode(
    scene: SceneSource,
    out: str | Path,
    *,
    model: str | Model = DEFAULT_MODEL,
    options: Options | Mapping[str, Any] | None = None,
    window: int | None = None,
    stride: int | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    store: StoreOptions | Mapping[str, Any] | None = None,
    tile: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    client: Any = None,
    progress: ProgressCallback | bool | None = None,
) -> Store:
    """Encode a scene once, so that any words can be asked for later.

    Parameters
    ----------
    scene
        As for `geoseg.segment_to_files`; arrays go to a file first.
    out
        Folder of the store, made if it is not there; mostly called ``….store``.
    model, window, stride, reading, device, client, progress
        As for `geoseg.segment_to_files`. A client's workers run the encoder.
    options
        How to encode: attention, precision, windows; and upsampler and blend, which the fast tier
        holds and the full tier takes if nothing else is asked for. What concerns words is ignored.
    store
        Tiers, and how fine the fast one is.
    tile
        Side of what is encoded and written at once, in pixels.
    overwrite
        Replace a store that is there.
    resume
        Finish an interrupted run; the result is that of a run without a break, byte for byte.

    Returns
    -------
    Store
        Ready to be asked.

    Raises
    ------
    GeosegError
        With one line that says what is wrong and what to do.
    """
    how, wanted = as_made(Reading, reading), as_made(StoreOptions, store)
    folder = StoreFolder(out)
    folder.check_store(overwrite=overwrite, resume=resume)
    with (
        progress_shown(progress, "encode") as say,
        folder.claimed(),
        bounded_cache(),
        passing_mosaic(scene, folder.path),
    ):
        source = open_input(scene, how, folder.path, travels=True)
        loaded = model if isinstance(model, Model) else load_model(model, device=device)
        segmenter = Encoding(loaded, WORDS, windows_of(options, window, stride))
        run = EncodeRun(source, segmenter, how, wanted, folder, tile, client)
        if say is not None:
            run.progress = say
        run.execute(resume=resume)
    return open_store(folder.path)


def open_store(
    path: str | Path, *, scene: str | Path | None = None, model: str | Model | None = None
) -> Store:
    """Open a store that `encode` has made.

    Parameters
    ----------
    path
        Its folder.
    scene, model
        Where its scene and its model lie now, if that is another place.

    Returns
    -------
    Store
        Ready to be asked; nothing but its record has been read.

    Raises
    ------
    SceneError
        If there is none, or only half of one, or one of another layout.
    """
    return Store(StoreFile.open(as_given(path)), scene, model)


def is_store(path: Any) -> bool:
    """Whether a path is that of a store, perhaps of half a one."""
    if not isinstance(path, str | Path) or "://" in str(path):
        return False
    folder = Path(path)
    return (folder / GROUP).exists() or (folder / WORK_FOLDER / "store").exists()


class Store:
    """Features of a scene, from which any words make a map; get one from `open_store`.

    Parameters
    ----------
    file
        The opened store.
    scene, model
        As for `open_store`.

    Examples
    --------
    >>> store = geoseg.open_store("town.store")                       # doctest: +SKIP
    >>> store.ask("building; road; water", fast=True).labels          # doctest: +SKIP
    >>> store.to_files("building; road; water", "map")                # doctest: +SKIP
    """

    def __init__(
        self,
        file: StoreFile,
        scene: str | Path | None = None,
        model: str | Model | None = None,
    ) -> None:
        self._file, self._moved_scene, self._moved_model = file, scene, model

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._file.path

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the store says of itself: scene, model, options, layout; plain JSON values."""
        return self._file.facts

    @property
    def tiers(self) -> tuple[str, ...]:
        """``full``, ``fast`` or both."""
        return self._file.layout.tiers

    @property
    def model(self) -> str:
        """Specification of the model that it was encoded with."""
        return str(self.facts["model"]["spec"])

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """What it holds and how it was encoded, in sections; plain JSON values."""
        layout, facts, size = self._file.layout, self.facts, self.size
        full = "full" in self.tiers
        energy = facts.get("channels", {}).get("energy", 1.0)
        return {
            "store": {
                "path": str(self.path),
                "width": layout.width,
                "height": layout.height,
                "tiers": list(self.tiers),
                "channels": (layout.channels or layout.embedding) if full else None,
                "share_of_energy_kept": energy if full else None,
                "bytes": size,
                "bytes_a_pixel": round(size / (layout.width * layout.height), 3),
            },
            "encoded": {
                "scene": facts["scene"]["path"],
                "model": self.model,
                "geoseg": facts["geoseg"],
                **facts["options"],
            },
        }

    def __repr__(self) -> str:
        layout = self._file.layout
        some = "" if layout.channels is None else f" of {layout.channels} channels"
        tiers = " and ".join(name + some * (name == "full") for name in self.tiers)
        return (
            f"Store({self.path}: {layout.width} x {layout.height} pixels, {tiers}, "
            f"{self.facts['model']['spec']})"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("scene", self.facts["scene"]["path"]),
            *((name, value) for name, value in self.facts["options"].items() if value is not None),
        ]
        return table(repr(self), (), rows)

    def ask(
        self,
        words: VocabularySource,
        *,
        fast: bool | None = None,
        options: Options | Mapping[str, Any] | None = None,
        aoi: Any = None,
        probabilities: bool = False,
        tile: int | None = 2048,
        model: str | Model | None = None,
        device: str = "auto",
        scene: str | Path | None = None,
    ) -> xr.Dataset:
        """Map the scene lazily, without encoding it again.

        Parameters
        ----------
        words
            As ``classes`` of `geoseg.segment`.
        fast
            Ask the fast tier: nearly the same map in a fraction of the time. None takes the full
            tier where there is one.
        options
            As for `geoseg.segment`; what was settled when the scene was encoded cannot be changed:
            attention, windows and precision, for the fast tier upsampler and blend too.
        aoi
            Part of the scene, as in `geoseg.Reading`.
        probabilities, tile
            As for `geoseg.segment`.
        model
            Where the model of the store lies now, if that is another place.
        device
            As for `geoseg.segment`; the fast tier is asked on the CPU.
        scene
            Where the scene lies now, if that is another place.

        Returns
        -------
        xarray.Dataset
            As `geoseg.segment`.

        Raises
        ------
        GeosegError
            With one line that says what is wrong and what to do.
        """
        source, reading = self._open(scene, aoi)
        chosen = with_measures(as_made(Options, options), source)
        segmenter = self._segmenter(words, fast, chosen, model, device)
        pixels = self._pixels(segmenter, source, reading)
        return mapped((source,), pixels, segmenter, reading, tile, probabilities=probabilities)

    def to_files(
        self,
        words: VocabularySource,
        out: str | Path,
        *,
        fast: bool | None = None,
        options: Options | Mapping[str, Any] | None = None,
        aoi: Any = None,
        products: Products | Mapping[str, Any] | None = None,
        model: str | Model | None = None,
        device: str = "auto",
        scene: str | Path | None = None,
        tile: int | None = None,
        overwrite: bool = False,
        resume: bool = False,
        update: bool = False,
        client: Any = None,
        progress: ProgressCallback | bool | None = None,
    ) -> Run:
        """Map the scene and leave the products in a folder, without encoding it again.

        Parameters
        ----------
        words, fast, options, aoi, model, device, scene
            As for `ask`.
        out, products, tile, overwrite, resume, update, client, progress
            As for `geoseg.segment_to_files`.

        Returns
        -------
        Run
            Paths and the content of ``run.json``, which names the store too.

        Raises
        ------
        GeosegError
            With one line that says what is wrong and what to do.
        """
        if is_there(out) and is_there(self.path) and self.path.samefile(out):
            raise OutputError(f"{out} is the store itself; give another --out for its map")
        vocabulary = Vocabulary.parse(words)
        path, reading = self._scene_path(scene), self._reading(aoi)

        def make(source: Scene) -> tuple[RecordedSegmenter, PixelSource]:
            self._check_scene(source, reading)
            chosen = with_measures(given, source)
            segmenter = self._segmenter(vocabulary, fast, chosen, model, device)
            return segmenter, self._pixels(segmenter, source, reading)

        with (
            progress_shown(progress, "segment") as say,
            regions_on_disk(as_made(Options, options)) as given,
        ):
            return run_scene(
                path,
                out,
                make,
                options=given,
                reading=reading,
                products=as_made(Products, products),
                tile=tile,
                overwrite=overwrite,
                resume=resume,
                update=update,
                client=client,
                progress=say,
            )

    def similar(
        self,
        what: str | Sequence[float] | BaseGeometry,
        *,
        out: str | Path | None = None,
        fast: bool | None = None,
        options: Options | Mapping[str, Any] | None = None,
        aoi: Any = None,
        model: str | Model | None = None,
        device: str = "auto",
        scene: str | Path | None = None,
        overwrite: bool = False,
        progress: ProgressCallback | bool | None = None,
    ) -> xr.DataArray:
        """Find where the scene looks like some words, or like a place in it.

        Parameters
        ----------
        what
            Words; or a point (x and y) or a shapely polygon in the scene's CRS, whose features, on
            average, are looked for.
        out
            File to write as well: a cloud-optimised GeoTIFF of float32.
        fast, aoi, model, device, scene
            As for `ask`.
        options
            Of which templates count.
        overwrite
            Replace ``out``.
        progress
            Called after every tile; True shows a bar.

        Returns
        -------
        xarray.DataArray
            ``(y, x)`` float32 cosine, -1 to 1; NaN where there is no data. It is read from ``out``
            when it is looked at, if there is one.

        Raises
        ------
        OptionError
            If it is neither words nor a place, or the place lies where there is no data.
        """
        target = None if out is None else local_target(out)
        if target is not None and target.is_dir():
            raise OutputError(f"{target} is a folder; give a file with --out")
        if target is not None and target.exists() and not overwrite:
            raise OutputError(f"{target}: exists already; replace it with --overwrite")
        if target is not None and not target.absolute().parent.is_dir():
            raise OutputError(f"{target}: there is no such folder; make it first")
        source, reading = self._open(scene, aoi)
        if target is not None:
            refuse_source(target, [source.path, *(file for file, *_ in source.source.all_files)])
        fast = "full" not in self.tiers if fast is None else fast
        named = self._named("cpu" if fast else device, model)
        vector, told = self._direction(what, named, as_made(Options, options), source)
        kind = FastLikeness if fast else Likeness
        asked = kind(self._file, named, vector)
        area = open_area(reading, source.grid)
        plan = asked.cut(source.shape, None if area is None else area.window)
        job = TileJob(self._pixels(asked, source, reading), asked, plan, area)
        grid = source.grid.crop(plan.region)
        with (
            progress_shown(progress, "similar") as say,
            TemporaryDirectory(prefix="geoseg-") as folder,
            bounded_cache(),
        ):
            final = Path(folder) / "similarity.tif" if target is None else target
            work = final.absolute().parent / f".{final.stem}.work.tif"
            tags = provenance(source.path, self.model, [[told]])
            with similarity_writer(work, grid, NOTHING, told, tags=tags) as writer:
                try:
                    self._write(job, writer, say)
                    writer.finish(final, overwrite=overwrite)
                finally:
                    writer.discard()
            opened: Any = rioxarray.open_rasterio(final, masked=True, chunks={})
            made: xr.DataArray = opened.squeeze("band", drop=True).rename("similarity")
            made.attrs = {"long_name": f"similarity to {told}", "units": "1"}
            return made if target is not None else made.load()

    def _write(self, job: TileJob, writer: RasterWriter, progress: ProgressCallback | None) -> None:
        plan = job.plan
        pixels = sum(plan.core(index).area for index in range(len(plan)))
        state = Progress("similar", 0, len(plan), 0, pixels)
        with closing(run_tiles(job, range(len(plan)))) as results:
            found: Any
            for index, found in results:
                core = plan.core(index)
                if isinstance(found, Cosines):
                    writer.write(core.relative_to(plan.region), found.values)
                state = replace(
                    state,
                    tiles_done=state.tiles_done + 1,
                    pixels_done=state.pixels_done + core.area,
                )
                if progress is not None:
                    progress(state)

    def _direction(
        self, what: Any, model: RecordedModel, options: Options, source: Scene
    ) -> tuple[FloatArray, str]:
        """The direction that is looked for, of unit length, and what it is called."""
        if isinstance(what, str):
            if not what.strip():
                raise OptionError("similar to nothing: give words, a point or a polygon")
            templates = load_templates(options.templates)
            return embed_queries(model, [what.strip()], templates)[0], what.strip()
        shape = what
        if not isinstance(what, BaseGeometry):
            try:
                shape = shapely.Point(*(float(value) for value in what))
            except (TypeError, ValueError):
                raise OptionError(
                    f"similarity to a {type(what).__name__} is not known; give words, a point or a "
                    "polygon"
                ) from None
        grid = source.grid.drawn
        pixels = shapely.transform(shape, lambda at: np.column_stack(grid.to_pixels(*at.T)))
        here = pixels.intersection(shapely.box(0, 0, grid.width, grid.height))
        seen = seen_by_store(self._file, source.grid, str(model.device))
        tokens, shares = (None, None) if here.is_empty else tokens_in(here, seen)
        if tokens is None or shares is None or not len(shares):
            raise OptionError(
                "the place lies where the scene has no data; give it in the scene's CRS"
            )
        mean = shares @ tokens
        unit: FloatArray = (mean / np.linalg.norm(mean)).astype(np.float32)
        return unit, shape.wkt if shape.geom_type == "Point" else "a polygon"

    def opened(
        self, words: VocabularySource, options: Options, *, model: str | Model | None, device: str
    ) -> tuple[Segmenter, Scene, Aoi | None]:
        """A segmenter over the full tier, the scene, and the area of which the store knows."""
        if "full" not in self.tiers:
            raise OptionError(
                f"{self.path} holds no full tier, which this reads; encode the scene with --tier "
                "full"
            )
        source, reading = self._open(None, None)
        chosen = with_measures(options, source)
        segmenter = self._segmenter(words, False, chosen, model, device)
        return segmenter, source, open_area(reading, source.grid)

    def refuse_reading(self, reading: Reading) -> None:
        """Refuse to read the scene otherwise than it was encoded.

        Raises
        ------
        OptionError
            If something is given otherwise; the message names it.
        """
        usual, own = Reading(), self._reading(None)
        for each in fields(Reading):
            given, settled = getattr(reading, each.name), getattr(own, each.name)
            if given not in (getattr(usual, each.name), settled):
                flag = choices(Reading)[each.name].flag or f"--{each.name.replace('_', '-')}"
                raise OptionError(
                    f"{flag} {shown(given)}: {self.path} was encoded with {shown(settled)}; leave "
                    f"{flag} out, or encode the scene anew"
                )

    # -- what is asked with ------------------------------------------------------------------

    def _named(self, device: str, model: str | Model | None = None) -> RecordedModel:
        return RecordedModel.of(self._file, device, self._moved_model if model is None else model)

    def _segmenter(
        self,
        words: VocabularySource,
        fast: bool | None,
        options: Options,
        model: str | Model | None,
        device: str,
    ) -> RecordedSegmenter:
        fast = "full" not in self.tiers if fast is None else fast
        kind = FastSegmenter if fast else RecordedSegmenter
        named = self._named("cpu" if fast else device, model)
        return kind(self._file, named, Vocabulary.parse(words), options)

    def _pixels(self, segmenter: RecordedSegmenter, source: Scene, reading: Reading) -> PixelSource:
        """What is read beside the store: the scene, unless nothing looks at its colours."""
        chosen = segmenter.options
        if segmenter.tier == "full" or chosen.refine or chosen.regions_of_scene:
            return source
        area = open_area(replace(reading, aoi=self.facts["area"]), source.grid)
        whole = Window(0, 0, *source.shape)
        return StoredPixels(self._file, whole if area is None else area.window)

    # -- the scene ---------------------------------------------------------------------------

    def _scene_path(self, given: str | Path | None) -> str:
        given = self._moved_scene if given is None else given
        if given is not None:
            return as_given(given)
        path = str(self.facts["scene"]["path"])
        kept = self.path / Path(path).name
        if kept.name in (MOSAIC, STACK) and is_there(kept):  # it moves with the store
            return str(kept)
        if "://" not in path and not path.startswith("/vsi") and not is_there(path):
            raise not_found(SceneError)(
                f"{self.path}: its scene {shown(path)} is not there; say where it lies with --scene"
            )
        return path

    def _reading(self, aoi: Any) -> Reading:
        kept = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.facts["scene"]["reading"].items()
        }
        wanted = self.facts["area"] if aoi is None else area_as_text(aoi)
        # The bands of one scene were put together when it was encoded.
        return Reading(**(kept | {"aoi": wanted, "rgb": False}))

    def _open(self, scene: str | Path | None, aoi: Any) -> tuple[Scene, Reading]:
        reading = self._reading(aoi)
        source = open_scene(self._scene_path(scene), reading)
        self._check_scene(source, reading)
        return source, reading

    def _check_scene(self, source: Scene, reading: Reading) -> None:
        """Refuse another scene, and an area of which the store knows too little."""
        if _content(source.fingerprint()) != _content(self.facts["scene"]["fingerprint"]):
            raise SceneError(
                f"{source.path} is not, or no longer, the scene that {self.path} was made of; "
                "encode it anew"
            )
        area = open_area(reading, source.grid)
        if self.facts["area"] is None or reading.aoi == self.facts["area"] or area is None:
            return
        known = Aoi.open(self.facts["area"], source.grid)
        if not known.outline.buffer(_SLIP).covers(area.outline):
            raise OptionError(
                f"--aoi reaches beyond the area that {self.path} was encoded for; encode the "
                "scene with a larger one"
            )


_SLIP = 1e-6
"""Pixels by which an area may seem to reach beyond itself."""


def _content(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What makes scenes the same, wherever they lie."""
    known = {name: value for name, value in fingerprint.items() if name not in ("path", "files")}
    for name in ("transform", "shape"):
        known[name] = list(known[name])
    return known | {"files": [list(one[1:]) for one in fingerprint["files"]]}
