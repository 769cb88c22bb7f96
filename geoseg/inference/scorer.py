"""Encoder and head together: windows in, logits of their pixels out.

What follows (averaging windows, refining, deciding) needs nothing else of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError, TilingError
from geoseg.inference.decide import resize_logits
from geoseg.inference.head import Head
from geoseg.inference.views import View, mean_of_views
from geoseg.model.attention.trunk import Attention, Proxied, Scoring, Words
from geoseg.model.backbone import Backbone
from geoseg.model.loading import Model
from geoseg.model.vision import DenseFeatures, padding_to_patch, split_features
from geoseg.options.segmentation import ClsSource, Precision
from geoseg.runtime.attention import ready_attention
from geoseg.runtime.transfer import to_device
from geoseg.types import PixelBlock, Window

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PixelMaker(Protocol):
    """Makes of pixels what a scorer wants."""

    device: torch.device
    precision: Precision

    def normalise(self, block: PixelBlock) -> Tensor:
        """``(C, H, W)`` on the device; 0 where not valid."""


class WindowScorer(Protocol):
    """Windows in, scores of their pixels out: all that averaging and deciding need."""

    @property
    def encoder(self) -> PixelMaker:
        """What makes its windows of pixels."""

    def __call__(self, windows: Tensor, places: Sequence[Window] = ()) -> Tensor:
        """Scores ``(B, H, W, Q)`` float32 of windows ``(B, C, H, W)``.

        ``places`` are where they lie in the scene, if they are a scene's.
        """


Encode = Callable[[Tensor, Sequence[Window]], DenseFeatures]
"""Windows, and where they lie in the scene if they are a scene's, to their features."""


class PixelEncoder:
    """Pixels as a model wants them; what is made of them is another's business.

    Parameters
    ----------
    model
        Of which mean, deviation, patch size and device count.
    precision
        Arithmetic of its encoder.
    """

    scores: bool = False
    """Whether features come with scores in place of cosines."""
    reads_regions: bool = False
    """Whether windows have a fourth plane, with the regions of their pixels."""

    def __init__(self, model: Model, precision: Precision) -> None:
        self.device = model.device
        self.patch = model.multiple
        """Windows are padded to whole multiples of it."""
        self.step = model.step
        """Pixels from one token to the next."""
        self.precision = precision
        self._mean = torch.tensor(model.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(model.std, device=self.device).view(3, 1, 1)

    def normalise(self, block: PixelBlock) -> Tensor:
        """Pixels as the model wants them, ``(3, H, W)`` on the device; 0 where not valid."""
        pixels = (to_device(block.rgb, self.device) - self._mean) / self._std
        if not block.valid.all():
            pixels = pixels * to_device(block.valid, self.device)
        return pixels


class Encoder(PixelEncoder):
    """Pixels to features.

    Parameters
    ----------
    model
        Loaded model.
    attention
        How tokens attend to each other.
    precision
        ``auto``, ``fp32``, ``bf16`` or ``fp16``.
    words
        The queries, for attentions that read them.
    cls_source
        As for `geoseg.model.vision.DenseEncoder`.
    backbone
        The model that the attention names, if it names one.

    Raises
    ------
    OptionError
        If the device does not have the precision.
    """

    def __init__(
        self,
        model: Model,
        attention: Attention,
        precision: Precision,
        words: Words | None = None,
        cls_source: ClsSource = "modified",
        backbone: Backbone | None = None,
    ) -> None:
        super().__init__(model, resolve_precision(precision, model.device))
        if backbone is not None and isinstance(attention, Proxied):
            self.patch = math.lcm(self.patch, backbone.patch_size)
            self.step = backbone.patch_size if attention.on_its_grid else self.step
        self._dtype = PRECISIONS[self.precision]
        self._dense = model.dense(self._dtype, attention, cls_source, backbone)
        self._words = words
        self.scores = isinstance(attention, Scoring)
        self.reads_regions = getattr(attention, "reads_regions", False)

    def __call__(self, images: Tensor) -> DenseFeatures:
        """Projected tokens of windows ``(B, 3, H, W)`` from `normalise`, sides whole patches.

        Raises
        ------
        OptionError
            If the attention reads regions, and there is no fourth plane with them.
        """
        regions = None
        if self.reads_regions:
            if images.shape[1] < 4:
                raise OptionError(
                    "the attention reads regions, which only maps to files have: geoseg segment "
                    "--regions FILE, or geoseg.segment_to_files; take another"
                )
            regions = images[:, 3].long()
        seen = colours(images).to(self._dtype)
        with torch.autocast(self.device.type, enabled=False), ready_attention(self.device):
            return self._dense(seen, self._words, regions)


def colours(windows: Tensor) -> Tensor:
    """Red, green and blue of windows, without what else they bring."""
    return windows if windows.shape[1] == 3 else windows[:, :3].contiguous()


def resolve_precision(name: Precision, device: torch.device) -> Precision:
    """Say which arithmetic ``auto`` is on a device.

    Raises
    ------
    OptionError
        If the device does not have it.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise OptionError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    return name


class Scorer:
    """Windows of one size to logits of their pixels.

    Parameters
    ----------
    encoder, head
        Its two halves; the first may be pixels alone, if somebody else encodes.
    views
        Views of every window, whose logits are averaged.
    whole
        Windows are whole images in one pass: no padding, and pixels beyond the last whole patch
        are not seen.
    encode
        Called in the encoder's place, if somebody has a say in it.
    """

    def __init__(
        self,
        encoder: PixelEncoder,
        head: Head,
        views: Sequence[View],
        *,
        whole: bool = False,
        encode: Encode | None = None,
    ) -> None:
        self.encoder, self.head, self.views = encoder, head, views
        self.encode = encode or _by_pixels(encoder)
        self._whole = whole

    @torch.no_grad()
    def __call__(self, windows: Tensor, places: Sequence[Window] = ()) -> Tensor:
        """Logits ``(B, H, W, Q)`` float32 of ``(B, 3, H, W)`` windows from `Encoder.normalise`."""
        score = self._one_pass if self._whole else self._padded
        return mean_of_views(lambda seen: score(seen, places), self.views, windows)

    def _padded(self, windows: Tensor, places: Sequence[Window]) -> Tensor:
        height, width = windows.shape[2:]
        left, right, top, bottom = padding_to_patch(
            height, width, self.encoder.patch, self.head.min_grid
        )
        logits = self._score(F.pad(windows, (left, right, top, bottom)), places)
        return logits[:, top : top + height, left : left + width]

    def _one_pass(self, images: Tensor, places: Sequence[Window]) -> Tensor:
        height, width = images.shape[2:]
        patch = self.encoder.patch
        rows, cols = height // patch, width // patch
        if min(rows, cols) < self.head.min_grid:
            raise TilingError(
                f"an image of {height} x {width} pixels is too small for one pass; "
                "use sliding windows (--window 224)"
            )
        if self.head.upsampler is None:
            return self._score(images, places)
        logits = self._score(images[:, :, : rows * patch, : cols * patch], places)
        if logits.shape[1:3] == (height, width):
            return logits
        return torch.stack([resize_logits(one, (height, width)) for one in logits])

    def _score(self, images: Tensor, places: Sequence[Window]) -> Tensor:
        # On a CPU one window's upsampling fits the cache and several would not.
        step = len(images) if self.encoder.device.type == "cuda" else 1
        features = split_features(self.encode(images, places), step)
        parts = zip(features, torch.split(colours(images), step), strict=True)
        return torch.cat([self.head(*part) for part in parts])


def _by_pixels(encoder: PixelEncoder) -> Encode:
    assert isinstance(encoder, Encoder)
    return lambda images, places: encoder(images)
