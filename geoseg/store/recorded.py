"""A store in the encoder's place: words in, the same code from the tokens on."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoseg._fields import choices
from geoseg._inputs import named_file, shown
from geoseg.errors import OptionError, SceneError, TilingError, WeightsError
from geoseg.inference.lane import USUAL, TilePixels, TileResult
from geoseg.inference.merge import Strip
from geoseg.inference.runners.area import Batches, count, go_on
from geoseg.inference.scorer import PixelEncoder, WindowScorer
from geoseg.inference.segmenter import Segmenter, with_data
from geoseg.inference.steps import WindowStep
from geoseg.model.attention.trunk import Words
from geoseg.model.checkpoint import file_digest
from geoseg.model.loading import Model, load_model, resolve_device
from geoseg.model.upsampling.base import Upsampler
from geoseg.model.vision import DenseFeatures
from geoseg.options import Options, Resolved
from geoseg.options.store import Tier
from geoseg.runtime.matmul import full_width
from geoseg.store.field import Field, Known, averages, near
from geoseg.store.layout import MISSING, StoreFile
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.tiling.lattice import Lattice
from geoseg.tiling.tiles import Lane
from geoseg.types import FloatArray, PixelBlock, Window

MARGIN = 64
"""Pixels around an area of interest whose windows are encoded too, for refiners."""
_FAST_SIDE = 512
"""Pixels of a side of what is worked out of the fast tier at once."""
_FAST_PIXELS = 256
"""Pixels of which several make a product large."""
_NUMBERS, _LEAST_ROWS = 2**21, 4
"""Logits that are worked out at once, which fit a processor's cache, and rows at least."""


@dataclass(frozen=True)
class RecordedModel(Model):
    """The model that a store was encoded with, as far as words and windows need it.

    Its text tower is loaded when a word is asked for whose direction is not in the cache.
    """

    patch: int = 0
    places: tuple[int, int] = (0, 0)
    """What `step` and `multiple` are."""
    embedding: int = 0
    _towers: list[Model] | None = None

    @classmethod
    def of(cls, store: StoreFile, device: str, given: str | Model | None = None) -> RecordedModel:
        """Take a store's model, or the one that is given in its place, if it is the same.

        Raises
        ------
        WeightsError
            If a given model has other weights.
        """
        facts = store.facts["model"]
        towers: list[Model] = []
        if given is not None:
            named = given
            if not isinstance(named, Model):
                named = load_model(named, device=device, words_only=True)
            _refuse_other_weights(store, named)
            towers.append(named)
        return cls(
            spec=towers[0].spec if towers else facts["spec"],
            clip=None,
            tokenizer=None,
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            weights=Path(facts["weights"]),
            fingerprint=facts["fingerprint"],
            weights_sha256=facts["weights_sha256"],
            defaults=facts["defaults"] | store.facts["options"],
            device=resolve_device(device),
            patch=facts["patch"],
            places=tuple(facts.get("places", (facts["patch"], facts["patch"]))),
            embedding=facts["embedding"],
            _towers=towers,
        )

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.patch

    @property
    def step(self) -> int:
        """Pixels from one patch token to the next."""
        return self.places[0]

    @property
    def multiple(self) -> int:
        """Windows are padded to whole multiples of so many pixels."""
        return self.places[1]

    @property
    def embedding_size(self) -> int:
        """Length D of the joint embedding."""
        return self.embedding

    @property
    def context_length(self) -> int:
        """Tokens the text tower reads, start and end markers included."""
        return self._words().context_length

    @property
    def projection(self) -> Callable[[Tensor], Tensor] | None:
        """From the mean raw text embedding of a word to the image's space, where they differ."""
        return self._words().projection

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``(N, context_length)`` int64."""
        return self._words().tokenize(texts)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens each text needs, markers included, before any cut."""
        return self._words().token_counts(texts)

    def encode_text(self, tokens: Tensor | str | Sequence[str]) -> Tensor:
        """Text embeddings ``(N, D)`` float32, not normalised."""
        return self._words().encode_text(tokens)

    def _words(self) -> Model:
        assert self._towers is not None
        with _loading:
            if not self._towers:
                made = load_model(self.spec, device=str(self.device), words_only=True)
                if made.fingerprint != self.fingerprint:
                    raise WeightsError(
                        f"{shown(self.spec)} has other weights here ({made.weights}) than those "
                        "the store was encoded with; give the same file with --model, or encode "
                        "the scene anew"
                    )
                self._towers.append(made)
            return self._towers[0]


_loading = threading.Lock()


def _refuse_other_weights(store: StoreFile, model: Model) -> None:
    if model.fingerprint != store.facts["model"]["fingerprint"]:
        raise WeightsError(
            f"{store.path} was encoded with {shown(store.facts['model']['spec'])}, and --model "
            f"{shown(model.spec)} has other weights; leave --model out, or encode the scene anew"
        )


class RecordedSegmenter(Segmenter):
    """The full tier: a segmenter whose features come from a store.

    Parameters
    ----------
    store
        With a full tier.
    model
        Its own.
    vocabulary
        Classes and their queries.
    options
        How to infer; what was settled when the store was encoded is the store's.

    Raises
    ------
    OptionError
        If an option says otherwise.
    """

    tier: Tier = "full"

    def __init__(
        self,
        store: StoreFile,
        model: RecordedModel,
        vocabulary: VocabularySource,
        options: Options,
    ) -> None:
        if self.tier not in store.layout.tiers:
            raise OptionError(
                f"{store.path} holds no {self.tier} tier; "
                + ("ask without --fast" if self.tier == "fast" else "ask with --fast")
                + f", or encode the scene with --tier {self.tier}"
            )
        self.store = store
        super().__init__(model, vocabulary, _settled(store, model, options, self.tier))
        kept = store.channels
        self._from_codes = None if kept is None else kept.to(self.device).rows(self._text)
        reach = self.reach
        if store.facts["area"] is not None and reach > MARGIN:
            who = "the refiners" if self._voting is None else "refiners and superpixels"
            raise OptionError(
                f"{who} reach {reach} pixels, and {store.path} holds {MARGIN} around its "
                "area; encode the whole scene, or give fewer or shorter steps"
            )

    def _make_encoder(self, words: Words) -> PixelEncoder:
        return PixelEncoder(self.model, self.options.precision)

    def _make_backbone(self) -> tuple[None, str | None]:
        return None, self.store.facts["model"].get("backbone_weights_sha256")

    @full_width()
    def features(self, images: Tensor, places: Sequence[Window]) -> DenseFeatures:
        """Features of windows, read from the store."""
        found = self.store.tokens(places)
        patch = self.model.step
        grid = images.shape[2] // patch, images.shape[3] // patch
        if grid != found.grid:
            raise TilingError(
                f"{self.store.path} holds windows of {found.grid} patches, and --upsampler "
                f"{self.options.upsampler} wants {grid}; encode the scene with it"
            )
        patches = found.patches.to(self.device)
        if self._from_codes is not None:
            patches = patches @ self._from_codes
        return replace(found, cls=found.cls.to(self.device), patches=patches)

    def known(self, windows: Sequence[Window], corner: tuple[int, int]) -> Sequence[Window]:
        """Those of some windows, counted from a corner of the scene, that the store holds."""
        lattice, tokens = self.store.layout.lattice, self.store.cls_tokens
        rows = lattice.row_starts.searchsorted([window.row + corner[0] for window in windows])
        cols = lattice.col_starts.searchsorted([window.col + corner[1] for window in windows])
        held = np.isfinite(tokens[rows, cols, 0])
        return [window for window, there in zip(windows, held, strict=True) if there]

    def segment_lane(
        self,
        lane: Lane,
        tiles: Iterable[TilePixels],
        *,
        rasters: Sequence[str] = USUAL,
        stop: threading.Event | None = None,
    ) -> Generator[TileResult, None, None]:
        """Label tiles below one another, while the store stays the one that was opened."""
        with closing(super().segment_lane(lane, tiles, rasters=rasters, stop=stop)) as found:
            for result in found:
                self.store.refuse_other()
                yield result

    def core_logits(
        self, each: TilePixels, stop: threading.Event | None = None
    ) -> npt.NDArray[np.float32]:
        """Merged logits ``(H, W, Q)`` of a tile's core; NaN where no window has data."""
        core = each.tile.core
        found: npt.NDArray[np.float32] = np.full((*core.shape, len(self._text)), np.nan, "f4")
        with closing(self._strips(core, [(each, with_data(each))], stop)) as run:
            for first, rows in run:
                found[first : first + len(rows)] = rows.cpu().numpy()
        return found

    @property
    def recipe(self) -> Any:
        """What another process needs to make the same segmenter."""
        options = Options(
            **{f.name: getattr(self.options, f.name) for f in fields(Options)}
            | {"templates": tuple(load_templates(self.options.templates))}
        )
        store = self.store
        path = str(store.path.absolute())
        return StoreRecipe(
            type(self), path, store.mark, self.device.type, self.vocabulary, options.portable()
        )

    @property
    def source(self) -> dict[str, Any]:
        """The store, and what of it is read."""
        return {
            "path": str(self.store.path),
            "tier": self.tier,
            "identity": self.store.facts["identity"],
        } | self._nearness

    @functools.cached_property
    def _nearness(self) -> dict[str, Any]:
        """How near logits are to those of exact features; nothing where they are the same."""
        error = self.store.nearness(self._text.cpu())
        if error is None:
            return {}
        bound, found = error
        told = near(bound if averages(self.options.upsampler) else None, found)
        return {"channels": self.store.layout.channels} | told


class FastSegmenter(RecordedSegmenter):
    """The fast tier: logits of words from the direction field."""

    tier: Tier = "fast"

    def __init__(
        self,
        store: StoreFile,
        model: RecordedModel,
        vocabulary: VocabularySource,
        options: Options,
    ) -> None:
        super().__init__(store, model, vocabulary, options)
        self._batches = Batches(
            self.device,
            self.options.batch_size,
            window_pixels=_FAST_SIDE**2,
            patch_pixels=_FAST_PIXELS,
            queries=len(self._text),
        )

    def _make_encoder(self, words: Words) -> PixelEncoder:
        return _NoPixels(self.model, self.options.precision)

    def _make_upsampler(self) -> tuple[Upsampler | None, str | None]:
        return None, self.store.facts["model"]["upsampler_weights_sha256"]

    def _make_scorer(self, encoder: PixelEncoder, first: WindowStep) -> WindowScorer:
        chosen = self.options
        self._field = Field(self.store, self._text, chosen.cls_bias, chosen.blend)
        return FieldScorer(encoder, self._field)

    def _strips(
        self,
        core: Window,
        tiles: Iterable[tuple[TilePixels, Sequence[Window]]],
        stop: threading.Event | None,
    ) -> Generator[Strip, None, None]:
        """Rows of the field as they are: nothing overlaps, so that nothing is to be averaged."""
        done, left, known = core.row, list[Window](), Known()
        for each, windows in tiles:
            here = each.tile.read
            left += [replace(w, row=w.row + here.row, col=w.col + here.col) for w in windows]
            left.sort(key=lambda window: (window.row, window.col))
            yield from self._rows(core, done, each.tile.core.row_stop, left, known, stop)
            done = each.tile.core.row_stop
            left = [window for window in left if window.row_stop > done]
        yield from self._rows(core, done, core.row_stop, left, known, stop)

    def _rows(
        self,
        core: Window,
        first: int,
        stop_row: int,
        windows: Sequence[Window],
        known: Known,
        stop: threading.Event | None,
    ) -> Generator[Strip, None, None]:
        """Logits of rows of a core, some at a time, where windows are."""
        classes = self._field.queries
        step = max(_LEAST_ROWS, _NUMBERS // (core.width * classes))
        for bottom, some in itertools.groupby(windows, key=lambda window: window.row_stop):
            row_of_windows = list(some)
            top, bottom = max(first, row_of_windows[0].row), min(bottom, stop_row)
            for row in range(top, bottom, step):
                go_on(stop)
                rows = min(step, bottom - row)
                strip = torch.zeros(classes, rows, core.width).permute(1, 2, 0)
                for window in row_of_windows:
                    shared = replace(window, row=row, height=rows).intersection(core)
                    assert shared is not None
                    cols = shared.relative_to(core).slices()[1]
                    self._field.fill(strip[:, cols], shared, known)
                yield row - core.row, strip
            first = max(first, bottom)
            if bottom == row_of_windows[0].row_stop:
                count(stop, row_of_windows)
            for place in [place for place in known if place[0] < first // self.store.layout.block]:
                del known[place]

    @functools.cached_property
    def _nearness(self) -> dict[str, Any]:
        return near(*self._field.error())

    def lattice(self, height: int, width: int) -> Lattice:
        """Pieces of the field; they do not overlap but at the scene's last rows and columns."""
        return Lattice(height, width, _FAST_SIDE, _FAST_SIDE)

    def _weight(self, shape: tuple[int, int]) -> Tensor:
        return torch.ones(shape, device=self.device)

    def send(self, block: PixelBlock) -> None:
        """Nothing goes anywhere."""


@dataclass(frozen=True, eq=False)
class FieldScorer:
    """Pieces of the field to logits of their pixels."""

    encoder: PixelEncoder
    field: Field

    def __call__(self, windows: Tensor, places: Sequence[Window] = ()) -> Tensor:
        """Logits ``(B, H, W, Q)`` of windows, known by where they lie."""
        return torch.stack([self.field.logits(place) for place in places])


class _NoPixels(PixelEncoder):
    """Makes nothing of pixels, of which there may be none."""

    def normalise(self, block: PixelBlock) -> Tensor:
        return torch.from_numpy(block.rgb)


SETTLED: Mapping[Tier, tuple[str, ...]] = {
    "full": ("attention", "cls_source", "window", "stride", "precision", "views"),
    "fast": (
        "attention",
        "cls_source",
        "window",
        "stride",
        "precision",
        "views",
        "upsampler",
        "upsampler_weights",
        "blend",
        "window_steps",
    ),
}
"""Options that nobody can choose any more once there is a store."""


def _settled(store: StoreFile, model: Model, options: Options, tier: Tier) -> Options:
    """Options with those of the store where nothing was given.

    Raises
    ------
    OptionError
        If what was settled with the store is given otherwise; the message names it.
    """
    # An option that came later was as it is by itself.
    known = {name: getattr(Options, name) for name in SETTLED[tier]} | store.facts["options"]
    wanted = options
    if wanted.precision == "auto":
        wanted = replace(wanted, precision=known["precision"])
    if wanted.cls_source == Options.cls_source:
        wanted = replace(wanted, cls_source=known["cls_source"])
    learned = known.get("upsampler_weights") if wanted.preset == "none" else None
    own = wanted.upsampler in (None, known["upsampler"]) and wanted.upsampler_weights is None
    if learned is not None and own:
        wanted = replace(wanted, upsampler=known["upsampler"], upsampler_weights=learned)
    found: Resolved = wanted.resolve(model.defaults)
    beside, used = wanted.backbone_weights, store.facts["model"].get("backbone_weights_sha256")
    if beside is not None and file_digest(named_file(beside, "weights file", WeightsError)) != used:
        raise OptionError(
            f"--backbone-weights {shown(beside)}: {store.path} was encoded with others; leave "
            "--backbone-weights out, or encode the scene anew"
        )
    for name in SETTLED[tier]:
        asked, settled = getattr(found, name), known[name]
        settled = tuple(settled) if isinstance(settled, list) else settled
        if asked != settled:
            flag = choices(Options)[name].flag or f"--{name.replace('_', '-')}"
            raise OptionError(
                f"{flag} {shown(asked)}: {store.path} was encoded with {shown(settled)}; leave "
                f"{flag} out, or encode the scene anew"
            )
    return wanted


@dataclass(frozen=True)
class StoreRecipe:
    """A segmenter over a store on its way to another process, which opens the store for itself."""

    kind: type[RecordedSegmenter]
    path: str
    mark: tuple[int, int]
    device: str
    vocabulary: Vocabulary
    options: Options

    def segmenter(self) -> Segmenter:
        """Make the segmenter, once in a process for all tiles that need it.

        Raises
        ------
        SceneError
            If the store is not there, or another one.
        """
        with _lock:
            return _built(self)


_lock = threading.Lock()


@functools.lru_cache(maxsize=2)
def _built(recipe: StoreRecipe) -> Segmenter:
    store = StoreFile.open(recipe.path)
    if store.mark != recipe.mark:
        raise SceneError(f"{recipe.path} was replaced while it was read; run again")
    model = RecordedModel.of(store, recipe.device)
    return recipe.kind(store, model, recipe.vocabulary, recipe.options)


@dataclass(frozen=True)
class StoredPixels:
    """Which pixels of a scene hold data, from a store; their colours are not wanted."""

    store: StoreFile
    region: Window
    """Pixels of which the store knows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Size of the scene as ``(height, width)``."""
        return self.store.layout.height, self.store.layout.width

    def read(self, window: Window) -> PixelBlock:
        """Masks of a window.

        Raises
        ------
        SceneError
            If the store has lost a part of them.
        """
        found = self.store.read("fast/valid", *window.slices())
        known = window.intersection(self.region)
        if known is not None and (found[known.relative_to(window).slices()] == MISSING).any():
            raise SceneError(f"{self.store.path}: a part of its fast tier is gone; encode anew")
        none: FloatArray = np.empty((0, *window.shape), np.float32)
        return PixelBlock(none, found == 1)

    def known_empty(self, window: Window) -> bool:
        """Nothing is known without reading."""
        return False
