"""Ready-made noise and tree crowns that every scene cuts its texture from.

Filling the bank takes a second or two; a cut costs microseconds, so a scene may use hundreds.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]

TILE = 1024
_SLOPES = (0.6, 1.0, 1.5, 2.0)
_CROWN_RADII = (2, 3, 5, 8, 12)
_CROWN_TILE = 640


class TextureBank:
    """Fractal noise of four roughnesses, smooth blobs, and crown canopies of five crown sizes."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = np.fft.fftfreq(TILE)[:, None]
        cols = np.fft.rfftfreq(TILE)[None]
        self._frequency = np.hypot(rows, cols)
        self._frequency[0, 0] = 1.0
        self._noise = {
            slope: [self._shaped(rng, self._frequency**-slope) for _ in range(6)]
            for slope in _SLOPES
        }
        band = np.exp(-((self._frequency * 70) ** 2))
        self._blobs = [self._shaped(rng, band) for _ in range(10)]
        self._crowns = {
            radius: [self._canopy(rng, radius) for _ in range(3)] for radius in _CROWN_RADII
        }

    def _shaped(self, rng: np.random.Generator, spectrum: npt.NDArray[np.float64]) -> Float:
        white = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
        field = np.fft.irfft2(white * spectrum, s=(TILE, TILE))
        field -= field.mean()
        return (field / field.std()).astype(np.float32)

    def _canopy(self, rng: np.random.Generator, radius: int) -> Float:
        """Overlapping crowns lit from the left, dark gaps between them; roughly in [-1, 1]."""
        image = np.full((_CROWN_TILE, _CROWN_TILE), -1.1, np.float32)
        count = int(_CROWN_TILE**2 / radius**2 * 1.3)
        centres = rng.integers(0, _CROWN_TILE, (count, 2))
        sizes = radius * rng.uniform(0.55, 1.25, count)
        tones = rng.normal(0, 0.25, count)
        for (x, y), size, tone in zip(centres, sizes, tones, strict=True):
            for shrink, step in ((1.0, -0.4), (0.75, 0.05), (0.45, 0.45)):
                offset = size * (1 - shrink) * 0.6
                centre = (round(x - offset), round(y - offset * 0.5))
                reach = max(1, round(size * shrink))
                cv2.circle(image, centre, reach, float(tone + step), -1)
        image = cv2.GaussianBlur(image, (0, 0), max(0.5, radius * 0.12))
        return image + 0.15 * self._noise[0.6][0][:_CROWN_TILE, :_CROWN_TILE]

    def noise(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int],
        slope: float = 1.0,
        scale: float = 1.0,
    ) -> Float:
        """Fractal noise with unit deviation; ``scale`` below 1 stretches it."""
        field = self._noise[slope][rng.integers(6)]
        return _cut(rng, field, shape, scale)

    def blobs(self, rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Float:
        """Smooth hills of about 70 px, divided by ``scale``."""
        return _cut(rng, self._blobs[rng.integers(len(self._blobs))], shape, scale)

    def crowns(
        self, rng: np.random.Generator, shape: tuple[int, int], radius_px: float, quarter: int
    ) -> Float:
        """Canopy whose crowns have about this radius; ``quarter`` turns the light by 90 degrees."""
        radius = min(_CROWN_RADII, key=lambda r: abs(np.log(r / radius_px)))
        field = np.rot90(self._crowns[radius][rng.integers(3)], quarter)
        return _cut(rng, field, shape, radius / radius_px, turn=False)


def _cut(
    rng: np.random.Generator, field: Float, shape: tuple[int, int], scale: float, turn: bool = True
) -> Float:
    height, width = shape
    side = field.shape[0]
    rows = min(side, max(4, round(height * scale)))
    cols = min(side, max(4, round(width * scale)))
    row, col = rng.integers(0, side - rows + 1), rng.integers(0, side - cols + 1)
    piece = field[row : row + rows, col : col + cols]
    if turn and rng.random() < 0.5:
        piece = piece[::-1]
    if turn and rng.random() < 0.5:
        piece = piece[:, ::-1]
    if (rows, cols) == (height, width):
        return piece
    return cv2.resize(piece, (width, height), interpolation=cv2.INTER_LINEAR)


@cache
def shared_bank() -> TextureBank:
    """Return the one bank all scenes of a process share."""
    return TextureBank(20240501)
