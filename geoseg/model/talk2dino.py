"""Talk2DINO: DINOv2 in the image tower's place, and CLIP's words projected into its space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg._inputs import named_file, shown
from geoseg.errors import ModelError, OptionError, WeightsError
from geoseg.model.attention.last_block import Vanilla
from geoseg.model.attention.trunk import Attention, Words
from geoseg.model.backbone import Backbone, backbone_facts, backbone_file, load_backbone
from geoseg.model.checkpoint import file_digest, read_state_dict
from geoseg.model.config import read_json
from geoseg.model.loading import Model, load_model, resolve_device
from geoseg.model.spec import ModelSpec
from geoseg.model.vision import DenseFeatures
from geoseg.options.segmentation import ClsSource

_FILE = "model file"
_KEYS = {"text": None, "image": None, "projection": None, "image_weights": ""}
_LAYERS = ("linear_layer", "linear_layer2")
_DEFAULTS: Mapping[str, Any] = {"attention": "vanilla", "cls_bias": 0.0}
"""The image tower runs as it is, and its CLS token does not speak the words' language."""


@dataclass(frozen=True)
class Projection:
    """Two layers with a tanh between them: from CLIP's text space to the image's."""

    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, file: Path) -> Projection:
        """Read the authors' file.

        Raises
        ------
        WeightsError
            If it holds something else.
        """
        state = {
            name.replace("hidden_layers.0.", f"{_LAYERS[1]}."): tensor.float()
            for name, tensor in read_state_dict(file).items()
        }
        wanted = {f"{layer}.{part}" for layer in _LAYERS for part in ("weight", "bias")}
        if state.keys() != wanted or any(state[f"{k}.weight"].ndim != 2 for k in _LAYERS):
            odd = min(state.keys() ^ wanted, default="a weight that is no matrix")
            raise WeightsError(
                f"weights file {shown(file)} is no projection of Talk2DINO, which is two layers "
                f"({', '.join(_LAYERS)}): {shown(odd)}"
            )
        first, second = ((state[f"{k}.weight"], state[f"{k}.bias"]) for k in _LAYERS)
        return cls(first, second)

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of a text, and of what becomes of it."""
        return self.first[0].shape[1], self.second[0].shape[0]

    def __call__(self, texts: Tensor) -> Tensor:
        """Project ``(N, D)`` raw text embeddings, on the CPU."""
        return F.linear(torch.tanh(F.linear(texts, *self.first)), *self.second)


@dataclass(frozen=True)
class Talk2Dino(Model):
    """Barsellotti et al., "Talking to DINO: Bridging Self-Supervised Vision Backbones with Language
    for Open-Vocabulary Segmentation", ICCV 2025.

    ``clip`` is CLIP's text tower alone. A word is the projection of the mean of its raw embeddings
    in all templates; an image's patches are the backbone's, after its final norm.
    """

    made: Projection | None = None
    backbone: Backbone | None = None
    """None where the model is for words only."""

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        assert self.backbone is not None
        return self.backbone.patch_size

    @property
    def embedding_size(self) -> int:
        """Length D of the image's space."""
        assert self.made is not None
        return self.made.sizes[1]

    @property
    def projection(self) -> Projection | None:
        """From the text tower's space to the image's."""
        return self.made

    def dense(
        self,
        dtype: torch.dtype,
        attention: Attention,
        cls_source: ClsSource,
        backbone: Backbone | None,
    ) -> BackboneEncoder:
        """Windows to features.

        Raises
        ------
        OptionError
            If an attention is given, which DINO's blocks do not know.
        """
        if attention != Vanilla():
            raise OptionError(
                f"model {shown(self.spec)} runs its image tower as it is; leave --attention, "
                "--residual and --last-blocks out"
            )
        assert self.backbone is not None
        return BackboneEncoder(self.backbone)


class BackboneEncoder:
    """Windows in, the backbone's patches out; there is no CLS token in the words' space.

    Parameters
    ----------
    backbone
        The model.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    @torch.no_grad()
    def __call__(
        self, images: Tensor, words: Words | None = None, regions: Tensor | None = None
    ) -> DenseFeatures:
        """Encode windows ``(B, 3, H, W)``."""
        patches, _, grid = self._backbone.tokens(images)
        return DenseFeatures(patches.new_zeros(patches[:, 0].shape).float(), patches.float(), grid)


def load_talk2dino(spec: ModelSpec, *, device: str, download: bool, words_only: bool) -> Talk2Dino:
    """Load the parts that a small JSON file names, see `geoseg.load_model`.

    Raises
    ------
    ModelError
        If it is no such file, or its parts do not belong together.
    """
    file = named_file(spec.source, _FILE, ModelError)
    parts = _parts(file)
    target = resolve_device(device)
    text = load_model(
        _beside(parts["text"], file), device=device, download=download, words_only=True
    )
    path = named_file(file.parent / parts["projection"], "weights file", WeightsError)
    projection = Projection.of(path)
    given = str(file.parent / parts["image_weights"]) if parts["image_weights"] else None
    facts, weights = backbone_facts(parts["image"]), backbone_file(parts["image"], given, download)
    backbone = None
    if not words_only:
        backbone = load_backbone(parts["image"], str(weights), device=target)
        _refuse_unfit(file, projection, text, backbone)
    digests = [text.fingerprint, file_digest(path), parts["image"], file_digest(weights)]
    fingerprint = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    values = {name: getattr(text, name) for name in ("clip", "tokenizer", "device")}
    return Talk2Dino(
        **values,
        spec=spec.text,
        mean=tuple(facts.mean),
        std=tuple(facts.std),
        weights=path,
        fingerprint=fingerprint,
        weights_sha256=fingerprint,
        defaults=_DEFAULTS,
        made=projection,
        backbone=backbone,
    )


def _beside(text: str, file: Path) -> str:
    """A specification whose path, if it has one, may be told from a file's folder."""
    scheme, colon, rest = text.partition(":")
    path = file.parent / rest
    return f"{scheme}:{path}" if colon and rest and path.exists() else text


def _parts(file: Path) -> dict[str, str]:
    content = read_json(file, _FILE)
    said: dict[str, Any] = {key: content.get(key, default) for key, default in _KEYS.items()}
    strange = sorted(content.keys() - _KEYS.keys())
    if strange or not all(isinstance(value, str) for value in said.values()):
        raise ModelError(
            f"{_FILE} {shown(file)}: write "
            '{"text": "ViT-B-16/openai", "image": "vit_base_patch14_reg4_dinov2.lvd142m", '
            '"projection": FILE, "image_weights": FILE}; the last one may be left out'
        )
    return said


def _refuse_unfit(file: Path, projection: Projection, text: Model, backbone: Backbone) -> None:
    found = int(text.encode_text("a").shape[-1]), backbone.width
    if found != projection.sizes:
        raise ModelError(
            f"{_FILE} {shown(file)}: the projection is from {projection.sizes[0]} numbers to "
            f"{projection.sizes[1]}, text has {found[0]} and image {found[1]}; take those that it "
            "was made for"
        )
