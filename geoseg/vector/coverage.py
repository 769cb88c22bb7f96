"""How much of each pixel value lies in every zone? exactextract counts, on the raster's pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from exactextract import Operation, exact_extract
from exactextract.feature import FeatureSource, JSONFeature
from exactextract.raster import RasterSource

from geoseg.io.labels import LabelRaster
from geoseg.types import Window
from geoseg.vector.ground import Ground

FloatArray = npt.NDArray[np.float64]

CELLS_IN_MEMORY = 4_000_000
"""Pixels of a zone that are looked at at a time."""
_SHIFT = 1
"""Added to values, so that no mean of them is 0."""


def areas_by_value(
    raster: LabelRaster,
    ground: Ground,
    zones: npt.NDArray[np.object_],
    progress: Callable[[float], None] | None = None,
) -> Iterator[FloatArray]:
    """Area in m² of every pixel value inside each zone.

    Parameters
    ----------
    raster, ground
        The labels, and what a pixel of them measures.
    zones
        Valid zones in pixel coordinates, rows downwards; they may overlap, be empty or lie
        outside.
    progress
        Called with the share that is done, 0 to 1.

    Yields
    ------
    ndarray
        One area for every value that the raster's type has; nodata has none.
    """
    values, areas = _Values(raster), _PixelAreas(ground)
    zones = np.array([_polygons(zone) for zone in zones], np.object_)
    empty = shapely.is_empty(zones)
    kinds = ("unique", "weighted_frac", "weighted_sum", "weighted_mean")
    found = exact_extract(
        values,
        _Zones(zones[~empty], raster.grid.height),
        [Operation(kind, kind, values, areas) for kind in kinds],
        output="pandas",
        max_cells_in_memory=CELLS_IN_MEMORY,
        progress=False if progress is None else lambda share, _: progress(share),
    )
    counted = found[list(kinds)].itertuples(index=False)
    for nothing in empty:
        result = np.zeros(int(np.iinfo(raster.dtype).max) + 1)
        if not nothing:
            values_there, share, total, mean = next(counted)
            if values_there is not None and len(values_there):
                result[np.asarray(values_there, np.int64) - _SHIFT] = share * (total / mean)
        yield result


def _polygons(zone: Any) -> Any:
    """A zone without the lines that a mended one can have; empty where it has no place."""
    if not np.isfinite(shapely.bounds(zone)).all():
        return shapely.Polygon()
    if shapely.get_type_id(zone) != shapely.GeometryType.GEOMETRYCOLLECTION:
        return zone
    parts = shapely.get_parts(shapely.get_parts(zone))
    return shapely.MultiPolygon(list(parts[shapely.get_dimensions(parts) == 2]))


class _Pixels(RasterSource):  # type: ignore[misc]
    """A raster in pixel coordinates, in which any transform is that of a plain array."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self._shape = shape

    def res(self) -> tuple[float, float]:
        return 1.0, 1.0

    def extent(self) -> tuple[float, float, float, float]:
        return 0.0, 0.0, float(self._shape[1]), float(self._shape[0])

    def srs_wkt(self) -> None:
        return None

    def nodata_value(self) -> None:
        return None


class _Values(_Pixels):
    """Labels, nodata masked."""

    def __init__(self, raster: LabelRaster) -> None:
        super().__init__(raster.shape)
        self._raster = raster

    def read_window(self, col: int, row: int, width: int, height: int) -> Any:
        values = self._raster.read(Window(row, col, height, width))
        shifted = np.add(values, _SHIFT, dtype=np.uint16 if values.dtype == np.uint8 else np.int32)
        without = values == self._raster.nodata
        return np.ma.MaskedArray(shifted, mask=without) if without.any() else shifted


class _PixelAreas(_Pixels):
    """Area of every pixel in m²."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground.grid.shape)
        self._ground = ground

    def read_window(self, col: int, row: int, width: int, height: int) -> FloatArray:
        return self._ground.pixel_areas(Window(row, col, height, width))


class _Zones(FeatureSource):  # type: ignore[misc]
    """Polygons in pixel coordinates, turned so that rows go upwards."""

    def __init__(self, zones: npt.NDArray[np.object_], height: int) -> None:
        super().__init__()
        self._zones, self._height = zones, height

    def count(self) -> int:
        return len(self._zones)

    def __iter__(self) -> Iterator[_Zone]:
        for zone in self._zones:
            yield _Zone(shapely.transform(zone, lambda xy: xy * (1, -1) + (0, self._height)))

    def srs_wkt(self) -> None:
        return None


class _Zone(JSONFeature):  # type: ignore[misc]
    """A polygon, handed over as it is in memory, not as text."""

    def __init__(self, polygon: Any) -> None:
        super().__init__()
        self._polygon = polygon

    def geometry(self) -> bytes:
        return bytes(shapely.to_wkb(self._polygon))
