"""Regions vote: one class for the pixels of each, where enough of them agree.

Scores are added up in whole per milles, so that no order of pixels, tiles or workers changes a sum.
The superpixels of a scene are found here; regions of a file are `geoseg.io.regions`, which the
tiles of a run add up and `geoseg.run.regions` decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from geoseg.errors import TileError
from geoseg.inference.decide import Decided, Decision
from geoseg.methods import Within
from geoseg.options.segmentation import RegionRule
from geoseg.types import BoolArray, FloatArray

PER_MILLE = 1000
_STEPS = 5
"""How often pixels join a seed."""
_CELLS_AROUND = _STEPS + 1
"""Cells away, whose pixels a pixel's superpixel depends on, and the part of its own."""
_PARTS = 4
"""Colours and places of seeds are whole quarters, so that float32 adds their products exactly."""
_NOBODY = 2.0**22
"""Of a seed without pixels: farther than any other."""
_AROUND = ((0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Cells whose seeds a pixel may join, the first on ties."""
_VALUES_AT_A_TIME = 2**22


@dataclass(frozen=True)
class Superpixels:
    """Superpixels that begin on a lattice of the scene, after SLIC (Achanta et al., 2012).

    Each cell of the lattice has a seed, with the mean colour and place of its pixels. Five times,
    each pixel joins the nearest in colour and place of the nine seeds around it, and each seed
    moves to the mean of the pixels of its cell that have joined it. A superpixel depends on
    nothing farther away than six cells, and reaches no farther than the nine. It may have several
    parts.
    """

    size: Annotated[int, Within(2, 64)] = 8
    """Side of a cell in pixels."""
    compactness: Annotated[int, Within(1, 64)] = 8
    """How many steps of 8-bit colour weigh as much as a cell's side."""

    @property
    def reach(self) -> int:
        """Pixels on each side on which the number of a pixel depends."""
        return _CELLS_AROUND * self.size

    def numbers(self, rgb: Tensor, valid: Tensor, origin: tuple[int, int]) -> tuple[Tensor, int]:
        """Superpixel of each pixel ``(H, W)``, counted from 0, and how many there may be.

        Parameters
        ----------
        rgb, valid, origin
            As for a `geoseg.inference.refine.SceneRefiner`.
        """
        size = self.size
        top, left = (place % size for place in origin)
        height, width = valid.shape
        padding = (left, -(left + width) % size, top, -(top + height) % size)
        known, points = self._points(
            torch.nn.functional.pad(rgb, padding), torch.nn.functional.pad(valid, padding)
        )
        down, across = ((side + sum(pad)) // size for side, pad in (
            (height, padding[2:]), (width, padding[:2])
        ))  # fmt: skip
        shape = (down, across)
        seeds, counts = _means(points, known)
        alive = counts > 0
        for step in range(_STEPS):
            joined = self._joined(points, seeds, alive, shape)
            if step + 1 < _STEPS:
                moved, counts = _means(points, known & (joined == 0))
                seeds = torch.where((counts > 0)[:, None], moved, seeds)
        cell = torch.arange(down * across, device=valid.device).view(-1, 1)
        step_to = torch.tensor([r * across + c for r, c in _AROUND], device=valid.device)
        found = (cell + step_to[joined]).view(down, across, size, size)
        image = found.transpose(1, 2).reshape(down * size, across * size)
        return image[top : top + height, left : left + width], down * across

    def _points(self, rgb: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Which pixels count ``(cells, n)``, and their colours and places ``(cells, C + 2, n)``."""
        bands, size = len(rgb), self.size
        down, across = (side // size for side in valid.shape)
        exact = torch.float32 if bands <= 3 and not rgb.is_cuda else torch.float64
        colours = (255 * rgb.clamp(0, 1)).round().to(exact) - 128

        def in_cells(x: Tensor) -> Tensor:
            cut = x.view(-1, down, size, across, size).permute(1, 3, 0, 2, 4)
            return cut.reshape(down * across, -1, size * size)

        side = torch.arange(size, device=rgb.device, dtype=exact) + 0.5
        place = _quarters(side * self.compactness / size)
        rows = place[:, None].expand(size, size).reshape(1, 1, -1)
        cols = place[None, :].expand(size, size).reshape(1, 1, -1)
        cells = in_cells(colours)
        points = torch.cat(
            [cells, rows.expand(len(cells), 1, -1), cols.expand(len(cells), 1, -1)], 1
        )
        return in_cells(valid[None].to(torch.uint8))[:, 0].bool(), points

    def _joined(
        self, points: Tensor, seeds: Tensor, alive: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        """Which of the nine seeds around its cell each pixel is nearest to ``(cells, n)``."""
        down, across = shape
        around = seeds.new_full((down + 2, across + 2, seeds.shape[1] + 1), 0)
        around[..., -1] = _NOBODY
        inner = around[1:-1, 1:-1].view(down, across, -1)
        inner[..., :-1] = seeds.view(down, across, -1)
        inner[..., -1] = torch.where(alive, 0, _NOBODY).view(down, across)
        near = torch.stack(
            [around[1 + r : 1 + r + down, 1 + c : 1 + c + across] for r, c in _AROUND], 2
        ).view(down * across, len(_AROUND), -1)
        where, far = near[..., :-1].clone(), near[..., -1]
        shift = torch.tensor(_AROUND, device=seeds.device, dtype=seeds.dtype) * self.compactness
        where[..., -2:] += shift
        # |p - s|² without |p|², which is the same for all nine.
        norm = torch.where(far > 0, far, where.square().sum(-1))[..., None]
        where = torch.where((far > 0)[..., None], 0, where)
        some = max(1, _VALUES_AT_A_TIME // (len(_AROUND) * points.shape[-1]))
        parts = (slice(k, k + some) for k in range(0, len(points), some))
        # Faster than argmin.
        nearest = (
            torch.baddbmm(norm[part], where[part], points[part], alpha=-2).min(1)[1]
            for part in parts
        )
        return torch.cat(list(nearest))


def _quarters(values: Tensor) -> Tensor:
    return (values * _PARTS).round() / _PARTS


def _means(points: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(cells, C)`` of some pixels of each cell, in quarters, and how many they are."""
    count = some.sum(-1)
    total = torch.bmm(points, some.to(points.dtype)[..., None])[..., 0]
    return _quarters(total / count.clamp_min(1)[:, None]), count


@dataclass(frozen=True, eq=False)
class Votes:
    """What regions make of their pixels' labels and scores."""

    labels: Tensor
    """``(N,)`` class of each."""
    shares: Tensor
    """``(N, K)`` mean scores, or shares of pixels, by the rule; of the sums that are equal, equal.
    """
    agreement: Tensor
    """``(N,)`` share of its pixels that have that class already."""


def votes(counts: Tensor, sums: Tensor | None, decision: Decision, rule: RegionRule) -> Votes:
    """Decide what regions are.

    Parameters
    ----------
    counts
        ``(N, K)`` int64: pixels of each class in each region.
    sums
        ``(N, K)`` int64: scores of its pixels in per mille, added up; a column more for a hidden
        background. Not needed for ``majority``.
    decision
        How scores become classes: with the map's thresholds.
    rule
        ``mean`` takes the class with the best mean score, ``majority`` the one that most pixels
        have; the first class on ties.
    """
    pixels = counts.sum(-1, keepdim=True).clamp_min(1)
    if rule == "majority":
        shares = counts.double() / pixels
        labels = shares.argmax(-1)
    else:
        assert sums is not None
        shares = sums.double() / (PER_MILLE * pixels)
        labels, _ = decision.labels(shares[:, : decision.classes + decision.hidden])
        shares = shares[:, : decision.classes]
    agreement = counts.gather(-1, labels[:, None]).double() / pixels
    return Votes(labels, shares, agreement[:, 0])


def per_mille(scores: Tensor) -> Tensor:
    """Scores from 0 to 1 as whole numbers."""
    return (PER_MILLE * scores).round()


@dataclass(frozen=True, eq=False)
class Voting:
    """Superpixels that vote, as a last refiner: of scores and labels in place of logits.

    Rows of ``(H, W, C + 1)`` hold the scores of all classes, one more for a hidden background, and
    the label.
    """

    superpixels: Superpixels
    decision: Decision
    rule: RegionRule
    agreement: float
    planes: int | None = None
    """Of pixels, the first ones that superpixels look at; all if None."""

    @property
    def reach(self) -> int:
        """What superpixels depend on, and two cells for the pixels of one."""
        return self.superpixels.reach + 2 * self.superpixels.size

    def scored(self, logits: Tensor) -> Tensor:
        """Rows of scores and labels from those of logits."""
        decided = self.decision(logits)
        return torch.cat([self.decision.scores(logits), decided.labels[..., None]], -1)

    def __call__(
        self, logits: Tensor, rgb: Tensor, valid: Tensor, origin: tuple[int, int]
    ) -> Tensor:
        """Give each superpixel that agrees its class and its scores; of rows, see `scored`."""
        if not valid.any():
            return logits
        rgb = rgb[: self.planes]
        outside = rgb[:, valid]
        if outside.min() < 0 or outside.max() > 1:
            raise TileError(
                "superpixels need colours from 0 to 1; leave --stretch raw, or --regions, out"
            )
        return self.voted(logits, *self.superpixels.numbers(rgb, valid, origin), valid)

    def of_image(self, logits: Tensor, rgb: FloatArray, valid: BoolArray) -> Tensor:
        """Rows of an image in memory, whose logits may have another size than its pixels."""
        device, size = logits.device, logits.shape[:2]
        pixels, known = (
            torch.from_numpy(rgb[: self.planes]).to(device),
            torch.from_numpy(valid).to(device),
        )
        numbers, count = self.superpixels.numbers(pixels, known, (0, 0))
        if size != known.shape:
            rows, cols = (
                torch.arange(new, device=device) * old // new
                for new, old in zip(size, known.shape, strict=True)
            )
            numbers, known = (each[rows[:, None], cols] for each in (numbers, known))
        return self.voted(self.scored(logits), numbers, count, known)

    def voted(self, rows: Tensor, numbers: Tensor, count: int, valid: Tensor) -> Tensor:
        """The same for pixels whose superpixels are known."""
        scores, labels = rows[..., :-1], rows[..., -1].long()
        classes = self.decision.classes
        if not scores[valid].isfinite().all():
            return rows  # which is refused further on
        of = torch.where(valid, numbers, count)  # what has no data is a region of its own
        flat, least = of.flatten(), count + 1
        index = (of * classes + torch.where(valid, labels, 0)).flatten()
        counts = torch.bincount(index, minlength=least * classes).view(least, classes)
        sums = None
        if self.rule == "mean":
            sums = torch.stack(
                [
                    torch.bincount(
                        flat,
                        per_mille(torch.where(valid, scores[..., k], 0)).flatten().double(),
                        minlength=least,
                    ).long()
                    for k in range(scores.shape[-1])
                ],
                -1,
            )
        found = votes(counts, sums, self.decision, self.rule)
        holds = (found.agreement >= self.agreement) & (counts.sum(-1) > 0)
        holds[count] = False
        spare = scores.shape[-1] - classes
        hidden = found.shares.new_zeros(len(found.shares), spare)
        table = torch.cat([found.shares, hidden, found.labels[:, None]], -1).to(rows.dtype)
        return torch.where(holds[of][..., None], table[of], rows)


class DecidedRows(Decided):
    """What pixels with these rows of scores and labels are, see `Voting`."""

    def __init__(self, decision: Decision, rows: Tensor) -> None:
        super().__init__(decision, rows)
        self._all_scores = rows[..., :-1]
        self._labels = rows[..., -1].long(), rows[..., : decision.classes].amax(-1)
