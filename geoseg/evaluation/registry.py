"""Benchmark data sets: what they hold, how they lie on disk, and what others have published.

Each data set is a TOML file in ``geoseg/evaluation/datasets``; a new one needs no code.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from geoseg._inputs import is_folder
from geoseg.errors import EvaluationError, OptionError
from geoseg.evaluation.values import ValueMap
from geoseg.text.vocabulary import Vocabulary

_FOLDER = "datasets"


@dataclass(frozen=True)
class Published:
    """A score that somebody has reported."""

    method: str
    score: float
    """In per cent, of the data set's metric."""
    evidence: str
    """X: recalled and cross-checked; T: from a table in another public source; M: recalled only.
    None of them was read in the method's own paper: check before quoting."""
    class_names: str
    """Which class names were used: those of the first SegEarth-OV paper, later ones, unknown."""


@dataclass(frozen=True)
class Binary:
    """Masks of two classes where the value grows with the foreground (0 and 255, say)."""

    at_least: int
    """Least value of the foreground."""
    name: str
    """Class of the foreground; everything else is the data set's first class."""


@dataclass(frozen=True)
class Tiles:
    """How large images are cut before they are scored; each cut is an image of its own.

    Cuts that would reach over the edge are moved inwards; images smaller than a cut are padded,
    and the padding counts nowhere.
    """

    height: int
    width: int
    step_y: int
    step_x: int


@dataclass(frozen=True)
class Sample:
    """An image file and its label file."""

    name: str
    """Path of the image below the root."""
    image: Path
    labels: Path


@dataclass(frozen=True)
class Layout:
    """Where images and labels lie below the root, and how labels are encoded."""

    name: str
    images: str
    """Pattern below the root; ``*`` stands for any part of one name."""
    labels: str
    """Path of the labels; ``{0}``, ``{1}``, … are what the stars stood for."""
    values: ValueMap | None = None
    """What label values or colours mean; None with `binary`."""
    binary: Binary | None = None
    keep: tuple[str, ...] | None = None
    """Only images where the last star stood for one of these."""
    keep_file: str | None = None
    """File below the root that lists the images to keep, one name a line."""
    keep_file_optional: bool = False
    tiles: Tiles | None = None

    def samples(self, root: Path) -> list[Sample]:
        """Images in this layout, in order of their names; none if the layout is another.

        Raises
        ------
        EvaluationError
            If an image has no labels.
        """
        listed = self._listed(root)
        if listed is None and self.keep_file is not None and not self.keep_file_optional:
            return []
        found = []
        for image in sorted(root.glob(_any_case(self.images))):
            name = image.relative_to(root).as_posix()
            parts = _stars(self.images, name)
            if self.keep is not None and parts[-1] not in self.keep:
                continue
            if listed is not None and not {image.name, image.stem} & listed:
                continue
            found.append(Sample(name, image, root / self.labels.format(*parts)))
        missing = [sample for sample in found if not sample.labels.is_file()]
        if len(missing) == len(found):
            return []
        if missing:
            raise EvaluationError(
                f"{missing[0].image}: its labels are missing, expected at {missing[0].labels} "
                f"({len(missing)} of {len(found)} images have none)"
            )
        return found

    def keeps_all(self, root: Path) -> bool:
        """Tell whether an optional list of images is not there."""
        return self.keep_file is not None and not (root / self.keep_file).is_file()

    def _listed(self, root: Path) -> set[str] | None:
        if self.keep_file is None or not (root / self.keep_file).is_file():
            return None
        return set((root / self.keep_file).read_text(encoding="utf-8").split())

    def describe(self) -> str:
        """Say what the layout looks like, for messages."""
        extra = f" and {self.keep_file}" if self.keep_file and not self.keep_file_optional else ""
        return f"{self.images} and {re.sub(r'{[0-9]}', '*', self.labels)}{extra}"


@dataclass(frozen=True)
class Found:
    """A data set on this disk."""

    root: Path
    """Folder that the layout's patterns start from."""
    layout: Layout
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Dataset:
    """One benchmark as the SegEarth-OV paper runs it."""

    id: str
    """Name on the command line."""
    title: str
    task: str
    vocabulary: Vocabulary
    threshold: float
    """Probability below which a pixel becomes background."""
    background: str
    metric: str
    """``miou`` (mean over classes, as mmsegmentation has it) or ``iou of CLASS``."""
    long_side: int
    """Images are resized to this long side before they are segmented."""
    source: str
    """Which part of the data set is scored."""
    home: str
    """Where to get it."""
    licence: str
    layouts: tuple[Layout, ...]
    published: tuple[Published, ...]
    cls_bias: float | None = None
    """CLS bias where the paper departs from its own default."""
    images: int | None = None
    """Number of images (after cutting) that published scores cover, where it is known."""
    inside: tuple[str, ...] = ()
    """Folders below the root where the layout may start as well."""
    notes: tuple[str, ...] = ()

    @property
    def foreground(self) -> str | None:
        """Class whose IoU is the score, or None for the mean."""
        return self.metric.removeprefix("iou of ") if self.metric != "miou" else None

    def find(self, root: Path) -> Found:
        """Find the images below a folder.

        Raises
        ------
        EvaluationError
            If the folder has none of the layouts; the message shows what was expected.
        """
        if not is_folder(root):
            raise EvaluationError(f"{root}: no such folder; {self.title} is expected there")
        for start in ("", *self.inside):
            for layout in self.layouts:
                samples = layout.samples(root / start)
                if samples:
                    return Found(root / start, layout, tuple(samples))
        expected = "; or ".join(f"{each.describe()} ({each.name})" for each in self.layouts)
        raise EvaluationError(
            f"{root}: no images of {self.title} there; expected below it: {expected}. Get the "
            f"data from {self.home}"
        )


@cache
def dataset_ids() -> tuple[str, ...]:
    """Names of all data sets."""
    folder = files("geoseg.evaluation") / _FOLDER
    return tuple(
        sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
    )


@cache
def load_dataset(name: str) -> Dataset:
    """Read one data set by its name, in any case.

    Raises
    ------
    OptionError
        If there is none of this name; the message lists near ones, or all.
    """
    wanted = name.casefold()
    if wanted not in dataset_ids():
        near = " or ".join(difflib.get_close_matches(wanted, dataset_ids()))
        hint = f"did you mean {near}?" if near else f"known: {', '.join(dataset_ids())}"
        raise OptionError(f"no data set is called '{name}'; {hint}")
    text = (files("geoseg.evaluation") / _FOLDER / f"{wanted}.toml").read_text(encoding="utf-8")
    return _dataset(wanted, tomllib.loads(text))


def _dataset(name: str, raw: Mapping[str, Any]) -> Dataset:
    values = {key: value for key, value in raw.items() if key not in ("class", "layout")}
    classes = raw["class"]
    return Dataset(
        **{
            **values,
            "id": name,
            "vocabulary": Vocabulary.parse({c["name"]: c["prompts"] for c in classes}),
            "layouts": tuple(_layout(entry) for entry in raw["layout"]),
            "published": tuple(Published(**entry) for entry in raw["published"]),
            "inside": tuple(raw.get("inside", ())),
            "notes": tuple(raw.get("notes", ())),
        }
    )


def _layout(raw: Mapping[str, Any]) -> Layout:
    make: dict[str, Callable[[Any], Any]] = {
        "values": ValueMap.parse,
        "binary": lambda table: Binary(**table),
        "keep": tuple,
        "tiles": lambda table: Tiles(**table),
    }
    return Layout(**{k: make[k](value) if k in make else value for k, value in raw.items()})


def _any_case(pattern: str) -> str:
    """Let a suffix match in any case: ``.JPG`` and ``.jpg`` are both around."""
    start, dot, suffix = pattern.rpartition(".")
    either = re.sub("[a-zA-Z]", lambda m: f"[{m[0].lower()}{m[0].upper()}]", suffix)
    return start + dot + either


def _stars(pattern: str, name: str) -> Sequence[str]:
    """What the stars of a pattern stand for in a name."""
    expression = re.escape(pattern).replace(r"\*", "([^/]*)")
    match = re.fullmatch(expression, name, re.IGNORECASE)
    return match.groups() if match is not None else ()
