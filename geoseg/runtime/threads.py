"""Windows side by side on a CPU: each on its own core rather than all cores on each.

The products of one window are too small to keep several cores busy all the time, and what lies
between them keeps only one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from geoseg.errors import OptionError
from geoseg.runtime.cpus import available_cpus
from geoseg.runtime.setting import Setting

T = TypeVar("T")
R = TypeVar("R")

_threads = Setting(torch.get_num_threads, torch.set_num_threads, per_thread=True)


def threads_of_process() -> int:
    """PyTorch's number of threads, also while `in_order` has lowered it."""
    return _threads.usual()


def use_threads(count: int | None) -> None:
    """Compute with so many CPUs from now on; None takes all that this process may use.

    Somebody who has set ``OMP_NUM_THREADS`` is believed.

    Raises
    ------
    OptionError
        If it is below 1.
    """
    if count is not None and count < 1:
        raise OptionError(f"--threads is {count}; give 1 or more")
    if count is None and "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(count or min(threads_of_process(), available_cpus()))


def in_order(
    work: Callable[[T], R], items: Sequence[T], *, most: int, share: bool
) -> Generator[R, None, None]:
    """Results of ``work`` for every item, in their order, as many at once as PyTorch has threads.

    PyTorch's own number of threads is lowered meanwhile, for this thread: others that begin to use
    it while this runs may keep the lower number. Close the generator if it is not exhausted, in
    the thread that began it.

    Parameters
    ----------
    most
        No more than so many items at once. One further result may wait.
    share
        Whether a few items, or a single one, have several threads each. Otherwise each has one, and
        its result does not depend on how many there are, to the bit.

    Raises
    ------
    Exception
        What ``work`` raised for the earliest item; later items that have not begun never run.
    """
    threads = threads_of_process()
    workers = max(1, min(threads, len(items), most))
    each = max(1, threads // workers) if share else 1
    if workers == 1 and each == threads:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    # The caller too: it works on results meanwhile, and its threads would wait busily for more.
    with (
        _threads.changed_to(each),
        ThreadPoolExecutor(workers, "geoseg-window", torch.set_num_threads, (each,)) as pool,
    ):
        try:
            for item in items:
                if len(waiting) > workers:
                    yield waiting.popleft().result()
                waiting.append(_submit(pool, work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _submit(pool: ThreadPoolExecutor, work: Callable[[T], R], item: T) -> Future[R]:
    try:
        return pool.submit(work, item)
    except RuntimeError:  # the interpreter is ending and starts no threads any more
        future: Future[R] = Future()
        future.set_result(work(item))
        return future
