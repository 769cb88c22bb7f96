"""Write the bundled model's folder from training checkpoints.

``python -m tools.export_tiny WORK/thin.pt`` writes ``geoseg/bundled/geoseg-tiny/``. Weights of
several checkpoints of one training are averaged.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.tiny_model import read_checkpoint, restore, write_folder

FOLDER = Path(__file__).resolve().parents[1] / "geoseg" / "bundled" / "geoseg-tiny"
UPSAMPLER = "simfeatup.pt"

DEFAULTS: dict[str, Any] = {
    "window": 320,
    "stride": 156,
    "cls_bias": 0.3,
    "logit_scale": 40.0,
    "attention": "naclip",
    "upsampler": "jbu",
}
"""What measured best (see the model card). A stride of 19.5 patches lays every second window half
a patch off the first, so that overlapping windows sharpen each other."""

CARD: dict[str, Any] = {
    "licence": "Apache-2.0",
    "training_data": "scenes drawn by tools/scenes; no real imagery",
    "text_teacher": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)",
}


def export(checkpoints: Sequence[Path], folder: Path, upsampler: Path | None = None) -> None:
    """Write config, weights and defaults; take the upsampler's weights along if given."""
    saved = read_checkpoint(checkpoints)
    defaults = dict(DEFAULTS)
    if upsampler is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(upsampler, folder / UPSAMPLER)
    if (folder / UPSAMPLER).is_file():
        defaults["upsampler_weights"] = UPSAMPLER
    defaults["card"] = {**CARD, "trained_with": saved["facts"]}
    write_folder(folder, restore(saved), saved["config"], defaults)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--upsampler", type=Path, help="simfeatup.pt to take along")
    options = parser.parse_args()
    export(options.checkpoints, options.folder, options.upsampler)
    size = sum(file.stat().st_size for file in options.folder.iterdir())
    print(f"{options.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
