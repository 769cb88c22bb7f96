"""Rasters of a working grid brought back to another grid, block by block."""

from __future__ import annotations

from pathlib import Path

import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geoseg.io.grid import pieces
from geoseg.io.write import BLOCK, RasterWriter


def regrid_nearest(source: Path, writer: RasterWriter) -> None:
    """Copy a raster onto a writer's grid, each pixel from the nearest one.

    Parameters
    ----------
    source
        Raster with the writer's bands, type and nodata, on any grid of the same CRS.
    writer
        Takes every block.
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
        for target in pieces(grid.window, step, step):
            writer.write(target, warped.read(window=target.slices()))
