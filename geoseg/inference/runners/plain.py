"""Every window by itself, in batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from geoseg.inference.merge import Part
from geoseg.inference.runners.area import Area, Batches
from geoseg.inference.scorer import Scorer
from geoseg.types import Window


def run_plain(
    scorer: Scorer,
    area: Area,
    batches: Batches,
    *,
    stop: threading.Event | None,
    share_threads: bool,
) -> Iterator[tuple[int, Sequence[Part]]]:
    """Yield each batch's first row and its windows' weighted logits."""

    def parts(windows: Sequence[Window]) -> list[Part]:
        logits = _score(scorer, area, batches, windows)
        return [Part(w, one, area.weight) for w, one in zip(windows, logits, strict=True)]

    work = list(batches.of(area.windows))
    done = batches.side_by_side(parts, work, area, stop=stop, share_threads=share_threads)
    with closing(done):
        for windows, found in zip(work, done, strict=True):
            yield windows[0].row, found


def _score(scorer: Scorer, area: Area, batches: Batches, windows: Sequence[Window]) -> list[Tensor]:
    """Weighted logits of windows; in halves, from now on, if they do not fit the device."""
    done: list[Tensor] = []
    waiting = list(windows)
    while waiting:
        part = waiting[: batches.size]
        try:
            done += scorer(area.batch(part)) * area.weight[..., None]
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            batches.halve(len(part))
        else:
            del waiting[: len(part)]
    return done
