"""From pixel values of any type to float RGB in [0, 1], the same way for the whole scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg._inputs import shown
from geoseg._texts import Limits, Stretch
from geoseg.errors import OptionError, SceneError, warn
from geoseg.types import BoolArray, FloatArray


def given_limits(
    stretch: Stretch,
    bands: int,
    dtype: npt.DTypeLike,
    *,
    path: str,
    units: Sequence[tuple[float, float]] = (),
) -> Limits | None:
    """Values that become 0 and 1 as far as a ``range`` says them, without a pixel; else None."""
    if stretch.kind != "range":
        return None
    none = np.empty((bands, 0, 0), dtype)
    return measure_limits(stretch, none, np.empty((0, 0), np.bool_), path=path, units=units)


def measure_limits(
    stretch: Stretch,
    sample: npt.NDArray[Any],
    valid: BoolArray,
    *,
    path: str,
    units: Sequence[tuple[float, float]] = (),
) -> Limits | None:
    """Settle which values become 0 and 1 in each band, from a sample of the whole scene.

    Parameters
    ----------
    stretch
        What was asked for; ``auto`` is resolved by the sample's type.
    sample
        ``(C, h, w)`` pixel values of a decimated read.
    valid
        ``(h, w)``; True where the sample has data.
    path
        The scene, for messages.
    units
        Scale and offset of each band, in whose units a ``range`` is given; empty for none.

    Returns
    -------
    tuple of (low, high) or None
        One pair a band; None means the value divided by the largest of its integer type.

    Raises
    ------
    SceneError
        If ``none`` is asked for but float values leave [0, 1].
    """
    stretch = stretch.for_dtype(sample.dtype)
    values = sample.reshape(len(sample), -1) if valid.all() else sample[:, valid]
    if stretch.kind == "none":
        if np.issubdtype(sample.dtype, np.integer):
            return None
        if values.size and (values.min() < 0 or values.max() > 1):
            raise SceneError(
                f"{path}: float values run from {values.min():g} to {values.max():g}; without a "
                "stretch they must lie in 0 to 1: give --stretch 2,98 or min:max"
            )
        return ((0.0, 1.0),) * len(sample)
    if stretch.kind == "range":
        wanted = stretch.bands or ((stretch.low, stretch.high),) * len(sample)
        if len(wanted) != len(sample):
            raise OptionError(
                f"stretch {shown(str(stretch))} is for {len(wanted)} bands, and {len(sample)} are "
                "read; give one min:max for all, or one for each"
            )
        limits = tuple(
            ((low - offset) / scale, (high - offset) / scale)
            for (low, high), (scale, offset) in zip(
                wanted, units or ((1.0, 0.0),) * len(sample), strict=True
            )
        )
        warn_if_outside(limits, values, units, path)
        return limits
    if not values.size:
        warn(f"{path}: no pixel with data found to measure the stretch on")
        return ((0.0, 1.0),) * len(sample)
    return tuple(_percentile_limits(band, stretch) for band in values)


_OUTSIDE = 0.99
_FLAT = 0.01
"""Share of a range below which its values are one grey."""


def warn_if_outside(
    limits: Limits, values: npt.NDArray[Any], units: Sequence[tuple[float, float]], path: str
) -> None:
    """Say so where a given range makes nearly every pixel black, white or one grey.

    Parameters
    ----------
    limits
        Stored values that become 0 and 1 in each band.
    values
        ``(C, N)`` stored values.
    units, path
        As for `measure_limits`.
    """
    if not values.size:
        return
    outside = sum(
        int(np.count_nonzero((band < low) | (band > high)))
        for band, (low, high) in zip(values, limits, strict=True)
    )
    flat = all(
        0 < float(band.max()) - float(band.min()) < _FLAT * (high - low)
        for band, (low, high) in zip(values, limits, strict=True)
    )
    if outside <= _OUTSIDE * values.size and not flat:
        return
    lowest, highest = float(values.min()), float(values.max())
    words = f"values run from {lowest:g} to {highest:g}"
    if units:
        scale, offset = units[0]
        words = (
            f"values run from {lowest * scale + offset:g} to {highest * scale + offset:g} in the "
            f"units of the file's scale and offset (stored: {lowest:g} to {highest:g})"
        )
    share = f"{100 * outside / values.size:.0f} % of the pixels black or white"
    warn(f"{path}: --stretch leaves {'all pixels nearly the same' if flat else share}: {words}")


def _percentile_limits(values: npt.NDArray[Any], stretch: Stretch) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(values, (stretch.low, stretch.high)))
    if low == high:
        low, high = float(values.min()), float(values.max())
    if low == high:
        # A constant band becomes mid-grey instead of a division by zero.
        half = max(0.5, abs(low) * 1e-3)
        low, high = low - half, high + half
    return low, high


_FLOAT32_ROOM = 1e37
"""Limits below which differences of float32 values and limits do not overflow."""


def apply_limits(data: npt.NDArray[Any], valid: BoolArray, limits: Limits | None) -> FloatArray:
    """Map pixel values to [0, 1], and to 0 where they are not valid.

    Parameters
    ----------
    data
        ``(C, H, W)`` pixel values; not changed.
    valid
        ``(H, W)``.
    limits
        As :func:`measure_limits` gives them. With None an 8-bit value is exactly value / 255.

    Returns
    -------
    ndarray
        ``(C, H, W)`` float32.
    """
    pairs: Sequence[tuple[float, float]]
    pairs = limits if limits is not None else ((0.0, float(np.iinfo(data.dtype).max)),) * len(data)
    # 32 and 64 bit values may need more digits than float32 has before they are scaled.
    exact = data.dtype.itemsize <= 2 or data.dtype == np.float32
    wide = max((max(abs(low), abs(high)) for low, high in pairs), default=0.0)
    small = exact and wide < _FLOAT32_ROOM
    work: type[np.floating[Any]] = np.float32 if small else np.float64
    out = np.empty(data.shape, np.float32)
    whole = bool(valid.all())
    for target, band, (low, high) in zip(out, data, pairs, strict=True):
        values = band if whole else np.where(valid, band, 0)
        scaled = np.subtract(values, work(low), out=target if small else None, dtype=work)
        scaled /= work(high - low)
        np.clip(scaled, 0, 1, out=target, casting="same_kind")
    if not whole:
        out[:, ~valid] = 0
    return out


def as_stored(data: npt.NDArray[Any], valid: BoolArray) -> FloatArray:
    """Pixel values as they are, ``(C, H, W)`` float32, and 0 where they are not valid."""
    return np.where(valid, data, 0).astype(np.float32)
