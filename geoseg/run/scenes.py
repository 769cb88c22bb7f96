"""From what a person gave to opened scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geoseg._files import absolute
from geoseg.errors import OptionError
from geoseg.io.mosaic import build_mosaic, build_stack
from geoseg.io.scene import Scene
from geoseg.options import Reading

MOSAIC, STACK = "mosaic.vrt", "rgb.vrt"

SceneSource = str | Path | Scene | Sequence[str | Path]
"""A path, an opened scene, or several paths that are mapped as one."""


def open_input(scene: SceneSource, reading: Reading, out: Path, *, travels: bool = False) -> Scene:
    """Open what `geoseg.segment_to_files` was given.

    Parameters
    ----------
    scene, reading, out
        As there; the VRT of a mosaic is written to ``out``.
    travels
        Other processes will open the scene, wherever they work.
    """
    if isinstance(scene, Scene):
        return scene
    if not isinstance(scene, str | Path):
        build = build_stack if reading.rgb else build_mosaic
        scene = build(scene, out / (STACK if reading.rgb else MOSAIC))
    elif reading.rgb:
        raise OptionError(f"{scene}: --rgb takes the files of red, green and blue, not one")
    return open_scene(absolute(scene) if travels else scene, reading)


def open_scene(path: str | Path, reading: Reading) -> Scene:
    """Open a scene as ``reading`` says."""
    return Scene.open(
        path,
        bands=reading.bands,
        stretch=reading.stretch,
        gsd=reading.gsd,
        nodata=reading.fill,
        ignore_alpha=reading.ignore_alpha,
    )


def folder_names(paths: Sequence[str]) -> list[str]:
    """Return a folder name for each scene: its stem, numbered where two are the same."""
    names: list[str] = []
    for path in paths:
        stem = Path(path.split("?")[0]).stem or "scene"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names
