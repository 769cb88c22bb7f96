"""Examples in place of words, or beside them: "more of this"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from geoseg._address import as_given
from geoseg._fields import as_made
from geoseg._inputs import shown
from geoseg.ask import Store
from geoseg.errors import OptionError, SceneError, VocabularyError, warn
from geoseg.io.grid import Grid
from geoseg.io.scene import Scene, open_scene
from geoseg.io.vectors import lay_polygons, read_polygons
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Reading
from geoseg.runtime.gdal import bounded_cache
from geoseg.store.pool import Seen, seen_by_encoder, seen_by_store, survey, tokens_in
from geoseg.text.embedding import embed_queries
from geoseg.text.queries import Queries
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary, VocabularyClass, VocabularySource, fill_colors
from geoseg.types import FloatArray

_COLUMNS = ("class", "class_name", "classname", "name", "label")
"""Columns that may say which class an example is of, the likeliest first."""
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

    Returns
    -------
    Vocabulary
        Classes with a direction of unit length, ``(D,)``, as ``example``.

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
            seen = seen_by_store(scene._file, scene._open(None, None)[0].grid, device)
            seen = replace(seen, model=scene._named(device))
        else:
            loaded = model if isinstance(model, Model) else load_model(model, device=device)
            if not isinstance(scene, str | Path | Scene):
                raise SceneError(f"a scene is a path or a store, not {type(scene).__name__}")
            how = as_made(Reading, reading)
            source = scene if isinstance(scene, Scene) else open_scene(as_given(scene), how)
            seen = seen_by_encoder(source, loaded, chosen)
        found = _collected(examples_on(where, seen.grid, column), seen)
        known = survey(seen)
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
    mixing = Mixing(parts, vectors, *known)
    return Vocabulary(mixing.classes(found, mixing.best_share(found) if share is None else share))


@dataclass(frozen=True, eq=False)
class Example:
    """The tokens of one example."""

    name: str
    tokens: npt.NDArray[np.float64]
    """``(n, D)``, of unit length."""
    shares: npt.NDArray[np.float64]
    """``(n,)`` how much of each counts."""

    @cached_property
    def mean(self) -> npt.NDArray[np.float64]:
        """Of the tokens."""
        return np.asarray(self.shares @ self.tokens / self.shares.sum())


# -- examples on the scene -----------------------------------------------------------------------


def _told(where: Any) -> str:
    return shown(as_given(where)) if isinstance(where, str | Path) else "the examples"


def examples_on(
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


def _collected(found: Sequence[tuple[str, BaseGeometry]], seen: Seen) -> list[Example]:
    """Tokens of all examples that lie where there is data."""
    patch = seen.model.patch_size
    made, spelt = [], dict[str, str]()
    for name, outline in found:
        tokens, shares = tokens_in(outline, seen)
        if len(shares):
            made.append(Example(spelt.setdefault(name.casefold(), name), tokens, shares))
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


# -- queries -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mixing:
    """Classes of words, and what they become with examples."""

    parts: Sequence[VocabularyClass]
    vectors: FloatArray | None
    """Of all words."""
    scene: npt.NDArray[np.float64]
    """Mean unit token of the scene."""
    cls: npt.NDArray[np.float64]
    """Mean direction of its CLS tokens."""

    def best_share(self, found: Sequence[Example]) -> float:
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

    def _right(self, one: Example, rest: Sequence[Example], share: float) -> float:
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

    def classes(self, found: Sequence[Example], share: float) -> tuple[VocabularyClass, ...]:
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
