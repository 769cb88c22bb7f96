"""How the windows of an area are run: one after another, or sharing what they have in common.

A runner yields, in the order of rows, a row above which nothing is added any more and the parts
that are finished. `geoseg.inference.runners.plain` works for every method; `shared` is a folder
that can be deleted, together with its lines here.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence

from geoseg.inference.merge import Part
from geoseg.inference.runners.area import Area, Batches
from geoseg.inference.runners.plain import run_plain
from geoseg.inference.runners.shared import can_share, run_shared, shared_lattices
from geoseg.inference.scorer import Scorer, WindowScorer

Steps = Generator[tuple[int, Sequence[Part]], None, None]


def goes_on(scorer: WindowScorer, window: int, stride: int) -> bool:
    """Whether a tile may go on with what the tile above has left open, bit for bit.

    A cell of shared kernels takes all of its windows at once, so that a tile has to run them all.
    """
    return not (isinstance(scorer, Scorer) and can_share(scorer, window, stride))


def run_windows(
    scorer: WindowScorer,
    area: Area,
    batches: Batches,
    *,
    stop: threading.Event | None = None,
    share_threads: bool = False,
) -> Steps:
    """Run all windows of an area.

    Parameters
    ----------
    scorer
        Windows to logits.
    area
        Which windows, and their pixels.
    batches
        How many at once.
    stop
        Set it from another thread to give up between two batches.
    share_threads
        A few windows on a CPU have several threads each, and may have other last bits for it.

    Raises
    ------
    concurrent.futures.CancelledError
        If ``stop`` was set.
    """
    if isinstance(scorer, Scorer) and (lattices := shared_lattices(scorer, area)):
        return run_shared(scorer, area, batches, lattices, stop=stop, share_threads=share_threads)
    return run_plain(scorer, area, batches, stop=stop, share_threads=share_threads)
