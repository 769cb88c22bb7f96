"""Windows side by side: the same results in the same order, and threads as they were."""

from __future__ import annotations

import _thread
import itertools
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from geoseg import Options, Segmenter, load_model
from geoseg.inference.head import Head
from geoseg.inference.merge import merged
from geoseg.inference.runners import run_windows
from geoseg.inference.runners.area import Area, Batches
from geoseg.inference.scorer import Encoder, Scorer
from geoseg.inference.steps import ClsBias
from geoseg.inference.views import View
from geoseg.model.upsampling.base import Fit
from geoseg.model.vision import DenseFeatures
from geoseg.runtime.threads import in_order
from geoseg.types import PixelBlock, Window


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

    found = list(in_order(work, range(20), most=20, share=True))
    assert [item for item, _ in found] == list(range(20))
    assert {count for _, count in found} == {1}
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("items", "most", "share", "each"), [
    (2, 9, True, 2), (1, 9, True, 4), (9, 2, True, 2), (9, 0, True, 4),
    (2, 9, False, 1), (1, 9, False, 1), (9, 2, False, 1),
])  # fmt: skip
def test_few_items_share_the_threads(
    threads: None, items: int, most: int, share: bool, each: int
) -> None:
    found = in_order(lambda _: torch.get_num_threads(), range(items), most=most, share=share)
    assert list(found) == [each] * items
    assert torch.get_num_threads() == 4


def test_nothing_to_do(threads: None) -> None:
    assert list(in_order(lambda _: 1, [], most=3, share=True)) == []


def test_the_last_to_leave_puts_the_threads_back(threads: None) -> None:
    first = in_order(lambda _: 1, range(9), most=2, share=True)
    second = in_order(lambda _: torch.get_num_threads(), range(9), most=2, share=True)
    next(first)
    assert next(second) == 2
    first.close()
    assert next(second) == 2
    second.close()
    assert torch.get_num_threads() == 4


def test_an_error_ends_it(threads: None) -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    results = in_order(work, range(100), most=100, share=True)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 20
    assert torch.get_num_threads() == 4


def test_no_more_is_begun_than_is_wanted(threads: None) -> None:
    begun = []
    results = in_order(begun.append, range(100), most=100, share=True)
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 6
    results.close()
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


def test_a_window_has_the_same_bits_in_every_tile(threads: None) -> None:
    """Alone in its tile, where it could have all threads, or among others."""
    model = load_model("geoseg-tiny", device="cpu")
    options = Options(upsampler="simfeatup", window=112, stride=56, templates="none")
    segmenter = Segmenter(model, "building; road; water; tree", options)
    rgb = np.random.default_rng(0).random((3, 112, 280), dtype=np.float32)
    wide = PixelBlock(rgb, np.ones((112, 280), dtype=bool))
    narrow = PixelBlock(np.ascontiguousarray(rgb[..., :112]), np.ones((112, 112), dtype=bool))
    core = Window(0, 0, 112, 112)
    windows = [core, Window(0, 56, 112, 112)]
    chosen, device = segmenter.options, model.device
    fit = Fit(model.embedding_size, model.std, device, chosen.upsampler_weights)
    text = torch.from_numpy(segmenter.text_embeddings)
    head = Head(text, chosen.method("upsampler").build(fit), (ClsBias(0.3),), exact=False)
    scorer = Scorer(segmenter.encoder, head, [View()])

    def logits(block: PixelBlock, windows: list[Window]) -> torch.Tensor:
        area = Area(segmenter.encoder, block, windows, core, torch.ones(112, 112), stride=56)
        batches = Batches(
            device, None, window_pixels=112**2, patch_pixels=model.patch_size**2, queries=4
        )
        _, rows = next(iter(merged(run_windows(scorer, area, batches), core)))
        return rows

    one, of_many = logits(narrow, windows[:1]), logits(wide, windows)
    assert torch.equal(one[:, :56], of_many[:, :56])


@pytest.mark.parametrize("by", ["Ctrl-C", "an error"])
def test_an_interruption_leaves_the_threads_as_they_were(
    threads: None, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    model = load_model("geoseg-tiny", device="cpu")
    segmenter = Segmenter(model, "road; water", Options(window=64, stride=32, templates="none"))
    block = PixelBlock(np.zeros((3, 160, 160), np.float32), np.ones((160, 160), dtype=bool))
    encode, calls = Encoder.__call__, itertools.count()

    def interrupted(encoder: Encoder, images: torch.Tensor) -> DenseFeatures:
        if next(calls) == 3:
            if by == "an error":
                raise RuntimeError("the encoder broke")
            _thread.interrupt_main()
            time.sleep(0.2)  # the main thread learns of it before the windows are done
        return encode(encoder, images)

    monkeypatch.setattr(Encoder, "__call__", interrupted)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt if by == "Ctrl-C" else RuntimeError):
            segmenter.logits(block)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert torch.get_num_threads() == 4
    for thread in threading.enumerate():
        if thread.name.startswith("geoseg-window"):  # one that had just been started
            thread.join(10)
            assert not thread.is_alive()
