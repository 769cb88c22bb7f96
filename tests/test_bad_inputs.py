"""Awkward and broken files, one by one: a correct map or one clear line, never a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from geoseg.io.scene import Scene
from geoseg.testing import tiny_random_model
from geoseg.types import Window
from geoseg_cli.main import app

SHARED = Path(__file__).resolve().parents[2] / "shared"
FOLDER = SHARED / "scenes" / "bad_inputs"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="reference data not present")


@dataclass(frozen=True)
class Works:
    """A map comes out."""

    why: str


@dataclass(frozen=True)
class Refused:
    """One line on stderr and exit code 1."""

    why: str
    message: str


TABLE: dict[str, Works | Refused] = {
    "all_nodata_uint16_71x2475.tif": Works("nothing to label: all nodata, no polygon"),
    "antimeridian_utm60_uint16.tif": Works("bit codes look like a 16-bit scene; UTM is fine"),
    "complex64_sar_rotated.tif": Refused("complex samples are no colours", "complex"),
    "corrupt_jpeg_tile.tif": Refused("a damaged block must not become a hole", "cannot be read"),
    "crs_but_no_transform.tif": Works("pixels are fine; placement is warned about"),
    "elevation_float32_nodata-9999.tif": Works("heights as grey; -9999 is nodata"),
    "empty_0_bytes.tif": Refused("nothing in it", "empty"),
    "external_mask.tif": Works("the .msk file says what is valid"),
    "float32_nan_inf_holes.tif": Works("NaN and infinity are nodata"),
    "float_nan_3x2_no_crs.tif": Works("six pixels, one of them NaN: padded"),
    "gcps_only.tif": Refused("control points need rectifying first", "gdalwarp"),
    "geostationary_full_disk.tif": Works("corners lie off the Earth, areas are unknown"),
    "no_crs_with_transform.tif": Works("labels have no CRS either"),
    "non_square_pixels_10x5m.tif": Works("pixels are labelled as they are"),
    "one_pixel.tif": Works("padded to a window"),
    "other_planet_europa_float32.tif": Works("areas on Europa's own ellipsoid"),
    "palette_64_colours.tif": Works("rendered through its colour table"),
    "png_renamed.tif": Works("GDAL looks inside, not at the suffix"),
    "rotated_30deg_10x15.tif": Works("rotated transform, carried over"),
    "sar_rotated_geotransform_2000px.tif": Works("rotated transform, carried over"),
    "sentinel2_float64_no_nodata.tif": Works("float64 stretched over the scene"),
    "single_band_hillshade_nodata255.tif": Works("white is nodata here"),
    "south_up_all_nodata_float32.tif": Works("nothing to label"),
    "south_up_rgb.tif": Works("rows from south to north, carried over"),
    "text_named.tif": Refused("not a raster", "not a raster"),
    "tiny_20x20.tif": Works("smaller than a window: padded"),
    "truncated_60pct.tif": Refused("missing bytes must not become a hole", "cannot be read"),
    "uint16_bgr_constant_alpha255.tif": Works("alpha of 0 to 255 in a 16-bit file"),
    "whole_world_geographic.tif": Works("geographic, coarse: warned about"),
    "netcdf_three_subdatasets.nc": Refused("which subdataset is meant?", "subdataset"),
}
HUGE = "huge_declared_120000x90000_sparse.tif"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"), window=224, stride=224)


def test_the_table_is_complete() -> None:
    files = {f.name for f in FOLDER.iterdir() if f.suffix in (".tif", ".nc")}
    assert files == TABLE.keys() | {HUGE}


def run(name: str, out: Path, model: str, *options: str) -> tuple[int, str]:
    arguments = [
        "segment",
        str(FOLDER / name),
        "--classes",
        "water; field; city",
        "--out",
        str(out),
    ]
    arguments += ["--model", model, "--device", "cpu", "--templates", "none", *options]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stderr


def valid_pixels(scene: rasterio.DatasetReader) -> np.ndarray:
    """Where a scene has data, from what GDAL says and what its numbers are."""
    valid = scene.dataset_mask() > 0
    bands = scene.read(list(range(1, min(scene.count, 3) + 1)))
    return valid & np.isfinite(bands).all(0)


@pytest.mark.parametrize("name", [n for n, v in TABLE.items() if isinstance(v, Works)])
def test_these_work(name: str, tmp_path: Path, model: str) -> None:
    expected = TABLE[name]
    assert isinstance(expected, Works)
    code, errors = run(name, tmp_path / "out", model)
    assert code == 0, errors
    assert "Traceback" not in errors
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "confidence.qml", "confidence.tif", "labels.qml", "labels.tif", "labels.tif.aux.xml",
        "polygons.gpkg", "polygons.qml", "preview.png", "run.json",
    ]  # fmt: skip
    with (
        rasterio.open(FOLDER / name) as scene,
        rasterio.open(tmp_path / "out/labels.tif") as labels,
    ):
        assert (labels.shape, labels.transform) == (scene.shape, scene.transform)
        assert labels.crs == scene.crs
        assert (labels.count, labels.dtypes[0], labels.nodata) == (1, "uint8", 255)
        assert labels.profile["driver"] == "GTiff"
        assert np.array_equal(labels.read(1) != 255, valid_pixels(scene))


@pytest.mark.parametrize("name", [n for n, v in TABLE.items() if isinstance(v, Refused)])
def test_these_are_refused_in_one_line(name: str, tmp_path: Path, model: str) -> None:
    expected = TABLE[name]
    assert isinstance(expected, Refused)
    code, errors = run(name, tmp_path / "out", model, "--quiet")
    assert code == 1
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert expected.message in errors
    assert name in errors
    assert not (tmp_path / "out").exists()


def test_alpha_of_a_16_bit_file_masks_its_transparent_pixels() -> None:
    scene = Scene.open(FOLDER / "uint16_bgr_constant_alpha255.tif")
    with rasterio.open(FOLDER / "uint16_bgr_constant_alpha255.tif") as dataset:
        alpha = dataset.read(4)
    valid = scene.read(Window(0, 0, *scene.shape)).valid
    assert np.array_equal(valid, alpha > 0)


def test_a_corner_of_a_huge_sparse_scene(tmp_path: Path, model: str) -> None:
    """32 GB declared: an area of interest around data runs in seconds, holes are nodata."""
    scene = Scene.open(FOLDER / HUGE)
    transform = scene.grid.transform
    left, top = transform * (20 * 512 - 300, 30 * 512 - 300)
    right, bottom = transform * (21 * 512 + 300, 31 * 512 + 300)
    box = f"{left},{bottom},{right},{top}"
    code, errors = run(HUGE, tmp_path / "out", model, "--aoi", box)
    assert code == 0, errors
    with rasterio.open(tmp_path / "out" / "labels.tif") as labels:
        values = labels.read(1)
        assert labels.shape == (1112, 1112)
        assert labels.transform * (300, 300) == transform * (20 * 512, 30 * 512)
    assert (values[300:812, 300:812] != 255).mean() > 0.9
    assert (values[:300] == 255).all()


def test_empty_parts_of_a_huge_sparse_scene_are_known_without_reading() -> None:
    scene = Scene.open(FOLDER / HUGE)
    assert scene.is_empty(Window(60_000, 80_000, 2048, 2048))
    assert not scene.is_empty(Window(30 * 512, 20 * 512, 2048, 2048))
