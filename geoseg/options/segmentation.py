"""How pixels become labels: attention, upsampler, windows, regions; and which value holds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from geoseg._fields import (
    METHOD,
    MODEL,
    WINDOWS,
    by_model,
    choices,
    documented,
    not_negative,
    option,
    settle,
)
from geoseg._files import absolute
from geoseg._inputs import is_there
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
RegionRule = Literal["mean", "majority"]
RegionOverlap = Literal["smallest", "largest"]
ClsSource = Literal["modified", "vanilla"]
"""``modified`` as the paper's; ``vanilla`` is the usual embedding of the window."""
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
_LEAST_SCALE, _LARGEST_FACTOR = 0.001, 1e6
"""Beyond them probabilities are all the same, or none."""
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
        holds=lambda value: 0 <= value <= _LARGEST_FACTOR,
        wanted=f"0 to {_LARGEST_FACTOR:.0f} (logits become patch - bias * cls)",
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
        holds=lambda value: _LEAST_SCALE <= value <= _LARGEST_FACTOR,
        wanted=f"a value from {_LEAST_SCALE} to {_LARGEST_FACTOR:.0f}",
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


def _canonical(table: Table, text: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Write methods the shortest way, so that the same method is always the same text."""
    if isinstance(text, tuple):
        return tuple(canonical(table, resolve(table, one)) for one in text)
    return canonical(table, resolve(table, text))


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
