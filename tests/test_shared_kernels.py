"""Kernels that overlapping windows share are the kernels each of them would make."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.inference import cosines, runners
from geoseg.inference.runners.shared import windows as shared_windows
from geoseg.inference.runners.shared.edges import EdgeWeights
from geoseg.inference.runners.shared.kernels import SharedKernels
from geoseg.inference.scorer import Encoder
from geoseg.inference.segmenter import Segmenter
from geoseg.model.loading import load_model
from geoseg.model.upsampling.blocks import BLOCK
from geoseg.model.upsampling.learned import LearnedJbu
from geoseg.model.upsampling.learned_step import Kernels, StepWeights
from geoseg.options import Options
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


def test_kernels_are_made_once(upsampler: LearnedJbu, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, strips = [], []
    kernels, edges = StepWeights.kernels, EdgeWeights.matrices

    def counted(self: StepWeights, *given: object) -> Kernels:
        result = kernels(self, *given)  # type: ignore[arg-type]
        blocks.append(result.shares[..., 0].numel() // BLOCK**2)
        return result

    def counted_edges(self: EdgeWeights, *given: object) -> torch.Tensor:
        result = edges(self, *given)  # type: ignore[arg-type]
        strips.append(result.shape[1])
        return result

    monkeypatch.setattr(StepWeights, "kernels", counted)
    monkeypatch.setattr(EdgeWeights, "matrices", counted_edges)
    pixels, tokens = area(256, 256), torch.zeros(1, CHANNELS, 8, 8)
    places = [(row, col) for row in range(3) for col in range(3)]
    for row, col in places:
        own = pixels[None, :, 64 * row : 64 * row + 128, 64 * col : 64 * col + 128]
        upsampler.operator(own, (8, 8))(tokens)
    alone = sum(blocks)
    blocks.clear()
    shared = sharing(upsampler, pixels, window=128, stride=64, grid=8)
    coarse = {place: shared.before_last(place, tokens) for place in places}
    # 4 x 4 cells, of n x n blocks at each step, and four corners each.
    before_last = sum(16 * (n * n + 4) for n in (4, 2, 1))
    assert sum(blocks) == before_last
    assert sum(strips) == 16 * (4 + 2 + 1)
    for place in places:
        shared.before_last(place, tokens)
    assert sum(blocks) == before_last
    for cell in {cell for place in places for cell in shared.cells(place)}:
        covering = [place for place in places if cell in shared.cells(place)]
        list(shared.last(cell, covering, [coarse[place] for place in covering]))
    assert sum(blocks) == before_last + 16 * (8 * 8 + 4)
    assert sum(strips) == 16 * (8 + 4 + 2 + 1)
    assert sum(blocks) < 0.6 * alone


def made(folder: Path, **options: object) -> Segmenter:
    """A segmenter whose windows share kernels."""
    model = load_model(tiny_random_model(folder), device="cpu")
    file = folder / "upsampler.pt"
    torch.save(weights(model.embedding_size), file)
    given = {"window": 96, "stride": 32, "templates": "none", **options}
    chosen = Options(upsampler="simfeatup", upsampler_weights=str(file), **given)
    return Segmenter(model, "building; road; water; tree", chosen)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("blend", ["uniform", "hann"])
def test_cell_by_cell_gives_what_whole_windows_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool, blend: str
) -> None:
    """Also with windows moved inwards, windows without data, and several to a batch."""
    monkeypatch.setattr(
        cosines, "_WORTHWHILE_SHARE", 10.0
    )  # few channels: norms from leading directions
    segmenter = made(tmp_path, exact=exact, blend=blend, cls_bias=0.3)
    rgb = np.random.default_rng(0).random((3, 171, 205), dtype=np.float32)
    valid = np.ones((171, 205), dtype=bool)
    valid[:, :100] = False
    valid[40:50, 20] = True
    block = PixelBlock(rgb, valid)
    tile = TilePlan(segmenter.lattice(171, 205), 512)[0]
    with monkeypatch.context() as alone:
        alone.setattr(runners, "shared_lattices", lambda *given: {})
        expected = segmenter.segment_tile(block, tile, probabilities=True)
        logits = segmenter.logits(block)
    assert np.abs(segmenter.logits(block) - logits).max() < 1e-5
    for batch in (1, 4):
        one = Segmenter(
            segmenter.model, segmenter.vocabulary, replace(segmenter.given, batch_size=batch)
        )
        found = one.segment_tile(block, tile, probabilities=True)
        for name in ("confidence", "margin", "probabilities"):
            a, b = (getattr(x, name).astype(int) for x in (found, expected))
            assert np.abs(a - b).max() <= 1, name  # per cent, rounded
        assert (found.labels == expected.labels).mean() > 0.999
        assert found.windows == expected.windows


def test_windows_moved_inwards_share_kernels_with_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the last column and of the last row are lattices of their own."""
    cells = []
    matrices = EdgeWeights.matrices

    def counted(self: EdgeWeights, *given: object) -> torch.Tensor:
        result = matrices(self, *given)  # type: ignore[arg-type]
        cells.append(result.shape[1] * BLOCK)
        return result

    monkeypatch.setattr(EdgeWeights, "matrices", counted)
    segmenter = made(tmp_path)
    rgb = np.random.default_rng(0).random((3, 170, 210), dtype=np.float32)
    segmenter.logits(PixelBlock(rgb, np.ones((170, 210), dtype=bool)))
    # Windows of three cells a side: 3 x 4 on the lattice, a column of 3, a row of 4, and a corner.
    assert sum(side == 32 for side in cells) == 5 * 6 + 5 * 3 + 3 * 6 + 3 * 3


def test_a_window_gets_exact_norms_in_the_cells_where_it_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosines, "_WORTHWHILE_SHARE", 10.0)
    rgb = np.random.default_rng(0).random((3, 160, 160), dtype=np.float32)
    block = PixelBlock(rgb, np.ones((160, 160), dtype=bool))
    exact = made(tmp_path, exact=True).logits(block)
    segmenter = made(tmp_path)
    near = segmenter.logits(block)
    assert 0 < np.abs(near - exact).max() < 5e-4
    nearly = shared_windows._nearly_summed

    def doubted(windows: Sequence[Any], chosen: Sequence[int], *given: Any) -> Any:
        found, doubts = nearly(windows, chosen, *given)
        return found, [doubt + (k in doubtful) for k, doubt in zip(chosen, doubts, strict=True)]

    monkeypatch.setattr(shared_windows, "_nearly_summed", doubted)
    doubtful = {0}
    mixed = segmenter.logits(block)
    assert 0 < np.abs(mixed - near).max() < 5e-4
    assert np.abs(mixed - exact).max() <= np.abs(near - exact).max()
    doubtful = set(range(9))
    assert np.abs(segmenter.logits(block) - exact).max() < 1e-6


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
