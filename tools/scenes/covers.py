"""Surfaces that fill an area: water, woods, grass, fields, bare ground, wetland, paved ground."""

from __future__ import annotations

import math

import cv2
import numpy as np

from tools.scenes.canvas import Area, Canvas
from tools.scenes.classes import Cover
from tools.scenes.palette import Colour
from tools.scenes.textures import Float


def _shade(colour: Colour, tone: Float) -> Float:
    return colour * tone[..., None]


def _grain(canvas: Canvas, area: Area, fine: float, coarse: float) -> Float:
    """Tone around 1: fine grain plus slow mottling."""
    noise = canvas.bank.noise
    tone = 1 + fine * noise(canvas.rng, area.shape, 0.6)
    return tone + coarse * noise(canvas.rng, area.shape, 1.5, canvas.u(0.4, 1.0))


def water(
    canvas: Canvas, area: Area | None, colour: Colour | None = None, windy: bool = False
) -> None:
    """Still or rippled water, with shallows, algae, waves or sun glint; streaked if ``windy``."""
    if area is None:
        return
    u, rng = canvas.u, canvas.rng
    colour = canvas.palette.water() if colour is None else colour
    tone = _grain(canvas, area, u(0.0, 0.025), 0.0)
    tone += u(0, 0.14) * canvas.bank.noise(rng, area.shape, 2.0)
    texture = _shade(colour, tone)
    if canvas.chance(0.35):
        _shallows(canvas, area, texture)
    if canvas.chance(0.3):
        along, across = area.along(u(0, math.pi))
        period = max(3.0, canvas.px(u(2, 12)))
        wobble = 1.6 * canvas.bank.noise(rng, area.shape, 2.0)
        texture += (u(0.005, 0.035) * np.sin(along * 2 * math.pi / period + wobble))[..., None]
        del across
    if canvas.chance(0.2) or windy:
        texture *= _wind_streaks(canvas, area)[..., None]
    if windy:
        texture *= (1 + u(0.0, 0.3) * _drift(canvas, area))[..., None]
    if canvas.chance(0.15):
        streaks = canvas.bank.noise(rng, area.shape, 1.5, u(0.3, 1)) > u(0.8, 1.8)
        texture[streaks] += u(0.04, 0.2)
    if canvas.chance(0.1):
        algae = np.clip(canvas.bank.noise(rng, area.shape, 2.0) - 0.3, 0, 1)[..., None] * u(
            0.2, 0.7
        )
        texture = texture * (1 - algae) + canvas.palette.grass() * 0.8 * algae
    canvas.lay(area, Cover.WATER, texture.astype(np.float32))


def _wind_streaks(canvas: Canvas, area: Area) -> Float:
    """Tone around 1 of long pale lines that lie along the wind."""
    across = area.along(canvas.u(0, 2 * math.pi))[1]
    across = across + 1.5 * canvas.bank.noise(canvas.rng, area.shape, 2.0)
    profile = canvas.bank.noise(canvas.rng, (1, 512), 0.6)[0]
    lines = profile[np.round(across * canvas.u(0.3, 1.0)).astype(np.int64) % 512]
    return 1 + canvas.u(0.03, 0.12) * np.clip(lines, -0.5, 2)


def _drift(canvas: Canvas, area: Area) -> Float:
    """Floating algae that the wind drives to one shore: from -1 to 1 across the water."""
    along = area.along(canvas.u(0, 2 * math.pi))[0]
    along = along + 0.1 * canvas.size * canvas.bank.noise(canvas.rng, area.shape, 2.0)
    low, high = float(along.min()), float(along.max())
    return (2 * (along - low) / max(high - low, 1.0) - 1).astype(np.float32)


def _shallows(canvas: Canvas, area: Area, texture: Float) -> None:
    """Blend towards a paler colour near the shore."""
    framed = np.pad(area.mask.astype(np.uint8), 1, constant_values=1)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
    weight = np.exp(-depth / canvas.u(2, 0.06 * canvas.size + 3)) * canvas.u(0.2, 0.8)
    pale = canvas.palette.water() * 0.5 + canvas.palette.sand() * 0.4
    texture += weight[..., None] * (pale - texture)


def forest(canvas: Canvas, area: Area | None) -> None:
    """Closed woods: broadleaf, conifers, planted rows or mixed, with crowns when large enough."""
    if area is None:
        return
    u, rng, bank = canvas.u, canvas.rng, canvas.bank
    colour = canvas.palette.tree()
    kind = rng.choice(["broadleaf", "conifer", "planted", "mixed"], p=[0.45, 0.25, 0.12, 0.18])
    radius_m = u(1.2, 2.4) if kind == "conifer" else u(2.0, 5.5)
    radius_px = max(1.1, canvas.px(radius_m))
    quarter = round(canvas.sun / (math.pi / 2)) + 2
    canopy = bank.crowns(rng, area.shape, min(radius_px, 40), quarter)
    depth = u(0.25, 0.65) * min(1.0, 0.45 + radius_px / 5)
    if kind == "conifer":
        colour = colour * u(0.55, 0.85)
    tone = 1 + depth * canopy + u(0.03, 0.15) * bank.noise(rng, area.shape, 2.0, 0.7)
    if kind == "planted":
        along, across = area.along(canvas.grain)
        period = max(2.5, canvas.px(u(2.5, 6)))
        tone += u(0.1, 0.3) * np.sin(across * 2 * math.pi / period)
        del along
    texture = _shade(colour, np.maximum(tone, 0.15))
    if kind == "mixed":
        share = (bank.noise(rng, area.shape, 1.5) > u(-0.5, 1))[..., None]
        texture = np.where(share, texture, _shade(canvas.palette.tree(), np.maximum(tone, 0.15)))
    texture[..., 0] *= 1 + 0.06 * bank.noise(rng, area.shape, 1.5)
    tall = u(5, 18) * (1 + 0.3 * canopy)
    canvas.lay(area, Cover.TREE, texture.astype(np.float32), tall.astype(np.float32))


def grass(canvas: Canvas, area: Area | None, smooth: bool = False) -> None:
    """Lawn, meadow or rough pasture."""
    if area is None:
        return
    u, rng, bank = canvas.u, canvas.rng, canvas.bank
    first, second = canvas.palette.grass(), canvas.palette.grass()
    if smooth:
        tone = _grain(canvas, area, u(0.01, 0.06), u(0.02, 0.08))
        if canvas.chance(0.25):
            stripes = np.sign(
                np.sin(area.along(canvas.grain)[0] * 2 * math.pi / max(4, canvas.px(u(3, 9))))
            )
            tone += u(0.02, 0.06) * stripes
        texture = _shade(first, tone)
    else:
        tone = _grain(canvas, area, u(0.03, 0.13), u(0.04, 0.18))
        mix = np.clip(0.5 + 0.5 * bank.noise(rng, area.shape, 1.5, u(0.4, 1)), 0, 1)[..., None]
        share = mix * u(0.2, 0.9)
        texture = tone[..., None] * (first * (1 - share) + second * share)
        if canvas.chance(0.25):
            worn = np.clip(bank.noise(rng, area.shape, 1.5) - u(0.6, 1.5), 0, 1)[..., None] * 0.8
            texture = texture * (1 - worn) + canvas.palette.soil() * worn
    canvas.lay(area, Cover.GRASS, texture.astype(np.float32))


_FIELD_SHARES = {
    "even": 0.15, "rows": 0.17, "ploughed": 0.19, "harvested": 0.13, "weedy": 0.06, "patchy": 0.08,
    "flooded": 0.05, "orchard": 0.07, "mottled": 0.1,
}  # fmt: skip


def field(
    canvas: Canvas,
    area: Area | None,
    colour: Colour | None = None,
    angle: float | None = None,
    kind: str | None = None,
) -> None:
    """One field: even crop, rows, furrows, stubble, weeds, flooded paddy or an orchard."""
    if area is None:
        return
    u, rng, bank = canvas.u, canvas.rng, canvas.bank
    palette = canvas.palette
    kind = kind or str(rng.choice(list(_FIELD_SHARES), p=list(_FIELD_SHARES.values())))
    angle = canvas.grain if angle is None else angle
    if kind == "ploughed":
        colour = palette.soil()
    elif kind == "flooded":
        colour = palette.water() * 0.6 + palette.soil() * 0.35
    elif colour is None:
        colour = palette.crop()
    along, across = area.along(angle)
    across = across + u(0, 2.5) * bank.noise(rng, area.shape, 2.0)
    tone = _grain(canvas, area, u(0.015, 0.08), u(0.02, 0.14))
    tone += u(0.0, 0.1) * bank.noise(rng, area.shape, 2.0)
    if kind in ("rows", "ploughed", "harvested", "flooded"):
        period = max(2.4, canvas.px(u(0.8, 7)))
        furrow = np.sin(across * 2 * math.pi / period)
        tone += u(0.02, 0.2) * furrow * min(1.0, period / 3.5)
    if kind == "harvested" or canvas.chance(0.3):
        swath = max(5.0, canvas.px(u(9, 36)))
        tone -= u(0.03, 0.22) * ((across % swath) < max(1.0, swath * u(0.05, 0.25)))
    if kind == "weedy":
        tone += u(0.1, 0.3) * np.clip(bank.noise(rng, area.shape, 1.0), -1, 1.5)
    texture = _shade(colour, tone)
    if kind in ("weedy", "patchy"):
        mix = np.clip(0.3 + 0.6 * bank.noise(rng, area.shape, 1.5), 0, 1)[..., None]
        texture += mix * u(0.3, 0.8) * (_shade(palette.crop(), tone) - texture)
    if kind == "flooded":
        wet = (bank.noise(rng, area.shape, 1.5) > u(-1, 1))[..., None]
        texture = np.where(wet, texture, _shade(palette.crop() * 0.8, tone))
    if kind == "mottled":
        texture = _veins(canvas, area, texture)
    if kind == "orchard":
        texture = _planting(canvas, area, texture, along, across)
    canvas.lay(area, Cover.CROPLAND, texture.astype(np.float32))


def _veins(canvas: Canvas, area: Area, crop: Float) -> Float:
    """Thin, winding places where salt or drought let the soil show through the crop."""
    first = canvas.bank.noise(canvas.rng, area.shape, 1.5, canvas.u(0.6, 1.0))
    second = canvas.bank.noise(canvas.rng, area.shape, 2.0)
    vein = np.clip(1 - np.abs(first) * canvas.u(2, 6), 0, 1) * np.clip(0.4 + second, 0, 1)
    soil = canvas.palette.soil()
    return crop + (vein * canvas.u(0.15, 0.6))[..., None] * (soil - crop)


def _planting(canvas: Canvas, area: Area, ground: Float, along: Float, across: Float) -> Float:
    """Trees or vines in a grid on the ground of a field."""
    u = canvas.u
    between = max(4.0, canvas.px(u(3, 9)))
    within = between * u(0.5, 1.2)
    vines = canvas.chance(0.35)
    row = np.cos(across * 2 * math.pi / between)
    plant = row if vines else 0.5 * (row + np.cos(along * 2 * math.pi / within))
    weight = np.clip((plant - u(0.0, 0.3)) * 3, 0, 1)[..., None]
    crown = canvas.palette.tree() * (0.8 + 0.4 * np.clip(plant, 0, 1)[..., None])
    return ground + weight * (crown - ground)


def bare(canvas: Canvas, area: Area | None, sand: bool | None = None) -> None:
    """Naked ground: soil, sand with dunes, gravel, rock or a quarry."""
    if area is None:
        return
    u, rng, bank = canvas.u, canvas.rng, canvas.bank
    sand = canvas.chance(0.45) if sand is None else sand
    colour = canvas.palette.sand() if sand else canvas.palette.soil() * u(1.0, 1.25)
    tone = _grain(canvas, area, u(0.02, 0.12), u(0.03, 0.16))
    if sand and canvas.chance(0.25):
        ripple = area.along(u(0, math.pi))[0] + canvas.px(6) * bank.noise(rng, area.shape, 2.0)
        tone += u(0.03, 0.1) * np.sin(ripple * 2 * math.pi / max(5.0, canvas.px(u(8, 60))))
    elif canvas.chance(0.25):
        tone += u(0.05, 0.2) * np.clip(bank.noise(rng, area.shape, 1.0, u(0.3, 1)), -1.5, 1.5)
    texture = _shade(colour, tone)
    if canvas.chance(0.4):
        mix = np.clip(bank.noise(rng, area.shape, 1.5) * 0.7, 0, 1)[..., None] * u(0.2, 0.8)
        texture += mix * (canvas.palette.soil() - texture)
    if canvas.chance(0.3):
        scrub = (bank.noise(rng, area.shape, 0.6) > u(1.6, 2.6))[..., None]
        texture = np.where(scrub, canvas.palette.tree(), texture)
    canvas.lay(area, Cover.BARE, texture.astype(np.float32))


def wetland(canvas: Canvas, area: Area | None) -> None:
    """Reeds and sedge cut by small dark pools and channels."""
    if area is None:
        return
    u, rng, bank = canvas.u, canvas.rng, canvas.bank
    reed, sedge, pool = canvas.palette.reed(), canvas.palette.reed(), canvas.palette.water() * 0.7
    mix = np.clip(0.5 + 0.6 * bank.noise(rng, area.shape, 1.5, u(0.4, 1)), 0, 1)[..., None]
    tone = _grain(canvas, area, u(0.05, 0.16), u(0.05, 0.2))[..., None]
    texture = tone * (reed * mix + sedge * (1 - mix))
    pools = bank.noise(rng, area.shape, 1.5, u(0.5, 1.0))
    wet = np.clip((pools - u(0.1, 1.0)) * u(2, 6), 0, 1)[..., None]
    texture = texture * (1 - wet) + pool * wet
    if canvas.chance(0.5):
        channel = np.abs(bank.noise(rng, area.shape, 2.0, u(0.4, 1)))[..., None] < u(0.01, 0.06)
        texture = np.where(channel, pool, texture)
    canvas.lay(area, Cover.WETLAND, texture.astype(np.float32))


def paved(canvas: Canvas, area: Area | None, colour: Colour | None = None) -> None:
    """Concrete or asphalt ground with stains and joints."""
    if area is None:
        return
    u = canvas.u
    colour = canvas.palette.pavement() if colour is None else colour
    tone = _grain(canvas, area, u(0.01, 0.06), u(0.02, 0.1))
    if canvas.chance(0.2):
        slab = max(4.0, canvas.px(u(3, 8)))
        along, across = area.along(canvas.grain)
        joints = ((along % slab) < 1) | ((across % slab) < 1)
        tone = tone - 0.08 * joints
    canvas.lay(area, Cover.PAVEMENT, _shade(colour, tone).astype(np.float32))
