"""Overviews of a raster, made only where there is something to see, and from arrays in memory.

GDAL makes them of every block, stored or not, a minute and a half for ten gigapixels of nothing,
and takes several times as long for the same most frequent values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geoseg.io._handles import open_dataset
from geoseg.io.described import where_is
from geoseg.io.grid import pieces
from geoseg.io.sparse import StoredBlocks
from geoseg.types import BoolArray, Window

Pixels = npt.NDArray[Any]
Rule = Literal["MODE", "AVERAGE"]

_ROWS_AT_A_TIME = 64
"""Of a half: so many stay in a processor's cache."""


@contextmanager
def overviews_beside(path: Path, rule: Rule, block: int) -> Iterator[None]:
    """Lay overviews beside a TIFF while this is open.

    Each is half of the one before, in a file with one more ``.ovr`` at the end, where GDAL looks
    for them; pixels are those that GDAL would make.

    Parameters
    ----------
    path
        A tiled, sparse TIFF with nodata.
    rule
        Whether a pixel is the most frequent or the average of the four above it that hold data.
    block
        Side of the overviews' blocks in pixels.
    """
    _remove(path)
    try:
        with open_dataset(str(path)) as dataset:
            size = max(dataset.shape)
        while size > block:
            path_of_half = path.with_name(f"{path.name}.ovr")
            _halve(path, path_of_half, rule, block)
            path, size = path_of_half, -(-size // 2)
        yield
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    name = path.name.partition(".ovr")[0]
    for file in path.parent.glob(f"{name}.ovr*"):
        file.unlink()


def _halve(path: Path, target: Path, rule: Rule, block: int) -> None:
    with open_dataset(str(path)) as source:
        stored = StoredBlocks.of(source)
        whole = Window(0, 0, *(-(-side // 2) for side in source.shape))
        profile = {
            **source.profile,
            "height": whole.height,
            "width": whole.width,
            "blockxsize": block,
            "blockysize": block,
            "sparse_ok": True,
        }
        with open_dataset(str(target), "w", **profile) as made:
            for half in pieces(whole, block, block):
                seen = Window(*(2 * side for side in (half.row, half.col, half.height, half.width)))
                seen = seen.intersection(Window(0, 0, *source.shape)) or seen
                if stored.any_in(seen):
                    pixels = source.read(window=seen.slices())
                    made.write(halved(pixels, source.nodata, rule), window=half.slices())


def halved(pixels: Pixels, nodata: float, rule: Rule) -> Pixels:
    """Half of an image in both directions.

    Parameters
    ----------
    pixels
        ``(bands, H, W)``.
    nodata
        Value of pixels that do not count; a result without any that does has it.
    rule
        ``MODE``: of values that are as frequent the one that is so first, row by row. ``AVERAGE``:
        rounded in an integer type.

    Returns
    -------
    ndarray
        ``(bands, ceil(H / 2), ceil(W / 2))`` of the same type.
    """
    height, width = pixels.shape[1:]
    odd = ((0, 0), (0, height % 2), (0, width % 2))
    even = np.pad(pixels, odd, constant_values=nodata) if height % 2 or width % 2 else pixels
    made = np.empty((len(even), even.shape[1] // 2, even.shape[2] // 2), even.dtype)
    for row in range(0, made.shape[1], _ROWS_AT_A_TIME):
        rows = slice(row, row + _ROWS_AT_A_TIME)
        some = even[:, 2 * row : 2 * rows.stop]
        four = [np.ascontiguousarray(some[:, r::2, c::2]) for r in (0, 1) for c in (0, 1)]
        known = [~where_is(each, nodata) for each in four]
        if rule != "MODE":
            made[:, rows] = _average(four, known, nodata)
        elif all(each.all() for each in known):
            made[:, rows] = _first_most_frequent(*four)
        else:
            made[:, rows] = _mode(four, known, nodata)
    return made


def _first_most_frequent(a: Pixels, b: Pixels, c: Pixels, d: Pixels) -> Pixels:
    """Of each four values the first to be as frequent as any."""
    made = a.copy()
    np.copyto(made, d, where=(d == b) | (d == c))
    np.copyto(made, b, where=b == c)
    np.copyto(made, a, where=(a == b) | (a == c))
    return made


def _mode(four: list[Pixels], known: list[BoolArray], nodata: float) -> Pixels:
    """The same of those that are known: others become values that are like no other."""
    pairs = zip(four, known, strict=True)
    wide = [np.where(k, v.astype(np.int32), -number) for number, (v, k) in enumerate(pairs, 1)]
    made = _first_most_frequent(*wide)
    for value in wide:
        np.copyto(made, value, where=made < 0)
    return np.where(made < 0, nodata, made).astype(four[0].dtype)


def _average(four: list[Pixels], known: list[BoolArray], nodata: float) -> Pixels:
    dtype = four[0].dtype
    whole = np.issubdtype(dtype, np.integer)
    total = np.zeros(four[0].shape, np.int32 if whole else np.float64)
    count = np.zeros(four[0].shape, np.int32)
    for values, valid in zip(four, known, strict=True):
        np.add(total, values, out=total, where=valid, casting="unsafe")
        count += valid
    some = np.maximum(count, 1)
    mean = (2 * total + some) // (2 * some) if whole else total / some
    return np.where(count > 0, mean, nodata).astype(dtype)
