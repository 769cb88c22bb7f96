"""What attentions have in common: the trunk they walk, and the products they take.

An attention takes the stem's tokens through the trunk's blocks in a way of its own. Most follow

    O = out_proj( concat_heads( [ Σ_m softmax(σ S_m + Ω) ] V ) )

in the last block, with similarity terms ``S_m`` among q, k, v products (σ = head width^-1/2) and
an optional additive bias ``Ω`` over patches.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.runtime.matmul import has_full_width

if TYPE_CHECKING:
    from geoseg.model.backbone import Backbone

Block = Any
"""A residual attention block of open_clip: ln_1, attn, ls_1, ln_2, mlp, ls_2."""
Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True, eq=False)
class Words:
    """The queries, for attentions that read them."""

    vectors: Tensor
    """``(Q, D)`` float32 unit vectors."""
    shown: Tensor
    """``(Q,)`` bool: those of classes, not of the hidden background."""


@dataclass(frozen=True, eq=False)
class Context:
    """What an attention may look at besides the tokens."""

    grid: Grid
    """Of the patch tokens that come in."""
    images: Tensor
    """``(B, 3, H, W)`` normalised windows that the tokens are of."""
    words: Words | None = None
    """What is looked for; None where features are made for no words in particular."""
    backbone: Backbone | None = None
    """The model beside CLIP that the attention has named."""
    regions: Tensor | None = None
    """``(B, H, W)``: number of each pixel's region, 0 for none, where somebody gives them."""


class Attention(Protocol):
    """What the encoder needs of an attention; a frozen dataclass, a line in `ATTENTIONS`."""

    antialias_positions: ClassVar[bool]
    """Whether position embeddings are resampled with antialiasing to the exact grid."""

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Take the stem's tokens ``(B, 1+N, Dv)`` through all blocks; ``ln_post`` comes after.

        Returns
        -------
        tuple
            Tokens ``(B, 1+N', Dv)``, the CLS token first, and the grid of the others. Where the
            first one is none, a class variable ``has_cls = False`` says so: no CLS bias then.
        """


@runtime_checkable
class Scoring(Attention, Protocol):
    """An attention that says itself how well patches fit the words, in the cosines' place."""

    def score(
        self, trunk: Trunk, x: Tensor, context: Context, words: Words
    ) -> tuple[Tensor, Grid, Tensor]:
        """As `run`, and scores ``(B, N', Q)`` float32 of the patches."""


@runtime_checkable
class Proxied(Attention, Protocol):
    """An attention that looks at the windows with another model, too."""

    backbone: str
    """timm's name of it, as `geoseg.model.backbone.load_backbone` takes it."""
    on_its_grid: ClassVar[bool]
    """Whether tokens come out on the grid of that model's patches, not on CLIP's."""


@runtime_checkable
class Checking(Attention, Protocol):
    """An attention that not every model can have."""

    def check(self, trunk: Trunk, backbone: Backbone | None) -> None:
        """Refuse a model, or one beside it, that cannot have it, with an ``OptionError``."""


class Trunk:
    """The blocks of an open_clip vision transformer, and the parts that attentions use.

    Parameters
    ----------
    visual
        An open_clip ``VisionTransformer``.
    """

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self.walked: Tensor | None = None
        """Tokens after the block before the last one, once it has been taken."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Residual attention blocks, first to last."""
        blocks: Sequence[Block] = self._visual.transformer.resblocks
        return blocks

    def heads(self, block: Block, y: Tensor, wanted: str = "qkv") -> dict[str, Tensor]:
        """Those of queries ``q``, keys ``k`` and values ``v`` of normalised tokens that are wanted.

        ``(B, heads, 1+N, head width)`` each.
        """
        attn = block.attn
        layers = zip("qkv", attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
        made = {name: F.linear(y, *layer) for name, *layer in layers if name in wanted}
        shape = (attn.num_heads, -1)
        return {k: torch.unflatten(x, -1, shape).transpose(1, 2) for k, x in made.items()}

    def project(self, block: Block, per_head: Tensor) -> Tensor:
        """Concatenate heads ``(B, heads, T, head width)`` and apply the output projection."""
        out = block.attn.out_proj
        return F.linear(per_head.transpose(1, 2).flatten(2), out.weight, out.bias)

    def ordinary(self, block: Block, x: Tensor) -> Tensor:
        """One unmodified block."""
        return self.watched(block, x)[0]

    def watched(self, block: Block, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One unmodified block, and the ``q``, ``k`` and ``v`` of its heads, see `heads`."""
        q, k, v = self._qkv(block, x)
        return self._joined(block, x, attend([(q, k)], v)), {"q": q, "k": k, "v": v}

    def mapped(self, block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
        """One unmodified block, and its attention ``(B, heads, T, T)``."""
        q, k, v = self._qkv(block, x)
        weights = row_softmax(q, k, q.shape[-1] ** -0.5)
        return self._joined(block, x, weights @ v), weights

    def _qkv(self, block: Block, x: Tensor) -> tuple[Tensor, ...]:
        attn, y = block.attn, block.ln_1(x)
        batch, tokens, width = y.shape
        qkv = F.linear(y, attn.in_proj_weight, attn.in_proj_bias)
        qkv = qkv.view(batch, tokens, 3, attn.num_heads, width // attn.num_heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def _joined(self, block: Block, x: Tensor, per_head: Tensor) -> Tensor:
        """What a block makes of its heads."""
        x = self.ffn(block, x + block.ls_1(self.project(block, per_head)))
        if block is self.blocks[max(len(self.blocks) - 2, 0)]:
            self.walked = x
        return x

    def plain_cls(self, x: Tensor) -> Tensor:
        """CLS token ``(B, 1, Dv)`` of the unmodified last block, of what comes into it."""
        block = self.blocks[-1]
        y = block.ln_1(x)
        qkv = self.heads(block, y, "kv")
        query = self.heads(block, y[:, :1], "q")["q"]
        out = self.project(block, attend([(query, qkv["k"])], qkv["v"]))
        return self.ffn(block, x[:, :1] + block.ls_1(out))

    def ffn(self, block: Block, x: Tensor) -> Tensor:
        """The second half of a block: its MLP, added."""
        result: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return result

    def embed(self, x: Tensor) -> Tensor:
        """``ln_post`` and the projection: tokens in the joint space, float32, not normalised."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(self._visual.ln_post(x.float()), self._visual.proj.float().T)


def attend(
    pairs: Sequence[tuple[Tensor, Tensor]], value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Sum of the row softmaxes of ``σ left rightᵀ + bias`` over pairs, times ``value``.

    All are ``(B, heads, T, head width)`` but for the bias, ``(T, T)``, ``(B, T, T)`` or None; σ is
    the head width to the power -1/2.
    """
    if not has_full_width(value):
        # Attention is linear in its weights, so the sum of softmaxes is a sum of fused calls.
        if bias is not None:
            bias = (bias if bias.ndim == 2 else bias[:, None]).to(value.dtype)
        return _total(F.scaled_dot_product_attention(a, b, value, bias) for a, b in pairs)
    scale, tokens = value.shape[-1] ** -0.5, value.shape[2]
    pairs = [(a * scale, b.contiguous()) for a, b in pairs]
    value = value.contiguous()
    out = value.new_empty(*pairs[0][0].shape[:3], value.shape[-1])
    for item in range(len(value)):
        here = [(a[item], b[item]) for a, b in pairs]
        added = bias if bias is None or bias.ndim == 2 else bias[item]
        if tokens < _TOKENS_OF_LONG_ATTENTION:
            # Weights of few tokens are one product for all heads.
            torch.bmm(_weights(here, added), value[item], out=out[item])
            continue
        for head, row in itertools.product(
            range(value.shape[1]), range(0, out.shape[2], _ROWS_AT_A_TIME)
        ):
            rows = slice(row, row + _ROWS_AT_A_TIME)
            some = [(a[head, rows], b[head]) for a, b in here]
            weights = _weights(some, None if added is None else added[rows])
            torch.mm(weights, value[item, head], out=out[item, head, rows])
    return out


def _weights(pairs: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None) -> Tensor:
    """Sum of row softmaxes of ``left rightᵀ + bias``."""
    scores = (a @ b.mT for a, b in pairs)
    if bias is not None:
        scores = (s.add_(bias) for s in scores)
    # In place, which a softmax may be: it reads a value before it writes it.
    return functools.reduce(Tensor.add_, (torch.softmax(s, -1, out=s) for s in scores))


_ROWS_AT_A_TIME = 400
"""Rows of attention weights at a time: they stay in the cache."""
_TOKENS_OF_LONG_ATTENTION = 1024
"""Tokens from which on the weights of all heads at once would be slower than rows of one."""


def row_softmax(left: Tensor, right: Tensor, scale: float | Tensor) -> Tensor:
    """Row softmax of ``scale · left rightᵀ`` in float32, returned in the input's dtype."""
    similarity = (left @ right.transpose(-1, -2)).float() * scale
    return similarity.softmax(-1).to(left.dtype)


def _total(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)
