"""Label rasters in: geoseg's own, or those of others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError, RasterioIOError

from geoseg._address import as_given
from geoseg._texts import as_number
from geoseg.errors import SceneError, warn
from geoseg.io._handles import close_handle, open_dataset, shared_handle
from geoseg.io.described import mask_kind, nodata_as, unreadable
from geoseg.io.flags import NAMELESS, classes_in, looks_like_mask
from geoseg.io.grid import Grid, pieces
from geoseg.io.legends import legend_beside
from geoseg.io.source import decimated_shape, decimation
from geoseg.io.sparse import StoredBlocks
from geoseg.types import BoolArray, LabelArray, LabelClass, Window, default_color

_TAG = "CLASS_"
_COLOUR = re.compile("#[0-9a-fA-F]{6}")
_SCAN_SIDE = 1024
_UINT16_NODATA = 65535


@dataclass(frozen=True)
class LabelRaster:
    """A raster of class indices, with the classes' names and colours; no open handle.

    Made by :meth:`open`. Safe to read from several threads.
    """

    path: str
    grid: Grid
    classes: tuple[LabelClass, ...]
    """In ascending order of their pixel value; for rasters of others the values that occur."""
    nodata: int | None
    """Value of pixels without a label, as :meth:`read` returns it."""
    dtype: np.dtype[np.uint8] | np.dtype[np.uint16]
    """Type that :meth:`read` returns."""
    modified: int
    """When the file was last changed, in ns; a changed file is opened anew."""
    source_nodata: float | None
    """Nodata value in the file, if its pixels can have it."""
    masked: bool = False
    """Whether a mask or an alpha band says which pixels have a label."""
    stored: StoredBlocks | None = field(default=None, compare=False)
    """Blocks outside of which no pixel has a label, if any is known to be empty."""
    colours: Mapping[int, str] = field(default_factory=dict)
    """``#rrggbb`` of values that have one in the file or beside it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the file."""

    @classmethod
    def open(cls, path: str | Path, *, named: bool = False) -> LabelRaster:
        """Look at a label raster: placement, classes, nodata.

        Names come from the tags geoseg writes (``CLASS_0=…``) and colours from the colour table.
        Where there are none, the classes are the values that occur, which takes one pass over the
        file, under the names and colours of a ``.qml``, ``.aux.xml`` or ``.vat.dbf`` beside it,
        else ``class 0``, ``class 1``, … in default colours.

        Parameters
        ----------
        path
            The file.
        named
            Whether the caller knows better, so that nothing is said of names that do not fit.

        Raises
        ------
        SceneError
            If the file cannot be opened, or has several bands or other than whole numbers.
        """
        path = as_given(path)
        with _open(path) as dataset:
            _refuse_other_rasters(dataset, path)
            stored = np.dtype(dataset.dtypes[0])
            file_nodata = nodata_as(dataset.nodata, dataset.dtypes[0])
            masked = _is_masked(dataset)
            small = stored == np.uint8 and not (masked and file_nodata is None)
            raster = cls(
                path=path,
                grid=Grid(dataset.crs, dataset.transform, dataset.height, dataset.width),
                classes=(),
                nodata=_nodata_read(file_nodata, stored, masked=masked),
                dtype=np.dtype(np.uint8) if small else np.dtype(np.uint16),
                modified=_modified(path),
                source_nodata=file_nodata,
                masked=masked,
                stored=None if masked or file_nodata is None else StoredBlocks.of(dataset),
                tags=dataset.tags(),
            )
            tags = raster.tags | dataset.tags(1)
            names = _tagged_names(tags)
            colours = _colours(dataset) or _tagged_colours(tags)
        if names and "geoseg_version" in tags and not raster._has_classes(names):
            if not named:
                warn(f"{path}: {NAMELESS}")
            names, colours = {}, {}
        if not names:
            legend = legend_beside(path)
            names = {v: legend.get(v, (f"class {v}", None))[0] for v in raster.counts()}
            told = {v: c for v, (_, c) in legend.items() if c and _COLOUR.fullmatch(c)}
            colours = told | colours
        classes = tuple(
            LabelClass(i, name, colours.get(i, default_color(i)))
            for i, name in sorted(names.items())
        )
        return replace(raster, classes=classes, colours=colours)

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""
        return self.grid.shape

    def _has_classes(self, names: Mapping[int, str]) -> bool:
        """Whether it may hold these classes; xarray writes them also beside what is computed."""
        found = self.counts()
        return found.keys() <= names.keys() and not looks_like_mask(found, len(names))

    @property
    def labelled(self) -> Window:
        """A window outside of which no pixel has a label, known without reading any."""
        return self.grid.window if self.stored is None else self.stored.window

    def known_empty(self, window: Window) -> bool:
        """Whether no pixel of a window has a label, as far as that is known without reading it."""
        return self.stored is not None and not self.stored.any_in(window)

    def read(self, window: Window | None = None) -> LabelArray:
        """Read class indices.

        Parameters
        ----------
        window
            Part of the raster; all of it if None.

        Returns
        -------
        ndarray
            ``(h, w)`` uint8 or uint16; ``nodata`` where there is no label.

        Raises
        ------
        SceneError
            If the file is damaged there, or a value does not fit uint16.
        """
        window = window if window is not None else self.grid.window
        return self._read(window, window.shape)

    def thumbnail(self, max_size: int) -> LabelArray:
        """Read the whole raster with its longer side ``max_size`` pixels or fewer."""
        return self._read(
            self.grid.window, decimated_shape(self.shape, decimation(self.shape, max_size))
        )

    def counts(self) -> dict[int, int]:
        """Count the pixels of every class, and of other values that occur; nodata left out."""
        total = np.zeros(np.iinfo(self.dtype).max + 1, np.int64)
        # Squares, so that their size does not grow with the raster's width.
        for window in pieces(self.labelled, _SCAN_SIDE, _SCAN_SIDE):
            if not self.known_empty(window):
                total += np.bincount(self.read(window).ravel(), minlength=len(total))
        if self.nodata is not None:
            total[self.nodata] = 0
        listed = {c.index for c in self.classes} | {int(v) for v in np.flatnonzero(total)}
        return {index: int(total[index]) for index in sorted(listed)}

    def close(self) -> None:
        """Let go of what this thread's reading keeps in memory; the next read opens anew."""
        close_handle(self._key)

    @property
    def _key(self) -> tuple[str, int, str]:
        return self.path, self.modified, "labels"

    def _narrow(self, values: npt.NDArray[Any], labelled: BoolArray) -> LabelArray:
        plain = not self.masked and self.source_nodata == self.nodata
        if values.dtype == self.dtype and plain:
            return values
        if self.source_nodata is not None:
            labelled &= values != self.source_nodata
        if values.dtype.kind == "f":
            labelled &= np.isfinite(values)
        top = np.iinfo(self.dtype).max - (self.nodata is not None)
        found = values[labelled]
        if values.dtype.kind == "f" and (found != np.rint(found)).any():
            raise SceneError(f"{self.path}: holds fractions; labels are whole numbers")
        if found.size and (int(found.min()) < 0 or int(found.max()) > top):
            raise SceneError(
                f"{self.path}: label values run from {found.min()} to {found.max()}; "
                f"they must lie in 0 to {top}"
            )
        narrow: LabelArray = np.full(values.shape, self.nodata or 0, self.dtype)
        narrow[labelled] = found
        return narrow

    def _read(self, window: Window, shape: tuple[int, int]) -> LabelArray:
        try:
            dataset = shared_handle(self._key, lambda: _open(self.path))
            at = {"window": window.slices(), "out_shape": shape}
            values = dataset.read(1, **at)
            labelled = np.ones(shape, np.bool_)
            if self.masked:
                # Not GDAL's own mask of an alpha band, which scales 16 bits to 8.
                seen = dataset.read_masks(1, **at) if dataset.count == 1 else dataset.read(2, **at)
                labelled = seen != 0
        except RasterioError as error:
            raise SceneError(
                f"{self.path}: labels in rows {window.row} to {window.row_stop - 1} cannot be "
                f"read, the file is damaged or incomplete"
            ) from error
        return self._narrow(values, labelled)


def _open(path: str) -> Any:
    try:
        return open_dataset(path)
    except RasterioIOError as error:
        raise unreadable(path, error) from error


def _refuse_other_rasters(dataset: Any, path: str) -> None:
    if dataset.count != 1 and not (dataset.count == 2 and _has_alpha(dataset)):
        raise SceneError(
            f"{path}: has {dataset.count} bands; a label raster has one, so take the band that "
            f"holds the classes: gdal_translate -b 1 {path} labels.tif"
        )
    if np.dtype(dataset.dtypes[0]).kind not in "iuf":
        raise SceneError(f"{path}: holds {dataset.dtypes[0]}; labels are whole numbers")


def _has_alpha(dataset: Any) -> bool:
    return bool(dataset.colorinterp[-1] == ColorInterp.alpha)


def _is_masked(dataset: Any) -> bool:
    flags = dataset.mask_flag_enums[0]
    return bool(dataset.count == 2) or mask_kind(flags) != "none"


def _nodata_read(value: float | None, stored: np.dtype[Any], *, masked: bool) -> int | None:
    """Nodata as labels of a file of that type are returned with."""
    if stored == np.uint8 and value is not None:
        return int(value)
    return _UINT16_NODATA if value is not None or masked or stored.kind == "f" else None


def _modified(path: str) -> int:
    file = Path(path)
    return file.stat().st_mtime_ns if file.exists() else 0


def _tagged_names(tags: Mapping[str, str]) -> dict[int, str]:
    return {
        number: name
        for key, name in tags.items()
        if key.startswith(_TAG) and (number := as_number(key.removeprefix(_TAG))) is not None
    }


def _tagged_colours(tags: Mapping[str, str]) -> dict[int, str]:
    """Colours that rioxarray keeps of labels as a tag."""
    if "flag_colors" not in tags:
        return {}
    return {item.index: item.color for item in classes_in(tags)}


def _colours(dataset: Any) -> dict[int, str]:
    if dataset.colorinterp[0] != ColorInterp.palette:
        return {}
    table = dataset.colormap(1)
    return {value: f"#{r:02x}{g:02x}{b:02x}" for value, (r, g, b, _) in table.items()}
