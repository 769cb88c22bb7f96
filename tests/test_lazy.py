"""Lazy maps: the tiles of a run as blocks of an xarray dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from rasters import make, rgb

import geoseg
from geoseg.errors import GeosegWarning, OptionError, SceneError
from geoseg.run.tiles import TileJob
from geoseg.testing import assert_same_raster, tiny_random_model, write_scene
from geoseg.types import Window

CLASSES = "building; road; water; forest, trees; meadow"
QUICK = geoseg.Options(templates="none")
TILE = 96


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return write_scene(path, 250, 330, holes=[Window(90, 90, 110, 110)])


@pytest.fixture(scope="module")
def files(
    scene: Path, loaded: geoseg.Model, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The bands of a run to files."""
    products = geoseg.Products(polygons="none", preview=False, probabilities=True)
    run = geoseg.segment_to_files(
        scene, CLASSES, tmp_path_factory.mktemp("run"), model=loaded, options=QUICK, tile=TILE,
        products=products,
    )  # fmt: skip
    found: dict[str, Any] = {"folder": run.out}
    for name in ("labels", "confidence", "probabilities"):
        with rasterio.open(run.out / f"{name}.tif") as dataset:
            found[name] = dataset.read() if name == "probabilities" else dataset.read(1)
    return found


def lazy(scene: Any, loaded: geoseg.Model, **settings: Any) -> xr.Dataset:
    return geoseg.segment(
        scene, CLASSES, model=loaded, **{"options": QUICK, "tile": TILE} | settings
    )


def as_array(scene: Path, chunks: Any) -> xr.DataArray:
    array = rioxarray.open_rasterio(scene, chunks=chunks)
    assert isinstance(array, xr.DataArray)
    return array


def tiles_that_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    ran: list[int] = []
    usual = TileJob.run_whole

    def run_whole(job: TileJob, index: int) -> Any:
        ran.append(index)
        return usual(job, index)

    monkeypatch.setattr(TileJob, "run_whole", run_whole)
    return ran


def test_nothing_is_inferred_before_it_is_asked_for(
    scene: Path, loaded: geoseg.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TileJob, "run", lambda *_: pytest.fail("a tile ran"))
    result = lazy(scene, loaded)
    assert result.labels.shape == (250, 330)
    assert result.labels.chunks == ((96, 96, 58), (96, 96, 96, 42))
    assert result.labels.dtype == result.confidence.dtype == np.uint8
    tags = [result.labels.attrs[f"CLASS_{i}"] for i in range(5)]
    assert tags == ["building", "road", "water", "forest", "meadow"]


@pytest.mark.parametrize("chunks", [None, {"x": 100, "y": 70}], ids=["numpy", "dask"])
@pytest.mark.parametrize("kind", ["path", "array"])
def test_a_lazy_map_is_the_map_of_a_run(
    scene: Path, loaded: geoseg.Model, files: dict[str, Any], kind: str, chunks: Any
) -> None:
    source = scene if kind == "path" else as_array(scene, chunks)
    result = lazy(source, loaded, probabilities=True).compute(num_workers=2)
    for name in ("labels", "confidence", "probabilities"):
        np.testing.assert_array_equal(result[name].to_numpy(), files[name])


def test_one_tile_serves_all_products(
    scene: Path, loaded: geoseg.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tiles_that_run(monkeypatch)
    result = lazy(scene, loaded, probabilities=True)
    tasks = {key for key in result.__dask_graph__() if "geoseg-tile-" in str(key)}
    result.compute()
    assert sorted(ran) == list(range(len(tasks)))
    assert 0 < len(tasks) <= 12


def test_an_array_that_is_lazy_is_read_once_and_only_where_needed(
    scene: Path, loaded: geoseg.Model
) -> None:
    whole = as_array(scene, None)
    read: list[tuple[int, int]] = []

    def chunk(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        (_, rows, cols) = block_info[0]["array-location"]
        read.append((rows[0], cols[0]))
        return block

    data = da.from_array(whole.to_numpy(), chunks=(3, 64, 64)).map_blocks(chunk, dtype="uint8")
    read.clear()  # map_blocks tries its function
    result = lazy(whole.copy(data=data), loaded)
    assert read == []
    result[["labels", "confidence"]].isel(y=slice(0, 60), x=slice(0, 60)).compute()
    # The windows that touch tile 0 end at row and column 128.
    assert sorted(read) == [(0, 0), (0, 64), (64, 0), (64, 64)]


def test_the_input_array_stays_as_it_was(scene: Path, loaded: geoseg.Model) -> None:
    array = as_array(scene, None)
    before = array.copy(deep=True)
    lazy(array, loaded).compute()
    xr.testing.assert_identical(array, before)


def test_rioxarray_writes_it_placed(
    scene: Path, loaded: geoseg.Model, files: dict[str, Any], tmp_path: Path
) -> None:
    result = lazy(as_array(scene, {"x": 128, "y": 128}), loaded)
    result.labels.rio.to_raster(tmp_path / "labels.tif")
    assert_same_raster(tmp_path / "labels.tif", files["folder"] / "labels.tif")
    clipped = result.labels.rio.clip_box(*result.labels.rio.bounds())
    assert clipped.rio.crs == result.rio.crs


def test_an_area_of_interest_gives_its_window(
    scene: Path, loaded: geoseg.Model, files: dict[str, Any]
) -> None:
    reading = geoseg.Reading(aoi="500020,5199900,500100,5199960")
    result = lazy(scene, loaded, reading=reading)
    assert result.labels.shape == (120, 160)
    np.testing.assert_array_equal(result.labels, files["labels"][80:200, 40:200])
    assert result.rio.bounds() == (500020, 5199900, 500100, 5199960)


def test_an_empty_array_is_nodata(scene: Path, loaded: geoseg.Model) -> None:
    array = as_array(scene, {"x": 100, "y": 100})
    result = lazy(xr.zeros_like(array), loaded).compute()
    assert (result.labels == 255).all()
    assert (result.confidence == 255).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", "array"])
def test_a_lazy_map_computes_on_a_cluster(
    scene: Path, loaded: geoseg.Model, files: dict[str, Any], kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from geoseg.run.cluster import connect

    monkeypatch.chdir(scene.parent)
    source = scene.name if kind == "path" else as_array(scene, {"x": 100, "y": 70})
    with connect(workers=1) as client:
        result = lazy(source, loaded, probabilities=True)
        computed = dask.compute(result)[0]
        assert client.status == "running"
    for name in ("labels", "confidence", "probabilities"):
        np.testing.assert_array_equal(computed[name].to_numpy(), files[name])


def test_scenes_that_cannot_be_taken_are_refused(scene: Path, loaded: geoseg.Model) -> None:
    with pytest.raises(OptionError, match="another gsd"):
        lazy(as_array(scene, None), loaded, reading=geoseg.Reading(gsd=1.0))
    with pytest.raises(SceneError, match="not ndarray; arrays of pixels alone go to"):
        lazy(np.zeros((3, 40, 40), np.uint8), loaded)
    with pytest.raises(SceneError, match=r"no variable of the Dataset is an image"):
        lazy(as_array(scene, None).to_dataset(name="scene").isel(x=0), loaded)


def test_an_array_without_a_place_gets_a_word(loaded: geoseg.Model) -> None:
    array = xr.DataArray(np.zeros((3, 40, 50), np.uint8), dims=("band", "y", "x"))
    with pytest.warns(GeosegWarning, match="the array: has no CRS and no transform"):
        geoseg.segment(array, "a; b", model=loaded, options=QUICK)
    placed = array.assign_coords(x=500_000.5 + np.arange(50), y=5_000_000 - np.arange(40))
    reading = geoseg.Reading(crs="EPSG:32631")
    found = geoseg.segment(placed, "a; b", model=loaded, options=QUICK, reading=reading)
    assert found.rio.crs.to_epsg() == 32631


def test_an_array_given_for_files_is_one_line(tmp_path: Path, loaded: geoseg.Model) -> None:
    with pytest.raises(SceneError, match=r"not ndarray; arrays go to geoseg\.segment"):
        geoseg.segment_to_files(np.zeros((3, 4, 5)), "a; b", tmp_path / "out", model=loaded)


def test_files_of_one_band_each_are_one_lazy_scene(
    tmp_path: Path, loaded: geoseg.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rgb(90, 110)
    for name, band in zip(("B04", "B03", "B02"), data, strict=True):
        make(tmp_path / f"{name}.tif", band[None])
    files = sorted(tmp_path.glob("B*.tif"))  # blue first
    reading = geoseg.Reading(rgb=True)
    whole = make(tmp_path / "whole.tif", data)
    monkeypatch.chdir(tmp_path)
    maps = [
        lazy(files, loaded, reading=reading),
        lazy([file.name for file in files], loaded, reading=reading),
    ]
    monkeypatch.chdir("/")
    expected = lazy(whole, loaded).labels.values
    for found in maps:
        np.testing.assert_array_equal(found.labels.values, expected)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "B02.tif", "B03.tif", "B04.tif", "whole.tif",
    ]  # fmt: skip
    with pytest.raises(OptionError, match="--rgb takes the files"):
        lazy(whole, loaded, reading=reading)
    with pytest.raises(SceneError, match=r"a scene is a path, several, .*not list"):
        lazy([expected], loaded)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_refiner_that_measures_the_scene_measures_arrays_too(
    loaded: geoseg.Model, tmp_path: Path, dtype: str
) -> None:
    """In memory, and as a task beside that of the stretch; a slice is as the whole."""
    scene = write_scene(tmp_path / "scene.tif", 150, 170, dtype=dtype)
    options = geoseg.Options(templates="none", refine="laplace:steps=4")
    products = geoseg.Products(polygons="none", preview=False)
    geoseg.segment_to_files(
        scene, CLASSES, tmp_path / "out", model=loaded, options=options, products=products
    )
    expected = {}
    for name in ("labels", "confidence"):
        with rasterio.open(tmp_path / "out" / f"{name}.tif") as dataset:
            expected[name] = dataset.read(1)
    usual = geoseg.Options(templates="none", refine="laplace:steps=4,gradient=0.1+0.1")
    other = lazy(scene, loaded, options=usual).confidence.values
    assert (other != expected["confidence"]).any()
    for chunks in (None, {"x": 70, "y": 40}):
        array = rioxarray.open_rasterio(scene, chunks=chunks)
        found = lazy(array, loaded, options=options)
        for name, values in expected.items():
            assert np.array_equal(found[name].values, values), (name, chunks)
        part = found.confidence[20:60, 30:90]
        assert np.array_equal(part.values, expected["confidence"][20:60, 30:90])


def test_each_date_of_a_stack_is_measured_by_itself(loaded: geoseg.Model, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 80, 90)
    array = rioxarray.open_rasterio(scene, chunks={"x": 50, "y": 50})
    dark = (array // 3).astype(array.dtype)
    options = geoseg.Options(templates="none", refine="laplace:steps=3")
    stack = xr.concat([array, dark], "time")
    found = lazy(stack, loaded, options=options).confidence.values
    for date, one in zip(found, (array, dark), strict=True):
        alone = lazy(one, loaded, options=options).confidence.values
        assert np.array_equal(date, alone)
