"""The rasters of a run while they grow: one work file each, tile by tile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from geoseg.errors import OutputError
from geoseg.inference.segmenter import TileResult
from geoseg.io.grid import Grid
from geoseg.io.labels import LabelRaster
from geoseg.io.regrid import regrid_nearest
from geoseg.io.write import (
    RasterWriter,
    confidence_writer,
    label_writer,
    margin_writer,
    probability_writer,
)
from geoseg.run.tally import Tally
from geoseg.types import LabelClass, Window


@dataclass(frozen=True)
class WorkRasters:
    """Work files of all wanted rasters on one grid."""

    folder: Path
    names: tuple[str, ...]
    """``labels``, ``confidence`` and so on."""
    grid: Grid
    classes: Sequence[LabelClass]

    def file(self, name: str) -> Path:
        """Work file of a raster."""
        return self.folder / f"{name}.work.tif"

    def check_present(self) -> None:
        """Refuse to go on where a work file has gone.

        Raises
        ------
        OutputError
            With the file's name.
        """
        for name in self.names:
            if not self.file(name).exists():
                raise OutputError(
                    f"{self.file(name)} of the interrupted run is gone; start anew with --overwrite"
                )

    def _writer(self, name: str, *, resume: bool) -> RasterWriter:
        plain = {"confidence": confidence_writer, "margin": margin_writer}
        if name in plain:
            return plain[name](self.file(name), self.grid, resume=resume)
        make = label_writer if name == "labels" else probability_writer
        return make(self.file(name), self.grid, self.classes, resume=resume)

    @contextmanager
    def writing(self, *, resume: bool) -> Iterator[dict[str, RasterWriter]]:
        """Open all work files."""
        with ExitStack() as stack:
            writers = {}
            for name in self.names:
                writers[name] = stack.enter_context(self._writer(name, resume=resume))
                writers[name].flush()  # a resumed run may count on the file
            yield writers

    def finish(self, name: str, target: Path) -> None:
        """Make the finished file of one raster."""
        self._writer(name, resume=True).finish(target)

    def on_grid(self, grid: Grid) -> tuple[WorkRasters, Tally]:
        """Bring all rasters to another grid; count its labels."""
        folder = self.folder / "native"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        moved, tally = replace(self, folder=folder, grid=grid), Tally(grid, len(self.classes))
        for name in self.names:
            with moved._writer(name, resume=False) as writer:
                for window, block in regrid_nearest(self.file(name), writer):
                    if name == "labels":
                        tally.add_labels(window, block)
        return moved, tally

    def tally(self, cores: dict[Window, tuple[int, ...]]) -> Tally:
        """Count the labels, from the counts of all tiles where those are enough."""
        tally = Tally(self.grid, len(self.classes))
        if tally.even:
            for core, counts in cores.items():
                tally.add(core, counts)
        else:
            labels = LabelRaster.open(self.file("labels"))
            for core in cores:
                tally.add_labels(core, labels.read(core))
        return tally


def write_tile(writers: dict[str, RasterWriter], window: Window, result: TileResult) -> None:
    """Write a tile's blocks, so that they outlive this process."""
    for name, writer in writers.items():
        writer.write(window, getattr(result, name))
        writer.flush()
