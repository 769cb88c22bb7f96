"""Which windows can share kernels, and in which order they and the cells of their lattice come."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from geoseg.inference.head import Head
from geoseg.inference.merge import Part
from geoseg.inference.runners.area import Area, Batches, fewer_and_fewer
from geoseg.inference.runners.shared.cells import CellByCell
from geoseg.inference.runners.shared.kernels import Place, SharedKernels
from geoseg.inference.runners.shared.windows import BegunWindow, begin_window
from geoseg.inference.scorer import Scorer
from geoseg.inference.steps import ClsBias
from geoseg.inference.views import View
from geoseg.model.upsampling.learned import LearnedJbu
from geoseg.model.vision import DenseFeatures, split_features
from geoseg.runtime.threads import threads_of_process
from geoseg.types import Window

_CELLS_AT_THE_END = 4
"""Cells that are put together one after another at the end."""

Lattices = Mapping[Window, CellByCell]
"""Of each window, the lattice it belongs to."""


def can_share(scorer: Scorer, window: int, stride: int) -> bool:
    """Whether square windows of a lattice can share kernels."""
    head, patch = scorer.head, scorer.encoder.patch
    if scorer.encoder.device.type != "cpu" or not isinstance(head.upsampler, LearnedJbu):
        return False
    if scorer.encoder.scores or scorer.encoder.reads_regions:
        return False
    if not window or window % patch or tuple(scorer.views) != (View(),) or _bias(head) is None:
        return False
    return SharedKernels.worthwhile(head.upsampler, window, stride, window // scorer.encoder.step)


def shared_lattices(scorer: Scorer, area: Area) -> Lattices:
    """Lattice of each window; none where windows cannot share kernels.

    Windows moved inwards to the edge of a scene are not on the lattice of all others, but on
    lattices of their own: those of the last column, and those of the last row.

    A GPU rather takes many windows at once, and makes their kernels with them.
    """
    upsampler, (window, width) = scorer.head.upsampler, area.windows[0].shape
    if window != width or not can_share(scorer, window, area.stride):
        return {}
    assert isinstance(upsampler, LearnedJbu)
    by_origin: dict[Place, list[Window]] = defaultdict(list)
    for each in area.windows:
        by_origin[each.row % area.stride, each.col % area.stride].append(each)
    pixels = scorer.encoder.normalise(area.block)
    found: dict[Window, CellByCell] = {}
    for origin, own in by_origin.items():
        shared = SharedKernels(
            upsampler,
            pixels,
            origin=origin,
            window=window,
            stride=area.stride,
            grid=window // scorer.encoder.step,
        )
        lattice = CellByCell(shared, own, area.core, scorer.head.text, area.weight)
        found.update(dict.fromkeys(own, lattice))
    return found


def _bias(head: Head) -> float | None:
    """Weight of the CLS bias, if that is the only window step."""
    if len(head.steps) == 1 and isinstance(head.steps[0], ClsBias):
        return head.steps[0].weight
    return None


def run_shared(
    scorer: Scorer,
    area: Area,
    batches: Batches,
    lattices: Lattices,
    *,
    stop: threading.Event | None,
    share_threads: bool,
) -> Generator[tuple[int, Sequence[Part]], None, None]:
    """Begin windows batch by batch; yield the cells that each has completed."""

    @torch.no_grad()
    def begin(windows: Sequence[Window]) -> None:
        features = scorer.encode(area.batch(windows), area.places(windows))
        for window, one in zip(windows, split_features(features, 1), strict=True):
            lattices[window].begin(window, functools.partial(_begin, scorer.head, one))

    def parts(task: _Task) -> list[Part]:
        if task.windows:
            begin(task.windows)
        return [lattice.finish(cell) for lattice, cell in task.cells]

    tasks = _tasks(list(batches.of(area.windows)), lattices)
    done = batches.side_by_side(parts, tasks, area, stop=stop, share_threads=share_threads)
    with closing(done):
        for task, found in zip(tasks, done, strict=True):
            yield task.first_row, found
            for window in task.windows:
                lattices[window].forget_before(window)


def _begin(
    head: Head, features: DenseFeatures, upsample: Callable[[Tensor], Tensor]
) -> BegunWindow:
    bias = _bias(head)
    assert isinstance(head.upsampler, LearnedJbu)
    assert bias is not None
    return begin_window(
        features,
        head.text,
        upsampler=head.upsampler,
        upsample=upsample,
        cls_bias=bias,
        exact=head.exact,
    )


_Cell = tuple[CellByCell, Place]
"""A cell of one of the lattices."""


@dataclass(frozen=True)
class _Task:
    """A batch of windows, and cells to be put together from windows before."""

    windows: Sequence[Window]
    cells: Sequence[_Cell]
    first_row: int
    """No later task adds anything above this row."""


def _tasks(batches: Sequence[Sequence[Window]], lattices: Lattices) -> list[_Task]:
    """Order the work.

    A cell comes some batches after its last window, so that it need not wait for windows that are
    still being worked on. When batches get smaller, cells wait until all windows have begun.
    """
    completed = [
        [(lattices[w], cell) for w in batch for cell in lattices[w].completed_by(w)]
        for batch in batches
    ]
    full = sum(len(batch) == len(batches[0]) for batch in batches)
    late = min(threads_of_process(), full)
    early = completed[: full - late]
    after: list[list[_Cell]] = [[]] * late + early + [[]] * (len(batches) - full)
    rest = list(itertools.chain(*completed[len(early) :]))
    work: list[tuple[Sequence[Window], Sequence[_Cell]]] = list(zip(batches, after, strict=True))
    work += [((), some) for some in fewer_and_fewer(rest, _CELLS_AT_THE_END)]
    rows = [
        min([w.row for w in batch] + [lattice.piece(cell).row for lattice, cell in done])
        for batch, done in work
    ]
    first = list(itertools.accumulate(reversed(rows), min))[::-1]
    return [_Task(*each, row) for each, row in zip(work, first, strict=True)]
