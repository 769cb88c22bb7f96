"""What do attention, CLS bias and upsampling do for geoseg-tiny?

Every attention preset, with and without CLS bias, with each upsampler: mean IoU and boundary
F-score (3 pixels) on drawn scenes the model has not seen, and on real labelled pairs where those
are there. Takes about half an hour on one core; ``--quick`` a minute.

    python -m benchmarks.bench_tiny
"""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import _common
from geoseg import methods
from geoseg.inference.segmenter import Segmenter
from geoseg.model.loading import load_model
from geoseg.options import Options
from geoseg.options.segmentation import PROXIED
from tools.evaluate_tiny import REAL_SCENES, held_out_scenes, measure, real_pairs
from tools.scenes import vocabulary_lines

UPSAMPLERS = ("none", "jbu", "simfeatup")
SIDE = 256


def main() -> None:
    """Command line."""
    parser = _common.parser(__doc__)
    parser.add_argument("--model", default="geoseg-tiny")
    parser.add_argument("--count", type=int, default=24, help=f"drawn scenes of {SIDE} pixels")
    parser.add_argument("--scenes", type=Path, default=REAL_SCENES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(given.model, device="cpu")
    bias = model.defaults.get("cls_bias") or 0.3
    attentions = [name for name in methods.ATTENTIONS.entries if name not in PROXIED]
    attentions = ["segearth", "vanilla"] if given.quick else attentions
    drawn = list(held_out_scenes(2 if given.quick else given.count, SIDE))
    real = real_pairs(given.scenes) if given.scenes.is_dir() and not given.quick else {}
    real.pop("vegas, spelled out", None)
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    for attention, upsampler, cls_bias in product(attentions, UPSAMPLERS, (0.0, bias)):
        options = Options(attention=attention, upsampler=upsampler, cls_bias=cls_bias)
        row: dict[str, Any] = {
            "attention": attention,
            "upsampler": upsampler,
            "cls bias": cls_bias,
        }
        segmenter = Segmenter(model, ";".join(vocabulary_lines()), options)
        scores = measure(segmenter, ((s.picture, s.labels) for s in drawn))
        row |= {"drawn mIoU": scores.miou, "drawn boundary F": scores.boundary_f}
        for name, (classes, *pair) in real.items():
            scores = measure(Segmenter(model, classes, options), iter([pair]))
            row |= {f"{name} mIoU": scores.miou, f"{name} boundary F": scores.boundary_f}
        rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    _common.table(rows)
    print(f"{time.monotonic() - start:.0f} s")
    if not given.no_save and not given.quick:
        _common.save(
            "tiny_table", rows, model_sha256=model.fingerprint, drawn_scenes=len(drawn), side=SIDE
        )


if __name__ == "__main__":
    main()
