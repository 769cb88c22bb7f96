"""How tokens attend to each other in the last block: one parametrisation, a preset each.

Every variant of the CLIP-only family is

    O = out_proj( concat_heads( [ Σ_m softmax(σ S_m + Ω) ] V ) )

with similarity terms ``S_m`` among q, k, v products (σ = head width^-1/2), an optional additive
Gaussian ``Ω`` over patch distance, and, where the residual is kept, the block's FFN after it. GEM
runs a second stream beside the last blocks instead. A new variant is one entry of `VARIANTS`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.model.products import has_full_width

Block = Any
"""A residual attention block of open_clip: ln_1, attn, ls_1, ln_2, mlp, ls_2."""


class AttentionVariant(Protocol):
    """What the dense encoder needs of a variant."""

    @property
    def antialias_positions(self) -> bool:
        """Whether position embeddings are resampled with antialiasing to the exact grid."""

    def run(
        self, blocks: Sequence[Block], x: Tensor, grid: tuple[int, int], residual: bool
    ) -> Tensor:
        """Take the stem's tokens ``(B, 1+N, Dv)`` through all blocks; ``ln_post`` comes after."""


def heads(block: Block, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of normalised tokens, ``(B, heads, 1+N, head width)`` each."""
    attn = block.attn
    batch, tokens, width = y.shape
    qkv = F.linear(y, attn.in_proj_weight, attn.in_proj_bias)
    qkv = qkv.view(batch, tokens, 3, attn.num_heads, width // attn.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def project(block: Block, per_head: Tensor) -> Tensor:
    """Concatenate heads ``(B, heads, T, head width)`` and apply the block's output projection."""
    out = block.attn.out_proj
    return F.linear(per_head.transpose(1, 2).flatten(2), out.weight, out.bias)


def ordinary_block(block: Block, x: Tensor) -> Tensor:
    """One unmodified block."""
    q, k, v = heads(block, block.ln_1(x))
    x = x + block.ls_1(project(block, attend([(q, k)], v)))
    result: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return result


def attend(
    pairs: Sequence[tuple[Tensor, Tensor]], value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Sum of the row softmaxes of ``σ left rightᵀ + bias`` over pairs, times ``value``.

    All are ``(B, heads, T, head width)`` but for the bias, ``(T, T)`` or None; σ is the head width
    to the power -1/2.
    """
    if not has_full_width(value):
        # Attention is linear in its weights, so the sum of softmaxes is a sum of fused calls.
        bias = None if bias is None else bias.to(value.dtype)
        return _total(F.scaled_dot_product_attention(a, b, value, bias) for a, b in pairs)
    scale, tokens = value.shape[-1] ** -0.5, value.shape[2]
    pairs = [(a * scale, b.contiguous()) for a, b in pairs]
    out, value = torch.empty_like(value, memory_format=torch.contiguous_format), value.contiguous()
    for item in range(len(value)):
        here = [(a[item], b[item]) for a, b in pairs]
        if tokens < _MANY:
            # Weights of few tokens are one product for all heads.
            torch.bmm(_weights(here, bias), value[item], out=out[item])
            continue
        for head, row in itertools.product(range(value.shape[1]), range(0, tokens, _ROWS)):
            rows = slice(row, row + _ROWS)
            some = [(a[head, rows], b[head]) for a, b in here]
            weights = _weights(some, None if bias is None else bias[rows])
            torch.mm(weights, value[item, head], out=out[item, head, rows])
    return out


def _weights(pairs: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None) -> Tensor:
    """Sum of row softmaxes of ``left rightᵀ + bias``."""
    scores = (a @ b.mT for a, b in pairs)
    if bias is not None:
        scores = (s.add_(bias) for s in scores)
    # In place, which a softmax may be: it reads a value before it writes it.
    return functools.reduce(Tensor.add_, (torch.softmax(s, -1, out=s) for s in scores))


_ROWS = 400
"""Rows of attention weights at a time: they stay in the cache."""
_MANY = 1024
"""Tokens from which on the weights of all heads at once would be slower than rows of one."""


def _row_softmax(left: Tensor, right: Tensor, scale: float | Tensor) -> Tensor:
    """Row softmax of ``scale · left rightᵀ`` in float32, returned in the input's dtype."""
    similarity = (left @ right.transpose(-1, -2)).float() * scale
    return similarity.softmax(-1).to(left.dtype)


def _total(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)


@functools.lru_cache(maxsize=1)
def gaussian_bias(grid: tuple[int, int], std: float, device: torch.device) -> Tensor:
    """NACLIP's neighbourhood term ``(1+N, 1+N)``: ``exp(-d² / 2 std²)`` between patches.

    ``d`` is the distance in patches; the CLS row and column are 0.
    """
    height, width = grid
    rows = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
    cols = torch.arange(width, device=device, dtype=torch.float32).repeat(height)
    squared = (rows[:, None] - rows) ** 2 + (cols[:, None] - cols) ** 2
    return F.pad(torch.exp(-squared / (2 * std**2)), (1, 0, 1, 0))


@dataclass(frozen=True)
class LastBlockAttention:
    """A variant that changes only the last block."""

    terms: tuple[tuple[str, str], ...]
    """Similarity terms, e.g. ``("q", "q"), ("k", "k")``; their softmaxes are summed, not averaged.
    Without any, each token sees only itself."""
    gaussian_std: float | None = None
    """Width of the Gaussian over patch distance, in patches; None for none."""

    antialias_positions = False

    def run(
        self, blocks: Sequence[Block], x: Tensor, grid: tuple[int, int], residual: bool
    ) -> Tensor:
        """Ordinary blocks, then the modified last one (its ordinary half is never computed)."""
        for block in blocks[:-1]:
            x = ordinary_block(block, x)
        last = blocks[-1]
        out = project(last, self._attend(self._heads(last, last.ln_1(x)), grid))
        if not residual:
            return out
        out = x + last.ls_1(out)
        result: Tensor = out + last.ls_2(last.mlp(last.ln_2(out)))
        return result

    def _heads(self, block: Block, y: Tensor) -> dict[str, Tensor]:
        """Those of queries ``q``, keys ``k`` and values ``v`` that the terms and the sum take."""
        attn = block.attn
        taken = {"v"}.union(*self.terms)
        layers = zip("qkv", attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
        made = {name: F.linear(y, *layer) for name, *layer in layers if name in taken}
        shape = (attn.num_heads, -1)
        return {k: torch.unflatten(x, -1, shape).transpose(1, 2) for k, x in made.items()}

    def _attend(self, qkv: dict[str, Tensor], grid: tuple[int, int]) -> Tensor:
        value = qkv["v"]
        if not self.terms:
            return value
        std = self.gaussian_std
        bias = None if std is None else gaussian_bias(grid, std, value.device)
        return attend([(qkv[a], qkv[b]) for a, b in self.terms], value, bias)


@dataclass(frozen=True)
class GemAttention:
    """GEM's parallel stream over the last ``depth - 1`` blocks.

    Bousselham et al., "Grounding Everything: Emerging Localization Properties in Vision-Language
    Transformers", CVPR 2024.
    """

    depth: int = 7

    antialias_positions = True

    def run(
        self, blocks: Sequence[Block], x: Tensor, grid: tuple[int, int], residual: bool
    ) -> Tensor:
        """Return the GEM stream: each block's output alone, or accumulated with ``residual``."""
        first = max(len(blocks) - (self.depth - 1), 0)
        for block in blocks[:first]:
            x = ordinary_block(block, x)
        stream = x
        for i, block in enumerate(blocks[first:], start=first + 1):
            out = self._ensemble(block, block.ln_1(x))
            stream = stream + out if residual else out
            if i < len(blocks):
                x = ordinary_block(block, x)
        return stream

    @staticmethod
    def _ensemble(block: Block, y: Tensor) -> Tensor:
        q, k, v = heads(block, y)
        head_width = v.shape[-1]
        norms = y.float().norm(dim=-1).mean(-1)
        temperature = (norms * head_width**-0.5)[:, None, None, None]
        total = torch.zeros_like(v)
        for u in (v, k, q):
            unit = F.normalize(u, dim=-1)
            unit = F.normalize(_row_softmax(unit, unit, temperature) @ unit, dim=-1)
            total = total + _row_softmax(unit, unit, temperature) @ v
        return project(block, total / 3)


_QQ, _KK, _VV, _QK = ("q", "q"), ("k", "k"), ("v", "v"), ("q", "k")

VARIANTS: dict[str, AttentionVariant] = {
    "vanilla": LastBlockAttention((_QK,)),
    "maskclip": LastBlockAttention(()),
    "sclip": LastBlockAttention((_QQ, _KK)),
    "clearclip": LastBlockAttention((_QQ,)),
    "segearth": LastBlockAttention((_QQ, _KK, _VV)),
    "naclip": LastBlockAttention((_KK,), gaussian_std=5.0),
    "gem": GemAttention(),
}
"""The presets. MaskCLIP: Zhou et al. 2022. SCLIP: Wang et al. 2024. ClearCLIP: Lan et al. 2024.
SegEarth-OV: Li et al. 2025. NACLIP: Hajimiri et al. 2025. GEM: Bousselham et al. 2024."""


def attention_variant(
    name: str, *, naclip_std: float | None = None, gem_depth: int | None = None
) -> AttentionVariant:
    """Look up a preset, with its one parameter changed where given.

    Parameters
    ----------
    name
        A key of `VARIANTS`.
    naclip_std
        Width of NACLIP's Gaussian in patches (5 in the paper).
    gem_depth
        GEM's depth: the parallel stream runs over the last ``gem_depth - 1`` blocks (7 in the
        paper).

    Raises
    ------
    OptionError
        If the name is unknown or a parameter is out of range.
    """
    variant = VARIANTS.get(name)
    if variant is None:
        raise OptionError(f"attention {name!r} is not known; choose from {', '.join(VARIANTS)}")
    if naclip_std is not None and name == "naclip":
        if naclip_std <= 0:
            raise OptionError(f"naclip's Gaussian width is {naclip_std}; give patches above 0")
        return LastBlockAttention((_KK,), gaussian_std=naclip_std)
    if gem_depth is not None and isinstance(variant, GemAttention):
        if gem_depth < 2:
            raise OptionError(f"gem's depth is {gem_depth}; give 2 or more")
        return replace(variant, depth=gem_depth)
    return variant
