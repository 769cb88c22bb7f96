"""Many drawn scenes in two files, so that training can cut crops from them at random."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools.scenes.classes import Cover
from tools.scenes.draw import Split, draw_scene

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScenePool:
    """Pictures and labels of many scenes, mapped from disk."""

    pictures: npt.NDArray[np.uint8]
    """``(N, S, S, 3)``."""
    labels: npt.NDArray[np.uint8]
    """``(N, S, S)``."""

    def scenes_by_class(self, min_pixels: int = 60) -> dict[Cover, npt.NDArray[np.int64]]:
        """Indices of the scenes in which each class covers at least so many pixels."""
        step = 4
        thin = np.array(self.labels[:, ::step, ::step])
        least = max(2, min_pixels // step**2)
        return {c: np.flatnonzero((thin == c).sum((1, 2)) >= least) for c in Cover}


def draw_pool(
    folder: Path, count: int, *, size: int = 384, first_seed: int = 0, split: Split = "train"
) -> None:
    """Draw ``count`` scenes with consecutive seeds into ``pictures.npy`` and ``labels.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, size, size)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, (*shape, 3))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, shape)
    start = time.monotonic()
    for k in range(count):
        scene = draw_scene(first_seed + k, size, split=split)
        pictures[k], labels[k] = scene.picture, scene.labels
        if (k + 1) % 500 == 0:
            log.info("%d scenes, %.1f a second", k + 1, (k + 1) / (time.monotonic() - start))
    pictures.flush()
    labels.flush()


def open_pool(*folders: Path) -> list[ScenePool]:
    """Map the pools in these folders."""
    return [
        ScenePool(
            np.load(folder / "pictures.npy", mmap_mode="r"),
            np.load(folder / "labels.npy", mmap_mode="r"),
        )
        for folder in folders
    ]


def main() -> None:
    """Command line: ``python -m tools.scenes.pool FOLDER --count 5000``."""
    parser = argparse.ArgumentParser(description="Draw a pool of training scenes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--split", choices=["train", "held-out"], default="train")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    draw_pool(
        options.folder,
        options.count,
        size=options.size,
        first_seed=options.first_seed,
        split=options.split,
    )


if __name__ == "__main__":
    main()
