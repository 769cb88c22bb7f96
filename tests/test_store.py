"""A scene is encoded once; whatever is asked of the store is what `segment` would have said."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import rasterio
import zarr
from typer.testing import CliRunner

import geoseg
from geoseg import Options, Products, Reading, Store, StoreOptions
from geoseg.errors import GeosegError, OptionError, OutputError, SceneError, TileError, WeightsError
from geoseg.io.scene import open_scene
from geoseg.model import loading
from geoseg.run.tiles import TileJob
from geoseg.store.encode import EncodeRun, StoreFolder
from geoseg.store.encoding import Encoding, Tokens
from geoseg.testing import tiny_random_model, write_scene
from geoseg.types import Window
from geoseg_cli.main import app

CLASSES = "building; road; water; forest, trees; meadow"
QUICK = Options(templates="none")
BARE = Products(polygons="none", preview=False)
SIZE = (230, 300)
TILE = 96
FORM = json.loads((files("geoseg") / "schemas" / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def model(folder: Path) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(folder / "model", upsampler="jbu"), device="cpu")


@pytest.fixture(scope="module")
def scene(folder: Path) -> Path:
    return write_scene(folder / "scene.tif", *SIZE, holes=[Window(64, 64, 100, 80)])


@pytest.fixture(scope="module")
def store(folder: Path, scene: Path, model: geoseg.Model) -> Store:
    return geoseg.encode(scene, folder / "town.store", model=model, tile=TILE)


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Path:
    """A store that may be damaged."""
    return Path(shutil.copytree(store.path, tmp_path / "copy.store"))


def read(run: geoseg.pipeline.Run, name: str = "labels") -> np.ndarray:
    with rasterio.open(run.out / f"{name}.tif") as raster:
        return np.asarray(raster.read(1))


def nearly_equal(one: np.ndarray, other: np.ndarray, share: float) -> None:
    assert one.shape == other.shape
    assert ((one == 255) == (other == 255)).all()
    assert (one == other).mean() >= share


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def box_in(scene: Path, inset: float = 20) -> tuple[float, float, float, float]:
    """An area of interest so many metres inside of a scene."""
    with rasterio.open(scene) as raster:
        left, bottom, right, top = raster.bounds
    return left + inset, bottom + inset, right - 2 * inset, top - inset


# -- the full tier -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "options"),
    [
        (Reading(), QUICK),
        (Reading(), replace(QUICK, upsampler="none", cls_bias=0.1, threshold=0.21)),
        (Reading(), replace(QUICK, refine=("pamr:iterations=2,dilations=1",), blend="uniform")),
        (Reading(gsd=0.8), QUICK),
        (Reading(aoi="inner"), QUICK),
    ],
    ids=["plain", "other options", "refined", "gsd", "aoi"],
)
def test_full_tier_maps_as_segment_does(
    tmp_path: Path,
    scene: Path,
    model: geoseg.Model,
    store: Store,
    reading: Reading,
    options: Options,
) -> None:
    if reading.aoi is not None:
        reading = replace(reading, aoi=box_in(scene))
    expected = geoseg.segment_to_files(
        scene, CLASSES, tmp_path / "map", model=model, options=options, reading=reading,
        products=BARE,
    )  # fmt: skip
    asked = store
    if reading != Reading():
        asked = geoseg.encode(scene, tmp_path / "s.store", model=model, reading=reading, tile=TILE)
    found = asked.to_files(CLASSES, tmp_path / "asked", options=options, products=BARE)
    # Random weights make classes that hardly differ, so that some pixels lie on the edge.
    nearly_equal(read(found), read(expected), 0.9999)
    jsonschema.validate(found.report, FORM)
    assert found.report["options"] == expected.report["options"]


def test_full_tier_of_the_bundled_model(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 330, 340)
    model = geoseg.load_model("geoseg-tiny", device="cpu")
    expected = geoseg.segment(scene, CLASSES, model=model).labels.values
    asked = geoseg.encode(scene, tmp_path / "s.store", model=model, store={"tier": "full"})
    nearly_equal(asked.ask(CLASSES).labels.values, expected, 0.9999)


def test_a_mosaic_is_one_store(tmp_path: Path, model: geoseg.Model) -> None:
    parts = [
        write_scene(tmp_path / f"{k}.tif", 100, 90, origin=(0, 90 * k), nodata=None)
        for k in range(2)
    ]
    expected = geoseg.segment_to_files(
        parts, CLASSES, tmp_path / "map", model=model, options=QUICK, products=BARE
    )
    asked = geoseg.encode(parts, tmp_path / "s.store", model=model)
    found = asked.to_files(CLASSES, tmp_path / "asked", options=QUICK, products=BARE)
    nearly_equal(read(found), read(expected), 0.9999)
    # The file that puts the parts together lies in the store, and moves with it.
    shutil.move(asked.path, tmp_path / "renamed.store")
    renamed = geoseg.open_store(tmp_path / "renamed.store")
    again = renamed.to_files(CLASSES, tmp_path / "again", options=QUICK, products=BARE)
    assert (read(again) == read(found)).all()


def test_no_question_encodes_or_needs_the_image_tower(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    own = loading._build

    def build(*given: Any, **settings: Any) -> Any:
        loaded.append(own(*given, **settings))
        return loaded[-1]

    monkeypatch.setattr(loading, "_build", build)
    monkeypatch.delattr(geoseg.Segmenter, "encode")
    store.ask(CLASSES, options=QUICK).labels.compute()
    store.ask(CLASSES, options=QUICK, fast=True).labels.compute()
    assert [clip.visual for clip in loaded] == [None]  # and the second asks the cache


def test_a_segmenter_over_a_store_travels(store: Store, scene: Path) -> None:
    for fast in (False, True):
        segmenter = store._segmenter(CLASSES, fast, QUICK, None, "cpu")
        again = pickle.loads(pickle.dumps(segmenter))
        assert type(again) is type(segmenter)
        assert (again.text_embeddings == segmenter.text_embeddings).all()
        assert again.source == segmenter.source


def test_an_encoder_travels(model: geoseg.Model, scene: Path, tmp_path: Path) -> None:
    segmenter = Encoding(model, "a; b", Options(window=48, stride=16))
    reading = Reading(aoi=box_in(scene, 40))
    source = open_scene(scene, reading)
    run = EncodeRun(source, segmenter, reading, StoreOptions(), StoreFolder(tmp_path), TILE)
    job = TileJob(source, segmenter, run.windows)
    ((_, here),) = job.run([0])
    ((_, there),) = pickle.loads(pickle.dumps(job)).run([0])
    assert isinstance(here, Tokens)
    assert isinstance(there, Tokens)
    assert (here.places, here.windows) == (there.places, there.windows)
    assert here.arrays.keys() == there.arrays.keys()
    assert all((here.arrays[name] == there.arrays[name]).all() for name in here.arrays)


# -- the fast tier -------------------------------------------------------------------------------


def test_fast_tier_is_near_the_full_one_at_its_resolution(
    store: Store, model: geoseg.Model
) -> None:
    with rasterio.open(store.facts["scene"]["path"]) as raster:
        valid = raster.read(1) != 0
    full = geoseg.Segmenter(model, CLASSES, QUICK)
    fast = store._segmenter(CLASSES, True, QUICK, None, "cpu")
    source, _ = store._open(None, None)
    logits = full.logits(source.read(Window(0, 0, *SIZE)))
    field: Any = fast._scorer
    cells = field.field.at_cells(0, 0).numpy()
    height, width = (side // 4 for side in SIZE)
    found = cells[:, 1 : 1 + height, 1 : 1 + width]
    blocks = logits[:, : 4 * height, : 4 * width].reshape(-1, height, 4, width, 4)
    whole = valid[: 4 * height, : 4 * width].reshape(height, 4, width, 4).all((1, 3))
    wanted = blocks.mean((2, 4))
    assert (found.argmax(0) == wanted.argmax(0))[whole].mean() >= 0.98
    told = fast.source
    # Logits of the plain field; the CLS bias comes on top, and is exact but for rounding.
    assert np.abs(found - wanted)[:, whole].max() <= told["logit_error_bound"]
    assert 0 < told["logit_error_found"] <= told["logit_error_bound"]


def test_fast_tier_of_single_pixels_is_the_full_one(
    tmp_path: Path, scene: Path, model: geoseg.Model
) -> None:
    fine = geoseg.encode(
        scene, tmp_path / "s.store", model=model, store={"cell": 1, "directions": 64}
    )
    full = fine.ask(CLASSES, options=QUICK, fast=False)
    fast = fine.ask(CLASSES, options=QUICK, fast=True)
    nearly_equal(fast.labels.values, full.labels.values, 0.98)


def test_fast_tier_makes_every_product(tmp_path: Path, store: Store) -> None:
    products = Products(probabilities=True, margin=True, runner_up=True)
    run = store.to_files(CLASSES, tmp_path / "map", fast=True, options=QUICK, products=products)
    assert {file.name for file in run.files} == set(products.names)
    jsonschema.validate(run.report, FORM)
    told = run.report["model"]["store"]
    assert told["tier"] == "fast"
    assert 0 < told["logit_error_found"] <= told["logit_error_bound"]


def test_fast_tier_has_no_seams(store: Store) -> None:
    whole = store.ask(CLASSES, options=QUICK, fast=True, tile=4096).labels.values
    tiled = store.ask(CLASSES, options=QUICK, fast=True, tile=512).labels
    assert (tiled[40:150, 60:170].values == whole[40:150, 60:170]).all()


@pytest.fixture(scope="module")
def wide(folder: Path, model: geoseg.Model) -> Store:
    """Of several blocks in both directions, some without data; none ends with the scene."""
    holes = [Window(0, 500, 600, 540), Window(300, 0, 20, 1300)]
    scene = write_scene(folder / "wide.tif", 700, 1300, holes=holes)
    sparse = Options(window=128, stride=128, upsampler="none")
    return geoseg.encode(
        scene, folder / "wide.store", model=model, options=sparse, store={"tier": "fast"}
    )


@pytest.mark.parametrize("tile", [100, 512, 4096])
@pytest.mark.parametrize("refine", [(), ("pamr:iterations=1,dilations=1+4",)])
def test_fast_tier_is_its_field_in_any_tiles(
    tmp_path: Path, wide: Store, refine: tuple[str, ...], tile: int
) -> None:
    chosen = replace(QUICK, refine=refine)
    found = read(wide.to_files(CLASSES, tmp_path / "a", options=chosen, products=BARE, tile=tile))
    if refine:
        again = wide.to_files(CLASSES, tmp_path / "b", options=chosen, products=BARE, tile=700)
        assert (found == read(again)).all()
        return
    segmenter: Any = wide._segmenter(CLASSES, True, chosen, None, "cpu")
    logits = segmenter._field.logits(Window(0, 0, 700, 1300)).numpy().transpose(2, 0, 1)
    with rasterio.open(wide.facts["scene"]["path"]) as raster:
        valid = raster.dataset_mask() > 0
    labels = segmenter.decide(np.ascontiguousarray(logits)).labels
    assert (found == np.where(valid, labels, 255)).all()
    assert 0 < valid.mean() < 1
    assert len(np.unique(found)) > 2


def test_fast_tier_alone_answers_without_the_other(
    tmp_path: Path, scene: Path, model: geoseg.Model, store: Store
) -> None:
    alone = geoseg.encode(
        scene, tmp_path / "s.store", model=model, store={"tier": "fast"}, tile=TILE
    )
    assert not (alone.path / "full").exists()
    expected = store.ask(CLASSES, options=QUICK, fast=True).labels.values
    assert (alone.ask(CLASSES, options=QUICK).labels.values == expected).all()
    with pytest.raises(OptionError, match="holds no full tier; ask with --fast"):
        alone.ask(CLASSES, fast=False)


@pytest.mark.parametrize("fast", [False, True])
def test_a_part_is_asked_for_alone(store: Store, fast: bool) -> None:
    whole = store.ask(CLASSES, options=QUICK, fast=fast).labels
    left, top = float(whole.x.min()) - 0.25, float(whole.y.max()) + 0.25
    box = (left + 10, top - 90, left + 85, top - 20)
    part = store.ask(CLASSES, options=QUICK, fast=fast, aoi=box).labels
    nearly_equal(part.values, whole[40:180, 20:170].values, 0.999)


# -- a run that is interrupted -------------------------------------------------------------------


class Cut:
    """Ends a run after some tiles of a stage."""

    def __init__(self, stage: str, tiles: int) -> None:
        self.stage, self.tiles = stage, tiles

    def __call__(self, state: Any) -> None:
        if state.stage == self.stage and state.tiles_done >= self.tiles:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("stage", "tiles"), [("encode", 3), ("directions", 0), ("directions", 1)])
def test_an_interrupted_encode_resumes_to_the_same_bytes(
    tmp_path: Path, scene: Path, model: geoseg.Model, store: Store, stage: str, tiles: int
) -> None:
    out = tmp_path / "s.store"
    with pytest.raises(KeyboardInterrupt):
        geoseg.encode(scene, out, model=model, tile=TILE, progress=Cut(stage, tiles))
    with pytest.raises(SceneError, match="half written; finish it with geoseg encode --resume"):
        geoseg.open_store(out)
    with pytest.raises(OutputError, match="finish it with --resume"):
        geoseg.encode(scene, out, model=model, tile=TILE)
    with pytest.raises(OutputError, match="--cell changed"):
        geoseg.encode(scene, out, model=model, tile=TILE, resume=True, store={"cell": 2})
    # What a kill left of a shard that was being written, and a shard that lost some bytes.
    work = out / ".geoseg-work" / "store"
    (work / "cls" / "c.partial").write_bytes(b"half")
    shard = next(p for p in sorted((work / "full" / "patches" / "c").rglob("*")) if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-100])
    geoseg.encode(scene, out, model=model, tile=TILE, resume=True)
    assert contents(out) == contents(store.path)
    before = (out / "zarr.json").stat().st_mtime_ns
    geoseg.encode(scene, out, model=model, tile=TILE, resume=True)
    assert (out / "zarr.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("moved", [1, 3])
def test_an_encode_cut_off_while_it_gets_its_place_resumes_to_the_same_bytes(
    tmp_path: Path, scene: Path, model: geoseg.Model, store: Store, moved: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, replace_, names = tmp_path / "s.store", Path.replace, list[str]()

    def cut(self: Path, target: Path) -> Path:
        if target.parent == out:
            names.append(target.name)
            if len(names) > moved:
                raise KeyboardInterrupt
        return replace_(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        geoseg.encode(scene, out, model=model, tile=TILE)
    monkeypatch.undo()
    with pytest.raises(SceneError, match="half written; finish it with geoseg encode --resume"):
        geoseg.open_store(out)
    geoseg.encode(scene, out, model=model, tile=TILE, resume=True)
    assert contents(out) == contents(store.path)


def test_what_is_no_stores_is_never_replaced(
    tmp_path: Path, scene: Path, model: geoseg.Model, copy: Path
) -> None:
    mine = tmp_path / "mine" / "full" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    other = zarr.open_group(tmp_path / "other.zarr", mode="w")
    other.attrs["title"] = "somebody's"
    for out, name in ((tmp_path / "mine", "full"), (tmp_path / "other.zarr", "zarr.json")):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=rf"holds {name}, which is no store's"):
                geoseg.encode(scene, out, model=model, overwrite=overwrite)
    assert mine.exists()
    before = contents(copy)
    with pytest.raises(OutputError, match="is the store itself"):
        geoseg.open_store(copy).to_files(CLASSES, copy)
    assert contents(copy) == before


def test_what_desktops_leave_in_a_store_is_nobodys(
    tmp_path: Path, scene: Path, model: geoseg.Model, copy: Path
) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._zarr.json", "fast/.DS_Store"):
        (copy / name).write_bytes(b"left behind")
    assert geoseg.open_store(copy).tiers
    geoseg.encode(scene, copy, model=model, tile=TILE, overwrite=True)
    assert geoseg.open_store(copy).tiers
    (copy / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds thesis\.txt, which is no store's"):
        geoseg.encode(scene, copy, model=model, overwrite=True)


def test_what_is_there_is_not_replaced(
    tmp_path: Path, scene: Path, model: geoseg.Model, copy: Path
) -> None:
    with pytest.raises(OutputError, match="already holds a store; replace it with --overwrite"):
        geoseg.encode(scene, copy, model=model)
    with pytest.raises(OutputError, match="another scene or with other options"):
        geoseg.encode(scene, copy, model=model, resume=True, store={"directions": 3})
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        geoseg.encode(scene, copy, model=model, overwrite=True)


# -- what is no store, or not that one -----------------------------------------------------------


def changed(path: Path, change: Any) -> None:
    record = json.loads((path / "zarr.json").read_text())
    change(record["attributes"])
    (path / "zarr.json").write_text(json.dumps(record))


def test_other_layouts_and_folders_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="there is no such store"):
        geoseg.open_store(tmp_path / "none.store")
    with pytest.raises(SceneError, match="is not a store of geoseg encode"):
        geoseg.open_store(tmp_path)
    zarr.open_group(tmp_path / "other", mode="w")
    with pytest.raises(SceneError, match="is not a store of geoseg encode"):
        geoseg.open_store(tmp_path / "other")
    changed(copy, lambda facts: facts.update(geoseg_store=99, geoseg="9.9"))
    with pytest.raises(SceneError, match=r"layout 99, made by geoseg 9\.9.*encode the scene anew"):
        geoseg.open_store(copy)


@pytest.mark.parametrize(
    "lost", [("scene", "path"), ("scene", "reading"), ("model", "fingerprint"), ("identity",)]
)
def test_a_record_without_a_part_is_damaged(copy: Path, lost: tuple[str, ...]) -> None:
    def drop(facts: Any) -> None:
        *path, last = lost
        for name in path:
            facts = facts[name]
        del facts[last]

    changed(copy, drop)
    with pytest.raises(SceneError, match="what the store says of itself is damaged"):
        geoseg.open_store(copy)


def test_an_option_that_came_later_is_as_it_is_by_itself(copy: Path, store: Store) -> None:
    changed(copy, lambda facts: facts["options"].pop("cls_source"))
    found = geoseg.open_store(copy).ask(CLASSES, options=QUICK).labels
    np.testing.assert_array_equal(found, store.ask(CLASSES, options=QUICK).labels)


def test_other_weights_are_refused(copy: Path, tmp_path: Path) -> None:
    other = tiny_random_model(tmp_path / "other", seed=1, upsampler="jbu")
    with pytest.raises(WeightsError, match="has other weights"):
        geoseg.open_store(copy).ask(CLASSES, options=QUICK, model=other)
    changed(copy, lambda facts: facts["model"].update(spec=other))
    with pytest.raises(WeightsError, match="has other weights here"):
        geoseg.open_store(copy).ask("moor; marsh", options=QUICK)


def test_another_scene_is_refused(store: Store, tmp_path: Path, scene: Path, copy: Path) -> None:
    moved = Path(shutil.copy(scene, tmp_path / "moved.tif"))
    expected = store.ask(CLASSES, options=QUICK).labels.values
    assert (store.ask(CLASSES, options=QUICK, scene=moved).labels.values == expected).all()
    other = write_scene(tmp_path / "other.tif", *SIZE, seed=5)
    with pytest.raises(SceneError, match="no longer, the scene"):
        store.ask(CLASSES, scene=other)
    changed(copy, lambda facts: facts["scene"].update(path=str(tmp_path / "gone.tif")))
    with pytest.raises(SceneError, match="say where it lies with --scene"):
        geoseg.open_store(copy).ask(CLASSES)
    found = geoseg.open_store(copy, scene=moved).ask(CLASSES, options=QUICK)
    assert (found.labels.values == expected).all()


@pytest.mark.parametrize(
    ("fast", "options", "named"),
    [
        (False, Options(attention="vanilla"), "--attention vanilla"),
        (False, Options(window=48, stride=32), "--window 48"),
        (False, Options(views="hflip"), "--views hflip"),
        (False, Options(precision="bf16"), "--precision bf16"),
        (True, Options(upsampler="none"), "--upsampler none"),
        (True, Options(blend="uniform"), "--blend uniform"),
    ],
)
def test_what_was_settled_is_refused_by_name(
    store: Store, fast: bool, options: Options, named: str
) -> None:
    with pytest.raises(OptionError, match=f"{named}: .* was encoded with "):
        store.ask(CLASSES, options=options, fast=fast)


def test_views_have_no_store(tmp_path: Path, scene: Path, model: geoseg.Model) -> None:
    with pytest.raises(OptionError, match="--views d4: a store holds every window once"):
        geoseg.encode(scene, tmp_path / "s.store", model=model, options=Options(views="d4"))
    assert not (tmp_path / "s.store").exists()


def test_an_area_is_not_left(tmp_path: Path, scene: Path, model: geoseg.Model) -> None:
    part = geoseg.encode(
        scene, tmp_path / "s.store", model=model, reading=Reading(aoi=box_in(scene))
    )
    whole = part.ask(CLASSES, options=QUICK, fast=False).labels
    found = part.ask(CLASSES, options=QUICK, fast=False, aoi=box_in(scene, 30)).labels
    nearly_equal(found.values, whole.sel(x=found.x, y=found.y).values, 0.999)
    with pytest.raises(OptionError, match="reaches beyond the area"):
        part.ask(CLASSES, aoi=box_in(scene, 10))
    with pytest.raises(OptionError, match="refiners reach"):
        part.ask(CLASSES, options=replace(QUICK, refine=("pamr:iterations=70,dilations=1",)))


@pytest.mark.parametrize(
    ("part", "fast"),
    [
        ("full/patches", False), ("full/steps", False), ("fast/field", True), ("fast/scale", True),
        ("fast/valid", True),
    ],
)  # fmt: skip
def test_what_is_lost_is_never_a_map(copy: Path, part: str, fast: bool) -> None:
    shutil.rmtree(copy / part / "c")
    with pytest.raises(GeosegError, match=r"gone|damaged"):
        geoseg.open_store(copy).ask(CLASSES, options=QUICK, fast=fast).labels.compute()


def test_a_store_that_is_replaced_meanwhile_makes_no_map(copy: Path, store: Store) -> None:
    opened = geoseg.open_store(copy)
    lazy = opened.ask(CLASSES, options=QUICK)
    (copy / "zarr.json").unlink()
    shutil.copy(store.path / "zarr.json", copy / "zarr.json")
    with pytest.raises((SceneError, TileError), match="was replaced while it was read"):
        lazy.labels.compute()


def test_two_readers_and_a_writer_do_no_harm(copy: Path, scene: Path, model: geoseg.Model) -> None:
    """Whoever reads has the old store's map, the new one's, which is the same, or is told."""
    opened = geoseg.open_store(copy)
    expected = opened.ask(CLASSES, options=QUICK).labels.values
    ended = threading.Event()

    def read() -> list[Any]:
        found: list[Any] = []
        while not ended.is_set() or not found:
            try:
                found.append(geoseg.open_store(copy).ask(CLASSES, options=QUICK).labels.values)
            except (SceneError, TileError) as told:
                found.append(str(told))
        return found

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        geoseg.encode(scene, copy, model=model, overwrite=True)
        ended.set()
        seen = [one for reader in readers for one in reader.result()]
    for one in seen:
        if isinstance(one, str):
            assert re.search("replaced|damaged|gone|half written|no such store|not a store", one)
        else:
            np.testing.assert_array_equal(one, expected)
    np.testing.assert_array_equal(
        geoseg.open_store(copy).ask(CLASSES, options=QUICK).labels, expected
    )


# -- the command line ----------------------------------------------------------------------------


def test_commands_encode_and_ask(
    tmp_path: Path, runner: CliRunner, scene: Path, model: geoseg.Model, store: Store
) -> None:
    out = tmp_path / "s.store"
    command = ["encode", str(scene), "--out", str(out), "--model", model.spec, "--json"]
    made = runner.invoke(app, command)
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert told["layout"]["tiers"] == ["full", "fast"]
    assert told["bytes"] > 0
    question = [
        "ask", str(out), "--classes", CLASSES, "--out", str(tmp_path / "map"), "--fast",
        "--templates", "none", "--polygons", "none", "--no-preview", "--json",
    ]  # fmt: skip
    asked = runner.invoke(app, question)
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["model"]["store"]["tier"] == "fast"
    with rasterio.open(tmp_path / "map" / "labels.tif") as raster:
        found = raster.read(1)
    nearly_equal(found, store.ask(CLASSES, options=QUICK, fast=True).labels.values, 0.999)
    wrong = runner.invoke(app, [*question, "--overwrite", "--attention", "vanilla"])
    assert wrong.exit_code == 2
    assert "--attention vanilla" in wrong.stderr
