"""Label rasters in: ours with names and colours, others' as far as they tell."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geoseg.errors import SceneError
from geoseg.io.grid import Grid
from geoseg.io.labels import LabelRaster
from geoseg.io.write import label_writer
from geoseg.types import LabelClass, Window, as_label_classes, default_color

PLACE = Grid(CRS.from_epsg(32631), Affine(2, 0, 500000, 0, -2, 5000000), 60, 80)


def foreign(path: Path, data: np.ndarray, **profile: Any) -> Path:
    bands = data if data.ndim == 3 else data[None]
    with rasterio.open(
        path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2], count=len(bands),
        dtype=data.dtype, crs=PLACE.crs, transform=PLACE.transform, nodata=profile.get("nodata"),
    ) as dataset:  # fmt: skip
        dataset.write(bands)
        if "colours" in profile:
            dataset.write_colormap(1, profile["colours"])
    return path


@pytest.mark.parametrize("count", [1, 3, 254, 255, 400])
def test_our_own_labels_come_back_whole(tmp_path: Path, count: int) -> None:
    classes = as_label_classes([f"name, {i} = ü" for i in range(count)])
    values = np.arange(4800).reshape(60, 80) % count
    with label_writer(tmp_path / "w.tif", PLACE, classes) as writer:
        pixels = values.astype(writer.layout.dtype)
        pixels[:7] = writer.layout.nodata
        writer.write(PLACE.window, pixels)
        writer.finish(tmp_path / "l.tif")
    raster = LabelRaster.open(tmp_path / "l.tif")
    assert raster.classes == classes
    assert raster.grid == PLACE
    assert raster.nodata == (255 if count <= 254 else 65535)
    np.testing.assert_array_equal(raster.read(), pixels)
    np.testing.assert_array_equal(raster.read(Window(5, 6, 7, 8)), pixels[5:12, 6:14])
    assert raster.read().dtype == pixels.dtype
    found = {
        int(v): int(n) for v, n in zip(*np.unique(pixels[7:], return_counts=True), strict=True)
    }
    assert raster.counts() == {c.index: found.get(c.index, 0) for c in classes}
    assert pickle.loads(pickle.dumps(raster)) == raster


@pytest.mark.parametrize("rows", [1, 7, 60, 1000])
def test_strips_make_up_the_raster(tmp_path: Path, rows: int) -> None:
    data = np.random.default_rng(0).integers(0, 9, (60, 80)).astype(np.uint8)
    raster = LabelRaster.open(foreign(tmp_path / "l.tif", data))
    strips = list(raster.strips(rows))
    np.testing.assert_array_equal(np.concatenate([s for _, s in strips]), data)
    assert [w.row for w, _ in strips] == list(range(0, 60, rows))


def test_names_of_a_foreign_raster_come_from_its_values(tmp_path: Path) -> None:
    data = np.full((60, 80), 9, np.uint8)
    data[:5], data[5:9] = 0, 4
    raster = LabelRaster.open(foreign(tmp_path / "l.tif", data, nodata=0))
    assert raster.classes == (
        LabelClass(4, "class 4", default_color(4)),
        LabelClass(9, "class 9", default_color(9)),
    )
    assert raster.nodata == 0


def test_colours_of_a_foreign_raster_come_from_its_table(tmp_path: Path) -> None:
    data = np.array([[0, 1]], np.uint8)
    table = {0: (1, 2, 3, 255), 1: (250, 128, 0, 255)}
    raster = LabelRaster.open(foreign(tmp_path / "l.tif", data, colours=table))
    assert [c.color for c in raster.classes] == ["#010203", "#fa8000"]


def test_wide_integers_are_narrowed(tmp_path: Path) -> None:
    data = np.array([[-1, 0, 300], [7, 7, -1]], np.int32)
    raster = LabelRaster.open(foreign(tmp_path / "l.tif", data, nodata=-1))
    assert raster.nodata == 65535
    np.testing.assert_array_equal(raster.read(), [[65535, 0, 300], [7, 7, 65535]])
    assert raster.counts() == {0: 1, 7: 2, 300: 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((3, 4, 4), np.uint8), "has 3 bands; a label raster has one"),
        (np.full((4, 4), 0.5, np.float32), "holds fractions; labels are whole numbers"),
        (np.zeros((4, 4), np.complex64), "holds complex64; labels are whole numbers"),
        (np.full((4, 4), -3, np.int16), "run from -3 to -3"),
        (np.full((4, 4), 70000, np.int32), "run from 70000"),
    ],
)
def test_rasters_that_are_no_labels_are_refused(
    tmp_path: Path, data: np.ndarray, message: str
) -> None:
    with pytest.raises(SceneError, match=message):
        LabelRaster.open(foreign(tmp_path / "l.tif", data))


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="no such file"):
        LabelRaster.open(tmp_path / "l.tif")
    (tmp_path / "t.tif").write_text("text")
    with pytest.raises(SceneError, match="not a raster"):
        LabelRaster.open(tmp_path / "t.tif")


def test_thumbnails_keep_classes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 5, (60, 80)).astype(np.uint8)
    small = LabelRaster.open(foreign(tmp_path / "l.tif", data)).thumbnail(40)
    assert small.shape == (30, 40)
    assert set(np.unique(small)) <= set(range(5))
