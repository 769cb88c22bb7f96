"""Pixels in, labels out: knows nothing of files, coordinate systems or Dask."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoseg.errors import SceneError, TileError, TilingError
from geoseg.inference.decide import Decision, lead, resize_logits
from geoseg.inference.head import Head
from geoseg.inference.merge import Strip, blend_weight, cropped, merged
from geoseg.inference.refine import refined
from geoseg.inference.runners import run_windows
from geoseg.inference.runners.area import Area, Batches
from geoseg.inference.scorer import Encoder, PixelMaker, Scorer, WindowScorer
from geoseg.inference.steps import AlsoCls, ClsBias, WindowStep
from geoseg.model.checkpoint import file_digest
from geoseg.model.loading import Model
from geoseg.model.upsampling.base import Fit
from geoseg.options import Options, Precision, Resolved
from geoseg.runtime.threads import in_order
from geoseg.runtime.transfer import Arriving, one_behind
from geoseg.text.embedding import embed_queries
from geoseg.text.queries import Queries
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.tiling.lattice import Lattice
from geoseg.tiling.tiles import Tile, TilePlan
from geoseg.types import (
    PER_CENT_NODATA,
    BoolArray,
    FloatArray,
    LabelArray,
    PixelBlock,
    UInt8Array,
    Window,
    label_dtype,
    label_nodata,
)

_ROWS_AT_A_TIME = 32
"""Rows of an image in memory that are decided at once on a CPU: they stay in the cache."""


@dataclass(frozen=True)
class TileResult:
    """What a tile sends back: small blocks of its core."""

    core: Window
    labels: LabelArray
    """``(H, W)`` class index; the dtype's largest value where there is no data."""
    confidence: UInt8Array
    """``(H, W)`` per cent of the winning class's probability, 255 for nodata."""
    margin: UInt8Array
    """``(H, W)`` per cent by which the winner is ahead of the second class, 255 for nodata."""
    probabilities: UInt8Array | None
    """``(K, H, W)`` per cent, 255 for nodata; only on request."""
    windows: int
    """How many windows were encoded."""

    @classmethod
    def empty(cls, core: Window, classes: int, *, probabilities: bool) -> TileResult:
        """Nodata everywhere."""
        dtype = label_dtype(classes)
        return cls(
            core,
            np.full(core.shape, label_nodata(dtype), dtype=dtype),
            np.full(core.shape, PER_CENT_NODATA, dtype=np.uint8),
            np.full(core.shape, PER_CENT_NODATA, dtype=np.uint8),
            np.full((classes, *core.shape), PER_CENT_NODATA, np.uint8) if probabilities else None,
            windows=0,
        )


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

    def __init__(
        self, model: Model, vocabulary: VocabularySource, options: Options | None = None
    ) -> None:
        self.model = model
        self.vocabulary = Vocabulary.parse(vocabulary)
        self.given = options or Options()
        self.options: Resolved = self.given.resolve(model.defaults)
        self.device = model.device
        chosen = self.options
        if 0 < chosen.window < model.patch_size:
            raise TilingError(
                f"window {chosen.window} is smaller than the model's patch of "
                f"{model.patch_size} pixels; give at least {model.patch_size}"
            )
        encoder = Encoder(model, chosen.method("attention"), chosen.precision)
        fit = Fit(model.embedding_size, model.std, self.device, chosen.upsampler_weights)
        self._upsampler = chosen.method("upsampler").build(fit)
        weights = chosen.upsampler_weights
        self.upsampler_sha256 = None if weights is None else file_digest(weights)
        """SHA-256 of a learned upsampler's checkpoint."""
        self._views = chosen.method("views").views()
        self._refiners = chosen.method("refine")
        queries = self._ask()
        self._decision = Decision.of(queries, self.vocabulary, chosen, self.device)
        self._text = torch.from_numpy(queries.vectors).to(self.device)
        self._scorer: WindowScorer = self._make_scorer(encoder, ClsBias(chosen.cls_bias))
        self._batches = Batches(
            self.device,
            chosen.batch_size,
            window_pixels=chosen.window**2,
            patch_pixels=model.patch_size**2,
            queries=len(queries),
        )

    def _ask(self) -> Queries:
        templates = load_templates(self.options.templates)

        def embed(words: Sequence[str]) -> FloatArray:
            return embed_queries(self.model, words, templates)

        queries = Queries.of(self.vocabulary, embed)
        for step in self.options.method("vocabulary_steps"):
            queries = step(queries, embed)
        return queries

    def _make_scorer(self, encoder: Encoder, first: WindowStep) -> Scorer:
        steps = (first, *self.options.method("window_steps"))
        head = Head(self._text, self._upsampler, steps, self.options.exact)
        return Scorer(encoder, head, self._views, whole=self.options.window == 0)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self.recipe).segmenter, (self.recipe,)

    @property
    def recipe(self) -> Any:
        """What another process needs to make the same segmenter."""
        from geoseg.inference.recipe import Recipe

        return Recipe.of(self)

    # -- what it is -------------------------------------------------------------------------

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

    def plan(self, shape: tuple[int, int], tile: int, region: Window | None = None) -> TilePlan:
        """Cut a scene of this size into tiles, with the margin that the refiners reach."""
        margin = sum(refiner.reach for refiner in self._refiners)
        if margin > max(tile, *shape):
            raise TilingError(
                f"the refiners reach {margin} pixels, farther than a tile of {tile}; give a larger "
                "--tile, or fewer or shorter steps"
            )
        return TilePlan(self.lattice(*shape), tile, region, margin=margin)

    # -- windows, tiles, images -------------------------------------------------------------

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
        probabilities: bool = False,
        stop: threading.Event | None = None,
        sent: Tensor | None = None,
    ) -> TileResult:
        """Label the core of one tile.

        Parameters
        ----------
        block
            Pixels of ``tile.read``; not changed.
        tile
            Which windows to run and which pixels to keep.
        probabilities
            Also return per-cent probabilities of every class.
        stop
            Set it from another thread to give the tile up between two batches.
        sent
            What `send` made of the block, if it was called.

        Raises
        ------
        TileError
            If the logits are not finite.
        concurrent.futures.CancelledError
            If ``stop`` was set.
        """
        core, grown = (window.relative_to(tile.read) for window in (tile.core, tile.grown))
        valid = block.valid[core.slices()]
        classes = len(self.vocabulary.names)
        empty = TileResult.empty(tile.core, classes, probabilities=probabilities)
        windows = [w.relative_to(tile.read) for w in tile.windows]
        windows = [w for w in windows if block.valid[w.slices()].any()]
        if not valid.any():
            return empty
        sent = self.send(block) if sent is None else sent
        strips = self._strips(self._scorer, block, windows, grown, sent=sent, stop=stop)
        decided = (
            (first, self._decide(logits, probabilities))
            for first, logits in cropped(strips, grown, core)
        )
        with closing(decided):
            for first, arriving in one_behind(decided):
                self._keep(empty, valid, first, arriving)
        return replace(empty, windows=len(windows))

    @staticmethod
    def _keep(into: TileResult, valid: BoolArray, first: int, arriving: Arriving) -> None:
        """Put the decided rows from ``first`` on into a tile's blocks, where there is data."""
        index, finite, *per_cents = arriving.arrays()
        if not finite.all():
            raise TileError(
                "a window's logits are not finite, so the model's weights, its precision or the "
                "scene's pixels are out of bounds; try --precision fp32"
            )
        rows = slice(first, first + len(index))
        keep = valid[rows]
        np.copyto(into.labels[rows], index, where=keep, casting="unsafe")
        np.copyto(into.confidence[rows], per_cents[0], where=keep)
        np.copyto(into.margin[rows], per_cents[1], where=keep)
        if into.probabilities is not None:
            np.copyto(into.probabilities[:, rows], per_cents[2].transpose(2, 0, 1), where=keep)

    def _decide(self, logits: Tensor, probabilities: bool) -> Arriving:
        """Index, per cent and lead of the winning class, and if wanted per cent of every class."""
        scores = self._decision.scores(logits)
        index, best = self._decision.labels(scores)
        scores = scores[..., : self._decision.classes]
        per_cents = [best, lead(scores)]
        if probabilities:
            per_cents.append(scores)
        finite = best.isfinite().all()[None]
        index = index.to(torch.uint8 if self._decision.classes <= 256 else torch.int32)
        return Arriving(
            [index, finite, *((100 * share).round().to(torch.uint8) for share in per_cents)]
        )

    def logits(self, block: PixelBlock) -> FloatArray:
        """Averaged logits ``(Q, H, W)`` float32 of an image in memory, before scale and softmax."""
        return self._image_logits(self._scorer, block)

    def patch_and_cls_logits(self, block: PixelBlock) -> tuple[FloatArray, FloatArray]:
        """Averaged logits without CLS bias, and what one unit of it would subtract.

        Both ``(Q, H, W)`` float32, from one encoding: ``patch - λ · cls`` are the logits for λ.
        """
        assert isinstance(self.encoder, Encoder)
        both = self._image_logits(self._make_scorer(self.encoder, AlsoCls()), block)
        patch, cls = np.split(both, 2)
        return patch, cls

    def _image_logits(self, scorer: WindowScorer, block: PixelBlock) -> FloatArray:
        height, width = block.valid.shape
        whole = Window(0, 0, height, width)
        windows = self.lattice(height, width).touching(whole)
        strips = self._strips(
            scorer, block, windows, whole, sent=self.send(block), share_threads=True
        )
        found = [strip.cpu() for _, strip in strips]
        return np.ascontiguousarray(torch.cat(found).permute(2, 0, 1).numpy())

    def _strips(
        self,
        scorer: WindowScorer,
        block: PixelBlock,
        windows: Sequence[Window],
        core: Window,
        *,
        sent: Tensor | None = None,
        stop: threading.Event | None = None,
        share_threads: bool = False,
    ) -> Iterator[Strip]:
        """Logits of a core: windows run, averaged, refined."""
        weight = blend_weight(self.options.blend, windows[0].shape, self.device)
        stride = self.options.stride
        area = Area(self.encoder, block, windows, core, weight, stride, sent)
        steps = run_windows(scorer, area, self._batches, stop=stop, share_threads=share_threads)
        pixels = PixelBlock(block.rgb[:, *core.slices()], block.valid[core.slices()])
        return refined(merged(steps, core), self._refiners, pixels)

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
        """
        return self.decide(self.logits(_as_block(np.asarray(rgb))), out_shape=out_shape)

    def decide(self, logits: FloatArray, *, out_shape: tuple[int, int] | None = None) -> Prediction:
        """Turn averaged logits ``(Q, H, W)`` into labels and class scores."""
        planes = torch.from_numpy(logits).to(self.device).permute(1, 2, 0)
        if out_shape is not None and out_shape != tuple(planes.shape[:2]):
            planes = resize_logits(planes, out_shape)
        height, width = planes.shape[:2]
        classes = len(self.vocabulary.names)
        labels = np.empty((height, width), label_dtype(classes))
        scores = np.empty((classes, height, width), np.float32)

        def decide_rows(rows: slice) -> None:
            found = self._decision.scores(planes[rows])
            labels[rows] = self._decision.labels(found)[0].cpu().numpy()
            scores[:, rows] = found[..., :classes].permute(2, 0, 1).cpu().numpy()

        if self.device.type == "cpu":  # a few rows at a time stay in the cache
            step = _ROWS_AT_A_TIME
            some = [slice(first, first + step) for first in range(0, height, step)]
            for _ in in_order(decide_rows, some, most=len(some), share=False):
                pass
        else:
            decide_rows(slice(None))
        return Prediction(labels, scores)


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
