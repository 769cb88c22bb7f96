"""Whole landscapes: which covers and things come together, and where."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from tools.scenes import covers, objects
from tools.scenes.canvas import Area, Canvas, Mask, Points
from tools.scenes.classes import Cover
from tools.scenes.palette import Colour

Painter = Callable[[Canvas], None]


@dataclass(frozen=True, slots=True)
class Landscape:
    """How a landscape is painted, how often, and at which ground sampling distances (metres)."""

    paint: Painter
    share: float
    gsd_m: tuple[float, float]


# -- ground to start from


def _ground(canvas: Canvas, kinds: str) -> None:
    """Cover everything; ``kinds`` are initials of grass, bare, tree, crop, paved, wetland."""
    fill = {
        "g": covers.grass, "b": covers.bare, "t": covers.forest, "c": covers.field,
        "p": covers.paved, "w": covers.wetland,
    }  # fmt: skip
    fill[str(canvas.rng.choice(list(kinds)))](canvas, canvas.whole())


def _patches(canvas: Canvas, kinds: str, count: int) -> None:
    fill = {
        "g": covers.grass,
        "b": covers.bare,
        "t": covers.forest,
        "p": covers.paved,
        "w": covers.wetland,
    }
    for _ in range(count):
        area = canvas.of_mask(canvas.blob(canvas.u(0.06, 0.35)))
        fill[str(canvas.rng.choice(list(kinds)))](canvas, area)


# -- farmland


def _field_mosaic(
    canvas: Canvas,
    side_m: float,
    within: Mask | None = None,
    crops: list[Colour] | None = None,
) -> None:
    palette, rng = canvas.palette, canvas.rng
    shared = [palette.crop() for _ in range(4)] if crops is None else crops
    hedge = canvas.chance(0.35)
    margin = canvas.u(0, 4)
    irregular = canvas.u(0, 0.16) if canvas.chance(0.5) else 0.0
    for x, y, width, height in canvas.blocks(side_m, canvas.grain):
        gap = max(0.4, canvas.px(margin))
        corners = canvas.rectangle(x, y, width - gap, height - gap, canvas.grain)
        corners = corners + rng.normal(0, 1, (4, 2)) * irregular * min(width, height)
        area = canvas.of_polygon(corners, within)
        if area is None:
            continue
        draw = rng.random()
        angle = canvas.grain + (math.pi / 2) * rng.integers(2) + rng.normal(0, 0.03)
        if draw < 0.86:
            tint = shared[rng.integers(len(shared))] * rng.uniform(0.82, 1.18)
            colour = np.clip(tint, 0, 1).astype(np.float32) if canvas.chance(0.7) else None
            covers.field(canvas, area, colour, angle)
        elif draw < 0.94:
            covers.grass(canvas, area)
        elif draw < 0.97:
            covers.forest(canvas, area)
        else:
            covers.bare(canvas, area)
        if hedge and canvas.chance(0.3) and canvas.gsd_m < 4:
            edge = np.linspace(corners[0], corners[1], 12)
            objects.tree_line(canvas, edge, canvas.u(4, 14))


def _field_size(canvas: Canvas) -> float:
    """Side of a field in metres, such that some of its edges are in the picture."""
    across = canvas.size * canvas.gsd_m
    return float(np.clip(across * canvas.u(0.1, 0.5), 25, 900))


def _terraces(canvas: Canvas) -> None:
    """Paddies and strips that follow the contour lines of a slope."""
    shape = (canvas.size, canvas.size)
    slope = canvas.bank.blobs(canvas.rng, shape, canvas.u(0.3, 0.6))
    slope = slope + 0.08 * canvas.bank.noise(canvas.rng, shape, 2.0)
    steps = canvas.u(4, 11)
    level = np.floor(slope * steps).astype(np.int32)
    base = [canvas.palette.crop() for _ in range(4)]
    kind = "flooded" if canvas.chance(0.4) else None
    values = np.unique(level)
    for value in values:
        area = canvas.of_mask(level == value)
        tint = base[int(value) % 4] * canvas.u(0.85, 1.15)
        covers.field(canvas, area, np.clip(tint, 0, 1).astype(np.float32), kind=kind)
    edge = np.abs(slope * steps - np.round(slope * steps)) < canvas.u(0.03, 0.1)
    covers.grass(canvas, canvas.of_mask(edge))
    _woods_and_trees(canvas, 0.5)


def _pivots(canvas: Canvas) -> None:
    """Centre-pivot circles on dry ground."""
    _ground(canvas, "bg")
    radius = canvas.px(canvas.u(150, 420))
    radius = float(np.clip(radius, canvas.size * 0.09, canvas.size * 0.45))
    step = radius * canvas.u(2.0, 2.3)
    start = canvas.rng.uniform(-radius, radius, 2)
    for x in np.arange(start[0], canvas.size + radius, step):
        for y in np.arange(start[1], canvas.size + radius, step):
            if canvas.chance(0.85):
                turn = np.arange(40) * (2 * math.pi / 40)
                ring = np.stack([np.cos(turn), np.sin(turn)], 1) * radius + (x, y)
                covers.field(canvas, canvas.of_polygon(ring), angle=canvas.u(0, math.pi))


def _farmland(canvas: Canvas) -> None:
    draw = canvas.rng.random()
    if draw < 0.1:
        _terraces(canvas)
    elif draw < 0.2:
        _pivots(canvas)
    else:
        _ground(canvas, "ggb")
        _field_mosaic(canvas, _field_size(canvas))
    _tracks(canvas)
    if canvas.chance(0.5):
        _ponds(canvas, canvas.rng.integers(1, 6))
    _woods_and_trees(canvas, 0.5)
    if canvas.chance(0.35):
        _stream(canvas)
    if canvas.chance(0.3):
        _farmsteads(canvas, canvas.rng.integers(1, 4))


def _woods_and_trees(canvas: Canvas, probability: float) -> None:
    if canvas.chance(probability):
        covers.forest(canvas, canvas.of_mask(canvas.blob(canvas.u(0.02, 0.2))))
    if canvas.gsd_m < 3 and canvas.chance(probability):
        objects.scattered_trees(canvas, int(canvas.rng.integers(4, 50)))


def _tracks(canvas: Canvas) -> None:
    for _ in range(canvas.rng.integers(0, 3)):
        angle = canvas.grain + (math.pi / 2) * canvas.rng.integers(2)
        line = canvas.path(canvas.u(0.0, 0.25), angle if canvas.chance(0.7) else None)
        if canvas.gsd_m < 6:
            dirt = canvas.chance(0.55)
            wide = canvas.u(3, 5) if dirt else canvas.u(5, 14)
            objects.road(canvas, line, max(wide, canvas.gsd_m * 1.2), dirt)
        if canvas.gsd_m < 2.5 and canvas.chance(0.3):
            objects.tree_line(canvas, line + canvas.px(7), canvas.u(5, 15))


def _farmsteads(canvas: Canvas, count: int) -> None:
    for _ in range(count):
        x, y = canvas.rng.uniform(0.1, 0.9, 2) * canvas.size
        yard = canvas.px(canvas.u(25, 60))
        area = canvas.of_polygon(canvas.rectangle(x, y, yard * 1.3, yard, canvas.grain))
        canvas.rng.choice([covers.bare, covers.grass, covers.paved])(canvas, area)
        for _ in range(canvas.rng.integers(1, 6)):
            at = canvas.rng.uniform(-0.5, 0.5, 2) * yard + (x, y)
            wide, tall = canvas.px(canvas.u(8, 35)), canvas.px(canvas.u(7, 18))
            objects.building(
                canvas, *at, wide, tall, canvas.grain + (math.pi / 2) * canvas.rng.integers(2)
            )
        if canvas.gsd_m < 2.5:
            ring = canvas.rectangle(x, y, yard * 1.5, yard * 1.3, canvas.grain)
            objects.tree_line(canvas, ring[:2], canvas.u(4, 9))


# -- water


def _stream(canvas: Canvas) -> None:
    line = canvas.path(curve=1.0, steps=70)
    width = float(np.clip(canvas.px(canvas.u(4, 60)), 2.5, canvas.size * 0.3))
    if canvas.chance(0.6):
        bank = canvas.of_stroke(line, width * canvas.u(1.15, 1.7) + 2)
        canvas.rng.choice([covers.bare, covers.grass, covers.forest, covers.wetland])(canvas, bank)
    covers.water(canvas, canvas.of_stroke(line, width))


def _meanders(canvas: Canvas) -> None:
    """Broad winding river with sand bars and an oxbow."""
    _ground(canvas, "ttgc")
    _patches(canvas, "ggtbw", int(canvas.rng.integers(1, 4)))
    if canvas.chance(0.4):
        _field_mosaic(canvas, _field_size(canvas), canvas.blob(canvas.u(0.2, 0.6)))
    size = canvas.size
    along = np.linspace(-0.2, 1.2, 120) * size
    swing = canvas.u(0.06, 0.22) * size
    across = swing * np.sin(along / size * canvas.u(6, 16) + canvas.u(0, 6))
    across += swing * 0.5 * np.sin(along / size * canvas.u(14, 24)) + size * canvas.u(0.3, 0.7)
    line = np.stack([along, across], 1)
    if canvas.chance(0.5):
        line = line[:, ::-1]
    width = size * canvas.u(0.03, 0.2)
    colour = canvas.palette.water()
    if canvas.chance(0.6):
        covers.bare(
            canvas, canvas.of_stroke(line + width * canvas.u(-0.35, 0.35), width * 1.1), sand=True
        )
    covers.water(canvas, canvas.of_stroke(line, width), colour)
    if canvas.chance(0.5):
        centre, radius = canvas.rng.uniform(0.1, 0.9, 2) * size, size * canvas.u(0.06, 0.14)
        turn = np.linspace(0, canvas.u(3, 5), 30)
        oxbow = np.stack([np.cos(turn), np.sin(turn)], 1) * radius + centre
        covers.water(canvas, canvas.of_stroke(oxbow, width * canvas.u(0.4, 0.8)), colour)
    if canvas.gsd_m < 3 and canvas.chance(0.4):
        _fleet(canvas, int(canvas.rng.integers(1, 7)), (8, 90))
    if canvas.chance(0.35) and canvas.gsd_m < 5:
        objects.road(canvas, canvas.path(0.1), max(canvas.u(7, 18), canvas.gsd_m * 1.5))


def _ponds(canvas: Canvas, count: int) -> None:
    """Small ponds with a rim of reeds, mud or trees; some rectangular."""
    for _ in range(count):
        x, y = canvas.rng.uniform(0, 1, 2) * canvas.size
        radius = float(np.clip(canvas.px(canvas.u(8, 80)), 3, canvas.size * 0.12))
        if canvas.chance(0.25):
            corners = canvas.rectangle(x, y, radius * 2.2, radius * 1.3, canvas.grain)
        else:
            turn = np.arange(24) * (2 * math.pi / 24)
            wobble = (
                1
                + 0.25 * np.sin(2 * turn + canvas.u(0, 6))
                + 0.15 * np.sin(3 * turn + canvas.u(0, 6))
            )
            stretch = canvas.u(0.6, 1.6)
            corners = (
                np.stack([np.cos(turn) * stretch, np.sin(turn)], 1) * (radius * wobble)[:, None]
            )
            corners = corners + (x, y)
        if canvas.chance(0.7):
            rim = (corners - (x, y)) * canvas.u(1.12, 1.6) + (x, y)
            rims = [covers.wetland, covers.bare, covers.grass, covers.forest]
            canvas.rng.choice(rims)(canvas, canvas.of_polygon(rim))
        covers.water(canvas, canvas.of_polygon(corners))


def _lakes(canvas: Canvas) -> None:
    """Lakes of any colour among fields, woods or meadows."""
    _ground(canvas, "ggtc")
    if canvas.chance(0.7):
        _field_mosaic(canvas, _field_size(canvas), None if canvas.chance(0.6) else canvas.blob(0.6))
    _patches(canvas, "tgb", int(canvas.rng.integers(0, 3)))
    for _ in range(canvas.rng.integers(1, 4)):
        mask = canvas.blob(canvas.u(0.04, 0.3), canvas.u(0.4, 1.0), 0.15)
        rim = int(canvas.rng.integers(0, max(2, canvas.size // 40)))
        if rim:
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rim + 1, 2 * rim + 1))
            wide = cv2.dilate(mask.astype(np.uint8), disc).astype(np.bool_)
            rims = [covers.wetland, covers.wetland, covers.bare, covers.grass, covers.forest]
            canvas.rng.choice(rims)(canvas, canvas.of_mask(wide & ~mask))
        covers.water(canvas, canvas.of_mask(mask))
    if canvas.chance(0.5):
        _ponds(canvas, int(canvas.rng.integers(2, 12)))
    _tracks(canvas)
    _woods_and_trees(canvas, 0.3)
    if canvas.gsd_m < 1.5 and canvas.chance(0.4):
        _fleet(canvas, int(canvas.rng.integers(1, 8)), (5, 20))
    if canvas.chance(0.25):
        _farmsteads(canvas, 2)


def _prairie(canvas: Canvas) -> None:
    """Wide fields around many lakes and sloughs, each of its own colour and with its own rim."""
    _ground(canvas, "gc")
    across = canvas.size * canvas.gsd_m
    side = float(np.clip(across * canvas.u(0.2, 0.6), 150, 1600))
    lush = canvas.chance(0.6)
    _field_mosaic(canvas, side, crops=_prairie_crops(canvas, lush))
    _patches(canvas, "g", int(canvas.rng.integers(0, 2)))
    for x, y, width, height in canvas.blocks(side, canvas.grain) if canvas.chance(0.5) else ():
        corner = canvas.rectangle(x, y, width, height, canvas.grain)
        wide = max(canvas.u(5, 9), canvas.gsd_m * 1.1)
        objects.road(canvas, np.linspace(corner[0], corner[1], 4), wide, canvas.chance(0.7))
    _prairie_lakes(canvas, algal=canvas.u(0, 1.0) if lush else canvas.u(0, 0.3))
    _tracks(canvas)
    if canvas.chance(0.3):
        _farmsteads(canvas, 1)


def _prairie_crops(canvas: Canvas, lush: bool) -> list[Colour]:
    """Few colours for many fields; now and then one crop everywhere, in slightly other tones."""
    if lush and canvas.chance(0.4):
        crop = canvas.palette.lush_crop()
        return [crop * canvas.u(0.8, 1.2) for _ in range(3)]
    return [
        canvas.palette.lush_crop() if lush and canvas.chance(0.8) else canvas.palette.crop()
        for _ in range(canvas.rng.integers(1, 4))
    ]


def _prairie_lakes(canvas: Canvas, algal: float) -> None:
    """Lakes of all sizes; a share of them full of algae and streaked by the wind."""
    size = math.exp(canvas.rng.uniform(math.log(0.3), math.log(2.2)))
    wet = canvas.blob(canvas.u(0.05, 0.4), size, 0.25).astype(np.uint8)
    count, basins = cv2.connectedComponents(wet)
    shared = canvas.palette.water()
    alike, salt = canvas.u(0, 0.6), canvas.chance(0.4)
    for basin in range(1, count):
        mask = basins == basin
        if mask.sum() < 12:
            continue
        _rim(canvas, mask, salt)
        area = canvas.of_mask(mask)
        if canvas.chance(0.12):
            covers.wetland(canvas, area)
        elif canvas.chance(algal):
            covers.water(canvas, area, canvas.palette.algal_water(), windy=canvas.chance(0.8))
        else:
            colour = shared if canvas.chance(alike) else canvas.palette.water()
            covers.water(canvas, area, colour, windy=canvas.chance(0.2))


def _rim(canvas: Canvas, mask: Mask, salt: bool) -> None:
    """Lay a narrow shore around a lake: reeds, mud, meadow, or pale dried salt."""
    reach = int(canvas.rng.integers(0, max(2, canvas.size // 60)))
    if reach == 0:
        return
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    shore = canvas.of_mask(cv2.dilate(mask.astype(np.uint8), disc).astype(np.bool_) & ~mask)
    if salt and canvas.chance(0.6):
        covers.bare(canvas, shore, sand=True)
    else:
        rims = [covers.wetland, covers.wetland, covers.bare, covers.grass]
        canvas.rng.choice(rims)(canvas, shore)


def _coast(canvas: Canvas) -> None:
    """Sea, beach and whatever lies behind it."""
    covers.water(canvas, canvas.whole())
    size = canvas.size
    angle = canvas.u(0, 2 * math.pi)
    along, across = canvas.whole().along(angle)
    wobble = (
        canvas.bank.blobs(canvas.rng, (size, size), canvas.u(0.3, 0.8))
        * size
        * canvas.u(0.02, 0.12)
    )
    distance = across - across.mean() + wobble + size * canvas.u(-0.2, 0.25)
    del along
    beach = canvas.of_mask(distance > 0)
    if canvas.chance(0.5):
        foam = (distance > -canvas.px(canvas.u(2, 25))) & (distance < 0)
        canvas.pixels[foam] += canvas.u(0.1, 0.45)
    covers.bare(canvas, beach, sand=True)
    inland = distance > canvas.px(canvas.u(0, 40)) + 2
    canvas.rng.choice([covers.grass, covers.forest, covers.grass, covers.bare])(
        canvas, canvas.of_mask(inland)
    )
    if canvas.chance(0.5):
        _settle(canvas, distance > canvas.px(canvas.u(20, 60)), canvas.u(28, 60), 0.25)
    elif canvas.chance(0.5):
        _field_mosaic(canvas, _field_size(canvas), distance > canvas.px(50))
    if canvas.gsd_m < 4:
        _fleet(canvas, int(canvas.rng.integers(0, 14)), (6, 120))


def _harbour(canvas: Canvas) -> None:
    """Quays, piers, sheds, and ships of many sizes."""
    covers.water(canvas, canvas.whole())
    size, angle = canvas.size, canvas.grain
    _, across = canvas.whole().along(angle)
    shore = across - across.mean() + size * canvas.u(-0.1, 0.2)
    covers.paved(canvas, canvas.of_mask(shore > 0))
    cosine, sine = math.cos(angle), math.sin(angle)
    normal = np.array([-sine, cosine])
    origin = np.array([size / 2, size / 2]) - normal * (shore[size // 2, size // 2])
    marina = canvas.chance(0.5)
    spacing = max(9.0, canvas.px(canvas.u(18, 35) if marina else canvas.u(70, 160)))
    reach = canvas.px(canvas.u(40, 130) if marina else canvas.u(80, 300))
    width = max(1.5, canvas.px(canvas.u(2, 4) if marina else canvas.u(15, 50)))
    paint = canvas.palette.pavement()
    for k in np.arange(-size, size, spacing):
        foot = origin + np.array([cosine, sine]) * k
        tip = foot - normal * reach
        middle = (foot + tip) / 2
        pier = canvas.rectangle(*middle, width, reach, angle)
        covers.paved(canvas, canvas.of_polygon(pier), paint)
        step = max(4.0, canvas.px(canvas.u(4, 7) if marina else canvas.u(60, 150)))
        for at in np.arange(step, reach, step):
            for side in (-1, 1):
                if canvas.chance(0.65):
                    length = canvas.u(6, 15) if marina else canvas.u(30, 150)
                    beam = max(canvas.px(length) * (0.55 if marina else 0.16), 2.5)
                    spot = foot - normal * at + np.array([cosine, sine]) * side * (width / 2 + beam)
                    turn = angle if marina else angle + math.pi / 2
                    objects.ship(canvas, *spot, turn + math.pi * canvas.rng.integers(2), length)
    _halls(canvas, canvas.labels == Cover.PAVEMENT, int(canvas.rng.integers(3, 14)))
    _fleet(canvas, int(canvas.rng.integers(1, 8)), (10, 200))


def _fleet(canvas: Canvas, count: int, length_m: tuple[float, float]) -> None:
    """Ships on whatever water the canvas has."""
    rows, cols = np.nonzero(
        cv2.erode((canvas.labels == Cover.WATER).astype(np.uint8), np.ones((5, 5)))
    )
    if rows.size == 0:
        return
    for at in canvas.rng.integers(0, rows.size, count):
        length = math.exp(canvas.u(*np.log(length_m)))
        objects.ship(canvas, cols[at], rows[at], canvas.u(0, 2 * math.pi), length)


def _wetlands(canvas: Canvas) -> None:
    _ground(canvas, "wgwtg")
    for _ in range(canvas.rng.integers(2, 5)):
        covers.wetland(canvas, canvas.of_mask(canvas.blob(canvas.u(0.15, 0.5))))
    _patches(canvas, "tg", int(canvas.rng.integers(0, 3)))
    for _ in range(canvas.rng.integers(0, 3)):
        covers.water(
            canvas, canvas.of_mask(canvas.blob(canvas.u(0.03, 0.2), canvas.u(0.5, 1), 0.4))
        )
    if canvas.chance(0.6):
        _stream(canvas)
    _ponds(canvas, int(canvas.rng.integers(0, 8)))
    _woods_and_trees(canvas, 0.3)


# -- woods and dry land


def _woods(canvas: Canvas) -> None:
    _ground(canvas, "t")
    for _ in range(canvas.rng.integers(1, 4)):
        covers.forest(canvas, canvas.of_mask(canvas.blob(canvas.u(0.15, 0.5))))
    _patches(canvas, "ggbw", int(canvas.rng.integers(1, 4)))
    if canvas.chance(0.3):
        _open_woodland(canvas)
    if canvas.chance(0.4):
        _ponds(canvas, int(canvas.rng.integers(1, 4)))
    if canvas.chance(0.3):
        _stream(canvas)
    _tracks(canvas)
    if canvas.chance(0.15):
        _farmsteads(canvas, 2)


def _open_woodland(canvas: Canvas) -> None:
    """Single crowns on dry or grassy ground, the ground showing between them."""
    if canvas.chance(0.8):
        _ground(canvas, "bgg")
    if canvas.gsd_m > 2.5:
        covers.forest(canvas, canvas.of_mask(canvas.blob(canvas.u(0.2, 0.6), ragged=0.9)))
        return
    where = canvas.blob(canvas.u(0.4, 0.95))
    footprint = (canvas.size * canvas.gsd_m) ** 2
    count = int(np.clip(footprint / canvas.u(40, 400), 20, 420))
    objects.scattered_trees(canvas, count, where)


def _dry_land(canvas: Canvas) -> None:
    _ground(canvas, "b")
    for _ in range(canvas.rng.integers(1, 4)):
        covers.bare(canvas, canvas.of_mask(canvas.blob(canvas.u(0.1, 0.45))))
    _patches(canvas, "gb", int(canvas.rng.integers(0, 3)))
    if canvas.chance(0.5):
        _open_woodland(canvas)
    if canvas.chance(0.3):
        _stream(canvas)
    _tracks(canvas)
    if canvas.chance(0.2):
        _farmsteads(canvas, 3)
    if canvas.chance(0.25):
        _ponds(canvas, 2)


# -- settlements


def _settle(canvas: Canvas, within: Mask | None, block_m: float, big: float) -> None:
    """Streets with houses, gardens, car parks and courts, inside a mask."""
    angle = canvas.grain
    street_m = canvas.u(12, 26) if canvas.gsd_m < 0.6 and canvas.chance(0.3) else canvas.u(5, 12)
    street = max(1.8, canvas.px(street_m))
    boxes = canvas.blocks(max(block_m, canvas.gsd_m * 9), angle)
    inner = np.zeros((canvas.size, canvas.size), np.uint8)
    for x, y, width, height in boxes:
        corners = canvas.rectangle(x, y, width - street, height - street, angle)
        cv2.fillPoly(inner, [np.round(corners).astype(np.int32)], 1)
    street_mask = inner == 0
    if within is not None:
        street_mask &= within
    if canvas.chance(0.9):
        _pave_streets(canvas, street_mask)
    roofs = [canvas.palette.roof() for _ in range(3)]
    dense = canvas.u(0.35, 0.95)
    for x, y, width, height in boxes:
        corners = canvas.rectangle(x, y, width - street, height - street, angle)
        lot = canvas.of_polygon(corners, within)
        if lot is None or lot.mask.sum() < 12:
            continue
        _block(canvas, lot, x, y, width - street, height - street, roofs, dense, canvas.chance(big))
    _street_life(canvas, boxes, street, within)


def _pave_streets(canvas: Canvas, mask: Mask) -> None:
    area = canvas.of_mask(mask)
    if area is None:
        return
    tone = 1 + canvas.u(0.02, 0.07) * canvas.bank.noise(canvas.rng, area.shape, 0.6)
    tone = tone + canvas.u(0.02, 0.08) * canvas.bank.noise(canvas.rng, area.shape, 1.5)
    canvas.lay(area, Cover.ROAD, canvas.palette.road() * tone[..., None])


def _street_life(
    canvas: Canvas,
    boxes: list[tuple[float, float, float, float]],
    street: float,
    within: Mask | None,
) -> None:
    """Centre lines, cars and street trees along the edges of the blocks."""
    angle = canvas.grain
    lines = canvas.chance(0.5) and street > 5
    trees = canvas.chance(0.35) and canvas.gsd_m < 1.5
    cars = canvas.gsd_m < 0.9
    for x, y, width, height in boxes:
        corners = canvas.rectangle(x, y, width, height, angle)
        for first, last in ((corners[0], corners[1]), (corners[1], corners[2])):
            if within is not None and not _holds(within, (first + last) / 2):
                continue
            if lines:
                for k in np.arange(0, 1, 0.1):
                    start = first + (last - first) * k
                    dash = start + (last - first) * 0.05
                    canvas.line(start, dash, objects.WHITE, max(1, canvas.px(0.2)))
            heading = math.atan2(*(last - first)[::-1])
            side = np.array([-math.sin(heading), math.cos(heading)]) * street
            for _ in range(canvas.rng.integers(0, 6) if cars else 0):
                at = first + (last - first) * canvas.rng.random() + side * canvas.u(-0.4, 0.4)
                objects.car(canvas, *at, heading)
            if trees and canvas.chance(0.5):
                edge = np.linspace(first, last, 8) + side * 0.6
                objects.tree_line(canvas, edge, canvas.u(6, 14))


def _holds(mask: Mask, point: Points) -> bool:
    col, row = (int(v) for v in point)
    return 0 <= row < mask.shape[0] and 0 <= col < mask.shape[1] and bool(mask[row, col])


def _block(
    canvas: Canvas,
    lot: Area,
    x: float,
    y: float,
    width: float,
    height: float,
    roofs: list[np.ndarray],
    dense: float,
    big: bool,
) -> None:
    """One block between streets."""
    draw = canvas.rng.random()
    angle = canvas.grain
    if draw < 0.05:
        covers.grass(canvas, lot)
        objects.scattered_trees(canvas, 25, _full(canvas, lot))
        return
    if draw < 0.09:
        covers.bare(canvas, lot)
        return
    if draw < 0.13:
        covers.grass(canvas, lot)
        objects.sports_ground(canvas, x, y, angle + (math.pi / 2) * (width < height))
        return
    if draw < (0.2 if big else 0.16):
        objects.car_park(canvas, x, y, width, height, angle)
        return
    if canvas.chance(0.55 if not big else 0.12):
        covers.grass(canvas, lot, smooth=True)
    elif canvas.chance(0.75):
        covers.paved(canvas, lot)
    else:
        covers.bare(canvas, lot)
    if big:
        _big_buildings(canvas, x, y, width, height, roofs)
    else:
        _houses(canvas, x, y, width, height, roofs, dense)


def _full(canvas: Canvas, area: Area) -> Mask:
    mask = np.zeros((canvas.size, canvas.size), np.bool_)
    mask[area.slices()] = area.mask
    return mask


def _houses(
    canvas: Canvas,
    x: float,
    y: float,
    width: float,
    height: float,
    roofs: list[np.ndarray],
    dense: float,
) -> None:
    """Rows of houses with gardens, trees and a pool here and there; some stand wall to wall."""
    angle = canvas.grain
    terraced = canvas.chance(0.3)
    cosine, sine = math.cos(angle), math.sin(angle)
    plot_w = max(4.0, canvas.px(canvas.u(11, 22)))
    plot_h = max(4.0, canvas.px(canvas.u(14, 28)))
    trees = canvas.u(0.0, 1.6) if canvas.gsd_m < 2 else 0.0
    pools = canvas.u(0.0, 0.3) if canvas.chance(0.4) and canvas.gsd_m < 1.2 else 0.0
    for along in np.arange(-width / 2 + plot_w / 2, width / 2 - plot_w / 3, plot_w):
        for across in np.arange(-height / 2 + plot_h / 2, height / 2 - plot_h / 3, plot_h):
            cx = x + along * cosine - across * sine
            cy = y + along * sine + across * cosine
            if not (-plot_w < cx < canvas.size + plot_w and -plot_h < cy < canvas.size + plot_h):
                continue
            if canvas.chance(dense) and not canvas.shows(cx, cy, Cover.WATER):
                colour = roofs[canvas.rng.integers(3)] * canvas.u(0.85, 1.15)
                wide, tall = plot_w * canvas.u(0.5, 0.92), plot_h * canvas.u(0.4, 0.75)
                if terraced:
                    wide = plot_w * 1.04
                turn = angle + canvas.rng.normal(0, 0.02)
                objects.building(canvas, cx, cy, wide, tall, turn, np.clip(colour, 0, 1))
            if canvas.chance(pools):
                back = plot_h * 0.42
                objects.pool(canvas, cx - back * -sine, cy - back * cosine, angle)
            for _ in range(canvas.rng.poisson(trees)):
                at = canvas.rng.uniform(-0.5, 0.5, 2) * (plot_w, plot_h) + (cx, cy)
                objects.tree(canvas, *at, canvas.u(1.2, 4.2), canvas.palette.tree())


def _big_buildings(
    canvas: Canvas, x: float, y: float, width: float, height: float, roofs: list[np.ndarray]
) -> None:
    """Blocks of flats, offices or halls, with cars between."""
    angle = canvas.grain
    for _ in range(canvas.rng.integers(1, 5)):
        at = canvas.rng.uniform(-0.3, 0.3, 2) * (width, height)
        cx = x + at[0] * math.cos(angle) - at[1] * math.sin(angle)
        cy = y + at[0] * math.sin(angle) + at[1] * math.cos(angle)
        if canvas.shows(cx, cy, Cover.WATER):
            continue
        wide, tall = width * canvas.u(0.2, 0.7), height * canvas.u(0.2, 0.7)
        turn = angle + (math.pi / 2) * canvas.rng.integers(2)
        colour = np.clip(roofs[canvas.rng.integers(3)] * canvas.u(0.85, 1.15), 0, 1)
        objects.building(canvas, cx, cy, wide, tall, turn, colour)
    if canvas.gsd_m < 0.9:
        for _ in range(canvas.rng.integers(0, 14)):
            at = canvas.rng.uniform(-0.48, 0.48, 2) * (width, height)
            cx = x + at[0] * math.cos(angle) - at[1] * math.sin(angle)
            cy = y + at[0] * math.sin(angle) + at[1] * math.cos(angle)
            if canvas.shows(cx, cy, Cover.PAVEMENT):
                objects.car(canvas, cx, cy, angle + (math.pi / 2) * canvas.rng.integers(2))


def _halls(canvas: Canvas, within: Mask, count: int) -> None:
    rows, cols = np.nonzero(cv2.erode(within.astype(np.uint8), np.ones((7, 7))))
    if rows.size == 0:
        return
    for at in canvas.rng.integers(0, rows.size, count):
        wide, tall = canvas.px(canvas.u(20, 110)), canvas.px(canvas.u(15, 50))
        limit = canvas.size * 0.4
        objects.building(
            canvas, cols[at], rows[at], min(wide, limit), min(tall, limit), canvas.grain
        )


def _town(canvas: Canvas) -> None:
    _ground(canvas, "ggbp")
    _patches(canvas, "gtb", int(canvas.rng.integers(0, 3)))
    within = None if canvas.chance(0.7) else canvas.blob(canvas.u(0.4, 0.8))
    _settle(canvas, within, canvas.u(30, 75), canvas.u(0.05, 0.4))
    if canvas.chance(0.35):
        covers.forest(canvas, canvas.of_mask(canvas.blob(canvas.u(0.03, 0.15))))
    if canvas.chance(0.3):
        _stream(canvas)
    if canvas.chance(0.35):
        objects.road(canvas, canvas.path(0.2), canvas.u(9, 24))
    if canvas.chance(0.18):
        objects.railway(canvas, canvas.path(0.2), int(canvas.rng.integers(1, 4)))


def _estate(canvas: Canvas) -> None:
    """Rows of flats on wide asphalt: avenues, carports, car parks, trees close to the walls."""
    asphalt = canvas.palette.road()
    yard = np.clip(asphalt * canvas.u(0.85, 1.2), 0, 1).astype(np.float32)
    covers.paved(canvas, canvas.whole(), yard if canvas.chance(0.8) else None)
    _patches(canvas, "gb", int(canvas.rng.integers(0, 2)))
    avenues = [
        canvas.path(canvas.u(0, 0.15), canvas.grain + math.pi / 2 * turn)
        for turn in canvas.rng.permutation([0, 1, 1])[: canvas.rng.integers(1, 4)]
    ]
    roofs = [canvas.palette.roof() for _ in range(2)]
    side, dense = canvas.u(30, 60), canvas.u(0.5, 1.0)
    for x, y, width, height in canvas.blocks(side, canvas.grain):
        wide, tall = width * canvas.u(0.75, 0.95), height * canvas.u(0.75, 0.95)
        draw = canvas.rng.random()
        if draw < 0.15:
            objects.car_park(canvas, x, y, wide, tall, canvas.grain)
        elif draw < 0.25:
            lot = canvas.of_polygon(canvas.rectangle(x, y, wide, tall, canvas.grain))
            canvas.rng.choice([covers.grass, covers.bare])(canvas, lot)
        if draw >= 0.15:
            _row_of_flats(canvas, x, y, wide, tall, roofs[canvas.rng.integers(2)], dense)
    for line in avenues:
        objects.road(canvas, line, canvas.u(9, 34), paint=asphalt)
        if canvas.chance(0.6):
            objects.tree_line(canvas, line + canvas.px(canvas.u(10, 20)), canvas.u(6, 16))
    if canvas.chance(0.5):
        objects.scattered_trees(canvas, int(canvas.rng.integers(5, 60)))


def _row_of_flats(
    canvas: Canvas, x: float, y: float, width: float, height: float, roof: np.ndarray, dense: float
) -> None:
    """One long house of stepped units, a carport beside it, trees and cars around it."""
    turned = width < height
    angle = canvas.grain + (math.pi / 2) * turned
    long, short = max(width, height), min(width, height)
    deep = float(np.clip(short * canvas.u(0.3, 0.6), canvas.px(7), canvas.px(24)))
    unit = max(3.0, canvas.px(canvas.u(6, 14)))
    cosine, sine = math.cos(angle), math.sin(angle)

    def at(along: float, across: float) -> tuple[float, float]:
        return x + along * cosine - across * sine, y + along * sine + across * cosine

    tint = np.clip(roof * canvas.u(0.85, 1.15), 0, 1).astype(np.float32)
    step = canvas.u(0, 0.15) * deep
    reach = long * canvas.u(0.3, 0.48)
    for along in np.arange(-reach, reach, unit):
        centre = at(along + unit / 2, canvas.u(-step, step))
        if canvas.chance(0.97):
            objects.building(canvas, *centre, unit * 1.04, deep, angle, tint)
    if canvas.chance(0.6):
        metal = canvas.palette.glass() if canvas.chance(0.7) else canvas.palette.roof()
        centre = at(canvas.u(-0.2, 0.2) * long, deep / 2 + canvas.px(canvas.u(6, 12)))
        objects.building(canvas, *centre, long * canvas.u(0.2, 0.6), canvas.px(5.5), angle, metal)
    crown = canvas.palette.tree()
    for _ in range(canvas.rng.poisson(dense * min(20.0, 2 * reach / max(2.0, canvas.px(6))))):
        side = canvas.rng.choice([-1, 1]) * (deep / 2 + canvas.px(canvas.u(0, 6)))
        shade = np.clip(crown * canvas.u(0.8, 1.25), 0, 1).astype(np.float32)
        objects.tree(canvas, *at(canvas.u(-1, 1) * reach, side), canvas.u(1.5, 5), shade)
    for _ in range(canvas.rng.integers(0, 7)):
        spot = at(canvas.u(-0.5, 0.5) * long, canvas.u(-0.5, 0.5) * short)
        if canvas.shows(*spot, Cover.PAVEMENT):
            objects.car(canvas, *spot, angle + math.pi / 2 * canvas.rng.integers(2))


def _village(canvas: Canvas) -> None:
    _farmland(canvas)
    mask = canvas.blob(canvas.u(0.1, 0.35), 0.4)
    covers.grass(canvas, canvas.of_mask(mask))
    _settle(canvas, mask, canvas.u(30, 70), 0.1)
    if canvas.chance(0.4):
        objects.road(canvas, canvas.path(0.25), canvas.u(6, 11))


def _industry(canvas: Canvas) -> None:
    _ground(canvas, "pppb")
    _patches(canvas, "gbp", int(canvas.rng.integers(0, 4)))
    _settle(canvas, None, canvas.u(60, 130), 0.95)
    if canvas.chance(0.45):
        objects.railway(canvas, canvas.path(0.15), int(canvas.rng.integers(1, 8)))
    if canvas.chance(0.3):
        objects.road(canvas, canvas.path(0.15), canvas.u(12, 28))
    if canvas.chance(0.2):
        _stream(canvas)
    for _ in range(canvas.rng.integers(0, 3)):
        x, y = canvas.rng.uniform(0.1, 0.9, 2) * canvas.size
        sides = canvas.px(canvas.u(40, 110)), canvas.px(canvas.u(30, 80))
        objects.car_park(canvas, x, y, *sides, canvas.grain)


def _rail_yard(canvas: Canvas) -> None:
    _ground(canvas, "pbgg")
    _patches(canvas, "gtb", int(canvas.rng.integers(0, 3)))
    if canvas.chance(0.6):
        _settle(canvas, canvas.blob(canvas.u(0.3, 0.7)), canvas.u(35, 90), 0.5)
    elif canvas.chance(0.6):
        _field_mosaic(canvas, _field_size(canvas))
    heading = canvas.u(0, 2 * math.pi)
    for _ in range(canvas.rng.integers(1, 4)):
        line = canvas.path(canvas.u(0, 0.3), heading + canvas.rng.normal(0, 0.08), steps=60)
        objects.railway(canvas, line, int(canvas.rng.integers(1, 7)))
    if canvas.chance(0.5):
        objects.road(canvas, canvas.path(0.1), canvas.u(5, 14))
    _woods_and_trees(canvas, 0.4)


def _park(canvas: Canvas) -> None:
    covers.grass(canvas, canvas.whole(), smooth=canvas.chance(0.5))
    _patches(canvas, "tgt", int(canvas.rng.integers(1, 4)))
    for _ in range(canvas.rng.integers(1, 7)):
        x, y = canvas.rng.uniform(0.1, 0.9, 2) * canvas.size
        objects.sports_ground(canvas, x, y, canvas.grain + (math.pi / 2) * canvas.rng.integers(2))
    if canvas.chance(0.5):
        _ponds(canvas, int(canvas.rng.integers(1, 4)))
    for _ in range(canvas.rng.integers(0, 3)):
        x, y = canvas.rng.uniform(0.1, 0.9, 2) * canvas.size
        sides = canvas.px(canvas.u(30, 80)), canvas.px(canvas.u(25, 50))
        objects.car_park(canvas, x, y, *sides, canvas.grain)
    objects.scattered_trees(canvas, int(canvas.rng.integers(10, 90)))
    for _ in range(canvas.rng.integers(0, 3)):
        objects.road(canvas, canvas.path(0.6), canvas.u(2.5, 9), canvas.chance(0.3))
    for _ in range(canvas.rng.integers(0, 4)):
        x, y = canvas.rng.uniform(0.1, 0.9, 2) * canvas.size
        sides = canvas.px(canvas.u(10, 50)), canvas.px(canvas.u(8, 25))
        objects.building(canvas, x, y, *sides, canvas.grain)
    if canvas.chance(0.3):
        for _ in range(canvas.rng.integers(1, 5)):
            objects.pool(canvas, *(canvas.rng.uniform(0.1, 0.9, 2) * canvas.size), canvas.grain)


def _energy_and_glass(canvas: Canvas) -> None:
    """Solar farms and greenhouses on farmland."""
    _ground(canvas, "ggb")
    _field_mosaic(canvas, _field_size(canvas))
    solar = canvas.chance(0.5)
    boxes = canvas.blocks(max(canvas.u(50, 130), canvas.gsd_m * canvas.size * 0.15), canvas.grain)
    for x, y, width, height in boxes:
        if not canvas.chance(0.45):
            continue
        wide, tall = width * canvas.u(0.75, 0.97), height * canvas.u(0.75, 0.97)
        if solar:
            objects.solar_farm(canvas, x, y, wide, tall, canvas.grain)
        else:
            _glasshouses(canvas, x, y, wide, tall)
    _tracks(canvas)
    if canvas.chance(0.4):
        _farmsteads(canvas, int(canvas.rng.integers(1, 4)))
    _woods_and_trees(canvas, 0.4)


def _glasshouses(canvas: Canvas, x: float, y: float, width: float, height: float) -> None:
    angle = canvas.grain
    across_m = canvas.u(8, 14) if canvas.chance(0.5) else canvas.u(25, 70)
    step = max(4.0, canvas.px(across_m))
    gap = max(1.0, canvas.px(canvas.u(1, 4)))
    covers.bare(canvas, canvas.of_polygon(canvas.rectangle(x, y, width, height, angle)))
    for across in np.arange(-height / 2 + step / 2, height / 2 - step / 3, step):
        cx, cy = x - across * math.sin(angle), y + across * math.cos(angle)
        objects.greenhouse(canvas, cx, cy, width * canvas.u(0.85, 1), step - gap, angle)


LANDSCAPES: dict[str, Landscape] = {
    "town": Landscape(_town, 0.2, (0.2, 1.3)),
    "estate": Landscape(_estate, 0.34, (0.15, 0.8)),
    "village": Landscape(_village, 0.07, (0.3, 3.0)),
    "industry": Landscape(_industry, 0.09, (0.22, 1.5)),
    "railway": Landscape(_rail_yard, 0.06, (0.2, 1.2)),
    "park": Landscape(_park, 0.06, (0.2, 1.0)),
    "farmland": Landscape(_farmland, 0.14, (0.3, 10.0)),
    "lakes": Landscape(_lakes, 0.08, (0.5, 10.0)),
    "prairie": Landscape(_prairie, 0.3, (1.5, 10.0)),
    "meanders": Landscape(_meanders, 0.05, (0.5, 10.0)),
    "coast": Landscape(_coast, 0.04, (0.3, 6.0)),
    "harbour": Landscape(_harbour, 0.06, (0.25, 2.0)),
    "wetlands": Landscape(_wetlands, 0.04, (0.4, 8.0)),
    "woods": Landscape(_woods, 0.06, (0.2, 8.0)),
    "dry land": Landscape(_dry_land, 0.05, (0.2, 8.0)),
    "energy": Landscape(_energy_and_glass, 0.07, (0.25, 1.8)),
}
