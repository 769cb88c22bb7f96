"""Examples in place of words, or beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasters import UTM, make
from typer.testing import CliRunner

import geoseg
from geoseg import Options, Store, Vocabulary
from geoseg.errors import GeosegWarning, OptionError, OutputError, SceneError, VocabularyError
from geoseg.store import pool
from geoseg.testing import tiny_random_model
from geoseg.types import PixelBlock
from geoseg_cli.main import app

COLOURS = {"brick": (170, 70, 60), "lawn": (60, 150, 60), "lake": (40, 70, 160)}
WIDTH = 96
QUICK = Options(templates="none", cls_bias=0.0)


def stripes(path: Path, order: tuple[str, ...] = tuple(COLOURS), seed: int = 0) -> Path:
    """Three stripes side by side, of colours that vary a little."""
    noise = np.random.default_rng(seed).integers(-12, 12, (3, 192, WIDTH * len(order)))
    flat = np.repeat(np.array([COLOURS[name] for name in order]).T, WIDTH, axis=1)[:, None]
    return make(path, (flat + noise).clip(1, 255).astype(np.uint8))


def box(stripe: int, top: int, side: int = 40) -> Any:
    """A square in a stripe."""
    left = 500000 + stripe * WIDTH + 25
    return shapely.box(left, 5000000 - top - side, left + side, 5000000 - top)


def table(names: list[str], shapes: list[Any], crs: str = UTM) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"class": names}, geometry=shapes, crs=crs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def model(folder: Path) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(folder / "model"), device="cpu")


@pytest.fixture(scope="module")
def scene(folder: Path) -> Path:
    return stripes(folder / "scene.tif")


@pytest.fixture(scope="module")
def store(folder: Path, scene: Path, model: geoseg.Model) -> Store:
    return geoseg.encode(scene, folder / "s.store", model=model, store={"tier": "full"})


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    names = [name for name in COLOURS for _ in range(2)]
    shapes = [box(k, top) for k in range(3) for top in (10, 120)]
    path = folder / "examples.gpkg"
    table(names, shapes).to_crs("EPSG:4326").to_file(path)
    return path


def told_right(labels: np.ndarray, order: tuple[int, ...] = (0, 1, 2)) -> float:
    return float(np.mean(labels == np.repeat(order, WIDTH)))


def test_examples_alone_make_the_classes_and_the_map(
    store: Store, scene: Path, model: geoseg.Model, file: Path
) -> None:
    found = geoseg.examples(store, file)
    assert found.names == tuple(COLOURS)
    assert told_right(store.ask(found, options=QUICK).labels.values) > 0.85
    # Without a store the same tokens are encoded for it, and fewer windows say what is usual.
    again = geoseg.examples(scene, file, model=model)
    assert told_right(geoseg.segment(scene, again, model=model, options=QUICK).labels.values) > 0.85


def test_examples_hold_on_another_scene_and_in_a_file(
    store: Store, model: geoseg.Model, file: Path, tmp_path: Path
) -> None:
    saved = geoseg.examples(store, file).save(tmp_path / "classes.toml")
    assert Vocabulary.parse(saved) == geoseg.examples(store, file)
    other = stripes(tmp_path / "other.tif", ("lake", "brick", "lawn"), seed=1)
    run = geoseg.segment_to_files(other, saved, tmp_path / "map", model=model, options=QUICK)
    with rasterio.open(tmp_path / "map" / "labels.tif") as raster:
        assert told_right(raster.read(1), (2, 0, 1)) > 0.85
    # What made the map is in its record, and the record makes the same map.
    assert Vocabulary.parse(run.out / "run.json") == Vocabulary.parse(saved)


def test_words_get_better_by_examples(store: Store, file: Path) -> None:
    words = Vocabulary.parse("brick, roof; lawn; lake")
    before = told_right(store.ask(words, options=QUICK).labels.values)
    both = geoseg.examples(store, file, words, options=QUICK)
    assert [entry.prompts for entry in both.classes] == [e.prompts for e in words.classes]
    after = told_right(store.ask(both, options=QUICK).labels.values)
    assert after > max(before, 0.8)
    half = geoseg.examples(store, file, words, share=0.5, options=QUICK)
    assert {entry.share for entry in half.classes} == {0.5}


def test_points_are_examples_too(store: Store) -> None:
    shapes = [box(k, 80).centroid for k in range(3)]
    with pytest.warns(GeosegWarning, match="3 of 3 examples are smaller than a patch of 16 x 16"):
        found = geoseg.examples(store, table(list(COLOURS), shapes))
    assert told_right(store.ask(found, options=QUICK).labels.values) > 0.8


def test_a_class_known_by_words_alone_stays_so(store: Store) -> None:
    found = geoseg.examples(store, table(["lake"], [box(2, 50)]), "brick; lawn; lake", share=0.3)
    assert [bool(entry.example) for entry in found.classes] == [False, False, True]
    labels = store.ask(found, options=QUICK).labels.values
    assert (labels[:, 2 * WIDTH :] == 2).mean() > 0.8


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (table(["lake"], [shapely.box(0, 0, 9, 9)]), OptionError, "all examples lie beside"),
        (table(["moor"], [box(0, 9)]), VocabularyError, "'moor' is not one of the classes"),
        (table([None], [box(0, 9)]), OptionError, "an example has no class"),
        (table(["lake"], [box(0, 9)]).rename(columns={"class": "kind"}), OptionError, "no column"),
        (table(["lake"], [shapely.LineString([(0, 0), (1, 1)])]), SceneError, "has no polygons"),
    ],
)
def test_what_cannot_be_an_example_is_one_line(
    store: Store, made: gpd.GeoDataFrame, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        geoseg.examples(store, made, "brick; lake")


def test_examples_beside_the_scene_are_told_of(store: Store) -> None:
    made = table(["brick", "lake", "lake"], [box(0, 9), box(2, 9), shapely.box(0, 0, 9, 9)])
    with pytest.warns(GeosegWarning, match="1 examples lie beside the scene"):
        assert geoseg.examples(store, made).names == ("brick", "lake")


def test_examples_of_another_model_are_refused(store: Store, scene: Path, file: Path) -> None:
    found = geoseg.examples(store, file)
    with pytest.raises(VocabularyError, match="has 64 numbers and the model's directions have 128"):
        geoseg.Segmenter(geoseg.load_model("geoseg-tiny"), found.with_class("roof"))


# -- similarity ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(folder: Path, scene: Path, model: geoseg.Model) -> Store:
    return geoseg.encode(scene, folder / "both.store", model=model)


@pytest.mark.parametrize("fast", [False, True])
def test_similarity_to_a_place_is_highest_there(both: Store, fast: bool) -> None:
    place = box(1, 60)
    for what in (place, (place.centroid.x, place.centroid.y)):
        found = both.similar(what, fast=fast)
        means = [float(found.values[:, k * WIDTH : (k + 1) * WIDTH].mean()) for k in range(3)]
        assert means[1] > max(means[0], means[2])
        assert -1 <= float(found.min()) <= float(found.max()) <= 1


def test_similarity_to_words_is_the_logit_of_these_words(both: Store, model: geoseg.Model) -> None:
    with rasterio.open(both.facts["scene"]["path"]) as raster:
        pixels = np.moveaxis(raster.read(), 0, -1)
    segmenter = geoseg.Segmenter(model, "green lawn; b", QUICK)
    block = _block(pixels)
    expected = segmenter.logits(block)[0]
    found = both.similar("green lawn", options=QUICK, fast=False)
    assert np.abs(found.values - expected).max() < 2e-3
    near = both.similar("green lawn", options=QUICK, fast=True)
    assert np.corrcoef(near.values.ravel(), expected.ravel())[0, 1] > 0.98


def _block(pixels: np.ndarray) -> Any:
    rgb = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255
    return PixelBlock(rgb, np.ones(rgb.shape[1:], bool))


def test_similarity_in_a_file(both: Store, runner: CliRunner, tmp_path: Path) -> None:
    out = tmp_path / "lawn.tif"
    place = box(1, 60).centroid
    command = ["similar", str(both.path), "--to", f"{place.x},{place.y}", "--out", str(out)]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    with rasterio.open(out) as raster:
        assert (raster.dtypes[0], raster.nodata, raster.crs.to_string()) == ("float32", -9999, UTM)
        expected = both.similar((place.x, place.y)).values
        assert np.allclose(raster.read(1), expected, atol=1e-5)
    again = runner.invoke(app, command)
    assert again.exit_code == 1
    assert "replace it with --overwrite" in again.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["lawn.tif"]


def test_similarity_never_replaces_the_scene(both: Store, tmp_path: Path) -> None:
    own = Path(shutil.copy(both.facts["scene"]["path"], tmp_path / "own.tif"))
    (tmp_path / "same.tif").hardlink_to(own)
    before = own.read_bytes()
    for out in (own, tmp_path / "same.tif"):
        with pytest.raises(OutputError, match="is the scene itself and would be replaced"):
            both.similar("lake", out=out, scene=own, overwrite=True)
    assert own.read_bytes() == before
    for out, reason in ((tmp_path, "is a folder"), (tmp_path / "no" / "a.tif", "no such folder")):
        with pytest.raises(OutputError, match=reason):
            both.similar("lake", out=out, overwrite=True)


@pytest.mark.parametrize(
    ("written", "reason"),
    [("SRID=32632;POINT(500050 4999900)", "leave SRID=… out"), ("POINT EMPTY", "has no data"),
     ("LINESTRING(0 0, 1 1", "is no geometry")],
)  # fmt: skip
def test_a_geometry_is_never_taken_for_words(
    both: Store, runner: CliRunner, tmp_path: Path, written: str, reason: str
) -> None:
    command = ["similar", str(both.path), "--to", written, "--out", str(tmp_path / "a.tif")]
    done = runner.invoke(app, command)
    assert done.exit_code == 2
    assert reason in done.stderr


def test_similarity_to_nowhere_is_one_line(both: Store) -> None:
    with pytest.raises(OptionError, match="lies where the scene has no data"):
        both.similar((0.0, 0.0))
    with pytest.raises(OptionError, match="give words, a point or a polygon"):
        both.similar(3)  # type: ignore[arg-type]


# -- corrections ---------------------------------------------------------------------------------


def known_points(count: int) -> gpd.GeoDataFrame:
    """Places all over the scene, and what is there."""
    rng = np.random.default_rng(1)
    at = rng.uniform((8, 8), (3 * WIDTH - 8, 184), (count, 2))
    names = [list(COLOURS)[int(x // WIDTH)] for x, _ in at]
    return table(names, [shapely.Point(500000 + x, 5000000 - y) for x, y in at])


@pytest.mark.parametrize(
    ("kept", "fast"),
    [
        ({}, False),
        ({}, True),
        ({"tier": "fast"}, True),
        ({"tier": "full", "channels": 24}, False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*smaller than a patch")
def test_a_few_corrected_points_mend_a_map(
    both: Store,
    scene: Path,
    model: geoseg.Model,
    tmp_path: Path,
    kept: dict[str, Any],
    fast: bool,
) -> None:
    bare = geoseg.Products(polygons="none", preview=False)
    if kept:
        both = geoseg.encode(scene, tmp_path / "other.store", model=model, store=kept)
    made = both.to_files(
        "brick; lawn; lake", tmp_path / "map", fast=fast, options=QUICK, products=bare
    )
    points = known_points(20)
    done = geoseg.correct(both, made.out, points, tmp_path / "new", products=bare)
    with rasterio.open(tmp_path / "map" / "labels.tif") as raster:
        before = raster.read(1)
    with rasterio.open(tmp_path / "new" / "labels.tif") as raster:
        after = raster.read(1)
    assert done.after >= done.before
    assert told_right(after) > told_right(before) + 0.03
    assert sum(done.moved.values()) == (after != before).sum()
    # What was learnt is a vocabulary like any other; and what is right stays as it is.
    saved = done.vocabulary.save(tmp_path / "classes.toml")
    again = both.to_files(saved, tmp_path / "right", fast=fast, options=QUICK, products=bare)
    truth = points.assign(**{"class": [
        list(COLOURS)[after[int(5000000 - p.y), int(p.x - 500000)]] for p in points.geometry
    ]})  # fmt: skip
    same = geoseg.correct(both, again.out, truth, tmp_path / "same", products=bare)
    assert (same.before, same.spread, same.moved) == (1.0, 0.0, {})


def test_corrections_of_other_maps_are_refused(
    both: Store, tmp_path: Path, runner: CliRunner
) -> None:
    with pytest.raises(SceneError, match=r"holds no map with its run\.json"):
        geoseg.correct(both, tmp_path, known_points(3), tmp_path / "new")
    bare = geoseg.Products(polygons="none", preview=False)
    both.to_files("brick; lake", tmp_path / "map", options=QUICK, products=bare)
    with pytest.raises(VocabularyError, match="'lawn' is not a class of the map: brick, lake"):
        geoseg.correct(both, tmp_path / "map", known_points(9), tmp_path / "new")
    known_points(9)[lambda t: t["class"] != "lawn"].to_file(tmp_path / "points.gpkg")
    command = ["correct", str(both.path), "--map", str(tmp_path / "map"), "--points",
               str(tmp_path / "points.gpkg"), "--out", str(tmp_path / "new"), "--json",
               "--polygons", "none", "--no-preview"]  # fmt: skip
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["right_left_out"] >= told["right_before"]


def test_places_that_the_map_has_right_change_nothing(
    both: Store, tmp_path: Path, runner: CliRunner
) -> None:
    bare = geoseg.Products(polygons="none", preview=False)
    made = both.to_files("brick; lake", tmp_path / "map", options=QUICK, products=bare)
    with rasterio.open(made.out / "labels.tif") as raster:
        labels = raster.read(1)
    points = known_points(9)
    at = ((int(5000000 - p.y), int(p.x - 500000)) for p in points.geometry)
    points["class"] = [("brick", "lake")[labels[place]] for place in at]
    points.to_file(tmp_path / "points.gpkg")
    done = runner.invoke(app, [
        "correct", str(both.path), "--map", str(made.out), "--out", str(tmp_path / "new"),
        "--points", str(tmp_path / "points.gpkg"), "--polygons", "none", "--no-preview",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "right: 100 % before, 100 % left out" in done.stderr
    assert "the places say nothing that mends the map; it stays as it is" in done.stderr
    with rasterio.open(tmp_path / "new" / "labels.tif") as raster:
        assert (raster.read(1) == labels).all()


@pytest.mark.parametrize(
    ("reading", "flag"),
    [({"bands": (3, 2, 1)}, "bands"), ({"stretch": "2,98"}, "stretch"), ({"nodata": 7}, "nodata")],
)
def test_a_map_of_other_colours_is_not_corrected(
    both: Store, scene: Path, model: geoseg.Model, tmp_path: Path, reading: Any, flag: str
) -> None:
    """The same file, seen otherwise."""
    path, bare = both.facts["scene"]["path"], geoseg.Products(polygons="none", preview=False)
    common = {"model": model, "options": QUICK, "products": bare}
    made = geoseg.segment_to_files(
        path, "brick; lawn; lake", tmp_path / "map", reading=reading, **common
    )
    with pytest.raises(OptionError, match=rf"was mapped with .*{flag}.* was encoded with"):
        geoseg.correct(both, made.out, known_points(9), tmp_path / "new", products=bare)
    assert not (tmp_path / "new").exists()
    same = geoseg.segment_to_files(path, "brick; lawn; lake", tmp_path / "same", **common)
    assert geoseg.correct(both, same.out, known_points(9), tmp_path / "new", products=bare)


def test_a_map_in_regions_that_are_gone_is_not_corrected(both: Store, tmp_path: Path) -> None:
    options = geoseg.Options(**vars(QUICK) | {"regions": table(["a"], [box(0, 10)])})
    bare = geoseg.Products(polygons="none", preview=False)
    made = both.to_files("brick; lawn; lake", tmp_path / "map", options=options, products=bare)
    with pytest.raises(OptionError, match="not there any more: a GeoDataFrame of 1 polygons"):
        geoseg.correct(both, made.out, known_points(9), tmp_path / "new", products=bare)


def test_a_large_example_has_so_many_tokens_and_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their mean is hardly another."""
    seen = pool.seen_by_store(store._file, store._open(None, None)[0].grid, "cpu")
    outline = shapely.box(1, 1, WIDTH - 1, 190)
    tokens, shares = pool.tokens_in(outline, seen)
    mean = shares @ tokens / shares.sum()
    monkeypatch.setattr(pool, "_WINDOWS", 2)
    monkeypatch.setattr(pool, "_TOKENS", 40)
    for outlines in (1, 2):
        some, weights = pool.tokens_in(outline, seen, outlines)
        assert 20 // outlines < len(some) <= 40 // outlines
        found = weights @ some / weights.sum()
        assert found @ mean > 0.7 * np.linalg.norm(found) * np.linalg.norm(mean)
    thin = shapely.LineString([(1, 1), (3 * WIDTH - 1, 190)]).buffer(1)
    assert len(pool.tokens_in(thin, seen)[0])


def test_a_map_is_not_replaced_by_its_correction(
    both: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = geoseg.Products(polygons="none", preview=False)
    both.to_files("brick; lawn; lake", tmp_path / "map", options=QUICK, products=bare)
    with pytest.raises(OutputError, match="is the map that is corrected; give another --out"):
        geoseg.correct(both, tmp_path / "map", known_points(9), tmp_path / "map", overwrite=True)
    monkeypatch.setattr("geoseg.correction._Known.of", lambda *a, **k: pytest.fail("fitted"))
    for out, message in (("map", "is the map that is corrected"), ("old", "already holds")):
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / "labels.tif").touch()
        with pytest.raises(OutputError, match=message):  # before the work
            geoseg.correct(both, tmp_path / "map", known_points(9), tmp_path / out)
    monkeypatch.undo()
    alike = known_points(9)[lambda t: t["class"] == "lake"]
    with pytest.warns(GeosegWarning, match="all corrected places are 'lake'"):
        geoseg.correct(both, tmp_path / "map", alike, tmp_path / "new", products=bare)


@pytest.mark.filterwarnings("ignore:.*smaller than a patch")
def test_examples_and_corrections_of_what_was_moved(
    store: Store, scene: Path, model: geoseg.Model, file: Path, runner: CliRunner, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(store.path, tmp_path / "s.store"))
    record = json.loads((copy / "zarr.json").read_text())
    record["attributes"]["scene"]["path"] = str(tmp_path / "gone.tif")
    record["attributes"]["model"]["spec"] = f"local-dir:{tmp_path / 'gone'}"
    (copy / "zarr.json").write_text(json.dumps(record))
    moved = Path(shutil.copy(scene, tmp_path / "moved.tif"))
    known_points(9).to_file(tmp_path / "points.gpkg")
    there = ["--scene", str(moved), "--model", model.spec]
    rest = ["--polygons", "none", "--no-preview", "--quiet"]
    ask = ["ask", str(copy), "--out", str(tmp_path / "map"), "--classes", "brick, clay; lawn; lake",
           "--examples", str(file), "--templates", "none", *there, *rest]  # fmt: skip
    correct = ["correct", str(copy), "--map", str(tmp_path / "map"), "--points",
               str(tmp_path / "points.gpkg"), "--out", str(tmp_path / "new"),
               *there, *rest]  # fmt: skip
    for command in (ask, correct):
        done = runner.invoke(app, command)
        assert done.exit_code == 0, done.output


def test_examples_without_a_cls_token(scene: Path, model: geoseg.Model, file: Path) -> None:
    options = {"attention": "scclip", "templates": "none"}
    made = geoseg.examples(scene, file, model=model, options=options)
    assert all(np.isclose(np.linalg.norm(one.example), 1, atol=1e-3) for one in made.classes)


def test_commands_take_examples(
    runner: CliRunner, store: Store, scene: Path, model: geoseg.Model, file: Path, tmp_path: Path
) -> None:
    common = ["--examples", str(file), "--templates", "none", "--cls-bias", "0", "--json"]
    rest = ["--polygons", "none", "--no-preview"]
    for name, start in (
        ("segment", ["segment", str(scene), "--model", model.spec]),
        ("ask", ["ask", str(store.path)]),
        ("elsewhere", ["segment", str(scene), "--model", model.spec, "--examples-from",
                       str(store.path)]),
    ):  # fmt: skip
        done = runner.invoke(app, [*start, "--out", str(tmp_path / name), *common, *rest])
        assert done.exit_code == 0, done.output
        with rasterio.open(tmp_path / name / "labels.tif") as raster:
            assert told_right(raster.read(1)) > 0.85
        classes = json.loads((tmp_path / name / "run.json").read_text())["classes"]
        assert [one["name"] for one in classes] == list(COLOURS)
    none = runner.invoke(app, ["segment", str(scene), "--out", str(tmp_path / "none")])
    assert none.exit_code == 2
    assert "nothing says what to look for" in none.stderr


# -- what is none of the classes -----------------------------------------------------------------


@pytest.mark.parametrize("words", [None, "brick; lawn"])
def test_a_class_that_is_not_asked_for_takes_its_places_from_the_others(
    store: Store, words: str | None, tmp_path: Path
) -> None:
    names = [name for name in COLOURS for _ in range(2)]
    made = table(names, [box(k, top) for k in range(3) for top in (10, 120)])
    asked = words or geoseg.examples(store, made[made["class"] != "lake"])
    with pytest.warns(GeosegWarning, match=r"lake: not among the classes; .* becomes background"):
        found = geoseg.examples(store, made, asked, share=0.5)
    assert found.names == ("brick", "lawn")
    assert [entry.name for entry in found.hidden] == ["lake"]
    options = Options(templates="none", cls_bias=0.0, background="lawn", threshold=0.0)
    labels = store.ask(found, options=options).labels.values
    assert (labels[:, 2 * WIDTH :] == 1).mean() > 0.85
    # They go where the classes go: into class files, records of runs, other vocabularies.
    assert Vocabulary.parse(found.save(tmp_path / "classes.toml")) == found
    run = store.to_files(
        found, tmp_path / "map", options=options,
        products=geoseg.Products(polygons="none", preview=False),
    )  # fmt: skip
    assert Vocabulary.parse(run.out / "run.json") == found
    assert run.report["hidden"][0]["name"] == "lake"
    assert found.with_class("path").hidden == found.hidden
    with rasterio.open(run.out / "labels.tif") as raster:
        assert (raster.read(1) == labels).all()


def test_what_is_hidden_needs_an_example() -> None:
    with pytest.raises(VocabularyError, match="'b' is known by an example, and by no words"):
        Vocabulary.parse([{"name": "a"}, {"name": "c"}, {"name": "b", "hidden": True}])
