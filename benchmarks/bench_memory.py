"""Does memory grow with the scene? Peak memory of whole runs over 1, 4 and 9 times the area.

Each run is a process of its own: drawn scene in, all products out, with the same tile.

``--huge`` maps a scene of 40,000 x 40,000 pixels instead (a sample tile over and over): some tiles,
then it is interrupted, and some more in a second process that resumes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import _common

SAMPLE = Path(__file__).resolve().parents[1] / "sample_tiles" / "town_river.tif"

CHILD = """
import json, sys
import geoseg
scene, out, model, tile, stride = sys.argv[1:]
run = geoseg.segment_to_files(
    scene, "building, roof; road; water; forest, trees; meadow; bare soil",
    out, model=model, tile=int(tile), device="cpu",
    options=geoseg.Options(templates="none", stride=int(stride)),
)
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps({"peak_mib": int(peak.split()[1]) / 1024, "tiles": run.report["tiles"],
                  "seconds": run.report["seconds"]}))
"""

HUGE = """
import json, sys
import geoseg
scene, out, model, tiles, resume = sys.argv[1:]
done = []
def watch(progress):
    done.append(progress.tiles_done)
    if len(done) > 1 and progress.tiles_done >= done[0] + int(tiles):
        raise KeyboardInterrupt
try:
    geoseg.segment_to_files(
        scene, "building, roof; road; water; forest, trees; meadow; bare soil", out,
        model=model, device="cpu", progress=watch, resume=bool(int(resume)),
    )
except KeyboardInterrupt:
    pass
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps({"peak_mib": int(peak.split()[1]) / 1024, "first": done[0], "last": done[-1]}))
"""


def main() -> None:
    options = _common.parser(__doc__)
    options.add_argument("--side", type=int, help="pixels of the smallest scene's side [4096]")
    options.add_argument("--tile", type=int, default=1024)
    options.add_argument("--stride", type=int, default=224, help="pixels; large for speed [224]")
    options.add_argument("--model", default="geoseg-tiny")
    options.add_argument("--huge", action="store_true", help="40,000 x 40,000, stopped and resumed")
    given = options.parse_args()
    if given.huge:
        with tempfile.TemporaryDirectory() as folder:
            rows = huge(Path(folder), given.model, 8_000 if given.quick else 40_000)
        _common.table(rows)
        if not given.no_save:
            _common.save("memory_huge", rows, model=given.model)
        return
    side = given.side or (512 if given.quick else 4096)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), side, given.tile, given.stride, given.model, quick=given.quick)
    _common.table(rows)
    if not given.no_save:
        _common.save("memory", rows, tile=given.tile, stride=given.stride, model=given.model)


def measure(
    folder: Path, side: int, tile: int, stride: int, model: str, *, quick: bool
) -> list[dict[str, Any]]:
    from geoseg.testing import write_scene

    rows: list[dict[str, Any]] = []
    for factor in (1, 2) if quick else (1, 2, 3):
        scene = write_scene(folder / f"scene{factor}.tif", side * factor, side * factor)
        start = time.perf_counter()
        arguments = [scene, folder / f"out{factor}", model, str(tile), str(stride)]
        child = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False
        )
        if child.returncode:
            sys.exit(child.stderr)
        found = json.loads(child.stdout)
        first = rows[0]["peak MiB"] if rows else found["peak_mib"]
        rows.append(
            {
                "area": f"{factor * factor} x",
                "pixels": f"{side * factor} x {side * factor}",
                "tiles": found["tiles"],
                "peak MiB": round(found["peak_mib"]),
                "of the first": round(found["peak_mib"] / first, 3),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    return rows


def huge(folder: Path, model: str, side: int, tiles: int = 4) -> list[dict[str, Any]]:
    """Map some tiles of a huge scene, interrupt the run, resume it for some more."""
    scene = mosaic_of_copies(folder / "huge.vrt", side)
    rows = []
    for resume in (False, True):
        start = time.perf_counter()
        arguments = [scene, folder / "out", model, str(tiles), str(int(resume))]
        child = subprocess.run(
            [sys.executable, "-c", HUGE, *arguments], capture_output=True, text=True, check=False
        )
        if child.returncode:
            sys.exit(child.stderr)
        found = json.loads(child.stdout)
        rows.append(
            {
                "run": "resumed" if resume else "first",
                "pixels": f"{side} x {side}",
                "tiles": f"{found['first']} to {found['last']}",
                "peak MiB": round(found["peak_mib"]),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    return rows


def mosaic_of_copies(file: Path, side: int) -> Path:
    """Write a VRT that repeats a sample tile up to a size."""
    import rasterio

    with rasterio.open(SAMPLE) as sample:
        step, crs, transform = sample.width, sample.crs.to_wkt(), sample.transform.to_gdal()
    copies = [(col, row) for row in range(0, side, step) for col in range(0, side, step)]
    bands = []
    for band in (1, 2, 3):
        sources = "".join(
            f"<SimpleSource><SourceFilename>{SAMPLE}</SourceFilename><SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{step}" ySize="{step}"/>'
            f'<DstRect xOff="{col}" yOff="{row}" xSize="{step}" ySize="{step}"/></SimpleSource>'
            for col, row in copies
        )
        bands.append(f'<VRTRasterBand dataType="Byte" band="{band}">{sources}</VRTRasterBand>')
    placed = ", ".join(map(str, transform))
    file.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>{escape(crs)}</SRS>'
        f"<GeoTransform>{placed}</GeoTransform>{''.join(bands)}</VRTDataset>"
    )
    return file


if __name__ == "__main__":
    main()
