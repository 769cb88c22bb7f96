"""Arrays as scenes: the same pixels as from a file, and never changed."""

from __future__ import annotations

from pathlib import Path

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
