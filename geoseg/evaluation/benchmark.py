"""Run a published benchmark: image by image, resumable, beside the reported scores.

The order of steps is the original's (SegEarth-OV, Li et al., CVPR 2025): the image is resized to
a long side of 448 pixels, segmented in sliding windows, and the averaged logits are resized to
the image's own size before the softmax, so that scores count the data set's own pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from geoseg._files import writing_to
from geoseg.errors import OptionError, OutputError, warn
from geoseg.evaluation.benchmark_result import (
    BenchmarkResult,
    ImageResult,
    as_dict,
    image_rows,
)
from geoseg.evaluation.metrics import confusion_matrix
from geoseg.evaluation.registry import Dataset
from geoseg.evaluation.report import write_csv, write_whole
from geoseg.evaluation.resize import fitted_size, resize_image
from geoseg.evaluation.samples import Cut, cuts
from geoseg.evaluation.values import ClassNumbers
from geoseg.options import Options
from geoseg.options.reading import ResizeRule
from geoseg.types import LabelArray, UInt8Array

logger = logging.getLogger(__name__)

IMAGES_NAME = "images.csv"
RESULT_NAME = "benchmark.json"
_JOURNAL_NAME = ".images.part.jsonl"


class Labelled(Protocol):
    """Labels of one image."""

    @property
    def labels(self) -> LabelArray:
        """``(H, W)`` class numbers."""
        ...


class ImageSegmenter(Protocol):
    """What a benchmark needs of a segmenter; `geoseg.Segmenter` is one."""

    def predict(self, rgb: UInt8Array, *, out_shape: tuple[int, int]) -> Labelled:
        """Label an image ``(H, W, 3)`` uint8 at the given size."""
        ...


def paper_options(dataset: Dataset, given: Options) -> Options:
    """Fill in what the paper sets for this data set and for all; an option given wins.

    Without an upsampler's weights the parameter-free one takes the learned one's place.
    """
    names = ("threshold", "background", "cls_bias")
    filled = {name: getattr(dataset, name) for name in names if getattr(given, name) is None}
    if all(getattr(given, name) is None for name in ("upsampler", "upsampler_weights")):
        filled["upsampler"] = "jbu"
    return replace(given, preset="paper", **filled)


def run_benchmark(
    dataset: Dataset,
    root: str | Path,
    segmenter: ImageSegmenter,
    *,
    out: str | Path,
    facts: Mapping[str, Any] | None = None,
    limit: int | None = None,
    resize: ResizeRule = "opencv",
    long_side: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BenchmarkResult:
    """Score a segmenter on a data set.

    Leaves ``images.csv`` (a line an image) and ``benchmark.json`` in a folder. Counts of finished
    images are kept there from the first one on, so that an interrupted run can be resumed.

    Parameters
    ----------
    dataset
        From :func:`geoseg.evaluation.registry.load_dataset`.
    root
        Folder of the data, in one of the data set's layouts.
    segmenter
        Made with the data set's vocabulary and :func:`paper_options`.
    out
        Folder for the results; made if it does not exist.
    facts
        What else the scores depend on (model, options); a resumed run must have the same.
    limit
        Only the first so many image files.
    resize
        ``opencv`` as the paper, ``antialias``, or ``none`` for the images' own pixels.
    long_side
        Long side in pixels to resize to; the data set's by default.
    resume
        Go on where an earlier run in `out` stopped.
    overwrite
        Replace the results in `out`.
    progress
        Called with the number of files done and in all.

    Raises
    ------
    EvaluationError
        If the folder has another layout (the message shows the expected one), or a file is bad.
    OutputError
        If `out` has results and neither `resume` nor `overwrite` is given, or they belong to
        other settings.
    OptionError
        If `limit` or `long_side` is impossible.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"the limit is {limit}; give 1 or more images")
    if long_side is not None and long_side < 1:
        raise OptionError(f"the long side is {long_side}; give 1 pixel or more")
    found = dataset.find(Path(root))
    if found.layout.keeps_all(found.root):
        warn(
            f"{found.root / str(found.layout.keep_file)} is not there, so all images are scored; "
            "published scores cover only those it lists"
        )
    samples = found.samples[:limit]
    settings = {
        "dataset": dataset.id,
        "layout": found.layout.name,
        "resize": resize,
        "long side": long_side or dataset.long_side,
        **(facts or {}),
    }
    journal = _Journal(Path(out), settings, resume=resume, overwrite=overwrite)
    classes = ClassNumbers(dataset.vocabulary.names)
    size = None if resize == "none" else settings["long side"]
    images = []
    for done, sample in enumerate(samples):
        if progress is not None:
            progress(done, len(samples))
        if sample.name not in journal.finished:
            parts = cuts(sample, found.layout, classes)
            results = [_score(cut, segmenter, size, resize, dataset) for cut in parts]
            journal.add(sample.name, results)
        images += journal.finished[sample.name]
    if progress is not None:
        progress(len(samples), len(samples))
    result = BenchmarkResult(
        dataset, found.layout.name, tuple(images), len(samples), len(found.samples), settings
    )
    journal.write(result)
    return result


def _score(
    cut: Cut, segmenter: ImageSegmenter, long_side: int | None, rule: ResizeRule, dataset: Dataset
) -> ImageResult:
    """Segment one image and count."""
    height, width = cut.truth.shape
    size = (height, width) if long_side is None else fitted_size(height, width, long_side)
    labels = segmenter.predict(resize_image(cut.rgb, size, rule), out_shape=(height, width)).labels
    classes = len(dataset.vocabulary.names)
    return ImageResult(
        cut.name, height, width, confusion_matrix(cut.truth, labels.astype(np.int32), classes)
    )


class _Journal:
    """Counts of finished files, one line each, in the result folder until the run is over.

    The first line holds the settings. A line that a crash has cut off is dropped.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> None:
        self.finished: dict[str, list[ImageResult]] = {}
        self._folder = folder
        self._path = folder / _JOURNAL_NAME
        head = json.dumps(settings, sort_keys=True, default=str)
        if self._path.is_file() and resume:
            self._read(json.loads(head))
        else:
            if self._path.is_file() and not overwrite:
                raise OutputError(
                    f"{folder} has results already; add --resume to go on, --overwrite to start "
                    "anew, or choose another --out"
                )
            self._start(head)

    def _start(self, head: str) -> None:
        write_whole({self._path: lambda path: path.write_text(head + "\n", encoding="utf-8")})
        for stale in (self._folder / IMAGES_NAME, self._folder / RESULT_NAME):
            with writing_to(stale):
                stale.unlink(missing_ok=True)

    def _read(self, settings: Mapping[str, Any]) -> None:
        whole, _, cut = self._path.read_bytes().rpartition(b"\n")
        lines = whole.decode("utf-8").splitlines()
        before = json.loads(lines[0]) if lines else {}
        differs = [key for key in {**settings, **before} if settings.get(key) != before.get(key)]
        if differs:
            raise OutputError(
                f"{self._folder} was made with another {' and '.join(differs)}; choose another "
                "--out, or --overwrite to start anew"
            )
        for line in lines[1:]:
            entry = json.loads(line)
            self.finished[entry["file"]] = [
                ImageResult(i["name"], i["height"], i["width"], np.array(i["confusion"], np.int64))
                for i in entry["images"]
            ]
        if cut:
            logger.info("%s: dropped a line that was cut off", self._path)
            with writing_to(self._path):
                self._path.write_bytes(whole + b"\n")

    def add(self, file: str, images: Sequence[ImageResult]) -> None:
        """Keep the counts of a finished file."""
        entry = {
            "file": file,
            "images": [
                {**asdict(image), "confusion": image.confusion.tolist()} for image in images
            ],
        }
        with writing_to(self._path), self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")
        self.finished[file] = list(images)

    def write(self, result: BenchmarkResult) -> None:
        """Write the table of images and the result."""
        content = json.dumps(as_dict(result), indent=2, ensure_ascii=False, default=str) + "\n"
        images, summary = self._folder / IMAGES_NAME, self._folder / RESULT_NAME
        write_whole(
            {
                images: lambda path: write_csv(path, image_rows(result)),
                summary: lambda path: path.write_text(content, encoding="utf-8"),
            }
        )
