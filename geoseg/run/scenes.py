"""From what a person gave to opened scenes."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from geoseg._address import holds_secret, scene_name
from geoseg._files import absolute
from geoseg.errors import OptionError, SceneError
from geoseg.io.aoi import Aoi
from geoseg.io.grid import Grid
from geoseg.io.mosaic import build_mosaic, build_stack, remove_made
from geoseg.io.scene import Scene, open_scene
from geoseg.options import Reading

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
) -> Scene:
    """Open what `geoseg.segment_to_files` was given.

    Parameters
    ----------
    scene, reading, out
        As there; the VRT of a mosaic is written to ``out``.
    travels
        Other processes will open the scene, wherever they work.
    colours
        Whether its pixels are to be red, green and blue, see `Scene.open`.
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
    return open_scene(absolute(scene) if travels else scene, reading, colours=colours)


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


def folder_names(paths: Sequence[str]) -> list[str]:
    """Return a folder name for each scene: its stem, numbered where two are the same."""
    names: list[str] = []
    for path in paths:
        stem = Path(scene_name(path)).stem or "scene"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names
