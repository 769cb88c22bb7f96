"""A store that keeps some channels alone is smaller, and says how near it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import rasterio
import shapely
import zarr
from test_store import BARE, CLASSES, FORM, QUICK, SIZE, TILE, Cut, box_in, contents, nearly_equal
from typer.testing import CliRunner

import geoseg
from geoseg import Options, Reading, Store
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.io.scene import open_scene
from geoseg.run.cluster import connect
from geoseg.testing import tiny_random_model, write_scene
from geoseg.types import Window
from geoseg_cli.main import app

FEW = 8
Encode = Callable[..., Store]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("channels")


@pytest.fixture(scope="module")
def model(folder: Path) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(folder / "model", upsampler="jbu"), device="cpu")


@pytest.fixture(scope="module")
def scene(folder: Path) -> Path:
    return write_scene(folder / "scene.tif", *SIZE, holes=[Window(64, 64, 100, 80)])


@pytest.fixture
def encode(scene: Path, model: geoseg.Model, tmp_path: Path) -> Encode:
    """Encode the scene into a store of its own."""

    def made(channels: int | None = FEW, tier: str = "full", **more: Any) -> Store:
        kept = {"channels": channels, "tier": tier}
        out = more.pop("out", tmp_path / "s.store")
        return geoseg.encode(scene, out, model=model, store=kept, tile=TILE, **more)

    return made


@pytest.fixture(scope="module")
def store(folder: Path, scene: Path, model: geoseg.Model) -> Store:
    kept = {"channels": FEW}
    return geoseg.encode(scene, folder / "few.store", model=model, store=kept, tile=TILE)


@pytest.fixture(scope="module")
def exact(folder: Path, scene: Path, model: geoseg.Model) -> Store:
    return geoseg.encode(scene, folder / "all.store", model=model, tile=TILE)


def size_of(store: Store, part: str) -> int:
    return sum(file.stat().st_size for file in (store.path / part).rglob("*") if file.is_file())


# -- how near ------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsampler", ["jbu", "none"])
def test_no_logit_is_beyond_the_stated_bound(
    store: Store, scene: Path, model: geoseg.Model, tmp_path: Path, upsampler: str
) -> None:
    options = Options(templates="none", upsampler=upsampler, cls_bias=0.0)
    run = store.to_files(CLASSES, tmp_path / "map", options=options, products=BARE, fast=False)
    jsonschema.validate(run.report, FORM)
    told = run.report["model"]["store"]
    assert told["channels"] == FEW
    assert 0 < told["logit_error_found"] <= told["logit_error_bound"] < 1
    block = open_scene(scene, Reading()).read(Window(0, 0, *SIZE))
    exact = geoseg.Segmenter(model, CLASSES, options).logits(block)
    few = store._segmenter(CLASSES, False, options, None, "cpu").logits(block)
    error = float(np.abs(few - exact).max())
    assert told["logit_error_found"] / 10 < error <= told["logit_error_bound"]


def test_a_learned_upsampler_has_no_bound(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 200, 210)
    model = geoseg.load_model("geoseg-tiny", device="cpu")
    weights = str(model.defaults["upsampler_weights"])
    options = Options(templates="none", upsampler="simfeatup", upsampler_weights=weights)
    expected = geoseg.segment(scene, CLASSES, model=model, options=options).labels.values
    made = geoseg.encode(
        scene, tmp_path / "s.store", model=model, store={"tier": "full", "channels": 96}
    )
    nearly_equal(made.ask(CLASSES, options=options).labels.values, expected, 0.99)
    told = made._segmenter(CLASSES, False, options, None, "cpu").source
    assert told["logit_error_bound"] is None
    assert told["logit_error_found"] > 0


def test_more_channels_are_nearer_and_larger(encode: Encode, exact: Store, tmp_path: Path) -> None:
    sizes, bounds, shares = [], [], []
    expected = exact.ask(CLASSES, options=QUICK, fast=False).labels.values
    for r in (4, 16, 64):
        made = encode(r, out=tmp_path / f"{r}.store")
        sizes.append(size_of(made, "full"))
        told = made._segmenter(CLASSES, False, QUICK, None, "cpu").source
        bounds.append(told["logit_error_bound"])
        labels = made.ask(CLASSES, options=QUICK).labels.values
        assert ((labels == 255) == (expected == 255)).all()
        shares.append((labels == expected).mean())
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.9 * size_of(exact, "full")
    assert bounds == sorted(bounds, reverse=True)
    assert shares == sorted(shares)


@pytest.mark.parametrize("reading", [Reading(), Reading(aoi="inner"), Reading(gsd=0.8)])
def test_all_directions_map_as_segment_does(
    encode: Encode, scene: Path, model: geoseg.Model, reading: Reading
) -> None:
    if reading.aoi is not None:
        reading = Reading(aoi=box_in(scene))
    expected = geoseg.segment(
        scene, CLASSES, model=model, options=QUICK, reading=reading
    ).labels.values
    made = encode(model.embedding_size, reading=reading)
    found = made.ask(CLASSES, options=QUICK).labels.values
    nearly_equal(found, expected, 0.9999)
    told = made._segmenter(CLASSES, False, QUICK, None, "cpu").source
    assert told["logit_error_bound"] < 1e-3


def test_the_fast_tier_of_few_channels_is_within_its_bound(store: Store, exact: Store) -> None:
    options = Options(templates="none", cls_bias=0.0)
    near, far = (one._segmenter(CLASSES, True, options, None, "cpu") for one in (store, exact))
    told: Any = near.source
    fields: Any = [one._scorer for one in (near, far)]
    few, all_ = (one.field.at_cells(0, 0).numpy() for one in fields)
    assert store.facts["layout"]["directions"] == FEW
    assert 0 < told["logit_error_found"] <= told["logit_error_bound"]
    limit = told["logit_error_bound"] + far.source["logit_error_bound"]
    assert np.abs(few - all_)[:, 1:40, 1:40].max() <= limit


# -- what is kept --------------------------------------------------------------------------------


def test_without_channels_nothing_is_said_of_them(exact: Store, store: Store) -> None:
    assert exact.facts["geoseg_store"] == 2
    assert "channels" not in exact.facts["layout"]
    assert "basis" not in dict(zarr.open_group(exact.path / "full", mode="r").arrays())
    source = exact._segmenter(CLASSES, False, QUICK, None, "cpu").source
    assert set(source) == {"path", "tier", "identity"}
    # What does not know of channels refuses the store by its number.
    assert store.facts["geoseg_store"] == 3
    assert store.facts["layout"]["channels"] == FEW
    assert f"{FEW} channels" in repr(store)
    assert 0.5 < store.facts["channels"]["energy"] < 1


def test_a_scene_without_data_has_a_store(tmp_path: Path, model: geoseg.Model) -> None:
    scene = write_scene(tmp_path / "empty.tif", 100, 100, holes=[Window(0, 0, 100, 100)])
    made = geoseg.encode(scene, tmp_path / "s.store", model=model, store={"channels": 3})
    assert (made.ask(CLASSES, options=QUICK).labels.values == 255).all()


@pytest.mark.parametrize(
    ("stage", "tiles"), [("encode", 0), ("encode", 3), ("directions", 0), ("directions", 1)]
)
def test_an_interrupted_encode_resumes_to_the_same_bytes(
    encode: Encode, store: Store, stage: str, tiles: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(tier="both", progress=Cut(stage, tiles))
    for other in (FEW + 1, None):
        with pytest.raises(OutputError, match="--channels"):
            encode(other, tier="both", resume=True)
    resumed = encode(tier="both", resume=True)
    assert contents(resumed.path) == contents(store.path)
    with pytest.raises(OutputError, match="with other options"):
        encode(FEW + 1, tier="both", resume=True)


def test_workers_make_the_same_bytes(encode: Encode, store: Store) -> None:
    with connect(workers=2) as client:
        made = encode(tier="both", client=client)
    assert contents(made.path) == contents(store.path)


# -- other questions -----------------------------------------------------------------------------


def test_examples_and_likeness_come_from_few_channels(store: Store, exact: Store) -> None:
    with rasterio.open(store.facts["scene"]["path"]) as raster:
        left, top = raster.bounds.left, raster.bounds.top
    at = (left + 20, top - 20)
    few, all_ = (one.similar(at, fast=False, options=QUICK).values for one in (store, exact))
    assert np.nanmax(np.abs(few - all_)) < 0.1
    boxes = [shapely.box(left + x, top - 30, left + x + 25, top - 5) for x in (2, 60, 110)]
    import geopandas as gpd

    table = gpd.GeoDataFrame(
        {"class": ["a", "b", "b"]}, geometry=boxes, crs=store._open(None, None)[0].grid.crs
    )
    maps = [
        one.ask(geoseg.examples(one, table), options=QUICK, fast=False).labels.values
        for one in (store, exact)
    ]
    assert (maps[0] == maps[1]).mean() > 0.9
    # Directions from examples lie in the basis, or nearly so.
    error = store._segmenter(geoseg.examples(store, table), False, QUICK, None, "cpu").source
    words = store._segmenter(CLASSES, False, QUICK, None, "cpu").source
    assert error["logit_error_bound"] < words["logit_error_bound"]


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"channels": 0}, "0.*1 or more"),
        ({"channels": -3}, "-3.*1 or more"),
        ({"channels": 4, "tier": "fast"}, "--tier fast does not keep"),
        ({"channels": 4000}, "--channels 4000: tokens of .* have 64; give fewer"),
    ],
)
def test_impossible_channels_are_one_line(
    scene: Path, model: geoseg.Model, tmp_path: Path, kept: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        geoseg.encode(scene, tmp_path / "s.store", model=model, store=kept)
    assert not (tmp_path / "s.store").exists()


def test_info_tells_of_a_store(runner: CliRunner, store: Store) -> None:
    found = runner.invoke(app, ["info", str(store.path), "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["store"]["channels"] == FEW
    assert told["store"]["share_of_energy_kept"] == store.facts["channels"]["energy"]
    assert told["store"]["bytes"] == store.size
    assert told["encoded"]["window"] == 64
    assert f"channels{' ' * 12}{FEW}" in runner.invoke(app, ["info", str(store.path)]).stdout


def test_the_command_refuses_impossible_channels(
    runner: CliRunner, scene: Path, model: geoseg.Model, tmp_path: Path
) -> None:
    command = ["encode", str(scene), "--out", str(tmp_path / "s"), "--model", model.spec]
    for wrong in (["0"], ["-1"], ["9999"], ["8", "--tier", "fast"]):
        refused = runner.invoke(app, [*command, "--channels", *wrong])
        assert refused.exit_code == 2
        assert "channels" in refused.stderr
        assert not (tmp_path / "s").exists()


def test_a_lost_basis_is_never_a_map(encode: Encode) -> None:
    made = encode()
    chunk = next(p for p in (made.path / "full" / "basis" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-4])
    with pytest.raises(SceneError, match="full/basis is damaged"):
        geoseg.open_store(made.path).ask(CLASSES, options=QUICK).labels.compute()
