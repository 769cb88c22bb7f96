"""Pixels to labels: exact upsampling, fusion of windows, decisions, and what must not matter."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg import methods
from geoseg.errors import OptionError, SceneError, TilingError, VocabularyError, WeightsError
from geoseg.inference.decide import Decision
from geoseg.inference.head import Head
from geoseg.inference.runners import area
from geoseg.inference.scorer import Encoder
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.steps import ClsBias
from geoseg.model.loading import Model, load_model
from geoseg.model.upsampling.base import Fit
from geoseg.model.upsampling.jbu import Jbu, JbuUpsampler
from geoseg.model.upsampling.learned import LearnedJbu
from geoseg.model.vision import DenseFeatures
from geoseg.options import Options
from geoseg.runtime.transfer import Arriving, one_behind
from geoseg.testing import tiny_random_model
from geoseg.text.vocabulary import Vocabulary
from geoseg.tiling.tiles import TilePlan
from geoseg.types import PixelBlock

EVERY = ("labels", "confidence", "margin", "probabilities")
WORDS = "building, roof; road; water, river; tree"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_random_model(tmp_path_factory.mktemp("model")), device="cpu")


def noise(height: int, width: int, seed: int = 0) -> PixelBlock:
    """Blocky colour noise, everywhere valid."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((3, -(-height // 8), -(-width // 8)), dtype=np.float32)
    rgb = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    return PixelBlock(np.ascontiguousarray(rgb), np.ones((height, width), dtype=bool))


def jbu_state(taps: int, channels: int, stack: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a learned upsampler, under the published names."""
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name in [f"up{i}" for i in range(1, 5)] if stack else ["up"]:
        shapes = {
            "range_proj.0": (32, 3),
            "range_proj.3": (32, 32),
            "fixup_proj.0": (taps**2, taps**2 + 3),
            "fixup_proj.3": (taps**2, taps**2),
        }
        for layer, (out, into) in shapes.items():
            state[f"{name}.{layer}.weight"] = torch.randn(out, into, 1, 1) / into**0.5
            state[f"{name}.{layer}.bias"] = torch.randn(out) * 0.1
        state[f"{name}.range_temp"] = torch.tensor(0.0)
        state[f"{name}.sigma_spatial"] = torch.tensor(1.0)
    state["fixup_proj.1.weight"] = torch.randn(channels, channels, 1, 1) / channels**0.5
    state["fixup_proj.1.bias"] = torch.randn(channels)
    return state


# -- upsampling --------------------------------------------------------------------------------


def plain_step(
    state: dict[str, torch.Tensor], x: torch.Tensor, guidance: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """One step of the learned upsampler, features unfolded in full: slow and obvious."""
    radius = (int(state["up.fixup_proj.3.weight"].shape[0] ** 0.5) - 1) // 2
    taps = 2 * radius + 1
    small = torch.nn.functional.adaptive_avg_pool2d(guidance, size)

    def around(y: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(y, (radius,) * 4, mode="reflect")
        return torch.nn.functional.unfold(padded, taps).view(1, y.shape[1], taps**2, *size)

    features = torch.nn.functional.gelu(pointwise(state, "up.range_proj.0", small))
    features = pointwise(state, "up.range_proj.3", features)
    scores = (around(features) * features[:, :, None]).sum(1)
    weights = (scores * state["up.range_temp"].exp()).softmax(1)
    axis = torch.linspace(-1, 1, taps)
    distance = axis[:, None] ** 2 + axis**2
    spatial = torch.exp(-distance / (2 * state["up.sigma_spatial"] ** 2))
    weights = weights * spatial.view(1, -1, 1, 1)
    weights = weights / weights.sum(1, keepdim=True)
    joint = torch.cat([weights, small], 1)
    fixed = torch.nn.functional.gelu(pointwise(state, "up.fixup_proj.0", joint))
    weights = weights + 0.1 * pointwise(state, "up.fixup_proj.3", fixed)
    big = torch.nn.functional.interpolate(x, size=size, mode="bicubic")
    return (around(big) * weights[:, None]).sum(2)


def pointwise(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution."""
    return torch.nn.functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])


def plain_jbu(
    state: dict[str, torch.Tensor], tokens: torch.Tensor, guidance: torch.Tensor
) -> torch.Tensor:
    """The learned upsampler step by step."""
    x = tokens
    for _ in range(4):
        x = plain_step(state, x, guidance, (x.shape[2] * 2, x.shape[3] * 2))
    return x + 0.1 * pointwise(state, "fixup_proj.1", x)


@pytest.mark.parametrize("fine", [(20, 22), (31, 41), (100, 203), (15, 300)])
def test_a_step_may_have_any_ratio(fine: tuple[int, int]) -> None:
    """No doubling; also where several blocks lie inside one coarse pixel."""
    state = jbu_state(3, 6, stack=False)
    torch.manual_seed(5)
    guidance, x = torch.randn(1, 3, *fine), torch.randn(1, 6, 10, 11)
    step = LearnedJbu(state, source="random").step(0, guidance, (10, 11), fine)
    found = step.apply(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert (found - plain_step(state, x, guidance, fine)).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [8, 48])
def test_projected_upsampling_equals_upsampling_features(channels: int) -> None:
    """Channels through the operator, folded convolution and low-rank norms change nothing."""
    state = jbu_state(5, channels, stack=False)
    torch.manual_seed(3)
    grid = (3, 5)
    guidance = torch.randn(1, 3, 48, 80)
    features = DenseFeatures(torch.randn(1, channels), torch.randn(1, 15, channels), grid)
    text = torch.nn.functional.normalize(torch.randn(4, channels), dim=-1)
    upsampler = LearnedJbu(state, source="random")
    found = Head(text, upsampler, (ClsBias(0.3),))(features, guidance)
    planes = features.patches.transpose(1, 2).reshape(1, channels, *grid)
    dense = torch.nn.functional.normalize(plain_jbu(state, planes, guidance), dim=1)
    expected = torch.einsum("bdhw,qd->bhwq", dense, text)
    expected = expected - 0.3 * torch.nn.functional.normalize(features.cls, dim=-1) @ text.T
    assert (found - expected).abs().max() < 1e-5


def smooth_jbu_state(channels: int) -> dict[str, torch.Tensor]:
    """Weights as training leaves them: kernels near convex, a small last convolution."""
    state = jbu_state(5, channels, stack=False)
    return {k: v * 0.05 if "fixup_proj" in k else v for k, v in state.items()}


@pytest.mark.parametrize("rank", [3, 12])
def test_nearly_exact_norms_stay_within_their_tolerance(rank: int) -> None:
    """Tokens near a few directions: fewer channels, and logits within 5e-4."""
    torch.manual_seed(4)
    channels, grid = 160, (12, 12)
    guidance = torch.randn(1, 3, 96, 96)
    tokens = torch.randn(1, 144, rank) @ torch.randn(rank, channels)
    tokens = tokens + 5 * torch.randn(channels) + 0.02 * torch.randn(1, 144, channels)
    features = DenseFeatures(torch.randn(1, channels), tokens, grid)
    text = torch.nn.functional.normalize(torch.randn(5, channels), dim=-1)
    upsampler = LearnedJbu(smooth_jbu_state(channels), source="random")
    exact, nearly = (
        Head(text, upsampler, (ClsBias(0.3),), exact)(features, guidance) for exact in (True, False)
    )
    assert 0 < (exact - nearly).abs().max() <= 5e-4


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0, 100.0])
def test_norms_are_exact_where_the_estimate_could_be_wrong(noise: float) -> None:
    """The more tokens leave the few directions, the less do a few directions tell."""
    torch.manual_seed(5)
    guidance = torch.randn(1, 3, 96, 96)
    text = torch.nn.functional.normalize(torch.randn(5, 160), dim=-1)
    upsampler = LearnedJbu(smooth_jbu_state(160), source="random")
    tokens = torch.randn(1, 144, 3) @ torch.randn(3, 160) + noise * torch.randn(1, 144, 160)
    features = DenseFeatures(torch.randn(1, 160), tokens, (12, 12))
    exact, nearly = (
        Head(text, upsampler, (), exact)(features, guidance) for exact in (True, False)
    )
    assert (exact - nearly).abs().max() <= 5e-4
    if noise > 1:
        assert torch.equal(nearly, exact)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("name", "channels"), [("none", 8), ("jbu", 8), ("learned", 8), ("learned", 160)]
)
def test_windows_of_a_batch_do_not_meet(name: str, channels: int, exact: bool) -> None:
    """Several windows at once, as a GPU takes them, have the logits that each has alone."""
    torch.manual_seed(6)
    grid, count = (12, 10), 3
    guidance = torch.randn(count, 3, 96, 80)
    tokens = torch.randn(count, 120, 4) @ torch.randn(count, 4, channels)
    tokens = tokens + torch.randn(count, 1, channels) + 0.02 * torch.randn(count, 120, channels)
    cls = torch.randn(count, channels)
    text = torch.nn.functional.normalize(torch.randn(4, channels), dim=-1)
    upsampler = {
        "none": None,
        "jbu": JbuUpsampler(Jbu(), (0.27, 0.26, 0.28), torch.device("cpu")),
        "learned": LearnedJbu(smooth_jbu_state(channels), source="random"),
    }[name]

    def logits(some: slice) -> torch.Tensor:
        features = DenseFeatures(cls[some], tokens[some], grid)
        return Head(text, upsampler, (ClsBias(0.3),), exact)(features, guidance[some])

    together = logits(slice(None))
    assert together.shape == (count, 96, 80, 4)
    alone = torch.cat([logits(slice(k, k + 1)) for k in range(count)])
    assert (together - alone).abs().max() < (1e-5 if exact else 5e-4)


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(("patch", "grid"), [(8, (4, 5)), (14, (3, 4)), (32, (3, 3))])
def test_learned_upsamplers_reach_any_patch_size(
    stack: bool, patch: int, grid: tuple[int, int]
) -> None:
    upsampler = LearnedJbu(jbu_state(7, 6, stack), source="random")
    size = (grid[0] * patch, grid[1] * patch)
    operator = upsampler.operator(torch.randn(2, 3, *size), grid)
    first, second = torch.randn(2, 6, *grid), torch.randn(2, 6, *grid)
    out = operator(first)
    assert out.shape == (2, *size, 6)
    assert torch.allclose(operator(first + 2 * second), out + 2 * operator(second), atol=1e-3)


def test_jbu_keeps_constants_and_never_overshoots() -> None:
    upsampler = JbuUpsampler(Jbu(), (0.25, 0.25, 0.25), torch.device("cpu"))
    guidance = torch.randn(1, 3, 56, 84)
    operator = upsampler.operator(guidance, (4, 6))
    assert torch.allclose(operator(torch.full((1, 2, 4, 6), 0.7)), torch.tensor(0.7), atol=1e-6)
    tokens = torch.rand(1, 3, 4, 6)
    out = operator(tokens)
    assert out.min() >= tokens.min() - 1e-6
    assert out.max() <= tokens.max() + 1e-6


def test_jbu_follows_an_edge_of_the_guidance() -> None:
    """A class border inside a patch lands on the colour edge, not on the patch border."""
    guidance = torch.zeros(1, 3, 64, 64)
    guidance[..., 22:] = 4.0  # edge at column 22, inside the patch of columns 16 to 31
    tokens = torch.zeros(1, 1, 4, 4)
    tokens[..., 1:] = 1.0
    upsampler = JbuUpsampler(Jbu(), (0.25, 0.25, 0.25), torch.device("cpu"))
    out = upsampler.operator(guidance, (4, 4))(tokens)[0, 32, :, 0]
    assert abs(int((out > 0.5).float().argmax()) - 22) <= 1


def test_upsampler_weights_must_fit(tmp_path: Path) -> None:
    file = tmp_path / "one.pt"
    torch.save(
        {"state_dict": {f"upsampler.{k}": v for k, v in jbu_state(5, 8, False).items()}}, file
    )
    cpu, std = torch.device("cpu"), (0.25, 0.25, 0.25)

    def build(name: str, embedding: int = 8, weights: str | None = str(file)) -> object:
        fit = Fit(embedding, std, cpu, weights)
        return methods.resolve(methods.UPSAMPLERS, name).build(fit)

    assert build("simfeatup") is not None
    with pytest.raises(WeightsError, match="--upsampler simfeatup"):
        build("featup")
    with pytest.raises(WeightsError, match="8 channels, but the model has 64"):
        build("simfeatup", embedding=64)
    with pytest.raises(OptionError, match="--upsampler-weights"):
        build("simfeatup", weights=None)
    with pytest.raises(OptionError, match="none, jbu"):
        build("bicubic")
    torch.save({"state_dict": {"upsampler.up.range_temp": torch.tensor(0.0)}}, file)
    with pytest.raises(WeightsError, match=r"range_proj\.0\.weight"):
        build("simfeatup")


# -- decisions ---------------------------------------------------------------------------------


def decision(classes: list[int], scale: float = 50.0, **kwargs: object) -> Decision:
    values = {"thresholds": None, "background": 0} | kwargs
    return Decision(torch.tensor(classes), max(classes) + 1, scale, **values)


def test_two_queries_are_a_sigmoid_of_the_gap() -> None:
    logits = torch.tensor([[0.10, 0.12]])
    scores = decision([0, 1]).scores(logits)
    assert torch.allclose(scores[0, 1], torch.sigmoid(torch.tensor(50 * 0.02)))


def test_a_repeated_synonym_changes_no_label_and_lowers_scores() -> None:
    logits = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    once, twice = decision([0, 1, 2]), decision([0, 0, 1, 2])
    doubled = logits[:, [0, 0, 1, 2]]
    assert torch.equal(once.scores(logits).argmax(-1), twice.scores(doubled).argmax(-1))
    assert (twice.scores(doubled).amax(-1) <= once.scores(logits).amax(-1) + 1e-7).all()


def test_thresholds_general_and_of_one_class() -> None:
    logits = torch.tensor([[0.10, 0.12], [0.12, 0.10]])  # winners score 0.73
    thresholds = torch.tensor([0.5, 0.9])
    labels, best = decision([0, 1], thresholds=thresholds).labels(decision([0, 1]).scores(logits))
    assert labels.tolist() == [0, 0]
    assert best[0] > 0.7


def test_an_offset_favours_its_class() -> None:
    logits = torch.tensor([[0.10, 0.12, 0.08]])
    moved = decision([0, 0, 1], offsets=torch.tensor([0.0, 0.0, 0.05])).scores(logits)
    assert torch.allclose(moved, decision([0, 0, 1]).scores(torch.tensor([[0.10, 0.12, 0.13]])))


def test_offsets_of_the_vocabulary_reach_the_labels(model: Model) -> None:
    block = noise(64, 64)
    plain = Vocabulary.parse(WORDS)
    for number, entry in enumerate(plain.classes):
        classes = list(plain.classes)
        classes[number] = replace(entry, offset=1.0)
        found = Segmenter(model, Vocabulary(tuple(classes)))
        assert (found.decide(found.logits(block)).labels == number).all()


# -- windows -----------------------------------------------------------------------------------


def segmenter(model: Model, **options: object) -> Segmenter:
    return Segmenter(model, WORDS, Options(**options))


def tiled(segmenter: Segmenter, block: PixelBlock, tile: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = block.valid.shape
    labels = np.zeros((height, width), dtype=np.uint8)
    confidence = np.zeros((height, width), dtype=np.uint8)
    for one in TilePlan(segmenter.lattice(height, width), tile):
        part = PixelBlock(
            block.rgb[(slice(None), *one.read.slices())], block.valid[one.read.slices()]
        )
        result = segmenter.segment_tile(part, one)
        labels[one.core.slices()] = result.labels
        confidence[one.core.slices()] = result.confidence
    return labels, confidence


@settings(max_examples=15)
@given(
    height=st.integers(20, 150),
    width=st.integers(20, 150),
    tile=st.sampled_from([32, 64, 96]),
    blend=st.sampled_from(["uniform", "hann"]),
)
def test_labels_do_not_depend_on_tiles(
    model: Model, height: int, width: int, tile: int, blend: str
) -> None:
    one = segmenter(model, blend=blend)
    block = noise(height, width)
    labels, confidence = tiled(one, block, tile)
    whole, whole_confidence = tiled(one, block, 10_000)
    assert np.array_equal(labels, whole)
    assert np.array_equal(confidence, whole_confidence)
    assert np.array_equal(one.decide(one.logits(block)).labels, whole)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batch_size_and_a_constant_window_in_a_batch(model: Model, batch: int) -> None:
    """A window's result depends neither on its neighbours in the batch nor on the batch's size."""
    block = noise(64, 200)
    rgb = block.rgb.copy()
    rgb[:, :, 64:140] = 0.5
    block = PixelBlock(rgb, block.valid)
    expected = segmenter(model, batch_size=1).logits(block)
    found = segmenter(model, batch_size=batch).logits(block)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 1e-5


def test_a_few_windows_share_the_reading_of_weights(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window is encoded once, several at a time, whoever picks how many."""
    block = noise(64, 64 + 32 * 30)
    expected = segmenter(model, batch_size=1).logits(block)
    encode, sizes = Encoder.__call__, []

    def counted(encoder: Encoder, images: torch.Tensor) -> DenseFeatures:
        sizes.append(len(images))
        return encode(encoder, images)

    monkeypatch.setattr(Encoder, "__call__", counted)
    one = segmenter(model)
    assert np.abs(one.logits(block) - expected).max() < 1e-5
    assert sum(sizes) == 31
    assert 1 < max(sizes) <= one.batch_size


@pytest.mark.parametrize("attention", ["vanilla", "segearth", "gem"])
def test_half_precision_changes_logits_little(model: Model, attention: str) -> None:
    """Tokens are float32 whatever the encoder computes in."""
    block = noise(64, 96)
    full = segmenter(model, attention=attention, precision="fp32")
    half = segmenter(model, attention=attention, precision="bf16")
    windows = half.encoder.normalise(block)[None, :, :64, :64]
    assert half.encoder(windows).patches.dtype == torch.float32
    difference = np.abs(half.logits(block) - full.logits(block)).max()
    assert 0 < difference < 0.05


def test_windows_that_do_not_fit_the_device_run_in_halves(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = noise(64, 300)
    expected = segmenter(model, batch_size=2).logits(block)
    one = segmenter(model, batch_size=8)
    encode, sizes, most = Encoder.__call__, [], 3

    def small_device(encoder: Encoder, images: torch.Tensor) -> DenseFeatures:
        sizes.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError
        return encode(encoder, images)

    monkeypatch.setattr(Encoder, "__call__", small_device)
    monkeypatch.setattr(area, "threads_of_process", lambda: 1)  # batches one after another
    assert np.abs(one.logits(block) - expected).max() < 1e-5
    assert one.batch_size == 2
    assert max(sizes) == 8
    sizes.clear()
    assert np.abs(one.logits(block) - expected).max() < 1e-5
    assert max(sizes) == 2  # what did not fit is not tried again
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        one.logits(block)


def test_borders_are_covered_once_and_counted_right(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model that answers a constant, every pixel has exactly that constant."""
    one = segmenter(model, blend="hann")

    def constant(head: Head, features: DenseFeatures, guidance: torch.Tensor) -> torch.Tensor:
        return torch.full((len(guidance), *guidance.shape[2:], 6), 0.25)

    monkeypatch.setattr(Head, "__call__", constant)
    logits = one.logits(noise(150, 101))
    assert logits.shape == (6, 150, 101)
    assert np.allclose(logits, 0.25, atol=1e-6)


def test_pixels_sent_ahead_change_nothing(model: Model) -> None:
    """What a GPU gets for a whole tile is what a CPU makes window by window."""
    block = noise(150, 170)
    block.valid[:40, 30:] = False
    one = segmenter(model, batch_size=3)
    assert one.send(block) is None  # a CPU has nothing to wait for
    tile = TilePlan(one.lattice(150, 170), 512)[0]
    alone = one.segment_tile(block, tile, rasters=EVERY)
    ahead = one.segment_tile(block, tile, rasters=EVERY, sent=one.encoder.normalise(block))
    for name in ("labels", "confidence", "margin", "probabilities"):
        assert np.array_equal(getattr(alone, name), getattr(ahead, name)), name


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((40, 50), np.uint8), r"\(height, width, 3\), not \(40, 50\)"),
        (np.zeros((3, 40, 50), np.uint8), r"not \(3, 40, 50\)"),
        (np.zeros((40, 50, 4), np.uint8), r"not \(40, 50, 4\)"),
        (np.zeros((0, 50, 3), np.uint8), r"not \(0, 50, 3\)"),
        (np.full((40, 50, 3), 255, np.float32), "float32 from 255.0 to 255.0; give"),
        (np.full((40, 50, 3), 9, np.int64), "int64 from 9 to 9; give"),
        (np.full((40, 50, 3), np.nan), "give"),
    ],
)
def test_images_that_cannot_be_taken_are_refused(
    model: Model, image: np.ndarray, message: str
) -> None:
    with pytest.raises(SceneError, match=message):
        segmenter(model).predict(image)


def test_results_are_taken_one_behind() -> None:
    """While a strip travels to the host, the device has the next one to work on."""
    made, taken = [], []

    def strips():
        for k in range(3):
            made.append(k)
            yield k

    for k in one_behind(strips()):
        taken.append((k, len(made)))
    assert taken == [(0, 2), (1, 3), (2, 3)]
    assert list(one_behind([])) == []
    assert [a.tolist() for a in Arriving([torch.tensor([1]), torch.tensor([2.5])]).arrays()] == [
        [1],
        [2.5],
    ]


def test_inputs_are_never_changed(model: Model) -> None:
    block = noise(80, 90)
    block.valid[:10] = False
    block.rgb.flags.writeable = False
    block.valid.flags.writeable = False
    before = block.rgb.copy()
    segmenter(model).segment_tile(block, TilePlan(segmenter(model).lattice(80, 90), 512)[0])
    image = np.full((40, 50, 3), 100, dtype=np.uint8)
    image.flags.writeable = False
    segmenter(model).predict(image)
    assert np.array_equal(block.rgb, before)


def test_nodata_gives_nodata_and_costs_nothing(model: Model) -> None:
    one = segmenter(model)
    block = noise(96, 256)
    block.valid[:, 100:] = False
    tile = TilePlan(one.lattice(96, 256), 512)[0]
    result = one.segment_tile(block, tile, rasters=EVERY)
    assert (result.labels[:, 100:] == 255).all()
    assert (result.confidence[:, 100:] == 255).all()
    assert (result.labels[:, :100] < 4).all()
    assert result.probabilities is not None
    assert (result.probabilities[:, :, 100:] == 255).all()
    assert np.abs(result.probabilities[:, :, :100].astype(int).sum(0)).max() <= 102
    assert result.windows < len(tile.windows)
    block.valid[:] = False
    empty = one.segment_tile(block, tile)
    assert empty.windows == 0
    assert (empty.labels == 255).all()


def test_pixels_under_nodata_do_not_matter(model: Model) -> None:
    one, tile = segmenter(model), None
    results = []
    for filler in (0.0, 1.0):
        block = noise(96, 128)
        block.valid[:, 100:] = False
        block.rgb[:, :, 100:] = filler
        tile = TilePlan(one.lattice(96, 128), 512)[0]
        results.append(one.segment_tile(block, tile).labels)
    assert np.array_equal(*results)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (20, 20), (64, 5)])
@pytest.mark.parametrize("upsampler", ["none", "jbu"])
def test_tiny_scenes_are_padded(model: Model, shape: tuple[int, int], upsampler: str) -> None:
    one = segmenter(model, upsampler=upsampler)
    prediction = one.decide(one.logits(noise(*shape)))
    assert prediction.labels.shape == shape


def test_over_254_classes_need_16_bits(model: Model) -> None:
    words = [f"thing {i}" for i in range(300)]
    one = Segmenter(model, words, Options(templates="none"))
    tile = TilePlan(one.lattice(64, 64), 64)[0]
    block = noise(64, 64)
    block.valid[0] = False
    labels = one.segment_tile(block, tile).labels
    assert labels.dtype == np.uint16
    assert (labels[0] == 65535).all()


def test_a_pickled_segmenter_loads_its_model_once(model: Model) -> None:
    one = segmenter(model)
    data = pickle.dumps(one)
    assert len(data) < 5000
    first, second = pickle.loads(data), pickle.loads(data)
    assert first is second
    block = noise(70, 70)
    assert np.array_equal(first.logits(block), one.logits(block))


def test_a_pickled_segmenter_works_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_random_model(tmp_path / "model")
    (tmp_path / "templates.txt").write_text("a picture of {}.\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    near = load_model("local-dir:model", device="cpu")
    data = pickle.dumps(Segmenter(near, WORDS, Options(templates="templates.txt")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(data).model.fingerprint == near.fingerprint


# -- options -----------------------------------------------------------------------------------


def test_given_wins_over_model_over_general() -> None:
    own = {"window": 128, "stride": 64, "cls_bias": 0.1}
    resolved = Options(cls_bias=0.0).resolve(own)
    assert (resolved.window, resolved.stride, resolved.cls_bias) == (128, 64, 0.0)
    assert resolved.sources["window"] == "model"
    assert resolved.sources["cls_bias"] == "given"
    assert resolved.sources["logit_scale"] == "default"
    assert Options(window=96).resolve(own).stride == 48


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (lambda: Options(cls_bias=-0.3), OptionError, "0 to 1000000"),
        (lambda: Options(threshold=1.5), OptionError, "0 to 1"),
        (lambda: Options(threshold=0.5, background="lava"), OptionError, "lava"),
        (lambda: Options(background="water"), OptionError, "needs a threshold"),
        (lambda: Options(logit_scale=0), OptionError, "from 0.001"),
        (lambda: Options(batch_size=0), OptionError, "1 or more"),
        (lambda: Options(blend="linear"), OptionError, "hann"),
        (lambda: Options(precision="fp8"), OptionError, "bf16"),
        (lambda: Options(precision="fp16"), OptionError, "GPU"),
        (lambda: Options(window=8), TilingError, "smaller than the model's patch of 16"),
        (lambda: Options(templates="no-such"), VocabularyError, "no-such"),
    ],
)
def test_impossible_options(
    model: Model, options: Callable[[], Options], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Segmenter(model, WORDS, options()).lattice(100, 100)


def test_one_pass_refuses_what_it_cannot_see(model: Model) -> None:
    with pytest.raises(TilingError, match="too small for one pass"):
        segmenter(model, window=0).logits(noise(10, 10))
    assert segmenter(model, window=0, upsampler="jbu").logits(noise(70, 53)).shape == (6, 70, 53)
