"""What refiners need of the whole scene, measured once before a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from geoseg.methods import REFINERS, canonical, resolve
from geoseg.options import Options
from geoseg.types import PixelBlock, Window


class Readable(Protocol):
    """A scene, an array, or pieces of one."""

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""

    def read(self, window: Window) -> PixelBlock:
        """Pixels of a window."""


@runtime_checkable
class Measuring(Protocol):
    """A line in `geoseg.methods.REFINERS` with a key that a scene can fill."""

    def places(self, shape: tuple[int, int]) -> list[Window]:
        """What `measured` reads of a scene of this size; nothing if somebody gave the key."""

    def measured(self, scene: Readable) -> Any:
        """The same method with that key filled, if nobody gave it; of all of the scene."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """What has been read of a scene."""

    shape: tuple[int, int]
    blocks: Mapping[Window, PixelBlock]

    def read(self, window: Window) -> PixelBlock:
        """One of the pieces."""
        return self.blocks[window]


def places_to_measure(options: Options, shape: tuple[int, int]) -> list[Window]:
    """What refiners have to see of a scene of this size before a run."""
    made = (resolve(REFINERS, text) for text in options.refine)
    found = (each.places(shape) for each in made if isinstance(each, Measuring))
    return list(dict.fromkeys(place for places in found for place in places))


def measures(options: Options) -> bool:
    """Whether a refiner has something to measure."""
    return any(isinstance(resolve(REFINERS, text), Measuring) for text in options.refine)


def with_measures(options: Options, scene: Readable) -> Options:
    """Options in which refiners have what they need of a scene.

    What is measured stands in the options, and so in ``run.json`` and in what a run that is
    resumed compares.
    """
    if not measures(options):
        return options
    made = [resolve(REFINERS, text) for text in options.refine]
    filled = (each.measured(scene) if isinstance(each, Measuring) else each for each in made)
    return replace(options, refine=tuple(canonical(REFINERS, each) for each in filled))
