"""Does the map look right: scene beside labels, with legend and scale bar, as one PNG."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from geoseg._fields import as_made
from geoseg._files import local_target, refuse_source, whole_file, writing_to
from geoseg._fonts import Font, font_for, warn_of_boxes
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.io.crs import same_crs
from geoseg.io.grid import Grid
from geoseg.io.labels import LabelRaster
from geoseg.io.objects import is_array, on_disk, scene_on_disk
from geoseg.io.scene import Scene
from geoseg.io.write import PRODUCT_TAG
from geoseg.legend import open_labels
from geoseg.options import Reading
from geoseg.runtime.gdal import bounded_cache
from geoseg.text.vocabulary import VocabularySource
from geoseg.types import LabelArray, LabelClass, PixelBlock, Window

_PAPER, _INK, _SOFT_INK = (255, 255, 255), (33, 37, 41), (110, 117, 125)
_NODATA, _HATCH = (233, 234, 236), (205, 208, 212)
_MARGIN, _GAP = 32, 24
_PANEL_HEIGHT, _SMALLEST_PANEL = 1400, 720
_LEGEND_ENTRIES, _LEGEND_COLUMN, _LEGEND_ROW = 24, 300, 34
_TEXT, _TITLE, _SMALL = 20, 30, 17
_SIDE_BY_SIDE = 1.7
_COMPRESSION = 4
"""Of the PNG: five times as fast as the best one, and seven per cent larger."""


def preview(
    scene: str | Path | Any,
    labels: str | Path | Any,
    out: str | Path | None = None,
    *,
    classes: VocabularySource | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    title: str | None = None,
    opacity: float = 0.55,
    max_width: int = 2000,
    overwrite: bool = False,
) -> Image.Image | Path:
    """Draw the scene beside its map, with legend and scale bar.

    Parameters
    ----------
    scene, labels
        Paths, or arrays as for `geoseg.segment` and as it gives them.
    out
        PNG to write; without one the picture comes back, which a notebook shows.
    classes
        Names and colours of the values, in place of the labels' own.
    reading
        Bands, stretch and nodata of the scene.
    title, opacity, max_width, overwrite
        As for :func:`render_preview`.

    Returns
    -------
    PIL.Image.Image or Path
        The picture, or where it was written.

    Raises
    ------
    GeosegError
        As `preview_files`.
    """
    how = as_made(Reading, reading)
    with ExitStack() as stack:
        if is_array(scene):
            array: Any = scene
            scene, how = stack.enter_context(scene_on_disk(array, how))
        (raster,) = stack.enter_context(on_disk(labels))
        target = out or Path(stack.enter_context(TemporaryDirectory(prefix="geoseg-"))) / "p.png"
        preview_files(
            scene,
            raster,
            Path(target),
            classes=classes,
            bands=how.bands,
            stretch=how.stretch,
            nodata=how.fill,
            ignore_alpha=how.ignore_alpha,
            title=title,
            opacity=opacity,
            max_width=max_width,
            overwrite=overwrite,
        )
        if out is not None:
            return Path(out)
        with Image.open(target) as picture:
            picture.load()
            return picture


@bounded_cache()
def preview_files(
    scene: str | Path | Scene,
    labels_path: str | Path,
    out: Path,
    *,
    classes: VocabularySource | None = None,
    bands: Sequence[int | str] | None = None,
    stretch: str = "auto",
    nodata: Sequence[float] | None = None,
    ignore_alpha: bool = False,
    title: str | None = None,
    opacity: float = 0.55,
    max_width: int = 2000,
    overwrite: bool = False,
) -> None:
    """Draw a preview from a scene and a label raster that lies on it or on part of it.

    Parameters
    ----------
    scene, labels_path
        The two rasters; the labels may cover a window of the scene, or have other pixels. A scene
        that is open already keeps its bands and stretch.
    out
        PNG to write.
    classes
        Names and colours of the values, in place of the raster's own, see
        `geoseg.legend.open_labels`.
    bands, stretch, nodata, ignore_alpha
        As for :meth:`geoseg.io.scene.Scene.open`.
    title, opacity, max_width, overwrite
        As for :func:`render_preview`.

    Raises
    ------
    OptionError
        If ``out`` has the name of another format.
    SceneError
        If a raster cannot be read, or the labels do not lie on the scene.
    OutputError
        If the PNG exists, is the scene, or cannot be written.
    """
    out = local_target(out)
    if out.suffix.lower() != ".png":
        raise OptionError(f"{out}: a preview is a PNG; give a name that ends in .png")
    refuse_source(out, [scene.path if isinstance(scene, Scene) else scene])
    labels = open_labels(labels_path, classes)
    if not isinstance(scene, Scene):
        scene = Scene.open(
            scene, bands=bands, stretch=stretch, nodata=nodata, ignore_alpha=ignore_alpha
        )
    window = _window_of(labels, scene)
    counts = labels.counts()
    total = sum(counts.values())
    render_preview(
        scene.thumbnail(max_width, window),
        labels.thumbnail(max_width),
        labels.classes,
        labels.grid,
        out,
        nodata=labels.nodata,
        shares={index: count / max(total, 1) for index, count in counts.items()},
        title=title,
        opacity=opacity,
        max_width=max_width,
        overwrite=overwrite,
    )


def render_preview(
    scene: PixelBlock,
    labels: LabelArray,
    classes: Sequence[LabelClass],
    grid: Grid,
    out: Path,
    *,
    nodata: int | None = None,
    shares: Mapping[int, float] | None = None,
    title: str | None = None,
    opacity: float = 0.55,
    max_width: int = 2000,
    overwrite: bool = False,
) -> None:
    """Draw scene and labels side by side (wide ones above each other) and write a PNG.

    Parameters
    ----------
    scene
        The scene, decimated at will.
    labels
        ``(h, w)`` class indices over the same ground; its size may differ from the scene's.
    classes
        Colours and names for the legend.
    grid
        Grid of the ground shown, at full resolution: for scale bar, north arrow and proportions.
    out
        PNG to write; it appears when complete.
    nodata
        Label value that is no class; by default the type's largest.
    shares
        Share of every class in the labelled pixels, 0 to 1; counted in ``labels`` if None.
    title
        Line above the panels.
    opacity
        Of the class colours, 0 to 1.
    max_width
        Width of the PNG in pixels, at most; at least 400.

    Raises
    ------
    OptionError
        If ``opacity`` or ``max_width`` is out of range.
    OutputError
        If ``out`` exists and ``overwrite`` is False, or it cannot be written.
    """
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity must lie between 0 and 1, not {opacity}")
    if max_width < 400:
        raise OptionError(f"a preview needs at least 400 pixels of width, not {max_width}")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; replace it with --overwrite")
    nodata = nodata if nodata is not None else int(np.iinfo(labels.dtype).max)
    layout = _lay_out(grid, labels.shape, max_width, has_title=title is not None)
    left = _draw_scene(scene, layout.panel)
    right = _overlay(left, labels, classes, nodata, opacity)
    if grid.pixel_size_m is not None:
        _draw_scale_bar(right, grid.pixel_size_m[0] * grid.width / layout.panel[0])
    if grid.placed:
        _draw_north(right, grid)
    shares = shares if shares is not None else _shares(labels, nodata)
    entries = _legend_entries(classes, shares)
    warn_of_boxes([title or "", *(entry.name for entry, _ in entries)], out.name)
    legend = _draw_legend(entries, len(classes), layout.width - 2 * _MARGIN)
    _save(_compose(layout, title, (left, right), legend), out)


# -- layout ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    width: int
    panel: tuple[int, int]
    """Width and height."""
    positions: tuple[tuple[int, int], tuple[int, int]]
    """Upper left corners of the two panels."""
    legend_top: int


def _lay_out(grid: Grid, shape: tuple[int, ...], max_width: int, *, has_title: bool) -> _Layout:
    size = grid.pixel_size_m or (1.0, 1.0)
    stretch = min(max(size[0] / size[1], 0.25), 4.0)
    aspect = min(max(grid.width * stretch / grid.height, 1 / 12), 12.0)
    stacked = aspect > _SIDE_BY_SIDE
    room = max_width - 2 * _MARGIN if stacked else (max_width - 2 * _MARGIN - _GAP) // 2
    natural = max(shape[1] * max(stretch, 1.0), _SMALLEST_PANEL)
    width = min(room, round(natural), round(_PANEL_HEIGHT * aspect))
    width = max(width, min(room, 24))
    panel = width, max(24, round(width / aspect))
    top = _MARGIN + (_TITLE + 24 if has_title else 0)
    second = (0, panel[1] + _GAP) if stacked else (panel[0] + _GAP, 0)
    used = max(_SMALLEST_PANEL, second[0] + panel[0])
    # A narrow strip stands in the middle of what the legend needs.
    start = _MARGIN + (used - second[0] - panel[0]) // 2
    return _Layout(
        width=used + 2 * _MARGIN,
        panel=panel,
        positions=((start, top), (start + second[0], top + second[1])),
        legend_top=top + second[1] + panel[1] + _GAP,
    )


def _compose(
    layout: _Layout, title: str | None, panels: tuple[Image.Image, Image.Image], legend: Image.Image
) -> Image.Image:
    page = Image.new("RGB", (layout.width, layout.legend_top + legend.height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    if title is not None:
        font = font_for(title, _TITLE)
        text = _shorten(title, font, layout.width - 2 * _MARGIN)
        draw.text((_MARGIN, _MARGIN), text, _INK, font)
    for panel, (x, y) in zip(panels, layout.positions, strict=True):
        page.paste(panel, (x, y))
        frame = (x - 1, y - 1, x + panel.width, y + panel.height)
        draw.rectangle(frame, outline=_HATCH, width=1)
    page.paste(legend, (_MARGIN, layout.legend_top))
    return page


# -- panels ---------------------------------------------------------------------------------------


def _draw_scene(scene: PixelBlock, size: tuple[int, int]) -> Image.Image:
    pixels = np.rint(scene.rgb.transpose(1, 2, 0) * 255).astype(np.uint8)
    enlarged = size[0] > 2 * pixels.shape[1]
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return _where(_nearest(scene.valid, size), Image.fromarray(pixels).resize(size, how))


def _overlay(
    image: Image.Image,
    labels: LabelArray,
    classes: Sequence[LabelClass],
    nodata: int,
    opacity: float,
) -> Image.Image:
    """Lay class colours over the scene in grey, so that they look as in the legend."""
    big = _nearest(labels, image.size)
    table = np.full((int(np.iinfo(labels.dtype).max) + 1, 3), 128, np.uint8)
    for entry in classes:
        table[entry.index] = entry.rgb
    # Lifted shadows, or a dark scene would make all classes look the same.
    grey = 72 + 0.7 * np.asarray(image.convert("L"), np.float32)[..., None]
    mixed = (1 - opacity) * grey + opacity * table[big].astype(np.float32)
    border = _borders(big)
    mixed[border] *= 0.72
    drawn = Image.fromarray(np.rint(mixed).astype(np.uint8))
    return _where(big != nodata, drawn)


def _nearest(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    rows = (np.arange(size[1]) + 0.5) * values.shape[0] / size[1]
    cols = (np.arange(size[0]) + 0.5) * values.shape[1] / size[0]
    return values[np.ix_(rows.astype(np.intp), cols.astype(np.intp))]


def _borders(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another label."""
    border = np.zeros(labels.shape, np.bool_)
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    border[:-1] |= labels[:-1] != labels[1:]
    return border


def _where(known: npt.NDArray[np.bool_], image: Image.Image) -> Image.Image:
    """Return an image with grey diagonal stripes where nothing is known."""
    if known.all():
        return image.copy()
    rows, cols = np.nonzero(~known)
    pixels = np.array(image)
    pixels[rows, cols] = np.where(((rows + cols) % 12 < 3)[:, None], _HATCH, _NODATA)
    return Image.fromarray(pixels)


def _draw_scale_bar(panel: Image.Image, metres_per_pixel: float) -> None:
    room = panel.width * 0.3 * metres_per_pixel
    length = _round_length(room)
    pixels = round(length / metres_per_pixel)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    font = font_for("", _SMALL)
    wide, high = _text_size(text, font)
    box_width, box_height = max(pixels, wide) + 20, high + 30
    if box_width > panel.width or box_height > panel.height:
        return
    x, y = 12, panel.height - 12 - box_height
    draw = _label_box(panel, (x, y, x + box_width, y + box_height))
    draw.text((x + box_width / 2, y + 6), text, _INK, font, anchor="ma")
    start, base = x + (box_width - pixels) // 2, y + box_height - 8
    draw.line((start, base, start + pixels, base), _INK, 3)
    for end in (start, start + pixels):
        draw.line((end, base - 6, end, base + 1), _INK, 2)


def _round_length(room: float) -> float:
    """Largest of 1, 2, 5 times a power of ten that fits."""
    power = 10.0 ** math.floor(math.log10(room))
    return float(max(step for step in (1, 2, 5) if step * power <= room * (1 + 1e-9)) * power)


def _draw_north(panel: Image.Image, grid: Grid) -> None:
    """Arrow towards growing northing; images may be rotated or stored upside down."""
    inverse = ~grid.transform
    east, north = inverse.b * panel.width / grid.width, inverse.e * panel.height / grid.height
    length = math.hypot(east, north)
    box = (panel.width - 64, 12, panel.width - 12, 64)
    if panel.width < 160 or panel.height < 160 or not length > 0:
        return
    draw = _label_box(panel, box)
    cx, cy, dx, dy = panel.width - 38, 38, east / length, north / length
    tip, tail = (cx + 20 * dx, cy + 20 * dy), (cx - 6 * dx, cy - 6 * dy)
    wings = [(cx - 12 * dx + s * 8 * dy, cy - 12 * dy - s * 8 * dx) for s in (1, -1)]
    draw.polygon([tip, wings[0], tail, wings[1]], fill=_INK)
    font = font_for("", 13)
    draw.text((cx - 18 * dx, cy - 18 * dy), "N", _INK, font, anchor="mm")


def _label_box(panel: Image.Image, box: tuple[int, int, int, int]) -> ImageDraw.ImageDraw:
    """Lighten a rounded box of the panel, for text to stand on."""
    part = panel.crop(box)
    light = Image.blend(part, Image.new("RGB", part.size, _PAPER), 0.82)
    mask = Image.new("L", part.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 8, 255)
    panel.paste(light, box[:2], mask)
    return ImageDraw.Draw(panel)


# -- legend ---------------------------------------------------------------------------------------


def _shares(labels: LabelArray, nodata: int) -> dict[int, float]:
    values, counts = np.unique(labels[labels != nodata], return_counts=True)
    total = max(int(counts.sum()), 1)
    return {int(v): int(n) / total for v, n in zip(values, counts, strict=True)}


def _legend_entries(
    classes: Sequence[LabelClass], shares: Mapping[int, float]
) -> list[tuple[LabelClass, float]]:
    """Classes with their share, in order; with many classes only the commonest ones."""
    entries = [(entry, shares.get(entry.index, 0.0)) for entry in classes]
    if len(entries) > _LEGEND_ENTRIES:
        entries = sorted(entries, key=lambda pair: -pair[1])[:_LEGEND_ENTRIES]
    return entries


def _draw_legend(
    entries: Sequence[tuple[LabelClass, float]], total: int, width: int
) -> Image.Image:
    columns = max(1, min(len(entries), width // _LEGEND_COLUMN))
    rows = math.ceil(len(entries) / columns) if entries else 0
    pitch = min(width // columns, _LEGEND_COLUMN + 60)
    hidden = total - len(entries)
    legend = Image.new("RGB", (width, _LEGEND_ROW * (rows + (hidden > 0))), _PAPER)
    draw = ImageDraw.Draw(legend)
    for i, (entry, share) in enumerate(entries):
        x, y = i // rows * pitch, i % rows * _LEGEND_ROW
        _draw_entry(draw, (x, y), pitch - 28, entry, _per_cent(share))
    if hidden > 0:
        draw.text(
            (0, rows * _LEGEND_ROW + 6),
            f"and {hidden} more classes",
            _SOFT_INK,
            font_for("", _SMALL),
        )
    return legend


def _draw_entry(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    width: int,
    entry: LabelClass,
    share: str,
) -> None:
    x, y = corner
    font, plain = font_for(entry.name, _TEXT), font_for(share, _TEXT)
    ink = _SOFT_INK if share == "0 %" else _INK
    draw.rounded_rectangle((x, y + 4, x + 26, y + 26), 5, fill=entry.rgb, outline=_HATCH)
    number, _ = _text_size(share, plain)
    name = _shorten(entry.name, font, width - 36 - number - 16)
    draw.text((x + 36, y + 15), name, ink, font, anchor="lm")
    draw.text((x + width, y + 15), share, _SOFT_INK, plain, anchor="rm")


def _per_cent(share: float) -> str:
    if share == 0:
        return "0 %"
    if share < 0.001:
        return "< 0.1 %"
    return f"{share * 100:.1f} %"


# -- text and file --------------------------------------------------------------------------------


def _text_size(text: str, font: Font) -> tuple[int, int]:
    left, top, right, bottom = font.getbbox(text)
    return math.ceil(right - left), math.ceil(bottom - top)


def _shorten(text: str, font: Font, width: int) -> str:
    if _text_size(text, font)[0] <= width:
        return text
    while text and _text_size(text + "…", font)[0] > width:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def _save(page: Image.Image, out: Path) -> None:
    # The mark keeps a folder's old previews from being taken for scenes.
    mark = PngInfo()
    mark.add_text(PRODUCT_TAG, "preview")
    with writing_to(out), whole_file(out) as part:
        page.save(part, format="PNG", compress_level=_COMPRESSION, pnginfo=mark)


def _window_of(labels: LabelRaster, scene: Scene) -> Window:
    """Window of the scene that the labels cover."""
    grid = labels.grid
    # A part of an image without a place lies where GIS software draws it.
    place = scene.grid.drawn.to_pixels
    left, top = place(*grid.drawn.to_ground(0, 0))
    right, bottom = place(*grid.drawn.to_ground(grid.width, grid.height))
    # A working pixel at the edge may reach beyond the scene.
    reach_x, reach_y = abs(right - left) / grid.width + 1, abs(bottom - top) / grid.height + 1
    height, width = scene.shape
    fits = (
        -1 <= left < right <= width + reach_x
        and -1 <= top < bottom <= height + reach_y
        and same_crs(labels.grid.crs, scene.grid.crs)
    )
    if not fits:
        raise SceneError(f"{labels.path}: does not lie on the scene {scene.path}")
    row, col = max(0, round(top)), max(0, round(left))
    window = Window(row, col, min(height, round(bottom)) - row, min(width, round(right)) - col)
    if window.area == 0:
        raise SceneError(f"{labels.path}: is smaller than a pixel of the scene {scene.path}")
    return window


class _Callable(types.ModuleType):
    """``geoseg.preview(…)`` is `preview`, although this module has its name."""

    @functools.wraps(preview)
    def __call__(self, *given: Any, **settings: Any) -> Image.Image | Path:
        return preview(*given, **settings)


sys.modules[__name__].__class__ = _Callable
__doc__ = str(preview.__doc__)  # what ``geoseg.preview?`` shows
__signature__ = inspect.signature(preview)
