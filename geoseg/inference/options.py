"""Which options a run uses, and where each came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from geoseg.errors import OptionError
from geoseg.model.defaults import ModelDefaults

Source = Literal["given", "model", "default"]

_GENERAL: Mapping[str, Any] = {
    "attention": "segearth",
    "upsampler": "jbu",
    "cls_bias": 0.3,
    "logit_scale": 50.0,
    "window": 224,
    "stride": 112,
    "blend": "uniform",
}
"""The paper's settings (JBU stands for SimFeatUp where there are no weights for it)."""


@dataclass(frozen=True)
class Options:
    """How pixels become labels.

    None means: the model's own default where it has one, else the general one. An option given
    always wins.
    """

    attention: str | None = None
    """Last block's attention, a key of `geoseg.model.attention.VARIANTS` [segearth]."""
    residual: bool = False
    """Keep the last block's residual and FFN."""
    upsampler: str | None = None
    """``none``, ``jbu``, ``simfeatup`` or ``featup`` [jbu]."""
    upsampler_weights: str | None = None
    """Checkpoint of the learned upsamplers; the model's own where it brings one."""
    cls_bias: float | None = None
    """λ ≥ 0: logits become patch - λ · cls [0.3]."""
    templates: str | tuple[str, ...] = "imagenet"
    """``imagenet``, ``remote-sensing``, ``none``, a text file, or the templates themselves."""
    threshold: float | None = None
    """Probability below which a pixel becomes background."""
    background: str | None = None
    """Class for pixels below the threshold; the first class if None."""
    logit_scale: float | None = None
    """Factor on logits before the softmax [50]."""
    window: int | None = None
    """Side of the encoder window in pixels [224]; 0 takes the whole image in one pass."""
    stride: int | None = None
    """Step between windows in pixels [112]."""
    blend: Literal["uniform", "hann"] | None = None
    """Weights of overlapping windows [uniform, the original's plain mean]; hann hides the windows'
    borders."""
    batch_size: int | None = None
    """Windows encoded at once; None picks one for the device."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Encoder's arithmetic; ``auto`` is bf16 on a GPU, fp32 on a CPU."""
    exact: bool = False
    """Normalise features of the learned upsamplers exactly; otherwise logits may differ by up to
    5e-4 where that is faster."""
    naclip_std: float | None = None
    """Width of NACLIP's Gaussian in patches [5]."""
    gem_depth: int | None = None
    """Depth of GEM's parallel stream [7]."""

    def portable(self) -> Options:
        """Return the same options as a process in another folder understands them."""

        def absolute(name: str) -> str:
            return str(Path(name).absolute()) if Path(name).exists() else name

        templates = self.templates
        if isinstance(templates, str) and Path(templates).suffix:
            templates = absolute(templates)  # a name like "imagenet" stays one
        weights = self.upsampler_weights
        return replace(
            self,
            upsampler_weights=None if weights is None else absolute(weights),
            templates=templates,
        )

    def resolve(self, model: ModelDefaults) -> Resolved:
        """Fill in what was not given.

        Raises
        ------
        OptionError
            If a value is impossible.
        """
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        sources: dict[str, Source] = {}
        for name, general in _GENERAL.items():
            preferred = getattr(model, name)
            if values[name] is not None:
                sources[name] = "given"
            else:
                values[name] = general if preferred is None else preferred
                sources[name] = "default" if preferred is None else "model"
        if values["upsampler_weights"] is None and values["upsampler"] == "simfeatup":
            values["upsampler_weights"] = model.upsampler_weights
            sources["upsampler_weights"] = "model"
        if sources["window"] == "given" and sources["stride"] != "given" and values["window"]:
            # Half a window is the paper's overlap; a stride made for another window is not.
            values["stride"] = max(values["window"] // 2, 1)
            sources["stride"] = "default"
        return Resolved(**values, sources=sources)


@dataclass(frozen=True)
class Resolved:
    """Options with nothing left open; see `Options` for their meaning."""

    attention: str
    residual: bool
    upsampler: str
    upsampler_weights: str | None
    cls_bias: float
    templates: str | tuple[str, ...]
    threshold: float | None
    background: str | None
    logit_scale: float
    window: int
    stride: int
    blend: Literal["uniform", "hann"]
    batch_size: int | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    exact: bool
    naclip_std: float | None
    gem_depth: int | None
    sources: Mapping[str, Source]
    """Where the options that a model may set came from."""

    def __post_init__(self) -> None:
        if self.cls_bias < 0:
            raise OptionError(
                f"CLS bias is {self.cls_bias}; give 0 or more (logits become patch - bias * cls)"
            )
        if self.logit_scale <= 0:
            raise OptionError(f"logit scale is {self.logit_scale}; give a value above 0")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise OptionError(f"threshold is {self.threshold}; give a probability from 0 to 1")
        if self.threshold is None and self.background is not None:
            raise OptionError("a background class needs a threshold; give both or neither")
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"batch size is {self.batch_size}; give 1 or more")
        if self.blend not in ("uniform", "hann"):
            raise OptionError(f"blend {self.blend!r} is not known; choose uniform or hann")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise OptionError(
                f"precision {self.precision!r} is not known; choose auto, fp32, bf16 or fp16"
            )
