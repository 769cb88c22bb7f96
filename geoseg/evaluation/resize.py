"""Resize images as the published benchmarks do, and the softer way.

Fit into a square by the long side, sizes rounded half up (mmcv's rule), pixels interpolated as
OpenCV's ``INTER_LINEAR`` does: half-pixel centres, edges clamped, no antialiasing when shrinking.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from geoseg.options.reading import ResizeRule
from geoseg.types import UInt8Array


def fitted_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Size ``(height, width)`` with the given long side and the same aspect ratio."""
    factor = long_side / max(height, width)
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def resize_image(rgb: UInt8Array, size: tuple[int, int], rule: ResizeRule = "opencv") -> UInt8Array:
    """Resize an image.

    Parameters
    ----------
    rgb
        ``(H, W, C)`` uint8.
    size
        New ``(height, width)``.
    rule
        How pixels are interpolated.

    Returns
    -------
    ndarray
        ``(height, width, C)`` uint8. With ``opencv`` at most one grey level away from OpenCV,
        which computes in 11-bit fixed point.
    """
    if rule == "none" or size == rgb.shape[:2]:
        return rgb
    if rule == "antialias":
        image = Image.fromarray(rgb).resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8)
    top, bottom, share_y = _taps(rgb.shape[0], size[0])
    left, right, share_x = _taps(rgb.shape[1], size[1])
    upper = _blend(rgb[top][:, left], rgb[top][:, right], share_x[None, :, None])
    lower = _blend(rgb[bottom][:, left], rgb[bottom][:, right], share_x[None, :, None])
    mixed = _blend(upper, lower, share_y[:, None, None])
    rounded: UInt8Array = np.floor(mixed + 0.5).astype(np.uint8)
    return rounded


def _taps(
    source: int, target: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Both neighbours of every target pixel along one axis, and the share of the second."""
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    place = np.clip(place, 0, source - 1)
    first = np.floor(place).astype(np.int64)
    return first, np.minimum(first + 1, source - 1), (place - first).astype(np.float32)


def _blend(
    first: npt.NDArray[np.uint8] | npt.NDArray[np.float32],
    second: npt.NDArray[np.uint8] | npt.NDArray[np.float32],
    share: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    start = first.astype(np.float32)
    return start + (second.astype(np.float32) - start) * share
