"""Do classes change where windows begin and end more often than beside? And what does that cost?

Changes of class across the lines of the lattice, set against those at lines beside them, for both
blends; then mean IoU and boundary F-score of both on drawn scenes, and on real labelled pairs where
those are there.

    python -m benchmarks.bench_seams --scenes 'sample_tiles/*.tif' '.../naip/*.tif'
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks import _common
from geoseg.inference.segmenter import Segmenter
from geoseg.io.scene import Scene
from geoseg.model.loading import load_model
from geoseg.options import Options
from geoseg.options.segmentation import Blend
from geoseg.tiling.lattice import Lattice
from geoseg.types import LabelArray
from tools.evaluate_tiny import REAL_SCENES, held_out_scenes, measure, real_pairs
from tools.scenes import vocabulary_lines

WORDS = "water; cropland; grass; tree; building; road; bare soil"
NEAR, FAR = 2, 6
"""Lines beside a line of the lattice: farther than the one, nearer than the other, in pixels."""


@dataclass(frozen=True)
class Changes:
    """Pixels whose class is not that of the pixel before."""

    at: int = 0
    """Across lines where a window begins or ends."""
    beside: float = 0.0
    """Across as many lines beside them."""

    def __add__(self, other: Changes) -> Changes:
        return Changes(self.at + other.at, self.beside + other.beside)

    @property
    def excess(self) -> float:
        """How many times as often classes change at a line of the lattice."""
        return self.at / self.beside if self.beside else float("nan")


def changes(labels: LabelArray, lattice: Lattice) -> Changes:
    """Count over rows and columns of a scene."""
    height, width = lattice.window_shape
    rows, cols = lattice.row_starts.tolist(), lattice.col_starts.tolist()
    down = across(labels, sorted({*rows, *(row + height for row in rows)}))
    return down + across(labels.T, sorted({*cols, *(col + width for col in cols)}))


def across(labels: LabelArray, lines: Sequence[int]) -> Changes:
    """Count across rows ``line - 1`` and ``line``."""
    differ = (labels[1:] != labels[:-1]).sum(axis=1)
    found = Changes()
    for line in lines:
        if FAR < line < len(labels) - FAR:
            beside = np.r_[
                differ[line - FAR : line - NEAR], differ[line + NEAR - 1 : line + FAR - 1]
            ]
            found += Changes(int(differ[line - 1]), float(np.median(beside)))
    return found


def scene_labels(segmenter: Segmenter, path: str) -> LabelArray:
    """Labels of a whole scene."""
    scene = Scene.open(path)
    block = scene.read(scene.grid.window)
    return segmenter.decide(segmenter.logits(block)).labels


def rows(given: Any) -> Iterator[dict[str, Any]]:
    model = load_model(given.model, device="cpu")
    found = sorted(path for pattern in given.scenes for path in glob.glob(pattern))  # noqa: PTH207
    paths = [path for path in found if not path.endswith("_labels.tif")]
    for upsampler in given.upsamplers:
        made = {
            blend: Segmenter(model, WORDS, Options(blend=blend, upsampler=upsampler))
            for blend in get_args(Blend)
        }
        totals = dict.fromkeys(made, Changes())
        for path in paths:
            row: dict[str, Any] = {"upsampler": upsampler, "scene": Path(path).stem}
            for blend, segmenter in made.items():
                labels = scene_labels(segmenter, path)
                found = changes(labels, segmenter.lattice(*labels.shape))
                totals[blend] += found
                row |= _row(blend, found)
            yield row
        all_of_them: dict[str, Any] = {"upsampler": upsampler, "scene": "all"}
        for blend, total in totals.items():
            all_of_them |= _row(blend, total)
        yield all_of_them


def _row(blend: str, found: Changes) -> dict[str, Any]:
    return {f"{blend}: at": found.at, f"{blend}: beside": found.beside, blend: found.excess}


def scores(given: Any) -> Iterator[dict[str, Any]]:
    model = load_model(given.model, device="cpu")
    drawn = list(held_out_scenes(given.count, 640))
    real = real_pairs(REAL_SCENES) if REAL_SCENES.is_dir() else {}
    for blend in get_args(Blend):
        options = Options(blend=blend)
        found = measure(
            Segmenter(model, ";".join(vocabulary_lines()), options),
            ((s.picture, s.labels) for s in drawn),
        )
        yield {"blend": blend, "of": "drawn", "mIoU": found.miou, "boundary F": found.boundary_f}
        for name, (classes, *pair) in real.items():
            found = measure(Segmenter(model, classes, options), iter([pair]))
            yield {"blend": blend, "of": name, "mIoU": found.miou, "boundary F": found.boundary_f}


def main() -> None:
    """Command line."""
    parser = _common.parser(__doc__)
    parser.add_argument("--model", default="geoseg-tiny")
    parser.add_argument("--scenes", nargs="+", default=["sample_tiles/*.tif"], metavar="PATTERN")
    parser.add_argument("--upsamplers", nargs="+", default=["jbu", "simfeatup"])
    parser.add_argument("--count", type=int, default=12, help="drawn scenes of 640 pixels")
    given = parser.parse_args()
    if given.quick:
        given.count, given.upsamplers = 1, ["jbu"]
    torch.set_num_threads(2)
    seams, accuracy = list(rows(given)), list(scores(given))
    _common.table(seams)
    _common.table(accuracy)
    if not (given.quick or given.no_save):
        _common.save("seams", seams, scores=accuracy)


if __name__ == "__main__":
    main()
