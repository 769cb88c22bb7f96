"""What a scorer sees: a raster of scores on a scene's grid, bands beside those for the words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from geoseg._texts import Stretch
from geoseg.errors import GeosegWarning, OptionError
from geoseg.io.described import open_readable
from geoseg.io.scene import Scene, open_scene
from geoseg.io.source import RasterSource
from geoseg.options import Reading, Scorer
from geoseg.options.scorer import is_beside_words, is_score_raster
from geoseg.types import PixelBlock, Window

_SLIP = 1e-3
"""Pixels by which two grids that are meant to be one may differ."""


@dataclass(frozen=True)
class ScoredScene:
    """Scores as the pixels of a scene; what has no data in either has none."""

    scene: Scene
    scores: Scene

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""
        return self.scene.shape

    def read(self, window: Window) -> PixelBlock:
        """Read the scores ``(Q, h, w)`` of a window, 0 where there is no data."""
        found = self.scores.read(window)
        valid = found.valid & self.scene.read(window).valid
        return PixelBlock(found.rgb * valid, valid)

    def known_empty(self, window: Window) -> bool:
        """Tell whether a window holds no stored pixel, without reading any."""
        return self.scene.known_empty(window) or self.scores.known_empty(window)


@dataclass(frozen=True)
class BesideScene:
    """Pixels of a scene, and below their planes what a scorer beside the words sees.

    What has no data in either has none.
    """

    scene: Scene
    other: Scene

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""
        return self.scene.shape

    def read(self, window: Window) -> PixelBlock:
        """Read the planes of both in a window, 0 where there is no data in the other."""
        one, two = self.scene.read(window), self.other.read(window)
        valid = one.valid & two.valid
        return PixelBlock(np.concatenate([one.rgb, two.rgb * valid]), valid)

    def known_empty(self, window: Window) -> bool:
        """Tell whether a window holds no stored pixel, without reading any."""
        return self.scene.known_empty(window) or self.other.known_empty(window)


SeenScene = Scene | ScoredScene | BesideScene
"""A scene, or what windows see in its place."""


def with_scores(scene: Scene, scorer: Any, reading: Reading) -> SeenScene:
    """Return what the windows of a run see: the scene, or also what a scorer needs.

    Parameters
    ----------
    scene
        As the words see it.
    scorer
        A `Scorer`, what one calls, or None.
    reading
        How the scene was opened.

    Raises
    ------
    OptionError
        If a raster of scores is not on the scene's grid, or a scorer's own bands are not.
    """
    call = scorer.call if isinstance(scorer, Scorer) else scorer
    if not is_beside_words(scorer):
        return ScoredScene(scene, _scores(scene, call, reading)) if is_score_raster(call) else scene
    if not scorer.weight:  # nobody asks it
        return scene
    if is_score_raster(call):
        return BesideScene(scene, _scores(scene, call, reading))
    return BesideScene(scene, _own_bands(scene, scorer, reading)) if scorer.sees_its_own else scene


def refuse_bands_of_array(scorer: Any) -> None:
    """Refuse a scorer with bands of its own where the scene is an array.

    Raises
    ------
    OptionError
        That says what to do.
    """
    if isinstance(scorer, Scorer) and scorer.sees_its_own:
        raise OptionError(
            "--scorer-bands and --scorer-stretch go with the path of a scene, not with an array; "
            "write it to a file first, for example with .rio.to_raster"
        )


def band_names(path: str) -> tuple[str, ...]:
    """What the bands of a raster of scores are called; an empty name where one has none."""
    with open_readable(path) as dataset:
        return tuple(name or "" for name in dataset.descriptions)


def _own_bands(scene: Scene, scorer: Scorer, reading: Reading) -> Scene:
    how = replace(
        reading,
        bands=scene.bands if scorer.bands is None else scorer.bands,
        stretch=reading.stretch if scorer.stretch is None else scorer.stretch,
    )
    with warnings.catch_warnings():  # what there is to say of the scene has been said
        warnings.simplefilter("ignore", GeosegWarning)
        found = open_scene(scene.path, how, colours=False)
    if found.grid != scene.grid:
        raise OptionError(
            f"{scene.path}: --scorer-bands are not on the grid of the bands that the words see"
        )
    return found


def _scores(scene: Scene, call: Any, reading: Reading) -> Scene:
    """Open a raster of scores that lies on a scene's grid."""
    first = RasterSource.open(str(call), (1,), crs=reading.crs)
    every = tuple(range(1, first.band_count + 1))
    source = RasterSource.open(str(call), every, crs=reading.crs, colours=False)
    here, there = scene.native_grid, source.native_grid
    points = ((0, 0), (here.width, 0), (0, here.height))
    back = [~there.transform * (here.transform * point) for point in points]
    slip = float(np.abs(np.subtract(back, points)).max())
    if here.shape != there.shape or here.crs != there.crs or slip > _SLIP:
        raise OptionError(
            f"scorer {call} is not on the grid of {scene.path}: a raster of scores has its CRS, "
            "place and size, and one band a class"
        )
    return Scene(replace(source, grid=scene.grid), None, Stretch("raw"), colours=False)
