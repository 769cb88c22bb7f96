"""Scenes as the models want them: windows of float RGB with a valid mask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from geoseg._address import as_given, lasting_address, shown_address
from geoseg._remote import remote_address
from geoseg._texts import Limits, Stretch, parse_stretch
from geoseg.errors import OptionError, SceneError, warn
from geoseg.io.doubts import look_at_bytes, warn_about_alpha, warn_about_fill
from geoseg.io.expand import expand_scenes
from geoseg.io.fingerprint import file_records, identities, server_marks
from geoseg.io.grid import Grid
from geoseg.io.masks import open_mask
from geoseg.io.source import Pixels, RasterSource
from geoseg.io.stac import mask_asset
from geoseg.io.stretch import (
    apply_limits,
    as_stored,
    given_limits,
    measure_limits,
)
from geoseg.options import Reading
from geoseg.types import BoolArray, PixelBlock, Window

__all__ = ["Grid", "Scene", "SceneLike", "expand_scenes", "parse_stretch"]

_STATISTICS_SIZE = 2048
_COARSE_GSD_M = 30.0
_OBLONG = 1.25
"""How many times as long as wide a pixel may be before that is worth a word."""
_FINER = 8
"""Pixels finer than the file's own by more than this are more likely a slip than a wish."""


class SceneLike(Protocol):
    """What inference needs of a scene, be it a file or an array."""

    @property
    def grid(self) -> Grid:
        """Placement and size of the pixels that windows count."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""
        ...

    def read(self, window: Window) -> PixelBlock:
        """Read float RGB in [0, 1] and the valid mask of a window."""
        ...

    def is_empty(self, window: Window) -> bool:
        """Tell whether no pixel of a window is valid."""
        ...

    def known_empty(self, window: Window) -> bool:
        """Tell whether no pixel of a window is valid, as far as that is known without reading."""
        ...

    def thumbnail(self, max_size: int) -> PixelBlock:
        """Read the whole scene with its longer side made ``max_size`` pixels or fewer."""
        ...


@dataclass(frozen=True)
class Scene:
    """A raster file as float RGB, the same way in every window, thread and process.

    Made by :meth:`open`. It holds facts and no open handle, so it can be pickled; each thread that
    reads opens the file for itself.
    """

    source: RasterSource
    """The file: bands, pixel type, nodata."""
    stretch: Limits | None
    """Values that become 0 and 1, for every band; None if a value is divided by its type's max."""
    stretch_rule: Stretch
    """How ``stretch`` was found, with ``auto`` resolved."""
    colours: bool = True
    """Whether pixels are red, green and blue; otherwise one plane for every band."""
    pending: bool = False
    """Whether no pixel has been looked at yet, see `measured`."""
    fill_is_given: bool = False
    """Whether somebody said which values are no data, so that none is looked for."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        bands: Sequence[int | str] | None = None,
        stretch: str = "auto",
        gsd: float | None = None,
        crs: str | None = None,
        nodata: Sequence[float] | None = None,
        ignore_alpha: bool = False,
        colours: bool = True,
        mask: str | Path | None = None,
        mask_values: str | None = None,
        mask_layer: str | None = None,
        lazily: bool = False,
    ) -> Scene:
        """Look at a scene and settle bands, stretch and working grid.

        Parameters
        ----------
        path
            Anything rasterio opens: a file, a VRT, ``/vsi…``, ``https://…``, ``s3://…``, or a STAC
            item, whose assets are read. A palette is rendered through its colour table.
        bands
            Three bands (red, green, blue) or one (grey), counted from 1 or by name; of a STAC item
            assets, common names or names of bands. Default: what the file tags as red, green and
            blue, else what its bands' names or wavelengths say, else its first three bands, or its
            only one.
        stretch
            ``auto`` (none for 8-bit, 2 to 98 per cent otherwise), ``none``, ``P1,P2`` percentiles
            or ``min:max`` values, in the units that the file's scale and offset make;
            percentiles come from one decimated read of the whole scene.
        gsd
            Work at this many metres a pixel; None for the file's own pixels.
        crs
            Code of the CRS that the file's coordinates are in; None for what the file says.
        nodata
            Values that are no data, in place of what the file says; empty if every value is data.
        ignore_alpha
            Do not take a band that is tagged alpha for opacity.
        colours
            False takes any number of bands, each a plane of its own, for a `geoseg.Scorer`; then
            ``stretch`` may also be ``raw``: values as they are stored.
        mask, mask_values, mask_layer
            Raster or vector file of what is left out, see `geoseg.io.masks.open_mask`; of a STAC
            item also the name of an asset.
        lazily
            Look at no pixel: the scene is ``pending``, and what has to be measured is unknown.

        Raises
        ------
        SceneError
            If the file cannot be opened or used; one line says why and what helps.
        OptionError
            If an option cannot be, or not for this scene.
        """
        if not isinstance(path, str | Path):
            raise SceneError(f"a scene is a path or an xarray array, not {type(path).__name__}")
        rule = parse_stretch(stretch)
        if rule.kind == "raw" and colours:
            raise OptionError(
                "stretch raw is for a scorer of your own; models of words see colours"
            )
        source = RasterSource.open(
            as_given(path),
            bands,
            crs=crs,
            nodata=nodata,
            ignore_alpha=ignore_alpha,
            colours=colours,
        )
        if mask is not None:
            mask = mask_asset(as_given(path), as_given(mask))
            left_out = open_mask(mask, source.native_grid, values=mask_values, layer=mask_layer)
            source = replace(source, left_out=left_out)
        if gsd is not None:
            source = source.at_gsd(gsd)
            _warn_about_empty_detail(source)
        dtype = np.dtype(np.uint8 if source.palette is not None else source.dtype)
        rule, count = rule.for_dtype(dtype), len(source.bands)
        limits = given_limits(rule, count, dtype, path=source.path, units=source.units)
        scene = cls(source, limits, rule, colours, pending=True, fill_is_given=nodata is not None)
        scene = scene if lazily else scene.measured()
        _warn_about_placement(source)
        return scene

    def measured(self) -> Scene:
        """The same scene once its pixels have been looked at: for its stretch, and for doubts.

        Raises
        ------
        SceneError
            If they cannot be read, or have values that its stretch cannot.
        """
        source, rule, limits = self.source, self.stretch_rule, None
        if self._is_measured:
            sample, valid = source.read_decimated(_STATISTICS_SIZE, average=False)
            limits = measure_limits(rule, sample, valid, path=source.path, units=source.units)
            if not self.fill_is_given:
                warn_about_fill(source.path, sample, valid)
        elif rule.kind != "raw" and source.cheap and not self.fill_is_given:
            look_at_bytes(source)
        warn_about_alpha(source)
        return replace(self, stretch=limits, pending=False)

    @property
    def awaits_stretch(self) -> bool:
        """Whether its stretch depends on pixels that have not been looked at."""
        return self.pending and self.stretch is None and self._is_measured

    @property
    def _is_measured(self) -> bool:
        """Whether its stretch depends on its pixels, or has to fit them."""
        whole = self.source.palette is not None or np.dtype(self.dtype).kind in "iu"
        return self.stretch_rule.kind != "raw" and (self.stretch_rule.kind != "none" or not whole)

    @property
    def path(self) -> str:
        """Path or address, as given."""
        return self.source.path

    @property
    def bands(self) -> tuple[int, ...]:
        """Bands that are read, counted from 1."""
        return self.source.bands

    @property
    def dtype(self) -> str:
        """Numpy name of the file's pixel type."""
        return self.source.dtype

    @property
    def grid(self) -> Grid:
        """Working grid: the one windows count on."""
        return self.source.grid

    @property
    def native_grid(self) -> Grid:
        """Grid of the file itself."""
        return self.source.native_grid

    @property
    def shape(self) -> tuple[int, int]:
        """Size of the working grid as ``(height, width)``."""
        return self.grid.shape

    @property
    def scale(self) -> tuple[float, float]:
        """Height and width of a working pixel in native pixels; ``(1, 1)`` without ``gsd``."""
        return self.source.scale

    @property
    def limits_in_units(self) -> Limits | None:
        """``stretch`` as the file's scale and offset make it; None without either."""
        if self.stretch is None or not self.source.units:
            return None
        return tuple(
            (low * scale + offset, high * scale + offset)
            for (low, high), (scale, offset) in zip(self.stretch, self.source.units, strict=True)
        )

    def native(self) -> Scene:
        """Return the same scene, with the same stretch, on the file's own grid."""
        return replace(self, source=self.source.native())

    def picture(self) -> Scene:
        """Return the same scene as colours a person can look at: of its first bands, if need be."""
        if self.colours:
            return self
        count = 3 if len(self.bands) >= 3 else 1
        source = replace(self.source, bands=self.bands[:count], units=self.source.units[:count])
        if self.stretch_rule.kind != "raw":
            stretch = None if self.stretch is None else self.stretch[:count]
            return replace(self, source=source, stretch=stretch, colours=True)
        rule = Stretch("auto").for_dtype(np.dtype(source.dtype))
        sample, valid = source.read_decimated(_STATISTICS_SIZE, average=False)
        limits = measure_limits(rule, sample, valid, path=source.path, units=source.units)
        return Scene(source, limits, rule)

    def read(self, window: Window) -> PixelBlock:
        """Read a window as float RGB with its valid mask; safe from several threads.

        A single band is repeated three times where pixels are colours. An 8-bit value without
        stretch is exactly
        value / 255.

        Raises
        ------
        SceneError
            If the file is damaged there.
        ValueError
            If the window is not inside the scene.
        """
        return self._block(*self.source.read(window))

    def is_empty(self, window: Window) -> bool:
        """Tell whether no pixel of a window is valid.

        Blocks that a sparse TIFF leaves out are known without reading, so a huge and mostly empty
        scene is cheap to skip through.
        """
        return self.source.is_empty(window)

    def known_empty(self, window: Window) -> bool:
        """Tell whether a window holds no stored pixel at all, without reading any.

        False means that only reading can tell.
        """
        return self.source.known_empty(window)

    def thumbnail(self, max_size: int, window: Window | None = None) -> PixelBlock:
        """Read the scene (or a window), averaged, with its longer side at most ``max_size``."""
        return self._block(*self.source.read_decimated(max_size, average=True, window=window))

    def fingerprint(self, *, quick: bool = False) -> dict[str, Any]:
        """Identity of the input, for a resumed run to compare; plain JSON values.

        Files behind the scene (a VRT's sources, masks, overviews) count with size and content, a
        file at an address with what its server says, others with some of their pixels; see
        `geoseg.io.fingerprint`. If it has to be ``quick``, their times stand for their content.
        """
        grid, servers = self.native_grid, dict(self.servers)
        files = file_records(self.source.files, whole=False) if quick else self.sources
        server = servers.pop(lasting_address(remote_address(self.source.name) or ""), None)
        marks = [server or {}] if server or not self.source.opened else servers.values()
        told = files or (marks and all({"ETag", "Last-Modified"} & mark.keys() for mark in marks))
        opened = shown_address(self.source.opened).encode()
        return {
            "path": files[0]["path"] if files else lasting_address(self.path),
            "files": [list(one.values()) for one in files] if quick else identities(files),
            "server": server,
            "servers": servers,
            "pixels": None if told else self.source.sample(),
            "shape": list(grid.shape),
            "transform": list(grid.transform)[:6],
            "crs": None if grid.crs is None else grid.crs.to_wkt(),
            "band_count": self.source.band_count,
            "dtype": self.dtype,
            **({"item": hashlib.sha256(opened).hexdigest()} if opened else {}),
        }

    @cached_property
    def sources(self) -> list[dict[str, Any]]:
        """Local files behind the scene, with size, time and digest."""
        return file_records(self.source.files)

    @cached_property
    def servers(self) -> dict[str, dict[str, str]]:
        """What servers and stores say of the files behind the scene, by their addresses."""
        own = remote_address(self.source.name)
        return server_marks(list(dict.fromkeys([*([own] if own else []), *self.source.remote])))

    def close(self) -> None:
        """Close this thread's handle; a later read opens it again."""
        self.source.close()

    def _block(self, data: Pixels, valid: BoolArray) -> PixelBlock:
        if self.stretch_rule.kind == "raw":
            return PixelBlock(as_stored(data, valid), valid)
        rgb = apply_limits(data, valid, self.stretch)
        grey = self.colours and len(rgb) == 1
        return PixelBlock(np.repeat(rgb, 3, axis=0) if grey else rgb, valid)


def open_scene(
    path: str | Path, reading: Reading, *, colours: bool = True, lazily: bool = False
) -> Scene:
    """Open a scene as ``reading`` says; see `Scene.open` for ``colours`` and ``lazily``."""
    return Scene.open(
        path,
        bands=reading.bands,
        stretch=reading.stretch,
        gsd=reading.gsd,
        crs=reading.crs,
        nodata=reading.fill,
        ignore_alpha=reading.ignore_alpha,
        colours=colours,
        mask=reading.mask,
        mask_values=reading.mask_values,
        mask_layer=reading.mask_layer,
        lazily=lazily,
    )


def _warn_about_empty_detail(source: RasterSource) -> None:
    finer = 1 / min(source.scale)
    if finer > _FINER:
        message = (
            f"{source.path}: its own pixels are {finer:.0f} times as large as --gsd asks for: "
            f"about {finer**2:,.0f} times the work, and no detail that is not in the file"
        )
        warn(message)


def _warn_about_placement(source: RasterSource) -> None:
    remark = about_place(source.grid)
    if remark is not None:
        warn(f"{source.path}: {remark}")


def about_place(grid: Grid) -> str | None:
    """What a person should know about where the pixels of a scene lie; None if all is well."""
    if grid.crs is None and not grid.with_transform:
        return (
            "has no CRS and no transform: results will not be placed on the ground and have no "
            "areas"
        )
    if grid.crs is None:
        return (
            "has no CRS: results will not be placed on the ground and have no areas; say it with "
            "--crs CODE if you know it"
        )
    if not grid.with_transform:
        return "has a CRS but no transform: results are placed at pixel numbers and have no areas"
    if grid.unmeasured is not None:
        remedy = "; say with --crs CODE which one they are in" if grid.misfit else ""
        return f"{grid.unmeasured}; there are no areas{remedy}"
    gsd, size = grid.gsd_m, grid.pixel_size_m
    if gsd is None or size is None:
        return None
    oblong = max(size) > _OBLONG * min(size)
    if gsd > _COARSE_GSD_M:
        return (
            f"pixels of {gsd:.0f} m: models trained on photographs and aerial images know "
            "little of such a coarse view"
        )
    if oblong:
        return (
            f"its pixels are {size[0]:.3g} m wide and {size[1]:.3g} m high, and models know "
            f"square ones; --gsd {gsd:.3g} squares them"
        )
    return None
