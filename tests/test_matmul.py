"""Matrix products, whichever library makes them, and what is built on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.model.attention.trunk import attend
from geoseg.model.checkpoint import read_state_dict
from geoseg.model.spec import bundled_folder
from geoseg.model.upsampling.blocks import BLOCK, axis, doubling
from geoseg.model.upsampling.learned import LearnedJbu
from geoseg.runtime import matmul


@pytest.fixture(params=["PyTorch's own", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    wanted = request.param == "oneDNN"
    if wanted and not matmul._works():
        pytest.skip("oneDNN rounds here, or this PyTorch cannot be told to take it")
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: wanted)
    with matmul.full_width():
        yield str(request.param)


def setting() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


@settings(max_examples=25, deadline=None)
@given(
    lead=st.lists(st.integers(1, 5), max_size=2),
    inner=st.integers(1, 400),
    outer=st.integers(1, 90),
    onednn=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_keep_the_precision_of_float32(
    lead: list[int], inner: int, outer: int, onednn: bool, seed: int
) -> None:
    """Also of tensors that are views into others; bfloat16 would be wrong in the third digit."""
    torch.manual_seed(seed)
    x = torch.rand(*lead, 40, 2 * inner)[..., ::2]
    weight, bias = torch.rand(inner, outer).T, torch.rand(outer, 2)[:, 0]
    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(matmul, "_onednn_is_faster", lambda: onednn and matmul._works())
        with matmul.full_width():
            linear, product = F.linear(x, weight, bias), x @ weight.mT
    exact = x.double() @ weight.double().mT
    assert torch.allclose(product.double(), exact, rtol=1e-5, atol=0)
    assert torch.allclose(linear.double(), exact + bias.double(), rtol=1e-5, atol=0)


def test_the_setting_is_put_back_by_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    if not matmul._works():
        pytest.skip("this PyTorch has no such setting")
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: True)
    before = setting()
    with matmul.full_width():
        inside = setting()
        with pytest.raises(ZeroDivisionError), matmul.full_width():
            raise ZeroDivisionError
        assert setting() == inside != before
    assert setting() == before


def test_threads_share_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leaves early takes nothing from one that is still inside."""
    if not matmul._works():
        pytest.skip("this PyTorch has no such setting")
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: True)
    before, entered, leave = setting(), threading.Event(), threading.Event()

    def stay() -> str:
        with matmul.full_width():
            entered.set()
            assert leave.wait(10)
            return setting()

    with ThreadPoolExecutor(1) as pool:
        with matmul.full_width():
            inside, other = setting(), pool.submit(stay)
            assert entered.wait(10)
        leave.set()
        assert other.result(10) == inside
    assert setting() == before


def test_nothing_happens_where_it_would_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: False)
    x = torch.rand(2, 3)
    with matmul.full_width():
        assert not matmul.has_full_width(x)
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: True)
    assert matmul.has_full_width(x)
    assert not matmul.has_full_width(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not matmul.has_full_width(x)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [197, 1025])
def test_attention_is_the_sum_of_softmaxes(library: str, tokens: int, biased: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, tokens, 24).unbind()
    bias = torch.randn(tokens, tokens) if biased else torch.zeros(tokens, tokens)
    with torch.no_grad():
        found = attend([(q, q), (q, k)], v, bias if biased else None)
    similar = [(a @ b.mT / 24**0.5 + bias).softmax(-1) for a, b in ((q, q), (q, k))]
    assert found.shape == v.shape
    assert (found - (similar[0] + similar[1]) @ v).abs().max() < 1e-5


@pytest.mark.parametrize("radius", [1, 3, 5])
def test_doubling_repeats_every_two_pixels(radius: int) -> None:
    inside = axis(8 * BLOCK, 4 * BLOCK, radius, torch.device("cpu")).weights[3]
    near, taps = doubling(radius, torch.device("cpu")), 2 * radius + 1
    for place in range(BLOCK):
        expected = torch.zeros(taps, inside.shape[1])
        expected[:, place // 2 : place // 2 + near.shape[2]] = near[place % 2]
        assert torch.equal(inside[place : place + taps], expected)


@pytest.mark.parametrize("size", [(224, 224), (224, 160), (120, 168)])
def test_blocks_inside_are_upsampled_like_any(library: str, size: tuple[int, int]) -> None:
    """Without gradients, blocks inside take the fix-up and the bicubic weights in one product."""
    file: Path = bundled_folder() / "simfeatup.pt"
    upsampler = LearnedJbu(read_state_dict(file), source=str(file))
    torch.manual_seed(1)
    guidance, grid = torch.randn(1, 3, *size), (size[0] // 8, size[1] // 8)
    tokens = torch.randn(1, 5, *grid)
    one_way = upsampler.operator(guidance, grid)(tokens)
    with torch.no_grad():
        other = upsampler.operator(guidance, grid)(tokens)
    assert (one_way - other).abs().max() < 1e-5 * one_way.abs().max()
