"""Arrays in, maps out: what people who live in xarray and notebooks give and get."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import rioxarray
import shapely
import xarray as xr
from rasters import make, rgb

import geoseg
import geoseg.xarray
from geoseg import errors
from geoseg.errors import GeosegError, GeosegWarning, OptionError, SceneError, VocabularyError
from geoseg.io.array import ArrayScene
from geoseg.testing import assert_same_raster, tiny_random_model, write_scene

CLASSES = "building; road; water; forest, trees; bare soil"
QUICK = geoseg.Options(templates="none")
SIZE = 120, 150
WINDOW = 64
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", *SIZE)


@pytest.fixture(scope="module")
def array(path: Path) -> xr.DataArray:
    opened = rioxarray.open_rasterio(path)
    assert isinstance(opened, xr.DataArray)
    return opened.load()


def lazy(scene: Any, loaded: geoseg.Model, **settings: Any) -> xr.Dataset:
    return geoseg.segment(scene, CLASSES, model=loaded, **{"options": QUICK} | settings)


@pytest.fixture(scope="module")
def labels(array: xr.DataArray, loaded: geoseg.Model) -> xr.DataArray:
    return lazy(array, loaded).labels.compute()


class Windows:
    """Counts the windows that the encoder sees while it is open."""

    def __enter__(self) -> Windows:
        self.count, self.own = 0, geoseg.Segmenter.encode

        def encode(segmenter: Any, images: Any) -> Any:
            self.count += len(images)
            return self.own(segmenter, images)

        geoseg.Segmenter.encode = encode  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: Any) -> None:
        geoseg.Segmenter.encode = self.own  # type: ignore[method-assign]


def counting(array: xr.DataArray, side: int) -> tuple[xr.DataArray, list[Any]]:
    """The array in chunks of dask's, and which of them were loaded."""
    loads: list[Any] = []

    def chunk(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        loads.append(block_info[0]["chunk-location"])
        return block

    data = da.from_array(array.values, chunks=(len(array), side, side))
    data = data.map_blocks(chunk, dtype=array.dtype, meta=np.empty((0, 0, 0), array.dtype))
    loads.clear()
    return array.copy(data=data), loads


def as_dataset(array: xr.DataArray, *names: str, **attrs: Any) -> xr.Dataset:
    """A variable a colour, in the order of the names."""
    planes = {n: array.isel(band=i, drop=True) for i, n in enumerate(COLOURS)}
    for plane in planes.values():
        plane.attrs.pop("_FillValue", None)
    return xr.Dataset({n: planes[n].assign_attrs(attrs) for n in names or COLOURS})


# -- datasets, names of bands -------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, 50])
@pytest.mark.parametrize("names", [COLOURS, ("blue", "green", "red")])
def test_a_variable_a_band_is_a_scene(
    array: xr.DataArray, labels: xr.DataArray, loaded: geoseg.Model, names: Any, chunks: Any
) -> None:
    dataset = as_dataset(array, *names)
    dataset = dataset if chunks is None else dataset.chunk(x=chunks, y=chunks)
    found = lazy(dataset, loaded).labels
    np.testing.assert_array_equal(found, labels)
    assert found.rio.crs == array.rio.crs


@pytest.mark.parametrize("where", ["nodata", "_FillValue", "encoding"])
@pytest.mark.parametrize("fill", [0, 9])
def test_every_variable_has_its_own_fill(array: xr.DataArray, where: str, fill: int) -> None:
    holes = array.copy(deep=True)
    holes[:, :, :40] = fill
    dataset = as_dataset(holes, **({} if where == "encoding" else {where: fill}))
    if where == "encoding":
        for name in COLOURS:
            dataset[name].encoding["_FillValue"] = fill
    scene = ArrayScene.open(dataset)
    valid = scene.read(scene.grid.window).valid
    assert not valid[:, :40].any()
    assert valid[:, 40:].mean() > 0.99


@pytest.mark.parametrize("how", ["common_name", "long_name", "SR_B", "band"])
def test_bands_say_which_colour_they_are(array: xr.DataArray, how: str) -> None:
    turned = array.isel(band=[2, 1, 0])
    if how == "common_name":
        turned = turned.assign_coords(
            band=["B02", "B03", "B04"], common_name=("band", list(COLOURS[::-1]))
        )
    elif how == "long_name":
        turned = turned.assign_attrs(long_name=COLOURS[::-1])
    elif how == "SR_B":
        turned = turned.assign_coords(band=["SR_B2", "SR_B3", "SR_B4"])
    else:
        turned = turned.assign_coords(band=list(COLOURS[::-1]))
    np.testing.assert_array_equal(ArrayScene.open(turned).array, array.values)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> xr.DataArray:
    """Red, green, blue and nir of a file that names them."""
    data = np.concatenate([rgb(), rgb(seed=1)])[:4]
    file = make(tmp_path_factory.mktemp("four") / "s.tif", data, photometric="minisblack",
                alpha="unspecified")  # fmt: skip
    with rasterio.open(file, "r+") as dataset:
        dataset.descriptions = (*COLOURS, "nir")
    opened = rioxarray.open_rasterio(file)
    assert isinstance(opened, xr.DataArray)
    return opened.load()


@pytest.mark.parametrize("bands", [[3, 2, 1, 0], [2, 1, 0], [0, 1, 2], [3, 0, 2, 1]])
@pytest.mark.parametrize("how", ["as read", "computed", "other names"])
def test_bands_that_were_turned_round_keep_their_names(
    four: xr.DataArray, bands: list[int], how: str
) -> None:
    turned = four.isel(band=bands)
    if how == "computed":
        turned = turned * np.uint8(1)
    elif how == "other names":
        turned.attrs["long_name"] = tuple((*COLOURS, "nir")[band] for band in bands)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeosegWarning)
        opened = ArrayScene.open(turned)
    assert opened.names == COLOURS
    np.testing.assert_array_equal(opened.array, four.values[:3])
    if how == "computed" and len(bands) == 4:
        with pytest.warns(GeosegWarning, match="long_name is taken to list the bands in the order"):
            ArrayScene.open(turned)


def test_texts_of_bands_go_before_a_list_of_names(four: xr.DataArray) -> None:
    blue, green, red, _ = (four.isel(band=i, drop=True) for i in (2, 1, 0, 3))
    index = pd.Index(["B02", "B03", "B04"], name="band")
    joined = xr.concat([blue, green, red], index).assign_attrs(long_name=COLOURS)
    np.testing.assert_array_equal(ArrayScene.open(joined).array, four.values[:3])


@pytest.mark.parametrize("kind", ["array", "file"])
@pytest.mark.parametrize(
    "names", [("nir", "red", "green"), ("blue", "?", "red"), ("a", "b", "swir 1")]
)
def test_three_bands_that_are_no_colours_get_a_word(
    tmp_path: Path, names: tuple[str, ...], kind: str
) -> None:
    from geoseg.io.scene import Scene

    stack = xr.DataArray(rgb(), dims=("band", "y", "x"), coords={"band": list(names)})
    file = make(tmp_path / "s.tif", rgb())
    with rasterio.open(file, "r+") as dataset:
        dataset.descriptions = names
    with pytest.warns(GeosegWarning, match=f"say that they are {re.escape(', '.join(names))}"):
        ArrayScene.open(stack) if kind == "array" else Scene.open(file)


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (("nir", "blue", "red", "green"), ("nir", "red", "green"), [0, 2, 3]),
        (("B02", "B03", "B04", "B08"), ("B4", "b03", 1), [2, 1, 0]),
        (("B02", "B03", "B04", "B08"), ("red", "green", "blue"), [2, 1, 0]),
        (("SR_B2", "SR_B3", "SR_B4"), ("B4", "B3", "B2"), [2, 1, 0]),
        (("a", "b", "c"), "b", [1]),
    ],
)
def test_bands_are_taken_by_name(
    tmp_path: Path, names: tuple[str, ...], wanted: Any, chosen: list[int]
) -> None:
    data = np.concatenate([rgb(), rgb(seed=1)])[: len(names)]
    stack = xr.DataArray(data, dims=("band", "y", "x"), coords={"band": list(names)})
    reading = geoseg.Reading(bands=wanted)
    np.testing.assert_array_equal(ArrayScene.open(stack, bands=reading.bands).array, data[chosen])
    file = make(tmp_path / "s.tif", data, photometric="minisblack", alpha="unspecified")
    with rasterio.open(file, "r+") as dataset:
        dataset.descriptions = names
    from geoseg.io.scene import open_scene

    assert open_scene(file, reading).bands == tuple(place + 1 for place in chosen)


def test_an_unknown_name_lists_those_there_are(tmp_path: Path) -> None:
    stack = xr.DataArray(rgb(), dims=("band", "y", "x"), coords={"band": list(COLOURS)})
    with pytest.raises(OptionError, match=r"no band is called 'nir'; its bands are red, green, b"):
        ArrayScene.open(stack, bands=("nir", "red", "green"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_more_than_three_nameless_bands_get_a_word(dtype: Any) -> None:
    data = np.concatenate([rgb(dtype=dtype), rgb(dtype=dtype)])[:4]
    with pytest.warns(GeosegWarning, match="4 bands without names, taking 1,2,3"):
        ArrayScene.open(xr.DataArray(data, dims=("band", "y", "x")))


# -- orientation, units, places -----------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, 50])
@pytest.mark.parametrize("turn", [("y",), ("x",), ("y", "x")])
def test_rows_and_columns_come_back_as_they_came(
    array: xr.DataArray, labels: xr.DataArray, loaded: geoseg.Model, turn: Any, chunks: Any
) -> None:
    order = {dim: slice(None, None, -1) for dim in turn}
    turned = array.isel(order)
    turned = turned if chunks is None else turned.chunk(x=chunks, y=chunks)
    found = lazy(turned, loaded, tile=64)
    np.testing.assert_array_equal(found.labels, labels.isel(order))
    for dim in ("y", "x"):
        np.testing.assert_array_equal(found[dim], turned[dim])
    assert found.rio.transform(recalc=True).almost_equals(found.rio.transform(), 1e-6)
    part = found.labels.isel(y=slice(5, 90), x=slice(40, 141))
    np.testing.assert_array_equal(part, labels.isel(order).isel(y=slice(5, 90), x=slice(40, 141)))


def test_a_map_has_the_names_and_coordinates_of_its_scene(
    array: xr.DataArray, labels: xr.DataArray, loaded: geoseg.Model
) -> None:
    """So that xarray aligns it with the scene, whatever they are called."""
    odd = array.rename(y="lat", x="lon")
    odd = odd.assign_coords(lat=odd.lat / 3, lon=odd.lon / 3)
    found = lazy(odd, loaded).labels
    assert found.dims == ("lat", "lon")
    assert xr.align(found, odd, join="inner")[0].sizes == found.sizes
    np.testing.assert_array_equal(found, labels)
    found.rio.to_raster("/vsimem/odd.tif")


def test_a_picture_whose_coordinates_only_count_is_not_turned(array: xr.DataArray) -> None:
    plain = xr.DataArray(
        array.values, dims=array.dims, coords={"y": np.arange(SIZE[0]), "x": np.arange(SIZE[1])}
    )
    scene = ArrayScene.open(plain)
    np.testing.assert_array_equal(scene.array, array.values)
    assert not scene.grid.with_transform


@pytest.mark.parametrize("kind", ["array", "dataset"])
def test_a_range_is_in_the_units_of_the_attributes(array: xr.DataArray, kind: str) -> None:
    stored = (array.astype("int32") * 40).astype("int16").rio.write_crs(array.rio.crs)
    stored.attrs |= {"scale_factor": 1e-4, "add_offset": -0.1}
    scene = stored if kind == "array" else as_dataset(stored, scale_factor=1e-4, add_offset=-0.1)
    seen = ArrayScene.open(scene, stretch="-0.1:0.92").read(ArrayScene.open(array).grid.window)
    plain = ArrayScene.open(array).read(ArrayScene.open(array).grid.window)
    np.testing.assert_allclose(seen.rgb, plain.rgb, atol=1e-6)


@pytest.mark.parametrize("stretch", ["-0.1:0.92", "5000:9000", "0:90000"])
@pytest.mark.parametrize("chunks", [None, 50])
def test_a_range_beside_the_values_gets_a_word(
    array: xr.DataArray, loaded: geoseg.Model, stretch: str, chunks: Any
) -> None:
    scene = array.astype("uint16") + 200
    scene = scene if chunks is None else scene.chunk(x=chunks, y=chunks)
    with pytest.warns(GeosegWarning, match="--stretch leaves .*: values run from"):
        lazy(scene, loaded, reading={"stretch": stretch}).labels.compute()


@pytest.mark.parametrize("select", [{"x": slice(0, 0)}, {"y": slice(0, 0)}])
@pytest.mark.parametrize("kind", ["array", "dataset", "dask"])
def test_an_empty_selection_is_one_line(
    array: xr.DataArray, loaded: geoseg.Model, select: Any, kind: str
) -> None:
    scene: Any = array.isel(select)
    scene = as_dataset(scene) if kind == "dataset" else scene
    scene = scene.chunk() if kind == "dask" else scene
    with pytest.raises(SceneError, match=r"has no pixels .*selection") as caught:
        lazy(scene, loaded)
    assert "\n" not in str(caught.value)


# -- lazy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stretch", ["auto", "0:2550", "1,99"])
@pytest.mark.parametrize("kind", ["array", "dataset"])
def test_the_call_reads_nothing(
    array: xr.DataArray, loaded: geoseg.Model, stretch: str, kind: str
) -> None:
    scene, loads = counting(array.astype("uint16") * 10, 50)
    given = scene if kind == "array" else as_dataset(scene)
    found = lazy(given, loaded, reading={"stretch": stretch})
    assert loads == []
    whole = array.astype("uint16") * 10
    expected = lazy(whole, loaded, reading={"stretch": stretch}).labels
    np.testing.assert_array_equal(found.labels, expected)
    assert len(loads) > 0


@pytest.mark.parametrize("stretch", ["auto", "1,99", "200:2550"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_call_reads_nothing_of_a_file(
    array: xr.DataArray, loaded: geoseg.Model, stretch: str, dtype: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from geoseg.io.source import RasterSource

    file = tmp_path / "scene.tif"
    (array.astype(dtype) * (1 if dtype == "uint8" else 10)).rio.to_raster(file)
    if dtype == "uint8" and stretch == "200:2550":
        stretch = "20:255"
    looked: list[str] = []
    for name in ("read", "read_decimated", "opacity", "sample"):
        own = getattr(RasterSource, name)

        def read(*given: Any, _own: Any = own, _name: str = name, **more: Any) -> Any:
            looked.append(_name)
            return _own(*given, **more)

        monkeypatch.setattr(RasterSource, name, read)
    reading = {"stretch": stretch}
    found, again = (lazy(file, loaded, reading=reading) for _ in range(2))
    assert looked == []
    assert found.labels.data.name == again.labels.data.name
    told = found.labels.attrs
    assert ("geoseg_limits" in told) == (":" in stretch)
    measured = ":" not in stretch and (dtype, stretch) != ("uint8", "auto")
    assert ("measured" in told["geoseg_stretch"]) == measured
    corner = found.labels[:20, :20].compute()
    whole = found.labels.compute()
    # Of bytes nothing is measured, and places at the border show that there is no fill.
    assert looked.count("read_decimated") == int((dtype, stretch) != ("uint8", "auto"))
    quick = {"polygons": "none", "preview": False}
    run = geoseg.segment_to_files(
        file, CLASSES, tmp_path / "out", model=loaded, options=QUICK, reading=reading,
        products=quick,
    )  # fmt: skip
    with rasterio.open(run.out / "labels.tif") as dataset:
        np.testing.assert_array_equal(whole, dataset.read(1))
    np.testing.assert_array_equal(corner, whole[:20, :20])
    others = (lazy(file, loaded, reading={"stretch": s}) for s in ("3,97", "100:2000"))
    assert len({found.labels.data.name, *(one.labels.data.name for one in others)}) == 3


@pytest.mark.parametrize("kind", ["path", "numpy", "dask"])
@pytest.mark.parametrize("whole", [True, False], ids=["dataset", "labels"])
def test_a_slice_costs_the_windows_it_touches(
    array: xr.DataArray, path: Path, labels: xr.DataArray, loaded: geoseg.Model, kind: str,
    whole: bool,
) -> None:  # fmt: skip
    scene = {"path": path, "numpy": array, "dask": array.chunk(x=50, y=50)}[kind]
    part = lazy(scene, loaded).isel(y=slice(40, 70), x=slice(60, 90))
    found = part if whole else part[["labels"]]
    stride = loaded.defaults.get("stride", 112)
    side = loaded.defaults.get("window", 224)
    touched = [
        sum(
            s < stop and s + side > start
            for s in geoseg.tiling.lattice.axis_starts(n, side, stride)
        )
        for n, (start, stop) in zip(SIZE, ((40, 70), (60, 90)), strict=True)
    ]
    with Windows() as seen:
        computed = found.compute(scheduler="synchronous")
    assert seen.count == touched[0] * touched[1]
    np.testing.assert_array_equal(computed.labels, labels[40:70, 60:90])


def test_small_tiles_share_their_windows(path: Path, labels: xr.DataArray,
                                         loaded: geoseg.Model) -> None:  # fmt: skip
    options = {"templates": "none", "window": 32, "stride": 16}
    segmenter = geoseg.Segmenter(loaded, CLASSES, options)
    lattice = segmenter.plan(SIZE, 2048).windows
    with Windows() as seen:
        found = lazy(path, loaded, options=options, tile=16).labels
        found.compute(scheduler="synchronous")
    assert found.chunks[0][0] == 16
    assert lattice <= seen.count <= 1.5 * lattice


def test_an_array_in_memory_travels_once(array: xr.DataArray, loaded: geoseg.Model) -> None:
    big = xr.concat([xr.concat([array] * 6, "x")] * 6, "y")
    big = xr.DataArray(big.values, dims=array.dims, coords={"y": np.arange(720)[::-1] + 0.5,
                       "x": np.arange(900) + 0.5}).rio.write_crs(array.rio.crs)  # fmt: skip
    sent = len(cloudpickle.dumps(lazy(big, loaded, tile=64)))
    assert sent < 1.5 * big.nbytes


@pytest.mark.parametrize("kind", ["path", "numpy", "dask"])
def test_equal_calls_have_equal_keys_that_can_be_read(
    array: xr.DataArray, path: Path, loaded: geoseg.Model, kind: str
) -> None:
    scene = {"path": path, "numpy": array, "dask": array.chunk(x=50, y=50)}[kind]
    one, same = (lazy(scene, loaded).labels.data for _ in range(2))
    assert one.name == same.name
    assert set(one.dask) == set(same.dask)
    assert one.name.startswith("geoseg-labels-")
    others = [
        geoseg.segment(scene, f"{CLASSES}; car", model=loaded, options=QUICK),
        lazy(scene, loaded, options={"templates": "none", "cls_bias": 0.1}),
        lazy(scene, loaded, reading={"stretch": "1:200"}),
        lazy(array.isel(x=slice(0, 100)), loaded),
    ]
    names = {one.name, *(other.labels.data.name for other in others)}
    assert len(names) == 5


def test_values_that_were_set_stay_when_a_part_is_taken(
    path: Path, labels: xr.DataArray, loaded: geoseg.Model
) -> None:
    data = lazy(path, loaded).labels.data
    copied = copy.deepcopy(data)
    data[:10, :10] = 7
    assert (data[:20, :20][:10, :10].compute() == 7).all()
    np.testing.assert_array_equal(copied[:20, :20], labels[:20, :20])
    sent = pickle.loads(cloudpickle.dumps(copied[5:50]))
    np.testing.assert_array_equal(sent[3:9], labels[8:14])


@pytest.mark.parametrize(
    "index", [(3, slice(None)), (slice(2, 90, 3), 7), (slice(None, None, -1), slice(4, 9)),
              ([4, 2], slice(None)), (-1, -1), (slice(5, 5), slice(None)), (Ellipsis, 3)],
)  # fmt: skip
def test_any_index_gives_what_it_gives_of_the_whole(
    path: Path, labels: xr.DataArray, loaded: geoseg.Model, index: Any
) -> None:
    data = lazy(path, loaded).labels.data
    np.testing.assert_array_equal(data[index].compute(), labels.values[index])


def test_errors_of_tasks_are_geosegs_and_travel(tmp_path: Path, loaded: geoseg.Model) -> None:
    file = write_scene(tmp_path / "cut.tif", 256, 256)
    with rasterio.open(file) as dataset:
        pixels, profile = dataset.read(), dataset.profile
    with rasterio.open(file, "w", **profile | {"blockxsize": 32, "blockysize": 32}) as dataset:
        dataset.write(pixels)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 6 // 10])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = lazy(file, loaded)
    with pytest.raises(SceneError, match="cannot be read") as caught:
        found.labels.compute(scheduler="synchronous")
    assert caught.value.__cause__ is None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# -- stacks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(array: xr.DataArray) -> xr.DataArray:
    """Three dates, of which each is darker than the one before."""
    dates = pd.date_range("2024-05-01", periods=3, freq="MS")
    parts = [(array.astype("uint16") * (40 - 9 * i)) for i in range(3)]
    return xr.concat(parts, pd.Index(dates, name="time"))


@pytest.mark.parametrize("chunks", [None, 50])
@pytest.mark.parametrize("kind", ["array", "dataset"])
def test_a_stack_is_seen_with_one_stretch(
    stack: xr.DataArray, loaded: geoseg.Model, kind: str, chunks: Any
) -> None:
    scene: Any = stack if kind == "array" else as_dataset(stack)
    scene = scene if chunks is None else scene.chunk(x=chunks, y=chunks)
    found = lazy(scene, loaded, probabilities=True)
    assert found.labels.dims == ("time", "y", "x")
    assert found.probabilities.dims == ("time", "class", "y", "x")
    np.testing.assert_array_equal(found.time, stack.time)
    limits = geoseg.measure_stretch(scene)
    for place in range(3):
        one = lazy(stack.isel(time=place), loaded, reading={"stretch": limits})
        np.testing.assert_array_equal(found.labels[place], one.labels)
    alone = lazy(stack.isel(time=2), loaded).labels
    assert (alone != found.labels[2]).any()  # its own stretch is another one
    with Windows() as seen:
        part = found.labels.isel(time=1, y=slice(0, 20), x=slice(0, 20)).compute()
    np.testing.assert_array_equal(part, found.labels[1, :20, :20])
    assert seen.count <= 9


def test_what_lies_along_the_dates_stays(stack: xr.DataArray, loaded: geoseg.Model) -> None:
    clouds = stack.assign_coords(cloud=("time", [3, 1, 2]), odd=("time", [{}, {}, {}]))
    found = lazy(clouds, loaded)
    assert found.labels.sortby("cloud").cloud.values.tolist() == [1, 2, 3]
    assert "odd" not in found.coords
    one = lazy(clouds.isel(time=1), loaded)
    assert one.labels.time == stack.time[1]


def test_the_same_limits_make_a_part_equal_to_the_whole(
    array: xr.DataArray, tmp_path: Path
) -> None:
    scene = array.astype("uint16") * 17
    limits = geoseg.measure_stretch(scene)
    assert len(limits) == 3
    file = tmp_path / "scene.tif"
    scene.rio.to_raster(file)
    np.testing.assert_allclose(geoseg.measure_stretch(file), limits)
    whole = ArrayScene.open(scene, stretch=geoseg.Reading(stretch=limits).stretch)
    part = ArrayScene.open(
        scene.isel(y=slice(20, 60)), stretch=geoseg.Reading(stretch=limits).stretch
    )
    whole_rgb = whole.read(whole.grid.window).rgb
    np.testing.assert_array_equal(part.read(part.grid.window).rgb, whole_rgb[:, 20:60])


# -- results that explain themselves ------------------------------------------------------------


NAMES = ["building", "road", "water", "forest", "bare soil"]


def test_labels_say_what_their_values_are(labels: xr.DataArray, loaded: geoseg.Model) -> None:
    attrs = labels.attrs
    assert attrs["flag_values"].dtype == labels.dtype
    assert attrs["flag_values"].tolist() == [0, 1, 2, 3, 4]
    assert attrs["flag_meanings"].split() == ["building", "road", "water", "forest", "bare_soil"]
    colours = [c.color for c in geoseg.Vocabulary.parse(CLASSES).classes]
    assert attrs["flag_colors"].split() == colours
    assert (attrs["long_name"], attrs["units"]) == ("class", "1")
    assert attrs["geoseg_weights_sha256"] == loaded.weights_sha256
    assert attrs["geoseg_bands"] == "1,2,3"
    assert "forest" in attrs["geoseg_classes"]


@pytest.mark.parametrize("kind", ["isel", "sel", "where", "file", "to_raster", "concat"])
def test_classes_survive_what_leaves_labels(
    labels: xr.DataArray, tmp_path: Path, kind: str
) -> None:
    if kind == "isel":
        kept = labels.isel(x=slice(3, 90))
    elif kind == "sel":
        kept = labels.sel(y=slice(labels.y[5], labels.y[60]))
    elif kind == "where":
        kept = labels.where(labels.x > labels.x.mean())
    elif kind == "file":
        kept = geoseg.open_labels(labels.geoseg.to_cog(tmp_path / "labels.tif"))
    elif kind == "to_raster":
        labels.rio.to_raster(tmp_path / "labels.tif")
        kept = geoseg.open_labels(tmp_path / "labels.tif")
    else:
        kept = xr.concat([labels, labels], "time").isel(time=1)
    assert list(kept.geoseg.classes.name) == NAMES
    assert list(kept.geoseg.classes.color) == labels.attrs["flag_colors"].split()


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "zarr"])
def test_classes_survive_netcdf_and_zarr(labels: xr.DataArray, tmp_path: Path, engine: str) -> None:
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    dataset = labels.to_dataset()
    if engine == "zarr":
        target = tmp_path / "labels.zarr"
        dataset.to_zarr(target)
    else:
        target = tmp_path / "labels.nc"
        dataset.to_netcdf(target, engine=engine)
    kept = geoseg.open_labels(target)
    assert list(kept.geoseg.classes.name) == NAMES
    assert kept.attrs["geoseg_model"] == labels.attrs["geoseg_model"]
    np.testing.assert_array_equal(kept, labels)
    assert kept.rio.crs == labels.rio.crs


@pytest.mark.parametrize("kind", ["mask", "number", "sum", "double"])
def test_what_is_no_label_any_more_has_no_class(labels: xr.DataArray, kind: str) -> None:
    computed = {
        "mask": labels == 1,
        "number": (labels == 1).astype("uint8"),
        "sum": labels + 1,
        "double": labels * 2,
    }[kind]
    names = set(computed.geoseg.classes.name)
    assert names.isdisjoint(NAMES)
    found = geoseg.vectorize(computed)
    assert set(found.class_name).isdisjoint(NAMES)


@pytest.mark.parametrize("target", ["l.tif", "l.nc", "l.zarr"])
@pytest.mark.parametrize("kind", ["mask", "sum", "part", "computed part"])
def test_files_of_what_is_no_label_any_more_have_no_class(
    labels: xr.DataArray, tmp_path: Path, kind: str, target: str
) -> None:
    """What xarray writes has the attributes of labels, also where it holds something else."""
    written = {
        "mask": (labels == 1).astype("uint8"),
        "sum": labels * 2,
        "part": labels.isel(x=slice(10, 100)),
        "computed part": labels.where(labels.x > labels.x.mean(), 255).astype("uint8"),
    }[kind]
    file = tmp_path / target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeosegWarning)
        if target == "l.tif":
            written.rio.to_raster(file)
        elif target == "l.nc":
            written.to_dataset().to_netcdf(file, engine="h5netcdf")
        else:
            written.to_dataset().to_zarr(file)
        opened = geoseg.open_labels(file)
        names = set(opened.geoseg.classes.name)
        lazy_names = set(geoseg.open_labels(file, chunks=64).geoseg.classes.name)
    assert names == lazy_names
    assert names == set(NAMES) if "part" in kind else names.isdisjoint(NAMES)
    np.testing.assert_array_equal(opened, written)
    if target == "l.tif" and "part" not in kind:
        with pytest.warns(GeosegWarning, match="no names"):
            found = geoseg.vectorize(file)
        assert set(found.class_name).isdisjoint(NAMES)
    if kind == "mask":
        named = geoseg.open_labels(file, "background; building; road")
        assert list(named.geoseg.classes.name) == ["background", "building", "road"]
        if target != "l.tif":
            with pytest.warns(GeosegWarning, match=f"{target}: .* no names; --classes names them"):
                _ = geoseg.open_labels(file).geoseg.classes
    if kind == "computed part":
        masked = opened.where(opened != 255)
        assert set(masked.geoseg.classes.name) == set(NAMES)


# -- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_lazy_stack_is_three_runs_of_the_command_line(
    array: xr.DataArray, loaded: geoseg.Model, dtype: str, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from geoseg_cli.main import app

    files = []
    for place, share in enumerate((1.0, 0.8, 0.6)):
        date = (array * share).astype(dtype) * (1 if dtype == "uint8" else 17)
        date.attrs.pop("_FillValue", None)
        files.append(tmp_path / f"date{place}.tif")
        date.rio.write_crs(array.rio.crs).rio.to_raster(files[-1])
    dates = pd.Index(pd.date_range("2022-05-01", periods=3, freq="YS"), name="time")
    opened = [rioxarray.open_rasterio(file, chunks={"x": 70, "y": 50}) for file in files]
    stack = xr.concat(opened, dates)
    found = lazy(stack, loaded).labels
    limits = geoseg.measure_stretch(stack)
    text = geoseg.Reading(stretch=limits).stretch
    said = "auto" if dtype == "uint8" else text
    alone = [one.geoseg.segment(CLASSES, model=loaded, options=QUICK, reading={"stretch": said})
             for one in opened]  # fmt: skip
    assert loaded.spec is not None
    for place, file in enumerate(files):
        out = tmp_path / file.stem
        done = CliRunner().invoke(
            app,
            ["segment", str(file), "--classes", CLASSES, "--out", str(out), "--model", loaded.spec,
             "--templates", "none", "--stretch", said, "--polygons", "none", "--no-preview",
             "--device", "cpu", "--quiet"],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        with rasterio.open(out / "labels.tif") as dataset:
            labels = dataset.read(1)
        np.testing.assert_array_equal(found[place], labels)
        np.testing.assert_array_equal(alone[place].labels, labels)


# -- the accessor -------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [str, rioxarray.open_rasterio], ids=["path", "array"])
def test_a_file_of_the_accessor_is_that_of_a_run(
    path: Path, loaded: geoseg.Model, tmp_path: Path, read: Any
) -> None:
    products = geoseg.Products(polygons="none", preview=False, confidence=False)
    run = geoseg.segment_to_files(
        path, CLASSES, tmp_path / "run", model=loaded, options=QUICK, products=products
    )
    found = lazy(read(path), loaded).labels
    assert_same_raster(found.geoseg.to_cog(tmp_path / "own.tif"), run.out / "labels.tif")
    with rasterio.open(tmp_path / "own.tif") as own, rasterio.open(run.out / "labels.tif") as its:
        assert own.tags() == its.tags()
        assert own.tags(1) == its.tags(1)
        assert own.overviews(1) == its.overviews(1)
        assert own.colormap(1) == its.colormap(1)
    areas = found.geoseg.areas(unit="m2")
    told = {entry["name"]: entry["area_m2"] for entry in run.report["classes"]}
    np.testing.assert_allclose(areas.area_m2, [told[name] for name in areas.class_name], atol=0.01)
    assert areas.share.sum() == pytest.approx(1)


def test_what_was_made_of_an_array_has_no_file(array: xr.DataArray, loaded: geoseg.Model) -> None:
    array.encoding["source"] = "https://store.org/a.tif?sig=abcdefghijklmnop&x=1"
    told = lazy(array, loaded).labels.attrs["geoseg_scene"]
    assert told.startswith("https://store.org/a.tif")
    assert "abcdef" not in told
    assert "geoseg_scene" not in lazy(array + 0, loaded).labels.attrs


@pytest.mark.parametrize("turn", [False, True])
def test_polygons_of_an_array_are_those_of_its_file(
    labels: xr.DataArray, tmp_path: Path, turn: bool
) -> None:
    given = labels.sortby("y") if turn else labels
    found = given.geoseg.polygons(min_area_m2=20)
    geoseg.vectorize(
        labels.geoseg.to_cog(tmp_path / "l.tif"), tmp_path / "p.gpkg",
        options={"min_area_m2": 20},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filed = gpd.read_file(tmp_path / "p.gpkg")
    assert found.crs == filed.crs
    pd.testing.assert_frame_equal(found.drop(columns=["geometry", "color"]),
                                  filed.drop(columns="geometry"))  # fmt: skip
    assert found.geometry.geom_equals_exact(filed.geometry, 1e-6).all()
    colours = dict(zip(NAMES, labels.attrs["flag_colors"].split(), strict=True))
    assert (found.color == found.class_name.map(colours)).all()


def test_plots_show_class_colours_names_and_nothing_for_nodata(labels: xr.DataArray) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    holes = labels.copy(deep=True)
    holes[:10] = 255
    ax = holes.geoseg.plot()
    image = ax.images[0].get_array()
    assert (np.asarray(image)[:10, :, 3] == 0).all()
    first = holes.geoseg.classes.iloc[int(holes[50, 50])]
    assert "#{:02x}{:02x}{:02x}".format(*np.asarray(image)[50, 50, :3]) == first.color
    assert [text.get_text() for text in ax.get_legend().get_texts()] == NAMES
    assert ax.get_aspect() == pytest.approx(1.0, abs=0.01)
    assert any(text.get_text().endswith(" m") for text in ax.texts)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("chunks", [None, 50])
def test_colours_of_labels_for_other_programs(labels: xr.DataArray, chunks: Any) -> None:
    given = labels if chunks is None else labels.chunk(x=chunks, y=chunks)
    colours = given.geoseg.rgba()
    assert colours.dims == ("y", "x", "band")
    legend = labels.geoseg.legend_dict
    assert list(legend) == NAMES
    value = int(labels[7, 9])
    assert "#{:02x}{:02x}{:02x}".format(*colours[7, 9, :3].values) == legend[NAMES[value]]
    assert colours.rio.crs == labels.rio.crs


def test_a_map_that_can_be_moved(labels: xr.DataArray, array: xr.DataArray) -> None:
    pytest.importorskip("folium")
    polygons = labels.geoseg.polygons()
    shown = labels.geoseg.explore(array, polygons=polygons, tiles=None)
    page = shown.get_root().render()
    for name in NAMES:
        assert name in page
    assert page.count("data:image/png;base64") == 2
    switch = page[page.index("L.control.layers") - 1000 :]
    for layer in ("scene", "labels", "polygons"):
        assert f'"{layer}"' in switch
    assert "setOpacity" in page
    (features,) = (one for one in shown._children.values() if hasattr(one, "data"))
    drawn = [feature["properties"] for feature in features.data["features"]]
    assert [one["class_name"] for one in drawn] == list(polygons.class_name)
    assert features.style_function(features.data["features"][0])["color"] == polygons.color[0]
    # Data of the map's own alone: libraries come from their servers, pixels from nowhere.
    addresses = set(re.findall(r"https?://([^/\"\']+)", page))
    assert not [one for one in addresses if "tile" in one]


def test_the_accessor_maps_a_scene_and_compares(
    array: xr.DataArray, labels: xr.DataArray, loaded: geoseg.Model
) -> None:
    found = array.geoseg.segment(CLASSES, model=loaded, options=QUICK)
    np.testing.assert_array_equal(found.labels, labels)
    again = as_dataset(array).geoseg.segment(CLASSES, model=loaded, options=QUICK)
    assert again.labels.geoseg.compare(labels).scores.accuracy == 1


def test_a_stack_is_measured_date_by_date(stack: xr.DataArray, loaded: geoseg.Model) -> None:
    areas = lazy(stack, loaded).labels.geoseg.areas(unit="km2")
    assert list(areas.columns[:3]) == ["time", "class_id", "class_name"]
    assert (areas.groupby("time").pixels.sum() == SIZE[0] * SIZE[1]).all()


# -- objects wherever paths go ------------------------------------------------------------------


def outline(array: xr.DataArray) -> shapely.Polygon:
    left, bottom, right, top = array.rio.bounds()
    middle = shapely.Point((left + right) / 2, (bottom + top) / 2)
    return middle.buffer((top - bottom) / 3)


@pytest.mark.parametrize("kind", ["shape", "table", "degrees", "series", "bounds", "array"])
@pytest.mark.parametrize("source", ["path", "array"])
def test_an_area_may_be_an_object(
    array: xr.DataArray, path: Path, loaded: geoseg.Model, kind: str, source: str, tmp_path: Path
) -> None:
    shape = outline(array)
    table = gpd.GeoDataFrame(geometry=[shape], crs=array.rio.crs)
    aoi = {
        "shape": shape,
        "table": table,
        "degrees": table.to_crs(4326),
        "series": table.geometry,
        "bounds": shape.bounds,
        "array": np.array(shape.bounds),
    }[kind]
    reading = geoseg.Reading(aoi=aoi)
    found = lazy(path if source == "path" else array, loaded, reading=reading).labels
    table.to_file(tmp_path / "aoi.gpkg")
    expected = lazy(path, loaded, reading={"aoi": str(tmp_path / "aoi.gpkg")}).labels
    if kind in ("bounds", "array"):
        assert found.shape == expected.shape
        assert (found != 255).all()
    else:
        assert float((found.values == expected.values).mean()) > 0.999


def test_what_is_no_area_is_one_line() -> None:
    with pytest.raises(OptionError, match=r"aoi is a list; give minx, miny, maxx, maxy, a shap"):
        geoseg.Reading(aoi=[1, 2, 3])


@pytest.mark.parametrize("kind", ["array", "dataset", "dask", "units"])
def test_arrays_are_mapped_to_files(
    array: xr.DataArray, path: Path, loaded: geoseg.Model, kind: str, tmp_path: Path
) -> None:
    quick = {"polygons": "none", "preview": False}
    settings: Any = {"model": loaded, "options": QUICK, "products": quick}
    scene: Any = {"dataset": as_dataset(array, "blue", "green", "red"),
                  "dask": array.chunk(x=50, y=50)}.get(kind, array)  # fmt: skip
    if kind == "units":
        scene = (array.astype("uint16") * 10).rio.write_crs(array.rio.crs)
        scene.attrs |= {"scale_factor": 0.1, "add_offset": 0.0}
        settings["reading"] = {"stretch": (0, 255)}
    geoseg.segment_to_files(scene, CLASSES, tmp_path / "array", **settings)
    settings.pop("reading", None)
    geoseg.segment_to_files(path, CLASSES, tmp_path / "path", **settings)
    with (
        rasterio.open(tmp_path / "array" / "labels.tif") as one,
        rasterio.open(tmp_path / "path" / "labels.tif") as other,
    ):
        same = one.read() == other.read()
        assert (one.transform, one.crs) == (other.transform, other.crs)
    assert same.mean() > (0.99 if kind == "units" else 1 - 1e-9)


def test_labels_zones_and_truth_may_be_objects(labels: xr.DataArray, tmp_path: Path) -> None:
    file = labels.geoseg.to_cog(tmp_path / "labels.tif")
    zones = gpd.GeoDataFrame({"zone": ["a"]}, geometry=[outline(labels)], crs=labels.rio.crs)
    zones.to_file(tmp_path / "zones.gpkg")
    by_path = geoseg.stats(file, tmp_path / "zones.gpkg", column="zone")
    by_object = geoseg.stats(labels, zones, column="zone")
    pd.testing.assert_frame_equal(by_path, by_object)
    assert geoseg.evaluate(labels, file).scores.accuracy == 1
    truth = geoseg.vectorize(labels)[["class_name", "geometry"]]
    assert geoseg.evaluate(file, truth).scores.accuracy > 0.999
    inside = geoseg.evaluate(labels, labels, aoi=outline(labels))
    assert 0 < inside.scores.pixels < labels.size


def test_tuning_takes_one_scene_or_an_array(
    array: xr.DataArray, path: Path, labels: xr.DataArray, loaded: geoseg.Model
) -> None:
    settings: Any = {"model": loaded, "options": QUICK, "per_class": 20}
    by_path = geoseg.tune(str(path), labels, CLASSES, **settings)
    by_array = geoseg.tune(array, labels, CLASSES, **settings)
    assert by_path.pixels == by_array.pixels > 0


def test_a_preview_comes_back_or_is_written(
    array: xr.DataArray, path: Path, labels: xr.DataArray, tmp_path: Path
) -> None:
    from geoseg.preview import preview_files

    preview_files(path, labels.geoseg.to_cog(tmp_path / "l.tif"), tmp_path / "a.png")
    picture = geoseg.preview(array, labels)
    assert picture.size[0] > 400
    assert geoseg.preview(path, labels, tmp_path / "b.png") == tmp_path / "b.png"


def test_change_says_what_became_of_what(labels: xr.DataArray) -> None:
    after = labels.copy(deep=True)
    after[:30, :40] = 2
    change = geoseg.change(labels, after, unit="m2")
    moved = change.table[change.table["from"] != change.table["to"]]
    assert set(moved["to"]) == {"water"}
    assert moved.pixels.sum() == int((labels != after).sum())
    assert change.changed == pytest.approx(float((labels != after).mean()))
    assert change.matrix().to_numpy().sum() == pytest.approx(change.table.area_m2.sum())
    polygons = change.polygons()
    assert set(polygons["to"]) == {"water"}
    assert polygons.area_m2.sum() == pytest.approx(moved.area_m2.sum(), rel=1e-3)
    assert "water" in change._repr_html_()
    same = geoseg.change(labels, labels)
    assert same.changed == 0
    assert same.polygons().empty


# -- vocabularies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        [("water", "#0000ff"), ("field", "#e0c040")],
        [("water", (0, 0, 255)), ("field", (224, 192, 64))],
        [["water", ["lake"], "#00f"], ["field", "#E0C040"]],
        {"water": "#0000ff", "field": ["#e0c040", "crop"]},
        {"water": {"color": "#0000ff"}, "field": {"prompts": "crop", "color": "#e0c040"}},
        "water, #0000ff; field, #e0c040ff",
        [{"name": "water", "color": "#0000ff"}, {"name": "field", "colour": "#e0c040"}],
        pd.DataFrame({"class": ["water", "field"], "color": ["#0000ff", "#e0c040"]}),
        pd.DataFrame({"name": ["water", "field"], "prompts": [["lake"], None],
                      "red": [0, 224], "green": [0, 192], "blue": [255, 64],
                      "color": ["#0000ff", "#e0c040"]}),
    ],
)  # fmt: skip
def test_a_colour_is_never_asked_for(source: Any) -> None:
    found = geoseg.Vocabulary.parse(source)
    assert found.names in (("water", "field"), ("lake", "field"))
    assert [entry.color for entry in found.classes] == ["#0000ff", "#e0c040"]
    assert not [query for query in found.queries if "#" in query]


def test_two_colours_of_a_class_are_refused() -> None:
    with pytest.raises(VocabularyError, match="two colours, #0000ff and #00ff00"):
        geoseg.Vocabulary.parse([("water", "#0000ff", "#00ff00"), "field"])


def test_a_vocabulary_is_a_mapping(tmp_path: Path) -> None:
    v = geoseg.Vocabulary.parse(CLASSES)
    assert len(v) == 5
    assert "Water" in v
    assert "lava" not in v
    assert list(v) == NAMES
    assert v["forest"].prompts == ("forest", "trees")
    assert dict(v)["road"] is v[1]
    with pytest.raises(VocabularyError, match="no class 'lava'; there are building, road"):
        v["lava"]
    more = v.with_class("car", ["vehicle"], "#112233")
    assert (more.names[-1], more["car"].prompts, more["car"].color) == (
        "car", ("vehicle",), "#112233")  # fmt: skip
    assert more.without("car") == v
    assert v.with_prompts("water", "lake", "river")["water"].prompts == ("lake", "river")
    assert v.with_color("water", "#0000FF")["water"].color == "#0000ff"
    file = more.save(tmp_path / "classes.toml")
    assert geoseg.Vocabulary.parse(file) == more
    assert len(repr(v)) < 300
    for word in (v["forest"].color, "trees", "bare soil"):
        assert word in v._repr_html_()
    assert "<script>" not in v.with_class("<script>")._repr_html_()


# -- errors, options and warnings ---------------------------------------------------------------


@pytest.mark.usefixtures("in_python")
def test_options_are_called_what_python_calls_them(path: Path, loaded: geoseg.Model,
                                                   tmp_path: Path) -> None:  # fmt: skip
    (tmp_path / "labels.tif").touch()
    with pytest.raises(GeosegError, match="overwrite=True") as caught:
        geoseg.segment_to_files(path, CLASSES, tmp_path, model=loaded)
    assert "--" not in str(caught.value)
    with errors.on_command_line():
        assert "--overwrite" in str(caught.value)


@pytest.mark.parametrize("name", ["options", "reading", "products"])
def test_options_may_be_dicts(path: Path, loaded: geoseg.Model, name: str,
                              tmp_path: Path) -> None:  # fmt: skip
    given: Any = {"options": {"treshold": 0.3}, "reading": {"band": 1}, "products": {"polygon": 1}}
    with pytest.raises(OptionError, match=r"has no option \w+; did you mean"):
        geoseg.segment_to_files(path, CLASSES, tmp_path, model=loaded, **{name: given[name]})
    with pytest.raises(OptionError, match=rf"{name} is a int; give geoseg\."):
        geoseg.segment_to_files(path, CLASSES, tmp_path, model=loaded, **{name: 3})


def test_dicts_are_what_their_options_are(path: Path, loaded: geoseg.Model) -> None:
    one = lazy(path, loaded, options={"templates": "none", "threshold": 0.3})
    other = lazy(path, loaded, options=geoseg.Options(templates="none", threshold=0.3))
    assert one.labels.data.name == other.labels.data.name


def test_an_error_in_a_cell_is_some_lines(loaded: geoseg.Model) -> None:
    try:
        lazy("nosuch.tif", loaded)
    except GeosegError as error:
        shown = error._render_traceback_()
    assert len("\n".join(shown).splitlines()) < 12
    assert "nosuch.tif" in shown[-1]
    assert "geoseg.segment(" in "\n".join(shown)


@pytest.mark.parametrize("what", ["scene", "classes", "labels", "truth", "zones", "aoi"])
def test_a_missing_file_is_a_file_not_found(
    what: str, path: Path, labels: xr.DataArray, loaded: geoseg.Model
) -> None:
    calls: dict[str, Any] = {
        "scene": lambda: lazy("nosuch.tif", loaded),
        "classes": lambda: geoseg.Vocabulary.parse("nosuch.toml"),
        "labels": lambda: geoseg.vectorize("nosuch.tif"),
        "truth": lambda: geoseg.evaluate(labels, "nosuch.tif"),
        "zones": lambda: geoseg.stats(labels, "nosuch.gpkg"),
        "aoi": lambda: lazy(path, loaded, reading={"aoi": "nosuch.gpkg"}),
    }
    with pytest.raises(FileNotFoundError, match="nosuch") as caught:
        calls[what]()
    assert isinstance(caught.value, GeosegError)
    plain = type(caught.value)(*caught.value.args)
    assert str(pickle.loads(pickle.dumps(plain))) == str(caught.value)


@pytest.mark.parametrize("kind", ["path", "array"])
def test_a_warning_names_the_line_that_caused_it(
    kind: str, array: xr.DataArray, loaded: geoseg.Model, tmp_path: Path
) -> None:
    plain = xr.DataArray(array.values, dims=array.dims)
    plain.rio.to_raster(tmp_path / "plain.tif")
    scene = plain if kind == "array" else tmp_path / "plain.tif"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = traceback.extract_stack(limit=1)[0].lineno + 1
        geoseg.segment(scene, CLASSES, model=loaded, options=QUICK)
    (own,) = (w for w in caught if issubclass(w.category, GeosegWarning))
    assert (own.filename, own.lineno) == (__file__, line)


def test_every_public_name_is_found_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, geoseg; names = dir(geoseg); print(len(sys.modules));"
        "assert {'torch', 'xarray', 'rasterio'}.isdisjoint(sys.modules);"
        "assert callable(geoseg.preview) and set(names) >= {'change', 'tune', 'stats'};"
        "import geoseg.preview; geoseg.preview.render_preview; assert callable(geoseg.preview)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400


def test_from_a_path_to_polygons_in_five_lines(path: Path, loaded: geoseg.Model) -> None:
    found = geoseg.segment(path, CLASSES, model=loaded, options={"templates": "none"})
    polygons = found.geoseg.polygons(min_area_m2=10)
    assert polygons.crs == found.rio.crs
    assert {"class_name", "color", "confidence", "area_m2"} <= set(polygons.columns)
    dask.compute(found.labels)


# -- features, and objects that show themselves -------------------------------------------------


@pytest.mark.parametrize("upsample", [False, True])
def test_features_of_a_single_window_are_its_patches(
    loaded: geoseg.Model, tmp_path: Path, upsample: bool
) -> None:
    import torch

    patch = loaded.patch_size
    file = write_scene(tmp_path / "s.tif", 4 * patch, 6 * patch)
    options = {"upsampler": "none", "window": 6 * patch, "templates": "none"}
    found = geoseg.features(file, model=loaded, options=options, upsample=upsample)
    side = 1 if upsample else patch
    assert found.shape == (loaded.embedding_size, 4 * patch // side, 6 * patch // side)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, atol=1e-5)
    assert found.rio.crs.to_epsg() is not None
    if not upsample:
        segmenter = geoseg.Segmenter(loaded, "a; b", options)
        with rasterio.open(file) as dataset:
            image = torch.from_numpy(dataset.read([1, 2, 3]).astype(np.float32) / 255)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.mean, loaded.std))
        tokens = segmenter.encode(((image - mean) / std)[None]).patches[0]
        unit = torch.nn.functional.normalize(tokens, dim=-1).detach().numpy()
        np.testing.assert_allclose(found.values.reshape(len(found), -1).T, unit, atol=1e-4)


def test_similarity_to_words_a_place_and_an_area(
    array: xr.DataArray, path: Path, loaded: geoseg.Model
) -> None:
    found = geoseg.features(path, model=loaded)
    x, y = float(found.x[3]), float(found.y[2])
    like = geoseg.similarity(found, (x, y), model=loaded)
    assert float(like[2, 3]) == pytest.approx(1, abs=1e-5)
    assert float(like.max()) <= 1 + 1e-5
    words = geoseg.similarity(array, "water", model=loaded, options=QUICK)
    assert words.shape == like.shape
    assert -1 <= float(words.min()) <= float(words.max()) <= 1
    area = geoseg.similarity(found, outline(array), model=loaded)
    assert area.dims == ("y", "x")
    with pytest.raises(OptionError, match="the place lies where the scene has no data"):
        geoseg.similarity(found, (x + 1e6, y), model=loaded)


def test_text_is_encoded_from_strings(loaded: geoseg.Model) -> None:
    found = loaded.encode_text(["water", "road"])
    assert found.shape == (2, loaded.embedding_size)
    np.testing.assert_allclose(found, loaded.encode_text(loaded.tokenize(["water", "road"])))
    np.testing.assert_allclose(found[:1], loaded.encode_text("water"), atol=1e-5)


def test_objects_show_themselves(
    path: Path, labels: xr.DataArray, loaded: geoseg.Model, tmp_path: Path
) -> None:
    quick = {"polygons": "none", "preview": False}
    run = geoseg.segment_to_files(
        path, CLASSES, tmp_path / "run", model=loaded, options=QUICK, products=quick,
        progress=True,
    )  # fmt: skip
    evaluation = geoseg.evaluate(labels, labels, progress=True)
    tuning = geoseg.tune(path, labels, CLASSES, model=loaded, options=QUICK, per_class=20)
    segmenter = geoseg.Segmenter(loaded, CLASSES, QUICK)
    shown = [loaded, run, evaluation, tuning, segmenter, geoseg.change(labels, labels)]
    for one in shown:
        assert len(repr(one)) < 300, repr(one)
        assert "<" in one._repr_html_()
    table = evaluation.to_dataframe()
    assert list(table.name) == NAMES
    assert {"iou", "f1", "precision", "recall", "support"} <= set(table.columns)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    ax = evaluation.plot_confusion()
    assert [text.get_text() for text in ax.get_xticklabels()] == NAMES
    matplotlib.pyplot.close("all")


def test_a_client_that_is_there_is_used(
    path: Path, loaded: geoseg.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    from geoseg.pipeline import scene

    class Client:
        status = "running"

    seen: list[Any] = []

    def run_tiles(job: Any, todo: Any, *, client: Any, **_: Any) -> Any:
        seen.append(client)
        yield from ()

    monkeypatch.setattr(distributed, "default_client", Client)
    monkeypatch.setattr(scene, "run_tiles", run_tiles)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, given in enumerate((None, False)):
            geoseg.segment_to_files(
                path, CLASSES, tmp_path / str(place), model=loaded, options=QUICK, client=given,
                products={"polygons": "none", "preview": False},
            )  # fmt: skip
    assert [type(client) for client in seen] == [Client, type(None)]


def test_progress_is_counted_in_windows(
    path: Path, loaded: geoseg.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a tile is at work: here there is but one."""
    from geoseg.run import tiles

    monkeypatch.setattr(tiles, "_SAID_EVERY_S", 1e-4)
    told: list[Any] = []
    options = {"templates": "none", "window": 32, "stride": 16, "batch_size": 1}
    run = geoseg.segment_to_files(
        path, CLASSES, tmp_path / "out", model=loaded, options=options, progress=told.append,
        products={"polygons": "none", "preview": False},
    )  # fmt: skip
    done = [state.windows_done for state in told if state.stage == "segment"]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, run.report["windows"])
    assert len(set(done)) > 3
    counts: list[tuple[int, int]] = []
    geoseg.features(path, model=loaded, options=options, progress=lambda *one: counts.append(one))
    assert counts[-1] == (run.report["windows_of_lattice"],) * 2


@pytest.mark.parametrize("call", ["files", "batch", "features", "evaluate", "vectorize"])
def test_a_bar_says_what_it_counts(
    call: str, path: Path, labels: xr.DataArray, loaded: geoseg.Model, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import tqdm.auto

    bars: list[Any] = []

    class Bar(tqdm.std.tqdm):  # type: ignore[type-arg]
        def close(self) -> None:
            if self not in bars:
                bars.append(self)
            super().close()

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    settings: Any = {"model": loaded, "options": QUICK, "progress": True}
    quick = {"polygons": "none", "preview": False}
    if call == "files":
        geoseg.segment_to_files(path, CLASSES, tmp_path / "out", products=quick, **settings)
    elif call == "batch":
        other = write_scene(tmp_path / "other.tif", 40, 50)
        products = geoseg.Products(**quick)
        geoseg.pipeline.segment_many(
            [path, other], CLASSES, tmp_path / "out", products=products, **settings
        )
    elif call == "features":
        geoseg.features(path, **settings)
    elif call == "evaluate":
        geoseg.evaluate(labels, labels, progress=True)
    else:
        geoseg.vectorize(labels, progress=True)
    units = {"files": {"window"}, "batch": {"window", "scene"}, "features": {"window"},
             "evaluate": {"%"}, "vectorize": {"row"}}  # fmt: skip
    assert {bar.unit for bar in bars} == units[call]
    assert all(bar.n == bar.total > 0 for bar in bars)


@pytest.mark.parametrize("name", [name for name in geoseg.__all__ if name != "__version__"])
def test_every_public_name_says_what_it_takes_and_gives(name: str) -> None:
    """What ``?`` shows: parameters with shapes and units, what comes back, what goes wrong."""
    import inspect

    thing = getattr(geoseg, name)
    doc = inspect.getdoc(thing) or ""
    sections = set(re.findall(r"^(\w+)\n-{3,}$", doc, flags=re.M))
    assert len(doc.splitlines()[0]) > 10
    if inspect.isclass(thing):
        assert sections & {"Parameters", "Attributes"}
        for member, value in vars(thing).items():
            if callable(value) and not member.startswith("_"):
                assert inspect.getdoc(value), member
    else:
        assert {"Parameters", "Returns", "Raises"} <= sections
    body = doc.partition("\n----------\n")[2]
    for parameter in inspect.signature(thing).parameters.values():
        taken = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if taken and name != "Model":
            assert re.search(rf"^[\w, ]*\b{parameter.name}\b[\w, ]*( : .*)?$", body, re.M), (
                parameter
            )
    assert not re.search(r"(?<!-)--[a-z]", doc)


# -- odd labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["row", "column", "pixel", "across", "band", "renamed"])
def test_labels_of_any_shape_are_measured(labels: xr.DataArray, tmp_path: Path, shape: str) -> None:
    given: Any = {
        "row": labels.isel(y=[3]),
        "column": labels.isel(x=[3]),
        "pixel": labels.isel(y=[3], x=[4]),
        "across": labels.transpose("x", "y"),
        "band": labels.expand_dims("band"),
        "renamed": labels.to_dataset().rename(labels="cover"),
    }[shape]
    one = given["cover"] if shape == "renamed" else given
    assert given.geoseg.areas().pixels.sum() == one.size
    assert given.geoseg.rgba().dims == ("y", "x", "band")
    assert given.geoseg.polygons().area_m2.sum() == pytest.approx(0.25 * one.size, rel=0.01)
    with rasterio.open(given.geoseg.to_cog(tmp_path / "l.tif")) as dataset:
        assert dataset.count * dataset.width * dataset.height == one.size
    pytest.importorskip("matplotlib").use("agg")
    assert given.geoseg.plot().images


def test_what_is_no_label_raster_is_one_line(labels: xr.DataArray, tmp_path: Path) -> None:
    fractions = labels.astype(float) / 3
    for call in (fractions.geoseg.areas, fractions.geoseg.plot):
        with pytest.raises(SceneError, match="holds fractions; labels are whole numbers"):
            call()
    for wrong in (labels.astype("int32") - 2, labels.astype("int32") * 70_000):
        with pytest.raises(SceneError, match="label values run from"):
            wrong.geoseg.to_cog(tmp_path / "l.tif")
    with pytest.raises(SceneError, match="the array: label values run from") as caught:
        geoseg.vectorize(labels.astype("int32") - 2)
    assert "/" not in str(caught.value)
    with pytest.raises(SceneError, match="holds <U"):
        labels.astype(str).geoseg.areas()
    with pytest.raises(SceneError, match="labels lie in 0 to 65534"):
        geoseg.vectorize(labels.astype("int64") + 2**33)
    for part in (labels.isel(y=3), labels.isel(y=3, x=4)):
        with pytest.raises(SceneError, match=r"give one image \(y, x\)"):
            part.geoseg.plot()


@pytest.mark.parametrize("dtype", ["float16", ">u2", ">f4", "int64"])
def test_types_that_no_file_has_are_mapped_to_files(
    array: xr.DataArray, loaded: geoseg.Model, dtype: str, tmp_path: Path
) -> None:
    run = geoseg.segment_to_files(
        array.astype(dtype), CLASSES, tmp_path / "out", model=loaded, options=QUICK,
        products={"polygons": "none", "preview": False},
    )  # fmt: skip
    found = lazy(array.astype(dtype), loaded).labels
    with rasterio.open(run.out / "labels.tif") as dataset:
        assert (dataset.read(1) == found.values).mean() > 0.999


def test_what_cannot_be_given_is_one_line(
    array: xr.DataArray, labels: xr.DataArray, loaded: geoseg.Model
) -> None:
    """None, arrays of numpy's, options that would be passed over: an error of geoseg's."""
    point = shapely.Point(0, 0)
    polygons = labels.geoseg.polygons()
    found = geoseg.features(array, model=loaded)
    calls: dict[str, Any] = {
        "give a path": lambda: geoseg.vectorize(None),
        "this is None": lambda: geoseg.evaluate(labels, None),
        "labels are a ndarray": lambda: geoseg.change(labels, labels.values),
        "not ndarray": lambda: geoseg.preview(array.values, labels),
        "another gsd": lambda: geoseg.features(array, model=loaded, reading={"gsd": 3}),
        "leave aoi out": lambda: geoseg.features(
            array, model=loaded, reading={"aoi": (0, 0, 1, 1)}
        ),
        "similarity to nothing": lambda: geoseg.similarity(found, " ", model=loaded),
        "the place is empty": lambda: geoseg.similarity(found, shapely.Polygon(), model=loaded),
        "aoi is a Point": lambda: geoseg.Reading(aoi=point),
        "tile is 'big'": lambda: lazy(array, loaded, tile="big"),
        "with a CRS": lambda: labels.geoseg.explore(polygons="p.gpkg"),
        "opacity is 5": lambda: labels.geoseg.explore(polygons=polygons, opacity=5),
        "model is a int": lambda: geoseg.load_model(3),  # type: ignore[arg-type]
        "no texts": lambda: loaded.encode_text([]),
        "no pixel in common": lambda: geoseg.change(labels, labels.assign_coords(x=labels.x + 1e6)),
    }
    for message, call in calls.items():
        with pytest.raises(GeosegError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    table = gpd.GeoDataFrame(geometry=[outline(array)], crs=array.rio.crs)
    by_table = geoseg.similarity(found, table.to_crs(4326), model=loaded)
    by_shape = geoseg.similarity(found, outline(array), model=loaded)
    np.testing.assert_allclose(by_table, by_shape, atol=1e-5)


def test_messages_call_objects_what_they_are(
    array: xr.DataArray, loaded: geoseg.Model, tmp_path: Path
) -> None:
    """And not by the files that stand for them for a while."""
    plain = array.drop_vars("spatial_ref")
    with pytest.warns(GeosegWarning, match="the array: has no CRS"):
        run = geoseg.segment_to_files(
            plain, CLASSES, tmp_path / "out", model=loaded, options=QUICK,
            products={"polygons": "none", "preview": False},
        )  # fmt: skip
    assert not [line for line in run.report["warnings"] if "/" in line]
