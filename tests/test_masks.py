"""What a mask beside a scene leaves out: rasters and polygons, on any grid, in any CRS."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin
from rasterio.warp import calculate_default_transform, reproject
from rasters import UTM, make, rgb

import geoseg
from geoseg.errors import GeosegWarning, OptionError, OutputError, SceneError
from geoseg.io.mosaic import build_mosaic
from geoseg.io.scene import Scene
from geoseg.testing import tiny_random_model, write_scene
from geoseg.types import Window

SIZE = (40, 50)
PLACE = from_origin(500000, 5000000, 1, 1)
QUICK = geoseg.Options(templates="none")


def values(height: int = SIZE[0], width: int = SIZE[1], top: int = 2, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, (1, height, width)).astype(np.uint8)


def valid(scene: Path, mask: Path, **more: Any) -> np.ndarray:
    opened = Scene.open(scene, stretch="none", mask=mask, **more)
    return opened.read(opened.grid.window).valid


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make(tmp_path / "scene.tif", rgb(*SIZE))


RULES: dict[str | None, Any] = {
    None: lambda v: v != 0,
    "3,8,9,10": lambda v: np.isin(v, (3, 8, 9, 10)),
    "0,1": lambda v: v < 2,
    "bits:1,3": lambda v: (v & 0b1010) != 0,
    "keep:4,5": lambda v: ~np.isin(v, (4, 5)),
}


@pytest.mark.parametrize("rule", RULES)
def test_values_that_are_left_out(tmp_path: Path, scene: Path, rule: str | None) -> None:
    classes = values(top=12 if rule else 3)
    mask = make(tmp_path / "mask.tif", classes)
    left = RULES[rule](classes[0])
    np.testing.assert_array_equal(valid(scene, mask, mask_values=rule), ~left)


@pytest.mark.parametrize("rule", ["x", "", "bits:-1", "bits:1.5", "bits:40", "skip:3", "3;4"])
def test_values_that_are_none_are_refused(tmp_path: Path, scene: Path, rule: str) -> None:
    mask = make(tmp_path / "mask.tif", values())
    with pytest.raises(OptionError, match=r"mask values .*bits:3,4"):
        valid(scene, mask, mask_values=rule)


def test_a_masks_own_nodata_leaves_nothing_out_unless_named(tmp_path: Path, scene: Path) -> None:
    classes = values(top=3)
    mask = make(tmp_path / "mask.tif", classes, nodata=2)
    np.testing.assert_array_equal(valid(scene, mask), classes[0] != 1)
    np.testing.assert_array_equal(valid(scene, mask, mask_values="keep:0"), classes[0] != 1)
    np.testing.assert_array_equal(valid(scene, mask, mask_values="2"), classes[0] != 2)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_a_mask_of_other_pixels_is_laid_on_the_scene(tmp_path: Path, factor: float) -> None:
    scene = make(tmp_path / "scene.tif", rgb(40, 60))
    classes = values(int(40 / factor), int(60 / factor))
    mask = make(tmp_path / "mask.tif", classes, transform=PLACE @ Affine.scale(factor))
    steps = ((np.arange(n) + 0.5) / factor for n in (40, 60))
    rows, cols = (np.floor(step - 1e-9).astype(int) for step in steps)
    if factor == 0.5:  # the centre of a pixel is a corner of four
        rows, cols = 2 * np.arange(40) + 1, 2 * np.arange(60) + 1
    left = classes[0][np.ix_(rows, cols)] != 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeosegWarning)
        np.testing.assert_array_equal(valid(scene, mask), ~left)


def in_other_crs(path: Path, classes: np.ndarray, crs: str) -> Path:
    """The same mask, at a quarter of the pixel, in another CRS."""
    height, width = classes.shape[1:]
    bounds = rasterio.transform.array_bounds(height, width, PLACE)
    transform, w, h = calculate_default_transform(UTM, crs, width, height, *bounds)
    transform, w, h = transform @ Affine.scale(0.25), 4 * w, 4 * h
    moved = np.zeros((1, h, w), np.uint8)
    reproject(
        classes, moved, src_transform=PLACE, src_crs=UTM, dst_transform=transform, dst_crs=crs,
        resampling=Resampling.nearest,
    )  # fmt: skip
    return make(path, moved, crs=crs, transform=transform)


def test_a_mask_in_another_crs_is_the_same_in_every_window(tmp_path: Path, scene: Path) -> None:
    classes = np.kron(values(8, 10), np.ones((5, 5), np.uint8))
    mask = in_other_crs(tmp_path / "mask.tif", classes, "EPSG:4326")
    opened = Scene.open(scene, mask=mask)
    whole = opened.read(opened.grid.window).valid
    assert (whole != (classes[0] == 0)).mean() < 0.02
    for window in (Window(3, 5, 20, 31), Window(17, 11, 7, 9), Window(39, 0, 1, 50)):
        rows, cols = window.slices()
        np.testing.assert_array_equal(opened.read(window).valid, whole[rows, cols])


def test_beyond_a_mask_nothing_is_left_out_and_that_is_said(tmp_path: Path, scene: Path) -> None:
    mask = make(tmp_path / "mask.tif", np.ones((1, 40, 25), np.uint8))
    with pytest.warns(GeosegWarning, match=r"mask.tif: the mask covers 5[01] % of the scene"):
        found = valid(scene, mask, mask_values="1")
    np.testing.assert_array_equal(found, np.indices(SIZE)[1] >= 25)


def test_a_mask_elsewhere_is_refused(tmp_path: Path, scene: Path) -> None:
    far = make(tmp_path / "far.tif", values(), transform=from_origin(600000, 5000000, 1, 1))
    with pytest.raises(SceneError, match=r"far.tif: the mask does not lie on the scene"):
        valid(scene, far)
    frame = gpd.GeoDataFrame(geometry=[shapely.box(600000, 4999900, 600050, 4999950)], crs=UTM)
    frame.to_file(tmp_path / "far.gpkg")
    with pytest.raises(SceneError, match=r"far.gpkg: no polygon of the mask lies on the scene"):
        valid(scene, tmp_path / "far.gpkg")
    with pytest.raises(SceneError, match=r"none.tif: no such file"):
        valid(scene, tmp_path / "none.tif")


def test_a_mask_of_several_bands_is_never_chosen_in_silence(tmp_path: Path, scene: Path) -> None:
    layers = np.concatenate([values(seed=seed) for seed in range(3)])
    mask = make(tmp_path / "udm2.tif", layers)
    with rasterio.open(mask, "r+") as dataset:
        dataset.descriptions = ("clear", "snow", "cloud")
    with pytest.raises(OptionError, match=r"has 3 bands \(1 clear, 2 snow, 3 cloud\).*mask-layer"):
        valid(scene, mask)
    with pytest.raises(OptionError, match="no band 'haze'"):
        valid(scene, mask, mask_layer="haze")
    for name in ("3", "cloud", "Cloud"):
        np.testing.assert_array_equal(valid(scene, mask, mask_layer=name), layers[2] == 0)
    opacity = make(
        tmp_path / "alpha.tif", layers[:2], colorinterp=(ColorInterp.gray, ColorInterp.alpha)
    )
    np.testing.assert_array_equal(valid(scene, opacity), layers[0] == 0)


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_polygons_are_left_out(tmp_path: Path, scene: Path, crs: str, suffix: str) -> None:
    box = shapely.box(500010, 4999970, 500030, 4999990)
    frame = gpd.GeoDataFrame(geometry=[box, shapely.box(500029, 4999969, 500031, 4999971)], crs=UTM)
    frame.to_crs(crs).to_file(tmp_path / f"clouds{suffix}")
    left = np.zeros(SIZE, bool)
    left[10:30, 10:30] = left[29:31, 29:31] = True
    found = valid(scene, tmp_path / f"clouds{suffix}")
    np.testing.assert_array_equal(found, ~left)
    with pytest.raises(OptionError, match="mask-values is for rasters"):
        valid(scene, tmp_path / f"clouds{suffix}", mask_values="1")


def test_a_layer_of_polygons_is_chosen(tmp_path: Path, scene: Path) -> None:
    for name, x in (("clouds", 500000), ("shadows", 500020)):
        box = shapely.box(x, 4999960, x + 10, 5000000)
        frame = gpd.GeoDataFrame(geometry=[box], crs=UTM)
        frame.to_file(tmp_path / "mask.gpkg", layer=name)
    with pytest.raises(OptionError, match="clouds, shadows; name one with --mask-layer"):
        valid(scene, tmp_path / "mask.gpkg")
    found = valid(scene, tmp_path / "mask.gpkg", mask_layer="shadows")
    np.testing.assert_array_equal(found, np.indices(SIZE)[1] // 10 != 2)


def test_photo_and_mask_without_a_place_go_pixel_by_pixel(tmp_path: Path) -> None:
    nowhere = {"crs": None, "transform": Affine.identity()}
    photo = make(tmp_path / "photo.tif", rgb(*SIZE), **nowhere)
    classes = values()
    with pytest.warns(GeosegWarning, match="no CRS and no transform"):
        found = valid(photo, make(tmp_path / "mask.tif", classes, **nowhere))
    np.testing.assert_array_equal(found, classes[0] == 0)
    other = make(tmp_path / "other.tif", values(9, 9), **nowhere)
    with pytest.raises(SceneError, match="they differ in size"):
        valid(photo, other)


def test_a_mask_without_a_crs_takes_the_scenes_and_says_so(tmp_path: Path, scene: Path) -> None:
    mask = make(tmp_path / "mask.tif", values(20, 25), crs=None, transform=PLACE @ Affine.scale(2))
    with pytest.warns(GeosegWarning, match="the mask has no CRS, taking the scene's"):
        found = valid(scene, mask)
    left = np.kron(values(20, 25)[0], np.ones((2, 2), np.uint8))
    np.testing.assert_array_equal(found, left == 0)


def test_classes_taken_for_a_mask_are_warned_about(tmp_path: Path, scene: Path) -> None:
    scl = make(tmp_path / "scl.tif", values(top=12), nodata=0)
    with pytest.warns(GeosegWarning, match=r"holds 1, 2, 3, .* every value but 0 .*--mask-values"):
        valid(scene, scl)
    ones = make(tmp_path / "valid.tif", np.full((1, *SIZE), 255, np.uint8))
    with pytest.warns(GeosegWarning, match=r"leaves out 100 % .*--mask-values"):
        valid(scene, ones)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeosegWarning)
        valid(scene, scl, mask_values="3,8,9")


def test_the_stretch_knows_nothing_of_masked_pixels(tmp_path: Path) -> None:
    data = rgb(*SIZE, dtype=np.uint16)
    clouds = values(seed=5)
    with_clouds = np.where(clouds != 0, 60000, data).astype(np.uint16)
    with_holes = np.where(clouds != 0, 0, data).astype(np.uint16)
    mask = make(tmp_path / "mask.tif", clouds)
    opened = Scene.open(make(tmp_path / "a.tif", with_clouds), mask=mask)
    clean = Scene.open(make(tmp_path / "b.tif", with_holes, nodata=0))
    assert opened.stretch == clean.stretch
    np.testing.assert_array_equal(opened.thumbnail(64).valid, clean.thumbnail(64).valid)


def test_overviews_of_a_mask_play_no_part(tmp_path: Path) -> None:
    scene = make(tmp_path / "a.tif", rgb(64, 64))
    mask = make(tmp_path / "mask.tif", 3 * values(64, 64))
    with rasterio.open(mask, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    opened = Scene.open(scene, mask=mask, mask_values="3")
    _, found = opened.source.read_decimated(16, average=False)
    with rasterio.open(mask) as dataset:
        expected = dataset.read(1)[2::4, 2::4]
    np.testing.assert_array_equal(found, expected == 0)


def test_a_fill_that_is_masked_is_no_doubt(tmp_path: Path) -> None:
    data = rgb(*SIZE)
    data[:, :, :20] = 0
    edge = np.zeros((1, *SIZE), np.uint8)
    edge[..., :20] = 1
    scene, mask = make(tmp_path / "a.tif", data), make(tmp_path / "mask.tif", edge)
    with pytest.warns(GeosegWarning, match="counts as data"):
        Scene.open(scene)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeosegWarning)
        opened = Scene.open(scene, mask=mask)
    assert opened.is_empty(Window(0, 0, 40, 20))
    assert not opened.is_empty(Window(0, 0, 40, 21))


@pytest.mark.parametrize("gsd", [2.0, 0.5])
def test_masked_pixels_take_no_part_in_working_ones(tmp_path: Path, gsd: float) -> None:
    data = np.full((3, *SIZE), 100, np.uint8)
    clouds = np.kron(values(10, 10), np.ones((4, 5), np.uint8))
    data[:, clouds[0] != 0] = 255
    scene, mask = make(tmp_path / "a.tif", data), make(tmp_path / "mask.tif", clouds)
    opened = Scene.open(scene, stretch="none", gsd=gsd, mask=mask, nodata=())
    block = opened.read(opened.grid.window)
    assert 0.1 < block.valid.mean() < 0.9
    np.testing.assert_allclose(block.rgb[:, block.valid], 100 / 255, atol=1e-6)


def test_a_masked_mosaic_and_a_pickled_scene(tmp_path: Path) -> None:
    left = make(tmp_path / "l.tif", rgb(*SIZE))
    right = make(
        tmp_path / "r.tif", rgb(*SIZE, seed=1), transform=from_origin(500050, 5000000, 1, 1)
    )
    mosaic = build_mosaic([left, right], tmp_path / "m.vrt")
    clouds = values(40, 100)
    opened = Scene.open(mosaic, mask=make(tmp_path / "mask.tif", clouds))
    other = pickle.loads(pickle.dumps(opened))
    assert other == opened
    np.testing.assert_array_equal(other.read(other.grid.window).valid, clouds[0] == 0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(tmp_path_factory.mktemp("model")), device="cpu")


def test_a_run_leaves_masked_pixels_out_of_all_it_makes(
    tmp_path: Path, loaded: geoseg.Model
) -> None:
    scene = write_scene(tmp_path / "scene.tif", 96, 120)
    with rasterio.open(scene) as dataset:
        profile = {"crs": dataset.crs, "transform": dataset.transform}
    clouds = np.zeros((1, 96, 120), np.uint8)
    clouds[0, :64, :64] = 1
    mask = make(tmp_path / "mask.tif", clouds, **profile)
    reading = geoseg.Reading(mask=str(mask))
    settings: dict[str, Any] = {"model": loaded, "options": QUICK}
    run = geoseg.segment_to_files(
        scene, "road; water", tmp_path / "out", tile=64, reading=reading, **settings
    )
    with rasterio.open(tmp_path / "out" / "labels.tif") as dataset:
        labels = dataset.read(1)
    np.testing.assert_array_equal(labels[:64, :64], 255)
    assert (labels[64:] != 255).any()
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["nodata_pixels"] >= 64 * 64
    assert report["reading"]["mask"] == str(mask)
    polygons = gpd.read_file(tmp_path / "out" / "polygons.gpkg")
    assert polygons.area.sum() == pytest.approx((labels != 255).sum() * abs(dataset.res[0]) ** 2)
    lazy = geoseg.segment(scene, "road; water", reading=reading, tile=64, **settings)
    np.testing.assert_array_equal(lazy.labels.values, labels)
    with pytest.raises(OptionError, match="a mask is for files"):
        geoseg.segment(lazy.labels, "road; water", reading=reading, **settings)
    assert run.report["reading"]["mask_values"] is None

    def stop(state: Any) -> None:
        if state.tiles_done:
            raise KeyboardInterrupt

    for other, again in ((clouds, True), (1 - clouds, False)):
        with pytest.raises(KeyboardInterrupt):
            geoseg.segment_to_files(
                scene, "road; water", tmp_path / "cut", tile=64, reading=reading, progress=stop,
                overwrite=True, **settings,
            )  # fmt: skip
        if again:
            geoseg.segment_to_files(
                scene, "road; water", tmp_path / "cut", tile=64, reading=reading, resume=True,
                **settings,
            )  # fmt: skip
            continue
        make(mask, other, **profile)
        with pytest.raises(OutputError, match="because --mask changed"):
            geoseg.segment_to_files(
                scene, "road; water", tmp_path / "cut", tile=64, reading=reading, resume=True,
                **settings,
            )  # fmt: skip


def test_a_coarser_run_leaves_just_the_masked_pixels_out(
    tmp_path: Path, loaded: geoseg.Model
) -> None:
    scene = make(tmp_path / "scene.tif", rgb(90, 110))
    clouds = values(90, 110)
    mask = make(tmp_path / "mask.tif", clouds)
    reading = geoseg.Reading(mask=str(mask), gsd=2.5, aoi="500005,4999920,500100,4999995")
    geoseg.segment_to_files(
        scene, "road; water", tmp_path / "out", model=loaded, options=QUICK, reading=reading
    )
    with rasterio.open(tmp_path / "out" / "labels.tif") as dataset:
        assert dataset.shape == (75, 95)
        left = dataset.read(1) == 255
    np.testing.assert_array_equal(left, clouds[0, 5:80, 5:100] != 0)


def test_how_to_read_a_mask_needs_one() -> None:
    for wrong in ({"mask_values": "3"}, {"mask_layer": "cloud"}):
        with pytest.raises(OptionError, match="give --mask too"):
            geoseg.Reading(**wrong)


def test_a_damaged_mask_is_named(tmp_path: Path, scene: Path) -> None:
    mask = make(tmp_path / "mask.tif", values(), compress="deflate", blockysize=8)
    opened = Scene.open(scene, mask=mask, mask_values="1")
    content = mask.read_bytes()
    opened.close()
    mask.write_bytes(content[:-40] + b"\0" * 40)
    with pytest.raises(SceneError, match=r"mask\.tif: the mask cannot be read, it is damaged"):
        opened.read(opened.grid.window)


def test_a_mask_in_an_archive_is_read(tmp_path: Path, scene: Path) -> None:
    classes = values()
    mask = make(tmp_path / "mask.tif", classes)
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.write(mask, "mask.tif")
    inside = f"/vsizip/{tmp_path}/masks.zip/mask.tif"
    opened = Scene.open(scene, mask=inside)
    np.testing.assert_array_equal(opened.read(opened.grid.window).valid, classes[0] == 0)
