"""Rasters of a working grid brought back to another grid, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geoseg.io.grid import Grid, pieces
from geoseg.io.sparse import StoredBlocks
from geoseg.io.write import BLOCK, RasterWriter
from geoseg.types import BoolArray, Window

LeftOut = Callable[[Window], BoolArray]


def regrid_nearest(source: Path, writer: RasterWriter, left_out: LeftOut | None = None) -> None:
    """Copy a raster onto a writer's grid, each pixel from the nearest one.

    Parameters
    ----------
    source
        Raster with the writer's bands, type and nodata, on any grid of the same CRS.
    writer
        Takes every block that the source has pixels for.
    left_out
        Tells which pixels of a window of the writer's grid become nodata.
    """
    grid = writer.grid
    step = 4 * BLOCK
    with (
        rasterio.open(source) as dataset,
        WarpedVRT(
            dataset,
            src_crs=grid.crs,
            resampling=Resampling.nearest,
            nodata=writer.layout.nodata,
            **grid.profile,
        ) as warped,
    ):
        own = Grid(grid.crs, dataset.transform, *dataset.shape)
        stored = StoredBlocks.of(dataset)
        for target in pieces(grid.window, step, step):
            seen = _under(target, grid, own)
            if seen is not None and stored.any_in(seen):
                block = warped.read(window=target.slices())
                if left_out is not None:
                    block[:, left_out(target)] = writer.layout.nodata
                writer.write(target, block)


def _under(target: Window, grid: Grid, own: Grid) -> Window | None:
    """Pixels of one grid under a window of another, and those around them."""
    corners = np.array(
        [(target.col, target.col_stop) * 2, (target.row,) * 2 + (target.row_stop,) * 2]
    )
    (left, right), (top, bottom) = (
        (math.floor(side.min()) - 1, math.ceil(side.max()) + 1)
        for side in own.to_pixels(*grid.to_ground(*corners))
    )
    return Window(top, left, bottom - top, right - left).intersection(own.window)
