"""What a feature store keeps of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geoseg._fields import STORE, documented, option, settle
from geoseg.errors import OptionError

Tier = Literal["full", "fast"]
Tiers = Literal["full", "fast", "both"]
_LARGEST_CELL = 16


@documented
@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """What a feature store keeps of a scene.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    tier: Tiers = option(
        "both",
        "full: the tokens of every window, about 16 bytes a pixel, which give the map of segment; "
        "fast: the direction field, 1 to 3 bytes a pixel, which gives nearly the same map in "
        "seconds; or both.",
        STORE,
    )
    directions: int = option(
        64, "Leading directions of the scene that the fast tier keeps.", STORE, metavar="R"
    )
    cell: int = option(4, "Side of the fast tier's cells, in pixels.", STORE, metavar="PX")
    channels: int | None = option(
        None,
        "Leading directions of the scene along which the full tier keeps its tokens: smaller, and "
        "its logits are near within a bound that ask states. [default: all channels]",
        STORE,
        metavar="R",
        holds=lambda value: value >= 1,
        wanted="1 or more",
    )

    def __post_init__(self) -> None:
        settle(self)
        if self.channels is not None and self.tier == "fast":
            raise OptionError(
                "--channels is of the full tier, which --tier fast does not keep; give one of them"
            )
        if self.directions < 1:
            raise OptionError(f"directions {self.directions}: give 1 or more")
        if not 1 <= self.cell <= _LARGEST_CELL:
            raise OptionError(f"cell {self.cell}: give 1 to {_LARGEST_CELL} pixels")

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Those that are wanted."""
        return ("full", "fast") if self.tier == "both" else (self.tier,)
