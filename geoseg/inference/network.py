"""A network of one's own in place of encoder and head: windows in, scores out, all else the same.

No text tower and no CLIP is loaded here.
"""

from __future__ import annotations

import difflib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg._fields import as_made, choices
from geoseg._files import absolute
from geoseg.errors import OptionError, TileError, warn
from geoseg.inference.callables import identity, loaded, name_of, names_told
from geoseg.inference.decide import Decision
from geoseg.inference.refine import Asked
from geoseg.inference.refine.scene import Readable
from geoseg.inference.runners.area import Batches
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.views import View, mean_of_views
from geoseg.model.loading import resolve_device
from geoseg.options import Options, Resolved, Scorer
from geoseg.options.scorer import LEFT_OUT, is_score_raster
from geoseg.options.segmentation import WORDS_ONLY, Precision
from geoseg.runtime.transfer import to_device
from geoseg.text.queries import Queries
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.types import PixelBlock, Window

_ALL = slice(None)
_COLOURS = 3
_TOKEN_PIXELS = 256
"""Pixels of a window that cost about what a patch of a model of words does."""


def windows_of(
    options: Options | Mapping[str, Any] | None, window: int | None, stride: int | None
) -> Options:
    """Options with a window and a stride that were given by themselves."""
    given: dict[str, Any] = {"window": window, "stride": stride}
    return replace(
        as_made(Options, options),
        **{name: value for name, value in given.items() if value is not None},
    )


class Network:
    """A scorer on a device: windows of one size to scores of their pixels.

    Parameters
    ----------
    scorer
        What to call, and how its input is normalised.
    classes
        Names of the classes of the map; None if nobody knows them yet, see `count`.
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
        classes: Sequence[str] | None,
        device: torch.device,
        window: int,
        views: Sequence[View],
    ) -> None:
        self.device, self.name = device, name_of(scorer.call)
        self._window, self._views = window, views
        self.scorer = scorer
        self._call = loaded(scorer.call, device)
        self.names = scorer.names or names_told(scorer.call, self._call)
        """Of its scores, in their order; None for all classes of the map, as they come."""
        self._classes: int | None = None
        self._order: list[int] | None = None
        self.classes: tuple[int, ...] = ()
        """Which classes it has scores of, ascending: those that it answers with."""
        if classes is not None:
            self._settle(classes)
        self._scales = bool(scorer.mean or scorer.std)
        self._mean, self._std = (
            torch.tensor(values or (empty,), device=device, dtype=torch.float32).view(-1, 1, 1)
            for values, empty in ((scorer.mean, 0.0), (scorer.std, 1.0))
        )

    def _settle(self, classes: Sequence[str]) -> None:
        """Match scores with classes."""
        scorer = self.scorer
        if scorer.weight is None and scorer.names is None and not _same(self.names, classes):
            self.names = None  # what a file says of itself may be about something else
        if self.names is None:
            self._classes, self.classes = len(classes), tuple(range(len(classes)))
            return
        places = dict(_places(self.names, classes, self.name))
        self._classes, self.classes = len(self.names), tuple(sorted(places))
        if scorer.weight is not None and len(places) == 1 and scorer.activation == "softmax":
            raise OptionError(
                f"scorer {self.name} scores one class alone, and a softmax of one score is 1 "
                "everywhere; give --activation sigmoid or none"
            )
        order = [places[index] for index in self.classes]
        self._order = None if order == list(range(self._classes)) else order

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
        activation = self.scorer.activation
        if scores.shape[1] == 1 and self._classes == 2 and activation != "softmax":
            # One score alone is that of the second class.
            other = -scores if activation == "sigmoid" else 1 - scores
            scores = torch.cat([other, scores], 1)
        if self._classes not in (None, scores.shape[1]):
            told = "--classes has" if self.names is None else "it has"
            remedy = "" if self.scorer.weight is None else " with --scorer-classes"
            raise TileError(
                f"scorer {self.name} gives {scores.shape[1]} scores a pixel, and {told} "
                f"{self._classes} names; give one name for each{remedy}, in their order"
            )
        if self._order is not None:
            scores = scores[:, self._order]
        if scores.shape[2:] != windows.shape[2:]:
            size = (windows.shape[2], windows.shape[3])
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return scores.permute(0, 2, 3, 1)

    @property
    def not_finite(self) -> str:
        """What there is to say where its scores are no numbers."""
        return (
            f"scorer {self.name} gives scores that are NaN or infinite; check its weights, and "
            "that pixels reach it as it was trained (--stretch, --mean, --std)"
        )

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

    @property
    def facts(self) -> dict[str, Any]:
        """What says which scorer this is; plain JSON values."""
        scorer = self.scorer
        named = {} if self.names is None else {"classes": list(self.names)}
        return {
            "scorer": name_of(scorer.call),
            "sha256": identity(scorer.call),
            "activation": scorer.activation,
            "mean": scorer.mean,
            "std": scorer.std,
        } | named

    def decision(self, vocabulary: Vocabulary, options: Resolved) -> Decision:
        """How averaged scores of all classes of a map become labels."""
        names = len(vocabulary.names)
        queries = Queries(
            np.zeros((names, 0), np.float32),
            np.arange(names, dtype=np.int32),
            np.array([c.offset for c in vocabulary.classes], np.float32),
            names,
        )
        made = Decision.of(queries, vocabulary, options, self.device)
        return replace(
            made,
            logit_scale=1.0,
            activation=self.scorer.activation,
            by_logits=made.thresholds is None,
        )

    def probe(self, scene: Readable, planes: slice = _ALL) -> None:
        """Run one window in the middle of a scene, so that what is wrong shows before the work.

        Parameters
        ----------
        scene
            Pixels of the run.
        planes
            Which of them it sees.

        Raises
        ------
        OptionError
            That says what is wrong with the scorer's answer.
        """
        scores = self._tried(scene, planes)
        low, high = (float(x) for x in scores.aminmax())
        if self.scorer.activation == "none" and not -1e-3 <= low <= high <= 1.001:
            raise OptionError(
                f"scorer {self.name} gives scores from {low:.3g} to {high:.3g}, which are no "
                "probabilities; give --activation softmax or sigmoid"
            )

    def count(self, scene: Readable, planes: slice = _ALL) -> int:
        """How many scores it gives of a pixel; otherwise as `probe`."""
        return int(self._tried(scene, planes).shape[-1])

    def middle(self, scene: Readable, planes: slice = _ALL) -> PixelBlock:
        """Pixels of one window in the middle of a scene."""
        height, width = scene.shape
        side = self._window or max(height, width)
        rows, cols = min(side, height), min(side, width)
        block = scene.read(Window((height - rows) // 2, (width - cols) // 2, rows, cols))
        return PixelBlock(block.rgb[planes], block.valid)

    def _tried(self, scene: Readable, planes: slice) -> Tensor:
        block = self.middle(scene, planes)
        self.refuse_few_numbers(len(block.rgb))
        try:
            found = self(self.normalise(block)[None])
        except TileError as error:
            raise OptionError(str(error)) from error.__cause__
        if not found.isfinite().all():
            raise OptionError(self.not_finite)
        return found

    def packed(self) -> Packed:
        """It on its way to another process.

        Raises
        ------
        OptionError
            If it cannot be sent.
        """
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
                f"scorer {self.name} cannot be sent to workers ({words}); give a "
                "function of a module, a TorchScript or ONNX file, or run without workers"
            ) from error
        return Packed(packed, identity(scorer.call) if isinstance(scorer.call, str) else None)

    def refuse_few_numbers(self, bands: int) -> None:
        """Refuse a mean or deviation that is not one number, or one for every band."""
        for name, values in (("mean", self._mean), ("std", self._std)):
            if len(values) not in (1, bands):
                raise OptionError(
                    f"--{name} has {len(values)} numbers, and the scorer sees {bands} bands; give "
                    "one for each"
                )


@dataclass(frozen=True)
class Packed:
    """A scorer on its way to another process."""

    content: bytes
    sha256: str | None
    """Of a scorer that the other process loads for itself."""

    def scorer(self) -> Scorer:
        """The scorer itself.

        Raises
        ------
        OptionError
            If what it calls here is not what the run started with.
        """
        found: Scorer = cloudpickle.loads(self.content)
        if self.sha256 is not None and self.sha256 != identity(found.call):
            raise OptionError(
                f"a worker has another scorer {name_of(found.call)} than the process that started "
                "the run; give all machines the same file"
            )
        return found


def _same(names: Sequence[str] | None, classes: Sequence[str]) -> bool:
    return names is not None and sorted(map(str.casefold, names)) == sorted(
        map(str.casefold, classes)
    )


def _places(names: Sequence[str], classes: Sequence[str], scorer: str) -> Iterator[tuple[int, int]]:
    """Class, and which score is its, of all scores that are not left out.

    Raises
    ------
    OptionError
        If a name is no class, or two scores have one, or none is left.
    """
    known = {name.casefold(): index for index, name in enumerate(classes)}
    taken: dict[int, str] = {}
    for place, name in enumerate(names):
        if name == LEFT_OUT:
            continue
        index = known.get(name.casefold())
        if index is None:
            near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.6)
            hint = (
                f"did you mean '{classes[known[near[0]]]}'?"
                if near
                else f"name its scores with --scorer-classes, where {LEFT_OUT} leaves one out"
            )
            raise OptionError(
                f"scorer {scorer}: its class '{name}' is none of --classes ({', '.join(classes)}); "
                f"{hint}"
            )
        if index in taken:
            raise OptionError(f"scorer {scorer} has two scores of the class '{name}'; name one")
        taken[index] = name
        yield index, place
    if not taken:
        raise OptionError(f"scorer {scorer}: all scores are left out; name a class of --classes")


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
        self._asked = Asked()
        self._refiners = self._make_refiners()
        views = chosen.method("views").views()
        names = self.vocabulary.names
        self._scorer = self.network = Network(self.scorer, names, self.device, chosen.window, views)
        if len(self.network.classes) < classes:
            missing = (n for i, n in enumerate(names) if i not in self.network.classes)
            raise OptionError(
                f"scorer {self.network.name} has no score of {', '.join(missing)}; leave them out "
                "of --classes, or give --scorer-weight to ask the words too"
            )
        self.not_finite = self.network.not_finite
        self.facts = self.network.facts
        self._decision = self.network.decision(self.vocabulary, chosen)
        self._voting = self._make_voting()
        self._batches = Batches(
            self.device,
            chosen.batch_size,
            window_pixels=chosen.window**2,
            patch_pixels=_TOKEN_PIXELS,
            queries=classes,
        )

    def probe(self, scene: Readable) -> None:
        """As `Network.probe`; also refuses pixels that no refiner can look at."""
        self._refuse_pixels(self.network.middle(scene))
        self.network.probe(scene)

    def _refuse_pixels(self, block: PixelBlock) -> None:
        chosen, bands = self.options, len(block.rgb)
        made = zip(chosen.refine, chosen.method("refine"), strict=True)
        looking = [
            text.partition(":")[0]
            for text, method in made
            if not getattr(method, "any_pixels", False)
        ]
        if looking and bands != _COLOURS:
            raise OptionError(
                f"--refine {looking[0]} looks at red, green and blue, and the scorer sees {bands} "
                f"band{'s' if bands > 1 else ''}; take pamr, or leave it out"
            )
        looking = [f"--refine {text}" for text in looking]
        if chosen.regions_of_scene:
            looking.append(f"--regions {chosen.regions}")
        low, high = float(block.rgb.min()), float(block.rgb.max())
        if looking and not 0 <= low <= high <= 1:
            raise OptionError(
                f"{looking[0]} needs colours from 0 to 1, and the scorer sees {low:.3g} to "
                f"{high:.3g}; leave --stretch raw, or {looking[0].split()[0]}, out"
            )

    @functools.cached_property
    def recipe(self) -> NetworkRecipe:
        """What another process needs to make the same segmenter."""
        options = Options(**{f.name: getattr(self.options, f.name) for f in fields(Options)})
        words_only: dict[str, Any] = {
            f.name: f.default for f in fields(Options) if f.name in WORDS_ONLY
        }
        return NetworkRecipe(
            self.network.packed(),
            self.device.type,
            self.vocabulary,
            replace(options, **words_only),
        )

    def __reduce__(self) -> tuple[object, ...]:
        return NetworkRecipe.segmenter, (self.recipe,)


@dataclass(frozen=True)
class NetworkRecipe:
    """A segmenter with a scorer on its way to another process."""

    packed: Packed
    device: str
    vocabulary: Vocabulary
    options: Options

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
    scorer = recipe.packed.scorer()
    return NetworkSegmenter(scorer, recipe.vocabulary, recipe.options, recipe.device)


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
