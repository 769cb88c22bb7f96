"""How polygons are made of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from geoseg._fields import SHAPE, documented, not_negative, option, settle
from geoseg.errors import OptionError

PolygonFormat = Literal["gpkg", "parquet", "fgb", "geojson", "none"]
POLYGON_FORMATS: tuple[str, ...] = get_args(PolygonFormat)
ATTRIBUTES = ("scene", "date")
"""Of polygons, on request."""
_LEAST_SPLIT = 16
_LONGEST_LAYER = 60
"""Letters: names of tables beside the layer's are longer, and some programs cut them."""


@documented
@dataclass(frozen=True, kw_only=True)
class VectorOptions:
    """How polygons are made of labels.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    min_area_m2: float = option(
        0.0,
        "Polygons below this area go to the neighbour with the longest shared boundary; a boundary "
        "whose simplifying or smoothing would bring one below it stays as the pixels have it.",
        SHAPE,
        metavar="M2",
        flag="--min-area",
        holds=not_negative,
        wanted="zero or a positive number",
    )
    drop_small: bool = option(
        False,
        "Leave polygons below --min-area out instead, which makes holes in the map.",
        SHAPE,
    )
    simplify_m: float = option(
        0.0,
        "How far a simplified boundary may lie from the pixels' edges; neighbours keep one common "
        "boundary.",
        SHAPE,
        metavar="METRES",
        flag="--simplify",
        holds=not_negative,
        wanted="zero or a positive number",
    )
    smooth: int = option(
        0,
        "How often corners are cut; neighbours keep one common boundary.",
        SHAPE,
        metavar="TIMES",
        holds=lambda value: 0 <= value <= 5,
        wanted="0 to 5 times",
    )
    connectivity: int = option(
        4,
        "Whether pixels of one object share sides (4), or sides or corners (8).",
        SHAPE,
        metavar="4|8",
        holds=lambda value: value in (4, 8),
        wanted="4 or 8",
    )
    split: int = option(
        0,
        "Cut polygons that reach over more pixels than this along a grid of so many, so that maps "
        "of them stay fast to draw; parts share their edges exactly, and those below --min-area "
        "stay with another.",
        SHAPE,
        metavar="PX",
        holds=lambda value: value == 0 or value >= _LEAST_SPLIT,
        wanted=f"{_LEAST_SPLIT} pixels or more, 1024 for example, or 0 to leave polygons whole",
    )
    layer: str = option(
        "segments",
        "Name of the polygons' layer.",
        SHAPE,
        metavar="NAME",
        holds=lambda name: _is_layer_name(name),
        wanted=f"letters, up to {_LONGEST_LAYER}, that do not begin with gpkg_, rtree_ or sqlite_",
    )
    attributes: tuple[str, ...] = option(
        (),
        "Further attributes of the polygons, from the tags of the labels: scene (its name), date "
        "(when it was taken); separated by commas.",
        SHAPE,
        metavar="scene,date",
        holds=lambda word: word in ATTRIBUTES,
        wanted=" or ".join(ATTRIBUTES),
    )

    def __post_init__(self) -> None:
        given: Any = self.attributes
        if isinstance(given, str):
            given = given.split(",")
        if isinstance(given, list | tuple) and all(isinstance(word, str) for word in given):
            words = (word.strip() for word in ",".join(given).split(","))
            object.__setattr__(self, "attributes", tuple(dict.fromkeys(filter(None, words))))
        settle(self)
        if self.split and self.drop_small:
            raise OptionError("drop small would take parts that split has cut for small; give one")
        if self.drop_small and not self.min_area_m2:
            raise OptionError("drop small needs a min area, below which polygons are small")


def _is_layer_name(name: str) -> bool:
    """Whether every format can have a layer of that name, GeoPackage's own tables apart."""
    taken = name.lower().startswith(("gpkg_", "rtree_", "sqlite_")) or name == "layer_styles"
    whole = name == name.strip() and name.isprintable() and not set(name) & set("\"'`[];\\")
    return whole and not taken and 0 < len(name) <= _LONGEST_LAYER
