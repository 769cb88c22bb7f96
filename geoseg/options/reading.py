"""How a scene is read: bands, stretch, working GSD, area of interest, nodata and mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from geoseg._fields import INPUT, documented, option, positive, settle
from geoseg._texts import (
    area_as_text,
    nodata_values,
    parse_bands,
    parse_mask_values,
    stretch_as_text,
)
from geoseg.errors import OptionError

ResizeRule = Literal["opencv", "antialias", "none"]
"""``opencv`` as the paper's; ``antialias`` averages when shrinking; ``none`` keeps the pixels."""


@documented
@dataclass(frozen=True)
class Reading:
    """How a scene is read.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    bands: tuple[int | str, ...] | None = option(
        None,
        "Bands to use as red, green and blue, counted from 1 or by name (of a STAC item: assets or "
        "common names); one band alone is grey; any number for a --scorer. "
        "[default: by colour tags, band names or wavelengths, else 1,2,3]",
        INPUT,
        metavar="R,G,B",
        parse=parse_bands,
        holds=lambda band: isinstance(band, str) or band >= 1,
        wanted="numbers from 1, or names",
    )
    stretch: Any = option(
        "auto",
        "How values become colours: auto (none for 8-bit, else 2,98), none, P1,P2 percentiles of "
        "the whole scene, min:max values (in the units of the file's scale and offset; several "
        "with commas are one for each band), or, for a --scorer, raw (as they are stored).",
        INPUT,
        metavar="RULE",
    )
    gsd: float | None = option(
        None,
        "Work at this ground sampling distance instead of the scene's own.",
        INPUT,
        metavar="METRES",
        holds=positive,
        wanted="a positive number of metres",
    )
    aoi: Any = option(
        None,
        "Map only this part: minx,miny,maxx,maxy in the scene's CRS, or a vector file (in Python "
        "also a polygon or a GeoDataFrame).",
        INPUT,
        metavar="BOX|FILE",
    )
    aoi_layer: str | None = option(
        None,
        "Layer of the --aoi file. [default: the one with polygons]",
        INPUT,
        metavar="NAME",
    )
    crs: str | None = option(
        None,
        "CRS that the scene's coordinates are in, where the file does not say it or is wrong.",
        INPUT,
        metavar="CODE",
    )
    nodata: tuple[float | str, ...] = option(
        (),
        "Value that is no data where all bands used have it, in place of what the file says; may "
        "be repeated; none takes every value as data.",
        INPUT,
        metavar="VALUE",
    )
    ignore_alpha: bool = option(
        False, "Do not take a band that is tagged alpha for opacity.", INPUT
    )
    mask: str | None = option(
        None,
        "Leave out what this says: a raster (cloud mask, UDM2, SCL, QA_PIXEL, …), or a vector file "
        "of polygons; on any grid, in any CRS; of a STAC item also the name of an asset.",
        INPUT,
        metavar="FILE",
    )
    mask_values: str | None = option(
        None,
        "Values of a raster --mask that are left out: 3,8,9, or bits:3,4 (counted from 0), or "
        "keep:4,5 for all but these. [default: all but 0]",
        INPUT,
        metavar="VALUES",
    )
    mask_layer: str | None = option(
        None,
        "Band of a raster --mask, by number or name, or layer of a vector one.",
        INPUT,
        metavar="BAND|NAME",
    )
    rgb: bool = option(
        False,
        "The scenes hold one band each of one scene: map them together as red, green and blue; "
        "names tell the colours, else the order.",
        INPUT,
    )

    def __post_init__(self) -> None:
        given: Any = () if self.nodata is None else self.nodata
        given = given if isinstance(given, list | tuple) else (given,)
        object.__setattr__(self, "nodata", nodata_values(given))
        object.__setattr__(self, "stretch", stretch_as_text(self.stretch))
        for name in ("crs", "mask_values", "mask_layer"):
            object.__setattr__(self, name, _as_text(getattr(self, name)))
        if self.aoi is not None:
            object.__setattr__(self, "aoi", area_as_text(self.aoi))
        settle(self)
        parse_mask_values(self.mask_values)
        if self.mask is None and (self.mask_values or self.mask_layer):
            raise OptionError("mask values and mask layer say how to read a mask; give --mask too")

    @property
    def fill(self) -> tuple[float, ...] | None:
        """Values that are no data, in place of the file's own; None if those count."""
        if not self.nodata:
            return None
        return tuple(float(value) for value in self.nodata if value != "none")


def _as_text(given: Any) -> Any:
    """Write numbers, and CRS of rasterio's or pyproj's, as a command line has them."""
    if isinstance(given, list | tuple):
        return ",".join(map(str, given))
    if hasattr(given, "to_wkt"):
        return given.to_wkt()
    return str(given) if isinstance(given, int) else given
