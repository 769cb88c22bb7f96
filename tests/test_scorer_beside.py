"""A scorer beside the words: one map of the probabilities of both."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp
from rasters import make
from typer.testing import CliRunner

import geoseg
from geoseg.errors import GeosegError, OptionError
from geoseg.options import Options, Products, Reading, Scorer
from geoseg.testing import tiny_random_model
from geoseg_cli.main import app

NAMES = ("building", "road", "water", "vegetation")
CLASSES = "building, house; road; water; vegetation"
PLAIN = Options(window=64, stride=32, templates="none")
FEW = Products(polygons="none", preview=False, probabilities=True, margin=True)
SIZE = 110, 130
COLOURS = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, *[ColorInterp.undefined] * 2]


def score(windows: torch.Tensor) -> torch.Tensor:
    """Four scores that depend on a pixel alone, so that windows agree on it."""
    red, green, blue = windows.unbind(1)
    return torch.stack([3 * red, 3 * green, 3 * blue, 2 - red - green], 1)


def some(*places: int) -> Any:
    """Only those of the four."""
    return lambda windows: score(windows)[:, places]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Five bands."""
    data = np.random.default_rng(4).integers(1, 255, (5, *SIZE)).astype(np.uint8)
    return np.repeat(np.repeat(data[:, ::5, ::5], 5, 1), 5, 2)[:, : SIZE[0], : SIZE[1]]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    return make(tmp_path_factory.mktemp("scene") / "scene.tif", pixels, colorinterp=COLOURS)


def run(scene: Any, out: Path, model: Any, scorer: Any, **more: Any) -> dict[str, np.ndarray]:
    settings = {"options": PLAIN, "products": FEW} | more
    geoseg.segment_to_files(scene, CLASSES, out, model=model, scorer=scorer, **settings)
    return rasters(out)


def rasters(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(out.glob("*.tif")):
        with rasterio.open(path) as dataset:
            found[path.stem] = dataset.read()
    return found


def by_hand(words: np.ndarray, said: np.ndarray, has: list[int], rule: str, w: float) -> np.ndarray:
    """The rule, class by class: ``(K, H, W)`` of words' scores and a scorer's probabilities."""
    words = words / words.sum(0)
    rest = [k for k in range(len(words)) if k not in has]
    full = np.zeros_like(words)
    if rule == "softmax":
        full[has] = words[has].sum(0) * said
        full[rest] = words[rest]
    else:
        full[has] = said
        left = np.clip(1 - said.sum(0), 0, None)
        full[rest] = left * words[rest] / words[rest].sum(0)
    return (1 - w) * words + w * full


@pytest.mark.parametrize(
    ("activation", "has"),
    [("softmax", [0, 1, 2, 3]), ("softmax", [1, 3]), ("sigmoid", [3]), ("none", [0, 2])],
)
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_probabilities_are_those_of_the_rule(
    scene: Path, model: Any, pixels: np.ndarray, tmp_path: Path, activation: Any, has: list[int],
    weight: float,
) -> None:  # fmt: skip
    image = torch.from_numpy(pixels[:3].astype(np.float32) / 255)[None]
    scores = score(image)[:, has]
    made = (scores / 5).clamp(0, 1) if activation == "none" else scores
    said = {"softmax": scores.softmax(1), "sigmoid": scores.sigmoid(), "none": made}[activation]
    call = some(*has)
    scorer = Scorer(
        (lambda windows: (call(windows) / 5).clamp(0, 1)) if activation == "none" else call,
        activation,
        weight=weight,
        names=[NAMES[k] for k in has],
    )
    words = geoseg.Segmenter(model, CLASSES, PLAIN).predict(pixels[:3].transpose(1, 2, 0)).scores
    expected = by_hand(words, said[0].numpy(), has, activation, weight)
    found = run(scene, tmp_path / "out", model, scorer)
    assert np.abs(found["probabilities"] - 100 * expected).max() <= 0.51
    best = np.sort(expected, 0)
    clear = best[-1] - best[-2] > 1e-5
    assert clear.mean() > 0.9
    assert np.array_equal(found["labels"][0][clear], expected.argmax(0)[clear])


def test_weight_0_is_the_map_of_the_words_bit_for_bit(
    scene: Path, model: Any, tmp_path: Path
) -> None:
    words = run(scene, tmp_path / "words", model, None)
    never = Scorer(lambda windows: 1 / 0, weight=0)
    assert_same(run(scene, tmp_path / "out", model, never), words)


def test_weight_1_is_the_map_of_the_scorer(scene: Path, model: Any, tmp_path: Path) -> None:
    sure = lambda windows: 40 * score(windows)  # noqa: E731 - many of its sigmoids are 1
    options = Options(window=64, stride=32)
    alone = tmp_path / "alone"
    geoseg.segment_to_files(
        scene, ";".join(NAMES), alone, scorer=Scorer(sure, "sigmoid"), options=options,
        products=FEW, device="cpu",
    )  # fmt: skip
    found = run(scene, tmp_path / "out", model, Scorer(sure, "sigmoid", weight=1))
    assert_same(found, rasters(alone))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert found["labels"].size
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def ndvi(windows: torch.Tensor) -> torch.Tensor:
    nir, red = windows.split(1, dim=1)
    return ((nir - red) / (nir + red).clamp_min(1e-6)).clamp(0, 1)


NDVI = Scorer(ndvi, "none", weight=0.5, names="Vegetation", bands=(5, 1), stretch="raw")


def test_a_scorer_may_see_other_bands_and_values_than_the_words(
    scene: Path, model: Any, pixels: np.ndarray, tmp_path: Path
) -> None:
    words = geoseg.Segmenter(model, CLASSES, PLAIN).predict(pixels[:3].transpose(1, 2, 0)).scores
    nir, red = pixels[[4, 0]].astype(np.float32)
    index = ((nir - red) / (nir + red)).clip(0, 1)
    expected = by_hand(words, index[None], [3], "none", 0.5)
    found = run(scene, tmp_path / "out", model, NDVI)
    assert np.abs(found["probabilities"] - 100 * expected).max() <= 0.51


@pytest.mark.parametrize(
    "more", [{}, {"refine": ("guided", "laplace:steps=3")}, {"regions": "superpixels:size=4"}]
)
def test_the_map_does_not_depend_on_how_the_work_is_cut(
    scene: Path, model: Any, tmp_path: Path, more: dict[str, Any]
) -> None:
    how = {"options": replace(PLAIN, **more)}
    whole = run(scene, tmp_path / "whole", model, NDVI, **how)
    assert len(np.unique(whole["labels"])) > 1
    assert_same(run(scene, tmp_path / "tiles", model, NDVI, tile=40, **how), whole)
    box = "500010,4999900,500090,4999980"  # from pixel 20 down and 10 across
    part = run(scene, tmp_path / "part", model, NDVI, reading=Reading(aoi=box), **how)
    cut = {name: values[:, 20:100, 10:90] for name, values in whole.items()}
    assert_same(part, cut)
    if "regions" in more:
        assert (whole["labels"] != run(scene, tmp_path / "plain", model, NDVI)["labels"]).any()
    lazy = geoseg.segment(scene, CLASSES, model=model, scorer=NDVI, tile=48, **how)
    assert np.array_equal(lazy.labels.values, whole["labels"][0])
    assert np.array_equal(lazy.confidence.values, whole["confidence"][0])


def test_at_a_gsd_and_with_nodata_all_products_are_made(
    pixels: np.ndarray, model: Any, tmp_path: Path
) -> None:
    data = pixels.astype(np.uint16) * 10
    data[:, :30, :40] = 0
    scene = make(tmp_path / "scene.tif", data, nodata=0, colorinterp=COLOURS)
    out = tmp_path / "out"
    found = run(scene, out, model, NDVI, reading=Reading(gsd=1.5), products=Products())
    assert (found["labels"][0, :28, :38] == 255).all()
    assert (found["labels"][0, 32:, 42:] != 255).all()
    assert {"polygons.gpkg", "preview.png"} <= {path.name for path in out.iterdir()}


def test_arrays_take_a_scorer_that_sees_what_the_words_see(
    scene: Path, model: Any, tmp_path: Path
) -> None:
    import rioxarray

    array = rioxarray.open_rasterio(scene).isel(band=slice(0, 3))
    scorer = Scorer(score, weight=0.4)
    lazy = geoseg.segment(array, CLASSES, model=model, scorer=scorer, options=PLAIN)
    expected = run(scene, tmp_path / "out", model, scorer)
    assert np.array_equal(lazy.labels.values, expected["labels"][0])
    with pytest.raises(OptionError, match="--scorer-bands"):
        geoseg.segment(array, CLASSES, model=model, scorer=NDVI)
    with pytest.raises(OptionError, match="--scorer-bands"):
        geoseg.segment_to_files(array, CLASSES, tmp_path / "not", model=model, scorer=NDVI)


def test_a_run_says_what_was_asked_and_goes_on_only_with_the_same(
    scene: Path, model: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    whole = run(scene, tmp_path / "whole", model, NDVI, tile=64)

    def stop(state: Any) -> None:
        if state.tiles_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(scene, out, model, NDVI, tile=64, progress=stop)
    other = Scorer(ndvi, "none", weight=0.6, names="vegetation", bands=(5, 1), stretch="raw")
    with pytest.raises(GeosegError, match="--scorer"):
        run(scene, out, model, other, tile=64, resume=True)
    assert_same(run(scene, out, model, NDVI, tile=64, resume=True), whole)
    report = json.loads((out / "run.json").read_text())
    beside = report["model"]["beside"]
    assert beside["weight"] == 0.5
    assert beside["bands"] == [5, 1]
    assert beside["classes"] == ["Vegetation"]
    assert len(beside["sha256"]) == 64
    assert report["options"]["attention"]
    with rasterio.open(out / "labels.tif") as dataset:
        assert "ndvi" in str(dataset.tags())


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (Scorer(score, weight=0.5, names="building; raod; water; vegetation"), "'road'"),
        (Scorer(score, weight=0.5, names="building; sky; water; -"), "'sky' is none of --classes"),
        (Scorer(score, weight=0.5, names="road; road; water; -"), "two scores"),
        (Scorer(score, weight=0.5, names="-; -; -; -"), "left out"),
        (Scorer(score, weight=0.5, names="road; water"), "4 scores a pixel, and it has 2 names"),
        (Scorer(some(0), weight=0.5, names="road"), "--activation sigmoid or none"),
        (Scorer(some(0, 1), weight=0.5), "with --scorer-classes"),
        (Scorer(ndvi, "none", weight=0.5, names="road"), "fails on windows"),
        (Scorer(score, "none", weight=0.5), "no probabilities"),
    ],
)
def test_what_cannot_be_is_one_line_before_the_work(
    scene: Path, model: Any, tmp_path: Path, scorer: Scorer, words: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(words)) as caught:
        run(scene, tmp_path / "out", model, scorer)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "labels.tif").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"weight": 0.5},
        {"call": score, "weight": 1.5},
        {"call": score, "weight": float("nan")},
        {"call": score, "bands": (1, 2)},
        {"call": "scores.tif", "weight": 0.5, "stretch": "raw"},
    ],
)
def test_options_that_need_each_other(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="--scorer"):
        Scorer(**given)


def test_scores_are_matched_by_the_names_that_a_scorer_tells(
    scene: Path, model: Any, pixels: np.ndarray, tmp_path: Path
) -> None:
    """Of a module, of TorchScript, of ONNX and of the bands of a raster; in any order."""

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes = ["water", "Building"]

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return torch.stack([3 * windows[:, 2], 3 * windows[:, 0]], 1)

    expected = run(
        scene, tmp_path / "by_hand", model,
        Scorer(some(0, 2), weight=0.5, names="building; water"),
    )  # fmt: skip
    torch.jit.script(Head()).save(str(tmp_path / "head.pt"))
    image = torch.from_numpy(pixels[:3].astype(np.float32) / 255)[None]
    raster = make(tmp_path / "scores.tif", Head()(image)[0].numpy())
    with rasterio.open(raster, "r+") as dataset:
        dataset.descriptions = ("water", "building")
    for name, call in (("module", Head()), ("script", tmp_path / "head.pt"), ("raster", raster)):
        found = run(scene, tmp_path / name, model, Scorer(call, weight=0.5))
        assert np.array_equal(found["labels"], expected["labels"]), name
        assert np.abs(found["confidence"].astype(int) - expected["confidence"]).max() <= 1
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "head.onnx"
    torch.onnx.export(Head(), (torch.zeros(1, 3, 64, 64),), str(file), dynamo=False)
    made = onnx.load(str(file))
    onnx.helper.set_model_props(made, {"classes": "water; building"})
    onnx.save(made, str(file))
    found = run(scene, tmp_path / "onnx", model, Scorer(file, weight=0.5))
    assert (found["labels"] != expected["labels"]).mean() < 1e-3  # it rounds otherwise


def test_names_that_a_scorer_tells_put_its_scores_in_order_without_words_too(
    scene: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    image = torch.from_numpy(pixels[:3].astype(np.float32) / 255)[None]
    scores = score(image)[0].numpy()
    raster = make(tmp_path / "scores.tif", scores[::-1])
    options = Options(window=64, stride=32)
    how: dict[str, Any] = {"options": options, "device": "cpu"}
    before = geoseg.segment(scene, ";".join(NAMES), scorer=raster, **how).labels.values
    assert np.array_equal(before, scores[::-1].argmax(0))
    with rasterio.open(raster, "r+") as dataset:
        dataset.descriptions = NAMES[::-1]
    after = geoseg.segment(scene, ";".join(NAMES), scorer=raster, **how).labels.values
    assert np.array_equal(after, scores.argmax(0))
    with pytest.raises(OptionError, match="no score of road; leave them out"):
        geoseg.segment(
            scene, ";".join(NAMES), scorer=Scorer(raster, names="building; water; vegetation; -")
        )


def test_command_line_joins_words_and_a_raster_of_scores(
    scene: Path, model: Any, pixels: np.ndarray, tmp_path: Path, runner: CliRunner
) -> None:
    nir, red = pixels[[4, 0]].astype(np.float32)
    raster = make(tmp_path / "index.tif", ((nir - red) / (nir + red)).clip(0, 1)[None])
    expected = run(scene, tmp_path / "python", model, NDVI)
    common = [
        "segment", str(scene), "--classes", CLASSES, "--model", model.spec, "--templates", "none",
        "--window", "64", "--stride", "32", "--polygons", "none", "--device", "cpu", "--tile", "60",
        "--activation", "none", "--scorer-weight", "0.5", "--scorer-classes", "vegetation",
        "--scorer", str(raster),
    ]  # fmt: skip
    done = runner.invoke(app, [*common, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert np.array_equal(rasters(tmp_path / "out")["labels"], expected["labels"])
    done = runner.invoke(app, [*common, "--scorer-bands", "5,1", "--out", str(tmp_path / "not")])
    assert done.exit_code == 2
    assert "sees no scene" in " ".join(done.output.replace("│", " ").split())


def test_the_examples_of_the_page_run(
    pixels: np.ndarray, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "your-own-model.md"
    text = page.read_text(encoding="utf-8")
    examples = [e for e in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "weight=" in e]
    assert len(examples) == 2
    make(tmp_path / "town.tif", pixels[:4], colorinterp=COLOURS[:4])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("geoseg.inference.fusion.load_model", lambda *given, **how: model)
    names: dict[str, Any] = {"network": torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))}
    for example in examples:
        exec(compile(example, str(page), "exec"), names)
        assert rasters(tmp_path / "map")["labels"].shape == (1, *SIZE)
    report = json.loads((tmp_path / "map" / "run.json").read_text())
    assert report["model"]["beside"]["classes"] == ["building", "-", "road"]


def test_info_tells_of_a_run_with_both(scene: Path, model: Any) -> None:
    from geoseg.inspect import inspect_scene

    facts = inspect_scene(scene, model=model.spec, scorer=NDVI, options=PLAIN, device="cpu")["run"]
    assert facts["model"] == model.spec
    assert "ndvi" in facts["scorer"]
    assert facts["inference_seconds"] > 0


@pytest.mark.slow
def test_two_workers_make_the_same_map(scene: Path, model: Any, tmp_path: Path) -> None:
    import distributed

    expected = run(scene, tmp_path / "one", model, NDVI)
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert_same(run(scene, tmp_path / "two", model, NDVI, tile=48, client=client), expected)
