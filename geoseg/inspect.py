"""What geoseg sees in a scene, and what a run over it would cost."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from geoseg._address import shown_address
from geoseg.errors import WeightsError
from geoseg.inference.callables import name_of
from geoseg.inference.fusion import has_planes, segmenter_of
from geoseg.inference.network import Network
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.views import Plain
from geoseg.io.crs import crs_name
from geoseg.io.scene import Scene
from geoseg.io.scores import with_scores
from geoseg.model.loading import load_model, resolve_device
from geoseg.model.spec import DEFAULT_MODEL
from geoseg.options import Options, Reading, Scorer
from geoseg.options.scorer import LEFT_OUT, is_beside_words
from geoseg.options.segmentation import WORDS_ONLY
from geoseg.run.scenes import SceneSource, open_area, open_input
from geoseg.text.vocabulary import Vocabulary, VocabularySource
from geoseg.tiling.lattice import Lattice
from geoseg.tiling.tiles import TilePlan, wide_tile
from geoseg.types import Window

_PRODUCT_SECONDS, _PRODUCT_SECONDS_A_PIXEL = 0.6, 0.6e-6
"""Of rasters, polygons and preview: opening and closing files, and each pixel, roughly."""
_TIMED_SECONDS = 4.0
"""For which batches are timed: three at least. Other work slows some of them, and never speeds one
up, so that the quarter that went best says most of what a longer run takes."""
_BASE_BYTES = 900e6
"""Interpreter, torch and GDAL, before any tile."""
_TILES_IN_FLIGHT = 3
_BYTES_PER_TILE_PIXEL = 1 + 2
"""Valid mask, labels and confidence; float planes come to it."""
_COLOURS = 3
_QUERIES = 20
"""A guess at their number, as long as nobody has said which."""


def inspect_scene(
    scene: SceneSource,
    *,
    model: str = DEFAULT_MODEL,
    scorer: Any = None,
    options: Options | None = None,
    reading: Reading | None = None,
    tile: int | None = None,
    device: str = "auto",
    begun: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Describe a scene and the run that `segment_to_files` would make of it.

    Parameters
    ----------
    scene, model, scorer, options, reading, tile, device
        As for `segment_to_files`. A scorer is asked for one window, which says how many classes it
        has; no model of words is loaded but beside one with a weight.
    begun
        What `time.perf_counter` said when the process began, whose start is then counted; None for
        now.

    Returns
    -------
    dict
        Sections ``scene`` and ``run``; JSON-able values, None for what is not known.

    Raises
    ------
    SceneError, OptionError, ModelError
        As `segment_to_files`; weights that are not on this machine only leave the time out.
    """
    begun = time.perf_counter() if begun is None else begun
    reading, options = reading or Reading(), options or Options()
    scorer = scorer if scorer is None or isinstance(scorer, Scorer) else Scorer(scorer)
    with_words = scorer is None or is_beside_words(scorer)
    planes, queries = _COLOURS, _QUERIES
    with TemporaryDirectory(prefix="geoseg-") as folder:
        opened = open_input(scene, reading, Path(folder), colours=with_words)
        if scorer is None:
            segmenter, weights = _segmenter(model, options, device)
        else:
            pixels = with_scores(opened, scorer, reading)
            classes, queries = _classes(scorer, pixels, options, device)
            if with_words:
                segmenter, weights = _segmenter(model, options, device, classes, scorer)
            else:
                segmenter = segmenter_of(model, classes, options, device, scorer)
            if segmenter is not None:
                pixel = segmenter.encoder.normalise(pixels.read(Window(0, 0, 1, 1)))
                planes = len(pixel)
    start = time.perf_counter() - begun
    resolved = segmenter.options if segmenter else options.resolve({})
    lattice = Lattice(*opened.shape, resolved.window, resolved.stride)
    area = open_area(reading, opened.grid)
    region = None if area is None else area.window
    plan = (
        segmenter.plan(opened.shape, tile, region)
        if segmenter
        else TilePlan(
            lattice, wide_tile(lattice, queries, region) if tile is None else tile, region
        )
    )
    told = resolved.sources
    if not with_words:
        told = {name: source for name, source in told.items() if name not in WORDS_ONLY}
    run = {
        **({"model": model, "weights": weights} if with_words else {}),
        **({} if scorer is None else {"scorer": name_of(scorer.call)}),
        "device": str(segmenter.device) if segmenter else None,
        "window": resolved.window,
        "stride": resolved.stride,
        "windows": plan.window_runs,
        "windows_of_lattice": plan.windows,
        "ratio": round(plan.window_runs / plan.windows, 4) if plan.windows else None,
        "tile": list(plan.core(0).shape),
        "tiles": len(plan),
        "memory_gb": round(_memory(plan, planes, queries) / 1e9, 2),
        **_seconds(segmenter, plan, start, planes),
        "option_sources": ", ".join(f"{k}: {v}" for k, v in told.items()),
    }
    given = [opened.path] if isinstance(scene, str | Path | Scene) else scene
    path = ", ".join(shown_address(str(part)) for part in given)
    return {"scene": {"path": path} | _scene_facts(opened), "run": run}


def _scene_facts(scene: Scene) -> dict[str, Any]:
    grid = scene.grid
    return {
        "size": f"{grid.width} x {grid.height} pixels",
        "bands": list(scene.bands),
        "bands_told_by": scene.source.told_by,
        **({"assets": list(scene.source.assets)} if scene.source.assets else {}),
        "dtype": scene.dtype,
        "nodata": list(scene.source.fill)
        or [scene.source.nodata[band - 1] for band in scene.bands],
        "mask": None
        if scene.source.left_out is None
        else shown_address(scene.source.left_out.path),
        "crs": None if grid.crs is None else crs_name(grid.crs),
        "gsd_m": grid.gsd_m,
        "transform": list(grid.transform)[:6],
        "stretch": str(scene.stretch_rule),
        "limits": None if scene.stretch is None else [list(pair) for pair in scene.stretch],
        "scale_offset": [list(pair) for pair in scene.source.units] or None,
        "limits_in_units": scene.limits_in_units and [list(pair) for pair in scene.limits_in_units],
    }


def _classes(scorer: Scorer, pixels: Any, options: Options, device: str) -> tuple[Vocabulary, int]:
    """Names for the classes of a scorer, which nobody has to know here, and how many scores."""
    side = options.resolve({}).window
    network = Network(scorer, None, resolve_device(device), side, Plain().views())
    count = network.count(pixels, slice(_COLOURS if has_planes(scorer) else 0, None))
    names = network.names or tuple(f"class {number + 1}" for number in range(count))
    shown = [name for name in names if name != LEFT_OUT]
    if len(shown) == 1:  # of one class there is no map
        shown = ["none of it", *shown]
    return Vocabulary.parse(";".join(shown)), count


def _segmenter(
    model: str,
    options: Options,
    device: str,
    classes: VocabularySource = "one; two",
    scorer: Scorer | None = None,
) -> tuple[Segmenter | None, str]:
    """Build a segmenter to time, if the weights can be had without a download."""
    try:
        loaded = load_model(model, device=device, download=False)
    except WeightsError as error:
        return None, f"not on this machine ({str(error).split(';')[0]})"
    return segmenter_of(loaded, classes, options, device, scorer), str(loaded.weights)


def _memory(plan: TilePlan, planes: int, queries: int) -> float:
    tile = plan[0].read
    merging = plan.lattice.window_shape[0] * tile.width * 4 * queries  # open logits
    held = planes * 4 + _BYTES_PER_TILE_PIXEL
    return _BASE_BYTES + _TILES_IN_FLIGHT * tile.area * held + merging


def _seconds(
    segmenter: Segmenter | None, plan: TilePlan, start: float, planes: int
) -> dict[str, Any]:
    """How long a run takes: until its model is ready, over the windows, for the products."""
    names = ("start_seconds", "inference_seconds", "products_seconds", "total_seconds")
    if segmenter is None:
        return dict.fromkeys((*names, "total_seconds_range"))
    batch = min(segmenter.batch_size, plan.window_runs)
    windows = torch.zeros(batch, planes, *plan.lattice.window_shape, device=segmenter.device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < _TIMED_SECONDS:
        clock = time.perf_counter()
        segmenter.window_logits(windows).sum().item()
        times.append(time.perf_counter() - clock)
    times = sorted(times[1:])  # the first one warms up
    runs = plan.window_runs / batch
    products = _PRODUCT_SECONDS + _PRODUCT_SECONDS_A_PIXEL * plan.region.area
    usual = (start, times[len(times) // 4] * runs, products)
    total = (
        sum(usual),
        start + times[0] * runs + products / 2,
        1.25 * start + 1.25 * times[-1] * runs + 2 * products,
    )
    rounded = [float(f"{value:.3g}") for value in (*usual, *total)]
    return dict(zip(names, rounded, strict=False)) | {"total_seconds_range": rounded[4:]}
