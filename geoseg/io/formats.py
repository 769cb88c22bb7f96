"""What is a file that cannot be opened as a raster, and what should be given instead?"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rasterio
from rasterio.drivers import raster_driver_extensions

from geoseg._inputs import file_looks_like, is_clutter, is_folder, shown

_RASTERS = {*raster_driver_extensions(), "jp2", "j2k", "vrt", "nc", "h5", "hdf", "img"}
_SHOWN_NAMES = 5
_LARGEST_JSON_BYTES = 16 * 2**20
_LACKING = (
    (b"msid", ".sid", "MrSID", "a MrSID image"),
    (b"ecw", ".ecw", "ECW", "an ECW image"),
    (b"\x0e\x03\x13\x01", None, "HDF4", "an HDF4 file"),
)
"""First bytes, suffix, GDAL's driver, and what such a file is."""
_RAW = {".img", ".dat", ".bil", ".bsq", ".bip", ".raw"}
_GZIP, _BZIP, _XZ, _SEVEN, _RAR = b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!"
_DOCUMENTS = (
    (b"%PDF", "is a PDF; export it as GeoTIFF"),
    (b"SQLite format 3\0", "is a database without rasters, such as a GeoPackage of vectors"),
)


def what_it_is(path: Path) -> str | None:
    """Say what a file or folder is that GDAL does not open, and what to give; None if unknown."""
    if is_folder(path):
        return _folder(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return None
    suffix = path.suffix.lower()
    for mark, ending, driver, kind in _LACKING:
        if (head.startswith(mark) or suffix == ending) and not _has(driver):
            return (
                f"is {kind}, and the GDAL here has no driver for {driver}; convert it to GeoTIFF "
                "with software that has one"
            )
    for mark, said in _DOCUMENTS:
        if head.startswith(mark):
            return said
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
        return _json(path)
    found = _archive(path, head) or file_looks_like(path)
    if found is None and suffix in _RAW and not head.startswith(b"EHFA"):
        return f"is no raster in itself; pixels in {suffix} need their header (.hdr) beside them"
    return found


def _has(driver: str) -> bool:
    with rasterio.Env() as env:
        return driver in env.drivers()


def _folder(path: Path) -> str | None:
    if (path / ".zgroup").exists() or (path / ".zarray").exists() or (path / "zarr.json").exists():
        return (
            f'is a Zarr folder; name an array in it, as ZARR:"{path}":/NAME, or give geoseg the '
            "DataArray from Python"
        )
    found = next(iter(sorted(path.glob("MTD_MSIL*.xml"))), None)
    if found is not None:
        return f"is a SAFE folder of Sentinel-2; give its metadata file {found}"
    if (path / "manifest.safe").exists():
        return f"is a SAFE folder; give a raster in it{_such_as(_rasters_below(path))}"
    return None


def _rasters_below(path: Path) -> list[str]:
    return [str(p) for p in sorted(path.rglob("*")) if _is_raster(p.name)]


def _is_raster(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower().removeprefix(".") in _RASTERS and not is_clutter(path)


def _such_as(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f": {', '.join(map(shown, names[:_SHOWN_NAMES]))}{more}"


def _archive(path: Path, head: bytes) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            return "is a zip archive that is damaged or incomplete; fetch it again"
        return _inside(path, "zip", names)
    if head.startswith((_GZIP, _BZIP, _XZ)) or path.suffix.lower() == ".tar":
        try:
            with tarfile.open(path) as archive:
                names = [member.name for member in archive if member.isfile()]
        except (tarfile.TarError, OSError, EOFError, ValueError):
            return _compressed(path, head)
        return _inside(path, "tar", names)
    if head.startswith((_SEVEN, _RAR)):
        return "is a packed archive; unpack it and give a raster of it"
    return None


def _compressed(path: Path, head: bytes) -> str | None:
    if not head.startswith(_GZIP):
        return "is a packed file; unpack it first"
    return f"is a gzip file; give /vsigzip/{path}, or unpack it first"


def _inside(path: Path, kind: str, names: Sequence[str]) -> str:
    rasters = [name for name in names if _is_raster(name)]
    safe = [name for name in names if Path(name).name.startswith("MTD_MSIL")]
    if not rasters and not safe:
        return f"is a {kind} archive without a raster{_such_as(names)}"
    addresses = [f"/vsi{kind}/{path}/{name}" for name in safe or rasters]
    return f"is a {kind} archive; give a raster in it{_such_as(addresses)}"


def _json(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_JSON_BYTES:
            return "is a JSON file, not a raster"
        found: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return "is a text that begins like JSON, not a raster"
    if "stac_version" in found:
        return "is a STAC item, and a raster is wanted here; give the file of one of its assets"
    if found.get("type") in ("FeatureCollection", "Feature"):
        return "is GeoJSON, vectors and no raster"
    return "is a JSON file, not a raster"
