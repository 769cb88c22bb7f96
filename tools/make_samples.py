"""Draw the sample tiles: small georeferenced scenes with their true labels.

``python -m tools.make_samples`` writes ``sample_tiles/``; the same pixels every time. The scenes
come from the held-out seeds, so the bundled model has never seen them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS

from tools.scenes import class_names, draw_scene, vocabulary_lines

LABEL_NODATA = 255
SCENE_NODATA = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One tile: what is drawn and where it is said to lie."""

    name: str
    seed: int
    size: int
    landscape: str
    gsd_m: float
    epsg: int
    corner: tuple[float, float]
    """Easting and northing of the upper left corner."""
    swath: bool = False
    """Slanted edges without data, as at the border of a satellite's swath."""
    four_bands: bool = False
    """uint16 red, green, blue, near-infrared instead of uint8 RGB."""


SAMPLES = (
    Sample("town_river", 135, 640, "town", 0.5, 32632, (466_000.0, 5_302_000.0)),
    Sample("farmland_lakes", 115, 640, "lakes", 3.0, 32614, (512_400.0, 5_214_800.0)),
    Sample("coast_swath", 131, 512, "coast", 1.2, 32733, (318_600.0, 6_240_300.0), swath=True),
    Sample("park_rgbn", 167, 448, "park", 0.4, 32648, (587_250.0, 1_153_900.0), four_bands=True),
)


@dataclass(frozen=True, slots=True)
class DrawnSample:
    """Arrays of one tile, as they are written."""

    scene: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """``(C, H, W)``."""
    labels: npt.NDArray[np.uint8]
    """``(H, W)``, 255 where the scene has no data."""


def draw_sample(sample: Sample) -> DrawnSample:
    """Draw one tile; the same arrays every time."""
    drawn = draw_scene(
        sample.seed,
        sample.size,
        split="held-out",
        landscape=sample.landscape,
        gsd_m=sample.gsd_m,
        rendering="colour",
    )
    if sample.four_bands:
        # Reflectance as an 11-bit sensor stores it.
        counts = np.round(np.clip(drawn.bands, 0, 1) * 1800 + 60).astype(np.uint16)
        scene = np.ascontiguousarray(counts.transpose(2, 0, 1))
    else:
        scene = np.ascontiguousarray(_natural(drawn.bands, sample.seed).transpose(2, 0, 1))
    labels = drawn.labels.copy()
    if sample.swath:
        scene = np.maximum(scene, 1)
        outside = _outside_swath(sample.size)
        scene[:, outside] = SCENE_NODATA
        labels[outside] = LABEL_NODATA
    return DrawnSample(scene, labels)


def _natural(bands: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.uint8]:
    """Stretch to a calm natural-colour picture with a little sensor noise."""
    colour = bands[..., :3]
    low, high = np.quantile(colour[::4, ::4], (0.005, 0.99))
    tone = np.clip((colour - low) / (high - low), 0, 1) ** 0.85 * 0.92 + 0.04
    noise = np.random.default_rng(seed).normal(0, 0.008, tone.shape[:2])
    return np.round(np.clip(tone + noise[..., None], 0, 1) * 255).astype(np.uint8)


def _outside_swath(size: int) -> npt.NDArray[np.bool_]:
    row, col = np.mgrid[0:size, 0:size] / size
    left, right = 0.04 + 0.14 * row, 0.84 + 0.14 * row
    return (col < left) | (col > right) | (row < 0.11 - 0.1 * col)


def write_sample(sample: Sample, folder: Path) -> None:
    """Write ``NAME.tif`` and ``NAME_labels.tif``."""
    drawn = draw_sample(sample)
    north_up = Affine(sample.gsd_m, 0, sample.corner[0], 0, -sample.gsd_m, sample.corner[1])
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": sample.size,
        "height": sample.size,
        "crs": CRS.from_epsg(sample.epsg),
        "transform": north_up,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 9,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    colours = {"photometric": "rgb", "interleave": "pixel"}
    nodata = SCENE_NODATA if sample.swath else None
    names = ("red", "green", "blue", "near-infrared")
    _write(
        folder / f"{sample.name}.tif", drawn.scene, {**profile, **colours, "nodata": nodata}, names
    )
    flat = drawn.labels[None]
    file = folder / f"{sample.name}_labels.tif"
    _write(file, flat, {**profile, "nodata": LABEL_NODATA}, ("class",))


def _write(
    file: Path, bands: npt.NDArray[Any], profile: dict[str, Any], names: tuple[str, ...]
) -> None:
    temporary = file.with_suffix(".part.tif")
    with rasterio.open(temporary, "w", count=len(bands), dtype=bands.dtype, **profile) as target:
        target.write(bands)
        if names == ("class",):
            # The mark of label rasters keeps them from being taken for scenes.
            target.update_tags(GEOSEG_PRODUCT="labels")
        for index, name in zip(range(1, len(bands) + 1), names, strict=False):
            target.set_band_description(index, name)
    temporary.replace(file)


def write_classes(file: Path) -> None:
    """Write the class file: line n names the pixels with value n."""
    head = [
        "# Classes of the sample tiles, one a line: the display name, then its synonyms.",
        f"# Pixel values of *_labels.tif count these lines from 0; {LABEL_NODATA} is nodata.",
    ]
    file.write_text("\n".join([*head, *vocabulary_lines()]) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw the sample tiles.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("sample_tiles"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        write_sample(sample, options.folder)
    write_classes(options.folder / "classes.txt")
    print(f"{len(SAMPLES)} tiles with {len(class_names())} classes in {options.folder}")


if __name__ == "__main__":
    main()
