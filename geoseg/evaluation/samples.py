"""Images and labels of a benchmark, read and cut as it prescribes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioError

from geoseg.errors import EvaluationError
from geoseg.evaluation.metrics import IGNORE, IndexArray
from geoseg.evaluation.registry import Layout, Sample, Tiles
from geoseg.evaluation.truth import open_raster
from geoseg.evaluation.values import (
    ClassNumbers,
    coder_for_colors,
    coder_for_numbers,
    pack_colors,
)
from geoseg.types import UInt8Array, Window

# What OpenCV's and Pillow's grey images are made of (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Cut:
    """A part of an image that is scored as an image of its own."""

    name: str
    """The image's name, with ``[row:col]`` of the cut where images are cut."""
    rgb: UInt8Array
    """``(H, W, 3)``."""
    truth: IndexArray
    """``(H, W)`` class numbers; IGNORE counts nowhere."""


def cuts(sample: Sample, layout: Layout, classes: ClassNumbers) -> Iterator[Cut]:
    """Parts of an image, row by row; the image itself where the layout does not cut.

    Raises
    ------
    EvaluationError
        If a file cannot be read, or image and labels differ in size.
    """
    rgb = read_rgb(sample.image)
    truth = _read_truth(sample.labels, layout, classes)
    if rgb.shape[:2] != truth.shape:
        raise EvaluationError(
            f"{sample.labels}: {truth.shape[1]} x {truth.shape[0]} pixels, its image has "
            f"{rgb.shape[1]} x {rgb.shape[0]}"
        )
    tiles = layout.tiles
    if tiles is None:
        yield Cut(sample.name, rgb, truth)
        return
    pad = [
        (0, max(tiles.height - truth.shape[0], 0)),
        (0, max(tiles.width - truth.shape[1], 0)),
    ]
    rgb = np.pad(rgb, [*pad, (0, 0)])
    truth = np.pad(truth, pad, constant_values=IGNORE)
    for window in tile_windows(truth.shape[0], truth.shape[1], tiles):
        name = f"{sample.name}[{window.row}:{window.col}]"
        yield Cut(name, rgb[window.slices()], truth[window.slices()])


def _read_truth(path: Path, layout: Layout, classes: ClassNumbers) -> IndexArray:
    pixels = _read(path)
    binary, values = layout.binary, layout.values
    if binary is not None:
        foreground = _grey(pixels) >= binary.at_least
        return np.where(foreground, classes.number(binary.name), 0).astype(np.int32)
    assert values is not None
    if values.colored:
        if len(pixels) < 3:
            raise EvaluationError(f"{path}: labels are expected in colour, it has one band")
        packed = pack_colors(pixels[:3])
        return coder_for_colors(values, classes).encode(packed, str(path))
    return coder_for_numbers(values, classes).encode(pixels[0], str(path))


def read_rgb(path: Path) -> UInt8Array:
    """Read an image of 8 bits, ``(H, W, 3)``; one band is grey, a fourth is dropped.

    Raises
    ------
    EvaluationError
        If the file cannot be read or has more than 8 bits.
    """
    pixels = _read(path)
    if pixels.dtype != np.uint8:
        raise EvaluationError(f"{path}: benchmark images have 8 bits, this one is {pixels.dtype}")
    bands = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    return np.ascontiguousarray(bands.transpose(1, 2, 0))


def tile_windows(height: int, width: int, tiles: Tiles) -> Iterator[Window]:
    """Cuts of an image that is at least as large as one, row by row, each once."""
    rows = sorted({min(row, height - tiles.height) for row in range(0, height, tiles.step_y)})
    cols = sorted({min(col, width - tiles.width) for col in range(0, width, tiles.step_x)})
    for row in rows:
        for col in cols:
            yield Window(row, col, tiles.height, tiles.width)


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with open_raster(path) as source:
            pixels: npt.NDArray[np.uint8] = source.read()
    except RasterioError as error:
        raise EvaluationError(f"{path}: cannot be read: {error}") from error
    return pixels


def _grey(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    grey: npt.NDArray[np.float64] = pixels[0].astype(np.float64)
    if len(pixels) >= 3:
        grey = np.rint(_LUMA[0] * grey + _LUMA[1] * pixels[1] + _LUMA[2] * pixels[2])
    return grey
