"""The same window seen in several ways; the logits are turned back and averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""Windows ``(B, 3, H, W)`` to logits ``(B, H, W, Q)``."""


@dataclass(frozen=True)
class View:
    """Quarter turns counter-clockwise, after a mirror where ``mirrored``."""

    turns: int = 0
    mirrored: bool = False

    def apply(self, rgb: Tensor) -> Tensor:
        """Turn windows ``(B, 3, H, W)``."""
        mirrored = rgb.flip(3) if self.mirrored else rgb
        return mirrored.rot90(self.turns, (2, 3)) if self.turns else mirrored

    def invert(self, logits: Tensor) -> Tensor:
        """Turn logits ``(B, H, W, Q)`` of turned windows back."""
        turned = logits.rot90(-self.turns, (1, 2)) if self.turns else logits
        return turned.flip(2) if self.mirrored else turned


class Views(Protocol):
    """Which views are taken; a frozen dataclass, a line in `geoseg.methods.VIEWS`."""

    def views(self) -> Sequence[View]:
        """All of them; the first one may be the window as it is."""


def mean_of_views(score: Score, views: Sequence[View], windows: Tensor) -> Tensor:
    """Mean logits of windows over views."""
    first, *others = views
    total = first.invert(score(first.apply(windows)))
    for view in others:
        total += view.invert(score(view.apply(windows)))
    return total if not others else total / len(views)


@dataclass(frozen=True)
class Plain:
    """Windows as they are."""

    def views(self) -> Sequence[View]:
        """One view."""
        return (View(),)


@dataclass(frozen=True)
class HorizontalFlip:
    """Windows as they are and mirrored left to right, for images that have an up and a down."""

    def views(self) -> Sequence[View]:
        """Two views."""
        return View(), View(mirrored=True)


@dataclass(frozen=True)
class D4:
    """All eight flips and quarter turns: seen from above, no side of a scene is up."""

    def views(self) -> Sequence[View]:
        """Eight views."""
        return tuple(View(turns, mirrored) for mirrored in (False, True) for turns in range(4))
