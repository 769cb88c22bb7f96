"""Scenes that are arrays already: xarray, with numpy or dask behind it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401  registers the .rio accessor
import xarray
from affine import Affine
from rioxarray.exceptions import MissingSpatialDimensionError

from geoseg.errors import GeosegWarning, OptionError, SceneError
from geoseg.io.bands import Band, band_of, by_words
from geoseg.io.described import settle_crs
from geoseg.io.grid import Grid
from geoseg.io.stretch import Limits, apply_limits, as_stored, measure_limits, parse_stretch
from geoseg.types import BoolArray, PixelBlock, Window

_STATISTICS_SIZE = 2048
_HALF = 1e-3
"""Pixels by which half a pixel may be rounded."""
_UNEVEN = 0.1
"""Pixels by which a coordinate may lie off its place."""
_NAME = "the array"
_Y, _X = ("y", "lat", "latitude"), ("x", "lon", "longitude")


@dataclass(frozen=True)
class ArrayScene:
    """An ``xarray.DataArray`` read like a scene. The array is never changed.

    Made by :meth:`open`. A dask array stays lazy: a read computes the chunks it touches.
    """

    array: xarray.DataArray
    """``(band, y, x)``, with the used bands only."""
    grid: Grid
    stretch: Limits | None
    nodata: float | None
    colours: bool = True
    """Whether pixels are red, green and blue; otherwise one plane for every band."""
    raw: bool = False
    """Whether values stay as they are."""

    @classmethod
    def open(
        cls,
        array: xarray.DataArray,
        *,
        bands: Sequence[int] | None = None,
        stretch: str = "auto",
        crs: str | None = None,
        colours: bool = True,
    ) -> ArrayScene:
        """Settle dimensions, bands, placement and stretch of an array.

        Parameters
        ----------
        array
            Dimensions ``(y, x)``, ``(band, y, x)`` or ``(y, x, band)``; latitude and longitude
            are taken for y and x, and whatever ``rio.set_spatial_dims`` names. CRS, transform and
            nodata as rioxarray finds them.
        bands, stretch, crs, colours
            As for :meth:`geoseg.io.scene.Scene.open`.

        Raises
        ------
        SceneError
            If dimensions, type or bands cannot be used, or rows or columns lie unevenly.
        OptionError
            If ``bands`` or ``stretch`` make no sense.
        """
        ordered = _order_dims(array)
        chosen = _choose_bands(ordered, bands, colours=colours)
        used = ordered.isel(band=[band - 1 for band in chosen])
        if used.dtype == np.bool_ or not (
            np.issubdtype(used.dtype, np.integer) or np.issubdtype(used.dtype, np.floating)
        ):
            raise SceneError(f"{_NAME} holds {used.dtype}; a scene holds whole or real numbers")
        nodata = array.rio.nodata
        _refuse_uneven(used)
        place = settle_crs(array.rio.crs, crs, _NAME)
        transform = _transform(used)
        if {"x", "y"} <= set(used.coords):
            transform = _corrected(used, transform)
        grid = Grid(place, transform, used.sizes["y"], used.sizes["x"])
        wanted, integers = parse_stretch(stretch), np.issubdtype(used.dtype, np.integer)
        raw = wanted.kind == "raw"
        if raw and colours:
            raise OptionError(
                "stretch raw is for a scorer of your own; models of words see colours"
            )
        scene = cls(used, grid, None, None if nodata is None else float(nodata), colours, raw)
        if raw:
            return scene
        if integers and wanted.for_dtype(used.dtype).kind == "none":
            return scene
        sample, valid = scene._decimated(_STATISTICS_SIZE)
        whole = _whole_numbers(array, sample[:, valid])
        rule = wanted.for_dtype(whole or used.dtype)
        if rule.kind == "none" and whole is not None:
            full = ((0.0, float(np.iinfo(whole).max)),) * len(chosen)
            return replace(scene, stretch=full)
        limits = measure_limits(rule, sample, valid, path=_NAME)
        return replace(scene, stretch=limits)

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""
        return self.grid.shape

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

        Computed, they go to :func:`as_block` with `how`.
        """
        rows, cols = window.slices()
        return self.array[:, rows, cols].data

    @property
    def how(self) -> tuple[Limits | None, float | None, bool, bool]:
        """What :func:`as_block` needs to know besides the values."""
        return self.stretch, self.nodata, self.colours, self.raw

    def block(self, data: npt.NDArray[Any]) -> PixelBlock:
        """Turn stored values of this array into pixels."""
        return as_block(data, *self.how)

    def is_empty(self, window: Window) -> bool:
        """Tell whether no pixel of a window is valid."""
        may = self.nodata is not None or np.issubdtype(self.array.dtype, np.floating)
        return may and not self.read(window).valid.any()

    def known_empty(self, window: Window) -> bool:
        """Tell nothing: an array has to be read to know."""
        return False

    def thumbnail(self, max_size: int) -> PixelBlock:
        """Read every n-th pixel, so that the longer side has ``max_size`` pixels or fewer."""
        data, _ = self._decimated(max_size)
        return self.block(data)

    def _decimated(self, max_size: int) -> tuple[npt.NDArray[Any], BoolArray]:
        step = max(1, math.ceil(max(self.shape) / max_size))
        data = np.asarray(self.array[:, ::step, ::step].data)
        return data, _valid(data, self.nodata)


def _whole_numbers(
    array: xarray.DataArray, values: npt.NDArray[Any]
) -> np.dtype[np.integer[Any]] | None:
    """Type of the whole numbers that rioxarray has turned into floats to mark nodata, if it has."""
    stored = np.dtype(array.encoding.get("rasterio_dtype", array.dtype))
    if not np.issubdtype(stored, np.integer) or stored == array.dtype or not values.size:
        return None
    as_they_were = values.max() > 1 and bool((values == np.rint(values)).all())
    return stored if as_they_were else None


def as_block(
    data: npt.NDArray[Any],
    stretch: Limits | None,
    nodata: float | None,
    colours: bool = True,
    raw: bool = False,
) -> PixelBlock:
    """Turn stored values ``(C, h, w)`` into float RGB, or planes, with their valid mask."""
    valid = _valid(data, nodata)
    rgb = as_stored(data, valid) if raw else apply_limits(data, valid, stretch)
    grey = colours and len(rgb) == 1
    return PixelBlock(np.repeat(rgb, 3, axis=0) if grey else rgb, valid)


def _valid(data: npt.NDArray[Any], nodata: float | None) -> BoolArray:
    valid = np.ones(data.shape[1:], np.bool_)
    if np.issubdtype(data.dtype, np.floating):
        valid &= np.isfinite(data).all(axis=0)
    if nodata is not None and not math.isnan(nodata):
        hits = data == np.float64(nodata).astype(
            data.dtype if np.issubdtype(data.dtype, np.floating) else np.float64
        )
        valid &= ~(hits.all(axis=0) if nodata >= 0 else hits.any(axis=0))
    return valid


def _order_dims(array: xarray.DataArray) -> xarray.DataArray:
    """Bring the dimensions to ``(band, y, x)``."""
    names = [str(dim) for dim in array.dims]
    try:
        y, x = str(array.rio.y_dim), str(array.rio.x_dim)
    except MissingSpatialDimensionError:
        y = next((name for name in names if name.lower() in _Y), "")
        x = next((name for name in names if name.lower() in _X), "")
    others = [name for name in names if name not in (y, x)]
    if not y or not x or len(others) > 1:
        raise SceneError(
            f"{_NAME} has dimensions {', '.join(names) or 'none'}; geoseg reads (band, y, x) or "
            "(y, x, band): rename or select them, or name them with rio.set_spatial_dims"
        )
    if not others:
        array, others = array.expand_dims("band"), ["band"]
    renamed = {old: new for old, new in ((others[0], "band"), (y, "y"), (x, "x")) if old != new}
    return array.rename(renamed).transpose("band", "y", "x")


def _names(array: xarray.DataArray) -> list[Band]:
    """What names the bands: values of their coordinate, ``long_name``, coordinates beside it."""
    count = array.sizes["band"]
    told: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, coord in array.coords.items():
        if coord.dims != ("band",):
            continue
        kind = "wavelength" if "wavelength" in str(name).lower() else str(name)
        if kind == "band" and coord.dtype.kind not in "OUST":
            continue  # numbers of bands
        for one, value in zip(told, coord.values, strict=True):
            one["bandname" if kind == "band" else kind] = value
    long = array.attrs.get("long_name", ())
    names = list(long) if isinstance(long, list | tuple) and len(long) == count else [None] * count
    return [band_of(name, tags) for name, tags in zip(names, told, strict=True)]


def _choose_bands(
    array: xarray.DataArray, bands: Sequence[int] | None, *, colours: bool
) -> tuple[int, ...]:
    count = array.sizes["band"]
    if bands is None:
        if (told := by_words(_names(array))) is not None:
            return told[0]
        if count > 4 or (count == 4 and array.dtype != np.uint8):
            warnings.warn(
                f"{_NAME} has {count} bands without names, taking 1,2,3 as red, green, blue; "
                "give bands if that is wrong",
                GeosegWarning,
                stacklevel=2,
            )
        if count == 2 and not colours:
            return (1, 2)
        if count == 2 or count == 0:
            raise SceneError(f"{_NAME} has {count} bands, neither one (grey) nor three (RGB)")
        return (1,) if count == 1 else (1, 2, 3)
    chosen = tuple(bands)
    if not chosen or (colours and len(chosen) not in (1, 3)):
        raise OptionError(f"bands {chosen}: give three (red, green, blue) or one (grey)")
    if not all(1 <= band <= count for band in chosen):
        raise SceneError(f"{_NAME} has bands 1 to {count}, not all of {chosen}")
    return chosen


def _transform(array: xarray.DataArray) -> Affine:
    """Affine transform; the identity if the array has nothing to tell it by."""
    has_coords = {"x", "y"} <= set(array.coords)
    if "spatial_ref" not in array.coords and not has_coords:
        return Affine.identity()
    stored: Affine = array.rio.transform()
    if not has_coords or min(array.sizes["y"], array.sizes["x"]) < 2:
        return stored
    # A slice keeps the stored transform of the whole; the coordinates know better, but only to
    # rounding.
    counted: Affine = array.rio.transform(recalc=True)
    tolerance = 1e-6 * abs(counted.a)
    return stored if stored.almost_equals(counted, precision=tolerance) else counted


def _corrected(array: xarray.DataArray, counted: Affine) -> Affine:
    """Transform that coordinates tell, half a pixel on where they are the pixels' corners.

    They are, as stackstac gives them, if the transform that the array carries lies whole pixels
    and a half away: the array may be a slice.
    """
    stored = _carried(array)
    if stored is None or stored.determinant == 0:
        return counted
    col, row = ~stored @ (counted.c, counted.f)
    alike = np.allclose(stored[:6:3], counted[:6:3]) and np.allclose(stored[1:6:3], counted[1:6:3])
    if alike and all(abs(away % 1 - 0.5) < _HALF for away in (col, row)):
        return counted @ Affine.translation(0.5, 0.5)
    return counted


def _carried(array: xarray.DataArray) -> Affine | None:
    """Transform in the attributes of an array or of its grid mapping."""
    mapping = array.coords.get(array.rio.grid_mapping)
    text = None if mapping is None else mapping.attrs.get("GeoTransform")
    try:
        if text is not None:
            return Affine.from_gdal(*map(float, str(text).split()))
        return Affine(*map(float, array.attrs["transform"][:6]))
    except (KeyError, TypeError, ValueError):
        return None


def _refuse_uneven(array: xarray.DataArray) -> None:
    for name, what in (("y", "rows"), ("x", "columns")):
        if name not in array.coords or array.sizes[name] < 2:
            continue
        places = np.asarray(array.coords[name].values)
        if places.ndim != 1 or places.dtype.kind not in "iuf":
            continue
        even = np.linspace(places[0], places[-1], len(places), dtype=np.float64)
        step = abs(even[1] - even[0])
        # Degrees are often kept as float32, which rounds them.
        rounding = np.abs(even).max() * float(
            np.finfo(places.dtype).eps if places.dtype.kind == "f" else 0
        )
        if not step or not np.abs(places - even).max() <= _UNEVEN * step + rounding:
            raise SceneError(
                f"{_NAME} has {what} that lie unevenly along {name}; bring it on an even grid "
                "first, for example with rio.reproject or interp"
            )
