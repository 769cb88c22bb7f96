"""Bars that show how far something is, in notebooks and terminals: ``progress=True``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def shown(progress: Any, what: str) -> Iterator[Callable[..., None] | None]:
    """Give the callback for a ``progress`` that somebody gave.

    Parameters
    ----------
    progress
        True for a bar, a function of one's own, or None or False for none.
    what
        Its title.

    Yields
    ------
    callable or None
        Takes what is done and all, a share from 0 to 1, or a `geoseg.run.result.Progress`.
    """
    if progress is not True:
        yield progress or None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=what, total=None, leave=False) as bar:

        def update(*state: Any) -> None:
            if len(state) == 2:
                done, total = state
            elif hasattr(state[0], "tiles_done"):
                done, total = state[0].tiles_done, state[0].tiles
                bar.set_description(str(state[0].stage), refresh=False)
            else:
                done, total = round(100 * state[0]), 100
            bar.total = total
            bar.n = done
            bar.refresh()

        yield update
