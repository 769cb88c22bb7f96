"""What became of what: two maps of one place against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import xarray

from geoseg._html import table
from geoseg.errors import OptionError, SceneError
from geoseg.io.flags import flags_of
from geoseg.io.grid import pieces
from geoseg.io.objects import MARK, is_array, label_array, one_image
from geoseg.types import LabelClass, label_dtype, label_nodata
from geoseg.vector.ground import Ground
from geoseg.vector.polygons import vectorize
from geoseg.xarray import UNITS, GeosegAccessor, open_labels

_ROWS = 1024


@dataclass(frozen=True, repr=False)
class Change:
    """From-to table of two maps, and where they differ."""

    table: pd.DataFrame
    """A row for every pair of classes that occurs: ``from``, ``to``, ``pixels``, ``share`` (of
    pixels that both maps label, 0 to 1) and the area."""
    codes: xarray.DataArray
    """``(y, x)``: number of the pair where the classes differ; nodata elsewhere."""
    unit: str

    def __repr__(self) -> str:
        return f"Change({len(self.table)} pairs of classes, {100 * self.changed:.1f} % changed)"

    def _repr_html_(self) -> str:
        title = f"{100 * self.changed:.1f} % of the pixels changed"
        rows = [
            (a, b, f"{area:,.2f}", f"{100 * share:.1f} %")
            for a, b, share, area in zip(
                self.table["from"],
                self.table["to"],
                self.table["share"],
                self.table[f"area_{self.unit}"],
                strict=True,
            )
        ]
        return table(title, ("from", "to", self.unit, "share"), rows)

    @property
    def changed(self) -> float:
        """Share of the pixels that both maps label whose class is another one, 0 to 1."""
        other = self.table["from"] != self.table["to"]
        return float(self.table.loc[other, "share"].sum())

    def matrix(self) -> pd.DataFrame:
        """Areas by class before (rows) and after (columns)."""
        return self.table.pivot_table(
            index="from", columns="to", values=f"area_{self.unit}", fill_value=0.0, sort=False
        )

    def polygons(self, *, min_area_m2: float = 0.0) -> gpd.GeoDataFrame:
        """Polygons of change, with ``from`` and ``to``."""
        found = vectorize(self.codes, options={"min_area_m2": min_area_m2, "drop_small": True}
                          if min_area_m2 else None)  # fmt: skip
        assert isinstance(found, gpd.GeoDataFrame)
        pairs = found.pop("class_name").str.split(" → ", n=1, expand=True)
        found.insert(1, "from", pairs[0] if len(pairs) else [])
        found.insert(2, "to", pairs[1] if len(pairs) else [])
        return found.drop(columns=["class_id", "color"])


def change(before: Any, after: Any, *, unit: str = "ha") -> Change:
    """Hold two maps of one place against each other.

    Parameters
    ----------
    before, after
        Label rasters: paths, or arrays as `geoseg.segment` gives them. Classes are matched by
        their names. Where the second has another grid, it is brought to that of the first
        (nearest pixel).
    unit
        Of the areas: ``m2``, ``ha`` or ``km2``.

    Returns
    -------
    Change
        The from-to table, and polygons of change.

    Raises
    ------
    OptionError
        If the unit is not known.
    SceneError
        If a map cannot be read, or the two lie in different places.
    """
    if unit not in UNITS:
        raise OptionError(f"unit '{unit}' is not known; choose {', '.join(UNITS)}")
    first, second = (_opened(one) for one in (before, after))
    second = _on_grid(second, first)
    a, b = GeosegAccessor(first), GeosegAccessor(second)
    scene = a._scene
    old, new = np.asarray(scene.array)[0], np.asarray(b._scene.array)[0]
    names = list(dict.fromkeys(item.name for item in (*a._classes, *b._classes)))
    count = len(names)
    colours = {item.name: item.color for item in (*a._classes, *b._classes)}
    rows, cols = (
        np.array(_lookup(values, one._classes, names)) for values, one in ((old, a), (new, b))
    )
    both = (rows >= 0) & (cols >= 0)
    pair = np.where(both, rows * count + cols, -1)
    pixels = np.zeros(count * count, np.int64)
    areas = np.zeros(count * count)
    ground = Ground(scene.grid)
    for window in pieces(scene.grid.window, _ROWS, scene.grid.width):
        part = pair[window.slices()]
        known = part >= 0
        pixels += np.bincount(part[known], minlength=count * count)
        if ground.measures:
            weights = ground.pixel_areas(window)[known]
            areas += np.bincount(part[known], weights=weights, minlength=count * count)
    occurs = np.flatnonzero(pixels)
    if not len(occurs):
        raise SceneError(
            "the maps have no pixel in common that both label; do they lie in one place?"
        )
    table = pd.DataFrame(
        {
            "from": [names[index // count] for index in occurs],
            "to": [names[index % count] for index in occurs],
            "pixels": pixels[occurs],
            "share": pixels[occurs] / max(int(pixels.sum()), 1),
            f"area_{unit}": areas[occurs] / UNITS[unit] if ground.measures else np.nan,
        }
    )
    return Change(table, _codes(a, pair, occurs, names, colours), unit)


def _opened(labels: Any) -> xarray.DataArray:
    return label_array(labels) if is_array(labels) else open_labels(labels)


def _on_grid(labels: xarray.DataArray, like: xarray.DataArray) -> xarray.DataArray:
    """Labels on the grid of others."""
    own, other = (GeosegAccessor(one)._scene.grid for one in (labels, like))
    if own.shape == other.shape and own.transform.almost_equals(other.transform, 1e-6):
        return labels
    if own.crs is None or other.crs is None:
        raise SceneError(
            f"the maps have {own.width} x {own.height} and {other.width} x {other.height} pixels "
            "and no CRS that says how they lie on each other"
        )
    moved: xarray.DataArray = one_image(labels).rio.reproject_match(one_image(like), resampling=0)
    moved.encoding |= labels.encoding
    return moved


def _lookup(values: Any, classes: tuple[LabelClass, ...], names: list[str]) -> Any:
    """Place of every value's class among names; -1 for none."""
    found = np.full(values.shape, -1, np.int64)
    for item in classes:
        found[values == item.index] = names.index(item.name)
    return found


def _codes(
    like: GeosegAccessor, pair: Any, occurs: Any, names: list[str], colours: dict[str, str]
) -> xarray.DataArray:
    count = len(names)
    changes = [int(index) for index in occurs if index // count != index % count]
    dtype = label_dtype(len(changes))
    codes = np.full(pair.shape, label_nodata(dtype), dtype)
    for place, index in enumerate(changes):
        codes[pair == index] = place
    classes = [
        LabelClass(place, f"{names[index // count]} → {names[index % count]}",
                   colours[names[index % count]])
        for place, index in enumerate(changes)
    ]  # fmt: skip
    scene = like._scene
    t = scene.grid.transform
    made = xarray.DataArray(
        codes,
        dims=("y", "x"),
        coords={
            "y": t.f + t.e * (np.arange(scene.grid.height) + 0.5),
            "x": t.c + t.a * (np.arange(scene.grid.width) + 0.5),
        }
        if scene.grid.with_transform and not (t.b or t.d)
        else None,
        attrs=flags_of(classes, dtype),
        name="change",
    )
    if scene.grid.crs is not None:
        made = made.rio.write_crs(scene.grid.crs)
    if scene.grid.with_transform:
        made = made.rio.write_transform(t)
    made.rio.write_nodata(label_nodata(dtype), inplace=True)
    made.encoding[MARK] = "change"
    return made
