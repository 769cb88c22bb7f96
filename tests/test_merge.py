"""Windows become one image: against the mean of all of them at once, written straight down."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.inference.merge import Part, StripMerger, blend_weight, cropped, merged
from geoseg.tiling.lattice import Lattice
from geoseg.types import Window

CPU = torch.device("cpu")


def part(window: Window, generator: torch.Generator) -> Part:
    weight = torch.rand(window.shape, generator=generator) + 0.1
    logits = torch.rand(*window.shape, 3, generator=generator)
    return Part(window, logits * weight[..., None], weight)


def by_rows(parts: list[Part]) -> list[tuple[int, list[Part]]]:
    return [
        (row, [one for one in parts if one.window.row == row])
        for row in sorted({one.window.row for one in parts})
    ]


def mean(parts: list[Part], shape: tuple[int, int]) -> torch.Tensor:
    total, weight = torch.zeros(*shape, 3), torch.zeros(shape)
    for one in parts:
        total[one.window.slices()] += one.logits
        weight[one.window.slices()] += one.weight
    return total / weight[..., None]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.data())
def test_strips_are_the_weighted_mean(
    height: int, width: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(max(window // 3, 1), window))
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    core = Window(
        row,
        col,
        data.draw(st.integers(1, height - row)),
        data.draw(st.integers(1, width - col)),
    )
    lattice = Lattice(height, width, window, stride)
    generator = torch.Generator().manual_seed(0)
    parts = [part(one, generator) for one in lattice.touching(core)]
    strips = list(merged(by_rows(parts), core))
    firsts = [first for first, _ in strips]
    assert firsts == np.cumsum([0, *(len(rows) for _, rows in strips)])[:-1].tolist()
    whole = mean(parts, (height, width))[core.slices()]
    torch.testing.assert_close(torch.cat([rows for _, rows in strips]), whole)


def test_a_strip_comes_as_soon_as_nothing_can_reach_it() -> None:
    core, generator = Window(10, 0, 30, 8), torch.Generator().manual_seed(0)
    merger = StripMerger(core)
    assert list(merger.finish_above(20)) == []
    merger.add(part(Window(4, 0, 16, 8), generator))
    assert list(merger.finish_above(10)) == []
    (first, rows), *more = merger.finish_above(12)
    assert (first, len(rows), more) == (0, 2, [])
    merger.add(part(Window(12, 0, 16, 8), generator))
    (first, rows), *more = merger.finish_above(12 + 3)
    assert (first, len(rows), more) == (2, 3, [])
    # What no part has reached is no strip, whatever is asked for.
    (first, rows), *more = merger.finish_above(100)
    assert (first, len(rows), more) == (5, 13, [])
    assert list(merger.finish_above(100)) == []


def test_what_no_window_covers_is_zero_and_finite() -> None:
    core, generator = Window(0, 0, 4, 10), torch.Generator().manual_seed(0)
    merger = StripMerger(core)
    merger.add(part(Window(0, 6, 4, 4), generator))
    ((_, rows),) = merger.finish_above(4)
    assert (rows[:, :6] == 0).all()
    assert (rows[:, 6:] > 0).all()


def test_next_to_no_weight_counts_all_the_same() -> None:
    window = Window(0, 0, 2, 2)
    weight = torch.full((2, 2), 1e-30)
    ((_, rows),) = merged([(0, [Part(window, weight[..., None] * 3, weight)])], window)
    torch.testing.assert_close(rows, torch.full((2, 2, 1), 3.0))


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (1, 1)])
def test_weights_of_a_window(shape: tuple[int, int]) -> None:
    assert (blend_weight("uniform", shape, CPU) == 1).all()
    hann = blend_weight("hann", shape, CPU)
    down, across = ([math.sin(math.pi * (k + 0.5) / n) ** 2 for k in range(n)] for n in shape)
    expected = [[a * b for b in across] for a in down]
    torch.testing.assert_close(hann, torch.tensor(expected, dtype=torch.float32))
    assert (hann > 0).all()


def test_hann_windows_half_a_window_apart_weigh_one_together() -> None:
    weight = blend_weight("hann", (16, 16), CPU)
    total = weight[:8] + weight[8:]
    torch.testing.assert_close(total[:, :8] + total[:, 8:], torch.ones(8, 8))


@given(st.data())
def test_strips_of_an_inner_window(data: st.DataObject) -> None:
    outer = Window(3, 5, 20, 10)
    row, col = data.draw(st.integers(0, 19)), data.draw(st.integers(0, 9))
    inner = Window(
        outer.row + row,
        outer.col + col,
        data.draw(st.integers(1, 20 - row)),
        data.draw(st.integers(1, 10 - col)),
    )
    image = torch.arange(200.0).reshape(20, 10, 1)
    stops = [*sorted(data.draw(st.sets(st.integers(1, 19)))), 20]
    strips = zip([0, *stops], stops, strict=False)
    kept = list(cropped(((a, image[a:b]) for a, b in strips), outer, inner))
    assert [first for first, _ in kept] == np.cumsum([0, *(len(r) for _, r in kept)])[:-1].tolist()
    wanted = image[inner.relative_to(outer).slices()]
    assert torch.equal(torch.cat([rows for _, rows in kept]), wanted)
