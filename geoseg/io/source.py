"""What a raster file holds, and its pixels as they are stored, with their validity."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.env import env_ctx_if_needed
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject

from geoseg.errors import OptionError, SceneError
from geoseg.io._handles import close_handle, shared_handle
from geoseg.io.described import (
    alpha_band,
    as_held,
    choose_bands,
    colour_table,
    common_dtype,
    gdal_reason,
    is_sentinel,
    local_files,
    mask_kind,
    nodata_as,
    open_readable,
    refuse_unrectified,
    refuse_unusable,
    remote_files,
    settle_crs,
    special_nodata,
    units_of,
    untold_band,
    where_is,
)
from geoseg.io.fingerprint import server_complaint
from geoseg.io.grid import Grid, pieces
from geoseg.io.masks import Mask
from geoseg.io.stac import read_item
from geoseg.runtime.gdal import is_remote
from geoseg.types import BoolArray, Window

Pixels = npt.NDArray[Any]

_CHUNK = 64
_SAMPLES = 4
_LARGE = 64_000_000


@dataclass(frozen=True)
class RasterSource:
    """A file that can be read as bands of one type: facts only, no open handle.

    Picklable; :meth:`read` opens the file once in every thread and process that uses it.
    """

    path: str = field(repr=False)  # an address may hold a secret, and tasks are logged
    bands: tuple[int, ...]
    """Bands to read, counted from 1: one or three where they are colours."""
    band_count: int
    dtype: str
    """Numpy name of the pixel type."""
    nodata: tuple[float | None, ...]
    """Nodata value of every band in the file."""
    mask: Literal["none", "dataset", "band"]
    """Whether the file brings a mask (in it, or as ``.msk`` beside it)."""
    alpha: int | None
    """Number of the alpha band."""
    palette: tuple[tuple[int, int, int, int], ...] | None
    """Colour table, if the one band used holds indices into it."""
    driver: str
    block_shape: tuple[int, int]
    interleaved: bool
    """True if a block holds all bands."""
    overviews: bool
    native_grid: Grid
    grid: Grid
    """Grid that windows count on; differs from ``native_grid`` only after :meth:`at_gsd`."""
    files: tuple[tuple[str, int, int], ...]
    """Path, size in bytes and mtime in ns of every local file behind the scene."""
    remote: tuple[str, ...] = field(default=(), repr=False)
    """HTTP addresses of the files behind the scene."""
    untold: int | None = None
    """Fourth band of an 8-bit file, if no tag or name says what it is."""
    told_by: str = "given"
    """What says which bands are the colours: given, assets (of a STAC item), tags, names,
    wavelengths, order, one band."""
    units: tuple[tuple[float, float], ...] = ()
    """Scale and offset of every band used; empty if values mean themselves."""
    fill: tuple[float, ...] = ()
    """Values that are no data where all bands used have one: given, or the product's own."""
    left_out: Mask | None = None
    """Pixels of ``native_grid`` that a person wants left out."""
    opened: str = field(default="", repr=False)
    """What GDAL opens where that is not the path: files of a STAC item, or a VRT of them."""
    assets: tuple[str, ...] = ()
    """Names of the item's assets that the bands are of."""
    taken: str = ""
    """When the item says that the scene was taken."""

    @classmethod
    def open(
        cls,
        path: str,
        bands: Sequence[int | str] | None = None,
        *,
        crs: str | None = None,
        nodata: Sequence[float] | None = None,
        ignore_alpha: bool = False,
        colours: bool = True,
    ) -> RasterSource:
        """Look at a file: which bands to read, where it lies and which values are no data.

        Parameters
        ----------
        path, bands, crs
            See `Scene.open`.
        nodata
            Values in place of the file's own nodata; none of them: every value is data.
        ignore_alpha
            Take a band that is tagged alpha for an ordinary one.
        colours
            See `Scene.open`.

        Raises
        ------
        SceneError
            If it cannot be opened or is not an image geoseg can use.
        OptionError
            If ``bands`` are to be colours and neither one nor three.
        """
        item = read_item(path)
        found = None if item is None else item.open(bands, crs=crs)
        wanted = bands if found is None else found.bands
        opened = "" if found is None else found.name
        with env_ctx_if_needed(), open_readable(opened or path) as dataset:
            refuse_unusable(dataset, path)
            refuse_unrectified(dataset, path)
            chosen, told_by = choose_bands(dataset, wanted, path, colours=colours)
            if found is not None and bands is None and wanted is not None:
                told_by = "assets"
            dtype = common_dtype(dataset, chosen, path)
            flags = dataset.mask_flag_enums[chosen[0] - 1]
            palette = colour_table(dataset, chosen, path)
            grid = Grid(
                settle_crs(dataset.crs, crs, path),
                dataset.transform,
                dataset.height,
                dataset.width,
            )
            own = tuple(nodata_as(v, dtype) for v in dataset.nodatavals)
            fill = tuple(nodata) if nodata is not None else special_nodata(dataset, own)
            return cls(
                path=path,
                bands=chosen,
                band_count=dataset.count,
                dtype=dtype,
                nodata=own if nodata is None else (None,) * dataset.count,
                mask=mask_kind(flags),
                alpha=None if ignore_alpha else alpha_band(dataset, chosen),
                palette=palette,
                driver=dataset.driver,
                block_shape=dataset.block_shapes[chosen[0] - 1],
                interleaved=dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") != "BAND",
                overviews=bool(dataset.overviews(chosen[0])),
                native_grid=grid,
                grid=grid,
                files=local_files(dataset),
                remote=remote_files(dataset),
                untold=untold_band(dataset),
                told_by=told_by,
                units=units_of(dataset, chosen),
                fill=as_held(fill, dtype),
                opened=opened,
                assets=() if found is None else found.assets,
                taken="" if item is None else item.taken,
            )

    @property
    def may_have_nodata(self) -> bool:
        """True if some pixel could be not valid."""
        return (
            self.mask != "none"
            or self.left_out is not None
            or self.alpha is not None
            or bool(self.fill)
            or any(value is not None for value in self.nodata)
            or self._floating
            or (self.palette is not None and any(entry[3] == 0 for entry in self.palette))
            or self.grid != self.native_grid
        )

    @property
    def name(self) -> str:
        """What GDAL opens."""
        return self.opened or self.path

    @property
    def all_files(self) -> tuple[tuple[str, int, int], ...]:
        """Local files behind the scene and its mask."""
        return self.files + (() if self.left_out is None else self.left_out.files)

    @property
    def scale(self) -> tuple[float, float]:
        """Height and width of a working pixel in native pixels; ``(1, 1)`` without ``--gsd``."""
        native, working = self.native_grid.transform, self.grid.transform
        return (
            math.hypot(working.b, working.e) / math.hypot(native.b, native.e),
            math.hypot(working.a, working.d) / math.hypot(native.a, native.d),
        )

    @property
    def cheap(self) -> bool:
        """Whether a look at the whole scene costs little."""
        local = bool(self.files) and self.native_grid.window.area < _LARGE
        return self.palette is None and (self.overviews or local)

    def opacity(self, max_size: int, number: int) -> tuple[Pixels, BoolArray]:
        """Read a band, decimated, and where the colours beside it are not all 0."""
        shape = decimated_shape(
            self.native_grid.shape, decimation(self.native_grid.shape, max_size)
        )
        try:
            with env_ctx_if_needed():
                dataset = self.native()._dataset()
                every = dataset.read([*self.bands, number], out_shape=(4, *shape))
        except RasterioError as error:
            raise SceneError(f"{self.path}: cannot be read") from error
        return every[3], (every[:3] != 0).any(axis=0)

    def at_gsd(self, gsd: float) -> RasterSource:
        """Return the same scene with square pixels of ``gsd`` metres at its centre.

        Raises
        ------
        OptionError
            If ``gsd`` is not a positive number, or the scene's own pixel size is not known.
        """
        if not (math.isfinite(gsd) and gsd > 0):
            raise OptionError(f"gsd must be a positive number of metres, not {gsd}")
        size = self.native_grid.pixel_size_m
        if size is None:
            why = self.native_grid.unmeasured or "its CRS does not say how large"
            raise OptionError(
                f"{self.path}: gsd {gsd:g} m cannot be reached, the size of its pixels is not "
                f"known: {why}; leave --gsd out"
            )
        fx, fy = gsd / size[0], gsd / size[1]
        height, width = self.native_grid.shape
        if min(fx, fy) <= 0 or (height / fy) * (width / fx) > 2**40:
            raise OptionError(
                f"gsd {gsd:g} m would make more than 2^40 pixels of {self.path}; give a larger one"
            )
        if min(height / fy, width / fx) < 0.5:  # the centre of its pixels lies beyond the scene
            raise OptionError(f"gsd {gsd:g} m is larger than {self.path} is; give a smaller one")
        if abs(fx - 1) < 1e-6 and abs(fy - 1) < 1e-6:
            return self
        return replace(self, grid=self.native_grid.scaled(fx, fy))

    def native(self) -> RasterSource:
        """Return the same source on the file's own grid."""
        return replace(self, grid=self.native_grid)

    # -- pixels ---------------------------------------------------------------------------------

    def read(self, window: Window) -> tuple[Pixels, BoolArray]:
        """Read pixels as stored (a palette as its colours) and where they are valid.

        Returns
        -------
        data, valid
            ``(C, h, w)`` in the file's type, one plane a band, and ``(h, w)``.

        Raises
        ------
        SceneError
            If the file is damaged there.
        ValueError
            If the window leaves the scene.
        """
        if window.intersection(self.grid.window) != window:
            raise ValueError(f"{window} is not inside the scene of {self.grid.shape} pixels")
        if self._warps_itself:
            return self._read_warped(window)
        return self._read(window, window.shape, Resampling.nearest)

    def read_decimated(
        self, max_size: int, *, average: bool, window: Window | None = None
    ) -> tuple[Pixels, BoolArray]:
        """Read the scene, or a window of it, with its longer side ``max_size`` pixels or fewer.

        Blocks that a sparse file leaves out cost nothing.
        """
        area = window if window is not None else self.grid.window
        if self._warps_itself:
            return self.native().read_decimated(
                max_size, average=average, window=self._to_native(area)
            )
        factor = decimation(area.shape, max_size)
        resampling = Resampling.nearest
        if average and factor > 1 and self.palette is None:
            resampling = Resampling.average
        shape = decimated_shape(area.shape, factor)
        if self.overviews or area.area < _LARGE:
            return self._read(area, shape, resampling)
        channels = 3 if self.palette is not None else len(self.bands)
        data = np.zeros((channels, *shape), "uint8" if self.palette is not None else self.dtype)
        valid = np.zeros(shape, np.bool_)
        for part, source in _chunks(area, shape, factor):
            if not self.known_empty(source):
                rows, cols = part.slices()
                data[:, rows, cols], valid[rows, cols] = self._read(source, part.shape, resampling)
        return data, valid

    def _read(
        self, window: Window, shape: tuple[int, int], resampling: Resampling
    ) -> tuple[Pixels, BoolArray]:
        def fetch(bands: Sequence[int]) -> Pixels:
            return np.asarray(
                dataset.read(
                    list(bands),
                    window=window.slices(),
                    out_shape=(len(bands), *shape),
                    resampling=resampling,
                )
            )

        try:
            # Without an environment GDAL writes its warnings to stderr, not to logging.
            with env_ctx_if_needed():
                dataset = self._dataset()
                data = fetch(self.bands)
                valid = self._valid(data, fetch)
                if self.mask != "none" and self.grid == self.native_grid:
                    valid &= self._read_mask(dataset, window, shape)
                if self.left_out is not None:
                    valid &= ~self.left_out.read(window, shape)
        except RasterioError as error:
            self.close()
            where = (
                f"{self.path}: pixels in rows {window.row} to {window.row_stop - 1}, columns "
                f"{window.col} to {window.col_stop - 1} cannot be read, "
            )
            if is_remote(self.path) and (hindrance := server_complaint(self.path)):
                raise SceneError(f"{where}{hindrance}, and go on with --resume") from error
            what = "the file is damaged or incomplete"
            if is_remote(self.path) and "HTTP" in gdal_reason(error):
                what = "the server did not deliver them"
            raise SceneError(f"{where}{what} ({gdal_reason(error)})") from error
        return (data, valid) if self.palette is None else self._render(data, valid)

    def _read_mask(self, dataset: Any, window: Window, shape: tuple[int, int]) -> BoolArray:
        bands = list(self.bands[:1] if self.mask == "dataset" else self.bands)
        masks = dataset.read_masks(bands, window=window.slices(), out_shape=(len(bands), *shape))
        return np.asarray((masks != 0).any(axis=0))

    def _valid(self, data: Pixels, fetch: Any) -> BoolArray:
        valid = np.ones(data.shape[1:], np.bool_)
        alpha = self._alpha_to_read()
        if alpha is not None:
            # Not GDAL's own mask: that scales a 16 bit alpha to 8 bit, and 255 becomes 0.
            valid &= fetch([alpha])[0] > 0
        if np.issubdtype(data.dtype, np.floating):
            valid &= np.isfinite(data).all(axis=0)
        if self.mask == "none":
            valid &= ~self._holds_nodata(data, fetch)
        for value in self.fill:
            # One value of a band is a dark or a saturated pixel; one no sensor measures is a hole.
            hits = where_is(data, value)
            valid &= ~(hits.any(axis=0) if is_sentinel(value) else hits.all(axis=0))
        return valid

    @property
    def _warps_itself(self) -> bool:
        """GDAL's warper knows one nodata value a band, no fill of only the bands used, no mask."""
        return (bool(self.fill) or self.left_out is not None) and self.grid != self.native_grid

    def _read_warped(self, window: Window) -> tuple[Pixels, BoolArray]:
        """Read working pixels of native ones that hold data."""
        native, fy_fx = self._to_native(window), self.scale
        data, valid = self.native().read(native)
        shrinks = min(fy_fx) >= 1
        planes = np.where(valid, data, np.nan).astype(np.float64)
        out = np.full((len(data), *window.shape), np.nan)
        source, target = self.native_grid.crop(native), self.grid.crop(window)
        place = CRS.from_epsg(3857)  # the same for both: only the pixels' size differs
        with env_ctx_if_needed():
            reproject(
                planes,
                out,
                src_transform=source.transform,
                dst_transform=target.transform,
                src_crs=place,
                dst_crs=place,
                src_nodata=math.nan,
                dst_nodata=math.nan,
                resampling=Resampling.average if shrinks else Resampling.bilinear,
            )
        known = np.isfinite(out).all(axis=0)
        filled = np.where(known, out, 0)
        whole = np.issubdtype(data.dtype, np.integer)
        return (np.rint(filled) if whole else filled).astype(data.dtype), known

    def _holds_nodata(self, data: Pixels, fetch: Any) -> BoolArray:
        """Where pixels carry the nodata value.

        A value that real pixels can take (0 in a shadow, 255 on a white roof) means nodata only if
        all bands of the file have it, which is GDAL's rule for a dataset. One that no sensor
        measures (-9999) spoils a pixel wherever a band that is used has it.
        """
        values = [self.nodata[band - 1] for band in self.bands]
        if all(value is None for value in values):
            return np.zeros(data.shape[1:], np.bool_)
        hits = [
            where_is(band, value) if value is not None else np.zeros(band.shape, np.bool_)
            for band, value in zip(data, values, strict=True)
        ]
        sentinels = [
            hit for hit, v in zip(hits, values, strict=True) if v is not None and is_sentinel(v)
        ]
        if sentinels:
            return np.asarray(np.logical_or.reduce(sentinels))
        nodata: BoolArray = np.logical_and.reduce(hits)
        for band in set(range(1, self.band_count + 1)) - set(self.bands):
            if not nodata.any():
                break
            value = self.nodata[band - 1]
            nodata &= where_is(fetch([band])[0], value) if value is not None else False
        return nodata

    def _render(self, index: Pixels, valid: BoolArray) -> tuple[Pixels, BoolArray]:
        table = np.array(self.palette, np.uint8)
        rgba = table[np.minimum(index[0], len(table) - 1)]
        valid &= (rgba[..., 3] > 0) & (index[0] < len(table))
        return np.ascontiguousarray(rgba[..., :3].transpose(2, 0, 1)), valid

    def sample(self) -> str:
        """SHA-256 of some pixels, evenly spread; empty if they cannot be read."""
        digest, native = hashlib.sha256(), self.native()
        height, width = native.grid.shape
        side = (min(height, _CHUNK), min(width, _CHUNK))
        try:
            for row, col in itertools.product(range(_SAMPLES), repeat=2):
                top = row * (height - side[0]) // (_SAMPLES - 1)
                left = col * (width - side[1]) // (_SAMPLES - 1)
                window = Window(top, left, *side)
                digest.update(np.ascontiguousarray(native.read(window)[0]).data)
        except SceneError:
            return ""
        return digest.hexdigest()

    # -- emptiness ------------------------------------------------------------------------------

    def is_empty(self, window: Window) -> bool:
        """Tell whether no pixel of a window is valid.

        Costs no pixels where the file cannot have nodata, or has not stored the blocks at all;
        else they are read.
        """
        if self.known_empty(window):
            return True
        return self.may_have_nodata and not self.read(window)[1].any()

    def known_empty(self, window: Window) -> bool:
        """Tell whether a sparse TIFF left out every block of a window, and that means nodata."""
        if self.driver != "GTiff" or self.mask != "none":
            return False
        if self.alpha is not None:
            if self.nodata[self.alpha - 1] not in (None, 0):
                return False
            bands: Sequence[int] = [self.alpha]
        elif None in self.nodata:
            return False
        else:
            bands = [1] if self.interleaved else range(1, self.band_count + 1)
        dataset = shared_handle(self._key(self.native_grid), lambda: open_readable(self.name))
        return not any(
            dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
            for row, col in self._blocks(self._to_native(window))
            for band in bands
        )

    def _blocks(self, window: Window) -> Iterator[tuple[int, int]]:
        height, width = self.block_shape
        for row in range(window.row // height, math.ceil(window.row_stop / height)):
            for col in range(window.col // width, math.ceil(window.col_stop / width)):
                yield row, col

    def _to_native(self, window: Window) -> Window:
        """Native pixels that can play a part in a working window."""
        if self.grid == self.native_grid:
            return window
        fy, fx = self.scale
        row, col = math.floor((window.row - 1) * fy) - 1, math.floor((window.col - 1) * fx) - 1
        stop_row = math.ceil((window.row_stop + 1) * fy) + 1
        stop_col = math.ceil((window.col_stop + 1) * fx) + 1
        grown = Window(row, col, stop_row - row, stop_col - col)
        return grown.intersection(self.native_grid.window) or Window(0, 0, 0, 0)

    # -- handles --------------------------------------------------------------------------------

    def close(self) -> None:
        """Close this thread's handles; the next read opens them again."""
        close_handle(self._key(self.grid))
        close_handle(self._key(self.native_grid))
        if self.left_out is not None:
            self.left_out.close()

    def _key(self, grid: Grid) -> tuple[object, ...]:
        return (self.name, self.files, grid.transform, grid.shape)

    def _dataset(self) -> Any:
        if self.grid == self.native_grid:
            return shared_handle(self._key(self.grid), lambda: open_readable(self.name))
        return shared_handle(self._key(self.grid), self._open_warped)

    def _alpha_to_read(self) -> int | None:
        if self.grid != self.native_grid and self._warp_adds_alpha:
            return self.band_count + 1
        return self.alpha

    @property
    def _warp_adds_alpha(self) -> bool:
        if self.mask != "none":
            return self.alpha is None
        return self.alpha is None and self.nodata[0] is None and not self._floating

    @property
    def _floating(self) -> bool:
        return np.issubdtype(self.dtype, np.floating)

    def _open_warped(self) -> Any:
        """Open the file on the working grid; same CRS, only the pixel size differs."""
        fy, fx = self.scale
        resampling = Resampling.average if min(fy, fx) >= 1 else Resampling.bilinear
        if self.palette is not None:
            resampling = Resampling.nearest
        options: dict[str, Any] = {}
        if self._warp_adds_alpha:
            options["add_alpha"] = True
        elif self.nodata[0] is None and self._floating:
            options |= {"src_nodata": math.nan, "nodata": math.nan}
        elif self.alpha is None:
            sentinel = any(v is not None and is_sentinel(v) for v in self.nodata)
            options["UNIFIED_SRC_NODATA"] = "NO" if sentinel else "YES"
        return WarpedVRT(
            open_readable(self.name),
            src_crs=self.grid.crs,
            resampling=resampling,
            **self.grid.profile,
            **options,
        )


def decimation(shape: tuple[int, int], max_size: int) -> int:
    """Whole number of pixels that become one, so that the longer side fits ``max_size``."""
    return max(1, math.ceil(max(shape) / max_size))


def decimated_shape(shape: tuple[int, int], factor: int) -> tuple[int, int]:
    """Size after decimation; a last incomplete pixel counts."""
    return math.ceil(shape[0] / factor), math.ceil(shape[1] / factor)


def _chunks(area: Window, shape: tuple[int, int], factor: int) -> Iterator[tuple[Window, Window]]:
    """Pieces of a decimated image, each with the pixels of ``area`` it stands for."""
    for part in pieces(Window(0, 0, *shape), _CHUNK, _CHUNK):
        top, left = area.row + part.row * factor, area.col + part.col * factor
        full = Window(top, left, part.height * factor, part.width * factor)
        source = full.intersection(area)
        if source is not None:
            yield part, source
