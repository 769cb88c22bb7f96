"""A few corrected points, and the map that follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
from shapely.geometry.base import BaseGeometry

from geoseg._files import local_target
from geoseg._inputs import is_there, shown
from geoseg.ask import Store
from geoseg.errors import OptionError, OutputError, SceneError, VocabularyError, warn
from geoseg.inference.lane import TilePixels
from geoseg.io.grid import Grid, pieces
from geoseg.io.labels import LabelRaster
from geoseg.options import Options, Products
from geoseg.pooling import examples_on
from geoseg.probe import Places, Probe
from geoseg.run.folder import OutputFolder
from geoseg.run.report import scene_report
from geoseg.run.result import ProgressCallback, Run
from geoseg.run.tiles import PixelSource
from geoseg.store.pool import (
    Survey,
    directions_at,
    seen_by_store,
    survey,
    survey_of_field,
    tokens_in,
)
from geoseg.store.recorded import RecordedSegmenter
from geoseg.text.embedding import embed_queries
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary
from geoseg.tiling.tiles import TilePlan
from geoseg.types import FloatArray, Window

_PIXELS_AT_A_TIME = 2**22


@dataclass(frozen=True)
class Correction:
    """What corrected places made of a map.

    Parameters
    ----------
    run
        The new map.
    vocabulary
        What it was made with: the same words, with offsets and examples.
    before
        Share of the corrected places that the old map has right, from 0 to 1.
    after
        Share that is right where each was left out, by what was learnt from the others.
    spread
        How far a usual pixel's log odds might be moved, as a standard deviation; 0 where nothing
        that was learnt is better than the words.
    moved
        Pixels by their class before and after, of those that changed.
    """

    run: Run
    vocabulary: Vocabulary
    before: float
    after: float
    spread: float
    moved: dict[tuple[str, str], int]


def correct(
    store: Store,
    map: str | Path,  # noqa: A002
    points: str | Path | gpd.GeoDataFrame,
    out: str | Path,
    *,
    column: str | None = None,
    products: Products | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Correction:
    """Make a map anew from a few places whose class a person knows.

    Offsets of the classes, and directions from the places beside the words, are fitted with a
    strong belief that the map is right as it is. How strong is what left-out places speak for, none
    of whose classes may be told worse; where nothing is better, the words stay as they are.

    Parameters
    ----------
    store
        Of the scene.
    map
        Folder of a map of it, with its ``run.json``.
    points
        Vector file or GeoDataFrame of points or polygons with a column of class names.
    out
        Folder of the new map.
    column
        The one with the class names; see `geoseg.examples`.
    products, overwrite, progress
        As for `Store.to_files`.

    Returns
    -------
    Correction
        The new map, and what was learnt.

    Raises
    ------
    GeosegError
        If the map is not one of the store's scene, or the points are of no class of it.
    """
    made, target = mapped_by(store, Path(map)), local_target(out)
    if target.exists() and target.samefile(map):
        raise OutputError(f"{shown(target)} is the map that is corrected; give another --out")
    OutputFolder(target).check(overwrite=overwrite, resume=False)
    known = _Known.of(store, made, points, column)
    found = known.probe.best()
    corrected = known.vocabulary(found.spread)
    run = store.to_files(
        corrected,
        target,
        fast=made.fast,
        options=made.options,
        aoi=made.aoi,
        products=products,
        overwrite=overwrite,
        progress=progress,
    )
    moved = _moved(Path(map) / "labels.tif", target / "labels.tif", corrected.names)
    return Correction(run, corrected, found.before, found.after, found.spread, moved)


@dataclass(frozen=True)
class Mapped:
    """How a map of a store's scene was made."""

    vocabulary: Vocabulary
    options: Options
    fast: bool
    aoi: Any


def mapped_by(store: Store, folder: Path) -> Mapped:
    """What a store has to be asked to make a map once more.

    Raises
    ------
    SceneError
        If there is no map.
    OptionError
        If it is of another scene, was made with other weights or of other colours, or in regions
        that are gone.
    """
    try:
        report = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        same = report["model"]["weights_sha256"] == store.facts["model"]["weights_sha256"]
        grid, reading = report["size"], dict(report["reading"])
        options = _options(report)
        sources = {one.get("sha256") for one in report["sources"]} - {None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneError(f"{shown(folder)} holds no map with its run.json") from error
    if not same or not grid:
        raise OptionError(
            f"{shown(folder)} was mapped with other weights than {store.path} was encoded with"
        )
    kept = store.facts["scene"]["fingerprint"]["files"]
    files = {digest for *_, digest in kept if isinstance(digest, str)}
    if files and sources and not files & sources:
        raise OptionError(
            f"{shown(folder)} is a map of {shown(report['scene'])}, and {store.path} was made of "
            f"another scene, {shown(store.facts['scene']['path'])}"
        )
    _refuse_reading(store, folder, reading)
    if options.regions_given and not is_there(options.regions):
        raise OptionError(
            f"{shown(folder)} was mapped in regions that are not there any more: "
            f"{shown(options.regions)}; map it anew, with regions of a file"
        )
    known = report["model"].get("store")
    fast = "full" not in store.tiers if known is None else known["tier"] == "fast"
    return Mapped(Vocabulary.parse(folder / "run.json"), options, fast, reading.get("aoi"))


_SEEN = {
    "bands": "--bands", "limits": "--stretch", "gsd": "--gsd", "fill": "--nodata",
    "ignore_alpha": "--ignore-alpha", "crs": "--crs", "mask": "--mask",
    "mask_values": "--mask-values", "mask_layer": "--mask-layer",
}  # fmt: skip
"""What of the reading in a record the labels depend on, and how the user says it."""


def _refuse_reading(store: Store, folder: Path, reading: Mapping[str, Any]) -> None:
    """Refuse a map of the scene as it was read otherwise."""
    source, how = store._open(None, None)
    own = json.loads(json.dumps(scene_report(source, how, source.grid)["reading"]))
    for name, flag in _SEEN.items():
        said = [
            one[name] if name != "mask" or one[name] is None else Path(one[name]).name
            for one in (reading, own)
            if name in one
        ]
        if len(said) == 2 and said[0] != said[1]:
            told = [one["stretch"] if name == "limits" else one[name] for one in (reading, own)]
            mapped, encoded = map(shown, said if told[0] == told[1] else told)
            raise OptionError(
                f"{shown(folder)} was mapped with {flag} {mapped}, and {store.path} was encoded "
                f"with {encoded}; make the map, or the store, anew"
            )


def _options(report: dict[str, Any]) -> Options:
    """What the map was made with."""
    given: dict[str, Any] = {}
    for each in fields(Options):
        if each.name in report["options"] and each.name != "batch_size":
            value = report["options"][each.name]
            given[each.name] = tuple(value) if isinstance(value, list) else value
    return Options(**given)


@dataclass(frozen=True, eq=False)
class _Known:
    """What corrected places say of the classes of a map."""

    before: Vocabulary
    words: FloatArray
    """``(N, D)`` unit vectors of all its prompts."""
    survey: Survey
    probe: Probe

    @classmethod
    def of(
        cls,
        store: Store,
        made: Mapped,
        points: str | Path | gpd.GeoDataFrame,
        column: str | None,
    ) -> _Known:
        """Ask the store what the map's words score at the places, and what these look like."""
        source, reading = store._open(None, None)
        classes = made.vocabulary
        found = examples_on(points, source.grid, column, may_be_empty=True)
        placed = _placed(found, source.grid, classes)
        segmenter = store._segmenter(
            classes, made.fast, replace(made.options, refine=()), None, "cpu"
        )
        looks, survey = _looks(store, placed, source.grid, segmenter.options.cls_bias)
        pixels = store._pixels(segmenter, source, reading)
        query_classes = np.asarray(segmenter._decision.query_classes.cpu().numpy())
        truth, logits, seen = [], [], []
        for (index, pixel, _), look in zip(placed, looks, strict=True):
            asked = _logits_at(segmenter, pixels, pixel)
            if asked is None or look is None or not np.isfinite(look).all():
                continue
            best = [
                asked[query_classes == k].max() + c.offset for k, c in enumerate(classes.classes)
            ]
            truth.append(index)
            logits.append(best)
            seen.append(look)
        if not truth:
            raise OptionError("all corrected places lie where the scene has no data")
        prompts = [word for entry in classes.classes for word in entry.prompts]
        words = np.zeros((0, len(survey.mean)), np.float32)
        if prompts:
            words = embed_queries(segmenter.model, prompts, load_templates(made.options.templates))
        places = Places(np.array(truth), np.array(logits, np.float64), np.array(seen))
        return cls(classes, words, survey, Probe(places, survey, segmenter.options.logit_scale))

    def vocabulary(self, spread: float) -> Vocabulary:
        """Classes as the places make them."""
        classes, hidden = self.before.classes, self.before.hidden
        lean = self.probe.lean(spread)
        return Vocabulary(lean.classes(classes, self.words, self.survey.mean), hidden)


_Placed = tuple[int, tuple[int, int], BaseGeometry]
"""Class of a place, a pixel in its middle, and its outline in pixels."""


def _placed(
    found: Sequence[tuple[str, BaseGeometry]], grid: Grid, classes: Vocabulary
) -> list[_Placed]:
    placed: list[_Placed] = []
    for name, outline in found:
        if name not in classes:
            raise VocabularyError(
                f"'{shown(name)}' is not a class of the map: {shown(', '.join(classes.names))}"
            )
        middle = outline.representative_point()
        pixel = min(int(middle.y), grid.height - 1), min(int(middle.x), grid.width - 1)
        placed.append((classes.names.index(classes[name].name), pixel, outline))
    names = {classes.names[index] for index, *_ in placed}
    if len(names) == 1 and len(classes) > 1:
        warn(
            f"all corrected places are '{shown(names.pop())}', which nothing holds back then; "
            "give some of other classes too, also where the map is right"
        )
    return placed


def _looks(
    store: Store, placed: Sequence[_Placed], grid: Grid, bias: float
) -> tuple[list[npt.NDArray[np.float64] | None], Survey]:
    """Mean token ``(D,)`` of each place, None where there is none, and of the scene."""
    file = store._file
    if "full" not in store.tiers:
        basis = file.read("fast/basis").astype(np.float64)
        pixels = np.array([pixel for _, pixel, _ in placed])
        return list(directions_at(file, pixels, grid) @ basis.T), survey_of_field(file)
    seen = seen_by_store(file, grid, "cpu").without_bias(bias)
    found = (tokens_in(outline, seen, len(placed)) for *_, outline in placed)
    means = [shares @ tokens / shares.sum() if len(shares) else None for tokens, shares in found]
    return means, survey(seen)


def _logits_at(
    segmenter: RecordedSegmenter, pixels: PixelSource, pixel: tuple[int, int]
) -> FloatArray | None:
    """Merged logits ``(Q,)`` of one pixel; None where there is no data."""
    layout, one = segmenter.store.layout, Window(*pixel, 1, 1)
    plan = TilePlan(segmenter.lattice(layout.height, layout.width), 1, one, alone=True)
    tile = plan[0]
    block = pixels.read(tile.read)
    keep = block.valid[one.relative_to(tile.read).slices()]
    if not keep.any():
        return None
    found: FloatArray = segmenter.core_logits(TilePixels(tile, block, keep))[0, 0]
    return found


def _moved(before: Path, after: Path, names: Sequence[str]) -> dict[tuple[str, str], int]:
    """How many pixels went from one class to another."""
    old, new = LabelRaster.open(before), LabelRaster.open(after)
    if old.grid.shape != new.grid.shape:
        return {}
    count = len(names)
    total = np.zeros((count, count), np.int64)
    width = old.grid.width
    for window in pieces(old.grid.window, max(1, _PIXELS_AT_A_TIME // width), width):
        one, other = old.read(window).ravel(), new.read(window).ravel()
        both = (one < count) & (other < count)
        pairs = one[both].astype(np.int64) * count + other[both]
        total += np.bincount(pairs, minlength=count * count).reshape(count, count)
    return {
        (names[k], names[j]): int(total[k, j])
        for k, j in zip(*np.nonzero(total), strict=True)
        if k != j
    }
