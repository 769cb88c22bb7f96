"""float32 products on a CPU, at the full width of its vector units.

PyTorch hands them to MKL, which leaves half of the width of AMD's AVX-512 units unused. oneDNN,
which PyTorch carries too, uses all of it: the same products take half the time there. PyTorch gives
it float32 products where they may be rounded to bfloat16. On these processors oneDNN computes them
in float32 all the same, and that is checked before it is asked for anything.

The choice depends on the processor alone, never on a timing, so that one machine always gives
the same bits.
"""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoseg.runtime.setting import Setting


@contextmanager
def full_width() -> Iterator[None]:
    """Let PyTorch's float32 products use all of the processor's width while this is open.

    It may be open several times, in several threads. The setting, one of
    ``torch.backends.mkldnn.matmul``, is the whole process's and is put back when the last one
    closes; other threads lose no precision by it meanwhile. Where it would not help, nothing
    happens.
    """
    if not _onednn_is_faster():
        yield
        return
    with _rounding.changed_to(_ROUNDED):
        yield


def has_full_width(x: Tensor) -> bool:
    """Whether products of such a tensor are at full width inside `full_width` alone."""
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_is_faster()
    )


_ROUNDED = "bf16"
_lock = threading.RLock()


def _matmul() -> Any:
    """PyTorch's settings of oneDNN's products, unknown to type checkers."""
    return getattr(torch.backends.mkldnn, "matmul")  # noqa: B009


_rounding: Setting[str] = Setting(
    lambda: str(_matmul().fp32_precision),
    lambda precision: setattr(_matmul(), "fp32_precision", precision),
)
"""What PyTorch allows oneDNN to round float32 products to."""


def _onednn_is_faster() -> bool:
    with _lock:
        return _decided()


@functools.cache
def _decided() -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or "GenuineIntel" in _processor():
        return False
    return _works()


def _works() -> bool:
    """Whether this PyTorch has the setting, and products keep float32's precision with it."""
    if not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        return False
    generator = torch.Generator().manual_seed(0)
    with _rounding.changed_to(_ROUNDED):
        return all(
            _is_precise(
                torch.rand(left, generator=generator), torch.rand(right, generator=generator)
            )
            for left, right in (((197, 768), (768, 256)), ((3, 64, 144), (3, 144, 40)))
        )


def _is_precise(left: Tensor, right: Tensor) -> bool:
    exact = left.double() @ right.double()
    return torch.allclose((left @ right).double(), exact, rtol=1e-5, atol=0)


def _processor() -> str:
    """Vendor of the processor, in whatever words the system has for it."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return platform.processor()
