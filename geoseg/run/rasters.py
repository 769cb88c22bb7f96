"""The rasters of a run while they grow: one work file each, tile by tile, read back and checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from geoseg.errors import OutputError
from geoseg.inference.lane import TileResult
from geoseg.io._handles import open_dataset
from geoseg.io.grid import Grid, pieces
from geoseg.io.regions import GivenRegions
from geoseg.io.regrid import LeftOut, regrid_nearest
from geoseg.io.sparse import StoredBlocks
from geoseg.io.write import (
    BLOCK,
    RasterWriter,
    confidence_writer,
    label_writer,
    margin_writer,
    probability_writer,
)
from geoseg.run.regions import RegionTable
from geoseg.types import LabelClass, Window

Writers = Mapping[str, RasterWriter]
_SIDE = 4 * BLOCK
"""Pixels a side that regions are given at a time."""


@dataclass(frozen=True)
class WorkRasters:
    """Work files of all wanted rasters on one grid."""

    folder: Path
    names: tuple[str, ...]
    """``labels``, ``confidence`` and so on."""
    grid: Grid
    classes: tuple[LabelClass, ...]
    tags: Mapping[str, str]
    """What all of them say of where they come from."""

    def _writer(self, name: str, *, resume: bool) -> RasterWriter:
        file, grid = self.folder / f"{name}.work.tif", self.grid
        makers: dict[str, Callable[..., RasterWriter]] = {
            "labels": partial(label_writer, classes=self.classes),
            "runner_up": partial(label_writer, classes=self.classes, product="runner_up"),
            "confidence": confidence_writer,
            "margin": margin_writer,
            "probabilities": partial(probability_writer, classes=self.classes),
        }
        return makers[name](file, grid, tags=self.tags, resume=resume)

    @contextmanager
    def writing(self, *, resume: bool) -> Iterator[Writers]:
        """Open all work files; with ``resume`` those that are there and sound go on."""
        with ExitStack() as stack:
            writers = {}
            for name in self.names:
                writers[name] = stack.enter_context(self._writer(name, resume=resume))
                writers[name].flush()  # a resumed run may count on the file
            yield writers

    def rebuild(self, windows: Iterable[Window]) -> None:
        """Make all work files anew, with only these windows of what is there.

        A file that has lost something in one place may not take anything in another.
        """
        folder = self.folder / "rebuilt"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        rebuilt = replace(self, folder=folder)
        with self.writing(resume=True) as old, rebuilt.writing(resume=False) as new:
            for window in windows:
                for name, writer in old.items():
                    block = writer.read(window)
                    assert block is not None
                    new[name].write(window, block)
        for file in folder.iterdir():
            file.replace(self.folder / file.name)
        folder.rmdir()

    def finish(self, name: str, target: Path) -> None:
        """Make the finished file of one raster."""
        self._writer(name, resume=True).finish(target)

    def in_regions(self, regions: GivenRegions, table: RegionTable, origin: Window) -> WorkRasters:
        """Give pixels what became of their regions; ``origin`` is the rasters' place in the scene.

        What tiles have left stays as it is, so that a run can be gone on with.
        """
        made = replace(self, folder=self._empty("voted"))
        with open_dataset(str(self.folder / "labels.work.tif")) as labels:
            stored = StoredBlocks.of(labels)
        with self.writing(resume=True) as old, made.writing(resume=False) as new:
            for window in pieces(self.grid.window, _SIDE, _SIDE):
                if not stored.any_in(window):
                    continue
                blocks = {name: _block(writer, window) for name, writer in old.items()}
                of_scene = replace(window, row=window.row + origin.row, col=window.col + origin.col)
                inside, row = table.changed(regions.numbers_in(of_scene), blocks["labels"])
                for name, block in blocks.items():
                    block[..., inside] = table.rasters[name][row].T
                    new[name].write(window, block)
        return made

    def _empty(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def on_grid(self, grid: Grid, left_out: LeftOut | None = None) -> WorkRasters:
        """Bring all rasters to another grid, without the pixels of it that are left out."""
        moved = replace(self, folder=self._empty("native"), grid=grid)
        for name in self.names:
            with moved._writer(name, resume=False) as writer:
                regrid_nearest(self.folder / f"{name}.work.tif", writer, left_out)
        return moved


def write_tile(writers: Writers, window: Window, result: TileResult) -> dict[str, int]:
    """Write a tile's blocks and read them back.

    Returns
    -------
    dict
        CRC-32 of each block, by the raster's name.

    Raises
    ------
    OutputError
        If what lies in a file is not what was written.
    """
    checksums = {}
    for name, writer in writers.items():
        block = np.ascontiguousarray(getattr(result, name))
        writer.write(window, block)
        writer.flush()
        checksums[name] = crc32(block.data)
        if checksum(writer, window) != checksums[name]:
            raise OutputError(writer.complaint("what was written cannot be read back"))
    return checksums


def _block(writer: RasterWriter, window: Window) -> npt.NDArray[Any]:
    block = writer.read(window)
    if block is None:
        raise OutputError(writer.complaint("what was written cannot be read back"))
    return block


def checksum(writer: RasterWriter, window: Window) -> int | None:
    """CRC-32 of what lies in a work file; None where it cannot be read."""
    block = writer.read(window)
    return None if block is None else crc32(block.data)


def is_intact(writers: Writers, window: Window, checksums: Mapping[str, int]) -> bool:
    """Whether a tile's pixels are in the work files as they were recorded.

    A tile without checksums had nothing to label, and nothing was written.
    """
    if checksums:
        return checksums.keys() == writers.keys() and all(
            checksum(writer, window) == checksums[name] for name, writer in writers.items()
        )
    blocks = [(writer.read(window), writer.layout.nodata) for writer in writers.values()]
    return all(block is not None and (block == nodata).all() for block, nodata in blocks)
