"""A network of one's own, in place of the model of words or beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from geoseg._fields import MODEL, documented, option, positive, settle
from geoseg._texts import parse_bands, parse_numbers, stretch_as_text
from geoseg.errors import OptionError

Activation = Literal["softmax", "sigmoid", "none"]
SCORE_RASTERS = (".tif", ".tiff", ".vrt")
"""Ends of files that are rasters of scores."""
LEFT_OUT = "-"
"""In place of a class, of a score that is not wanted."""


@documented
@dataclass(frozen=True, eq=False)
class Scorer:
    """A network of one's own in place of the model of words, or beside it.

    Windows go in as float32 ``(B, C, h, w)`` with the bands that the reading names, normalised by
    ``mean`` and ``std`` and 0 where there is no data; ``(B, Q, h', w')`` scores come out, one for
    each class in its order, and are resized bilinearly if they are smaller. Scores of windows that
    overlap are averaged before the activation. The function may be called from several threads.

    With a ``weight`` the words of the classes are asked too, and the probabilities of both make the
    map together, see `geoseg.inference.decide.FusedDecision`.

    Raises
    ------
    OptionError
        If the activation is not known, a deviation is not above 0, or an option needs another.

    Examples
    --------
    >>> scorer = geoseg.Scorer(network, mean=(0.5,), std=(0.25,))    # doctest: +SKIP
    >>> geoseg.segment_to_files("town.tif", "ground;roof", "map", scorer=scorer)  # doctest: +SKIP
    >>> beside = geoseg.Scorer(ndvi, "none", weight=0.5, names="vegetation")  # doctest: +SKIP
    """

    call: Any = option(
        None,
        "A network of your own in place of the model of words: module:function, a TorchScript "
        "file (.pt, .ts), an ONNX file, or a raster of scores on the scene's grid. "
        "--classes are then its classes in their order. Such "
        "code runs as you.",
        MODEL,
        metavar="NAME|FILE",
        flag="--scorer",
    )
    """A function, a ``torch.nn.Module``, ``"module:function"`` or the path of a file."""
    activation: Activation = option(
        "softmax", "What makes probabilities of the scorer's scores.", MODEL
    )
    mean: tuple[float, ...] | None = option(
        None,
        "Subtracted from the bands for the scorer: one number, or one for each.",
        MODEL,
        metavar="M,…",
        parse=parse_numbers,
        holds=math.isfinite,
        wanted="finite numbers",
    )
    std: tuple[float, ...] | None = option(
        None,
        "By which the scorer's bands are then divided.",
        MODEL,
        metavar="S,…",
        parse=parse_numbers,
        holds=positive,
        wanted="numbers above 0",
    )
    weight: float | None = option(
        None,
        "Ask the scorer beside the words, not in their place: its share of the classes' "
        "probabilities, 0 for the words alone, 1 for the scorer.",
        MODEL,
        metavar="W",
        flag="--scorer-weight",
        holds=lambda value: 0 <= value <= 1,
        wanted="a share from 0 to 1",
    )
    names: tuple[str, ...] | None = option(
        None,
        "Which of the --classes each of its scores is of, in their order, separated by semicolons; "
        "- leaves a score out. [default: what the scorer says itself, else all classes in their "
        "order]",
        MODEL,
        metavar="NAME;…",
        flag="--scorer-classes",
    )
    bands: tuple[int | str, ...] | None = option(
        None,
        "Bands that a scorer beside the words sees, as in --bands; any number. [default: what the "
        "words see]",
        MODEL,
        metavar="B,…",
        parse=parse_bands,
        holds=lambda band: isinstance(band, str) or band >= 1,
        wanted="numbers from 1, or names",
        flag="--scorer-bands",
    )
    stretch: Any = option(
        None,
        "How their values become what it sees, as in --stretch. [default: as for the words]",
        MODEL,
        metavar="RULE",
        flag="--scorer-stretch",
    )

    def __post_init__(self) -> None:
        given: Any = self.names
        if isinstance(given, str):
            object.__setattr__(self, "names", [name.strip() for name in given.split(";")])
        if self.stretch is not None:
            object.__setattr__(self, "stretch", stretch_as_text(self.stretch))
        settle(self)
        if self.call is None and any(
            getattr(self, f.name) != f.default for f in fields(self) if f.name != "call"
        ):
            raise OptionError(
                "--activation, --mean, --std, --scorer-weight, --scorer-classes, --scorer-bands "
                "and --scorer-stretch are for a --scorer; give one"
            )
        if self.sees_its_own and self.weight is None:
            raise OptionError(
                "--scorer-bands and --scorer-stretch go with --scorer-weight; a scorer in the "
                "words' place sees what --bands and --stretch say"
            )
        if self.sees_its_own and is_score_raster(self.call):
            raise OptionError(
                "--scorer-bands and --scorer-stretch: a raster of scores sees no scene; leave them "
                "out"
            )

    @property
    def sees_its_own(self) -> bool:
        """Whether it sees other bands or values than the words do."""
        return self.bands is not None or self.stretch is not None


def is_score_raster(call: Any) -> bool:
    """Whether a scorer is the path of a raster that holds scores."""
    return isinstance(call, str | Path) and Path(call).suffix.lower() in SCORE_RASTERS


def is_beside_words(scorer: Any) -> bool:
    """Whether a scorer goes beside the words, and not in their place."""
    return isinstance(scorer, Scorer) and scorer.weight is not None
