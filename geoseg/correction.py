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
import scipy.optimize
import scipy.special

from geoseg._files import local_target
from geoseg._inputs import is_there, shown
from geoseg.ask import Store
from geoseg.errors import OptionError, OutputError, SceneError, VocabularyError, warn
from geoseg.inference.lane import TilePixels
from geoseg.io.grid import pieces
from geoseg.io.labels import LabelRaster
from geoseg.options import Options, Products
from geoseg.pooling import Example, Mixing, examples_on
from geoseg.run.folder import OutputFolder
from geoseg.run.report import scene_report
from geoseg.run.result import ProgressCallback, Run
from geoseg.run.tiles import PixelSource
from geoseg.store.pool import seen_by_store, survey, tokens_in
from geoseg.store.recorded import RecordedSegmenter
from geoseg.text.vocabulary import Vocabulary, VocabularyClass
from geoseg.tiling.tiles import TilePlan
from geoseg.types import FloatArray, Window

SHARES = (0.0, 0.05, 0.1, 0.2, 0.35)
"""Of examples in the queries of words, that are tried."""
PRIORS = (0.0, 0.003, 0.01, 0.03)
"""Standard deviations of a class's offset before anything is known of it; 0 leaves it alone."""
_WORTH = 2
"""Places more that have to be right before words are touched: one of a few is chance."""
_FOLDS = 20
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
    share
        Of the examples in the queries, from 0 to 1.
    prior
        Standard deviation of the offsets, in units of cosines.
    moved
        Pixels by their class before and after, of those that changed.
    """

    run: Run
    vocabulary: Vocabulary
    before: float
    after: float
    share: float
    prior: float
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
    strong belief that the map is right as it is. How strong, and how much of the directions, is
    what tells most places right when each is left out in turn; if nothing tells two more of them
    right than the map does, the words stay as they are.

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
    places = _places(store, points, column, made.vocabulary)
    fit = _Fit.of(store, made.vocabulary, made.options, places, fast=made.fast)
    before, after, share, prior = fit.best()
    corrected = fit.vocabulary(range(len(places)), share, prior)
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
    return Correction(run, corrected, before, after, share, prior, moved)


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
class _Place:
    """A corrected place."""

    name: str
    pixel: tuple[int, int]
    example: Example | None
    """Its tokens, where the store has them."""


def _places(
    store: Store, points: str | Path | gpd.GeoDataFrame, column: str | None, classes: Vocabulary
) -> list[_Place]:
    source, _ = store._open(None, None)
    seen = None
    if "full" in store.tiers:
        seen = seen_by_store(store._file, source.grid, "cpu")
    made, found = [], examples_on(points, source.grid, column, may_be_empty=True)
    for name, outline in found:
        if name not in classes:
            raise VocabularyError(
                f"'{shown(name)}' is not a class of the map: {shown(', '.join(classes.names))}"
            )
        middle = outline.representative_point()
        row = min(int(middle.y), source.grid.height - 1)
        col = min(int(middle.x), source.grid.width - 1)
        example = None
        if seen is not None:
            tokens, shares = tokens_in(outline, seen, len(found))
            example = Example(name, tokens, shares) if len(shares) else None
        made.append(_Place(classes[name].name, (row, col), example))
    if len({place.name for place in made}) == 1 and len(classes) > 1:
        warn(
            f"all corrected places are '{shown(made[0].name)}', which nothing holds back then; "
            "give some of other classes too, also where the map is right"
        )
    return made


@dataclass(frozen=True, eq=False)
class _Fit:
    """Corrected places, and what classes could become by them."""

    classes: Sequence[VocabularyClass]
    places: Sequence[_Place]
    truth: npt.NDArray[np.int64]
    """Class of each place."""
    logits: FloatArray
    """``(n, Q)`` of the map's own queries there."""
    query_classes: npt.NDArray[np.int64]
    scale: float
    hidden: tuple[VocabularyClass, ...]
    mixing: Mixing | None
    """None without tokens, or if there are examples in the classes already."""

    @classmethod
    def of(
        cls,
        store: Store,
        vocabulary: Vocabulary,
        options: Options,
        places: Sequence[_Place],
        *,
        fast: bool,
    ) -> _Fit:
        """Ask the store what the map's words score at the places."""
        source, reading = store._open(None, None)
        plain = replace(options, refine=())
        segmenter = store._segmenter(vocabulary, fast, plain, None, "cpu")
        pixels = store._pixels(segmenter, source, reading)
        found = [_logits_at(segmenter, pixels, place.pixel) for place in places]
        kept = [(place, one) for place, one in zip(places, found, strict=True) if one is not None]
        if not kept:
            raise OptionError("all corrected places lie where the scene has no data")
        some = [place for place, _ in kept]
        mixing = None
        has_words = all(entry.prompts and not entry.example for entry in vocabulary.classes)
        has_words &= len(segmenter.text_embeddings) == len(vocabulary.queries)  # none is hidden
        if has_words and all(place.example is not None for place in some):
            seen = seen_by_store(store._file, source.grid, "cpu")
            mixing = Mixing(vocabulary.classes, segmenter.text_embeddings, *survey(seen))
        names = vocabulary.names
        return cls(
            vocabulary.classes,
            some,
            np.array([names.index(place.name) for place in some]),
            np.stack([one for _, one in kept]),
            np.asarray(segmenter._decision.query_classes.cpu().numpy()),
            segmenter.options.logit_scale,
            vocabulary.hidden,
            mixing,
        )

    def best(self) -> tuple[float, float, float, float]:
        """Part that is right before and after, and the share and prior that make it so."""
        before = float(np.mean(self._told(self.classes, range(len(self.places))) == self.truth))
        best = (before, before, 0.0, 0.0)
        least = before + (_WORTH - 0.5) / len(self.places)
        for share in SHARES if self.mixing is not None else (0.0,):
            for prior in PRIORS:
                after = self._left_out(share, prior)
                if after > max(best[1], least):
                    best = (before, after, share, prior)
        return best

    def _left_out(self, share: float, prior: float) -> float:
        """Part of the places that is told right by the others."""
        count = len(self.places)
        folds = min(count, _FOLDS)
        right = np.zeros(count, bool)
        for fold in range(folds):
            test = range(fold, count, folds)
            train = [k for k in range(count) if k % folds != fold]
            classes = self._classes(train, share, prior)
            right[list(test)] = self._told(classes, test) == self.truth[list(test)]
        return float(right.mean())

    def vocabulary(self, some: Sequence[int], share: float, prior: float) -> Vocabulary:
        """Classes as some places make them."""
        return Vocabulary(tuple(self._classes(some, share, prior)), self.hidden)

    def _classes(
        self, some: Sequence[int], share: float, prior: float
    ) -> Sequence[VocabularyClass]:
        classes = self.classes
        if share and some:
            assert self.mixing is not None
            examples = [e for k in some if (e := self.places[k].example) is not None]
            classes = self.mixing.classes(examples, share)
        if not prior or not some:
            return classes
        own, truth = self._scores(classes, some), self.truth[list(some)]

        def cost(offsets: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            scaled = self.scale * (own + offsets)
            likely = scaled - scipy.special.logsumexp(scaled, axis=1, keepdims=True)
            slope = self.scale * np.exp(likely)
            slope[np.arange(len(truth)), truth] -= self.scale
            loss = -likely[np.arange(len(truth)), truth].sum()
            spread = offsets / prior**2
            return float(loss + (offsets * spread).sum() / 2), slope.sum(0) + spread

        found = scipy.optimize.minimize(cost, np.zeros(len(classes)), jac=True, method="L-BFGS-B")
        return [
            replace(entry, offset=float(np.clip(round(entry.offset + shift, 6), -1, 1)))
            for entry, shift in zip(classes, found.x, strict=True)
        ]

    def _scores(
        self, classes: Sequence[VocabularyClass], some: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """Best logit ``(n, K)`` of every class at some places."""
        logits = self.logits[list(some)].astype(np.float64)
        if self.mixing is not None and self.mixing.vectors is not None:
            for index, entry in enumerate(classes):
                if entry.example:
                    own = self.query_classes == index
                    example = np.array(entry.example)
                    mixed = (1 - entry.share) * self.mixing.vectors[own] + entry.share * example
                    at = np.array([self._mean(k) @ example for k in some])
                    score = (1 - entry.share) * logits[:, own] + entry.share * at[:, None]
                    logits[:, own] = score / np.linalg.norm(mixed, axis=1)
        best = np.full((len(logits), len(classes)), -np.inf)
        for index, entry in enumerate(classes):
            best[:, index] = logits[:, self.query_classes == index].max(1) + entry.offset
        return best

    def _mean(self, place: int) -> npt.NDArray[np.float64]:
        example = self.places[place].example
        assert example is not None
        return example.mean

    def _told(self, classes: Sequence[VocabularyClass], some: Sequence[int]) -> Any:
        return self._scores(classes, some).argmax(1)


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
