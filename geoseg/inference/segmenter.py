"""Pixels in, labels out: knows nothing of files, coordinate systems or Dask."""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoseg._fields import as_made
from geoseg.errors import OptionError, SceneError, TileError, TilingError, warn
from geoseg.inference.decide import Decided, Decision, lead, resize_logits, runner_up
from geoseg.inference.head import Head
from geoseg.inference.lane import USUAL, TilePixels, TileResult, Unfinished
from geoseg.inference.merge import Strip, blend_weight, cropped, merged
from geoseg.inference.refine import Asked, SceneRefiner, prepared, refined
from geoseg.inference.regions import DecidedRows, Voting, per_mille
from geoseg.inference.rows import PixelRows
from geoseg.inference.runners import Steps, goes_on, run_windows
from geoseg.inference.runners.area import Area, Batches
from geoseg.inference.scorer import Encoder, PixelEncoder, PixelMaker, Scorer, WindowScorer
from geoseg.inference.steps import AlsoCls, ClsBias, WindowStep
from geoseg.model.attention.trunk import Proxied, Scoring, Words
from geoseg.model.backbone import Backbone, load_backbone
from geoseg.model.checkpoint import file_digest
from geoseg.model.loading import Model
from geoseg.model.upsampling.base import Fit, Upsampler
from geoseg.model.vision import DenseFeatures
from geoseg.options import Options, Resolved
from geoseg.options.segmentation import Precision
from geoseg.runtime.threads import in_order
from geoseg.runtime.transfer import Arriving, one_behind
from geoseg.text.describe import Describe
from geoseg.text.embedding import embed_queries
from geoseg.text.queries import Queries
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.tiling.lattice import Lattice
from geoseg.tiling.tiles import Lane, Tile, TilePlan, wide_tile
from geoseg.types import (
    FloatArray,
    LabelArray,
    PixelBlock,
    Window,
    label_dtype,
)

_TILE_PIXELS = {"cpu": 2**21, "cuda": 2**23}
"""Of a tile whose size nobody chose: what is read at once, and on a GPU some full batches."""
_TILE = 2048
"""Side of a tile that is a lane of its own, if none is given."""
_ROWS_AT_A_TIME = 32
"""Rows of an image in memory that are decided at once on a CPU: they stay in the cache."""


@dataclass(frozen=True)
class Prediction:
    """Labels of one image in memory."""

    labels: LabelArray
    """``(H, W)`` class index."""
    scores: FloatArray
    """``(K, H, W)`` class scores in [0, 1]: each class's best query's probability."""


class Segmenter:
    """A model, a vocabulary and options: the pure function from pixels to labels.

    Parameters
    ----------
    model
        From `geoseg.load_model`.
    vocabulary
        Classes and their queries; anything `Vocabulary.parse` takes.
    options
        How to infer; the model's defaults and then the paper's fill what is not given.

    Raises
    ------
    OptionError, TilingError
        If an option is impossible for this model or vocabulary.
    VocabularyError
        If the vocabulary cannot be used, e.g. a query is longer than the text tower reads.
    WeightsError
        If the upsampler's weights do not fit the model.

    Examples
    --------
    >>> model = geoseg.load_model("geoseg-tiny")            # doctest: +SKIP
    >>> segmenter = Segmenter(model, "building,roof; road; water")  # doctest: +SKIP
    >>> segmenter.predict(rgb).labels                        # doctest: +SKIP
    """

    not_finite: str = (
        "a window's logits are not finite, so the model's weights, its precision or the scene's "
        "pixels are out of bounds; try --precision fp32"
    )
    """What there is to say where logits are no numbers."""
    _whose: Segmenter | None = None

    def __init__(
        self,
        model: Model,
        vocabulary: VocabularySource,
        options: Options | Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.vocabulary = Vocabulary.parse(vocabulary)
        self.given = as_made(Options, options)
        self.options: Resolved = self.given.resolve(model.defaults)
        self.device = model.device
        chosen = self.options
        if 0 < chosen.window < model.patch_size:
            raise TilingError(
                f"window {chosen.window} is smaller than the model's patch of "
                f"{model.patch_size} pixels; give at least {model.patch_size}"
            )
        self._upsampler, self.upsampler_sha256 = self._make_upsampler()
        self._backbone, self.backbone_sha256 = self._make_backbone()
        self._refuse_without_regions()
        self._views = chosen.method("views").views()
        queries = self._ask()
        self._decision = Decision.of(queries, self.vocabulary, chosen, self.device)
        self._text = torch.from_numpy(queries.vectors).to(self.device)
        shown = torch.from_numpy(queries.class_of < queries.classes).to(self.device)
        self._asked = Asked(self._text, chosen.logit_scale, chosen.cls_bias)
        self._refiners = self._make_refiners()
        self._voting = self._make_voting()
        encoder = self._make_encoder(Words(self._text, shown))
        self._scorer: WindowScorer = self._make_scorer(encoder, ClsBias(chosen.cls_bias))
        self._batches = Batches(
            self.device,
            chosen.batch_size,
            window_pixels=chosen.window**2,
            patch_pixels=encoder.step**2,
            queries=len(queries),
        )

    def _ask(self) -> Queries:
        templates = load_templates(self.options.templates)

        def embed(words: Sequence[str]) -> FloatArray:
            return embed_queries(self.model, words, templates)

        queries = Queries.of(self.vocabulary, embed)
        steps = self.options.method("vocabulary_steps")
        if any(queries.descriptions) and not any(isinstance(step, Describe) for step in steps):
            warn(
                "the descriptions of classes are not used; add --vocabulary-step describe, or take "
                "them out"
            )
        for step in steps:
            queries = step(queries, embed)
        return queries

    def _make_encoder(self, words: Words) -> PixelEncoder:
        chosen, attention = self.options, self.options.method("attention")
        return Encoder(
            self.model, attention, chosen.precision, words, chosen.cls_source, self._backbone
        )

    def _make_backbone(self) -> tuple[Backbone | None, str | None]:
        """The model that the attention names, and the SHA-256 of its weights."""
        attention, weights = self.options.method("attention"), self.options.backbone_weights
        if not isinstance(attention, Proxied):
            return None, None
        model = self.model
        made = load_backbone(
            attention.backbone, weights, mean=model.mean, std=model.std, device=self.device
        )
        return made, made.sha256

    def _refuse_without_regions(self) -> None:
        chosen = self.options
        if not self.reads_regions:
            return
        if not chosen.regions_given:
            raise OptionError(
                f"attention {chosen.attention} looks within regions of a file; give --regions FILE "
                "too, or take another"
            )
        if any(view.colours != "own" for view in chosen.method("views").views()):
            raise OptionError(
                f"views {chosen.views} change colours, and attention {chosen.attention} takes "
                "flips and turns alone; take hflip or d4"
            )

    def _make_voting(self) -> Voting | None:
        """Superpixels that vote, if that is wanted."""
        chosen = self.options
        made = chosen.method("regions")
        if made is None:
            return None
        return Voting(made, self._decision, chosen.region_rule, chosen.region_agreement)

    def _make_upsampler(self) -> tuple[Upsampler | None, str | None]:
        """The upsampler, and the SHA-256 of its checkpoint if it is a learned one."""
        chosen, model = self.options, self.model
        weights = chosen.upsampler_weights
        made = chosen.method("upsampler").build(
            Fit(model.embedding_size, model.std, self.device, weights)
        )
        return made, None if weights is None else file_digest(weights)

    def _make_scorer(self, encoder: PixelEncoder, first: WindowStep) -> WindowScorer:
        steps = (first, *self.options.method("window_steps"))
        head = Head(self._text, self._upsampler, steps, self.options.exact)
        this = weakref.ref(self)  # a circle would keep the model in memory

        def encode(images: Tensor, places: Sequence[Window]) -> DenseFeatures:
            made = this()
            assert made is not None
            return made.features(images, places)

        return Scorer(encoder, head, self._views, whole=self.whole, encode=encode)

    def _make_refiners(self) -> tuple[SceneRefiner, ...]:
        return prepared(self.options.method("refine"), self._asked)

    def refined_by(self, refine: Sequence[str]) -> Segmenter:
        """The same segmenter with other refiners of the same reach, as `Options.refine` has them.

        What refiners need of a scene is measured late where pixels are a lazy array.
        """
        made = copy.copy(self)
        made.__dict__.pop("recipe", None)
        made.options = replace(self.options, refine=tuple(refine))
        made._refiners = made._make_refiners()
        made._whose = self  # who encodes for both, see `_make_scorer`
        return made

    def __repr__(self) -> str:
        chosen = self.options
        return (
            f"{type(self).__name__}({len(self.vocabulary)} classes, {chosen.attention}, "
            f"{chosen.upsampler}, windows of {chosen.window} every {chosen.stride} pixels, "
            f"{self.precision} on {self.device})"
        )

    def _repr_html_(self) -> str:
        return f"<div>{escape(repr(self))}</div>{self.vocabulary._repr_html_()}"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self.recipe).segmenter, (self.recipe,)

    def __copy__(self) -> Segmenter:
        made = object.__new__(type(self))  # without the way to another process and back
        made.__dict__.update(self.__dict__)
        return made

    @property
    def recipe(self) -> Any:
        """What another process needs to make the same segmenter."""
        from geoseg.inference.recipe import Recipe

        return Recipe.of(self)

    # -- what it is -------------------------------------------------------------------------

    @property
    def source(self) -> dict[str, Any] | None:
        """What features are read from, where that is not the encoder; plain JSON values."""
        return None

    @property
    def whole(self) -> bool:
        """Whether an image is one window that is not padded; patches of two models are."""
        return self.options.window == 0 and not isinstance(
            self.options.method("attention"), Proxied
        )

    @property
    def decision(self) -> Decision:
        """How averaged logits become classes."""
        return self._decision

    @property
    def beside(self) -> dict[str, Any] | None:
        """The scorer that is asked beside the words, if there is one; plain JSON values."""
        return None

    @property
    def reach(self) -> int:
        """Pixels on each side by which refiners and superpixels make a tile grow."""
        voting = 0 if self._voting is None else self._voting.reach
        return voting + sum(refiner.reach for refiner in self._refiners)

    @property
    def reads_regions(self) -> bool:
        """Whether features depend on the regions of a file, too."""
        return getattr(self.options.method("attention"), "reads_regions", False)

    @property
    def reads_words(self) -> bool:
        """Whether features depend on the words, too."""
        attention = self.options.method("attention")
        return isinstance(attention, Scoring) or getattr(attention, "reads_words", False)

    @property
    def text_embeddings(self) -> FloatArray:
        """Unit vector of every query, ``(Q, D)`` float32."""
        return np.asarray(self._text.cpu().numpy())

    @property
    def precision(self) -> Precision:
        """Arithmetic of the encoder: ``fp32``, ``bf16`` or ``fp16``."""
        return self._scorer.encoder.precision

    @property
    def batch_size(self) -> int:
        """Windows encoded at once; fewer than asked for once so many did not fit the device."""
        return self._batches.size

    @property
    def encoder(self) -> PixelMaker:
        """What makes windows of pixels; of a model of words, also their features."""
        return self._scorer.encoder

    def lattice(self, height: int, width: int) -> Lattice:
        """Encoder windows of an image of this size."""
        return Lattice(height, width, self.options.window, self.options.stride)

    def plan(
        self, shape: tuple[int, int], tile: int | None = None, region: Window | None = None
    ) -> TilePlan:
        """Cut a scene of this size into tiles, with the margin that the refiners reach.

        Parameters
        ----------
        shape
            Height and width of the scene in pixels.
        tile
            Wanted side of a tile in pixels; None for `wide_tile`, where tiles can be lanes.
        region
            Pixels to map; all by default.
        """
        margin = self.reach
        lattice = self.lattice(*shape)
        alone = not goes_on(self._scorer, lattice.window, lattice.stride)
        if tile is None and not alone:
            pixels = _TILE_PIXELS[self.device.type]
            wide = wide_tile(lattice, self._batches.queries, region, margin=margin, pixels=pixels)
            return TilePlan(lattice, wide, region, margin=margin)
        tile = _TILE if tile is None else tile
        if not isinstance(tile, int | np.integer) or isinstance(tile, bool):
            raise TilingError(f"tile is {tile!r}; give its side in pixels, for example 2048")
        if margin > max(tile, *shape):
            who = "the refiners" if self._voting is None else "refiners and superpixels"
            raise TilingError(
                f"{who} reach {margin} pixels, farther than a tile of {tile}; give a larger "
                "--tile, or fewer or shorter steps"
            )
        return TilePlan(lattice, tile, region, margin=margin, alone=alone)

    # -- windows, tiles, images -------------------------------------------------------------

    def encode(self, images: Tensor) -> DenseFeatures:
        """Features of windows ``(B, 3, H, W)`` from `Encoder.normalise`, sides whole patches.

        Every window of a scene goes through here, in batches, from several threads.
        """
        encoder = self.encoder
        assert isinstance(encoder, Encoder)
        return encoder(images)

    def features(self, images: Tensor, places: Sequence[Window]) -> DenseFeatures:
        """Features of windows, which may be known by where they lie in the scene."""
        return self.encode(images)

    def window_logits(self, windows: Tensor) -> Tensor:
        """Logits ``(B, H, W, Q)`` of windows ``(B, 3, H, W)`` from `Encoder.normalise`.

        float32 cosines minus the CLS bias, before averaging, scale and softmax; any window size.
        """
        return self._scorer(windows)

    def need_less_memory(self) -> None:
        """Run one window at a time from now on."""
        self._batches.fitting = 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def send(self, block: PixelBlock) -> Tensor | None:
        """Normalised pixels of a tile on their way to a GPU; None on a CPU.

        Call it ahead of `segment_tile`, from another thread, while the GPU has other work. A CPU
        rather makes the pixels of each window when it is that window's turn.
        """
        return None if self.device.type == "cpu" else self.encoder.normalise(block)

    def segment_tile(
        self,
        block: PixelBlock,
        tile: Tile,
        *,
        rasters: Sequence[str] = USUAL,
        stop: threading.Event | None = None,
        sent: Tensor | None = None,
    ) -> TileResult:
        """Label the core of one tile by itself.

        Parameters
        ----------
        block
            Pixels of ``tile.read``; not changed.
        tile
            Which windows to run and which pixels to keep.
        rasters, stop
            As for `segment_lane`.
        sent
            What `send` made of the block, if it was called.

        Raises
        ------
        TileError, concurrent.futures.CancelledError
            As `segment_lane`.
        """
        keep = block.valid[tile.core.relative_to(tile.read).slices()]
        lane = Lane((tile,), tile.core, tile.grown)
        pixels = TilePixels(tile, block, keep, sent)
        (found,) = self.segment_lane(lane, [pixels], rasters=rasters, stop=stop)
        return found

    def segment_lane(
        self,
        lane: Lane,
        tiles: Iterable[TilePixels],
        *,
        rasters: Sequence[str] = USUAL,
        stop: threading.Event | None = None,
    ) -> Generator[TileResult, None, None]:
        """Label tiles below one another; what windows see of the next tile stays open for it.

        Parameters
        ----------
        lane
            Where they lie.
        tiles
            Their pixels, from top to bottom, taken one by one.
        rasters
            Names of what is wanted: ``labels``, ``confidence``, ``margin``, ``probabilities`` and
            ``runner_up``; what is not costs nothing.
        stop
            Set it from another thread to give the lane up between two batches.

        Yields
        ------
        TileResult
            Of each tile, in their order.

        Raises
        ------
        TileError
            If the logits are not finite.
        concurrent.futures.CancelledError
            If ``stop`` was set.
        """
        top, core = lane.grown.row, lane.grown
        classes = len(self.vocabulary.names)
        unfinished = Unfinished(lane.core.row, classes, rasters, self.not_finite)
        pixels = PixelRows(core.height)
        reach = self.reach
        looks = self._refiners or self._voting is not None

        def noted() -> Iterator[tuple[TilePixels, list[Window]]]:
            for each in tiles:
                here, windows = each.tile.read, with_data(each)
                unfinished.expect(each, len(windows))
                if looks and (seen := core.intersection(here)) is not None:
                    pixels.add(seen.row - top, _cropped(each.block, seen.relative_to(here)))
                yield each, windows

        # Whatever fails on the way from there to here: the windows' threads end.
        with closing(self._strips(core, noted(), stop)) as run:
            origin = core.row, core.col
            strips = refined(run, self._refiners, pixels, origin)
            if (vote := self._voting) is not None:
                scored = ((first, vote.scored(logits)) for first, logits in strips)
                strips = refined(scored, (vote,), pixels, origin)
            decided = (
                (first, self._decide(logits, rasters))
                for first, logits in cropped(strips, core, lane.core)
            )
            for first, arriving in one_behind(decided):
                yield from unfinished.put(first, arriving.arrays())
                pixels.forget_above(lane.core.row - top + first - reach)
        yield from unfinished.rest()

    def _strips(
        self,
        core: Window,
        tiles: Iterable[tuple[TilePixels, Sequence[Window]]],
        stop: threading.Event | None,
    ) -> Generator[Strip, None, None]:
        """Averaged logits of a core, from some tiles' windows; no row of a tile not yet taken."""
        with closing(self._steps(core, tiles, stop)) as run:
            yield from merged(run, core)

    def _steps(
        self,
        core: Window,
        tiles: Iterable[tuple[TilePixels, Sequence[Window]]],
        stop: threading.Event | None,
    ) -> Steps:
        """Parts of what some tiles' windows say of a core, in the order of rows."""
        for each, windows in tiles:
            here = each.tile.read
            if windows:
                area = self._area(each.block, windows, core.relative_to(here), each.sent)
                area = replace(area, corner=(here.row, here.col))
                with closing(run_windows(self._scorer, area, self._batches, stop=stop)) as run:
                    for row, parts in run:
                        yield row + here.row, [p.moved(here.row, here.col) for p in parts]
            yield each.tile.core.row_stop, ()

    def _decide(self, logits: Tensor, rasters: Sequence[str]) -> Arriving:
        """Whether all is finite, and what is wanted of rows."""
        decided = self._decision(logits)
        if self._voting is not None:
            decided = DecidedRows(self._decision, logits)
        small = torch.uint8 if self._decision.classes <= 256 else torch.int32
        make: dict[str, Callable[[], Tensor]] = {
            "labels": lambda: decided.labels.to(small),
            "confidence": lambda: _per_cent(decided.confidence),
            "margin": lambda: _per_cent(lead(decided.scores)),
            "probabilities": lambda: _per_cent(decided.scores),
            "runner_up": lambda: runner_up(decided.scores, decided.labels).to(small),
            "scores": lambda: _per_milles(decided),
        }
        return Arriving([decided.finite[None], *(make[name]() for name in rasters)])

    def logits(self, block: PixelBlock) -> FloatArray:
        """Averaged logits ``(Q, H, W)`` float32 of an image in memory, before scale and softmax."""
        return self._image_logits(self._scorer, block)

    def patch_and_cls_logits(
        self, block: PixelBlock, corner: tuple[int, int] = (0, 0)
    ) -> tuple[FloatArray, FloatArray]:
        """Averaged logits without CLS bias, and what one unit of it would subtract.

        Both ``(Q, H, W)`` float32, from one encoding: ``patch - λ · cls`` are the logits for λ.
        The block's first row and column in its scene are the ``corner``.
        """
        assert isinstance(self.encoder, PixelEncoder)
        both = self._image_logits(self._make_scorer(self.encoder, AlsoCls()), block, corner)
        patch, cls = np.split(both, 2)
        return patch, cls

    def known(self, windows: Sequence[Window], corner: tuple[int, int]) -> Sequence[Window]:
        """Those of some windows, counted from a corner of the scene, whose features can be had."""
        return windows

    def _image_logits(
        self, scorer: WindowScorer, block: PixelBlock, corner: tuple[int, int] = (0, 0)
    ) -> FloatArray:
        height, width = block.valid.shape
        whole = Window(0, 0, height, width)
        windows = self.known(self.lattice(height, width).touching(whole), corner)
        area = replace(self._area(block, windows, whole, self.send(block)), corner=corner)
        pixels = PixelRows(height)
        pixels.add(0, block)
        with closing(run_windows(scorer, area, self._batches, share_threads=True)) as run:
            strips = refined(merged(run, whole), self._refiners, pixels, (0, 0))
            found = [strip.cpu() for _, strip in strips]
        return np.ascontiguousarray(torch.cat(found).permute(2, 0, 1).numpy())

    def _weight(self, shape: tuple[int, int]) -> Tensor:
        return blend_weight(self.options.blend, shape, self.device)

    def _area(
        self, block: PixelBlock, windows: Sequence[Window], core: Window, sent: Tensor | None
    ) -> Area:
        weight = self._weight(windows[0].shape)
        return Area(self.encoder, block, windows, core, weight, self.options.stride, sent)

    def predict(
        self, rgb: npt.NDArray[np.uint8] | FloatArray, *, out_shape: tuple[int, int] | None = None
    ) -> Prediction:
        """Label one image in memory, as the original does.

        Parameters
        ----------
        rgb
            ``(H, W, 3)`` uint8, or float32 in [0, 1].
        out_shape
            Size ``(height, width)`` to which averaged logits are resized bilinearly before the
            softmax; the image's own by default.

        Raises
        ------
        SceneError
            If the image has another shape or other values.
        TileError
            If the logits are not finite.
        """
        if self.options.regions_given:
            raise OptionError(
                "regions of a file have their place in a scene; give the scene to "
                "geoseg.segment_to_files, or take superpixels"
            )
        block = _as_block(np.asarray(rgb))
        return self._predicted(self.logits(block), out_shape, block)

    def decide(self, logits: FloatArray, *, out_shape: tuple[int, int] | None = None) -> Prediction:
        """Turn averaged logits ``(Q, H, W)`` into labels and class scores, pixel by pixel."""
        return self._predicted(logits, out_shape)

    def _predicted(
        self,
        logits: FloatArray,
        out_shape: tuple[int, int] | None,
        block: PixelBlock | None = None,
    ) -> Prediction:
        planes = torch.from_numpy(logits).to(self.device).permute(1, 2, 0)
        if out_shape is not None and out_shape != tuple(planes.shape[:2]):
            planes = resize_logits(planes, out_shape)
        height, width = planes.shape[:2]
        classes = len(self.vocabulary.names)
        make: Callable[[Tensor], Decided] = self._decision
        if self._voting is not None and block is not None:
            planes = self._voting.of_image(planes, block.rgb, block.valid)
            make = functools.partial(DecidedRows, self._decision)
        labels = np.empty((height, width), label_dtype(classes))
        scores = np.empty((classes, height, width), np.float32)

        def decide_rows(rows: slice) -> None:
            decided = make(planes[rows])
            if not decided.finite:
                raise TileError(self.not_finite)
            labels[rows] = decided.labels.cpu().numpy()
            scores[:, rows] = decided.scores.permute(2, 0, 1).cpu().numpy()

        if self.device.type == "cpu":  # a few rows at a time stay in the cache
            step = _ROWS_AT_A_TIME
            some = [slice(first, first + step) for first in range(0, height, step)]
            for _ in in_order(decide_rows, some, most=len(some), share=False):
                pass
        else:
            decide_rows(slice(None))
        return Prediction(labels, scores)


def with_data(pixels: TilePixels) -> list[Window]:
    """A tile's windows that hold data, counted from the corner of its pixels."""
    windows = (w.relative_to(pixels.tile.read) for w in pixels.tile.windows)
    return [w for w in windows if pixels.block.valid[w.slices()].any()]


def _per_cent(share: Tensor) -> Tensor:
    return (100 * share).round().to(torch.uint8)


def _per_milles(decided: Decided) -> Tensor:
    """All scores in per mille, with a last one for the hidden background, 0 where there is none."""
    scores = per_mille(decided.all_scores).to(torch.int16)
    classes = decided.scores.shape[-1]
    return scores if scores.shape[-1] > classes else torch.nn.functional.pad(scores, (0, 1))


def _cropped(block: PixelBlock, window: Window) -> PixelBlock:
    rows, cols = window.slices()
    return PixelBlock(block.rgb[:, rows, cols], block.valid[rows, cols])


def _as_block(pixels: npt.NDArray[np.generic]) -> PixelBlock:
    """Check an image ``(H, W, 3)`` and bring it to [0, 1]."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise SceneError(f"an image is (height, width, 3), not {pixels.shape}")
    scaled = pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels
    if not (np.issubdtype(scaled.dtype, np.floating) and 0 <= scaled.min() <= scaled.max() <= 1):
        raise SceneError(
            f"the image holds {pixels.dtype} from {pixels.min()} to {pixels.max()}; give "
            "uint8, or floats from 0 to 1"
        )
    rgb = np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)
    return PixelBlock(rgb, np.ones(pixels.shape[:2], dtype=bool))
