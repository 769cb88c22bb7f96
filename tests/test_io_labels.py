"""Label rasters in: ours with names and colours, others' as far as they tell."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

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


def test_a_mask_band_says_which_pixels_have_labels(tmp_path: Path) -> None:
    data = np.array([[0, 1, 255], [0, 2, 2]], np.uint8)
    path = foreign(tmp_path / "l.tif", data)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.array([[1, 1, 1], [0, 1, 0]], bool))
    raster = LabelRaster.open(path)
    np.testing.assert_array_equal(raster.read(), [[0, 1, 255], [65535, 2, 65535]])
    assert raster.counts() == {0: 1, 1: 1, 2: 1, 255: 1}
    np.testing.assert_array_equal(raster.read(Window(1, 0, 1, 2)), [[65535, 2]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_alpha_band_says_which_pixels_have_labels(tmp_path: Path, dtype: type) -> None:
    data = np.array([[[0, 1], [2, 2]], [[0, 255], [255, 0]]], dtype)
    path = foreign(tmp_path / "l.tif", data)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    np.testing.assert_array_equal(LabelRaster.open(path).read(), [[65535, 1], [2, 65535]])


TABLE = """<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable>
<FieldDefn index="0"><Name>Value</Name><Type>0</Type><Usage>5</Usage></FieldDefn>
<FieldDefn index="1"><Name>Kind</Name><Type>2</Type><Usage>2</Usage></FieldDefn>
<FieldDefn index="2"><Name>Red</Name><Type>0</Type><Usage>6</Usage></FieldDefn>
<FieldDefn index="3"><Name>Green</Name><Type>0</Type><Usage>7</Usage></FieldDefn>
<FieldDefn index="4"><Name>Blue</Name><Type>0</Type><Usage>8</Usage></FieldDefn>
<Row index="0"><F>11</F><F>Open Water</F><F>70</F><F>107</F><F>159</F></Row>
<Row index="1"><F>42</F><F>Forest</F><F>28</F><F>95</F><F>44</F></Row>
</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"""
STYLE = """<qgis><pipe><rasterrenderer type="paletted"><colorPalette>
<paletteEntry value="11" label="Open Water" color="#466b9f" alpha="255"/>
<paletteEntry value="42" label="Forest" color="#1c5f2c" alpha="255"/>
</colorPalette></rasterrenderer></pipe></qgis>"""
CATEGORIES = "".join(
    f"<Category>{ {11: 'Open Water', 42: 'Forest'}.get(i, '') }</Category>" for i in range(60)
)
NAMES = (
    f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{CATEGORIES}</CategoryNames>'
    "</PAMRasterBand></PAMDataset>"
)


@pytest.mark.parametrize(
    ("beside", "text", "colours"),
    [
        ("l.qml", STYLE, True),
        ("l.tif.aux.xml", TABLE, True),
        ("l.tif.aux.xml", NAMES, False),
        ("l.tif.vat.dbf", None, True),
    ],
)
def test_names_and_colours_beside_a_foreign_raster(
    tmp_path: Path, beside: str, text: str | None, colours: bool
) -> None:
    data = np.array([[11, 42, 7]], np.uint8)
    path = foreign(tmp_path / "l.tif", data)
    if text is None:
        table = pd.DataFrame({
            "Value": [11, 42], "Count": [1, 1], "Class_Name": ["Open Water", "Forest"],
            "Red": [70, 28], "Green": [107, 95], "Blue": [159, 44],
        })  # fmt: skip
        pyogrio.write_dataframe(table, tmp_path / beside, driver="ESRI Shapefile")
    else:
        (tmp_path / beside).write_text(text)
    classes = LabelRaster.open(path).classes
    assert [(c.index, c.name) for c in classes] == [
        (7, "class 7"), (11, "Open Water"), (42, "Forest")
    ]  # fmt: skip
    if colours:
        assert [c.color for c in classes[1:]] == ["#466b9f", "#1c5f2c"]


def test_a_legend_that_makes_no_sense_is_passed_over(tmp_path: Path) -> None:
    path = foreign(tmp_path / "l.tif", np.array([[11, 42]], np.uint8))
    (tmp_path / "l.qml").write_text("<qgis><unclosed>")
    assert [c.name for c in LabelRaster.open(path).classes] == ["class 11", "class 42"]
