"""What a raster file says of itself, and what is settled where it leaves something open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioIOError

from geoseg._address import is_address
from geoseg._inputs import is_there, shown
from geoseg._remote import remote_address
from geoseg.errors import GeosegError, OptionError, SceneError, not_found, warn
from geoseg.io._handles import open_dataset
from geoseg.io.bands import (
    Band,
    bands_named,
    bands_of,
    by_tags,
    by_words,
    grey_of,
    other_than_colours,
)
from geoseg.io.crs import crs_name, parse_crs, same_crs, why_no_scene
from geoseg.io.fingerprint import server_complaint
from geoseg.io.formats import what_it_is
from geoseg.types import BoolArray


def gdal_reason(error: BaseException) -> str:
    """Return the first cause GDAL named, without the line breaks."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def open_readable(path: str, **options: str) -> Any:
    """Open a raster file, or say in a line why that cannot be."""
    try:
        return open_dataset(path, **options)
    except RasterioIOError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: RasterioIOError) -> GeosegError:
    """The error of a file that cannot be opened; one that is not there is not found."""
    words = why_unreadable(path, error)
    kind = not_found(SceneError) if words.endswith("no such file") else SceneError
    return kind(words)


def why_unreadable(path: str, error: RasterioIOError) -> str:
    """Say why a file cannot be opened, and what to give instead where that is plain."""
    if not is_address(path) and ":" not in path[2:]:
        file = Path(path)
        if not is_there(file):
            return f"{shown(path)}: no such file"
        if file.is_file() and file.stat().st_size == 0:
            return f"{path}: is empty (0 bytes)"
        if said := what_it_is(file):
            return f"{path}: {said}"
        if file.is_dir():
            return f"{path}: is a folder, not a raster"
        if "not recognized" in str(error):
            return f"{path}: is not a raster in a format GDAL knows"
    if hindrance := server_complaint(path):
        return f"{path}: cannot be opened, {hindrance}"
    return f"{path}: cannot be opened ({gdal_reason(error)})"


def refuse_unusable(dataset: Any, path: str) -> None:
    """Refuse a file without bands."""
    if dataset.count == 0:
        if dataset.subdatasets:
            names = ", ".join(dataset.subdatasets)
            raise SceneError(f"{path}: is a container, name one of its subdatasets: {names}")
        raise SceneError(f"{path}: has no raster bands")


def refuse_unrectified(dataset: Any, path: str) -> None:
    """Refuse an image that only control points or a sensor model place."""
    if dataset.transform != Affine.identity():
        return
    if dataset.gcps[0]:
        raise SceneError(
            f"{path}: is placed by ground control points only; rectify it first: "
            f"gdalwarp -r bilinear {path} rectified.tif"
        )
    if dataset.rpcs is not None:
        raise SceneError(
            f"{path}: is placed by RPCs only; orthorectify it first: "
            f"gdalwarp -rpc -r bilinear {path} rectified.tif"
        )


def settle_crs(found: CRS | None, given: str | None, path: str) -> CRS | None:
    """CRS of a scene: the file's own, or the one that was given."""
    crs = found if given is None else parse_crs(given)
    reason = why_no_scene(crs)
    if reason is not None:
        raise SceneError(f"{path}: {reason}")
    if given is not None and found is not None and not same_crs(found, crs):
        warn(f"{path}: says that its CRS is {crs_name(found)}; --crs {crs_name(crs)} holds")
    return crs


def choose_bands(
    dataset: Any, bands: Sequence[int | str] | None, path: str, *, colours: bool = True
) -> tuple[tuple[int, ...], str]:
    """Bands to read, and what told which they are; any number of them unless ``colours``."""
    kinds = dataset.colorinterp
    named = bands_of(dataset)
    if bands is not None:
        numbers = bands_named(bands, named, path, kinds)
        return _check_bands(dataset, numbers, path, colours=colours), "given"
    about = " ".join([Path(path).name, *map(str, dataset.tags().values())])
    words = by_words(named, about)
    if (tagged := by_tags(kinds)) is not None:
        if words is not None and words[0] != tagged:
            _warn(
                f"{path}: colour tags say {_listed(tagged)} are red, green, blue, the bands' "
                f"{words[1]} say {_listed(words[0])}; taking the tags, else give "
                f"--bands {_listed(words[0])}"
            )
        elif words is None and colours:
            _doubt_colours(named, tagged, path)
        return tagged, "tags"
    if words is not None:
        return words
    usable = [i for i, kind in enumerate(kinds, start=1) if kind != ColorInterp.alpha]
    if len(usable) == 1:
        if (colour := grey_of(named[usable[0] - 1], Path(path).stem)) is not None:
            _warn(
                f"{path}: is one band ({colour}), mapped as grey; for colours give the files of "
                "red, green and blue together with --rgb"
            )
        return (usable[0],), "one band"
    if len(usable) < 3 and not colours:
        return tuple(usable), "order"
    if len(usable) < 3:
        raise SceneError(
            f"{path}: has {len(usable)} bands, neither one (grey) nor three (RGB); "
            "choose one with --bands 1"
        )
    if len(usable) > 4 or (len(usable) > 3 and dataset.dtypes[0] != "uint8"):
        _warn(
            f"{path}: {len(usable)} bands without colour tags or names, taking "
            f"{_listed(usable[:3])} as red, green, blue; set --bands if that is wrong"
        )
    elif colours:
        _doubt_colours(named, usable[:3], path)
    return tuple(usable[:3]), "order"


def _doubt_colours(named: Sequence[Band], chosen: Sequence[int], path: str) -> None:
    others = other_than_colours([named[band - 1] for band in chosen])
    if others is not None:
        _warn(
            f"{path}: {_listed(chosen)} are taken as red, green, blue and say that they are "
            f"{others}; set --bands if that is wrong"
        )


def _warn(message: str) -> None:
    warn(message)


def _listed(bands: Sequence[int]) -> str:
    return ",".join(str(band) for band in bands)


def untold_band(dataset: Any) -> int | None:
    """Fourth band of an 8-bit file, if no tag or name says what it is."""
    untold = dataset.count == 4 and dataset.colorinterp[3] == ColorInterp.undefined
    return 4 if untold and dataset.dtypes[3] == "uint8" and not dataset.descriptions[3] else None


def units_of(dataset: Any, bands: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    """Scale and offset of bands; empty if values mean themselves."""
    found = tuple((dataset.scales[band - 1], dataset.offsets[band - 1]) for band in bands)
    usable = all(math.isfinite(a) and a > 0 and math.isfinite(b) for a, b in found)
    return found if usable and set(found) != {(1.0, 0.0)} else ()


def special_nodata(dataset: Any, own: Sequence[float | None]) -> tuple[float, ...]:
    """Value that a Sentinel-2 product names as no data, which GDAL does not make its nodata."""
    try:
        value = float(dataset.tags().get("SPECIAL_VALUE_NODATA", "nan"))
    except ValueError:
        return ()
    return (value,) if math.isfinite(value) and own == (None,) * len(own) else ()


def as_held(values: Sequence[float], dtype: str) -> tuple[float, ...]:
    """Values as pixels of a type hold them, without those that they cannot."""
    held = (nodata_as(value, dtype) for value in values)
    return tuple(value for value in held if value is not None)


def _check_bands(
    dataset: Any, bands: tuple[int, ...], path: str, *, colours: bool
) -> tuple[int, ...]:
    text = ",".join(str(band) for band in bands)
    if not bands or (colours and len(bands) not in (1, 3)):
        raise OptionError(f"bands {text}: give three (red, green, blue) or one (grey)")
    missing = [band for band in bands if not 1 <= band <= dataset.count]
    if missing:
        raise SceneError(
            f"{path}: has bands 1 to {dataset.count}, there is no band {missing[0]} (bands {text})"
        )
    return bands


def common_dtype(dataset: Any, bands: tuple[int, ...], path: str) -> str:
    """Numpy name of a pixel type that holds the values of all bands."""
    names = {str(dataset.dtypes[band - 1]) for band in bands}
    if any(name.startswith("complex") for name in names):
        raise SceneError(
            f"{path}: holds complex numbers; compute the amplitude first, for example with "
            f'gdal_translate "DERIVED_SUBDATASET:AMPLITUDE:{path}" amplitude.tif'
        )
    return str(np.result_type(*(np.dtype(name) for name in names)))


def nodata_as(value: float | None, dtype: str) -> float | None:
    """Nodata as pixels of this type would hold it; None if they cannot, or for NaN."""
    if value is None or math.isnan(value):
        return None
    if np.issubdtype(dtype, np.floating):
        with np.errstate(over="ignore"):
            return float(np.dtype(dtype).type(value))
    limits = np.iinfo(dtype)
    if value != int(value) or not limits.min <= value <= limits.max:
        return None
    return int(value)


def where_is(values: npt.NDArray[Any], value: float) -> BoolArray:
    """Where values are one that a file names, for example its nodata.

    Whole numbers are compared as such: as fractions, which numpy takes both for, they are slow, and
    those beyond 2^53 alike.
    """
    if np.issubdtype(values.dtype, np.integer):
        kind = np.iinfo(values.dtype)
        if not (kind.min <= value <= kind.max and float(value).is_integer()):
            return np.zeros(values.shape, np.bool_)
        return np.asarray(values == values.dtype.type(int(value)))
    return np.asarray(values == np.float64(value).astype(values.dtype))


def is_sentinel(nodata: float) -> bool:
    """Whether a nodata value is one that no sensor measures."""
    return not 0 <= nodata <= np.iinfo(np.uint16).max


def mask_kind(flags: Sequence[MaskFlags]) -> Literal["none", "dataset", "band"]:
    """Which mask a file brings, by the flags of a band."""
    if MaskFlags.all_valid in flags or MaskFlags.alpha in flags:
        return "none"
    if MaskFlags.per_dataset in flags:
        return "dataset"
    return "none" if MaskFlags.nodata in flags else "band"


def alpha_band(dataset: Any, bands: tuple[int, ...]) -> int | None:
    """Number of the alpha band, if it is not among those to read."""
    kinds = dataset.colorinterp
    number = kinds.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in kinds else None
    return None if number in bands else number


def colour_table(
    dataset: Any, bands: tuple[int, ...], path: str
) -> tuple[tuple[int, int, int, int], ...] | None:
    """Colours of the one band that holds indices into them; None if bands hold values."""
    if not any(dataset.colorinterp[band - 1] == ColorInterp.palette for band in bands):
        return None
    if len(bands) > 1:
        raise SceneError(
            f"{path}: a band of {bands} is a palette; use it alone, or expand it first: "
            f"gdal_translate -expand rgb {path} rgb.tif"
        )
    table = dataset.colormap(bands[0])
    return tuple(table.get(i, (0, 0, 0, 0)) for i in range(max(table) + 1))


def remote_files(dataset: Any) -> tuple[str, ...]:
    """Addresses of the files behind a dataset that are no local ones."""
    found = (remote_address(name) for name in dataset.files)
    return tuple(dict.fromkeys(address for address in found if address is not None))


def local_files(dataset: Any) -> tuple[tuple[str, int, int], ...]:
    """Path, size and time of every local file behind a dataset."""
    found = []
    for name in dataset.files:
        file = Path(name)
        if file.is_file():
            stat = file.stat()
            found.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
