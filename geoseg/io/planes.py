"""What an array says of itself: bands and their names, nodata, scale and offset."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray
from rasterio.errors import RasterioError
from rioxarray.exceptions import MissingSpatialDimensionError

from geoseg.errors import OptionError, SceneError, warn
from geoseg.io._handles import open_dataset
from geoseg.io.bands import Band, band_of, bands_named, by_tags, by_words, other_than_colours
from geoseg.io.placing import NAME, order_dims, spatial_dims

ArraySource = xarray.DataArray | xarray.Dataset
"""Pixels in memory or lazy: an array with bands, or a variable a band."""
Fills = tuple[float | None, ...]
"""Value of each band that is no data."""

_FILLS = ("_FillValue", "missing_value")
_CRS_KEYS = {"crs_wkt", "spatial_ref", "grid_mapping_name"}


@dataclass(frozen=True)
class Planes:
    """Bands of an array, and what they say of themselves."""

    parts: tuple[xarray.DataArray, ...]
    """One ``(band, y, x)`` with all bands, or one ``(y, x)`` a band."""
    place: xarray.DataArray
    """``(y, x)``: what says where the pixels lie."""
    told: tuple[Band, ...]
    fills: Fills
    units: tuple[tuple[float, float], ...]
    whole: np.dtype[np.integer[Any]] | None
    dims: tuple[Hashable, Hashable]

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.told)

    @cached_property
    def called(self) -> tuple[str, ...]:
        """What a person calls the bands."""
        return tuple(
            band.names[0] if band.names else str(number)
            for number, band in enumerate(self.told, start=1)
        )

    def pixels(self, chosen: Sequence[int]) -> Any:
        """Values of some bands, ``(band, y, x)``, numpy or dask."""
        if len(self.parts) == 1 and self.parts[0].ndim == 3:
            return self.parts[0].isel(band=[band - 1 for band in chosen]).data
        planes = [self.parts[band - 1].data for band in chosen]
        if any(hasattr(plane, "dask") for plane in planes):
            import dask.array as da

            return da.stack(planes)
        return np.stack([np.asarray(plane) for plane in planes])

    @property
    def source(self) -> str | None:
        """File that a 3-D array was opened from, if it says so."""
        return _source_of(self.parts[0]) if len(self.parts) == 1 else None


def planes_of(array: ArraySource) -> Planes:
    """Settle what an array's bands are.

    Raises
    ------
    SceneError
        If dimensions or type cannot be used.
    """
    if isinstance(array, xarray.Dataset):
        chosen = variables_of(array)
        if len(chosen) == 1:
            return planes_of(chosen[0][1])
        return _of_variables(chosen)
    ordered, dims, bands = order_dims(array)
    if array.dtype.kind not in "iuf":
        raise SceneError(f"{NAME} holds {array.dtype}; a scene holds whole or real numbers")
    told = _names(ordered, str(bands))
    fill = fill_of(array)
    return Planes(
        (ordered,),
        ordered.isel(band=0, drop=True) if ordered.sizes["band"] else ordered,
        told,
        (fill,) * len(told),
        _units(ordered, len(told)),
        _whole_type(array),
        dims,
    )


def _of_variables(chosen: Sequence[tuple[str, xarray.DataArray]]) -> Planes:
    parts, told, units = [], [], []
    for name, variable in chosen:
        ordered, dims, _ = order_dims(variable)
        if ordered.sizes["band"] != 1:
            raise SceneError(
                f"{NAME}: its variable {name} has dimensions "
                f"{', '.join(map(str, variable.dims))}, and of several variables each is a band "
                "(y, x); give the one that is the scene: dataset[name]"
            )
        parts.append(ordered.isel(band=0, drop=True))
        told.append(band_of(name, dict(variable.attrs)))
        units.append((_units(ordered, 1) or ((1.0, 0.0),))[0])
    wholes = {_whole_type(variable) for _, variable in chosen}
    plain = all(unit == (1.0, 0.0) for unit in units)
    return Planes(
        tuple(parts),
        parts[0],
        tuple(told),
        tuple(fill_of(variable) for _, variable in chosen),
        () if plain else tuple(units),
        wholes.pop() if len(wholes) == 1 else None,
        dims,
    )


def variables_of(dataset: xarray.Dataset) -> list[tuple[str, xarray.DataArray]]:
    """Variables that can be bands: numbers that lie on rows and columns."""
    found = []
    mappings = [n for n, v in dataset.data_vars.items() if not v.ndim and _CRS_KEYS & set(v.attrs)]
    dataset = dataset.set_coords(mappings)
    for name, variable in dataset.data_vars.items():
        try:
            spatial = set(spatial_dims(variable))
        except SceneError:
            continue
        if spatial <= set(variable.dims) and variable.dtype.kind in "iuf":
            found.append((str(name), variable))
    if not found:
        held = ", ".join(map(str, dataset.data_vars)) or "none"
        raise SceneError(f"{NAME}: no variable of the Dataset is an image (y, x); it has {held}")
    return found


def _whole_type(array: xarray.DataArray) -> np.dtype[np.integer[Any]] | None:
    """Type of the whole numbers that a reader may have turned into floats to mark nodata."""
    encoding = array.encoding
    stored = np.dtype(encoding.get("rasterio_dtype", encoding.get("dtype", array.dtype)))
    scaled = {"scale_factor", "add_offset", "scales", "offsets"} & encoding.keys()
    if scaled or stored.kind not in "iu" or stored == array.dtype:
        return None
    return np.dtype(stored)


def fill_of(array: xarray.DataArray) -> float | None:
    """Value that is no data: of the attributes, or of the encoding where it was not decoded."""
    stored = next((array.encoding[k] for k in _FILLS if k in array.encoding), None)
    if stored is not None:
        # Decoded floats have NaN in its place, and another value may have become the same.
        decoded = array.dtype.kind == "f" and (
            {"scale_factor", "add_offset", "scales", "offsets"} & array.encoding.keys()
        )
        return None if decoded else _as_number(stored)
    try:
        return _as_number(array.rio.nodata)
    except (OverflowError, TypeError, ValueError, MissingSpatialDimensionError):
        return _as_number(next((array.attrs[k] for k in _FILLS if k in array.attrs), None))


def _as_number(value: Any) -> float | None:
    try:
        number = float(np.asarray(value).ravel()[0])
    except (TypeError, ValueError, IndexError):
        return None
    return None if math.isnan(number) else number


def _units(array: xarray.DataArray, count: int) -> tuple[tuple[float, float], ...]:
    """Scale and offset of the bands by the attributes; empty if values mean themselves.

    Floats mean themselves: of those that somebody has scaled, xarray keeps the attributes.
    """
    if array.dtype.kind == "f":
        return ()
    columns = []
    for one, many, default in (("scale_factor", "scales", 1.0), ("add_offset", "offsets", 0.0)):
        column = np.ravel(array.attrs.get(one, array.attrs.get(many, default)))
        try:
            columns.append([float(v) for v in _of_bands(array, column) or column[:1]])
        except (TypeError, ValueError):
            return ()
    scales, offsets = (column * count if len(column) == 1 else column for column in columns)
    found = tuple(zip(scales, offsets, strict=True))
    usable = all(math.isfinite(a) and a > 0 and math.isfinite(b) for a, b in found)
    return found if usable and set(found) != {(1.0, 0.0)} else ()


def _is_of_wavelengths(name: str, coord: xarray.DataArray) -> bool:
    """Whether numbers along the bands are wavelengths; numbers of bands are whole."""
    units = str(coord.attrs.get("units", "")).lower()
    told = "wave" in name.lower() or units in ("nm", "um", "µm", "μm") or "met" in units
    if told or coord.dtype.kind != "f":
        return told
    return bool((np.asarray(coord) % 1 != 0).any())


def _names(array: xarray.DataArray, dim: str) -> tuple[Band, ...]:
    """What names the bands: texts of their coordinate, else ``long_name``, coordinates beside it.

    ``dim`` is what their dimension was called.
    """
    count = array.sizes["band"]
    told: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, coord in array.coords.items():
        if coord.dims != ("band",):
            continue
        kind = str(name)
        if coord.dtype.kind not in "OUST" and kind in ("band", dim):
            if not _is_of_wavelengths(dim, coord):
                continue  # numbers of bands
            kind = "wavelength"
        elif "wavelength" in kind.lower():
            kind = "wavelength"
        for one, value in zip(told, coord.values, strict=True):
            one["bandname" if kind == "band" else kind] = value
    texts = any({"bandname", dim} & one.keys() for one in told)
    names = (None if texts else _long_names(array)) or [None] * count
    return tuple(band_of(name, tags) for name, tags in zip(names, told, strict=True))


def _long_names(array: xarray.DataArray) -> list[Any] | None:
    """Names that ``long_name`` lists, of the bands that are left."""
    long = array.attrs.get("long_name", ())
    long = [long] if isinstance(long, str) and array.sizes["band"] == 1 else long
    if not isinstance(long, list | tuple):
        return None
    found = _of_bands(array, long)
    if found == list(long) or len(long) != array.sizes["band"]:
        return found
    # Bands were turned round: the list is still the file's, or was given since.
    source = _source_of(array)
    if source is None:
        warn(
            f"{NAME}: long_name is taken to list the bands in the order of their numbers, so that "
            f"these are {', '.join(map(str, found or ()))}; give bands if that is wrong"
        )
        return found
    with open_dataset(source) as dataset:
        return found if tuple(long) == dataset.descriptions else list(long)


def _source_of(array: xarray.DataArray) -> str | None:
    found = array.encoding.get("source")
    return str(found) if found and Path(str(found)).is_file() else None


def _of_bands(array: xarray.DataArray, listed: Any) -> list[Any] | None:
    """What an attribute lists for each of the bands that are left; None if it is not theirs.

    It lists the bands of the file, which keep their numbers where some are taken or turned round,
    while the attribute stays as it was.
    """
    numbers = array.coords.get("band")
    if numbers is not None and numbers.dims == ("band",) and numbers.dtype.kind in "iu":
        places = [int(number) - 1 for number in numbers.values]
        if all(0 <= place < len(listed) for place in places):
            return [listed[place] for place in places]
    return list(listed) if len(listed) == array.sizes["band"] else None


def choose_bands(
    planes: Planes, bands: Sequence[int | str] | None, *, colours: bool
) -> tuple[tuple[int, ...], str]:
    """Numbers of the bands to use, counted from 1, and what told which."""
    count = planes.count
    if bands is not None:
        chosen = bands_named(bands, planes.told, NAME)
        if not chosen or (colours and len(chosen) not in (1, 3)):
            raise OptionError(f"bands {tuple(bands)}: give three (red, green, blue) or one (grey)")
        if not all(1 <= band <= count for band in chosen):
            raise SceneError(f"{NAME} has bands 1 to {count}, not all of {chosen}")
        return chosen, "given"
    if (told := by_words(planes.told)) is not None:
        return told
    if count > 3 and (tagged := _by_file(planes)) is not None:
        return tagged, "tags"
    if count > 3:
        named = any(band.names for band in planes.told)
        warn(
            f"{NAME} has {count} bands "
            + (f"({', '.join(planes.called)}) and nothing says which" if named else "without names")
            + ", taking 1,2,3 as red, green, blue; give bands if that is wrong"
        )
    if count == 2 and not colours:
        return (1, 2), "order"
    if count == 2:
        raise SceneError(
            f"{NAME} has {count} bands, neither one (grey) nor three (RGB); give bands, one of "
            f"{', '.join(planes.called)}"
        )
    if count == 1:
        return (1,), "one band"
    others = other_than_colours(planes.told) if colours and count == 3 else None
    if others is not None:
        warn(
            f"{NAME}: its bands are taken as red, green, blue and say that they are {others}; "
            "give bands if that is wrong"
        )
    return (1, 2, 3), "order"


def _by_file(planes: Planes) -> tuple[int, int, int] | None:
    """Red, green and blue by the colour tags of the file that an array was opened from."""
    numbers = planes.parts[0].coords.get("band")
    if planes.source is None or numbers is None or numbers.dtype.kind not in "iu":
        return None
    try:
        with open_dataset(planes.source) as dataset:
            kinds = [dataset.colorinterp[int(number) - 1] for number in numbers.values]
    except (RasterioError, IndexError):
        return None
    return by_tags(kinds)
