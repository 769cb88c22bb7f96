"""Real scenes through the command line with the bundled model: placed, whole, seamless."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from geoseg.inference.segmenter import Segmenter
from geoseg.model.loading import load_model
from geoseg.options import Options
from geoseg_cli.main import app

SHARED = Path(__file__).resolve().parents[2] / "shared"
SCENES = SHARED / "scenes"
SAMPLES = Path(__file__).resolve().parents[1] / "sample_tiles"
WORDS = "water, lake; cropland, field; grass; tree, forest; building; road; bare soil"

FILES = [
    *(f"naip/m_4709963_se_14_1_{day}.tif" for day in (20090818, 20120731, 20150926, 20190904)),
    *("landsat/pucallpa_1990.tif", "landsat/pucallpa_2010.tif", "landsat/bahamas_RGB.byte.tif"),
    *("aerial/neon_OSBS_029.tif", "aerial/neon_YELL_541000_4977000.png"),
    "aerial/usgs_hro_colorado_15cm.tif",
    *("spacenet6_rotterdam/ms1_float64.tif", "spacenet6_rotterdam/pan1_uint16.tif"),
    *(f"labelled/vegas_multiclass/image_{kind}.tif" for kind in ("rgb_uint8", "rgb_uint16")),
    "labelled/vegas_multiclass/image_8band_uint8.tif",
    "labelled/atlanta_buildings/image_pan_uint16.tif",
]

real = pytest.mark.skipif(not SCENES.is_dir(), reason="reference data not present")


def segment(scene: Path, out: Path, *options: str) -> None:
    arguments = ["segment", str(scene), "--classes", WORDS, "--out", str(out), "--quiet"]
    result = CliRunner().invoke(app, [*arguments, "--model", "geoseg-tiny", *options])
    assert result.exit_code == 0, result.output


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_maps_lie_on_their_scenes(name: str, tmp_path: Path) -> None:
    segment(SCENES / name, tmp_path)
    with rasterio.open(SCENES / name) as scene:
        masks = scene.dataset_mask()
        for product in ("labels.tif", "confidence.tif"):
            with rasterio.open(tmp_path / product) as raster:
                assert raster.shape == scene.shape
                assert raster.transform == scene.transform
                assert raster.crs == scene.crs
                assert raster.nodata == 255
                assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with rasterio.open(tmp_path / "labels.tif") as raster:
        labels = raster.read(1)
        assert {raster.tags(1)[f"CLASS_{i}"] for i in range(7)} == {
            "water", "cropland", "grass", "tree", "building", "road", "bare soil",
        }  # fmt: skip
    assert set(np.unique(labels)) <= {*range(7), 255}
    assert (labels[masks == 0] == 255).all()
    report = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert sum(c["pixels"] for c in report["classes"]) == (labels != 255).sum()


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--tile", "512"), ("--tile", "4096"), ("--batch-size", "1")])
def test_tiles_and_batches_do_not_change_the_map(
    options: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    reference = tmp_path_factory.getbasetemp() / "seamless-reference"
    scene = SAMPLES / "town_river.tif"
    if not reference.exists():
        segment(scene, reference, "--tile", "1024", "--polygons", "none")
    segment(scene, tmp_path, *options, "--polygons", "none")
    with (
        rasterio.open(reference / "labels.tif") as first,
        rasterio.open(tmp_path / "labels.tif") as second,
    ):
        differing = int((first.read(1) != second.read(1)).sum())
    # Kernels may round differently with the batch's shape: under 1 pixel in 50,000.
    assert differing <= first.width * first.height / 50_000


def test_windows_leave_no_cuts() -> None:
    """By default classes change at the edges of windows no more often than beside them."""
    from benchmarks.bench_seams import WORDS, Changes, changes, scene_labels

    model, found = load_model("geoseg-tiny", device="cpu"), {}
    for options in (Options(), Options(blend="uniform")):
        segmenter, total = Segmenter(model, WORDS, options), Changes()
        for name in ("town_river", "farmland_lakes"):
            labels = scene_labels(segmenter, str(SAMPLES / f"{name}.tif"))
            total += changes(labels, segmenter.lattice(*labels.shape))
        assert total.beside > 200
        found[options.blend] = total.excess
    assert found[None] < 1.15 < 1.5 < found["uniform"], found


@pytest.mark.parametrize("name", ["town_river", "farmland_lakes", "coast_swath", "park_rgbn"])
def test_sample_tiles_beat_the_commonest_class_twice(name: str, tmp_path: Path) -> None:
    """The bundled model on drawn tiles: mean IoU at least twice that of one class everywhere."""
    from geoseg.evaluation import evaluate

    scene, truth = SAMPLES / f"{name}.tif", SAMPLES / f"{name}_labels.tif"
    arguments = ["segment", str(scene), "--classes", str(SAMPLES / "classes.txt"), "--quiet"]
    arguments += ["--out", str(tmp_path), "--model", "geoseg-tiny", "--polygons", "none"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    score = evaluate(tmp_path / "labels.tif", truth, classes=SAMPLES / "classes.txt").scores
    with rasterio.open(truth) as dataset:
        values = dataset.read(1)
    counts = np.bincount(values[values != 255])
    commonest = counts.max() / counts.sum() / (counts > 0).sum()
    assert score.miou >= 2 * commonest
