"""Matrix products, whichever library makes them, and what is built on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.model import products
from geoseg.model.attention import attend
from geoseg.model.blocks import BLOCK, axis, doubling
from geoseg.model.checkpoint import read_state_dict
from geoseg.model.learned_jbu import LearnedJbu
from geoseg.model.spec import bundled_folder


@pytest.fixture(params=["PyTorch's own", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    wanted = request.param == "oneDNN"
    if wanted and not products._works():
        pytest.skip("this PyTorch has no oneDNN products")
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: wanted)
    return str(request.param)


@settings(max_examples=25, deadline=None)
@given(
    lead=st.lists(st.integers(1, 5), max_size=2),
    inner=st.integers(1, 40),
    outer=st.integers(1, 40),
    bias=st.booleans(),
    gelu=st.booleans(),
    onednn=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_linear_layers(
    lead: list[int], inner: int, outer: int, bias: bool, gelu: bool, onednn: bool, seed: int
) -> None:
    """Also of tensors that are views into others."""
    torch.manual_seed(seed)
    x = torch.randn(*lead, 3, 2 * inner)[..., ::2]
    weight, shift = torch.randn(inner, outer).T, torch.randn(outer, 2)[:, 0] if bias else None
    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(products, "_onednn_is_faster", lambda: onednn and products._works())
        found = products.linear(x, weight, shift, gelu=gelu)
    expected = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
    expected = F.gelu(expected) if gelu else expected
    assert found.dtype is torch.float32
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_gradients_and_autocast_take_pytorchs_way(library: str) -> None:
    x, weight = torch.randn(3, 4), torch.randn(2, 4, requires_grad=True)
    products.linear(x, weight, gelu=True).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight).dtype is torch.bfloat16


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [197, 785])
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
