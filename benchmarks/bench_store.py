"""What does the second question cost?

A scene is encoded once, into both tiers; then eight new classes are asked for, up to labels.tif.
The ratio of an answer's time to that of encoding is the result, with bytes a pixel of both tiers,
how near the fast tier's logits are, and the memory of the answers. Weights are random in
ViT-B/16's shape (windows of 224 every 112 pixels, upsampler jbu); labels of the full tier are
compared with those of `segment` on a part of the scene.

With ``--channels 64 128 …`` the full tier keeps so many leading directions in place of all
channels: how small it becomes, which share of labels are not `segment`'s, and how far the farthest
logit of the scene is from `segment`'s, against the bound that is stated for these words.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _common
import numpy as np
from bench_speed import random_model

import geoseg
from geoseg.io.scene import open_scene
from geoseg.testing import write_scene
from geoseg.types import Window

CLASSES = "building; road; water; tree; grass; cropland; bare soil; car"
BARE = geoseg.Products(polygons="none", preview=False, confidence=False)
OPTIONS = geoseg.Options(templates="none", upsampler="jbu", window=224, stride=112)
COMPARED = 560


def main() -> None:
    parser = _common.parser(__doc__)
    parser.add_argument("--side", type=int, help="pixels of the scene's side [4000]")
    parser.add_argument("--model", help="a model's specification, in place of random weights")
    parser.add_argument("--channels", type=int, nargs="+", metavar="R", help="see above")
    parser.add_argument(
        "--scene", type=Path, help="a scene in place of a drawn one, for --channels"
    )
    given = parser.parse_args()
    side = given.side or (448 if given.quick else 1000 if given.channels else 4000)
    model = geoseg.load_model(given.model) if given.model else random_model()
    options = geoseg.Options(templates="none") if given.model else OPTIONS
    with tempfile.TemporaryDirectory() as name:
        if given.channels:
            scene = given.scene or write_scene(Path(name) / "scene.tif", side, side)
            rows = by_channels(Path(name), scene, model, options, given.channels)
        else:
            rows = measure(Path(name), model, options, side)
    _common.table(rows)
    if not given.no_save:
        what = "store_channels" if given.channels else "store"
        _common.save(what, rows, side=side, model=given.model or "ViT-B/16's shape")


def measure(
    folder: Path, model: geoseg.Model, options: geoseg.Options, side: int
) -> list[dict[str, Any]]:
    scene, path = write_scene(folder / "scene.tif", side, side), folder / "scene.store"
    stages: dict[str, float] = {}
    clock = time.perf_counter()

    def say(state: Any) -> None:
        stages.setdefault(state.stage, time.perf_counter())

    store = geoseg.encode(scene, path, model=model, options=options, progress=say)
    encoding = time.perf_counter() - clock
    rows = [
        {
            "what": "encode, both tiers",
            "seconds": encoding,
            "of encoding": 1.0,
            "bytes a pixel": None,
            "peak MiB": _common.peak_memory_mib(os.getpid()),
        }
    ]
    for tier in ("full", "fast"):

        def ask(tier: str = tier) -> None:
            geoseg.open_store(path).to_files(
                CLASSES, folder / tier, fast=tier == "fast", model=model, products=BARE,
                options=geoseg.Options(templates="none"), overwrite=True,
            )  # fmt: skip

        seconds = timed(ask)
        size = sum(f.stat().st_size for f in (path / tier).rglob("*") if f.is_file())
        rows.append(
            {
                "what": f"8 classes, {tier} tier",
                "seconds": seconds,
                "of encoding": seconds / encoding,
                "bytes a pixel": size / side**2,
                "peak MiB": _common.peak_memory_mib(os.getpid()),
            }
        )
    rows[0]["field seconds"] = clock + encoding - stages["directions"]
    rows[1]["labels as segment"] = agreement(folder, store, scene, model, options, side)
    fast = store._segmenter(CLASSES, True, geoseg.Options(templates="none"), model, "cpu").source
    rows[2]["logit error"] = fast["logit_error_found"]
    rows[2]["stated bound"] = fast["logit_error_bound"]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def by_channels(
    folder: Path,
    scene: Path,
    model: geoseg.Model,
    options: geoseg.Options,
    channels: Sequence[int],
) -> list[dict[str, Any]]:
    opened = open_scene(scene, geoseg.Reading())
    block = opened.read(Window(0, 0, *opened.shape))
    exact = geoseg.Segmenter(model, CLASSES, options).logits(block)
    rows = []
    for r in (None, *channels):
        kept = geoseg.StoreOptions(tier="full", channels=r)
        store = geoseg.encode(
            scene, folder / f"{r}.store", model=model, options=options, store=kept
        )
        size = sum(f.stat().st_size for f in (store.path / "full").rglob("*") if f.is_file())
        asked = store._segmenter(CLASSES, False, geoseg.Options(templates="none"), model, "cpu")
        logits, told = asked.logits(block), asked.source
        rows.append(
            {
                "channels": r or "all",
                "energy missed": None if r is None else 1 - store.facts["channels"]["energy"],
                "bytes a pixel": size / block.valid.size,
                "other labels": float(np.mean(logits.argmax(0) != exact.argmax(0))),
                "logit error": float(np.abs(logits - exact).max()),
                "found on tokens": told.get("logit_error_found"),
                "stated bound": told.get("logit_error_bound"),
            }
        )
    return rows


def timed(call: Callable[[], None]) -> float:
    """The better of two."""
    found = []
    for _ in range(2):
        clock = time.perf_counter()
        call()
        found.append(time.perf_counter() - clock)
    return min(found)


def agreement(
    folder: Path,
    store: geoseg.Store,
    scene: Path,
    model: geoseg.Model,
    options: geoseg.Options,
    side: int,
) -> float:
    """Share of equal labels in a part of the scene."""
    some = slice(0, min(side, COMPARED))
    maps = (
        geoseg.segment(scene, CLASSES, model=model, options=options),
        store.ask(CLASSES, model=model, options=geoseg.Options(templates="none")),
    )
    one, other = (made.labels[some, some].values for made in maps)
    return float(np.mean(one == other))


if __name__ == "__main__":
    main()
