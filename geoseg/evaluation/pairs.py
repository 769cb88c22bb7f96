"""Which truth belongs to which label raster? Single files, and folders matched by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from geoseg._address import is_address
from geoseg._inputs import is_clutter, is_file, is_folder
from geoseg.errors import EvaluationError, not_found
from geoseg.evaluation.truth import RASTER_SUFFIXES, is_vector
from geoseg.io.vectors import VECTOR_SUFFIXES

LABELS_NAME = "labels.tif"
CONFIDENCE_NAME = "confidence.tif"

Pair = tuple[Path, Path]
"""Label raster and truth file."""


def find_pairs(labels: Path, truth: Path) -> tuple[Pair, ...]:
    """Find the truth of every label raster.

    Parameters
    ----------
    labels
        A label raster; a folder that holds ``labels.tif``; a folder of such folders, one a scene;
        or a folder of label rasters with any names.
    truth
        A truth file for a single label raster, or a folder with one file a label raster, of the
        same name up to the suffix (the folder's name where the raster is a ``labels.tif``).

    Raises
    ------
    EvaluationError
        If something is missing, or a name fits several files.
    """
    rasters = _label_rasters(labels)
    if _is_one(truth):
        if len(rasters) > 1:
            raise EvaluationError(
                f"{labels} holds {len(rasters)} label rasters, but {truth} is one file; give a "
                "folder with one truth file for each, of the same name"
            )
        return ((rasters[0], truth),)
    if not is_folder(truth):
        raise not_found(EvaluationError)(f"{truth}: no such file or folder")
    return tuple((raster, _truth_in(raster, truth)) for raster in rasters)


def truths_of(scenes: Sequence[Path], truth: Path) -> tuple[Pair, ...]:
    """Find the truth of every scene, as :func:`find_pairs` does for label rasters.

    Raises
    ------
    EvaluationError
        If something is missing, or a name fits several files.
    """
    if is_folder(truth) and not _is_one(truth):
        return tuple((scene, _truth_in(scene, truth)) for scene in scenes)
    if not _is_one(truth):
        raise not_found(EvaluationError)(f"{truth}: no such file or folder")
    if len(scenes) > 1 and not is_vector(truth):
        raise EvaluationError(
            f"there are {len(scenes)} scenes, but {truth} is one raster; give a folder with one "
            "truth file for each, of the same name, or one vector file for all"
        )
    return tuple((scene, truth) for scene in scenes)


def _is_one(truth: Path) -> bool:
    """Whether a truth is one file; a File Geodatabase is a folder."""
    return (
        is_address(truth) or is_file(truth) or (is_folder(truth) and truth.suffix.lower() == ".gdb")
    )


def confidence_beside(labels: Path) -> Path | None:
    """Confidence raster that belongs to a ``labels.tif``, if there is one."""
    beside = labels.with_name(CONFIDENCE_NAME)
    return beside if labels.name == LABELS_NAME and beside.is_file() else None


def _label_rasters(labels: Path) -> list[Path]:
    if is_address(labels) or is_file(labels):
        return [labels]
    if not is_folder(labels):
        raise not_found(EvaluationError)(f"{labels}: no such file or folder")
    if (labels / LABELS_NAME).is_file():
        return [labels / LABELS_NAME]
    found = sorted(labels.glob(f"*/{LABELS_NAME}")) or sorted(
        path
        for path in labels.glob("*.tif")
        if path.name != CONFIDENCE_NAME and not is_clutter(path)
    )
    if not found:
        raise EvaluationError(
            f"{labels}: no label raster there; looked for {LABELS_NAME}, */{LABELS_NAME} and *.tif"
        )
    return found


def _truth_in(raster: Path, folder: Path) -> Path:
    stem = raster.parent.name if raster.name == LABELS_NAME else raster.stem
    found = _named(stem, folder.iterdir())
    if not found:
        raise EvaluationError(
            f"{raster}: no truth for it in {folder}; looked for {stem}.tif, {stem}.png, "
            f"{stem}.gpkg and the like"
        )
    if len(found) > 1:
        raise EvaluationError(
            f"{raster}: several truths for it: {', '.join(str(path) for path in found)}; keep one"
        )
    return found[0]


def _named(stem: str, paths: Iterable[Path]) -> list[Path]:
    suffixes = RASTER_SUFFIXES | VECTOR_SUFFIXES
    return sorted(path for path in paths if path.stem == stem and path.suffix.lower() in suffixes)
