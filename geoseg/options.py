"""Everything a person may choose, each thing declared once: type, default, help, limits.

The command line makes its options of these fields, a model's own defaults are checked against
them, ``run.json`` lists them, and `Options.resolve` says which value holds.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from geoseg._fields import by_model, choices, documented, not_negative, option, positive, settle
from geoseg._files import absolute
from geoseg._inputs import is_there
from geoseg._texts import (
    area_as_text,
    nodata_values,
    parse_bands,
    parse_mask_values,
    parse_numbers,
    stretch_as_text,
)
from geoseg.errors import OptionError, TilingError
from geoseg.methods import (
    ATTENTIONS,
    REFINERS,
    REGIONS,
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
PROXIED = ("proxy", "cass", "corrclip")
"""Attentions that look at windows with another model, too."""
Source = Literal["given", "preset", "model", "default"]
Preset = Literal["none", "paper"]
Blend = Literal["uniform", "hann"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tier = Literal["full", "fast"]
Tiers = Literal["full", "fast", "both"]
PolygonFormat = Literal["gpkg", "parquet", "fgb", "geojson", "none"]
RegionRule = Literal["mean", "majority"]
RegionOverlap = Literal["smallest", "largest"]
ClsSource = Literal["modified", "vanilla"]
"""``modified`` as the paper's; ``vanilla`` is the usual embedding of the window."""
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
ITEM = "item.json"
REGION_TABLE = "regions.csv"
"""Of regions that are numbers of a raster."""
ATTRIBUTES = ("scene", "date")
"""Of polygons, on request."""
POLYGON_FORMATS: tuple[str, ...] = get_args(PolygonFormat)
INPUT, SCENE, MODEL, METHOD = "Input", "Scene", "Model", "Method"
WINDOWS, OUTPUT, SHAPE, STORE = "Windows and tiles", "Output", "Polygons", "Store"


@documented
@dataclass(frozen=True, kw_only=True)
class Options:
    """How pixels become labels.

    What is None takes the preset's value, else the model's own default where it has one, else the
    general one that its help names. An option given always wins. See `geoseg.methods` for how
    methods are written.

    Raises
    ------
    OptionError
        If a value is impossible, alone or with the others. Of methods only the names are looked
        at; their keys are when the model is there.
    """

    preset: Preset = option(
        "none",
        "paper: attention, upsampler, CLS bias, scale, windows and blend as SegEarth-OV has them, "
        "whatever the model prefers; single options still win.",
        METHOD,
    )
    attention: str = by_model("segearth", "Attention of the last block.", METHOD, table=ATTENTIONS)
    backbone_weights: str | None = option(
        None,
        "Checkpoint of the backbone that proxy, cass and corrclip name; without it, the hub's.",
        METHOD,
        metavar="FILE",
    )
    residual: bool = option(
        False, "Keep the last block's residual and FFN; attentions have both as keys too.", METHOD
    )
    last_blocks: int = option(
        1,
        "In how many last blocks the attention runs, beside the ordinary stream; their outputs are "
        "summed.",
        METHOD,
        metavar="1|2",
    )
    upsampler: str = by_model("jbu", "From patches to pixels.", METHOD, table=UPSAMPLERS)
    upsampler_weights: str | None = option(
        None, "Checkpoint of simfeatup (JBU-One) or featup (JBU-Stack).", METHOD, metavar="FILE"
    )
    cls_bias: float = by_model(
        0.3,
        "Subtract λ times the window's global logits from every pixel.",
        METHOD,
        metavar="λ",
        holds=not_negative,
        wanted="0 or more (logits become patch - bias * cls)",
    )
    cls_source: ClsSource = option(
        "modified",
        "Whose window's global logits --cls-bias subtracts: the attention's, or the plain model's.",
        METHOD,
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
    regions: Any = option(
        None,
        "One class for a region: FILE of polygons (parcels, footprints) in any CRS, or a raster of "
        "region numbers; or those of the scene itself.",
        METHOD,
        table=REGIONS,
        metavar="FILE|METHOD",
    )
    regions_layer: str | None = option(
        None,
        "Layer of a vector file of regions, or band of a raster of them. [default: the one with "
        "polygons]",
        METHOD,
        metavar="NAME|BAND",
    )
    region_rule: RegionRule = option(
        "mean",
        "Class of a region: the one with the best mean score, or the one that most of its pixels "
        "have.",
        METHOD,
    )
    region_agreement: float = option(
        0.5,
        "Share of a region's pixels that must have its class already; below it they keep their "
        "own.",
        METHOD,
        metavar="SHARE",
        holds=lambda value: 0 <= value <= 1,
        wanted="a share from 0 to 1",
    )
    region_min_area_m2: float = option(
        0.0,
        "Regions of which the map has less than this keep their pixels' own classes.",
        METHOD,
        metavar="M2",
        flag="--region-min-area",
        holds=not_negative,
        wanted="zero or a positive number",
    )
    region_overlap: RegionOverlap = option(
        "smallest",
        "Which of the regions' polygons a pixel belongs to that lies in several; of equal ones the "
        "later.",
        METHOD,
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
        holds=lambda value: 0 <= value <= 1,
        wanted="a probability from 0 to 1",
    )
    background: str | None = option(
        None,
        "Class for pixels below the threshold. [default: the first class]",
        METHOD,
        metavar="NAME",
    )
    logit_scale: float = by_model(
        50.0,
        "Factor on logits before the softmax.",
        METHOD,
        metavar="S",
        holds=positive,
        wanted="a value above 0",
    )
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
        holds=lambda value: value >= 1,
        wanted="1 or more",
    )

    def __post_init__(self) -> None:
        for name in ("regions", "regions_layer"):
            if isinstance(given := getattr(self, name), int | Path):
                object.__setattr__(self, name, str(given))
        settle(self)
        _refuse_regions(self)
        refuse_gaps(self.window, self.stride)
        upsampler = None if self.upsampler is None else self.upsampler.partition(":")[0]
        if self.upsampler_weights is not None and upsampler not in (None, *_WEIGHTED):
            raise OptionError(
                f"upsampler {upsampler} takes no weights; give --upsampler "
                f"{' or '.join(_WEIGHTED)}, or leave --upsampler-weights out"
            )
        attention = None if self.attention is None else self.attention.partition(":")[0]
        if self.backbone_weights is not None and attention not in (None, *PROXIED):
            raise OptionError(
                f"attention {attention} has no backbone; give --attention "
                f"{' or '.join(PROXIED)}, or leave --backbone-weights out"
            )

    def portable(self) -> Options:
        """Return the same options as a process in another folder understands them."""
        templates = self.templates
        if isinstance(templates, str) and Path(templates).suffix:
            templates = absolute(templates)  # a name like "imagenet" stays one
        weights, beside = self.upsampler_weights, self.backbone_weights
        here = self.regions_given and isinstance(self.regions, str)
        return replace(
            self,
            regions=absolute(self.regions) if here else self.regions,
            upsampler_weights=None if weights is None else absolute(weights),
            backbone_weights=None if beside is None else absolute(beside),
            templates=templates,
        )

    @property
    def regions_given(self) -> bool:
        """Whether regions are those of a file, or objects that stand for one."""
        return self.regions is not None and not self.regions_of_scene

    @property
    def regions_of_scene(self) -> bool:
        """Whether regions are a method's."""
        given = self.regions
        return isinstance(given, str) and given.strip().partition(":")[0] in REGIONS.entries

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
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Options)}
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
        if values["last_blocks"] != 1:
            values["attention"] = _in_last_blocks(values["attention"], values["last_blocks"])
        for name, chosen in choices(Options).items():
            if chosen.table is not None and (name != "regions" or self.regions_of_scene):
                values[name] = _canonical(chosen.table, values[name])
        if sources["upsampler"] != "given" and upsampler not in _WEIGHTED:
            values["upsampler_weights"] = None
        return Resolved(**values, sources=sources)


@dataclass(frozen=True, kw_only=True)
class Resolved(Options):
    """Options with nothing left open; see `Options` for their meaning."""

    sources: Mapping[str, Source] = field(default_factory=dict)
    """Where the options that a model may set came from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Only of a whole run: to tune, a background is given and the threshold looked for.
        if self.threshold is None and self.background is not None and not self.vocabulary_steps:
            raise OptionError("a background class needs a threshold; give both or neither")

    def method(self, name: str) -> Any:
        """Make the method, or the tuple of methods, that a field names; None for no regions."""
        if name == "regions" and not self.regions_of_scene:
            return None
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
            if (made := self.method(name)) is None:
                continue
            found[name] = (
                [describe(table, one) for one in made]
                if isinstance(made, tuple)
                else describe(table, made)
            )
        return found


def _in_last_blocks(attention: str, count: int) -> str:
    """An attention in so many last blocks.

    Raises
    ------
    OptionError
        If it runs in one only.
    """
    made = resolve(ATTENTIONS, attention, last=count)
    if not hasattr(made, "last"):
        raise OptionError(
            f"attention {attention} belongs to the last block alone; leave --last-blocks out, or "
            "take segearth, sclip, clearclip, naclip, maskclip, pearl, cliptrase or vanilla"
        )
    return canonical(ATTENTIONS, made)


_OF_FILES = ("regions_layer", "region_min_area_m2", "region_overlap")
_OF_REGIONS = ("region_rule", "region_agreement", *_OF_FILES)


def _refuse_regions(given: Options) -> None:
    """Refuse options of regions where there are none of that kind.

    Raises
    ------
    OptionError
        That names them.
    """
    changed = [
        f for f in fields(Options) if f.name in _OF_REGIONS and getattr(given, f.name) != f.default
    ]
    flags = [choices(Options)[f.name].flag or f"--{f.name.replace('_', '-')}" for f in changed]
    if given.regions is None and flags:
        raise OptionError(f"{flags[0]} says how regions are read or vote; give --regions too")
    if given.regions_of_scene:
        for f, flag in zip(changed, flags, strict=True):
            if f.name in _OF_FILES:
                raise OptionError(f"{flag} is for regions of a file; leave it out")
    text = given.regions if isinstance(given.regions, str) else ""
    name = text.strip().partition(":")[0]
    if not is_there(text) and difflib.get_close_matches(name, REGIONS.entries, n=1, cutoff=0.8):
        REGIONS.check(text)
    known = text.strip()
    if not (given.regions is None or known or _stands_for_file(given.regions)):
        what = "nothing" if given.regions == "" else f"a {type(given.regions).__name__}"
        raise OptionError(
            f"regions is {what}; give superpixels, the path of a vector file or raster, a "
            "GeoDataFrame, or a DataArray of numbers"
        )


def _stands_for_file(given: Any) -> bool:
    """Whether it is one of geopandas' or xarray's."""
    return hasattr(given, "total_bounds") or (hasattr(given, "dims") and hasattr(given, "dtype"))


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
        "its logits are near within a bound that ask states. [default: all channels, exactly]",
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
        "last_blocks",
        "cls_source",
        "upsampler",
        "upsampler_weights",
        "backbone_weights",
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


def is_beside_words(scorer: Any) -> bool:
    """Whether a scorer goes beside the words, and not in their place."""
    return isinstance(scorer, Scorer) and scorer.weight is not None


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


def _canonical(table: Table, text: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Write methods the shortest way, so that the same method is always the same text."""
    if isinstance(text, tuple):
        return tuple(canonical(table, resolve(table, one)) for one in text)
    return canonical(table, resolve(table, text))


@documented
@dataclass(frozen=True)
class Reading:
    """How a scene is read.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    bands: tuple[int | str, ...] | None = option(
        None,
        "Bands to use as red, green and blue, counted from 1 or by name (of a STAC item: assets or "
        "common names); one band alone is grey; any number for a --scorer. "
        "[default: by colour tags, band names or wavelengths, else 1,2,3]",
        INPUT,
        metavar="R,G,B",
        parse=parse_bands,
        holds=lambda band: isinstance(band, str) or band >= 1,
        wanted="numbers from 1, or names",
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
        holds=positive,
        wanted="a positive number of metres",
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
        "of polygons; on any grid, in any CRS; of a STAC item also the name of an asset.",
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
        given: Any = () if self.nodata is None else self.nodata
        given = given if isinstance(given, list | tuple) else (given,)
        object.__setattr__(self, "nodata", nodata_values(given))
        object.__setattr__(self, "stretch", stretch_as_text(self.stretch))
        for name in ("crs", "mask_values", "mask_layer"):
            object.__setattr__(self, name, _as_text(getattr(self, name)))
        if self.aoi is not None:
            object.__setattr__(self, "aoi", area_as_text(self.aoi))
        settle(self)
        parse_mask_values(self.mask_values)
        if self.mask is None and (self.mask_values or self.mask_layer):
            raise OptionError("mask values and mask layer say how to read a mask; give --mask too")

    @property
    def fill(self) -> tuple[float, ...] | None:
        """Values that are no data, in place of the file's own; None if those count."""
        if not self.nodata:
            return None
        return tuple(float(value) for value in self.nodata if value != "none")


def _as_text(given: Any) -> Any:
    """Write numbers, and CRS of rasterio's or pyproj's, as a command line has them."""
    if isinstance(given, list | tuple):
        return ",".join(map(str, given))
    if hasattr(given, "to_wkt"):
        return given.to_wkt()
    return str(given) if isinstance(given, int) else given


def refuse_gaps(window: int | None, stride: int | None) -> None:
    """Refuse windows of pixels that would not cover a scene, as far as both are known.

    Raises
    ------
    TilingError
        If the window is below 0, or the stride is not 1 to a window.
    """
    if window is not None and window < 0:
        raise TilingError(f"window is {window}; give its side in pixels, or 0 for one pass")
    if window == 0 or stride is None or 1 <= stride <= (window or stride):
        return
    beside = "" if window is None else f" with window {window}"
    most = "1 or more" if window is None else f"a stride from 1 to {window}"
    raise TilingError(f"stride {stride}{beside} would leave gaps or not move; give {most}")


_LEAST_SPLIT = 16
_LONGEST_LAYER = 60
"""Letters: names of tables beside the layer's are longer, and some programs cut them."""


@documented
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
        holds=not_negative,
        wanted="zero or a positive number",
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
        holds=not_negative,
        wanted="zero or a positive number",
    )
    smooth: int = option(
        0,
        "How often corners are cut; neighbours keep one common boundary.",
        SHAPE,
        metavar="TIMES",
        holds=lambda value: 0 <= value <= 5,
        wanted="0 to 5 times",
    )
    connectivity: int = option(
        4,
        "Whether pixels of one object share sides (4), or sides or corners (8).",
        SHAPE,
        metavar="4|8",
        holds=lambda value: value in (4, 8),
        wanted="4 or 8",
    )
    split: int = option(
        0,
        "Cut polygons that reach over more pixels than this along a grid of so many, so that maps "
        "of them stay fast to draw; parts share their edges exactly, and may be small.",
        SHAPE,
        metavar="PX",
        holds=lambda value: value == 0 or value >= _LEAST_SPLIT,
        wanted=f"{_LEAST_SPLIT} pixels or more, 1024 for example, or 0 to leave polygons whole",
    )
    layer: str = option(
        "segments",
        "Name of the polygons' layer.",
        SHAPE,
        metavar="NAME",
        holds=lambda name: _is_layer_name(name),
        wanted=f"letters, up to {_LONGEST_LAYER}, that do not begin with gpkg_, rtree_ or sqlite_",
    )
    attributes: tuple[str, ...] = option(
        (),
        "Further attributes of the polygons, from the tags of the labels: scene (its name), date "
        "(when it was taken); separated by commas.",
        SHAPE,
        metavar="scene,date",
        holds=lambda word: word in ATTRIBUTES,
        wanted=" or ".join(ATTRIBUTES),
    )

    def __post_init__(self) -> None:
        given: Any = self.attributes
        if isinstance(given, str):
            given = given.split(",")
        if isinstance(given, list | tuple) and all(isinstance(word, str) for word in given):
            words = (word.strip() for word in ",".join(given).split(","))
            object.__setattr__(self, "attributes", tuple(dict.fromkeys(filter(None, words))))
        settle(self)
        if self.split and self.drop_small:
            raise OptionError("drop small would take parts that split has cut for small; give one")
        if self.drop_small and not self.min_area_m2:
            raise OptionError("drop small needs a min area, below which polygons are small")


def _is_layer_name(name: str) -> bool:
    """Whether every format can have a layer of that name, GeoPackage's own tables apart."""
    taken = name.lower().startswith(("gpkg_", "rtree_", "sqlite_")) or name == "layer_styles"
    whole = name == name.strip() and name.isprintable() and not set(name) & set("\"'`[];\\")
    return whole and not taken and 0 < len(name) <= _LONGEST_LAYER


@documented
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
    stac: bool = option(
        False,
        "Also write item.json, a STAC item of the map for catalogues (needs the package pystac).",
        OUTPUT,
    )
    output_grid: OutputGrid = option(
        "native",
        "With --gsd: labels on the scene's own pixels or on the working ones.",
        OUTPUT,
    )

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
            *([ITEM] if self.stac else []),
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
ALL_PRODUCTS = (
    *dict.fromkeys(
        name
        for polygons in get_args(PolygonFormat)
        for name in Products(polygons=polygons, stac=True, **_ALL_RASTERS).names
    ),
    REGION_TABLE,
    *(f"regions.{kind}" for kind in POLYGON_FORMATS if kind != "none"),
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
