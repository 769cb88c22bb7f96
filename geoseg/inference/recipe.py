"""A segmenter on its way to another process: weights do not travel, the process loads its own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from geoseg.errors import OptionError, WeightsError
from geoseg.inference.segmenter import Segmenter
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import portable
from geoseg.options import Options
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Recipe:
    """What another process needs to make the same segmenter, to the same numbers."""

    spec: str
    device: str
    """``cpu`` or ``cuda``: of the process that started the run."""
    vocabulary: Vocabulary
    options: Options
    """With nothing left open, the templates' texts, and paths that hold in any folder."""
    fingerprint: str
    """Of the model's weights."""
    upsampler_sha256: str | None
    """Of a learned upsampler's weights."""
    backbone_sha256: str | None
    """Of the weights of the model that the attention names."""
    kind: Callable[[Model, Vocabulary, Options | None], Segmenter] = Segmenter

    @classmethod
    def of(cls, segmenter: Segmenter) -> Recipe:
        """Write a segmenter down."""
        model = segmenter.model
        resolved = segmenter.options.portable()
        options = Options(
            **{f.name: getattr(resolved, f.name) for f in fields(Options)}
            | {
                "precision": segmenter.precision,
                "templates": tuple(load_templates(resolved.templates)),
            }
        )
        return cls(
            portable(model.spec),
            segmenter.device.type,
            segmenter.vocabulary,
            options,
            model.fingerprint,
            segmenter.upsampler_sha256,
            segmenter.backbone_sha256,
            type(segmenter),
        )

    def segmenter(self) -> Segmenter:
        """Make the segmenter, once in a process for all tiles that need it.

        Raises
        ------
        OptionError
            If the run started on a GPU and this process has none: its numbers would be others.
        WeightsError
            If the weights here are not those that the run started with.
        """
        with _lock:
            return _built(self)


_lock = threading.Lock()


@functools.lru_cache(maxsize=2)
def _built(recipe: Recipe) -> Segmenter:
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            "a worker has no CUDA GPU, but the run was started on one; start workers that have "
            "one, or give --device cpu"
        )
    model = load_model(recipe.spec, device=recipe.device)
    if model.fingerprint != recipe.fingerprint:
        raise WeightsError(
            f"a worker has other weights for {model.spec} ({model.weights}) than the process that "
            "started the run; give all machines the same file"
        )
    made = recipe.kind(model, recipe.vocabulary, recipe.options)
    if made.upsampler_sha256 != recipe.upsampler_sha256:
        raise WeightsError(
            f"a worker has other upsampler weights in {recipe.options.upsampler_weights} than the "
            "process that started the run; give all machines the same file"
        )
    if made.backbone_sha256 != recipe.backbone_sha256:
        raise WeightsError(
            f"a worker has other weights for the backbone of {recipe.options.attention} than the "
            "process that started the run; give all machines the same file"
        )
    return made
