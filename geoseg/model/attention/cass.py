"""CASS: graphs of another model's keys in CLIP's heads, and words that know the window."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.methods import Share, Within
from geoseg.model.attention.last_block import gaussian_bias
from geoseg.model.attention.proxy import resized
from geoseg.model.attention.trunk import Context, Grid, Trunk, Words

if TYPE_CHECKING:
    from geoseg.model.backbone import Backbone

_FACTOR, _EIGENVALUES, _RANK, _STD, _NEAREST = 10.0, 20, 10, 5.0, 2
_TINY = 1e-12


@dataclass(frozen=True)
class Cass:
    """Kim et al., "Distilling Spectral Graph for Object-Context Aware Open-Vocabulary Semantic
    Segmentation", CVPR 2025.

    The similarities of each head's keys get those of the backbone's keys added, of the head whose
    spectrum differs most, at low rank. Words of one cluster are told apart by the window: the one
    that fits it best moves towards the patches that it fits best. Scores have a share of the
    window's own logits, and no CLS bias. The backbone sees the window itself; the released program
    gives it a square picture whose colours two slips have changed.
    """

    backbone: str = "vit_base_patch8_224.dino"
    """timm's name of a vision transformer, as wide as CLIP's heads together or a multiple."""
    global_share: Share = 0.1
    """Of the window's logits in the scores."""
    prototype_share: Share = 0.03
    """How far the best word of a cluster moves."""
    cut: Annotated[float, Within(0, 100)] = 0.5
    """Distance at which the tree of words is cut into clusters; 0 leaves each by itself."""
    stretch: bool = True
    """Stretch the singular values that are kept."""

    antialias_positions: ClassVar[bool] = False
    has_cls: ClassVar[bool] = False
    on_its_grid: ClassVar[bool] = False

    def check(self, trunk: Trunk, backbone: Backbone | None) -> None:
        """Refuse a backbone whose keys so many heads cannot share.

        Raises
        ------
        OptionError
            That says so.
        """
        heads = int(trunk.blocks[-1].attn.num_heads)
        if backbone is not None and backbone.width % heads:
            raise OptionError(
                f"cass: backbone {self.backbone} has {backbone.width} numbers a token, which the "
                f"model's {heads} heads cannot share; take another"
            )

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        """Tokens, for no words in particular."""
        tokens, _ = self._tokens(trunk, x, context)
        return F.pad(tokens, (0, 0, 1, 0)), context.grid

    def score(
        self, trunk: Trunk, x: Tensor, context: Context, words: Words
    ) -> tuple[Tensor, Grid, Tensor]:
        """Tokens, and scores of the words as the window has moved them."""
        tokens, cls = self._tokens(trunk, x, context)
        unit = F.normalize(trunk.embed(tokens), dim=-1)
        whole = F.normalize(trunk.embed(cls)[:, 0], dim=-1) @ words.vectors.T
        scores = [
            (1 - self.global_share) * patches @ self.moved(words, patches, overall).T
            + self.global_share * overall
            for patches, overall in zip(unit, whole, strict=True)
        ]
        return F.pad(tokens, (0, 0, 1, 0)), context.grid, torch.stack(scores)

    def moved(self, words: Words, patches: Tensor, overall: Tensor) -> Tensor:
        """Words ``(Q, D)`` of a window of unit patches ``(N, D)`` and its own logits ``(Q,)``."""
        vectors = words.vectors.clone()
        for members in clusters(words, self.cut):
            best = members[overall[members].argmax()]
            near = (patches @ vectors[best]).topk(min(_NEAREST, len(patches))).indices
            mean = F.normalize(patches[near].mean(0), dim=-1)
            share = self.prototype_share
            vectors[best] = F.normalize((1 - share) * vectors[best] + share * mean, dim=-1)
        return vectors

    def _tokens(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Patches after the changed last block, and the CLS token after the ordinary one."""
        assert context.backbone is not None
        for block in trunk.blocks[:-1]:
            x = trunk.ordinary(block, x)
        last = trunk.blocks[-1]
        kv = trunk.heads(last, last.ln_1(x[:, 1:]), "kv")
        key, value = kv["k"].float(), kv["v"]
        _, seen, grid = context.backbone.queries_and_keys(context.images)
        heads = torch.unflatten(seen.float(), -1, (key.shape[1], -1)).transpose(1, 2)
        other = mapped(resized(heads, grid, context.grid), key)
        bias = gaussian_bias(context.grid, _STD, x.device)[1:, 1:]
        out = torch.empty_like(value, memory_format=torch.contiguous_format)
        for item, pair in enumerate(zip(key, other, strict=True)):
            weights = (self.mixed(*pair) + bias).softmax(-1).to(value.dtype)
            torch.matmul(weights, value[item], out=out[item])
        return trunk.project(last, out), trunk.plain_cls(x)

    def mixed(self, key: Tensor, other: Tensor) -> Tensor:
        """Similarities ``(heads, N, N)`` of one window's keys ``(heads, N, d)`` of both models."""
        own = key.shape[-1] ** -0.5 * key @ key.mT
        values, vectors = eigen(other)
        cost, match = matched(values, eigen(key)[0])
        # As released: heads of the backbone are the rows of the costs, and CLIP's those of this.
        low = self._low_rank(values[match], vectors[match]).float()
        low.diagonal(dim1=1, dim2=2).zero_()
        likeness = _FACTOR * (1 - cost[torch.arange(len(match)), match])
        weight = likeness.to(own).view(-1, 1, 1)
        found: Tensor = (weight * mapped(low, own) + own) / (weight + 1)
        return found

    def _low_rank(self, values: Tensor, vectors: Tensor) -> Tensor:
        """Matrices ``(heads, N, N)`` of the largest of sorted values and their vectors."""
        kept, basis = values[:, :_RANK], vectors[:, :, :_RANK]
        if self.stretch:
            low, high = kept[:, -1:], kept[:, :1]
            inside = (kept - low) / (high - low).clamp_min(_TINY)
            kept = inside * (1.5 * high - 0.5 * low) + 0.5 * low
        found: Tensor = (basis * kept[:, None]) @ basis.mT
        return found


def mapped(values: Tensor, like: Tensor) -> Tensor:
    """Values ``(B, ...)`` stretched to the range of others, each of the batch by itself."""

    def ends(x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = x.flatten(1).aminmax(dim=1)
        shape = (-1, *(1,) * (x.ndim - 1))
        return low.view(shape), high.view(shape)

    (low, high), (least, most) = ends(values), ends(like)
    return (values - low) / (high - low).clamp_min(_TINY) * (most - least) + least


def eigen(key: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(heads, k)`` and vectors ``(heads, N, k)`` of ``σ key keyᵀ``, largest first.

    Of keys ``(heads, N, d)``, in float64, from their ``(d, d)`` moments, which have the same ones.
    """
    key = key.double() * key.shape[-1] ** -0.25
    values, basis = torch.linalg.eigh(key.mT @ key)
    values, basis = values.flip(-1).clamp_min(0), basis.flip(-1)
    return values, key @ basis / values.sqrt().clamp_min(_TINY**0.5)[:, None]


def matched(backbone: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Costs ``(heads, heads)`` of spectra, and which heads together cost least."""
    from scipy.optimize import linear_sum_assignment

    one, other = spectrum(backbone), spectrum(clip)
    cost = 1 - (one[:, None] - other).abs().sum(-1)
    _, match = linear_sum_assignment(cost.cpu().numpy())
    return cost, torch.from_numpy(match).to(cost.device)


def spectrum(values: Tensor) -> Tensor:
    """The largest of sorted eigenvalues ``(heads, k)``, with a sum of one."""
    kept = F.pad(values, (0, max(_EIGENVALUES - values.shape[1], 0)))[:, :_EIGENVALUES]
    return F.normalize(kept, p=1, dim=-1)


@functools.lru_cache(maxsize=2)
def clusters(words: Words, cut: float) -> tuple[Tensor, ...]:
    """Indices of words that lie together: Ward's tree on cosine distances, cut at a distance."""
    from scipy.cluster.hierarchy import fcluster, linkage

    vectors = words.vectors.cpu().double().numpy()
    numbers = np.ones(1, int)
    if len(vectors) > 1:
        apart = 1 - vectors @ vectors.T
        above = np.triu_indices(len(vectors), 1)
        numbers = fcluster(linkage(apart[above].clip(0), "ward"), cut, criterion="distance")
    found = (np.flatnonzero(numbers == each) for each in dict.fromkeys(numbers))
    return tuple(torch.from_numpy(each).to(words.vectors.device) for each in found)
