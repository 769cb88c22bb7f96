"""What do more Dask workers bring? The same tiles on 1 and on 2 workers with one thread each.

Workers are started and have loaded the model before the clock runs; the labels are compared.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import _common


def main() -> None:
    options = _common.parser(__doc__)
    options.add_argument("--side", type=int, help="pixels of the scene's side [2048]")
    options.add_argument("--tile", type=int, default=256)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--model", default="geoseg-tiny")
    given = options.parse_args()
    side = given.side or (512 if given.quick else 2048)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(Path(folder), side, given.tile, given.model, workers)
            for workers in given.workers
        ]
        same_labels([Path(folder) / f"out{workers}" for workers in given.workers])
    for row in rows:
        row["speed-up"] = round(rows[0]["seconds"] / row["seconds"], 2)
    _common.table(rows)
    print("labels are equal")
    if not given.no_save:
        _common.save("workers", rows, tile=given.tile, model=given.model)


def measure(folder: Path, side: int, tile: int, model: str, workers: int) -> dict[str, Any]:
    import geoseg
    from geoseg.run.cluster import connect
    from geoseg.testing import write_scene

    settings: dict[str, Any] = {
        "model": model,
        "device": "cpu",
        "tile": tile,
        "options": geoseg.Options(templates="none"),
        "products": geoseg.Products(polygons="none", preview=False),
    }
    classes = "building, roof; road; water; forest, trees; meadow; bare soil"
    warm = write_scene(folder / "warm.tif", tile, tile * 2 * workers)
    scene = write_scene(folder / "scene.tif", side, side)
    with connect(workers=workers, threads=1) as client:
        geoseg.segment_to_files(warm, classes, folder / f"warm{workers}", client=client, **settings)
        start = time.perf_counter()
        run = geoseg.segment_to_files(
            scene, classes, folder / f"out{workers}", client=client, **settings
        )
        seconds = time.perf_counter() - start
    inference = run.report["seconds"]["segment"]
    return {
        "workers": workers,
        "tiles": run.report["tiles"],
        "windows": run.report["windows"],
        "whole run s": round(seconds, 2),
        "seconds": inference,
        "Mpx/s": round(side * side / inference / 1e6, 3),
    }


def same_labels(folders: list[Path]) -> None:
    from geoseg.testing import assert_same_raster

    for other in folders[1:]:
        assert_same_raster(other / "labels.tif", folders[0] / "labels.tif")


if __name__ == "__main__":
    main()
