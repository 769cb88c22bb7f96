"""Does memory grow with the scene? Peak memory of whole runs over 1, 4 and 9 times the area.

Each run is a process of its own: drawn scene in, all products out, with the same tile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

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


def main() -> None:
    options = _common.parser(__doc__)
    options.add_argument("--side", type=int, help="pixels of the smallest scene's side [4096]")
    options.add_argument("--tile", type=int, default=1024)
    options.add_argument("--stride", type=int, default=224, help="pixels; large for speed [224]")
    options.add_argument("--model", default="geoseg-tiny")
    given = options.parse_args()
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


if __name__ == "__main__":
    main()
