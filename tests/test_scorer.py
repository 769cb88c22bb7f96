"""A network of one's own in place of the model of words: everything else is the same code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasters import make
from typer.testing import CliRunner

import geoseg
from geoseg.errors import GeosegError, GeosegWarning, OptionError, TileError
from geoseg.options import Options, Products, Reading
from geoseg_cli.main import app

NAMES = "ground; roof; road; water"
FEW = Products(polygons="none", preview=False)
PLAIN = Options(window=32, stride=16, blend="uniform")


class Net(torch.nn.Module):
    """Two random convolutions."""

    def __init__(self, bands: int = 3, classes: int = 4, step: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(bands, 8, 3, padding=1, stride=step)
        self.second = torch.nn.Conv2d(8, classes, 3, padding=1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(windows).tanh())


def scene_of(folder: Path, bands: int = 3, size: tuple[int, int] = (90, 117), **more: Any) -> Path:
    data = np.random.default_rng(1).integers(1, 255, (bands, *size)).astype(np.uint8)
    return make(folder / "scene.tif", data, **more)


def by_hand(
    net: torch.nn.Module, pixels: np.ndarray, window: int = 32, stride: int = 16
) -> np.ndarray:
    """Mean scores ``(Q, H, W)`` of windows from the corner on, the last ones at the far edges."""
    height, width = pixels.shape[1:]
    image = torch.from_numpy(pixels)[None]
    places = [sorted({*range(0, side - window, stride), side - window}) for side in (height, width)]
    total, count = None, torch.zeros(height, width)
    with torch.no_grad():
        for row in places[0]:
            for col in places[1]:
                here = (..., slice(row, row + window), slice(col, col + window))
                scores = net(image[here])[0]
                if total is None:
                    total = torch.zeros(len(scores), height, width)
                total[here] += scores
                count[here] += 1
    return (total / count).numpy()


def labels(out: Path) -> np.ndarray:
    with rasterio.open(out / "labels.tif") as dataset:
        return dataset.read(1)


def segment(scene: Path, out: Path, scorer: Any, classes: str = NAMES, **more: Any) -> np.ndarray:
    settings = {"options": PLAIN, "products": FEW, "device": "cpu"} | more
    geoseg.segment_to_files(scene, classes, out, scorer=scorer, **settings)
    return labels(out)


@pytest.mark.parametrize("tile", [2048, 32, 48])
def test_labels_are_those_of_a_sliding_window_by_hand_whatever_the_tile(
    tmp_path: Path, tile: int
) -> None:
    scene = scene_of(tmp_path)
    found = segment(scene, tmp_path / "out", Net(), tile=tile)
    with rasterio.open(scene) as dataset:
        expected = by_hand(Net(), dataset.read().astype(np.float32) / 255).argmax(0)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("blend", ["uniform", "hann"])
def test_the_benchmarks_loop_by_hand_makes_the_same_map(tmp_path: Path, blend: str) -> None:
    from benchmarks.bench_peers import Task, run_geoseg, run_hand

    scene = str(scene_of(tmp_path, size=(340, 300)))
    task = Task(Net(classes=8), "conv", batch=3)
    with torch.inference_mode():
        for name, run in (("ours", run_geoseg), ("loop", run_hand)):
            (tmp_path / name).mkdir()
            run(task, scene, tmp_path / name / "labels.tif", blend)
    found = labels(tmp_path / "ours")
    assert len(np.unique(found)) > 2
    assert np.array_equal(found, labels(tmp_path / "loop"))


def test_confidence_is_that_of_the_activation(tmp_path: Path) -> None:
    scene = scene_of(tmp_path)
    with rasterio.open(scene) as dataset:
        scores = torch.from_numpy(by_hand(Net(), dataset.read().astype(np.float32) / 255))
    for activation, shares in (("softmax", scores.softmax(0)), ("sigmoid", scores.sigmoid())):
        out = tmp_path / activation
        segment(scene, out, geoseg.Scorer(Net(), activation=activation))
        with rasterio.open(out / "confidence.tif") as dataset:
            found = dataset.read(1).astype(int)
        assert np.abs(found - (100 * shares.amax(0)).numpy()).max() <= 0.51
        assert json.loads((out / "run.json").read_text())["model"]["activation"] == activation


def test_one_score_is_that_of_the_second_of_two_classes(tmp_path: Path) -> None:
    scene = scene_of(tmp_path)
    scorer = geoseg.Scorer(Net(classes=1), activation="sigmoid")
    found = segment(scene, tmp_path / "out", scorer, "background; roof")
    with rasterio.open(scene) as dataset:
        score = by_hand(Net(classes=1), dataset.read().astype(np.float32) / 255)[0]
    assert np.array_equal(found, score > 0)


def test_five_raw_bands_with_nodata_mean_and_deviation(tmp_path: Path) -> None:
    data = np.random.default_rng(2).integers(1, 4000, (5, 70, 80)).astype(np.uint16)
    data[:, :20, :30] = 0
    scene = make(tmp_path / "scene.tif", data, nodata=0)
    bands, mean, std = (5, 1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0, 5.0), (1000.0,)
    reading = Reading(bands=bands, stretch="raw")
    scorer = geoseg.Scorer(Net(5), mean=mean, std=std)
    found = segment(scene, tmp_path / "out", scorer, reading=reading, products=Products())
    pixels = data[[b - 1 for b in bands]].astype(np.float32)
    pixels = (pixels - np.array(mean, np.float32)[:, None, None]) / 1000
    valid = (data != 0).any(0)
    expected = by_hand(Net(5), np.where(valid, pixels, np.float32(0))).argmax(0)
    known = valid.copy()
    assert (found[~valid] == 255).all()
    assert np.array_equal(found[known], expected[known])
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["reading"]["bands"] == list(bands)
    assert "attention" not in report["options"] | report["methods"]
    assert (tmp_path / "out" / "preview.png").stat().st_size > 0
    assert (tmp_path / "out" / "polygons.gpkg").stat().st_size > 0


def test_scores_smaller_than_the_window_are_resized(tmp_path: Path) -> None:
    small = Net(step=4)

    def large(windows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(small(windows), windows.shape[2:], mode="bilinear")

    scene = scene_of(tmp_path)
    assert np.array_equal(
        segment(scene, tmp_path / "a", small), segment(scene, tmp_path / "b", large)
    )


def test_a_torchvision_segmentation_model_as_it_is(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models.segmentation")
    torch.manual_seed(0)
    net = models.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    scene = scene_of(tmp_path, size=(64, 96))
    options = Options(window=64, stride=32, blend="uniform")
    found = segment(scene, tmp_path / "out", net, options=options)
    assert net.training  # the user's own stays as it was
    net.eval()
    with rasterio.open(scene) as dataset:
        pixels = dataset.read().astype(np.float32) / 255
    expected = by_hand(lambda windows: net(windows)["out"], pixels, 64, 32)
    differs = found != expected.argmax(0)
    best = np.sort(expected, 0)
    assert (best[-1] - best[-2])[differs].max(initial=0) < 1e-4


def test_lazy_arrays_of_a_file_and_of_xarray_are_the_same_map(tmp_path: Path) -> None:
    import rioxarray

    scene = scene_of(tmp_path, bands=5)
    reading = Reading(bands=(1, 2, 3, 4, 5), stretch="raw")
    expected = segment(scene, tmp_path / "out", Net(5), reading=reading)
    for source in (scene, rioxarray.open_rasterio(scene, chunks={"x": 40, "y": 40})):
        lazy = geoseg.segment(
            source, NAMES, scorer=Net(5), reading=reading, options=PLAIN, tile=48, device="cpu"
        )
        assert np.array_equal(lazy.labels.values, expected)


def test_window_and_stride_may_stand_alone(tmp_path: Path) -> None:
    scene = scene_of(tmp_path)
    found = geoseg.segment(scene, NAMES, scorer=Net(), window=32, stride=16, device="cpu")
    options = Options(window=32, stride=16)
    assert np.array_equal(
        found.labels.values, segment(scene, tmp_path / "out", Net(), options=options)
    )


def test_no_model_of_words_is_loaded(tmp_path: Path) -> None:
    scene = scene_of(tmp_path)
    code = (
        "import sys, torch, geoseg\n"
        f"geoseg.segment_to_files({str(scene)!r}, {NAMES!r}, {str(tmp_path / 'out')!r}, "
        "scorer=torch.nn.Conv2d(3, 4, 1), window=32, device='cpu', "
        "products=geoseg.Products(polygons='none', preview=False))\n"
        "assert 'open_clip' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_resumed_run_is_refused_another_scorer_and_goes_on_with_the_same(tmp_path: Path) -> None:
    scene, out = scene_of(tmp_path), tmp_path / "out"
    expected = segment(scene, tmp_path / "whole", Net())

    def stop(state: Any) -> None:
        if state.tiles_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(scene, out, Net(), tile=32, progress=stop)
    other = Net()
    other.second.bias.data += 0.1
    with pytest.raises(GeosegError, match="--scorer"):
        segment(scene, out, other, tile=32, resume=True)
    assert np.array_equal(segment(scene, out, Net(), tile=32, resume=True), expected)


def test_what_a_function_uses_is_part_of_its_identity() -> None:
    from geoseg.inference.callables import identity

    def made(factor: float) -> Any:
        net = torch.nn.Conv2d(1, 1, 1)
        net.weight.data.fill_(1.0)
        net.bias.data.fill_(0.0)
        return lambda windows: factor * net(windows)

    assert identity(made(1.0)) == identity(made(1.0)) != identity(made(2.0))


@pytest.mark.parametrize("file", ["no file", __file__])
def test_a_function_whose_source_is_nowhere_is_told_by_what_it_does(file: str) -> None:
    from geoseg.inference.callables import identity

    def made(text: str) -> Any:
        names: dict[str, Any] = {}
        exec(compile(f"def scorer(windows):\n    return {text}\n", file, "exec"), names)
        return names["scorer"]

    assert identity(made("2 * windows")) == identity(made("2 * windows"))
    assert identity(made("2 * windows")) != identity(made("3 * windows"))


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (Net(classes=3), "3 scores a pixel, and --classes has 4 names"),
        (Net(bands=5), "fails on windows"),
        (lambda windows: Net()(windows) * float("nan"), "NaN or infinite"),
        (lambda windows: Net()(windows) / 0, "NaN or infinite"),
        (lambda windows: windows.mean(), "has to return"),
        (lambda windows: [windows], "has to return"),
        (geoseg.Scorer(Net(), mean=(1.0, 2.0)), "--mean has 2 numbers"),
        (geoseg.Scorer(lambda w: 9 * Net()(w), activation="none"), "no probabilities"),
        (7, "not int"),
        ("no_such_module_here:net", "cannot be imported"),
        ("word", "none of module:function"),
        ("missing.onnx", "does not exist"),
    ],
)
def test_a_bad_scorer_is_one_line_before_the_run(tmp_path: Path, scorer: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        segment(scene_of(tmp_path), tmp_path / "out", scorer)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "labels.tif").exists()


def test_scores_that_are_no_numbers_at_a_corner_are_the_scorers_fault(tmp_path: Path) -> None:
    def dark_is_none(windows: torch.Tensor) -> torch.Tensor:
        scores = Net()(windows)
        scores[:, 1] = scores[:, 1].where(windows[:, 0] > 0, torch.nan)
        return scores

    file = scene_of(tmp_path)
    with rasterio.open(file, "r+") as dataset:
        pixels = np.maximum(dataset.read(), 1)
        pixels[:, 5, 7] = 0
        dataset.write(pixels)
    with pytest.raises(TileError, match=r"scorer .* NaN or infinite"):
        segment(file, tmp_path / "out", dark_is_none)


@pytest.mark.parametrize(
    "given",
    [
        {"attention": "naclip"},
        {"upsampler": "none"},
        {"cls_bias": 0.1},
        {"templates": "none"},
        {"logit_scale": 2.0},
        {"preset": "paper"},
    ],
)
def test_what_is_for_words_is_refused_by_name(tmp_path: Path, given: dict[str, Any]) -> None:
    flag = "--" + next(iter(given)).replace("_", "-")
    with pytest.raises(OptionError, match=flag):
        segment(scene_of(tmp_path), tmp_path / "out", Net(), options=Options(**given))


def test_synonyms_are_left_out_in_one_line(tmp_path: Path) -> None:
    with pytest.warns(GeosegWarning, match="'roof' .house.") as caught:
        segment(scene_of(tmp_path), tmp_path / "out", Net(), "ground; roof, house; road; water")
    assert len([one for one in caught if one.category is GeosegWarning]) == 1


def test_bands_that_are_no_colours_and_raw_values_need_a_scorer(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, bands=5)
    for reading in (Reading(bands=(1, 2, 3, 4, 5)), Reading(stretch="raw")):
        with pytest.raises(OptionError):
            geoseg.segment_to_files(scene, NAMES, tmp_path / "out", reading=reading)


def command(runner: CliRunner, scene: Path, out: Path, scorer: str, *more: str) -> Any:
    return runner.invoke(
        app,
        ["segment", str(scene), "--classes", NAMES, "--out", str(out), "--scorer", scorer,
         "--window", "32", "--stride", "16", "--blend", "uniform", "--polygons", "none",
         "--device", "cpu", *more],
    )  # fmt: skip


def test_command_line_takes_a_function_and_torchscript(
    tmp_path: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(tmp_path)
    expected = segment(scene, tmp_path / "python", geoseg.Scorer(Net(), mean=0.4, std=0.2))
    torch.jit.trace(Net(), torch.zeros(1, 3, 32, 32)).save(str(tmp_path / "net.pt"))
    torch.save(Net().state_dict(), tmp_path / "weights.bin")
    (tmp_path / "trained_here.py").write_text(
        "import torch\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(),\n"
        "                          torch.nn.Conv2d(8, 4, 3, padding=1))\n"
        "state = torch.load('weights.bin')\n"
        "net.load_state_dict({k.replace('first', '0').replace('second', '2'): v\n"
        "                     for k, v in state.items()})\n"
    )
    monkeypatch.chdir(tmp_path)
    for scorer in ("trained_here:net", "net.pt"):
        out = tmp_path / "maps" / scorer.replace(":", "_")
        done = command(runner, scene, out, scorer, "--mean", "0.4", "--std", "0.2")
        assert done.exit_code == 0, done.output
        np.testing.assert_array_equal(labels(out), expected)
        assert json.loads((out / "run.json").read_text())["model"]["scorer"] == scorer


def test_command_line_takes_onnx(
    tmp_path: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module)
    scene = scene_of(tmp_path)
    expected = segment(scene, tmp_path / "python", geoseg.Scorer(Net(), mean=0.4, std=0.2))
    file = tmp_path / "net.onnx"
    torch.onnx.export(Net(), (torch.zeros(1, 3, 32, 32),), str(file), dynamo=False)
    monkeypatch.chdir(tmp_path)
    done = command(runner, scene, tmp_path / "out", "net.onnx", "--mean", "0.4", "--std", "0.2")
    assert done.exit_code == 0, done.output
    assert (labels(tmp_path / "out") != expected).mean() < 1e-3  # it rounds otherwise


def test_command_line_takes_a_raster_of_scores_on_the_scenes_grid(
    tmp_path: Path, runner: CliRunner
) -> None:
    pixels = np.random.default_rng(1).integers(1, 255, (3, 90, 117)).astype(np.uint8)
    pixels[:, :10, :40] = 0
    scene = make(tmp_path / "scene.tif", pixels, nodata=0)
    scores = np.random.default_rng(3).normal(size=(4, 90, 117)).astype(np.float32)
    scores[:, 50:60, 70:90] = -9999
    raster = make(tmp_path / "scores.tif", scores, nodata=-9999)
    expected = scores.argmax(0)
    expected[:10, :40] = expected[50:60, 70:90] = 255
    done = command(runner, scene, tmp_path / "out", str(raster), "--tile", "48")
    assert done.exit_code == 0, done.output
    assert np.array_equal(labels(tmp_path / "out"), expected)
    lazy = geoseg.segment(scene, NAMES, scorer=raster, options=PLAIN, device="cpu")
    assert np.array_equal(lazy.labels.values, expected)
    beside = make(tmp_path / "beside.tif", scores[:, 1:])
    done = command(runner, scene, tmp_path / "other", str(beside))
    assert done.exit_code in (1, 2)
    assert "not on the grid" in " ".join(done.output.replace("│", " ").split())


def test_command_line_refuses_in_one_line(tmp_path: Path, runner: CliRunner) -> None:
    (tmp_path / "net.pt").write_bytes(b"no network")
    scene = scene_of(tmp_path)
    for scorer, more, words in (
        (str(tmp_path / "net.pt"), (), "no TorchScript file"),
        (str(tmp_path / "net.pt"), ("--attention", "naclip"), "--attention"),
        (str(tmp_path / "net.pt"), ("--mean", "a,b"), "not a list of numbers"),
    ):
        done = command(runner, scene, tmp_path / "out", scorer, *more)
        assert done.exit_code in (1, 2)
        assert words in " ".join(done.output.split())


def test_info_tells_of_a_run_with_a_scorer_without_a_model_of_words(
    tmp_path: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(tmp_path, bands=5)
    torch.jit.trace(Net(5), torch.zeros(1, 5, 32, 32)).save(str(tmp_path / "net.pt"))
    monkeypatch.setattr("geoseg.inspect.load_model", None)
    monkeypatch.setattr("geoseg.inference.fusion.load_model", None)
    given = [str(scene), "--scorer", str(tmp_path / "net.pt"), "--bands", "1,2,3,4,5",
             "--window", "32", "--stride", "16", "--tile", "48", "--device", "cpu"]  # fmt: skip
    done = runner.invoke(app, ["info", *given, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)["run"]
    assert "model" not in facts
    assert facts["total_seconds"] > 0
    assert "attention" not in facts["option_sources"]
    out = ["--out", str(tmp_path / "out"), "--classes", NAMES, "--polygons", "none"]
    assert runner.invoke(app, ["segment", *given, *out]).exit_code == 0
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["windows"] == report["windows"] > facts["windows_of_lattice"]
    assert facts["windows_of_lattice"] == report["windows_of_lattice"]
    assert facts["ratio"] == pytest.approx(report["windows"] / report["windows_of_lattice"], 1e-3)
    done = runner.invoke(app, ["info", *given[:3], "--device", "cpu"])
    assert done.exit_code == 2
    assert "check --bands" in " ".join(done.output.replace("│", " ").split())


@pytest.mark.slow
def test_two_workers_make_the_same_map_and_refuse_what_cannot_travel(tmp_path: Path) -> None:
    import threading

    import distributed

    scene = scene_of(tmp_path)
    expected = segment(scene, tmp_path / "one", Net())
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert np.array_equal(
            segment(scene, tmp_path / "two", Net(), tile=32, client=client), expected
        )
        lock = threading.Lock()

        def locked(windows: torch.Tensor) -> torch.Tensor:
            with lock:
                return Net()(windows)

        with pytest.raises(OptionError, match="cannot be sent to workers"):
            segment(scene, tmp_path / "three", locked, client=client)
