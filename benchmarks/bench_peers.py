"""How does geoseg's tiled inference compare with that of others, for the very same network?

Each side maps the same GeoTIFF with the same ``torch.nn.Module`` in windows that lie alike, in a
process of its own, in turns, and writes the labels to a GeoTIFF:

- geoseg: ``segment_to_files(…, scorer=network)``, labels alone; ``geoseg-words`` is the bundled
  model as geoseg runs it by itself, which lets windows share work;
- monai: ``sliding_window_inference`` over the scene in memory;
- terratorch: ``tiled_inference`` over the scene in memory, nothing cropped, nothing padded;
- torchgeo: a ``GridGeoSampler``, a ``DataLoader`` and a sum by hand, as torchgeo has no way back;
- hand: a careful loop over the scene in memory as 8 bit, summed in float32.

The network is a 1 x 1 convolution with random weights, which leaves all time to what is around it,
or the bundled geoseg-tiny with its head. Start, imports, the model's weights and a first small map
are not timed. Scores of all sides but geoseg become labels in the fastest way that was found, strip
by strip. geoseg's ``labels.tif`` also has overviews, a colour table and a record of the run; with
``--cog`` the others make a COG with overviews of theirs too, as GDAL does it.

A side that blends as geoseg does by default is *hann*, one that weighs all pixels of a window alike
*uniform*. torchgeo's windows begin at the lower left corner and reach over the far edges, so that
its map of the bundled model is another one.

    pip install "geoseg[peers]"
    python -m benchmarks.bench_peers --sizes 2000 4000 --turns 3 --sides geoseg monai
    python -m benchmarks.bench_peers --sizes 8000 --turns 1 --add   # to results/peers.json
    python -m benchmarks.bench_peers --sizes 4000 --table           # from there, for a document
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from torch import Tensor, nn

import geoseg
from benchmarks import _common
from benchmarks.bench_seams import Changes, across, changes
from geoseg.testing import write_scene
from geoseg.tiling.lattice import Lattice, axis_starts

ROOT = Path(__file__).resolve().parents[1]
WORDS = "water; cropland; grass; tree; building; road; bare soil; rock"
CLASSES = len(WORDS.split(";"))
WINDOWS = {"conv": (224, 112), "bundled": (320, 156)}
"""Window and stride of each model."""
ROWS = 512
"""Rows of a scene that become labels at once."""


# -- the network ------------------------------------------------------------------------------


class Bundled(nn.Module):
    """geoseg-tiny with its head: windows of 0 to 1 in, ``(B, Q, h, w)`` logits out."""

    def __init__(self) -> None:
        super().__init__()
        model = geoseg.load_model("geoseg-tiny", device="cpu")
        self.segmenter = geoseg.Segmenter(model, WORDS)
        for name, values in (("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, windows: Tensor) -> Tensor:
        """Logits of windows ``(B, 3, h, w)``."""
        logits = self.segmenter.window_logits((windows - self.mean) / self.std)
        return logits.permute(0, 3, 1, 2).contiguous()


def network(model: str) -> nn.Module:
    torch.manual_seed(0)
    return (nn.Conv2d(3, CLASSES, 1) if model == "conv" else Bundled()).eval()


# -- the sides --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a side has to do."""

    network: nn.Module
    model: str
    batch: int
    """Windows at once, for all but geoseg."""
    cog: bool = False
    """Whether sides other than geoseg end with a COG."""

    @property
    def window(self) -> int:
        """Side of a window."""
        return WINDOWS[self.model][0]

    @property
    def stride(self) -> int:
        """Step between windows."""
        return WINDOWS[self.model][1]


def run_geoseg(task: Task, scene: str, out: Path, blend: str, *, words: bool = False) -> None:
    # A function, because a module would be copied, and with it the model that it holds.
    net: Any = task.network
    chosen = {"model": net.segmenter.model} if words else {"scorer": net.forward}
    geoseg.segment_to_files(
        scene, WORDS, out.parent / f"{out.stem}_run", device="cpu", overwrite=True, **chosen,
        options=geoseg.Options(window=task.window, stride=task.stride, blend=blend),
        products=geoseg.Products(polygons="none", confidence=False, preview=False),
    )  # fmt: skip
    (out.parent / f"{out.stem}_run" / "labels.tif").rename(out)


def run_geoseg_words(task: Task, scene: str, out: Path, blend: str) -> None:
    run_geoseg(task, scene, out, blend, words=True)


def run_monai(task: Task, scene: str, out: Path, blend: str) -> None:
    from monai.inferers import sliding_window_inference

    scores = sliding_window_inference(
        read(scene), task.window, task.batch, task.network,
        overlap=1 - (task.stride + 0.5) / task.window,  # it rounds the step down
        mode="gaussian" if blend == "gaussian" else "constant",
    )  # fmt: skip
    write(scores[0], scene, out, task)


def run_terratorch(task: Task, scene: str, out: Path, blend: str) -> None:
    from terratorch.tasks.tiled_inference import tiled_inference

    scores = tiled_inference(
        task.network, read(scene), crop=task.window, stride=task.stride, delta=0, padding=False,
        blend_overlaps=blend == "hann", batch_size=task.batch,
    )  # fmt: skip
    write(scores[0], scene, out, task)


def run_torchgeo(task: Task, scene: str, out: Path, blend: str) -> None:
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    dataset = RasterDataset(scene)
    sampler = GridGeoSampler(dataset, task.window, task.stride)
    with rasterio.open(scene) as opened:
        (height, width), bounds, (step, _) = opened.shape, opened.bounds, opened.res
    total = torch.zeros(CLASSES, height, width)
    loader = DataLoader(dataset, task.batch, sampler=sampler, collate_fn=stack_samples)
    for samples in loader:
        scores = task.network(samples["image"].div_(255))
        for (x, y, _), found in zip(samples["bounds"], scores, strict=True):
            col, row = round((x.start - bounds.left) / step), round((bounds.top - y.stop) / step)
            first, rows = max(-row, 0), slice(max(row, 0), row + task.window)
            here = total[:, rows, col : col + task.window]
            here += found[:, first : first + here.shape[1], : here.shape[2]]
    write(total, scene, out, task)


def run_hand(task: Task, scene: str, out: Path, blend: str) -> None:
    with rasterio.open(scene) as opened:
        pixels = torch.from_numpy(opened.read())
    height, width = pixels.shape[1:]
    total = torch.zeros(CLASSES, height, width)
    side = torch.sin(torch.pi * (torch.arange(task.window) + 0.5) / task.window) ** 2
    weight = side[:, None] * side
    rows, cols = (axis_starts(n, task.window, task.stride).tolist() for n in (height, width))
    places = [(slice(r, r + task.window), slice(c, c + task.window)) for r in rows for c in cols]
    for first in range(0, len(places), task.batch):
        some = places[first : first + task.batch]
        scores = task.network(torch.stack([pixels[:, r, c] for r, c in some]).float().div_(255))
        if blend == "hann":
            scores *= weight
        for (r, c), found in zip(some, scores, strict=True):
            total[:, r, c] += found
    write(total, scene, out, task)  # a pixel's sum of weights does not change which class is best


def read(scene: str) -> Tensor:
    """The whole scene, ``(1, 3, H, W)`` from 0 to 1."""
    with rasterio.open(scene) as opened:
        return torch.from_numpy(opened.read()).float().div_(255)[None]


def write(scores: Tensor, scene: str, out: Path, task: Task) -> None:
    """Labels of scores ``(Q, H, W)``, strip by strip."""
    with rasterio.open(scene) as opened:
        profile = opened.profile | {"count": 1, "dtype": "uint8", "photometric": "minisblack"}
    with rasterio.open(out, "w", **profile) as made:
        for row in range(0, made.height, ROWS):
            strip = scores[:, row : row + ROWS]
            # Five times as fast as argmax.
            labels = strip.max(0).indices.to(torch.uint8).numpy()
            made.write(labels, 1, window=((row, row + len(labels)), (0, made.width)))
    if task.cog:
        plain = out.rename(out.with_suffix(".plain.tif"))
        rasterio.shutil.copy(
            str(plain), str(out), driver="COG", COMPRESS="DEFLATE", OVERVIEW_RESAMPLING="MODE",
            NUM_THREADS=str(torch.get_num_threads()),
        )  # fmt: skip
        plain.unlink()


@dataclass(frozen=True)
class Side:
    """One of those that are compared."""

    run: Callable[[Task, str, Path, str], None]
    blend: str
    needs: str = "geoseg"
    """Package without which it is left out."""
    models: tuple[str, ...] = ("conv", "bundled")
    ours: bool = False


SIDES: Mapping[str, Side] = {
    "geoseg-uniform": Side(run_geoseg, "uniform", ours=True),
    "geoseg-hann": Side(run_geoseg, "hann", ours=True),
    "geoseg-words-uniform": Side(run_geoseg_words, "uniform", models=("bundled",), ours=True),
    "geoseg-words-hann": Side(run_geoseg_words, "hann", models=("bundled",), ours=True),
    "monai-constant": Side(run_monai, "uniform", "monai"),
    "monai-gaussian": Side(run_monai, "gaussian", "monai"),
    "terratorch-constant": Side(run_terratorch, "uniform", "terratorch"),
    "terratorch-cosine": Side(run_terratorch, "hann", "terratorch"),
    "torchgeo-constant": Side(run_torchgeo, "uniform", "torchgeo"),
    "hand-constant": Side(run_hand, "uniform"),
    "hand-hann": Side(run_hand, "hann"),
}
REFERENCES = {"uniform": "geoseg-uniform", "hann": "geoseg-hann", "gaussian": "geoseg-hann"}
"""What a side is compared with: geoseg's side that blends the same way, or as nearly."""


# -- one side in a process of its own ---------------------------------------------------------


def measure_here(name: str, given: Mapping[str, Any]) -> dict[str, float]:
    """Run one side in this process, once to have all ready and once to measure."""
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    task = Task(network(given["model"]), given["model"], given["batch"], given["cog"])
    side, out = SIDES[name], Path(given["out"])
    with torch.inference_mode():
        side.run(task, given["warm"], out.with_suffix(".warm.tif"), side.blend)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        memory, busy, start = _status("VmRSS"), _cpu_seconds(), time.perf_counter()
        side.run(task, given["scene"], out, side.blend)
    seconds = time.perf_counter() - start
    return {
        "wall": seconds,
        "cpu": _cpu_seconds() - busy,
        "memory": _status("VmHWM") - memory,
    }


def _cpu_seconds() -> float:
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _status(name: str) -> float:
    """MiB that Linux knows of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) / 1024


def measure(name: str, **given: Any) -> dict[str, float]:
    """Run one side in a process of its own."""
    some = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(given["threads"]))
    inherited = {k: v for k, v in os.environ.items() if k not in some}
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_peers", "--one", name, json.dumps(given)],
        cwd=ROOT, env=inherited | (some if given["threads"] else {}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if child.returncode:
        sys.exit(f"{name}: {child.stderr}")
    return json.loads(child.stdout.splitlines()[-1])


# -- all of them, in turns --------------------------------------------------------------------


def rows(given: argparse.Namespace, sides: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    for size in given.sizes:
        scene = write_scene(folder / f"{size}.tif", size, size, nodata=None)
        for model in given.models:
            # Of a few windows, so that all is imported and compiled.
            side = sum(WINDOWS[model])
            warm = write_scene(folder / f"warm_{model}.tif", side, side, nodata=None)
            for threads in given.threads:
                names = [name for name in sides if model in SIDES[name].models]
                found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
                for turn in range(given.turns):
                    for name in names:
                        _say(f"{model} {size} threads {threads} turn {turn + 1} {name}")
                        found[name].append(
                            measure(
                                name, model=model, threads=threads, batch=given.batch,
                                cog=given.cog, scene=str(scene), warm=str(warm),
                                out=str(folder / f"{name}.tif"),
                            )
                        )  # fmt: skip
                files = "COG" if given.cog else "GeoTIFF"
                for row in _compared(found, folder, model, size, threads):
                    yield {"others' file": files} | row
        scene.unlink()


def _compared(
    found: Mapping[str, Sequence[Mapping[str, float]]],
    folder: Path,
    model: str,
    size: int,
    threads: int,
) -> Iterator[dict[str, Any]]:
    cpu = {n: statistics.median(one["cpu"] for one in runs) for n, runs in found.items()}
    for name, runs in found.items():
        reference = REFERENCES[SIDES[name].blend]
        labels = _labels(folder / f"{name}.tif")
        yield {
            "model": model,
            "pixels": f"{size} x {size}",
            "threads": threads or "default",
            "side": name,
            "blend": SIDES[name].blend,
            "wall s": round(statistics.median(one["wall"] for one in runs), 2),
            "CPU s": round(cpu[name], 2),
            "of geoseg's CPU": round(cpu[name] / cpu[reference], 3) if reference in cpu else None,
            "MiB over start": round(statistics.median(one["memory"] for one in runs)),
            "labels equal": (
                float((labels == _labels(folder / f"{reference}.tif")).mean())
                if reference in found
                else None
            ),
            "cuts": round(_cuts(labels, model, name).excess, 3),
            "every CPU s": [round(one["cpu"], 2) for one in runs],
        }


def _labels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with rasterio.open(path) as opened:
        return opened.read(1)


def _cuts(labels: np.ndarray[Any, np.dtype[np.uint8]], model: str, name: str) -> Changes:
    """Changes of class where this side's windows begin and end, and beside."""
    window, stride = WINDOWS[model]
    if SIDES[name].needs != "torchgeo":
        return changes(labels, Lattice(*labels.shape, window, stride))
    down, right = (
        sorted({*range(0, size, stride), *range(window, size, stride)}) for size in labels.shape
    )
    return across(labels[::-1], down) + across(labels.T, right)


def _cases(given: argparse.Namespace) -> set[tuple[Any, ...]]:
    """What a run compares sides in."""
    sizes, threads = (f"{n} x {n}" for n in given.sizes), (n or "default" for n in given.threads)
    return set(itertools.product(given.models, sizes, threads, ["COG" if given.cog else "GeoTIFF"]))


def _case(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["pixels"], row["threads"], row["others' file"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- tables -----------------------------------------------------------------------------------


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table in Markdown; the best of the others that blend alike is bold."""
    if not found:
        return "no rows"
    out = ["| " + " | ".join(name for name in found[0] if name != "every CPU s") + " |"]
    out.append("|---" * (len(found[0]) - 1) + "|")
    for row in found:
        cells = {name: _cell(value) for name, value in row.items() if name != "every CPU s"}
        if row["side"] in _best(found, row):
            cells["side"] = f"**{row['side']}**"
        out.append("| " + " | ".join(cells.values()) + " |")
    return "\n".join(out)


def _best(found: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> list[str]:
    alike = [
        row
        for row in found
        if (_case(row), row["blend"]) == (_case(like), like["blend"])
        and not SIDES[row["side"]].ours
        and row["blend"] != "gaussian"
    ]
    return [min(alike, key=lambda row: row["CPU s"])["side"]] if alike else []


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".") if value <= 1 else f"{value:.4g}"
    return "" if value is None else str(value)


# -- command line -----------------------------------------------------------------------------


def main() -> None:
    options = _common.parser(__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--sizes", type=int, nargs="+", default=[2000, 4000, 8000])
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--sides", nargs="+", default=[""], help="names or their beginnings")
    options.add_argument("--models", nargs="+", default=list(WINDOWS), choices=list(WINDOWS))
    options.add_argument(
        "--threads", type=int, nargs="+", default=[1, 0], help="0: as many as PyTorch likes"
    )
    options.add_argument("--batch", type=int, default=4, help="windows at once, but for geoseg")
    options.add_argument("--cog", action="store_true", help="the others end with a COG too")
    options.add_argument("--add", action="store_true", help="keep earlier rows of other cases")
    options.add_argument("--table", action="store_true", help="print rows that are saved")
    options.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(measure_here(given.one[0], json.loads(given.one[1]))))
        return
    saved = _common.RESULTS / "peers.json"
    kept = (given.add or given.table) and saved.is_file()
    before = json.loads(saved.read_text("utf-8"))["rows"] if kept else []
    if given.table:
        print(table([row for row in before if _case(row) in _cases(given)]))
        return
    if given.quick:
        given.sizes, given.turns, given.threads = [600], 1, [1]
    wanted = [n for n in SIDES if any(n.startswith(start) for start in given.sides)]
    missing = {s.needs for n in wanted if not importlib.util.find_spec((s := SIDES[n]).needs)}
    if missing:
        _say(f"not installed and left out: {', '.join(sorted(missing))}")
    sides = [name for name in wanted if SIDES[name].needs not in missing]
    before = [row for row in before if _case(row) not in _cases(given)]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(given, sides, Path(folder)):
            found.append(row)
            if not (given.quick or given.no_save):  # what is there stays, should the rest fail
                _common.save("peers", [*before, *found], batch=given.batch)
    print(table(found))


if __name__ == "__main__":
    main()
