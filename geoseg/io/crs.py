"""Coordinate reference systems: are two the same place, what is one called, can a file hold it?"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import rasterio
from affine import Affine
from pyproj.exceptions import CRSError, ProjError
from rasterio.crs import CRS
from rasterio.errors import CRSError as RasterioCRSError
from rasterio.io import MemoryFile

from geoseg._inputs import shown
from geoseg.errors import OptionError
from geoseg.runtime.quiet import hushed

_SURE = 70
_ALIKE = 25
"""Confidence in per cent from which PROJ's registry is asked at all."""
_FAR = (-6e6, -1e6, -1e5, 0, 1e5, 1e6, 6e6)
_SAME_DEGREES = 1e-7
"""About a centimetre on the ground."""


@lru_cache(maxsize=64)
def _horizontal(wkt: str) -> pyproj.CRS:
    crs = pyproj.CRS.from_wkt(wkt)
    while crs.is_bound or crs.is_compound:
        inner = crs.source_crs if crs.is_bound else crs.sub_crs_list[0]
        assert inner is not None
        crs = inner
    return crs.to_2d() if len(crs.axis_info) == 3 and crs.is_geographic else crs


def horizontal(crs: Any) -> pyproj.CRS:
    """Return the part of a CRS that says where: no heights, no way to WGS 84 on top."""
    return _horizontal(crs.to_wkt() if hasattr(crs, "to_wkt") else str(crs))


def same_crs(one: Any, other: Any) -> bool:
    """Tell whether the same x and y are the same place in both, whatever words say so.

    Heights, TOWGS84 and names play no part, nor does the order of axes: files hold x before y.
    None is only the same as None.
    """
    if one is None or other is None:
        return one is other
    a, b = horizontal(one), horizontal(other)
    if a.is_engineering and a.name != b.name:
        return False  # only its name tells a local grid from another
    return bool(a.equals(b, ignore_axis_order=True)) or _same_numbers(a, b)


def _same_numbers(one: pyproj.CRS, other: pyproj.CRS) -> bool:
    """Whether both take the same x and y to the same longitude and latitude."""
    if not (one.is_projected and other.is_projected and _same_datum(one, other)):
        return False
    x, y = (axis.ravel() for axis in np.meshgrid(_FAR, _FAR))
    try:
        places = [
            np.array(pyproj.Transformer.from_crs(c, c.geodetic_crs, always_xy=True).transform(x, y))
            for c in (one, other)
        ]
    except ProjError:
        return False
    known = np.isfinite(places).all(axis=(0, 1))
    away = np.abs(places[0] - places[1])[:, known]
    return bool(known.any() and (away < _SAME_DEGREES).all())


def _same_datum(one: pyproj.CRS, other: pyproj.CRS) -> bool:
    """Whether two stand on one datum, or on one ellipsoid where a datum has no name."""
    shapes = [
        (c.ellipsoid.semi_major_metre, c.ellipsoid.inverse_flattening, c.prime_meridian.longitude)
        for c in (one, other)
        if c.ellipsoid is not None and c.prime_meridian is not None
    ]
    if len(shapes) < 2 or not np.allclose(shapes[0], shapes[1], rtol=1e-9, atol=1e-9):
        return False
    names = {
        re.sub(r"[^a-z0-9]", "", (c.datum.name if c.datum else "").lower().removeprefix("d_"))
        for c in (one, other)
    }
    return len(names) == 1 or any(re.match("unknown|unnamed|$", name) for name in names)


def crs_name(crs: Any) -> str:
    """Return the code of a CRS, or else its name: what a message can hold."""
    if crs is None:
        return "none"
    flat = horizontal(crs)
    code = flat.to_authority(min_confidence=_SURE)
    if code is not None and flat.equals(pyproj.CRS(":".join(code)), ignore_axis_order=True):
        return ":".join(code)
    if flat.name.lower() not in ("unknown", "unnamed", ""):
        return shown(flat.name)
    method = flat.coordinate_operation.method_name if flat.coordinate_operation else None
    return f"an unnamed {flat.type_name}" + (f" ({method})" if method else "")


def parse_crs(text: str) -> CRS:
    """Read the code of a CRS ("EPSG:32632", "32632"), or what else PROJ knows.

    Raises
    ------
    OptionError
        If there is no such CRS.
    """
    code = text.strip()
    try:
        return CRS.from_user_input(f"EPSG:{code}" if code.isdecimal() else code)
    except (RasterioCRSError, ValueError) as error:
        raise OptionError(
            f"--crs '{shown(text)}' is no coordinate system that PROJ knows; write for example "
            "--crs EPSG:32632"
        ) from error


def why_no_scene(crs: CRS | None) -> str | None:
    """Say why no scene can lie in a CRS; None if one can."""
    if crs is None:
        return None
    try:
        flat = horizontal(crs)
    except CRSError:
        return "its CRS is none that PROJ understands; assign it anew with --crs CODE"
    if flat.is_geocentric:
        return (
            f"its CRS, {crs_name(crs)}, counts from the Earth's centre and no image lies in it; "
            "say with --crs CODE which one its coordinates have"
        )
    return None


def storable(crs: CRS | None) -> CRS | None:
    """Return the same CRS in words that a GeoTIFF gives back.

    Some projections without a code come back as another one; then the registry's CRS with the same
    numbers is taken, if there is one.
    """
    if crs is None:
        return None
    if same_crs(crs, _stored(crs.to_wkt())):
        return crs
    flat = horizontal(crs)
    for entry in flat.list_authority(min_confidence=_ALIKE):
        listed = CRS.from_user_input(f"{entry.auth_name}:{entry.code}")
        if same_crs(crs, listed) and same_crs(crs, _stored(listed.to_wkt())):
            return listed
    return crs


def is_storable(crs: CRS | None) -> bool:
    """Tell whether a GeoTIFF can hold a CRS, in whatever words."""
    words = storable(crs)
    return words is None or same_crs(words, _stored(words.to_wkt()))


@lru_cache(maxsize=64)
def _stored(wkt: str) -> CRS | None:
    """CRS as a GeoTIFF that was written with it gives it back."""
    # Without GDAL's own side files, which would hide what the GeoTIFF itself cannot hold.
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), hushed(), MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=1, height=1, count=1, dtype="uint8",
            crs=CRS.from_wkt(wkt), transform=Affine(1, 0, 0, 0, -1, 1),
        ) as dataset:  # fmt: skip
            dataset.write(np.zeros((1, 1, 1), np.uint8))
        with memory.open() as dataset:
            return dataset.crs
