"""A scorer beside the words: both see the same windows, and their probabilities make one map."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.inference.decide import Decision, FusedDecision
from geoseg.inference.network import Network, NetworkSegmenter, Packed, names_only
from geoseg.inference.recipe import Recipe
from geoseg.inference.refine import SceneRefiner
from geoseg.inference.regions import Voting
from geoseg.inference.runners.area import Batches
from geoseg.inference.scorer import WindowScorer
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.views import Plain
from geoseg.io.scores import SeenScene
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.model.vision import DenseFeatures
from geoseg.options import Options, Scorer
from geoseg.options.scorer import is_beside_words, is_score_raster
from geoseg.options.segmentation import Precision
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.types import PixelBlock, Window

_COLOURS = 3


def segmenter_of(
    model: str | Model,
    vocabulary: VocabularySource,
    options: Options | None,
    device: str,
    scorer: Any = None,
) -> Segmenter:
    """Make the segmenter of a model of words, of a scorer in its place, or of both.

    Raises
    ------
    OptionError
        If a model is named and a scorer takes its place.
    """
    beside = is_beside_words(scorer)
    if scorer is not None and not beside:
        if model != DEFAULT_MODEL:
            raise OptionError(
                "--model and --scorer: a scorer takes the model's place; give one, or "
                "--scorer-weight to ask both"
            )
        return NetworkSegmenter(scorer, vocabulary, options, device)
    made = model if isinstance(model, Model) else load_model(model, device=device)
    if beside:
        return FusedSegmenter(made, vocabulary, options, scorer)
    return Segmenter(made, vocabulary, options)


def vocabulary_of(classes: VocabularySource, scorer: Any) -> Vocabulary:
    """Classes with what is asked of them: their words, or their names alone."""
    words = scorer is None or is_beside_words(scorer)
    return Vocabulary.parse(classes) if words else names_only(classes)


def probed(segmenter: Segmenter, scene: SeenScene | Any, *, travels: bool = False) -> Segmenter:
    """Refuse, before any work, a scorer that cannot do it.

    Parameters
    ----------
    segmenter
        Of a run.
    scene
        What its windows see.
    travels
        Whether other processes need the segmenter.
    """
    if isinstance(segmenter, NetworkSegmenter | FusedSegmenter):
        segmenter.probe(scene)
        if travels:
            _ = segmenter.recipe
    return segmenter


def has_planes(scorer: Scorer) -> bool:
    """Whether pixels hold planes for a scorer behind those for the words."""
    return is_beside_words(scorer) and (scorer.sees_its_own or is_score_raster(scorer.call))


class Both:
    """Words and a scorer on the same windows: logits, and behind them scores.

    Parameters
    ----------
    words, network
        The two sides.
    own
        Whether pixels hold planes for the network behind those for the words.
    """

    def __init__(self, words: WindowScorer, network: Network, *, own: bool) -> None:
        self._words, self._network = words, network
        self._split = _COLOURS if own else None
        self.device = words.encoder.device
        self.precision: Precision = words.encoder.precision

    @property
    def encoder(self) -> Both:
        """What normalises pixels: itself, for both."""
        return self

    def normalise(self, block: PixelBlock) -> Tensor:
        """Pixels for both, ``(3 + C, H, W)`` on the device; 0 where not valid."""
        words = PixelBlock(block.rgb[: self._split], block.valid)
        scorer = PixelBlock(block.rgb[self._split or 0 :], block.valid)
        sides = self._words.encoder.normalise(words), self._network.normalise(scorer)
        return torch.cat(sides)

    def __call__(self, windows: Tensor, places: Sequence[Window] = ()) -> Tensor:
        """Logits and scores ``(B, H, W, Q + S)`` of windows from `normalise`."""
        words = self._words(windows[:, :_COLOURS].contiguous(), places)
        return torch.cat([words, self._network(windows[:, _COLOURS:].contiguous())], -1)


@dataclass(frozen=True, eq=False)
class _OfWords:
    """A refiner of the logits of words; scores beside them stay as they are."""

    refiner: SceneRefiner
    queries: int

    @property
    def reach(self) -> int:
        return self.refiner.reach

    def __call__(
        self, logits: Tensor, rgb: Tensor, valid: Tensor, origin: tuple[int, int]
    ) -> Tensor:
        words = logits[..., : self.queries].contiguous()
        found = self.refiner(words, rgb[:_COLOURS], valid, origin)
        return torch.cat([found, logits[..., self.queries :]], -1)


class FusedSegmenter(Segmenter):
    """A model, a vocabulary, options and a scorer beside them: from pixels to labels.

    Parameters
    ----------
    model, vocabulary, options
        As for `Segmenter`.
    scorer
        With a weight; with weight 0 nobody asks it, and labels are those of a `Segmenter`.

    Raises
    ------
    OptionError, TilingError, VocabularyError, WeightsError
        As for `Segmenter`; also if one of the scorer's classes is none of the vocabulary's.
    """

    def __init__(
        self,
        model: Model,
        vocabulary: VocabularySource,
        options: Options | None,
        scorer: Scorer,
    ) -> None:
        assert scorer.weight is not None
        self.scorer = scorer
        super().__init__(model, vocabulary, options)
        if self.reads_regions:
            raise OptionError(
                f"attention {self.options.attention} reads the regions of pixels, which has no "
                "place beside a scorer; take another, or leave --scorer-weight out"
            )
        self._encode = super().encoder
        chosen, names = self.options, self.vocabulary.names
        views = chosen.method("views").views()
        if is_score_raster(scorer.call) or any(view.colours != "own" for view in views):
            views = Plain().views()
        self.network = Network(scorer, names, self.device, chosen.window, views)
        self.not_finite = f"{Segmenter.not_finite}, or {self.network.not_finite}"
        told = self.network.names or tuple(names)
        self._beside = self.network.facts | {
            "classes": list(told),
            "bands": None if scorer.bands is None else list(scorer.bands),
            "stretch": scorer.stretch,
            "weight": scorer.weight,
        }
        self._own = has_planes(scorer)
        if not scorer.weight:
            return
        self._scorer = Both(self._scorer, self.network, own=self._own)
        self._decision = self._fused()
        self._voting = self._make_voting()
        self._batches = Batches(
            self.device,
            chosen.batch_size,
            window_pixels=chosen.window**2,
            patch_pixels=model.patch_size**2,
            queries=len(self._text) + len(self.network.classes),
        )

    def _fused(self) -> FusedDecision:
        weight, has = self.scorer.weight, torch.tensor(self.network.classes, device=self.device)
        assert weight is not None
        said = Decision(
            torch.arange(len(has), device=self.device),
            len(has),
            logit_scale=1.0,
            thresholds=None,
            background=0,
            activation=self.scorer.activation,
        )
        if weight == 1 and len(has) == len(self.vocabulary.names):
            said = self.network.decision(self.vocabulary, self.options)
        words = {f.name: getattr(self._decision, f.name) for f in fields(Decision)}
        return FusedDecision(**words, said=said, weight=weight, has=has)

    def _make_refiners(self) -> tuple[SceneRefiner, ...]:
        found = super()._make_refiners()
        if not self.scorer.weight:
            return found
        return tuple(_OfWords(each, len(self._text)) for each in found)

    def _make_voting(self) -> Voting | None:
        found = super()._make_voting()
        return None if found is None else replace(found, planes=_COLOURS)

    @property
    def beside(self) -> dict[str, Any] | None:
        """The scorer beside the words; plain JSON values."""
        return self._beside

    def encode(self, images: Tensor) -> DenseFeatures:
        """As `Segmenter.encode`."""
        found: DenseFeatures = self._encode(images)  # type: ignore[operator]
        return found

    def probe(self, scene: Any) -> None:
        """As `Network.probe`; with weight 0 nobody asks."""
        if self.scorer.weight:
            self.network.probe(scene, slice(_COLOURS if self._own else 0, None))

    @functools.cached_property
    def recipe(self) -> Any:
        """What another process needs to make the same segmenter."""
        return replace(Recipe.of(self), kind=_Made(self.network.packed()))


@dataclass(frozen=True)
class _Made:
    """What another process makes of a model, a vocabulary and options."""

    packed: Packed

    def __call__(
        self, model: Model, vocabulary: Vocabulary, options: Options | None
    ) -> FusedSegmenter:
        return FusedSegmenter(model, vocabulary, options, self.packed.scorer())
