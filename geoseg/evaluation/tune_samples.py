"""Tune on scenes: only the parts that have labels are segmented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg._fields import as_made
from geoseg.ask import Store, is_store, open_store
from geoseg.bars import shown
from geoseg.errors import EvaluationError, OptionError, SceneError
from geoseg.evaluation.metrics import IGNORE, CountArray
from geoseg.evaluation.pairs import truths_of
from geoseg.evaluation.truth import Truth, open_truth
from geoseg.evaluation.tune import LabelledPixels, Settings, Tuner, Tuning
from geoseg.evaluation.values import ClassNumbers, ValueMap, ValueMapSource
from geoseg.inference.segmenter import Segmenter
from geoseg.io.aoi import Aoi
from geoseg.io.array import ArrayScene, taken_by_arrays
from geoseg.io.objects import is_array, on_disk
from geoseg.io.scene import SceneLike, expand_scenes, open_scene
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Reading
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.tiling.tiles import Tile
from geoseg.types import BoolArray

_TILE = 448


@dataclass(frozen=True)
class LabelledScene:
    """A scene and where its labels are."""

    scene: SceneLike
    truth: Path
    segmenter: Segmenter | None = None
    """What gives its logits, where that is its own."""
    area: Aoi | None = None
    """Outside of which nothing is known of it."""


def tune_on_scenes(
    scenes: str | Path | Sequence[str | Path] | Any,
    truth: str | Path | Any,
    classes: VocabularySource,
    *,
    model: str | Model | None = None,
    device: str = "auto",
    options: Options | Mapping[str, Any] | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    background: str | None = None,
    truth_values: ValueMapSource | None = None,
    truth_column: str | None = None,
    truth_layer: str | None = None,
    outside: str = "ignore",
    per_class: int = 1000,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Tuning:
    """Suggest settings for a vocabulary from a few labels.

    Parameters
    ----------
    scenes
        Labelled chips or scenes: files, folders or patterns, one or several; or one array. Or
        stores, of which `geoseg.encode` has kept the full tier: nothing is encoded again.
    truth
        Labels as :func:`geoseg.evaluation.evaluate` takes them, on the scenes' grids; points work
        too. One file, a folder with one of the same name for each scene, an array or a
        GeoDataFrame.
    classes
        Vocabulary to start from.
    model, device
        Specification or loaded model, see `geoseg.load_model`; a store has its own.
    options
        How to infer; what is settled with a store cannot be changed. Its CLS bias and threshold
        are what the suggestion is compared with.
    reading
        Bands, stretch and working GSD.
    background
        Class for pixels below a threshold; without it no threshold is suggested.
    truth_values, truth_column, truth_layer, outside
        As for :func:`geoseg.evaluation.evaluate`.
    per_class
        About how many pixels are drawn of each class.
    progress
        Called with the number of tiles done and in all; True shows a bar.

    Returns
    -------
    Tuning
        Suggested CLS bias, threshold and offsets of classes, and scores before and after.

    Raises
    ------
    EvaluationError
        If scenes and labels do not fit, or labels are too few or too close together.
    SceneError, VocabularyError, ModelError, OptionError
        If the inputs cannot be used.
    """
    given = as_made(Options, options)
    read = as_made(Reading, reading)
    with on_disk(truth) as (known,), shown(progress, "tune", "tile") as said:
        return _tune(
            _labelled(scenes, Path(known), read, classes, model, device, given),
            classes,
            DEFAULT_MODEL if model is None else model,
            device,
            given,
            background,
            ValueMap.of(truth_values),
            truth_column,
            truth_layer,
            outside,
            per_class,
            said,
        )


def _labelled(
    scenes: Any,
    truth: Path,
    reading: Reading,
    classes: VocabularySource,
    model: str | Model | None,
    device: str,
    options: Options,
) -> list[LabelledScene]:
    if is_array(scenes):
        array = ArrayScene.open(scenes, **taken_by_arrays(reading))
        return [LabelledScene(array, truth)]
    given = [scenes] if isinstance(scenes, str | Path | Store) else scenes
    stores = [one for one in given if isinstance(one, Store) or is_store(one)]
    if stores:
        if len(stores) < len(given):
            raise SceneError("stores and scenes cannot be tuned on together; give one kind")
        return _stored(stores, truth, reading, classes, model, device, options)
    if not all(isinstance(scene, str | Path) for scene in given):
        raise SceneError("scenes to tune on are paths, or one xarray.DataArray or Dataset")
    paths = [Path(path) for path in expand_scenes([str(scene) for scene in given])]
    return [
        LabelledScene(open_scene(path, reading), truth_path)
        for path, truth_path in truths_of(paths, truth)
    ]


def _stored(
    given: Sequence[Any],
    truth: Path,
    reading: Reading,
    classes: VocabularySource,
    model: str | Model | None,
    device: str,
    options: Options,
) -> list[LabelledScene]:
    """Stores, each with what gives its logits."""
    stores = [one if isinstance(one, Store) else open_store(one) for one in given]
    for store in stores:
        store.refuse_reading(reading)
        for name, mine in stores[0].facts["options"].items():
            if store.facts["options"][name] != mine:
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"{stores[0].path} and {store.path} differ in {flag}")
    vocabulary = Vocabulary.parse(classes)
    made = []
    for store, (_, path) in zip(stores, truths_of([s.path for s in stores], truth), strict=True):
        segmenter, source, area = store.opened(vocabulary, options, model=model, device=device)
        made.append(LabelledScene(source, path, segmenter, area))
    return made


def _tune(
    labelled: Sequence[LabelledScene],
    classes: VocabularySource,
    model: str | Model,
    device: str,
    given: Options,
    background: str | None,
    values: ValueMap | None,
    truth_column: str | None,
    truth_layer: str | None,
    outside: str,
    per_class: int,
    progress: Callable[[int, int], None] | None,
) -> Tuning:
    if given.vocabulary_steps:
        raise OptionError("tuning works on the words of the class file; leave vocabulary steps out")
    if given.regions is not None:
        raise OptionError("tuning decides pixel by pixel; leave regions out")
    vocabulary = Vocabulary.parse(classes)
    if vocabulary.hidden:
        raise OptionError("tuning works on the words of classes; leave hidden classes out")
    segmenter = labelled[0].segmenter if labelled else None
    if segmenter is None:
        loaded = load_model(model, device=device) if isinstance(model, str) else model
        segmenter = Segmenter(loaded, vocabulary, given)
    resolved = segmenter.options
    tuner = Tuner(vocabulary, logit_scale=resolved.logit_scale, background=background)
    pixels = collect_pixels(
        labelled,
        segmenter,
        values=values,
        column=truth_column,
        layer=truth_layer,
        outside=outside,
        per_class=per_class,
        progress=progress,
    )
    return tuner.tune(pixels, Settings(resolved.cls_bias, resolved.threshold))


def collect_pixels(
    scenes: Sequence[LabelledScene],
    segmenter: Segmenter,
    *,
    values: ValueMap | None = None,
    column: str | None = None,
    layer: str | None = None,
    outside: str = "ignore",
    per_class: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledPixels:
    """Draw labelled pixels and work out their logits.

    The logits are those that the whole scene would give: each tile sees all windows that touch it.

    Parameters
    ----------
    scenes
        Scenes with labels; one group each, or blocks of the one scene.
    segmenter
        What gives the logits; its CLS bias does not matter.
    values
        What values of the truth mean.
    column
        Column of vector truths with the class.
    layer
        Layer of vector truths.
    outside
        Class of pixels that no feature of a vector truth covers.
    per_class
        About how many pixels are drawn of each class; the same ones every time.
    progress
        Called with the number of tiles done and in all.

    Raises
    ------
    EvaluationError
        If no pixel is labelled.
    """
    vocabulary = segmenter.vocabulary
    numbers = ClassNumbers(vocabulary.names, [entry.prompts for entry in vocabulary.classes])
    opened = [
        _Labels(
            place,
            entry.scene,
            open_truth(entry.truth, entry.scene.grid, numbers, values, column, outside, layer),
            entry.segmenter or segmenter,
            entry.area,
        )
        for place, entry in enumerate(scenes)
    ]
    try:
        totals = sum(
            (entry.count(len(numbers.names)) for entry in opened),
            start=np.zeros(len(numbers.names), np.int64),
        )
        if not totals.any():
            raise EvaluationError(
                "no valid pixel of the scenes is labelled with one of the classes"
            )
        share = np.minimum(per_class / np.maximum(totals, 1), 1.0)
        work = [(entry, tile) for entry in opened for tile in entry.tiles]
        parts = []
        for done, (entry, tile) in enumerate(work):
            if progress is not None:
                progress(done, len(work))
            part = entry.draw(tile, share, alone=len(scenes) == 1)
            if part is not None:
                parts.append(part)
        if progress is not None:
            progress(len(work), len(work))
    finally:
        for entry in opened:
            entry.close()
    return _joined(parts, totals)


class _Labels:
    """Labelled pixels of one scene, tile by tile."""

    def __init__(
        self,
        place: int,
        scene: SceneLike,
        truth: Truth,
        segmenter: Segmenter,
        area: Aoi | None = None,
    ) -> None:
        self._place = place
        self._scene = scene
        self._area = area
        self._truth = truth
        self._segmenter = segmenter
        height, width = scene.shape
        self._plan = segmenter.plan((height, width), _TILE)
        # A block as wide as a window keeps pixels that share a window mostly together.
        self._block = segmenter.options.window or max(max(height, width) // 3, 1)
        self.tiles: list[Tile] = []

    def count(self, classes: int) -> CountArray:
        """Count the labelled pixels of each class, and remember where there are any."""
        total: CountArray = np.zeros(classes, np.int64)
        for tile in self._plan:
            truth = self._truth.read(tile.core)
            if (truth == IGNORE).all():
                continue
            truth = truth[self._valid(tile) & (truth != IGNORE)]
            if len(truth):
                total += np.bincount(truth, minlength=classes)
                self.tiles.append(tile)
        return total

    def draw(
        self,
        tile: Tile,
        share: npt.NDArray[np.float64],
        *,
        alone: bool,
    ) -> LabelledPixels | None:
        """Draw pixels of a tile at random, each class at its own share."""
        truth = self._truth.read(tile.core)
        rng = np.random.default_rng((self._place, tile.index))
        known = (truth != IGNORE) & self._valid(tile)
        drawn = known & (rng.random(truth.shape) < share[truth])
        if not drawn.any():
            return None
        rows, cols = np.nonzero(drawn)
        block = self._scene.read(tile.read)
        inside = tile.core.relative_to(tile.read)
        patch, cls = (
            logits[:, rows + inside.row, cols + inside.col].T
            for logits in self._segmenter.patch_and_cls_logits(
                block, (tile.read.row, tile.read.col)
            )
        )
        group = np.full(len(rows), self._place, np.int64)
        if alone:
            across = -(-self._scene.shape[1] // self._block)
            group = (rows + tile.core.row) // self._block * across
            group = group + (cols + tile.core.col) // self._block
        return LabelledPixels(patch, cls, truth[drawn], np.ones(len(rows)), group.astype(np.int64))

    def _valid(self, tile: Tile) -> BoolArray:
        valid = self._scene.read(tile.core).valid
        return valid if self._area is None else valid & self._area.mask(tile.core)

    def close(self) -> None:
        self._truth.close()


def _joined(parts: Sequence[LabelledPixels], totals: CountArray) -> LabelledPixels:
    """Put parts together; every pixel stands for its share of its class."""
    columns = ([getattr(part, f.name) for part in parts] for f in fields(LabelledPixels))
    joined = LabelledPixels(*map(np.concatenate, columns))
    drawn = np.bincount(joined.truth, minlength=len(totals))
    return replace(joined, weight=totals[joined.truth] / drawn[joined.truth])
