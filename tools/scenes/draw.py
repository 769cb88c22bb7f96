"""Draw one labelled scene from a seed.

::

    region -> palette ─┐
    landscape, GSD  ───┴─> canvas (covers, objects) -> shadows -> sensor -> picture + labels
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from tools.scenes import sensor
from tools.scenes.canvas import Canvas
from tools.scenes.landscapes import LANDSCAPES
from tools.scenes.palette import HELD_OUT_REGIONS, TRAINING_REGIONS, Palette
from tools.scenes.textures import shared_bank

Split = Literal["train", "held-out"]


@dataclass(frozen=True, slots=True)
class DrawnScene:
    """One scene and what was drawn."""

    picture: npt.NDArray[np.uint8]
    """``(H, W, 3)``."""
    bands: npt.NDArray[np.float32]
    """``(H, W, 4)`` red, green, blue, near-infrared in [0, 1], before the tone curve."""
    labels: npt.NDArray[np.uint8]
    """``(H, W)``, values of :class:`tools.scenes.classes.Cover`."""
    landscape: str
    region: str
    gsd_m: float


def draw_scene(
    seed: int,
    size: int = 384,
    *,
    split: Split = "train",
    landscape: str | None = None,
    region: str | None = None,
    gsd_m: float | None = None,
    rendering: sensor.Rendering | None = None,
) -> DrawnScene:
    """Draw a scene; the same arguments always give the same pixels.

    Parameters
    ----------
    seed
        Decides everything the other arguments leave open.
    size
        Side in pixels.
    split
        ``held-out`` draws from other seeds and from regions that training never sees.
    landscape, region, gsd_m, rendering
        Names and metres per pixel; None draws them.
    """
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 1 if split == "train" else 2])
    regions = TRAINING_REGIONS if split == "train" else HELD_OUT_REGIONS
    region = region or str(rng.choice(list(regions)))
    if landscape is None:
        shares = np.array([kind.share for kind in LANDSCAPES.values()])
        landscape = str(rng.choice(list(LANDSCAPES), p=shares / shares.sum()))
    kind = LANDSCAPES[landscape]
    if gsd_m is None:
        gsd_m = math.exp(rng.uniform(*np.log(kind.gsd_m)))
    palette = Palette(rng, {**TRAINING_REGIONS, **HELD_OUT_REGIONS}[region])
    canvas = Canvas(rng, shared_bank(), palette, size, gsd_m)
    kind.paint(canvas)
    if canvas.chance(0.92):
        sensor.cast_shadows(canvas)
    bands = sensor.expose(canvas)
    picture = sensor.develop(canvas, bands, rendering or sensor.choose_rendering(rng))
    return DrawnScene(picture, bands, canvas.labels, landscape, region, gsd_m)
