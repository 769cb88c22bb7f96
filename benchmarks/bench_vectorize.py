"""How fast and how lean is vectorising, against GDAL's polygonizer and the usual whole-array way?

Draws a large label raster of patches and turns it into a GeoPackage in several ways, each in a
process of its own: ``geoseg.vectorize``, plain and with merging, simplifying and smoothing; GDAL's
polygonizer, called in C without Python in between; and ``rasterio.features.shapes`` over the whole
array into one GeoDataFrame, as most tools do.

    python benchmarks/bench_vectorize.py
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _common
import numpy as np
import numpy.typing as npt

WAYS = ("geoseg", "geoseg shaped", "gdal", "shapes")
CLASSES = ("building", "road", "water", "forest", "field", "bare")
COARSE, FINE = 56, 12


def draw(path: Path, size: int, seed: int = 0) -> None:
    """Draw patches: at each pixel the class whose two octaves of noise are highest."""
    from affine import Affine
    from rasterio.crs import CRS

    from geoseg.io.grid import Grid
    from geoseg.io.write import label_writer
    from geoseg.types import Window, as_label_classes

    grid = Grid(CRS.from_epsg(32631), Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), size, size)
    rng = np.random.default_rng(seed)
    octaves = [
        (step, weight, rng.random((len(CLASSES), size // step + 2, size // step + 2), np.float32))
        for step, weight in ((COARSE, 1.0), (FINE, 0.35))
    ]
    with label_writer(path.with_suffix(".work.tif"), grid, as_label_classes(CLASSES)) as writer:
        for row in range(0, size, 512):
            rows = np.arange(row, min(row + 512, size))
            best = np.full((len(rows), size), -1, np.float32)
            labels = np.zeros((len(rows), size), np.uint8)
            for number in range(len(CLASSES)):
                field = np.zeros_like(best)
                for step, weight, noise in octaves:
                    field += weight * _stretch(noise[number], rows, size, step)
                labels[field > best] = number
                np.maximum(best, field, out=best)
            labels[(rows[:, None] // 700 + np.arange(size) // 900) % 29 == 0] = 255
            writer.write(Window(row, 0, len(rows), size), labels)
        writer.finish(path)
        writer.discard()


def _stretch(
    noise: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], width: int, step: int
) -> npt.NDArray[np.float32]:
    """Interpolate lattice noise at some rows of a raster."""
    high, down = np.divmod(rows, step)
    down = (down / step).astype(np.float32)[:, None]
    lines = noise[high] * (1 - down) + noise[high + 1] * down
    left, right = np.divmod(np.arange(width), step)
    right = (right / step).astype(np.float32)
    result: npt.NDArray[np.float32] = lines[:, left] * (1 - right) + lines[:, left + 1] * right
    return result


def run_geoseg(labels: Path, out: Path) -> None:
    from geoseg.vector import vectorize

    vectorize(labels, out)


def run_geoseg_shaped(labels: Path, out: Path) -> None:
    from geoseg.vector import VectorOptions, vectorize

    vectorize(labels, out, options=VectorOptions(min_area_m2=10, simplify_m=0.7, smooth=2))


def run_shapes(labels: Path, out: Path) -> None:
    import geopandas as gpd
    import rasterio
    from rasterio import features
    from shapely.geometry import shape

    with rasterio.open(labels) as dataset:
        values = dataset.read(1)
        found = features.shapes(values, mask=values != dataset.nodata, transform=dataset.transform)
        geometry, value = zip(*((shape(g), v) for g, v in found), strict=True)
        frame = gpd.GeoDataFrame({"class_id": value}, geometry=list(geometry), crs=dataset.crs)
    frame.to_file(out, layer="segments", driver="GPKG")


def run_gdal(labels: Path, out: Path) -> None:
    """Call GDALPolygonize of the GDAL that rasterio brings, as gdal_polygonize does."""
    import rasterio

    bundled = Path(rasterio.__file__).parents[1].glob("rasterio.libs/libgdal*")
    gdal: Any = ctypes.CDLL(str(next(iter(bundled), "libgdal.so")))
    for name in (
        "GDALOpen", "GDALGetRasterBand", "GDALGetMaskBand", "GDALGetDriverByName", "GDALCreate",
        "GDALDatasetCreateLayer", "OGR_Fld_Create", "GDALGetSpatialRef",
    ):  # fmt: skip
        getattr(gdal, name).restype = ctypes.c_void_p
    handle = ctypes.c_void_p
    gdal.GDALAllRegister()
    source = handle(gdal.GDALOpen(str(labels).encode(), 0))
    band = handle(gdal.GDALGetRasterBand(source, 1))
    driver = handle(gdal.GDALGetDriverByName(b"GPKG"))
    target = handle(gdal.GDALCreate(driver, str(out).encode(), 0, 0, 0, 0, None))
    reference = handle(gdal.GDALGetSpatialRef(source))
    layer = handle(gdal.GDALDatasetCreateLayer(target, b"segments", reference, 3, None))
    field = handle(gdal.OGR_Fld_Create(b"class_id", 0))
    gdal.OGR_L_CreateField(layer, field, 1)
    mask = handle(gdal.GDALGetMaskBand(band))
    code = gdal.GDALPolygonize(band, mask, layer, 0, None, None, None)
    gdal.GDALClose(target)
    if code:
        raise SystemExit("GDAL's polygonizer failed")


RUN = dict(zip(WAYS, (run_geoseg, run_geoseg_shaped, run_gdal, run_shapes), strict=True))


def measure(way: str, labels: Path, folder: Path) -> dict[str, Any]:
    """Run one way in a process of its own."""
    import pyogrio

    out = folder / f"{way.replace(' ', '_')}.gpkg"
    out.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--way", way, "--labels", str(labels), "--out", str(out)]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    polygons = pyogrio.read_info(out, layer="segments", force_feature_count=True)["features"]
    return {"way": way, **json.loads(report), "polygons": polygons}


def one_way(way: str, labels: Path, out: Path) -> None:
    """Do it, and print what it took."""
    begin = time.perf_counter()
    RUN[way](labels, out)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(json.dumps({"seconds": round(seconds, 1), "peak GiB": round(peak, 2)}))


def main() -> None:
    """Command line."""
    parser = _common.parser(__doc__)
    parser.add_argument("--size", type=int, default=20_000, help="rows and columns")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        one_way(given.way, given.labels, given.out)
        return
    size = 3000 if given.quick else given.size
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        labels = folder / f"labels_{size}.tif"
        if not labels.exists():
            draw(labels, size)
        rows = [measure(way, labels, folder) for way in given.ways]
    _common.table(rows)
    if not given.no_save and not given.quick:
        _common.save("vectorize", rows, size=size)


if __name__ == "__main__":
    main()
