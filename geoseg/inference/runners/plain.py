"""Every window by itself, in batches."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import closing

from geoseg.inference.merge import Part
from geoseg.inference.runners.area import Area, Batches
from geoseg.inference.scorer import WindowScorer
from geoseg.types import Window


def run_plain(
    scorer: WindowScorer,
    area: Area,
    batches: Batches,
    *,
    stop: threading.Event | None,
    share_threads: bool,
) -> Generator[tuple[int, Sequence[Part]], None, None]:
    """Yield each batch's first row and its windows' weighted logits."""

    def parts(windows: Sequence[Window]) -> list[Part]:
        logits = scorer(area.batch(windows)) * area.weight[..., None]
        return [Part(w, one, area.weight) for w, one in zip(windows, logits, strict=True)]

    done = batches.run(parts, area, stop=stop, share_threads=share_threads)
    with closing(done):
        for windows, found in done:
            yield windows[0].row, found
