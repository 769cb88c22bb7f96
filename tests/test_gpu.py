"""What only a GPU can show: its numbers, its memory, its queue and its own kernel.

``GEOSEG_TEST_DEVICE=cpu`` runs them on a CPU, which tries the tests rather than the GPU; with
``TRITON_INTERPRET=1`` also those of the fused kernel. ``cuda:1`` takes another GPU.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geoseg.errors import OptionError
from geoseg.inference.recipe import Recipe
from geoseg.inference.regions import Superpixels
from geoseg.inference.segmenter import Segmenter
from geoseg.model.loading import load_model
from geoseg.model.upsampling import fused
from geoseg.options import Options
from geoseg.runtime.transfer import Arriving, one_behind, to_device
from geoseg.types import FloatArray, LabelArray, PixelBlock

ROOT = Path(__file__).resolve().parents[1]
WORDS = "building; road; water; tree; cropland"
WINDOW, STRIDE = 64, 32
CLEAR_ON_ANY_DEVICE = 1e-3
"""Logits further apart than this keep their order on every device."""
CLEAR_IN_ANY_BATCH = 1e-4
"""The same for windows that are batched in another way on one device."""
UPSAMPLERS = ("none", "jbu", "simfeatup")


@pytest.fixture(scope="session")
def device() -> torch.device:
    name = os.environ.get("GEOSEG_TEST_DEVICE", "cuda")
    if name != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    return torch.device(name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Windows run in the calling thread, where a CPU's are too few to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def segmenter(device: torch.device | str, words: str = WORDS, **options: Any) -> Segmenter:
    given = {"window": WINDOW, "stride": STRIDE, "precision": "fp32", "templates": "none"}
    return Segmenter(
        load_model("geoseg-tiny", device=str(device)), words, Options(**(given | options))
    )


def block_of(name: str, height: int, width: int) -> PixelBlock:
    """Upper left part of a sample tile."""
    with rasterio.open(ROOT / "sample_tiles" / f"{name}.tif") as scene:
        rgb = scene.read([1, 2, 3]).astype(np.float32)[:, :height, :width] / 255
    return PixelBlock(np.ascontiguousarray(rgb), np.ones(rgb.shape[1:], dtype=bool))


def labels_of(one: Segmenter, block: PixelBlock, tile: int = 10_000) -> LabelArray:
    """Labels of an image that is cut into tiles of this side."""
    labels = np.zeros(block.valid.shape, np.uint8)
    for part in one.plan(block.valid.shape, tile):
        here = part.read.slices()
        read = PixelBlock(block.rgb[(slice(None), *here)].copy(), block.valid[here].copy())
        labels[part.core.slices()] = one.segment_tile(read, part).labels
    return labels


def clear(logits: FloatArray, apart: float) -> Any:
    """Pixels whose two best logits are further apart than this."""
    second, first = np.sort(logits, axis=0)[-2:]
    return first - second > apart


# -- numbers ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("radius", "channels", "fine"),
    [
        (5, 40, (20, 22)),
        (5, 69, (224, 224)),
        (5, 131, (40, 47)),
        (5, 205, (27, 23)),
        (5, 512, (20, 22)),
        (3, 5, (20, 22)),
        (3, 40, (56, 61)),
        (3, 64, (27, 23)),
        (2, 1, (21, 20)),
    ],
)
def test_the_fused_kernel_gives_what_the_plain_steps_give(
    device: torch.device, radius: int, channels: int, fine: tuple[int, int]
) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no Triton")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("a CPU only interprets the kernel")
    if device.type == "cpu" and fine[0] * fine[1] * channels > 2**16:
        pytest.skip("too large to be interpreted")
    found = fused.deviation(device, radius=radius, channels=channels, fine=fine)
    # Not zero: the fix-up is in float16. Pixels have unit variance and more, and the largest error
    # of seven million numbers lies further out than that of fewer.
    assert 0 < found < (1e-3 if channels * fine[0] * fine[1] > 2**20 else 4e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("radius", [5, 3])
def test_the_fused_kernel_is_taken(device: torch.device, radius: int) -> None:
    if device.type == "cpu" or torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("not a device for the kernel")
    with torch.no_grad():
        assert fused.takes((224, 224), radius, device)


@pytest.mark.gpu
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
@pytest.mark.parametrize("tile", ["town_river", "farmland_lakes", "coast_swath"])
def test_labels_are_those_of_a_cpu(device: torch.device, upsampler: str, tile: str) -> None:
    block = block_of(tile, 200, 231)
    wanted, found = (segmenter(place, upsampler=upsampler) for place in ("cpu", device))
    logits = wanted.logits(block)
    differ = labels_of(found, block) != wanted.decide(logits).labels
    assert not (differ & clear(logits, CLEAR_ON_ANY_DEVICE)).any()
    assert differ.mean() < 0.01
    assert len(np.unique(labels_of(found, block))) > 1  # there is something to differ in


@pytest.mark.gpu
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_tiled_labels_are_those_of_the_whole(device: torch.device, upsampler: str) -> None:
    block = block_of("town_river", 300, 250)
    one = segmenter(device, upsampler=upsampler)
    whole, unclear = labels_of(one, block), ~clear(one.logits(block), CLEAR_IN_ANY_BATCH)
    for tile in (WINDOW, 3 * STRIDE):
        differ = labels_of(one, block, tile) != whole
        assert not (differ & ~unclear).any()
        assert differ.sum() <= max(differ.size / 50_000, 1)


@pytest.mark.gpu
def test_superpixels_are_those_of_a_cpu(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(3, 60, 70, generator=generator).repeat_interleave(3, 1)
    valid = torch.rand(180, 70, generator=generator) > 0.05
    method = Superpixels()
    here, there = (method.numbers(rgb.to(to), valid.to(to), (3, 5))[0] for to in ("cpu", device))
    assert torch.equal(there.cpu()[valid], here[valid])


@pytest.mark.gpu
def test_a_second_run_gives_the_same_bits(device: torch.device) -> None:
    block = block_of("coast_swath", 200, 200)
    for upsampler in UPSAMPLERS:
        one = segmenter(device, upsampler=upsampler, precision="auto")
        assert np.array_equal(one.logits(block), one.logits(block))


@pytest.mark.gpu
def test_settings_of_the_process_are_left_as_they_were(device: torch.device) -> None:
    def settings() -> tuple[object, ...]:
        return (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        )

    before = settings()
    labels_of(segmenter(device, upsampler="simfeatup"), block_of("town_river", 100, 100))
    assert settings() == before


# -- memory -------------------------------------------------------------------------------------


class NothingLarger(TorchDispatchMode):
    """Refuses to make tensors of more bytes than this, in this thread."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.most_bytes = most_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.nbytes > self.most_bytes:
            raise torch.OutOfMemoryError(f"{made.nbytes} bytes")
        return made


@contextmanager
def little_memory(device: torch.device, more_bytes: int) -> Iterator[None]:
    """A GPU has so many bytes more than are in use; a CPU makes no tensor that large."""
    if device.type == "cpu":
        with NothingLarger(more_bytes // 4):
            yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    share = (torch.cuda.memory_reserved(device) + more_bytes) / total
    place = device.index or 0  # which has to be a number here
    torch.cuda.set_per_process_memory_fraction(share, place)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, place)


@pytest.mark.gpu
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("upsampler", ["none", "jbu"])
def test_windows_that_do_not_fit_run_in_halves(device: torch.device, upsampler: str) -> None:
    """In the same labels: also where all logits of a batch do not fit that was asked for."""
    batch, window = 64, 224
    block = block_of("town_river", 500, 500)
    given = {"upsampler": upsampler, "window": window, "stride": 32}
    usual = segmenter(device, **given, batch_size=4)
    wanted, logits = labels_of(usual, block), usual.logits(block)
    one = segmenter(device, **given, batch_size=batch)
    logits_bytes = 4 * window**2 * len(WORDS.split(";")) * batch
    with little_memory(device, logits_bytes * 3 // 2):  # each window is there twice for a while
        found = labels_of(one, block)
    assert 1 <= one.batch_size < batch
    differ = found != wanted
    assert not (differ & clear(logits, CLEAR_IN_ANY_BATCH)).any()
    assert differ.sum() <= max(differ.size / 50_000, 1)


# -- several at once ------------------------------------------------------------------------------


def at_once(segmenters: list[Segmenter], blocks: list[PixelBlock], times: int) -> list[Any]:
    """Labels of each block by its segmenter, in a thread each, again and again."""

    def again(one: Segmenter, block: PixelBlock) -> list[LabelArray]:
        return [labels_of(one, block) for _ in range(times)]

    with ThreadPoolExecutor(len(segmenters)) as pool:
        return list(pool.map(again, segmenters, blocks))


@pytest.mark.gpu
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_threads_do_not_disturb_each_other_on_a_device(
    device: torch.device, upsampler: str
) -> None:
    blocks = [block_of("town_river", 160, 200), block_of("farmland_lakes", 200, 160)]
    words = [WORDS, "roof; field; lake"]
    both = [segmenter(device, one, upsampler=upsampler) for one in words]
    alone = [labels_of(one, block) for one, block in zip(both, blocks, strict=True)]
    for found, wanted in zip(at_once(both, blocks, times=4), alone, strict=True):
        assert all(np.array_equal(labels, wanted) for labels in found)


@pytest.mark.gpu
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_devices_do_not_disturb_each_other(device: torch.device, upsampler: str) -> None:
    """Also where the second is not the current one."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        pytest.skip("a single GPU")
    blocks = [block_of("town_river", 160, 200), block_of("farmland_lakes", 200, 160)]
    both = [segmenter(f"cuda:{index}", upsampler=upsampler) for index in (0, 1)]
    alone = [labels_of(one, block) for one, block in zip(both, blocks, strict=True)]
    for found, wanted in zip(at_once(both, blocks, times=4), alone, strict=True):
        assert all(np.array_equal(labels, wanted) for labels in found)
    assert torch.cuda.current_device() == 0


# -- transfers ------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_arrays_come_back_as_they_were_sent(device: torch.device) -> None:
    """Whatever their type and order in memory, while the device has other work."""
    generator = np.random.default_rng(0)
    rgb = generator.random((3, 300, 200), dtype=np.float32)
    arrays = [rgb, rgb.transpose(2, 0, 1), rgb > 0.5, (255 * rgb).astype(np.uint8), rgb[:, :0]]
    busy = torch.ones(512, 512, device=device)
    for _ in range(20):
        busy = busy @ busy / 512
    sent = [to_device(array, device) for array in arrays]
    assert all(tensor.device.type == device.type for tensor in sent)
    turned = [tensor.flip(0) for tensor in sent]
    back = Arriving([*sent, *turned]).arrays()
    for found, wanted in zip(back, [*arrays, *(array[::-1] for array in arrays)], strict=True):
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)


@pytest.mark.gpu
def test_results_on_their_way_are_not_overwritten_by_later_ones(device: torch.device) -> None:
    """Memory of a strip is free for the next one while its copy is still under way."""
    arriving = (
        Arriving([torch.full((1000, 1000), value, device=device), torch.tensor([value]).to(device)])
        for value in range(50)
    )
    for wanted, one in enumerate(one_behind(arriving)):
        large, small = one.arrays()
        assert (large == wanted).all()
        assert small.tolist() == [wanted]


# -- other processes ------------------------------------------------------------------------------


def test_a_run_on_a_gpu_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = replace(Recipe.of(segmenter("cpu")), device="cuda")
    with pytest.raises(OptionError, match=r"no CUDA GPU.*--device cpu"):
        pickle.loads(pickle.dumps(recipe)).segmenter()


@pytest.mark.gpu
def test_a_segmenter_does_not_come_to_a_process_without_its_gpu(
    device: torch.device, tmp_path: Path
) -> None:
    file, block = tmp_path / "segmenter.pickle", block_of("town_river", 100, 100)
    one = segmenter(device, precision="auto")
    file.write_bytes(pickle.dumps(one))
    again = pickle.loads(file.read_bytes())
    assert again.device.type == device.type
    assert again.precision == one.precision
    assert np.array_equal(again.logits(block), one.logits(block))
    if device.type == "cpu":
        return
    code = f"import pickle; pickle.load(open({str(file)!r}, 'rb'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "OptionError: a worker has no CUDA GPU" in done.stderr
