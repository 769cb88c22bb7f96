"""Regions of a file: sums of every tile, one decision for each region, and the map with it.

A tile adds up its pixels' labels and scores by region, in whole numbers, and its sums lie in a file
of their own until all tiles are there. No order of tiles, workers or runs changes a total.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch

from geoseg._files import whole_file, writing_to
from geoseg.errors import OutputError, in_words
from geoseg.inference.decide import Decision, lead, runner_up
from geoseg.inference.lane import TileResult
from geoseg.inference.regions import votes
from geoseg.io.grid import Grid
from geoseg.io.regions import GivenRegions
from geoseg.options import Resolved
from geoseg.types import BoolArray, Window, label_nodata

IntArray = npt.NDArray[np.int64]
_STRIPS = 512
"""Of a map, over each of which a pixel's area hardly changes."""


@dataclass(frozen=True, eq=False)
class Sums:
    """What some pixels say of the regions they lie in."""

    numbers: IntArray
    """``(N,)`` of the regions, in ascending order."""
    rows: IntArray
    """``(N,)`` scene rows of their pixels, added up: where a region lies."""
    counts: IntArray
    """``(N, K)`` pixels of each class."""
    scores: IntArray
    """``(N, K + 1)`` scores in per mille, added up, the last of a hidden background; or without
    columns."""

    @classmethod
    def none(cls, classes: int, scored: int) -> Sums:
        """Of no region."""
        some = np.zeros(0, np.int64)
        return cls(some, some, *(np.zeros((0, width), np.int64) for width in (classes, scored)))

    @classmethod
    def of(cls, numbers: IntArray, found: TileResult, classes: int) -> Sums:
        """Add up a tile's labels, and its scores where it has them.

        Parameters
        ----------
        numbers
            Region of each pixel of its core, 0 for none.
        found
            The tile.
        classes
            How many there are.
        """
        labels = found.labels
        of = np.where(labels == label_nodata(labels.dtype), 0, numbers)
        starts = _starts(of, labels)
        run = of.ravel()[starts]
        lengths = np.diff(starts, append=of.size)
        inside = run > 0
        known, which = np.unique(run[inside], return_inverse=True)
        count, lengths = len(known), lengths[inside]
        label = labels.ravel()[starts][inside].astype(np.int64)
        row = found.core.row + starts[inside] // of.shape[1]

        def added(index: IntArray, values: IntArray, bins: int) -> IntArray:
            total = np.zeros(bins, np.int64)
            np.add.at(total, index, values)
            return total

        counts = added(which * classes + label, lengths, count * classes)
        planes = () if found.scores is None else found.scores
        scores = [
            added(which, np.add.reduceat(plane.ravel(), starts, dtype=np.int64)[inside], count)
            for plane in planes
        ]
        return cls(
            known,
            added(which, lengths * row, count),
            counts.reshape(count, classes),
            np.stack(scores, -1) if scores else np.zeros((count, 0), np.int64),
        )

    @classmethod
    def total(cls, parts: Iterable[Sums], numbers: IntArray, like: Sums) -> Sums:
        """Add up parts of a map, whose regions are all among those with these numbers."""
        made = [
            np.zeros((len(numbers), *values.shape[1:]), np.int64)
            for values in (like.rows, like.counts, like.scores)
        ]
        for part in parts:
            index = np.searchsorted(numbers, part.numbers)
            for total, values in zip(made, (part.rows, part.counts, part.scores), strict=True):
                total[index] += values
        return cls(numbers, *made)

    def as_bytes(self) -> bytes:
        """The sums as a file holds them."""
        with io.BytesIO() as file:
            np.savez_compressed(file, **vars(self))
            return file.getvalue()

    @staticmethod
    def numbers_in(path: Path) -> IntArray:
        """The numbers alone, of what `as_bytes` has written."""
        with np.load(path) as stored:
            return np.asarray(stored["numbers"])

    @classmethod
    def read(cls, path: Path) -> Sums:
        """Read what `as_bytes` has written."""
        with np.load(path) as stored:
            return cls(**stored)


def _starts(*values: npt.NDArray[Any]) -> IntArray:
    """Where runs of equal values begin in arrays of rows; each row begins one."""
    first = np.zeros(values[0].shape, np.bool_)
    first[:, 0] = True
    for each in values:
        first[:, 1:] |= each[:, 1:] != each[:, :-1]
    return np.flatnonzero(first)


@dataclass(frozen=True)
class SumFiles:
    """Sums of the tiles of a run, a file each."""

    folder: Path

    def write(self, tile: int, sums: Sums) -> int:
        """Keep the sums of a tile, and read them back.

        Returns
        -------
        int
            CRC-32 of the file.
        """
        path, content = self._path(tile), sums.as_bytes()
        self.folder.mkdir(exist_ok=True)
        with writing_to(path), whole_file(path, replaces=True) as part:
            part.write_bytes(content)
        if self.checksum(tile) != crc32(content):
            raise OutputError(f"{path} cannot be written: what was written cannot be read back")
        return crc32(content)

    def checksum(self, tile: int) -> int | None:
        """CRC-32 of the file of a tile; None where there is none."""
        try:
            return crc32(self._path(tile).read_bytes())
        except OSError:
            return None

    def total(self, tiles: Sequence[int], none: Sums) -> Sums:
        """Sums of some tiles together."""
        paths = [self._path(tile) for tile in tiles]
        numbers = np.unique(np.concatenate([none.numbers, *map(Sums.numbers_in, paths)]))
        return Sums.total(map(Sums.read, paths), numbers, none)

    def _path(self, tile: int) -> Path:
        return self.folder / f"{tile}.npz"


@dataclass(frozen=True, eq=False)
class RegionTable:
    """What became of the regions of a map."""

    numbers: IntArray
    """``(N,)`` in ascending order; those that have pixels in the map."""
    pixels: IntArray
    areas_m2: npt.NDArray[np.float64]
    """Of their pixels in the map; NaN where there are no metres."""
    labels: IntArray
    confidence: npt.NDArray[np.float64]
    """Per cent."""
    runner_up: IntArray
    agreement: npt.NDArray[np.float64]
    """Per cent of their pixels that have had the class already."""
    applied: BoolArray
    """Whether the map has the class."""
    rasters: Mapping[str, npt.NDArray[Any]]
    """Values by the name of a raster, ``(N,)`` or ``(N, K)``."""

    @classmethod
    def of(
        cls,
        sums: Sums,
        decision: Decision,
        options: Resolved,
        grid: Grid,
        rasters: Sequence[str],
    ) -> RegionTable:
        """Decide what the regions of a map are.

        Parameters
        ----------
        sums
            Of all of the map.
        decision
            How scores become classes.
        options
            Rule, agreement and area.
        grid
            Pixels of the scene.
        rasters
            Those of the map.
        """
        device = decision.query_classes.device
        pixels = sums.counts.sum(1)
        found = votes(
            torch.from_numpy(sums.counts).to(device),
            torch.from_numpy(sums.scores).to(device),
            decision,
            options.region_rule,
        )
        labels, shares = found.labels, found.shares
        second = runner_up(shares, labels)
        made = {
            "labels": labels,
            "runner_up": second,
            "confidence": (100 * shares.amax(-1)).round(),
            "margin": (100 * lead(shares)).round(),
            "probabilities": (100 * shares).round(),
        }
        areas = _areas(grid, sums.rows, pixels)
        agreement = found.agreement.cpu().numpy()
        small = options.region_min_area_m2
        large = np.ones(len(pixels), np.bool_) if not small else areas >= small
        return cls(
            sums.numbers,
            pixels,
            areas,
            labels.cpu().numpy(),
            100 * shares.amax(-1).cpu().numpy(),
            second.cpu().numpy(),
            100 * agreement,
            (agreement >= options.region_agreement) & large,
            {name: made[name].cpu().numpy() for name in rasters},
        )

    def changed(self, numbers: IntArray, labels: npt.NDArray[Any]) -> tuple[BoolArray, IntArray]:
        """Which pixels of a window are their region's, and its row in the table for each of those.

        Parameters
        ----------
        numbers
            Region of each pixel, ``(h, w)``.
        labels
            Of the map.
        """
        starts = _starts(numbers)
        run = numbers.ravel()[starts]
        row = np.searchsorted(self.numbers, run).clip(max=max(len(self.numbers) - 1, 0))
        if not len(self.numbers):
            return np.zeros(numbers.shape, np.bool_), row[:0]
        holds = (self.numbers[row] == run) & self.applied[row]
        lengths = np.diff(starts, append=numbers.size)
        inside = np.repeat(holds, lengths).reshape(numbers.shape)
        inside &= labels != label_nodata(labels.dtype)
        return inside, np.repeat(row, lengths)[inside.ravel()]

    def columns(self, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """What there is to say of each region, by the name of an attribute."""
        named = np.array(names, object)
        return {
            "class_id": self.labels.astype(np.int32),
            "class_name": named[self.labels],
            "confidence": self.confidence.round(1),
            "runner_up": named[self.runner_up],
            "agreement": self.agreement.round(1),
            "pixels": self.pixels,
            "area_m2": self.areas_m2,
            "applied": self.applied,
        }

    def report(self, source: GivenRegions, options: Resolved) -> dict[str, Any]:
        """What ``run.json`` says of the regions."""
        return {
            "path": in_words(source.path),
            "identity": in_words(source.identity()),
            "given": getattr(source, "given", None),
            "on_the_map": len(self.numbers),
            "applied": int(self.applied.sum()),
            "pixels": int(self.pixels.sum()),
        } | {
            name: getattr(options, f"region_{name}")
            for name in ("rule", "agreement", "min_area_m2", "overlap")
        }


def _areas(grid: Grid, rows: IntArray, pixels: IntArray) -> npt.NDArray[np.float64]:
    """Square metres of regions, from the area of a pixel in their mean row."""
    step = max(1, grid.height // _STRIPS)
    strip, which = np.unique(rows // np.maximum(pixels, 1) // step, return_inverse=True)
    pixel = [
        grid.pixel_area_m2(Window(at * step, 0, min(step, grid.height - at * step), grid.width))
        for at in strip.tolist()
    ]
    known = np.array([np.nan if area is None else area for area in pixel], np.float64)
    return known[which] * pixels if len(known) else np.zeros(0)
