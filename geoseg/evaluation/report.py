"""An evaluation for people and programs: dictionary, tables, CSV files, a confusion picture."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from geoseg._files import csv_cell, local_target, whole_files, writing_to
from geoseg._fonts import font_for, warn_of_boxes
from geoseg.errors import OutputError
from geoseg.evaluation.compare import Evaluation
from geoseg.evaluation.metrics import CONFIDENCE_FRACTIONS, CountArray, ReliabilityBin, Scores

_CELL = 64
_LEAST_CELL = 6
_LEAST_CELL_WITH_TEXT = 40
_WIDEST = 2400
_SIDE = "truth (%)"
_MARGIN = 16
_FONT_SIZE = 15
_LIGHT, _DARK = np.array([247, 249, 252]), np.array([13, 71, 161])


def scores_as_dict(scores: Scores) -> dict[str, Any]:
    """Scores as JSON has them; a ratio without a denominator is None."""
    return {
        "miou": _plain(scores.miou),
        "accuracy": _plain(scores.accuracy),
        "classes": [_fields(entry, without="predicted") for entry in scores.classes],
        "confusion": scores.confusion.tolist(),
        "miou_mmseg": _plain(scores.miou_mmseg),
        "mean_f1": _plain(scores.mean_f1),
        "kappa": _plain(scores.kappa),
    }


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Everything that was counted, as JSON has it."""
    found = scores_as_dict(evaluation.scores)
    found["pixels"] = {
        "compared": evaluation.scores.pixels,
        "ignored": evaluation.ignored_pixels,
        "nodata_in_labels": evaluation.nodata_pixels,
    }
    if evaluation.boundary is not None:
        found["boundary"] = {
            "tolerance": evaluation.boundary_tolerance,
            "classes": [_fields(entry) for entry in evaluation.boundary],
        }
    if evaluation.confidence is not None:
        counts = evaluation.confidence
        found["confidence"] = {
            "ece": _plain(counts.expected_calibration_error()),
            "reliability": [asdict(entry) for entry in counts.reliability()],
            "most_confident": [
                {"fraction": part, "accuracy": _plain(counts.accuracy_of_most_confident(part))}
                for part in CONFIDENCE_FRACTIONS
            ],
        }
    found["pairs"] = [
        {
            "labels": str(pair.labels),
            "truth": str(pair.truth),
            "pixels": pair.scores.pixels,
            "miou": _plain(pair.scores.miou),
            "accuracy": _plain(pair.scores.accuracy),
        }
        for pair in evaluation.pairs
    ]
    return found


def as_tables(evaluation: Evaluation) -> RenderableType:
    """Everything that was counted, as tables for a terminal."""
    parts: list[RenderableType] = [_class_table(evaluation), _summary(evaluation)]
    if evaluation.confidence is not None:
        parts.append(_reliability_table(evaluation))
    if len(evaluation.pairs) > 1:
        parts.append(_pair_table(evaluation))
    return Group(*parts)


def write_report(evaluation: Evaluation, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write ``evaluation.json``, CSV tables and ``confusion.png`` into a folder, all or none.

    Parameters
    ----------
    evaluation
        What to write.
    folder
        Made if it does not exist.
    overwrite
        Replace files that are there.

    Raises
    ------
    OutputError
        If a file exists and `overwrite` is False, or the folder cannot be written.
    """
    folder = local_target(folder)
    writers = _writers(evaluation)
    taken = [name for name in writers if (folder / name).exists()]
    if taken and not overwrite:
        raise OutputError(f"{folder / taken[0]} exists; add --overwrite to replace it")
    write_whole({folder / name: write for name, write in writers.items()})


def write_whole(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Let files appear under their names, in folders that are made, only when all are complete.

    Raises
    ------
    OutputError
        If one of them cannot be written.
    """
    for path in writers:
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    with whole_files(list(writers)) as parts:
        for (path, write), part in zip(writers.items(), parts, strict=True):
            with writing_to(path):
                write(part)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as UTF-8 CSV; None is an empty cell.

    A text that a spreadsheet would take for a formula, because it begins with ``=``, ``+``, ``-``,
    ``@``, a tab or a carriage return, gets an apostrophe in front.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([csv_cell(cell) for cell in row] for row in rows)


def plain_table(title: str, *columns: str, caption: str | None = None) -> Table:
    """Make a table without frames, narrow enough for 80 columns; ``>name`` is set to the right."""
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name[0] == ">" else "left")
    return table


def percent(value: float) -> str:
    """Show a share of 1 as per cent; a dash where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def draw_confusion(confusion: CountArray, names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix: rows are the truth, in per cent of each true class.

    Parameters
    ----------
    confusion
        ``(K, K)`` counts; row = truth, column = prediction.
    names
        K class names.
    """
    cell = min(max(_WIDEST // len(names), _LEAST_CELL), _CELL)
    font_size = min(_FONT_SIZE, cell)
    font = font_for("", font_size)
    fonts = [font_for(name, font_size) for name in names]
    widest = max(int(own.getlength(name)) for name, own in zip(names, fonts, strict=True))
    left = top = widest + 2 * _FONT_SIZE + 3 * _MARGIN
    size = cell * len(names)
    image = Image.new("RGB", (left + size + _MARGIN, top + size + _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    support = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(support, 1)
    gap = 2 if cell > 16 else 1
    for row, column in np.ndindex(*confusion.shape):
        x, y = left + column * cell, top + row * cell
        share = float(shares[row, column])
        fill = tuple(int(v) for v in np.round(_LIGHT + share * (_DARK - _LIGHT)))
        draw.rectangle((x, y, x + cell - gap, y + cell - gap), fill=fill)
        if cell >= _LEAST_CELL_WITH_TEXT:
            text = f"{100 * share:.1f}" if support[row, 0] else "-"
            ink = "white" if share > 0.5 else "black"
            draw.text((x + cell / 2, y + cell / 2), text, ink, font, anchor="mm")
    for place, (name, own) in enumerate(zip(names, fonts, strict=True)):
        centre = (place + 0.5) * cell
        draw.text((left - _MARGIN, top + centre), name, "black", own, anchor="rm")
        _draw_upright(image, name, left + centre, top - _MARGIN, own)
    title = font_for("", _FONT_SIZE)
    draw.text((left + size / 2, _MARGIN), "labelled as", "black", title, anchor="mt")
    below = top + (size + title.getlength(_SIDE)) / 2
    _draw_upright(image, _SIDE, _MARGIN + _FONT_SIZE / 2, below, title)
    return image


def _draw_upright(image: Image.Image, text: str, x: float, bottom: float, font: Any) -> None:
    """Write upwards from ``bottom``, centred on ``x``."""
    box = (int(font.getlength(text)) + 2, int(font.size) + 6)
    strip = Image.new("RGB", box, "white")
    ImageDraw.Draw(strip).text((0, box[1] / 2), text, "black", font, anchor="lm")
    rotated = strip.rotate(90, expand=True)
    # Neighbours may overlap in small pictures: the darker pixel stays.
    place = (int(x - box[1] / 2), int(bottom - box[0]))
    below = image.crop((*place, place[0] + rotated.width, place[1] + rotated.height))
    image.paste(ImageChops.darker(below, rotated), place)


def _writers(evaluation: Evaluation) -> dict[str, Callable[[Path], None]]:
    names = [entry.name for entry in evaluation.scores.classes]
    confusion = evaluation.scores.confusion
    warn_of_boxes(names, "confusion.png")
    content = json.dumps(as_dict(evaluation), indent=2, ensure_ascii=False) + "\n"

    def table(rows: Iterable[Sequence[object]]) -> Callable[[Path], None]:
        return lambda path: write_csv(path, rows)

    writers: dict[str, Callable[[Path], None]] = {
        "evaluation.json": lambda path: _write_text(path, content),
        "classes.csv": table(_class_rows(evaluation)),
        "confusion.csv": table(
            [["truth \\ labelled as", *names]]
            + [[name, *row] for name, row in zip(names, confusion.tolist(), strict=True)]
        ),
        "confusion.png": lambda path: draw_confusion(confusion, names).save(path),
    }
    if evaluation.confidence is not None:
        bins = [astuple(entry) for entry in evaluation.confidence.reliability()]
        head = [field.name for field in fields(ReliabilityBin)]
        writers["reliability.csv"] = table([head, *bins])
    if len(evaluation.pairs) > 1:
        writers["pairs.csv"] = table(
            [["labels", "truth", "pixels", "miou", "accuracy"]]
            + [
                [p.labels, p.truth, p.scores.pixels, _plain(p.scores.miou), p.scores.accuracy]
                for p in evaluation.pairs
            ]
        )
    return writers


def _write_text(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def _class_rows(evaluation: Evaluation) -> list[list[object]]:
    head: list[object] = ["class", "iou", "f1", "precision", "recall", "support", "predicted"]
    rows = [list(_fields(entry).values()) for entry in evaluation.scores.classes]
    if evaluation.boundary is not None:
        head += ["boundary_f1", "boundary_precision", "boundary_recall"]
        for row, edge in zip(rows, evaluation.boundary, strict=True):
            row += [_plain(edge.f1), _plain(edge.precision), _plain(edge.recall)]
    return [head, *rows]


def _class_table(evaluation: Evaluation) -> Table:
    heads = ["class", ">IoU", ">F1", ">precision", ">recall", ">true px", ">labelled px"]
    if evaluation.boundary is not None:
        heads.insert(5, ">boundary F1")
    table = plain_table("Classes, in per cent", *heads)
    for place, entry in enumerate(evaluation.scores.classes):
        cells = [percent(v) for v in (entry.iou, entry.f1, entry.precision, entry.recall)]
        if evaluation.boundary is not None:
            cells.append(percent(evaluation.boundary[place].f1))
        # Text, not str: square brackets in a class name are not markup.
        table.add_row(Text(entry.name), *cells, f"{entry.support:,}", f"{entry.predicted:,}")
    return table


def _summary(evaluation: Evaluation) -> Table:
    scores = evaluation.scores
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("mean IoU (classes in the truth)", percent(scores.miou)),
        ("mean IoU (mmsegmentation: truth or labels)", percent(scores.miou_mmseg)),
        ("accuracy", percent(scores.accuracy)),
        ("kappa", "–" if math.isnan(scores.kappa) else f"{scores.kappa:.3f}"),
        ("compared pixels", f"{scores.pixels:,}"),
        ("ignored: no truth", f"{evaluation.ignored_pixels:,}"),
        ("ignored: labels are nodata", f"{evaluation.nodata_pixels:,}"),
    ):
        table.add_row(name, value)
    if evaluation.boundary_tolerance is not None:
        table.add_row("boundaries match within", f"{evaluation.boundary_tolerance:g} px")
    return table


def _reliability_table(evaluation: Evaluation) -> Table:
    counts = evaluation.confidence
    assert counts is not None
    confident = ", ".join(
        f"{100 * part:.0f} %: {percent(counts.accuracy_of_most_confident(part))}"
        for part in CONFIDENCE_FRACTIONS
    )
    table = plain_table(
        "Confidence against accuracy, in per cent",
        *(">confidence", ">pixels", ">mean confidence", ">accuracy"),
        caption=f"ECE {percent(counts.expected_calibration_error())}; "
        f"accuracy of the most confident {confident}",
    )
    for entry in counts.reliability():
        table.add_row(
            f"{100 * entry.low:.0f}–{100 * entry.high:.0f}",
            f"{entry.pixels:,}",
            percent(entry.confidence),
            percent(entry.accuracy),
        )
    return table


def _pair_table(evaluation: Evaluation) -> Table:
    table = plain_table("Label rasters, in per cent", "labels", ">mean IoU", ">accuracy", ">pixels")
    for pair in evaluation.pairs:
        table.add_row(
            Text(str(pair.labels)),
            percent(pair.scores.miou),
            percent(pair.scores.accuracy),
            f"{pair.scores.pixels:,}",
        )
    return table


def _fields(entry: Any, without: str = "") -> dict[str, Any]:
    """Fields of a dataclass as JSON has them."""
    found = asdict(entry)
    found.pop(without, None)
    return {k: _plain(v) if isinstance(v, float) else v for k, v in found.items()}


def _plain(value: float) -> float | None:
    """JSON and CSV have no NaN."""
    return None if math.isnan(value) else float(value)
