"""What other libraries say and geoseg says in its own words, or not at all.

Python's filters of warnings, the root logger and PyTorch's random state are the whole process's.
Two threads that change and put back one of them by turns would leave it changed; so one at a time
does.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def without_warnings(category: type[Warning] = Warning) -> Iterator[None]:
    """Keep warnings of a kind back, in one thread at a time."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


@contextmanager
def without_root_logger() -> Iterator[None]:
    """Keep reports through the root logger back, in one thread at a time.

    The handler is there because ``logging.warning`` installs one of its own where none is, which
    would print every library's warnings from then on.
    """
    with _lock:
        level, handler = logging.root.level, logging.NullHandler()
        logging.root.setLevel(logging.CRITICAL)
        logging.root.addHandler(handler)
        try:
            yield
        finally:
            logging.root.removeHandler(handler)
            logging.root.setLevel(level)


@contextmanager
def same_randomness() -> Iterator[None]:
    """Give PyTorch's random state on the CPU back as it was, in one thread at a time."""
    import torch

    with _lock, torch.random.fork_rng(devices=[]):
        yield
