"""Which classes the drawn scenes know, and which words name them.

``WORDS`` are shown to the model while it trains, ``HELD_OUT_WORDS`` never are: the word test of
``tools.evaluate_tiny`` asks whether each of those lands nearest to its class.
"""

from __future__ import annotations

from enum import IntEnum


class Cover(IntEnum):
    """Pixel values of a drawn label raster."""

    BUILDING = 0
    ROAD = 1
    PAVEMENT = 2
    RAILWAY = 3
    CAR = 4
    WATER = 5
    SHIP = 6
    POOL = 7
    TREE = 8
    GRASS = 9
    CROPLAND = 10
    BARE = 11
    WETLAND = 12
    SPORTS = 13
    SOLAR = 14
    GREENHOUSE = 15


WORDS: dict[Cover, tuple[str, ...]] = {
    Cover.BUILDING: (
        "building", "buildings", "roof", "house", "warehouse", "apartment block",
        "residential building", "industrial building",
    ),
    Cover.ROAD: ("road", "roads", "street", "asphalt road", "lane", "paved road", "dirt track"),
    Cover.PAVEMENT: (
        "pavement", "parking lot", "car park", "paved area", "concrete ground", "plaza",
        "asphalt surface",
    ),
    Cover.RAILWAY: ("railway", "railroad", "railway track", "rail line", "train station tracks"),
    Cover.CAR: ("car", "cars", "vehicle", "vehicles", "parked car"),
    Cover.WATER: ("water", "river", "lake", "stream", "water body", "reservoir", "canal", "sea"),
    Cover.SHIP: ("ship", "ships", "boat", "vessel", "moored boat"),
    Cover.POOL: ("swimming pool", "pool", "swimming pools", "backyard swimming pool"),
    Cover.TREE: ("tree", "trees", "forest", "tree canopy", "dense trees", "broadleaf forest"),
    Cover.GRASS: ("grass", "lawn", "grassland", "low vegetation", "green space", "pasture"),
    Cover.CROPLAND: (
        "cropland", "farmland", "agricultural field", "crops", "agriculture", "ploughed field",
        "orchard",
    ),
    Cover.BARE: ("bare soil", "bare ground", "bareland", "barren", "sand", "dirt", "gravel"),
    Cover.WETLAND: ("wetland", "marsh", "reed bed", "flooded grassland"),
    Cover.SPORTS: ("sports field", "tennis court", "soccer field", "running track", "playground"),
    Cover.SOLAR: ("solar panel", "solar panels", "photovoltaic panels", "solar farm"),
    Cover.GREENHOUSE: ("greenhouse", "greenhouses", "glasshouse", "plastic tunnel"),
}  # fmt: skip

HELD_OUT_WORDS: dict[Cover, tuple[str, ...]] = {
    Cover.BUILDING: (
        "rooftop", "houses", "home", "factory", "skyscraper", "office building", "barn", "villa",
    ),
    Cover.ROAD: ("highway", "motorway", "avenue", "freeway", "footpath"),
    Cover.PAVEMENT: ("parking", "concrete", "sidewalk", "parking space"),
    Cover.RAILWAY: ("train tracks", "rails", "train line", "tram tracks"),
    Cover.CAR: ("truck", "automobile", "van"),
    Cover.WATER: ("pond", "creek", "ocean", "lagoon", "waterway"),
    Cover.SHIP: ("yacht", "barge", "ferry", "sailboat"),
    Cover.POOL: ("outdoor pool", "pool deck"),
    Cover.TREE: ("woodland", "woods", "conifers", "pine forest", "jungle"),
    Cover.GRASS: ("meadow", "turf", "grassy area", "prairie"),
    Cover.CROPLAND: ("farm", "arable land", "wheat field", "corn field", "vineyard"),
    Cover.BARE: ("soil", "desert", "mud", "sandy beach"),
    Cover.WETLAND: ("swamp", "bog"),
    Cover.SPORTS: ("basketball court", "football pitch", "stadium"),
    Cover.SOLAR: ("photovoltaic", "solar array"),
    Cover.GREENHOUSE: ("polytunnel", "hothouse"),
}  # fmt: skip


def class_names() -> tuple[str, ...]:
    """Display name of every class, in the order of pixel values."""
    return tuple(WORDS[cover][0] for cover in Cover)


def vocabulary_lines() -> list[str]:
    """Return the classes in geoseg's vocabulary format: one a line, its words joined by commas."""
    return [", ".join(WORDS[cover]) for cover in Cover]
