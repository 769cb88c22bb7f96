"""Colours a map reader expects: water blue, woods green, roofs red."""

from __future__ import annotations

import re

_EXPECTED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("#3b7dd8", ("water", "river", "lake", "sea", "ocean", "pond", "reservoir", "canal", "stream")),
    ("#1f7a3d", ("tree", "trees", "forest", "wood", "woods", "woodland", "canopy")),
    ("#9bcf63", ("grass", "grassland", "meadow", "lawn", "pasture", "vegetation", "park")),
    ("#e3c14e", ("cropland", "crop", "crops", "farmland", "agriculture", "agricultural", "field")),
    ("#d7443e", ("building", "buildings", "roof", "house", "houses", "built-up", "urban", "city")),
    ("#8f8a9b", ("road", "roads", "street", "highway")),
    ("#c9c2b8", ("pavement", "parking", "impervious", "concrete")),
    ("#c98b4a", ("bare", "bareland", "barren", "soil", "earth", "dirt")),
    ("#f0dca8", ("sand", "beach", "desert", "dune")),
    ("#17becf", ("pool", "pools")),
    ("#8e5bb5", ("car", "cars", "vehicle", "vehicles")),
    ("#5b6770", ("railway", "railroad", "rail")),
    ("#e377c2", ("ship", "ships", "boat", "boats", "vessel")),
    ("#2b3a67", ("solar",)),
    ("#f28e2b", ("sports", "court", "pitch", "playground", "stadium")),
    ("#2ca58d", ("wetland", "marsh", "swamp")),
    ("#e8f1f5", ("snow", "ice", "glacier")),
    ("#b9b3a8", ("background", "other", "clutter")),
)
_COLOR_OF = {word: color for color, words in _EXPECTED for word in words}


def expected_color(name: str) -> str | None:
    """Return the ``#rrggbb`` that a reader expects for a class of this name, if there is one.

    The first known word of the name decides: ``"water body"`` is blue, ``"swimming pool"``
    turquoise.
    """
    for word in re.findall(r"[\w-]+", name.lower()):
        if word in _COLOR_OF:
            return _COLOR_OF[word]
    return None
