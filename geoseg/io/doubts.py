"""What looks wrong in a scene's pixels, told in a line with its remedy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from geoseg.errors import SceneError, warn
from geoseg.io.source import RasterSource
from geoseg.types import BoolArray, Window

_SAMPLE = 1024
_PLACE, _PLACES = 4, 8
"""Side of a place at the border in pixels, and into how many parts they cut a side."""
_LARGE_SHARE, _NEARLY_ALL = 0.1, 0.99
_SOFT_SHARE, _SOFT_VALUES = 0.2, 16
"""Of an alpha band's pixels that hold colours: more than soft edges have."""


def look_at_bytes(source: RasterSource) -> None:
    """Look for fill where no stretch needs a sample anyway."""
    try:
        if not source.overviews and not _border_has_flat_places(source):
            return  # without reading all of it
        sample, valid = source.read_decimated(_SAMPLE, average=False)
    except SceneError:
        return  # the run meets the damage, and says where
    warn_about_fill(source.path, sample, valid)


def _border_has_flat_places(source: RasterSource) -> bool:
    """Whether a corner, or another of some places along the border, has one value throughout."""
    height, width = (min(side, _PLACE) for side in source.grid.shape)
    rows, cols = (
        [round(share * (side - place) / _PLACES) for share in range(_PLACES + 1)]
        for side, place in zip(source.grid.shape, (height, width), strict=True)
    )
    for row, col in itertools.product(rows, cols):
        if row in (rows[0], rows[-1]) or col in (cols[0], cols[-1]):
            pixels, valid = source.read(Window(row, col, height, width))
            if valid.all() and (pixels == pixels[0, 0, 0]).all():
                return True
    return False


def warn_about_fill(path: str, sample: npt.NDArray[Any], valid: BoolArray) -> None:
    """Warn of a large part at the border that has one value in all bands and counts as data."""
    if len(sample) == 1 and sample.dtype == np.uint8:
        return  # a mask, a map of shadows: one value may be most of it
    flat = valid & (sample == sample[:1]).all(axis=0)
    border = np.zeros(valid.shape, np.bool_)
    border[[0, -1]] = border[:, [0, -1]] = True
    at_border, counts = np.unique(sample[0][flat & border], return_counts=True)
    if not counts.size:
        return
    value = at_border[counts.argmax()]
    parts, _ = ndimage.label(flat & (sample[0] == value))
    outer = np.isin(parts, np.unique(parts[border & (parts > 0)]))
    share = outer.sum() / max(int(valid.sum()), 1)
    if _LARGE_SHARE <= share <= _NEARLY_ALL:
        _warn(
            f"{path}: {100 * share:.0f} % of the scene, at its border, is {value:g} in all bands "
            f"and counts as data; if it is no data give --nodata {value:g}, else --nodata none"
        )


def warn_about_alpha(source: RasterSource) -> None:
    """Warn where an alpha band looks like a fourth colour, or a fourth band like an alpha."""
    if source.band_count < 4 or not source.cheap or len(source.bands) != 3:
        return
    number = source.alpha or source.untold
    if number is None:
        return
    try:
        opacity, valid = source.opacity(_SAMPLE, number)
    except SceneError:
        return
    held = opacity[valid]
    if not held.size:
        return
    top = held.max()
    if source.alpha is None:
        clear = float((held == 0).mean())
        if set(np.unique(held)) == {0, 255} and clear < 1:
            _warn(
                f"{source.path}: band {number} is 0 or 255 throughout and looks like an alpha, "
                "but is not tagged so and is not used; tag it: "
                f"gdal_edit.py -colorinterp_{number} alpha {source.path}"
            )
        return
    soft = held[(held > 0) & (held < top)]
    if soft.size > _SOFT_SHARE * held.size and len(np.unique(soft)) >= _SOFT_VALUES:
        _warn(
            f"{source.path}: band {number} is tagged alpha but looks like a fourth colour; "
            "pixels where it is 0 become nodata, if that is wrong give --ignore-alpha"
        )


def _warn(message: str) -> None:
    warn(message)
