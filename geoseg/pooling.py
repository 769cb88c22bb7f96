"""Examples in place of words, or beside them: "more of this"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
import torch
import torch.nn.functional as F
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from geoseg._address import as_given
from geoseg._fields import as_made
from geoseg._inputs import shown
from geoseg.ask import Store
from geoseg.errors import OptionError, SceneError, VocabularyError, warn
from geoseg.inference.merge import blend_weight
from geoseg.io.grid import Grid
from geoseg.io.scene import Scene, open_scene
from geoseg.io.vectors import lay_polygons, read_polygons
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.model.vision import DenseFeatures
from geoseg.options import Options, Reading
from geoseg.runtime.gdal import bounded_cache
from geoseg.store.encoding import WORDS, Encoding
from geoseg.store.recorded import RecordedModel
from geoseg.text.embedding import embed_queries
from geoseg.text.queries import Queries
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary, VocabularyClass, VocabularySource, fill_colors
from geoseg.tiling.lattice import Lattice
from geoseg.types import FloatArray, Window

_COLUMNS = ("class", "class_name", "classname", "name", "label")
"""Columns that may say which class an example is of, the likeliest first."""
_SURVEYED = {"store": 256, "scene": 32}
"""Windows that say what the scene is like as a whole: read from a store, or encoded for it."""
_DIGITS = 6


def examples(
    scene: str | Path | Scene | Store,
    where: str | Path | gpd.GeoDataFrame,
    classes: VocabularySource | None = None,
    *,
    column: str | None = None,
    share: float | None = None,
    model: str | Model = DEFAULT_MODEL,
    options: Options | Mapping[str, Any] | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Vocabulary:
    """Make queries of what is to be seen where examples lie.

    The unit features in the examples of a class are averaged, the scene's own mean is taken away,
    and what is left is a direction that speaks for the class: by itself where the class has no
    words, else mixed into the queries of its words. What comes back is a vocabulary like any other:
    for this scene, for others that are mapped with the same model, and for ``.save("….toml")``.

    Parameters
    ----------
    scene
        The scene that the examples lie in, or its store, which need not be encoded again.
    where
        Vector file or GeoDataFrame of polygons or points with a column of class names.
    classes
        As for `geoseg.segment`; None makes a class of every name in the file, in the order in
        which they appear, known by its examples alone.
    column
        The one with the class names; by default ``class``, or one that is called like that.
    share
        Of the example in the queries of a class that has words too, from 0 to 1; None tries some
        and takes the one with which each example is told best by the others. Where words do that
        as well by themselves, they are left as they are.
    model, options, reading, device
        As for `geoseg.segment`; a store has its own, and of the options only templates count.

    Raises
    ------
    GeosegError
        If examples lie beside the scene, are of no class, or cannot be read.

    Warns
    -----
    GeosegWarning
        Where an example is smaller than a patch, or lies beside the scene.
    """
    if share is not None and not 0 < share <= 1:
        raise OptionError(f"share is {shown(share)}; give a number above 0, up to 1")
    chosen = as_made(Options, options)
    with bounded_cache():
        if isinstance(scene, Store):
            seen = _of_store(scene, device)
        else:
            loaded = model if isinstance(model, Model) else load_model(model, device=device)
            seen = _of_scene(scene, loaded, chosen, as_made(Reading, reading))
        found = _collected(_examples(where, seen.grid, column), seen)
        survey = _survey(seen)
    names = list(dict.fromkeys(one.name for one in found))
    if classes is None:
        colors = fill_colors(names, [None] * len(names))
        parts = [
            VocabularyClass(name, (), color, example=(1.0,))
            for name, color in zip(names, colors, strict=True)
        ]
    else:
        parts = list(Vocabulary.parse(classes).classes)
    listed = {entry.name.casefold() for entry in parts}
    for name in names:
        if name.casefold() not in listed:
            raise VocabularyError(
                f"{_told(where)}: '{shown(name)}' is not one of the classes: "
                f"{shown(', '.join(entry.name for entry in parts))}; add it to --classes, or leave "
                "its examples out"
            )
    words = [word for entry in parts for word in entry.prompts]
    templates = load_templates(chosen.templates)
    vectors = embed_queries(seen.model, words, templates) if words else None
    mixing = _Mixing(parts, vectors, *survey)
    return Vocabulary(mixing.classes(found, mixing.best_share(found) if share is None else share))


@dataclass(frozen=True)
class _Seen:
    """Windows of a scene whose tokens can be had."""

    grid: Grid
    lattice: Lattice
    model: Model
    tokens: Callable[[Sequence[Window]], DenseFeatures]
    holds: Callable[[Window], bool]
    """Whether a window has data."""
    padding: tuple[int, int, int, int]
    blend: Any
    surveyed: int


@dataclass(frozen=True, eq=False)
class _Example:
    """The tokens of one example."""

    name: str
    tokens: npt.NDArray[np.float64]
    """``(n, D)``, of unit length."""
    shares: npt.NDArray[np.float64]
    """``(n,)`` how much of each counts."""

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Of the tokens."""
        return np.asarray(self.shares @ self.tokens / self.shares.sum())


def _of_store(store: Store, device: str) -> _Seen:
    file = store._file
    if "full" not in store.tiers:
        raise OptionError(
            f"{store.path} holds no full tier, whose tokens examples are made of; encode the scene "
            "with --tier full, or give the scene"
        )
    source, _ = store._open(None, None)
    layout, patch = file.layout, file.facts["model"]["patch"]
    height, width = layout.lattice.window_shape
    if layout.window:
        down, across = layout.grid[0] * patch - height, layout.grid[1] * patch - width
    else:
        down, across = -(height % patch), -(width % patch)
    before = (max(across, 0) // 2, max(down, 0) // 2)
    padding = (before[0], across - before[0], before[1], down - before[1])
    cls, lattice = file.cls_tokens, layout.lattice

    def holds(window: Window) -> bool:
        row = int(lattice.row_starts.searchsorted(window.row))
        return bool(np.isfinite(cls[row, int(lattice.col_starts.searchsorted(window.col)), 0]))

    named = RecordedModel.of(file, device)
    return _Seen(
        source.grid, lattice, named, file.tokens, holds, padding, file.facts["options"]["blend"],
        _SURVEYED["store"],
    )  # fmt: skip


def _of_scene(scene: str | Path | Scene, model: Model, options: Options, reading: Reading) -> _Seen:
    if not isinstance(scene, str | Path | Scene):
        raise SceneError(f"a scene is a path or a store, not {type(scene).__name__}")
    source = scene if isinstance(scene, Scene) else open_scene(as_given(scene), reading)
    encoding = Encoding(model, WORDS, options)
    lattice = encoding.lattice(*source.shape)
    padding = encoding._padding(lattice.window_shape)

    def tokens(places: Sequence[Window]) -> DenseFeatures:
        images = torch.stack([encoding.encoder.normalise(source.read(one)) for one in places])
        return encoding.encode(F.pad(images, padding))

    return _Seen(
        source.grid, lattice, model, tokens, lambda window: not source.is_empty(window), padding,
        encoding.options.blend, _SURVEYED["scene"],
    )  # fmt: skip


# -- examples on the scene -----------------------------------------------------------------------


def _told(where: Any) -> str:
    return shown(as_given(where)) if isinstance(where, str | Path) else "the examples"


def _examples(
    where: str | Path | gpd.GeoDataFrame, grid: Grid, column: str | None
) -> list[tuple[str, BaseGeometry]]:
    """Class and outline in pixels of every example that lies on the scene."""
    if isinstance(where, str | Path):
        laid = read_polygons(where, grid, what="examples", layer=None, points=True)
    else:
        laid = lay_polygons(where, grid, what="examples", points=True)
    table = laid.table
    names = [str(name) for name in table.columns if name != table.geometry.name]
    lower = {name.lower(): name for name in reversed(names)}
    wanted = (column,) if column is not None else _COLUMNS
    chosen = next((lower[name.lower()] for name in wanted if name.lower() in lower), None)
    if chosen is None:
        raise OptionError(
            f"{_told(where)}: no column says which class an example is of; it has "
            f"{shown(', '.join(names)) or 'none'}; name the column class"
        )
    scene = shapely.box(0, 0, grid.width, grid.height)
    found, beside = [], 0
    for name, outline in zip(table[chosen], table.geometry, strict=True):
        if name is None or name != name or not str(name).strip():
            raise OptionError(f"{_told(where)}: an example has no class in the column {chosen}")
        pixels = shapely.transform(
            outline, lambda points: np.column_stack(grid.drawn.to_pixels(*points.T))
        ).intersection(scene)
        if pixels.is_empty:
            beside += 1
        else:
            found.append((str(name).strip(), pixels))
    if not found:
        raise OptionError(f"{_told(where)}: all examples lie beside the scene")
    if beside:
        warn(f"{_told(where)}: {beside} examples lie beside the scene and are left out")
    return found


def _collected(found: Sequence[tuple[str, BaseGeometry]], seen: _Seen) -> list[_Example]:
    """Tokens of all examples that lie where there is data."""
    patch = seen.model.patch_size
    made, spelt = [], dict[str, str]()
    for name, outline in found:
        tokens, shares = _tokens_in(outline, seen)
        if len(shares):
            made.append(_Example(spelt.setdefault(name.casefold(), name), tokens, shares))
    lost = dict.fromkeys(name for name, _ in found if name.casefold() not in spelt)
    if lost:
        raise OptionError(
            f"the examples of {shown(', '.join(lost))} lie where the scene has no data"
        )
    small = sum(outline.area < patch**2 for _, outline in found)
    if small:
        warn(
            f"{small} of {len(found)} examples are smaller than a patch of {patch} x {patch} "
            "pixels, and are seen with what lies around them"
        )
    return made


def _survey(seen: _Seen) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean unit token of a fixed sample of windows, and the direction of their CLS tokens."""
    windows = seen.lattice.touching(Window(0, 0, seen.grid.height, seen.grid.width))
    at = np.linspace(0, len(windows) - 1, min(len(windows), 4 * seen.surveyed)).astype(int)
    some = [windows[k] for k in at if seen.holds(windows[k])]
    some = some[:: -(-len(some) // seen.surveyed)] if some else []
    if not some:
        raise SceneError("the scene holds no data, so that nothing is like anything in it")
    tokens, cls = [], []
    for window in some:
        features = seen.tokens([window])
        tokens.append(F.normalize(features.patches[0].double(), dim=-1).mean(0).cpu().numpy())
        cls.append(F.normalize(features.cls[0].double(), dim=-1).cpu().numpy())
    overall = np.mean(cls, axis=0)
    return np.mean(tokens, axis=0), overall / np.linalg.norm(overall)


def _tokens_in(
    outline: BaseGeometry, seen: _Seen
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit tokens in an outline, of all windows that see it, and how much of each."""
    left, top, right, bottom = outline.bounds
    row, col = int(top), int(left)
    box = Window(row, col, max(int(np.ceil(bottom)) - row, 1), max(int(np.ceil(right)) - col, 1))
    tokens, shares = [np.zeros((0, seen.model.embedding_size))], [np.zeros(0)]
    for window in seen.lattice.touching(box):
        inside = _shares(outline, window, seen) if seen.holds(window) else np.zeros(0)
        if inside.any():
            found = F.normalize(seen.tokens([window]).patches[0].double(), dim=-1).cpu().numpy()
            tokens.append(found[inside > 0])
            shares.append(inside[inside > 0])
    return np.concatenate(tokens), np.concatenate(shares)


def _shares(outline: BaseGeometry, window: Window, seen: _Seen) -> npt.NDArray[np.float64]:
    """How much of an outline lies in every patch of a window, times the window's weight there."""
    here = shapely.transform(outline, lambda points: points - (window.col, window.row))
    inside = rasterize(
        [here], out_shape=window.shape, all_touched=bool(outline.area < 4), dtype="uint8"
    )
    weighted = torch.from_numpy(inside) * blend_weight(
        seen.blend, window.shape, torch.device("cpu")
    )
    padded = F.pad(weighted, seen.padding)[None].double()
    patches: npt.NDArray[np.float64] = (
        F.avg_pool2d(padded, seen.model.patch_size)[0].flatten().numpy()
    )
    return patches


# -- queries -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Mixing:
    """Classes of words, and what they become with examples."""

    parts: Sequence[VocabularyClass]
    vectors: FloatArray | None
    """Of all words."""
    scene: npt.NDArray[np.float64]
    """Mean unit token of the scene."""
    cls: npt.NDArray[np.float64]
    """Mean direction of its CLS tokens."""

    def best_share(self, found: Sequence[_Example]) -> float:
        """Share with which left-out examples are told best, token by token; the least of equals."""
        several = {one.name for one in found if sum(o.name == one.name for o in found) > 1}
        if self.vectors is None or not several:
            return _USUAL_SHARE
        scores = []
        for share in _TRIED_SHARES:
            by_class: dict[str, list[float]] = {}
            for one in found:
                if one.name in several:
                    rest = [other for other in found if other is not one]
                    by_class.setdefault(one.name, []).append(self._right(one, rest, share))
            scores.append(float(np.mean([np.mean(some) for some in by_class.values()])))
        good = max(scores) - _WORTH
        return next(
            share for share, score in zip(_TRIED_SHARES, scores, strict=True) if score >= good
        )

    def _right(self, one: _Example, rest: Sequence[_Example], share: float) -> float:
        """Part of an example's tokens that others tell right."""
        vocabulary = Vocabulary(self.classes(rest, share))
        queries = Queries.of(vocabulary, lambda words: self._words())
        logits = one.tokens @ queries.vectors.T + queries.offset
        told = queries.class_of[logits.argmax(-1)]
        right = told == [n.casefold() for n in vocabulary.names].index(one.name.casefold())
        return float(one.shares @ right / one.shares.sum())

    def _words(self) -> FloatArray:
        assert self.vectors is not None
        return self.vectors

    def classes(self, found: Sequence[_Example], share: float) -> tuple[VocabularyClass, ...]:
        """Classes with their examples; what they score halfway to the scene's mean stays."""
        means: dict[str, list[npt.NDArray[np.float64]]] = {}
        for one in found:
            means.setdefault(one.name.casefold(), []).append(one.mean)
        vectors = np.zeros((0, len(self.scene))) if self.vectors is None else self.vectors
        usual = float((vectors @ self.scene).mean()) if len(vectors) else 0.0
        made, first = [], 0
        for entry in self.parts:
            own = vectors[first : first + len(entry.prompts)]
            first += len(entry.prompts)
            some = means.get(entry.name.casefold())
            if some is None or (len(own) and not share):
                made.append(entry)
                continue
            mean = np.mean(some, axis=0)
            away = mean - self.scene
            away -= (away @ self.cls) * self.cls  # the CLS bias is to take the same from all
            vector = away / max(float(np.linalg.norm(away)), 1e-12)
            middle = float(vector @ (mean + self.scene) / 2)
            shift = usual - middle
            if len(own):
                level = own @ self.scene
                length = np.linalg.norm((1 - share) * own + share * vector, axis=-1).clip(1e-12)
                shift = float(np.mean(level - ((1 - share) * level + share * middle) / length))
            made.append(
                replace(
                    entry,
                    example=tuple(round(float(value), _DIGITS) for value in vector),
                    share=share,
                    offset=float(np.clip(round(entry.offset + shift, _DIGITS), -1, 1)),
                )
            )
        return tuple(made)


_TRIED_SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)
_USUAL_SHARE = 0.2
_WORTH = 0.01
"""Part of the tokens that a larger share has to tell right beyond a smaller one."""
