"""A map of labels that can be moved, as one HTML page: pictures in it, no tile server."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyproj
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import calculate_default_transform, reproject

from geoseg._html import swatch
from geoseg._optional import require
from geoseg.errors import OptionError, SceneError
from geoseg.io.array import ArrayScene
from geoseg.io.grid import Grid
from geoseg.io.objects import is_array
from geoseg.io.scene import Scene
from geoseg.types import LabelClass, UInt8Array

_SHOWN = 2048
"""Pixels of the longer side of a picture."""
_MERCATOR = CRS.from_epsg(3857)
_BOX = (
    "position:absolute;z-index:1000;background:#fffd;padding:8px 10px;border-radius:4px;"
    "box-shadow:0 1px 4px #0005;font:13px sans-serif;color:#222"
)


def explore(
    labels: ArrayScene,
    classes: Sequence[LabelClass],
    scene: Any = None,
    *,
    polygons: gpd.GeoDataFrame | None = None,
    opacity: float = 0.7,
    tiles: str | None = "OpenStreetMap",
) -> Any:
    """Show labels on a map of folium's.

    Parameters
    ----------
    labels
        One plane of values, as they are.
    classes
        What they stand for.
    scene
        Path or array of a scene that is shown below them.
    polygons
        Shown above them, in their ``color`` where they have one.
    opacity
        Of the labels, 0 to 1.
    tiles
        Background map; None for none.

    Returns
    -------
    folium.Map
        With a legend, a switch of layers and a slider for the labels' opacity.

    Raises
    ------
    MissingExtraError
        If folium is not installed.
    SceneError
        If there is no place on the Earth.
    OptionError
        If polygons have no CRS.
    """
    require("folium", extra="explore", feature="A map that can be moved")
    import folium

    step = max(1, math.ceil(max(labels.shape) / _SHOWN))
    values = np.asarray(labels.array[0, ::step, ::step])
    picture = np.zeros((4, *values.shape), np.uint8)
    for item in classes:
        picture[:, values == item.index] = np.array([*item.rgb, 255])[:, None]
    below = None if scene is None else _colours(scene)
    shown = folium.Map(tiles=tiles, control_scale=True)
    if below is not None:
        _overlay(folium, *below, name="scene", opacity=1.0).add_to(shown)
    coarse = _coarser(labels.grid, values.shape, step)
    layer = _overlay(folium, picture, coarse, name="labels", opacity=opacity)
    layer.add_to(shown)
    if polygons is not None and len(polygons):
        _outlines(folium, polygons).add_to(shown)
    folium.LayerControl(collapsed=False).add_to(shown)
    shown.fit_bounds(layer.bounds)
    page: Any = shown.get_root()
    page.html.add_child(folium.Element(_legend(classes)))
    page.html.add_child(folium.Element(_slider(opacity)))
    page.script.add_child(
        folium.Element(
            "document.getElementById('geoseg-opacity').addEventListener('input', "
            f"function (e) {{ {layer.get_name()}.setOpacity(e.target.value / 100); }});"
        )
    )
    return shown


def _outlines(folium: Any, polygons: gpd.GeoDataFrame) -> Any:
    """Polygons as a layer, which say what they are where the mouse is."""
    if getattr(polygons, "crs", None) is None:
        raise OptionError("polygons are a GeoDataFrame with a CRS; give such a one")
    flat = polygons.to_crs(4326)
    told = [name for name in flat.columns if name not in (flat.geometry.name, "color", "class_id")]

    def style(feature: Any) -> dict[str, Any]:
        colour = feature["properties"].get("color") or "#222222"
        return {"color": colour, "fillColor": colour, "weight": 2, "fillOpacity": 0.1}

    return folium.GeoJson(
        flat.to_json(),
        name="polygons",
        style_function=style,
        tooltip=folium.GeoJsonTooltip(told) if told else None,
    )


def _legend(classes: Sequence[LabelClass]) -> str:
    rows = "".join(f"<div>{swatch(c.color)} {escape(c.name)}</div>" for c in classes)
    place = "right:12px;bottom:28px;max-height:60vh;overflow:auto"
    return f'<div id="geoseg-legend" style="{_BOX};{place}">{rows}</div>'


def _slider(opacity: float) -> str:
    return (
        f'<div style="{_BOX};left:12px;bottom:68px">labels '
        '<input id="geoseg-opacity" type="range" min="0" max="100" '
        f'value="{round(100 * opacity)}"></div>'
    )


def _colours(scene: Any) -> tuple[UInt8Array, Grid]:
    """Picture ``(4, h, w)`` of a scene, and its grid."""
    opened = ArrayScene.open(scene) if is_array(scene) else Scene.open(scene)
    block = opened.thumbnail(_SHOWN)
    rgb = np.round(255 * block.rgb).astype(np.uint8)
    alpha = np.where(block.valid, 255, 0).astype(np.uint8)
    factor = max(opened.shape) / max(block.valid.shape)
    step = max(1, math.ceil(factor - 1e-9))
    return np.concatenate([rgb, alpha[None]]), _coarser(opened.grid, block.valid.shape, step)


def _coarser(grid: Grid, shape: tuple[int, ...], step: int) -> Grid:
    """Grid of every n-th pixel."""
    t = grid.transform
    return Grid(grid.crs, t * t.scale(step), shape[0], shape[1])


def _overlay(
    folium: Any, picture: npt.NDArray[np.uint8], grid: Grid, *, name: str, opacity: float
) -> Any:
    """A picture in web mercator, as a layer."""
    if grid.crs is None or grid.without_degrees is not None:
        why = grid.without_degrees or "it has no CRS"
        raise SceneError(f"the {name} cannot be shown on a map of the Earth: {why}")
    bounds = grid.to_ground(0, grid.height) + grid.to_ground(grid.width, 0)
    transform, width, height = calculate_default_transform(
        grid.crs, _MERCATOR, grid.width, grid.height, *bounds
    )
    flat = np.zeros((4, height, width), np.uint8)
    reproject(
        picture,
        flat,
        src_transform=grid.transform,
        src_crs=grid.crs,
        dst_transform=transform,
        dst_crs=_MERCATOR,
        resampling=Resampling.nearest,
    )
    file = io.BytesIO()
    Image.fromarray(flat.transpose(1, 2, 0)).save(file, "PNG")
    to_degrees = pyproj.Transformer.from_crs(3857, 4326, always_xy=True)
    west, north = to_degrees.transform(transform.c, transform.f)
    east, south = to_degrees.transform(
        transform.c + transform.a * width, transform.f + transform.e * height
    )
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    made = folium.raster_layers.ImageOverlay(
        address, bounds=[[south, west], [north, east]], name=name, opacity=opacity
    )
    made.bounds = [[south, west], [north, east]]
    return made
