"""Scenes that are mostly empty: the map is the same, and what is empty costs nothing."""

from __future__ import annotations

import math
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.crs import CRS
from rasterio.enums import Resampling

from geoseg.io.grid import Grid
from geoseg.io.labels import LabelRaster
from geoseg.io.overviews import halved
from geoseg.io.regrid import regrid_nearest
from geoseg.io.write import RasterWriter, confidence_writer, label_writer
from geoseg.options import VectorOptions
from geoseg.run.tally import Tally
from geoseg.types import LabelArray, LabelClass, Window
from geoseg.vector import vectorize

CLASSES = (LabelClass(0, "a", "#ff0000"), LabelClass(1, "b", "#00ff00"))
HIGH, WIDE = 4000, 5000
LAYER = VectorOptions().layer
PATCHES = [Window(1530, 2040, 40, 60), Window(3900, 4930, 100, 70), Window(0, 2900, 30, 20)]


def grid(height: int, width: int) -> Grid:
    return Grid(CRS.from_epsg(32631), Affine(1, 0, 500000, 0, -1, 5000000), height, width)


def labels_of(patches: list[Window]) -> LabelArray:
    labels = np.full((HIGH, WIDE), 255, np.uint8)
    noise = np.random.default_rng(3).integers(0, 2, (HIGH // 5, WIDE // 5)).astype(np.uint8)
    noise = noise.repeat(5, 0).repeat(5, 1)
    for patch in patches:
        labels[patch.slices()] = noise[patch.slices()]
    return labels


def written(folder: Path, labels: LabelArray, patches: list[Window], name: str) -> Path:
    """A finished label raster of which only the patches were written."""
    target = folder / f"{name}.tif"
    with label_writer(folder / f"{name}.work.tif", grid(HIGH, WIDE), CLASSES) as writer:
        for patch in patches:
            writer.write(patch, labels[patch.slices()])
        writer.finish(target)
        writer.discard()
    return target


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same labels: nothing stored where there are none, and everything stored."""
    folder, labels = tmp_path_factory.mktemp("pair"), labels_of(PATCHES)
    sparse = written(folder, labels, PATCHES, "sparse")
    dense = folder / "dense.tif"
    with rasterio.open(sparse) as source:
        profile = {**source.profile, "sparse_ok": False, "driver": "GTiff"}
        with rasterio.open(dense, "w", **profile) as target:
            target.write(labels, 1)
            target.update_tags(1, **source.tags(1))
    return sparse, dense


def test_pixels_and_areas_are_those_of_a_full_file(pair: tuple[Path, Path]) -> None:
    sparse, dense = (LabelRaster.open(path) for path in pair)
    assert sparse.labelled.area < dense.labelled.area
    np.testing.assert_array_equal(sparse.read(), dense.read())
    assert sparse.counts() == dense.counts()
    one, other = (Tally.of_raster(path, 2) for path in pair)
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_allclose(one.areas_m2, other.areas_m2, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        VectorOptions(),
        VectorOptions(min_area_m2=20),
        VectorOptions(simplify_m=1, smooth=1, connectivity=8),
    ],
    ids=["plain", "merged", "shaped"],
)
def test_polygons_are_those_of_a_full_file(
    pair: tuple[Path, Path], tmp_path: Path, options: VectorOptions
) -> None:
    one, other = (
        vectorize(path, tmp_path / f"{path.stem}.gpkg", options=options).path for path in pair
    )
    found, wanted = (gpd.read_file(path, layer=LAYER) for path in (one, other))
    assert len(found) > 3
    assert found.geometry.geom_equals_exact(wanted.geometry, 0).all()
    assert found.drop(columns="geometry").equals(wanted.drop(columns="geometry"))


@settings(max_examples=10, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, HIGH - 100), st.integers(0, WIDE - 100)), max_size=4)
)
def test_patches_anywhere_make_the_polygons_of_a_full_file(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]]
) -> None:
    patches = [Window(row, col, 37, 90) for row, col in places]
    folder, labels = tmp_path_factory.mktemp("anywhere"), labels_of(patches)
    sparse = written(folder, labels, patches, "sparse")
    dense = written(folder, labels, [Window(0, 0, HIGH, WIDE)], "dense")
    one, other = (
        gpd.read_file(vectorize(path, folder / f"{path.stem}.gpkg").path, layer=LAYER)
        for path in (sparse, dense)
    )
    assert one.geometry.geom_equals_exact(other.geometry, 0).all()


@pytest.mark.parametrize("product", ["labels", "confidence"])
def test_overviews_of_what_is_there_are_those_that_gdal_makes(tmp_path: Path, product: str) -> None:
    place, labels = grid(4096, 8192), labels_of(PATCHES)[1024:2048, 1536:3072]
    noise = np.random.default_rng(0).integers(0, 3, labels.shape).astype(np.uint8)
    noise[::3, ::5] = 255  # in some of the fours above a pixel, and in all of some
    labels = np.where(np.arange(labels.shape[1]) % 400 < 200, labels, noise)
    work = tmp_path / "raster.work.tif"
    writer: RasterWriter = (
        label_writer(work, place, CLASSES)
        if product == "labels"
        else confidence_writer(work, place)
    )
    with writer:
        writer.write(Window(1024, 1536, *labels.shape), labels)
        writer.finish(tmp_path / "raster.tif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raster.tif", "raster.work.tif"]
    with rasterio.open(work, "r+") as dataset:
        resampling = Resampling.mode if product == "labels" else Resampling.average
        dataset.build_overviews([2, 4, 8, 16], resampling)
    with rasterio.open(tmp_path / "raster.tif") as made:
        assert made.overviews(1) == [2, 4, 8, 16]
    for level in range(4):
        with (
            rasterio.open(work, overview_level=level) as wanted,
            rasterio.open(tmp_path / "raster.tif", overview_level=level) as made,
        ):
            np.testing.assert_array_equal(made.read(1), wanted.read(1))


@given(
    pixels=hnp.arrays(
        np.uint8,
        st.tuples(st.just(1), st.integers(1, 5), st.integers(1, 5)),
        elements=st.sampled_from([0, 1, 2, 255]),
    )
)
def test_half_an_image_counts_only_pixels_with_data(pixels: np.ndarray) -> None:
    modes, means = halved(pixels, 255, "MODE")[0], halved(pixels, 255, "AVERAGE")[0]
    for row, col in np.ndindex(modes.shape):
        above = pixels[0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel()
        known = [int(value) for value in above if value != 255]
        if not known:
            assert modes[row, col] == means[row, col] == 255
            continue
        most = max(map(known.count, known))
        first = next(value for i, value in enumerate(known) if known[: i + 1].count(value) == most)
        assert modes[row, col] == first
        assert means[row, col] == math.floor(sum(known) / len(known) + 0.5)


def test_ten_gigapixels_of_nothing_but_a_patch_take_little_room(tmp_path: Path) -> None:
    patch = Window(20_000, 100_000, 200, 300)
    work = tmp_path / "l.work.tif"
    with label_writer(work, grid(40_000, 250_000), CLASSES) as writer:
        writer.write(patch, np.zeros(patch.shape, np.uint8))
        writer.finish(tmp_path / "l.tif")
    assert (tmp_path / "l.tif").stat().st_size < 250_000
    summary = vectorize(tmp_path / "l.tif", tmp_path / "l.gpkg")
    assert summary.count_by_class == {"a": 1, "b": 0}


def test_what_is_empty_stays_empty_on_another_grid(tmp_path: Path) -> None:
    coarse = grid(4000, 5000)
    fine = Grid(coarse.crs, coarse.transform * Affine.scale(0.45), 8_888, 11_111)
    labels, patch = labels_of(PATCHES), Window(1530, 2040, 40, 60)
    with label_writer(tmp_path / "c.tif", coarse, CLASSES) as source:
        source.write(patch, labels[patch.slices()])
    with label_writer(tmp_path / "f.tif", fine, CLASSES) as target:
        regrid_nearest(tmp_path / "c.tif", target)
    with rasterio.open(tmp_path / "f.tif") as found, rasterio.open(tmp_path / "c.tif") as given:
        rows, cols = (((np.arange(side) + 0.5) * 0.45).astype(int) for side in fine.shape)
        nearest = given.read(1)[np.ix_(rows, cols)]
        np.testing.assert_array_equal(found.read(1), nearest)
    assert (tmp_path / "f.tif").stat().st_size < 10e6
