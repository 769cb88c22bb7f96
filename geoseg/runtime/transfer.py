"""Between host and device, so that a GPU computes meanwhile.

On a CPU nothing has to travel, and everything here is there at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Send an array to a device; on a GPU it may arrive later, but before any work on it."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Arriving:
    """Tensors on their way to the host.

    Parameters
    ----------
    tensors
        All on one device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: Any = None
        self._tensors = tensors
        if tensors and tensors[0].device.type == "cuda":
            self._tensors = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for t in tensors
            ]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensors[0].device))

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Wait for these tensors, not for what the device was given to do since; return them."""
        if self._event is not None:
            self._event.synchronize()
        return [np.asarray(tensor.numpy()) for tensor in self._tensors]


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item once the next one has been made."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
