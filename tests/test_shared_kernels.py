"""Kernels that overlapping windows share are the kernels each of them would make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.inference.options import Options
from geoseg.inference.segmenter import Segmenter
from geoseg.model.blocks import BLOCK
from geoseg.model.learned_jbu import Kernels, LearnedJbu, StepWeights
from geoseg.model.loading import load_model
from geoseg.model.shared_kernels import SharedKernels
from geoseg.testing import tiny_random_model
from geoseg.tiling.tiles import TilePlan
from geoseg.types import PixelBlock

TAPS, CHANNELS = 11, 6


def weights(channels: int = CHANNELS) -> dict[str, torch.Tensor]:
    """Random JBU-One weights under the published names."""
    generator = torch.Generator().manual_seed(0)

    def layer(out: int, into: int) -> torch.Tensor:
        return torch.randn(out, into, 1, 1, generator=generator) / into**0.5

    shapes = {
        "up.range_proj.0": (32, 3),
        "up.range_proj.3": (32, 32),
        "up.fixup_proj.0": (TAPS**2, TAPS**2 + 3),
        "up.fixup_proj.3": (TAPS**2, TAPS**2),
        "fixup_proj.1": (channels, channels),
    }
    state = {f"{name}.weight": layer(*shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    return {
        **state,
        "up.range_temp": torch.tensor(0.0),
        "up.sigma_spatial": torch.tensor(0.7),
    }


@pytest.fixture(scope="module")
def upsampler() -> LearnedJbu:
    return LearnedJbu(weights(), source="random")


def area(height: int, width: int) -> torch.Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(1))


def sharing(upsampler: LearnedJbu, pixels: torch.Tensor, **changes: object) -> SharedKernels:
    given = {"origin": (0, 0), "window": 96, "stride": 32, "grid": 6, **changes}
    return SharedKernels(upsampler, pixels, **given)


def test_every_window_upsamples_as_if_it_were_alone(upsampler: LearnedJbu) -> None:
    pixels = area(160, 192)
    shared = sharing(upsampler, pixels)
    tokens = torch.randn(1, CHANNELS, 6, 6)
    for row in range(0, 65, 32):
        for col in range(0, 97, 32):
            operator = shared.operator(row, col)
            assert operator is not None
            alone = upsampler.operator(pixels[None, :, row : row + 96, col : col + 96], (6, 6))
            expected = alone(tokens)
            assert (operator(tokens) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_window_gets_the_same_bits_from_every_area(upsampler: LearnedJbu) -> None:
    """Whatever lies around it, and whichever windows came before."""
    pixels, tokens = area(160, 192), torch.randn(1, CHANNELS, 6, 6)
    whole = sharing(upsampler, pixels)
    whole.operator(0, 0)(tokens)  # type: ignore[misc]
    expected = whole.operator(32, 64)(tokens)  # type: ignore[misc]
    cut = sharing(upsampler, pixels[:, 32:135, 57:170], origin=(-32, -57))
    found = cut.operator(0, 7)
    assert found is not None
    assert torch.equal(found(tokens), expected)


def test_windows_off_the_lattice_are_left_to_themselves(upsampler: LearnedJbu) -> None:
    shared = sharing(upsampler, area(160, 192), origin=(5, 0))
    assert shared.operator(0, 0) is None
    assert shared.operator(5, 0) is not None
    assert shared.operator(37, 61) is None
    for window, stride in ((96, 12), (100, 32), (96, 96), (96, 120), (0, 32)):
        assert not SharedKernels.worthwhile(upsampler, window, stride, max(window // 16, 1))
    assert SharedKernels.worthwhile(upsampler, 224, 112, 14)


def test_kernels_are_made_once(upsampler: LearnedJbu, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []
    original = StepWeights.kernels

    def counted(self: StepWeights, *given: object) -> Kernels:
        result = original(self, *given)  # type: ignore[arg-type]
        blocks.append(result.shares[..., 0].numel())
        return result

    monkeypatch.setattr(StepWeights, "kernels", counted)
    pixels, tokens = area(256, 256), torch.zeros(1, CHANNELS, 8, 8)
    places = [(row, col) for row in range(0, 129, 64) for col in range(0, 129, 64)]
    for row, col in places:
        window = pixels[None, :, row : row + 128, col : col + 128]
        upsampler.operator(window, (8, 8))(tokens)
    alone = sum(blocks)
    blocks.clear()
    shared = sharing(upsampler, pixels, window=128, stride=64, grid=8)
    for row, col in places:
        shared.operator(row, col)(tokens)  # type: ignore[misc]
    # 4 x 4 cells, of n x n blocks at each step: all as inside of windows and along their left and
    # right, 12 along their top and 12 along their bottom, corners included. The coarsest step has
    # borders only. Of the finest one the last row of blocks is made by itself (7 and 1 rows at a
    # time), and the 4 cells at the bottom, where only borders need it, go without.
    expected = sum(16 * (n * n + 2 * n) + 24 * (n + 2) for n in (8, 4, 2)) + 24 * 3 - 4 * 8
    assert sum(blocks) == expected * BLOCK**2
    assert sum(blocks) < alone
    for row, col in places:
        shared.operator(row, col)(tokens)  # type: ignore[misc]
    assert sum(blocks) == expected * BLOCK**2


@settings(max_examples=3, deadline=None)
@given(
    height=st.integers(96, 160),
    width=st.integers(96, 160),
    tile=st.sampled_from([32, 64, 96]),
)
def test_labels_do_not_depend_on_tiles(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, tile: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    model = load_model(tiny_random_model(folder), device="cpu")
    file = folder / "upsampler.pt"
    torch.save(weights(model.embedding_size), file)
    options = Options(
        upsampler="simfeatup", upsampler_weights=str(file), window=96, stride=32, templates="none"
    )
    segmenter = Segmenter(model, "building; road; water; tree", options)
    rgb = np.random.default_rng(0).random((3, height, width), dtype=np.float32)
    block = PixelBlock(rgb, np.ones((height, width), dtype=bool))
    maps = []
    for side in (tile, 10_000):
        found = np.zeros((2, height, width), np.uint8)
        for one in TilePlan(segmenter.lattice(height, width), side):
            part = PixelBlock(np.ascontiguousarray(rgb[(slice(None), *one.read.slices())]),
                              block.valid[one.read.slices()])  # fmt: skip
            result = segmenter.segment_tile(part, one)
            found[(0, *one.core.slices())] = result.labels
            found[(1, *one.core.slices())] = result.confidence
        maps.append(found)
    assert np.array_equal(*maps)
