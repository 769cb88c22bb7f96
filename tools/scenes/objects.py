"""Things that stand on the ground: buildings, trees, cars, ships, pools, courts, panels, lines."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from tools.scenes import covers
from tools.scenes.canvas import Area, Canvas, Mask, Points
from tools.scenes.classes import Cover
from tools.scenes.palette import Colour
from tools.scenes.textures import Float

WHITE = np.array([0.93, 0.93, 0.9, 0.85], np.float32)


# -- buildings


def building(
    canvas: Canvas,
    x: float,
    y: float,
    width: float,
    height: float,
    angle: float,
    colour: Colour | None = None,
) -> None:
    """House, block or hall with a gable, hip, flat or ribbed roof; sizes in pixels."""
    if min(width, height) < 1.5:
        return
    area = canvas.of_polygon(canvas.rectangle(x, y, width, height, angle))
    if area is None:
        return
    colour = canvas.palette.roof() if colour is None else colour
    if min(width, height) > 6 and canvas.chance(0.25):
        area = _notched(canvas, area, x, y, width, height, angle)
    along, across = _local(area, x, y, angle)
    texture = _roof(canvas, area, along, across, width, height, angle, colour)
    long_m = max(width, height) * canvas.gsd_m
    tall = canvas.u(3, 8) if long_m < 25 else canvas.u(5, 25)
    canvas.lay(area, Cover.BUILDING, texture, tall)
    if min(width, height) > 8 and canvas.chance(0.07):
        _roof_panels(canvas, area, along, across, width, height)


def _local(area: Area, x: float, y: float, angle: float) -> tuple[Float, Float]:
    along, across = area.along(angle)
    cosine, sine = math.cos(angle), math.sin(angle)
    return along - (x * cosine + y * sine), across - (y * cosine - x * sine)


def _notched(
    canvas: Canvas, area: Area, x: float, y: float, width: float, height: float, angle: float
) -> Area:
    """Take a corner away, which makes an L."""
    corner = canvas.rectangle(x, y, width, height, angle)[canvas.rng.integers(4)]
    cut = canvas.rectangle(*corner, width * canvas.u(0.5, 1.0), height * canvas.u(0.5, 1.0), angle)
    raster = area.mask.astype(np.uint8)
    cv2.fillPoly(raster, [np.round(cut - (area.col, area.row)).astype(np.int32)], 0)
    mask = raster.astype(np.bool_)
    return Area(area.row, area.col, mask) if mask.any() else area


def _roof(
    canvas: Canvas,
    area: Area,
    along: Float,
    across: Float,
    width: float,
    height: float,
    angle: float,
    colour: Colour,
) -> Float:
    u, rng = canvas.u, canvas.rng
    tone = 1 + u(0.01, 0.06) * canvas.bank.noise(rng, area.shape, 0.6)
    tone = tone + u(0, 0.06) * canvas.bank.noise(rng, area.shape, 1.5)
    light_along = math.cos(canvas.sun - angle)
    light_across = math.sin(canvas.sun - angle)
    contrast = u(0.08, 0.38)
    kind = rng.choice(["gable", "hip", "flat", "ribbed"], p=[0.3, 0.25, 0.3, 0.15])
    if kind == "gable":
        side = np.sign(along) * light_along if width < height else np.sign(across) * light_across
        tone = tone + contrast * side
    elif kind == "hip":
        ends = (width / 2 - np.abs(along)) < (height / 2 - np.abs(across))
        tone = tone + contrast * np.where(
            ends, np.sign(along) * light_along, np.sign(across) * light_across
        )
    elif kind == "ribbed":
        period = max(2.5, canvas.px(u(0.8, 6)))
        rib = along if width > height else across
        tone = tone + u(0.02, 0.12) * np.sign(np.sin(rib * 2 * math.pi / period))
    texture = colour * np.maximum(tone, 0.2)[..., None].astype(np.float32)
    if kind == "flat" and min(width, height) > 8:
        _flat_roof_details(canvas, texture, along, across, width, height, colour)
    return texture.astype(np.float32)


def _flat_roof_details(
    canvas: Canvas,
    texture: Float,
    along: Float,
    across: Float,
    width: float,
    height: float,
    colour: Colour,
) -> None:
    """Parapet, skylights, plant rooms."""
    u = canvas.u
    inside = np.minimum(width / 2 - np.abs(along), height / 2 - np.abs(across))
    if canvas.chance(0.5):
        texture[inside < max(1.0, canvas.px(0.6))] = np.clip(colour * u(0.6, 1.5), 0, 1)
    if canvas.chance(0.3):
        step_a, step_b = max(5.0, canvas.px(u(4, 12))), max(5.0, canvas.px(u(4, 12)))
        lights = ((along % step_a) < step_a * u(0.15, 0.5)) & (
            (across % step_b) < step_b * u(0.15, 0.5)
        )
        texture[lights & (inside > 2)] = u(0.15, 1.0)
    for _ in range(canvas.rng.integers(0, 6)):
        at, to, half = u(-0.4, 0.4) * width, u(-0.4, 0.4) * height, max(0.8, canvas.px(u(0.6, 2.2)))
        texture[(np.abs(along - at) < half) & (np.abs(across - to) < half)] = u(0.1, 1.0)


def _roof_panels(
    canvas: Canvas, area: Area, along: Float, across: Float, width: float, height: float
) -> None:
    u = canvas.u
    at, to = u(-0.15, 0.15) * width, u(-0.15, 0.15) * height
    inside = (np.abs(along - at) < width * u(0.2, 0.42)) & (
        np.abs(across - to) < height * u(0.15, 0.42)
    )
    mask = area.mask & inside
    if mask.any():
        panel = Area(area.row, area.col, mask)
        canvas.lay(panel, Cover.SOLAR, panel_texture(canvas, along, across), 6.0)


def panel_texture(canvas: Canvas, along: Float, across: Float) -> Float:
    """Dark cells with pale seams."""
    cells = canvas.palette.solar()
    wide, tall = max(2.5, canvas.px(canvas.u(1.0, 1.8))), max(2.5, canvas.px(canvas.u(1.6, 4)))
    seam = ((along % wide) < max(0.5, canvas.px(0.1))) | (
        (across % tall) < max(0.6, canvas.px(0.15))
    )
    return np.where(seam[..., None], np.clip(cells * canvas.u(1.3, 2.4), 0, 1), cells)


def greenhouse(
    canvas: Canvas, x: float, y: float, width: float, height: float, angle: float
) -> None:
    """Long glass or plastic hall with bright ribs across its length."""
    area = canvas.of_polygon(canvas.rectangle(x, y, width, height, angle))
    if area is None:
        return
    along, across = _local(area, x, y, angle)
    span = max(3.0, canvas.px(canvas.u(3.5, 9)))
    tone = 1 + canvas.u(0.06, 0.22) * np.sin(across * 2 * math.pi / span)
    tone = tone - canvas.u(0.02, 0.1) * ((along % max(4.0, canvas.px(5))) < 1)
    tone = tone + 0.04 * canvas.bank.noise(canvas.rng, area.shape, 1.0)
    texture = canvas.palette.glass() * tone[..., None]
    if canvas.chance(0.3):
        through = np.clip(canvas.bank.noise(canvas.rng, area.shape, 1.5), 0, 1)[..., None]
        texture = texture + through * canvas.u(0.1, 0.4) * (canvas.palette.crop() - texture)
    canvas.lay(area, Cover.GREENHOUSE, texture.astype(np.float32), 4.0)


# -- vegetation


def tree(canvas: Canvas, x: float, y: float, radius_m: float, colour: Colour) -> None:
    """One crown, lit from the sun's side."""
    radius = max(1.2, canvas.px(radius_m))
    turn = np.arange(9) * (2 * math.pi / 9)
    reach = radius * canvas.rng.uniform(0.75, 1.15, 9)
    outline = np.stack([reach * np.cos(turn), reach * np.sin(turn)], 1)
    canvas.spot(outline + (x, y), Cover.TREE, colour * 0.68, radius_m * 2)
    towards = np.array([math.cos(canvas.sun), math.sin(canvas.sun)])
    steps = ((0.75, 0.95), (0.42, 1.25)) if radius > 2.2 else ((0.75, 1.0),)
    for shrink, light in steps:
        centre = np.array([x, y]) + towards * radius * (1 - shrink) * 0.6
        canvas.spot(outline * shrink + centre, None, colour * light)
    for _ in range(min(30, int(radius * radius * 0.3)) if radius > 3.5 else 0):
        angle, out = canvas.u(0, 2 * math.pi), radius * 0.95 * math.sqrt(canvas.rng.random())
        dot = (int(x + out * math.cos(angle)), int(y + out * math.sin(angle)))
        shade = [float(v) for v in colour * canvas.u(0.55, 1.45)]
        cv2.circle(canvas.pixels, dot, max(1, int(radius * 0.12)), shade, -1)


def scattered_trees(canvas: Canvas, count: int, where: Mask | None = None) -> None:
    """Single trees, anywhere or only inside a mask."""
    base, radius = canvas.palette.tree(), canvas.u(1.5, 4.5)
    for x, y in canvas.rng.uniform(0, canvas.size, (count, 2)):
        if where is None or where[int(y), int(x)]:
            tint = np.clip(
                base * canvas.rng.uniform(0.8, 1.2) * canvas.rng.uniform(0.93, 1.07, 4), 0, 1
            )
            tree(canvas, x, y, radius * canvas.u(0.65, 1.35), tint.astype(np.float32))


def tree_line(canvas: Canvas, line: Points, spacing_m: float) -> None:
    """Trees along a line: an avenue or a hedge."""
    base, radius = canvas.palette.tree(), canvas.u(1.5, 4.0)
    lengths = np.hypot(*np.diff(line, axis=0).T)
    count = int(lengths.sum() / max(2.0, canvas.px(spacing_m)))
    at = np.linspace(0, len(line) - 1.001, min(count, 150))
    index = at.astype(int)
    points = line[index] + (line[index + 1] - line[index]) * (at - index)[:, None]
    points += canvas.rng.normal(0, max(0.5, canvas.px(0.7)), points.shape)
    for x, y in points:
        near = -6 < x < canvas.size + 6 and -6 < y < canvas.size + 6
        if near and canvas.chance(0.9) and not canvas.shows(x, y, Cover.WATER):
            tint = base * canvas.u(0.8, 1.2)
            tree(canvas, x, y, radius * canvas.u(0.7, 1.3), np.clip(tint, 0, 1).astype(np.float32))


# -- traffic


def car(canvas: Canvas, x: float, y: float, angle: float) -> None:
    """Car, now and then a lorry."""
    stretch = 1.0 if canvas.chance(0.9) else 2.2
    length = max(2.2, canvas.px(canvas.u(3.8, 5.0) * stretch))
    width = max(1.5, canvas.px(canvas.u(1.7, 2.2)))
    paint = canvas.palette.paint()
    canvas.spot(canvas.rectangle(x, y, length, width, angle), Cover.CAR, paint, 1.5)
    if canvas.gsd_m < 0.5:
        screen = canvas.rectangle(x, y, length * 0.5, width * 0.8, angle)
        canvas.spot(screen, None, paint * 0.45)


def road(
    canvas: Canvas,
    line: Points,
    width_m: float,
    dirt: bool = False,
    paint: Colour | None = None,
) -> None:
    """Road with verges, markings and cars, or a dirt track."""
    width = max(1.0 if dirt else 1.6, canvas.px(width_m))
    if canvas.chance(0.5) and not dirt:
        verge = canvas.of_stroke(line, width * canvas.u(1.3, 1.9))
        canvas.rng.choice([covers.grass, covers.bare, covers.paved])(canvas, verge)
    area = canvas.of_stroke(line, width)
    if area is None:
        return
    colour = paint
    if colour is None:
        colour = canvas.palette.dirt_road() if dirt else canvas.palette.road()
    tone = 1 + canvas.u(0.02, 0.06) * canvas.bank.noise(canvas.rng, area.shape, 0.6)
    tone = tone + canvas.u(0.02, 0.08) * canvas.bank.noise(canvas.rng, area.shape, 1.5)
    canvas.lay(area, Cover.ROAD, colour * tone[..., None])
    normal = _normals(line)
    if width > 10 and canvas.chance(0.4):
        for side in (-0.3, -0.15, 0.15, 0.3):
            worn = canvas.of_stroke(line + normal * side * width, canvas.px(0.7))
            if worn is not None:
                canvas.pixels[worn.slices()][worn.mask] *= canvas.u(0.88, 1.1)
    if width > 6 and not dirt and canvas.chance(0.7):
        _markings(canvas, line, normal, width)
    if canvas.gsd_m < 0.8 and canvas.chance(0.65):
        for _ in range(canvas.rng.integers(1, 12)):
            at = canvas.rng.integers(len(line) - 1)
            x, y = line[at] + (line[at + 1] - line[at]) * canvas.rng.random()
            side = normal[at] * width * canvas.u(-0.32, 0.32)
            heading = math.atan2(*(line[at + 1] - line[at])[::-1])
            car(canvas, x + side[0], y + side[1], heading)


def _normals(line: Points) -> Points:
    step = np.gradient(line, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1)
    return normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6)


def _markings(canvas: Canvas, line: Points, normal: Points, width: float) -> None:
    thick = max(1, int(canvas.px(0.25)))
    lanes = (0.0,) if width < 13 else (-0.25, 0.0, 0.25)
    for lane in lanes:
        middle = line + normal * lane * width
        for start, end in pairwise(middle):
            dashes = max(1, int(np.hypot(*(end - start)) / max(4, canvas.px(9))))
            for k in range(dashes):
                first = start + (end - start) * (k / dashes)
                canvas.line(first, first + (end - start) * (0.5 / dashes), WHITE, thick)
    if canvas.chance(0.4):
        for side in (-0.46, 0.46):
            edge = [np.round(line + normal * side * width).astype(np.int32)]
            cv2.polylines(canvas.pixels, edge, False, [float(v) for v in WHITE], thick)


def railway(canvas: Canvas, line: Points, tracks: int) -> None:
    """Ballast bed with rails and sleepers."""
    gauge_step = max(2.2, canvas.px(4.5))
    area = canvas.of_stroke(line, tracks * gauge_step + canvas.px(3))
    if area is None:
        return
    tone = 1 + canvas.u(0.05, 0.15) * canvas.bank.noise(canvas.rng, area.shape, 0.6)
    canvas.lay(area, Cover.RAILWAY, canvas.palette.ballast() * tone[..., None])
    normal = _normals(line)
    dark, rail = canvas.u(0.4, 0.8), np.full(4, canvas.u(0.2, 0.9), np.float32)
    heading = math.atan2(*(line[-1] - line[0])[::-1])
    for k in range(tracks):
        middle = line + normal * ((k - (tracks - 1) / 2) * gauge_step)
        bed = canvas.of_stroke(middle, max(1.2, canvas.px(2.6)))
        if bed is not None:
            along = bed.along(heading)[0]
            sleeper = bed.mask & ((along % max(2.2, canvas.px(0.7))) < max(1.0, canvas.px(0.3)))
            canvas.pixels[bed.slices()][sleeper] *= dark
        sides = (-0.75, 0.75) if canvas.gsd_m < 0.6 else (0.0,)
        for side in sides:
            edge = [np.round(middle + normal * canvas.px(side)).astype(np.int32)]
            cv2.polylines(
                canvas.pixels, edge, False, [float(v) for v in rail], max(1, int(canvas.px(0.15)))
            )
        if canvas.chance(0.25):
            _train(canvas, middle)


def _train(canvas: Canvas, line: Points) -> None:
    """Rolling stock stands on the track and keeps the track's label."""
    start = canvas.rng.integers(0, max(1, len(line) - 8))
    part = line[start : start + canvas.rng.integers(4, 12)]
    if len(part) > 1:
        colour = [float(v) for v in canvas.palette.paint()]
        cv2.polylines(
            canvas.pixels,
            [np.round(part).astype(np.int32)],
            False,
            colour,
            max(1, round(canvas.px(2.8))),
        )


def ship(canvas: Canvas, x: float, y: float, angle: float, length_m: float) -> None:
    """Hull with a deck; short ones are boats."""
    length = max(4.0, canvas.px(length_m))
    width = max(1.6, length * canvas.u(0.17, 0.3))
    hull = np.array([[-0.5, -0.45], [0.22, -0.5], [0.5, 0], [0.22, 0.5], [-0.5, 0.45]])
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    shape = (hull * (length, width)) @ turn
    paint = canvas.palette.paint()
    canvas.spot(shape + (x, y), Cover.SHIP, paint, min(12.0, 1.0 + length_m * 0.06))
    deck = shape * canvas.u(0.35, 0.65) - turn[0] * length * canvas.u(0, 0.15)
    canvas.spot(deck + (x, y), None, np.clip(paint * canvas.u(0.4, 1.4), 0, 1))
    if length > 14:
        for k in range(canvas.rng.integers(0, 6)):
            box = canvas.rectangle(0, 0, length * 0.1, width * 0.6, 0) + (
                (k - 3) * length * 0.12,
                0,
            )
            canvas.spot(box @ turn + (x, y), None, canvas.palette.paint())
    if canvas.chance(0.2):
        wake = np.array([x, y]) - turn[0] * length * 0.5
        canvas.line(wake, wake - turn[0] * length * canvas.u(0.5, 2), WHITE * 0.8, width * 0.3)


# -- built ground


def pool(canvas: Canvas, x: float, y: float, angle: float) -> None:
    """Swimming pool on its paved deck."""
    width, height = max(2.5, canvas.px(canvas.u(6, 14))), max(2.0, canvas.px(canvas.u(3.5, 7)))
    margin = canvas.px(canvas.u(1, 3))
    covers.paved(
        canvas, canvas.of_polygon(canvas.rectangle(x, y, width + margin, height + margin, angle))
    )
    corners = canvas.rectangle(x, y, width, height, angle)
    if canvas.chance(0.35):
        turn = np.arange(14) * (2 * math.pi / 14)
        oval = np.stack([np.cos(turn) * width / 2, np.sin(turn) * height / 2], 1)
        cosine, sine = math.cos(angle), math.sin(angle)
        corners = oval @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)
    area = canvas.of_polygon(corners)
    if area is not None:
        tone = 1 + 0.05 * canvas.bank.noise(canvas.rng, area.shape, 1.0)
        canvas.lay(area, Cover.POOL, canvas.palette.pool() * tone[..., None])


def sports_ground(canvas: Canvas, x: float, y: float, angle: float) -> None:
    """Tennis, football, basketball or a running track, with its lines."""
    u = canvas.u
    kind = canvas.rng.integers(3)
    width_m, height_m = ((24, 11), (100, 64), (28, 15))[kind]
    width, height = (
        max(6.0, canvas.px(width_m * u(0.8, 1.2))),
        max(4.0, canvas.px(height_m * u(0.8, 1.2))),
    )
    pitch = kind == 1
    surround = canvas.of_polygon(canvas.rectangle(x, y, width * 1.22, height * 1.3, angle))
    if pitch and canvas.chance(0.5):
        ends = canvas.rectangle(x, y, width * 0.85, 0.1, angle)
        raster = np.zeros((canvas.size, canvas.size), np.uint8)
        first, last = (tuple(int(v) for v in ends[k]) for k in (0, 1))
        cv2.line(raster, first, last, 1, max(1, int(height * 1.5)))
        _even(canvas, canvas.of_mask(raster.astype(np.bool_)), canvas.palette.court())
    elif pitch:
        covers.grass(canvas, surround, smooth=True)
    elif canvas.chance(0.6):
        _even(canvas, surround, canvas.palette.court())
    else:
        covers.paved(canvas, surround)
    colour = canvas.palette.grass() if pitch else canvas.palette.court()
    area = canvas.of_polygon(canvas.rectangle(x, y, width, height, angle))
    if area is None:
        return
    tone = 1 + u(0.01, 0.05) * canvas.bank.noise(canvas.rng, area.shape, 1.0)
    if pitch and canvas.chance(0.6):
        along = area.along(angle)[0]
        tone = tone + u(0.03, 0.1) * np.sign(
            np.sin(along * 2 * math.pi / max(5.0, canvas.px(u(8, 16))))
        )
    canvas.lay(area, Cover.SPORTS, colour * tone[..., None])
    _court_lines(canvas, x, y, width, height, angle, pitch)


def _even(canvas: Canvas, area: Area | None, colour: Colour) -> None:
    if area is not None:
        tone = 1 + 0.04 * canvas.bank.noise(canvas.rng, area.shape, 1.0)
        canvas.lay(area, Cover.SPORTS, colour * tone[..., None])


def _court_lines(
    canvas: Canvas, x: float, y: float, width: float, height: float, angle: float, pitch: bool
) -> None:
    thick = max(1, round(canvas.px(0.15)))
    white = [float(v) for v in WHITE]
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])

    def frame(at: float, w: float, h: float) -> None:
        box = canvas.rectangle(x + at * cosine, y + at * sine, w, h, angle)
        cv2.polylines(canvas.pixels, [np.round(box).astype(np.int32)], True, white, thick)

    frame(0, width * 0.95, height * 0.93)
    middle = np.array([[0, -height * 0.46], [0, height * 0.46]]) @ turn + (x, y)
    canvas.line(middle[0], middle[1], WHITE, thick)
    if pitch:
        cv2.circle(canvas.pixels, (int(x), int(y)), max(2, int(height * 0.14)), white, thick)
        for side in (-0.4, 0.4):
            frame(side * width, width * 0.15, height * 0.5)
    else:
        frame(0, width * 0.54, height * 0.93)
        frame(0, width * 0.95, height * 0.7)


def car_park(canvas: Canvas, x: float, y: float, width: float, height: float, angle: float) -> None:
    """Paved lot with bays and parked cars."""
    area = canvas.of_polygon(canvas.rectangle(x, y, width, height, angle))
    covers.paved(canvas, area)
    if area is None or canvas.gsd_m > 1.0:
        return
    bay, row_step = max(2.4, canvas.px(2.7)), max(8.0, canvas.px(canvas.u(10, 17)))
    cosine, sine = math.cos(angle), math.sin(angle)
    full, lines = canvas.u(0.15, 0.9), canvas.chance(0.6)
    for across in np.arange(-height / 2 + row_step / 2, height / 2 - bay, row_step):
        for along in np.arange(-width / 2 + bay, width / 2 - bay, bay):
            cx, cy = x + along * cosine - across * sine, y + along * sine + across * cosine
            if not (0 <= cx < canvas.size and 0 <= cy < canvas.size):
                continue
            if lines:
                tip = np.array([[bay / 2, -bay * 0.9], [bay / 2, bay * 0.9]])
                ends = tip @ np.array([[cosine, sine], [-sine, cosine]]) + (cx, cy)
                canvas.line(ends[0], ends[1], WHITE, 1)
            if canvas.chance(full):
                car(canvas, cx, cy, angle + math.pi / 2)


def solar_farm(
    canvas: Canvas, x: float, y: float, width: float, height: float, angle: float
) -> None:
    """Rows of panels with grass or soil between."""
    area = canvas.of_polygon(canvas.rectangle(x, y, width, height, angle))
    if area is None:
        return
    canvas.rng.choice([covers.grass, covers.bare])(canvas, area)
    along, across = _local(area, x, y, angle)
    step = max(4.0, canvas.px(canvas.u(5, 11)))
    rows = (across % step) < step * canvas.u(0.5, 0.8)
    cells = panel_texture(canvas, along, across)
    coarse = step < 5
    lanes = np.abs((along + width * canvas.u(0, 1)) % (width * 0.5)) > canvas.px(3)
    panels = area.mask & rows & lanes
    if coarse:
        canvas.lay(Area(area.row, area.col, area.mask), Cover.SOLAR, canvas.pixels[area.slices()])
    if panels.any():
        canvas.lay(Area(area.row, area.col, panels), Cover.SOLAR, cells, 1.5)
