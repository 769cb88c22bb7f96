"""Several scenes as one: a VRT over files that lie on one pixel grid.

Rasterio cannot call GDAL's own VRT builder, and merging would copy the pixels, so the few lines of
XML are written here (https://gdal.org/drivers/raster/vrt.html). The file is a function of its
sources and carries the time of the newest, so that a resumed run knows it again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError, RasterioIOError

from geoseg._address import as_given, is_address, scene_name
from geoseg._files import whole_file, writing_to, xml_text
from geoseg._inputs import is_there
from geoseg.errors import OutputError, SceneError
from geoseg.io._handles import gdal_name, open_dataset
from geoseg.io.bands import Band, bands_of, by_tags, by_words
from geoseg.io.crs import crs_name, parse_crs, same_crs
from geoseg.io.described import refuse_unrectified, unreadable

_GDAL_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32",
    "int32": "Int32", "uint64": "UInt64", "int64": "Int64", "float32": "Float32",
    "float64": "Float64",
}  # fmt: skip
_ALIGNED = 0.05
"""Fraction of a pixel by which a scene may lie off the first one's grid."""
_MADE_BY = "made by geoseg"
"""Comment by which a mosaic's file is known."""


@dataclass(frozen=True)
class Part:
    """What a mosaic or a stack has to know of one file."""

    path: str
    crs: Any
    transform: Affine
    height: int
    width: int
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    colours: tuple[ColorInterp, ...]
    masked: bool
    """The file brings a mask of its own."""
    units: tuple[tuple[float, float], ...]
    """Scale and offset of every band."""
    names: tuple[Band, ...]
    """What its bands say of themselves."""
    special: str | None
    """Value that the product names as no data."""
    band: int = 1
    """The one that a stack takes."""

    @property
    def hides(self) -> bool:
        """Whether a mask or an alpha band says which pixels are data."""
        return self.masked or ColorInterp.alpha in self.colours

    @classmethod
    def open(cls, path: str, crs: Any = None) -> Part:
        """Look at a file.

        Raises
        ------
        SceneError
            If it cannot be opened, or placed by its transform, or no VRT holds its name.
        """
        try:
            dataset = open_dataset(path)
        except RasterioIOError as error:
            raise unreadable(path, error) from error
        local = not is_address(path) and is_there(path)
        full = str(Path(path).resolve()) if local else path
        if "\r" in full or xml_text(full) != full:
            raise SceneError(f"{path}: has characters in its name that no VRT holds; rename it")
        with dataset:
            refuse_unrectified(dataset, path)
            return cls(
                path=full,
                crs=dataset.crs if crs is None else crs,
                transform=dataset.transform,
                height=dataset.height,
                width=dataset.width,
                dtypes=dataset.dtypes,
                nodata=dataset.nodatavals,
                colours=dataset.colorinterp,
                masked=MaskFlags.per_dataset in dataset.mask_flag_enums[0]
                and MaskFlags.alpha not in dataset.mask_flag_enums[0],
                units=tuple(zip(dataset.scales, dataset.offsets, strict=True)),
                names=bands_of(dataset),
                special=dataset.tags().get("SPECIAL_VALUE_NODATA"),
            )

    def place(self, first: Part) -> tuple[int, int]:
        """Row and column of the upper left pixel, counted from the first scene's."""
        col, row = ~first.transform * (self.transform.c, self.transform.f)
        if max(abs(col - round(col)), abs(row - round(row))) > _ALIGNED:
            raise SceneError(
                f"{self.path}: its pixels lie between those of {first.path}; bring both on one "
                "grid first, for example with gdalwarp -tap"
            )
        return round(row), round(col)


def build_mosaic(paths: Sequence[str | Path], target: Path, crs: str | None = None) -> Path:
    """Write a VRT that shows scenes as one; where they overlap, the later one is on top.

    Parameters
    ----------
    paths
        Scenes with the same CRS, pixel size, bands, pixel type and nodata.
    crs
        Code of the CRS that the scenes' coordinates are in; None for what the files say.
    target
        File to write. One with the same content is left as it is, an older one that was written
        here is replaced.

    Returns
    -------
    Path
        ``target``.

    Raises
    ------
    SceneError
        If a scene cannot be opened, does not fit the first one or would hide another one; the
        message says in what.
    OutputError
        If ``target`` cannot be written, or is a file that was not written here.
    """
    given = None if crs is None else parse_crs(crs)
    parts = [Part.open(as_given(path), given) for path in paths]
    if not parts:
        raise SceneError("a mosaic needs at least one scene")
    for part in parts[1:]:
        _check_fit(part, parts[0])
    _check_overlaps(parts)
    return _write(_as_xml(parts), parts, target)


def build_stack(paths: Sequence[str | Path], target: Path, crs: str | None = None) -> Path:
    """Write a VRT that shows files of one band each as one scene's red, green and blue.

    Parameters
    ----------
    paths
        Files with the same CRS and pixel type. Their tags or names (of bands or files) tell the
        colours; three of which nothing tells are red, green, blue as they stand. The scene has
        the finest pixels among them, over the ground that all of them cover.
    target, crs
        As of `build_mosaic`.

    Raises
    ------
    SceneError
        If the files do not make one scene; the message says why.
    OutputError
        If ``target`` cannot be written, or is a file that was not written here.
    """
    known = None if crs is None else parse_crs(crs)
    parts = [Part.open(as_given(path), known) for path in paths]
    for part in parts:
        if len(part.dtypes) != 1:
            raise SceneError(f"{part.path}: has {len(part.dtypes)} bands; --rgb takes one a file")
    parts = _in_order_of_colour(parts)
    return _write(_stack_xml(parts, "--rgb"), parts, target)


def stack_text(parts: Sequence[Part], origin: str) -> str:
    """Return a VRT, which GDAL opens as it is, that shows a band of each file as one scene.

    Parameters
    ----------
    parts
        Files, with the bands that are taken.
    origin
        Where they come from, for messages.

    Raises
    ------
    SceneError
        If the files do not make one scene; the message says why.
    """
    return ElementTree.tostring(_stack_xml(parts, origin), encoding="unicode")


def mosaic_text(parts: Sequence[Part]) -> str:
    """Return a VRT, which GDAL opens as it is, that shows files of one grid as one scene."""
    return ElementTree.tostring(_as_xml(parts), encoding="unicode")


def _in_order_of_colour(parts: Sequence[Part]) -> list[Part]:
    """Red, green and blue of files of one band."""
    told = by_tags([part.colours[0] for part in parts])
    if told is None:
        names = [
            Band((*part.names[0].names, Path(scene_name(part.path)).stem), part.names[0].nanometres)
            for part in parts
        ]
        found = by_words(names, " ".join(scene_name(part.path) for part in parts))
        told = None if found is None else found[0]
    if told is None and len(parts) == 3:
        return list(parts)
    if told is None:
        raise SceneError(
            f"--rgb: {len(parts)} files, and nothing tells which are red, green and blue; "
            "name those three, in that order"
        )
    return [parts[number - 1] for number in told]


def _stack_xml(parts: Sequence[Part], origin: str) -> ElementTree.Element:
    first = parts[0]
    for part in parts[1:]:
        if not same_crs(part.crs, first.crs):
            raise SceneError(
                f"{part.path}: has CRS {crs_name(part.crs)}, but {first.path} has "
                f"{crs_name(first.crs)}; bring the files of {origin} into one CRS with gdalwarp"
            )
        if part.dtypes[part.band - 1] != first.dtypes[first.band - 1]:
            raise SceneError(
                f"{part.path}: has pixels of type {part.dtypes[part.band - 1]}, but {first.path} "
                f"has {first.dtypes[first.band - 1]}; the files of {origin} must agree"
            )
    finest = min(parts, key=lambda part: abs(part.transform.determinant))
    rects = []
    for part in parts:
        step = ~finest.transform * part.transform
        if max(abs(step.b), abs(step.d)) > 1e-6 or min(step.a, step.e) <= 0:
            raise SceneError(
                f"{part.path}: its rows run in another direction than those of {finest.path}; "
                "bring both on one grid with gdalwarp"
            )
        rects.append((step.c, step.f, step.a * part.width, step.e * part.height))
    left, top = (math.ceil(max(rect[i] for rect in rects) - _ALIGNED) for i in (0, 1))
    right, bottom = (
        math.floor(min(rect[i] + rect[i + 2] for rect in rects) + _ALIGNED) for i in (0, 1)
    )
    if right <= left or bottom <= top:
        raise SceneError(f"{origin}: the files have no ground in common; give those of one scene")
    root = ElementTree.Element(
        "VRTDataset", rasterXSize=str(right - left), rasterYSize=str(bottom - top)
    )
    root.append(ElementTree.Comment(_MADE_BY))
    if finest.crs is not None:
        _child(root, "SRS", finest.crs.to_wkt())
    corner = finest.transform * Affine.translation(left, top)
    _child(root, "GeoTransform", ", ".join(repr(value) for value in corner.to_gdal()))
    _add_special(root, parts[0])
    places = [(x - left, y - top, width, height) for x, y, width, height in rects]
    for number, (part, place) in enumerate(zip(parts, places, strict=True), 1):
        dtype = _GDAL_TYPES[part.dtypes[part.band - 1]]
        band = _child(root, "VRTRasterBand", dataType=dtype, band=str(number))
        _child(band, "Description", scene_name(part.path))
        if len(parts) == 3:
            _child(band, "ColorInterp", ("Red", "Green", "Blue")[number - 1])
        nodata = part.nodata[part.band - 1]
        if nodata is not None:
            _child(band, "NoDataValue", repr(nodata))
        _add_units(band, part.units[part.band - 1])
        kind = "SimpleSource" if nodata is None else "ComplexSource"
        source = _add_placed(band, kind, str(part.band), part, place)
        if part is not finest:
            source.set("resampling", "bilinear")
        if nodata is not None:
            _child(source, "NODATA", repr(nodata))
    masked = [(part, place) for part, place in zip(parts, places, strict=True) if part.hides]
    if masked:
        band = _child(_child(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        _add_placed(band, "SimpleSource", "mask,1", *masked[0])
    return root


def _add_placed(
    band: ElementTree.Element,
    kind: str,
    source_band: str,
    part: Part,
    place: tuple[float, float, float, float],
) -> ElementTree.Element:
    source = _child(band, kind)
    _child(source, "SourceFilename", gdal_name(part.path), relativeToVRT="0")
    _child(source, "SourceBand", source_band)
    size = {"xSize": str(part.width), "ySize": str(part.height)}
    _child(source, "SrcRect", xOff="0", yOff="0", **size)
    x, y, width, height = (f"{value:.9g}" for value in place)
    _child(source, "DstRect", xOff=x, yOff=y, xSize=width, ySize=height)
    return source


def _add_units(band: ElementTree.Element, units: tuple[float, float]) -> None:
    if units != (1.0, 0.0):
        _child(band, "Offset", repr(units[1]))
        _child(band, "Scale", repr(units[0]))


def _add_special(root: ElementTree.Element, part: Part) -> None:
    if part.special is not None:
        _child(_child(root, "Metadata"), "MDI", part.special, key="SPECIAL_VALUE_NODATA")


_ON_TOP = 0.95
"""Part of the larger scene that two share, from which they are taken for the same place."""
_LOOK = 512
"""Pixels to a side of a look at where two scenes have data."""


def _check_overlaps(parts: Sequence[Part]) -> None:
    """Refuse a mosaic in which a scene would hide another one of the same place."""
    places = [part.place(parts[0]) for part in parts]
    remedy = (
        "files of one band each of one scene go together with --rgb in place of --mosaic"
        if len(parts[0].dtypes) == 1
        else "leave one of them out, or map each by itself, without --mosaic"
    )
    for index, (part, (row, col)) in enumerate(zip(parts, places, strict=True)):
        for other, (top, left) in zip(parts[:index], places[:index], strict=True):
            rows = min(row + part.height, top + other.height) - max(row, top)
            cols = min(col + part.width, left + other.width) - max(col, left)
            larger = max(part.height * part.width, other.height * other.width)
            if min(rows, cols) <= 0 or rows * cols <= _ON_TOP * larger:
                continue
            if part.path == other.path or _hides(part, other):
                raise SceneError(
                    f"{part.path}: lies on top of {other.path} and would hide it; {remedy}"
                )


def _hides(top: Part, below: Part) -> bool:
    """Whether little of a scene is seen through the nodata of another one of the same place."""
    shape = (min(top.height, _LOOK), min(top.width, _LOOK))
    try:
        with open_dataset(top.path) as one, open_dataset(below.path) as other:
            covers, holds = (data.dataset_mask(out_shape=shape) > 0 for data in (one, other))
    except RasterioError:
        return False  # the run meets the damage, and says where
    return bool((covers & holds).sum() > _ON_TOP * holds.sum())


def remove_made(target: Path) -> None:
    """Remove a mosaic's file that was written here; one of the user's stays."""
    if target.exists() and _MADE_BY in target.read_text(encoding="utf-8", errors="replace"):
        target.unlink()


def _write(xml: ElementTree.Element, parts: Sequence[Part], target: Path) -> Path:
    ElementTree.indent(xml)
    text = ElementTree.tostring(xml, encoding="unicode") + "\n"
    with writing_to(target):
        known = target.read_text(encoding="utf-8", errors="replace") if target.exists() else None
        ours = known is None or _MADE_BY in known
        if ours and known != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as temporary:
                temporary.write_text(text, encoding="utf-8")
        times = [Path(part.path).stat().st_mtime_ns for part in parts if Path(part.path).exists()]
        newest = max(times, default=0)
        if ours:
            os.utime(target, ns=(newest, newest))
    if not ours:
        raise OutputError(
            f"{target} was not made by geoseg and would be replaced; give another --out"
        )
    return target


def _check_fit(part: Part, first: Part) -> None:
    def refuse(what: str, found: Any, expected: Any) -> SceneError:
        return SceneError(
            f"{part.path}: {what} {found}, but {first.path} has {expected}; "
            "the scenes of a mosaic must agree"
        )

    if not same_crs(part.crs, first.crs):
        raise refuse("has CRS", crs_name(part.crs), crs_name(first.crs))
    if first.crs is None or first.transform == Affine.identity():
        raise SceneError(f"{first.path}: is not placed by CRS and transform, see gdal_edit")
    here, there = ((t.a, t.b, t.d, t.e) for t in (part.transform, first.transform))
    if not np.allclose(here, there, rtol=1e-6, atol=1e-12):
        raise refuse("has pixels of", _pixel(part.transform), _pixel(first.transform))
    if part.dtypes != first.dtypes:
        raise refuse("has bands of type", ", ".join(part.dtypes), ", ".join(first.dtypes))
    if not _same_values(part.nodata, first.nodata):
        raise refuse("has nodata", part.nodata, first.nodata)
    if part.colours != first.colours:
        raise refuse("has colours", _names(part.colours), _names(first.colours))
    if part.units != first.units:
        raise SceneError(
            f"{part.path}: has scale and offset {part.units[0]}, but {first.path} has "
            f"{first.units[0]}, so the same value means another thing; bring both to one: "
            f"gdal_translate -unscale -ot Float32 {part.path} unscaled.tif"
        )
    if by_tags(first.colours) is None:
        here_told, there_told = by_words(part.names), by_words(first.names)
        if here_told and there_told and here_told[0] != there_told[0]:
            raise refuse("has red, green, blue in bands", here_told[0], there_told[0])
    if ColorInterp.palette in first.colours:
        raise SceneError(
            f"{first.path}: is a palette; expand the scenes of a mosaic first: "
            f"gdal_translate -expand rgb {first.path} rgb.tif"
        )


def _same_values(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    return repr(one) == repr(other)  # NaN is the same nodata as NaN


def _pixel(transform: Affine) -> str:
    return f"{transform.a:g} x {transform.e:g}"


def _names(colours: Sequence[ColorInterp]) -> str:
    return ", ".join(colour.name for colour in colours)


def _as_xml(parts: Sequence[Part]) -> ElementTree.Element:
    first = parts[0]
    places = [part.place(first) for part in parts]
    top, left = min(row for row, _ in places), min(col for _, col in places)
    bottom = max(row + part.height for part, (row, _) in zip(parts, places, strict=True))
    right = max(col + part.width for part, (_, col) in zip(parts, places, strict=True))
    origin = first.transform * Affine.translation(left, top)
    root = ElementTree.Element(
        "VRTDataset", rasterXSize=str(right - left), rasterYSize=str(bottom - top)
    )
    root.append(ElementTree.Comment(_MADE_BY))
    if first.crs is not None:
        _child(root, "SRS", first.crs.to_wkt())
    if first.transform != Affine.identity():
        _child(root, "GeoTransform", ", ".join(repr(value) for value in origin.to_gdal()))
    _add_special(root, first)
    placed = [(part, row - top, col - left) for part, (row, col) in zip(parts, places, strict=True)]
    for number, (dtype, colour) in enumerate(zip(first.dtypes, first.colours, strict=True), 1):
        _add_band(root, number, dtype, colour, placed)
    if not _tells_gaps(first):
        # Without nodata or alpha the gaps between the scenes would count as black ground.
        band = _child(_child(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        for part, row, col in placed:
            _add_source(band, "SimpleSource", "mask,1", part, row, col)
    return root


def _tells_gaps(part: Part) -> bool:
    """Whether pixels that no scene covers are seen as nodata without a mask."""
    return None not in part.nodata or ColorInterp.alpha in part.colours


def _add_band(
    root: ElementTree.Element,
    number: int,
    dtype: str,
    colour: ColorInterp,
    placed: Sequence[tuple[Part, int, int]],
) -> None:
    band = _child(root, "VRTRasterBand", dataType=_GDAL_TYPES[dtype], band=str(number))
    if colour not in (ColorInterp.undefined, ColorInterp.gray):
        _child(band, "ColorInterp", colour.name.capitalize())
    told = placed[0][0]
    if told.names[number - 1].names:
        _child(band, "Description", "; ".join(told.names[number - 1].names))
    _add_units(band, told.units[number - 1])
    nodata = told.nodata[number - 1]
    if nodata is not None:
        _child(band, "NoDataValue", repr(nodata))
    for part, row, col in placed:
        hides = nodata is not None or part.hides
        source = _add_source(
            band, "ComplexSource" if hides else "SimpleSource", str(number), part, row, col
        )
        # A scene's nodata must not cover the pixels of another.
        if nodata is not None:
            _child(source, "NODATA", repr(nodata))
        elif hides:
            _child(source, "UseMaskBand", "true")


def _add_source(
    band: ElementTree.Element, kind: str, source_band: str, part: Part, row: int, col: int
) -> ElementTree.Element:
    return _add_placed(band, kind, source_band, part, (col, row, part.width, part.height))


def _child(
    parent: ElementTree.Element, name: str, text: str = "", **attributes: str
) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, name, attributes)
    element.text = text or None
    return element
