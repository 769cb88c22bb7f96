"""Every array of the reference data, from tokens to labels, within the tolerances it suggests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from geoseg import methods
from geoseg.inference.head import Head
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.steps import ClsBias
from geoseg.model.attention.last_block import SegEarth, Vanilla
from geoseg.model.loading import Model, load_model
from geoseg.model.upsampling.learned import LearnedJbu, LearnedUpsampling
from geoseg.model.vision import DenseEncoder
from geoseg.options import Options
from geoseg.text.vocabulary import Vocabulary
from geoseg.types import PixelBlock

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDENS = SHARED / "goldens"

pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason="reference data not present")

BOXES = {"main": (40, 20, 224, 224), "rect": (16, 30, 208, 160)}
UPSAMPLERS = {"jbu_one": "simfeatup", "jbu_stack": "featup"}
TOKENS, FEATURES, LOGITS, SCORES = 1e-4, 2e-4, 1e-5, 1e-4

Array = npt.NDArray[Any]


def cases() -> list[dict[str, Any]]:
    file = GOLDENS / "cases.json"
    return json.loads(file.read_text())["predict"] if file.is_file() else []


def names_in(archive: str) -> list[str]:
    file = GOLDENS / archive
    return list(np.load(file).files) if file.is_file() else []


@pytest.fixture(scope="module")
def arrays() -> Callable[[str], Any]:
    return lambda name: np.load(GOLDENS / f"{name}.npz")


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    return np.asarray(np.load(GOLDENS / "images.npz")["structured_300x260"])


def model_folder(folder: Path, name: str) -> Path:
    """Golden weights as a model folder in open_clip's local-dir format."""
    config = json.loads((GOLDENS / f"{name}.json").read_text())
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    weights = (GOLDENS / f"{name}.safetensors").read_bytes()
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture(scope="module")
def model_a(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = model_folder(tmp_path_factory.mktemp("models") / "a", "clip_a")
    return load_model(f"local-dir:{folder}", device="cpu")


@pytest.fixture(scope="module")
def model_g(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = model_folder(tmp_path_factory.mktemp("models") / "g", "clip_g")
    return load_model(f"local-dir:{folder}", device="cpu")


@pytest.fixture(scope="module")
def upsampler_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Upsampler weights for 64 channels, in the published checkpoint format."""
    folder = tmp_path_factory.mktemp("upsamplers")
    files = {}
    for name in UPSAMPLERS:
        state = load_file(GOLDENS / f"{name}_d64.safetensors")
        files[name] = folder / f"{name}.pt"
        torch.save({"state_dict": {f"upsampler.{k}": v for k, v in state.items()}}, files[name])
    return files


def block(image: npt.NDArray[np.uint8], box: tuple[int, int, int, int]) -> PixelBlock:
    row, col, height, width = box
    part = image[row : row + height, col : col + width]
    rgb = np.ascontiguousarray(part.transpose(2, 0, 1).astype(np.float32) / 255)
    return PixelBlock(rgb, np.ones((height, width), dtype=bool))


def normalised(model: Model, pixels: PixelBlock) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    return ((torch.from_numpy(pixels.rgb) - mean) / std)[None]


def largest(found: torch.Tensor | Array, expected: Array) -> float:
    difference = np.asarray(found, dtype=np.float64) - expected
    assert difference.shape == expected.shape
    return float(np.abs(difference).max())


# -- text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "file"), [("a", "classes_a"), ("a_single", "classes_a_single")])
def test_query_embeddings(
    model_a: Model, arrays: Callable[[str], Any], name: str, file: str
) -> None:
    text = arrays("text")
    vocabulary = Vocabulary.parse(GOLDENS / f"{file}.txt")
    segmenter = Segmenter(model_a, vocabulary, Options(upsampler="none"))
    assert largest(segmenter.text_embeddings, text[f"{name}__query_features"]) < 1e-5
    assert np.array_equal(vocabulary.query_classes, text[f"{name}__query_index"])
    prompts = [f"a photo of a {query}." for query in vocabulary.queries]
    tokens = model_a.tokenize(prompts)
    assert np.array_equal(tokens.numpy(), text[f"{name}__tokens"])
    assert largest(model_a.encode_text(tokens), text[f"{name}__plain_text"]) < 1e-5


# -- encoder -----------------------------------------------------------------------------------


def encoder_names() -> Iterator[Any]:
    for name in names_in("encoder.npz"):
        if name.endswith("__tokens"):
            box, kind, residual, _ = name.split("__")
            yield pytest.param(box, kind, residual, id=f"{box}-{kind}-{residual}")


@pytest.mark.parametrize(("box", "kind", "residual"), list(encoder_names()))
def test_encoder_tokens(
    model_a: Model,
    model_g: Model,
    arrays: Callable[[str], Any],
    image: npt.NDArray[np.uint8],
    box: str,
    kind: str,
    residual: str,
) -> None:
    encoder_arrays = arrays("encoder")
    model, depth = (model_g, 7) if kind == "gem8" else (model_a, 3)
    name = "gem" if kind.startswith("gem") else kind
    kept = residual == "res"
    attention = methods.resolve(
        methods.ATTENTIONS, name, std=1.0, depth=depth, residual=kept, ffn=kept
    )
    encoder = DenseEncoder(model.clip.visual, attention)
    features = encoder(normalised(model, block(image, BOXES[box])))
    key = f"{box}__{kind}__{residual}"
    assert largest(features.patches[0], encoder_arrays[f"{key}__tokens"]) < TOKENS
    if f"{key}__cls" in encoder_arrays:
        assert largest(features.cls[0], encoder_arrays[f"{key}__cls"]) < TOKENS


@pytest.mark.parametrize("box", list(BOXES))
def test_position_embedding(
    model_a: Model, arrays: Callable[[str], Any], image: npt.NDArray[np.uint8], box: str
) -> None:
    encoder = DenseEncoder(model_a.clip.visual, SegEarth())
    expected = arrays("encoder")
    height, width = BOXES[box][2:]
    found = encoder.positions((height // 16, width // 16))
    assert largest(found, expected[f"{box}__pos_embed"]) < 1e-5
    tokens, _ = encoder.stem(normalised(model_a, block(image, BOXES[box])))
    for one in model_a.clip.visual.transformer.resblocks[:-1]:
        tokens = one(tokens)
    assert largest(tokens[0], expected[f"{box}__last_block_input"]) < TOKENS


def test_plain_image_embedding(
    model_a: Model, arrays: Callable[[str], Any], image: npt.NDArray[np.uint8]
) -> None:
    pixels = normalised(model_a, block(image, (40, 20, 64, 64)))
    encoder = DenseEncoder(model_a.clip.visual, Vanilla(residual=True, ffn=True))
    found = encoder(pixels).cls
    assert largest(found[0], arrays("encoder")["plain_image_embedding"]) < 1e-5
    assert largest(found, model_a.clip.encode_image(pixels).numpy()) < 1e-5


# -- upsamplers --------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["square", "rect"])
@pytest.mark.parametrize("kind", list(UPSAMPLERS))
def test_upsampler_stage_by_stage(arrays: Callable[[str], Any], kind: str, tag: str) -> None:
    expected = arrays("upsampler")
    upsampler = LearnedJbu(load_file(GOLDENS / f"{kind}_d32.safetensors"), source=kind)
    source = torch.from_numpy(expected[f"{tag}__source"].astype(np.float32))[None]
    guidance = torch.from_numpy(expected[f"{tag}__guidance"].astype(np.float32))[None]
    grid = (source.shape[2], source.shape[3])
    operator = upsampler.operator(guidance, grid)
    stages = [LearnedUpsampling(operator.steps[:n])(source)[0].permute(2, 0, 1) for n in (1, 2)]
    assert largest(stages[0], expected[f"{tag}__{kind}__x2"]) < FEATURES
    assert largest(stages[1][:, ::2, ::2], expected[f"{tag}__{kind}__x4_s2"]) < FEATURES
    folded, constant = upsampler.fold(source.flatten(2).transpose(1, 2))
    out = operator(folded.transpose(1, 2).reshape(source.shape)) + constant
    planes = out[0].permute(2, 0, 1)
    assert largest(planes[:, ::5, ::5], expected[f"{tag}__{kind}__out_s5"]) < FEATURES
    assert largest(planes[0], expected[f"{tag}__{kind}__out_channel0"]) < FEATURES
    if tag == "square":
        kernel = operator.steps[0].kernels()[0]
        stored = expected[f"square__{kind}__stage1_kernel"]
        assert largest(kernel.reshape(stored.shape), stored) < FEATURES


# -- one window --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noup", *UPSAMPLERS])
def test_window_logits(
    model_a: Model,
    arrays: Callable[[str], Any],
    image: npt.NDArray[np.uint8],
    upsampler_files: dict[str, Path],
    kind: str,
) -> None:
    window = arrays("window")
    pixels = normalised(model_a, block(image, BOXES["main"]))
    results = {}
    for bias in (0.0, 0.3):
        options = Options(
            upsampler=UPSAMPLERS.get(kind, "none"),
            upsampler_weights=str(upsampler_files[kind]) if kind in UPSAMPLERS else None,
            cls_bias=bias,
        )
        segmenter = Segmenter(model_a, Vocabulary.parse(GOLDENS / "classes_a.txt"), options)
        results[bias] = segmenter.window_logits(pixels)[0].permute(2, 0, 1)
        weight = "0" if bias == 0 else "-0.3"
        expected = window[f"segearth__{kind}__lambda{weight}__logits_s5"]
        assert largest(results[bias][:, ::5, ::5], expected) < LOGITS
    if kind == "jbu_one":
        full = window["segearth__jbu_one__lambda-0.3__logits_full"]
        assert largest(results[0.3], full) < LOGITS
    shift = (results[0.3] - results[0.0]).numpy() + 0.3 * window["segearth__cls_logits"][
        :, None, None
    ]
    assert np.abs(shift).max() < LOGITS


def test_window_intermediates(
    model_a: Model, arrays: Callable[[str], Any], image: npt.NDArray[np.uint8]
) -> None:
    window, text = arrays("window"), torch.from_numpy(arrays("text")["a__query_features"])
    pixels = normalised(model_a, block(image, BOXES["main"]))
    features = DenseEncoder(model_a.clip.visual, SegEarth())(pixels)
    unit = torch.nn.functional.normalize(features.patches, dim=-1)
    assert largest((unit @ text.T)[0], window["segearth__token_logits"]) < LOGITS
    plain, biased = (
        Head(text, None, (ClsBias(weight),))(features, pixels) for weight in (0.0, 1.0)
    )
    assert largest((plain - biased)[0, 0, 0], window["segearth__cls_logits"]) < LOGITS
    for kind in UPSAMPLERS:
        upsampler = LearnedJbu(load_file(GOLDENS / f"{kind}_d64.safetensors"), source=kind)
        folded, constant = upsampler.fold(features.patches)
        planes = folded.transpose(1, 2).reshape(1, -1, *features.grid)
        dense = (upsampler.operator(pixels, features.grid)(planes) + constant)[0]
        expected = window[f"segearth__{kind}__features_s8"]
        assert largest(dense.permute(2, 0, 1)[:, ::8, ::8], expected) < FEATURES


# -- whole predictions -------------------------------------------------------------------------


def options_of(case: dict[str, Any], upsampler_files: dict[str, Path]) -> Options:
    vocabulary = vocabulary_of(case)
    kind, attention = case["upsampler"], case["attention"].lower()
    return Options(
        preset="paper",
        attention=attention + {"naclip": ":std=1", "gem": ":depth=3"}.get(attention, ""),
        residual=not case["ignore_residual"],
        upsampler=UPSAMPLERS.get(kind, "none"),
        upsampler_weights=str(upsampler_files[kind]) if kind else None,
        cls_bias=-case["cls_token_lambda"],
        threshold=case["prob_thd"] or None,
        background=vocabulary.names[case["bg_idx"]] if case["prob_thd"] else None,
        logit_scale=case["logit_scale"],
        window=case["slide_crop"],
        stride=case["slide_stride"],
    )


def vocabulary_of(case: dict[str, Any]) -> Vocabulary:
    name = "classes_a.txt" if case["vocabulary"] == "a" else "classes_a_single.txt"
    return Vocabulary.parse(GOLDENS / name)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_prediction(
    model_a: Model,
    arrays: Callable[[str], Any],
    image: npt.NDArray[np.uint8],
    upsampler_files: dict[str, Path],
    case: dict[str, Any],
) -> None:
    expected, name, step = arrays("predict"), case["name"], case["step"]
    segmenter = Segmenter(model_a, vocabulary_of(case), options_of(case, upsampler_files))
    logits = segmenter.logits(block(image, tuple(case["box_yxhw"])))
    size = tuple(case["ori_shape"]) if case["ori_shape"] else None
    if size is None:
        assert largest(logits[:, ::step, ::step], expected[f"{name}__logits_s{step}"]) < LOGITS
    if f"{name}__logits_full" in expected:
        assert largest(logits, expected[f"{name}__logits_full"]) < LOGITS
    prediction = segmenter.decide(logits, out_shape=size)
    scores = prediction.scores[:, ::step, ::step]
    assert largest(scores, expected[f"{name}__class_scores_s{step}"]) < SCORES
    wrong = int((prediction.labels != expected[f"{name}__pred"]).sum())
    assert wrong <= case["info"]["ambiguous_pixels"]
    if f"{name}__pred_nothd" in expected:
        unthresholded = prediction.scores.argmax(0)
        wrong = int((unthresholded != expected[f"{name}__pred_nothd"]).sum())
        assert wrong <= case["info"]["ambiguous_pixels"]


@pytest.mark.parametrize(
    "case", [c for c in cases() if c["ori_shape"] is None], ids=lambda case: case["name"]
)
def test_prediction_through_the_command_line(
    tmp_path: Path,
    arrays: Callable[[str], Any],
    image: npt.NDArray[np.uint8],
    upsampler_files: dict[str, Path],
    case: dict[str, Any],
) -> None:
    import rasterio
    from rasterio.transform import from_origin
    from typer.testing import CliRunner

    from geoseg_cli.main import app

    row, col, height, width = case["box_yxhw"]
    part = image[row : row + height, col : col + width]
    scene = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8"}
    transform = from_origin(500000, 5000000, 0.5, 0.5)
    with rasterio.open(scene, "w", crs="EPSG:32633", transform=transform, **profile) as out:
        out.write(part.transpose(2, 0, 1))
    options = options_of(case, upsampler_files)
    classes = "classes_a.txt" if case["vocabulary"] == "a" else "classes_a_single.txt"
    arguments = [
        *("segment", scene, "--classes", GOLDENS / classes, "--out", tmp_path / "out"),
        *("--model", f"local-dir:{model_folder(tmp_path / 'model', 'clip_a')}", "--device", "cpu"),
        *("--attention", options.attention, "--upsampler", options.upsampler),
        *("--cls-bias", options.cls_bias, "--logit-scale", options.logit_scale),
        *("--window", options.window, "--stride", options.stride, "--polygons", "none"),
        *("--preset", options.preset),
        "--residual" if options.residual else "--no-residual",
    ]
    if options.upsampler_weights:
        arguments += ["--upsampler-weights", options.upsampler_weights]
    if options.threshold:
        arguments += ["--threshold", options.threshold, "--background", options.background]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    with rasterio.open(tmp_path / "out" / "labels.tif") as labels:
        found = labels.read(1)
    wrong = int((found != arrays("predict")[f"{case['name']}__pred"]).sum())
    assert wrong <= case["info"]["ambiguous_pixels"]
