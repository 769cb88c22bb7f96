"""PEARL's text-aware step: cells of like grey and like words share their logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.inference.refine import Asked, SceneRefiner
from geoseg.inference.refine.chebyshev import solved
from geoseg.inference.refine.scene import Readable
from geoseg.methods import Within
from geoseg.types import Window

_GREY = (0.299 / 0.26862954, 0.587 / 0.26130258, 0.114 / 0.27577711)
"""Grey of colours in [0, 1], as of an image that is normalised for CLIP; but for a constant."""
_FALL = 5.0
_EPS = 1e-6
_USUAL_GRADIENT = (0.1, 0.1)
"""Of an array whose scene nobody has measured."""
_SAMPLES, _SAMPLE_SIDE = 6, 64
"""Pieces of a scene that are measured, along each of its sides, and their side in pixels."""


@dataclass(frozen=True)
class Laplace:
    """PEARL's text-aware Laplacian propagation (2026), in cells that belong to the scene.

    Cells of some pixels hold scaled logits ``Z``. Neighbours are held together by an edge that is
    weaker where grey changes and stronger where their words are alike, and each cell by its own
    logits, the more the surer it is: ``(ρ + strength L) F = ρ Z``. What that changes in a cell,
    ``F - Z``, is added to its pixels, which keep their detail. The original puts the coarse ``F``
    in their place, and stops conjugate gradients, which see the whole image, after 25 steps; here
    steps have fixed coefficients and a finite reach.

    Raises
    ------
    OptionError
        If there is one gradient, or more than two.
    """

    cell: Annotated[int, Within(1, 64)] = 4
    """Side of a cell in pixels; cells begin at the scene's first pixel."""
    strength: Annotated[float, Within(0, 1000)] = 1.0
    """Factor on the edges; 0 leaves logits as they are."""
    steps: Annotated[int, Within(1, 200)] = 25
    floor: Annotated[float, Within(0.01, 1)] = 0.3
    """Least confidence that a cell is taken to have."""
    words: Literal["full", "diag"] = "full"
    """Likeness of words: all of it, or its diagonal alone, as the released program has it."""
    gradient: Annotated[tuple[float, ...], Within(0, 1e12)] = ()
    """Mean change of grey from cell to cell, across and down; measured over the scene where it is
    left out, and taken as 0.1 for `Segmenter.predict`, which knows no scene."""

    def __post_init__(self) -> None:
        if len(self.gradient) not in (0, 2):
            said = "+".join(f"{each:g}" for each in self.gradient)
            raise OptionError(f"refiner laplace: gradient is {said}; give two, like 0.1+0.1")

    @property
    def reach(self) -> int:
        """A cell a step, and those at the rim, which are cut or have a neighbour less."""
        return (self.steps + 3) * self.cell if self.strength else 0

    def places(self, shape: tuple[int, int]) -> list[Window]:
        """Pieces of a scene that are measured."""
        return [] if self.gradient else _places(*shape, self.cell)

    def measured(self, scene: Readable) -> Laplace:
        """The same, with the gradient of a scene."""
        if self.gradient:
            return self
        total, count = np.zeros(2), np.zeros(2)
        for place in self.places(scene.shape):
            block = scene.read(place)
            rgb, valid = torch.from_numpy(block.rgb), torch.from_numpy(block.valid)
            if len(rgb) != len(_GREY):  # which a run refuses
                return self
            grey, known = cells_of(grey_of(rgb)[..., None], valid, self.cell)
            for axis, (change, both) in enumerate(_changes(grey[..., 0], known)):
                total[axis] += float(change[both].double().sum())
                count[axis] += int(both.sum())
        found = np.divide(total, count, out=np.array(_USUAL_GRADIENT), where=count > 0)
        return replace(self, gradient=tuple(float(f"{each:.6g}") for each in found))

    def prepared(self, asked: Asked) -> SceneRefiner:
        """With the words of a map."""
        alike = None if asked.text is None else text_similarity(asked.text)
        if alike is not None and self.words == "diag":
            alike = torch.diag(alike.diagonal())
        return _Prepared(self, alike, asked)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """The refiner itself."""

    method: Laplace
    alike: Tensor | None
    asked: Asked

    @property
    def reach(self) -> int:
        return self.method.reach

    def __call__(
        self, logits: Tensor, rgb: Tensor, valid: Tensor, origin: tuple[int, int]
    ) -> Tensor:
        """Refine ``(H, W, C)`` logits under ``(3, H, W)`` pixels that begin at a scene's pixel."""
        how = self.method
        if not how.strength:
            return logits
        top, left = (place % how.cell for place in origin)
        height, width = valid.shape
        padding = (left, -(left + width) % how.cell, top, -(top + height) % how.cell)
        pad = torch.nn.functional.pad
        known = pad(valid, padding)
        values = pad(logits, (0, 0, *padding))
        coarse, there = cells_of(values, known, how.cell)
        scaled = coarse * self.asked.scale
        shares = self._shares(scaled)
        grey, _ = cells_of(grey_of(pad(rgb, padding))[..., None], known, how.cell)
        edges = edge_weights(
            grey[..., 0], there, shares, self.alike, how.gradient or _USUAL_GRADIENT
        )
        trust = confidence(shares, self.alike, how.floor)
        found = solve(trust, edges, scaled, strength=how.strength, floor=how.floor, steps=how.steps)
        change = torch.where(there[..., None], found - scaled, 0)
        fine = _enlarged(_enlarged(change, how.cell, 0), how.cell, 1)
        fine = fine[top : top + height, left : left + width]
        return logits + fine / self.asked.scale

    def _shares(self, scaled: Tensor) -> Tensor:
        """Probabilities of the words in each cell."""
        words = 0 if self.alike is None else len(self.alike)
        if words and scaled.shape[-1] == 2 * words:  # with the window's global logits beside them
            patch, cls = torch.split(scaled, words, -1)
            scaled = patch - self.asked.cls_bias * cls
        return scaled.softmax(-1)


def text_similarity(text: Tensor) -> Tensor:
    """How alike words are, ``(Q, Q)``, rows sum to one; ``text`` is ``(Q, D)`` unit vectors."""
    rows = (text @ text.T / 0.5).softmax(-1) + 10 * torch.eye(len(text), device=text.device)
    return rows / (rows.sum(-1, keepdim=True) + _EPS)


def grey_of(rgb: Tensor) -> Tensor:
    """``(H, W)`` of ``(3, H, W)``."""
    red, green, blue = rgb
    grey: Tensor = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
    return grey


def cells_of(values: Tensor, valid: Tensor, cell: int) -> tuple[Tensor, Tensor]:
    """Means ``(h, w, C)`` of the valid pixels of whole cells, and which have any."""
    rows, cols = (side // cell for side in valid.shape)
    cut = valid[: rows * cell, : cols * cell]
    values = torch.where(cut[..., None], values[: rows * cell, : cols * cell], 0)
    count = cut.view(rows, cell, cols, cell).sum((1, 3))
    total = values.reshape(rows, cell, cols, cell, values.shape[-1]).sum((1, 3))
    return total / count.clamp_min(1)[..., None], count > 0


def _changes(grey: Tensor, known: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Change of grey across and down, and where both cells are known."""
    return (
        ((grey[:, 1:] - grey[:, :-1]).abs(), known[:, 1:] & known[:, :-1]),
        ((grey[1:] - grey[:-1]).abs(), known[1:] & known[:-1]),
    )


def _agreement(one: Tensor, other: Tensor, alike: Tensor | None) -> Tensor:
    """``1 + pᵀ G p'`` of shares ``(..., Q)``."""
    turned = one if alike is None else one @ alike
    return 1 + (turned * other).sum(-1).clamp(0, 1)


def confidence(shares: Tensor, alike: Tensor | None, floor: float) -> Tensor:
    """How firmly each cell is held by its own logits."""
    return shares.amax(-1).clamp_min(floor) ** 2 * _agreement(shares, shares, alike)


def edge_weights(
    grey: Tensor,
    known: Tensor,
    shares: Tensor,
    alike: Tensor | None,
    gradient: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """Weights of neighbours across ``(h, w - 1)`` and down ``(h - 1, w)``."""
    pairs = (shares[:, 1:], shares[:, :-1]), (shares[1:], shares[:-1])
    found = []
    changes = zip(_changes(grey, known), pairs, gradient, strict=True)
    for (change, both), (after, before), usual in changes:
        near = torch.exp(-_FALL * change / (usual + _EPS)) * _agreement(after, before, alike)
        found.append(near.clamp(0, 1) * both)
    return found[0], found[1]


def solve(
    trust: Tensor,
    edges: tuple[Tensor, Tensor],
    values: Tensor,
    *,
    strength: float,
    floor: float,
    steps: int,
) -> Tensor:
    """``(ρ + strength L)⁻¹ ρ`` of cells ``(h, w, C)``, by so many fixed steps from them."""
    across, down = (strength * each for each in edges)
    degree = torch.zeros_like(trust)
    degree[:, 1:] += across
    degree[:, :-1] += across
    degree[1:] += down
    degree[:-1] += down
    whole = trust + degree
    held = values.mul((trust / whole)[..., None])
    # Shares of the neighbours, as planes: sums stay in order whatever the array's size.
    right, left = (across / side for side in (whole[:, :-1], whole[:, 1:]))
    below, above = (down / side for side in (whole[:-1], whole[1:]))

    def step(x: Tensor) -> Tensor:
        total = held.clone()
        total[:, :-1].addcmul_(right[..., None], x[:, 1:])
        total[:, 1:].addcmul_(left[..., None], x[:, :-1])
        total[:-1].addcmul_(below[..., None], x[1:])
        total[1:].addcmul_(above[..., None], x[:-1])
        return total

    radius = 4 * strength / (4 * strength + floor**2)
    return solved(step, values, radius, steps)


def _enlarged(x: Tensor, cell: int, dim: int) -> Tensor:
    """Bilinear from cells to pixels along a dimension, half-pixel centres."""
    size = x.shape[dim]
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 1, 1)], dim)
    phases = []
    for pixel in range(cell):
        share = (pixel + 0.5) / cell - 0.5
        phases.append(torch.lerp(x, after if share > 0 else before, abs(share)))
    return torch.stack(phases, dim + 1).flatten(dim, dim + 1)


def _places(height: int, width: int, cell: int) -> list[Window]:
    """Where a scene is looked at: pieces of whole cells, evenly over all of it."""
    side = max(_SAMPLE_SIDE // cell, 2) * cell
    rows, cols = (
        sorted(
            {int(cell * round(at / cell)) for at in np.linspace(0, max(size - side, 0), _SAMPLES)}
        )
        for size in (height, width)
    )
    return [
        Window(row, col, min(side, height - row), min(side, width - col))
        for row in rows
        for col in cols
    ]
