"""``labels.geoseg`` and ``scene.geoseg``: maps in a notebook, once this module is imported.

::

    import geoseg.xarray

    labels = scene.geoseg.segment("building, roof; road; water").labels
    labels.geoseg.plot()
    labels.geoseg.areas(unit="ha")
    labels.geoseg.polygons(min_area_m2=50).explore()
"""

from __future__ import annotations

import math
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import rioxarray
import xarray

from geoseg._inputs import is_there
from geoseg._optional import require
from geoseg.errors import OptionError, SceneError, not_found, warn
from geoseg.evaluation import Evaluation, evaluate
from geoseg.io.array import ArrayScene, time_of
from geoseg.io.flags import NAMELESS, classes_in, flags_of, without_flags
from geoseg.io.grid import Grid, pieces
from geoseg.io.objects import MARK, classes_of, label_array, may_be_computed, one_image
from geoseg.io.planes import fill_of
from geoseg.io.write import label_writer, provenance
from geoseg.lazy import segment
from geoseg.legend import named_classes
from geoseg.legend import open_labels as open_legend
from geoseg.options import VectorOptions
from geoseg.run.tally import Tally
from geoseg.text.vocabulary import VocabularySource
from geoseg.types import LabelClass, UInt8Array, default_color
from geoseg.vector import vectorize

UNITS = {"m2": 1.0, "ha": 1e4, "km2": 1e6}
"""Square metres of the units that areas are given in."""
_PLOTTED = 2048
"""Pixels of the longer side that are drawn."""
_ROWS = 1024
_ZARR, _NETCDF = (".zarr",), (".nc", ".nc4", ".netcdf", ".h5")


def open_labels(
    path: str | Path, classes: VocabularySource | None = None, *, chunks: Any = None
) -> xarray.DataArray:
    """Open labels with the names and colours of their values, for `labels.geoseg`.

    Parameters
    ----------
    path
        A label raster, geoseg's or another's, or netCDF or zarr as xarray writes the result of
        `geoseg.segment`.
    classes
        Names and colours of the values, in place of the file's own.
    chunks
        As for xarray; without it a raster is read when its values are asked for.

    Returns
    -------
    xarray.DataArray
        ``(y, x)`` whole numbers, with ``flag_values``, ``flag_meanings``, ``flag_colors``, CRS,
        transform and nodata.

    Raises
    ------
    SceneError
        If it cannot be opened, or no variable of it holds labels.
    OptionError
        If it is no path.
    """
    if not isinstance(path, str | Path):
        raise OptionError(f"labels are a {type(path).__name__}; give a path or an xarray.DataArray")
    suffix = Path(path).suffix.lower()
    if suffix in (*_ZARR, *_NETCDF):
        if not is_there(path):
            raise not_found(SceneError)(f"{path}: no such file")
        try:
            opened = xarray.open_dataset(
                path, mask_and_scale=False, decode_coords="all", chunks=chunks
            )
        except (OSError, ValueError) as error:
            words = " ".join(str(error).split())[:200]
            raise SceneError(f"{path}: cannot be opened ({words})") from error
        named = [n for n, v in opened.data_vars.items() if "flag_values" in v.attrs]
        chosen = "labels" if "labels" in opened else named[0] if named else None
        if chosen is None:
            held = ", ".join(map(str, opened.data_vars)) or "none"
            raise SceneError(f"{path}: no variable of it has flag_values; it has {held}")
        labels = opened[chosen]
        labels.encoding.setdefault("source", str(path))
        told = () if classes is None else named_classes(classes)
    else:
        told = open_legend(path, classes).classes
        bands = rioxarray.open_rasterio(path, chunks=chunks)
        assert isinstance(bands, xarray.DataArray)
        labels = bands.isel(band=0, drop=True).rename("labels")
    if told:
        labels.attrs = without_flags(labels.attrs) | flags_of(told, labels.dtype)
    if classes is not None:
        labels.encoding[MARK] = version("geoseg")  # they are labels, whatever occurs in them
    return labels


class GeosegAccessor:
    """What geoseg knows to do with an array: a scene can be mapped, a map drawn and measured.

    Labels are taken with their classes as the attributes say them (``flag_values``,
    ``flag_meanings``, ``flag_colors``), wherever they come from. What has been computed of labels
    and is none any more, a mask for instance, has values without names.
    """

    def __init__(self, array: xarray.DataArray | xarray.Dataset) -> None:
        self._array = array

    def segment(self, classes: VocabularySource, **settings: Any) -> xarray.Dataset:
        """Map this scene lazily; see `geoseg.segment` for the settings."""
        return segment(self._array, classes, **settings)

    # -- what the values stand for ----------------------------------------------------------------

    @property
    def classes(self) -> pd.DataFrame:
        """``value``, ``name`` and ``color`` (``#rrggbb``) of every class."""
        rows = [(item.index, item.name, item.color) for item in self._classes]
        return pd.DataFrame(rows, columns=["value", "name", "color"])

    @property
    def legend_dict(self) -> dict[str, str]:
        """Names and colours ``#rrggbb``, as leafmap, hvplot and others take a legend."""
        return {item.name: item.color for item in self._classes}

    def rgba(self) -> xarray.DataArray:
        """Colours of the classes, ``(y, x, band)`` uint8 with opacity last; nodata is clear."""
        labels = self._one
        table = _table(self._classes)
        values = labels.data
        if hasattr(values, "dask"):
            colours = values.map_blocks(
                _coloured, table, dtype=np.uint8, chunks=(*values.chunks, (4,)), new_axis=2
            )
        else:
            colours = _coloured(np.asarray(values), table)
        made = xarray.DataArray(
            colours,
            dims=(*labels.dims, "band"),
            coords={**labels.coords, "band": ["red", "green", "blue", "alpha"]},
            name="rgba",
        )
        return made if labels.rio.crs is None else made.rio.write_crs(labels.rio.crs)

    # -- measures ---------------------------------------------------------------------------------

    def areas(self, unit: str = "ha") -> pd.DataFrame:
        """Area of every class on the ellipsoid.

        Parameters
        ----------
        unit
            ``m2``, ``ha`` or ``km2``.

        Returns
        -------
        DataFrame
            ``class_id``, ``class_name``, ``pixels``, ``share`` (of the labelled pixels, 0 to 1)
            and ``area_ha`` (or another unit; NaN where there are no metres); of a stack, the date
            comes first.

        Raises
        ------
        OptionError
            If the unit is not known.
        """
        if unit not in UNITS:
            raise OptionError(f"unit '{unit}' is not known; choose {', '.join(UNITS)}")
        labels = label_array(self._array)
        if (stack := time_of(labels)) is not None:
            tables = []
            for place in range(labels.sizes[stack]):
                one = labels.isel({stack: place})
                table = GeosegAccessor(one).areas(unit)
                date = labels[stack].values[place] if stack in labels.coords else place
                table.insert(0, str(stack), date)
                tables.append(table)
            return pd.concat(tables, ignore_index=True)
        scene, classes = self._scene, self._classes
        places = {item.index: place for place, item in enumerate(classes)}
        tally = Tally(scene.grid, len(classes))
        step = scene.grid.height if tally.even else max(1, scene.grid.height // 512)
        pixels = np.asarray(scene.array)[0]
        for window in pieces(scene.grid.window, step, scene.grid.width):
            found, counts = np.unique(pixels[window.slices()], return_counts=True)
            row = np.zeros(len(classes), np.int64)
            for value, count in zip(found.tolist(), counts.tolist(), strict=True):
                if value in places:
                    row[places[value]] = count
            tally.add(window, tuple(row.tolist()))
        areas = np.full(len(classes), np.nan) if tally.areas_m2 is None else tally.areas_m2
        return pd.DataFrame(
            {
                "class_id": [item.index for item in classes],
                "class_name": [item.name for item in classes],
                "pixels": tally.counts,
                "share": tally.counts / max(int(tally.counts.sum()), 1),
                f"area_{unit}": areas / UNITS[unit],
            }
        )

    def polygons(
        self, *, min_area_m2: float = 0.0, simplify_m: float = 0.0, **options: Any
    ) -> gpd.GeoDataFrame:
        """Polygons of the labels, which partition them exactly, with the colours of their classes.

        Parameters
        ----------
        min_area_m2, simplify_m, options
            Fields of `geoseg.vector.VectorOptions`.
        """
        given = VectorOptions(min_area_m2=min_area_m2, simplify_m=simplify_m, **options)
        confidence = None
        if isinstance(self._array, xarray.Dataset) and "confidence" in self._array:
            confidence = self._array["confidence"]
        found = vectorize(label_array(self._array), confidence=confidence, options=given)
        assert isinstance(found, gpd.GeoDataFrame)
        return found

    def compare(self, truth: Any, **settings: Any) -> Evaluation:
        """Hold the labels against a truth; see `geoseg.evaluate` for the settings."""
        return evaluate(label_array(self._array), truth, **settings)

    def to_cog(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the cloud-optimised GeoTIFF that ``geoseg segment`` writes.

        Raises
        ------
        OutputError
            If the file exists and ``overwrite`` is False, or it cannot be written.
        SceneError
            If values are no whole numbers from 0 to 65,534.
        """
        scene, classes, attrs = self._scene, self._classes, self._one.attrs
        numbers = [item.index for item in classes]
        if numbers and not (min(numbers) >= 0 and max(numbers) < np.iinfo(np.uint16).max):
            raise SceneError(
                f"label values run from {min(numbers)} to {max(numbers)}; they must lie in 0 to "
                f"{np.iinfo(np.uint16).max - 1}"
            )
        known = attrs.get("geoseg_classes")
        tags = {}
        if known is not None:
            import json

            words = [entry["prompts"] for entry in json.loads(known)]
            origin = str(attrs.get("geoseg_scene", "array"))
            tags = provenance(origin, str(attrs.get("geoseg_model")), words)
        with TemporaryDirectory(prefix="geoseg-") as folder:
            work = Path(folder) / "labels.work.tif"
            with label_writer(work, scene.grid, classes, tags=tags) as writer:
                nodata, dtype = writer.layout.nodata, np.dtype(writer.layout.dtype)
                pixels = np.asarray(scene.array)[0]
                for window in pieces(scene.grid.window, _ROWS, scene.grid.width):
                    values = pixels[window.slices()]
                    known_values = np.isin(values, numbers)
                    writer.write(window, np.where(known_values, values, nodata).astype(dtype))
                writer.finish(Path(path), overwrite=overwrite)
        return Path(path)

    # -- pictures ---------------------------------------------------------------------------------

    def plot(
        self, ax: Any = None, *, legend: bool = True, scale_bar: bool = True, alpha: float = 1.0
    ) -> Any:
        """Draw the labels with matplotlib: class colours, a legend with their names, a scale bar.

        Parameters
        ----------
        ax
            Axes to draw into; new ones by default.
        legend, scale_bar
            What to draw beside the map.
        alpha
            Opacity, 0 to 1.

        Returns
        -------
        matplotlib.axes.Axes
            Nodata stays empty.
        """
        require("matplotlib", extra="notebooks", feature="A plot")
        _refuse_opacity("alpha", alpha)
        from matplotlib import pyplot as plt
        from matplotlib.patches import Patch

        scene, classes = self._scene, self._classes
        step = max(1, math.ceil(max(scene.shape) / _PLOTTED))
        picture = _coloured(np.asarray(scene.array[0, ::step, ::step]), _table(classes))
        grid = scene.grid.drawn
        left, top = grid.to_ground(0, 0)
        right, bottom = grid.to_ground(grid.width, grid.height)
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        ax.imshow(picture, extent=(left, right, bottom, top), interpolation="nearest", alpha=alpha)
        ax.set_aspect(_aspect(grid))
        ax.set_xlim(left, right)
        ax.set_ylim(bottom, top)
        ax.ticklabel_format(useOffset=False, style="plain")
        ax.tick_params(axis="x", rotation=30)
        if legend and classes:
            patches = [Patch(facecolor=c.color, edgecolor="#8888", label=c.name) for c in classes]
            ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        if scale_bar:
            _draw_scale_bar(ax, grid)
        return ax

    def explore(
        self,
        scene: Any = None,
        *,
        polygons: gpd.GeoDataFrame | None = None,
        opacity: float = 0.7,
        tiles: str | None = "OpenStreetMap",
    ) -> Any:
        """Show the labels on a map that can be moved, without a tile server.

        Parameters
        ----------
        scene
            Path or array of the scene, as a second layer below.
        polygons
            As `polygons` gives them, or others, as a layer above.
        opacity
            Of the labels, 0 to 1; a slider changes it.
        tiles
            Background map as folium names it; None for none.

        Returns
        -------
        folium.Map
            With a legend and a switch of layers.

        Raises
        ------
        MissingExtraError
            If folium is not installed.
        SceneError
            If the labels have no place on the Earth.
        """
        from geoseg.explore import explore

        _refuse_opacity("opacity", opacity)
        return explore(
            self._scene, self._classes, scene, polygons=polygons, opacity=opacity, tiles=tiles
        )

    # ---------------------------------------------------------------------------------------------

    @cached_property
    def _one(self) -> xarray.DataArray:
        """One image of labels, ``(y, x)``."""
        return one_image(label_array(self._array))

    @cached_property
    def _scene(self) -> ArrayScene:
        """The same, from north to south and from west to east."""
        labels = self._one
        plain = labels.astype("uint8") if labels.dtype == bool else labels
        return ArrayScene.open(plain, stretch="raw", colours=False)

    @cached_property
    def _values(self) -> npt.NDArray[Any]:
        """Values that occur; of a dask array chunk by chunk."""
        data = label_array(self._array).data
        if not hasattr(data, "dask"):
            return np.unique(data)
        import dask.array as da

        found: npt.NDArray[Any] = da.unique(data).compute()
        return found

    @cached_property
    def _classes(self) -> tuple[LabelClass, ...]:
        labels = label_array(self._array)
        lazy = hasattr(labels.data, "dask")
        if labels.dtype.kind not in "iufb":
            return ()
        known = lazy and not may_be_computed(labels)
        classes = classes_of(labels, None if known else self._values)
        if classes:
            return classes
        if "source" in labels.encoding and classes_in(labels.attrs):
            warn(f"{labels.encoding['source']}: {NAMELESS}")
        found, nodata = self._values, fill_of(labels)
        values = [v for v in found.tolist() if math.isfinite(v) and v != nodata]
        if not all(float(v).is_integer() for v in values):
            raise SceneError("the array holds fractions; labels are whole numbers")
        values = list(map(int, values))
        return tuple(LabelClass(v, f"class {v}", default_color(v)) for v in values)


_register: Any = xarray
_register.register_dataarray_accessor("geoseg")(GeosegAccessor)
_register.register_dataset_accessor("geoseg")(GeosegAccessor)


def _refuse_opacity(name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and 0 <= value <= 1):
        raise OptionError(f"{name} is {value!r}; give a number from 0 to 1")


def _table(classes: tuple[LabelClass, ...]) -> dict[int, tuple[int, int, int]]:
    return {item.index: item.rgb for item in classes}


def _coloured(values: npt.NDArray[Any], table: dict[int, tuple[int, int, int]]) -> UInt8Array:
    """Colours ``(h, w, 4)`` of values ``(h, w)``; clear where a value has none."""
    picture = np.zeros((*values.shape, 4), np.uint8)
    for value, rgb in table.items():
        picture[values == value] = (*rgb, 255)
    return picture


def _aspect(grid: Grid) -> float:
    """How many times as long a unit upwards is drawn as one to the right."""
    size, t = grid.pixel_size_m, grid.transform
    if size is None or not t.a or not t.e:
        return 1.0
    return (size[1] / abs(t.e)) / (size[0] / abs(t.a))


def _draw_scale_bar(ax: Any, grid: Grid) -> None:
    """A bar of round metres in the lower left corner; none where there are no metres."""
    size = grid.pixel_size_m
    if size is None:
        return
    wanted = grid.width * size[0] / 4
    power = 10 ** math.floor(math.log10(wanted))
    metres = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    share = metres / (grid.width * size[0])
    words = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    at = {"transform": ax.transAxes, "clip_on": False}
    for color, width in (("white", 5), ("black", 2.5)):
        ax.plot([0.04, 0.04 + share], [0.05, 0.05], color=color, linewidth=width, **at)
    text = ax.text(0.04 + share / 2, 0.065, words, ha="center", va="bottom", **at)
    text.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1})
