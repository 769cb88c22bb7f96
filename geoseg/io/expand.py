"""Which scenes a command line names."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from rasterio.errors import RasterioError

from geoseg.errors import SceneError
from geoseg.io._handles import open_dataset
from geoseg.io.formats import what_it_is
from geoseg.io.write import PRODUCT_TAG

_RASTER_SUFFIXES = frozenset(
    {".tif", ".tiff", ".gtiff", ".vrt", ".jp2", ".img", ".png", ".jpg", ".jpeg", ".ntf", ".bil"}
)


def expand_scenes(paths: Sequence[str]) -> list[str]:
    """List the scenes that files, folders and glob patterns name, each once, in order.

    A folder stands for the rasters directly in it, by name, without those that geoseg wrote
    (labels, confidence, probabilities). Anything with a scheme (``https://``, ``s3://``,
    ``/vsi…``) is passed on as it is.

    Raises
    ------
    SceneError
        If a folder or a pattern holds no raster.
    """
    found: list[str] = []
    for path in paths:
        found.extend(_expand(str(path)))
    return list(dict.fromkeys(found))


def _expand(path: str) -> list[str]:
    if "://" in path or path.startswith("/vsi"):
        return [path]
    if Path(path).is_dir():
        if said := what_it_is(Path(path)):
            raise SceneError(f"{path}: {said}")
        rasters = [str(file) for file in sorted(Path(path).iterdir()) if _is_scene(file)]
        if not rasters:
            raise SceneError(f"{path}: the folder holds no raster that could be a scene")
        return rasters
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    # Path.glob knows no absolute patterns.
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    scenes = [name for name in matches if _is_scene(Path(name))]
    if not scenes:
        raise SceneError(f"{path}: no file matches this pattern")
    return scenes


def _is_scene(file: Path) -> bool:
    hidden = file.name.startswith(".")
    return (
        file.is_file()
        and not hidden
        and file.suffix.lower() in _RASTER_SUFFIXES
        and not _is_product(file)
    )


def _is_product(file: Path) -> bool:
    """Whether geoseg wrote the file; one that cannot be opened is left for the run to report."""
    try:
        with open_dataset(str(file)) as dataset:
            return PRODUCT_TAG in dataset.tags()
    except RasterioError:
        return False
