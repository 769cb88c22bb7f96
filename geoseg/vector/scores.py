"""How sure were the labels, strip by strip?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioError, RasterioIOError

from geoseg._address import as_given
from geoseg.errors import SceneError
from geoseg.io._handles import open_dataset
from geoseg.io.crs import crs_name, same_crs
from geoseg.io.described import unreadable
from geoseg.io.grid import Grid
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
