"""Where a person's look at a map is worth most."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2
from scipy.spatial import KDTree

from geoseg._files import plain_path, whole_file, writing_to
from geoseg.ask import Store
from geoseg.correction import mapped_by
from geoseg.errors import OptionError, OutputError, SceneError, warn
from geoseg.inference.lane import TileResult
from geoseg.io.grid import Grid
from geoseg.run.result import Progress, ProgressCallback
from geoseg.run.scenes import open_area
from geoseg.run.tiles import TileJob, run_tiles
from geoseg.runtime.gdal import bounded_cache
from geoseg.store.pool import directions_at
from geoseg.tiling.tiles import TilePlan
from geoseg.types import label_nodata

FORMATS = (".gpkg", ".geojson")
"""Ends of files that suggested places are written to."""
_RASTERS = ("labels", "confidence", "margin", "runner_up")
_SIDE = 1024
_CHOICE = 3
"""Places with the lowest margins to choose from, for each that is wanted."""
_CLUSTERS = 8
_MOST = 10_000


def suggest(
    store: Store,
    map: str | Path,  # noqa: A002
    n: int = 20,
    *,
    distance: float | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> gpd.GeoDataFrame:
    """Find the places of a map at which a person should look.

    Where two classes score nearly the same over a whole patch, the map is a guess. The places with
    the lowest margins are taken, no two of them near each other, in turns from clusters of what
    the scene looks like there, so that each look teaches something new. The same map gives the
    same places.

    Parameters
    ----------
    store
        Of the scene.
    map
        Folder of a map of it, with its ``run.json``.
    n
        How many places.
    distance
        The least between two places, in pixels of the working grid; by default half of what lay
        between them if they stood evenly over the map.
    out
        File to write as well, ``.gpkg`` or ``.geojson``: for a GIS, where a person fills the
        column ``class``, and then for `geoseg.correct`.
    overwrite
        Replace ``out``.
    progress
        Called after every tile.

    Returns
    -------
    geopandas.GeoDataFrame
        Points in the scene's CRS, those that are worth most first: ``class``, empty; ``label``,
        the map's, and ``second``, the class next to it; ``margin`` between the two and
        ``confidence`` in per cent; ``cluster``, a number that places of like looks share.
        ``attrs["distance"]`` is the least between two.

    Raises
    ------
    GeosegError
        If the map is not one of the store's scene, or nothing in it can be told.

    Warns
    -----
    GeosegWarning
        Where there is no room for so many places.
    """
    if not 1 <= n <= _MOST:
        raise OptionError(f"n is {n}; give 1 to {_MOST:,} places")
    if distance is not None and not distance >= 0:
        raise OptionError(f"distance is {distance}; give a number of pixels, 0 or more")
    target = None if out is None else _target(Path(out), overwrite=overwrite)
    with bounded_cache():
        found, grid, names = _candidates(store, Path(map), n, distance, progress)
        spaced = found.spaced(n * _CHOICE)
        clusters = _clusters(directions_at(store._file, spaced.pixels, grid), n)
    taken = _in_turns(clusters)[:n]
    if len(taken) < n:
        warn(
            f"there is room for {len(taken)} places that lie {found.distance:.4g} pixels apart, "
            f"and {n} are wanted; give a smaller distance"
        )
    points = spaced.points(taken, clusters, grid, names)
    points.attrs["distance"] = found.distance
    if target is not None:
        _write(points, target, overwrite=overwrite)
    return points


# -- candidates ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Places, one of each patch-wide square of the map."""

    pixels: npt.NDArray[np.int64]
    """``(n, 2)`` rows and columns."""
    around: npt.NDArray[np.float64]
    """Mean margin of the square."""
    values: npt.NDArray[np.int64]
    """``(n, 4)``: label, confidence, margin, second class of the pixel."""
    distance: float

    def spaced(self, most: int) -> _Candidates:
        """Those with the lowest margins, of which no two are near each other."""
        order = np.lexsort((self.pixels[:, 1], self.pixels[:, 0], self.around))
        tree, near = KDTree(self.pixels), np.zeros(len(order), bool)
        kept: list[int] = []
        for place in order:
            if near[place]:
                continue
            kept.append(int(place))
            if len(kept) == most:
                break
            reach = np.nextafter(self.distance, 0)
            near[tree.query_ball_point(self.pixels[place], reach)] = True
        return _Candidates(self.pixels[kept], self.around[kept], self.values[kept], self.distance)

    def points(
        self, taken: Sequence[int], clusters: Any, grid: Grid, names: Sequence[str]
    ) -> gpd.GeoDataFrame:
        """Some of them as a table."""
        rows, cols = (self.pixels[taken] + 0.5).T
        label, confidence, margin, second = self.values[taken].T
        table = {
            "class": np.full(len(taken), None, object),
            "label": [names[k] for k in label],
            "second": [names[k] for k in second],
            "margin": margin,
            "confidence": confidence,
            "cluster": np.asarray(clusters)[taken],
        }
        at = gpd.points_from_xy(*grid.drawn.to_ground(cols, rows))
        return gpd.GeoDataFrame(table, geometry=at, crs=grid.crs)


def _candidates(
    store: Store, folder: Path, n: int, distance: float | None, progress: ProgressCallback | None
) -> tuple[_Candidates, Grid, Sequence[str]]:
    """Ask the store for the map once more, with its margins."""
    asked = mapped_by(store, folder)
    source, reading = store._open(None, asked.aoi)
    segmenter = store._segmenter(asked.vocabulary, asked.fast, asked.options, None, "cpu")
    pixels = store._pixels(segmenter, source, reading)
    area = open_area(reading, source.grid)
    patch: int = store.facts["model"]["patch"]
    lattice = segmenter.lattice(*source.shape)
    region = None if area is None else area.window
    plan = TilePlan(lattice, max(_SIDE // patch, 1) * patch, region, alone=True)
    if distance is None:
        total = plan.region.area if area is None else area.outline.area
        distance = float(max(round((total / n) ** 0.5 / 2), 1))
    job = TileJob(pixels, segmenter, plan, area, _RASTERS)
    parts = []
    cores = [plan.core(index).area for index in range(len(plan))]
    done = 0
    with closing(run_tiles(job, range(len(plan)))) as results:
        for number, (index, found) in enumerate(results):
            if isinstance(found, TileResult):
                parts.append(_squares(found, patch))
            done += cores[index]
            if progress is not None:
                progress(Progress("suggest", number + 1, len(plan), done, sum(cores)))
    if not sum(len(part[0]) for part in parts):
        raise SceneError(f"{folder}: the map has no square of {patch} pixels with labels")
    at, around, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Candidates(at, around, values, distance), source.grid, asked.vocabulary.names


def _squares(
    found: TileResult, side: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Middles of a tile's squares that lie in the map, mean margins of these, and values there."""
    rasters = np.stack([np.asarray(getattr(found, name), np.int64) for name in _RASTERS])
    down, across = (length // side for length in found.core.shape)
    whole = rasters[:, : down * side, : across * side].reshape(4, down, side, across, side)
    known = (whole[0] != label_nodata(found.labels.dtype)).all((1, 3))
    middle = side // 2
    at = np.argwhere(known) * side + (found.core.row + middle, found.core.col + middle)
    return at, whole[2].mean((1, 3))[known], whole[:, :, middle, :, middle][:, known].T


# -- choosing ------------------------------------------------------------------------------------


def _clusters(vectors: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.int64]:
    """Number of the cluster of each place, those first whose places come first."""
    count = min(_CLUSTERS, n, len(np.unique(vectors, axis=0)))
    _, found = kmeans2(vectors, count, minit="++", seed=0)
    order: dict[int, int] = {}
    return np.array([order.setdefault(int(one), len(order)) for one in found], np.int64)


def _in_turns(clusters: npt.NDArray[np.int64]) -> list[int]:
    """Places, which are in order, as clusters give one each in turn."""
    seen: dict[int, int] = {}
    turns = []
    for place, cluster in enumerate(clusters.tolist()):
        seen[cluster] = seen.get(cluster, 0) + 1
        turns.append((seen[cluster], place))
    return [place for _, place in sorted(turns)]


# -- the file ------------------------------------------------------------------------------------


def _target(out: Path, *, overwrite: bool) -> Path:
    """Refuse early what could not be written at the end."""
    if out.suffix.lower() not in FORMATS:
        raise OptionError(f"{out}: places can be written as {', '.join(FORMATS)}")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; replace it with --overwrite")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}")
    return out


def _write(points: gpd.GeoDataFrame, target: Path, *, overwrite: bool) -> None:
    with (
        writing_to(target),
        whole_file(target, replaces=overwrite) as part,
        plain_path(part) as path,
    ):
        points.astype({"class": "string"}).to_file(path, layer=target.stem)
