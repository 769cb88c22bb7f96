"""Pixels in, labels out: knows nothing of files, coordinate systems or Dask."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError, SceneError, TilingError
from geoseg.inference.allocator import keep_freed_memory
from geoseg.inference.cells import CellByCell, Part
from geoseg.inference.head import BegunWindow, Decision, begin_window, resize_logits, window_logits
from geoseg.inference.options import Options, Resolved
from geoseg.inference.threads import in_order, threads_of_process
from geoseg.inference.transfer import Arriving, one_behind, to_device
from geoseg.model.attention import attention_variant
from geoseg.model.learned_jbu import LearnedJbu
from geoseg.model.loading import Model, load_model
from geoseg.model.shared_kernels import Place, SharedKernels
from geoseg.model.spec import portable
from geoseg.model.upsampling import build_upsampler
from geoseg.model.vision import DenseEncoder, DenseFeatures, padding_to_patch
from geoseg.text.embedding import embed_queries
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.tiling.lattice import Lattice
from geoseg.tiling.tiles import Tile, TilePlan
from geoseg.types import (
    FloatArray,
    LabelArray,
    PixelBlock,
    UInt8Array,
    Window,
    label_dtype,
    label_nodata,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PER_CENT_NODATA = 255
"""Value of the per-cent rasters where there is no data."""


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
        self._given = options or Options()
        self.options: Resolved = self._given.resolve(model.defaults)
        self.device = model.device
        self._dtype = _precision(self.options.precision, self.device)
        self._encoder = DenseEncoder(
            model.clip.visual,
            attention_variant(
                self.options.attention,
                naclip_std=self.options.naclip_std,
                gem_depth=self.options.gem_depth,
            ),
            residual=self.options.residual,
        )
        self._upsampler = build_upsampler(
            self.options.upsampler,
            weights=self.options.upsampler_weights,
            embedding=model.embedding_size,
            std=model.std,
            device=self.device,
        )
        if 0 < self.options.window < model.patch_size:
            raise TilingError(
                f"window {self.options.window} is smaller than the model's patch of "
                f"{model.patch_size} pixels; give at least {model.patch_size}"
            )
        embeddings = embed_queries(
            model, self.vocabulary.queries, load_templates(self.options.templates)
        )
        self._text = torch.from_numpy(embeddings).to(self.device)
        self._fitting: int | None = None
        self._decision = self._make_decision()
        self._mean = torch.tensor(model.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(model.std, device=self.device).view(3, 1, 1)

    def _make_decision(self) -> Decision:
        names = self.vocabulary.names
        options = self.options
        background = options.background if options.background is not None else names[0]
        if background not in names:
            raise OptionError(
                f"background {background!r} is not one of the classes: {', '.join(names)}"
            )
        own = [c.threshold for c in self.vocabulary.classes]
        thresholds = None
        if options.threshold is not None or any(t is not None for t in own):
            general = options.threshold or 0.0
            thresholds = torch.tensor(
                [general if t is None else t for t in own], device=self.device, dtype=torch.float32
            )
        query_classes = torch.from_numpy(self.vocabulary.query_classes).long().to(self.device)
        offsets = torch.tensor([c.offset for c in self.vocabulary.classes], device=self.device)
        return Decision(
            query_classes=query_classes,
            classes=len(names),
            logit_scale=options.logit_scale,
            thresholds=thresholds,
            background=names.index(background),
            offsets=offsets[query_classes] if offsets.any() else None,
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Weights do not travel: another process loads its own, once.
        spec, options = portable(self.model.spec), self._given.portable()
        given = (spec, self.device.type, self.vocabulary, options)
        return _segmenter_here, given

    # ---------------------------------------------------------------------------------------
    # Windows

    @property
    def text_embeddings(self) -> FloatArray:
        """Unit embedding of every query, ``(Q, D)`` float32."""
        return np.asarray(self._text.cpu().numpy())

    @property
    def precision(self) -> str:
        """Arithmetic of the encoder: ``fp32``, ``bf16`` or ``fp16``."""
        return next(name for name, dtype in _PRECISIONS.items() if dtype is self._dtype)

    @property
    def batch_size(self) -> int:
        """Windows encoded at once; fewer than asked for once so many did not fit the device."""
        wanted = self.options.batch_size or (32 if self.device.type == "cuda" else self._few)
        return wanted if self._fitting is None else min(wanted, self._fitting)

    @property
    def _few(self) -> int:
        """Windows that a core of a CPU encodes at once: each reads all of the model's weights."""
        side = self.options.window
        if not side:
            return 1
        tokens = (side // self.model.patch_size) ** 2
        fit = self._fit_side_by_side(side * side) // threads_of_process()
        return max(1, min(_TOKENS // tokens, _FEW, fit))

    def _fit_side_by_side(self, pixels: int) -> int:
        """How many windows of so many pixels may be worked on at once."""
        return _SIDE_BY_SIDE // (_COPIES * 4 * pixels * len(self._text))

    def lattice(self, height: int, width: int) -> Lattice:
        """Encoder windows of an image of this size."""
        return Lattice(height, width, self.options.window, self.options.stride)

    def normalise(self, block: PixelBlock) -> Tensor:
        """Pixels as the encoder wants them, ``(3, H, W)`` on the device; 0 where not valid."""
        pixels = (to_device(block.rgb, self.device) - self._mean) / self._std
        if not block.valid.all():
            pixels = pixels * to_device(block.valid, self.device)
        return pixels

    def send(self, block: PixelBlock) -> Tensor | None:
        """Normalised pixels of a tile on their way to a GPU; None on a CPU.

        Call it ahead of `segment_tile`, from another thread, while the GPU has other work. A CPU
        rather makes the pixels of each window when it is that window's turn.
        """
        return None if self.device.type == "cpu" else self.normalise(block)

    @torch.no_grad()
    def window_logits(self, windows: Tensor) -> Tensor:
        """Logits of windows of one size.

        Parameters
        ----------
        windows
            ``(B, 3, H, W)`` from `normalise`; any size.

        Returns
        -------
        torch.Tensor
            ``(B, H, W, Q)`` float32 cosine logits minus the CLS bias, before scale and softmax.
        """
        height, width = windows.shape[2:]
        if self.options.window == 0:
            return self._one_pass(windows)
        left, right, top, bottom = padding_to_patch(
            height, width, self.model.patch_size, self._min_grid
        )
        padded = F.pad(windows, (left, right, top, bottom))
        logits = self._encode(padded)
        return logits[:, top : top + height, left : left + width]

    @property
    def _min_grid(self) -> int:
        return 1 if self._upsampler is None else self._upsampler.min_grid

    def _one_pass(self, images: Tensor) -> Tensor:
        """Whole images without padding: pixels beyond the last whole patch are not seen."""
        height, width = images.shape[2:]
        patch = self.model.patch_size
        rows, cols = height // patch, width // patch
        if min(rows, cols) < self._min_grid:
            raise TilingError(
                f"an image of {height} x {width} pixels is too small for one pass; "
                "use sliding windows (--window 224)"
            )
        if self._upsampler is None:
            return self._encode(images)
        logits = self._encode(images[:, :, : rows * patch, : cols * patch])
        if logits.shape[1:3] == (height, width):
            return logits
        return torch.stack([resize_logits(one, (height, width)) for one in logits])

    def encode(self, images: Tensor) -> DenseFeatures:
        """Projected tokens of windows ``(B, 3, H, W)`` from `normalise`, sides whole patches."""
        with torch.autocast(
            self.device.type, self._dtype, enabled=self._dtype is not torch.float32
        ):
            return self._encoder(images)

    def _encode(self, images: Tensor) -> Tensor:
        # On a CPU one window's upsampling fits the cache and several would not.
        step = len(images) if self.device.type == "cuda" else 1
        parts = zip(_split(self.encode(images), step), torch.split(images, step), strict=True)
        return torch.cat([self._head(features, guidance) for features, guidance in parts])

    def _head(self, features: DenseFeatures, guidance: Tensor) -> Tensor:
        """Logits of the windows that some features are of."""
        return window_logits(
            features,
            self._text,
            upsampler=self._upsampler,
            guidance=guidance,
            cls_bias=self.options.cls_bias,
            exact=self.options.exact,
        )

    # ---------------------------------------------------------------------------------------
    # Tiles and images

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
        concurrent.futures.CancelledError
            If ``stop`` was set.
        """
        core = tile.core.relative_to(tile.read)
        valid = block.valid[core.slices()]
        dtype = label_dtype(len(self.vocabulary.names))
        labels = np.full(core.shape, label_nodata(dtype), dtype=dtype)
        confidence = np.full(core.shape, PER_CENT_NODATA, dtype=np.uint8)
        margin = confidence.copy()
        shares = None
        if probabilities:
            shares = np.full((len(self.vocabulary.names), *core.shape), PER_CENT_NODATA, np.uint8)
        runs = 0
        if valid.any():
            windows = [w.relative_to(tile.read) for w in tile.windows]
            windows = [w for w in windows if block.valid[w.slices()].any()]
            runs = len(windows)
            if sent is None:
                sent = self.send(block)
            strips = self._merged_rows(block, windows, core, stop, sent=sent)
            results = ((first, self._strip(logits, probabilities)) for first, logits in strips)
            for first, arriving in one_behind(results):
                index, best, lead, *each = arriving.arrays()
                rows = slice(first, first + len(index))
                keep = valid[rows]
                labels[rows][keep] = index.astype(dtype)[keep]
                confidence[rows][keep] = best[keep]
                margin[rows][keep] = lead[keep]
                if shares is not None:
                    shares[:, rows][:, keep] = each[0].transpose(2, 0, 1)[:, keep]
        return TileResult(tile.core, labels, confidence, margin, shares, runs)

    def _strip(self, logits: Tensor, probabilities: bool) -> Arriving:
        """Index, per cent and lead of the winning class, and if wanted per cent of every class."""
        scores = self._decision.scores(logits)
        index, best = self._decision.labels(scores)
        first_two = scores.topk(2, dim=-1).values
        per_cents = [best, first_two[..., 0] - first_two[..., 1]]
        if probabilities:
            per_cents.append(scores)
        return Arriving([index, *map(_per_cent, per_cents)])

    def logits(self, block: PixelBlock) -> FloatArray:
        """Averaged logits ``(Q, H, W)`` float32 of an image in memory, before scale and softmax."""
        height, width = block.valid.shape
        tile = TilePlan(self.lattice(height, width), max(height, width) + self.options.stride)[0]
        strips = self._merged_rows(
            block, tile.windows, tile.core, sent=self.send(block), share_threads=True
        )
        merged = np.empty((len(self._text), height, width), dtype=np.float32)
        for first, strip in strips:
            merged[:, first : first + len(strip)] = strip.permute(2, 0, 1).cpu().numpy()
        return merged

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
        pixels = np.asarray(rgb)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise SceneError(f"an image is (height, width, 3), not {pixels.shape}")
        scaled = pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels
        if not (
            np.issubdtype(scaled.dtype, np.floating) and 0 <= scaled.min() <= scaled.max() <= 1
        ):
            raise SceneError(
                f"the image holds {pixels.dtype} from {pixels.min()} to {pixels.max()}; give "
                "uint8, or floats from 0 to 1"
            )
        block = PixelBlock(
            np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32),
            np.ones(pixels.shape[:2], dtype=bool),
        )
        return self.decide(self.logits(block), out_shape=out_shape)

    def decide(self, logits: FloatArray, *, out_shape: tuple[int, int] | None = None) -> Prediction:
        """Turn averaged logits ``(Q, H, W)`` into labels and class scores."""
        planes = torch.from_numpy(logits).to(self.device).permute(1, 2, 0)
        if out_shape is not None and out_shape != tuple(planes.shape[:2]):
            planes = resize_logits(planes, out_shape)
        height, width = planes.shape[:2]
        labels = np.empty((height, width), label_dtype(len(self.vocabulary.names)))
        scores = np.empty((len(self.vocabulary.names), height, width), np.float32)

        def decide_rows(rows: slice) -> None:
            found = self._decision.scores(planes[rows])
            labels[rows] = self._decision.labels(found)[0].cpu().numpy()
            scores[:, rows] = found.permute(2, 0, 1).cpu().numpy()

        if self.device.type == "cpu":  # a few rows at a time stay in the cache
            some = [slice(first, first + _ROWS) for first in range(0, height, _ROWS)]
            for _ in in_order(decide_rows, some, most=len(some), share=False):
                pass
        else:
            decide_rows(slice(None))
        return Prediction(labels, scores)

    def _merged_rows(
        self,
        block: PixelBlock,
        windows: Sequence[Window],
        core: Window,
        stop: threading.Event | None = None,
        *,
        sent: Tensor | None = None,
        share_threads: bool = False,
    ) -> Iterator[tuple[int, Tensor]]:
        """Average windows over ``core``; yield finished strips ``(first row, (rows, W, Q))``.

        Windows come row by row, so rows that no later one reaches are finished and can leave:
        memory holds a few rows of windows and those side by side, not the tile's logits. Windows
        that share kernels are put together cell by cell. With ``share_threads`` a few windows have
        several threads each, and may have other last bits for it.
        """
        keep_freed_memory()
        cut = functools.partial(self._window, block, sent)
        weight = self._blend_weight(windows[0].shape)
        lattices = self._lattices(block, windows, core, weight)
        merger = _StripMerger(core, len(self._text), self.device)

        def parts(task: _Task) -> list[Part]:
            if stop is not None and stop.is_set():
                raise CancelledError
            if not lattices:
                logits = self._batch_logits(cut, task.windows) * weight[..., None]
                return [Part(w, one, weight) for w, one in zip(task.windows, logits, strict=True)]
            if task.windows:
                self._begin_batch(cut, task.windows, lattices)
            return [lattice.finish(cell) for lattice, cell in task.cells]

        tasks = _tasks(list(self._batches(windows)), lattices)
        if self.device.type == "cpu":
            most = self._fit_side_by_side(windows[0].height * windows[0].width) // self.batch_size
            done = in_order(parts, tasks, most=most, share=share_threads)
        else:  # a GPU takes one batch after another; its own queue keeps it busy
            done = (parts(task) for task in tasks)
        with closing(done):
            for task, found in zip(tasks, done, strict=True):
                yield from merger.finish_above(task.first_row)
                for part in found:
                    merger.add(part)
                if lattices:
                    for window in task.windows:
                        lattices[window].forget_before(window)
        yield from merger.finish_above(core.row_stop)

    def _batches(self, windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
        """Windows to encode at once; fewer and fewer on a CPU, if it was not said how many."""
        if self.device.type == "cpu" and self.options.batch_size is None:
            return _fewer_and_fewer(windows, self.batch_size)
        size = self.batch_size
        return (windows[first : first + size] for first in range(0, len(windows), size))

    def _batch_logits(self, cut: Callable[[Window], Tensor], batch: Sequence[Window]) -> Tensor:
        """Logits of a batch of windows; in halves, from now on, if they do not fit the device."""
        done: list[Tensor] = []
        waiting = list(batch)
        while waiting:
            part = waiting[: self.batch_size]
            try:
                pixels = torch.stack([cut(window) for window in part])
                done.append(self.window_logits(pixels))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._fitting = len(part) // 2
                log.warning(
                    "%d windows at once do not fit the device; going on with %d",
                    len(part),
                    self._fitting,
                )
            else:
                del waiting[: len(part)]
        return torch.cat(done)

    @torch.no_grad()
    def _begin_batch(
        self,
        cut: Callable[[Window], Tensor],
        batch: Sequence[Window],
        lattices: Mapping[Window, CellByCell],
    ) -> None:
        features = self.encode(torch.stack([cut(window) for window in batch]))
        for window, one in zip(batch, _split(features, 1), strict=True):
            lattices[window].begin(window, functools.partial(self._begin, one))

    def _begin(self, features: DenseFeatures, upsample: Callable[[Tensor], Tensor]) -> BegunWindow:
        assert isinstance(self._upsampler, LearnedJbu)
        return begin_window(
            features,
            self._text,
            upsampler=self._upsampler,
            upsample=upsample,
            cls_bias=self.options.cls_bias,
            exact=self.options.exact,
        )

    def _lattices(
        self, block: PixelBlock, windows: Sequence[Window], core: Window, weight: Tensor
    ) -> Mapping[Window, CellByCell]:
        """Lattice of each window; none where windows share no kernels.

        Windows moved inwards to the edge of a scene are not on the lattice of all others, but on
        lattices of their own: those of the last column, and those of the last row.

        A GPU rather takes many windows at once, and makes their kernels with them.
        """
        upsampler, patch = self._upsampler, self.model.patch_size
        window, stride = self.options.window, self.options.stride
        if self.device.type != "cpu" or not isinstance(upsampler, LearnedJbu) or window % patch:
            return {}
        if min(block.valid.shape) < window:
            return {}
        if not SharedKernels.worthwhile(upsampler, window, stride, window // patch):
            return {}
        by_origin: dict[Place, list[Window]] = defaultdict(list)
        for each in windows:
            by_origin[each.row % stride, each.col % stride].append(each)
        pixels = self.normalise(block)
        found = {}
        for origin, own in by_origin.items():
            shared = SharedKernels(
                upsampler,
                pixels,
                origin=origin,
                window=window,
                stride=stride,
                grid=window // patch,
            )
            lattice = CellByCell(shared, own, core, self._text, weight)
            found.update(dict.fromkeys(own, lattice))
        return found

    def _window(self, block: PixelBlock, sent: Tensor | None, window: Window) -> Tensor:
        """Normalised pixels of a window of a block."""
        here = window.slices()
        if sent is not None:
            return sent[(slice(None), *here)]
        return self.normalise(PixelBlock(block.rgb[(slice(None), *here)], block.valid[here]))

    def _blend_weight(self, shape: tuple[int, int]) -> Tensor:
        if self.options.blend == "uniform":
            return torch.ones(shape, device=self.device)
        rows, cols = (
            torch.sin(torch.pi * (torch.arange(n, device=self.device) + 0.5) / n) ** 2
            for n in shape
        )
        return rows[:, None] * cols


_CELLS = 4
"""Cells that are put together one after another at the end."""
_ROWS = 32
"""Rows of an image in memory that are decided at once on a CPU."""
_TOKENS, _FEW = 800, 4
"""Tokens that make a product large, and windows beyond which more gain nothing."""
_SIDE_BY_SIDE = 2**30
"""Bytes that the logits of windows side by side may take."""
_COPIES = 4
"""How many times a window's logits are in memory while they are made."""


def _split(features: DenseFeatures, size: int) -> Iterator[DenseFeatures]:
    """Features of so many windows at a time."""
    for first in range(0, len(features.cls), size):
        some = slice(first, first + size)
        yield replace(features, cls=features.cls[some], patches=features.patches[some])


_Cell = tuple[CellByCell, Place]
"""A cell of one of the lattices."""


@dataclass(frozen=True)
class _Task:
    """A batch of windows, and cells to be put together from windows before."""

    windows: Sequence[Window]
    cells: Sequence[_Cell]
    first_row: int
    """No later task adds anything above this row."""


def _tasks(
    batches: Sequence[Sequence[Window]], lattices: Mapping[Window, CellByCell]
) -> list[_Task]:
    """Order the work.

    A cell comes some batches after its last window, so that it need not wait for windows that are
    still being worked on. When batches get smaller, cells wait until all windows have begun.
    """
    if not lattices:
        return [_Task(batch, (), batch[0].row) for batch in batches]
    completed = [
        [(lattices[w], cell) for w in batch for cell in lattices[w].completed_by(w)]
        for batch in batches
    ]
    full = sum(len(batch) == len(batches[0]) for batch in batches)
    late = min(threads_of_process(), full)
    early = completed[: full - late]
    after: list[list[_Cell]] = [[]] * late + early + [[]] * (len(batches) - full)
    rest = list(itertools.chain(*completed[len(early) :]))
    work: list[tuple[Sequence[Window], Sequence[_Cell]]] = list(zip(batches, after, strict=True))
    work += [((), some) for some in _fewer_and_fewer(rest, _CELLS)]
    rows = [
        min([w.row for w in batch] + [lattice.piece(cell).row for lattice, cell in done])
        for batch, done in work
    ]
    first = list(itertools.accumulate(reversed(rows), min))[::-1]
    return [_Task(*each, row) for each, row in zip(work, first, strict=True)]


def _fewer_and_fewer(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Pieces of work for the threads: smaller towards the end, so that none waits for another."""
    first, threads = 0, threads_of_process()
    while first < len(items):
        some = min(max((len(items) - first) // (2 * threads), 1), most)
        yield items[first : first + some]
        first += some


class _StripMerger:
    """Weighted mean of window logits over a core, kept only while windows can still reach it."""

    def __init__(self, core: Window, queries: int, device: torch.device) -> None:
        self._core = core
        self._queries = queries
        self._device = device
        self._first = 0  # first core row still open
        self._sum = torch.zeros(0, core.width, queries, device=device)
        self._weight = torch.zeros(0, core.width, device=device)

    def add(self, part: Part) -> None:
        """Add what of a part lies in the core."""
        shared = part.window.intersection(self._core)
        assert shared is not None
        self._grow(shared.row_stop - self._core.row)
        source = shared.relative_to(part.window).slices()
        target = shared.relative_to(
            Window(self._core.row + self._first, self._core.col, 0, 0)
        ).slices()
        self._sum[target] += part.logits[source]
        self._weight[target] += part.weight[source]

    def _grow(self, stop: int) -> None:
        missing = stop - self._first - len(self._sum)
        if missing > 0:
            self._sum = F.pad(self._sum, (0, 0, 0, 0, 0, missing))
            self._weight = F.pad(self._weight, (0, 0, 0, missing))

    def finish_above(self, row: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the mean of the open rows above ``row`` and let them go."""
        count = min(row - self._core.row - self._first, len(self._sum))
        if count <= 0:
            return
        # Rows or corners that no window with data covers have weight 0; they are nodata.
        mean = self._sum[:count] / self._weight[:count, :, None].clamp_min(1e-12)
        yield self._first, mean
        self._first += count
        self._sum, self._weight = self._sum[count:].clone(), self._weight[count:].clone()


@functools.lru_cache(maxsize=2)
def _segmenter_here(spec: str, device: str, vocabulary: Vocabulary, options: Options) -> Segmenter:
    """Build a segmenter in this process, once for all tasks that need it."""
    if device == "cuda" and not torch.cuda.is_available():
        device = "cpu"
    return Segmenter(load_model(spec, device=device), vocabulary, options)


def _per_cent(scores: Tensor) -> Tensor:
    return (scores * 100).round().to(torch.uint8)


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise OptionError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    return _PRECISIONS[name]
