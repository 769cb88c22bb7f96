"""How sure were the labels, strip by strip?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioError, RasterioIOError

from geoseg._address import as_given
from geoseg.errors import OptionError, SceneError
from geoseg.io._handles import open_dataset
from geoseg.io.crs import crs_name, same_crs
from geoseg.io.described import unreadable
from geoseg.io.grid import Grid
from geoseg.io.joined import JoinedLabels
from geoseg.types import Window

_SAME_PLACE_PIXELS = 1e-3


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of some pixel rows."""

    values: npt.NDArray[Any]
    """``(h, w)`` in the type of the file."""
    known: npt.NDArray[np.bool_]
    """``(h, w)``; False where there is no score."""


class ScoreRaster:
    """An open raster of scores on the grid of a label raster.

    Parameters
    ----------
    path
        Raster with one band.
    grid
        Placement of the labels.
    labels
        Path of the labels, for messages.

    Raises
    ------
    SceneError
        If it cannot be opened, has several bands, or lies on another grid.
    """

    def __init__(self, path: str | Path, grid: Grid, labels: str | Path) -> None:
        self._path = path = as_given(path)
        try:
            self._dataset = open_dataset(path)
        except RasterioIOError as error:
            raise unreadable(path, error) from error
        found = self._dataset
        if found.count != 1:
            found.close()
            raise SceneError(f"{path}: has {found.count} bands; a confidence raster has one")
        own = Grid(found.crs, found.transform, found.height, found.width)
        try:
            refuse_other_grid(path, own, grid, labels)
        except SceneError:
            found.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._dataset.close()

    def read(self, window: Window) -> Scores:
        """Read the scores of a window.

        Raises
        ------
        SceneError
            If the file is damaged there.
        """
        try:
            values = self._dataset.read(1, window=window.slices())
        except RasterioError as error:
            raise SceneError(
                f"{self._path}: rows {window.row} to {window.row_stop - 1} cannot be read, "
                f"the file is damaged or incomplete"
            ) from error
        nodata = self._dataset.nodata
        known = np.ones(values.shape, np.bool_) if nodata is None else values != nodata
        if values.dtype.kind == "f":
            known &= np.isfinite(values)
        return Scores(values, known)


class JoinedScores:
    """Scores of label rasters that are joined, one raster for each of them, in their order.

    Parameters
    ----------
    paths
        Rasters with one band, each on the grid of its labels.
    labels
        The labels.

    Raises
    ------
    OptionError
        If they are not as many as the label rasters.
    SceneError
        As `ScoreRaster`.
    """

    def __init__(self, paths: Sequence[str | Path], labels: JoinedLabels) -> None:
        if len(paths) != len(labels.parts):
            raise OptionError(
                f"confidence: {len(paths)} given for {len(labels.parts)} label rasters; give one "
                "for each, in their order"
            )
        self._paths, self._labels = paths, labels
        self._open: dict[int, ScoreRaster] = {}
        for index in range(len(paths)):
            self._opened(index).close()

    def close(self) -> None:
        """Let go of the files."""
        while self._open:
            self._open.popitem()[1].close()

    def read(self, window: Window) -> Scores:
        """Read the scores of a window: of the label that is on top, where maps overlap.

        Raises
        ------
        SceneError
            If a file is damaged there.
        """
        near = self._labels.inside(window)
        for index in self._open.keys() - {index for index, *_ in near}:
            self._open.pop(index).close()
        values = np.zeros(window.shape, np.float32)
        known = np.zeros(window.shape, np.bool_)
        for index, inside, target in near:
            if index not in self._open:
                self._open[index] = self._opened(index)
            found, part = self._open[index].read(inside), self._labels.parts[index][0]
            top: Any = ...
            if len(near) > 1 and part.nodata is not None:
                top = part.read(inside) != part.nodata
            values[target.slices()][top] = found.values[top]
            known[target.slices()][top] = found.known[top]
        return Scores(values, known)

    def _opened(self, index: int) -> ScoreRaster:
        part = self._labels.parts[index][0]
        return ScoreRaster(self._paths[index], part.grid, part.path)


def refuse_other_grid(path: str | Path, own: Grid, grid: Grid, labels: str | Path) -> None:
    """Refuse a raster that does not lie on the grid of the labels.

    Raises
    ------
    SceneError
        That says what differs.
    """
    difference = _difference(own, grid)
    if difference:
        raise SceneError(f"{path}: does not lie on the grid of {labels}: {difference}")


def _difference(one: Grid, other: Grid) -> str | None:
    """What keeps two grids from being the same."""
    if one.shape != other.shape:
        return f"{one.width} x {one.height} pixels against {other.width} x {other.height}"
    if not same_crs(one.crs, other.crs):
        return f"its CRS is {crs_name(one.crs)}, not {crs_name(other.crs)}"
    corners = np.array([(0, one.width, 0), (0, 0, one.height)], np.float64)
    away = np.array(other.to_pixels(*one.to_ground(*corners))) - corners
    if np.hypot(*away).max() > _SAME_PLACE_PIXELS:
        return "another position or pixel size"
    return None
