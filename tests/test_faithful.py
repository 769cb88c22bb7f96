"""Faithful to the original: reference arrays that every clone has, and the larger set if present.

`tests/goldens/README.md` says where the arrays come from and which tolerances they suggest.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rasters import make
from safetensors.torch import save_file

import geoseg
from geoseg import methods
from geoseg.inference.refine.pamr import Pamr
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.views import D4, View, mean_of_views
from geoseg.model.loading import Model, load_model
from geoseg.model.upsampling.base import Fit
from geoseg.options import Options
from geoseg.text.vocabulary import Vocabulary
from geoseg.types import PixelBlock

_STRAY = 1000.0
GOLDENS = Path(__file__).resolve().parent / "goldens"
SHARED = Path(__file__).resolve().parents[2] / "shared"
STAGES = SHARED / "goldens_stages"
CASES = json.loads((GOLDENS / "cases.json").read_text())
ARRAYS = np.load(GOLDENS / "arrays.npz")

TEXT, TOKENS, FEATURES, LOGITS, SCORES = 1e-5, 1e-4, 2e-4, 1e-5, 1e-4
PAMR_WEIGHTS, PAMR_FIRST, PAMR_LAST = 1e-5, 2e-5, 5e-5
VIEWED_LOGITS, VARIANCE = 5e-6, 1e-6

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Model A as a folder in open_clip's local-dir format."""
    folder = tmp_path_factory.mktemp("model")
    config = json.loads((GOLDENS / "clip_a.json").read_text())
    state = tensors("clip_a.npz")
    rows, values = state.pop("token_embedding.rows"), state.pop("token_embedding.values")
    # Only the rows that the prompts use are kept; a prompt with another token would be far off.
    table = torch.full((config["text_cfg"]["vocab_size"], values.shape[1]), _STRAY)
    table[rows.long()] = values.float()
    state["token_embedding.weight"] = table.half()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(state, folder / "open_clip_model.safetensors")
    return load_model(f"local-dir:{folder}", device="cpu")


@pytest.fixture(scope="module")
def jbu_one(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Upsampler weights in the published checkpoint format."""
    file = tmp_path_factory.mktemp("upsampler") / "jbu_one.pt"
    state = {f"upsampler.{name}": value for name, value in tensors("jbu_one_d64.npz").items()}
    torch.save({"state_dict": state}, file)
    return str(file)


def tensors(archive: str) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(GOLDENS / archive).items()}


@functools.cache
def image() -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(GOLDENS / "structured_300x260.png"))


def crop(box: list[int]) -> npt.NDArray[np.uint8]:
    row, col, height, width = box
    return image()[row : row + height, col : col + width]


def block(box: list[int]) -> PixelBlock:
    rgb = np.ascontiguousarray(crop(box).transpose(2, 0, 1), dtype=np.float32) / 255
    return PixelBlock(rgb, np.ones(rgb.shape[1:], dtype=bool))


def segmenter(model: Model, **options: Any) -> Segmenter:
    return Segmenter(model, GOLDENS / "classes_a.txt", Options(preset="paper", **options))


def expected(name: str, archive: Any = ARRAYS) -> tuple[Array, int]:
    """An array of which every so many rows and columns, or tokens, are kept."""
    found = [key for key in archive.files if re.fullmatch(re.escape(name) + r"(_s\d+)?", key)]
    assert len(found) == 1, found
    return archive[found[0]], int(found[0].removeprefix(name).removeprefix("_s") or 1)


def largest(found: torch.Tensor | Array, wanted: Array) -> float:
    difference = np.asarray(found, dtype=np.float64) - wanted
    assert difference.shape == wanted.shape
    return float(np.abs(difference).max())


# -- text, encoder, upsampler --------------------------------------------------------------------


def test_query_embeddings(model: Model) -> None:
    vocabulary = Vocabulary.parse(GOLDENS / "classes_a.txt")
    found = segmenter(model, upsampler="none").text_embeddings
    assert largest(found, ARRAYS["text__query_features"]) < TEXT
    assert np.array_equal(vocabulary.query_classes, ARRAYS["text__query_index"])
    tokens = model.tokenize([f"a photo of a {query}." for query in vocabulary.queries])
    assert np.array_equal(tokens.numpy(), ARRAYS["text__tokens"])


def encoder_cases() -> Iterator[str]:
    for name in ARRAYS.files:
        if found := re.fullmatch(r"encoder__(.*)__tokens_s\d+", name):
            yield found[1]


ATTENTIONS = {"naclip": "naclip:std=1", "gem": "gem:depth=3"}


@pytest.mark.parametrize("case", list(encoder_cases()))
def test_encoder_tokens(model: Model, case: str) -> None:
    box, kind, residual = case.split("__")
    attention = ATTENTIONS.get(kind, kind)
    made = segmenter(model, attention=attention, residual=residual == "res", upsampler="none")
    features = made.encoder(made.encoder.normalise(block(CASES["boxes"][box]))[None])
    tokens, step = expected(f"encoder__{case}__tokens")
    assert largest(features.patches[0, ::step], tokens) < TOKENS
    if kind != "gem":  # whose reference has no CLS token
        assert largest(features.cls[0], ARRAYS[f"encoder__{case}__cls"]) < TOKENS


def test_upsampled_features(model: Model, jbu_one: str) -> None:
    encoder = segmenter(model, upsampler="none").encoder
    window = encoder.normalise(block(CASES["boxes"]["main"]))[None]
    features = encoder(window)
    fit = Fit(model.embedding_size, model.std, model.device, jbu_one)
    upsampler = methods.resolve(methods.UPSAMPLERS, "simfeatup").build(fit)
    tokens, constant = upsampler.fold(features.patches)
    planes = tokens.transpose(1, 2).reshape(1, -1, *features.grid)
    pixels = (upsampler.operator(window, features.grid)(planes) + constant)[0].permute(2, 0, 1)
    wanted, step = expected("window__segearth__jbu_one__features_c4")
    assert largest(pixels[::4, ::step, ::step], wanted) < FEATURES


# -- one window, a whole image -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noup", "jbu_one"])
def test_window_logits_with_and_without_cls_bias(model: Model, jbu_one: str, kind: str) -> None:
    found = {}
    for bias, weight in ((0.0, "0"), (0.3, "-0.3")):
        upsampler = {"upsampler": "none"}
        if kind == "jbu_one":
            upsampler = {"upsampler": "simfeatup", "upsampler_weights": jbu_one}
        made = segmenter(model, cls_bias=bias, **upsampler)
        window = made.encoder.normalise(block(CASES["boxes"]["main"]))[None]
        found[bias] = made.window_logits(window)[0].permute(2, 0, 1)
        wanted, step = expected(f"window__segearth__{kind}__lambda{weight}__logits")
        assert largest(found[bias][:, ::step, ::step], wanted) < LOGITS
    shift = -0.3 * ARRAYS["window__segearth__cls_logits"][:, None, None]
    everywhere = np.broadcast_to(shift, found[0.0].shape)
    assert largest(found[0.3] - found[0.0], everywhere) < LOGITS


def test_prediction_with_sliding_windows(model: Model, jbu_one: str) -> None:
    (case,) = CASES["predict"]
    made = segmenter(
        model,
        attention=case["attention"].lower(),
        upsampler="simfeatup",
        upsampler_weights=jbu_one,
        cls_bias=-case["cls_token_lambda"],
        threshold=case["prob_thd"],
        background=Vocabulary.parse(GOLDENS / "classes_a.txt").names[case["bg_idx"]],
        logit_scale=case["logit_scale"],
        window=case["slide_crop"],
        stride=case["slide_stride"],
    )
    name, most = f"predict__{case['name']}", case["info"]["ambiguous_pixels"]
    wanted, step = expected(f"{name}__logits")
    assert largest(made.logits(block(case["box_yxhw"]))[:, ::step, ::step], wanted) < LOGITS
    prediction = made.predict(crop(case["box_yxhw"]))
    wanted, step = expected(f"{name}__class_scores")
    assert largest(prediction.scores[:, ::step, ::step], wanted) < SCORES
    assert (prediction.labels != ARRAYS[f"{name}__pred"]).sum() <= most
    assert (prediction.scores.argmax(0) != ARRAYS[f"{name}__pred_nothd"]).sum() <= most


def test_prediction_through_a_store(model: Model, jbu_one: str, tmp_path: Path) -> None:
    (case,) = CASES["predict"]
    rgb = crop(case["box_yxhw"])
    scene = make(tmp_path / "scene.tif", np.ascontiguousarray(rgb.transpose(2, 0, 1)))
    options = Options(
        preset="paper",
        attention=case["attention"].lower(),
        upsampler="simfeatup",
        upsampler_weights=jbu_one,
        window=case["slide_crop"],
        stride=case["slide_stride"],
    )
    store = geoseg.encode(scene, tmp_path / "s.store", model=model, options=options)
    asked = store.ask(
        GOLDENS / "classes_a.txt",
        fast=False,
        model=model,
        options=replace(
            options,
            cls_bias=-case["cls_token_lambda"],
            threshold=case["prob_thd"],
            background=Vocabulary.parse(GOLDENS / "classes_a.txt").names[case["bg_idx"]],
            logit_scale=case["logit_scale"],
        ),
    )
    wanted = ARRAYS[f"predict__{case['name']}__pred"]
    assert (asked.labels.values == wanted).mean() >= 0.9999


# -- views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("views", "mean"), [("d4", "mean"), ("hflip", "mean_flip")])
def test_mean_of_views(model: Model, views: str, mean: str) -> None:
    (case,) = CASES["d4"]
    made = segmenter(model, upsampler="none", cls_bias=-case["cls_token_lambda"], views=views)
    window = made.encoder.normalise(block(case["box_yxhw"]))[None]
    wanted, step = expected(f"d4__{case['name']}__{mean}")
    found = made.window_logits(window)[0].permute(2, 0, 1)[:, ::step, ::step]
    assert largest(found, wanted) < VIEWED_LOGITS


def stage_cases(stage: str) -> list[dict[str, Any]]:
    """Cases of the larger set, or none where it is absent: then their tests skip."""
    file = STAGES / "cases.json"
    return json.loads(file.read_text())[stage] if file.is_file() else []


@pytest.fixture(scope="module")
def full_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model with all rows of its token embedding."""
    folder = tmp_path_factory.mktemp("full")
    config = json.loads((SHARED / "goldens" / "clip_a.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    weights = (SHARED / "goldens" / "clip_a.safetensors").read_bytes()
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    return load_model(f"local-dir:{folder}", device="cpu")


@pytest.mark.parametrize("case", stage_cases("d4"), ids=lambda case: case["name"])
def test_every_view_of_the_larger_set(full_model: Model, case: dict[str, Any]) -> None:
    arrays = np.load(STAGES / "d4.npz")
    options = {"upsampler": "none", "cls_bias": -case["cls_token_lambda"]}
    one_view = segmenter(full_model, **options)
    window = one_view.encoder.normalise(block(case["box_yxhw"]))[None]

    def check(found: torch.Tensor, name: str, tolerance: float) -> None:
        wanted, step = expected(f"{case['name']}__{name}", arrays)
        assert largest(found[..., ::step, ::step], wanted) < tolerance

    def mean(views: str) -> torch.Tensor:
        made = segmenter(full_model, views=views, **options)
        return made.window_logits(window)[0].permute(2, 0, 1)

    def one(view: View) -> torch.Tensor:
        return mean_of_views(one_view.window_logits, [view], window)[0].permute(2, 0, 1)

    views = torch.stack([one(view) for view in D4().views()])
    check(views, "views", VIEWED_LOGITS)
    check(views.var(0, correction=0), "variance", VARIANCE)
    check(mean("hflip"), "mean_flip", VIEWED_LOGITS)
    check(views[:4].mean(0), "mean_turns", VIEWED_LOGITS)
    check(mean("d4"), "mean", VIEWED_LOGITS)
    wrong = mean("d4").argmax(0).numpy() != arrays[f"{case['name']}__best_query"]
    assert wrong.sum() <= case["info"]["ambiguous_pixels"]


def test_a_turned_window_has_turned_logits(model: Model) -> None:
    made = segmenter(model, upsampler="none", views="d4")
    window = made.encoder.normalise(block(CASES["boxes"]["main"]))[None]
    found = made.window_logits(window.rot90(1, (2, 3))).rot90(-1, (1, 2))
    assert largest(found, made.window_logits(window).numpy()) < VIEWED_LOGITS


# -- PAMR ----------------------------------------------------------------------------------------


def check_pamr(case: dict[str, Any], archive: Any) -> None:
    """Weights, one iteration and all of them, of each image of a case."""
    name = case["name"]
    if "box_yxhw" in case:
        mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
        pixels = (crop(case["box_yxhw"]) / 255 - mean) / std
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    else:
        images = torch.from_numpy(archive[f"{name}__image"]).float()
    masks = torch.from_numpy(archive[f"{name}__mask"]).float()
    if masks.shape[2:] != images.shape[2:]:
        masks = F.interpolate(masks, images.shape[2:], mode="bilinear", align_corners=True)
    valid = torch.ones(images.shape[2:], dtype=torch.bool)
    dilations = tuple(case["dilations"])
    for number, (pixels, planes) in enumerate(zip(images, masks, strict=True)):

        def check(found: torch.Tensor, what: str, tolerance: float, number: int = number) -> None:
            wanted, step = expected(f"{name}__{what}", archive)
            assert largest(found[:, ::step, ::step], wanted[number]) < tolerance

        for iterations, what, tolerance in (
            (1, "after1", PAMR_FIRST),
            (case["iterations"], "out", PAMR_LAST),
        ):
            refine = Pamr(iterations, dilations)
            found = refine(planes.permute(1, 2, 0), pixels, valid).permute(2, 0, 1)
            check(found, what, tolerance)
        if case["weights"]:
            weights = Pamr(1, dilations).weights(pixels, valid)
            check(weights, "weights", PAMR_WEIGHTS)
            assert largest(weights.sum(0), np.ones(valid.shape)) < PAMR_WEIGHTS


@pytest.mark.parametrize("case", CASES["pamr"], ids=lambda case: case["name"])
def test_pamr(case: dict[str, Any]) -> None:
    check_pamr(case, np.load(GOLDENS / "pamr.npz"))


@pytest.mark.parametrize("case", stage_cases("pamr"), ids=lambda case: case["name"])
def test_pamr_of_the_larger_set(case: dict[str, Any]) -> None:
    check_pamr(case, np.load(STAGES / "pamr.npz"))
