"""Which bands are colours, which pixels are data, and what values mean."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasters import make, rgb

from geoseg.errors import GeosegWarning, OptionError, SceneError
from geoseg.io.array import ArrayScene
from geoseg.io.mosaic import build_mosaic, build_stack
from geoseg.io.scene import Scene
from geoseg.options import Reading

RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


def named(path: Path, *names: str, **profile: Any) -> Path:
    data = np.concatenate([rgb(seed=seed, dtype=np.uint16)[:1] for seed in range(len(names))])
    make(path, data, **profile)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = names
    return path


NAMES = {
    ("blue", "green", "red", "nir"): (3, 2, 1),
    ("Blue 490 nm", "Green 560 nm", "Red 665 nm", "Red edge 705 nm"): (3, 2, 1),
    ("B01", "B02", "B03", "B04", "B05"): (4, 3, 2),
    ("B8A", "B2", "B3", "B4"): (4, 3, 2),
    ("SR_B2", "SR_B3", "SR_B4", "SR_B5"): (3, 2, 1),
    ("SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"): (3, 2, 1),
    ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"): (6, 4, 2),
    ("0.443 um", "0.482 um", "0.561 µm", "0.655 µm"): (4, 3, 2),
    ("R", "G", "B", "N"): (1, 2, 3),
}


@pytest.mark.parametrize("names", NAMES)
def test_names_tell_colours(tmp_path: Path, names: tuple[str, ...]) -> None:
    scene = Scene.open(named(tmp_path / "a.tif", *names))
    assert scene.bands == NAMES[names]
    assert scene.source.told_by in ("names", "wavelengths")


def test_wavelengths_in_the_metadata_tell_colours(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tif", np.random.default_rng(0).random((4, 9, 9)))
    with rasterio.open(path, "r+") as dataset:
        for band, length in enumerate(("0.84", "0.66", "0.56", "0.48"), 1):
            dataset.update_tags(band, wavelength=length, wavelength_units="Micrometers")
    scene = Scene.open(path)
    assert (scene.bands, scene.source.told_by) == ((2, 3, 4), "wavelengths")


@pytest.mark.parametrize("names", [("B1", "B2", "B3", "B4"), ("Band 1", "Band 2", "nir", "x")])
def test_what_names_do_not_tell_is_warned_about(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.warns(GeosegWarning, match="4 bands without colour tags or names"):
        assert Scene.open(named(tmp_path / "a.tif", *names)).bands == (1, 2, 3)


def test_names_against_tags_are_warned_about(tmp_path: Path) -> None:
    path = named(tmp_path / "a.tif", "blue", "green", "red", colorinterp=RGBA[:3])
    with pytest.warns(GeosegWarning, match="taking the tags, else give --bands 3,2,1"):
        assert Scene.open(path).bands == (1, 2, 3)


def test_band_names_of_an_array_tell_colours() -> None:
    data = rgb(dtype=np.uint16)
    array = xarray.DataArray(data, dims=("band", "y", "x"))
    by_coordinate = ArrayScene.open(array.assign_coords(band=["blue", "green", "red"]))
    by_long_name = ArrayScene.open(array.assign_attrs(long_name=("B02", "B03", "B04")))
    for scene in (by_coordinate, by_long_name):
        np.testing.assert_array_equal(scene.array, data[::-1])


# -- what is data ---------------------------------------------------------------------------------


def half_filled(path: Path, dtype: Any = np.uint16, fill: int = 0) -> Path:
    data = rgb(dtype=dtype)
    data[:, :20] = fill
    return make(path, data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_fill_at_the_border_is_warned_about(tmp_path: Path, dtype: Any) -> None:
    with pytest.warns(GeosegWarning, match="50 % .* is 7 in all bands .* give --nodata 7"):
        scene = Scene.open(half_filled(tmp_path / "a.tif", dtype, 7))
    assert scene.read(scene.grid.window).valid.all()


def test_a_named_fill_is_nodata_everywhere(tmp_path: Path) -> None:
    path = half_filled(tmp_path / "a.tif")
    scene = Scene.open(path, nodata=Reading(nodata=("0",)).fill)
    assert scene.read(scene.grid.window).valid.mean() == 0.5
    assert scene.stretch is not None
    assert min(low for low, _ in scene.stretch) > 0
    assert not scene.thumbnail(10).valid.all()
    coarse = Scene.open(path, nodata=(0,), gsd=2.5)
    block = coarse.read(coarse.grid.window)
    assert block.valid.mean() == 0.5
    assert block.rgb[:, block.valid].min() > 0.05  # no fill in the means


def test_nodata_none_takes_every_value_as_data(tmp_path: Path) -> None:
    data = rgb()
    data[:, :20] = 0
    path = make(tmp_path / "a.tif", data, nodata=0)
    scene = Scene.open(path, nodata=Reading(nodata=("none",)).fill)
    assert scene.read(scene.grid.window).valid.all()


@pytest.mark.parametrize("word", ["a", "nan", "inf"])
def test_nodata_that_is_no_number_is_refused(word: str) -> None:
    with pytest.raises(OptionError, match="nodata"):
        Reading(nodata=(word,))


def test_the_products_own_nodata_is_obeyed(tmp_path: Path) -> None:
    path = half_filled(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(SPECIAL_VALUE_NODATA="0")
    scene = Scene.open(path)
    assert scene.read(scene.grid.window).valid.mean() == 0.5


def test_a_fourth_colour_tagged_alpha_is_warned_about_and_can_be_ignored(tmp_path: Path) -> None:
    infrared = np.random.default_rng(3).integers(0, 200, (1, 40, 50)).astype(np.uint8)
    path = make(tmp_path / "a.tif", np.concatenate([rgb(), infrared]), colorinterp=RGBA)
    with pytest.warns(GeosegWarning, match="looks like a fourth colour.*--ignore-alpha"):
        Scene.open(path)
    scene = Scene.open(path, ignore_alpha=True)
    assert scene.read(scene.grid.window).valid.all()


def test_an_alpha_with_soft_edges_is_an_alpha(tmp_path: Path) -> None:
    alpha = np.full((1, 40, 50), 255, np.uint8)
    alpha[:, :4] = np.arange(50)
    make(tmp_path / "a.tif", np.concatenate([rgb(), alpha]), colorinterp=RGBA)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeosegWarning)
        assert Scene.open(tmp_path / "a.tif").source.alpha == 4


def test_an_untagged_alpha_is_warned_about(tmp_path: Path) -> None:
    alpha = np.full((1, 40, 50), 255, np.uint8)
    alpha[:, :4] = 0
    plain = (*RGBA[:3], ColorInterp.undefined)
    make(tmp_path / "a.tif", np.concatenate([rgb(), alpha]), colorinterp=plain)
    with pytest.warns(GeosegWarning, match="band 4 .* looks like an alpha"):
        Scene.open(tmp_path / "a.tif")


# -- what values mean -----------------------------------------------------------------------------


def scaled(path: Path, scale: float = 1e-4, **profile: Any) -> Path:
    make(path, rgb(dtype=np.uint16), **profile)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (scale,) * 3, (-0.1,) * 3
    return path


def test_a_range_is_in_the_units_of_scale_and_offset(tmp_path: Path) -> None:
    scene = Scene.open(scaled(tmp_path / "a.tif"), stretch="0:0.3")
    assert scene.stretch is not None
    np.testing.assert_allclose(scene.stretch, [(1000, 4000)] * 3)
    np.testing.assert_allclose(scene.limits_in_units, [(0, 0.3)] * 3)


def test_a_range_beside_the_values_is_warned_about(tmp_path: Path) -> None:
    with pytest.warns(GeosegWarning, match="100 % of the pixels black or white: values run"):
        Scene.open(make(tmp_path / "a.tif", rgb(dtype=np.uint16)), stretch="0:0.3")
    with pytest.warns(GeosegWarning, match="in the units of the file's scale"):
        Scene.open(scaled(tmp_path / "b.tif"), stretch="1000:4000")


def test_a_mosaic_keeps_names_and_units_and_refuses_other_units(tmp_path: Path) -> None:
    beside = from_origin(500050, 5000000, 1, 1)
    one = scaled(tmp_path / "a.tif")
    two = scaled(tmp_path / "b.tif", transform=beside)
    scene = Scene.open(build_mosaic([one, two], tmp_path / "m.vrt"))
    assert scene.source.units == ((1e-4, -0.1),) * 3
    other = scaled(tmp_path / "c.tif", 2e-4, transform=beside)
    with pytest.raises(SceneError, match=r"has scale and offset .* -unscale"):
        build_mosaic([one, other], tmp_path / "n.vrt")
    names = ("blue", "green", "red", "nir")
    parts = [
        named(tmp_path / "d.tif", *names),
        named(tmp_path / "e.tif", *names, transform=beside),
    ]
    assert Scene.open(build_mosaic(parts, tmp_path / "o.vrt")).bands == (3, 2, 1)


# -- files of one band each -----------------------------------------------------------------------


def one_band_each(folder: Path, *names: str) -> list[Path]:
    data = rgb(dtype=np.uint16)
    return [make(folder / name, data[i : i + 1]) for i, name in enumerate(names)]


def test_files_of_one_band_are_one_scene_in_any_order(tmp_path: Path) -> None:
    files = one_band_each(tmp_path, "T_B04.tif", "T_B03.tif", "T_B02.tif")
    scene = Scene.open(build_stack([files[2], files[0], files[1]], tmp_path / "s.vrt"))
    data, _ = scene.source.read(scene.grid.window)
    np.testing.assert_array_equal(data, rgb(dtype=np.uint16))


def test_files_that_nothing_tells_apart_go_in_their_order(tmp_path: Path) -> None:
    files = one_band_each(tmp_path, "x.tif", "y.tif", "z.tif")
    scene = Scene.open(build_stack(files, tmp_path / "s.vrt"))
    data, _ = scene.source.read(scene.grid.window)
    np.testing.assert_array_equal(data, rgb(dtype=np.uint16))
    with pytest.raises(SceneError, match="nothing tells which are red, green and blue"):
        build_stack(files[:2], tmp_path / "t.vrt")


def test_files_of_several_pixel_sizes_take_the_finest(tmp_path: Path) -> None:
    red, green, _ = one_band_each(tmp_path, "red.tif", "green.tif", "other.tif")
    coarse = make(
        tmp_path / "blue.tif",
        np.full((1, 20, 25), 9, np.uint16),
        transform=from_origin(500000, 5000000, 2, 2),
    )
    scene = Scene.open(build_stack([coarse, green, red], tmp_path / "s.vrt"))
    data, _ = scene.source.read(scene.grid.window)
    assert scene.shape == (40, 50)
    np.testing.assert_array_equal(data[:2], rgb(dtype=np.uint16)[:2])
    assert (data[2] == 9).all()


def test_files_in_several_crs_are_refused(tmp_path: Path) -> None:
    red, green, _ = one_band_each(tmp_path, "red.tif", "green.tif", "other.tif")
    blue = make(tmp_path / "blue.tif", rgb(dtype=np.uint16)[:1], crs="EPSG:32632")
    with pytest.raises(SceneError, match=r"has CRS EPSG:32632, but .* has EPSG:32631"):
        build_stack([red, green, blue], tmp_path / "s.vrt")


def test_one_band_of_several_is_warned_about_as_grey(tmp_path: Path) -> None:
    file = one_band_each(tmp_path, "LC08_SR_B4.TIF")[0]
    with pytest.warns(GeosegWarning, match=r"is one band \(B4\), mapped as grey.*--rgb"):
        Scene.open(file)


def test_bands_of_one_place_are_no_mosaic(tmp_path: Path) -> None:
    files = one_band_each(tmp_path, "B4.tif", "B3.tif", "B2.tif")
    with pytest.raises(SceneError, match=r"lies on top of .* --rgb"):
        build_mosaic(files, tmp_path / "m.vrt")


def test_scenes_of_one_place_that_hide_each_other_are_no_mosaic(tmp_path: Path) -> None:
    first = make(tmp_path / "first.tif", rgb())
    second = make(tmp_path / "second.tif", rgb(seed=1))
    words = r"lies on top of .*first.tif and would hide it; leave one of them out, or map each"
    for other in (second, first):
        with pytest.raises(SceneError, match=words):
            build_mosaic([first, other], tmp_path / "m.vrt")
    beside = make(tmp_path / "beside.tif", rgb(), transform=from_origin(500025, 5000000, 1, 1))
    build_mosaic([first, beside], tmp_path / "half.vrt")


def test_scenes_of_one_place_that_show_each_other_are_a_mosaic(tmp_path: Path) -> None:
    data, swaths = rgb(), []
    for name, part in (("a", slice(0, 20)), ("b", slice(20, 40))):
        swath = np.zeros_like(data)
        swath[:, part] = data[:, part]
        swaths.append(make(tmp_path / f"{name}.tif", swath, nodata=0))
    scene = Scene.open(build_mosaic(swaths, tmp_path / "m.vrt"))
    np.testing.assert_array_equal(scene.source.read(scene.grid.window)[0], data)
    with pytest.raises(SceneError, match="leave one of them out"):
        build_mosaic([swaths[0], swaths[1], swaths[0]], tmp_path / "n.vrt")
