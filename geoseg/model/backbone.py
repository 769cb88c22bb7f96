"""A vision transformer beside CLIP, through timm: DINO and its kin know what lies together."""

from __future__ import annotations

import copy
import difflib
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg._inputs import named_file, shown
from geoseg.errors import OptionError, WeightsError
from geoseg.model.attention.trunk import Grid
from geoseg.model.checkpoint import StateDict, file_digest, read_state_dict
from geoseg.model.locate import cached_file, fetched
from geoseg.model.vision import resample_positions
from geoseg.runtime.libraries import same_randomness, without_root_logger, without_warnings

_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""File names that timm tries on a hub repository, in its order."""
_OFFLINE = (
    "offline, give a file of them (--backbone-weights FILE: timm's or the authors' .safetensors, "
    ".pth or .pt), or copy them into the hub cache"
)
_LEFT_OUT = ("head.", "head_dist.", "fc_norm.")
"""Tensors of a classifier's head, which nobody asks here."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A timm vision transformer on a device, which takes windows as CLIP sees them.

    Get one from `load_backbone`.
    """

    name: str
    """timm's."""
    module: Any = field(repr=False)
    """The timm module, in eval mode."""
    weights: Path
    sha256: str
    """Of the weights."""
    mean: tuple[float, ...]
    """Per-channel mean of its own normalisation, for RGB in [0, 1]."""
    std: tuple[float, ...]
    factor: Tensor = field(repr=False)
    """Windows times this plus `shift` are normalised as it wants them."""
    shift: Tensor = field(repr=False)
    _rounded: dict[torch.dtype, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.module.patch_embed.patch_size[0])

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return int(self.module.embed_dim)

    def tokens(self, images: Tensor) -> tuple[Tensor, Tensor, Grid]:
        """Outputs after the final norm.

        Parameters
        ----------
        images
            ``(B, 3, H, W)``, normalised as CLIP's; sides are cut to whole patches.

        Returns
        -------
        tuple
            Patches ``(B, N, D)``, what stands before them (CLS and registers) and the grid.
        """
        module = self._module(images.dtype)
        x, rope, grid = self._stem(module, images)
        x = module.norm(_through(module.blocks, x, rope))
        first = int(module.num_prefix_tokens)
        return x[:, first:], x[:, :first], grid

    def queries_and_keys(self, images: Tensor) -> tuple[Tensor, Tensor, Grid]:
        """Queries and keys of the last block's patches, ``(B, N, D)`` with their biases, all heads.

        Before a rotary embedding, where there is one: what a patch holds, not where it lies.
        """
        module = self._module(images.dtype)
        x, rope, grid = self._stem(module, images)
        x = _through(module.blocks[:-1], x, rope)[:, int(module.num_prefix_tokens) :]
        q, k = _queries_and_keys(module.blocks[-1].attn, module.blocks[-1].norm1(x))
        return q, k, grid

    def _module(self, dtype: torch.dtype) -> Any:
        if dtype is torch.float32:
            return self.module
        if dtype not in self._rounded:
            self._rounded[dtype] = copy.deepcopy(self.module).to(dtype)
        return self._rounded[dtype]

    def _stem(self, module: Any, images: Tensor) -> tuple[Tensor, Any, Grid]:
        """Tokens that enter the first block, their rotary embedding if there is one, the grid."""
        patch = self.patch_size
        height, width = (side // patch * patch for side in images.shape[2:])
        seen = images[:, :, :height, :width].float() * self.factor + self.shift
        x, rope = module.patch_embed(seen.to(images.dtype)), None
        grid = int(x.shape[1]), int(x.shape[2])
        if _has_plain_positions(module):
            # As DINO and DINOv2 resample them, not as timm does.
            positions = resample_positions(
                module.pos_embed[0], grid, tuple(module.patch_embed.grid_size)
            )
            cls = module.cls_token.expand(len(x), -1, -1)
            x = torch.cat([cls, x.flatten(1, 2)], dim=1) + positions
        else:
            x = module._pos_embed(x)
            if isinstance(x, tuple):
                x, rope = x
                if rope is not None and not getattr(module, "rope_mixed", False):
                    rope = [rope] * len(module.blocks)
        return module.norm_pre(x), rope, grid


def _has_plain_positions(module: Any) -> bool:
    """Whether patches and one CLS token have a table of positions, as DINO's have."""
    return (
        module.pos_embed is not None
        and module.cls_token is not None
        and getattr(module, "reg_token", None) is None
        and module.pos_embed.shape[1] == 1 + module.patch_embed.num_patches
    )


def _through(blocks: Any, x: Tensor, rope: Any) -> Tensor:
    for number, block in enumerate(blocks):
        x = block(x) if rope is None else block(x, rope=rope[number])
    return x


def _queries_and_keys(attn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    if attn.qkv is None:
        return attn.q_proj(y), attn.k_proj(y)
    bias = attn.qkv.bias
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    q, k, _ = F.linear(y, attn.qkv.weight, bias).chunk(3, dim=-1)
    return q, k


def load_backbone(
    name: str,
    weights: str | None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device,
    download: bool = True,
) -> Backbone:
    """Load a backbone.

    Parameters
    ----------
    name
        timm's, for example ``vit_base_patch8_224.dino``.
    weights
        A checkpoint file, timm's or the authors'; None takes those of the name from the hub.
    mean, std
        Of the normalisation that windows come with; None is its own.
    device
        Where it runs.
    download
        Fetch weights that are not on this machine; otherwise their absence is an error.

    Raises
    ------
    OptionError
        If timm has no such vision transformer.
    WeightsError
        If the weights are missing, cannot be downloaded or do not fit.
    """
    facts, file = backbone_facts(name), backbone_file(name, weights, download)
    checksum = file_digest(file)
    module = _loaded(name, file, checksum, device)
    own = torch.tensor(facts.std, device=device).view(3, 1, 1)
    middle = torch.tensor(facts.mean, device=device).view(3, 1, 1)
    given, centre = (
        torch.tensor(tuple(v), device=device).view(3, 1, 1)
        for v in (std or facts.std, mean or facts.mean)
    )
    return Backbone(
        name=name,
        module=module,
        weights=file,
        sha256=checksum,
        mean=tuple(facts.mean),
        std=tuple(facts.std),
        factor=given / own,
        shift=(centre - middle) / own,
    )


def backbone_facts(name: str) -> Any:
    """timm's record of a name: mean, deviation, where its weights are.

    Raises
    ------
    OptionError
        If timm does not know the name.
    """
    import timm

    architecture = name.partition(".")[0]
    try:
        if timm.is_model(architecture):
            return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError:  # an architecture that is known, with another tag
        pass
    known = [*timm.list_models("*vit*", pretrained=True), *timm.list_models("*vit*")]
    near = difflib.get_close_matches(shown(name), known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "for example vit_base_patch8_224.dino"
    raise OptionError(f"backbone '{shown(name)}' is not known to timm; {hint}")


def backbone_file(name: str, weights: str | None, download: bool) -> Path:
    """Where a backbone's weights lie, see `load_backbone`.

    Raises
    ------
    WeightsError
        If they are missing or cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    if weights is not None:
        return named_file(weights, "weights file", WeightsError)
    facts = backbone_facts(name)
    repository = facts.hf_hub_id
    if not repository:
        raise WeightsError(
            f"timm knows no weights of backbone {shown(name)}; give a file of them "
            "(--backbone-weights FILE), or a name with a tag, as in vit_base_patch8_224.dino"
        )
    names = (facts.hf_hub_filename,) if facts.hf_hub_filename else _HUB_WEIGHTS
    for each in names:
        if found := cached_file(repository, each):
            return found
    return fetched(
        f"backbone {shown(name)}",
        download,
        lambda: hf_hub_download(repository, names[0]),
        _OFFLINE,
    )


@functools.lru_cache(maxsize=2)
def _loaded(name: str, file: Path, checksum: str, device: torch.device) -> Any:
    """Make the module with a file's weights; once, for all segmenters that take it."""
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    other = OptionError(
        f"backbone {shown(name)} is no plain vision transformer; take one such as "
        "vit_base_patch8_224.dino, vit_base_patch14_reg4_dinov2.lvd142m or "
        "vit_large_patch16_dinov3.sat493m"
    )
    state = read_state_dict(file)
    with without_warnings(), without_root_logger(), same_randomness():
        try:
            module = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        except (TypeError, RuntimeError, ValueError, AssertionError) as error:
            raise other from error
        if not isinstance(module, VisionTransformer | Eva) or not len(module.blocks):
            raise other
        try:
            converted = sys.modules[type(module).__module__].checkpoint_filter_fn(state, module)
        except Exception as error:  # whatever another model's tensors make of it
            raise _unfit(file, name, f"{type(error).__name__}: {error}") from error
    _fill(module, converted, file, name)
    return module.eval().requires_grad_(False).to(device)


def _fill(module: Any, state: StateDict, file: Path, name: str) -> None:
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith(_LEFT_OUT)}
    missing, more = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if wrong:
        sizes = f"{tuple(state[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}"
        raise _unfit(file, name, f"{len(wrong)} tensors of another shape ({wrong[0]} is {sizes})")
    if missing or more:
        first = f"first {shown((missing or more)[0])}"
        raise _unfit(file, name, f"{len(missing)} tensors missing, {len(more)} unknown, {first}")
    module.load_state_dict(state)


def _unfit(file: Path, name: str, reason: str) -> WeightsError:
    return WeightsError(
        f"weights file {shown(file)} does not fit backbone {shown(name)}: {shown(reason)}; give "
        "the name that timm has for these weights"
    )
