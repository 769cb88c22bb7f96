"""Scores of a benchmark run, for people and programs, beside what others have published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from geoseg.evaluation.metrics import CountArray, Scores
from geoseg.evaluation.registry import Dataset
from geoseg.evaluation.report import percent, plain_table, scores_as_dict

EVIDENCE = {
    "X": "recalled, cross-checked",
    "T": "from a table in another public source",
    "M": "recalled only",
}


@dataclass(frozen=True)
class ImageResult:
    """Counts of one image, or of one cut of it."""

    name: str
    height: int
    width: int
    confusion: CountArray


@dataclass(frozen=True)
class BenchmarkResult:
    """Scores of a data set, or of the part of it that was run."""

    dataset: Dataset
    layout: str
    images: tuple[ImageResult, ...]
    files: int
    """Image files that were run."""
    files_total: int
    """Image files of the data set on this disk."""
    settings: Mapping[str, Any]
    """Everything the scores depend on."""

    @property
    def scores(self) -> Scores:
        """Scores over all images together."""
        total = np.sum([image.confusion for image in self.images], axis=0)
        return Scores.from_confusion(total, self.dataset.vocabulary.names)

    @property
    def score(self) -> float:
        """The data set's own metric, 0 to 1."""
        foreground = self.dataset.foreground
        if foreground is None:
            return self.scores.miou_mmseg
        place = self.dataset.vocabulary.names.index(foreground)
        return self.scores.classes[place].iou

    @property
    def comparable(self) -> bool:
        """True if all images were run as published scores have them."""
        return (
            self.files == self.files_total
            and (self.dataset.images is None or self.dataset.images == len(self.images))
            and self.settings["resize"] == "opencv"
            and self.settings["long side"] == self.dataset.long_side
        )


def as_dict(result: BenchmarkResult) -> dict[str, Any]:
    """Scores, settings and published scores, as JSON has them."""
    dataset = result.dataset
    return {
        "dataset": dataset.id,
        "title": dataset.title,
        "metric": dataset.metric,
        "score": None if math.isnan(result.score) else result.score,
        "comparable": result.comparable,
        "files": result.files,
        "files_total": result.files_total,
        "images": len(result.images),
        "layout": result.layout,
        "settings": dict(result.settings),
        "scores": scores_as_dict(result.scores),
        "published": [{**asdict(each), "score": each.score / 100} for each in dataset.published],
    }


def as_tables(result: BenchmarkResult, label: str) -> RenderableType:
    """Our score among the published ones, and the classes, as tables for a terminal.

    Parameters
    ----------
    result
        What was run.
    label
        How our row is called.
    """
    return Group(_rank_table(result, label), *_remarks(result), _class_table(result))


def _rank_table(result: BenchmarkResult, label: str) -> Table:
    dataset = result.dataset
    metric = "mean IoU" if dataset.foreground is None else f"IoU of {dataset.foreground}"
    table = plain_table(
        f"{dataset.title}: {metric}, in per cent",
        *("method", ">score", "evidence", "class names"),
        caption="; ".join(f"{tag}: {meaning}" for tag, meaning in EVIDENCE.items()),
    )
    ours = 100 * result.score
    rows = [(p.score, p.method, p.evidence, p.class_names, "") for p in dataset.published]
    rows.append((ours, label, "this run", "first paper", "bold"))
    for score, method, evidence, names, style in sorted(rows, key=lambda r: -np.nan_to_num(r[0])):
        table.add_row(Text(method), percent(score / 100), evidence, names, style=style)
    return table


def _remarks(result: BenchmarkResult) -> Iterator[str]:
    dataset = result.dataset
    if result.files < result.files_total:
        yield f"{result.files} of {result.files_total} image files: not comparable."
    elif dataset.images is not None and dataset.images != len(result.images):
        yield (
            f"{len(result.images)} images; published scores cover {dataset.images}: not comparable."
        )
    if result.settings["resize"] != "opencv":
        yield f"Resize rule {result.settings['resize']}: not the published protocol."


def _class_table(result: BenchmarkResult) -> Table:
    heads = ("class", ">IoU", ">precision", ">recall", ">true pixels")
    table = plain_table("Classes, in per cent", *heads)
    for entry in result.scores.classes:
        cells = [percent(value) for value in (entry.iou, entry.precision, entry.recall)]
        table.add_row(Text(entry.name), *cells, f"{entry.support:,}")
    return table


def image_rows(result: BenchmarkResult) -> Iterator[list[object]]:
    """Yield a table with a line an image, head first."""
    names = result.dataset.vocabulary.names
    yield ["image", "height", "width", "pixels", "miou", "accuracy", *(f"iou {n}" for n in names)]
    for image in result.images:
        scores = Scores.from_confusion(image.confusion, names)
        values = [scores.miou_mmseg, scores.accuracy, *(entry.iou for entry in scores.classes)]
        yield [
            image.name,
            image.height,
            image.width,
            scores.pixels,
            *(None if math.isnan(value) else value for value in values),
        ]
