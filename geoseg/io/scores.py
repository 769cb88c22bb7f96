"""A raster of scores on a scene's grid: what somebody's network has said of it already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from geoseg._texts import Stretch
from geoseg.errors import OptionError
from geoseg.io.scene import Scene
from geoseg.io.source import RasterSource
from geoseg.options import Reading, is_score_raster
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


def with_scores(scene: Scene, call: Any, reading: Reading) -> Scene | ScoredScene:
    """Lay a raster of scores over a scene, if that is what a scorer is; else return the scene.

    Raises
    ------
    OptionError
        If its grid is not the scene's.
    """
    if not is_score_raster(call):
        return scene
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
    return ScoredScene(
        scene, Scene(replace(source, grid=scene.grid), None, Stretch("raw"), colours=False)
    )
