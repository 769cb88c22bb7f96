"""Windows side by side on a CPU: each on its own core rather than all cores on each.

The products of one window are too small to keep several cores busy: two threads on one window are
1.7 times as fast as one, two windows on a thread each nearly twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Results of ``work`` for every item, in their order, with PyTorch's threads shared out.

    As many items run at once as PyTorch has threads here; with fewer items each has several
    threads, and a single one has all. No more than those and one result wait at any time.

    Raises
    ------
    Exception
        What ``work`` raised for the earliest item; later items that have not begun never run.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    each = threads // workers
    # Here too: the caller works on results meanwhile, and its threads would wait busily for more.
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(workers, "geoseg-window", torch.set_num_threads, (each,)) as pool:
            try:
                for item in items:
                    if len(waiting) > workers:
                        yield waiting.popleft().result()
                    waiting.append(pool.submit(work, item))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        # The number is each thread's own, but new threads take the one that was set last.
        torch.set_num_threads(threads)
