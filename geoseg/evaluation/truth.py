"""Truth on the grid of the labels: rasters, plain images and vector files, window by window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from geoseg._address import as_given
from geoseg.errors import EvaluationError, OptionError, SceneError, warn
from geoseg.evaluation.metrics import IGNORE, IndexArray
from geoseg.evaluation.values import (
    ANY_VALUE,
    IGNORED_NAME,
    ClassNumbers,
    ValueCoder,
    ValueMap,
    canonical,
    coder_for_colors,
    coder_for_numbers,
    pack_colors,
)
from geoseg.io._handles import open_dataset
from geoseg.io.crs import crs_name, same_crs
from geoseg.io.grid import Grid
from geoseg.io.labels import LabelRaster
from geoseg.io.vectors import is_vector_file, read_polygons
from geoseg.types import Window, label_nodata

RASTER_SUFFIXES = frozenset({".bmp", ".img", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".vrt"})
CLASS_COLUMNS = ("class_name", "class", "label", "name")
"""Columns that are taken for the class if none is named, in this order."""

_MOST_VALUE = 2**53
_PIXEL_TOLERANCE = 1e-3
_SCALE_TOLERANCE = 1e-6


class Truth(Protocol):
    """What is really there, on the grid of the labels."""

    def read(self, window: Window) -> IndexArray:
        """Class number of every pixel of a window; IGNORE where nothing is known."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class VectorTruth:
    """Features on a grid: a pixel has the class of the last feature that covers its centre."""

    def __init__(
        self, geometries: Sequence[Any], numbers: Sequence[int], grid: Grid, outside: int
    ) -> None:
        self._geometries = geometries
        self._numbers = numbers
        self._grid = grid
        self._outside = outside
        self._tree = shapely.STRtree(geometries)

    def read(self, window: Window) -> IndexArray:
        """Class number of every pixel of a window."""
        transform = self._grid.window_transform(window)
        hits = np.sort(self._tree.query(_outline(transform, window)))
        if not len(hits):
            return np.full(window.shape, self._outside, np.int32)
        burned: IndexArray = rasterio.features.rasterize(
            ((self._geometries[i], self._numbers[i]) for i in hits),
            out_shape=window.shape,
            transform=transform,
            fill=self._outside,
            dtype="int32",
        )
        return burned

    def close(self) -> None:
        """Nothing to let go of."""


class RasterTruth:
    """A raster on a grid: pixel by pixel where it has the same one, else resampled nearest.

    Pixels outside the raster count nowhere. A value map alone decides what values mean. Without
    one, classes are those that the file names (a label raster of geoseg's), or else value i is
    class i, and the file's nodata and 255 (65535 for 16 bits) count nowhere.

    Parameters
    ----------
    path
        GeoTIFF or plain image; three bands or more are colours.
    grid
        Grid of the labels.
    classes
        Numbers of the classes.
    values
        What the values mean.

    Raises
    ------
    EvaluationError
        If the raster cannot be read, or lies in another CRS, or has no place of its own and
        another size than the labels.

    Warns
    -----
    GeosegWarning
        If the raster is resampled, or a class's value is the file's nodata.
    """

    def __init__(
        self, path: Path, grid: Grid, classes: ClassNumbers, values: ValueMap | None = None
    ) -> None:
        self._path = path
        self._source = open_raster(path)
        self._bands = [1, 2, 3] if self._source.count >= 3 else [1]
        self._coder = self._pick_coder(classes, values)
        self._warped = self._warp(grid)

    def read(self, window: Window) -> IndexArray:
        """Class number of every pixel of a window."""
        source = self._warped or self._source
        bands = [*self._bands, source.count] if self._warped else self._bands
        try:
            pixels = source.read(bands, window=window.slices())
        except RasterioError as error:
            raise EvaluationError(f"{self._path}: cannot be read: {error}") from error
        values = pixels[: len(self._bands)]
        packed = pack_colors(values) if len(self._bands) == 3 else values[0]
        covered = np.ones(window.shape, np.bool_) if self._warped is None else pixels[-1] != 0
        nodata = self._source.nodata
        if nodata is not None and not _can_be_named(nodata):
            covered &= packed != np.float64(nodata).astype(packed.dtype)
        elif self._warped is None:
            return self._coder.encode(packed, str(self._path))
        index = np.full(window.shape, IGNORE, np.int32)
        index[covered] = self._coder.encode(packed[covered], str(self._path))
        return index

    def close(self) -> None:
        """Let go of the file."""
        if self._warped is not None:
            self._warped.close()
        self._source.close()

    def _pick_coder(self, classes: ClassNumbers, values: ValueMap | None) -> ValueCoder:
        if len(self._bands) == 3:
            if values is None:
                raise OptionError(
                    f"{self._path}: the truth is a colour image; say what the colours mean with "
                    '--truth-values "#000000=ignore;#ff0000=building"'
                )
            return coder_for_colors(values, classes)
        return coder_for_numbers(values, classes) if values else self._plain_coder(classes)

    def _plain_coder(self, classes: ClassNumbers) -> ValueCoder:
        numbers = {i: i for i in range(len(classes.names))}
        if any(tag.startswith("CLASS_") for tag in self._source.tags(1)):
            named = LabelRaster.open(self._path).classes
            numbers = {entry.index: classes.number(entry.name) for entry in named}
        dtype = np.dtype(self._source.dtypes[0])
        if dtype in (np.uint8, np.uint16):
            numbers.setdefault(label_nodata(dtype), IGNORE)
        nodata = self._source.nodata
        if nodata is not None and _can_be_named(nodata):
            if int(nodata) in numbers and numbers[int(nodata)] != IGNORE:
                warn(
                    f"{self._path} marks {int(nodata)} as nodata, so these pixels are ignored; "
                    f'to count them, map the values with --truth-values "{int(nodata)}='
                    f'{classes.names[int(nodata)]};…"'
                )
            numbers[int(nodata)] = IGNORE
        return ValueCoder(numbers)

    def _warp(self, grid: Grid) -> WarpedVRT | None:
        """Return a view on the labels' grid if the truth has another one."""
        source = self._source
        same_size = (source.height, source.width) == grid.shape
        placed = source.crs is not None and source.transform != Affine.identity()
        if not (placed and grid.placed):
            if same_size:
                return None
            raise EvaluationError(
                f"{self._path}: {source.width} x {source.height} pixels, the labels have "
                f"{grid.width} x {grid.height}; without a CRS in both they must be equal"
            )
        if not same_crs(source.crs, grid.crs):
            raise EvaluationError(
                f"{self._path}: its CRS is {crs_name(source.crs)}, the labels' is "
                f"{crs_name(grid.crs)}; bring the truth there first, for example with "
                f"gdalwarp -t_srs {crs_name(grid.crs)} -r near"
            )
        offset = ~source.transform * grid.transform
        if same_size and _is_shift(offset) and abs(offset.c) + abs(offset.f) < _PIXEL_TOLERANCE:
            return None
        if not (_is_shift(offset) and _is_whole(offset.c) and _is_whole(offset.f)):
            warn(
                f"{self._path} lies on another grid than the labels; its values are taken from "
                "the nearest pixel"
            )
        return WarpedVRT(
            source,
            src_crs=grid.crs,
            resampling=Resampling.nearest,
            src_nodata=None,
            add_alpha=ColorInterp.alpha not in source.colorinterp,
            **grid.profile,
        )


def open_truth(
    path: Path,
    grid: Grid,
    classes: ClassNumbers,
    values: ValueMap | None = None,
    column: str | None = None,
    outside: str = IGNORED_NAME,
    layer: str | None = None,
) -> Truth:
    """Open the truth of whatever kind on a grid.

    Parameters
    ----------
    path
        Raster, plain image or vector file.
    grid
        Grid of the labels.
    classes
        Numbers of the classes.
    values
        What values mean.
    column
        Column of a vector file with the class.
    outside
        Class of pixels that no feature of a vector file covers.
    layer
        Layer of a vector file; None for the one that has polygons.

    Raises
    ------
    EvaluationError
        If it cannot be read or laid on the grid.
    OptionError
        If a value, class or column does not fit.
    """
    if is_vector(path):
        return _vector_truth(path, grid, classes, values, column, outside, layer)
    for option, value in (("--truth-column", column), ("--truth-layer", layer)):
        if value is not None:
            raise OptionError(f"{path}: {option} is for vector files; this is a raster")
    return RasterTruth(path, grid, classes, values)


def is_vector(path: Path) -> bool:
    """Tell whether a truth is one of features and not of pixels."""
    return path.suffix.lower() not in RASTER_SUFFIXES and is_vector_file(path)


def open_raster(path: Path) -> Any:
    """Open a raster of truth or confidence.

    Raises
    ------
    EvaluationError
        If rasterio cannot open it.
    """
    try:
        return open_dataset(as_given(path))
    except RasterioError as error:
        raise EvaluationError(f"{as_given(path)}: cannot be opened as a raster: {error}") from error


def _vector_truth(
    path: Path,
    grid: Grid,
    classes: ClassNumbers,
    values: ValueMap | None,
    column: str | None,
    outside: str,
    layer: str | None,
) -> VectorTruth:
    try:
        frame = read_polygons(path, grid, what="truth", layer=layer, points=True).table
    except SceneError as error:
        raise EvaluationError(str(error)) from error
    column = _class_column(path, list(frame.columns), column)
    numbers = [classes.number(name) for name in _class_names(path, frame, column, values)]
    geometries = list(frame.geometry)
    return VectorTruth(geometries, numbers, grid.drawn, classes.number(outside))


def _class_column(path: Path, columns: list[str], column: str | None) -> str | None:
    if column is None:
        return next((c for c in CLASS_COLUMNS if c in columns), None)
    if column not in columns:
        raise OptionError(
            f"{path}: there is no column '{column}'; it has "
            f"{', '.join(c for c in columns if c != 'geometry')}"
        )
    return column


def _class_names(path: Path, frame: Any, column: str | None, values: ValueMap | None) -> list[str]:
    """Class name of every feature; missing words count nowhere."""
    if column is None:
        words = [""] * len(frame)
    else:
        texts = frame[column].astype(str).str.strip()
        missing = frame[column].isna()
        words = [IGNORED_NAME if m else canonical(t) for t, m in zip(texts, missing, strict=True)]
    if values is not None:
        return [_mapped(path, word, column, values) for word in words]
    if column is None:
        raise OptionError(
            f"{path}: no column says what the features are; name it with "
            '--truth-column, or give all of them one class with --truth-values "*=building"'
        )
    return words


def _mapped(path: Path, word: str, column: str | None, values: ValueMap) -> str:
    name = values.entries.get(word, values.entries.get(ANY_VALUE))
    if name is None:
        raise EvaluationError(
            f"{path}: no class is given for '{word}' in column {column}; add "
            f"{word}=NAME or *=ignore to --truth-values"
        )
    return name


def _outline(transform: Affine, window: Window) -> Any:
    corners = [(0, 0), (window.width, 0), (window.width, window.height), (0, window.height)]
    return shapely.Polygon([transform * corner for corner in corners])


def _can_be_named(value: float) -> bool:
    """Whether a pixel value could stand in a value map, which holds whole numbers."""
    return math.isfinite(value) and value == int(value) and abs(value) < _MOST_VALUE


def _is_shift(offset: Affine) -> bool:
    """Tell whether two grids have the same pixels but for where they begin."""
    return bool(
        abs(offset.a - 1) + abs(offset.e - 1) + abs(offset.b) + abs(offset.d) < _SCALE_TOLERANCE
    )


def _is_whole(pixels: float) -> bool:
    return abs(pixels - round(pixels)) < _PIXEL_TOLERANCE
