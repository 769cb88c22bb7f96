"""Class areas per zone, and the two commands."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from affine import Affine
from typer.testing import CliRunner
from vectors import blobs, label_file

from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.vector import vectorize
from geoseg.vector.stats import COLUMNS, write_stats, zone_stats
from geoseg_cli.main import app

UTM_SCALE = 0.9996**2


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    values = np.zeros((40, 40), np.uint8)
    values[:, 20:] = 1
    values[30:, :] = 255
    return label_file(tmp_path / "labels.tif", values, ["land", "water"])


def zones_file(path: Path, zones: dict[str, shapely.Geometry], crs: int = 32631) -> Path:
    frame = gpd.GeoDataFrame({"name": list(zones)}, geometry=list(zones.values()), crs=32631)
    frame.to_crs(crs).to_file(path, layer="parishes")
    return path


@pytest.mark.parametrize("crs", [32631, 4326, 3035])
def test_areas_by_hand(labels: Path, tmp_path: Path, crs: int) -> None:
    zones = {
        "west": shapely.box(500_003, 4_999_801, 500_177, 4_999_950),
        "both": shapely.box(500_155, 4_999_703.5, 500_212, 4_999_900),
        "half labelled": shapely.box(500_000, 4_999_600, 500_100, 4_999_800),
        "elsewhere": shapely.box(600_000, 4_999_600, 600_100, 4_999_800),
    }
    table = zone_stats(labels, zones_file(tmp_path / "z.gpkg", zones, crs), column="name")
    assert tuple(table.columns) == COLUMNS
    area = table.pivot_table(values="area_m2", index="zone", columns="class_name")
    near = {"rel": 2e-6, "abs": 0.05}
    assert area.land["west"] * UTM_SCALE == pytest.approx(174 * 149, **near)
    assert area.water["west"] == pytest.approx(0, abs=0.05)
    assert area.land["both"] * UTM_SCALE == pytest.approx(45 * 196.5, **near)
    assert area.water["both"] * UTM_SCALE == pytest.approx(12 * 196.5, **near)
    by_zone = table.drop_duplicates("zone").set_index("zone")
    assert by_zone.coverage["west"] == pytest.approx(1, rel=1e-5)
    assert by_zone.coverage["half labelled"] == pytest.approx(0.5, rel=1e-5)
    assert by_zone.coverage["elsewhere"] == 0
    assert by_zone.zone_area_m2["half labelled"] * UTM_SCALE == pytest.approx(20_000, rel=1e-6)
    assert table[table.zone == "both"].share.tolist() == pytest.approx([45 / 57, 12 / 57], rel=1e-5)


def test_zones_agree_with_polygons(tmp_path: Path) -> None:
    # Two routes to the same areas: counted pixels, and overlays of the vectorised labels.
    values = blobs(70, 60, 3, seed=11)
    transform = Affine.translation(400_000, 5_300_000) @ Affine.rotation(25) @ Affine.scale(8, 5)
    labels = label_file(tmp_path / "labels.tif", values, crs="EPSG:32632", transform=transform)
    centre = transform @ (30, 35)
    disc = shapely.difference(shapely.Point(centre).buffer(140), shapely.Point(centre).buffer(33))
    gpd.GeoDataFrame(geometry=[disc], crs=32632).to_file(tmp_path / "z.fgb")
    table = zone_stats(labels, tmp_path / "z.fgb").set_index("class_id")
    vectorize(labels, tmp_path / "out.gpkg")
    cut = gpd.read_file(tmp_path / "out.gpkg", layer="segments").clip(disc)
    planar = cut.dissolve("class_id").area
    ratio = table.area_m2 / planar
    assert ratio.to_numpy() == pytest.approx(ratio.mean(), rel=1e-5)
    assert ratio.mean() == pytest.approx(1 / 0.9996**2, rel=1e-3)


def test_strips_do_not_show(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = shapely.Point(500_200, 4_999_850).buffer(130)
    zones = zones_file(tmp_path / "z.gpkg", {"disc": zone})
    whole = zone_stats(labels, zones)
    monkeypatch.setattr("geoseg.vector.coverage.CELLS_IN_MEMORY", 90)
    np.testing.assert_allclose(zone_stats(labels, zones).area_m2, whole.area_m2)


def test_zones_that_lie_elsewhere_or_have_a_spike(labels: Path, tmp_path: Path) -> None:
    spiked = shapely.Polygon([(0, 0), (100, 0), (100, 100), (100, 400), (100, 100), (0, 100)])
    zones = {
        "nothing": shapely.box(800_000, 4_000_000, 800_100, 4_000_100),
        "spiked": shapely.affinity.translate(spiked, 500_000, 4_999_800),
        "box": shapely.box(500_000, 4_999_800, 500_100, 4_999_900),
    }
    table = zone_stats(labels, zones_file(tmp_path / "z.gpkg", zones), column="name")
    land = table[table.class_name == "land"].set_index("zone").area_m2
    assert land["nothing"] == 0
    assert land["box"] > 0
    assert land["spiked"] == pytest.approx(land["box"], rel=1e-6)
    only = zones_file(tmp_path / "none.gpkg", {"nothing": zones["nothing"]})
    assert zone_stats(labels, only).area_m2.tolist() == [0, 0]


def test_pixels_of_a_wide_geographic_raster_have_the_areas_of_their_rows(tmp_path: Path) -> None:
    transform = Affine.translation(10, 70) @ Affine.scale(0.5, -0.5)
    values = np.zeros((80, 20), np.uint8)
    values[40:] = 1
    labels = label_file(
        tmp_path / "l.tif", values, ["north", "south"], crs="EPSG:4326", transform=transform
    )
    gpd.GeoDataFrame(geometry=[shapely.box(10, 30, 20, 70)], crs=4326).to_file(tmp_path / "z.gpkg")
    area = zone_stats(labels, tmp_path / "z.gpkg").area_m2
    lines = np.sin(np.radians([70, 50, 30]))
    assert area[0] / area[1] == pytest.approx(
        (lines[0] - lines[1]) / (lines[1] - lines[2]), rel=5e-3
    )


def test_damaged_labels_are_named_and_progress_reaches_its_end(
    labels: Path, tmp_path: Path
) -> None:
    zone = zones_file(tmp_path / "z.gpkg", {"a": shapely.box(5e5, 4_999_700, 500_400, 5e6)})
    shares: list[float] = []
    zone_stats(labels, zone, progress=shares.append)
    assert shares[-1] == 1
    labels.write_bytes(labels.read_bytes()[:400])
    with pytest.raises(SceneError, match=r"labels\.tif"):
        zone_stats(labels, zone)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_tables_are_written_whole_and_never_over(labels: Path, tmp_path: Path, suffix: str) -> None:
    zones = zones_file(tmp_path / "z.gpkg", {"a": shapely.box(5e5, 4_999_700, 500_400, 5e6)})
    table = zone_stats(labels, zones, column="name")
    out = write_stats(table, tmp_path / f"out{suffix}")
    read = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}[suffix]
    pd.testing.assert_frame_equal(read(out), table, check_dtype=False)
    with pytest.raises(OutputError, match="--overwrite"):
        write_stats(table, out)
    with pytest.raises(OptionError):
        write_stats(table, tmp_path / "out.xlsx")


def test_wrong_zones_are_refused(labels: Path, tmp_path: Path) -> None:
    points = gpd.GeoDataFrame(geometry=[shapely.Point(5e5, 5e6)], crs=32631)
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(SceneError, match="no polygons for zones, it holds points"):
        zone_stats(labels, tmp_path / "points.gpkg")
    with pytest.raises(SceneError, match="no such file"):
        zone_stats(labels, tmp_path / "none.gpkg")
    zones = zones_file(tmp_path / "z.gpkg", {"a": shapely.box(0, 0, 1, 1)})
    with pytest.raises(OptionError, match="it has name"):
        zone_stats(labels, zones, column="parish")


def test_stats_command(labels: Path, tmp_path: Path, runner: CliRunner) -> None:
    zones = zones_file(tmp_path / "z.gpkg", {"a": shapely.box(5e5, 4_999_700, 500_400, 5e6)})
    arguments = ["stats", str(labels), "--zones", str(zones), "--zone-column", "name"]
    plain = runner.invoke(app, arguments)
    assert plain.exit_code == 0, plain.output
    lines = plain.stdout.splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert [line.split(",")[2] for line in lines[1:]] == ["land", "water"]
    as_json = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
    assert as_json["zones"][0]["class_name"] == "land"
    assert as_json["zones"][0]["area_m2"] == pytest.approx(60_000 / UTM_SCALE, rel=1e-5)
    out = tmp_path / "table.csv"
    assert runner.invoke(app, [*arguments, "--out", str(out)]).exit_code == 0
    again = runner.invoke(app, [*arguments, "--out", str(out)])
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr


def test_vectorize_command(labels: Path, tmp_path: Path, runner: CliRunner) -> None:
    out = tmp_path / "out.fgb"
    arguments = ["vectorize", str(labels), "--out", str(out), "--simplify", "5"]
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["count"] == 2
    assert report["count_by_class"] == {"land": 1, "water": 1}
    assert report["area_m2"]["land"] == pytest.approx(60_000 / UTM_SCALE, rel=1e-5)
    assert len(gpd.read_file(out)) == 2
    again = runner.invoke(app, arguments)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert again.stdout == ""
    for wrong in (["--connectivity", "5"], ["--min-area", "-3"], ["--smooth", "99"]):
        refused = runner.invoke(app, [*arguments, "--overwrite", *wrong])
        assert refused.exit_code == 2, wrong
        assert len(refused.stderr.strip().splitlines()) == 1
