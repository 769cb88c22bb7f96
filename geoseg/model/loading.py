"""From a model specification to a loaded CLIP with its preprocessing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from geoseg._html import table
from geoseg._inputs import shown
from geoseg.errors import MissingExtraError, ModelError, OptionError, WeightsError
from geoseg.model.attention.trunk import Attention, Words
from geoseg.model.checkpoint import StateDict, folded_text
from geoseg.model.config import CONFIG_FILE, described_weights
from geoseg.model.defaults import read_defaults
from geoseg.model.locate import Located, locate
from geoseg.model.spec import ModelSpec
from geoseg.model.vision import DenseEncoder, DenseFeatures
from geoseg.options.segmentation import ClsSource
from geoseg.runtime.libraries import same_randomness, without_root_logger, without_warnings

if TYPE_CHECKING:
    from geoseg.model.backbone import Backbone

_OPENAI_STATE_KEYS = frozenset({"input_resolution", "context_length", "vocab_size"})
_QUICK_GELU_NAMES = re.compile(
    r"quick.?gelu|openai|metaclip|dfn|farslip|lrsclip|longclip", re.IGNORECASE
)
_PLAIN_GELU_NAMES = re.compile(r"laion-?2b|datacomp|commonpool", re.IGNORECASE)
_LONG_TEXT_KEY = "positional_embedding_res"
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_WEIGHTS_TO_SPARE = 2**28
"""1 GiB: below, what does not fit is told tensor by tensor."""


Dense = Callable[[Tensor, Words | None, Tensor | None], DenseFeatures]
"""Windows, what is looked for and the regions of pixels to features."""


@dataclass(frozen=True)
class Model:
    """A loaded CLIP: image tower, text tower, tokenizer and preprocessing.

    Get one from `load_model`. It holds torch modules on one device; workers on other machines
    load their own from ``spec``.

    Attributes
    ----------
    spec, weights, weights_sha256, device
        What it was loaded from, its checkpoint file with the SHA-256 of that, and where it is.
    patch_size, embedding_size, context_length
        Pixels of a patch's side; length D of the joint embedding; tokens of a text.
    mean, std
        Of the three channels, for RGB in [0, 1].
    defaults
        Options that it prefers.
    clip, tokenizer, fingerprint
        open_clip's module (float32) and tokenizer; SHA-256 over checkpoint and architecture.
    """

    spec: str
    """The specification it was loaded from."""
    clip: Any = field(repr=False)
    """The open_clip module, in eval mode, float32."""
    tokenizer: Any = field(repr=False)
    mean: tuple[float, float, float]
    """Per-channel mean of the normalisation, for RGB in [0, 1]."""
    std: tuple[float, float, float]
    """Per-channel standard deviation of the normalisation."""
    weights: Path
    """Checkpoint file."""
    fingerprint: str
    """SHA-256 over the checkpoint file and the architecture it was loaded into."""
    weights_sha256: str
    """SHA-256 of the checkpoint file alone."""
    defaults: Mapping[str, Any]
    """Options that it prefers, see `geoseg.model.defaults.read_defaults`."""
    device: torch.device
    _rounded: dict[torch.dtype, Any] = field(default_factory=dict, init=False, repr=False)
    """Image towers that `visual` made."""

    def __repr__(self) -> str:
        return (
            f"Model({self.spec}: patches of {self.patch_size} pixels, {self.embedding_size} "
            f"numbers, on {self.device})"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("weights", self.weights.name),
            ("sha256", self.weights_sha256),
            *((name, value) for name, value in self.defaults.items()),
        ]
        return table(repr(self), (), rows)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.clip.visual.conv1.kernel_size[0])

    @property
    def step(self) -> int:
        """Pixels from one patch token to the next."""
        return self.patch_size

    @property
    def multiple(self) -> int:
        """Windows are padded to whole multiples of so many pixels."""
        return self.patch_size

    @property
    def embedding_size(self) -> int:
        """Length D of the joint embedding."""
        return int(self.clip.visual.proj.shape[1])

    @property
    def context_length(self) -> int:
        """Tokens the text tower reads, start and end markers included."""
        return int(self.tokenizer.context_length)

    def visual(self, dtype: torch.dtype) -> Any:
        """Image tower with weights in a precision; the last layer norm and projection in float32.

        Rounding them once and not in every batch, as autocast does, also spares each layer norm
        two passes over its tokens.
        """
        if dtype is torch.float32:
            return self.clip.visual
        if dtype not in self._rounded:
            tower = copy.deepcopy(self.clip.visual)
            exact = tower.ln_post, tower.proj
            tower.ln_post = tower.proj = None
            tower.to(dtype)
            tower.ln_post, tower.proj = exact
            self._rounded[dtype] = tower
        return self._rounded[dtype]

    @property
    def projection(self) -> Callable[[Tensor], Tensor] | None:
        """From the mean raw text embedding of a word to the image's space, where they differ."""
        return None

    def dense(
        self,
        dtype: torch.dtype,
        attention: Attention,
        cls_source: ClsSource,
        backbone: Backbone | None,
    ) -> Dense:
        """Windows to features, in a precision; see `geoseg.model.vision.DenseEncoder`."""
        return DenseEncoder(self.visual(dtype), attention, cls_source, backbone)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``(N, context_length)`` int64; too long texts are cut, see `token_counts`."""
        return cast(Tensor, self.tokenizer(list(texts)))

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens each text needs, markers included, before any cut."""
        if hasattr(self.tokenizer, "encode"):
            return [len(self.tokenizer.encode(text)) + 2 for text in texts]
        encoded = self.tokenizer.tokenizer(list(texts))
        return [len(ids) for ids in encoded["input_ids"]]

    @torch.no_grad()
    def encode_text(self, tokens: Tensor | str | Sequence[str]) -> Tensor:
        """Text embeddings ``(N, D)`` float32, not normalised, of token ids or of texts as they are.

        `geoseg.text.embedding.embed_queries` averages a word over prompt templates.
        """
        if not isinstance(tokens, Tensor):
            texts = [tokens] if isinstance(tokens, str) else tokens
            if (
                not isinstance(texts, Sequence)
                or not texts
                or not all(isinstance(text, str) for text in texts)
            ):
                raise OptionError("there are no texts to encode; give one, or a list of some")
            tokens = self.tokenize(texts)
        return encode_text(self.clip, tokens.to(self.device))


def resolve_device(device: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that exists here.

    Raises
    ------
    OptionError
        If it is not a device name, or not available on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = OptionError(
        f"device '{shown(device)}' is not one for geoseg; use auto, cpu, cuda or cuda:N"
    )
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise unknown from error
    if wanted.type not in ("cpu", "cuda"):
        raise unknown
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise OptionError(f"device {device!r} asked for, but no CUDA GPU is available; use cpu")
        count = torch.cuda.device_count()
        if wanted.index is not None and wanted.index >= count:
            raise OptionError(f"device {device!r} does not exist; there are {count}")
    return wanted


def load_model(
    spec: str, *, device: str = "auto", download: bool = True, words_only: bool = False
) -> Model:
    """Load a CLIP for dense inference.

    Parameters
    ----------
    spec
        ``geoseg-tiny`` (bundled), ``ARCH/PRETRAINED`` as open_clip names them,
        ``ARCH:/path/to/checkpoint``, ``hf-hub:ORG/NAME`` or ``local-dir:/path``. Several files,
        ``ARCH:A.pt+B.pt`` or ``ARCH:0.7*A.pt+0.3*B.pt``, are one model: the mean of their weights.
        ``talk2dino:FILE.json`` names the parts of a Talk2DINO.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    download
        Fetch weights that are not on this machine; otherwise their absence is an error.
    words_only
        Leave the image tower out: the model embeds texts alone.

    Returns
    -------
    Model
        On that device.

    Raises
    ------
    UnknownModelError
        If the name is not known; near names are listed.
    UnsupportedModelError
        If the architecture is not a classic CLIP ViT with a CLS token.
    WeightsError
        If weights are missing, cannot be downloaded, do not fit, or need QuickGELU while the
        architecture has plain GELU.
    """
    parsed = ModelSpec.parse(spec)
    if parsed.kind == "talk2dino":
        from geoseg.model.talk2dino import load_talk2dino

        return load_talk2dino(parsed, device=device, download=download, words_only=words_only)
    target = resolve_device(device)
    located = locate(parsed, download)
    state = located.read()
    _check_activation(located, parsed, state)
    state, context = folded_text(state, located.weights)
    clip = _build(located, parsed, state, context, words_only=words_only)
    checksum = located.checksum()
    return Model(
        spec=spec,
        clip=clip.to(target),
        tokenizer=_tokenizer(located.factory_name, context),
        mean=_triple(located.preprocess.get("mean"), _OPENAI_MEAN),
        std=_triple(located.preprocess.get("std"), _OPENAI_STD),
        weights=located.weights,
        fingerprint=located.fingerprint(checksum),
        weights_sha256=checksum,
        defaults=read_defaults(located.weights.parent),
        device=target,
    )


def encode_text(clip: Any, tokens: Tensor) -> Tensor:
    """Text embeddings ``(N, D)`` float32 of an open_clip model, not normalised.

    A causal text tower never looks past a text's end, so the batch is cut at its longest text:
    the same result for a fraction of the 77 positions.
    """
    tower = getattr(clip, "text", clip)
    mask = getattr(clip, "attn_mask", None)
    if tower is not clip or mask is None or getattr(clip, "text_pool_type", "") != "argmax":
        return cast(Tensor, clip.encode_text(tokens).float())
    length = int(tokens.argmax(-1).max()) + 1
    x = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=mask[:length, :length]))
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(-1)]
    projection = clip.text_projection
    out = projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
    return cast(Tensor, out.float())


def _check_activation(located: Located, spec: ModelSpec, state: StateDict) -> None:
    """Refuse weights trained with QuickGELU in an architecture with plain GELU, or the reverse.

    The mismatch loads without complaint and quietly ruins every feature, so where anything says
    which activation the weights want, it must agree with the config.
    """
    wanted = located.quick_gelu_weights
    if wanted is None:
        told = (known_activation(file, state) for file in located.files)
        wanted = max((each for each in told if each is not None), default=None)
    if wanted is None or wanted == bool(located.config.get("quick_gelu", False)):
        return
    if not wanted:
        way_out = f'set "quick_gelu": false in the model_cfg of its {CONFIG_FILE}'
        if plain := spec.architecture.removesuffix("-quickgelu"):
            way_out = f"use {plain}{'/' if spec.kind == 'tag' else ':'}{shown(spec.source)}"
        raise WeightsError(
            f"{shown(spec.text)}: these weights were trained with plain GELU, but the architecture "
            f"has QuickGELU, which would quietly give wrong maps; {way_out}"
        )
    if spec.architecture:
        way_out = f"write {spec.architecture}-quickgelu:{shown(spec.source)}"
    else:
        way_out = f'set "quick_gelu": true in the model_cfg of its {CONFIG_FILE}'
    raise WeightsError(
        f"{located.weights} holds weights trained with QuickGELU (OpenAI, MetaCLIP, DFN or "
        "LongCLIP type), but the architecture has plain GELU, which would quietly give wrong maps; "
        f"{way_out}"
    )


def known_activation(weights: Path, state: StateDict) -> bool | None:
    """Whether weights were trained with QuickGELU, by file name, hub folder or tensors.

    A text tower with a second table of positions is LongCLIP's, which always has it.

    Returns
    -------
    bool or None
        True for QuickGELU, False for plain GELU, None if nothing tells.
    """
    if _LONG_TEXT_KEY in state or not _OPENAI_STATE_KEYS.isdisjoint(state):
        return True
    names = [weights.name, *(p for p in weights.parts if p.startswith("models--"))]
    kinds = {True: _QUICK_GELU_NAMES, False: _PLAIN_GELU_NAMES}
    told = (quick for quick, known in kinds.items() if any(map(known.search, names)))
    return next(told, None)


_TOWER = "visual."
_NO_TOWER = {"layers": 1, "width": 64, "head_width": 64}
"""What stands in an image tower's place while a model without one is built."""


def _build(
    located: Located, spec: ModelSpec, state: StateDict, context: int | None, *, words_only: bool
) -> Any:
    import open_clip

    instead: dict[str, Any] = {}
    if words_only:
        state = {name: value for name, value in state.items() if not name.startswith(_TOWER)}
        instead["vision_cfg"] = located.config.get("vision_cfg", {}) | _NO_TOWER
    state = {name: value for name, value in state.items() if name not in _OPENAI_STATE_KEYS}
    if not words_only:
        _refuse_far_larger(located, state)
    # The random state is for weights that are replaced at once; the caller's stays as it was.
    with (
        without_warnings(),
        without_root_logger(),
        same_randomness(),
    ):
        try:
            clip = open_clip.create_model(
                located.factory_name,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=bool(located.config.get("quick_gelu", False)),
                force_context_length=context,
                **instead,
            )
        except ImportError as error:
            raise MissingExtraError(
                f"model {spec.text} needs a package that is not installed: {error}"
            ) from error
        except Exception as error:  # whatever the numbers of a config make of torch
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ModelError(
                f"open_clip cannot build {shown(spec.text)}: {shown(reason)}; check its config"
            ) from error
    if words_only:
        clip.visual = None
    _fill(clip, state, located.weights)
    clip.eval().requires_grad_(False)
    return clip


def _refuse_far_larger(located: Located, state: StateDict) -> None:
    """Refuse an architecture that would fill the memory before its weights turn out not to fit."""
    described = described_weights(located.config)
    held = sum(tensor.numel() for tensor in state.values())
    if described > 2 * held + _WEIGHTS_TO_SPARE:
        raise WeightsError(
            f"{shown(located.weights)} does not fit the architecture: it holds {held:,} numbers "
            f"and the config describes about {described:,}; check its widths and layers"
        )


def _fill(clip: Any, state: StateDict, weights: Path) -> None:
    """Load weights strictly; say what does not fit."""
    own = clip.state_dict()
    scale = state.get("logit_scale")
    if scale is not None and "logit_scale" in own and scale.numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(own["logit_scale"].shape)
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unexpected or wrong:
        parts = []
        if wrong:
            name = min(wrong)
            found, expected = tuple(state[name].shape), tuple(own[name].shape)
            parts.append(f"{len(wrong)} of another shape ({name} is {found}, expected {expected})")
        if missing:
            parts.append(f"{len(missing)} missing (first {missing[0]})")
        if unexpected:
            parts.append(f"{len(unexpected)} unknown (first {shown(unexpected[0])})")
        raise WeightsError(
            f"{shown(weights)} does not fit the architecture: tensors {', '.join(parts)}; "
            "check ARCH (ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14 …)"
        )
    clip.load_state_dict(state)


def _tokenizer(factory_name: str, context: int | None) -> Any:
    import open_clip

    try:
        with without_root_logger():
            return open_clip.get_tokenizer(factory_name, context_length=context)
    except ImportError as error:
        raise MissingExtraError(
            f"the tokenizer of {shown(factory_name)} needs a package that is not installed: "
            f"{shown(error)}"
        ) from error
    except Exception as error:  # of a config's own tokenizer, in whatever library
        raise ModelError(
            f"open_clip cannot make the tokenizer of {shown(factory_name)}: {shown(error)}"
        ) from error


def _triple(value: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if value is None:
        return default
    first, second, third = (float(v) for v in value)
    return first, second, third
