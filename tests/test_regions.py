"""Regions that vote: polygons and numbers of a file, superpixels of a scene."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import geopandas as gpd
import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import rioxarray  # noqa: F401  # makes .rio
import shapely
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import rasterize, shapes
from rasterio.transform import from_origin
from rasters import UTM, make
from typer.testing import CliRunner

import geoseg
from geoseg import Options, Products, Reading
from geoseg.errors import GeosegWarning, OptionError, OutputError, SceneError
from geoseg.inference.decide import Decision
from geoseg.inference.lane import TileResult
from geoseg.inference.regions import Superpixels, votes
from geoseg.inference.segmenter import Segmenter
from geoseg.io.grid import Grid, pieces
from geoseg.io.regions import open_regions
from geoseg.run.regions import Sums
from geoseg.testing import drawn_rgb, tiny_random_model, write_scene
from geoseg.types import Window
from geoseg_cli.main import app

Array = npt.NDArray[Any]
GOLDENS = np.load(Path(__file__).resolve().parent / "goldens" / "family" / "regions.npz")
FORM = json.loads((files("geoseg") / "schemas" / "run.json").read_text(encoding="utf-8"))
SIZE = (150, 170)
PLACE = from_origin(500_000, 5_000_000, 2, 2)
BARE = Products(polygons="none", preview=False)
WHOLE = Products(preview=False, margin=True, runner_up=True, probabilities=True)
NAMES = "red; green; blue"
BOXES = {"a": (10, 10, 60, 50), "b": (40, 80, 90, 70), "inside a": (20, 20, 9, 8)}
"""Row, column, height and width. ``b`` lies on the corners of tiles of 64."""


def box(row: float, col: float, height: float, width: float) -> shapely.Polygon:
    left, top = 500_000 + 2 * col, 5_000_000 - 2 * row
    return shapely.box(left, top - 2 * height, left + 2 * width, top)


def parcels(boxes: Mapping[str, tuple[float, ...]] = BOXES, **more: Any) -> gpd.GeoDataFrame:
    columns = {"parcel": list(boxes)} | more
    return gpd.GeoDataFrame(columns, geometry=[box(*one) for one in boxes.values()], crs=UTM)


def numbers_of(boxes: dict[str, tuple[int, int, int, int]] = BOXES) -> Array:
    """Region of each pixel, counted from 1, later boxes over earlier ones; 0 for none."""
    found = np.zeros(SIZE, np.int32)
    for number, (row, col, height, width) in enumerate(boxes.values(), 1):
        found[row : row + height, col : col + width] = number
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("regions")


@pytest.fixture(scope="module")
def pixels() -> Array:
    """Noise, with a tendency that changes from left to right; 0 is no data."""
    noise = np.random.default_rng(5).integers(1, 120, (3, *SIZE))
    noise[0, :, :90] += 40
    noise[1, :, 70:] += 30
    noise[:, 100:120, 90:100] = 0
    return noise.astype(np.uint8)


@pytest.fixture(scope="module")
def scene(folder: Path, pixels: Array) -> Path:
    return make(folder / "scene.tif", pixels, transform=PLACE, nodata=0)


@pytest.fixture(scope="module")
def given_file(folder: Path) -> Path:
    """The parcels, in degrees."""
    path = folder / "parcels.gpkg"
    parcels().to_crs(4326).to_file(path)
    return path


def brightest(windows: torch.Tensor) -> torch.Tensor:
    """A network that scores a class by its colour."""
    return windows


SCORER = geoseg.Scorer(brightest, activation="none")


def mapped(scene: Path, out: Path, regions: Any, **more: Any) -> geoseg.pipeline.Run:
    chosen = {"window": 32, "stride": 32, "blend": "uniform", "region_agreement": 0.0}
    chosen |= {"regions": regions} | more.pop("options", {})
    settings = {"scorer": SCORER, "options": Options(**chosen), "products": BARE} | more
    return geoseg.segment_to_files(scene, NAMES, out, **settings)


def raster(out: Path | str, name: str = "labels") -> Array:
    with rasterio.open(Path(out) / f"{name}.tif") as dataset:
        found = dataset.read()
    return found[0] if len(found) == 1 else found


def by_hand(pixels: Array, numbers: Array, rule: str, agreement: float = 0.0) -> Array:
    """Labels and per cents of confidence, region by region."""
    valid, scores = pixels.any(0), pixels / 255
    labels = np.where(valid, scores.argmax(0), 255)
    sure = np.where(valid, np.round(100 * scores.max(0)), 255)
    own = labels.copy()
    for number in np.unique(numbers[numbers > 0]):
        inside = (numbers == number) & valid
        counts = np.bincount(own[inside], minlength=3) / inside.sum()
        shares = scores[:, inside].mean(1) if rule == "mean" else counts
        if counts[shares.argmax()] >= agreement:
            labels[inside], sure[inside] = shares.argmax(), round(100 * shares.max())
    return np.stack([labels, sure])


# -- against numbers of others ---------------------------------------------------------------------


def decision_of(classes: list[int], scale: float, threshold: float) -> Decision:
    count = max(classes) + 1
    limits = torch.full((count,), threshold) if threshold else None
    return Decision(torch.tensor(classes), count, scale, limits, background=0)


@pytest.mark.parametrize(
    ("case", "classes", "threshold", "ambiguous"),
    [
        ("with_background", [0, 0, 1, 2, 3, 4], 0.2, 5),
        ("all_covered", [0, 1, 2, 3, 4], 0.0, 5),
        ("tiny_regions", [0, 1, 2, 3], 0.0, 1),
    ],
)
def test_a_majority_is_the_published_programs(
    case: str, classes: list[int], threshold: float, ambiguous: int
) -> None:
    """Its region of the smallest number is left alone, as what lies in none here."""
    logits, regions, before, after = (
        GOLDENS[f"{case}__{name}"]
        for name in ("logits", "regions", "labels_before", "labels_corrected")
    )
    decision = decision_of(classes, 40.0, threshold)
    decided = decision(torch.from_numpy(logits.astype(np.float32)).permute(1, 2, 0))
    if f"{case}__class_scores" in GOLDENS:
        scores = decided.scores.permute(2, 0, 1).numpy()
        assert np.abs(scores - GOLDENS[f"{case}__class_scores"]).max() < 1e-5
    assert (decided.labels.numpy() != before).sum() <= ambiguous
    numbers = np.where(regions == regions.min(), 0, regions).astype(np.int64)
    tile = TileResult(Window(0, 0, *before.shape), before)
    sums = Sums.of(numbers, tile, decision.classes)
    found = votes(torch.from_numpy(sums.counts), None, decision, "majority").labels.numpy()
    told = before.copy()
    for number, label in zip(sums.numbers, found, strict=True):
        told[numbers == number] = label
    assert np.array_equal(told, after)


def test_sums_of_logits_make_the_mean_of_each_region() -> None:
    logits, regions = (GOLDENS[f"with_background__{name}"] for name in ("logits", "regions"))
    whole = (logits.astype(np.float64) * 2**24).astype(np.int64)  # exact
    tile = TileResult(Window(0, 0, *regions.shape), np.zeros(regions.shape, np.uint8))
    sums = Sums.of(regions.astype(np.int64), TileResult(tile.core, tile.labels, scores=whole), 1)
    found = logits.astype(np.float64)
    for number, total, count in zip(sums.numbers, sums.scores, sums.counts[:, 0], strict=True):
        found[:, regions == number] = (total / count / 2**24)[:, None]
    assert np.abs(found - GOLDENS["with_background__mean_logits"]).max() < 1e-6


def test_of_overlapping_polygons_the_largest_can_have_a_pixel(tmp_path: Path) -> None:
    """As published programs paint masks: by rank of area, later ones on top."""
    masks, painted = GOLDENS["painting__masks"], GOLDENS["painting__map"]
    outlines = [
        shapely.union_all(
            [shapely.geometry.shape(one) for one, value in shapes(
                mask.astype(np.uint8), transform=PLACE
            ) if value]
        )
        for mask in masks
    ]  # fmt: skip
    path = tmp_path / "masks.gpkg"
    gpd.GeoDataFrame(geometry=outlines, crs=UTM).to_file(path)
    grid = Grid(rasterio.crs.CRS.from_string(UTM), PLACE, *painted.shape)
    found = open_regions(path, grid, overlap="largest").numbers_in(grid.window)
    rank = np.append(0, masks.sum((1, 2)).argsort().argsort() + 1)
    assert np.array_equal(rank[found], painted)


# -- sums ------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.integers(1, 30))
def test_sums_of_tiles_are_those_of_the_whole(
    seed: int, height: int, width: int, side: int
) -> None:
    """Bit for bit, in any order of tiles."""
    rng = np.random.default_rng(seed)
    core = Window(int(rng.integers(50)), 3, height, width)
    numbers = rng.choice([0, 3, 7, 2**40], (height, width))
    labels = rng.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
    scores = rng.integers(0, 1001, (4, height, width)).astype(np.int16)

    def of(window: Window) -> Sums:
        here = window.relative_to(core).slices()
        tile = TileResult(window, labels[here], scores=scores[:, *here])
        return Sums.of(numbers[here], tile, 3)

    parts = [of(window) for window in pieces(core, side, side)]
    rng.shuffle(parts)  # type: ignore[arg-type]
    whole = of(core)
    total = Sums.total(parts, whole.numbers, Sums.none(3, 4))
    for name, values in vars(whole).items():
        assert np.array_equal(getattr(total, name), values), name
    for number, counts in zip(whole.numbers, whole.counts, strict=True):
        inside = (numbers == number) & (labels != 255)
        assert counts.tolist() == np.bincount(labels[inside], minlength=3).tolist()


def test_numbers_do_not_depend_on_the_window(tmp_path: Path) -> None:
    """Also where slanted edges meet the centres of pixels, over several pieces."""
    path = tmp_path / "triangles.gpkg"
    corners = [(0, 0), (1100, 1100), (0, 1100)], [(3, 0), (1003, 0), (1003, 1000)]
    place = [[(500_000 + 2 * x, 5_000_000 - 2 * y) for x, y in ring] for ring in corners]
    shapes_ = [shapely.Polygon(ring) for ring in place]
    gpd.GeoDataFrame(geometry=shapes_, crs=UTM).to_file(path)
    grid = Grid(rasterio.crs.CRS.from_string(UTM), PLACE, 1100, 1100)
    regions = open_regions(path, grid)
    whole = regions.numbers_in(grid.window)
    assert set(np.unique(whole)) == {0, 1, 2}
    again = pickle.loads(pickle.dumps(regions))
    assert again.table is None
    for window in (Window(500, 505, 30, 20), Window(0, 511, 1100, 2), Window(3, 7, 513, 600)):
        assert np.array_equal(again.numbers_in(window), whole[window.slices()])


# -- maps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mean", "majority"])
@pytest.mark.parametrize("agreement", [0.0, 0.5])
def test_the_map_is_what_regions_say(
    scene: Path, pixels: Array, given_file: Path, rule: str, agreement: float, tmp_path: Path
) -> None:
    options = {"region_rule": rule, "region_agreement": agreement}
    run = mapped(scene, tmp_path / "out", given_file, options=options, tile=64)
    labels, sure = by_hand(pixels, numbers_of(), rule, agreement)
    assert np.array_equal(raster(run.out), labels)
    apart = np.abs(raster(run.out, "confidence").astype(int) - sure)
    assert apart.max() <= 1
    assert (raster(run.out)[100:120, 90:100] == 255).all()
    jsonschema.validate(run.report, FORM)
    told = run.report["regions"]
    assert (told["given"], told["on_the_map"], told["rule"]) == (3, 3, rule)


def test_all_rasters_of_a_region_belong_together(
    scene: Path, given_file: Path, tmp_path: Path
) -> None:
    run = mapped(scene, tmp_path / "out", given_file, products=WHOLE)
    names = ("labels", "confidence", "margin", "runner_up", "probabilities")
    found = {name: raster(run.out, name) for name in names}
    inside = (numbers_of() == 2) & (found["labels"] != 255)
    one = {name: np.unique(values[..., inside], axis=-1) for name, values in found.items()}
    assert all(values.shape[-1] == 1 for values in one.values())
    shares = one["probabilities"][:, 0].astype(int)
    second, first = np.sort(shares)[-2:]
    assert shares[one["labels"][0]] == first == one["confidence"][0]
    assert shares[one["runner_up"][0]] == second
    assert abs(first - second - int(one["margin"][0])) <= 1


def test_the_way_a_run_goes_changes_nothing(scene: Path, given_file: Path, tmp_path: Path) -> None:
    """A parcel on the corners of tiles is one row, with the same numbers."""
    straight = mapped(scene, tmp_path / "straight", given_file, products=Products(preview=False))

    def stop(state: Any) -> None:
        if state.tiles_done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(scene, tmp_path / "resumed", given_file, tile=48, progress=stop)
    kept = sorted((tmp_path / "resumed" / ".geoseg-work" / "regions").iterdir())
    assert len(kept) >= 3
    kept[0].write_bytes(kept[0].read_bytes()[:-1])  # run again
    for out, more in (
        ("resumed", {"tile": 48, "resume": True}),
        ("tiles", {"tile": 64, "products": Products(preview=False)}),
    ):
        run = mapped(scene, tmp_path / out, given_file, **more)
        for name in ("labels", "confidence"):
            assert np.array_equal(raster(run.out, name), raster(straight.out, name))
        told = [one.report["regions"] for one in (run, straight)]
        assert told[0] == told[1]
    tables = [gpd.read_file(tmp_path / out / "regions.gpkg") for out in ("tiles", "straight")]
    assert tables[0].equals(tables[1])
    assert len(tables[0]) == len(BOXES)


def test_workers_give_the_same_regions(scene: Path, given_file: Path, tmp_path: Path) -> None:
    import distributed

    alone = mapped(scene, tmp_path / "alone", given_file, tile=48)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        spread = mapped(scene, tmp_path / "spread", given_file, tile=48, client=client)
    for name in ("labels", "confidence"):
        assert np.array_equal(raster(spread.out, name), raster(alone.out, name))
    assert spread.report["regions"] == alone.report["regions"]


def test_other_regions_are_another_run(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "parcels.gpkg"
    parcels().to_file(path)
    first = mapped(scene, tmp_path / "out", path)
    assert mapped(scene, tmp_path / "out", path, update=True).status == "skipped"
    path.unlink()
    parcels({"a": (10, 10, 60, 50)}).to_file(path)
    with pytest.raises(OutputError, match="other input or options"):
        mapped(scene, tmp_path / "out", path, resume=True)
    second = mapped(scene, tmp_path / "out", path, update=True)
    assert second.report["regions"]["on_the_map"] == 1
    assert first.report["identity"] != second.report["identity"]


def test_an_interrupted_run_with_other_regions_says_so(
    scene: Path, given_file: Path, tmp_path: Path
) -> None:
    def stop(state: Any) -> None:
        if state.tiles_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(scene, tmp_path / "out", given_file, tile=64, progress=stop)
    with pytest.raises(OutputError, match="because --regions changed"):
        mapped(scene, tmp_path / "out", parcels({"a": (0, 0, 9, 9)}), tile=64, resume=True)


def test_regions_of_a_part_are_decided_by_what_is_mapped(
    scene: Path, pixels: Array, given_file: Path, tmp_path: Path
) -> None:
    area = Window(20, 30, 100, 90)
    left, bottom, right, top = box(area.row, area.col, *area.shape).bounds
    reading = Reading(aoi=(left, bottom, right, top))
    run = mapped(scene, tmp_path / "out", given_file, reading=reading, tile=64)
    here = area.slices()
    labels, _ = by_hand(pixels[:, *here], numbers_of()[here], "mean")
    assert np.array_equal(raster(run.out), labels)
    outside = parcels({"far": (130, 150, 10, 10)})
    with pytest.raises(OptionError, match="no polygon of the regions lies in --aoi"):
        mapped(scene, tmp_path / "none", outside, reading=reading)


def test_without_enough_area_pixels_keep_their_own(
    scene: Path, pixels: Array, given_file: Path, tmp_path: Path
) -> None:
    """Of three regions the smallest is left alone; a pixel has 4 m²."""
    options = {"region_min_area_m2": 500.0}
    run = mapped(scene, tmp_path / "out", given_file, options=options)
    numbers = numbers_of()
    labels, _ = by_hand(pixels, np.where(numbers == 3, 0, numbers), "mean")
    assert np.array_equal(raster(run.out), labels)
    assert run.report["regions"]["applied"] == 2


def test_labels_on_another_grid_are_those_of_regions(
    scene: Path, given_file: Path, tmp_path: Path
) -> None:
    run = mapped(scene, tmp_path / "out", given_file, reading=Reading(gsd=4.0))
    labels = raster(run.out)
    assert labels.shape == SIZE
    assert len(np.unique(labels[80:95, 100:140])) == 1


def test_polygons_with_many_corners_are_cut_to_pieces_of_the_scene(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pixel's region is that of whole polygons, drawn at once."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    outlines = []
    for middle, far in ((75, 60), (100, 70), (20, 15)):
        length = far * (0.7 + 0.3 * rng.random(len(angles)))
        at = middle + length * np.stack([np.cos(angles), np.sin(angles)])
        outlines.append(shapely.Polygon(np.c_[500_000 + 2 * at[0], 5_000_000 - 2 * at[1]]))
    path = tmp_path / "coast.gpkg"
    table = gpd.GeoDataFrame(geometry=outlines, crs=UTM)
    table.to_file(path)
    order = table.area.sort_values(ascending=False).index
    wanted = rasterize(
        [(table.geometry[k], k + 1) for k in order], SIZE, transform=PLACE, dtype="int32"
    )
    monkeypatch.setattr("geoseg.io.regions._SIDE", 40)
    grid = Grid(rasterio.crs.CRS.from_string(UTM), PLACE, *SIZE)
    assert np.array_equal(open_regions(path, grid).numbers_in(grid.window), wanted)


# -- kinds of files --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["polygons", "numbers", "coarse", "table", "array", "series"])
def test_regions_come_in_many_ways(scene: Path, pixels: Array, kind: str, tmp_path: Path) -> None:
    numbers, path = numbers_of(), tmp_path / "regions.tif"
    if kind == "coarse":  # twice the pixel, from one that is no pixel of the scene
        numbers = np.repeat(np.repeat(numbers[::2, ::2], 2, 0), 2, 1)
        place = from_origin(500_000, 5_000_000, 4, 4)
        make(path, numbers[None, ::2, ::2], transform=place)
    elif kind == "numbers":
        make(path, np.where(numbers, numbers * 1_000_003, -1)[None], transform=PLACE, nodata=-1)
    x, y = 500_001 + 2.0 * np.arange(SIZE[1]), 4_999_999 - 2.0 * np.arange(SIZE[0])
    array = xr.DataArray(numbers, dims=("y", "x"), coords={"y": y, "x": x}).rio.write_crs(UTM)
    vector = tmp_path / "parcels.geojson"
    parcels().to_crs(4326).to_file(vector)
    regions = {
        "polygons": vector, "table": parcels(fid=["x", "y", "z"], Parcel=1), "array": array,
        "series": parcels().geometry,
    }.get(kind, path)  # fmt: skip
    run = mapped(scene, tmp_path / "out", regions, tile=64)
    assert np.array_equal(raster(run.out), by_hand(pixels, numbers, "mean")[0])
    names = {Path(file).name for file in run.files}
    assert ("regions.csv" in names) == (kind in ("numbers", "coarse", "array"))
    told = {
        "table": "a GeoDataFrame of 3 polygons (EPSG:32631)",
        "series": "a GeoSeries of 3 polygons (EPSG:32631)",
        "array": f"a DataArray of {SIZE[0]} x {SIZE[1]} pixels",
    }.get(kind, str(regions))
    assert run.report["regions"]["path"] == run.report["options"]["regions"] == told
    assert "/geoseg-" not in (run.out / "run.json").read_text()  # where objects pass through
    assert mapped(scene, tmp_path / "out", regions, tile=64, update=True).status == "skipped"
    if kind == "table":  # with names that no GeoPackage has room for
        products = Products(preview=False)
        mapped(scene, tmp_path / "out", regions, products=products, overwrite=True)
        names = list(gpd.read_file(tmp_path / "out" / "regions.gpkg"))
        assert names[:3] == ["parcel", "given_fid", "given_Parcel"]


def test_a_raster_of_numbers_gets_a_table(scene: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "numbers.tif", 10 * numbers_of()[None], transform=PLACE)
    run = mapped(scene, tmp_path / "out", path)
    import pandas as pd

    table = pd.read_csv(tmp_path / "out" / "regions.csv")
    assert table["region"].tolist() == [10, 20, 30]
    valid = raster(run.out) != 255
    assert table["pixels"].tolist() == [int((valid & (numbers_of() == k)).sum()) for k in (1, 2, 3)]
    assert "regions.csv" in run.report["files"]


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb", "parquet"])
def test_polygons_come_back_with_their_attributes(scene: Path, suffix: str, tmp_path: Path) -> None:
    boxes = BOXES | {"beside": (400, 0, 10, 10), "less than a pixel": (5.6, 5.6, 0.3, 0.3)}
    table = parcels(boxes, owner=["x", None, "z", "u", "v"], plants=[1, 2, 3, 4, 5])
    table["Pixels"] = [0.5, np.nan, 2, 3, 4]
    table["day"] = np.array(["2024-05-01"] * 5, "datetime64[ms]")
    products = Products(preview=False, polygons=suffix)
    table["Owner"] = "w"  # no format but Parquet has both
    with pytest.warns(GeosegWarning, match="written as given_Pixels"):
        run = mapped(scene, tmp_path / "out", table.to_crs(3857), products=products)
    path = tmp_path / "out" / f"regions.{suffix}"
    found = gpd.read_parquet(path) if suffix == "parquet" else gpd.read_file(path)
    found = found.sort_values("plants", ignore_index=True)  # FlatGeobuf has an order of its own
    assert found["parcel"].tolist() == ["a", "b", "inside a", "less than a pixel"]
    assert found["plants"].tolist() == [1, 2, 3, 5]
    assert found["given_Pixels"].isna().tolist() == [False, True, False, False]
    assert found["owner"].isna().tolist() == [False, True, False, False]
    assert found["given_Owner"].tolist() == ["w"] * 4
    assert found["day"].astype(str).str[:10].eq("2024-05-01").all()
    labels, numbers = raster(run.out), numbers_of()
    for index in range(3):
        row, inside = found.iloc[index], (numbers == index + 1) & (labels != 255)
        assert row["class_name"] == ["red", "green", "blue"][int(row["class_id"])]
        assert set(labels[inside].tolist()) == {int(row["class_id"])}
        assert row["pixels"] == inside.sum()
        assert row["area_m2"] == pytest.approx(4 * inside.sum(), rel=0.01)
        assert row["runner_up"] != row["class_name"]
        assert 0 < row["confidence"] <= 100
        assert 0 < row["agreement"] <= 100
        assert bool(row["applied"])
    last = found.iloc[3]
    assert last["pixels"] == 0
    assert last[["class_id", "class_name", "confidence", "area_m2"]].isna().all()
    expected = gpd.GeoSeries(table.geometry.iloc[[0, 1, 2, 4]], crs=UTM).to_crs(found.crs)
    assert found.geometry.reset_index(drop=True).geom_equals_exact(
        expected.reset_index(drop=True), 1e-6 * max(1, abs(expected.total_bounds).max()),
    ).all() or suffix == "geojson"  # fmt: skip


def test_regions_without_pixels_are_counted_aloud(scene: Path, tmp_path: Path) -> None:
    tiny = {str(k): (5.1 + 3 * k, 5.1, 0.3, 0.3) for k in range(4)}
    with pytest.warns(GeosegWarning, match="4 of 5 regions on the scene have no class"):
        run = mapped(scene, tmp_path / "out", parcels(tiny | {"a": (30, 30, 9, 9)}))
    assert run.report["regions"]["on_the_map"] == 1
    empty = make(tmp_path / "none.tif", np.zeros((1, *SIZE), np.uint8), transform=PLACE)
    with pytest.warns(GeosegWarning, match="no pixel of the scene with data lies in a region"):
        mapped(scene, tmp_path / "none", empty)


def test_of_several_layers_one_is_named(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    parcels().to_file(path, layer="parcels")
    parcels({"house": (15, 15, 9, 9)}).to_file(path, layer="houses")
    with pytest.raises(OptionError, match="name one with --regions-layer"):
        mapped(scene, tmp_path / "out", path)
    run = mapped(scene, tmp_path / "out", path, options={"regions_layer": "houses"})
    assert run.report["regions"]["given"] == 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("{}"), "not a vector file that can be read"),
        (lambda path: None, "no such file"),
        (
            lambda path: parcels().set_geometry(parcels().centroid).to_file(path),
            "no polygons for regions, it holds points",
        ),
        (lambda path: parcels().iloc[:0].to_file(path), "no polygons for regions"),
        (
            lambda path: parcels({"far": (9000, 0, 9, 9)}).to_file(path),
            "no polygon of the regions lies on the scene",
        ),
    ],
)
def test_what_is_no_help_is_refused_before_the_work(
    scene: Path, write: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "given.geojson"
    write(path)

    def never(windows: torch.Tensor) -> torch.Tensor:
        if len(windows):
            ran.append(len(windows))
        return windows

    ran: list[int] = []
    with pytest.raises((SceneError, OptionError), match=message) as refusal:
        mapped(scene, tmp_path / "out", path, scorer=geoseg.Scorer(never, activation="none"))
    assert "\n" not in str(refusal.value)
    assert len(ran) <= 1  # the scorer itself is tried
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crs": None}, "has no place|has no CRS"),
        ({"transform": from_origin(0, 0, 2, 2)}, "no ground in common"),
        ({"dtype": "float32"}, "holds fractions"),
        ({"dtype": "int64"}, "numbers from 2\\^53 on cannot be told apart; number the regions"),
        ({"count": 2}, "choose the raster of regions with --regions-layer"),
    ],
)
def test_a_raster_that_is_no_help_is_refused(
    scene: Path, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = numbers_of()[None].astype(change.get("dtype", "int32"))
    values = np.repeat(values, change.get("count", 1), 0)
    if values.dtype.kind == "f":
        values += 0.5
    if values.dtype == np.int64:
        values += 2**60
    path = make(tmp_path / "numbers.tif", values, **({"transform": PLACE} | change))
    if "crs" in change:  # which the scene's stands for, and a warning says so
        with pytest.warns(GeosegWarning, match="has no CRS, taking the scene's"):
            mapped(scene, tmp_path / "out", path)
        return
    with pytest.raises((SceneError, OptionError), match=message):
        mapped(scene, tmp_path / "out", path)


def test_a_file_without_crs_is_refused(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.shp"
    parcels().to_file(path)
    path.with_suffix(".prj").unlink()
    with pytest.raises(SceneError, match="the file has no CRS"):
        mapped(scene, tmp_path / "out", path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region_rule": "majority"}, "--region-rule says how .*; give --regions too"),
        ({"region_min_area_m2": 3}, "--region-min-area says how"),
        ({"regions": "superpixels", "regions_layer": "x"}, "--regions-layer is for regions of a"),
        ({"regions": "superpixel:size=9"}, "did you mean superpixels"),
        ({"regions": "superpixels:size=1"}, "size is 1; give a whole number from 2 to 64"),
        ({"regions": "superpixels:sise=8"}, "no key 'sise'; did you mean size"),
        ({"regions": "x.gpkg", "region_agreement": 50}, "--region-agreement is 50"),
        ({"regions": ["x.gpkg"]}, "regions is a list; give superpixels"),
        ({"regions": ""}, "regions is nothing"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**options).resolve({}).described_methods()


def test_what_has_no_whole_map_knows_no_regions_of_a_file(
    scene: Path, given_file: Path, folder: Path
) -> None:
    with pytest.raises(OptionError, match="decided over a whole map"):
        geoseg.segment(scene, NAMES, scorer=SCORER, options={"regions": given_file})
    model = geoseg.load_model(tiny_random_model(folder / "plain"), device="cpu")
    segmenter = Segmenter(model, NAMES, {"regions": given_file, "templates": "none"})
    with pytest.raises(OptionError, match="take superpixels"):
        segmenter.predict(np.zeros((40, 40, 3), np.uint8))


def test_the_command_line_takes_regions(
    scene: Path, given_file: Path, tmp_path: Path, runner: CliRunner
) -> None:
    network = tmp_path / "network.pt"
    torch.jit.script(torch.nn.Identity()).save(str(network))
    command = [
        "segment", str(scene), "--classes", NAMES, "--scorer", str(network), "--activation",
        "none", "--regions", str(given_file), "--region-rule", "majority", "--region-agreement",
        "0.2", "--region-min-area", "10", "--out", str(tmp_path / "out"), "--window", "32",
        "--no-preview",
    ]  # fmt: skip
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "regions.gpkg").exists()
    lonely = runner.invoke(
        app, [part for part in command if part not in ("--regions", str(given_file))]
    )
    assert lonely.exit_code in (1, 2)
    assert "give --regions too" in lonely.output.replace("\n", " ")


# -- superpixels -----------------------------------------------------------------------------------


def centres(numbers: torch.Tensor, size: int, origin: tuple[int, int], width: int) -> Array:
    """Row and column of the cell that each pixel's number stands for, in the scene."""
    across = -(-(origin[1] % size + width) // size)
    rows, cols = numbers // across + origin[0] // size, numbers % across + origin[1] // size
    return torch.stack([rows, cols]).numpy()


def straightforward(rgb: Array, valid: Array, method: Superpixels) -> Array:
    """Superpixels from their description, pixel by pixel, in exact arithmetic."""
    size, (height, width) = method.size, valid.shape
    colours = np.rint(255 * rgb.astype(np.float64)) - 128
    scale = method.compactness / size

    def quarters(x: Any) -> Any:
        return np.rint(4 * np.asarray(x, np.float64)) / 4

    def place(at: int) -> float:
        return float(quarters((at % size + 0.5) * scale))

    def seed(members: list[tuple[int, int]]) -> Array:
        values = [[*colours[:, y, x], place(y), place(x)] for y, x in members]
        return quarters(np.float32(np.sum(values, 0)) / np.float32(len(values)))

    cells: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, x in zip(*np.nonzero(valid), strict=True):
        cells.setdefault((y // size, x // size), []).append((y, x))
    seeds = {cell: seed(members) for cell, members in cells.items()}
    joined = np.full((height, width, 2), -1)
    order = [(0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    for step in range(5):
        for (row, col), members in cells.items():
            for y, x in members:
                own = np.array([*colours[:, y, x], place(y), place(x)])
                near = [(row + r, col + c) for r, c in order if (row + r, col + c) in seeds]
                shift = [
                    np.array([0, 0, 0, r - row, c - col]) * method.compactness for r, c in near
                ]
                far = [
                    ((own - seeds[cell] - moved) ** 2).sum()
                    for cell, moved in zip(near, shift, strict=True)
                ]
                joined[y, x] = near[int(np.argmin(far))]
        if step < 4:
            for cell, members in cells.items():
                mine = [(y, x) for y, x in members if tuple(joined[y, x]) == cell]
                if mine:
                    seeds[cell] = seed(mine)
    return joined.transpose(2, 0, 1)


def test_superpixels_are_their_description() -> None:
    rgb = drawn_rgb(Window(0, 0, 38, 45), seed=2).astype(np.float32) / 255
    valid = np.ones(rgb.shape[1:], bool)
    valid[10:20, 12:30] = False
    method = Superpixels(size=7, compactness=10)
    found, count = method.numbers(torch.from_numpy(rgb), torch.from_numpy(valid), (0, 0))
    assert int(found.max()) < count
    told = centres(found, 7, (0, 0), 45)
    assert np.array_equal(told[:, valid], straightforward(rgb, valid, method)[:, valid])


@pytest.mark.parametrize("size", [5, 12])
def test_superpixels_depend_on_no_more_than_they_say(size: int) -> None:
    rgb = torch.from_numpy(drawn_rgb(Window(0, 0, 240, 230), seed=4).astype(np.float32) / 255)
    valid = torch.ones(240, 230, dtype=torch.bool)
    valid[100:130, 40:90] = False
    method = Superpixels(size)
    whole = centres(method.numbers(rgb, valid, (0, 0))[0], size, (0, 0), 230)
    for row, col, height, width in ((0, 31, 170, 199), (51, 0, 189, 230), (40, 33, 200, 190)):
        here = slice(row, row + height), slice(col, col + width)
        part, _ = method.numbers(rgb[:, *here], valid[here], (row, col))
        told = centres(part, size, (row, col), width)
        sure = (
            slice(method.reach if row else 0, height - (method.reach if row + height < 240 else 0)),
            slice(method.reach if col else 0, width - (method.reach if col + width < 230 else 0)),
        )
        same = (told == whole[:, *here]).all(0) | ~valid[here].numpy()
        assert same[sure].all()
        assert same[sure].size > 300


@pytest.fixture(scope="module")
def words(folder: Path) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(folder / "words"), device="cpu")


SUPER = Options(templates="none", regions="superpixels:compactness=9", blend="uniform")


def test_superpixels_have_one_class_in_files_arrays_and_images(
    words: geoseg.Model, folder: Path, tmp_path: Path
) -> None:
    path = write_scene(folder / "drawn.tif", 150, 160)
    run = geoseg.segment_to_files(
        path, NAMES, tmp_path / "out", model=words, options=SUPER, products=BARE, tile=64
    )
    assert "regions" not in run.report
    assert run.report["methods"]["regions"] == {
        "name": "superpixels", "size": 8, "compactness": 9,
    }  # fmt: skip
    lazy = geoseg.segment(path, NAMES, model=words, options=SUPER, tile=96)
    assert (lazy.labels.values != raster(run.out)).mean() <= 1 / 20_000
    with rasterio.open(path) as dataset:
        rgb = dataset.read().transpose(1, 2, 0)
    found = Segmenter(words, NAMES, SUPER).predict(rgb)
    assert (found.labels != raster(run.out)).mean() <= 1 / 20_000
    size = Segmenter(words, NAMES, SUPER).predict(rgb, out_shape=(75, 80))
    assert (size.labels == found.labels[::2, ::2]).mean() > 0.9
    plain = Segmenter(words, NAMES, Options(templates="none", blend="uniform")).predict(rgb)
    numbers, _ = Superpixels(compactness=9).numbers(
        torch.from_numpy(rgb.transpose(2, 0, 1).astype(np.float32) / 255),
        torch.ones(rgb.shape[:2], dtype=torch.bool), (0, 0),
    )  # fmt: skip
    changed = 0
    for number in np.unique(numbers):
        inside = numbers.numpy() == number
        means = plain.scores[:, inside].mean(1)
        share = (plain.labels[inside] == means.argmax()).mean()
        near = np.sort(means)[-1] - np.sort(means)[-2] < 2e-3 or abs(share - 0.5) < 1e-6
        if share >= 0.5 and not near:
            assert set(found.labels[inside].tolist()) == {int(means.argmax())}
            changed += int((plain.labels[inside] != means.argmax()).sum())
        elif not near:
            assert np.array_equal(found.labels[inside], plain.labels[inside])
    assert changed


def test_hidden_words_and_thresholds_hold_for_regions(words: geoseg.Model) -> None:
    """A region whose mean stays below the threshold is background, as a pixel would be."""
    rgb = drawn_rgb(Window(0, 0, 80, 96), seed=6).transpose(1, 2, 0)
    for more in (
        {"threshold": 0.99, "background": "green"},
        {"vocabulary_steps": "contrast:words=cloud+shadow", "background": "green"},
    ):
        options = Options(templates="none", regions="superpixels", region_agreement=0.0, **more)
        found = Segmenter(words, NAMES, options).predict(rgb)
        below = found.scores.max(0) < 0.99
        if "threshold" in more:
            assert below.any()
            assert (found.labels[below] == 1).all()
        assert found.scores.shape == (3, 80, 96)


@pytest.mark.parametrize("what", ["superpixels", "guided", "laplace", "lposs"])
def test_raw_pixels_are_no_colours(scene: Path, tmp_path: Path, what: str) -> None:
    options = {"regions": what} if what == "superpixels" else {"refine": what}
    with pytest.raises(OptionError, match=f"{what} needs colours from 0 to 1, and the scorer sees"):
        geoseg.segment_to_files(
            scene, NAMES, tmp_path / "out", options=options,
            reading=Reading(stretch="raw"), scorer=geoseg.Scorer(brightest),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bands", [(1,), (1, 2, 3, 1)])
@pytest.mark.parametrize("what", ["guided", "laplace", "lposs"])
def test_refiners_of_colours_need_three_bands(
    scene: Path, tmp_path: Path, what: str, bands: tuple[int, ...]
) -> None:
    def scores(windows: torch.Tensor) -> torch.Tensor:
        return windows[:, :1].expand(-1, 3, -1, -1)

    def run(refine: str) -> geoseg.pipeline.Run:
        return geoseg.segment_to_files(
            scene, NAMES, tmp_path / "out", options={"refine": refine},
            reading=Reading(bands=bands), scorer=geoseg.Scorer(scores), products=BARE,
        )  # fmt: skip

    with pytest.raises(OptionError, match=f"{what} looks at red, green and blue.* take pamr"):
        run(what)
    run("pamr:iterations=1")


@pytest.mark.parametrize("fast", [False, True])
def test_a_store_is_asked_with_regions(
    words: geoseg.Model, folder: Path, fast: bool, tmp_path: Path
) -> None:
    path = write_scene(tmp_path / "town.tif", 130, 140)
    store = geoseg.encode(path, tmp_path / "town.store", model=words)
    table = gpd.GeoDataFrame(geometry=[shapely.box(500_010, 5_199_940, 500_040, 5_199_985)])
    table = table.set_crs("EPSG:32632")
    for regions in (table, "superpixels:size=6"):
        options = Options(templates="none", regions=regions, region_agreement=0.0)
        run = store.to_files(NAMES, tmp_path / "map", options=options, fast=fast, overwrite=True)
        if isinstance(regions, str):
            lazy = store.ask(NAMES, options=options, fast=fast)
            assert (lazy.labels.values != raster(run.out)).mean() <= 1 / 10_000
        else:
            assert len(np.unique(raster(run.out)[40:110, 30:75])) == 1
