"""Scenes: what opens, what is valid, and that every window is read the same way."""

from __future__ import annotations

import math
import pickle
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Geod
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasters import UTM, make, rgb

from geoseg.errors import GeosegWarning, OptionError, SceneError
from geoseg.io.scene import Scene, expand_scenes, parse_stretch
from geoseg.types import Window, as_label_classes

SHARED = Path(__file__).resolve().parents[2] / "shared"
SCENES = SHARED / "scenes"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="reference data not present")

# -- every file of the reference scenes -----------------------------------------------------------

OPENS = {
    # file: (size, bands, share of valid pixels, part of the warning or None)
    "aerial/neon_OSBS_029.tif": ((400, 400), (1, 2, 3), 0.99712, None),
    "aerial/neon_YELL_541000_4977000.png": ((1035, 1249), (1, 2, 3), 1, "no CRS and no transform"),
    "aerial/usgs_hro_colorado_15cm.tif": ((232, 383), (1, 2, 3), 1, None),
    "bad_inputs/all_nodata_uint16_71x2475.tif": ((2475, 71), (3, 2, 1), 0, "no pixel with data"),
    "bad_inputs/antimeridian_utm60_uint16.tif": ((2355, 2325), (1,), 1, "100 m"),
    "bad_inputs/crs_but_no_transform.tif": ((320, 384), (1, 2, 3), 1, "no transform"),
    "bad_inputs/elevation_float32_nodata-9999.tif": ((259, 283), (1,), None, None),
    "bad_inputs/external_mask.tif": ((718, 791), (1, 2, 3), 0.67397, "300 m"),
    "bad_inputs/float32_nan_inf_holes.tif": ((280, 400), (1, 2, 3), None, "89 m"),
    "bad_inputs/float_nan_3x2_no_crs.tif": ((2, 3), (1,), 5 / 6, "no CRS"),
    "bad_inputs/geostationary_full_disk.tif": ((542, 542), (1, 2, 3), 0.78312, "20055 m"),
    "bad_inputs/no_crs_with_transform.tif": ((320, 384), (1, 2, 3), 1, "no CRS"),
    "bad_inputs/non_square_pixels_10x5m.tif": ((722, 466), (1, 2, 3), 1, "--gsd 7.07 squares"),
    "bad_inputs/one_pixel.tif": ((1, 1), (1, 2, 3), 1, None),
    "bad_inputs/other_planet_europa_float32.tif": ((884, 921), (1,), None, "275 m"),
    "bad_inputs/palette_64_colours.tif": ((723, 934), (1,), 1, None),
    "bad_inputs/png_renamed.tif": ((200, 200), (1, 2, 3), 1, "no CRS"),
    "bad_inputs/rotated_30deg_10x15.tif": ((15, 10), (1,), 1, "no CRS"),
    "bad_inputs/sar_rotated_geotransform_2000px.tif": ((2000, 2000), (1,), 1, None),
    "bad_inputs/sentinel2_float64_no_nodata.tif": ((206, 343), (1, 2, 3), 1, "4 bands without"),
    "bad_inputs/single_band_hillshade_nodata255.tif": ((1024, 1024), (1,), None, None),
    "bad_inputs/south_up_all_nodata_float32.tif": ((360, 720), (1,), 0, "no pixel with data"),
    "bad_inputs/south_up_rgb.tif": ((300, 300), (1, 2, 3), 1, None),
    "bad_inputs/tiny_20x20.tif": ((20, 20), (1,), 1, "60 m"),
    "bad_inputs/uint16_bgr_constant_alpha255.tif": ((411, 634), (3, 2, 1), None, None),
    "bad_inputs/whole_world_geographic.tif": ((256, 512), (1, 2, 3), 1, "m: models trained"),
    "labelled/atlanta_buildings/buildings_mask.tif": ((900, 900), (1,), 1, None),
    "labelled/atlanta_buildings/image_pan_uint16.tif": ((900, 900), (1,), 1, None),
    "labelled/vegas_multiclass/image_8band_uint8.tif": ((650, 500), (1, 2, 3), 1, "8 bands"),
    "labelled/vegas_multiclass/image_rgb_uint16.tif": ((650, 500), (1, 2, 3), 1, None),
    "labelled/vegas_multiclass/image_rgb_uint8.tif": ((650, 500), (1, 2, 3), 1, None),
    "labelled/vegas_multiclass/label.png": ((650, 500), (1,), None, "no CRS and no transform"),
    "landsat/bahamas_RGB.byte.tif": ((718, 791), (1, 2, 3), None, "300 m"),
    "landsat/pucallpa_1990.tif": ((377, 697), (1, 2, 3), 1, "89 m"),
    "landsat/pucallpa_2010.tif": ((377, 697), (1, 2, 3), 0.99991, "89 m"),
    "naip/m_4709963_se_14_1_20090818.tif": ((724, 934), (1, 2, 3), 1, None),
    "naip/m_4709963_se_14_1_20120731.tif": ((723, 934), (1, 2, 3), 1, None),
    "naip/m_4709963_se_14_1_20150926.tif": ((723, 934), (1, 2, 3), 1, None),
    "naip/m_4709963_se_14_1_20190904.tif": ((723, 934), (1, 2, 3), 1, None),
    "spacenet6_rotterdam/ms1_float64.tif": ((300, 300), (1, 2, 3), 1, "4 bands without"),
    "spacenet6_rotterdam/pan1_uint16.tif": ((600, 600), (1,), 1, None),
}

REFUSED = {
    "bad_inputs/complex64_sar_rotated.tif": "complex numbers; compute the amplitude first",
    "bad_inputs/empty_0_bytes.tif": "is empty",
    "bad_inputs/gcps_only.tif": "ground control points only; rectify it first: gdalwarp",
    "bad_inputs/netcdf_three_subdatasets.nc": "container, name one of its subdatasets: .*Band3",
    "bad_inputs/text_named.tif": "is not a raster in a format GDAL knows",
}

DAMAGED = {
    "bad_inputs/corrupt_jpeg_tile.tif": (1024, 1024),
    "bad_inputs/truncated_60pct.tif": (724, 934),
}

SPARSE = "bad_inputs/huge_declared_120000x90000_sparse.tif"


SCRIPTED = {"faults", "field", "notebook", "pipeline"}
"""Folders whose scenes belong to scripts, not to the tables here."""


@needs_shared
def test_the_tables_name_every_reference_scene() -> None:
    files = {
        str(file.relative_to(SCENES))
        for suffix in ("tif", "png", "nc")
        for file in SCENES.rglob(f"*.{suffix}")
        if file.relative_to(SCENES).parts[0] not in SCRIPTED
    }
    assert files == OPENS.keys() | REFUSED.keys() | DAMAGED.keys() | {SPARSE}


@needs_shared
@pytest.mark.parametrize("name", sorted(OPENS))
def test_reference_scene_opens_and_reads(name: str) -> None:
    shape, bands, share, warning = OPENS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scene = Scene.open(SCENES / name)
    said = [str(w.message) for w in caught if w.category is GeosegWarning]
    assert any(warning in line for line in said) if warning else not said
    assert scene.shape == shape
    assert scene.bands == bands
    block = scene.read(scene.grid.window)
    assert block.rgb.dtype == np.float32
    assert block.rgb.shape == (3, *shape)
    assert block.rgb.min() >= 0
    assert block.rgb.max() <= 1
    assert not block.rgb[:, ~block.valid].any()
    if share is not None:
        assert block.valid.mean() == pytest.approx(share, abs=5e-5)
    with rasterio.open(SCENES / name) as dataset:
        assert scene.grid.transform == dataset.transform
        assert scene.grid.crs == dataset.crs
        known_to_gdal = dataset.dataset_mask() > 0
        finite = np.isfinite(dataset.read(list(bands))).all(axis=0)
    np.testing.assert_array_equal(block.valid, known_to_gdal & finite)
    assert scene.is_empty(scene.grid.window) == (not block.valid.any())


@needs_shared
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_reference_scene_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(SceneError, match=REFUSED[name]) as caught:
        Scene.open(SCENES / name)
    assert "\n" not in str(caught.value)
    assert str(SCENES / name) in str(caught.value)


@needs_shared
@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_damage_is_reported_with_file_and_window(name: str) -> None:
    scene = Scene.open(SCENES / name)
    assert scene.shape == DAMAGED[name]
    with pytest.raises(SceneError, match=r"rows 0 to \d+, columns 0 to \d+ .* damaged") as caught:
        scene.read(scene.grid.window)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_shared
def test_the_healthy_part_of_a_damaged_scene_reads_after_the_failure() -> None:
    scene = Scene.open(SCENES / "bad_inputs/corrupt_jpeg_tile.tif")
    with pytest.raises(SceneError):
        scene.read(scene.grid.window)
    assert scene.read(Window(0, 0, 512, 512)).rgb.any()


@needs_shared
def test_a_huge_sparse_scene_is_skipped_through_without_reading() -> None:
    scene = Scene.open(SCENES / SPARSE)
    tiles = [
        Window(row, col, min(2048, 90000 - row), min(2048, 120000 - col))
        for row in range(0, 90000, 2048)
        for col in range(0, 120000, 2048)
    ]
    filled = [tile for tile in tiles if not scene.is_empty(tile)]
    wanted = [Window(30 * 512, 20 * 512, 512, 512), Window(150 * 512, 200 * 512, 512, 512)]
    assert len(filled) == 2
    assert all(any(tile.intersection(w) == w for tile in filled) for w in wanted)
    assert scene.read(wanted[0]).valid.any()
    coarse = Scene.open(SCENES / SPARSE, gsd=4)
    assert coarse.is_empty(Window(0, 0, 2048, 2048))
    assert not coarse.is_empty(Window(30 * 128, 20 * 128, 128, 128))
    thumbnail = scene.thumbnail(2000)
    assert thumbnail.valid.shape == (1500, 2000)
    rows, cols = np.nonzero(thumbnail.valid)
    assert {(r * 60 // 512, c * 60 // 512) for r, c in zip(rows, cols, strict=True)} >= {(30, 20)}


@needs_shared
def test_a_palette_is_rendered_through_its_colours() -> None:
    path = SCENES / "bad_inputs/palette_64_colours.tif"
    scene = Scene.open(path)
    with rasterio.open(path) as dataset:
        index, table = dataset.read(1), dataset.colormap(1)
    row, col = 300, 400
    expected = np.array(table[int(index[row, col])][:3], np.float32) / np.float32(255)
    np.testing.assert_array_equal(scene.read(Window(row, col, 1, 1)).rgb[:, 0, 0], expected)
    assert len(np.unique(scene.read(scene.grid.window).rgb.reshape(3, -1), axis=1).T) <= 64


@needs_shared
def test_16_bit_and_8_bit_versions_of_a_scene_look_alike() -> None:
    folder = SCENES / "labelled/vegas_multiclass"
    eight = Scene.open(folder / "image_rgb_uint8.tif", stretch="2,98")
    sixteen = Scene.open(folder / "image_rgb_uint16.tif", stretch="2,98")
    a, b = eight.read(eight.grid.window).rgb, sixteen.read(sixteen.grid.window).rgb
    assert np.abs(a - b).mean() < 0.02


# -- values and bands -----------------------------------------------------------------------------


def test_8_bit_without_stretch_is_exactly_a_255th(tmp_path: Path) -> None:
    data = np.arange(768, dtype=np.uint16).reshape(3, 16, 16).astype(np.uint8)
    scene = Scene.open(make(tmp_path / "s.tif", data))
    block = scene.read(Window(0, 0, 16, 16))
    np.testing.assert_array_equal(block.rgb, data.astype(np.float32) / np.float32(255))
    assert scene.stretch is None
    assert block.valid.all()


def test_one_band_is_repeated(tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif", rgb())
    block = Scene.open(path, bands=[2]).read(Window(3, 4, 10, 10))
    np.testing.assert_array_equal(block.rgb[0], block.rgb[1])
    np.testing.assert_array_equal(block.rgb[0], rgb()[1, 3:13, 4:14] / np.float32(255))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("blue", "green", "red"), (3, 2, 1)),
        (("undefined", "undefined", "undefined"), (1, 2, 3)),
        (("alpha", "red", "green", "blue"), (2, 3, 4)),
        (("nir", "blue", "green", "red"), (4, 3, 2)),
        (("gray", "undefined", "undefined", "undefined"), (1, 2, 3)),
        (("gray", "alpha"), (1,)),
        (("red", "red", "blue"), (1, 2, 3)),
    ],
)
def test_default_bands_follow_the_colour_tags(
    tmp_path: Path, kinds: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    data = np.full((len(kinds), 4, 4), 200, np.uint8)
    colors = [ColorInterp.undefined if k == "nir" else ColorInterp[k] for k in kinds]
    assert Scene.open(make(tmp_path / "s.tif", data, colorinterp=colors)).bands == expected


def test_two_bands_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif", rgb()[:2])
    with pytest.raises(SceneError, match=r"has 2 bands.*--bands 1"):
        Scene.open(path)
    assert Scene.open(path, bands=[2]).bands == (2,)


def test_impossible_bands_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif", rgb())
    with pytest.raises(SceneError, match="bands 1 to 3, there is no band 5"):
        Scene.open(path, bands=[5, 2, 1])
    with pytest.raises(OptionError, match=r"three .* or one"):
        Scene.open(path, bands=[1, 2])


def test_many_untagged_bands_are_taken_with_a_warning(tmp_path: Path) -> None:
    data = np.concatenate([rgb(), rgb()])
    path = make(tmp_path / "s.tif", data, photometric="minisblack")
    with pytest.warns(GeosegWarning, match="6 bands without colour tags"):
        Scene.open(path)
    assert Scene.open(path, bands=[6, 5, 4]).bands == (6, 5, 4)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="no such file"):
        Scene.open(tmp_path / "nothing.tif")
    with pytest.raises(SceneError, match="is a folder"):
        Scene.open(tmp_path)


def test_a_vrt_reads_like_its_source(tmp_path: Path) -> None:
    from rasterio.shutil import copy

    path = make(tmp_path / "s.tif", rgb())
    copy(str(path), str(tmp_path / "s.vrt"), driver="VRT")
    direct, virtual = Scene.open(path), Scene.open(tmp_path / "s.vrt")
    np.testing.assert_array_equal(
        direct.read(direct.grid.window).rgb, virtual.read(virtual.grid.window).rgb
    )
    assert {Path(f[0]).name for f in virtual.source.files} == {"s.vrt", "s.tif"}


def test_a_file_inside_an_archive_reads(tmp_path: Path) -> None:
    make(tmp_path / "s.tif", rgb())
    shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path, "s.tif")
    scene = Scene.open(f"/vsizip/{tmp_path}/a.zip/s.tif")
    np.testing.assert_array_equal(scene.read(scene.grid.window).rgb * 255, rgb().astype(np.float32))


def test_a_scene_on_a_web_server_reads(tmp_path: Path) -> None:
    data = rgb(400, 400)
    make(tmp_path / "s.tif", data, tiled=True, blockxsize=128, blockysize=128)
    # A process of its own: GDAL may hold the interpreter while it waits for an answer.
    command = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        try:
            scene = Scene.open(f"{address}/s.tif")
            block = scene.read(Window(100, 50, 60, 70))
            with pytest.raises(SceneError, match="cannot be opened"):
                Scene.open(f"{address}/other.tif")
        finally:
            server.terminate()
    np.testing.assert_array_equal(block.rgb, data[:, 100:160, 50:120] / np.float32(255))
    assert scene.source.files == ()


# -- valid pixels ---------------------------------------------------------------------------------


def test_a_nodata_value_in_one_band_punches_no_hole(tmp_path: Path) -> None:
    data = rgb()
    data[0, 5, 5] = 0
    data[:, 6, 6] = 0
    scene = Scene.open(make(tmp_path / "s.tif", data, nodata=0))
    valid = scene.read(scene.grid.window).valid
    assert valid[5, 5]
    assert not valid[6, 6]
    assert valid.sum() == valid.size - 1


def test_nodata_asks_the_bands_that_are_not_used_too(tmp_path: Path) -> None:
    data = np.concatenate([rgb(), np.full((1, 40, 50), 90, np.uint8)])
    data[:3, 5, 5] = 0
    data[:, 6, 6] = 0
    scene = Scene.open(make(tmp_path / "s.tif", data, nodata=0, photometric="minisblack"))
    valid = scene.read(scene.grid.window).valid
    assert valid[5, 5]
    assert not valid[6, 6]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_an_impossible_nodata_value_spoils_a_pixel_in_any_band(tmp_path: Path, dtype: Any) -> None:
    data = rgb(dtype=np.int16).astype(dtype)
    data[1, 5, 5] = -9999
    scene = Scene.open(make(tmp_path / "s.tif", data, nodata=-9999))
    block = scene.read(scene.grid.window)
    assert not block.valid[5, 5]
    assert block.valid.sum() == block.valid.size - 1
    assert not block.rgb[:, 5, 5].any()
    assert scene.stretch is not None
    assert min(low for low, _ in scene.stretch) > 0


def test_nan_and_infinity_are_not_data(tmp_path: Path) -> None:
    data = rgb(dtype=np.float32)
    data[0, 1, 1], data[1, 2, 2], data[2, 3, 3] = np.nan, np.inf, -np.inf
    scene = Scene.open(make(tmp_path / "s.tif", data))
    block = scene.read(scene.grid.window)
    assert sorted(zip(*np.nonzero(~block.valid), strict=True)) == [(1, 1), (2, 2), (3, 3)]
    assert np.isfinite(block.rgb).all()


def test_nodata_outside_the_pixel_type_is_ignored(tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif", rgb())
    vrt = tmp_path / "s.vrt"
    from rasterio.shutil import copy

    copy(str(path), str(vrt), driver="VRT")
    text = vrt.read_text().replace("<ColorInterp>", "<NoDataValue>-9999</NoDataValue><ColorInterp>")
    assert "-9999" in text
    vrt.write_text(text)
    scene = Scene.open(vrt)
    assert scene.read(scene.grid.window).valid.all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_valid_above_zero_whatever_its_range(tmp_path: Path, dtype: Any) -> None:
    alpha = np.full((1, 40, 50), 255, dtype)
    alpha[0, :10], alpha[0, 10:20] = 0, 1
    kinds = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    data = np.concatenate([rgb(dtype=dtype), alpha])
    scene = Scene.open(make(tmp_path / "s.tif", data, colorinterp=kinds))
    valid = scene.read(scene.grid.window).valid
    assert not valid[:10].any()
    assert valid[10:].all()


def test_a_mask_inside_the_file_decides(tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif", rgb())
    mask = np.full((40, 50), 255, np.uint8)
    mask[:, :7] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    scene = Scene.open(path)
    np.testing.assert_array_equal(scene.read(scene.grid.window).valid, mask > 0)
    assert scene.is_empty(Window(0, 0, 40, 7))
    assert not scene.is_empty(Window(0, 0, 40, 8))


def test_absent_blocks_are_only_empty_where_they_mean_nodata(tmp_path: Path) -> None:
    for nodata, empty in ((0, True), (None, False)):
        path = tmp_path / f"{nodata}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", height=1024, width=1024, count=3, dtype="uint8", crs=UTM,
            transform=from_origin(9, 9, 1, 1), tiled=True, blockxsize=256, blockysize=256,
            SPARSE_OK=True, nodata=nodata,
        ) as dataset:  # fmt: skip
            dataset.write(np.full((3, 256, 256), 9, np.uint8), window=((256, 512), (512, 768)))
        with nullcontext() if empty else pytest.warns(GeosegWarning, match="give --nodata 0"):
            scene = Scene.open(path)
        assert scene.is_empty(Window(0, 0, 256, 512)) is empty
        assert not scene.is_empty(Window(200, 500, 100, 100))


# -- stretch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "1", "2,", "a,b", "98,2", "5:5", "-1,98", "0,101", "1:2:3"])
def test_nonsense_stretches_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="stretch"):
        parse_stretch(text)


@pytest.mark.parametrize("text", ["auto", "none", "2,98", "0.5,99.5", "0:3000", "-1:1"])
def test_a_stretch_prints_as_it_reads(text: str) -> None:
    assert str(parse_stretch(f" {text.upper()} ")) == text


def test_every_window_gets_the_stretch_of_the_whole_scene(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(1000, 1400, dtype=np.uint16), (3, 300, 400)).copy()
    scene = Scene.open(make(tmp_path / "s.tif", ramp))
    whole = scene.read(scene.grid.window).rgb
    dark, light = scene.read(Window(0, 0, 300, 40)), scene.read(Window(0, 360, 300, 40))
    np.testing.assert_array_equal(dark.rgb, whole[:, :, :40])
    np.testing.assert_array_equal(light.rgb, whole[:, :, 360:])
    assert scene.stretch is not None
    np.testing.assert_allclose(scene.stretch[0], (1008, 1391), atol=1)
    assert (dark.rgb[:, 0, 0] == 0).all()
    assert (light.rgb[:, 0, -1] == 1).all()


def test_value_stretch_and_none(tmp_path: Path) -> None:
    data = rgb(dtype=np.uint16)
    path = make(tmp_path / "s.tif", data)
    window = Window(0, 0, 40, 50)
    plain = Scene.open(path, stretch="none").read(window).rgb
    np.testing.assert_array_equal(plain, data.astype(np.float32) / np.float32(65535))
    fixed = Scene.open(path, stretch="0:2000").read(window).rgb
    np.testing.assert_allclose(fixed, np.clip(data / 2000, 0, 1), atol=1e-6)


def test_floats_without_stretch_must_lie_in_0_to_1(tmp_path: Path) -> None:
    good = make(tmp_path / "good.tif", rgb().astype(np.float32) / 255)
    block = Scene.open(good, stretch="none").read(Window(0, 0, 40, 50))
    np.testing.assert_allclose(block.rgb, rgb() / 255, atol=1e-7)
    bad = make(tmp_path / "bad.tif", rgb().astype(np.float32))
    with pytest.raises(SceneError, match=r"must lie in 0 to 1.*--stretch"):
        Scene.open(bad, stretch="none")


@pytest.mark.parametrize("value", [0, 10000])
def test_a_constant_scene_becomes_mid_grey(tmp_path: Path, value: int) -> None:
    scene = Scene.open(make(tmp_path / "s.tif", np.full((3, 8, 8), value, np.uint16)))
    np.testing.assert_allclose(scene.read(scene.grid.window).rgb, 0.5, atol=1e-6)


def test_nodata_takes_no_part_in_the_stretch(tmp_path: Path) -> None:
    data = rgb(dtype=np.uint16)
    hollow = data.copy()
    hollow[:, :30] = 0
    full = Scene.open(make(tmp_path / "a.tif", data[:, 30:]))
    holed = Scene.open(make(tmp_path / "b.tif", hollow, nodata=0))
    assert full.stretch == holed.stretch


# -- placement and GSD ----------------------------------------------------------------------------


@given(
    row=st.integers(0, 39),
    col=st.integers(0, 49),
    height=st.integers(1, 40),
    width=st.integers(1, 50),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_window_equals_that_part_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, row: int, col: int, height: int, width: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any_window.tif"
    if not path.exists():
        make(path, rgb(dtype=np.uint16), nodata=7)
    scene = Scene.open(path)
    window = scene.grid.window.intersection(Window(row, col, height, width))
    assert window is not None
    rows, cols = window.slices()
    whole, part = scene.read(scene.grid.window), scene.read(window)
    np.testing.assert_array_equal(part.rgb, whole.rgb[:, rows, cols])
    np.testing.assert_array_equal(part.valid, whole.valid[rows, cols])


def test_a_window_outside_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    scene = Scene.open(make(tmp_path / "s.tif", rgb()))
    with pytest.raises(ValueError, match="not inside the scene"):
        scene.read(Window(30, 0, 11, 5))


ROTATED = Affine(math.sqrt(3), 1, 500000, 1, -math.sqrt(3), 5000000)
"""Pixels of 2 m, turned by 30 degrees."""


@pytest.mark.parametrize(
    "transform", [from_origin(500000, 5000000, 2, 2), Affine(2, 0, 5e5, 0, 2, 5e6), ROTATED]
)
def test_gsd_and_crop_for_upright_south_up_and_rotated(tmp_path: Path, transform: Affine) -> None:
    scene = Scene.open(make(tmp_path / "s.tif", rgb(), transform=transform))
    assert scene.grid.gsd_m == pytest.approx(2)
    crop = scene.grid.crop(Window(7, 9, 3, 4))
    assert crop.to_ground(0, 0) == pytest.approx(scene.grid.to_ground(9, 7))
    assert crop.to_ground(4, 3) == pytest.approx(scene.grid.to_ground(13, 10))
    assert crop.shape == (3, 4)
    area = scene.grid.pixel_area_m2()
    assert area == pytest.approx(4 / 0.9996**2, rel=1e-4)


def test_geographic_gsd_is_geodesic(tmp_path: Path) -> None:
    step = 1e-4
    grid_at = from_origin(10, 60, step, step)
    path = make(tmp_path / "s.tif", rgb(), crs="EPSG:4326", transform=grid_at)
    with pytest.warns(GeosegWarning, match=r"5\.58 m wide and 11\.1 m high.*--gsd 7.88 squares"):
        scene = Scene.open(path)
    geod = Geod(ellps="WGS84")
    lat = 60 - 20 * step
    east = geod.inv(10, lat, 10 + step, lat)[2]
    north = geod.inv(10, lat - step / 2, 10, lat + step / 2)[2]
    assert scene.grid.pixel_size_m == pytest.approx((east, north), rel=1e-6)
    assert scene.grid.gsd_m == pytest.approx(math.sqrt(east * north), rel=1e-6)
    assert scene.grid.pixel_area_m2() == pytest.approx(east * north, rel=1e-6)


def test_web_mercator_gsd_is_what_the_ground_has(tmp_path: Path) -> None:
    north = 6378137 * math.log(math.tan(math.pi / 4 + math.radians(60) / 2))
    scene = Scene.open(
        make(tmp_path / "s.tif", rgb(), crs="EPSG:3857", transform=from_origin(0, north, 10, 10))
    )
    assert scene.grid.gsd_m == pytest.approx(5, rel=0.01)


@needs_shared
def test_the_world_has_the_area_of_the_earth() -> None:
    with pytest.warns(GeosegWarning):
        grid = Scene.open(SCENES / "bad_inputs/whole_world_geographic.tif").grid
    mean = grid.pixel_area_m2()
    assert mean is not None
    assert mean * grid.height * grid.width == pytest.approx(5.10066e14, rel=1e-4)


def test_coarser_pixels_are_averages_and_keep_the_place(tmp_path: Path) -> None:
    data = rgb()
    scene = Scene.open(make(tmp_path / "s.tif", data), gsd=2)
    assert scene.shape == (20, 25)
    assert scene.grid.gsd_m == pytest.approx(2)
    assert scene.native_grid.shape == (40, 50)
    assert scene.scale == pytest.approx((2, 2))
    assert scene.grid.to_ground(0, 0) == scene.native_grid.to_ground(0, 0)
    mean = data.reshape(3, 20, 2, 25, 2).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(scene.read(scene.grid.window).rgb, mean, atol=0.51 / 255)
    assert scene.native().shape == (40, 50)
    np.testing.assert_array_equal(
        scene.native().read(Window(0, 0, 40, 50)).rgb, data / np.float32(255)
    )


def test_pixels_far_finer_than_the_files_own_are_warned_about(tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif", rgb())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scene.open(path, gsd=0.2)
    with pytest.warns(GeosegWarning, match="own pixels are 20 times .* 400 times the work"):
        Scene.open(path, gsd=0.05)


@pytest.mark.parametrize("gsd", [0.5, 1.7, 3])
@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "nan", "plain"])
def test_resampled_windows_agree_and_keep_nodata(tmp_path: Path, gsd: float, kind: str) -> None:
    data = rgb(120, 90)
    hole = np.zeros((120, 90), np.bool_)
    hole[:, :30] = True
    profile: dict[str, Any] = {}
    if kind == "nodata":
        data[:, hole], profile = 0, {"nodata": 0}
    elif kind == "nan":
        data = data.astype(np.float32)
        data[:, hole] = np.nan
    elif kind == "alpha":
        data = np.concatenate([data, np.where(hole, 0, 255)[None].astype(np.uint8)])
        kinds = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        profile = {"colorinterp": kinds}
    path = make(tmp_path / "s.tif", data, **profile)
    if kind == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(np.where(hole, 0, 255).astype(np.uint8))
    scene = Scene.open(path, gsd=gsd)
    whole = scene.read(scene.grid.window)
    part = Window(scene.shape[0] // 3, 5, scene.shape[0] // 2, scene.shape[1] // 2)
    rows, cols = part.slices()
    np.testing.assert_array_equal(scene.read(part).rgb, whole.rgb[:, rows, cols])
    np.testing.assert_array_equal(scene.read(part).valid, whole.valid[rows, cols])
    edge = 30 / gsd
    expected = 0 if kind == "plain" else math.floor(edge) - 1
    assert not whole.valid[:, :expected].any()
    assert whole.valid[:-1, math.ceil(edge) + 1 : -1].all()
    assert np.isfinite(whole.rgb).all()
    # Nothing of the hole bleeds into its neighbours.
    assert whole.rgb[whole.rgb > 0].mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("gsd", [1e-30, 25, 1e30])
def test_a_gsd_leaves_some_pixels_and_not_endless_ones(tmp_path: Path, gsd: float) -> None:
    path = make(tmp_path / "s.tif", np.full((3, 20, 9), 7, np.uint8))
    with pytest.raises(OptionError, match=r"more than 2\^40 pixels|is larger than .* is; give a"):
        Scene.open(path, gsd=gsd)
    assert Scene.open(path, gsd=17).shape == (2, 1)


def test_gsd_needs_a_known_pixel_size(tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif", rgb(), crs=None)
    with pytest.raises(OptionError, match="it has no CRS; leave --gsd out"):
        Scene.open(path, gsd=2)
    placed = make(tmp_path / "p.tif", rgb())
    for wrong in (0, -1, math.nan):
        with pytest.raises(OptionError, match="positive"):
            Scene.open(placed, gsd=wrong)


# -- workers --------------------------------------------------------------------------------------


def test_a_scene_can_be_pickled_and_compared(tmp_path: Path) -> None:
    scene = Scene.open(make(tmp_path / "s.tif", rgb(dtype=np.uint16)), gsd=2)
    scene.read(Window(0, 0, 5, 5))
    again = pickle.loads(pickle.dumps(scene))
    assert again == scene
    np.testing.assert_array_equal(
        again.read(again.grid.window).rgb, scene.read(again.grid.window).rgb
    )


def test_threads_read_what_one_thread_reads(tmp_path: Path) -> None:
    path = make(
        tmp_path / "s.tif", rgb(600, 700), tiled=True, blockxsize=64, blockysize=64,
        compress="deflate",
    )  # fmt: skip
    scene = Scene.open(path)
    windows = [Window(r, c, 90, 110) for r in range(0, 510, 30) for c in range(0, 590, 45)]
    whole = scene.read(scene.grid.window).rgb
    with ThreadPoolExecutor(8) as pool:
        blocks = list(pool.map(scene.read, windows))
    for window, block in zip(windows, blocks, strict=True):
        rows, cols = window.slices()
        np.testing.assert_array_equal(block.rgb, whole[:, rows, cols])


def test_a_changed_file_has_another_fingerprint_and_is_read_anew(tmp_path: Path) -> None:
    import json
    import os

    path = make(tmp_path / "s.tif", rgb(seed=1))
    before = Scene.open(path)
    old = before.read(before.grid.window).rgb
    make(path, rgb(seed=2))
    os.utime(path, ns=(1, 1))
    after = Scene.open(path)
    assert before.fingerprint() != after.fingerprint()
    assert json.loads(json.dumps(after.fingerprint())) == after.fingerprint()
    assert not np.array_equal(after.read(after.grid.window).rgb, old)


def test_thumbnails_fit_and_average(tmp_path: Path) -> None:
    scene = Scene.open(make(tmp_path / "s.tif", rgb(100, 301)))
    block = scene.thumbnail(100)
    assert block.rgb.shape == (3, 25, 76)
    assert block.rgb.mean() == pytest.approx(0.5, abs=0.02)
    assert block.rgb.std() < 0.1
    assert scene.thumbnail(1000).rgb.shape == (3, 100, 301)
    assert scene.thumbnail(50, Window(0, 0, 50, 50)).rgb.shape == (3, 50, 50)


def test_no_warning_of_rasterio_reaches_the_user(tmp_path: Path) -> None:
    path = make(tmp_path / "s.png", rgb(), driver="PNG", crs=None, transform=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scene = Scene.open(path)
        scene.read(Window(0, 0, 5, 5))
    assert [w.category for w in caught if issubclass(w.category, UserWarning)] == [GeosegWarning]


# -- many scenes ----------------------------------------------------------------------------------


def test_folders_and_patterns_name_scenes_but_not_our_own_products(tmp_path: Path) -> None:
    from geoseg.io.write import label_writer

    for name in ("b.tif", "a.tif"):
        make(tmp_path / name, rgb())
    (tmp_path / "notes.txt").write_text("no scene")
    scene = Scene.open(tmp_path / "a.tif")
    writer = label_writer(tmp_path / "w", scene.grid, as_label_classes(["x"]))
    writer.write(scene.grid.window, np.zeros(scene.shape, np.uint8))
    writer.finish(tmp_path / "labels.tif")
    writer.discard()
    both = [str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]
    assert expand_scenes([str(tmp_path)]) == both
    assert expand_scenes([str(tmp_path / "*.tif")]) == both
    assert expand_scenes([str(tmp_path / "b.tif"), str(tmp_path)]) == [both[1], both[0]]
    remote = ["s3://bucket/x.tif", "https://host/x.tif?a=*", "/vsicurl/https://host/x.tif"]
    assert expand_scenes(remote) == remote
    assert expand_scenes([str(tmp_path / "missing.tif")]) == [str(tmp_path / "missing.tif")]


def test_folders_and_patterns_without_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="holds no raster"):
        expand_scenes([str(tmp_path)])
    with pytest.raises(SceneError, match="no file matches"):
        expand_scenes([str(tmp_path / "*.tif")])
