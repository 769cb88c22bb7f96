"""What does counting zones by exactextract save, against a plain loop with shapely?

Zones with many vertices over a label raster, counted by `geoseg.vector.stats.zone_stats` and by a
plain reference that cuts every pixel on a border with shapely, both in this process, one after the
other. The reference is what geoseg itself did before exactextract; it stands here to be compared
with, and is slow. Prints seconds, their ratio and the largest difference of an area.

    python -m benchmarks.bench_stats
    python -m benchmarks.bench_stats --quick
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio import features
from rasterio.transform import from_origin

from benchmarks import _common
from geoseg.io.labels import LabelRaster
from geoseg.types import Window
from geoseg.vector.ground import Ground
from geoseg.vector.stats import zone_stats

CRS = "EPSG:32631"
CLASSES = 6
PIXEL_M = 10.0
PIECES = 256


def main() -> None:
    """Command line."""
    parser = _common.parser(__doc__)
    parser.add_argument("--side", type=int, default=3000, help="side of the raster in pixels")
    parser.add_argument("--zones", type=int, default=40)
    parser.add_argument("--vertices", type=int, default=2000, help="of each zone")
    given = parser.parse_args()
    if given.quick:
        given.side, given.zones, given.vertices = 600, 6, 300
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        labels = _labels(Path(folder) / "labels.tif", given.side, rng)
        zones = _zones(given.zones, given.vertices, given.side, rng)
        path = Path(folder) / "zones.gpkg"
        zones.to_file(path)
        start = time.perf_counter()
        found = zone_stats(labels, path).area_m2.to_numpy().reshape(given.zones, -1)
        fast = time.perf_counter() - start
        start = time.perf_counter()
        expected = reference(labels, zones)[:, : found.shape[1]]
        slow = time.perf_counter() - start
    whole = expected.sum(axis=1, keepdims=True)
    row: dict[str, Any] = {
        "raster": f"{given.side} x {given.side}",
        "zones": given.zones,
        "vertices": given.vertices,
        "plain loop s": round(slow, 2),
        "exactextract s": round(fast, 2),
        "ratio": round(slow / fast, 1),
        "largest difference": f"{np.abs(found - expected).max() / whole.max():.1e}",
    }
    _common.table([row])
    if not given.quick:
        _common.save("stats", [row])


def reference(labels: Path, zones: gpd.GeoDataFrame) -> np.ndarray:
    """Area in m² of every value in every zone, the zones being in the CRS of the labels."""
    raster = LabelRaster.open(labels)
    ground = Ground(raster.grid)
    return np.array([_areas(raster, ground, _pixels(zone, raster)) for zone in zones.geometry])


def _pixels(zone: Any, raster: LabelRaster) -> Any:
    back = ~raster.grid.transform
    left, bottom, right, top = zone.bounds
    # Long straight sides bend when they change their coordinate system.
    fine = shapely.segmentize(zone, max(right - left, top - bottom) / PIECES)
    placed = shapely.transform(
        fine, lambda xy: xy @ [[back.a, back.d], [back.b, back.e]] + [back.c, back.f]
    )
    return placed if placed.is_valid else shapely.make_valid(placed)


def _areas(raster: LabelRaster, ground: Ground, zone: Any) -> np.ndarray:
    left, top, right, bottom = zone.bounds
    whole = Window(
        int(np.floor(top)),
        int(np.floor(left)),
        int(np.ceil(bottom) - np.floor(top)),
        int(np.ceil(right) - np.floor(left)),
    )
    window = whole.intersection(raster.grid.window)
    total = np.zeros(CLASSES)
    if window is None:
        return total
    at = {"out_shape": window.shape, "transform": Affine.translation(window.col, window.row)}
    inside = shapely.clip_by_rect(zone, window.col, window.row, window.col_stop, window.row_stop)
    weights = features.rasterize([(inside, 1)], **at, dtype="uint8").astype(np.float64)
    border = features.rasterize([(shapely.boundary(inside), 1)], **at, all_touched=True)
    row, col = np.nonzero(border)
    shapely.prepare(inside)
    x, y = window.col + col, window.row + row
    weights[row, col] = shapely.area(shapely.intersection(shapely.box(x, y, x + 1, y + 1), inside))
    row, col = np.nonzero(weights)
    area = ground.pixel_area(window.row + row + 0.5, window.col + col + 0.5)
    values = raster.read(window)[row, col]
    total += np.bincount(values, area * weights[row, col], CLASSES)[:CLASSES]
    return total


def _labels(path: Path, side: int, rng: np.random.Generator) -> Path:
    coarse = rng.integers(0, CLASSES, (side // 20 + 1, side // 20 + 1), dtype=np.uint8)
    values = coarse.repeat(20, 0).repeat(20, 1)[:side, :side]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=side,
        width=side,
        tiled=True,
        compress="deflate",
        crs=CRS,
        transform=from_origin(500_000, 5_000_000, PIXEL_M, PIXEL_M),
    ) as dataset:
        dataset.write(values, 1)
        dataset.update_tags(1, **{f"CLASS_{i}": f"class {i}" for i in range(CLASSES)})
    return path


def _zones(count: int, vertices: int, side: int, rng: np.random.Generator) -> gpd.GeoDataFrame:
    """Ragged discs, some of which overlap or reach over the edge of the raster."""
    extent = side * PIXEL_M
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    polygons = []
    for _ in range(count):
        radius = extent * 0.2 * (1 + 0.1 * rng.random(vertices))
        x = 500_000 + extent * rng.random() + radius * np.cos(angle)
        y = 5_000_000 - extent * rng.random() + radius * np.sin(angle)
        polygons.append(shapely.Polygon(np.column_stack([x, y])))
    return gpd.GeoDataFrame(geometry=polygons, crs=CRS)


if __name__ == "__main__":
    main()
