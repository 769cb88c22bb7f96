"""From what a person gave to opened scenes."""

from __future__ import annotations

import atexit
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from rasterio.errors import RasterioError

from geoseg._address import (
    as_given,
    holds_secret,
    is_address,
    scene_name,
    shown_address,
    without_secrets,
)
from geoseg._files import absolute
from geoseg._inputs import is_there, shown
from geoseg.errors import GeosegError, OptionError, SceneError, warn
from geoseg.io._handles import open_dataset
from geoseg.io.aoi import Aoi
from geoseg.io.crs import same_crs
from geoseg.io.described import open_readable
from geoseg.io.grid import Grid
from geoseg.io.mosaic import build_mosaic, build_stack, remove_made
from geoseg.io.scene import Scene, open_scene
from geoseg.io.stac import read_item
from geoseg.options import Reading
from geoseg.run.stored import output_folder

MOSAIC, STACK = "mosaic.vrt", "rgb.vrt"

SceneSource = str | Path | Scene | Sequence[str | Path]
"""A path, an opened scene, or several paths that are mapped as one."""


def open_input(
    scene: SceneSource,
    reading: Reading,
    out: Path,
    *,
    travels: bool = False,
    colours: bool = True,
    lazily: bool = False,
) -> Scene:
    """Open what `geoseg.segment_to_files` was given.

    Parameters
    ----------
    scene, reading, out
        As there; the VRT of a mosaic is written to ``out``.
    travels
        Other processes will open the scene, wherever they work.
    colours, lazily
        Whether its pixels are to be red, green and blue, and are only read later, see `Scene.open`.
    """
    if isinstance(scene, Scene):
        return scene
    if not isinstance(scene, str | Path | Sequence):
        raise SceneError(
            f"a scene is a path or several, not {type(scene).__name__}; arrays go to geoseg.segment"
        )
    if not isinstance(scene, str | Path):
        if reading.rgb:
            scene = build_stack(scene, out / STACK, reading.crs)
        else:
            scene = build_mosaic(scene, out / MOSAIC, reading.crs)
    elif reading.rgb:
        raise OptionError(f"{scene}: --rgb takes the files of red, green and blue, not one")
    path = absolute(as_given(scene)) if travels else scene
    return open_scene(path, reading, colours=colours, lazily=lazily)


@contextmanager
def passing_mosaic(scene: SceneSource, out: Path) -> Iterator[None]:
    """Remove the VRT of a mosaic at the end if the addresses in it hold secrets."""
    try:
        yield
    finally:
        parts = () if isinstance(scene, Scene | str | Path) else scene
        if any(holds_secret(str(part)) for part in parts):
            for name in (MOSAIC, STACK):
                remove_made(out / name)


def passing_folder() -> Path:
    """Make a folder for the VRT of a scene that is read later; it goes when this process ends."""
    folder = Path(mkdtemp(prefix="geoseg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def open_area(reading: Reading, grid: Grid) -> Aoi | None:
    """Lay the part of a scene that ``reading`` names on a grid; None for all of it."""
    return None if reading.aoi is None else Aoi.open(reading.aoi, grid, reading.aoi_layer)


@dataclass(frozen=True)
class Job:
    """A scene, and the folder that its map goes to."""

    scene: SceneSource
    out: Path | str
    """On this machine, or an address."""

    @property
    def name(self) -> str:
        """What the scene is called in messages and records."""
        if isinstance(self.scene, Scene):
            return self.scene.path
        if isinstance(self.scene, str | Path):
            return as_given(self.scene)
        parts = [as_given(part) for part in self.scene]
        return parts[0] if len(parts) == 1 else f"{parts[0]} and {len(parts) - 1} more"

    def outlook(self, reading: Reading, *, overwrite: bool, resume: bool, update: bool) -> Outlook:
        """Say what would become of it, as far as is known without a model."""
        state: State = "new"
        parts = self.scene if isinstance(self.scene, Sequence | list) else [self.scene]
        parts = [parts] if isinstance(parts, str) else parts
        size = None
        try:
            folder = output_folder(self.out)
            if is_there(folder.journal):
                state = "interrupted"
            elif folder.recorded():
                state = "finished"
            folder.check(overwrite=overwrite, resume=resume, update=update)
            for part in parts:
                size = part.shape if isinstance(part, Scene) else _shape_of(part, reading)
        except GeosegError as error:
            return Outlook(self.name, self.out, state, None, str(error))
        return Outlook(self.name, self.out, state, size if len(parts) == 1 else None)


State = Literal["new", "interrupted", "finished"]


@dataclass(frozen=True)
class Outlook:
    """What would become of a scene."""

    scene: str
    out: Path | str
    state: State
    """What lies in its folder."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, of a scene of one file."""
    error: str | None = None
    """Why it could not be mapped."""

    def record(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        told: dict[str, Any] = without_secrets(asdict(self) | {"out": str(self.out)})
        return told

    def __str__(self) -> str:
        size = "" if self.size is None else f", {self.size[1]} x {self.size[0]} pixels"
        return f"{self.scene} -> {self.out}: {self.error or self.state + size}"


def _shape_of(path: str | Path, reading: Reading) -> tuple[int, int]:
    item = read_item(as_given(path))
    name = as_given(path) if item is None else item.open(reading.bands, crs=reading.crs).name
    with open_readable(name) as dataset:
        return int(dataset.height), int(dataset.width)


OUT_NAME = "{stem}"
_FIELDS = ("stem", "name", "parent")
_NO_NAME = re.compile(r'[<>:"|?*\\\x00-\x1f]')


def jobs_of(scenes: Sequence[str | Path], out: str | Path, out_name: str = OUT_NAME) -> list[Job]:
    """Give each scene a folder in ``out``, whose name comes from the scene alone.

    Parameters
    ----------
    scenes
        Their paths.
    out
        Folder of the folders.
    out_name
        Name of a scene's folder, in which ``{stem}`` is the scene's file name without suffix,
        ``{name}`` with it, and ``{parent}`` the name of the folder that it lies in.

    Raises
    ------
    OptionError
        If a name cannot be, or is that of two scenes.
    """
    jobs: dict[str, str] = {}
    for scene in map(as_given, scenes):
        name = _folder_name(scene, out_name)
        if name in jobs:
            remedy = "give --out-name, for example '{parent}_{stem}'"
            raise OptionError(
                f"{jobs[name]} and {scene} would both go to {_below(out, name)}; "
                + (remedy if out_name == OUT_NAME else "give another --out-name")
            )
        jobs[name] = scene
    return [Job(scene, _below(out, name)) for name, scene in jobs.items()]


def _below(out: str | Path, name: str) -> Path | str:
    return f"{as_given(out).rstrip('/')}/{name}" if is_address(out) else Path(out) / name


def _folder_name(scene: str, pattern: str) -> str:
    name = scene_name(scene)
    place = shown_address(scene).partition("?")[0] if is_address(scene) else absolute(scene)
    known = {"stem": Path(name).stem or "scene", "name": name, "parent": Path(place).parent.name}
    try:
        made = pattern.format(**{key: _NO_NAME.sub("_", value) for key, value in known.items()})
    except (KeyError, IndexError, ValueError, AttributeError):
        words = ", ".join(f"{{{field}}}" for field in _FIELDS)
        raise OptionError(f"--out-name '{shown(pattern)}': {words} are what it may hold") from None
    parts = Path(made).parts
    if not parts or Path(made).is_absolute() or {"..", "."} & set(parts):
        raise OptionError(f"--out-name '{shown(pattern)}' makes '{shown(made)}', no folder's name")
    return made


def warn_of_neighbours(scenes: Sequence[str | Path]) -> None:
    """Say so where scenes that are mapped apart lie side by side."""
    if (near := touching(scenes)) is not None:
        warn(
            f"{near[0]} and {near[1]} lie side by side and are mapped apart, so that classes may "
            "change where they meet; --mosaic maps scenes as one"
        )


def touching(scenes: Sequence[str | Path]) -> tuple[str, str] | None:
    """Two scenes on this machine that lie side by side on one grid, if any do."""
    seen: list[tuple[str, Grid, tuple[float, float, float, float]]] = []
    for scene in map(as_given, scenes):
        grid = None if is_address(scene) else _grid_of(scene)
        if grid is None or grid.crs is None or not grid.with_transform:
            continue
        box = grid.bounds
        for name, other, there in seen:
            if _side_by_side(grid, box, other, there):
                return name, scene
        seen.append((scene, grid, box))
    return None


def _grid_of(path: str) -> Grid | None:
    try:
        with open_dataset(path) as dataset:
            return Grid(dataset.crs, dataset.transform, dataset.height, dataset.width)
    except (RasterioError, OSError):
        return None


def _side_by_side(grid: Grid, box: Sequence[float], other: Grid, there: Sequence[float]) -> bool:
    one, two = grid.transform, other.transform
    if not all(math.isclose(getattr(one, k), getattr(two, k), rel_tol=1e-6) for k in "abde"):
        return False
    pixel = max(abs(one.a), abs(one.b)), max(abs(one.e), abs(one.d))
    shared = [(min(box[i + 2], there[i + 2]) - max(box[i], there[i])) / pixel[i] for i in (0, 1)]
    sides = [min(box[i + 2] - box[i], there[i + 2] - there[i]) / pixel[i] for i in (0, 1)]
    meet = min(shared) > -1 and max(shared) > 1
    apart = min(shared[i] / sides[i] for i in (0, 1)) < 0.5
    return meet and apart and same_crs(grid.crs, other.crs)
