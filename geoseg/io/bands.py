"""Which bands are red, green and blue: by colour tags, by names, by wavelengths, by order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rasterio.enums import ColorInterp

from geoseg._inputs import shown
from geoseg._texts import as_number
from geoseg.errors import OptionError

Triple = tuple[int, int, int]

COLOURS = ("red", "green", "blue")
_TAGS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_OTHER_THAN_COLOUR = frozenset(
    {"edge", "rededge", "near", "infra", "infrared", "nir", "swir", "coastal", "deep", "aerosol",
     "thickness", "thermal", "index", "ratio", "qa", "mask", "difference", "aot", "wvp", "vapour"}
)  # fmt: skip
_NANOMETRES = ((600, 690, 660), (510, 600, 560), (430, 515, 482))
"""Lowest, highest and best wavelength of red, green and blue."""
_FIRST_FOUR_THREE_TWO = r"\bS2[ABC]|SENTINEL.?2|\bL[COE]0?[89]|LANDSAT.?[89]|\bOLI"
_FIRST_THREE_TWO_ONE = r"\bL[TE]0?[4567]|LANDSAT.?[4567]\b|\bETM|\bTM\b"
_NAMES = ("bandname", "common_name", "eo:common_name", "color", "long_name", "standard_name")
_CODE = re.compile(r"(?:^|[^a-z0-9])(b0?)(\d{1,2}a?)(?:$|[^a-z0-9])", re.IGNORECASE)
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(nm|nanomet|um|µm|μm|micromet|micron)", re.IGNORECASE)


@dataclass(frozen=True)
class Band:
    """What a band says of itself."""

    names: tuple[str, ...]
    nanometres: float | None = None
    """Central wavelength."""


def bands_of(dataset: Any) -> tuple[Band, ...]:
    """Names and wavelengths of a rasterio dataset's bands."""
    whole = dataset.tags()
    found = []
    for number, description in enumerate(dataset.descriptions, start=1):
        tags = dataset.tags(number)
        imagery = dataset.tags(number, ns="IMAGERY")
        found.append(band_of(description, tags | imagery, whole.get(f"Band_{number}")))
    return tuple(found)


def band_of(name: Any, tags: Mapping[str, Any], other: Any = None) -> Band:
    """One band, from its name and its metadata."""
    low = {str(key).lower(): str(value) for key, value in tags.items()}
    told = (low.get(key) for key in _NAMES)
    names = tuple(dict.fromkeys(str(one).strip() for one in (name, *told, other) if one))
    return Band(names, _wavelength(low, names))


def _wavelength(tags: Mapping[str, str], names: Sequence[str]) -> float | None:
    for key in ("central_wavelength_um", "wavelength", "center_wavelength", "central_wavelength"):
        try:
            value = float(tags[key])
        except (KeyError, ValueError):
            continue
        return value * 1000 if value < 20 else value  # micrometres, whatever the unit's spelling
    for name in names:
        if not _words(name) & (_OTHER_THAN_COLOUR - {"coastal"}) and (hit := _LENGTH.search(name)):
            value = float(hit[1])
            return value if hit[2].lower().startswith("n") else value * 1000
    return None


def by_tags(kinds: Sequence[ColorInterp]) -> Triple | None:
    """Red, green and blue, if exactly one band is tagged as each."""
    if any(kinds.count(kind) != 1 for kind in _TAGS):
        return None
    red, green, blue = (kinds.index(kind) + 1 for kind in _TAGS)
    return red, green, blue


def by_words(bands: Sequence[Band], about: str = "") -> tuple[Triple, str] | None:
    """Red, green and blue by what the bands say of themselves, and what told it.

    Parameters
    ----------
    bands
        The bands, in the file's order.
    about
        What names the sensor, if anything does: path and metadata of the file.
    """
    for told, find in (("names", _by_colour), ("wavelengths", _by_wavelength)):
        if (triple := find(bands)) is not None:
            return triple, told
    triple = _by_code(bands, about)
    return None if triple is None else (triple, "names")


def other_than_colours(bands: Sequence[Band]) -> str | None:
    """What three bands say they are where one says something else than red, green or blue.

    Parameters
    ----------
    bands
        The bands that are taken as red, green and blue, in this order.
    """
    for band, colour in zip(bands, COLOURS, strict=True):
        words = frozenset().union(*map(_words, band.names))
        beyond = band.nanometres is not None and band.nanometres > _NANOMETRES[0][1]
        if beyond or words & _OTHER_THAN_COLOUR or (words & set(COLOURS) - {colour}):
            called = (one.names[0] if one.names else f"{one.nanometres:g} nm" for one in bands)
            return ", ".join(called)
    return None


def bands_named(
    wanted: Sequence[int | str],
    bands: Sequence[Band],
    path: str,
    kinds: Sequence[ColorInterp] = (),
) -> tuple[int, ...]:
    """Numbers of bands, counted from 1, that are given by number or by name.

    Parameters
    ----------
    wanted
        Numbers stay as they are; ``B4`` is also ``B04`` and ``SR_B4``, and red, green, blue and
        nir are found as they are where nobody says which bands to take.
    bands
        What there is.
    path
        The scene, for messages.
    kinds
        Colour tags of the bands, if there are any.

    Raises
    ------
    OptionError
        If no band, or more than one, has a name; the message lists the names there are.
    """
    wanted = [wanted] if isinstance(wanted, str) else wanted
    words = by_words(bands)
    triple = words[0] if words is not None else by_tags(kinds)

    def number(name: int | str) -> int:
        if not isinstance(name, str):
            return int(name)
        key = name.strip().lower()
        if (number := as_number(key)) is not None:
            return number
        for fits in (_is_called, has_code, has_colour):
            found = [i for i, band in enumerate(bands, 1) if fits(band, key)]
            if len(found) == 1:
                return found[0]
        if triple is not None and key in COLOURS and not found:
            return triple[COLOURS.index(key)]
        names = ", ".join(b.names[0] if b.names else str(i) for i, b in enumerate(bands, 1))
        what = f"{len(found)} bands are" if found else "no band is"
        raise OptionError(f"{path}: {what} called '{shown(name)}'; its bands are {shown(names)}")

    return tuple(map(number, wanted))


def _is_called(band: Band, key: str) -> bool:
    return any(name.lower() == key for name in band.names)


def has_code(band: Band, key: str) -> bool:
    """Whether a band has the number that a name ends in: B4 is B04 and SR_B4."""
    hit = _CODE.search(key)
    own = [found for name in band.names if (found := _CODE.search(name))]
    return hit is not None and any(
        found[2].lower().lstrip("0") == hit[2].lstrip("0") for found in own
    )


def has_colour(band: Band, key: str) -> bool:
    """Whether a band's names hold the word of a colour, or nir."""
    if key in COLOURS:
        return _says(band, key, exact=False)
    return key == "nir" and any("nir" in _words(name) for name in band.names)


def grey_of(band: Band, stem: str) -> str | None:
    """Name by which a file's only band is one of several of a scene; None if nothing says so."""
    for name in (*band.names, stem):
        if (hit := _CODE.search(name)) is not None:
            return hit[1].upper() + hit[2].upper()
        if (colour := next(iter(_words(name) & {*COLOURS, "nir"}), None)) is not None:
            return colour
    return None


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))


def _by_colour(bands: Sequence[Band]) -> Triple | None:
    found = []
    for colour in COLOURS:
        exact = [i for i, band in enumerate(bands, 1) if _says(band, colour, exact=True)]
        some = exact or [i for i, band in enumerate(bands, 1) if _says(band, colour, exact=False)]
        if len(some) != 1:
            return None
        found.append(some[0])
    return _triple(found)


def _says(band: Band, colour: str, *, exact: bool) -> bool:
    if exact:
        return any(name.lower() in (colour, colour[0]) for name in band.names)
    every = frozenset().union(*map(_words, band.names))
    return colour in every and not every & _OTHER_THAN_COLOUR


def _by_wavelength(bands: Sequence[Band]) -> Triple | None:
    found = []
    for low, high, best in _NANOMETRES:
        near = [
            (abs(band.nanometres - best), i)
            for i, band in enumerate(bands, 1)
            if band.nanometres is not None and low <= band.nanometres <= high
        ]
        if not near:
            return None
        found.append(min(near)[1])
    return _triple(found)


def _by_code(bands: Sequence[Band], about: str) -> Triple | None:
    """By the numbers that a sensor gives its bands: B02, SR_B4."""
    places: dict[str, int] = {}
    padded = False
    for number, band in enumerate(bands, 1):
        hit = next((hit for name in band.names if (hit := _CODE.search(name))), None)
        if hit is not None:
            code = hit[2].lower().lstrip("0")
            if code in places:
                return None
            places[code] = number
            padded |= len(hit[1]) == 2
    spelled = " ".join(name for band in bands for name in band.names)
    codes = _numbering(set(places), places, padded, f"{about} {spelled}")
    if codes is None or not set(codes) <= places.keys():
        return None
    return _triple([places[code] for code in codes])


def _numbering(
    codes: set[str], places: Mapping[str, int], padded: bool, about: str
) -> tuple[str, str, str] | None:
    surface = "SR_B" in about.upper()
    if "sur_refl" in about.lower():
        return "1", "4", "3"
    if re.search(_FIRST_THREE_TWO_ONE, about, re.IGNORECASE):
        return "3", "2", "1"
    told = padded or "8a" in codes or re.search(_FIRST_FOUR_THREE_TWO, about, re.IGNORECASE)
    if not told and surface and {"1", "7"} <= codes and "6" not in codes:
        return "3", "2", "1"  # Landsat 4 to 7: no surface reflectance of the thermal band 6
    # B1, B2, B3, … in this order is how files are numbered that know no names.
    if told or surface or any(code != str(place) for code, place in places.items()):
        return "4", "3", "2"
    return None


def _triple(found: Sequence[int]) -> Triple | None:
    red, green, blue = found
    return (red, green, blue) if len({red, green, blue}) == 3 else None
