"""Arrays and tables where a path could stand: they lie in files as long as they are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import xarray
from shapely.geometry.base import BaseGeometry

from geoseg._inputs import shown
from geoseg.errors import OptionError, SceneError, passing_files
from geoseg.io._handles import open_dataset
from geoseg.io.array import ArrayScene, time_of
from geoseg.io.flags import classes_in, looks_like_mask
from geoseg.io.grid import pieces
from geoseg.io.placing import spatial_dims
from geoseg.io.planes import fill_of
from geoseg.io.vectors import field_names
from geoseg.options import Reading
from geoseg.types import LabelClass, Window

MARK = "geoseg"
"""Key of the encoding of labels that nothing has been computed of."""
_GIVE = "give a path, an xarray.DataArray or a GeoDataFrame"
_ROWS = 1024
_COMPRESSED = {"tiled": True, "compress": "zstd", "bigtiff": "if_safer", "interleave": "band"}


def is_array(value: Any) -> bool:
    """Whether it is one of xarray's."""
    return isinstance(value, xarray.DataArray | xarray.Dataset)


@contextmanager
def on_disk(*objects: Any, needed: int = 1) -> Iterator[tuple[Any, ...]]:
    """Give paths for arrays and tables; paths stay what they are, and None after those needed.

    Parameters
    ----------
    objects
        Labels, confidence or truth as a DataArray, or a Dataset that has ``labels``; truth or
        zones as a GeoDataFrame, a GeoSeries or a shapely geometry.

    Raises
    ------
    SceneError
        If an array is not one image of numbers.
    OptionError
        If it is something else.
    """
    with TemporaryDirectory(prefix="geoseg-") as folder, passing_files(folder) as names:
        if any(one is None for one in objects[:needed]):
            raise OptionError(f"this is None; {_GIVE}")
        paths = tuple(_path_of(one, Path(folder) / str(i)) for i, one in enumerate(objects))
        pairs = zip(objects, paths, strict=True)
        names |= {str(path): _called(one) for one, path in pairs if path is not one}
        yield paths


@contextmanager
def scene_on_disk(
    scene: xarray.DataArray | xarray.Dataset, reading: Reading
) -> Iterator[tuple[Path, Reading]]:
    """Give a file with the bands of a scene that are used, and how to read it.

    Raises
    ------
    GeosegError
        As `ArrayScene.open`.
    """
    if time_of(scene) is not None:
        raise SceneError(
            f"the array has a dimension {time_of(scene)}; map each date into a folder of its own: "
            f"array.isel({time_of(scene)}=0), or all of them with geoseg.segment"
        )
    found = ArrayScene.open(scene, bands=reading.bands, stretch=reading.stretch, crs=reading.crs)
    known = next((fill for fill in found.fills if fill is not None), None)
    with TemporaryDirectory(prefix="geoseg-") as folder, passing_files(folder):
        name = getattr(scene, "name", None)
        path = Path(folder) / f"{_file_name(name, 'array')}.tif"
        profile: dict[str, Any] = {"nodata": known} if known is not None else {}
        with open_dataset(
            str(path),
            "w",
            driver="GTiff",
            count=len(found.array),
            dtype=(dtype := _storable(found.array.dtype)),
            **found.grid.profile,
            **profile,
            **_COMPRESSED,
        ) as dataset:
            dataset.descriptions = found.names
            if found.units:
                dataset.scales = tuple(scale for scale, _ in found.units)
                dataset.offsets = tuple(offset for _, offset in found.units)
            for window in _strips(found):
                pixels = np.array(found.pixels(window))
                for band, fill in zip(pixels, found.fills, strict=True):
                    if fill is not None and fill != known:
                        band[band == fill] = known
                dataset.write(pixels.astype(dtype), window=window.slices())
        numbers = tuple(range(1, len(found.array) + 1))
        yield path, replace(reading, bands=numbers, crs=None, stretch=_stretch(found, reading))


def _stretch(found: ArrayScene, reading: Reading) -> Any:
    """Limits that were measured, in the units in which ranges are given."""
    if found.stretch is None:
        return reading.stretch
    units = found.units or ((1.0, 0.0),) * len(found.stretch)
    return tuple(
        (low * scale + offset, high * scale + offset)
        for (low, high), (scale, offset) in zip(found.stretch, units, strict=True)
    )


def label_array(labels: xarray.DataArray | xarray.Dataset) -> xarray.DataArray:
    """The labels of a Dataset, or the array itself.

    Raises
    ------
    SceneError
        If the Dataset has no labels.
    """
    if isinstance(labels, xarray.DataArray):
        return labels
    named = [name for name, one in labels.data_vars.items() if "flag_values" in one.attrs]
    if "labels" not in labels and len(named) != 1:
        held = ", ".join(map(str, labels.data_vars)) or "none"
        raise SceneError(f"the Dataset has no variable labels; it has {held}")
    return labels["labels" if "labels" in labels else named[0]]


def one_image(labels: xarray.DataArray) -> xarray.DataArray:
    """Labels as ``(y, x)``, whatever these are called.

    Raises
    ------
    SceneError
        If there are several images, or none.
    """
    try:
        y, x = spatial_dims(labels)
    except SceneError:
        y, x = "y", "x"
    thin = labels.squeeze([d for d, n in labels.sizes.items() if n == 1 and d not in (y, x)])
    if set(thin.dims) != {y, x}:
        raise SceneError(
            f"the labels have dimensions {', '.join(map(str, labels.dims)) or 'none'}; give one "
            "image (y, x), for example of one date: labels.isel(time=0)"
        )
    return thin.transpose(y, x)


def classes_of(labels: xarray.DataArray, values: Any = None) -> tuple[LabelClass, ...]:
    """Classes of a label array; none where its values are no longer those of its attributes.

    What is computed of labels keeps their attributes, also where it is a mask (``labels == 2``) or
    a count.

    Parameters
    ----------
    labels
        The array.
    values
        Its values, or those that occur, where they are known; without them only the type is
        looked at.
    """
    classes = classes_in(labels.attrs)
    if labels.dtype.kind not in "iuf" or not classes:
        return ()
    if values is None:
        return classes
    flat = np.unique(np.asarray(values))
    found = {value.item() for value in flat[np.isfinite(flat)]}
    none = found & {fill_of(labels), labels.attrs.get("_FillValue")}
    if not found <= {item.index for item in classes} | none:
        return ()
    if not may_be_computed(labels):
        return classes
    # What is left of labels has nodata where the others were; one of a file may be whole.
    left = bool(labels.encoding) or bool(none) or not np.isfinite(flat).all()
    return classes if left and not looks_like_mask(found - none, len(classes)) else ()


def may_be_computed(labels: xarray.DataArray) -> bool:
    """Whether an array may have been computed of labels of geoseg's: that keeps the attributes.

    It loses the encoding; and where it was written and opened again, nobody knows.
    """
    return "geoseg_version" in labels.attrs and MARK not in labels.encoding


def _called(value: Any) -> str:
    """What an object is, in a few words."""
    kind = type(value).__name__
    if is_array(value):
        size = " x ".join(map(str, label_array(value).shape))
        return f"a {kind} of {size} pixels"
    if isinstance(value, gpd.GeoSeries | gpd.GeoDataFrame):
        crs = "no CRS" if value.crs is None else value.crs.to_string()
        return f"a {kind} of {len(value)} polygons ({shown(crs)})"
    return f"a {kind}"


def _path_of(value: Any, folder: Path) -> Any:
    if value is None or isinstance(value, str | Path):
        return value
    folder.mkdir()
    if isinstance(value, list | tuple):
        return [_path_of(one, folder / str(i)) for i, one in enumerate(value)]
    if is_array(value):
        return write_labels(label_array(value), folder / "labels.tif")
    if isinstance(value, BaseGeometry):
        value = gpd.GeoSeries([value])
    if isinstance(value, gpd.GeoSeries):
        value = gpd.GeoDataFrame(geometry=value)
    if not isinstance(value, gpd.GeoDataFrame):
        raise OptionError(f"this is a {type(value).__name__}; {_GIVE}")
    path = folder / "table.gpkg"
    columns = pd.DataFrame(value.drop(columns=value.geometry.name)).reset_index(drop=True)
    columns.columns = field_names([str(name) for name in columns])
    for name in columns:
        if columns[name].dtype == object:
            columns[name] = columns[name].map(lambda one: None if one is None else str(one))
    simple = gpd.GeoDataFrame(columns, geometry=value.geometry.to_numpy(), crs=value.crs)
    with warnings.catch_warnings():  # that it has no CRS, which is said where one is needed
        warnings.simplefilter("ignore", UserWarning)
        simple.to_file(path, layer="table", engine="pyogrio")
    return path


def write_labels(
    labels: xarray.DataArray, path: Path, tags: Mapping[str, str] | None = None
) -> Path:
    """Write one image of whole numbers as a GeoTIFF, with names and colours as far as they hold.

    Parameters
    ----------
    labels
        ``(y, x)``; a mask becomes 0 and 1, and NaN of floats nodata.
    path
        File to write.
    tags
        Further metadata of the file.
    """
    thin = one_image(labels)
    plain = thin.astype("uint8", keep_attrs=True) if thin.dtype == bool else thin
    scene = ArrayScene.open(plain, stretch="raw", colours=False)
    fill, dtype = scene.fills[0], _storable(scene.array.dtype)
    if dtype.kind == "f":
        fill = float("nan") if fill is None else fill
    elif dtype.itemsize > 4:
        dtype = np.dtype(np.int32)
    if fill is None and dtype.kind in "iu" and classes_in(thin.attrs) and dtype.itemsize <= 2:
        fill = None if thin.dtype == bool else float(np.iinfo(dtype).max)
    found: set[Any] = set()
    with open_dataset(
        str(path),
        "w",
        driver="GTiff",
        count=1,
        dtype=dtype,
        nodata=fill,
        **scene.grid.profile,
        **_COMPRESSED,
    ) as dataset:
        for window in _strips(scene):
            values = np.asarray(scene.pixels(window))[0]
            found.update(np.unique(values).tolist())
            if dtype != values.dtype and not (values.astype(dtype) == values).all():
                raise SceneError(
                    f"the array holds values from {values.min()} to {values.max()}; labels lie in "
                    "0 to 65534"
                )
            dataset.write(values.astype(dtype), 1, window=window.slices())
        classes = classes_of(thin, np.array(sorted(found))) if found else ()
        own = {f"CLASS_{item.index}": item.name for item in classes}
        dataset.update_tags(1, **own)
        dataset.update_tags(**(tags or {}))
        if classes and dtype == np.uint8:
            dataset.write_colormap(1, {item.index: (*item.rgb, 255) for item in classes})
    return path


def _storable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type of a file that holds the same numbers."""
    if dtype.kind != "f":
        return dtype.newbyteorder("=")
    return np.dtype(np.float32 if dtype.itemsize < 8 else np.float64)


def _strips(scene: ArrayScene) -> Iterator[Window]:
    """Some rows at a time; of a dask array those of its chunks, each of which is computed once."""
    if not scene.is_lazy:
        yield from pieces(scene.grid.window, _ROWS, scene.grid.width)
        return
    row = 0
    for height in scene.array.chunks[1]:
        yield Window(row, 0, height, scene.grid.width)
        row += height


def _file_name(name: Any, otherwise: str) -> str:
    word = str(name) if name is not None else ""
    return word if word and word.replace("_", "").replace("-", "").isalnum() else otherwise
