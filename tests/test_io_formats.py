"""Files that are no rasters are named for what they are, with what to give instead."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from rasters import make, rgb
from typer.testing import CliRunner

from geoseg.errors import SceneError
from geoseg.io.expand import expand_scenes
from geoseg.io.labels import LabelRaster
from geoseg.io.scene import Scene
from geoseg_cli.main import app


def refusal(path: Path) -> str:
    with pytest.raises(SceneError) as caught:
        Scene.open(str(path))
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    return said


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_names_addresses_that_open(tmp_path: Path, kind: str) -> None:
    scene = make(tmp_path / "rgb.tif", rgb())
    archive = tmp_path / f"scene.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as out:
            out.write(scene, "in/rgb.tif")
            out.writestr("readme.txt", "x")
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as tar:
            tar.add(scene, "in/rgb.tif")
    said = refusal(archive)
    assert "readme" not in said
    address = said.partition("give a raster in it: ")[2]
    assert Scene.open(address).shape == Scene.open(str(scene)).shape


def test_a_gzipped_raster_names_an_address_that_opens(tmp_path: Path) -> None:
    scene = make(tmp_path / "rgb.tif", rgb())
    packed = written(tmp_path / "rgb.tif.gz", gzip.compress(Path(scene).read_bytes()))
    address = refusal(packed).partition("give ")[2].partition(",")[0]
    assert Scene.open(address).shape == Scene.open(str(scene)).shape


def test_broken_and_other_archives(tmp_path: Path) -> None:
    assert "damaged" in refusal(written(tmp_path / "a.zip", b"PK\x03\x04" + bytes(40)))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as out:
        out.writestr("notes.txt", "x")
    assert "without a raster: notes.txt" in refusal(tmp_path / "b.zip")
    assert "unpack it" in refusal(written(tmp_path / "a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(40)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.sid", b"msid\4\0", "no driver for MrSID"),
        ("a.ecw", b"ecw\1\0", "no driver for ECW"),
        ("a.hdf", b"\x0e\x03\x13\x01", "no driver for HDF4"),
        ("a.img", bytes(100), r"header \(\.hdr\)"),
        ("a.pdf", b"%PDF-1.7", "is a PDF"),
        ("a.geojson", b'{"type": "FeatureCollection", "features": []}', "vectors and no raster"),
        ("a.json", b"{", "begins like JSON"),
    ],
)
def test_formats_without_a_driver_are_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(SceneError, match=said):
        Scene.open(str(path))
    with pytest.raises(SceneError, match=said):
        LabelRaster.open(path)


def test_folders_of_products_are_named(tmp_path: Path, runner: CliRunner) -> None:
    zarr = tmp_path / "scene.zarr"
    zarr.mkdir()
    (zarr / ".zgroup").write_text("{}")
    assert "is a Zarr folder" in refusal(zarr)
    safe = tmp_path / "S2B.SAFE"
    safe.mkdir()
    (safe / "manifest.safe").write_text("<xml/>")
    shutil.copy(make(tmp_path / "rgb.tif", rgb()), safe / "vv.tif")
    assert str(safe / "vv.tif") in refusal(safe)
    (safe / "MTD_MSIL2A.xml").write_text("<xml/>")
    with pytest.raises(SceneError, match=r"give its metadata file .*MTD_MSIL2A\.xml"):
        expand_scenes([str(safe)])
    result = runner.invoke(app, ["info", str(safe)])
    assert result.exit_code == 1
    assert "MTD_MSIL2A.xml" in result.stderr
