"""Where do the CPU seconds of a run go? Reading, the network, adding, deciding, writing.

One run from a GeoTIFF to labels.tif with a 1 x 1 convolution as the scorer, which leaves all time
to what is around it, and one with the bundled model, all products. Each stage is the CPU time of
the thread that does it, without that of the stages inside it; what no stage holds (GDAL's own
threads, the mean of what was added) is *other*. A first small map is not counted.
"""

from __future__ import annotations

import functools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _common
import torch

import geoseg
from geoseg.inference import lane, merge, network, scorer, segmenter
from geoseg.inference.runners import area
from geoseg.io import scene
from geoseg.pipeline import products
from geoseg.pipeline import scene as scene_run
from geoseg.run import rasters, tally, tiles, work
from geoseg.testing import write_scene

WORDS = "water; cropland; grass; tree; building; road; bare soil; rock"

STAGES: dict[str, list[tuple[Any, str]]] = {
    "open": [(scene_run, "open_input")],
    "read": [(scene.Scene, "read"), (tiles._Rows, "followed_by"), (tiles.TileJob, "_wanted")],
    "windows": [(area.Area, "batch")],
    "network": [(network.Network, "_answer"), (scorer.Scorer, "_score")],
    "check scores": [(network.Network, "__call__")],
    "weigh": [(area.Area, "weighted")],
    "add": [(merge.StripMerger, "add")],
    "decide": [(segmenter.Segmenter, "_decide"), (lane.Unfinished, "put")],
    "write tiles": [(work, "write_tile")],
    "count labels": [(tally.Tally, "of_raster")],
    "finish rasters": [(rasters.WorkRasters, "finish")],
    "polygons": [(products, "vectorize")],
    "preview": [(products, "preview_files")],
    "checksums of files": [(products, "file_digest")],
}
"""What does the work of each stage."""


class Clock:
    """CPU seconds of each stage, those of stages inside it not counted."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._here = threading.local()

    def watched(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Work whose seconds are added to a stage."""

        @functools.wraps(work)
        def timed(*given: Any, **settings: Any) -> Any:
            inside = self._here.__dict__.setdefault("inside", [0.0])
            inside.append(0.0)
            start = time.thread_time()
            try:
                return work(*given, **settings)
            finally:
                spent = time.thread_time() - start
                self.seconds[stage] += spent - inside.pop()
                inside[-1] += spent

        return timed


@contextmanager
def watching() -> Iterator[Clock]:
    """Watch all stages while this is open."""
    clock, before = Clock(), []
    for stage, places in STAGES.items():
        for owner, name in places:
            work = owner.__dict__[name]
            before.append((owner, name, work))
            plain = work.__func__ if isinstance(work, classmethod) else work
            timed: Any = clock.watched(stage, plain)
            setattr(owner, name, classmethod(timed) if plain is not work else timed)
    try:
        yield clock
    finally:
        for owner, name, work in before:
            setattr(owner, name, work)


def measure(name: str, path: Path, warm: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """CPU seconds of a run's stages, and what share of all of them each is."""

    def run(source: Path) -> None:
        geoseg.segment_to_files(source, WORDS, out, device="cpu", overwrite=True, **settings)

    run(warm)
    with watching() as clock:
        start = time.process_time()
        run(path)
        whole = time.process_time() - start
    spent = {stage: clock.seconds[stage] for stage in STAGES}
    spent["other"] = whole - sum(spent.values())
    shares = {stage: f"{s:.2f} ({100 * s / whole:.0f} %)" for stage, s in spent.items()}
    return {"run": name, "CPU s": whole} | shares


def main() -> None:
    options = _common.parser(__doc__)
    options.add_argument("--size", type=int, default=4000, help="side of the scene in pixels")
    given = options.parse_args()
    size = 600 if given.quick else given.size
    torch.set_num_threads(1)
    labels_only = geoseg.Products(polygons="none", confidence=False, preview=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_scene(folder / "scene.tif", size, size, nodata=None)
        warm = write_scene(folder / "warm.tif", 480, 480, nodata=None)
        with torch.inference_mode():
            convolution = measure(
                "1 x 1 convolution, labels", path, warm, folder / "a", products=labels_only,
                scorer=torch.nn.Conv2d(3, len(WORDS.split(";")), 1).eval().forward,
                options=geoseg.Options(blend="uniform"), window=224, stride=112,
            )  # fmt: skip
        words = measure("geoseg-tiny, all products", path, warm, folder / "b", model="geoseg-tiny")
    rows = [{"stage": stage, **{r["run"]: r[stage] for r in (convolution, words)}}
            for stage in ("CPU s", *STAGES, "other")]  # fmt: skip
    _common.table(rows)
    if not (given.quick or given.no_save):
        _common.save("stages", rows, pixels=f"{size} x {size}", threads=1)


if __name__ == "__main__":
    main()
