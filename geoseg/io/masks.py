"""What a person wants left out of a scene: a raster that says so, or polygons.

Rasters of other kinds that are laid on a scene (`geoseg.io.regions`) come the same way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.env import env_ctx_if_needed
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.warp import transform as move
from shapely.geometry.base import BaseGeometry

from geoseg._address import as_given, is_address, lasting_address, shown_address
from geoseg._files import absolute
from geoseg._inputs import is_there, shown
from geoseg._remote import http_address
from geoseg._texts import MaskKind, as_number, parse_mask_values
from geoseg.errors import OptionError, SceneError, warn
from geoseg.io._handles import close_handle, shared_handle
from geoseg.io.crs import crs_name, same_crs
from geoseg.io.described import local_files, open_readable
from geoseg.io.fingerprint import file_records, identities, server_mark
from geoseg.io.grid import FloatArray, Grid
from geoseg.io.vectors import VECTOR_SUFFIXES, is_vector_file, read_polygons
from geoseg.types import BoolArray, Window

_NOUNS = {"mask": "mask", "regions": "raster of regions"}
"""What a raster is called in messages, by its option."""
_LATTICE = 129
"""Points to a side, by which a mask is laid on a scene to see what it covers."""
_SAMPLE = 512
_FEW_VALUES = 2
"""Values besides 0 that a mask has which nobody has to choose from."""
_NEARLY_ALL = 0.99
_NO_VALUE = 0.515625
"""Where GDAL wants a nodata value and every value counts: one that no mask holds."""
_PLANE = CRS.from_epsg(3857)
"""Stands for the plane on which scene and mask lie, neither of which names it."""


@dataclass(frozen=True)
class Rule:
    """Which values of a mask leave a pixel out."""

    kind: MaskKind = "nonzero"
    values: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Rule:
        """Read what ``--mask-values`` says, see `parse_mask_values`."""
        return cls(*parse_mask_values(text))

    def leaves_out(self, values: FloatArray, nodata: float | None) -> BoolArray:
        """Tell which values leave a pixel out; NaN and a nodata that is not named do not."""
        known = ~np.isnan(values)
        if self.kind == "values":
            return np.asarray(np.isin(values, self.values))
        if self.kind == "bits":
            wanted = sum(1 << int(bit) for bit in self.values)
            return np.asarray((np.where(known, values, 0).astype(np.int64) & wanted) != 0)
        if nodata is not None:
            known &= values != nodata
        others = (0.0,) if self.kind == "nonzero" else self.values
        return np.asarray(known & ~np.isin(values, others))


@dataclass(frozen=True, kw_only=True)
class LaidRaster:
    """A band of a raster on the pixels of a scene. Facts only, no open handle."""

    what: ClassVar[str]
    """What its option is called."""

    path: str = field(repr=False)
    grid: Grid
    """Pixels of the scene."""
    band: int
    nodata: float | None
    pixelwise: bool
    """Its pixels are the scene's."""
    crs: CRS | None
    """CRS that its coordinates are in, where it does not say it."""
    files: tuple[tuple[str, int, int], ...]

    def values(self, window: Window, shape: tuple[int, int]) -> FloatArray:
        """Values on a window of the scene, decimated to ``shape``; NaN beyond the raster.

        Raises
        ------
        SceneError
            If it is damaged there.
        """
        try:
            with env_ctx_if_needed():
                return self._values(window, shape)
        except RasterioError as error:
            self.close()
            raise SceneError(
                f"{self.path}: the {_NOUNS[self.what]} cannot be read, it is damaged"
            ) from error

    def _values(self, window: Window, shape: tuple[int, int]) -> FloatArray:
        dataset = shared_handle(self._key, self._open)
        if self.pixelwise:
            return np.asarray(
                dataset.read(self.band, window=window.slices(), out_shape=shape), np.float64
            )
        out = np.full(shape, np.nan)
        steps = Affine.scale(window.width / shape[1], window.height / shape[0])
        reproject(
            rasterio.band(dataset, self.band),
            out,
            src_nodata=_NO_VALUE,
            dst_transform=self.grid.window_transform(window) @ steps,
            dst_crs=self.grid.crs or _PLANE,
            init_dest_nodata=False,
            resampling=Resampling.nearest,
            tolerance=0,  # what a pixel gets must not depend on the window
        )
        return out

    def _open(self) -> Any:
        # An overview may hold means, which are no values of the raster.
        dataset = open_readable(self.path, OVERVIEW_LEVEL="NONE")
        if self.crs is None:
            return dataset
        return WarpedVRT(
            dataset, src_crs=self.crs, crs=self.crs, transform=dataset.transform,
            height=dataset.height, width=dataset.width, src_nodata=_NO_VALUE,
        )  # fmt: skip

    def identity(self) -> Any:
        """What a resumed run compares; plain JSON values."""
        address = http_address(self.path)
        files = identities(file_records(self.files))
        server = server_mark(address) if address else None
        return [lasting_address(self.path), files, server, self.band]

    def close(self) -> None:
        """Close this thread's handle."""
        close_handle(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return (self.what, self.path, self.files, self.band)


@dataclass(frozen=True, kw_only=True)
class RasterMask(LaidRaster):
    """A raster that says which pixels of a scene are left out."""

    what: ClassVar[str] = "mask"
    rule: Rule

    def read(self, window: Window, shape: tuple[int, int]) -> BoolArray:
        """Tell which pixels of a window of the scene, decimated to ``shape``, are left out.

        Raises
        ------
        SceneError
            If the mask is damaged there.
        """
        return self.rule.leaves_out(self.values(window, shape), self.nodata)

    def identity(self) -> Any:
        """What a resumed run compares; plain JSON values."""
        return [*super().identity(), self.rule.kind, self.rule.values]


@dataclass(frozen=True)
class VectorMask:
    """Polygons whose pixels are left out: those whose centres lie inside."""

    path: str = field(repr=False)
    shapes: tuple[BaseGeometry, ...] = field(repr=False)
    """In pixels of the scene: x is the column, y the row."""
    files: tuple[tuple[str, int, int], ...]

    def read(self, window: Window, shape: tuple[int, int]) -> BoolArray:
        """Tell which pixels of a window of the scene, decimated to ``shape``, are left out."""
        left, top, right, bottom = self._bounds.T
        near = (left < window.col_stop) & (right > window.col)
        near &= (top < window.row_stop) & (bottom > window.row)
        if not near.any():
            return np.zeros(shape, np.bool_)
        steps = Affine.scale(window.width / shape[1], window.height / shape[0])
        burnt = rasterize(
            [self.shapes[index] for index in np.flatnonzero(near)],
            out_shape=shape,
            transform=Affine.translation(window.col, window.row) @ steps,
            dtype="uint8",
        )
        return np.asarray(burnt, np.bool_)

    @cached_property
    def _bounds(self) -> FloatArray:
        return np.asarray(shapely.bounds(np.array(self.shapes, object)))

    def identity(self) -> Any:
        """What a resumed run compares; plain JSON values."""
        digest = hashlib.sha256(b"".join(shapely.to_wkb(self.shapes)))
        return [lasting_address(self.path), digest.hexdigest()]

    def close(self) -> None:
        """Do nothing: there is no handle."""


Mask = RasterMask | VectorMask


def open_mask(
    path: str | Path, grid: Grid, *, values: str | None = None, layer: str | None = None
) -> Mask:
    """Lay a mask on a scene's pixels.

    Parameters
    ----------
    path
        A raster, or a vector file with polygons; in any CRS.
    grid
        The scene's own pixels.
    values
        Which values of a raster are left out, see `Rule.parse`.
    layer
        Band of the raster, by number or name, or layer of the vector file.

    Raises
    ------
    SceneError
        If it cannot be read or laid on the scene, or does not touch it.
    OptionError
        If values, band or layer cannot be, or a band has to be chosen.
    """
    rule = Rule.parse(values)
    text = absolute(as_given(path))
    dataset = open_raster(text)
    if dataset is None:
        return _open_vector(text, grid, values, layer)
    with env_ctx_if_needed(), dataset:
        laid = lay_raster(dataset, text, grid, layer, RasterMask.what)
        if rule.kind == "bits" and np.dtype(dataset.dtypes[laid["band"] - 1]).kind == "f":
            raise OptionError(f"{text}: holds fractions, which have no bits; name values")
        if values is None:
            _warn_if_unlikely(dataset, laid["band"], text)
        return RasterMask(**laid, rule=rule)


def open_raster(text: str) -> Any:
    """Open a raster; None if the file is one of features.

    Raises
    ------
    SceneError
        If it is neither.
    """
    if Path(text).suffix.lower() in VECTOR_SUFFIXES:
        return None
    try:
        return open_readable(text)
    except SceneError:
        if not is_address(text) and is_there(text) and is_vector_file(Path(text)):
            return None
        raise


def lay_raster(
    dataset: Any, path: str, grid: Grid, wanted: str | None, what: str
) -> dict[str, Any]:
    """Lay a band of whole numbers on a scene's pixels; gives the fields of a `LaidRaster`.

    Parameters
    ----------
    dataset
        The open raster.
    path
        Its path.
    grid
        The scene's pixels.
    wanted
        The band, by number or name, where one was named.
    what
        What it is called in messages and options.

    Raises
    ------
    SceneError
        If it cannot be laid on the scene, or does not touch it.
    OptionError
        If a band has to be chosen, or holds no numbers.
    """
    band = _choose_band(dataset, path, wanted, what)
    dtype = np.dtype(dataset.dtypes[band - 1])
    if dtype.kind == "c":
        raise OptionError(f"{path}: holds {dtype}; a {_NOUNS[what]} holds whole numbers")
    pixelwise = _lies_on(dataset, grid, path, what)
    nodata = dataset.nodatavals[band - 1]
    return {
        "path": path,
        "grid": grid,
        "band": band,
        "nodata": None if nodata is None or math.isnan(nodata) else nodata,
        "pixelwise": pixelwise,
        "crs": grid.crs or _PLANE if dataset.crs is None and not pixelwise else None,
        "files": local_files(dataset),
    }


def _open_vector(text: str, grid: Grid, values: str | None, layer: str | None) -> VectorMask:
    if values is not None:
        raise OptionError(
            f"{text}: is a vector file, whose polygons are left out; --mask-values is for rasters"
        )
    laid = read_polygons(text, grid, what="mask", layer=layer).table.geometry.to_numpy()
    shapes = shapely.transform(
        laid[~shapely.is_empty(laid)],
        lambda points: np.column_stack(grid.drawn.to_pixels(*points.T)),
    )
    bounds = shapely.bounds(shapes)
    inside = (bounds[:, 0] < grid.width) & (bounds[:, 2] > 0)
    inside &= (bounds[:, 1] < grid.height) & (bounds[:, 3] > 0)
    if not inside.any():
        raise SceneError(f"{text}: no polygon of the mask lies on the scene")
    file = Path(text)
    stat = file.stat() if file.is_file() else None
    files = () if stat is None else ((str(file.resolve()), stat.st_size, stat.st_mtime_ns),)
    return VectorMask(text, tuple(shapes[inside]), files)


def _choose_band(dataset: Any, path: str, wanted: str | None, what: str) -> int:
    kinds, names = dataset.colorinterp, dataset.descriptions
    bands = [i for i, kind in enumerate(kinds, 1) if kind != ColorInterp.alpha] or [1]
    listed = ", ".join(f"{band} {names[band - 1] or ''}".strip() for band in bands)
    if wanted is None:
        if len(bands) == 1:
            return bands[0]
        raise OptionError(
            f"{path}: has {len(bands)} bands ({shown(listed)}); choose the {_NOUNS[what]} with "
            f"--{what}-layer, by number or name"
        )
    told = [i for i, name in enumerate(names, 1) if name and name.lower() == wanted.lower()]
    if len(told) == 1:
        return told[0]
    if 1 <= (as_number(wanted) or 0) <= dataset.count:
        return int(wanted)
    raise OptionError(f"{path}: has no band '{shown(wanted)}'; it has {shown(listed)}")


def _lies_on(dataset: Any, grid: Grid, path: str, what: str) -> bool:
    """Whether pixels of a raster are the scene's; refused if it cannot be laid on the scene."""
    placed = dataset.transform != Affine.identity()
    same_size = dataset.shape == grid.shape
    if not placed or not grid.with_transform:
        if same_size and (not placed or dataset.crs is None):
            return True
        why = (
            f"the {_NOUNS[what]} has no place on the ground"
            if not placed
            else "the scene has no place"
        )
        raise SceneError(
            f"{path}: cannot be laid on the scene, {why} and they differ in size "
            f"({dataset.width} x {dataset.height} and {grid.width} x {grid.height} pixels)"
        )
    if dataset.crs is not None and grid.crs is None:
        raise SceneError(f"{path}: cannot be laid on the scene, which has no CRS; give --crs")
    if dataset.crs is None and grid.crs is not None:
        _warn(f"{path}: the {_NOUNS[what]} has no CRS, taking the scene's, {crs_name(grid.crs)}")
    theirs = dataset.crs or grid.crs
    apart = np.abs(np.subtract(dataset.transform[:6], grid.transform[:6])).max()
    one_crs = dataset.crs is None or same_crs(theirs, grid.crs)
    step = math.sqrt(abs(grid.transform.determinant))
    if same_size and one_crs and apart < 1e-6 * step:
        return True
    other = Grid(theirs, dataset.transform, dataset.height, dataset.width)
    covered = _share_inside(grid, other)
    if covered == 0 and _share_inside(other, grid) == 0:
        raise SceneError(
            f"{path}: the {_NOUNS[what]} does not lie on the scene, they have no ground in common"
        )
    if covered < 1:
        rest = "is not masked" if what == RasterMask.what else "keeps its own labels"
        _warn(
            f"{path}: the {_NOUNS[what]} covers {100 * covered:.0f} % of the scene; the rest {rest}"
        )
    return False


def _share_inside(grid: Grid, other: Grid) -> float:
    """Share of the pixels of a grid that lie in another one, or half a pixel beside it."""
    cols, rows = (
        axis.ravel()
        for axis in np.meshgrid(
            np.linspace(0.5, grid.width - 0.5, _LATTICE),
            np.linspace(0.5, grid.height - 0.5, _LATTICE),
        )
    )
    x, y = grid.to_ground(cols, rows)
    if grid.crs is not None and other.crs is not None and not same_crs(grid.crs, other.crs):
        try:
            with env_ctx_if_needed():
                x, y = (np.asarray(axis) for axis in move(grid.crs, other.crs, x, y))
        except RasterioError:
            return 0.0
    with np.errstate(invalid="ignore"):
        col, row = other.to_pixels(x, y)
        inside = (col >= -0.5) & (col <= other.width + 0.5)
        inside &= (row >= -0.5) & (row <= other.height + 0.5)
    return float(inside.mean())


def _warn_if_unlikely(dataset: Any, band: int, path: str) -> None:
    """Say so where "all but 0" is hardly what a mask's values mean."""
    shape = tuple(min(side, _SAMPLE) for side in dataset.shape)
    try:
        sample: npt.NDArray[Any] = dataset.read(band, out_shape=shape).astype(np.float64)
    except RasterioError:
        return  # the run meets the damage, and says where
    out = Rule().leaves_out(sample, dataset.nodatavals[band - 1])
    values = np.unique(sample[out])
    remedy = "say with --mask-values which values are left out"
    if len(values) > _FEW_VALUES:
        some = _listed(values[:6]) + (", …" if len(values) > 6 else "")
        _warn(f"{path}: holds {some}, and every value but 0 is left out; {remedy}")
    elif out.mean() > _NEARLY_ALL:
        _warn(f"{path}: the mask leaves out {100 * out.mean():.0f} % of its pixels; {remedy}")


def _listed(values: Sequence[float] | FloatArray) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _warn(message: str) -> None:
    warn(shown_address(message))
