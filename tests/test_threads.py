"""Windows side by side: the same results in the same order, and threads as they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from geoseg import Options, Segmenter, load_model
from geoseg.inference.threads import in_order
from geoseg.types import PixelBlock


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order(threads: None) -> None:
    def work(item: int) -> tuple[int, int]:
        time.sleep(0.01 * (item % 3 == 0))
        return item, torch.get_num_threads()

    found = list(in_order(work, range(20)))
    assert [item for item, _ in found] == list(range(20))
    assert {count for _, count in found} == {1}
    assert torch.get_num_threads() == 4


def test_few_items_share_the_threads(threads: None) -> None:
    assert list(in_order(lambda _: torch.get_num_threads(), range(2))) == [2, 2]
    assert list(in_order(lambda _: torch.get_num_threads(), [0])) == [4]
    assert list(in_order(lambda _: 1, [])) == []


def test_an_error_ends_it(threads: None) -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    results = in_order(work, range(100))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 20
    assert torch.get_num_threads() == 4


def test_no_more_is_begun_than_is_wanted(threads: None) -> None:
    begun = []
    results = in_order(begun.append, range(100))
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 6
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 6
    assert threading.active_count() < 50
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("upsampler", ["none", "jbu", "simfeatup"])
def test_logits_do_not_depend_on_threads(upsampler: str) -> None:
    """Bit for bit: each window runs on one thread, and windows are added in their order."""
    before = torch.get_num_threads()
    model = load_model("geoseg-tiny", device="cpu")
    options = Options(upsampler=upsampler, window=112, stride=56, templates="none")
    segmenter = Segmenter(model, "building; road; water; tree", options)
    rgb = np.random.default_rng(0).random((3, 280, 250), dtype=np.float32)
    block = PixelBlock(rgb, np.ones((280, 250), dtype=bool))
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(segmenter.logits(block))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)
