"""Features of a scene for one's own analysis, and where it looks like something."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio.features
import rioxarray  # noqa: F401 - registers the .rio accessor
import shapely
import torch
import torch.nn.functional as F
import xarray
from affine import Affine
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from geoseg._fields import as_made
from geoseg.bars import shown
from geoseg.errors import OptionError, SceneError
from geoseg.inference.cosines import as_grid
from geoseg.inference.merge import blend_weight
from geoseg.inference.segmenter import Segmenter
from geoseg.io.array import ArrayScene, taken_by_arrays
from geoseg.io.objects import is_array
from geoseg.io.scene import Scene, open_scene
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.model.vision import padding_to_patch
from geoseg.options import Options, Reading
from geoseg.text.embedding import embed_queries
from geoseg.text.templates import load_templates
from geoseg.types import Window

_MOST_BYTES = 2**33
"""Of features that are held at once."""
_WORDS = "a; b"
"""A segmenter needs some, and features do not."""


def features(
    scene: str | Path | xarray.DataArray | xarray.Dataset,
    *,
    model: str | Model = DEFAULT_MODEL,
    upsample: bool = False,
    options: Options | Mapping[str, Any] | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | bool | None = None,
) -> xarray.DataArray:
    """Features of a scene in the model's joint space, where words have a direction too.

    Each window's patch features are unit vectors; they are averaged over all windows that cover a
    place, by the weights of ``blend``, and scaled to unit length again. They are held in memory.

    Parameters
    ----------
    scene
        As for `geoseg.segment`.
    model, options, reading, device
        As for `geoseg.segment`: attention, windows and upsampler are those of ``options``.
    upsample
        Features of pixels by the upsampler, in place of one for each patch.
    progress
        Called with windows done and windows in all; True shows a bar.

    Returns
    -------
    xarray.DataArray
        ``(feature, y, x)`` float32, unit vectors; NaN where there is no data. Its CRS and
        transform are those of the patches (or pixels), from north to south.

    Raises
    ------
    GeosegError
        As `geoseg.segment`, or if they would not fit into memory.
    """
    how = as_made(Reading, reading)
    if how.aoi is not None:
        raise OptionError(
            "features are of a whole scene; leave aoi out, and cut them: found.rio.clip_box(…)"
        )
    source: Scene | ArrayScene
    if is_array(scene):
        array: Any = scene
        source = ArrayScene.open(array, **taken_by_arrays(how))
    elif isinstance(scene, str | Path):
        source = open_scene(scene, how)
    else:
        raise SceneError(f"a scene is a path or an xarray array, not {type(scene).__name__}")
    loaded = load_model(model, device=device) if isinstance(model, str) else model
    plain = replace(as_made(Options, options), templates="none")
    segmenter = Segmenter(loaded, _WORDS, plain)
    if getattr(segmenter.options.method("attention"), "reads_words", False):
        raise OptionError(
            f"attention {segmenter.options.attention} labels windows by the words of a map, and "
            "features have none; take another, or write resclip:feedback=no"
        )
    encoder: Any = segmenter.encoder
    step = 1 if upsample else encoder.step
    height, width = (-(-side // step) for side in source.shape)
    size = 4 * height * width * loaded.embedding_size
    if size > _MOST_BYTES:
        raise OptionError(
            f"features of {height} x {width} places would take {size / 2**30:.0f} GiB; take a part "
            "of the scene, or leave upsample out"
        )
    total = np.zeros((height, width, loaded.embedding_size), np.float32)
    with shown(progress, "features", "window") as said:
        for window, found in _of_windows(source, segmenter, step, said, upsample=upsample):
            rows, cols = window.slices()
            total[rows, cols] += found
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(length > 0, total / length, np.nan).astype(np.float32)
    return _placed(unit.transpose(2, 0, 1), source, step, loaded)


def similarity(
    scene: str | Path | xarray.DataArray | xarray.Dataset,
    what: str | Sequence[float] | BaseGeometry | gpd.GeoDataFrame,
    *,
    model: str | Model = DEFAULT_MODEL,
    options: Options | Mapping[str, Any] | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | bool | None = None,
) -> xarray.DataArray:
    """Where a scene looks like some words, or like a place in it.

    Parameters
    ----------
    scene
        As for `features`, or what `features` gave, which is then used as it is.
    what
        Words; or a point or polygon in the scene's CRS (shapely, or x and y), or a GeoDataFrame in
        any, whose features, on average, are looked for.
    model, options, reading, device, progress
        As for `features`; templates are those of the options.

    Returns
    -------
    xarray.DataArray
        ``(y, x)`` float32 cosine, -1 to 1; NaN where there is no data.

    Raises
    ------
    OptionError
        If it is neither, or lies beside the scene.
    """
    loaded = load_model(model, device=device) if isinstance(model, str) else model
    if isinstance(scene, xarray.DataArray) and "feature" in scene.dims:
        found = scene
    else:
        found = features(scene, model=loaded, options=options, reading=reading, progress=progress)
    if isinstance(what, str):
        if not what.strip():
            raise OptionError(
                "similarity to nothing is not known; give words, a point or a polygon"
            )
        templates = load_templates(as_made(Options, options).templates)
        wanted = embed_queries(loaded, [what], templates)[0]
    else:
        wanted = _of_place(found, what)
    if len(wanted) != found.sizes["feature"]:
        raise OptionError(
            f"the features have {found.sizes['feature']} numbers and the model's {len(wanted)}; "
            "give the model that they were made with"
        )
    cosine: xarray.DataArray = xarray.dot(
        found, xarray.DataArray(wanted, dims="feature"), dim="feature"
    )
    cosine = cosine.assign_attrs(long_name=f"similarity to {what}", units="1")
    return cosine.rename("similarity").astype(np.float32)


def _of_windows(
    source: Scene | ArrayScene,
    segmenter: Segmenter,
    step: int,
    progress: Callable[[int, int], None] | None,
    *,
    upsample: bool,
) -> Iterator[tuple[Window, npt.NDArray[np.float32]]]:
    """Weighted features of every window, and at which places they lie."""
    height, width = source.shape
    encoder: Any = segmenter.encoder
    windows = segmenter.lattice(height, width).touching(source.grid.window)
    for done, window in enumerate(windows, start=1):
        if progress is not None:
            progress(done, len(windows))
        block = source.read(window)
        if not block.valid.any():
            continue
        image = encoder.normalise(block)[None]
        rows, cols = image.shape[2:]
        left, right, top, bottom = padding_to_patch(rows, cols, encoder.patch, 1)
        padded = F.pad(image, (left, right, top, bottom))
        with torch.no_grad():
            tokens = segmenter.encode(padded)
            unit = as_grid(F.normalize(tokens.patches.float(), dim=-1), tokens.grid)
            if upsample and segmenter._upsampler is not None:
                dense = segmenter._upsampler.operator(padded, tokens.grid)(unit)[0]
            else:
                dense = _pixels(unit, padded.shape[2:]) if upsample else unit[0].permute(1, 2, 0)
        weight = blend_weight(segmenter.options.blend, window.shape, encoder.device)
        weight = weight * torch.from_numpy(block.valid).to(weight)
        if upsample:
            dense = dense[top : top + rows, left : left + cols] * weight[..., None]
            yield window, dense.cpu().numpy()
            continue
        yield _at_places(dense, weight, window, step, (top, left), source.shape)


def _pixels(planes: Tensor, size: Sequence[int]) -> Tensor:
    wide = F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    return wide[0].permute(1, 2, 0)


def _at_places(
    dense: Tensor,
    weight: Tensor,
    window: Window,
    step: int,
    padding: tuple[int, int],
    shape: tuple[int, int],
) -> tuple[Window, npt.NDArray[np.float32]]:
    """Features of a window at the centres of the scene's patches, bilinear between its own."""
    first = [-(-(start - step // 2) // step) for start in (window.row, window.col)]
    last = [(stop - 1 - step // 2) // step for stop in (window.row_stop, window.col_stop)]
    first = [max(value, 0) for value in first]
    counts = [max(stop - start + 1, 0) for start, stop in zip(first, last, strict=True)]
    places = [-(-side // step) for side in shape]
    stops = zip((window.row_stop, window.col_stop), shape, strict=True)
    for axis, (stop, side) in enumerate(stops):
        if stop == side:  # a last patch that is cut off still has a place
            counts[axis] = places[axis] - first[axis]
    at = []
    for start, count, origin in zip(first, counts, (window.row, window.col), strict=True):
        at.append((np.arange(start, start + count) + 0.5) * step - origin)
    pixels = [
        np.clip(np.floor(a), 0, side - 1).astype(int)
        for a, side in zip(at, window.shape, strict=True)
    ]
    planes = dense.permute(2, 0, 1)[None]
    grids = [
        torch.from_numpy(2 * (a + pad) / (size * step) - 1).to(planes)
        for a, pad, size in zip(at, padding, dense.shape[:2], strict=True)
    ]
    y, x = torch.meshgrid(*grids, indexing="ij")
    sampled = F.grid_sample(
        planes, torch.stack([x, y], -1)[None], align_corners=False, padding_mode="border"
    )[0].permute(1, 2, 0)
    weighted = sampled * weight[pixels[0]][:, pixels[1]][..., None]
    return Window(first[0], first[1], counts[0], counts[1]), weighted.cpu().numpy()


def _placed(
    values: npt.NDArray[np.float32], source: Scene | ArrayScene, step: int, model: Model
) -> xarray.DataArray:
    t = source.grid.transform * Affine.scale(step)
    coords: dict[str, Any] = {}
    if not (t.b or t.d):
        coords["y"] = t.f + t.e * (np.arange(values.shape[1]) + 0.5)
        coords["x"] = t.c + t.a * (np.arange(values.shape[2]) + 0.5)
    made = xarray.DataArray(
        values,
        dims=("feature", "y", "x"),
        coords=coords,
        name="features",
        attrs={
            "long_name": "unit vectors in the model's joint space",
            "units": "1",
            "geoseg_model": model.spec,
            "geoseg_weights_sha256": model.weights_sha256,
            "geoseg_limits": json.dumps(source.stretch),
        },
    )
    if source.grid.crs is not None:
        made = made.rio.write_crs(source.grid.crs)
    placed: xarray.DataArray = made.rio.write_transform(t)
    return placed


def _of_place(found: xarray.DataArray, what: Any) -> npt.NDArray[np.float32]:
    """Mean direction of the features at a point or in a polygon."""
    if isinstance(what, gpd.GeoDataFrame | gpd.GeoSeries):
        what = what if what.crs is None else what.to_crs(found.rio.crs)
        what = what.geometry.union_all()
    if not isinstance(what, BaseGeometry):
        try:
            what = shapely.Point(*(float(value) for value in what))
        except (TypeError, ValueError):
            raise OptionError(
                f"similarity to a {type(what).__name__} is not known; give words, a point or a "
                "polygon"
            ) from None
    if what.is_empty:
        raise OptionError("the place is empty; give a point or a polygon in the scene's CRS")
    height, width = found.shape[1:]
    inside = rasterio.features.rasterize(
        [what],
        (height, width),
        transform=found.rio.transform(),
        all_touched=True,
        dtype="uint8",
    )
    some = found.values[:, inside.astype(bool)]
    some = some[:, np.isfinite(some).all(axis=0)]
    if not some.size:
        raise OptionError("the place lies where the scene has no data; give it in the scene's CRS")
    mean = some.mean(axis=1)
    direction: npt.NDArray[np.float32] = mean / np.linalg.norm(mean)
    return direction
