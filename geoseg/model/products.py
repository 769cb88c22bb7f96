"""Which library multiplies float32 matrices on a CPU.

PyTorch hands them to MKL, which leaves half of the width of AMD's AVX-512 units unused. oneDNN,
which PyTorch carries too, uses all of it: the same products take half the time there. Everywhere
else, and wherever gradients or autocast are on, this is PyTorch's own call.

The choice depends on the processor alone, never on a timing, so that one machine always gives
the same bits.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """``x weightᵀ + bias``, then optionally the exact GELU.

    Parameters
    ----------
    x
        ``(..., K)``.
    weight
        ``(N, K)``.
    bias
        ``(N,)`` or None.

    Returns
    -------
    torch.Tensor
        ``(..., N)`` in the dtype of ``x`` (or autocast's).
    """
    if not uses_onednn(x):
        product = F.linear(x, weight, bias)
        return F.gelu(product) if gelu else product
    return _onednn(x, weight, bias, gelu=gelu)


def uses_onednn(x: Tensor) -> bool:
    """Whether products of such a tensor go to oneDNN."""
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_is_faster()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool) -> Tensor:
    # The operator that torch.compile puts in place of linear layers; there is no public name. It
    # takes the stride of a bias for 1.
    bias = None if bias is None else bias.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        x.contiguous(), weight.contiguous(), bias, *_AFTER[gelu]
    )
    return product


_AFTER: dict[bool, tuple[str, list[float], str]] = {
    False: ("none", [], ""),
    True: ("gelu", [], "none"),
}


@functools.cache
def _onednn_is_faster() -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or "GenuineIntel" in _processor():
        return False
    return _works()


def _works() -> bool:
    """Whether this build of PyTorch has the operator and it gives the right product."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(2, 3, 5, generator=generator), torch.rand(4, 5, generator=generator)
    try:
        found = _onednn(x, weight, weight[:, 0], gelu=True)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, F.gelu(F.linear(x, weight, weight[:, 0])), atol=1e-5)


def _processor() -> str:
    """Vendor of the processor, in whatever words the system has for it."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return platform.processor()
