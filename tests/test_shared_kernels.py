"""Kernels that overlapping windows share are the kernels each of them would make."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.inference.runners.shared import windows as shared_windows
from geoseg.inference.runners.shared.kernels import SharedKernels
from geoseg.inference.scorer import Encoder
from geoseg.inference.segmenter import Segmenter
from geoseg.model.loading import Model, load_model
from geoseg.model.upsampling.learned import LearnedJbu
from geoseg.options import Options
from geoseg.testing import drawn_rgb, tiny_random_model
from geoseg.tiling.tiles import TilePlan
from geoseg.types import PixelBlock, Window

EVERY = ("labels", "confidence", "margin", "probabilities")
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
    state |= {
        f"{name}.bias": 0.1 * torch.randn(shape[0], generator=generator)
        for name, shape in shapes.items()
    }
    return {
        **state,
        "up.range_temp": torch.tensor(0.3),
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


def window(shared: SharedKernels, row: int, col: int, tokens: torch.Tensor) -> torch.Tensor:
    """All steps of the window at a place, the last one cell by cell: ``(side, side, C)``."""
    place = shared.place(row, col)
    assert place is not None
    coarse = shared.before_last(place, tokens)
    found = {}
    for cell in shared.cells(place):
        blocks = torch.cat(list(shared.last(cell, [place], [coarse])))
        found[cell] = shared.image(blocks[:, :, :, 0])
    rows = sorted({row for row, _ in found})
    return torch.cat(
        [torch.cat([found[cell] for cell in sorted(found) if cell[0] == row], 1) for row in rows]
    )


@pytest.mark.parametrize(("side", "stride", "grid"), [(96, 32, 6), (128, 64, 8), (64, 16, 4)])
def test_every_window_upsamples_as_if_it_were_alone(
    upsampler: LearnedJbu, side: int, stride: int, grid: int
) -> None:
    pixels = area(side + 2 * stride, side + 3 * stride)
    shared = sharing(upsampler, pixels, window=side, stride=stride, grid=grid)
    tokens = torch.randn(1, CHANNELS, grid, grid)
    for row in range(0, 2 * stride + 1, stride):
        for col in range(0, 3 * stride + 1, stride):
            own = pixels[None, :, row : row + side, col : col + side]
            expected = upsampler.operator(own, (grid, grid))(tokens)[0]
            found = window(shared, row, col, tokens)
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_windows_that_cover_a_cell_upsample_it_together(upsampler: LearnedJbu) -> None:
    """Whichever of them there are: borders lie at other sides of the cell for each."""
    shared = sharing(upsampler, area(160, 160))
    cell = (2, 2)
    places = [(row, col) for row in (0, 1, 2) for col in (0, 1, 2)]
    coarse = [shared.before_last(p, torch.randn(1, CHANNELS, 6, 6)) for p in places]
    alone = [
        torch.cat(list(shared.last(cell, [p], [x])))[..., 0, :]
        for p, x in zip(places, coarse, strict=True)
    ]
    for chosen in (range(9), [0, 2, 3, 8], [8, 0], [4]):
        given = [places[k] for k in chosen], [coarse[k] for k in chosen]
        together = torch.cat(list(shared.last(cell, *given)))
        expected = torch.stack([alone[k] for k in chosen], dim=-2)
        assert (together - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_window_gets_the_same_bits_from_every_area(upsampler: LearnedJbu) -> None:
    """Whatever lies around it, and whichever windows came before."""
    pixels, tokens = area(160, 192), torch.randn(1, CHANNELS, 6, 6)
    whole = sharing(upsampler, pixels)
    window(whole, 0, 0, tokens)
    expected = window(whole, 32, 64, tokens)
    cut = sharing(upsampler, pixels[:, 32:135, 57:170], origin=(-32, -57))
    assert torch.equal(window(cut, 0, 7, tokens), expected)


def test_places_in_the_lattice(upsampler: LearnedJbu) -> None:
    shared = sharing(upsampler, area(160, 192), origin=(5, 0))
    assert shared.place(0, 0) is None
    assert shared.place(5, 0) == (0, 0)
    assert shared.place(37, 61) is None
    for side, stride in ((96, 12), (100, 32), (96, 96), (96, 120), (0, 32)):
        assert not SharedKernels.worthwhile(upsampler, side, stride, max(side // 16, 1))
    assert SharedKernels.worthwhile(upsampler, 224, 112, 14)


def made(folder: Path, **options: object) -> Segmenter:
    """A segmenter whose windows share kernels."""
    model = load_model(tiny_random_model(folder), device="cpu")
    file = folder / "upsampler.pt"
    torch.save(weights(model.embedding_size), file)
    given = {"window": 96, "stride": 32, "templates": "none", **options}
    chosen = Options(upsampler="simfeatup", upsampler_weights=str(file), **given)
    return Segmenter(model, "building; road; water; tree", chosen)


def alone(segmenter: Segmenter, block: PixelBlock) -> np.ndarray:
    """Logits ``(Q, H, W)``, and their mean over windows with data, each upsampled by itself."""
    side, blend = segmenter.options.window, segmenter.options.blend
    shape = block.valid.shape
    ramp = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    weight = np.outer(ramp, ramp) if blend == "hann" else np.ones((side, side))
    pixels = segmenter.encoder.normalise(block)
    total, weights = 0.0, np.full(shape, 1e-12)
    for one in segmenter.lattice(*shape).touching(Window(0, 0, *shape)):
        here = one.slices()
        if not block.valid[here].any():
            continue
        logits = segmenter.window_logits(pixels[None, :, *here])[0].permute(2, 0, 1).numpy()
        padded = np.zeros((len(logits), *shape))
        padded[:, *here] = weight * logits
        total, weights[here] = total + padded, weights[here] + weight
    return np.float32(total / weights)


def scene(height: int, width: int) -> PixelBlock:
    rgb = drawn_rgb(Window(0, 0, height, width)).astype(np.float32) / 255
    return PixelBlock(rgb, np.ones((height, width), dtype=bool))


@pytest.fixture(scope="module")
def bundled() -> Model:
    return load_model("geoseg-tiny", device="cpu")


def ask(model: Model, **options: object) -> Segmenter:
    given = {"upsampler": "simfeatup", "templates": "none", "cls_bias": 0.3, **options}
    return Segmenter(model, "building; road; water; tree", Options(**given))


@pytest.mark.parametrize(
    ("window", "stride", "blend"), [(112, 56, "uniform"), (96, 32, "hann"), (64, 32, "hann")]
)
def test_sharing_changes_no_logit_beyond_the_tolerance(
    bundled: Model, window: int, stride: int, blend: str
) -> None:
    """Also with windows moved inwards: nothing more than norms that are nearly exact."""
    block = scene(171, 133)
    given = {"window": window, "stride": stride, "blend": blend}
    exact, nearly = (ask(bundled, **given, exact=exact) for exact in (True, False))
    expected = alone(exact, block)
    assert np.abs(exact.logits(block) - expected).max() < 1e-5
    assert 0 < np.abs(nearly.logits(block) - expected).max() < 5e-4


@pytest.mark.parametrize("batch", [1, 4])
def test_windows_without_data_are_left_out_of_the_sharing(bundled: Model, batch: int) -> None:
    segmenter = ask(bundled, window=96, stride=32, batch_size=batch, exact=True)
    block = scene(171, 205)
    block.valid[:, :100] = False
    block.valid[40:50, 20] = True
    tile = segmenter.plan((171, 205), 512)[0]
    found = segmenter.segment_tile(block, tile, rasters=EVERY)
    assert found.windows < len(tile.windows)
    expected = segmenter.decide(alone(segmenter, block))
    valid = block.valid
    assert found.probabilities is not None
    difference = found.probabilities[:, valid] - 100 * expected.scores[:, valid]
    assert np.abs(difference).max() < 0.51  # per cent, rounded
    assert (found.labels[valid] == expected.labels[valid]).mean() > 0.999
    assert (found.labels[~valid] == 255).all()


@pytest.mark.parametrize("tolerance", [3e-5, 1e-9])
def test_windows_get_exact_norms_where_they_need_them(
    bundled: Model, monkeypatch: pytest.MonkeyPatch, tolerance: float
) -> None:
    """Whatever error is allowed: some windows keep to it with few directions, others cannot."""
    block = scene(128, 160)
    given = {"window": 96, "stride": 32, "blend": "hann"}
    exact = ask(bundled, **given, exact=True).logits(block)
    usual = np.abs(ask(bundled, **given).logits(block) - exact).max()
    monkeypatch.setattr(shared_windows, "LOGIT_TOLERANCE", tolerance)
    strict = np.abs(ask(bundled, **given).logits(block) - exact).max()
    assert strict <= max(tolerance, 1e-6)
    assert strict < usual


@settings(max_examples=3, deadline=None)
@given(
    height=st.integers(96, 160),
    width=st.integers(96, 160),
    tile=st.sampled_from([32, 64, 96]),
)
def test_labels_do_not_depend_on_tiles(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, tile: int
) -> None:
    segmenter = made(tmp_path_factory.mktemp("model"))
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


def test_a_window_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that other threads put together do not wait for it for ever."""
    segmenter = made(tmp_path)
    encode, calls = Encoder.__call__, itertools.count()

    def failing(encoder: Encoder, images: torch.Tensor) -> Any:
        if next(calls) == 5:
            raise RuntimeError("the encoder broke")
        return encode(encoder, images)

    monkeypatch.setattr(Encoder, "__call__", failing)
    rgb = np.random.default_rng(0).random((3, 224, 224), dtype=np.float32)
    with pytest.raises(RuntimeError, match="the encoder broke"):
        segmenter.logits(PixelBlock(rgb, np.ones((224, 224), dtype=bool)))
