"""The same window seen in several ways; the logits are turned back and averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.methods import Within

Score = Callable[[Tensor], Tensor]
"""Windows ``(B, 3, H, W)`` to logits ``(B, H, W, Q)``."""


@dataclass(frozen=True)
class View:
    """Quarter turns counter-clockwise, after a mirror where ``mirrored``."""

    turns: int = 0
    mirrored: bool = False
    colours: Literal["own", "grey", "blurred"] = "own"
    weight: float = 1.0
    """Of its logits in the mean."""

    def apply(self, rgb: Tensor) -> Tensor:
        """Turn windows ``(B, 3, H, W)``."""
        if self.colours != "own":
            rgb = grey(rgb) if self.colours == "grey" else blurred(rgb)
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
    """Weighted mean logits of windows over views."""
    first, *others = views
    total = first.invert(score(first.apply(windows)))
    if not others:
        return total
    if first.weight != 1:
        total *= first.weight
    for view in others:
        total.add_(view.invert(score(view.apply(windows))), alpha=view.weight)
    return total / sum(view.weight for view in views)


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


@dataclass(frozen=True)
class ItaClipViews:
    """Windows as they are, grey, blurred, and flipped both ways; five times the time.

    Aydın et al., "ITACLIP: Boosting Training-Free Semantic Segmentation", CVPRW 2025. Grey and blur
    are of normalised pixels, as there.
    """

    share: Annotated[float, Within(0.01, 0.99)] = 0.75
    """Of the three views that are not flipped in the mean."""

    def views(self) -> Sequence[View]:
        """Five views."""
        upright, flipped = self.share / 3, (1 - self.share) / 2
        return (
            View(weight=upright),
            View(colours="grey", weight=upright),
            View(colours="blurred", weight=upright),
            View(turns=2, mirrored=True, weight=flipped),
            View(mirrored=True, weight=flipped),
        )


_GREY = (0.2989, 0.587, 0.114)
_BLUR_WIDTH, _BLUR_SIDE = 5.0, 11


def grey(rgb: Tensor) -> Tensor:
    """Windows ``(B, 3, H, W)`` with their grey in all three planes."""
    red, green, blue = rgb.unbind(1)
    one = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
    return one[:, None].expand_as(rgb).contiguous()


def blurred(rgb: Tensor) -> Tensor:
    """Windows ``(B, 3, H, W)`` under a Gaussian, mirrored at their edges."""
    half = _BLUR_SIDE // 2
    at = torch.arange(-half, half + 1, device=rgb.device, dtype=torch.float32)
    bell = torch.exp(-0.5 * (at / _BLUR_WIDTH) ** 2)
    bell = (bell / bell.sum()).to(rgb.dtype).expand(3, 1, 1, -1)
    thin = min(rgb.shape[2:]) <= half  # scenes of a few pixels have no mirror that deep
    padded = F.pad(rgb, (half,) * 4, mode="replicate" if thin else "reflect")
    return F.conv2d(F.conv2d(padded, bell, groups=3), bell.mT, groups=3)
