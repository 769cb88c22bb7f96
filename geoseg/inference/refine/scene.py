"""What refiners need of the whole scene, measured once before a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from geoseg.io.scene import SceneLike
from geoseg.methods import REFINERS, canonical, resolve
from geoseg.options import Options


@runtime_checkable
class Measuring(Protocol):
    """A line in `geoseg.methods.REFINERS` with a key that a scene can fill."""

    def measured(self, scene: SceneLike) -> Any:
        """The same method with that key filled, if nobody gave it; of all of the scene."""


def measures(options: Options) -> bool:
    """Whether a refiner has something to measure."""
    return any(isinstance(resolve(REFINERS, text), Measuring) for text in options.refine)


def with_measures(options: Options, scene: SceneLike) -> Options:
    """Options in which refiners have what they need of a scene.

    What is measured stands in the options, and so in ``run.json`` and in what a run that is
    resumed compares.
    """
    if not measures(options):
        return options
    made = [resolve(REFINERS, text) for text in options.refine]
    filled = (each.measured(scene) if isinstance(each, Measuring) else each for each in made)
    return replace(options, refine=tuple(canonical(REFINERS, each) for each in filled))
