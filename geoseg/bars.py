"""Bars that show how far something is, in notebooks and terminals: ``progress=True``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


@contextmanager
def shown(progress: Any, what: str, unit: str = "") -> Iterator[Callable[..., None] | None]:
    """Give the callback for a ``progress`` that somebody gave.

    Parameters
    ----------
    progress
        True for a bar, a function of one's own, or None or False for none.
    what
        Its title.
    unit
        What it counts; per cent by default.

    Yields
    ------
    callable or None
        Takes what is done and all, a share from 0 to 1, or a `geoseg.run.result.Progress`.
    """
    if progress is not True:
        yield progress or None
        return
    from tqdm.auto import tqdm

    plain = {} if unit else {"bar_format": "{l_bar}{bar}| [{elapsed}<{remaining}]"}
    with tqdm(desc=what, total=None, leave=False, unit=unit or "%", **plain) as bar:

        def update(*state: Any) -> None:
            if len(state) == 2:
                done, total = state
            elif not hasattr(state[0], "windows"):
                done, total = round(100 * state[0]), 100
            elif state[0].stage == what:
                done, total = state[0].windows_done, state[0].windows
            else:  # products, which are made once all windows have run
                bar.set_description(state[0].stage)
                return
            bar.total = total
            bar.n = done
            bar.refresh()

        yield update


def counted(items: Sequence[Item], what: str, unit: str) -> Iterator[Item]:
    """Give items one by one, with a bar that counts them."""
    from tqdm.auto import tqdm

    yield from tqdm(items, desc=what, unit=unit, leave=False)
