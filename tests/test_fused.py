"""The fused upsampling kernel, as far as it can be tried without a GPU.

Triton interprets it on a CPU, which shows what it computes, and compiles it for cards that are not
here, which shows that they can run it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from geoseg.inference import cosines
from geoseg.model.upsampling import fused

pytest.importorskip("triton")


def python(code: str, **environment: str) -> str:
    """What a script prints in a process of its own: Triton reads its settings when it is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kernel_gives_what_the_plain_steps_give() -> None:
    """Also for other neighbourhoods, many channels, partly filled blocks and no doubling."""
    code = """
import torch
from geoseg.model.upsampling.fused import deviation
cpu = torch.device("cpu")
print(deviation(cpu), deviation(cpu, radius=3, channels=5), deviation(cpu, channels=130),
      deviation(cpu, radius=3, fine=(27, 23)))
"""
    found = [float(x) for x in python(code, TRITON_INTERPRET="1").split()]
    assert len(found) == 4
    # Not zero: the fix-up is in float16. Pixels have unit variance and more.
    assert all(0 < deviation < 4e-4 for deviation in found), found


@pytest.mark.slow
def test_logits_are_those_of_the_plain_steps() -> None:
    """All steps, the norms and the cosines; also nearly exact norms."""
    code = """
import torch
from geoseg.model.upsampling import fused
from geoseg.inference.head import Head
from geoseg.inference.steps import ClsBias
from geoseg.model.upsampling import learned
from geoseg.model.upsampling.learned import LearnedJbu
from geoseg.model.vision import DenseFeatures
from tests.test_segmenter import jbu_state

upsampler = LearnedJbu(jbu_state(7, 128, stack=False), source="random")
torch.manual_seed(1)
smooth = torch.randn(1, 100, 6) @ torch.randn(1, 6, 128)
features = DenseFeatures(torch.randn(1, 128), smooth + 0.01 * torch.randn(1, 100, 128), (10, 10))
text = torch.nn.functional.normalize(torch.randn(3, 128), dim=-1)
guidance = torch.randn(1, 3, 80, 80)

def logits(exact):
    return Head(text, upsampler, (ClsBias(0.3),), exact)(features, guidance)

plain = logits(True)
learned.LearnedJbu.step = lambda self, index, guidance, coarse, fine: fused.FusedStep(
    self.weights(index),
    torch.nn.functional.adaptive_avg_pool2d(guidance, fine).permute(0, 2, 3, 1).contiguous(),
)
print(*(float((logits(exact) - plain).abs().max()) for exact in (True, False)))
"""
    exact, nearly = python(code, TRITON_INTERPRET="1").split()
    assert 0 < float(exact) < 1e-4
    assert 0 < float(nearly) < 5e-4


def test_sketched_directions_are_orthonormal_and_nearly_the_best() -> None:
    torch.manual_seed(0)
    strength = torch.arange(1, 197) ** -1.0
    left, right = (torch.linalg.qr(torch.randn(2, n, 196)).Q for n in (196, 512))
    tokens = (left * strength) @ right.mT
    found = cosines._sketched_directions(tokens, others=20)
    assert found is not None
    assert found.shape == (2, 512, 48)
    assert (found.mT @ found - torch.eye(48)).abs().max() < 1e-5
    outside = (tokens - tokens @ found @ found.mT).square().sum((1, 2))
    assert (outside < 1.25 * strength[48:].square().sum()).all()
    assert cosines._sketched_directions(tokens, others=100) is None  # exact norms cost no more


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("taps", "all_taps", "channels"), [(11, 128, 69), (11, 128, 205), (7, 64, 40)]
)
def test_the_kernel_compiles_for_cards_that_are_not_here(
    capability: int, taps: int, all_taps: int, channels: int
) -> None:
    """And asks for no more shared memory than consumer cards have."""
    code = f"""
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from geoseg.model.upsampling.fused import upsample_blocks as kernel

constants = dict(SIDE=8, TAPS={taps}, ALL_TAPS={all_taps}, RANGE=32, CHANNELS={channels}, SOME=32,
                 SOME_CHANNELS=64, SOME_UNITS=16)
halves, whole = ("first", "second"), ("blocks", "rows", "cols")
signature = {{
    name: "constexpr" if name in constants else "i32" if name in whole
    else "*fp16" if name in halves else "*fp32"
    for name in kernel.arg_names
}}
places = {{(kernel.arg_names.index(name),): value for name, value in constants.items()}}
aligned = {{
    (place,): [["tt.divisibility", 16]]
    for place, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
}}
source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
made = compile(source, target=GPUTarget("cuda", {capability}, 32),
               options=dict(num_warps=8, enable_fp_fusion=True))
print(made.metadata.shared, len(made.asm["cubin"]))
"""
    shared, binary = map(int, python(code).split())
    assert 0 < shared <= 99 * 1024
    assert binary > 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fused.works.cache_clear()
    yield torch.device("cuda")
    fused.works.cache_clear()


def taken(gpu: torch.device, fine: tuple[int, int] = (224, 224)) -> bool:
    with torch.no_grad():
        return fused.takes(fine, 5, gpu)


def test_it_is_taken_where_it_was_seen_to_work(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, "deviation", lambda device, **step: 1e-5)
    assert taken(gpu)
    assert not fused.takes((224, 224), 5, gpu)  # gradients are wanted
    assert not taken(gpu, (4096, 4096))
    assert not taken(torch.device("cpu"))
    assert not caplog.records


def test_an_old_card_does_not_try(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(fused, "deviation", lambda device, **step: 1e-5)
    assert not taken(gpu)


@pytest.mark.parametrize("found", [0.5, float("nan")])
def test_a_wrong_kernel_is_not_taken(
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    found: float,
) -> None:
    monkeypatch.setattr(fused, "deviation", lambda device, **step: found)
    with caplog.at_level(logging.WARNING):
        assert not taken(gpu)
    assert "is wrong" in caplog.text


def test_a_card_that_cannot_run_it_goes_on_without(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(device: torch.device, **step: object) -> float:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(fused, "deviation", fails)
    with caplog.at_level(logging.WARNING):
        assert not taken(gpu)
        assert not taken(gpu)
    assert caplog.text.count("no kernel image") == 1
