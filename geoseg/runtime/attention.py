"""Attention on a GPU by kernels that are ready, whatever the number of windows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from geoseg.runtime.setting import Setting

_cudnn: Setting[bool] = Setting(
    torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp
)


def ready_attention(device: torch.device) -> AbstractContextManager[None]:
    """Leave cuDNN's attention out while this is open, on a GPU.

    cuDNN plans anew for each size of batch, which takes as long as a thousand windows, and the last
    batch of nearly every tile has a size of its own. The other kernels need no plan.
    """
    return _cudnn.changed_to(False) if device.type == "cuda" else nullcontext()
