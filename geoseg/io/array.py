"""Scenes that are arrays already: xarray, with numpy or dask behind it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401  registers the .rio accessor
import xarray

from geoseg._texts import Limits, Stretch, parse_stretch
from geoseg.errors import GeosegWarning, OptionError, SceneError
from geoseg.io.described import is_sentinel, settle_crs, where_is
from geoseg.io.grid import Grid
from geoseg.io.placing import NAME, axes_of, directions, grid_of, north_up, spatial_dims, turn
from geoseg.io.planes import ArraySource, Fills, Planes, choose_bands, planes_of, variables_of
from geoseg.io.stretch import (
    apply_limits,
    as_stored,
    given_limits,
    measure_limits,
    warn_if_outside,
)
from geoseg.options import Reading
from geoseg.types import BoolArray, PixelBlock, Window

_STATISTICS_SIZE = 2048
_NO_STRETCH = Stretch("none")
_TIME = ("time", "t", "date", "dates", "datetime")


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
        return _opened(planes_of(array), bands, stretch, crs, colours=colours, lazily=lazily)

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
        found = {time_of(variable) for _, variable in variables_of(array)}
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
    first, *rest = (planes_of(array.isel({dim: i})) for i in range(array.sizes[dim]))
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


def _opened(
    planes: Planes,
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
    chosen, told_by = choose_bands(planes, bands, colours=colours)
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
        np.zeros(band.shape, np.bool_) if fill is None else where_is(band, fill)
        for band, fill in zip(data, fills, strict=True)
    ]
    sentinels = [
        hit for hit, fill in zip(hits, fills, strict=True) if fill is not None and is_sentinel(fill)
    ]
    held = np.logical_or.reduce(sentinels) if sentinels else np.logical_and.reduce(hits)
    return np.asarray(valid & ~held)
