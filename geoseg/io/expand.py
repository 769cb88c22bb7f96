"""Which scenes a command line names."""

from __future__ import annotations

import fnmatch
import glob
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pyogrio
from rasterio.errors import RasterioError

from geoseg._address import as_given, is_address, shown_address
from geoseg._inputs import is_folder, is_there, named_file, read_at_most, shown
from geoseg._remote import http_address
from geoseg.errors import SceneError
from geoseg.io._handles import gdal_name, open_dataset
from geoseg.io.formats import what_it_is
from geoseg.io.stac import read_item
from geoseg.io.write import PRODUCT_TAG

_RASTER_SUFFIXES = frozenset(
    {".tif", ".tiff", ".gtiff", ".vrt", ".jp2", ".img", ".png", ".jpg", ".jpeg", ".ntf", ".bil"}
)
_LIST = "@"
_STDIN = "-"
_MOST_LIST_BYTES = 64 * 2**20
_ITEM_SUFFIXES = (".json", ".geojson")
_MAGIC = re.compile(r"[*?[]")


def expand_scenes(paths: Sequence[str | Path]) -> list[str]:
    """List the scenes that files, folders, patterns and lists name, each once, in order.

    A folder stands for the rasters directly in it, by name, without those that geoseg wrote
    (labels, confidence, probabilities); STAC items are named, or found by a pattern that ends in
    ``.json``. ``@FILE`` is a text file with one of all this a line, ``-``
    the same on standard input; there are no comments in it, and blank lines count nothing. In an
    object store (``s3://…``) a name that ends in ``/`` is a folder and one with ``*`` a pattern;
    every other address is passed on as it is.

    Raises
    ------
    SceneError
        If a folder, pattern or list holds no raster, or the place cannot be listed.
    """
    found: list[str] = []
    for path in paths:
        found.extend(_expand(as_given(path)))
    return list(dict.fromkeys(found))


def is_one_scene(paths: Sequence[str | Path]) -> bool:
    """Whether a command line names one scene as a file, not by a folder, a pattern or a list."""
    if len(paths) != 1:
        return False
    path = as_given(paths[0])
    if is_address(path):
        return not _is_listing(path)
    if is_there(path):
        return not is_folder(path)
    return not (_is_list(path) or glob.has_magic(path))


def _expand(path: str) -> list[str]:
    if not path.strip():
        raise SceneError("a scene has an empty name; give the path of a file, folder or pattern")
    if is_address(path):
        return _listed(path) if _is_listing(path) else [path]
    if _is_list(path) and not is_there(path):
        return _of_list(path)
    if is_folder(path):
        if said := what_it_is(Path(path)):
            raise SceneError(f"{shown(path)}: {said}")
        rasters = [str(file) for file in sorted(Path(path).iterdir()) if _is_scene(file)]
        if not rasters:
            raise SceneError(f"{shown(path)}: the folder holds no raster that could be a scene")
        return rasters
    if is_there(path) or not glob.has_magic(path):
        return [path]
    # Path.glob knows no absolute patterns.
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    scenes = [name for name in matches if _is_scene(Path(name)) or _is_item(name, path)]
    if not scenes:
        raise SceneError(f"{shown(path)}: no file matches this pattern")
    return scenes


def _is_item(name: str, pattern: str) -> bool:
    """Whether a pattern that names JSON files has found a STAC item, and not one of a map."""
    if not pattern.lower().endswith(_ITEM_SUFFIXES):
        return False
    try:
        item = read_item(name)
    except SceneError:
        return True  # which the run reports
    return item is not None and not item.of_a_map


def _is_list(path: str) -> bool:
    return path == _STDIN or (path.startswith(_LIST) and len(path) > 1)


def _of_list(path: str) -> list[str]:
    """Scenes that the lines of a text file name; relative ones from this folder, not the file's."""
    if path == _STDIN:
        data, what = sys.stdin.buffer.read(_MOST_LIST_BYTES), "standard input"
    else:
        file = named_file(path.removeprefix(_LIST), "list of scenes", SceneError)
        data = read_at_most(file, "list of scenes", SceneError, _MOST_LIST_BYTES)
        what = f"list of scenes {shown(file)}"
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise SceneError(f"{what}: is no text in UTF-8 with one scene a line") from None
    if nested := [line for line in lines if _is_list(line) and not is_there(line)]:
        raise SceneError(f"{what}: names another list, {shown(nested[0])}; name scenes")
    if not any(lines):
        raise SceneError(f"{what}: names no scene; write one a line")
    return [scene for line in lines if line for scene in _expand(line)]


def _is_listing(address: str) -> bool:
    """Whether an address is of several files; what follows a ``?`` in HTTP is no pattern."""
    place = address.partition("?")[0] if http_address(address) else address
    return place.endswith("/") or _MAGIC.search(place) is not None


def _listed(address: str) -> list[str]:
    shown = shown_address(address)
    if http_address(address):
        raise SceneError(
            f"{shown}: files of a web server cannot be listed; name each, or write them into a "
            "file, one a line, and give @FILE"
        )
    magic = _MAGIC.search(address)
    start = address if magic is None else address[: address.rindex("/", 0, magic.start()) + 1]
    place, pattern = gdal_name(start.rstrip("/")), gdal_name(address)
    try:
        found = sorted(map(str, pyogrio.vsi_listtree(place)))
    except Exception as error:  # whatever GDAL and its stores say
        reason = shown_address(" ".join(str(error).split()))
        raise SceneError(f"{shown}: cannot be listed ({reason}); name each file") from error
    wanted = pattern if magic else f"{place}/*"
    names = [
        name
        for name in found
        if Path(name).suffix.lower() in (*_RASTER_SUFFIXES, *((magic and _ITEM_SUFFIXES) or ()))
        and fnmatch.fnmatchcase(name, wanted)
        and name.count("/") == wanted.count("/")
    ]
    if not names:
        raise SceneError(f"{shown}: no raster lies there that could be a scene")
    return [start.rstrip("/") + name.removeprefix(place) for name in names]


def _is_scene(file: Path) -> bool:
    hidden = file.name.startswith(".")
    lost = file.is_symlink() and not is_there(file)  # the run says where it leads
    return (
        (file.is_file() or lost)
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
