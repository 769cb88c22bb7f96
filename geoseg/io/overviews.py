"""Overviews of a raster that is mostly empty, made only where there is something to see.

GDAL makes them of every block, stored or not: a minute and a half for ten gigapixels of nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rasterio.enums import Resampling

from geoseg.io._handles import open_dataset
from geoseg.io.grid import pieces
from geoseg.io.sparse import StoredBlocks
from geoseg.types import Window

_SPARSE = 0.5
"""Share of blocks that are stored beyond which GDAL is as fast."""


@contextmanager
def sparse_overviews(path: Path, resampling: str, block: int) -> Iterator[None]:
    """Lay overviews beside a TIFF while this is open, if it is mostly empty.

    Each is half of the one before, in a file with one more ``.ovr`` at the end, where GDAL looks
    for them.

    Parameters
    ----------
    path
        A tiled, sparse TIFF with nodata.
    resampling
        ``MODE`` or ``AVERAGE``.
    block
        Side of the overviews' blocks in pixels.
    """
    _remove(path)
    try:
        with open_dataset(str(path)) as dataset:
            stored, size = StoredBlocks.of(dataset), max(dataset.shape)
        if stored.stored.mean() < _SPARSE:
            while size > block:
                path_of_half = path.with_name(f"{path.name}.ovr")
                _halve(path, path_of_half, Resampling[resampling.lower()], block)
                path, size = path_of_half, -(-size // 2)
        yield
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    name = path.name.partition(".ovr")[0]
    for file in path.parent.glob(f"{name}.ovr*"):
        file.unlink()


def _halve(path: Path, target: Path, resampling: Resampling, block: int) -> None:
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
                    pixels = source.read(
                        window=seen.slices(),
                        out_shape=(source.count, *half.shape),
                        resampling=resampling,
                    )
                    made.write(pixels, window=half.slices())
