"""Rasters of a working grid brought back to another grid, block by block."""

from __future__ import annotations

from pathlib import Path

import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from geoseg.io.write import BLOCK, RasterWriter
from geoseg.types import Window


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
            crs=grid.crs,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            resampling=Resampling.nearest,
            nodata=writer.layout.nodata,
        ) as warped,
    ):
        for row in range(0, grid.height, step):
            for col in range(0, grid.width, step):
                height, width = min(step, grid.height - row), min(step, grid.width - col)
                block = warped.read(window=RasterioWindow(col, row, width, height))
                writer.write(Window(row, col, height, width), block)
