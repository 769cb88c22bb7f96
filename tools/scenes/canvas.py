"""The sheet a scene is drawn on: pixels, labels and heights, and the primitives that fill them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from tools.scenes.classes import Cover
from tools.scenes.palette import Colour, Palette
from tools.scenes.textures import Float, TextureBank

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Area:
    """Some pixels of the canvas: a box and which of its pixels belong."""

    row: int
    col: int
    mask: Mask

    @property
    def shape(self) -> tuple[int, int]:
        """Size of the box as ``(height, width)``."""
        return self.mask.shape[0], self.mask.shape[1]

    def slices(self) -> tuple[slice, slice]:
        """Row and column slices of the box in the canvas."""
        height, width = self.shape
        return slice(self.row, self.row + height), slice(self.col, self.col + width)

    def along(self, angle: float) -> tuple[Float, Float]:
        """Pixel coordinates of the box turned by an angle: along it, and across it."""
        height, width = self.shape
        y = (np.arange(height, dtype=np.float32) + self.row)[:, None]
        x = (np.arange(width, dtype=np.float32) + self.col)[None]
        cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        return x * cosine + y * sine, y * cosine - x * sine


class Canvas:
    """Pixels (red, green, blue, near-infrared), labels and heights of one square scene."""

    def __init__(
        self,
        rng: np.random.Generator,
        bank: TextureBank,
        palette: Palette,
        size: int,
        gsd_m: float,
    ) -> None:
        self.rng = rng
        self.bank = bank
        self.palette = palette
        self.size = size
        self.gsd_m = gsd_m
        self.pixels = np.zeros((size, size, 4), np.float32)
        self.labels = np.full((size, size), Cover.BARE, np.uint8)
        self.height_m = np.zeros((size, size), np.float32)
        self.grain = float(rng.uniform(0, math.pi))
        """Main direction of streets and fields."""
        self.sun = float(rng.uniform(0, 2 * math.pi))
        """Direction the light comes from."""

    # -- numbers

    def u(self, low: float, high: float) -> float:
        """Draw a number between two bounds."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Toss a coin."""
        return bool(self.rng.random() < probability)

    def px(self, metres: float) -> float:
        """Convert metres on the ground to pixels."""
        return metres / self.gsd_m

    # -- areas

    def whole(self) -> Area:
        """Every pixel."""
        return Area(0, 0, np.ones((self.size, self.size), np.bool_))

    def of_mask(self, mask: Mask) -> Area | None:
        """Return the box around a mask of the canvas's size, or None if the mask is empty."""
        rows = np.flatnonzero(mask.any(1))
        if rows.size == 0:
            return None
        cols = np.flatnonzero(mask.any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
        return Area(int(rows[0]), int(cols[0]), mask[box])

    def of_polygon(self, points: Points, within: Mask | None = None) -> Area | None:
        """Pixels inside a polygon of ``(x, y)`` corners, or None if it lies outside."""
        low = np.maximum(np.floor(points.min(0)).astype(int), 0)
        high = np.minimum(np.ceil(points.max(0)).astype(int) + 1, self.size)
        width, height = high - low
        if width <= 0 or height <= 0:
            return None
        raster = np.zeros((height, width), np.uint8)
        cv2.fillPoly(raster, [np.round(points - low).astype(np.int32)], 1)
        mask = raster.astype(np.bool_)
        if within is not None:
            mask &= within[low[1] : high[1], low[0] : high[0]]
        return Area(int(low[1]), int(low[0]), mask) if mask.any() else None

    def of_stroke(self, line: Points, width_px: float) -> Area | None:
        """Pixels of a line of this width."""
        raster = np.zeros((self.size, self.size), np.uint8)
        path = [np.round(line).astype(np.int32)]
        cv2.polylines(raster, path, isClosed=False, color=1, thickness=max(1, round(width_px)))
        return self.of_mask(raster.astype(np.bool_))

    def blob(self, fraction: float, scale: float | None = None, ragged: float = 0.4) -> Mask:
        """Natural-looking patches that cover about this fraction of the canvas."""
        shape = (self.size, self.size)
        field = self.bank.blobs(self.rng, shape, scale or self.u(0.3, 1.0))
        rough = self.bank.noise(self.rng, shape, 2.0 if self.chance(0.5) else 1.5)
        field = field + self.u(0, ragged) * rough
        return field > np.quantile(field[::8, ::8], 1 - fraction)

    # -- shapes

    def rectangle(self, x: float, y: float, width: float, height: float, angle: float) -> Points:
        """Corners of a turned rectangle around a centre, in pixels."""
        cosine, sine = math.cos(angle), math.sin(angle)
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (width / 2, height / 2)
        return corners @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)

    def path(self, curve: float = 0.5, angle: float | None = None, steps: int = 40) -> Points:
        """Draw a gently curved line that crosses the canvas."""
        angle = self.u(0, 2 * math.pi) if angle is None else angle
        along = np.linspace(-0.8, 0.8, steps) * self.size
        bend = self.u(-curve, curve) * along**2 / self.size
        wave_number = self.u(3, 9) / self.size
        wave = self.u(0, curve * 0.1) * self.size * np.sin(along * wave_number + self.u(0, 6))
        across = self.u(-0.4, 0.4) * self.size + bend + wave
        cosine, sine = math.cos(angle), math.sin(angle)
        x = along * cosine - across * sine + self.size / 2
        y = along * sine + across * cosine + self.size / 2
        return np.stack([x, y], 1)

    def blocks(
        self, side_m: float, angle: float, jitter: float = 0.22
    ) -> list[tuple[float, float, float, float]]:
        """Cut the canvas into rectangles of about a side; each ``(x, y, width, height)`` in px."""
        reach = self.size * 0.75
        smallest = max(6.0, self.px(side_m))
        open_boxes = [(-reach, -reach, reach, reach)]
        closed = []
        while open_boxes:
            left, top, right, bottom = open_boxes.pop()
            width, height = right - left, bottom - top
            longest = max(width, height)
            if longest < smallest * 1.8 or (longest < smallest * 4 and self.chance(0.2)):
                closed.append((left, top, right, bottom))
                continue
            cut = self.u(0.5 - jitter, 0.5 + jitter)
            if width > height:
                middle = left + width * cut
                open_boxes += [(left, top, middle, bottom), (middle, top, right, bottom)]
            else:
                middle = top + height * cut
                open_boxes += [(left, top, right, middle), (left, middle, right, bottom)]
        turned = (self._turned(box, angle) for box in closed)
        return [box for box in turned if box is not None]

    def _turned(
        self, box: tuple[float, float, float, float], angle: float
    ) -> tuple[float, float, float, float] | None:
        left, top, right, bottom = box
        cx, cy = (left + right) / 2, (top + bottom) / 2
        cosine, sine = math.cos(angle), math.sin(angle)
        x = cx * cosine - cy * sine + self.size / 2
        y = cx * sine + cy * cosine + self.size / 2
        reach = math.hypot(right - left, bottom - top) / 2
        if not (-reach < x < self.size + reach and -reach < y < self.size + reach):
            return None
        return x, y, right - left, bottom - top

    def shows(self, x: float, y: float, cover: Cover) -> bool:
        """Whether a point lies on the canvas and carries this label."""
        col, row = int(x), int(y)
        inside = 0 <= row < self.size and 0 <= col < self.size
        return inside and bool(self.labels[row, col] == cover)

    # -- painting

    def lay(
        self,
        area: Area | None,
        cover: Cover,
        texture: Float | Colour,
        height_m: float | Float = 0.0,
    ) -> None:
        """Cover an area with a texture of its box's size (or one colour) and a label."""
        if area is None:
            return
        box, mask = area.slices(), area.mask
        if texture.ndim == 1:
            self.pixels[box][mask] = texture
        else:
            np.copyto(self.pixels[box], texture, where=mask[..., None])
        self.labels[box][mask] = cover
        if isinstance(height_m, np.ndarray):
            np.copyto(self.height_m[box], height_m, where=mask)
        else:
            self.height_m[box][mask] = height_m

    def spot(
        self, points: Points, cover: Cover | None, colour: Colour, height_m: float | None = None
    ) -> None:
        """Fill a small polygon with one colour; faster than ``lay`` for cars and crowns."""
        corners = [np.round(points).astype(np.int32)]
        cv2.fillPoly(self.pixels, corners, [float(v) for v in colour])
        if cover is not None:
            cv2.fillPoly(self.labels, corners, int(cover))
        if height_m is not None:
            cv2.fillPoly(self.height_m, corners, float(height_m))

    def line(self, start: Points, end: Points, colour: Colour, width_px: float) -> None:
        """Draw a thin painted line; labels stay."""
        first, last = (tuple(int(v) for v in np.round(p)) for p in (start, end))
        cv2.line(self.pixels, first, last, [float(v) for v in colour], max(1, round(width_px)))
