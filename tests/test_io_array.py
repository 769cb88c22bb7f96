"""Arrays as scenes: the same pixels as from a file, and never changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import rioxarray
import xarray
from affine import Affine
from rasterio.crs import CRS
from rasters import make, rgb

from geoseg.errors import OptionError, SceneError
from geoseg.io.array import ArrayScene
from geoseg.io.scene import Scene, SceneLike
from geoseg.types import Window

WINDOW = Window(3, 4, 20, 30)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("lazy", [False, True])
def test_an_array_reads_like_its_file(tmp_path: Path, dtype: type, lazy: bool) -> None:
    data = rgb(dtype=dtype)
    data[:, :10, :10] = 0
    path = make(tmp_path / "s.tif", data, nodata=0)
    chunks = {"x": 16, "y": 16} if lazy else None
    array = rioxarray.open_rasterio(path, chunks=chunks)
    assert isinstance(array, xarray.DataArray)
    from_file: SceneLike = Scene.open(path)
    from_array: SceneLike = ArrayScene.open(array)
    assert from_array.grid == from_file.grid
    a, b = from_file.read(WINDOW), from_array.read(WINDOW)
    np.testing.assert_array_equal(a.valid, b.valid)
    np.testing.assert_array_equal(a.rgb, b.rgb)
    assert from_array.is_empty(Window(0, 0, 9, 9))
    assert not from_array.is_empty(WINDOW)


@pytest.mark.parametrize(
    "dims", [("band", "y", "x"), ("y", "x", "band"), ("lat", "lon", "channel"), ("x", "y", "b")]
)
def test_any_order_of_dimensions(dims: tuple[str, ...]) -> None:
    data = rgb()
    axes = {"y": 1, "lat": 1, "x": 2, "lon": 2}
    array = xarray.DataArray(data.transpose([axes.get(d, 0) for d in dims]), dims=dims)
    scene = ArrayScene.open(array)
    assert scene.shape == (40, 50)
    block = scene.read(WINDOW)
    np.testing.assert_array_equal(block.rgb, data[:, 3:23, 4:34] / np.float32(255))
    assert scene.grid.crs is None
    assert scene.grid.transform == Affine.identity()


def test_two_dimensions_are_grey() -> None:
    scene = ArrayScene.open(xarray.DataArray(rgb()[0], dims=("y", "x")))
    block = scene.read(scene.grid.window)
    np.testing.assert_array_equal(block.rgb, np.repeat(rgb()[:1], 3, axis=0) / np.float32(255))


def test_the_input_is_never_changed_and_pixels_are_copies() -> None:
    data = rgb(dtype=np.float32) / 5000
    data[0, 0, 0] = np.nan
    before = data.copy()
    scene = ArrayScene.open(xarray.DataArray(data, dims=("band", "y", "x")), stretch="none")
    block = scene.read(scene.grid.window)
    assert not block.valid[0, 0]
    block.rgb[:] = 7
    np.testing.assert_array_equal(data, before)


def test_a_dask_array_stays_lazy() -> None:
    computed: list[tuple[int, ...]] = []

    def chunk(block_info: dict | None = None) -> np.ndarray:  # type: ignore[type-arg]
        where = block_info[None]["array-location"] if block_info else [(0, 3), (0, 10), (0, 10)]
        computed.append(tuple(start for start, _ in where))
        return np.full([stop - start for start, stop in where], 9, np.uint8)

    lazy = dask.array.map_blocks(
        chunk,
        chunks=((3,), (10,) * 10, (10,) * 10),
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), np.uint8),
    )
    scene = ArrayScene.open(xarray.DataArray(lazy, dims=("band", "y", "x")))
    computed.clear()
    scene.read(Window(12, 25, 3, 10))
    assert sorted(computed) == [(0, 10, 20), (0, 10, 30)]


def test_a_slice_is_placed_where_it_lies(tmp_path: Path) -> None:
    whole = rioxarray.open_rasterio(make(tmp_path / "s.tif", rgb()))
    assert isinstance(whole, xarray.DataArray)
    part = ArrayScene.open(whole[:, 10:, 20:])
    assert part.grid.to_ground(0, 0) == pytest.approx((500020, 4999990))
    assert part.grid.crs == CRS.from_epsg(32631)


def test_bands_can_be_chosen() -> None:
    array = xarray.DataArray(np.concatenate([rgb(), rgb(seed=1)]), dims=("band", "y", "x"))
    block = ArrayScene.open(array, bands=[6, 5, 4]).read(WINDOW)
    np.testing.assert_array_equal(block.rgb, rgb(seed=1)[::-1, 3:23, 4:34] / np.float32(255))
    with pytest.raises(SceneError, match="bands 1 to 6"):
        ArrayScene.open(array, bands=[7])
    with pytest.raises(OptionError, match="three"):
        ArrayScene.open(array, bands=[1, 2])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (xarray.DataArray(np.zeros((2, 3, 4, 4)), dims=("time", "band", "y", "x")), "time, band"),
        (xarray.DataArray(np.zeros((4, 4)), dims=("row", "col")), "rename or select"),
        (xarray.DataArray(np.zeros((2, 4, 4)), dims=("band", "y", "x")), "has 2 bands"),
        (xarray.DataArray(np.zeros((4, 4), bool), dims=("y", "x")), "holds bool"),
        (xarray.DataArray(np.zeros((4, 4), complex), dims=("y", "x")), "holds complex"),
    ],
)
def test_arrays_that_are_no_scene_are_refused(array: xarray.DataArray, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        ArrayScene.open(array)


def test_masked_whole_numbers_are_what_they_were(tmp_path: Path) -> None:
    """rioxarray's ``masked=True`` makes floats of them; their stretch stays that of the file."""
    path = make(tmp_path / "scene.tif", rgb(60, 80), nodata=0)
    plain = ArrayScene.open(rioxarray.open_rasterio(path))
    masked = ArrayScene.open(rioxarray.open_rasterio(path, masked=True))
    assert masked.array.dtype == np.float32
    one, other = (scene.read(Window(0, 0, 60, 80)) for scene in (plain, masked))
    both = one.valid & other.valid
    assert both.mean() > 0.9
    np.testing.assert_allclose(one.rgb[:, both], other.rgb[:, both], atol=1e-7)
    # Floats that somebody has scaled since are measured like any others.
    scaled = rioxarray.open_rasterio(path, masked=True)
    scaled = scaled.copy(data=scaled.data / 255)
    assert ArrayScene.open(scaled).stretch != masked.stretch


def test_coordinates_that_are_corners_are_known_by_the_transform(tmp_path: Path) -> None:
    """As stackstac gives them: x and y are the pixels' upper left corners."""
    whole = rioxarray.open_rasterio(make(tmp_path / "s.tif", rgb()))
    assert isinstance(whole, xarray.DataArray)
    place = whole.rio.transform()
    corners = whole.assign_coords(x=whole.x - place.a / 2, y=whole.y - place.e / 2)
    stacked = corners.drop_vars("spatial_ref")
    stacked.attrs = {"crs": "EPSG:32631", "transform": place}
    for array in (corners, stacked):
        assert ArrayScene.open(array).grid.transform == place
        part = ArrayScene.open(array[:, 10:, 20:])
        assert part.grid.to_ground(0, 0) == pytest.approx((500020, 4999990))


@pytest.mark.parametrize("axis", ["x", "y"])
def test_uneven_rows_and_columns_are_refused(tmp_path: Path, axis: str) -> None:
    array = rioxarray.open_rasterio(make(tmp_path / "s.tif", rgb()))
    assert isinstance(array, xarray.DataArray)
    places = array[axis].values + np.linspace(0, 3, array.sizes[axis]) ** 2
    with pytest.raises(SceneError, match=f"lie unevenly along {axis}"):
        ArrayScene.open(array.assign_coords({axis: places}))
    rounded = array.assign_coords({axis: array[axis].values.astype(np.float32)})
    assert ArrayScene.open(rounded).shape == (40, 50)


def test_dimensions_that_rio_names_are_known(tmp_path: Path) -> None:
    array = rioxarray.open_rasterio(make(tmp_path / "s.tif", rgb()))
    assert isinstance(array, xarray.DataArray)
    renamed = array.rename(x="easting", y="northing")
    named = renamed.rio.set_spatial_dims("easting", "northing")
    assert ArrayScene.open(named).grid == ArrayScene.open(array).grid


@pytest.mark.parametrize(
    ("dim", "values", "attrs"),
    [
        ("wavelength", [482.0, 560.0, 660.0], {}),
        ("wavelength", [482, 560, 660], {}),
        ("wl", [0.48, 0.56, 0.66], {"units": "um"}),
        ("band", [0.48, 0.56, 0.66], {}),
        ("band", [480, 560, 660], {"units": "nanometers"}),
    ],
)
def test_bands_that_are_wavelengths_are_colours(dim: str, values: list[float], attrs: Any) -> None:
    data = rgb()
    axis = xarray.Variable(dim, values, attrs)
    array = xarray.DataArray(data[::-1], dims=(dim, "y", "x"), coords={dim: axis})
    np.testing.assert_array_equal(ArrayScene.open(array).array, data)


@pytest.mark.parametrize("first", [0, 0.5, 1])
def test_coordinates_that_only_count_leave_the_transform_in_force(
    tmp_path: Path, first: float
) -> None:
    whole = rioxarray.open_rasterio(make(tmp_path / "s.tif", rgb()))
    assert isinstance(whole, xarray.DataArray)
    height, width = whole.shape[1:]
    counted = whole.assign_coords(y=np.arange(height) + first, x=np.arange(width) + first)
    scene = ArrayScene.open(counted)
    assert scene.grid == ArrayScene.open(whole).grid
    np.testing.assert_array_equal(scene.array, whole.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.astype(str), "holds <U"),
        (lambda a: a.astype("datetime64[s]"), "holds datetime64"),
        (lambda a: a.astype(object), "holds object"),
        (lambda a: a.assign_coords(x=[f"x{i}" for i in range(50)]), "no numbers"),
        (lambda a: a.assign_coords(x=np.full(50, np.inf)), "unevenly along x"),
        (lambda a: a.assign_coords(y=np.repeat(np.arange(20.0), 2)), "unevenly along y"),
        (lambda a: a.isel(y=3), "has dimensions band, x"),
        (lambda a: a.isel(band=0, y=3, x=4), "has dimensions none"),
    ],
)
def test_odd_arrays_are_one_line(tmp_path: Path, change: Any, message: str) -> None:
    array = rioxarray.open_rasterio(make(tmp_path / "s.tif", rgb()))
    assert isinstance(array, xarray.DataArray)
    with pytest.raises(SceneError, match=message) as caught:
        ArrayScene.open(change(array))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fill", [[0, 0, 0], np.array([0]), "0"])
def test_fills_are_read_however_they_are_written(tmp_path: Path, fill: Any) -> None:
    data = rgb()
    data[:, :10] = 0
    array = rioxarray.open_rasterio(make(tmp_path / "s.tif", data))
    assert isinstance(array, xarray.DataArray)
    scene = ArrayScene.open(array.assign_attrs(_FillValue=fill))
    assert not scene.read(Window(0, 0, 10, 50)).valid.any()
