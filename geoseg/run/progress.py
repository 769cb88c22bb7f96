"""What a run says of how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from geoseg.run.result import Progress, ProgressCallback
from geoseg.tiling.tiles import TilePlan


class TileBar:
    """How far the tiles of a stage are, counted in windows.

    Parameters
    ----------
    stage
        Its name.
    plan, todo
        Which tiles are to run.
    say
        Told at the start, and whenever there is news.
    """

    def __init__(
        self, stage: str, plan: TilePlan, todo: Sequence[int], say: ProgressCallback
    ) -> None:
        self._plan, self._say = plan, say
        self._planned = {
            index: count
            for lane in plan.lanes(todo)
            for index, count in zip(lane, plan.windows_of(lane), strict=True)
        }
        self._ended, self._ran = 0, 0
        pixels = sum(plan.core(index).area for index in todo)
        done = len(plan) - len(todo)
        total = sum(self._planned.values())
        self._state = Progress(stage, done, len(plan), 0, pixels, 0, total)
        say(self._state)

    def windows(self, ran: int) -> None:
        """Say how many windows have run, which those of finished tiles are among."""
        done = min(self._ended + max(ran - self._ran, 0), self._state.windows)
        if done > self._state.windows_done:
            self._state = replace(self._state, windows_done=done)
            self._say(self._state)

    def tile(self, index: int, ran: int) -> None:
        """Say that a tile is finished; windows of it that hold no data have not run."""
        state = self._state
        self._ran += ran
        self._ended += self._planned[index]
        self._state = replace(
            state,
            tiles_done=state.tiles_done + 1,
            pixels_done=state.pixels_done + self._plan.core(index).area,
            windows_done=max(state.windows_done, self._ended),
        )
        self._say(self._state)
