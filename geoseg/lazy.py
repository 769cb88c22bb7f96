"""Scenes as lazy arrays: the tile tasks of a run, as blocks of an ``xarray.Dataset``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import rioxarray  # noqa: F401 - registers the .rio accessor
import xarray as xr
from dask.delayed import Delayed, delayed

from geoseg.errors import GeosegWarning, OptionError, SceneError
from geoseg.inference.network import NetworkSegmenter, scores_of, segmenter_of, windows_of
from geoseg.inference.segmenter import Segmenter
from geoseg.io.aoi import Aoi
from geoseg.io.array import ArrayScene, as_block
from geoseg.io.grid import Grid
from geoseg.io.scene import Scene, about_place
from geoseg.io.scores import ScoredScene, with_scores
from geoseg.model.loading import Model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Reading, is_score_raster
from geoseg.run.scenes import open_area, open_input, passing_folder
from geoseg.run.tiles import TileJob, tile_task
from geoseg.text.vocabulary import VocabularySource
from geoseg.tiling.tiles import TilePlan
from geoseg.types import PER_CENT_NODATA, label_dtype, label_nodata


def segment(
    scene: str | Path | xr.DataArray | Sequence[str | Path],
    classes: VocabularySource,
    *,
    model: str | Model = DEFAULT_MODEL,
    scorer: Any = None,
    options: Options | None = None,
    window: int | None = None,
    stride: int | None = None,
    reading: Reading | None = None,
    tile: int = 2048,
    device: str = "auto",
    probabilities: bool = False,
) -> xr.Dataset:
    """Map a scene lazily: nothing is inferred until the result is computed or written.

    Parameters
    ----------
    scene
        Path, or ``xarray.DataArray`` with dimensions ``(y, x)``, ``(band, y, x)`` or
        ``(y, x, band)``, numpy or dask backed; never changed. Several paths are one scene, as
        for `segment_to_files`; the VRT that says so lies in a temporary folder until this
        process ends.
    classes, model, scorer, options, window, stride, reading, tile, device
        As for `segment_to_files`. Labels come on the grid that is worked on: the one of
        ``reading.gsd``, or the scene's own, which for an array is the only one.
    probabilities
        Also give ``probabilities``.

    Returns
    -------
    xarray.Dataset
        ``labels`` ``(y, x)`` uint8 class index (nodata 255; uint16 and 65535 over 254 classes),
        ``confidence`` ``(y, x)`` uint8 per cent (nodata 255), and on request ``probabilities``
        ``(class, y, x)`` uint8 per cent. Chunks are tiles. CRS, transform and nodata are set
        through rioxarray; the attributes ``CLASS_0``, ``CLASS_1``, … of ``labels`` are the class
        names, which ``.rio.to_raster`` keeps as tags.

    Raises
    ------
    GeosegError
        With one line that says what is wrong and what to do.
    """
    reading = reading or Reading()
    source = _open(scene, reading, colours=scorer is None)
    segmenter = segmenter_of(model, classes, windows_of(options, window, stride), device, scorer)
    pixels: Scene | ArrayScene | ScoredScene = source
    if isinstance(segmenter, NetworkSegmenter):
        pixels = _with_scores(source, scores_of(scorer), reading)
        segmenter.probe(pixels)
    area = open_area(reading, source.grid)
    region = area.window if area is not None else None
    plan = segmenter.plan(source.grid.shape, tile, region)
    rasters = ["labels", "confidence", *(["probabilities"] if probabilities else [])]
    tasks = _tasks(pixels, segmenter, plan, area, rasters)

    names = segmenter.vocabulary.names
    dtype = label_dtype(len(names))
    grid = source.grid.crop(plan.region)
    data: dict[str, Any] = {
        "labels": (("y", "x"), _blocks(tasks, plan, "labels", dtype), _class_tags(names)),
        "confidence": (("y", "x"), _blocks(tasks, plan, "confidence", np.dtype(np.uint8))),
    }
    coords: dict[str, Any] = _coordinates(grid)
    if probabilities:
        shares = _blocks(tasks, plan, "probabilities", np.dtype(np.uint8), classes=len(names))
        data["probabilities"] = (("class", "y", "x"), shares)
        coords["class"] = list(names)
    result = xr.Dataset(data, coords=coords)
    return _placed(result, grid, label_nodata(dtype))


def _class_tags(names: Sequence[str]) -> dict[str, str]:
    return {f"CLASS_{index}": name for index, name in enumerate(names)}


def _open(
    scene: str | Path | xr.DataArray | Sequence[str | Path], reading: Reading, *, colours: bool
) -> Scene | ArrayScene:
    if isinstance(scene, xr.DataArray):
        if reading.gsd is not None:
            raise OptionError(
                "the xarray scene cannot be read at another gsd; resample the array (rioxarray's "
                "rio.reproject), or give the path of a file"
            )
        if reading.mask is not None:
            raise OptionError(
                "a mask is for files; mask the array itself: array.where(clear), which makes NaN "
                "of what is left out"
            )
        if reading.nodata or reading.ignore_alpha:
            raise OptionError(
                "nodata and ignore_alpha are for files; an array says its nodata itself: "
                "array.rio.write_nodata(0)"
            )
        array = ArrayScene.open(
            scene, bands=reading.bands, stretch=reading.stretch, crs=reading.crs, colours=colours
        )
        remark = about_place(array.grid)
        if remark is not None:
            warnings.warn(f"the array: {remark}", GeosegWarning, stacklevel=3)
        return array
    paths = [scene] if isinstance(scene, str | Path) else scene
    if not isinstance(paths, Sequence) or not all(isinstance(path, str | Path) for path in paths):
        raise SceneError(
            f"a scene is a path, several, or an xarray.DataArray, not {type(scene).__name__}; "
            "arrays of pixels alone go to Segmenter.predict"
        )
    one = isinstance(scene, str | Path)
    folder = Path() if one else passing_folder()  # one path needs none
    return open_input(scene, reading, folder, travels=True, colours=colours)


def _with_scores(
    source: Scene | ArrayScene, call: Any, reading: Reading
) -> Scene | ArrayScene | ScoredScene:
    """Lay a raster of scores over a scene, if that is what a scorer is."""
    if isinstance(source, Scene):
        return with_scores(source, call, reading)
    if is_score_raster(call):
        raise OptionError("a raster of scores goes with the path of a scene, not with an array")
    return source


def _tasks(
    source: Scene | ArrayScene | ScoredScene,
    segmenter: Segmenter,
    plan: TilePlan,
    area: Aoi | None,
    rasters: Sequence[str],
) -> list[Delayed]:
    """Tasks of all tiles: those of a file read it where they run, those of an array get a slice."""
    if not isinstance(source, ArrayScene):
        job = TileJob(source, segmenter, plan, area, rasters)
        return [tile_task(job.run_whole, index) for index in range(len(plan))]
    job = TileJob(None, segmenter, plan, area, rasters)
    as_pixels = delayed(as_block, pure=False, traverse=False)
    return [
        tile_task(
            job.run_block,
            tile.index,
            as_pixels(source.pixels(tile.read), *source.how),
        )
        for tile in plan
    ]


def _blocks(
    tasks: list[Delayed],
    plan: TilePlan,
    name: str,
    dtype: np.dtype[Any],
    classes: int | None = None,
) -> da.Array:
    """One product of all tiles as a dask array; each tile is computed once for all products."""
    lead = () if classes is None else (classes,)
    parts = [
        da.from_delayed(getattr(task, name), (*lead, *tile.core.shape), dtype)
        for task, tile in zip(tasks, plan, strict=True)
    ]
    rows = [parts[i : i + plan.cols] for i in range(0, len(parts), plan.cols)]
    if classes is None:
        return da.block(rows)
    return da.concatenate([da.concatenate(row, axis=2) for row in rows], axis=1)


def _coordinates(grid: Grid) -> dict[str, Any]:
    """Pixel centres, where rows and columns follow the axes; a rotated grid has its transform."""
    transform = grid.transform
    if transform.b or transform.d:
        return {}
    x = transform.c + transform.a * (np.arange(grid.width) + 0.5)
    y = transform.f + transform.e * (np.arange(grid.height) + 0.5)
    return {"x": x, "y": y}


def _placed(dataset: xr.Dataset, grid: Grid, nodata: int) -> xr.Dataset:
    if grid.crs is not None:
        dataset = dataset.rio.write_crs(grid.crs)
    dataset = dataset.rio.write_transform(grid.transform)
    for name, variable in dataset.data_vars.items():
        variable.rio.write_nodata(nodata if name == "labels" else PER_CENT_NODATA, inplace=True)
    return dataset
