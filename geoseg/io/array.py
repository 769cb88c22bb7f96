"""Scenes that are arrays already: xarray, with numpy or dask behind it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401  registers the .rio accessor
import xarray
from rasterio.errors import RasterioError
from rioxarray.exceptions import MissingSpatialDimensionError

from geoseg._texts import Limits, Stretch, parse_stretch
from geoseg.errors import GeosegWarning, OptionError, SceneError, warn
from geoseg.io._handles import open_dataset
from geoseg.io.bands import (
    Band,
    band_of,
    bands_named,
    by_tags,
    by_words,
    other_than_colours,
)
from geoseg.io.described import is_sentinel, settle_crs
from geoseg.io.grid import Grid
from geoseg.io.placing import (
    NAME,
    axes_of,
    directions,
    grid_of,
    north_up,
    order_dims,
    spatial_dims,
    turn,
)
from geoseg.io.stretch import (
    apply_limits,
    as_stored,
    given_limits,
    measure_limits,
    warn_if_outside,
)
from geoseg.options import Reading
from geoseg.types import BoolArray, PixelBlock, Window

ArraySource = xarray.DataArray | xarray.Dataset
"""Pixels in memory or lazy: an array with bands, or a variable a band."""
Fills = tuple[float | None, ...]
"""Value of each band that is no data."""

_STATISTICS_SIZE = 2048
_NO_STRETCH = Stretch("none")
_TIME = ("time", "t", "date", "dates", "datetime")
_FILLS = ("_FillValue", "missing_value")
_CRS_KEYS = {"crs_wkt", "spatial_ref", "grid_mapping_name"}


@dataclass(frozen=True)
class ArrayScene:
    """An ``xarray.DataArray`` or ``Dataset`` read like a scene. It is never changed.

    Made by :meth:`open`. A dask array stays lazy: a read computes the chunks it touches.
    """

    array: Any
    """``(band, y, x)`` numpy or dask, with the used bands only, from north to south and from west
    to east."""
    grid: Grid
    stretch: Limits | None
    fills: Fills
    colours: bool = True
    """Whether pixels are red, green and blue; otherwise one plane for every band."""
    raw: bool = False
    """Whether values stay as they are."""
    rule: Stretch = _NO_STRETCH
    """How ``stretch`` is found, with ``auto`` as it was given."""
    pending: bool = False
    """Whether ``stretch`` has still to be measured, see `measured`."""
    whole: np.dtype[np.integer[Any]] | None = None
    """Type of whole numbers that were turned into floats to mark nodata, if they may have been."""
    units: tuple[tuple[float, float], ...] = ()
    """Scale and offset of the bands; empty if values mean themselves."""
    bands: tuple[int, ...] = ()
    """Which bands are used, counted from 1."""
    names: tuple[str, ...] = ()
    """What they are called."""
    told_by: str = "order"
    """What told which bands are red, green and blue."""
    turned: tuple[bool, bool] = (False, False)
    """Whether the rows came from south to north, the columns from east to west."""
    axes: Mapping[str, xarray.Variable] | None = None
    """Coordinates of rows and columns as they came, under their own names; None if they are to be
    counted from the grid."""
    dims: tuple[Hashable, Hashable] = ("y", "x")
    """Names of the rows' and columns' dimensions as they came."""

    @classmethod
    def open(
        cls,
        array: ArraySource,
        *,
        bands: Sequence[int | str] | None = None,
        stretch: str = "auto",
        crs: str | None = None,
        colours: bool = True,
        lazily: bool = False,
    ) -> ArrayScene:
        """Settle dimensions, bands, placement and stretch of an array.

        Parameters
        ----------
        array
            Dimensions ``(y, x)``, ``(band, y, x)`` or ``(y, x, band)``; latitude and longitude
            are taken for y and x, and whatever ``rio.set_spatial_dims`` names. CRS, transform and
            nodata as rioxarray finds them. Of a Dataset, each variable ``(y, x)`` is a band. Rows
            may come from north or south, columns from west or east.
        bands, stretch, crs, colours
            As for :meth:`geoseg.io.scene.Scene.open`; bands may also be names.
        lazily
            Read no pixel of a dask array: what has to be measured is ``pending``.

        Raises
        ------
        SceneError
            If dimensions, type or bands cannot be used, or rows or columns lie unevenly.
        OptionError
            If ``bands`` or ``stretch`` make no sense.
        """
        return _opened(_planes(array), bands, stretch, crs, colours=colours, lazily=lazily)

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""
        return self.grid.shape

    @property
    def is_lazy(self) -> bool:
        """Whether the pixels are dask's."""
        return hasattr(self.array, "dask")

    def read(self, window: Window) -> PixelBlock:
        """Read a window as float RGB with its valid mask.

        Raises
        ------
        ValueError
            If the window is not inside the array.
        """
        if window.intersection(self.grid.window) != window:
            raise ValueError(f"{window} is not inside the array of {self.shape} pixels")
        return self.block(np.asarray(self.pixels(window)))

    def pixels(self, window: Window) -> Any:
        """Values of a window as they are stored, ``(band, h, w)``: a dask array stays lazy.

        Computed, they go to `block`.
        """
        rows, cols = window.slices()
        return self.array[:, rows, cols]

    def block(self, data: npt.NDArray[Any]) -> PixelBlock:
        """Turn stored values of this array into pixels."""
        valid = _valid(data, self.fills)
        rgb = as_stored(data, valid) if self.raw else apply_limits(data, valid, self.stretch)
        grey = self.colours and len(rgb) == 1
        return PixelBlock(np.repeat(rgb, 3, axis=0) if grey else rgb, valid)

    def check_range(self, data: npt.NDArray[Any]) -> None:
        """Warn where a range that was given lies beside the values, ``(band, h, w)``."""
        if self.rule.kind == "range" and self.stretch is not None:
            values = data[:, _valid(data, self.fills)]
            warn_if_outside(self.stretch, values, self.units, NAME)

    def is_empty(self, window: Window) -> bool:
        """Tell whether no pixel of a window is valid."""
        may = self.fills.count(None) < len(self.fills) or self.array.dtype.kind == "f"
        return may and not self.read(window).valid.any()

    def known_empty(self, window: Window) -> bool:
        """Tell nothing: an array has to be read to know."""
        return False

    def thumbnail(self, max_size: int) -> PixelBlock:
        """Read every n-th pixel, so that the longer side has ``max_size`` pixels or fewer."""
        return self.block(np.asarray(self.sample(max_size)))

    def sample(self, max_size: int = _STATISTICS_SIZE) -> Any:
        """Every n-th pixel as it is stored, as for `thumbnail`; of a dask array as dask's."""
        step = max(1, math.ceil(max(self.shape) / max_size))
        return self.array[:, ::step, ::step]

    def without_pixels(self) -> ArrayScene:
        """What is known of the array, without its values."""
        return replace(self, array=np.empty((0, 0, 0), self.array.dtype), axes=None)

    def measured(self, sample: npt.NDArray[Any]) -> ArrayScene:
        """The same scene with its stretch measured on a sample, ``(band, h, w)``."""
        valid = _valid(sample, self.fills)
        whole = self.whole if _are_whole(sample[:, valid]) else None
        rule = self.rule.for_dtype(whole or sample.dtype)
        if rule.kind == "none" and whole is not None:
            full = ((0.0, float(np.iinfo(whole).max)),) * len(sample)
            return replace(self, stretch=full, pending=False)
        limits = measure_limits(rule, sample, valid, path=NAME, units=self.units)
        return replace(self, stretch=limits, pending=False)

    def facts(self) -> dict[str, Any]:
        """What the pixels depend on besides the values of the array; plain JSON values."""
        grid = self.grid
        return {
            "shape": list(grid.shape),
            "transform": list(grid.transform)[:6],
            "crs": None if grid.crs is None else grid.crs.to_wkt(),
            "bands": [str(self.array.dtype), *self.bands],
            "nodata": [None if v is None else str(v) for v in self.fills],
            "stretch": [str(self.rule), self.stretch, self.raw, self.colours, self.pending],
            "whole": None if self.whole is None else str(self.whole),
            "units": self.units,
        }


def taken_by_arrays(reading: Reading) -> dict[str, Any]:
    """What `ArrayScene.open` takes of a reading.

    Raises
    ------
    OptionError
        If something of it is for files.
    """
    if reading.gsd is not None:
        raise OptionError(
            "the xarray scene cannot be read at another gsd; resample the array (rioxarray's "
            "rio.reproject), or give the path of a file"
        )
    if reading.mask is not None:
        raise OptionError(
            "a mask is for files; mask the array itself: array.where(clear), which makes NaN "
            "of what is left out"
        )
    if reading.nodata or reading.ignore_alpha:
        raise OptionError(
            "nodata and ignore_alpha are for files; an array says its nodata itself: "
            "array.rio.write_nodata(0)"
        )
    return {"bands": reading.bands, "stretch": reading.stretch, "crs": reading.crs}


def time_of(array: ArraySource) -> Hashable | None:
    """Dimension of a stack along which scenes lie one after another; None for one scene."""
    if isinstance(array, xarray.Dataset):
        found = {time_of(variable) for _, variable in _variables(array)}
        return next(iter(found - {None}), None)
    y, x = spatial_dims(array)
    others = [dim for dim in array.dims if dim not in (y, x)]
    for dim in others:
        dated = dim in array.coords and array.coords[dim].dtype.kind == "M"
        if dated or str(dim).lower() in _TIME:
            return dim
    return None


def open_stack(
    array: ArraySource,
    dim: Hashable,
    *,
    bands: Sequence[int | str] | None = None,
    stretch: str = "auto",
    crs: str | None = None,
    colours: bool = True,
    lazily: bool = False,
) -> tuple[ArrayScene, ...]:
    """Open every scene of a stack along a dimension, all with one stretch; see `ArrayScene.open`.

    Where the stretch has still to be measured, that is to be done on the `stacked_sample`.
    """
    if not array.sizes[dim]:
        raise SceneError(f"{NAME} has no {dim}: the selection meets nothing")
    first, *rest = (_planes(array.isel({dim: i})) for i in range(array.sizes[dim]))
    with warnings.catch_warnings():
        if rest:  # of how its values lie, the first one alone says nothing
            warnings.filterwarnings("ignore", "no pixel with data", GeosegWarning)
        one = _opened(first, bands, stretch, crs, colours=colours, lazily=lazily, measure=not rest)
    others = (turn(planes.pixels(one.bands), one.turned) for planes in rest)
    scenes = (one, *(replace(one, array=pixels) for pixels in others))
    if rest and one.pending and not (lazily and one.is_lazy):
        known = one.measured(np.asarray(stacked_sample(scenes)))
        return tuple(replace(s, stretch=known.stretch, pending=False) for s in scenes)
    return scenes


def stacked_sample(scenes: Sequence[ArrayScene]) -> Any:
    """Every n-th pixel of all scenes of a stack, ``(band, h, w)``."""
    size = max(_STATISTICS_SIZE // math.ceil(math.sqrt(len(scenes))), 1)
    parts = [scene.sample(size) for scene in scenes]
    if scenes[0].is_lazy:
        import dask.array as da

        return da.concatenate(parts, axis=1)
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class _Planes:
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


def _planes(array: ArraySource) -> _Planes:
    if isinstance(array, xarray.Dataset):
        chosen = _variables(array)
        if len(chosen) == 1:
            return _planes(chosen[0][1])
        return _of_variables(chosen)
    ordered, dims, bands = order_dims(array)
    if array.dtype.kind not in "iuf":
        raise SceneError(f"{NAME} holds {array.dtype}; a scene holds whole or real numbers")
    told = _names(ordered, str(bands))
    fill = fill_of(array)
    return _Planes(
        (ordered,),
        ordered.isel(band=0, drop=True) if ordered.sizes["band"] else ordered,
        told,
        (fill,) * len(told),
        _units(ordered, len(told)),
        _whole_type(array),
        dims,
    )


def _of_variables(chosen: Sequence[tuple[str, xarray.DataArray]]) -> _Planes:
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
    return _Planes(
        tuple(parts),
        parts[0],
        tuple(told),
        tuple(fill_of(variable) for _, variable in chosen),
        () if plain else tuple(units),
        wholes.pop() if len(wholes) == 1 else None,
        dims,
    )


def _variables(dataset: xarray.Dataset) -> list[tuple[str, xarray.DataArray]]:
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


def _opened(
    planes: _Planes,
    bands: Sequence[int | str] | None,
    stretch: str,
    crs: str | None,
    *,
    colours: bool,
    lazily: bool,
    measure: bool = True,
) -> ArrayScene:
    height, width = (planes.place.sizes[dim] for dim in ("y", "x"))
    if not height or not width or not planes.count:
        raise SceneError(
            f"{NAME} has no pixels ({height} x {width}, {planes.count} bands): the selection "
            "meets nothing; look at its coordinates, y often descends: sel(y=slice(high, low))"
        )
    chosen, told_by = _choose_bands(planes, bands, colours=colours)
    used = planes.pixels(chosen)
    place = planes.place
    grid, told = grid_of(place, settle_crs(place.rio.crs, crs, NAME))
    turned = directions(grid)
    wanted = parse_stretch(stretch)
    raw = wanted.kind == "raw"
    if raw and colours:
        raise OptionError("stretch raw is for a scorer of your own; models of words see colours")
    fills = tuple(planes.fills[band - 1] for band in chosen)
    units = tuple(planes.units[band - 1] for band in chosen) if planes.units else ()
    scene = ArrayScene(
        turn(used, turned),
        north_up(grid, turned),
        None,
        fills,
        colours,
        raw,
        rule=wanted,
        whole=planes.whole if used.dtype.kind == "f" else None,
        units=units,
        bands=chosen,
        names=tuple(planes.called[band - 1] for band in chosen),
        told_by=told_by,
        turned=turned,
        axes=axes_of(place) if told else None,
        dims=planes.dims,
    )
    if raw or (used.dtype.kind in "iu" and wanted.for_dtype(used.dtype).kind == "none"):
        return scene
    if lazily and scene.is_lazy and wanted.kind == "range":
        given = given_limits(wanted, len(chosen), used.dtype, path=NAME, units=units)
        return replace(scene, stretch=given)
    if (lazily and scene.is_lazy) or not measure:
        return replace(scene, pending=True)
    return scene.measured(np.asarray(scene.sample()))


def _are_whole(values: npt.NDArray[Any]) -> bool:
    if not values.size:
        return False
    return bool(values.max() > 1 and (values == np.rint(values)).all())


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


def _valid(data: npt.NDArray[Any], fills: Fills) -> BoolArray:
    """Where pixels hold data; a value that real pixels can take is none only where all have it."""
    valid = np.ones(data.shape[1:], np.bool_)
    floating = data.dtype.kind == "f"
    if floating:
        valid &= np.isfinite(data).all(axis=0)
    known = [fill for fill in fills if fill is not None]
    if not known:
        return valid
    hits = [
        np.zeros(band.shape, np.bool_)
        if fill is None
        else band == np.float64(fill).astype(data.dtype if floating else np.float64)
        for band, fill in zip(data, fills, strict=True)
    ]
    sentinels = [
        hit for hit, fill in zip(hits, fills, strict=True) if fill is not None and is_sentinel(fill)
    ]
    held = np.logical_or.reduce(sentinels) if sentinels else np.logical_and.reduce(hits)
    return np.asarray(valid & ~held)


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


def _choose_bands(
    planes: _Planes, bands: Sequence[int | str] | None, *, colours: bool
) -> tuple[tuple[int, ...], str]:
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


def _by_file(planes: _Planes) -> tuple[int, int, int] | None:
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
