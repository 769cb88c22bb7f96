"""What options are written in: stretches, bands, numbers, areas, values of masks, nodata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from geoseg._inputs import shown
from geoseg.errors import OptionError

AUTO_PERCENTILES = (2.0, 98.0)

Limits = tuple[tuple[float, float], ...]
"""``(low, high)`` for every band: values that become 0 and 1."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """How to stretch, before a scene has been seen: what ``--stretch`` says."""

    kind: Literal["auto", "none", "raw", "percent", "range"]
    low: float = 0.0
    """Percentile (``percent``) or pixel value (``range``) that becomes 0."""
    high: float = 0.0
    """Percentile or pixel value that becomes 1."""
    bands: Limits = ()
    """``(low, high)`` of each band, where a ``range`` is not the same for all."""

    def for_dtype(self, dtype: Any) -> Stretch:
        """Resolve ``auto``: none for 8-bit, 2 to 98 per cent for everything else."""
        if self.kind != "auto":
            return self
        if dtype == "uint8":
            return Stretch("none")
        return Stretch("percent", *AUTO_PERCENTILES)

    def __str__(self) -> str:
        if self.kind == "percent":
            return f"{self.low:g},{self.high:g}"
        if self.bands:
            return limits_as_text(self.bands)
        return f"{self.low:g}:{self.high:g}" if self.kind == "range" else self.kind


def limits_as_text(limits: Limits) -> str:
    """Limits of every band as `parse_stretch` reads them."""
    return ",".join(f"{low!r}:{high!r}" for low, high in limits)


def parse_stretch(text: str) -> Stretch:
    """Read ``auto``, ``none``, ``raw``, ``P1,P2`` (percentiles) or ``min:max`` (pixel values).

    Several ``min:max``, with commas between them, are one for each band.

    Raises
    ------
    OptionError
        If the text is none of these, or the first number is not below the second.
    """
    word = text.strip().lower()
    if word in ("auto", "none", "raw"):
        return Stretch(word)  # type: ignore[arg-type]
    if ":" in word and "," in word:
        pairs = tuple(_two_numbers(part, ":", text) for part in word.split(","))
        return Stretch("range", *pairs[0], bands=pairs)
    if ":" in word:
        return Stretch("range", *_two_numbers(word, ":", text))
    low, high = _two_numbers(word, ",", text)
    if low < 0 or high > 100:
        raise OptionError(f"stretch '{shown(text)}': percentiles lie between 0 and 100")
    return Stretch("percent", low, high)


def _two_numbers(word: str, separator: str, text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in word.split(separator))
    except ValueError:
        raise OptionError(
            f"stretch '{shown(text)}' is not understood: give auto, none, two percentiles as 2,98 "
            "or two pixel values as 0:3000"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise OptionError(f"stretch '{shown(text)}': the first number must be below the second")
    return low, high


def stretch_as_text(given: Any) -> str:
    """Write a stretch as the text that `geoseg.options.Reading` keeps.

    Parameters
    ----------
    given
        The text, or numbers ``(low, high)`` of all bands, or one such pair for each band.

    Raises
    ------
    OptionError
        If `parse_stretch` could not read it.
    """
    if not isinstance(given, str):
        try:
            rows = list(given)
            rows = [rows] if not any(hasattr(one, "__len__") for one in rows) else rows
            given = limits_as_text(tuple((float(low), float(high)) for low, high in rows))
        except (TypeError, ValueError):
            given = None
        if not given:
            raise OptionError(
                "stretch is not understood: give a text like 0:3000, or numbers (low, high), or "
                "one such pair for each band"
            )
    parse_stretch(given)
    return str(given)


_DIGITS = 9


def as_number(text: str) -> int | None:
    """The whole number that a text is, of nine digits at most; None if it is something else."""
    word = text.strip()
    return int(word) if word.isdecimal() and len(word) <= _DIGITS else None


def parse_bands(text: str) -> tuple[int | str, ...]:
    """Read ``"3,2,1"``, ``"1"`` or ``"red,green,blue"``.

    How many there may be, and which names, is settled where the scene is opened.

    Raises
    ------
    OptionError
        If it is not a list of band numbers or names.
    """
    parts = [part.strip() for part in text.split(",")]
    bands = tuple(p if (number := as_number(p)) is None else number for p in parts)
    if not all(bands) or any(str(band)[0] in "+-" for band in bands):
        raise OptionError(
            f"--bands '{shown(text)}' is not a list of bands; write for example --bands 3,2,1, or "
            "names, like red,green,blue"
        )
    return bands


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read ``"0.5"`` or ``"0.48,0.46,0.41"``.

    Raises
    ------
    OptionError
        If it is not a list of numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(
            f"'{shown(text)}' is not a list of numbers; write for example 0.48,0.46,0.41"
        ) from None


MaskKind = Literal["nonzero", "values", "bits", "keep"]


def parse_mask_values(text: str | None) -> tuple[MaskKind, tuple[float, ...]]:
    """Read ``3,8,9``, ``bits:3,4`` or ``keep:1,2``; None is every value but 0.

    Raises
    ------
    OptionError
        If it is none of these.
    """
    if text is None:
        return "nonzero", ()
    kind, colon, listed = text.strip().rpartition(":")
    try:
        values = tuple(float(part) for part in listed.split(","))
    except ValueError:
        values = (math.nan,)
    fits = all(map(math.isfinite, values)) and (kind in ("bits", "keep") or not colon)
    if kind == "bits":
        fits = fits and all(value == int(value) and 0 <= value < 32 for value in values)
    if not fits:
        raise OptionError(
            f"mask values '{shown(text)}': write the values that are left out (3,8,9), "
            "bits:3,4 for bits counted from 0, or keep:1,2 for all values but these"
        )
    return (kind or "values"), values  # type: ignore[return-value]


def area_as_text(area: Any) -> str:
    """Write an area of interest as the text that `geoseg.options.Reading` keeps.

    Parameters
    ----------
    area
        Bounds as four numbers, a path, a shapely geometry, or a GeoDataFrame or GeoSeries, whose
        CRS goes with it.

    Raises
    ------
    OptionError
        If it is none of these.
    """
    if isinstance(area, str | Path):
        return str(area)
    if hasattr(area, "total_bounds") and hasattr(area, "crs"):  # geopandas
        whole = area.geometry.union_all()
        crs = "" if area.crs is None else f"{area.crs.to_string()};"
        return f"{crs}{whole.wkt}"
    if hasattr(area, "geom_type") and hasattr(area, "wkt"):  # shapely
        if "Polygon" not in area.geom_type:
            raise OptionError(f"aoi is a {area.geom_type}; give a polygon")
        return str(area.wkt)
    try:
        numbers = [float(value) for value in area]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4:
        raise OptionError(
            f"aoi is a {type(area).__name__}; give minx, miny, maxx, maxy, a shapely polygon, a "
            "GeoDataFrame or the path of a vector file"
        )
    return ",".join(map(repr, numbers))


def nodata_values(given: Sequence[float | str]) -> tuple[float | str, ...]:
    """Values that are no data as numbers, or ``none`` alone.

    Raises
    ------
    OptionError
        If one is no number, or not finite.
    """
    if [str(value).lower() for value in given] == ["none"]:
        return ("none",)
    try:
        values = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        wrong = ", ".join(str(value) for value in given)
        raise OptionError(
            f"nodata {shown(wrong)}: give a number, or none alone (NaN is never data)"
        )
    return values
