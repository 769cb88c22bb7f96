"""Every window by itself, in batches."""

from __future__ import annotations

import itertools
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
    """Yield the weighted logits of each batch's windows, those of one row together."""

    def parts(windows: Sequence[Window]) -> list[Part]:
        logits = area.weighted(scorer(area.batch(windows), area.places(windows)))
        return [Part(w, one, area.weight) for w, one in zip(windows, logits, strict=True)]

    done = batches.run(parts, area, stop=stop, share_threads=share_threads)
    with closing(done):
        for _, found in done:
            for row, parts_of_row in itertools.groupby(found, lambda part: part.window.row):
                yield row, list(parts_of_row)
