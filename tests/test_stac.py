"""STAC items as scenes, and the item of a map for catalogues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasters import UTM, make, rgb
from typer.testing import CliRunner

import geoseg
from geoseg.errors import GeosegWarning, OptionError, OutputError, SceneError
from geoseg.io.expand import expand_scenes
from geoseg.io.scene import Scene
from geoseg.run.report import SCHEMA
from geoseg.testing import tiny_random_model
from geoseg_cli.main import app

QUICK = geoseg.Options(templates="none", upsampler="none", window=64, stride=64)
DATA = rgb(60, 70, dtype=np.uint16)
CODES = {"red": "B04", "green": "B03", "blue": "B02"}


def asset(file: str, colour: str | None = None, version: str = "1.0.0", **more: Any) -> Any:
    """One band, in the words of a version."""
    facts = {"href": f"./{file}", "type": "image/tiff; application=geotiff", "roles": ["data"]}
    if colour is not None and version == "1.0.0":
        facts["eo:bands"] = [{"name": file[:3], "common_name": colour}]
    elif colour is not None:
        facts["bands"] = [{"name": file[:3], "eo:common_name": colour}]
    return facts | more


def write_item(path: Path, assets: Any, version: str = "1.0.0", **more: Any) -> Path:
    """Write an item; what stands in ``properties`` comes on top of a date."""
    properties = {"datetime": "2021-01-22T10:11:12Z"} | more.pop("properties", {})
    item = {
        "type": "Feature", "stac_version": version, "id": "item-1", "geometry": None,
        "properties": properties, "links": [], "assets": assets,
    }  # fmt: skip
    path.write_text(json.dumps(item | more))
    return path


def bands_of(folder: Path, colours: Any = CODES, **profile: Any) -> None:
    """One file a band."""
    for plane, code in zip(DATA, colours.values(), strict=True):
        make(folder / f"{code}.tif", plane[None], **profile)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


def pixels(scene: Scene) -> Any:
    return scene.source.read(scene.grid.window)[0]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises((SceneError, OptionError)) as caught:
        Scene.open(path, **options)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    return said


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_red_green_and_blue_are_found_by_their_common_names(tmp_path: Path, version: str) -> None:
    bands_of(tmp_path)
    make(tmp_path / "B08.tif", DATA[:1] + 7)
    make(tmp_path / "visual.tif", rgb(60, 70))
    picture = [{"common_name": colour} for colour in CODES]
    assets = {
        "visual": {"href": "visual.tif", "type": "image/tiff", "eo:bands": picture},
        "thumbnail": asset("t.png", "red", version, type="image/png", roles=["thumbnail"]),
        "B02": asset("B02.tif", "blue", version),
        "B08": asset("B08.tif", "nir", version),
        "B03": asset("B03.tif", "green", version),
        "B04": asset("B04.tif", "red", version),
        "B04-jp2": asset("B04.tif", "red", version, type="image/jp2"),
    }
    path = write_item(tmp_path / "item.json", assets, version)
    scene = Scene.open(path)
    assert scene.source.assets == ("B04", "B03", "B02")
    assert scene.source.told_by == "assets"
    np.testing.assert_array_equal(pixels(scene), DATA)
    assert {Path(file).name for file, *_ in scene.source.files} == {"B04.tif", "B03.tif", "B02.tif"}

    named = Scene.open(path, bands=("nir", "B4", "green"))
    assert named.source.assets == ("B08", "B04", "B03")
    np.testing.assert_array_equal(pixels(named)[0], DATA[0] + 7)
    assert Scene.open(path, bands=("visual",)).dtype == "uint8"
    assert Scene.open(path, bands=("B08",)).bands == (1,)


def test_bands_of_one_file_are_found_in_the_order_of_the_item(tmp_path: Path) -> None:
    make(tmp_path / "image.tif", np.concatenate([DATA[::-1], DATA[:1] + 7]))
    bands = [{"common_name": colour} for colour in ("blue", "green", "red", "nir")]
    image = {"href": "image.tif", "type": "image/tiff", "eo:bands": bands}
    path = write_item(tmp_path / "item.json", {"image": image})
    scene = Scene.open(path)
    assert (scene.bands, scene.source.opened) == ((3, 2, 1), str(tmp_path / "image.tif"))
    np.testing.assert_array_equal(pixels(scene), DATA)
    assert Scene.open(path, bands=(4, 3, 2)).bands == (4, 3, 2)


def test_an_item_that_names_no_bands_leaves_them_to_its_only_file(tmp_path: Path) -> None:
    make(tmp_path / "rgb.tif", rgb())
    assets = {
        "visual": {"href": "rgb.tif", "type": "image/tiff"},
        "thumbnail": {"href": "t.png", "type": "image/png"},
    }
    assert Scene.open(write_item(tmp_path / "item.json", assets)).bands == (1, 2, 3)


def test_assets_of_other_resolutions_go_to_the_finest(tmp_path: Path) -> None:
    half = {"transform": Affine(2, 0, 500000, 0, -2, 5000000)}
    make(tmp_path / "B04.tif", DATA[:1])
    make(tmp_path / "B03.tif", DATA[1:2, ::2, ::2], **half)
    make(tmp_path / "B02.tif", DATA[2:, ::2, ::2], **half)
    assets = {code: asset(f"{code}.tif", colour) for colour, code in CODES.items()}
    scene = Scene.open(write_item(tmp_path / "item.json", assets))
    assert scene.shape == (60, 70)
    np.testing.assert_array_equal(pixels(scene)[0], DATA[0])


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
@pytest.mark.parametrize("files", ["several", "one"])
def test_scale_offset_and_nodata_count_once(tmp_path: Path, version: str, files: str) -> None:
    facts: dict[str, Any] = {"nodata": 0, "scale": 0.0001, "offset": -0.1}
    if version == "1.1.0":
        facts = {"nodata": 0, "raster:scale": 0.0001, "raster:offset": -0.1}
    more = {"raster:bands": [facts]} if version == "1.0.0" else facts
    data = DATA.copy()
    data[:, :5] = 0
    if files == "one":
        make(tmp_path / "image.tif", data)
        names = [{"name": c, "common_name": c, "eo:common_name": c} for c in CODES]
        image = {"href": "image.tif", "type": "image/tiff"}
        if version == "1.0.0":
            image |= {"eo:bands": names, "raster:bands": [facts] * 3}
        else:
            image |= {"bands": names, **facts}
        assets = {"image": image}
    else:
        for plane, code in zip(data, CODES.values(), strict=True):
            make(tmp_path / f"{code}.tif", plane[None])
        assets = {code: asset(f"{code}.tif", c, version, **more) for c, code in CODES.items()}
    path = write_item(tmp_path / "item.json", assets, version)
    scene = Scene.open(path)
    assert scene.source.units == ((0.0001, -0.1),) * 3
    found, valid = scene.source.read(scene.grid.window)
    np.testing.assert_array_equal(found, data)
    assert not valid[:5].any()
    assert valid[5:].all()

    for file in tmp_path.glob("*.tif"):  # the files say it, too
        with rasterio.open(file, "r+") as dataset:
            dataset.scales = (0.0001,) * dataset.count
            dataset.offsets = (-0.1,) * dataset.count
    again = Scene.open(path)
    assert again.source.units == ((0.0001, -0.1),) * 3


def test_what_a_file_says_holds_against_its_item(tmp_path: Path) -> None:
    bands_of(tmp_path, nodata=9)
    for file in tmp_path.glob("*.tif"):
        with rasterio.open(file, "r+") as dataset:
            dataset.scales = (0.5,)
    told = {"raster:bands": [{"scale": 0.25, "nodata": 0}]}
    assets = {code: asset(f"{code}.tif", colour, **told) for colour, code in CODES.items()}
    with pytest.warns(GeosegWarning, match=r"what its file says holds, 0\.5"):
        scene = Scene.open(write_item(tmp_path / "item.json", assets))
    assert scene.source.units == ((0.5, 0.0),) * 3
    assert scene.source.nodata == (9, 9, 9)


PLACE = [1, 0, 500000, 0, -1, 5000000]


@pytest.mark.parametrize(
    "proj",
    [
        {"proj:epsg": 32631, "proj:transform": PLACE},
        {"proj:code": UTM, "proj:transform": [*PLACE, 0, 0, 1], "proj:shape": [60, 70]},
    ],
)
def test_files_without_a_place_lie_where_their_item_says(tmp_path: Path, proj: Any) -> None:
    bands_of(tmp_path, crs=None, transform=Affine.identity())
    assets = {code: asset(f"{code}.tif", colour) for colour, code in CODES.items()}
    scene = Scene.open(write_item(tmp_path / "item.json", assets, properties=proj))
    assert scene.grid.crs.to_epsg() == 32631
    assert list(scene.grid.transform)[:6] == PLACE


@pytest.mark.parametrize(
    ("proj", "said"),
    [
        ({"proj:epsg": 32633}, "EPSG:32633"),
        ({"proj:code": "EPSG:9"}, "no CRS"),
        ({"proj:transform": [1, 0, 500009, 0, -1, 5000000]}, "proj:transform"),
        ({"proj:shape": [61, 70]}, "rows and columns"),
    ],
)
def test_an_item_and_files_of_other_places_are_refused(
    tmp_path: Path, proj: Any, said: str
) -> None:
    bands_of(tmp_path)
    assets = {code: asset(f"{code}.tif", colour, **proj) for colour, code in CODES.items()}
    path = write_item(tmp_path / "item.json", assets)
    assert said in refusal(path)
    if "proj:epsg" in proj:
        assert Scene.open(path, crs=UTM).grid.crs.to_epsg() == 32631


def test_what_is_wrong_with_an_item_is_one_line_with_what_there_is(tmp_path: Path) -> None:
    bands_of(tmp_path)
    path = tmp_path / "item.json"
    assets = {code: asset(f"{code}.tif", colour) for colour, code in CODES.items()}
    write_item(path, assets)
    assert "B04 (red), B03 (green), B02 (blue)" in refusal(path, bands=("red", "green", "lila"))
    assert "names" in refusal(path, bands=(1, 2, 3))
    write_item(path, assets | {"again": asset("B04.tif", "red")})
    assert "'B04', 'again'" in refusal(path)
    assert Scene.open(path, bands=("B04", "green", "blue")).source.assets[0] == "B04"
    write_item(path, {k: v for k, v in assets.items() if k != "B02"})
    assert "called red, green and blue" in refusal(path)
    write_item(
        path, assets | {"B02": {"eo:bands": [{"common_name": "blue"}], "type": "image/tiff"}}
    )
    assert "no href" in refusal(path)
    write_item(path, assets | {"B02": asset("gone.tif", "blue")})
    assert "gone.tif: no such file" in refusal(path)
    write_item(path, {"meta": {"href": "a.xml", "type": "application/xml"}})
    assert "no asset is a raster" in refusal(path)
    for broken in ({}, [], {"B04": "B04.tif"}):
        write_item(path, broken)
        assert "without assets" in refusal(path)
    links = [{"rel": "item", "href": "./one/one.json"}]
    write_item(path, assets, type="Collection", links=links)
    assert "collection, not an item; give an item of it: ./one/one.json" in refusal(path)
    write_item(path, assets, type="Catalog")
    assert "catalogue" in refusal(path)
    item = json.loads(write_item(path, assets).read_text())
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [item, item]}))
    assert "holds 2 STAC items (item-1, item-1)" in refusal(path)
    path.write_text('{"type": "Feature", "geometry": null}')
    assert "GeoJSON" in refusal(path)
    path.write_text('{"stac_version": ')
    assert "begins like JSON" in refusal(path)


@pytest.mark.parametrize("junk", [None, 3, "x", [], [[]], {"a": 1}, [None]])
@pytest.mark.parametrize(
    "key", ["eo:bands", "raster:bands", "bands", "roles", "type", "href", "proj:transform", "name"]
)
def test_junk_in_an_asset_is_never_more_than_a_line(tmp_path: Path, key: str, junk: Any) -> None:
    make(tmp_path / "rgb.tif", rgb())
    path = write_item(tmp_path / "item.json", {"image": asset("rgb.tif") | {key: junk}})
    try:
        Scene.open(path)
    except (SceneError, OptionError) as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_mask_may_be_an_asset(tmp_path: Path) -> None:
    bands_of(tmp_path)
    cloud = np.zeros((1, 30, 35), np.uint8)
    cloud[:, :10] = 8
    make(tmp_path / "scl.tif", cloud, transform=Affine(2, 0, 500000, 0, -2, 5000000))
    assets = {code: asset(f"{code}.tif", colour) for colour, code in CODES.items()}
    path = write_item(tmp_path / "item.json", assets | {"scl": asset("scl.tif")})
    scene = Scene.open(path, mask="scl", mask_values="8")
    valid = scene.read(scene.grid.window).valid
    assert not valid[:20].any()
    assert valid[20:].all()
    with pytest.raises(SceneError, match=r"clouds: no such file, and no asset.*scl"):
        Scene.open(path, mask="clouds")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    words = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_addresses_go_from_the_item_or_from_its_link(tmp_path: Path, server: str) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "data").mkdir()
    bands_of(tmp_path / "data")
    assets = {code: asset(f"../data/{code}.tif", colour) for colour, code in CODES.items()}
    assets["B02"]["href"] = f"{server}/data/B02.tif"
    write_item(tmp_path / "items" / "one", assets)
    scene = Scene.open(f"{server}/items/one")  # as an API has it
    np.testing.assert_array_equal(pixels(scene), DATA)
    assert len(scene.source.remote) == 3
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    links = [{"rel": "self", "href": f"{server}/items/one"}]
    path = write_item(fetched / "one.json", assets, links=links)
    np.testing.assert_array_equal(pixels(Scene.open(path)), DATA)
    with pytest.raises(SceneError, match="404"):
        Scene.open(f"{server}/items/two")


def run(scene: Path | str, out: Path, spec: str, **more: Any) -> Any:
    more = {"options": QUICK} | more
    return geoseg.segment_to_files(scene, "water; tree", out, model=spec, **more)


def test_an_item_of_four_assets_maps_like_its_files(tmp_path: Path, spec: str) -> None:
    bands_of(tmp_path)
    make(tmp_path / "B08.tif", DATA[:1] + 7)
    assets = {code: asset(f"{code}.tif", colour) for colour, code in CODES.items()}
    path = write_item(tmp_path / "item.json", assets | {"nir": asset("B08.tif", "nir")})
    one = run(path, tmp_path / "a", spec)
    files = [tmp_path / f"{code}.tif" for code in CODES.values()]
    other = run(files, tmp_path / "b", spec, reading={"rgb": True})
    for name in ("labels.tif", "confidence.tif"):
        with rasterio.open(one.out / name) as a, rasterio.open(other.out / name) as b:
            np.testing.assert_array_equal(a.read(), b.read())
            assert a.transform == b.transform
    assert one.report["reading"]["assets"] == ["B04", "B03", "B02"]
    assert [Path(s["path"]).name for s in one.report["sources"]] == [
        "B04.tif",
        "B03.tif",
        "B02.tif",
    ]
    with rasterio.open(one.out / "labels.tif") as labels:
        assert labels.tags()["TIFFTAG_DATETIME"] == "2021:01:22 10:11:12"

    assert run(path, tmp_path / "a", spec, update=True).status == "skipped"
    write_item(path, {k: v | {"raster:bands": [{"nodata": 5}]} for k, v in assets.items()})
    assert run(path, tmp_path / "a", spec, update=True).status == "done"


def test_the_command_line_takes_names(tmp_path: Path, spec: str) -> None:
    bands_of(tmp_path)
    make(tmp_path / "B08.tif", DATA[:1] + 7)
    assets = {code: asset(f"{code}.tif", colour) for colour, code in CODES.items()}
    path = write_item(tmp_path / "item.json", assets | {"nir": asset("B08.tif", "nir")})
    words = [
        "--classes", "water; tree", "--model", spec, "--templates", "none", "--upsampler", "none",
        "--window", "64",
    ]  # fmt: skip
    out = str(tmp_path / "map")
    told = ["segment", str(path), *words, "--out", out, "--bands", "nir, red,green"]
    done = CliRunner().invoke(app, [*told, "--dry-run"])
    assert "70 x 60 pixels" in done.output
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "map" / "run.json").read_text())
    assert report["reading"]["assets"] == ["nir", "B04", "B03"]
    again = ["segment", str(path), "--config", f"{out}/run.json", "--out", out, "--update"]
    done = CliRunner().invoke(app, [*again, "--json", "--window", "64"])
    assert json.loads(done.stdout)["runs"][0]["status"] == "skipped"
    done = CliRunner().invoke(app, ["info", str(path), "--model", spec])
    assert "B04, B03, B02" in done.stdout
    assert expand_scenes([str(tmp_path / "*.json")]) == [str(path)]


def test_a_scene_that_is_the_item_of_its_folder_stays(tmp_path: Path, spec: str) -> None:
    bands_of(tmp_path)
    assets = {code: asset(f"{code}.tif", colour) for colour, code in CODES.items()}
    path = write_item(tmp_path / "item.json", assets)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="scene itself"):
        run(path, tmp_path, spec, overwrite=True, products={"stac": True})
    run(path, tmp_path, spec)
    assert path.read_bytes() == before


# Of the extensions' schemas (https://github.com/stac-extensions), what they ask of an item's own
# fields; pystac brings those of STAC itself.
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_TEXT = {"type": "string"}
_RULES: dict[str, tuple[Any, Any]] = {
    "projection/v2.0.0": (
        {
            "proj:code": {"type": ["string", "null"]},
            "proj:wkt2": {"type": ["string", "null"]},
            "proj:projjson": {"type": ["object", "null"]},
            "proj:geometry": {},
            "proj:bbox": _NUMBERS | {"minItems": 4, "maxItems": 6},
            "proj:centroid": {},
            "proj:shape": {
                "type": "array",
                "minItems": 2,
                "maxItems": 2,
                "items": {"type": "integer"},
            },
            "proj:transform": _NUMBERS | {"minItems": 6, "maxItems": 9},
        },
        {},
    ),
    "classification/v2.0.0": (
        {},
        {
            "classification:bitfields": {},
            "classification:classes": {
                "type": "array",
                "minItems": 1,
                "uniqueItems": True,
                "items": {
                    "type": "object",
                    "required": ["value", "name"],
                    "properties": {
                        "value": {"type": "integer"},
                        "name": {"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
                        "title": _TEXT,
                        "description": _TEXT,
                        "color_hint": {"type": "string", "pattern": "^([0-9A-Fa-f]{6})$"},
                        "nodata": {"type": "boolean"},
                        "percentage": {"type": "number", "minimum": 0, "maximum": 100},
                        "count": {"type": "integer", "minimum": 0},
                    },
                },
            },
        },
    ),
    "raster/v2.0.0": (
        {},
        {
            "raster:sampling": {"enum": ["area", "point"]},
            "raster:bits_per_sample": {"type": "integer"},
            "raster:spatial_resolution": {"type": "number"},
            "raster:scale": {"type": "number"},
            "raster:offset": {"type": "number"},
            "raster:histogram": {"type": "object"},
        },
    ),
    "processing/v1.2.0": (
        {
            "processing:expression": {"type": "object"},
            "processing:lineage": _TEXT,
            "processing:level": _TEXT,
            "processing:facility": _TEXT,
            "processing:version": _TEXT,
            "processing:datetime": _TEXT,
            "processing:software": {"type": "object", "additionalProperties": _TEXT},
        },
        {},
    ),
    "file/v2.1.0": (
        {},
        {
            "file:byte_order": {"enum": ["big-endian", "little-endian"]},
            "file:checksum": {"type": "string", "pattern": "^[a-f0-9]+$"},
            "file:header_size": {"type": "integer", "minimum": 0},
            "file:size": {"type": "integer", "minimum": 0},
            "file:values": {"type": "array"},
            "file:local_path": _TEXT,
        },
    ),
}


def _schema(name: str, properties: Any, assets: Any) -> dict[str, Any]:
    uri = f"https://stac-extensions.github.io/{name}/schema.json"
    prefix = {"projection": "proj"}.get(name.partition("/")[0], name.partition("/")[0])

    def own(fields: Any) -> Any:
        """Fields of the extension are among these."""
        return {
            "type": "object",
            "properties": fields,
            "patternProperties": {f"^(?!{prefix}:)": {}},
            "additionalProperties": False,
        }

    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": f"{uri}#",
        "type": "object",
        "required": ["stac_extensions", "properties", "assets"],
        "properties": {
            "stac_extensions": {"type": "array", "contains": {"const": uri}},
            "properties": own(properties),
            "assets": {"type": "object", "additionalProperties": own(assets | properties)},
        },
    }


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Validate an item as pystac does, with schemas that are here."""
    pystac = pytest.importorskip("pystac")
    from pystac.validation import JsonSchemaSTACValidator, RegisteredValidator

    validator = JsonSchemaSTACValidator()
    for name, (properties, assets) in _RULES.items():
        uri = f"https://stac-extensions.github.io/{name}/schema.json"
        validator.schema_cache[uri] = _schema(name, properties, assets)
    monkeypatch.setattr(RegisteredValidator, "_validator", validator)

    def check(path: Path) -> Any:
        item = pystac.Item.from_file(str(path))
        assert len(item.validate()) == 1 + len(_RULES)
        return json.loads(path.read_text())

    return check


def test_the_rules_find_what_is_wrong(tmp_path: Path, spec: str, validate: Any) -> None:
    from pystac.errors import STACValidationError

    make(tmp_path / "s.tif", rgb())
    made = run(tmp_path / "s.tif", tmp_path / "map", spec, products={"stac": True})
    path = made.out / "item.json"
    item = json.loads(path.read_text())
    for part, key, value in (
        ("properties", "proj:shape", [1]),
        ("properties", "processing:software", {"geoseg": 1}),
        ("labels", "file:checksum", "XYZ"),
        ("labels", "classification:classes", [{"value": "a", "name": "b"}]),
        ("labels", "raster:unknown", 1),
        ("properties", "datetime", "yesterday"),
    ):
        place = item["properties"] if part == "properties" else item["assets"][part]
        before = place.get(key)
        place[key] = value
        path.write_text(json.dumps(item))
        with pytest.raises((STACValidationError, ValueError)):
            validate(path)
        place.pop(key) if before is None else place.update({key: before})


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326", "antimeridian", None])
def test_the_item_of_a_map_is_valid(
    tmp_path: Path, spec: str, validate: Any, crs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: dict[str, Any] = {"crs": crs}
    if crs == "EPSG:4326":
        place["transform"] = Affine(1e-5, 0, 4.5, 0, -1e-5, 0.5)
    if crs == "antimeridian":
        place = {"crs": "EPSG:4326", "transform": Affine(1e-5, 0, 179.9998, 0, -1e-5, 0.5)}
    scene = make(tmp_path / "s.tif", rgb(), **place)
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2019:09:04 10:11:12")
    products = {"stac": True, "probabilities": True, "runner_up": True, "polygons": "fgb"}
    reading = {} if crs else {"stretch": "none"}
    with pytest.warns(GeosegWarning) if crs is None else _quiet():
        made = run(scene, tmp_path / "map", spec, products=products, reading=reading)
    item = validate(made.out / "item.json")
    assert item["properties"]["datetime"] == "2019-09-04T10:11:12Z"
    assert set(item["assets"]) == {
        "labels", "confidence", "probabilities", "runner_up", "polygons", "preview", "run",
    }  # fmt: skip
    (link,) = item["links"]
    assert (link["rel"], link["href"]) == ("derived_from", str(scene))
    labels = item["assets"]["labels"]
    assert labels["href"] == "./labels.tif"
    assert labels["file:size"] == (made.out / "labels.tif").stat().st_size
    digest = made.report["files"]["labels.tif"]["sha256"]
    assert labels["file:checksum"] == f"1220{digest}"
    names = [one["name"] for one in labels["classification:classes"]]
    assert names == ["water", "tree", "nodata"]
    if crs is None:
        assert item["geometry"] is None
    elif crs == "antimeridian":
        assert item["geometry"]["type"] == "MultiPolygon"
    else:
        assert item["geometry"]["type"] == "Polygon"
        assert made.report["bbox_wgs84"] == item["bbox"]
    assert "item.json" in {file.name for file in made.files}
    assert made.report["schema"] == SCHEMA
    if crs == UTM:
        again = {"products": products, "update": True}
        assert run(scene, made.out, spec, **again).status == "skipped"
        item["assets"]["run"]["file:checksum"] = "1220"
        (made.out / "item.json").write_text(json.dumps(item))
        with pytest.warns(GeosegWarning, match=r"item\.json has changed"):
            assert run(scene, made.out, spec, **again).status == "done"
        (made.out / "item.json").write_text("{}")
        with pytest.raises(OutputError, match=r"item\.json is not geoseg's"):
            run(scene, made.out, spec, **again)


def _quiet() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_map_with_an_item_makes_the_same_bytes(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pystac")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1600000000")
    scene = make(tmp_path / "s.tif", rgb(), colorinterp=[
        ColorInterp.red, ColorInterp.green, ColorInterp.blue,
    ])  # fmt: skip
    first, other = (
        run(scene, tmp_path / name, spec, products={"stac": True}).out / "item.json"
        for name in ("a", "b")
    )
    assert first.read_bytes() == other.read_bytes()


def test_without_pystac_an_item_is_refused_before_any_work(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pystac" else found(name, *a)
    )
    scene = make(tmp_path / "s.tif", rgb())
    with pytest.raises(geoseg.errors.MissingExtraError, match=r"geoseg\[stac\]"):
        run(scene, tmp_path / "map", spec, products={"stac": True})
    assert not os.path.lexists(tmp_path / "map")
