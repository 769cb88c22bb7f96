"""What are regions worth on scenes whose truth is known?

Drawn scenes that the bundled model has not seen, mapped to files: without regions, with
superpixels, and with the truth's own polygons as parcels, by both rules. Mean IoU and boundary
F-score (3 pixels). Parcels must lift mean IoU by 0.05, superpixels may cost 0.01 at most.

    python -m benchmarks.bench_regions
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
import torch
from rasterio.features import shapes
from rasterio.transform import from_origin

import geoseg
from benchmarks import _common
from geoseg.model.loading import Model, load_model
from tools.evaluate_tiny import held_out_scenes, measured
from tools.scenes import DrawnScene, vocabulary_lines

SIDE = 256
PLACE = {"crs": "EPSG:32631", "transform": from_origin(500_000, 5_000_000, 0.5, 0.5)}
CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "superpixels": {"regions": "superpixels"},
    "superpixels, majority": {"regions": "superpixels", "region_rule": "majority"},
    "parcels": {"regions": "parcels"},
    "parcels, majority": {"regions": "parcels", "region_rule": "majority"},
    "parcels, whatever agrees": {"regions": "parcels", "region_agreement": 0.0},
}
LEAST = {"parcels": 0.05, "superpixels": -0.01}
"""Of what is gained over none."""


def write(scene: DrawnScene, folder: Path) -> Path:
    """Leave a scene and its truth's polygons in a folder."""
    path = folder / "scene.tif"
    height, width = scene.labels.shape
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": height, "width": width}
    with rasterio.open(path, "w", **profile, **PLACE) as file:
        file.write(scene.picture.transpose(2, 0, 1))
    outlines = shapes(scene.labels.astype(np.int32), transform=PLACE["transform"])
    table = gpd.GeoDataFrame(
        geometry=[shapely.geometry.shape(one) for one, _ in outlines], crs=PLACE["crs"]
    )
    table.to_file(folder / "parcels.gpkg")
    return path


def maps(
    scenes: list[DrawnScene], model: Model, words: str, options: dict[str, Any], folder: Path
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Truth and map of each scene."""
    for number, scene in enumerate(scenes):
        path = folder / str(number) / "scene.tif"
        chosen = dict(options)
        if chosen.get("regions") == "parcels":
            chosen["regions"] = str(path.with_name("parcels.gpkg"))
        bare = {"polygons": "none", "preview": False, "confidence": False}
        out = folder / "map"
        geoseg.segment_to_files(
            path, words, out, model=model, options=chosen, products=bare, overwrite=True
        )
        with rasterio.open(out / "labels.tif") as labels:
            yield scene.labels, labels.read(1)


def main() -> None:
    """Command line."""
    parser = _common.parser(__doc__)
    parser.add_argument("--model", default="geoseg-tiny")
    parser.add_argument("--count", type=int, default=12, help=f"drawn scenes of {SIDE} pixels")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, words = load_model(given.model, device="cpu"), ";".join(vocabulary_lines())
    scenes = list(held_out_scenes(2 if given.quick else given.count, SIDE))
    names = geoseg.Vocabulary.parse(words).names
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for number, scene in enumerate(scenes):
            (place := Path(folder) / str(number)).mkdir()
            write(scene, place)
        for case, options in CASES.items():
            found = measured(names, maps(scenes, model, words, options, Path(folder)))
            gain = found.miou - (rows[0]["mean IoU"] if rows else found.miou)
            rows.append(
                {
                    "regions": case,
                    "mean IoU": round(found.miou, 4),
                    "gain": round(gain, 4),
                    "wanted": LEAST.get(case),
                    "boundary F": round(found.boundary_f, 4),
                }
            )
    _common.table(rows)
    if not given.no_save:
        print(_common.save("regions", rows))


if __name__ == "__main__":
    main()
