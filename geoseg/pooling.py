"""Examples in place of words, or beside them: "more of this"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import scipy.linalg
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
from geoseg.probe import UNTRIED, Places, Probe
from geoseg.runtime.gdal import bounded_cache
from geoseg.store.pool import Seen, Survey, seen_by_encoder, seen_by_store, survey, tokens_in
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

    Classes without words are known by what tells the unit features in their examples from those in
    others. Those with words lean towards their examples, as a linear probe that begins at the words
    (few-shot adaptation in the manner of CLAP, CVPR 2024), as far as left-out examples speak for
    it. What comes back is a vocabulary like any other: for this scene, for others that are mapped
    with the same model, and for ``.save("….toml")``.

    Parameters
    ----------
    scene
        The scene that the examples lie in, or its store, which need not be encoded again.
    where
        Vector file or GeoDataFrame of polygons or points with a column of class names.
    classes
        As for `geoseg.segment`; None makes a class of every name in the file, in the order in
        which they appear, known by its examples alone. Examples of a class that is not among them
        say what is none of them: what looks like that becomes background.
    column
        The one with the class names; by default ``class``, or one that is called like that.
    share
        Of the direction from the scene's mean feature to that of the examples in the queries of a
        class that has words too, from 0 to 1, in place of what left-out examples speak for. Where
        words do as well by themselves, these leave them as they are.
    model, options, reading, device
        As for `geoseg.segment`; a store has its own, and of the options only templates, CLS bias
        and scale count.

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
        Where an example is smaller than a patch, lies beside the scene, or is of none of the
        classes.
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
        asked = chosen.resolve(seen.model.defaults)
        seen = seen.without_bias(asked.cls_bias)
        found = _collected(examples_on(where, seen.grid, column), seen)
        known = survey(seen)
    names = list(dict.fromkeys(one.name for one in found))
    if classes is None:
        colors = fill_colors(names, [None] * len(names))
        parts = [
            VocabularyClass(name, (), color, example=(1.0,))
            for name, color in zip(names, colors, strict=True)
        ]
        Vocabulary(tuple(parts))  # which says what is wrong with a single one
    else:
        parts = list(Vocabulary.parse(classes).classes)
    listed = {entry.name.casefold() for entry in parts}
    others = [name for name in names if name.casefold() not in listed]
    if len(others) == len(names):
        raise VocabularyError(
            f"{_told(where)}: '{shown(others[0])}' is not one of the classes: "
            f"{shown(', '.join(entry.name for entry in parts))}; add it to --classes"
        )
    if others:
        warn(
            f"{_told(where)}: {shown(', '.join(others))}: not among the classes; what looks like "
            "these examples becomes background (the first class, or --background with --threshold)"
        )
    color = parts[0].color  # which no map shows
    kept = len(parts)
    parts += [VocabularyClass(name, (), color, example=(1.0,)) for name in others]
    words = [word for entry in parts for word in entry.prompts]
    templates = load_templates(chosen.templates)
    vectors = embed_queries(seen.model, words, templates) if words else None
    mixing = Mixing(parts, vectors, known)
    made = mixing.best(found, asked.logit_scale) if share is None else mixing.classes(found, share)
    before = () if classes is None else Vocabulary.parse(classes).hidden
    return Vocabulary(made[:kept], (*made[kept:], *before))


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
    where: str | Path | gpd.GeoDataFrame,
    grid: Grid,
    column: str | None,
    *,
    may_be_empty: bool = False,
) -> list[tuple[str, BaseGeometry]]:
    """Class and outline in pixels of every example that lies on the scene.

    Those without a class are refused, or left out if some ``may_be_empty``.
    """
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
    empty = table[chosen].isna() | (table[chosen].astype(str).str.strip() == "")
    if empty.any() and (empty.all() or not may_be_empty):
        none = "none of the places has a class" if may_be_empty else "an example has no class"
        raise OptionError(f"{_told(where)}: {none} in the column {chosen}")
    if empty.any():
        told = f"{empty.sum()} of {len(table)} places have no class in the column {chosen}"
        warn(f"{_told(where)}: {told} and are left out")
        table = table[~empty]
    for name, outline in zip(table[chosen], table.geometry, strict=True):
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
    patch = seen.step
    made, spelt = [], dict[str, str]()
    for name, outline in found:
        tokens, shares = tokens_in(outline, seen, len(found))
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
    survey: Survey
    """Of the scene, its tokens without the CLS bias."""

    def best(self, found: Sequence[Example], scale: float) -> tuple[VocabularyClass, ...]:
        """Classes that lean towards their examples as far as left-out examples speak for it."""
        if self.vectors is None:
            return self._told_apart(found)
        words = self.vectors
        base = self._mixed(found, None)
        queries = Queries.of(Vocabulary(base), lambda _: words)
        names = [entry.name.casefold() for entry in base]
        places = Places(
            np.array([names.index(one.name.casefold()) for one in found]),
            np.array([_logits(one, queries) for one in found]),
            np.array([one.mean for one in found]),
        )
        probe = Probe(places, self.survey, scale)
        several = len(found) > len(set(places.truth.tolist()))
        spread = probe.best().spread if several else UNTRIED
        return probe.lean(spread).classes(base, words, self.survey.mean)

    def classes(self, found: Sequence[Example], share: float) -> tuple[VocabularyClass, ...]:
        """Classes with so much of their examples; what they score halfway to the scene's mean
        stays."""
        return self._told_apart(found) if self.vectors is None else self._mixed(found, share)

    def _mixed(self, found: Sequence[Example], share: float | None) -> tuple[VocabularyClass, ...]:
        """Classes of words with a share of their examples, and others of these alone.

        What an example says of its class is how its mean token differs from the scene's. No
        direction has a part in that of the CLS tokens: the CLS bias is to take the same from all.
        """
        assert self.vectors is not None
        vectors, (scene, cls) = self.vectors, (self.survey.mean, self.survey.cls)
        means = _means(found)
        usual = float((vectors @ scene).mean())
        made, first = [], 0
        for entry in self.parts:
            own = vectors[first : first + len(entry.prompts)]
            first += len(entry.prompts)
            mean = means.get(entry.name.casefold())
            if mean is None or (len(own) and share is None):
                made.append(entry)
                continue
            away = mean - scene
            away -= (away @ cls) * cls
            vector = away / max(float(np.linalg.norm(away)), 1e-12)
            middle = float(vector @ (mean + scene) / 2)
            shift = usual - middle
            if len(own) and share is not None:
                level = own @ scene
                length = np.linalg.norm((1 - share) * own + share * vector, axis=-1).clip(1e-12)
                shift = float(np.mean(level - ((1 - share) * level + share * middle) / length))
            made.append(
                replace(
                    entry,
                    example=tuple(round(float(value), _DIGITS) for value in vector),
                    share=1.0 if share is None else share,
                    offset=float(np.clip(round(entry.offset + shift, _DIGITS), -1, 1)),
                )
            )
        return tuple(made)

    def _told_apart(self, found: Sequence[Example]) -> tuple[VocabularyClass, ...]:
        """Classes known by examples alone: the linear discriminant of their tokens."""
        known = _means(found)
        whitened = self._whitening(found, known)
        means = np.array([known[entry.name.casefold()] for entry in self.parts])
        centre = means.mean(axis=0)
        weights = np.array([whitened(mean - centre) for mean in means])
        offsets = -((means + centre) * weights).sum(axis=1) / 2
        # What all have in common decides nothing: seen from where they are equally far, all are
        # of one length, as queries have to be.
        sides = weights[1:] - weights[0]
        middle = np.linalg.lstsq(sides, (sides**2).sum(axis=1) / 2, rcond=None)[0]
        length = max(float(np.linalg.norm(middle)), 1e-12)
        vectors = (weights - weights[0] - middle) / length
        return tuple(
            replace(
                entry,
                example=tuple(round(float(value), _DIGITS) for value in vector),
                offset=float(np.clip(round(float(offset), _DIGITS), -1, 1)),
            )
            for entry, vector, offset in zip(self.parts, vectors, offsets / length, strict=True)
        )

    def _whitening(self, found: Sequence[Example], means: Mapping[str, Vector]) -> Whitened:
        """What divides by the covariance within classes, and leaves out the CLS tokens' part."""
        size, cls = len(self.survey.mean), self.survey.cls
        spread = np.zeros((size, size))
        for one in found:
            away = one.tokens - means[one.name.casefold()]
            spread += (away * (one.shares / one.shares.sum())[:, None]).T @ away / len(found)
        along = np.eye(size) - np.outer(cls, cls)
        ball = np.trace(spread) / size + _LEAST_SPREAD
        kept = (1 - _DRAWN) * along @ spread @ along + _DRAWN * ball * np.eye(size)
        factor = scipy.linalg.cho_factor(kept)
        return lambda vector: np.asarray(scipy.linalg.cho_solve(factor, along @ vector))


def _means(found: Sequence[Example]) -> dict[str, Vector]:
    """Mean token of every class."""
    own: dict[str, list[Vector]] = {}
    for one in found:
        own.setdefault(one.name.casefold(), []).append(one.mean)
    return {name: np.asarray(np.mean(some, axis=0)) for name, some in own.items()}


def _logits(one: Example, queries: Queries) -> Vector:
    """Mean logit ``(K,)`` of the best query of every class in an example."""
    logits = one.tokens @ queries.vectors.T + queries.offset
    best = [logits[:, queries.class_of == index].max(1) for index in range(queries.classes)]
    return np.asarray(np.array(best) @ one.shares / one.shares.sum())


Vector = npt.NDArray[np.float64]
Whitened = Callable[[Vector], Vector]
_DRAWN, _LEAST_SPREAD = 0.3, 1e-4
"""How far the covariance of examples, which are few, is drawn towards a ball's, and the least
variance of that."""
