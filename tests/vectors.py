"""Label rasters and checks for the tests of the vector room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio import features
from rasterio.transform import from_origin

from geoseg.types import as_label_classes
from geoseg.vector.scores import Scores
from geoseg.vector.trace import Measures, Polygoniser, Polygons

VOID = 255
UTM = {"crs": "EPSG:32631", "transform": from_origin(500_000, 5_000_000, 10, 10)}


def label_file(path: Path, values: np.ndarray, names: list[str] | None = None, **profile: Any):
    """Write a label raster as geoseg does, but for the tiles; returns its path."""
    nodata = profile.pop("nodata", int(np.iinfo(values.dtype).max))
    count = int(values[values != nodata].astype(int).max(initial=-1)) + 1
    classes = as_label_classes(names or [f"class {i}" for i in range(count)])
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=values.shape[0],
        width=values.shape[1],
        dtype=values.dtype,
        nodata=nodata,
        **(UTM | profile),
    ) as dataset:
        dataset.write(values, 1)
        dataset.update_tags(1, **{f"CLASS_{c.index}": c.name for c in classes})
        if classes:
            dataset.write_colormap(1, {c.index: (*c.rgb, 255) for c in classes})
    return path


def in_pixels(points: np.ndarray) -> np.ndarray:
    """Leave points in pixel coordinates."""
    return points


def pixel_measures(points: np.ndarray, offsets: np.ndarray) -> Measures:
    """Measure lines in pixels."""
    x, y = points[:, 0], points[:, 1]
    length, area = np.zeros(len(points)), np.zeros(len(points))
    length[:-1] = np.hypot(np.diff(x), np.diff(y))
    # Rows go downwards: left turns have negative cross products.
    area[:-1] = (x[1:] * y[:-1] - x[:-1] * y[1:]) / 2
    spare = offsets[1:] - 1
    length[spare] = area[spare] = 0
    sums = [np.diff(np.append(0, v.cumsum())[offsets]) for v in (length, area)]
    return Measures(*sums)


def trace(
    values: np.ndarray,
    rows: int = 1000,
    void: int = VOID,
    second: Scores | None = None,
    **options: Any,
) -> Polygons:
    """Polygons of an array, fed some rows at a time."""
    tracer = Polygoniser(
        values.shape, void=void, place=in_pixels, measure=pixel_measures, **options
    )
    parts = []
    for part in (slice(row, row + rows) for row in range(0, len(values), rows)):
        below = None if second is None else Scores(second.values[part], second.known[part])
        parts.append(tracer.feed(values[part], second=below))
    parts.append(tracer.finish())
    return Polygons(
        np.concatenate([part.wkb for part in parts]),
        type(parts[0].tallies).concatenated([part.tallies for part in parts]),
        np.concatenate([part.area for part in parts]),
        np.concatenate([part.perimeter for part in parts]),
        np.concatenate([part.second for part in parts]),
    )


def assert_partition(values: np.ndarray, polygons: Polygons, void: int = VOID) -> None:
    """Valid polygons in pixel coordinates that share edges exactly and give the raster back."""
    geometry = polygons.geometry
    assert shapely.is_valid(geometry).all()
    assert shapely.coverage_is_valid(geometry)
    np.testing.assert_array_equal(shapely.area(geometry), polygons.tallies.pixels)
    np.testing.assert_allclose(polygons.area, polygons.tallies.pixels)
    np.testing.assert_allclose(polygons.perimeter, shapely.length(geometry))
    labels, counts = np.unique(values[values != void], return_counts=True)
    sums = {int(label): 0 for label in labels}
    for value, pixels in zip(polygons.tallies.value, polygons.tallies.pixels, strict=True):
        sums[int(value)] += int(pixels)
    assert sums == dict(zip(labels.tolist(), counts.tolist(), strict=True))
    back = np.full(values.shape, void, np.int32)
    if len(geometry):
        pairs = [(g, int(v)) for g, v in zip(geometry, polygons.tallies.value, strict=True)]
        features.rasterize(pairs, out=back)
    np.testing.assert_array_equal(back, values)


def same(one: Polygons, other: Polygons) -> bool:
    """The same polygons with the same numbers in the same order, coordinate for coordinate."""
    return (
        one.wkb.tolist() == other.wkb.tolist()
        and one.tallies.value.tolist() == other.tallies.value.tolist()
        and one.tallies.touches.tolist() == other.tallies.touches.tolist()
    )


def blobs(height: int, width: int, classes: int, seed: int, sigma: float = 1.5) -> np.ndarray:
    """Patches as a classifier leaves them: the highest of smoothed noises."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).random((classes, height, width))
    return np.stack([gaussian_filter(n, sigma) for n in noise]).argmax(axis=0).astype(np.uint8)


def spiral(size: int) -> np.ndarray:
    """Two arms, one pixel wide, wound around each other."""
    values = np.zeros((size, size), np.uint8)
    row, col, step = 0, 0, (0, 1)
    low, high = np.array([0, 0]), np.array([size - 1, size - 1])
    for _ in range(2 * size):
        while (low <= (row, col)).all() and ((row, col) <= high).all():
            values[row, col] = 1
            row, col = row + step[0], col + step[1]
        row, col = row - step[0], col - step[1]
        if step == (0, 1):
            low[0] += 2
        elif step == (1, 0):
            high[1] -= 2
        elif step == (0, -1):
            high[0] -= 2
        else:
            low[1] += 2
        step = (step[1], -step[0])
        row, col = row + step[0], col + step[1]
        if (low > high).any():
            break
    return values
