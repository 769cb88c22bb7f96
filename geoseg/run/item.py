"""The STAC item of a map, for catalogues: where it lies, and its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyproj
from shapely.geometry import MultiPolygon, Polygon, box, mapping
from shapely.geometry.polygon import orient

from geoseg._address import is_address, scene_name
from geoseg.io._handles import open_dataset
from geoseg.io.crs import crs_name
from geoseg.io.grid import Grid
from geoseg.io.times import TIFF_TIME, read_time
from geoseg.model.checkpoint import file_digest
from geoseg.options.products import CLASS_RASTERS, ITEM
from geoseg.run.folder import MULTIHASH
from geoseg.run.scenes import MOSAIC, STACK

_EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in (
        "projection/v2.0.0",
        "classification/v2.0.0",
        "raster/v2.0.0",
        "processing/v1.2.0",
        "file/v2.1.0",
    )
)
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_FORMATS = {
    ".gpkg": "application/geopackage+sqlite3",
    ".parquet": "application/vnd.apache.parquet",
    ".fgb": "application/vnd.flatgeobuf",
    ".geojson": "application/geo+json",
}
_CODE = re.compile(r"^[A-Z0-9]+:[A-Za-z0-9]+$")


def write_item(ready: Path, names: Sequence[str], report: Mapping[str, Any], grid: Grid) -> None:
    """Write ``item.json`` of the products in a folder.

    Parameters
    ----------
    ready
        Folder of the complete products.
    names
        Their names.
    report
        Content of ``run.json``.
    grid
        Pixels of the map.
    """
    import pystac

    facts = _place(grid) | {
        "created": report["finished"],
        "processing:software": {"geoseg": report["versions"]["geoseg"]},
        "processing:lineage": f"made by geoseg from {scene_name(report['scene'])} with "
        f"{report['model']['spec']}",
    }
    if grid.gsd_m is not None:
        facts["gsd"] = grid.gsd_m
    item = pystac.Item(
        id=f"{Path(scene_name(report['scene'])).stem or 'scene'}-{report['identity'][:12]}",
        geometry=_footprint(grid),
        bbox=None if grid.bbox_wgs84 is None else list(grid.bbox_wgs84),
        datetime=_taken(ready) or datetime.fromisoformat(report["finished"]),
        properties=facts,
        stac_extensions=list(_EXTENSIONS),
    )
    made = Path(report["scene"]).name in (MOSAIC, STACK) and report["sources"]
    for source in [one["path"] for one in report["sources"]] if made else [report["scene"]]:
        place = source if is_address(source) else str(Path(source).absolute())
        item.add_link(pystac.Link("derived_from", place, _media_type(source)))
    for name in names:
        if name != ITEM:
            more = _raster(ready / name, report, grid) if name.endswith(".tif") else {}
            file = {
                "file:size": (ready / name).stat().st_size,
                "file:checksum": MULTIHASH + file_digest(ready / name),
            }
            item.add_asset(
                Path(name).stem,
                pystac.Asset(
                    f"./{name}", media_type=_media_type(name), roles=_roles(name),
                    extra_fields=more | file,
                ),
            )  # fmt: skip
    text = json.dumps(item.to_dict(include_self_link=False), indent=2, allow_nan=False)
    (ready / ITEM).write_text(text + "\n", encoding="utf-8")


def _place(grid: Grid) -> dict[str, Any]:
    code = None if grid.crs is None else crs_name(grid.crs)
    place: dict[str, Any] = {
        "proj:code": code if code and _CODE.match(code) else None,
        "proj:shape": list(grid.shape),
    }
    if grid.crs is not None and place["proj:code"] is None:
        place["proj:wkt2"] = pyproj.CRS.from_user_input(grid.crs).to_wkt()
    if grid.with_transform:
        place |= {"proj:transform": list(grid.transform)[:6], "proj:bbox": list(grid.bounds)}
    return place


def _footprint(grid: Grid) -> dict[str, Any] | None:
    if grid.bbox_wgs84 is None or (corners := grid.corners_wgs84) is None:
        return None
    west, south, east, north = grid.bbox_wgs84
    if west > east:  # over the antimeridian
        return dict(
            mapping(MultiPolygon([box(west, south, 180, north), box(-180, south, east, north)]))
        )
    return dict(mapping(orient(Polygon(corners))))


def _taken(ready: Path) -> datetime | None:
    """When the scene was taken, as far as its file says."""
    with open_dataset(str(ready / "labels.tif")) as labels:
        return read_time(labels.tags().get(TIFF_TIME, ""))


def _raster(path: Path, report: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    with open_dataset(str(path)) as dataset:
        nodata, names = int(dataset.nodata), dataset.descriptions
        more: dict[str, Any] = {"data_type": dataset.dtypes[0], "nodata": nodata}
    if grid.gsd_m is not None:
        more["raster:spatial_resolution"] = grid.gsd_m
    if path.stem in CLASS_RASTERS:
        return more | {"classification:classes": _classes(report, nodata)}
    bands = {"bands": [{"name": name} for name in names]} if len(names) > 1 else {}
    return more | {"unit": "%"} | bands


def _classes(report: Mapping[str, Any], nodata: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for one in report["classes"]:
        word = re.sub(r"[^0-9A-Za-z_-]+", "-", one["name"]).strip("-") or "class"
        taken = word in (other["name"] for other in found)
        found.append(
            {
                "value": one["index"],
                "name": f"{word}-{one['index']}" if taken else word,
                "title": one["name"],
                "color_hint": one["color"].removeprefix("#").upper(),
            }
        )
    return [*found, {"value": nodata, "name": "nodata", "nodata": True}]


def _roles(name: str) -> list[str]:
    if name.endswith(".png"):
        return ["overview"]
    if name == "run.json":
        return ["metadata"]
    return ["data", "labels"] if name == "labels.tif" else ["data"]


def _media_type(name: str) -> str | None:
    suffix = Path(scene_name(name)).suffix.lower()
    known = {".tif": _COG, ".png": "image/png", ".json": "application/json"} | _FORMATS
    return known.get(suffix)
