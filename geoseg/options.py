"""Everything a person may choose, each thing declared once: type, default, help, limits.

The command line makes its options of these fields, a model's own defaults are checked against
them, ``run.json`` lists them, and `Options.resolve` says which value holds.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from geoseg._files import absolute
from geoseg._inputs import shown
from geoseg.errors import OptionError
from geoseg.methods import (
    ATTENTIONS,
    REFINERS,
    UPSAMPLERS,
    VIEWS,
    VOCABULARY_STEPS,
    WINDOW_STEPS,
    Table,
    canonical,
    describe,
    resolve,
)

_WEIGHTED = ("simfeatup", "featup")
"""Upsamplers that need a checkpoint."""
Source = Literal["given", "preset", "model", "default"]
Preset = Literal["none", "paper"]
Blend = Literal["uniform", "hann"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tier = Literal["full", "fast"]
Tiers = Literal["full", "fast", "both"]
PolygonFormat = Literal["gpkg", "parquet", "fgb", "geojson", "none"]
Activation = Literal["softmax", "sigmoid", "none"]
OutputGrid = Literal["native", "working"]
ResizeRule = Literal["opencv", "antialias", "none"]
"""``opencv`` as the paper's; ``antialias`` averages when shrinking; ``none`` keeps the pixels."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "attention": "segearth",
        "upsampler": "simfeatup",
        "cls_bias": 0.3,
        "logit_scale": 50.0,
        "window": 224,
        "stride": 112,
        "blend": "uniform",
        "exact": True,
    }
}
"""Values that stand together, by name: the SegEarth-OV paper's."""

OPTIONAL_RASTERS = ("confidence", "probabilities", "margin", "runner_up")
"""Fields of `Products` that are rasters of their own, in the order in which they are made."""
CLASS_RASTERS = ("labels", "runner_up")
"""Rasters that hold classes; the others hold per cents."""
ATTRIBUTES = ("scene", "date")
"""Of polygons, on request."""
POLYGON_FORMATS: tuple[str, ...] = get_args(PolygonFormat)
INPUT, SCENE, MODEL, METHOD = "Input", "Scene", "Model", "Method"
WINDOWS, OUTPUT, SHAPE, STORE = "Windows and tiles", "Output", "Polygons", "Store"


@dataclass(frozen=True)
class Choice:
    """What an option's field says about itself, besides its name, type and default."""

    help: str
    panel: str
    metavar: str | None = None
    flag: str | None = None
    """Its name on the command line, where that is not the field's."""
    preferred: Any = None
    """General default of an option that a model may set; None if models have no say."""
    table: Table | None = None
    """The methods that it chooses from."""
    parse: Callable[[str], Any] | None = None
    """From the word on the command line to the value."""


def option(default: Any, help: str, panel: str, **more: Any) -> Any:  # noqa: A002
    """Declare one field."""
    return field(default=default, metadata={"choice": Choice(help, panel, **more)})


def by_model(preferred: Any, help: str, panel: str, **more: Any) -> Any:  # noqa: A002
    """Declare a field that is None until the model's default, or else this one, fills it."""
    return option(None, help, panel, preferred=preferred, **more)


def choices(kind: type[Any]) -> Mapping[str, Choice]:
    """Return what the fields of a class say about themselves, by their names."""
    return {f.name: f.metadata["choice"] for f in fields(kind) if "choice" in f.metadata}


Chosen = TypeVar("Chosen")


def as_made(kind: type[Chosen], given: Chosen | Mapping[str, Any] | None) -> Chosen:
    """Return `Options`, `Reading` or the like from itself, from a dict of its fields, or None.

    Raises
    ------
    OptionError
        If it is none of these, or a field is not known.
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    known = [f.name for f in fields(cast(Any, kind))]
    if not isinstance(given, Mapping):
        raise OptionError(
            f"{kind.__name__.lower()} is a {type(given).__name__}; give geoseg.{kind.__name__}(…) "
            f"or a dict of its fields, like {{'{known[1]}': …}}"
        )
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise OptionError(f"geoseg.{kind.__name__} has no option {shown(name)}; {hint}")
    return kind(**given)


def parse_bands(text: str) -> tuple[int, ...]:
    """Read ``"3,2,1"`` or ``"1"``; how many there may be is settled where the scene is opened.

    Raises
    ------
    OptionError
        If it is not a list of band numbers.
    """
    try:
        bands = tuple(int(part) for part in text.split(","))
    except ValueError:
        bands = ()
    if not bands or min(bands) < 1:
        raise OptionError(
            f"--bands '{shown(text)}' is not a list of band numbers; write for example "
            "--bands 3,2,1"
        )
    return bands


@dataclass(frozen=True, kw_only=True)
class Options:
    """How pixels become labels.

    What is None takes the preset's value, else the model's own default where it has one, else the
    general one that its help names. An option given always wins. See `geoseg.methods` for how
    methods are written.
    """

    preset: Preset = option(
        "none",
        "paper: attention, upsampler, CLS bias, scale, windows and blend as SegEarth-OV has them, "
        "whatever the model prefers; single options still win.",
        METHOD,
    )
    attention: str = by_model("segearth", "Attention of the last block.", METHOD, table=ATTENTIONS)
    residual: bool = option(
        False, "Keep the last block's residual and FFN; attentions have both as keys too.", METHOD
    )
    upsampler: str = by_model("jbu", "From patches to pixels.", METHOD, table=UPSAMPLERS)
    upsampler_weights: str | None = option(
        None, "Checkpoint of simfeatup (JBU-One) or featup (JBU-Stack).", METHOD, metavar="FILE"
    )
    cls_bias: float = by_model(
        0.3, "Subtract λ times the window's global logits from every pixel.", METHOD, metavar="λ"
    )
    window_steps: tuple[str, ...] = option(
        (),
        "Further step on a window's logits; may be repeated, in order.",
        METHOD,
        table=WINDOW_STEPS,
        flag="--window-step",
    )
    views: str = option(
        "none",
        "Views of every window, whose logits are averaged.",
        METHOD,
        table=VIEWS,
    )
    refine: tuple[str, ...] = option(
        (),
        "Refine the logits of pixels along the image; may be repeated, in order.",
        METHOD,
        table=REFINERS,
    )
    vocabulary_steps: tuple[str, ...] = option(
        (),
        "Step on the queries of the classes; may be repeated, in order.",
        METHOD,
        table=VOCABULARY_STEPS,
        flag="--vocabulary-step",
    )
    exact: bool = option(
        False,
        "Normalise upsampled features exactly; otherwise logits of simfeatup and featup may "
        "differ by up to 0.0005 where that is faster.",
        METHOD,
    )
    threshold: float | None = option(
        None,
        "Below this confidence a pixel becomes background. Confidence is that of a class's best "
        "name: many synonyms share it.",
        METHOD,
        metavar="P",
    )
    background: str | None = option(
        None,
        "Class for pixels below the threshold. [default: the first class]",
        METHOD,
        metavar="NAME",
    )
    logit_scale: float = by_model(50.0, "Factor on logits before the softmax.", METHOD, metavar="S")
    templates: str | tuple[str, ...] = option(
        "imagenet",
        "Prompt templates: imagenet (80), remote-sensing, none, or a text file with {} in every "
        "line.",
        MODEL,
        metavar="NAME|FILE",
    )
    precision: Precision = option(
        "auto", "Arithmetic of the encoder; auto is bf16 on a GPU, fp32 on a CPU.", MODEL
    )
    window: int = by_model(
        224,
        "Side of the encoder window; 0 takes the whole scene in one pass.",
        WINDOWS,
        metavar="PX",
    )
    stride: int = by_model(
        112, "Step between windows; half of a window that is given.", WINDOWS, metavar="PX"
    )
    blend: Blend = by_model(
        "hann",
        "Weights of overlapping windows: hann, which leaves no cuts where they end, or uniform, as "
        "the paper has it.",
        WINDOWS,
    )
    batch_size: int | None = option(
        None,
        "Windows encoded at once; fewer if they do not fit. [default: picked for the device]",
        WINDOWS,
        metavar="N",
    )

    def __post_init__(self) -> None:
        for name, chosen in choices(Options).items():
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            elif chosen.table and isinstance(value, str) and isinstance(_DEFAULTS[name], tuple):
                object.__setattr__(self, name, (value,))

    def portable(self) -> Options:
        """Return the same options as a process in another folder understands them."""
        templates = self.templates
        if isinstance(templates, str) and Path(templates).suffix:
            templates = absolute(templates)  # a name like "imagenet" stays one
        weights = self.upsampler_weights
        return replace(
            self,
            upsampler_weights=None if weights is None else absolute(weights),
            templates=templates,
        )

    def resolve(self, model: Mapping[str, Any]) -> Resolved:
        """Fill in what was not given.

        Parameters
        ----------
        model
            The model's own defaults by the names of fields, see `geoseg.model.defaults`.

        Raises
        ------
        OptionError
            If a value is impossible.
        """
        values = {f.name: getattr(self, f.name) for f in fields(Options)}
        sources: dict[str, Source] = {}
        preset = PRESETS.get(self.preset, {})
        values["exact"] |= preset.get("exact", False)
        for name, chosen in choices(Options).items():
            if chosen.preferred is None:
                continue
            if values[name] is not None:
                sources[name] = "given"
            elif name in preset:
                values[name], sources[name] = preset[name], "preset"
            else:
                values[name] = model.get(name, chosen.preferred)
                sources[name] = "model" if name in model else "default"
        upsampler = str(values["upsampler"]).partition(":")[0]
        if values["upsampler_weights"] is None and upsampler == "simfeatup":
            values["upsampler_weights"] = model.get("upsampler_weights")
            sources["upsampler_weights"] = "model"
        if sources["window"] == "given" and sources["stride"] != "given" and values["window"]:
            # Half a window is the paper's overlap; a stride made for another window is not.
            values["stride"] = max(values["window"] // 2, 1)
            sources["stride"] = "default"
        if values["residual"]:  # short for two keys that most attentions have; a key goes first
            kept = resolve(ATTENTIONS, values["attention"], residual=True, ffn=True)
            values["attention"] = canonical(ATTENTIONS, kept)
        for name, chosen in choices(Options).items():
            if chosen.table is not None:
                values[name] = _canonical(chosen.table, values[name])
        if sources["upsampler"] != "given" and upsampler not in _WEIGHTED:
            values["upsampler_weights"] = None
        return Resolved(**values, sources=sources)


@dataclass(frozen=True, kw_only=True)
class Resolved(Options):
    """Options with nothing left open, and possible; see `Options` for their meaning."""

    sources: Mapping[str, Source] = field(default_factory=dict)
    """Where the options that a model may set came from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cls_bias <= sys.float_info.max:
            raise OptionError(
                f"CLS bias is {shown(self.cls_bias)}; give 0 or more "
                "(logits become patch - bias * cls)"
            )
        if not 0 < self.logit_scale <= sys.float_info.max:
            raise OptionError(f"logit scale is {shown(self.logit_scale)}; give a value above 0")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise OptionError(
                f"threshold is {shown(self.threshold)}; give a probability from 0 to 1"
            )
        if self.threshold is None and self.background is not None and not self.vocabulary_steps:
            raise OptionError("a background class needs a threshold; give both or neither")
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"batch size is {shown(self.batch_size)}; give 1 or more")
        upsampler = self.upsampler.partition(":")[0]
        if self.upsampler_weights is not None and upsampler not in _WEIGHTED:
            raise OptionError(
                f"upsampler {upsampler} takes no weights; give --upsampler "
                f"{' or '.join(_WEIGHTED)}, or leave --upsampler-weights out"
            )
        check_words(self)

    def method(self, name: str) -> Any:
        """Make the method, or the tuple of methods, that a field names."""
        table, text = choices(Options)[name].table, getattr(self, name)
        assert table is not None
        if isinstance(text, tuple):
            return tuple(resolve(table, one) for one in text)
        return resolve(table, text)

    def described_methods(self) -> dict[str, Any]:
        """All parameters of all methods, as ``run.json`` keeps them."""
        found: dict[str, Any] = {}
        for name, chosen in choices(Options).items():
            if (table := chosen.table) is None:
                continue
            made = self.method(name)
            found[name] = (
                [describe(table, one) for one in made]
                if isinstance(made, tuple)
                else describe(table, made)
            )
        return found


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

    def __post_init__(self) -> None:
        check_words(self)
        if self.directions < 1:
            raise OptionError(f"directions {self.directions}: give 1 or more")
        if not 1 <= self.cell <= _LARGEST_CELL:
            raise OptionError(f"cell {self.cell}: give 1 to {_LARGEST_CELL} pixels")

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Those that are wanted."""
        return ("full", "fast") if self.tier == "both" else (self.tier,)


_LARGEST_CELL = 16


SCORE_RASTERS = (".tif", ".tiff", ".vrt")
"""Ends of files that are rasters of scores."""


def is_score_raster(call: Any) -> bool:
    """Whether a scorer is the path of a raster that holds scores."""
    return isinstance(call, str | Path) and Path(call).suffix.lower() in SCORE_RASTERS


WORDS_ONLY = frozenset(
    {
        "preset",
        "attention",
        "residual",
        "upsampler",
        "upsampler_weights",
        "cls_bias",
        "window_steps",
        "vocabulary_steps",
        "exact",
        "logit_scale",
        "templates",
        "precision",
    }
)
"""Fields of `Options` that mean nothing where a `Scorer` takes the place of a model of words."""


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read ``"0.5"`` or ``"0.48,0.46,0.41"``.

    Raises
    ------
    OptionError
        If it is not a list of numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(
            f"'{shown(text)}' is not a list of numbers; write for example 0.48,0.46,0.41"
        ) from None


@dataclass(frozen=True, eq=False)
class Scorer:
    """A network of one's own in place of the model of words.

    Windows go in as float32 ``(B, C, h, w)`` with the bands that the reading names, normalised by
    ``mean`` and ``std`` and 0 where there is no data; ``(B, Q, h', w')`` scores come out, one for
    each class in its order, and are resized bilinearly if they are smaller. Scores of windows that
    overlap are averaged before the activation. The function may be called from several threads.

    Raises
    ------
    OptionError
        If the activation is not known, or a deviation is not above 0.

    Examples
    --------
    >>> scorer = geoseg.Scorer(network, mean=(0.5,), std=(0.25,))    # doctest: +SKIP
    >>> geoseg.segment_to_files("town.tif", "ground;roof", "map", scorer=scorer)  # doctest: +SKIP
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
    )
    std: tuple[float, ...] | None = option(
        None,
        "By which the scorer's bands are then divided.",
        MODEL,
        metavar="S,…",
        parse=parse_numbers,
    )

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, int | float):
                object.__setattr__(self, name, (float(value),))
            elif value is not None:
                object.__setattr__(self, name, tuple(map(float, value)))
        check_words(self)
        if self.call is None and (self.mean, self.std, self.activation) != (None, None, "softmax"):
            raise OptionError("--activation, --mean and --std are for a --scorer; give one")
        if not all(map(math.isfinite, self.mean or ())):
            raise OptionError("--mean has to be finite numbers")
        if not all(0 < value < math.inf for value in self.std or ()):
            raise OptionError("--std has to be numbers above 0")


_DEFAULTS = {f.name: f.default for f in fields(Options)}


def _canonical(table: Table, text: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Write methods the shortest way, so that the same method is always the same text."""
    if isinstance(text, tuple):
        return tuple(canonical(table, resolve(table, one)) for one in text)
    return canonical(table, resolve(table, text))


def check_words(values: Any) -> None:
    """Refuse a value that is not among those its field's type lists.

    Raises
    ------
    OptionError
        That names the ones there are.
    """
    for name, hint in get_type_hints(type(values)).items():
        value = getattr(values, name, None)
        if get_origin(hint) is Literal and value not in get_args(hint):
            *most, last = get_args(hint)
            raise OptionError(
                f"{name.replace('_', ' ')} '{shown(value)}' is not known; "
                f"choose {', '.join(most)} or {last}"
            )


@dataclass(frozen=True)
class Reading:
    """How a scene is read."""

    bands: tuple[int | str, ...] | None = option(
        None,
        "Bands to use as red, green and blue, counted from 1 (in Python also by name); one band "
        "alone is grey; any number for a --scorer. "
        "[default: by colour tags, band names or wavelengths, else 1,2,3]",
        INPUT,
        metavar="R,G,B",
        parse=parse_bands,
    )
    stretch: Any = option(
        "auto",
        "How values become colours: auto (none for 8-bit, else 2,98), none, P1,P2 percentiles of "
        "the whole scene, min:max values (in the units of the file's scale and offset; several "
        "with commas are one for each band), or, for a --scorer, raw (as they are stored).",
        INPUT,
        metavar="RULE",
    )
    gsd: float | None = option(
        None,
        "Work at this ground sampling distance instead of the scene's own.",
        INPUT,
        metavar="METRES",
    )
    aoi: Any = option(
        None,
        "Map only this part: minx,miny,maxx,maxy in the scene's CRS, or a vector file (in Python "
        "also a polygon or a GeoDataFrame).",
        INPUT,
        metavar="BOX|FILE",
    )
    aoi_layer: str | None = option(
        None,
        "Layer of the --aoi file. [default: the one with polygons]",
        INPUT,
        metavar="NAME",
    )
    crs: str | None = option(
        None,
        "CRS that the scene's coordinates are in, where the file does not say it or is wrong.",
        INPUT,
        metavar="CODE",
    )
    nodata: tuple[float | str, ...] = option(
        (),
        "Value that is no data where all bands used have it, in place of what the file says; may "
        "be repeated; none takes every value as data.",
        INPUT,
        metavar="VALUE",
    )
    ignore_alpha: bool = option(
        False, "Do not take a band that is tagged alpha for opacity.", INPUT
    )
    mask: str | None = option(
        None,
        "Leave out what this says: a raster (cloud mask, UDM2, SCL, QA_PIXEL, …), or a vector file "
        "of polygons; on any grid, in any CRS.",
        INPUT,
        metavar="FILE",
    )
    mask_values: str | None = option(
        None,
        "Values of a raster --mask that are left out: 3,8,9, or bits:3,4 (counted from 0), or "
        "keep:4,5 for all but these. [default: all but 0]",
        INPUT,
        metavar="VALUES",
    )
    mask_layer: str | None = option(
        None,
        "Band of a raster --mask, by number or name, or layer of a vector one.",
        INPUT,
        metavar="BAND|NAME",
    )
    rgb: bool = option(
        False,
        "The scenes hold one band each of one scene: map them together as red, green and blue; "
        "names tell the colours, else the order.",
        INPUT,
    )

    def __post_init__(self) -> None:
        given = self.nodata if isinstance(self.nodata, list | tuple) else (self.nodata,)
        bands: Any = self.bands
        if bands is not None:
            bands = (bands,) if isinstance(bands, str | int) else tuple(bands)
            object.__setattr__(self, "bands", bands)
        if not isinstance(self.stretch, str):
            object.__setattr__(self, "stretch", _ranges(self.stretch))
        if self.aoi is not None and not isinstance(self.aoi, str):
            object.__setattr__(self, "aoi", area_as_text(self.aoi))
        if self.mask is not None:
            object.__setattr__(self, "mask", str(self.mask))
        object.__setattr__(self, "nodata", _nodata_values(given))
        if self.mask is None and (self.mask_values or self.mask_layer):
            raise OptionError("mask values and mask layer say how to read a mask; give --mask too")

    @property
    def fill(self) -> tuple[float, ...] | None:
        """Values that are no data, in place of the file's own; None if those count."""
        if not self.nodata:
            return None
        return tuple(float(value) for value in self.nodata if value != "none")


def _ranges(given: Any) -> str:
    """Numbers of a range, or of one for each band, as the text that says them."""
    try:
        rows = [given] if all(isinstance(one, int | float) for one in given) else list(given)
        pairs = [(float(low), float(high)) for low, high in rows]
    except (TypeError, ValueError):
        raise OptionError(
            f"stretch {shown(given)} is not understood: give a text like 0:3000, or numbers "
            "(low, high), or one such pair for each band"
        ) from None
    return ",".join(f"{low!r}:{high!r}" for low, high in pairs)


def area_as_text(area: Any) -> str:
    """Write an area of interest as the text that `Reading` keeps.

    Parameters
    ----------
    area
        Bounds as four numbers, a path, a shapely geometry, or a GeoDataFrame or GeoSeries, whose
        CRS goes with it.

    Raises
    ------
    OptionError
        If it is none of these.
    """
    if isinstance(area, str | Path):
        return str(area)
    if hasattr(area, "total_bounds") and hasattr(area, "crs"):  # geopandas
        whole = area.geometry.union_all()
        crs = "" if area.crs is None else f"{area.crs.to_string()};"
        return f"{crs}{whole.wkt}"
    if hasattr(area, "geom_type") and hasattr(area, "wkt"):  # shapely
        return str(area.wkt)
    try:
        numbers = [float(value) for value in area]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4:
        raise OptionError(
            f"aoi is a {type(area).__name__}; give minx, miny, maxx, maxy, a shapely polygon, a "
            "GeoDataFrame or the path of a vector file"
        )
    return ",".join(map(repr, numbers))


def _nodata_values(given: Sequence[float | str]) -> tuple[float | str, ...]:
    if [str(value).lower() for value in given] == ["none"]:
        return ("none",)
    try:
        values = tuple(float(value) for value in given)
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        wrong = ", ".join(str(value) for value in given)
        raise OptionError(
            f"nodata {shown(wrong)}: give a number, or none alone (NaN is never data)"
        )
    return values


@dataclass(frozen=True, kw_only=True)
class VectorOptions:
    """How polygons are made of labels.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    min_area_m2: float = option(
        0.0,
        "Polygons below this area go to the neighbour with the longest shared boundary; a boundary "
        "whose simplifying or smoothing would bring one below it stays as the pixels have it.",
        SHAPE,
        metavar="M2",
        flag="--min-area",
    )
    drop_small: bool = option(
        False,
        "Leave polygons below --min-area out instead, which makes holes in the map.",
        SHAPE,
    )
    simplify_m: float = option(
        0.0,
        "How far a simplified boundary may lie from the pixels' edges; neighbours keep one common "
        "boundary.",
        SHAPE,
        metavar="METRES",
        flag="--simplify",
    )
    smooth: int = option(
        0,
        "How often corners are cut; neighbours keep one common boundary.",
        SHAPE,
        metavar="TIMES",
    )
    connectivity: int = option(
        4,
        "Whether pixels of one object share sides (4), or sides or corners (8).",
        SHAPE,
        metavar="4|8",
    )
    split: int = option(
        0,
        "Cut polygons that reach over more pixels than this along a grid of so many, so that maps "
        "of them stay fast to draw; parts share their edges exactly, and may be small.",
        SHAPE,
        metavar="PX",
    )
    layer: str = option("segments", "Name of the polygons' layer.", SHAPE, metavar="NAME")
    attributes: tuple[str, ...] = option(
        (),
        "Further attributes of the polygons, from the tags of the labels: scene (its name), date "
        "(when it was taken); separated by commas.",
        SHAPE,
        metavar="scene,date",
    )

    def __post_init__(self) -> None:
        given = (word.strip() for word in ",".join(_listed(self.attributes)).split(","))
        object.__setattr__(self, "attributes", tuple(dict.fromkeys(filter(None, given))))
        for word in self.attributes:
            if word not in ATTRIBUTES:
                raise OptionError(
                    f"attribute '{shown(word)}' is not known; choose {' or '.join(ATTRIBUTES)}"
                )
        for name in ("min_area_m2", "simplify_m"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                words = name.rsplit("_", 1)[0].replace("_", " ")
                raise OptionError(f"{words} {value} is not zero or a positive number")
        if not 0 <= self.smooth <= 5:
            raise OptionError(f"smooth {self.smooth}: corners can be cut 0 to 5 times")
        if self.connectivity not in (4, 8):
            raise OptionError(f"connectivity {self.connectivity} is not 4 or 8")
        if not _is_layer_name(self.layer):
            raise OptionError(
                f"layer '{shown(self.layer)}' cannot be a layer's name; give letters, up to "
                f"{_LONGEST_LAYER}, that do not begin with gpkg_, rtree_ or sqlite_"
            )
        if self.split and self.split < _LEAST_SPLIT:
            raise OptionError(
                f"split {self.split}: give {_LEAST_SPLIT} pixels or more, 1024 for example, or 0 "
                "to leave polygons whole"
            )
        if self.split and self.drop_small:
            raise OptionError("drop small would take parts that split has cut for small; give one")
        if self.drop_small and not self.min_area_m2:
            raise OptionError("drop small needs a min area, below which polygons are small")


def _listed(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


_LEAST_SPLIT = 16
_LONGEST_LAYER = 60
"""Letters: names of tables beside the layer's are longer, and some programs cut them."""


def _is_layer_name(name: str) -> bool:
    """Whether every format can have a layer of that name, GeoPackage's own tables apart."""
    taken = name.lower().startswith(("gpkg_", "rtree_", "sqlite_")) or name == "layer_styles"
    whole = name == name.strip() and name.isprintable() and not set(name) & set("\"'`[];\\")
    return whole and not taken and 0 < len(name) <= _LONGEST_LAYER


@dataclass(frozen=True, kw_only=True)
class Products(VectorOptions):
    """Which files a run leaves, and how.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    polygons: PolygonFormat = option("gpkg", "Format of the polygons.", OUTPUT)
    confidence: bool = option(True, "Write confidence.tif, per cent of the winning class.", OUTPUT)
    probabilities: bool = option(False, "Write probabilities.tif, a per-cent band a class.", OUTPUT)
    margin: bool = option(False, "Write margin.tif, per cent between the two best classes.", OUTPUT)
    runner_up: bool = option(
        False,
        "Write runner_up.tif, the second best class of every pixel; polygons get the one that "
        "most of their pixels have.",
        OUTPUT,
    )
    preview: bool = option(True, "Write preview.png, the scene beside its map.", OUTPUT)
    output_grid: OutputGrid = option(
        "native",
        "With --gsd: labels on the scene's own pixels or on the working ones.",
        OUTPUT,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self)

    @property
    def rasters(self) -> tuple[str, ...]:
        """Names of the rasters, without suffix."""
        return ("labels", *(name for name in OPTIONAL_RASTERS if getattr(self, name)))

    @property
    def names(self) -> tuple[str, ...]:
        """Final file names, in the order in which they appear."""
        return (
            *(f"{name}.tif" for name in self.rasters),
            *([] if self.polygons == "none" else [f"polygons.{self.polygons}"]),
            *(["preview.png"] if self.preview else []),
            "run.json",
        )

    @property
    def side_files(self) -> tuple[str, ...]:
        """Names of the files that lie beside rasters and polygons, for other programs."""
        named = (name for name in self.rasters if name in CLASS_RASTERS)
        return (
            *(f"{name}.tif.aux.xml" for name in named),
            *(f"{name}.qml" for name in self.rasters),
            *(["polygons.qml"] if self.polygons == "gpkg" else []),
        )


_ALL_RASTERS: dict[str, Any] = dict.fromkeys(OPTIONAL_RASTERS, True)
ALL_PRODUCTS = tuple(
    dict.fromkeys(
        name
        for polygons in get_args(PolygonFormat)
        for name in Products(polygons=polygons, **_ALL_RASTERS).names
    )
)
"""Every file that some run leaves; ``run.json`` is among them."""
SIDE_FILES = (
    *(
        name
        for raster in Products(**_ALL_RASTERS).rasters
        for name in (
            f"{raster}.qml",
            *(f"{raster}.tif{end}" for end in (".aux.xml", ".ovr", ".msk", ".vat.dbf", ".vat.cpg")),
        )
    ),
    "polygons.qml",
)
"""Every file beside a raster or polygons of a run that describes them, whoever wrote it."""
