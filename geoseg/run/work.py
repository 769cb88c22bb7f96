"""What the tiles of a run leave until its products are made: pixels, and sums of regions."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from geoseg.inference.lane import TileResult
from geoseg.run.journal import Journal, TileRecord
from geoseg.run.rasters import WorkRasters, Writers, is_intact, write_tile
from geoseg.run.regions import SumFiles, Sums
from geoseg.tiling.tiles import TilePlan
from geoseg.types import Window

logger = logging.getLogger(__name__)

_SUMS = "regions"
"""Name of the sums of a tile among its checksums."""


@dataclass(frozen=True)
class TileFiles:
    """Work files of a run, tile by tile."""

    plan: TilePlan
    rasters: WorkRasters
    sums: SumFiles | None
    """None without regions of a file."""
    scored: bool
    """Whether regions need the scores of their pixels."""

    def write(self, writers: Writers, index: int, result: TileResult) -> TileRecord:
        """Write what a tile has found, read it back, and say what is there now."""
        checksums = write_tile(writers, self._place(index), result)
        if self.sums is not None:
            checksums[_SUMS] = self.sums.write(index, result.regions or self._no_sums())
        return TileRecord(index, result.windows, checksums, result.retried)

    def write_nodata(self, writers: Writers, index: int) -> None:
        """Leave a hole: what a run that was killed may have left there is no part of the map."""
        nodata = TileResult.empty(
            self.plan.core(index), len(self.rasters.classes), self.rasters.names
        )
        write_tile(writers, self._place(index), nodata)

    def forget_damaged(self, journal: Journal) -> None:
        """Forget recorded tiles whose pixels are not in the work files as they were."""
        if not journal.finished:
            return
        with self.rasters.writing(resume=True) as writers:
            damaged = [
                record.tile
                for record in journal.finished.values()
                if record.tile >= len(self.plan) or not self._is_intact(writers, record)
            ]
        if damaged:
            logger.warning("%s: %d tiles are run again", self.rasters.folder, len(damaged))
            journal.forget(damaged)
            written = [r.tile for r in journal.finished.values() if r.checksums]
            self.rasters.rebuild(map(self._place, written))

    def total(self, journal: Journal) -> Sums:
        """Sums of the regions over all tiles."""
        assert self.sums is not None
        tiles = [record.tile for record in journal.finished.values() if record.checksums]
        return self.sums.total(sorted(tiles), self._no_sums())

    def _is_intact(self, writers: Writers, record: TileRecord) -> bool:
        checksums = dict(record.checksums)
        sums = checksums.pop(_SUMS, None)
        kept = sums is None or self.sums is None or self.sums.checksum(record.tile) == sums
        return kept and is_intact(writers, self._place(record.tile), checksums)

    def _no_sums(self) -> Sums:
        classes = len(self.rasters.classes)
        return Sums.none(classes, classes + 1 if self.scored else 0)

    def _place(self, index: int) -> Window:
        """Pixels of a tile in the work files."""
        return self.plan.core(index).relative_to(self.plan.region)
