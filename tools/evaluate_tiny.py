"""How good is the bundled model? Drawn scenes it has not seen, unseen words, real labelled pixels.

``python -m tools.evaluate_tiny`` prints everything; ``--json FILE`` also writes it.
Real scenes are looked for in ``--scenes`` and left out if they are not there.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from PIL import Image

from geoseg.evaluation.metrics import BoundaryCounts, Scores, confusion_matrix
from geoseg.inference.segmenter import Segmenter
from geoseg.model.loading import load_model
from geoseg.options import Options
from geoseg.text.templates import load_templates
from tools.scenes import DrawnScene, class_names, draw_scene, vocabulary_lines
from tools.text_distill import embedder, word_test

log = logging.getLogger(__name__)

REAL_SCENES = Path(__file__).resolve().parents[2] / "shared" / "scenes"
VEGAS = "other;building;road;tree"
"""The real pair's own four values."""
VEGAS_SPELLED = ";".join(
    [
        "other, pavement, parking lot, grass, bare soil, swimming pool, car",
        "building, roof, house",
        "road, street, asphalt road",
        "tree, trees",
    ]
)
"""The same with synonyms, ``other`` spelled out as what is on the picture besides."""

ATLANTA = "tree, forest, grass, lawn, road, street, parking lot, bare soil; building, roof, house"
"""The panchromatic pair's two values, what is no building spelled out."""


@dataclass(frozen=True)
class Measured:
    """Scores of one set of scenes."""

    miou: float
    accuracy: float
    baseline_miou: float
    """Of saying the commonest class everywhere."""
    boundary_f: float
    """Mean over classes, tolerance 3 pixels."""
    iou: dict[str, float]


def held_out_scenes(count: int, size: int = 512, first_seed: int = 500_000) -> Iterator[DrawnScene]:
    """Scenes with other seeds and other palettes than any that were trained on."""
    for k in range(count):
        yield draw_scene(first_seed + k, size, split="held-out")


def measure(
    segmenter: Segmenter,
    pairs: Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]],
) -> Measured:
    """Compare predictions with labels over many pictures."""
    found = ((labels, segmenter.predict(picture).labels) for picture, labels in pairs)
    return measured(segmenter.vocabulary.names, found)


def measured(
    names: Sequence[str], maps: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]]
) -> Measured:
    """Compare maps, the truth before what was found, over many pictures."""
    confusion = np.zeros((len(names), len(names)), np.int64)
    outlines = BoundaryCounts(len(names))
    for told, made in maps:
        truth, found = told.astype(np.int32), made.astype(np.int32)
        confusion += confusion_matrix(truth, found, len(names))
        outlines.add(truth, found)
    scores = Scores.from_confusion(confusion, names)
    support = confusion.sum(1)
    present = int((support > 0).sum())
    return Measured(
        miou=scores.miou,
        accuracy=scores.accuracy,
        baseline_miou=float(support.max() / support.sum() / present),
        boundary_f=float(
            np.mean(
                [
                    np.nan_to_num(s.f1)
                    for s, n in zip(outlines.scores(names), support, strict=True)
                    if n
                ]
            )
        ),
        iou={c.name: c.iou for c in scores.classes},
    )


def drawn(model_spec: str, options: Options, count: int) -> Measured:
    """Score drawn scenes over the generator's classes."""
    vocabulary = ";".join(vocabulary_lines())
    segmenter = Segmenter(load_model(model_spec, device="cpu"), vocabulary, options)
    return measure(segmenter, ((s.picture, s.labels) for s in held_out_scenes(count)))


def vegas_pair(scenes: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Picture ``(H, W, 3)`` and labels ``(H, W)``: other, building, road, tree."""
    folder = scenes / "labelled" / "vegas_multiclass"
    with rasterio.open(folder / "image_rgb_uint8.tif") as source:
        picture = source.read().transpose(1, 2, 0)
    return picture, np.asarray(Image.open(folder / "label.png"))


def atlanta_pair(scenes: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Grey picture ``(H, W, 3)``, stretched between 2 and 98 per cent, and building mask."""
    folder = scenes / "labelled" / "atlanta_buildings"
    with rasterio.open(folder / "image_pan_uint16.tif") as source:
        grey = source.read(1).astype(np.float32)
    low, high = np.quantile(grey[grey > 0], (0.02, 0.98))
    grey = np.clip((grey - low) / (high - low), 0, 1) * 255
    with rasterio.open(folder / "buildings_mask.tif") as source:
        mask = source.read(1)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2), mask


def real_pairs(scenes: Path) -> dict[str, tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Classes, picture and labels of the real labelled pairs."""
    return {
        "vegas": (VEGAS, *vegas_pair(scenes)),
        "vegas, spelled out": (VEGAS_SPELLED, *vegas_pair(scenes)),
        "atlanta": (ATLANTA, *atlanta_pair(scenes)),
    }


def words(model_spec: str) -> dict[str, Any]:
    """Run the word test with geoseg's default templates and without any."""
    clip = load_model(model_spec, device="cpu").clip
    result: dict[str, Any] = {}
    for name in ("imagenet", "none"):
        right, total, misses = word_test(embedder(clip, load_templates(name)))
        result[name] = {"right": right, "of": total, "misses": misses}
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="geoseg-tiny")
    parser.add_argument("--drawn", type=int, default=60, help="drawn scenes of 512 x 512 pixels")
    parser.add_argument("--scenes", type=Path, default=REAL_SCENES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    result: dict[str, Any] = {"words": words(options.model)}
    result["drawn"] = asdict(drawn(options.model, Options(), options.drawn))
    if (options.scenes / "labelled").is_dir():
        model = load_model(options.model, device="cpu")
        for name, (classes, picture, labels) in real_pairs(options.scenes).items():
            segmenter = Segmenter(model, classes)
            result[name] = asdict(measure(segmenter, iter([(picture, labels)])))
    _report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _report(result: dict[str, Any]) -> None:
    for templates, test in result["words"].items():
        misses = ", ".join(test["misses"])
        log.info("words, templates %s: %d of %d; %s", templates, test["right"], test["of"], misses)
    for name in result:
        if name != "words":
            told = {k: round(v, 3) for k, v in result[name].items() if k != "iou"}
            log.info("%s: %s", name, told)
            for label, iou in result[name]["iou"].items():
                log.info("  %-16s %.3f", label, iou)
    assert len(class_names()) == len(result["drawn"]["iou"])


if __name__ == "__main__":
    main()
