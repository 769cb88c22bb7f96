"""What does each method cost beside `segearth` and a run without refiners?

In ViT-B/16's shape with random weights, one thread, CPU seconds of the process: the shortest of
some turns, in which the methods follow one another. Attentions: one window of 224 pixels at a time,
encoder alone. Refiners: a whole image in memory, windows of 224 every 112 pixels, with the default
upsampler, ten classes of one word. At the sides of a small image fewer windows lie over a pixel
than in a scene, so that refiners' shares are rather too large here. Backbones of attentions are
ViT-B/8 with random weights: their 784 tokens a window are most of what such an attention costs.
Regions: an image of 672 pixels as a GeoTIFF, mapped to all files; parcels are squares of 40 pixels.
With ``--only`` the other rows of the file of figures stay.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _common
import geopandas as gpd
import numpy as np
import rasterio
import shapely
import timm
import torch
from bench_speed import WORDS, random_model, sample_image
from rasterio.transform import from_origin

from geoseg import Options, Segmenter, segment_to_files
from geoseg.methods import ATTENTIONS, REFINERS
from geoseg.model.loading import Model
from geoseg.options.segmentation import PROXIED
from geoseg.types import PixelBlock

EXTRA = ("resclip:feedback=no", "pearl:steps=5", "segearth:last=2")
"""Attentions with other keys than their defaults that are worth a row."""

_SLOW = ("lposs",)
"""Refiners that run once."""
_PARCEL = 40
"""Side in pixels."""


def best_of(turns: int, sides: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Least CPU seconds of each side, the sides taking turns."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(turns):
        for name, run in sides.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def rows_of(kind: str, best: Mapping[str, float], base: str) -> list[dict[str, Any]]:
    """A row a method, with its share of the base's time."""
    return [
        {"kind": kind, "method": name, "CPU s": round(seconds, 4), "x": seconds / best[base]}
        for name, seconds in best.items()
    ]


def backbone_file(folder: str) -> str:
    """Random weights of the backbone that attentions name if nobody names another."""
    torch.manual_seed(0)
    file = str(Path(folder) / "backbone.pth")
    torch.save(timm.create_model("vit_base_patch8_224.dino", num_classes=0).state_dict(), file)
    return file


def attentions(model: Model, turns: int, backbone: str) -> list[dict[str, Any]]:
    """One window through the encoder."""
    block = PixelBlock(sample_image(224), np.ones((224, 224), dtype=bool))
    sides = {}
    for text in (*ATTENTIONS.entries, *EXTRA):
        weights = backbone if text in PROXIED else None
        options = Options(
            attention=text, upsampler="none", templates="none", backbone_weights=weights,
            regions="squares" if text == "corrclip" else None,
        )  # fmt: skip
        segmenter = Segmenter(model, WORDS, options)
        pixels = segmenter.encoder.normalise(block)[None]
        if segmenter.reads_regions:
            down, across = torch.meshgrid(*2 * [torch.arange(224) // 40], indexing="ij")
            pixels = torch.cat([pixels, (1 + 6 * down + across)[None, None]], dim=1)
        sides[text] = lambda made=segmenter, pixels=pixels: made.encode(pixels)
    return rows_of("attention", best_of(turns, sides), "segearth")


def runs(model: Model, side: int, turns: int) -> list[dict[str, Any]]:
    """A whole image with each refiner."""
    image = (sample_image(side).transpose(1, 2, 0) * 255).astype(np.uint8)
    sides = {}
    for name in ("none", *REFINERS.entries):
        refine = () if name == "none" else name
        segmenter = Segmenter(model, WORDS, Options(templates="none", refine=refine))
        sides[name] = lambda made=segmenter: made.predict(image)
    slow = {name: sides.pop(name) for name in _SLOW}
    return rows_of("run with refiner", best_of(turns, sides) | best_of(1, slow), "none")


def regions(model: Model, side: int, turns: int) -> list[dict[str, Any]]:
    """A file to files, with each kind of regions."""
    place = {"crs": "EPSG:32631", "transform": from_origin(500_000, 5_000_000, 1, 1)}
    image = (sample_image(side) * 255).astype(np.uint8)
    with TemporaryDirectory() as name:
        folder = Path(name)
        profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": side, "width": side}
        with rasterio.open(folder / "scene.tif", "w", **profile, **place) as file:
            file.write(image)
        corners = [(x, y) for x in range(0, side, _PARCEL) for y in range(0, side, _PARCEL)]
        boxes = [
            shapely.box(500_000 + x, 5_000_000 - y - _PARCEL, 500_000 + x + _PARCEL, 5_000_000 - y)
            for x, y in corners
        ]
        gpd.GeoDataFrame(geometry=boxes, crs=place["crs"]).to_file(folder / "parcels.gpkg")
        sides = {
            kind: partial(
                segment_to_files, folder / "scene.tif", WORDS, folder / "map", model=model,
                options=Options(templates="none", regions=given), overwrite=True,
            )
            for kind, given in {
                "none": None,
                "superpixels": "superpixels",
                "parcels": folder / "parcels.gpkg",
            }.items()
        }  # fmt: skip
        return rows_of("run with regions", best_of(turns, sides), "none")


def others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of other kinds in the file that is there."""
    path = _common.RESULTS / "methods.json"
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [row for row in known if row["kind"] not in {row["kind"] for row in rows}]


def main() -> None:
    """Measure and print."""
    parser = _common.parser(__doc__)
    parser.add_argument("--only", choices=("attentions", "runs", "regions"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, rows = random_model(), []
    side = 224 if given.quick else 448
    if given.only in (None, "attentions"):
        with TemporaryDirectory() as folder:
            rows += attentions(model, 1 if given.quick else 5, backbone_file(folder))
    if given.only in (None, "runs"):
        rows += runs(model, side, 1 if given.quick else 2)
    if given.only in (None, "regions"):
        rows += regions(model, 224 if given.quick else 672, 1 if given.quick else 2)
    _common.table(rows)
    if not given.no_save:
        print(_common.save("methods", [*others(rows), *rows]))


if __name__ == "__main__":
    main()
