"""Several label rasters as one: maps that were finished apart, on one pixel grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from affine import Affine

from geoseg.errors import SceneError
from geoseg.io.crs import crs_name, same_crs
from geoseg.io.grid import Grid
from geoseg.io.labels import LabelRaster
from geoseg.types import LabelArray, LabelClass, Window

_ALIGNED = 0.05
"""Fraction of a pixel by which a raster may lie off the first one's grid."""
_NODATA = 65535


@dataclass(frozen=True)
class JoinedLabels(LabelRaster):
    """Label rasters side by side; where they overlap, the later one with a label is on top.

    Made by :func:`join_labels`.
    """

    parts: tuple[tuple[LabelRaster, Window], ...] = ()
    """Each with its place on the common grid."""

    def known_empty(self, window: Window) -> bool:
        """Whether no pixel of a window has a label, as far as that is known without reading it."""
        return all(
            self.parts[index][0].known_empty(inside) for index, inside, _ in self.inside(window)
        )

    def counts(self) -> dict[int, int]:
        """Count the pixels of every class in all parts, also where they overlap."""
        total: dict[int, int] = {item.index: 0 for item in self.classes}
        for part, _ in self.parts:
            for value, count in part.counts().items():
                total[value] = total.get(value, 0) + count
        return dict(sorted(total.items()))

    def close(self) -> None:
        """Let go of what this thread's reading keeps in memory; the next read opens anew."""
        for part, _ in self.parts:
            part.close()

    def inside(self, window: Window) -> list[tuple[int, Window, Window]]:
        """Parts that reach into a window: number, pixels of the part, pixels of the window."""
        found = ((i, place, place.intersection(window)) for i, (_, place) in enumerate(self.parts))
        return [
            (index, common.relative_to(place), common.relative_to(window))
            for index, place, common in found
            if common is not None
        ]

    def _read(self, window: Window, shape: tuple[int, int]) -> LabelArray:
        assert shape == window.shape, "joined labels are read pixel by pixel"
        assert self.nodata is not None
        values: LabelArray = np.full(shape, self.nodata, self.dtype)
        for index, inside, target in self.inside(window):
            part, (rows, cols) = self.parts[index][0], target.slices()
            own = part.read(inside)
            labelled = np.ones(own.shape, np.bool_) if part.nodata is None else own != part.nodata
            values[rows, cols][labelled] = own[labelled]
        return values


def join_labels(rasters: Sequence[LabelRaster]) -> LabelRaster:
    """Show label rasters of one grid and the same classes as one.

    Raises
    ------
    SceneError
        If they do not lie on one grid or mean different classes; the message says in what.
    """
    if not rasters:
        raise SceneError("there is no label raster to join")
    first = rasters[0]
    if len(rasters) == 1:
        return first
    places = [_place(raster, first) for raster in rasters]
    top, left = min(place.row for place in places), min(place.col for place in places)
    height = max(place.row_stop for place in places) - top
    width = max(place.col_stop for place in places) - left
    common = {raster.nodata for raster in rasters}
    one = len(common) == 1 and None not in common
    small = one and all(raster.dtype == np.uint8 for raster in rasters)
    return JoinedLabels(
        path=f"{first.path} and {len(rasters) - 1} more",
        grid=Grid(
            first.grid.crs,
            first.grid.transform * Affine.translation(left, top),
            height,
            width,
        ),
        classes=_classes(rasters),
        nodata=first.nodata if one else _NODATA,
        dtype=np.dtype(np.uint8) if small else np.dtype(np.uint16),
        modified=max(raster.modified for raster in rasters),
        source_nodata=None,
        colours={k: v for raster in reversed(rasters) for k, v in raster.colours.items()},
        tags={
            name: text
            for name, text in first.tags.items()
            if all(raster.tags.get(name) == text for raster in rasters)
        },
        parts=tuple(
            (raster, Window(place.row - top, place.col - left, place.height, place.width))
            for raster, place in zip(rasters, places, strict=True)
        ),
    )


def _place(raster: LabelRaster, first: LabelRaster) -> Window:
    """Pixels of a raster, counted from the first one's corner."""
    grid, known = raster.grid, first.grid
    if not same_crs(grid.crs, known.crs):
        raise SceneError(
            f"{raster.path}: has CRS {crs_name(grid.crs)}, but {first.path} has "
            f"{crs_name(known.crs)}; label rasters are joined on one grid"
        )
    step = ~known.transform * grid.transform
    turned = max(abs(step.a - 1), abs(step.e - 1), abs(step.b), abs(step.d))
    off = max(abs(step.c - round(step.c)), abs(step.f - round(step.f)))
    if turned * max(grid.shape) > _ALIGNED or off > _ALIGNED or not math.isfinite(off):
        raise SceneError(
            f"{raster.path}: its pixels do not lie on the grid of {first.path}; map both on one "
            "grid, or join their polygons in a GIS"
        )
    return Window(round(step.f), round(step.c), grid.height, grid.width)


def _classes(rasters: Sequence[LabelRaster]) -> tuple[LabelClass, ...]:
    """All classes, if the rasters agree about them; what has no names agrees with everything."""
    found: dict[int, tuple[LabelClass, LabelRaster]] = {}
    for raster in rasters:
        for item in raster.classes:
            known, origin = found.setdefault(item.index, (item, raster))
            if known.name != item.name:
                raise SceneError(
                    f"{raster.path}: value {item.index} is '{item.name}', but '{known.name}' in "
                    f"{origin.path}; maps of different classes cannot be joined"
                )
    named = [raster for raster in rasters if not are_nameless(raster.classes)]
    for raster in named[1:]:
        one, other = ({c.index: c.name for c in r.classes} for r in (named[0], raster))
        if lacking := sorted(one.items() ^ other.items()):
            raise SceneError(
                f"{raster.path}: has not the classes of {named[0].path}, '{lacking[0][1]}' is in "
                "one alone; maps of different classes cannot be joined"
            )
    return tuple(found[index][0] for index in sorted(found))


def are_nameless(classes: Sequence[LabelClass]) -> bool:
    """Whether nobody has said what values mean, so that they are class 0, class 1, …"""
    return all(item.name == f"class {item.index}" for item in classes)
