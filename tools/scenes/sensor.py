"""From the drawn ground to the picture a camera brings home: shadows, air, optics, files."""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from tools.scenes.canvas import Canvas
from tools.scenes.textures import Float

Rendering = Literal["colour", "grey", "false-colour"]
UInt8 = npt.NDArray[np.uint8]


def cast_shadows(canvas: Canvas) -> None:
    """Darken what lies behind tall things, seen from the sun."""
    slope = canvas.u(0.35, 1.8)
    strength = canvas.u(0.3, 0.75)
    reach = float(canvas.height_m.max()) * slope / canvas.gsd_m
    if reach < 1:
        return
    away = -math.cos(canvas.sun), -math.sin(canvas.sun)
    longest = min(reach, canvas.size * 0.12)
    steps = int(np.clip(reach / 1.5, 2, 12))
    shadow = np.zeros(canvas.height_m.shape, np.bool_)
    for k in range(1, steps + 1):
        distance = longest * k / steps
        shift = np.array([[1, 0, away[0] * distance], [0, 1, away[1] * distance]])
        moved = cv2.warpAffine(
            canvas.height_m, shift, (canvas.size, canvas.size), flags=cv2.INTER_NEAREST
        )
        shadow |= (moved * slope / canvas.gsd_m >= distance) & (moved > canvas.height_m + 0.5)
    soft = cv2.GaussianBlur(shadow.astype(np.float32), (0, 0), max(0.4, 0.3 / canvas.gsd_m))
    tint = np.array([1.0, 0.96, 0.86, 1.0], np.float32)
    canvas.pixels *= 1 - soft[..., None] * strength * tint


def choose_rendering(rng: np.random.Generator) -> Rendering:
    """Mostly colour; now and then grey or near-infrared, red, green."""
    return str(rng.choice(["colour", "grey", "false-colour"], p=[0.84, 0.08, 0.08]))  # type: ignore[return-value]


def expose(canvas: Canvas) -> Float:
    """Relief, optics and sensor noise on all four bands; returns ``(H, W, 4)`` in [0, 1]."""
    rng, u = canvas.rng, canvas.u
    pixels = canvas.pixels
    light = 1 + u(0, 0.07) * canvas.bank.noise(rng, pixels.shape[:2], 2.0)
    pixels = np.clip(pixels * light[..., None], 0, 1.2)
    if canvas.chance(0.85):
        pixels = cv2.GaussianBlur(pixels, (0, 0), u(0.35, 1.0))
    if canvas.chance(0.25):
        pixels = pixels + u(0.3, 1.0) * (pixels - cv2.GaussianBlur(pixels, (0, 0), 1.2))
    return np.clip(pixels, 0, 1)


def develop(canvas: Canvas, bands: Float, rendering: Rendering) -> UInt8:
    """Three bands, tone curve, band gains, haze, noise and JPEG; returns ``(H, W, 3)`` uint8."""
    rng, u = canvas.rng, canvas.u
    image = bands[..., [3, 0, 1] if rendering == "false-colour" else [0, 1, 2]]
    image = image ** math.exp(rng.normal(0, 0.25))
    grey = image.mean(2, keepdims=True)
    image = np.repeat(grey, 3, 2) if rendering == "grey" else grey + (image - grey) * u(0.5, 1.45)
    if rendering != "grey":
        cast = 0.16 if canvas.chance(0.3) else 0.05
        image = image * np.exp(rng.normal(0, cast, 3)).astype(np.float32)
        if canvas.chance(0.15):  # air scatters blue; little of the red comes through
            image = image * np.array([u(0.62, 0.9), 1, u(0.98, 1.2)], np.float32)
    image = image * (u(0.45, 0.8) if canvas.chance(0.2) else u(0.75, 1.2))
    if canvas.chance(0.4):
        haze = u(0, 0.3)
        image = image * (1 - haze) + haze * np.array([0.72, 0.78, 0.86], np.float32) * u(0.6, 1)
    if canvas.chance(0.25):
        low, high = np.quantile(image[::6, ::6], (0.02, 0.98))
        image = (image - low) / max(high - low, 0.05)
    shape = image.shape[:2]
    noise = rng.standard_normal((*shape, 1), np.float32) * u(0, 0.02)
    if rendering != "grey":
        noise = noise + rng.standard_normal((*shape, 3), np.float32) * u(0, 0.012)
    picture = (np.clip(image + noise, 0, 1) * 255).astype(np.uint8)
    if canvas.chance(0.3):
        coded = cv2.imencode(
            ".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(u(50, 95))]
        )[1]
        picture = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(picture)
