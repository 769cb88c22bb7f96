"""Several scenes as one: a VRT over files that lie on one pixel grid.

Rasterio cannot call GDAL's own VRT builder, and merging would copy the pixels, so the few lines of
XML are written here (https://gdal.org/drivers/raster/vrt.html). The file is a function of its
sources and carries the time of the newest, so that a resumed run knows it again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioIOError

from geoseg._files import whole_file, writing_to, xml_text
from geoseg.errors import OutputError, SceneError
from geoseg.io._handles import open_dataset
from geoseg.io.crs import crs_name, parse_crs, same_crs

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
class _Part:
    """What the mosaic has to know of one scene."""

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

    @classmethod
    def open(cls, path: str, crs: Any = None) -> _Part:
        try:
            dataset = open_dataset(path)
        except RasterioIOError as error:
            reason = "cannot be opened" if "://" in path or Path(path).exists() else "no such file"
            raise SceneError(f"{path}: {reason}, so it cannot be part of a mosaic") from error
        full = str(Path(path).resolve()) if Path(path).exists() else path
        if "\r" in full or xml_text(full) != full:
            raise SceneError(f"{path}: has characters in its name that no VRT holds; rename it")
        with dataset:
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
            )

    def place(self, first: _Part) -> tuple[int, int]:
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
        If a scene cannot be opened or does not fit the first one; the message says in what.
    OutputError
        If ``target`` cannot be written, or is a file that was not written here.
    """
    given = None if crs is None else parse_crs(crs)
    parts = [_Part.open(str(path), given) for path in paths]
    if not parts:
        raise SceneError("a mosaic needs at least one scene")
    for part in parts[1:]:
        _check_fit(part, parts[0])
    xml = _as_xml(parts)
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


def _check_fit(part: _Part, first: _Part) -> None:
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


def _as_xml(parts: Sequence[_Part]) -> ElementTree.Element:
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
    _child(root, "SRS", first.crs.to_wkt())
    _child(root, "GeoTransform", ", ".join(repr(value) for value in origin.to_gdal()))
    placed = [(part, row - top, col - left) for part, (row, col) in zip(parts, places, strict=True)]
    for number, (dtype, colour) in enumerate(zip(first.dtypes, first.colours, strict=True), 1):
        _add_band(root, number, dtype, colour, placed)
    if not _tells_gaps(first):
        # Without nodata or alpha the gaps between the scenes would count as black ground.
        band = _child(_child(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        for part, row, col in placed:
            _add_source(band, "SimpleSource", "mask,1", part, row, col)
    return root


def _tells_gaps(part: _Part) -> bool:
    """Whether pixels that no scene covers are seen as nodata without a mask."""
    return None not in part.nodata or ColorInterp.alpha in part.colours


def _add_band(
    root: ElementTree.Element,
    number: int,
    dtype: str,
    colour: ColorInterp,
    placed: Sequence[tuple[_Part, int, int]],
) -> None:
    band = _child(root, "VRTRasterBand", dataType=_GDAL_TYPES[dtype], band=str(number))
    if colour not in (ColorInterp.undefined, ColorInterp.gray):
        _child(band, "ColorInterp", colour.name.capitalize())
    nodata = placed[0][0].nodata[number - 1]
    if nodata is not None:
        _child(band, "NoDataValue", repr(nodata))
    for part, row, col in placed:
        hides = nodata is not None or part.masked or ColorInterp.alpha in part.colours
        source = _add_source(
            band, "ComplexSource" if hides else "SimpleSource", str(number), part, row, col
        )
        # A scene's nodata must not cover the pixels of another.
        if nodata is not None:
            _child(source, "NODATA", repr(nodata))
        elif hides:
            _child(source, "UseMaskBand", "true")


def _add_source(
    band: ElementTree.Element, kind: str, source_band: str, part: _Part, row: int, col: int
) -> ElementTree.Element:
    source = _child(band, kind)
    _child(source, "SourceFilename", part.path, relativeToVRT="0")
    _child(source, "SourceBand", source_band)
    size = {"xSize": str(part.width), "ySize": str(part.height)}
    _child(source, "SrcRect", xOff="0", yOff="0", **size)
    _child(source, "DstRect", xOff=str(col), yOff=str(row), **size)
    return source


def _child(
    parent: ElementTree.Element, name: str, text: str = "", **attributes: str
) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, name, attributes)
    element.text = text or None
    return element
