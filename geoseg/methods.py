"""Which methods are there? One table for each kind, read without loading torch.

A method is written ``NAME`` or ``NAME:key=value,key=value``; a value of several parts joins them
with ``+``: ``naclip:std=3``, ``pamr:dilations=8+16``. Its class, which is only imported when the
method is used, is a frozen dataclass whose fields are the keys; numbers are annotated with what
they may be (`Within`). A new method is a file with such a class, a line in its table, a test
against the paper's numbers and a line in the changelog.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from geoseg._inputs import shown
from geoseg.errors import OptionError


@dataclass(frozen=True)
class Within:
    """Which numbers a key takes, ends included: those with which the method works."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"from {self.least:g} to {self.most:g}"


Share = Annotated[float, Within(0, 1)]
Factor = Annotated[float, Within(0.01, 1000)]
"""On similarities before their softmax, or on what has gone through it."""


@dataclass(frozen=True)
class Entry:
    """One line of a table."""

    where: str
    """``module:Class``."""
    help: str
    """What it does, in one line."""


@dataclass(frozen=True, eq=False)
class Table:
    """The methods of one kind."""

    kind: str
    """What one of them is called in messages."""
    entries: dict[str, Entry]

    def check(self, text: str) -> str:
        """Return the name of the method in a text like ``naclip:std=3``; nothing is imported.

        Raises
        ------
        OptionError
            If the name is not in the table; the message lists those that are, the nearest first.
        """
        name = text.strip().partition(":")[0]
        if name not in self.entries:
            raise OptionError(
                f"{self.kind} '{shown(name)}' is not known; {_suggest(name, self.entries)}"
            )
        return name

    def find(self, text: str) -> type[Any]:
        """Import the class of a method, see `check`."""
        module, _, attribute = self.entries[self.check(text)].where.partition(":")
        found: type[Any] = getattr(importlib.import_module(module), attribute)
        return found


ATTENTIONS = Table(
    "attention",
    {
        "vanilla": Entry("geoseg.model.attention.last_block:Vanilla", "CLIP's own, q·k"),
        "maskclip": Entry("geoseg.model.attention.last_block:MaskClip", "each token sees itself"),
        "sclip": Entry("geoseg.model.attention.last_block:Sclip", "q·q and k·k"),
        "clearclip": Entry("geoseg.model.attention.last_block:ClearClip", "q·q"),
        "segearth": Entry("geoseg.model.attention.last_block:SegEarth", "q·q, k·k and v·v"),
        "naclip": Entry("geoseg.model.attention.last_block:Naclip", "k·k and nearness (std)"),
        "gem": Entry("geoseg.model.attention.gem:Gem", "self-self stream beside the last blocks"),
        "cliptrase": Entry(
            "geoseg.model.attention.last_block:ClipTrase", "q·q, k·k and v·v in a whole last block"
        ),
        "segearth-rcs": Entry(
            "geoseg.model.attention.middle:SegEarthRcs",
            "segearth's and middle blocks' (weight, blocks)",
        ),
        "sclip-rcs": Entry("geoseg.model.attention.middle:SclipRcs", "sclip's and middle blocks'"),
        "clearclip-rcs": Entry(
            "geoseg.model.attention.middle:ClearClipRcs", "clearclip's and middle blocks'"
        ),
        "itaclip": Entry("geoseg.model.attention.middle:ItaClip", "q·q and k·k of several blocks"),
        "resclip": Entry(
            "geoseg.model.attention.resclip:ResClip",
            "naclip's and middle blocks', sharpened by a first labelling (feedback)",
        ),
        "pearl": Entry(
            "geoseg.model.attention.pearl:Pearl", "q·k with keys turned towards queries (steps)"
        ),
        "scclip": Entry(
            "geoseg.model.attention.scclip:ScClip", "outliers repaired, several blocks fused"
        ),
        "cliper": Entry(
            "geoseg.model.attention.cliper:Cliper", "all blocks' attention, every block classified"
        ),
        "proxy": Entry(
            "geoseg.model.attention.proxy:Proxy",
            "by likeness of another model's patches (backbone, as timm names it)",
        ),
        "cass": Entry(
            "geoseg.model.attention.cass:Cass",
            "graphs of another model's keys in CLIP's heads, words moved by the window (backbone)",
        ),
        "corrclip": Entry(
            "geoseg.model.attention.corrclip:CorrClip",
            "within regions of a file, by another model's likeness (backbone)",
        ),
        "reattn": Entry(
            "geoseg.model.attention.middle:ReAttn", "experimental: middle blocks, likeness of late"
        ),
    },
)
UPSAMPLERS = Table(
    "upsampler",
    {
        "none": Entry("geoseg.model.upsampling.base:Bilinear", "bilinear resizing of logits"),
        "jbu": Entry("geoseg.model.upsampling.jbu:Jbu", "joint bilateral, needs no weights"),
        "simfeatup": Entry("geoseg.model.upsampling.learned:SimFeatUp", "JBU-One, needs weights"),
        "featup": Entry("geoseg.model.upsampling.learned:FeatUp", "JBU-Stack, needs weights"),
    },
)
VIEWS = Table(
    "views",
    {
        "none": Entry("geoseg.inference.views:Plain", "windows as they are"),
        "hflip": Entry("geoseg.inference.views:HorizontalFlip", "and mirrored; twice the time"),
        "d4": Entry("geoseg.inference.views:D4", "in all eight flips and turns; 8 x the time"),
        "itaclip": Entry(
            "geoseg.inference.views:ItaClipViews",
            "and grey, blurred, flipped (share); 5 x the time",
        ),
    },
)
WINDOW_STEPS = Table("window step", {})
"""Further steps on the logits of a window, after the CLS bias."""
REFINERS = Table(
    "refiner",
    {
        "pamr": Entry(
            "geoseg.inference.refine.pamr:Pamr", "pixel-adaptive averaging (iterations, dilations)"
        ),
        "guided": Entry(
            "geoseg.inference.refine.guided:Guided", "guided filter, the cheap one (radius, eps)"
        ),
        "laplace": Entry(
            "geoseg.inference.refine.laplace:Laplace",
            "PEARL's propagation among cells of like grey and words (cell, strength)",
        ),
        "lposs": Entry(
            "geoseg.inference.refine.lposs:Lposs", "LPOSS+'s among pixels of like colour; slow"
        ),
    },
)
REGIONS = Table(
    "regions",
    {
        "superpixels": Entry(
            "geoseg.inference.regions:Superpixels", "made of like pixels that lie together (size)"
        ),
    },
)
"""Regions that a scene itself gives; those of a file have no line here."""
VOCABULARY_STEPS = Table(
    "vocabulary step",
    {
        "describe": Entry(
            "geoseg.text.describe:Describe",
            "descriptions of classes mixed into their words (share)",
        ),
        "contrast": Entry(
            "geoseg.text.contrast:Contrast", "hidden words that take what is none of the classes"
        ),
    },
)

TABLES = (
    ATTENTIONS,
    UPSAMPLERS,
    VIEWS,
    WINDOW_STEPS,
    REFINERS,
    REGIONS,
    VOCABULARY_STEPS,
)


def resolve(table: Table, text: str, **more: Any) -> Any:
    """Make the method that a text like ``naclip:std=3`` means.

    Parameters
    ----------
    table
        Where its name is looked up.
    text
        ``NAME`` or ``NAME:key=value,key=value``.
    **more
        Fields that options of their own set; a key in the text goes first, and what the method
        has no field for is left out.

    Returns
    -------
    object
        The method's frozen dataclass.

    Raises
    ------
    OptionError
        If name, key or value is not possible; the message lists what is, the nearest first.
    """
    name, _, rest = text.strip().partition(":")
    method = table.find(text)
    types = get_type_hints(method, include_extras=True)
    known = [f.name for f in fields(method) if f.init]
    values = {key: value for key, value in more.items() if key in known}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise OptionError(
                f"{table.kind} '{shown(text)}': '{shown(part)}' is not key=value; several values "
                "of one key are joined with +"
            )
        if key not in known:
            raise OptionError(
                f"{table.kind} {name} has no key '{shown(key)}'; {_suggest(key, known)}"
            )
        values[key] = _value(f"{table.kind} {name}", key, value, types[key])
    missing = [f.name for f in fields(method) if f.name not in values and _is_required(f)]
    if missing:
        raise OptionError(
            f"{table.kind} {name} needs {', '.join(missing)}; write {name}:{missing[0]}=…"
        )
    for key, value in values.items():
        _refuse_outside(f"{table.kind} {name}", key, value, types[key])
    return method(**values)


def _refuse_outside(method: str, key: str, given: Any, hint: Any) -> None:
    if get_origin(hint) is Annotated:
        limits = hint.__metadata__[0]
        for one in given if isinstance(given, tuple) else (given,):
            if not limits.least <= one <= limits.most:  # nor is NaN
                raise OptionError(f"{method}: {key} is {shown(one)}; give {_kind(hint)}")


def _is_required(f: Any) -> bool:
    return f.init and f.default is MISSING and f.default_factory is MISSING


def describe(table: Table, method: Any) -> dict[str, Any]:
    """Name and all parameters of a method, as a record of a run keeps them."""
    return {"name": _name_of(table, method)} | asdict(method)


def canonical(table: Table, method: Any) -> str:
    """Shortest text that `resolve` makes this method of."""
    changed = [
        f"{f.name}={_text(value)}"
        for f in fields(method)
        if (value := getattr(method, f.name)) != f.default
    ]
    name = _name_of(table, method)
    return f"{name}:{','.join(changed)}" if changed else name


def _name_of(table: Table, method: Any) -> str:
    where = f"{type(method).__module__}:{type(method).__qualname__}"
    return next(name for name, entry in table.entries.items() if entry.where == where)


def help_of(table: Table) -> str:
    """All names with their lines of help, for the help of an option."""
    return "; ".join(f"{name}: {entry.help}" for name, entry in table.entries.items())


def _suggest(name: str, known: Iterable[str]) -> str:
    """List names, with the nearest one first if one is near."""
    names = list(known)
    if not names:
        return "there are none to choose from"
    near = difflib.get_close_matches(shown(name), names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}choose from {', '.join(names)}"


def _value(method: str, key: str, text: str, hint: Any) -> Any:
    try:
        return _parsed(text, hint)
    except ValueError as error:
        raise OptionError(f"{method}: {key} is '{shown(text)}'; give {_kind(hint)}") from error


def _parsed(text: str, hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return _parsed(text, get_args(hint)[0])
    if get_origin(hint) is tuple:
        return tuple(_parsed(part.strip(), get_args(hint)[0]) for part in text.split("+"))
    if get_origin(hint) is UnionType:  # None is said by leaving the key out
        return _parsed(text, next(kind for kind in get_args(hint) if kind is not NoneType))
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise ValueError(text)
        return text
    if hint is bool:
        if text.lower() not in _SWITCH:
            raise ValueError(text)
        return _SWITCH[text.lower()]
    return hint(text)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


@functools.cache
def _kind(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        kind, limits = get_args(hint)
        one, comma, several = _kind(kind).partition(",")
        return f"{one} {limits}{comma}{several}"
    if get_origin(hint) is tuple:
        return f"{_kind(get_args(hint)[0])}, several joined with +"
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) is UnionType:
        return _kind(get_args(hint)[0])
    return {int: "a whole number", float: "a number", bool: "yes or no"}.get(hint, "words")


_SWITCH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
