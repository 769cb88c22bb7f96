"""Label rasters to vector files: formats, attributes, styles, refusals."""

from __future__ import annotations

import json
import sqlite3
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio import features
from vectors import blobs, label_file

from geoseg.errors import GeosegWarning, OptionError, OutputError, SceneError
from geoseg.io.grid import Grid
from geoseg.io.labels import LabelRaster
from geoseg.vector import VectorOptions, polygons, vectorize
from geoseg.vector.style import write_raster_style

SUFFIXES = [".gpkg", ".parquet", ".fgb", ".geojson"]
FIELDS = ["id", "class_id", "class_name", "area_m2", "perimeter_m", "touches_edge"]


def read(path: Path) -> gpd.GeoDataFrame:
    return gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path, layer=0)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    values = blobs(60, 80, 3, seed=4)
    values[10:20, 30:45] = 255
    return label_file(tmp_path / "labels.tif", values, ["roof", "road & rail", "Wäldchen"])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_every_format_holds_the_same(
    labels: Path, tmp_path: Path, suffix: str, connectivity: int
) -> None:
    out = tmp_path / f"polygons{suffix}"
    summary = vectorize(labels, out, options=VectorOptions(connectivity=connectivity))
    frame = read(out).sort_values("id")
    assert list(frame.columns.drop(["geometry", "bbox"], errors="ignore")) == FIELDS
    assert frame.id.tolist() == list(range(1, summary.count + 1))
    assert frame.class_name.isin(["roof", "road & rail", "Wäldchen"]).all()
    assert frame.touches_edge.any()
    assert not frame.touches_edge.all()
    assert frame.crs.to_epsg() == (4326 if suffix == ".geojson" else 32631)
    kinds = {"Polygon"} if connectivity == 4 else {"Polygon", "MultiPolygon"}
    assert set(frame.geom_type) <= kinds
    assert shapely.is_ccw(shapely.get_exterior_ring(shapely.get_parts(frame.geometry))).all()
    with rasterio.open(labels) as dataset:
        values, transform = dataset.read(1), dataset.transform
    placed = frame.to_crs(32631).geometry
    back = features.rasterize(
        zip(placed, frame.class_id, strict=True),
        out_shape=values.shape,
        fill=255,
        transform=transform,
        dtype="uint8",
    )
    np.testing.assert_array_equal(back, values)
    assert summary.count_by_class == frame.class_name.value_counts().to_dict()
    assert [path.name for path in tmp_path.iterdir()].count(out.name) == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {"polygons.qml"} == {"labels.tif", out.name}


def test_areas_and_nodata_add_up_to_the_scene(labels: Path, tmp_path: Path) -> None:
    summary = vectorize(labels, tmp_path / "out.gpkg")
    assert summary.area_m2 is not None
    geod = pyproj.Geod(ellps="WGS84")
    to_degrees = pyproj.Transformer.from_crs(32631, 4326, always_xy=True)

    def area(box: shapely.Geometry) -> float:
        ring = shapely.segmentize(box, 10)
        return abs(geod.geometry_area_perimeter(shapely.transform(ring, _both(to_degrees)))[0])

    scene = area(shapely.box(500_000, 4_999_400, 500_800, 5_000_000))
    nodata = area(shapely.box(500_300, 4_999_800, 500_450, 4_999_900))
    assert sum(summary.area_m2.values()) + nodata == pytest.approx(scene, rel=1e-8)


def _both(transformer: pyproj.Transformer):
    return lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_strips_do_not_show(
    labels: Path, tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = VectorOptions(simplify_m=12, smooth=1, min_area_m2=900)
    for choice in (VectorOptions(), options):
        vectorize(labels, tmp_path / "whole.gpkg", options=choice, overwrite=True)
        monkeypatch.setattr(polygons, "STRIP_PIXELS", rows * 80)
        vectorize(labels, tmp_path / "strips.gpkg", options=choice, overwrite=True)
        monkeypatch.undo()
        whole, strips = read(tmp_path / "whole.gpkg"), read(tmp_path / "strips.gpkg")
        assert whole.to_wkb().equals(strips.to_wkb())


def test_confidence_is_averaged_under_each_polygon(tmp_path: Path) -> None:
    values = np.array([[0, 0, 1, 1], [0, 255, 1, 1], [2, 2, 2, 2]], np.uint8)
    per_cent = np.array([[90, 80, 10, 20], [40, 7, 30, 255], [255, 255, 255, 255]], np.uint8)
    labels = label_file(tmp_path / "labels.tif", values)
    confidence = label_file(tmp_path / "confidence.tif", per_cent)
    vectorize(labels, tmp_path / "out.gpkg", confidence=confidence)
    frame = read(tmp_path / "out.gpkg").set_index("class_id")
    assert frame.confidence.loc[0] == 70
    assert frame.confidence.loc[1] == 20
    assert frame.confidence_min.loc[[0, 1]].tolist() == [40, 10]
    assert np.isnan(frame.confidence.loc[2])
    assert np.isnan(frame.confidence_min.loc[2])


def test_runner_up_scene_and_date_are_attributes_on_request(tmp_path: Path) -> None:
    values = np.zeros((8, 8), np.uint8)
    values[:4, :4] = 1
    path = label_file(tmp_path / "labels.tif", values, ["water", "crop", "tree"])
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(GEOSEG_SCENE="m_1.tif", TIFFTAG_DATETIME="2019:09:04 10:11:12")
    second = np.full((8, 8), 2, np.uint8)
    second[:4, :4] = 1  # nothing but the polygon's own class
    other = label_file(tmp_path / "second.tif", second, ["water", "crop", "tree"])
    options = VectorOptions(attributes="date, scene")
    for suffix in SUFFIXES:
        out = tmp_path / f"p{suffix}"
        vectorize(path, out, runner_up=other, options=options)
        frame = read(out).set_index("class_name")
        assert frame.runner_up.water == "tree"
        assert pd.isna(frame.runner_up.crop)
        assert set(frame.scene) == {"m_1.tif"}
        assert set(pd.to_datetime(frame.date, utc=True)) == {pd.Timestamp("2019-09-04T10:11:12Z")}
    vectorize(path, tmp_path / "plain.gpkg")
    assert not {"runner_up", "scene", "date"} & set(read(tmp_path / "plain.gpkg"))


def test_what_the_tags_do_not_say_is_warned_about(labels: Path, tmp_path: Path) -> None:
    options = VectorOptions(attributes=("scene", "date"))
    for suffix in SUFFIXES:
        with (
            pytest.warns(GeosegWarning, match=r"labels\.tif: no tag GEOSEG_SCENE says its scene"),
            pytest.warns(GeosegWarning, match=r"no tag TIFFTAG_DATETIME says its date"),
        ):
            vectorize(labels, tmp_path / f"p{suffix}", options=options)
        frame = read(tmp_path / f"p{suffix}")
        assert frame.scene.isna().all()
        assert frame.date.isna().all()


def test_a_runner_up_on_another_grid_is_refused(labels: Path, tmp_path: Path) -> None:
    other = label_file(tmp_path / "o.tif", np.zeros((3, 4), np.uint8))
    with pytest.raises(SceneError, match=r"o\.tif: does not lie on the grid of .*labels\.tif"):
        vectorize(labels, tmp_path / "p.gpkg", runner_up=other)
    assert not (tmp_path / "p.gpkg").exists()


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"transform": Affine(10, 0, 500_005, 0, -10, 5_000_000)}, "position or pixel size"),
        ({"transform": Affine(20, 0, 500_000, 0, -20, 5_000_000)}, "position or pixel size"),
        ({"crs": "EPSG:32632"}, "its CRS is EPSG:32632, not EPSG:32631"),
    ],
)
def test_confidence_on_another_grid_is_refused(
    labels: Path, tmp_path: Path, profile: dict[str, object], message: str
) -> None:
    other = label_file(tmp_path / "confidence.tif", np.zeros((60, 80), np.uint8), **profile)
    with pytest.raises(SceneError, match=message):
        vectorize(labels, tmp_path / "out.gpkg", confidence=other)
    small = label_file(tmp_path / "confidence.tif", np.zeros((60, 79), np.uint8))
    with pytest.raises(SceneError, match="79 x 60 pixels against 80 x 60"):
        vectorize(labels, tmp_path / "out.gpkg", confidence=small)
    assert not list(tmp_path.glob("*out*"))


def test_geopackage_brings_the_class_colours(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gpkg"
    vectorize(labels, out)
    # Through GDAL, and without a word of complaint.
    warnings.simplefilter("error")
    (style,) = pyogrio.read_dataframe(out, sql="SELECT * FROM layer_styles").itertuples()
    assert out.with_suffix(".qml").read_text(encoding="utf-8") == style.styleQML
    assert (style.f_table_name, style.f_geometry_column) == ("segments", "geom")
    assert style.useAsDefault
    root = ET.fromstring(style.styleQML.split("\n", 1)[1])
    renderer = root.find("renderer-v2")
    assert renderer is not None
    assert renderer.get("attr") == "class_id"
    colours = {
        symbol.get("name"): symbol.find("layer/Option/Option[@name='color']").get("value")
        for symbol in renderer.iter("symbol")
    }
    with rasterio.open(labels) as dataset:
        table = dataset.colormap(1)
    names = {}
    for category in renderer.iter("category"):
        value = int(category.get("value"))
        red, green, blue, _ = colours[category.get("symbol")].split(",")
        assert (int(red), int(green), int(blue)) == table[value][:3]
        names[value] = category.get("label")
    assert names == {0: "roof", 1: "road & rail", 2: "Wäldchen"}


def test_geopackage_brings_the_style_for_other_programs(labels: Path, tmp_path: Path) -> None:
    vectorize(labels, tmp_path / "out.gpkg")
    found = pyogrio.read_dataframe(tmp_path / "out.gpkg", sql="SELECT * FROM layer_styles")
    (style,) = found.itertuples()
    root = ET.fromstring(style.styleSLD)
    assert root.tag == "{http://www.opengis.net/sld}StyledLayerDescriptor"
    found = {}
    for rule in root.iter("{http://www.opengis.net/se}Rule"):
        fill, *_ = rule.iter("{http://www.opengis.net/se}SvgParameter")
        found[rule.findtext("{http://www.opengis.net/se}Name")] = (
            int(next(rule.iter("{http://www.opengis.net/ogc}Literal")).text or ""),
            fill.text,
        )
    classes = LabelRaster.open(labels).classes
    assert found == {c.name: (c.index, c.color) for c in classes}


def test_geopackage_says_where_it_comes_from(labels: Path, tmp_path: Path) -> None:
    tags = {
        "GEOSEG_SCENE": "m_1.tif",
        "GEOSEG_MODEL": "geoseg-tiny",
        "GEOSEG_CLASSES": "roof, house; road & <rail>; Wäldchen",
        "GEOSEG_VERSION": "0.1",
        "TIFFTAG_DATETIME": "2019:09:04 10:11:12",
    }
    with rasterio.open(labels, "r+") as dataset:
        dataset.update_tags(**tags, NOTE="mine")
    out = tmp_path / "out.gpkg"
    vectorize(labels, out)
    found = pyogrio.read_info(out, layer="segments")["layer_metadata"]
    words = "Map of m_1.tif, made by geoseg 0.1: roof, road & rail, Wäldchen"
    assert tags.items() <= found.items()
    assert "NOTE" not in found
    with sqlite3.connect(out) as package:
        (description,) = package.execute(
            "SELECT description FROM gpkg_contents WHERE table_name = 'segments'"
        ).fetchone()
    assert description == words


def test_raster_style_gives_names_and_colours(labels: Path) -> None:
    qml, names = write_raster_style(labels)
    assert (qml.name, names.name) == ("labels.qml", "labels.tif.aux.xml")
    entries = ET.fromstring(qml.read_text(encoding="utf-8").split("\n", 1)[1]).iter("paletteEntry")
    with rasterio.open(labels) as dataset:
        table = dataset.colormap(1)
    for entry in entries:
        colour = entry.get("color")
        assert colour is not None
        assert tuple(bytes.fromhex(colour[1:])) == table[int(entry.get("value"))][:3]
    categories = ET.fromstring(names.read_text(encoding="utf-8")).iter("Category")
    assert [c.text for c in categories] == ["roof", "road & rail", "Wäldchen"]
    write_raster_style(labels)  # what geoseg wrote may be written again
    qml.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        write_raster_style(labels)
    write_raster_style(labels, overwrite=True)


def test_geopackage_is_indexed_and_sound(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gpkg"
    summary = vectorize(labels, out)
    with sqlite3.connect(out) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (indexed,) = connection.execute("SELECT count(*) FROM rtree_segments_geom").fetchone()
    assert indexed == summary.count
    info = pyogrio.read_info(out, layer="segments")
    assert info["features"] == summary.count
    assert info["capabilities"]["fast_spatial_filter"]


@pytest.mark.parametrize("name", ["Flächen 2024", "select", "農地"])
def test_a_layer_may_have_a_name_of_the_users_choice(
    labels: Path, tmp_path: Path, name: str
) -> None:
    chosen = VectorOptions(layer=name)
    for suffix in ("gpkg", "fgb", "geojson"):
        out = tmp_path / f"a.{suffix}"
        count = vectorize(labels, out, options=chosen).count
        assert pyogrio.list_layers(out)[0, 0] == name
        assert len(gpd.read_file(out, layer=name)) == count > 0
    with sqlite3.connect(tmp_path / "a.gpkg") as package:
        assert package.execute("SELECT f_table_name FROM layer_styles").fetchall() == [(name,)]
        (indexed,) = package.execute(f'SELECT count(*) FROM "rtree_{name}_geom"').fetchone()
        assert indexed == count


@pytest.mark.parametrize("name", ["", " a", "gpkg_a", "RTREE_b", "a;b", "a\nb", 'a"b', "x" * 61])
def test_a_name_that_no_layer_can_have_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="give letters, up to 60"):
        VectorOptions(layer=name)


def test_geopackage_is_written_in_batches(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectorize(labels, tmp_path / "one.gpkg")
    monkeypatch.setattr(polygons, "_BATCH", 40)
    monkeypatch.setattr(polygons, "STRIP_PIXELS", 80)
    for suffix in SUFFIXES:
        vectorize(labels, tmp_path / f"many{suffix}")
        one, many = read(tmp_path / "one.gpkg"), read(tmp_path / f"many{suffix}")
        many = many.sort_values("id").to_crs(one.crs).reset_index(drop=True)
        assert many.area_m2.equals(one.area_m2)
        assert many.geometry.geom_equals_exact(one.geometry, 0.05).all()
    with sqlite3.connect(tmp_path / "many.gpkg") as connection:
        (indexed,) = connection.execute("SELECT count(*) FROM rtree_segments_geom").fetchone()
    assert indexed == len(one)


def test_geoparquet_says_what_it_is(labels: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    vectorize(labels, out)
    file = pq.ParquetFile(out)
    geo = json.loads(file.metadata.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert geo["version"] == "1.1.0"
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    assert column["geometry_types"] == ["Polygon"]
    assert pyproj.CRS.from_json_dict(column["crs"]).to_epsg() == 32631
    assert column["bbox"] == [500_000, 4_999_400, 500_800, 5_000_000]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    # The covering lets a reader skip what lies elsewhere.
    part = gpd.read_parquet(out, bbox=(500_000, 4_999_900, 500_100, 5_000_000))
    assert 0 < len(part) < len(gpd.read_parquet(out))


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", [{}, {"simplify_m": 12.0, "smooth": 1}, {"min_area_m2": 900.0}])
@pytest.mark.parametrize("rows", [3, 200])
def test_large_polygons_are_cut_on_a_grid(
    tmp_path: Path,
    connectivity: int,
    shape: dict[str, Any],
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts make up the polygon exactly, and nothing else is changed."""
    side, pixel = 32, 10
    values = blobs(90, 110, 4, seed=5)
    values[blobs(90, 110, 5, seed=6, sigma=3) > 1] = 3  # reaches over all of it, with holes
    values[40:44, 50:60] = 255
    path = label_file(tmp_path / "l.tif", values)
    more = {"connectivity": connectivity, **shape}
    vectorize(path, tmp_path / "whole.gpkg", options=VectorOptions(**more))
    monkeypatch.setattr(polygons, "STRIP_PIXELS", rows * 110)
    summary = vectorize(path, tmp_path / "cut.gpkg", options=VectorOptions(split=side, **more))
    whole, cut = (read(tmp_path / f"{name}.gpkg") for name in ("whole", "cut"))
    assert len(cut) == summary.count > len(whole)
    assert cut.is_valid.all()
    assert shapely.coverage_is_valid(cut.explode().geometry.values)
    extent = whole.bounds @ [[-1, 0], [0, -1], [1, 0], [0, 1]] / pixel
    large = (extent > side).any(axis=1)
    assert large.any()
    assert not large.all()
    tree = shapely.STRtree(cut.geometry.values)
    for polygon, is_large, name in zip(whole.geometry, large, whole.class_name, strict=True):
        parts = cut.iloc[tree.query(polygon, "intersects")]
        inside = shapely.intersects(polygon, parts.representative_point().values)
        parts = parts[inside & (parts.class_name == name).values]
        if "smooth" in shape:  # a vertex stays where a cut begins
            continue
        assert shapely.equals(shapely.union_all(parts.geometry.values), polygon)
        if not is_large:
            assert len(parts) == 1
    reach = (cut.bounds @ [[-1, 0], [0, -1], [1, 0], [0, 1]]) / pixel
    if "min_area_m2" in shape:  # small parts stay with another
        assert (cut.area_m2 >= shape["min_area_m2"] - 1e-6).all()
        assert (reach <= side).all(axis=1).mean() > 0.5
    else:
        assert (reach <= side).all(axis=None)
    assert cut.area_m2.sum() == pytest.approx(whole.area_m2.sum(), rel=1e-9)
    if not shape:
        pairs = [(g, int(v)) for g, v in zip(cut.geometry, cut.class_id, strict=True)]
        with rasterio.open(path) as dataset:
            back = features.rasterize(
                pairs, values.shape, fill=255, transform=dataset.transform, dtype="uint8"
            )
        np.testing.assert_array_equal(back, values)


def test_parts_of_a_cut_polygon_have_their_own_runner_up_and_confidence(tmp_path: Path) -> None:
    values = np.zeros((20, 60), np.uint8)
    second = np.ones((20, 60), np.uint8)
    second[:, 16:32] = 2
    path = label_file(tmp_path / "l.tif", values, ["a", "b", "c"])
    other = label_file(tmp_path / "s.tif", second, ["a", "b", "c"])
    vectorize(path, tmp_path / "p.gpkg", runner_up=other, options=VectorOptions(split=16))
    frame = read(tmp_path / "p.gpkg")
    assert len(frame) == 8
    assert set(frame.class_name) == {"a"}
    assert sorted(frame.runner_up) == ["b"] * 6 + ["c"] * 2
    assert frame.touches_edge.all()


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("more", [{}, {"smooth": 3}, {"split": 40}])
@pytest.mark.parametrize("rows", [7, 300])
def test_shaping_does_not_undercut_the_least_area(
    tmp_path: Path,
    connectivity: int,
    more: dict[str, int],
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = label_file(tmp_path / "l.tif", blobs(120, 150, 4, seed=8))
    least = 2000.0
    given = {"min_area_m2": least, "connectivity": connectivity}
    pixels = vectorize(path, tmp_path / "pixels.gpkg", options=VectorOptions(**given))
    monkeypatch.setattr(polygons, "STRIP_PIXELS", rows * 150)
    options = VectorOptions(simplify_m=25.0, **given, **more)
    vectorize(path, tmp_path / "p.gpkg", options=options)
    frame, exact = read(tmp_path / "p.gpkg"), read(tmp_path / "pixels.gpkg")
    points = [shapely.get_num_coordinates(f.geometry.values).sum() for f in (frame, exact)]
    if "smooth" not in more:
        assert points[0] < 0.7 * points[1]
    assert frame.is_valid.all()
    assert shapely.coverage_is_valid(frame.explode().geometry.values)
    if "split" not in more:
        assert len(frame) == pixels.count
        assert frame.area_m2.min() >= least * (1 - 1e-6)
    assert frame.area_m2.sum() == pytest.approx(exact.area_m2.sum(), rel=1e-9)
    if rows == 300:
        return
    monkeypatch.setattr(polygons, "STRIP_PIXELS", 300 * 150)
    vectorize(path, tmp_path / "again.gpkg", options=options)
    again = read(tmp_path / "again.gpkg")
    assert (frame.geometry.to_wkb() == again.geometry.to_wkb()).all()


def test_geojson_follows_rfc_7946(tmp_path: Path) -> None:
    # Two pixels on either side of the antimeridian, in a projected system.
    values = np.array([[0, 0, 1], [0, 0, 1]], np.uint8)
    x, y = pyproj.Transformer.from_crs(4326, 32660, always_xy=True).transform(180.0, 10.0)
    labels = label_file(
        tmp_path / "labels.tif",
        values,
        crs="EPSG:32660",
        transform=Affine(1000, 0, x - 1000, 0, -1000, y),
    )
    out = tmp_path / "out.geojson"
    vectorize(labels, out)
    document = json.loads(out.read_text(encoding="utf-8"))
    assert "crs" not in document
    crossing = document["features"][0]["geometry"]
    assert crossing["type"] == "MultiPolygon"
    sides = {np.sign(np.array(part[0])[:, 0].mean()) for part in crossing["coordinates"]}
    assert sides == {-1.0, 1.0}
    numbers = [
        str(number)
        for feature in document["features"]
        for part in shapely.get_parts(shapely.geometry.shape(feature["geometry"]))
        for number in shapely.get_coordinates(part).ravel()
    ]
    assert max(len(number.partition(".")[2]) for number in numbers) <= 7
    for feature in document["features"]:
        for part in shapely.get_parts(shapely.geometry.shape(feature["geometry"])):
            assert part.exterior.is_ccw


def test_without_a_coordinate_system_there_are_no_metres(tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 1]], np.uint8)
    labels = label_file(tmp_path / "plain.tif", values, crs=None, transform=Affine.identity())
    summary = vectorize(labels, tmp_path / "out.gpkg")
    frame = read(tmp_path / "out.gpkg")
    assert summary.area_m2 is None
    assert frame.area_m2.isna().all()
    assert frame.perimeter_m.isna().all()
    assert shapely.area(frame.geometry.values).tolist() == [1, 3]
    # As GIS software shows such an image: rows go down from 0.
    assert frame.geometry.iloc[0].equals(shapely.box(0, -1, 1, 0))
    with pytest.raises(OptionError, match="need metres, but it has no CRS"):
        vectorize(labels, tmp_path / "more.gpkg", options=VectorOptions(min_area_m2=1))
    with pytest.raises(OptionError, match=r"/out\.geojson: GeoJSON needs longitude and latitude"):
        vectorize(labels, tmp_path / "out.geojson")


@pytest.mark.parametrize("more", [{}, {"split": 16, "min_area_m2": 5.0}])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_nodata_gives_an_empty_layer(
    tmp_path: Path, suffix: str, more: dict[str, Any]
) -> None:
    labels = label_file(tmp_path / "labels.tif", np.full((5, 6), 255, np.uint8), ["a"])
    out = tmp_path / f"out{suffix}"
    assert vectorize(labels, out, options=VectorOptions(**more)).count == 0
    frame = read(out)
    assert len(frame) == 0
    if suffix != ".geojson":  # which has fields in its features only
        assert list(frame.columns.drop(["geometry", "bbox"], errors="ignore")) == FIELDS


def test_more_than_255_classes(tmp_path: Path) -> None:
    values = np.arange(300, dtype=np.uint16).reshape(15, 20)
    labels = tmp_path / "labels.tif"
    with rasterio.open(
        labels, "w", driver="GTiff", count=1, height=15, width=20, dtype="uint16", nodata=65535,
        crs="EPSG:32631", transform=Affine(1, 0, 500_000, 0, -1, 5_000_000),
    ) as dataset:  # fmt: skip
        dataset.write(values, 1)
        dataset.update_tags(1, **{f"CLASS_{i}": f"kind {i}" for i in range(300)})
    assert vectorize(labels, tmp_path / "out.gpkg").count == 300
    frame = read(tmp_path / "out.gpkg")
    assert frame.class_name.tolist() == [f"kind {i}" for i in range(300)]


def test_a_raster_without_nodata_keeps_every_value(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    labels = tmp_path / "labels.tif"
    with rasterio.open(
        labels, "w", driver="GTiff", count=1, height=16, width=16, dtype="uint8",
        crs="EPSG:32631", transform=Affine(1, 0, 500_000, 0, -1, 5_000_000),
    ) as dataset:  # fmt: skip
        dataset.write(values, 1)
    assert vectorize(labels, tmp_path / "out.gpkg").count == 256


def test_nothing_is_overwritten_unasked(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gpkg"
    out.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        vectorize(labels, out)
    assert out.read_text() == "mine"
    vectorize(labels, out, overwrite=True)
    assert len(read(out)) > 0


def test_a_run_that_fails_leaves_nothing(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(polygons, "_BATCH", 1)
    monkeypatch.setattr(polygons, "STRIP_PIXELS", 80 * 20)
    for suffix in SUFFIXES:
        with pytest.raises(KeyboardInterrupt):
            vectorize(labels, tmp_path / f"out{suffix}", progress=stop)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "error"),
    [("out.shp", OptionError), ("nowhere/out.gpkg", OutputError)],
)
def test_impossible_targets_are_refused(
    labels: Path, tmp_path: Path, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        vectorize(labels, tmp_path / name)


@pytest.mark.parametrize(
    "options",
    [
        {"connectivity": 6},
        {"min_area_m2": -1},
        {"simplify_m": float("nan")},
        {"smooth": 9},
        {"drop_small": True},
        {"split": 3},
        {"split": 64, "drop_small": True, "min_area_m2": 9},
        {"attributes": "place"},
    ],
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        VectorOptions(**options)


def _label_like(path: Path) -> tuple[np.ndarray, dict[str, object]] | None:
    """Four levels of a scene's first band, on the scene's own grid; None if it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with rasterio.open(path) as dataset:
                if dataset.count == 0:
                    return None
                size = min(100, dataset.height), min(100, dataset.width)
                window = rasterio.windows.Window(0, 0, size[1], size[0])
                band = np.abs(dataset.read(1, window=window)).astype(np.float64)
                profile = {"crs": dataset.crs, "transform": dataset.transform}
        except rasterio.errors.RasterioError:
            return None
    known = np.isfinite(band) & (band < 1e30)
    levels = np.quantile(band[known], [0.25, 0.5, 0.75]) if known.any() else [1, 2, 3]
    return np.where(known, np.digitize(band, levels), 255).astype(np.uint8), profile


@pytest.mark.slow
def test_every_reference_scene_is_partitioned(shared: Path, tmp_path: Path) -> None:
    done = 0
    for path in sorted((shared / "scenes").rglob("*")):
        found = _label_like(path) if path.suffix in (".tif", ".png") else None
        if found is None:
            continue
        values, profile = found
        labels = label_file(tmp_path / "labels.tif", values, **profile)
        summary = vectorize(labels, tmp_path / "out.gpkg", overwrite=True)
        frame = read(tmp_path / "out.gpkg")
        assert summary.count == len(frame), path
        assert frame.geometry.is_valid.all(), path
        assert shapely.coverage_is_valid(frame.geometry.values), path
        back = features.rasterize(
            zip(frame.geometry, frame.class_id, strict=True),
            out_shape=values.shape,
            fill=255,
            transform=Grid(None, profile["transform"], *values.shape).drawn.transform,
            dtype="uint8",
        ) if len(frame) else np.full(values.shape, 255, np.uint8)  # fmt: skip
        np.testing.assert_array_equal(back, values, err_msg=str(path))
        pixel = abs(profile["transform"].determinant)
        for value, part in frame.groupby("class_id"):
            assert part.area.sum() == pytest.approx((values == value).sum() * pixel, rel=1e-6)
        done += 1
    assert done > 20
