"""Which words and phrases the text tower learns from its teacher."""

from __future__ import annotations

import re
from itertools import product

from open_clip.tokenizer import SimpleTokenizer

from tools.scenes import HELD_OUT_WORDS, WORDS
from tools.teacher import teacher_words

_QUALITIES = """
    red green blue grey white brown yellow dark bright dry wet bare dense sparse old new large
    small narrow wide long tall low flat steep empty busy abandoned paved unpaved sandy rocky
    muddy shallow deep frozen burnt flooded irrigated ploughed harvested mowed planted natural
    artificial urban rural suburban residential industrial commercial coastal mountain tropical
    wooden concrete asphalt metal glass tiled parked moving cultivated fallow dirty clear
""".split()  # noqa: SIM905

_THINGS = """
    area field land house building roof road street track court pool lake river pond sea beach
    tree trees forest park lot ground surface soil sand rock crops panel panels station bridge
    harbour port airport runway plane boat ship vehicle car truck stadium marsh wetland snow ice
    mine quarry greenhouse orchard vineyard plantation garden path square roundabout island hill
    mountain valley cliff glacier canal dam reservoir tank tower chimney shed hall warehouse farm
    village town city suburb meadow pasture lawn grass shrub bush hedge hay wheat rice corn
    vegetation canopy cloud shadow smoke fire ruin cemetery school hospital church train rails
    container crane pipeline fence wall yard driveway terrace dune desert swamp bog creek stream
""".split()  # noqa: SIM905

_USES = """
    parking swimming tennis football soccer baseball basketball golf running railway train tram
    bus cycle walking farm forest water sports solar photovoltaic wind power shipping fishing
    container storage waste construction building camping picnic play school holiday rice wheat
    maize potato cotton sugar fruit olive palm pine oak birch rubber tea coffee grape apple
""".split()  # noqa: SIM905

_FIXED = (
    "background", "other", "impervious surface", "low vegetation", "clutter", "built-up area",
    "large vehicle", "small vehicle", "ground track field", "soccer ball field", "baseball diamond",
    "storage tank", "open water", "standing water", "shallow water", "deep water", "tidal flat",
    "mudflat", "salt marsh", "mangrove", "rangeland", "shrubland", "bareland", "barren land",
    "urban fabric", "developed space", "deciduous forest", "coniferous forest", "evergreen forest",
    "broadleaved trees", "crown of a tree", "clear-cut forest", "burnt area", "arable field",
    "paddy field", "rice paddy", "terraced field", "field of crops", "hay bales", "cattle pasture",
    "dirt road", "gravel road", "country road", "road surface", "road with cars", "crossroads",
    "railway line", "railway station", "marshalling yard", "container terminal", "cargo ship",
    "fishing boat", "sailing boat", "motor boat", "tarmac", "courtyard", "patio", "driveway",
    "house roof", "tiled roof", "flat roof", "metal roof", "detached house", "terraced houses",
    "block of flats", "tower block", "shopping centre", "city block", "construction site",
    "solar power plant", "photovoltaic panel", "solar cell", "wind turbine", "greenhouse roof",
    "plastic greenhouse", "polythene tunnel", "athletics track", "golf course", "sports pitch",
    "sports ground", "bunker", "playing field", "river bank", "river bed", "sandbank", "gravel pit",
    "open pit mine", "rock outcrop", "scree", "snow cover", "permanent snow", "cloud shadow",
)  # fmt: skip


def whole_words() -> list[str]:
    """Every whole word of the CLIP tokenizer, and the teacher's words it has to spell out."""
    tokens = SimpleTokenizer().encoder
    own = {t[:-4] for t in tokens if t.endswith("</w>") and re.fullmatch(r"[a-z]{3,}", t[:-4])}
    return sorted(own | {word for word in teacher_words() if re.fullmatch(r"[a-z]{3,}", word)})


def phrases() -> list[str]:
    """Phrases of the field: class words, fixed terms, and qualities and uses before things.

    Held-out words never occur as phrases of their own, except where they are plain words of the
    language, of which `whole_words` has all.
    """
    class_words = [word for words in WORDS.values() for word in words]
    pairs = [f"{left} {right}" for left, right in product((*_QUALITIES, *_USES), _THINGS)]
    held_out = {word for words in HELD_OUT_WORDS.values() for word in words}
    return sorted({*class_words, *_FIXED, *pairs} - held_out)
