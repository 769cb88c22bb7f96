"""Which files a run leaves, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from geoseg._fields import OUTPUT, documented, option
from geoseg.options.polygons import POLYGON_FORMATS, PolygonFormat, VectorOptions

OutputGrid = Literal["native", "working"]
OPTIONAL_RASTERS = ("confidence", "probabilities", "margin", "runner_up")
"""Fields of `Products` that are rasters of their own, in the order in which they are made."""
CLASS_RASTERS = ("labels", "runner_up")
"""Rasters that hold classes; the others hold per cents."""
ITEM = "item.json"
REGION_TABLE = "regions.csv"
"""Of regions that are numbers of a raster."""


@documented
@dataclass(frozen=True, kw_only=True)
class Products(VectorOptions):
    """Which files a run leaves, and how.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    polygons: PolygonFormat = option("gpkg", "Format of the polygons.", OUTPUT)
    confidence: bool = option(True, "Write confidence.tif, per cent of the winning class.", OUTPUT)
    probabilities: bool = option(False, "Write probabilities.tif, a per-cent band a class.", OUTPUT)
    margin: bool = option(False, "Write margin.tif, per cent between the two best classes.", OUTPUT)
    runner_up: bool = option(
        False,
        "Write runner_up.tif, the second best class of every pixel; polygons get the one that "
        "most of their pixels have.",
        OUTPUT,
    )
    preview: bool = option(True, "Write preview.png, the scene beside its map.", OUTPUT)
    stac: bool = option(
        False,
        "Also write item.json, a STAC item of the map for catalogues (needs the package pystac).",
        OUTPUT,
    )
    output_grid: OutputGrid = option(
        "native",
        "With --gsd: labels on the scene's own pixels or on the working ones.",
        OUTPUT,
    )

    @property
    def rasters(self) -> tuple[str, ...]:
        """Names of the rasters, without suffix."""
        return ("labels", *(name for name in OPTIONAL_RASTERS if getattr(self, name)))

    @property
    def names(self) -> tuple[str, ...]:
        """Final file names, in the order in which they appear."""
        return (
            *(f"{name}.tif" for name in self.rasters),
            *([] if self.polygons == "none" else [f"polygons.{self.polygons}"]),
            *(["preview.png"] if self.preview else []),
            *([ITEM] if self.stac else []),
            "run.json",
        )

    @property
    def side_files(self) -> tuple[str, ...]:
        """Names of the files that lie beside rasters and polygons, for other programs."""
        named = (name for name in self.rasters if name in CLASS_RASTERS)
        return (
            *(f"{name}.tif.aux.xml" for name in named),
            *(f"{name}.qml" for name in self.rasters),
            *(["polygons.qml"] if self.polygons == "gpkg" else []),
        )


_ALL_RASTERS: dict[str, Any] = dict.fromkeys(OPTIONAL_RASTERS, True)
ALL_PRODUCTS = (
    *dict.fromkeys(
        name
        for polygons in get_args(PolygonFormat)
        for name in Products(polygons=polygons, stac=True, **_ALL_RASTERS).names
    ),
    REGION_TABLE,
    *(f"regions.{kind}" for kind in POLYGON_FORMATS if kind != "none"),
)
"""Every file that some run leaves; ``run.json`` is among them."""
SIDE_FILES = (
    *(
        name
        for raster in Products(**_ALL_RASTERS).rasters
        for name in (
            f"{raster}.qml",
            *(f"{raster}.tif{end}" for end in (".aux.xml", ".ovr", ".msk", ".vat.dbf", ".vat.cpg")),
        )
    ),
    "polygons.qml",
)
"""Every file beside a raster or polygons of a run that describes them, whoever wrote it."""
