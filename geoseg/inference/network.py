"""A network of one's own in place of encoder and head: windows in, scores out, all else the same.

No text tower and no CLIP is loaded here.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg._fields import as_made, choices
from geoseg._files import absolute
from geoseg.errors import OptionError, TileError, warn
from geoseg.inference.callables import identity, loaded, name_of
from geoseg.inference.decide import Decision
from geoseg.inference.refine import Asked, prepared
from geoseg.inference.runners.area import Batches
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.views import View, mean_of_views
from geoseg.model.loading import Model, load_model, resolve_device
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import WORDS_ONLY, Options, Precision, Scorer, is_score_raster
from geoseg.runtime.transfer import to_device
from geoseg.text.queries import Queries
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.types import PixelBlock, Window

_TOKEN_PIXELS = 256
"""Pixels of a window that cost about what a patch of a model of words does."""


def segmenter_of(
    model: str | Model,
    vocabulary: VocabularySource,
    options: Options | None,
    device: str,
    scorer: Any = None,
) -> Segmenter:
    """Make the segmenter of a model of words, or of a scorer where there is one.

    Raises
    ------
    OptionError
        If a model is named and a scorer is given.
    """
    if scorer is None:
        loaded = model if isinstance(model, Model) else load_model(model, device=device)
        return Segmenter(loaded, vocabulary, options)
    if model != DEFAULT_MODEL:
        raise OptionError("--model and --scorer: a scorer takes the model's place; give one")
    return NetworkSegmenter(scorer, vocabulary, options, device)


def scores_of(scorer: Any) -> Any:
    """What a scorer calls, or names."""
    return scorer.call if isinstance(scorer, Scorer) else scorer


def windows_of(
    options: Options | Mapping[str, Any] | None, window: int | None, stride: int | None
) -> Options:
    """Options with a window and a stride that were given by themselves."""
    given: dict[str, Any] = {"window": window, "stride": stride}
    return replace(
        as_made(Options, options),
        **{name: value for name, value in given.items() if value is not None},
    )


class _Pixels(Protocol):
    """A scene or an array, see `geoseg.io.scene.SceneLike`."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def read(self, window: Window) -> PixelBlock: ...


class Network:
    """A scorer on a device: windows of one size to scores of their pixels.

    Parameters
    ----------
    scorer
        What to call, and how its input is normalised.
    classes
        How many scores a pixel has to get.
    device
        Where it runs.
    window
        Side to which smaller windows are filled with 0, because networks are made for one size;
        0 for none.
    views
        Views of every window, whose scores are averaged.
    """

    precision: Precision = "fp32"

    def __init__(
        self,
        scorer: Scorer,
        classes: int,
        device: torch.device,
        window: int,
        views: Sequence[View],
    ) -> None:
        self.device, self.name = device, name_of(scorer.call)
        self._classes, self._window, self._views = classes, window, views
        self._activation = scorer.activation
        self._call = loaded(scorer.call, device)
        self._scales = bool(scorer.mean or scorer.std)
        self._mean, self._std = (
            torch.tensor(values or (empty,), device=device, dtype=torch.float32).view(-1, 1, 1)
            for values, empty in ((scorer.mean, 0.0), (scorer.std, 1.0))
        )

    @property
    def encoder(self) -> Network:
        """What normalises pixels: itself."""
        return self

    def normalise(self, block: PixelBlock) -> Tensor:
        """Pixels as the network wants them, ``(C, H, W)`` on the device; 0 where not valid."""
        pixels = to_device(block.rgb, self.device)
        if self._scales:
            pixels = (pixels - self._mean) / self._std
        if not block.valid.all():
            pixels = pixels * to_device(block.valid, self.device)
        return pixels

    @torch.no_grad()
    def __call__(self, windows: Tensor, places: Sequence[Window] = ()) -> Tensor:
        """Scores ``(B, H, W, Q)`` float32 of ``(B, C, H, W)`` windows from `normalise`."""
        height, width = windows.shape[2:]
        right, below = max(self._window - width, 0), max(self._window - height, 0)
        filled = F.pad(windows, (0, right, 0, below)) if right or below else windows
        return mean_of_views(self._scores, self._views, filled)[:, :height, :width]

    def _scores(self, windows: Tensor) -> Tensor:
        found = self._answer(windows)
        if isinstance(found, Mapping) and "out" in found:  # as torchvision's segmentation models
            found = found["out"]
        if isinstance(found, np.ndarray):
            found = torch.from_numpy(found)
        bands, sizes = windows.shape[1], f"{windows.shape[2]} x {windows.shape[3]} pixels"
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != len(windows):
            shape = tuple(found.shape) if hasattr(found, "shape") else type(found).__name__
            raise TileError(
                f"scorer {self.name} answers {len(windows)} windows of {bands} bands and {sizes} "
                f"with {shape}; it has to return (B, Q, h, w) scores"
            )
        scores = found.to(self.device, torch.float32)
        if scores.shape[1] == 1 and self._classes == 2 and self._activation != "softmax":
            # One score alone is that of the second class.
            other = -scores if self._activation == "sigmoid" else 1 - scores
            scores = torch.cat([other, scores], 1)
        if scores.shape[1] != self._classes:
            raise TileError(
                f"scorer {self.name} gives {scores.shape[1]} scores a pixel, and --classes has "
                f"{self._classes} names; give one name for each, in their order"
            )
        # Every value is looked at only where their sum says that there may be something to find.
        if not scores.sum().isfinite() and not scores.isfinite().all():
            raise TileError(
                f"scorer {self.name} gives scores that are NaN or infinite; check its weights, and "
                "that pixels reach it as it was trained (--stretch, --mean, --std)"
            )
        if scores.shape[2:] != windows.shape[2:]:
            size = (windows.shape[2], windows.shape[3])
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return scores.permute(0, 2, 3, 1)

    def _answer(self, windows: Tensor) -> Any:
        try:
            return self._call(windows)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if "not enough memory" in str(error):
                raise
            words = " ".join(str(error).split())[:300]
            raise TileError(
                f"scorer {self.name} fails on windows {tuple(windows.shape)} (B, C, h, w): "
                f"{type(error).__name__}: {words}; check --bands and --window"
            ) from error

    def refuse_few_numbers(self, bands: int) -> None:
        """Refuse a mean or deviation that is not one number, or one for every band."""
        for name, values in (("mean", self._mean), ("std", self._std)):
            if len(values) not in (1, bands):
                raise OptionError(
                    f"--{name} has {len(values)} numbers, and the scorer sees {bands} bands; give "
                    "one for each"
                )


class NetworkSegmenter(Segmenter):
    """A scorer, the names of its classes and options: from pixels to labels, without words.

    Parameters
    ----------
    scorer
        A `Scorer`, or what one calls.
    vocabulary
        Names of the scorer's classes, in the order of its scores.
    options
        How to infer; what is for models of words is refused.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    OptionError
        If an option is not for scorers, or what to call cannot be found.

    Warns
    -----
    GeosegWarning
        Where a class has other words than its name.
    """

    def __init__(
        self,
        scorer: Any,
        vocabulary: VocabularySource,
        options: Options | None = None,
        device: str = "auto",
    ) -> None:
        self.scorer = scorer if isinstance(scorer, Scorer) else Scorer(scorer)
        self.vocabulary = names_only(vocabulary)
        self.given = as_made(Options, options)
        _refuse_words(self.given)
        self.options = self.given.resolve({"logit_scale": 1.0})
        self.device = resolve_device(device)
        self.upsampler_sha256 = self.backbone_sha256 = None
        chosen, classes = self.options, len(self.vocabulary.names)
        looks = chosen.refine or chosen.views != "none" or chosen.regions_of_scene
        if is_score_raster(self.scorer.call) and looks:
            raise OptionError(
                "--refine, --views and superpixels need the pixels of the scene, which a raster of "
                "scores takes the place of; leave them out"
            )
        if any(view.colours != "own" for view in chosen.method("views").views()):
            raise OptionError(
                f"views {chosen.views} change colours as models of words see them; take hflip or "
                "d4 with a scorer"
            )
        self._refiners = prepared(chosen.method("refine"), Asked())
        self._scorer = Network(
            self.scorer, classes, self.device, chosen.window, chosen.method("views").views()
        )
        self.facts: dict[str, Any] = {
            "scorer": name_of(self.scorer.call),
            "sha256": identity(self.scorer.call),
            "activation": self.scorer.activation,
            "mean": self.scorer.mean,
            "std": self.scorer.std,
        }
        """What says which scorer this is; plain JSON values."""
        offsets = np.array([c.offset for c in self.vocabulary.classes], np.float32)
        queries = Queries(
            np.zeros((classes, 0), np.float32), np.arange(classes, dtype=np.int32), offsets, classes
        )
        decision = Decision.of(queries, self.vocabulary, chosen, self.device)
        self._decision = replace(
            decision, activation=self.scorer.activation, by_logits=decision.thresholds is None
        )
        self._voting = self._make_voting()
        self._batches = Batches(
            self.device,
            chosen.batch_size,
            window_pixels=chosen.window**2,
            patch_pixels=_TOKEN_PIXELS,
            queries=classes,
        )

    def probe(self, scene: _Pixels) -> None:
        """Run one window in the middle of a scene, so that what is wrong shows before the work.

        Raises
        ------
        OptionError
            That says what is wrong with the scorer's answer.
        """
        height, width = scene.shape
        side = self.options.window or max(height, width)
        rows, cols = min(side, height), min(side, width)
        window = Window((height - rows) // 2, (width - cols) // 2, rows, cols)
        network = self._scorer
        assert isinstance(network, Network)
        block = scene.read(window)
        network.refuse_few_numbers(len(block.rgb))
        try:
            scores = network(network.normalise(block)[None])
        except TileError as error:
            raise OptionError(str(error)) from error.__cause__
        low, high = (float(x) for x in scores.aminmax())
        if self.scorer.activation == "none" and not -1e-3 <= low <= high <= 1.001:
            raise OptionError(
                f"scorer {network.name} gives scores from {low:.3g} to {high:.3g}, which are no "
                "probabilities; give --activation softmax or sigmoid"
            )

    @functools.cached_property
    def recipe(self) -> NetworkRecipe:
        """What another process needs to make the same segmenter."""
        scorer = self.scorer
        if isinstance(scorer.call, str | Path):
            call = str(scorer.call)
            scorer = replace(scorer, call=absolute(call) if Path(call).is_file() else call)
        try:
            packed = cloudpickle.dumps(scorer)
            cloudpickle.loads(packed)
        except Exception as error:
            words = " ".join(str(error).split())[:200]
            raise OptionError(
                f"scorer {name_of(scorer.call)} cannot be sent to workers ({words}); give a "
                "function of a module, a TorchScript or ONNX file, or run without workers"
            ) from error
        options = Options(**{f.name: getattr(self.options, f.name) for f in fields(Options)})
        words_only: dict[str, Any] = {
            f.name: f.default for f in fields(Options) if f.name in WORDS_ONLY
        }
        return NetworkRecipe(
            packed,
            self.device.type,
            self.vocabulary,
            replace(options, **words_only),
            str(self.facts["sha256"]) if isinstance(scorer.call, str) else None,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return NetworkRecipe.segmenter, (self.recipe,)


@dataclass(frozen=True)
class NetworkRecipe:
    """A segmenter with a scorer on its way to another process."""

    packed: bytes
    device: str
    vocabulary: Vocabulary
    options: Options
    sha256: str | None
    """Of a scorer that the other process loads for itself."""

    def segmenter(self) -> Segmenter:
        """Make the segmenter, once in a process for all tiles that need it.

        Raises
        ------
        OptionError
            If what is called there is not what the run started with, or a GPU is missing.
        """
        with _lock:
            return _built(self)


_lock = threading.Lock()


@functools.lru_cache(maxsize=2)
def _built(recipe: NetworkRecipe) -> Segmenter:
    scorer = cloudpickle.loads(recipe.packed)
    made = NetworkSegmenter(scorer, recipe.vocabulary, recipe.options, recipe.device)
    if recipe.sha256 not in (None, made.facts["sha256"]):
        raise OptionError(
            f"a worker has another scorer {made.facts['scorer']} than the process that started "
            "the run; give all machines the same file"
        )
    return made


def names_only(source: VocabularySource) -> Vocabulary:
    """Classes with their names alone, which is all that a scorer needs of them."""
    vocabulary = Vocabulary.parse(source)
    more = [
        f"'{entry.name}' ({', '.join(p for p in entry.prompts if p != entry.name)})"
        for entry in vocabulary.classes
        if entry.prompts != (entry.name,)
    ]
    if more:
        warn(
            f"a scorer knows no words: only the names of classes are used, not their other words: "
            f"{'; '.join(more[:3])}{' …' if len(more) > 3 else ''}"
        )
    bare = (replace(c, prompts=(c.name,), descriptions=()) for c in vocabulary.classes)
    return Vocabulary(tuple(bare))


def _refuse_words(options: Options) -> None:
    flags = choices(Options)
    for each in fields(Options):
        if each.name in WORDS_ONLY and getattr(options, each.name) != each.default:
            flag = flags[each.name].flag or f"--{each.name.replace('_', '-')}"
            raise OptionError(f"{flag} is for models of words; leave it out with a scorer")
