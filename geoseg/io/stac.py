"""Scenes that a STAC item describes: which assets are read, and what it says of their pixels.

Items of STAC 1.0 and 1.1 (https://github.com/radiantearth/stac-spec) with the extensions eo, raster
and projection. What a file says of itself holds; an item fills in what its files leave open.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError

from geoseg._address import is_address, shown_address
from geoseg._inputs import is_there, shown
from geoseg._remote import http_address, read_at_most
from geoseg._texts import as_number
from geoseg.errors import OptionError, SceneError, warn
from geoseg.io.bands import COLOURS, Band, by_words, has_code, has_colour
from geoseg.io.crs import crs_name, same_crs
from geoseg.io.described import nodata_as
from geoseg.io.mosaic import Part, mosaic_text, stack_text

_MOST_BYTES = 16 * 2**20
_STARTS = re.compile(rb"(\xef\xbb\xbf)?\s*\{")
_NAMED = re.compile(r"(\.(geo)?json|/items/[^/]+)$", re.IGNORECASE)
"""Addresses of items: files, and what an API answers."""
_STORES = ("/vsicurl/", "/vsis3/", "/vsigs/", "/vsiaz/", "/vsiadls/")
_NO_DATA_ROLES = frozenset({"thumbnail", "overview", "metadata"})
_NO_DATA_NAMES = frozenset({"thumbnail", "overview", "preview", "rendered_preview", "tilejson"})
_RASTERS = re.compile(r"\.(tiff?|jp2|vrt|img|png|jpe?g|nc|h5)$", re.IGNORECASE)
_SHOWN_NAMES = 12
_ALIGNED = 0.5
"""Fraction of a pixel by which a file may lie off the place that its item says."""


@dataclass(frozen=True)
class Asset:
    """A file of an item."""

    name: str
    address: str | None = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False)
    """What the item says of it."""
    bands: tuple[Mapping[str, Any], ...]
    """What it says of its bands, with what it says of all of them; one if it does not say."""

    @property
    def is_scene(self) -> bool:
        """Whether it holds pixels of the scene, not a small picture of it."""
        if self.name.lower() in _NO_DATA_NAMES or _NO_DATA_ROLES & self._roles:
            return False
        kind = self.facts.get("type")
        if isinstance(kind, str) and not kind.startswith("application/"):
            return kind.startswith("image/")
        return _RASTERS.search((self.address or "").partition("?")[0]) is not None

    @property
    def is_picture(self) -> bool:
        """Whether its colours are made for the eye, not measured."""
        return "visual" in self._roles | {self.name.lower()}

    @property
    def _roles(self) -> set[str]:
        roles = self.facts.get("roles")
        return set(map(str, roles)) if isinstance(roles, list) else set()


@dataclass(frozen=True)
class Layer:
    """A band of an asset."""

    asset: Asset
    number: int
    """Counted from 1."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the item says of it."""
        return self.asset.bands[self.number - 1]

    @property
    def common_name(self) -> str:
        """Its colour, as the extension eo calls it."""
        return str(self.facts.get("eo:common_name") or self.facts.get("common_name") or "").lower()

    @property
    def band(self) -> Band:
        """What the choice of bands knows of it."""
        alone = self.asset.name if len(self.asset.bands) == 1 else None
        names = (alone, self.facts.get("name"), self.common_name)
        length = self.facts.get("eo:center_wavelength") or self.facts.get("center_wavelength")
        micrometres = _number(length)
        return Band(
            tuple(dict.fromkeys(str(name) for name in names if name)),
            None if micrometres is None else 1000 * micrometres,
        )


@dataclass(frozen=True)
class Opened:
    """What GDAL opens of an item, and which bands of that are used."""

    name: str
    bands: tuple[int, ...] | None
    """None if the file itself tells."""
    assets: tuple[str, ...]
    """Names of the assets, one for each band."""


@dataclass(frozen=True)
class Item:
    """A STAC item; made by `read_item`."""

    path: str
    facts: Mapping[str, Any] = field(repr=False)
    assets: Mapping[str, Asset]

    @property
    def taken(self) -> str:
        """When the scene was taken; empty if it does not say."""
        return str(self._property("datetime") or self._property("start_datetime") or "")

    @property
    def of_a_map(self) -> bool:
        """Whether geoseg has made what it describes."""
        software = self._property("processing:software")
        return isinstance(software, Mapping) and "geoseg" in software

    def open(self, bands: Sequence[int | str] | None, *, crs: str | None = None) -> Opened:
        """Choose assets, and say how GDAL opens them as one.

        Parameters
        ----------
        bands
            Names of assets, common names or names of bands; numbers if there is one asset. None
            takes red, green and blue.
        crs
            Code of the CRS that a person says; the item's word is not asked for then.

        Raises
        ------
        SceneError
            If assets cannot be opened, do not make one scene or are not what the item says.
        OptionError
            If no asset, or more than one, has a name; the message lists what there is.
        """
        asset, numbers, layers = self._choose(bands)
        if asset is not None:
            part = self._part(asset, crs)
            found = part.with_facts
            name = mosaic_text([found]) if found is not None else part.part.path
            kept = None if numbers is None else tuple(numbers)
            return Opened(name, kept, (asset.name,) * len(kept or (1,)))
        parts = []
        for layer in layers:
            part = self._part(layer.asset, crs)
            if layer.number > len(part.part.dtypes):
                raise SceneError(
                    f"{self.path}: asset '{layer.asset.name}' has {len(part.part.dtypes)} bands in "
                    f"its file, and {len(layer.asset.bands)} in the item"
                )
            parts.append(replace(part.with_facts or part.part, band=layer.number))
        names = tuple(layer.asset.name for layer in layers)
        return Opened(stack_text(parts, self.path), tuple(range(1, len(parts) + 1)), names)

    def address_of(self, name: str) -> str | None:
        """Address of the asset of a name; None if there is no such asset."""
        asset = self.assets.get(name)
        return None if asset is None else asset.address

    def _choose(
        self, bands: Sequence[int | str] | None
    ) -> tuple[Asset | None, Sequence[int] | None, Sequence[Layer]]:
        """One asset, and its bands if the item tells them; or layers of several."""
        scenes = [asset for asset in self.assets.values() if asset.is_scene]
        if bands is None:
            layers = self._colours(scenes)
            if layers is None:
                return self._only(scenes), None, ()
        else:
            given = [bands] if isinstance(bands, str) else list(bands)
            numbers = [n for one in given if (n := as_number(str(one))) is not None]
            if len(numbers) == len(given):
                return self._only(scenes, numbers), numbers, ()
            alone = self.assets.get(str(given[0])) if len(given) == 1 else None
            if alone is not None:
                return alone, None, ()
            layers = [self._layer(str(name), self.assets.values()) for name in given]
        first = layers[0].asset
        if all(layer.asset is first for layer in layers):
            return first, [layer.number for layer in layers], ()
        return None, None, layers

    def _only(self, scenes: Sequence[Asset], numbers: Sequence[int] | None = None) -> Asset:
        found = [asset for asset in scenes if not asset.is_picture] or scenes
        if len(found) == 1:
            return found[0]
        if not found:
            raise SceneError(f"{self.path}: no asset is a raster of the scene; {self._listed()}")
        if numbers is not None:
            raise OptionError(
                f"{self.path}: is a STAC item of several rasters, whose bands have names; give "
                f"--bands with three of them, or one; {self._listed()}"
            )
        raise SceneError(
            f"{self.path}: no assets are called red, green and blue; choose with --bands; "
            f"{self._listed()}"
        )

    def _colours(self, scenes: Sequence[Asset]) -> Sequence[Layer] | None:
        """Red, green and blue; measured ones go before a picture made of them."""
        for pictures in (False, True):
            pool = [asset for asset in scenes if asset.is_picture == pictures]
            known = {layer.common_name for layer in _layers(pool)}
            if known >= set(COLOURS):
                return [self._layer(colour, pool) for colour in COLOURS]
        layers = _layers(asset for asset in scenes if not asset.is_picture)
        about = f"{self.facts.get('id')} {self._property('platform')}"
        told = by_words([layer.band for layer in layers], about)
        return None if told is None else [layers[number - 1] for number in told[0]]

    def _layer(self, name: str, assets: Iterable[Asset]) -> Layer:
        """The band of a name, of those that are measured if there are any."""
        key, pool = name.strip().lower(), _layers(assets)
        ways: list[Callable[[Layer], bool]] = [
            lambda layer: layer.asset.name.lower() == key and len(layer.asset.bands) == 1,
            lambda layer: layer.common_name == key,
            lambda layer: str(layer.facts.get("name", "")).lower() == key,
            lambda layer: has_code(layer.band, key),
            lambda layer: has_colour(layer.band, key),
        ]
        for fits in ways:
            found = [layer for layer in pool if fits(layer)]
            for better in (
                lambda layer: layer.asset.is_scene,
                lambda layer: not layer.asset.is_picture,
                lambda layer: "jp2" not in str(layer.asset.facts.get("type")),
            ):
                found = [layer for layer in found if better(layer)] or found
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(f"'{layer.asset.name}'" for layer in found)
                raise OptionError(
                    f"{self.path}: {len(found)} assets have a band '{shown(name)}': "
                    f"{shown(names)}; name assets with --bands"
                )
        raise OptionError(
            f"{self.path}: no asset or band is called '{shown(name)}'; {self._listed()}"
        )

    def _listed(self) -> str:
        return f"its assets are {listed_assets(self.assets)}"

    def _property(self, name: str) -> Any:
        properties = self.facts.get("properties")
        return properties.get(name) if isinstance(properties, Mapping) else None

    def _part(self, asset: Asset, crs: str | None) -> _Told:
        if asset.address is None:
            raise SceneError(f"{self.path}: asset '{shown(asset.name)}' has no href")
        try:
            part = Part.open(asset.address)
        except SceneError as error:
            raise type(error)(f"{self.path}: asset '{shown(asset.name)}': {error}") from error
        told = replace(
            part,
            crs=part.crs if crs is not None else self._crs(asset, part),
            transform=self._transform(asset, part),
            units=tuple(self._units(asset, part, index) for index in range(len(part.dtypes))),
            nodata=tuple(self._nodata(asset, part, index) for index in range(len(part.dtypes))),
        )
        return _Told(part, told)

    def _crs(self, asset: Asset, part: Part) -> CRS | None:
        told = next((c for f in (asset.facts, None) if (c := self._crs_of(f)) is not None), None)
        if told is None or part.crs is None:
            return part.crs or told
        if not same_crs(told, part.crs):
            raise SceneError(
                f"{self.path}: says that asset '{asset.name}' has CRS {crs_name(told)}, and its "
                f"file has {crs_name(part.crs)}; say with --crs which one is right"
            )
        return part.crs

    def _crs_of(self, facts: Mapping[str, Any] | None) -> CRS | None:
        ask = self._property if facts is None else facts.get
        words: list[Any] = [ask("proj:code"), ask("proj:wkt2")]
        if ask("proj:epsg") is not None:
            words.append(f"EPSG:{ask('proj:epsg')}")
        if isinstance(ask("proj:projjson"), Mapping):
            words.append(json.dumps(ask("proj:projjson")))
        for text in words:
            if isinstance(text, str) and text:
                try:
                    return CRS.from_user_input(text)
                except (CRSError, ValueError):
                    raise SceneError(
                        f"{self.path}: '{shown(text)}' is no CRS; say with --crs which one holds"
                    ) from None
        return None

    def _transform(self, asset: Asset, part: Part) -> Affine:
        """Where a file lies: as it says, or as the item does."""
        own, shape = _affine(asset.facts.get("proj:transform")), asset.facts.get("proj:shape")
        size = [part.height, part.width]
        if isinstance(shape, list) and shape != size:
            raise SceneError(
                f"{self.path}: says that asset '{asset.name}' has {shown(shape)} rows and columns, "
                f"and its file has {size}; one of them is of another scene"
            )
        if part.transform == Affine.identity():
            whole = self._property("proj:shape")
            fits = whole is None or whole == size
            general = _affine(self._property("proj:transform")) if fits else None
            return own or general or part.transform
        if own is not None:
            step = ~part.transform * own
            far = (step * (0, 0), step * (part.width, part.height))
            off = [far[0][0], far[0][1], far[1][0] - part.width, far[1][1] - part.height]
            if not max(map(abs, off)) <= _ALIGNED:
                raise SceneError(
                    f"{self.path}: proj:transform puts asset '{asset.name}' at {tuple(own)[:6]}, "
                    f"its file says {tuple(part.transform)[:6]}; one of them is of another scene"
                )
        return part.transform

    def _units(self, asset: Asset, part: Part, index: int) -> tuple[float, float]:
        facts, own = asset.bands[index] if index < len(asset.bands) else {}, part.units[index]
        given = [
            _number(facts.get(name, facts.get(f"raster:{name}"))) for name in ("scale", "offset")
        ]
        if given == [None, None]:
            return own
        told = (1.0 if given[0] is None else given[0], given[1] or 0.0)
        if own == (1.0, 0.0):
            return told
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(own, told, strict=True)):
            warn(
                f"{self.path}: says scale {told[0]:g} and offset {told[1]:g} of asset "
                f"'{asset.name}'; what its file says holds, {own[0]:g} and {own[1]:g}"
            )
        return own

    def _nodata(self, asset: Asset, part: Part, index: int) -> float | None:
        own = part.nodata[index]
        facts = asset.bands[index] if index < len(asset.bands) else asset.facts
        told = _number(facts.get("nodata"))
        if own is not None or told is None:
            return own
        return nodata_as(told, part.dtypes[index])


@dataclass(frozen=True)
class _Told:
    """A file as it is, and as its item tells it."""

    part: Part
    told: Part

    @property
    def with_facts(self) -> Part | None:
        """The file with what the item adds; None if that is nothing.

        A palette's values are colours, whatever an item says of scale and nodata.
        """
        same = self.told == self.part or ColorInterp.palette in self.part.colours
        return None if same else self.told


def read_item(path: str) -> Item | None:
    """Read a STAC item at a path or an address; None if that is something else.

    Raises
    ------
    SceneError
        If it is STAC, but no item with assets; the message says what there is.
    """
    data = _content(path)
    if data is None:
        return None
    try:
        facts = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict):
        return None
    if facts.get("type") == "FeatureCollection" and _is_stac(facts.get("features")):
        names = [str(one.get("id")) for one in facts["features"] if isinstance(one, dict)]
        raise SceneError(
            f"{path}: holds {len(names)} STAC items ({_some(names)}); save the one that is meant"
        )
    if "stac_version" not in facts:
        return None
    if facts.get("type", "Feature") != "Feature" or "assets" not in facts:
        raise SceneError(f"{path}: is a STAC {_kind(facts)}, not an item; {_items_of(facts)}")
    given = facts["assets"]
    found = {str(k): v for k, v in given.items()} if isinstance(given, dict) else {}
    assets = {
        name: Asset(name, _href(path, facts, value), value, _bands(value))
        for name, value in found.items()
        if isinstance(value, dict)
    }
    if not assets:
        raise SceneError(f"{path}: is a STAC item without assets, so there is nothing to read")
    return Item(path, facts, assets)


def mask_asset(path: str, mask: str) -> str:
    """Address of the mask that a name stands for: an asset of the item, or what it is itself."""
    if is_address(mask) or "/" in mask or (item := read_item(path)) is None:
        return mask
    found = item.address_of(mask)
    if found is None and not is_there(mask):
        raise SceneError(
            f"{mask}: no such file, and no asset of {path}, whose assets are "
            f"{listed_assets(item.assets)}"
        )
    return found or mask


def listed_assets(assets: Mapping[str, Asset]) -> str:
    """Names of assets with those of their bands, those of the scene first."""
    words = []
    for asset in sorted(assets.values(), key=lambda one: not one.is_scene):
        names = [
            layer.common_name or str(layer.facts.get("name", "")) for layer in _layers([asset])
        ]
        inner = ", ".join(n for n in names if n and n != asset.name)
        words.append(f"{asset.name} ({inner})" if inner else asset.name)
    return _some(words)


def _content(path: str) -> bytes | None:
    """Bytes of what may be an item."""
    if is_address(path):
        if path.startswith("/vsi") and not path.startswith(_STORES):
            return None
        if not _NAMED.search(path.partition("?")[0]):
            return None
        return read_at_most(path, "STAC item", SceneError, _MOST_BYTES)
    file = Path(path)
    try:
        if not file.is_file():
            return None
        with file.open("rb") as content:
            if not _STARTS.match(head := content.read(64)):
                return None
            return head + content.read(_MOST_BYTES)
    except (OSError, ValueError):
        return None


def _is_stac(features: Any) -> bool:
    return isinstance(features, list) and any(
        isinstance(one, dict) and "stac_version" in one for one in features
    )


def _kind(facts: Mapping[str, Any]) -> str:
    kind = str(facts.get("type", "")).lower()
    return {"collection": "collection", "catalog": "catalogue"}.get(kind, "file without assets")


def _items_of(facts: Mapping[str, Any]) -> str:
    links = facts.get("links") if isinstance(facts.get("links"), list) else []
    found = [
        shown_address(str(link.get("href")))
        for link in links or ()
        if isinstance(link, dict) and link.get("rel") == "item"
    ]
    return f"give an item of it: {_some(found)}" if found else "give the item of a scene"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return shown(", ".join(names[:_SHOWN_NAMES]) + more)


def _href(path: str, facts: Mapping[str, Any], asset: Mapping[str, Any]) -> str | None:
    """Where an asset lies: its address goes from the item, or from where the item says it lies."""
    href = asset.get("href")
    if not isinstance(href, str) or not href.strip():
        return None
    found = _joined(path, href)
    if is_address(found) or is_there(found):
        return found
    links = facts.get("links") if isinstance(facts.get("links"), list) else []
    for link in links or ():
        place = link.get("href") if isinstance(link, dict) and link.get("rel") == "self" else None
        if isinstance(place, str) and is_address(place):
            return _joined(place, href)
    return found


def _joined(base: str, href: str) -> str:
    if href.lower().startswith("file://"):
        return unquote(urlsplit(href).path)
    if is_address(href):
        return href
    if not is_address(base):
        return str(Path(base).parent / href)
    base = base.partition("?")[0]
    if http := http_address(base):
        return urljoin(http, href)
    root, slash, place = base.removeprefix("/").partition("://")
    if not slash:  # /vsis3/bucket/…
        root, slash, place = "", "/", root
    steps: list[str] = []
    for step in [*place.split("/")[:-1], *href.split("/")]:
        if step == "..":
            steps = steps[:-1] if len(steps) > 1 else steps
        elif step not in ("", "."):
            steps.append(step)
    return f"{root}{slash}{'/'.join(steps)}"


def _bands(asset: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What an item says of an asset's bands, of STAC 1.1 or of 1.0."""
    lists = [asset.get(name) for name in ("bands", "eo:bands", "raster:bands")]
    rows = [
        [band if isinstance(band, dict) else {} for band in one]
        for one in lists
        if isinstance(one, list)
    ]
    own = {k: v for k, v in asset.items() if not isinstance(v, list) and k != "name"}
    count = max([1, *map(len, rows)])
    merged = []
    for index in range(count):
        band = dict(own)
        for row in rows:
            band |= row[index] if index < len(row) else {}
        merged.append(band)
    return tuple(merged)


def _layers(assets: Iterable[Asset]) -> list[Layer]:
    return [Layer(one, number) for one in assets for number in range(1, len(one.bands) + 1)]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _affine(given: Any) -> Affine | None:
    told = [_number(one) for one in given] if isinstance(given, list) else []
    numbers = [one for one in told if one is not None]
    if len(told) not in (6, 9) or len(numbers) < len(told):
        return None
    found = Affine(*numbers[:6])
    return None if found.is_degenerate else found
