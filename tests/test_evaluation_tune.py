"""Tuning: it finds what is wrong, and claims nothing where there is nothing to gain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from geoseg.ask import encode
from geoseg.errors import EvaluationError, GeosegError, OptionError, SceneError
from geoseg.evaluation.metrics import IGNORE
from geoseg.evaluation.tune import LabelledPixels, Settings, Tuner
from geoseg.evaluation.tune_samples import LabelledScene, collect_pixels, tune_on_scenes
from geoseg.inference.segmenter import Segmenter
from geoseg.io.scene import Scene
from geoseg.model.loading import load_model
from geoseg.options import Options
from geoseg.testing import tiny_random_model, write_scene
from geoseg.text.vocabulary import Vocabulary
from geoseg.types import Window
from geoseg_cli.main import app

VOCABULARY = Vocabulary.parse("other;building,roof;road,street;water")
QUERIES = len(VOCABULARY.queries)


def pixels(n: int = 3000, groups: int = 6, *, noise: float = 0.02, seed: int = 0) -> LabelledPixels:
    """Pixels whose own queries stand out from noise."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n).astype(np.int32)
    patch = rng.normal(0.2, noise, (n, QUERIES)).astype(np.float32)
    patch[VOCABULARY.query_classes[None] == truth[:, None]] += 0.05
    return LabelledPixels(
        patch=patch,
        cls=np.zeros_like(patch),
        truth=truth,
        weight=np.ones(n),
        group=rng.integers(0, groups, n),
    )


def tune(data: LabelledPixels, before: Settings | None = None, **options):
    return Tuner(VOCABULARY, **options).tune(data, before or Settings(0.3))


def test_a_synonym_that_misleads_is_dropped() -> None:
    data = pixels()
    street = VOCABULARY.queries.index("street")
    # "street" answers to water as strongly as water does itself.
    data.patch[:, street] = np.where(data.truth == 3, 0.3, 0.15)
    got = tune(data)
    assert got.dropped == ("street",)
    assert got.vocabulary.classes[2].prompts == ("road",)
    assert got.gain > 0.1
    assert got.steps[1].name == "synonyms"
    assert got.steps[1].taken


def test_too_little_cls_bias_is_found() -> None:
    data = pixels()
    # Every window leans towards "building"; the CLS token knows by how much.
    lean = np.random.default_rng(1).uniform(0, 0.3, len(data)).astype(np.float32)
    data.cls[:, 1] = lean
    data.patch[:, 1] += 0.8 * lean
    got = tune(data, Settings(0.1))
    assert got.after.cls_bias == 0.8
    assert got.gain > 0.1


def test_an_offset_evens_out_a_class_that_wins_too_often() -> None:
    data = pixels()
    data.patch[:, 1:3] += 0.04  # both words of "building"
    got = tune(data)
    offsets = [entry.offset for entry in got.vocabulary.classes]
    assert offsets[1] < min(offsets[0], *offsets[2:]) - 0.02
    assert "offset = -0.0" in got.to_toml()
    assert got.gain > 0.05


def test_threshold_is_found_for_the_background() -> None:
    data = pixels()
    # Background is what answers to nothing; its own query is useless.
    data.patch[:, 0] = 0.1
    data.patch[data.truth == 0, 1:] = 0.2
    got = tune(data, background="other")
    assert got.after.threshold is not None
    assert got.gain > 0.1
    assert "--background 'other'" in got.options
    assert tune(data).after.threshold is None


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_claimed_where_nothing_is_to_gain(seed: int) -> None:
    data = pixels(n=400, seed=seed)
    blind = replace(
        data, truth=np.random.default_rng(seed + 99).integers(0, 4, 400).astype(np.int32)
    )
    got = tune(blind, background="other")
    # Choosing among many settings finds something on its own pixels; held-out ones tell.
    assert got.gain < 0.03
    if got.gain <= 0:
        assert got.after == got.before
        assert got.vocabulary == VOCABULARY


def test_gain_is_measured_on_groups_that_were_left_out() -> None:
    data = pixels(groups=2, n=2000)
    street = VOCABULARY.queries.index("street")
    # In one group "street" misleads, in the other it is what finds roads.
    first = data.group == 0
    data.patch[first, street] = np.where(data.truth[first] == 3, 0.35, 0.1)
    data.patch[~first, street] = np.where(data.truth[~first] == 2, 0.35, 0.1)
    road = VOCABULARY.queries.index("road")
    data.patch[~first, road] = 0.1
    got = tune(data)
    assert got.gain < 0
    assert got.after == got.before


def test_class_file_can_be_read_back_and_names_its_options(tmp_path: Path) -> None:
    data = pixels()
    data.patch[:, VOCABULARY.queries.index("roof")] = 0.5
    got = tune(data)
    (tmp_path / "tuned.toml").write_text(got.to_toml())
    assert Vocabulary.parse(tmp_path / "tuned.toml") == got.vocabulary
    assert got.to_toml().startswith("# Use with: --cls-bias 0.3\n")


def test_weights_count() -> None:
    data = pixels()
    heavy = replace(data, weight=np.where(data.truth == 1, 10.0, 1.0))
    got = tune(heavy)
    assert got.scores_before.classes[1].support == 10 * (data.truth == 1).sum()


def test_labels_that_lie_together_are_refused() -> None:
    data = pixels()
    with pytest.raises(EvaluationError, match="at least two chips"):
        tune(replace(data, group=np.zeros(len(data), np.int64)))
    with pytest.raises(EvaluationError, match="of one class"):
        tune(replace(data, truth=np.zeros(len(data), np.int32)))
    with pytest.raises(OptionError, match="'sky' is not one of the classes"):
        tune(data, background="sky")


def test_predictions_are_the_segmenters_decisions() -> None:
    """Query choice, synonyms, thresholds of classes and of the run, background."""
    from geoseg.inference.decide import Decision

    data = pixels(n=500, noise=0.05)
    classes = (
        replace(VOCABULARY.classes[0]),
        replace(VOCABULARY.classes[1], threshold=0.9),
        *VOCABULARY.classes[2:],
    )
    vocabulary = Vocabulary(classes)
    got = Tuner(vocabulary, logit_scale=50, background="water").predict(
        Settings(0.0, threshold=0.4), data.patch, data.cls
    )
    decision = Decision(
        query_classes=torch.from_numpy(vocabulary.query_classes).long(),
        classes=4,
        logit_scale=50,
        thresholds=torch.tensor([0.4, 0.9, 0.4, 0.4]),
        background=3,
    )
    expected, _ = decision.labels(decision.scores(torch.from_numpy(data.patch)))
    assert np.array_equal(got, expected.numpy())
    assert 0 < (got == 3).mean() < 1


# On scenes


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return tiny_random_model(tmp_path_factory.mktemp("model"), width=32)


def write_truth(path: Path, scene: Path, truth: np.ndarray) -> Path:
    with rasterio.open(scene) as source:
        profile = {"crs": source.crs, "transform": source.transform}
    with rasterio.open(
        path, "w", driver="GTiff", height=truth.shape[0], width=truth.shape[1], count=1,
        dtype="uint8", nodata=255, **profile,
    ) as out:  # fmt: skip
        out.write(truth.astype(np.uint8), 1)
    return path


def test_logits_are_those_of_the_whole_scene(model: str, tmp_path: Path) -> None:
    """Only tiles with labels are segmented, and that changes nothing."""
    scene_path = write_scene(tmp_path / "scene.tif", 700, 1000)
    truth = np.full((700, 1000), 255)
    truth[30:50, 940:960] = 1
    truth[600:620, 500:530] = 3
    truth_path = write_truth(tmp_path / "truth.tif", scene_path, truth)
    scene = Scene.open(scene_path)
    loaded = load_model(model)
    plain, biased = (
        Segmenter(loaded, VOCABULARY, Options(cls_bias=bias, templates="none"))
        for bias in (0.0, 1.0)
    )

    got = collect_pixels([LabelledScene(scene, truth_path)], plain)

    block = scene.read(scene.grid.window)
    tiles = [(slice(0, 448), slice(448, 1000)), (slice(448, 700), slice(448, 1000))]
    assert len(got) == 1000
    for bias, segmenter in ((0.0, plain), (1.0, biased), (0.4, None)):
        picked = segmenter or Segmenter(
            loaded, VOCABULARY, Options(cls_bias=bias, templates="none")
        )
        logits = picked.logits(block)
        expected = np.concatenate(
            [logits[:, rows, cols][:, truth[rows, cols] != 255].T for rows, cols in tiles]
        )
        assert (got.patch - bias * got.cls)[: len(expected)] == pytest.approx(expected, abs=2e-5)
    assert np.array_equal(np.unique(got.truth), [1, 3])
    assert len(np.unique(got.group)) >= 2


def test_pixels_are_drawn_evenly_and_stand_for_the_rest(model: str, tmp_path: Path) -> None:
    scene_path = write_scene(tmp_path / "scene.tif", 300, 300)
    truth = np.zeros((300, 300))
    truth[:20, :20] = 1
    truth[100] = 255
    truth_path = write_truth(tmp_path / "truth.tif", scene_path, truth)
    segmenter = Segmenter(load_model(model), VOCABULARY, Options(templates="none"))
    scenes = [LabelledScene(Scene.open(scene_path), truth_path)]
    got = collect_pixels(scenes, segmenter, per_class=300)
    counts = np.bincount(got.truth)
    assert counts[0] == pytest.approx(300, rel=0.25)
    assert counts[1] == pytest.approx(300, rel=0.25)
    assert np.bincount(got.truth, got.weight) == pytest.approx([300 * 300 - 400 - 300, 400])
    assert (got.truth != IGNORE).all()
    again = collect_pixels(scenes, segmenter, per_class=300)
    assert np.array_equal(again.patch, got.patch)


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    (tmp_path / "chips").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("a", "b", "c"):
        scene = write_scene(tmp_path / "chips" / f"{name}.tif", 128, 160, seed=ord(name))
        truth = np.kron(rng.integers(0, 4, (4, 5)), np.ones((32, 32)))
        write_truth(tmp_path / "labels" / f"{name}.tif", scene, truth)
    return tmp_path


def test_tuning_on_chips(model: str, chips: Path) -> None:
    seen: list[tuple[int, int]] = []
    got = tune_on_scenes(
        [str(chips / "chips")],
        chips / "labels",
        VOCABULARY,
        model=model,
        options=Options(templates="none"),
        per_class=100,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert got.groups == 3
    assert seen[-1][0] == seen[-1][1] > 0
    assert got.before.cls_bias == 0.3
    assert got.scores_before.pixels == pytest.approx(3 * 128 * 160, rel=1e-3)


def test_points_work_as_labels(model: str, tmp_path: Path) -> None:
    import geopandas
    import shapely

    scene_path = write_scene(tmp_path / "scene.tif", 300, 300)
    with rasterio.open(scene_path) as source:
        places = [source.xy(r, c) for r, c in ((10, 20), (250, 30), (40, 260), (280, 290))]
        crs = source.crs
    words = ["water", "roof", "road", "water"]
    geopandas.GeoDataFrame(
        {"class": words}, geometry=[shapely.Point(*p) for p in places], crs=crs
    ).to_crs("EPSG:4326").to_file(tmp_path / "points.gpkg")
    segmenter = Segmenter(load_model(model), VOCABULARY, Options(templates="none"))
    got = collect_pixels(
        [LabelledScene(Scene.open(scene_path), tmp_path / "points.gpkg")], segmenter
    )
    assert sorted(got.truth) == [1, 2, 3, 3]
    assert len(np.unique(got.group)) == 4


def command(*arguments: object):
    return CliRunner().invoke(app, ["tune", *(str(a) for a in arguments)])


def test_command_writes_a_class_file(model: str, chips: Path) -> None:
    out = chips / "out" / "tuned.toml"
    arguments = (
        chips / "chips", "--truth", chips / "labels", "--classes", "other;building,roof;road;water",
        "--model", model, "--templates", "none", "--samples", 50, "--out", out,
        "--background", "other",
    )  # fmt: skip
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["groups"] == 3
    assert {"gain", "cls_bias", "threshold", "dropped", "options", "steps"} <= set(found)
    assert Vocabulary.parse(out).names == ("other", "building", "road", "water")

    again = command(*arguments)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    shown = command(*arguments, "--overwrite")
    assert shown.exit_code == 0, shown.output
    assert "tuned, on labels left out" in shown.stdout


# -- stores --------------------------------------------------------------------------------------


@pytest.fixture
def stores(model: str, chips: Path) -> Path:
    loaded = load_model(model)
    for name in ("a", "b", "c"):
        scene = chips / "chips" / f"{name}.tif"
        encode(scene, chips / "stores" / f"{name}.store", model=loaded, store={"tier": "full"})
    return chips / "stores"


def test_stores_tune_to_what_their_scenes_do(model: str, chips: Path, stores: Path) -> None:
    options = Options(templates="none", threshold=0.26)
    settings = {"options": options, "per_class": 200, "background": "other"}
    truth = chips / "labels"
    expected = tune_on_scenes(chips / "chips", truth, VOCABULARY, model=model, **settings)
    found = tune_on_scenes(sorted(stores.iterdir()), truth, VOCABULARY, **settings)
    assert (found.after, found.vocabulary) == (expected.after, expected.vocabulary)
    assert [step.taken for step in found.steps] == [step.taken for step in expected.steps]
    assert found.scores_after.miou == pytest.approx(expected.scores_after.miou, abs=2e-3)
    assert (found.pixels, found.groups) == (expected.pixels, expected.groups)


def test_a_store_gives_the_logits_of_its_scene(model: str, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 500, 520, holes=[Window(0, 0, 300, 260)])
    truth = write_truth(
        tmp_path / "truth.tif", scene, np.kron(np.arange(20).reshape(4, 5) % 4, np.ones((125, 104)))
    )
    segmenter = Segmenter(load_model(model), VOCABULARY, Options(templates="none"))
    expected = collect_pixels([LabelledScene(Scene.open(scene), truth)], segmenter)
    with rasterio.open(scene) as raster:
        left, _, right, top = raster.bounds
    area = (left, top - 200, right - 30, top)
    loaded = load_model(model)
    for name, reading in (("whole", None), ("part", {"aoi": area})):
        store = encode(scene, tmp_path / f"{name}.store", model=loaded, reading=reading)
        again, source, known = store.opened(
            VOCABULARY, Options(templates="none"), model=None, device="cpu"
        )
        found = collect_pixels([LabelledScene(source, truth, area=known)], again)
        if name == "whole":
            assert (found.truth == expected.truth).all()
            assert found.patch == pytest.approx(expected.patch, abs=1e-3)
            assert found.cls == pytest.approx(expected.cls, abs=1e-3)
        else:
            assert 0 < found.weight.sum() < expected.weight.sum()


def test_what_a_store_has_settled_is_refused_by_name(
    model: str, chips: Path, stores: Path, tmp_path: Path
) -> None:
    paths, truth = [*sorted(stores.iterdir())], chips / "labels"
    for settings, words in (
        ({"options": Options(attention="vanilla")}, "--attention vanilla: .*was encoded with"),
        ({"reading": {"stretch": "none"}}, "--stretch none: .*was encoded with auto"),
        ({"model": "geoseg-tiny"}, "has other weights"),
        ({"options": Options(regions="superpixels")}, "pixel by pixel; leave regions out"),
    ):
        with pytest.raises(GeosegError, match=words):
            tune_on_scenes(paths, truth, VOCABULARY, **settings)
    with pytest.raises(SceneError, match="stores and scenes cannot be tuned on together"):
        tune_on_scenes([paths[0], chips / "chips" / "b.tif"], truth, VOCABULARY)
    scene = chips / "chips" / "a.tif"
    fast = encode(scene, tmp_path / "a.store", model=load_model(model), store={"tier": "fast"})
    with pytest.raises(OptionError, match="holds no full tier"):
        tune_on_scenes(fast, truth, VOCABULARY)
    out = tmp_path / "tuned.toml"
    done = command(*paths, "--truth", truth, "--classes", "other; roof; road; water", "--samples",
                   50, "--templates", "none", "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert out.exists()
