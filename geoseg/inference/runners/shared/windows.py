"""Windows that are upsampled together: each up to the last step, then that for all at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.inference.cosines import (
    LOGIT_TOLERANCE,
    PROBES,
    Cosines,
    as_grid,
    exact_columns,
    leading_basis,
    leading_columns,
)
from geoseg.model.upsampling.base import FeatureUpsampler
from geoseg.model.vision import DenseFeatures
from geoseg.runtime.matmul import full_width


@dataclass(frozen=True, eq=False)
class BegunWindow:
    """A window before the last step of its upsampling; see `begin_window`."""

    nearly: Tensor | None
    """``(h, w, C)``: channels that give nearly exact norms, if there are few enough."""
    exactly: Callable[[], Tensor]
    """``(h, w, C)``: channels that give exact norms, made when they are asked for."""
    constant: Tensor
    """``(D,)``: what is added to every pixel's features."""
    bias: Tensor
    """``(Q,)``: subtracted from its cosines."""


@full_width()
def begin_window(
    features: DenseFeatures,
    text: Tensor,
    *,
    upsampler: FeatureUpsampler,
    upsample: Callable[[Tensor], Tensor],
    cls_bias: float,
    exact: bool,
) -> BegunWindow:
    """Upsample one window up to the last step, which `finish_cell` does for several at once.

    Parameters
    ----------
    features
        Tokens of one window.
    text, cls_bias, exact
        See `window_logits`.
    upsample
        All steps but the last, ``(1, C, *grid)`` to ``(h, w, C)``.
    """
    folded, constant = upsampler.fold(features.patches)

    @functools.cache
    def exactly() -> Tensor:
        return upsample(as_grid(exact_columns(folded, constant, text), features.grid))

    leading = None if exact else leading_basis(folded, constant, text)
    nearly = None
    if leading is not None:
        columns = leading_columns(folded, constant, text, leading)
        nearly = upsample(as_grid(columns, features.grid))
    bias = cls_bias * (F.normalize(features.cls[0], dim=-1) @ text.T)
    return BegunWindow(nearly, exactly, constant, bias)


CellUpsampling = Callable[[Sequence[int], Sequence[Tensor]], Iterator[Tensor]]
"""The last step of some of a cell's windows: from their numbers and their channels ``(h, w, C)`` to
a few rows of blocks at a time, ``(rows, cols, block², windows, C)``."""


@full_width()
def finish_cell(
    windows: Sequence[BegunWindow],
    text: Tensor,
    upsample: CellUpsampling,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum the logits of all windows that cover a cell.

    Where norms from the leading directions are not certain to be near enough for a window, it gets
    exact ones in this cell.

    Parameters
    ----------
    windows
        From `begin_window`.
    text
        ``(Q, D)`` unit text embeddings.
    upsample
        The last step.
    weights
        ``(rows, cols, block², windows)``: of each window's pixels; one by default.

    Returns
    -------
    torch.Tensor
        ``(rows, cols, block², Q)`` float32.
    """
    constant = windows[0].constant
    sums = []
    nearly = [k for k, window in enumerate(windows) if window.nearly is not None]
    while nearly:
        found, doubts = _nearly_summed(windows, nearly, text, constant, upsample, weights)
        certain = [k for k, doubt in zip(nearly, doubts, strict=True) if doubt <= LOGIT_TOLERANCE]
        if certain == nearly:
            sums.append(found)
            break
        nearly = certain
    exactly = [k for k in range(len(windows)) if k not in nearly]
    if exactly:
        coarse = [windows[k].exactly() for k in exactly]
        cosines = Cosines.of(coarse[0].shape[-1], constant, text)
        parts = [cosines(pixels)[0] for pixels in upsample(exactly, coarse)]
        sums.append(_summed(torch.cat(parts), None if weights is None else weights[..., exactly]))
    bias = torch.stack([window.bias for window in windows])
    shift = bias.sum(0) if weights is None else weights @ bias
    return sum(sums[1:], sums[0]).sub_(shift)


def _nearly_summed(
    windows: Sequence[BegunWindow],
    chosen: Sequence[int],
    text: Tensor,
    constant: Tensor,
    upsample: CellUpsampling,
    weights: Tensor | None,
) -> tuple[Tensor, list[float]]:
    """Sum of some windows' cosines over a cell, and what each may be wrong by."""
    coarse = [x for k in chosen if (x := windows[k].nearly) is not None]
    channels = max(x.shape[-1] for x in coarse)
    coarse = [
        F.pad(x, (0, channels - x.shape[-1])) if x.shape[-1] < channels else x for x in coarse
    ]
    cosines = Cosines.of(channels, constant, text, probes=PROBES)
    parts, doubts, first = [], [], 0
    for pixels in upsample(chosen, coarse):
        found, doubt = cosines(pixels)
        doubts.append(doubt.amax((0, 1, 2, 4)))
        some = None if weights is None else weights[first : first + len(found), ..., chosen]
        parts.append(_summed(found, some))
        first += len(found)
    return torch.cat(parts), torch.stack(doubts).amax(0).tolist()


def _summed(cosines: Tensor, weights: Tensor | None) -> Tensor:
    """Sum ``(..., windows, Q)`` over windows."""
    return (cosines if weights is None else cosines * weights[..., None]).sum(-2)
