"""Regions of a scene that somebody gives: which one does each pixel belong to?

Polygons of a file are numbered from 1 in its order; a raster holds numbers of its own. A number is
that of a pixel's centre, and does not depend on which window is asked for.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from affine import Affine
from rasterio.env import env_ctx_if_needed
from rasterio.features import rasterize

from geoseg._address import as_given
from geoseg._files import absolute
from geoseg.errors import SceneError
from geoseg.io.grid import Grid
from geoseg.io.masks import LaidRaster, lay_raster, open_raster
from geoseg.io.vectors import read_polygons
from geoseg.types import Window

IntArray = npt.NDArray[np.int64]
Overlap = Literal["smallest", "largest"]
"""Which of several polygons a pixel belongs to."""

_ALIKE = 2**53
"""From here on whole numbers are the same where they are read as float64."""
_SIDE = 512
"""Pixels a side of the pieces of a scene in which polygons are laid on pixels."""
_CORNERS, _BESIDE = 1000, 2
"""Corners from which on a polygon is cut to a piece, and pixels that are left around it."""
_KEPT = 64
"""Such pieces that are kept: two rows of them in the widest lanes."""


@dataclass(frozen=True, eq=False)
class PolygonRegions:
    """Polygons of a vector file on a scene's pixels; travels without their attributes."""

    path: str = field(repr=False)
    shapes: npt.NDArray[np.object_] = field(repr=False)
    """In pixels of the scene, x the column; a later one lies over earlier ones."""
    numbers: IntArray = field(repr=False)
    """Number of each: its row in the table, counted from 1."""
    digest: str
    """Of the table, geometries and attributes."""
    given: int
    """Polygons of the file, on the scene or not."""
    table: gpd.GeoDataFrame | None = field(default=None, repr=False)
    """Those on the scene, as they are in the file, in its order."""

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"table": None}

    def numbers_in(self, window: Window) -> IntArray:
        """Region of each pixel of a window of the scene, ``(h, w)``; 0 for none."""
        found = np.zeros(window.shape, np.int64)
        for row in range(window.row // _SIDE * _SIDE, window.row_stop, _SIDE):
            for col in range(window.col // _SIDE * _SIDE, window.col_stop, _SIDE):
                here = Window(row, col, _SIDE, _SIDE)
                shared = here.intersection(window)
                assert shared is not None
                piece = self._piece(row, col)
                found[shared.relative_to(window).slices()] = piece[
                    shared.relative_to(here).slices()
                ]
        return found

    @functools.cached_property
    def _piece(self) -> Callable[[int, int], npt.NDArray[np.int32]]:
        return functools.lru_cache(_KEPT)(self._burnt)

    @functools.cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)

    def _burnt(self, row: int, col: int) -> npt.NDArray[np.int32]:
        out = np.zeros((_SIDE, _SIDE), np.int32)
        here = (col, row, col + _SIDE, row + _SIDE)
        near = np.sort(self._tree.query(shapely.box(*here)))
        shapes, numbers = self.shapes[near], self.numbers[near]
        # Of a coast with a million corners each piece would draw all; the same pixels sooner.
        long = shapely.get_num_coordinates(shapes) > _CORNERS
        around = np.add(here, (-_BESIDE, -_BESIDE, _BESIDE, _BESIDE))
        shapes[long] = shapely.clip_by_rect(shapes[long], *around)
        some = ~shapely.is_empty(shapes)
        if some.any():
            pairs = zip(shapes[some], numbers[some].tolist(), strict=True)
            rasterize(pairs, out=out, transform=Affine.translation(col, row))
        return out

    def identity(self) -> Any:
        """What a resumed run compares; plain JSON values."""
        return self.digest

    def touches(self, window: Window) -> bool:
        """Whether a polygon may have pixels of a window."""
        return bool(self._tree.query(shapely.box(
            window.col, window.row, window.col_stop, window.row_stop
        )).size)  # fmt: skip

    def close(self) -> None:
        """Do nothing: there is no handle."""


@dataclass(frozen=True, kw_only=True)
class RasterRegions(LaidRaster):
    """A raster of region numbers; 0, what is below it and nodata are no regions."""

    what: ClassVar[str] = "regions"

    def numbers_in(self, window: Window) -> IntArray:
        """Region of each pixel of a window of the scene, ``(h, w)``; 0 for none.

        Raises
        ------
        SceneError
            If the raster is damaged there, or holds fractions or too large numbers.
        """
        values = self.values(window, window.shape)
        known = np.isfinite(values) & (values > 0)
        if self.nodata is not None:
            known &= values != self.nodata
        found = np.where(known, values, 0)
        if (found != np.rint(found)).any():
            raise SceneError(f"{self.path}: holds fractions; regions are whole numbers")
        if (found >= _ALIKE).any():
            raise SceneError(
                f"{self.path}: holds {found.max():.0f}, and numbers from 2^53 on cannot be told "
                "apart; number the regions from 1"
            )
        return found.astype(np.int64)

    def touches(self, window: Window) -> bool:
        """Whether a region may have pixels of a window: nobody knows without reading."""
        return True


GivenRegions = PolygonRegions | RasterRegions


def open_regions(
    path: str | Path, grid: Grid, *, layer: str | None = None, overlap: Overlap = "smallest"
) -> GivenRegions:
    """Lay regions on a scene's pixels.

    Parameters
    ----------
    path
        A vector file with polygons in any CRS, or a raster of numbers on any grid.
    grid
        The scene's pixels, as they are worked on.
    layer
        Layer of the vector file, or band of the raster.
    overlap
        Whether the smallest or the largest polygon has a pixel that lies in several; of equal ones
        the later.

    Raises
    ------
    SceneError
        If it cannot be read or laid on the scene, or does not touch it.
    OptionError
        If there is no such file, layer or band, or one has to be chosen.
    """
    text = absolute(as_given(path))
    dataset = open_raster(text)
    if dataset is None:
        return _polygons(text, grid, layer, overlap)
    with env_ctx_if_needed(), dataset:
        what = RasterRegions.what
        regions = RasterRegions(**lay_raster(dataset, text, grid, layer, what))
    rows, cols = min(grid.height, _SIDE), min(grid.width, _SIDE)
    regions.numbers_in(Window((grid.height - rows) // 2, (grid.width - cols) // 2, rows, cols))
    return regions


def _polygons(path: str, grid: Grid, layer: str | None, overlap: Overlap) -> PolygonRegions:
    laid = read_polygons(path, grid, what="regions", layer=layer)
    outlines = laid.table.geometry.to_numpy()
    shapes = shapely.transform(
        outlines, lambda points: np.column_stack(grid.drawn.to_pixels(*points.T))
    )
    left, top, right, bottom = shapely.bounds(shapes).T
    with np.errstate(invalid="ignore"):  # an empty one has no bounds
        here = (left < grid.width) & (right > 0) & (top < grid.height) & (bottom > 0)
    if not here.any():
        raise SceneError(f"{path}: no polygon of the regions lies on the scene")
    whole = laid.whole[here]
    table = gpd.GeoDataFrame(
        laid.table.drop(columns=laid.table.geometry.name)[here], geometry=whole, crs=whole.crs
    )
    size = shapely.area(whole.to_numpy())
    order = np.argsort(-size if overlap == "smallest" else size, kind="stable")
    return PolygonRegions(
        path, shapes[here][order], order.astype(np.int64) + 1, _digest(table), len(here), table
    )


def _digest(table: gpd.GeoDataFrame) -> str:
    """SHA-256 of geometries and attributes."""
    whole = hashlib.sha256(b"".join(shapely.to_wkb(table.geometry.to_numpy())))
    whole.update(str((None if table.crs is None else table.crs.to_wkt(), list(table))).encode())
    columns = pd.DataFrame(table.drop(columns=table.geometry.name)).astype(str)
    if len(columns.columns):
        hashes = pd.util.hash_pandas_object(columns, index=False)
        whole.update(np.ascontiguousarray(hashes.to_numpy()).tobytes())
    return whole.hexdigest()
