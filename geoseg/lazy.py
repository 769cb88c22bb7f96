"""Scenes as lazy arrays: the tile tasks of a run, as blocks of an ``xarray.Dataset``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rioxarray  # noqa: F401 - registers the .rio accessor
import xarray as xr
from dask.base import tokenize

from geoseg._address import without_secrets
from geoseg._fields import as_made
from geoseg._texts import Limits
from geoseg.errors import OptionError, SceneError, warn
from geoseg.inference.fusion import probed, segmenter_of
from geoseg.inference.network import windows_of
from geoseg.inference.refine.scene import measures, places_to_measure, with_measures
from geoseg.inference.segmenter import Segmenter
from geoseg.io.aoi import Aoi
from geoseg.io.array import ArrayScene, open_stack, taken_by_arrays, time_of
from geoseg.io.flags import flags_of
from geoseg.io.grid import Grid
from geoseg.io.objects import MARK
from geoseg.io.scene import Scene, about_place
from geoseg.io.scores import SeenScene, refuse_bands_of_array, with_scores
from geoseg.model.loading import Model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Reading, Scorer
from geoseg.options.scorer import is_beside_words, is_score_raster
from geoseg.run.blocks import LazyMap, looked_at_later, map_array, measured_later, refined_later
from geoseg.run.journal import digest
from geoseg.run.report import Method, area_digest, reading_facts
from geoseg.run.scenes import open_area, open_input, passing_folder
from geoseg.run.tiles import PixelSource, TileJob
from geoseg.text.vocabulary import VocabularySource
from geoseg.tiling.tiles import TilePlan
from geoseg.types import PER_CENT_NODATA, Window, label_dtype, label_nodata

ArrayScenes = tuple[ArrayScene, ...]


def segment(
    scene: str | Path | xr.DataArray | xr.Dataset | Sequence[str | Path],
    classes: VocabularySource,
    *,
    model: str | Model = DEFAULT_MODEL,
    scorer: Any = None,
    options: Options | Mapping[str, Any] | None = None,
    window: int | None = None,
    stride: int | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    tile: int = 2048,
    device: str = "auto",
    probabilities: bool = False,
) -> xr.Dataset:
    """Map a scene lazily: nothing is inferred until the result is computed or written.

    Parameters
    ----------
    scene
        Path, or ``xarray.DataArray`` with dimensions ``(y, x)``, ``(band, y, x)`` or
        ``(y, x, band)``, or ``xarray.Dataset`` with a variable ``(y, x)`` for each band; numpy or
        dask backed, rows from north or south; never changed. With a dimension of time it is a
        stack, whose dates are all seen with one stretch. Several paths are one scene, as
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
        ``(class, y, x)`` uint8 per cent; of a stack, ``time`` comes first. Rows and columns come
        in the order, and under the names, of the scene. Chunks are tiles; of a file or a dask array
        no pixel is read before something is computed, and a slice of the result costs the windows
        that it touches. CRS, transform and nodata are set through rioxarray, and what lies along
        ``time`` stays beside it; the attributes of ``labels`` are its classes (``flag_values``,
        ``flag_meanings``, ``flag_colors``, and ``CLASS_0``, ``CLASS_1``, … which
        ``.rio.to_raster`` keeps as tags) and what the map was made of (``geoseg_model``,
        ``geoseg_limits``, …). `geoseg.xarray` draws and measures such labels.

    Raises
    ------
    GeosegError
        With one line that says what is wrong and what to do.
    """
    reading, chosen = as_made(Reading, reading), windows_of(options, window, stride)
    stack, colours = None, scorer is None or is_beside_words(scorer)
    sources: tuple[Scene, ...] | ArrayScenes
    if isinstance(scene, xr.DataArray | xr.Dataset):
        stack = time_of(scene)
        sources = _open_arrays(scene, stack, reading, colours=colours, lazily=scorer is None)
    else:
        # A scorer is tried on some pixels before the work, and some refiners measure the scene.
        lazily = scorer is None and not measures(chosen)
        sources = (_open(scene, reading, colours=colours, lazily=lazily),)
    source = sources[0]
    if isinstance(source, Scene):  # of a lazy array no pixel is read yet
        chosen = with_measures(chosen, source)
    pixels = _with_scores(source, scorer, reading)
    segmenter = probed(segmenter_of(model, classes, chosen, device, scorer), pixels)
    made = mapped(
        sources, pixels, segmenter, reading, tile, probabilities=probabilities, stack=stack,
        origin=_origin(scene),
    )  # fmt: skip
    if isinstance(scene, xr.DataArray | xr.Dataset):
        made = made.assign_coords(_dates(scene, stack))
    return made


def mapped(
    sources: tuple[Scene, ...] | ArrayScenes,
    pixels: PixelSource | ArrayScene,
    segmenter: Segmenter,
    reading: Reading,
    tile: int | None,
    *,
    probabilities: bool = False,
    stack: Any = None,
    origin: str | None = None,
) -> xr.Dataset:
    """Lay the lazy map of opened scenes out, whatever makes labels of their pixels."""
    if segmenter.options.regions_given:
        raise OptionError(
            "regions of a file are decided over a whole map, and a lazy one has no whole; map to "
            "files (geoseg.segment_to_files, Store.to_files), or take superpixels"
        )
    source = sources[0]
    area = open_area(reading, source.grid)
    region = area.window if area is not None else None
    plan = segmenter.plan(source.grid.shape, tile, region)
    rasters = ["labels", "confidence", *(["probabilities"] if probabilities else [])]
    method = Method.of(segmenter)
    if isinstance(source, ArrayScene):
        maps = _maps_of_arrays(sources, segmenter, plan, area, rasters, method)
    else:
        maps = [_map_of_file(source, pixels, segmenter, plan, area, rasters, method, reading)]
    classes_ = method.vocabulary.label_classes
    about = _about(source, reading, method, origin)
    dtype = label_dtype(len(classes_))
    dims = [*([stack] if stack is not None else []), *_dims(source)]
    stacked = stack is not None

    def product(name: str, kind: np.dtype[Any], count: int | None = None) -> Any:
        return map_array(maps, name, kind, count, stacked=stacked)

    per_cent = np.dtype(np.uint8)
    data: dict[str, Any] = {
        "labels": (dims, product("labels", dtype), flags_of(classes_, dtype) | about),
        "confidence": (
            dims,
            product("confidence", per_cent),
            {"long_name": "probability of the class", "units": "%"} | about,
        ),
    }
    grid = source.grid.crop(plan.region)
    coords = _coordinates(source, plan.region)
    if probabilities:
        shares = product("probabilities", per_cent, len(classes_))
        data["probabilities"] = (
            [*dims[: int(stacked)], "class", *dims[int(stacked) :]],
            shares,
            {"long_name": "probability of each class", "units": "%"} | about,
        )
        coords["class"] = [item.name for item in classes_]
    result = xr.Dataset(data, coords=coords, attrs=about)
    result["labels"].encoding[MARK] = version("geoseg")
    return _placed(result, grid, _turned(source), dims[-2:], label_nodata(dtype))


def measure_stretch(
    scene: str | Path | xr.DataArray | xr.Dataset | Sequence[str | Path],
    *,
    stretch: str = "auto",
    reading: Reading | Mapping[str, Any] | None = None,
) -> Limits:
    """Measure which values become black and white, to see several scenes alike.

    Give what comes back as ``Reading(stretch=…)``: a part is then mapped as the whole, and a date
    as the others.

    Parameters
    ----------
    scene
        As for `segment`: a path, several, an array, or a stack of dates.
    stretch
        How: ``auto`` (the whole range of 8-bit values, else 2 to 98 per cent) or percentiles as
        ``"1,99"``.
    reading
        Which bands, and what is no data.

    Returns
    -------
    tuple of (low, high)
        One pair a band, in the units of the scene's scale and offset.

    Raises
    ------
    GeosegError
        If the scene cannot be read, or an option cannot be.
    """
    how = replace(as_made(Reading, reading), stretch=stretch)
    if isinstance(scene, xr.DataArray | xr.Dataset):
        stack = time_of(scene)
        given = taken_by_arrays(how)
        one: Scene | ArrayScene
        if stack is None:
            one = ArrayScene.open(scene, **given)
        else:
            one = open_stack(scene, stack, **given)[0]
        units, dtype = one.units, one.array.dtype
    else:
        one = _open(scene, how, colours=True)
        units, dtype = one.source.units, np.dtype(one.dtype)
    full = ((0.0, float(np.iinfo(dtype).max)),) * len(one.bands) if one.stretch is None else ()
    limits = one.stretch or full
    return tuple(
        (low * scale + offset, high * scale + offset)
        for (low, high), (scale, offset) in zip(
            limits, units or ((1.0, 0.0),) * len(limits), strict=True
        )
    )


def _dims(source: Scene | ArrayScene) -> tuple[Any, Any]:
    return source.dims if isinstance(source, ArrayScene) else ("y", "x")


def _turned(source: Scene | ArrayScene) -> tuple[bool, bool]:
    return source.turned if isinstance(source, ArrayScene) else (False, False)


def _open_arrays(
    scene: xr.DataArray | xr.Dataset, stack: Any, reading: Reading, *, colours: bool, lazily: bool
) -> ArrayScenes:
    how: dict[str, Any] = {
        **taken_by_arrays(reading),
        "colours": colours,
        "lazily": lazily,  # a scorer is tried on some pixels before the work
    }
    if stack is not None:
        found = open_stack(scene, stack, **how)
    else:
        found = (ArrayScene.open(scene, **how),)
    remark = about_place(found[0].grid)
    if remark is not None:
        warn(f"the array: {remark}")
    return found


def _open(
    scene: str | Path | Sequence[str | Path],
    reading: Reading,
    *,
    colours: bool,
    lazily: bool = False,
) -> Scene:
    paths = [scene] if isinstance(scene, str | Path) else scene
    if not isinstance(paths, Sequence) or not all(isinstance(path, str | Path) for path in paths):
        raise SceneError(
            f"a scene is a path, several, an xarray.DataArray or an xarray.Dataset, not "
            f"{type(scene).__name__}; arrays of pixels alone go to Segmenter.predict"
        )
    one = isinstance(scene, str | Path)
    folder = Path() if one else passing_folder()  # one path needs none
    return open_input(scene, reading, folder, travels=True, colours=colours, lazily=lazily)


def _with_scores(
    source: Scene | ArrayScene, scorer: Any, reading: Reading
) -> SeenScene | ArrayScene:
    """Lay what a scorer needs beside a scene, or in its place."""
    if isinstance(source, Scene):
        return with_scores(source, scorer, reading)
    call = scorer.call if isinstance(scorer, Scorer) else scorer
    if is_score_raster(call):
        raise OptionError("a raster of scores goes with the path of a scene, not with an array")
    refuse_bands_of_array(scorer)
    return source


def _map_of_file(
    source: Scene,
    pixels: PixelSource,
    segmenter: Segmenter,
    plan: TilePlan,
    area: Aoi | None,
    rasters: Sequence[str],
    method: Method,
    reading: Reading,
) -> LazyMap:
    """Tasks read the file where they run."""
    facts = reading_facts(source, reading, area, quick=True) | method.facts()
    token = digest(facts | {"rule": str(source.stretch_rule)})
    later = looked_at_later(source, token) if source.pending else None
    return LazyMap(TileJob(pixels, segmenter, plan, area, rasters), token, measured=later)


def _maps_of_arrays(
    sources: Any,
    segmenter: Segmenter,
    plan: TilePlan,
    area: Aoi | None,
    rasters: Sequence[str],
    method: Method,
) -> list[LazyMap]:
    """An array in memory travels with the tasks; of one of dask's each gets the pixels it needs."""
    known = {"geoseg": version("geoseg"), "--aoi": area_digest(area)}
    known |= method.facts()
    tokens = [digest({**known, **one.facts(), "data": tokenize(one.array)}) for one in sources]
    later = measured_later(sources, digest(tokens)) if sources[0].pending else None
    job = TileJob(None, segmenter, plan, area, rasters)
    options = segmenter.options
    measured = bool(places_to_measure(options, sources[0].shape))

    def one_map(one: ArrayScene, token: str) -> LazyMap:
        if one.is_lazy:
            refine = refined_later(one, options, token, later) if measured else None
            return LazyMap(job, token, one, later, one.turned, refine)
        own = replace(job, scene=one)
        if measured:
            own = own.refined_by(with_measures(options, one).refine)
        return LazyMap(own, token, turned=one.turned)

    return [one_map(one, token) for one, token in zip(sources, tokens, strict=True)]


def _origin(scene: Any) -> str | None:
    """Where xarray read an array from, as long as nothing was made of it."""
    source = getattr(scene, "encoding", {}).get("source")
    return source if isinstance(source, str) else None


def _about(
    source: Scene | ArrayScene, reading: Reading, method: Method, origin: str | None
) -> dict[str, Any]:
    """What a map is made of, as attributes that every format keeps."""
    options = method.without_words(asdict(method.options))
    options.pop("sources")
    if isinstance(source, ArrayScene):
        path, bands, later = origin, source.names, source.pending
        rule = str(source.rule)
    else:
        path, bands = source.path, tuple(map(str, source.bands))
        later = source.awaits_stretch
        rule = str(source.stretch_rule)
    classes = [
        {"name": one.name, "prompts": one.prompts, "color": one.color}
        for one in method.vocabulary.classes
    ]
    about = {
        "version": version("geoseg"),
        "scene": path,
        "model": method.spec,
        "weights_sha256": method.model.get("weights_sha256"),
        "bands": ",".join(bands),
        "stretch": f"{rule}{' (measured when it is computed)' if later else ''}",
        "limits": None if source.stretch is None else json.dumps(source.stretch),
        "aoi": reading.aoi,
        "classes": json.dumps(classes, ensure_ascii=False),
        "options": json.dumps(options, ensure_ascii=False),
    }
    told = {f"geoseg_{key}": str(value) for key, value in about.items() if value is not None}
    return without_secrets(told)


def _coordinates(source: Scene | ArrayScene, region: Window) -> dict[str, Any]:
    """Pixel centres, where rows and columns follow the axes; a rotated grid has its transform.

    An array's own coordinates stay what they are to the last bit, so that xarray aligns the map
    with it.
    """
    y, x = _dims(source)
    rows, cols = region.slices()
    if isinstance(source, ArrayScene):
        rows, cols = (
            slice(size - part.stop, size - part.start) if turn else part
            for part, size, turn in zip((rows, cols), source.shape, source.turned, strict=True)
        )
        if source.axes is not None and len(source.axes) == 2:
            found = zip((y, x), ("y", "x"), (rows, cols), strict=True)
            return {
                dim: xr.Variable(dim, axis.values[part], axis.attrs)
                for dim, own, part in found
                if (axis := source.axes[own]) is not None
            }
    grid = source.grid.crop(region)
    transform = grid.transform
    if transform.b or transform.d:
        return {}
    along = {
        x: transform.c + transform.a * (np.arange(grid.width) + 0.5),
        y: transform.f + transform.e * (np.arange(grid.height) + 0.5),
    }
    turned = dict(zip((y, x), _turned(source), strict=True))
    return {dim: values[::-1] if turned[dim] else values for dim, values in along.items()}


def _dates(scene: xr.DataArray | xr.Dataset, stack: Any) -> dict[Any, Any]:
    """When a scene was taken, and what else lies along the dates of a stack."""
    return {
        name: coord.variable
        for name, coord in scene.coords.items()
        if (coord.dims == (stack,) and (name == stack or coord.dtype.kind in "iufbMmUS"))
        or (not coord.dims and coord.dtype.kind == "M")
    }


def _placed(
    dataset: xr.Dataset, grid: Grid, turned: tuple[bool, bool], dims: Sequence[Any], nodata: int
) -> xr.Dataset:
    y, x = dims
    for dim, axis in ((y, "Y"), (x, "X")):
        if dim in dataset.coords:
            dataset.coords[dim].attrs.setdefault("axis", axis)
    dataset = dataset.rio.set_spatial_dims(x, y)
    if grid.crs is not None:
        dataset = dataset.rio.write_crs(grid.crs)
    dataset = dataset.rio.write_transform(_given_back(grid, turned))
    for name, variable in dataset.data_vars.items():
        variable.rio.write_nodata(nodata if name == "labels" else PER_CENT_NODATA, inplace=True)
    return dataset


def _given_back(grid: Grid, turned: tuple[bool, bool]) -> Any:
    """Transform of the pixels in the order in which they came."""
    t, (rows, cols) = grid.transform, turned
    if rows:
        t = t * t.translation(0, grid.height) * t.scale(1, -1)
    return t * t.translation(grid.width, 0) * t.scale(-1, 1) if cols else t
