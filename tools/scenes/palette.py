"""What colours things have in one scene.

A colour is four reflectance-like numbers: red, green, blue and near-infrared in [0, 1]. A *region*
bends the ranges the colours are drawn from; the held-out regions are never used for training.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Colour = npt.NDArray[np.float32]
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Region:
    """Ranges of hue (degrees), saturation and value that are typical for one part of the world."""

    green_hue: Range = (70, 130)
    green_saturation: Range = (0.15, 0.55)
    brightness: Range = (0.8, 1.2)
    dry: float = 0.25
    """Probability that grass or a field is straw-coloured."""
    soil_hue: Range = (15, 42)
    soil_saturation: Range = (0.1, 0.45)
    soil_value: Range = (0.3, 0.85)
    roofs: tuple[float, ...] = (3, 3, 2, 2, 2, 1, 1)
    """Weights of tile red, grey, white, dark, brown, blue and dark red roofs."""
    waters: tuple[float, ...] = (2, 2, 2, 1.5, 3, 1.5)
    """Weights of blue, teal, green, muddy, near-black and pale green water."""
    bare_trees: float = 0.05
    """Probability that woods stand without leaves."""


TRAINING_REGIONS: dict[str, Region] = {
    "temperate": Region(),
    "atlantic": Region(green_hue=(80, 125), brightness=(0.65, 1.0), dry=0.1),
    "dark": Region(
        green_hue=(75, 165), green_saturation=(0.2, 0.6), brightness=(0.4, 0.75), dry=0.25,
        soil_value=(0.2, 0.5), waters=(1, 2, 3, 1, 4, 1),
    ),
    "autumn": Region(
        green_hue=(40, 110), green_saturation=(0.15, 0.5), dry=0.55, soil_hue=(14, 34),
        bare_trees=0.2,
    ),
    "mediterranean": Region(
        green_hue=(55, 105), green_saturation=(0.1, 0.4), dry=0.5, soil_hue=(18, 45),
        soil_value=(0.5, 0.95), roofs=(6, 1, 2, 1, 3, 0.3, 1),
    ),
    "arid": Region(
        green_hue=(55, 100), green_saturation=(0.1, 0.35), dry=0.7, soil_hue=(20, 45),
        soil_value=(0.55, 0.95), roofs=(3, 2, 3, 1, 4, 0.5, 1),
    ),
    "tropical": Region(
        green_hue=(85, 140), green_saturation=(0.35, 0.7), dry=0.1, soil_hue=(8, 25),
        soil_saturation=(0.3, 0.6), waters=(1, 2, 2, 4, 1, 2),
    ),
    "boreal": Region(
        green_hue=(80, 150), green_saturation=(0.1, 0.4), brightness=(0.5, 0.9),
        waters=(2, 1, 1, 1, 6, 1), roofs=(1, 3, 2, 3, 1, 1, 3),
    ),
    "winter": Region(
        green_hue=(45, 100), green_saturation=(0.08, 0.3), dry=0.5, brightness=(0.6, 1.0),
        bare_trees=0.6,
    ),
    "prairie": Region(
        green_hue=(80, 168), green_saturation=(0.1, 0.5), brightness=(0.45, 1.1), dry=0.35,
        soil_saturation=(0.1, 0.35), waters=(1, 2, 3, 1, 4, 4),
    ),
    "minty": Region(
        green_hue=(115, 160), green_saturation=(0.12, 0.4), brightness=(0.9, 1.3), dry=0.3,
        soil_hue=(5, 30), waters=(1, 2, 4, 1, 4, 3),
    ),
}  # fmt: skip

HELD_OUT_REGIONS: dict[str, Region] = {
    "savanna": Region(
        green_hue=(50, 90), green_saturation=(0.2, 0.5), dry=0.6, soil_hue=(6, 22),
        soil_saturation=(0.25, 0.55), soil_value=(0.35, 0.75), roofs=(2, 4, 2, 1, 4, 2, 2),
        waters=(1, 1, 2, 4, 2, 2),
    ),
    "highland": Region(
        green_hue=(90, 150), green_saturation=(0.15, 0.45), brightness=(0.55, 0.95), dry=0.3,
        soil_hue=(25, 50), soil_saturation=(0.05, 0.25), roofs=(1, 4, 1, 4, 2, 2, 2),
        waters=(3, 4, 1, 1, 3, 1),
    ),
    "subtropical": Region(
        green_hue=(75, 135), green_saturation=(0.25, 0.6), brightness=(0.75, 1.15), dry=0.2,
        soil_hue=(0, 30), soil_saturation=(0.2, 0.5), roofs=(4, 2, 4, 1, 1, 2, 0.5),
        waters=(2, 3, 2, 3, 1, 3),
    ),
}  # fmt: skip


def hsv(hue: float, saturation: float, value: float, nir: float) -> Colour:
    """Build a colour from hue in degrees, saturation, value and near-infrared."""
    rgb = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
    return np.array([*rgb, nir], np.float32)


class Palette:
    """Draws the colours of one scene from its region, so that they go together."""

    def __init__(self, rng: np.random.Generator, region: Region) -> None:
        self._rng = rng
        self._region = region
        self._gain = rng.uniform(*region.brightness)
        self._green = rng.uniform(*region.green_hue)
        self._soil = rng.uniform(*region.soil_hue)
        self.leafless = rng.random() < region.bare_trees

    def _u(self, low: float, high: float) -> float:
        return float(self._rng.uniform(low, high))

    def _pick(self, weights: tuple[float, ...]) -> int:
        total = np.asarray(weights, float)
        return int(self._rng.choice(len(weights), p=total / total.sum()))

    def _green_hue(self, spread: float) -> float:
        low, high = self._region.green_hue
        return float(np.clip(self._green + self._rng.normal(0, spread), low, high))

    def roof(self) -> Colour:
        """Roof colour: tile, grey, white, dark, brown, metal blue or dark red."""
        u = self._u
        kind = self._pick(self._region.roofs)
        if kind == 0:
            return hsv(u(4, 26), u(0.28, 0.65), u(0.4, 0.85), u(0.35, 0.6))
        if kind == 1:
            value = u(0.3, 0.65)
            return hsv(u(0, 360), u(0, 0.07), value, value * u(0.9, 1.1))
        if kind == 2:
            return hsv(u(20, 70), u(0, 0.1), u(0.75, 1.0), u(0.7, 0.95))
        if kind == 3:
            value = u(0.12, 0.32)
            return hsv(u(0, 360), u(0, 0.15), value, value * u(0.9, 1.2))
        if kind == 4:
            return hsv(u(15, 40), u(0.1, 0.38), u(0.3, 0.75), u(0.35, 0.6))
        if kind == 5:
            return hsv(u(195, 225), u(0.2, 0.6), u(0.4, 0.8), u(0.3, 0.6))
        return hsv(u(-12, 15), u(0.25, 0.6), u(0.22, 0.5), u(0.2, 0.45))

    def road(self) -> Colour:
        """Asphalt or concrete, from near-black to light grey; asphalt is often bluish."""
        if self._rng.random() < 0.55:
            value = self._u(0.12, 0.5)
            return hsv(self._u(180, 240), self._u(0.02, 0.28), value, value * self._u(0.7, 1.1))
        value = self._u(0.2, 0.72)
        return hsv(self._u(20, 60), self._u(0, 0.08), value, value * self._u(0.9, 1.15))

    def dirt_road(self) -> Colour:
        """Pale track of the local soil."""
        return hsv(self._soil, self._u(0.08, 0.3), self._u(0.55, 0.9), self._u(0.5, 0.8))

    def pavement(self) -> Colour:
        """Parking lots and yards."""
        if self._rng.random() < 0.25:
            return self.road()
        value = self._u(0.25, 0.85)
        return hsv(self._u(20, 60), self._u(0, 0.12), value, value * self._u(0.9, 1.15))

    def ballast(self) -> Colour:
        """Railway bed: grey to rust brown."""
        return hsv(self._u(5, 40), self._u(0.03, 0.28), self._u(0.25, 0.6), self._u(0.3, 0.5))

    def water(self) -> Colour:
        """Water: blue, teal, green, muddy, near-black or pale green; always dark in infrared."""
        u = self._u
        kind = self._pick(self._region.waters)
        hue, saturation, value = (
            ((200, 225), (0.3, 0.75), (0.15, 0.5)),
            ((150, 195), (0.15, 0.55), (0.12, 0.45)),
            ((75, 160), (0.12, 0.5), (0.1, 0.38)),
            ((25, 55), (0.12, 0.42), (0.3, 0.65)),
            ((60, 240), (0.0, 0.4), (0.02, 0.17)),
            ((75, 170), (0.06, 0.45), (0.35, 0.65)),
        )[kind]
        return hsv(u(*hue), u(*saturation), u(*value), u(0.01, 0.08) + (0.06 if kind == 3 else 0))

    def algal_water(self) -> Colour:
        """Water full of algae: as green and as bright as a crop, but dark in infrared."""
        u = self._u
        return hsv(u(75, 140), u(0.12, 0.5), u(0.25, 0.7), u(0.03, 0.2))

    def tree(self) -> Colour:
        """Tree crowns, leafless where the scene is."""
        u = self._u
        if self.leafless and self._rng.random() < 0.8:
            return hsv(u(10, 45), u(0.08, 0.3), u(0.25, 0.5), u(0.25, 0.4))
        if self._rng.random() < 0.08:
            return hsv(u(20, 60), u(0.2, 0.6), u(0.25, 0.55), u(0.4, 0.65))
        saturation = u(*self._region.green_saturation)
        value = u(0.14, 0.48) * self._gain
        return hsv(self._green_hue(14), saturation, value, u(0.35, 0.75))

    def grass(self) -> Colour:
        """Grass, green or straw-coloured."""
        u = self._u
        if self._rng.random() < self._region.dry:
            return hsv(u(32, 60), u(0.12, 0.42), u(0.42, 0.82) * self._gain, u(0.4, 0.6))
        saturation = u(*self._region.green_saturation)
        value = u(0.28, 0.68) * self._gain
        return hsv(self._green_hue(18), saturation, value, u(0.45, 0.8))

    def crop(self) -> Colour:
        """Growing or ripe crop, or stubble; ploughed fields take the soil's colour."""
        u = self._u
        if self._rng.random() < 0.85 - 0.5 * self._region.dry:
            saturation = u(*self._region.green_saturation) * 1.1
            value = u(0.2, 0.66) * self._gain
            return hsv(self._green_hue(22), saturation, value, u(0.45, 0.85))
        return hsv(u(28, 58), u(0.15, 0.5), u(0.45, 0.9) * self._gain, u(0.5, 0.7))

    def lush_crop(self) -> Colour:
        """Dense crop at its height, seen from far above: dark and bluish, close to some lakes."""
        u = self._u
        return hsv(u(135, 185), u(0.15, 0.5), u(0.18, 0.45), u(0.5, 0.85))

    def soil(self) -> Colour:
        """Ploughed or naked earth."""
        hue = self._soil + self._rng.normal(0, 5)
        value = self._u(*self._region.soil_value) * self._gain
        return hsv(hue, self._u(*self._region.soil_saturation), value, min(0.9, value * 1.2))

    def sand(self) -> Colour:
        """Beach, dune, gravel or rock."""
        value = self._u(0.55, 0.98)
        return hsv(self._u(20, 50), self._u(0.05, 0.38), value, value)

    def reed(self) -> Colour:
        """Reeds and sedges of a wetland: dull green to brown."""
        u = self._u
        return hsv(u(28, 105), u(0.15, 0.45), u(0.2, 0.5) * self._gain, u(0.25, 0.5))

    def court(self) -> Colour:
        """Hard court or track: green, red or blue."""
        u = self._u
        hue = ((90, 150), (2, 22), (200, 230))[self._rng.integers(3)]
        return hsv(u(*hue), u(0.3, 0.65), u(0.3, 0.75), u(0.3, 0.5))

    def pool(self) -> Colour:
        """Swimming pool: bright cyan, sometimes deep blue."""
        return hsv(self._u(172, 208), self._u(0.3, 0.75), self._u(0.55, 0.97), self._u(0.05, 0.25))

    def solar(self) -> Colour:
        """Solar cells: dark blue to black."""
        return hsv(self._u(205, 245), self._u(0.2, 0.6), self._u(0.1, 0.34), self._u(0.08, 0.25))

    def glass(self) -> Colour:
        """Greenhouse glass or plastic: pale, slightly blue or green."""
        return hsv(self._u(90, 230), self._u(0.0, 0.18), self._u(0.55, 0.98), self._u(0.5, 0.85))

    def paint(self) -> Colour:
        """Car or hull paint."""
        u = self._u
        kind = self._rng.integers(5)
        if kind <= 1:
            return hsv(0, 0, u(0.7, 1.0), u(0.6, 0.9))
        if kind == 2:
            return hsv(0, 0, u(0.03, 0.2), u(0.05, 0.3))
        if kind == 3:
            return hsv(0, 0, u(0.3, 0.6), u(0.3, 0.6))
        return hsv(u(0, 360), u(0.4, 0.85), u(0.3, 0.85), u(0.3, 0.7))
