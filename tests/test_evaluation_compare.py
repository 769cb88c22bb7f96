"""Labels against truth of every kind, through the public function and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
import sklearn.metrics as sk
from affine import Affine
from PIL import Image
from rasterio.features import shapes
from typer.testing import CliRunner

from geoseg.errors import EvaluationError, GeosegWarning, OptionError, OutputError
from geoseg.evaluation import compare, evaluate
from geoseg.evaluation.report import as_dict, draw_confusion, write_report
from geoseg_cli.main import app

NAMES = ("background", "building", "road")
TRANSFORM = Affine(2, 0, 500_000, 0, -2, 4_000_000)


def write(
    path: Path,
    values: np.ndarray,
    *,
    transform: Affine = TRANSFORM,
    crs: str | None = "EPSG:32616",
    nodata: int | None = 255,
    names: tuple[str, ...] | None = None,
) -> Path:
    bands = values if values.ndim == 3 else values[None]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=bands.shape[1],
        width=bands.shape[2],
        count=len(bands),
        dtype=bands.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
    ) as out:
        out.write(bands)
        if names:
            out.update_tags(1, **{f"CLASS_{i}": name for i, name in enumerate(names)})
    return path


def draw(seed: int = 0, shape: tuple[int, int] = (90, 70), classes: int = 3):
    """Blocks of classes as truth, and labels that are right 4 times in 5."""
    rng = np.random.default_rng(seed)
    rows, cols = -(-shape[0] // 7), -(-shape[1] // 7)
    truth = np.kron(rng.integers(0, classes, (rows, cols)), np.ones((7, 7), int))
    truth = truth[: shape[0], : shape[1]].astype(np.uint8)
    wrong = rng.random(shape) < 0.2
    labels = np.where(wrong, rng.integers(0, classes, shape), truth).astype(np.uint8)
    return labels, truth


@pytest.fixture
def pair(tmp_path: Path):
    labels, truth = draw()
    return (
        write(tmp_path / "labels.tif", labels, names=NAMES),
        write(tmp_path / "truth.tif", truth),
        labels,
        truth,
    )


def expected(labels: np.ndarray, truth: np.ndarray, keep: np.ndarray | None = None):
    keep = np.ones(truth.shape, bool) if keep is None else keep
    return sk.confusion_matrix(truth[keep], labels[keep], labels=range(3))


# Truth of every kind


def test_rasters_on_one_grid(pair) -> None:
    labels_path, truth_path, labels, truth = pair
    got = evaluate(labels_path, truth_path)
    assert [c.name for c in got.scores.classes] == list(NAMES)
    assert np.array_equal(got.scores.confusion, expected(labels, truth))
    assert got.scores.accuracy == pytest.approx((labels == truth).mean(), abs=1e-9)


def test_values_are_mapped_by_name_and_ignored_ones_count_nowhere(tmp_path: Path) -> None:
    labels, truth = draw()
    shifted = write(tmp_path / "truth.tif", np.where(truth == 0, 9, truth + 1).astype(np.uint8))
    labels_path = write(tmp_path / "labels.tif", labels, names=NAMES)
    got = evaluate(
        labels_path,
        shifted,
        classes=";".join(reversed(NAMES)),
        truth_values="9=ignore;2=Building;3=road",
    )
    keep = truth != 0
    matrix = expected(labels, truth, keep)
    assert np.array_equal(got.scores.confusion, matrix[::-1, ::-1])
    assert got.ignored_pixels == (~keep).sum()


def test_label_nodata_is_left_out_and_told(tmp_path: Path) -> None:
    labels, truth = draw()
    labels[:10] = 255
    got = evaluate(
        write(tmp_path / "labels.tif", labels, names=NAMES), write(tmp_path / "t.tif", truth)
    )
    assert got.nodata_pixels == 10 * 70
    assert got.scores.pixels == 80 * 70


def test_plain_image_of_the_same_size(pair, tmp_path: Path) -> None:
    labels_path, _, labels, truth = pair
    Image.fromarray(truth).save(tmp_path / "truth.png")
    got = evaluate(labels_path, tmp_path / "truth.png")
    assert np.array_equal(got.scores.confusion, expected(labels, truth))


def test_plain_image_of_another_size_is_refused(pair, tmp_path: Path) -> None:
    Image.fromarray(pair[3][:-1]).save(tmp_path / "truth.png")
    with pytest.raises(EvaluationError, match="70 x 89 pixels, the labels have 70 x 90"):
        evaluate(pair[0], tmp_path / "truth.png")


def test_colours(pair, tmp_path: Path) -> None:
    labels_path, _, labels, truth = pair
    palette = np.array([[0, 0, 0], [255, 0, 16], [1, 2, 3]], np.uint8)
    Image.fromarray(palette[truth]).save(tmp_path / "truth.png")
    values = "#000000=background;#FF0010=building;#010203=road"
    got = evaluate(labels_path, tmp_path / "truth.png", truth_values=values)
    assert np.array_equal(got.scores.confusion, expected(labels, truth))
    with pytest.raises(OptionError, match="colour image"):
        evaluate(labels_path, tmp_path / "truth.png")


def test_shifted_grid_is_cut_without_a_warning(pair, tmp_path: Path) -> None:
    labels_path, _, labels, truth = pair
    part = write(
        tmp_path / "part.tif", truth[20:60, 5:], transform=TRANSFORM * Affine.translation(5, 20)
    )
    got = evaluate(labels_path, part)
    keep = np.zeros(truth.shape, bool)
    keep[20:60, 5:] = True
    assert np.array_equal(got.scores.confusion, expected(labels, truth, keep))
    assert got.ignored_pixels == (~keep).sum()


def test_finer_grid_is_resampled_with_a_warning(pair, tmp_path: Path) -> None:
    labels_path, _, labels, truth = pair
    fine = write(
        tmp_path / "fine.tif",
        np.kron(truth, np.ones((3, 3), np.uint8)),
        transform=TRANSFORM * Affine.scale(1 / 3),
    )
    with pytest.warns(GeosegWarning, match="another grid"):
        got = evaluate(labels_path, fine)
    assert np.array_equal(got.scores.confusion, expected(labels, truth))


def test_another_crs_is_refused_with_the_way_out(pair, tmp_path: Path) -> None:
    other = write(tmp_path / "other.tif", pair[3], crs="EPSG:32617")
    with pytest.raises(EvaluationError, match=r"EPSG:32617.*EPSG:32616.*gdalwarp"):
        evaluate(pair[0], other)


@pytest.mark.parametrize("crs", ["EPSG:32616", "EPSG:4326"])
def test_vector_truth_in_any_crs(pair, tmp_path: Path, crs: str) -> None:
    labels_path, _, labels, truth = pair
    features = [
        (shapely.geometry.shape(geometry), NAMES[int(value)])
        for geometry, value in shapes(truth, transform=TRANSFORM)
        if value != 0
    ]
    frame = geopandas.GeoDataFrame(
        {"kind": [name for _, name in features]},
        geometry=[geometry for geometry, _ in features],
        crs="EPSG:32616",
    )
    frame.to_crs(crs).to_file(tmp_path / "truth.gpkg")
    got = evaluate(labels_path, tmp_path / "truth.gpkg", truth_column="kind", outside="background")
    assert np.array_equal(got.scores.confusion, expected(labels, truth))
    unlabelled = evaluate(labels_path, tmp_path / "truth.gpkg", truth_column="kind")
    assert unlabelled.scores.pixels == (truth != 0).sum()
    with pytest.raises(OptionError, match="no column 'klass'"):
        evaluate(labels_path, tmp_path / "truth.gpkg", truth_column="klass")


def test_vector_truth_of_one_class(pair, tmp_path: Path) -> None:
    labels_path, _, labels, _ = pair
    box = shapely.box(500_000, 4_000_000 - 40, 500_000 + 60, 4_000_000)
    geopandas.GeoDataFrame({"id": [1]}, geometry=[box], crs="EPSG:32616").to_file(
        tmp_path / "t.geojson"
    )
    with pytest.raises(OptionError, match="no column says"):
        evaluate(labels_path, tmp_path / "t.geojson")
    got = evaluate(
        labels_path, tmp_path / "t.geojson", truth_values="*=building", outside="background"
    )
    truth = np.zeros((90, 70), int)
    truth[:20, :30] = 1
    assert np.array_equal(got.scores.confusion, expected(labels, truth))


def test_truth_that_names_its_own_classes(pair, tmp_path: Path) -> None:
    labels_path, _, labels, truth = pair
    swapped = write(tmp_path / "truth.tif", np.array([2, 1, 0], np.uint8)[truth], names=NAMES[::-1])
    got = evaluate(labels_path, swapped)
    assert np.array_equal(got.scores.confusion, expected(labels, truth))


def test_nodata_that_is_a_class_value_is_told(pair, tmp_path: Path) -> None:
    labels_path, _, labels, truth = pair
    path = write(tmp_path / "truth.tif", truth, nodata=0)
    with pytest.warns(GeosegWarning, match="marks 0 as nodata"):
        got = evaluate(labels_path, path)
    assert np.array_equal(got.scores.confusion, expected(labels, truth, truth != 0))
    counted = evaluate(labels_path, path, truth_values={0: "background", 1: "building", 2: "road"})
    assert np.array_equal(counted.scores.confusion, expected(labels, truth))


# Classes


def test_synonyms_are_their_class(tmp_path: Path) -> None:
    labels, truth = draw()
    names = ("other", "roof", "street")
    labels_path = write(tmp_path / "labels.tif", labels, names=names)
    got = evaluate(
        labels_path,
        write(tmp_path / "t.tif", truth),
        classes="background,other;building,roof,house;road,street",
    )
    assert [c.name for c in got.scores.classes] == list(NAMES)
    assert np.array_equal(got.scores.confusion, expected(labels, truth))


def test_names_only_in_the_labels_or_only_in_the_classes_are_told(pair) -> None:
    labels_path, truth_path, _, _ = pair
    with pytest.warns(GeosegWarning) as told:
        got = evaluate(
            labels_path,
            truth_path,
            classes="background;building;lake",
            truth_values="0=background;1=building;2=lake",
        )
    messages = " ".join(str(each.message) for each in told)
    assert "not in --classes: road" in messages
    assert "do not have the class lake" in messages
    by_name = {c.name: c for c in got.scores.classes}
    assert by_name["lake"].iou == 0
    assert by_name["road"].support == 0
    assert got.scores.miou == pytest.approx(
        (by_name["background"].iou + by_name["building"].iou) / 3
    )


def test_truth_class_that_is_not_a_class_is_refused(pair) -> None:
    with pytest.raises(OptionError, match="'buildng' is not among the classes"):
        evaluate(pair[0], pair[1], truth_values="0=background;1=buildng;2=road")


def test_values_without_a_class_are_refused(pair, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"value 2; say what values mean with --truth-values"):
        evaluate(pair[0], pair[1], truth_values="0=background;1=building")
    got = evaluate(pair[0], pair[1], truth_values="0=background;1=building;*=ignore")
    assert got.ignored_pixels == (pair[3] == 2).sum()


def test_labels_of_others_are_named_by_the_classes(tmp_path: Path) -> None:
    labels, truth = draw()
    got = evaluate(
        write(tmp_path / "labels.tif", labels), write(tmp_path / "t.tif", truth), classes=NAMES
    )
    assert np.array_equal(got.scores.confusion, expected(labels, truth))


@pytest.mark.parametrize(
    ("text", "message"),
    [("1", "not VALUE=NAME"), ("", "empty"), ("1=a;01=b", "mapped twice"), ("x=road", "whole")],
)
def test_value_maps_that_cannot_be_read(pair, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        evaluate(pair[0], pair[1], truth_values=text)


# Area, confidence, outlines, windows


def test_area_of_interest(pair) -> None:
    labels_path, truth_path, labels, truth = pair
    got = evaluate(labels_path, truth_path, aoi="500020,3999900,500080,3999980")
    keep = np.zeros(truth.shape, bool)
    keep[10:50, 10:40] = True
    assert np.array_equal(got.scores.confusion, expected(labels, truth, keep))


def test_confidence_beside_the_labels_is_used(pair, tmp_path: Path) -> None:
    labels_path, truth_path, labels, truth = pair
    per_cent = np.where(labels == truth, 90, 60).astype(np.uint8)
    per_cent[:5] = 255
    write(tmp_path / "confidence.tif", per_cent)
    counts = evaluate(labels_path, truth_path).confidence
    assert counts is not None
    assert counts.pixels.sum() == 85 * 70
    wrong = (labels != truth)[5:].mean()
    ece = (1 - wrong) * 0.1 + wrong * 0.6
    assert counts.expected_calibration_error() == pytest.approx(ece)
    assert counts.accuracy_of_most_confident(0.5) == 1


def test_windows_do_not_change_anything(pair, tmp_path: Path, monkeypatch) -> None:
    labels_path, truth_path, labels, _ = pair
    write(tmp_path / "confidence.tif", (labels * 20 + 30).astype(np.uint8))
    whole = evaluate(
        labels_path, truth_path, boundary_tolerance=2, aoi="500020,3999840,500140,3999990"
    )
    monkeypatch.setattr(compare, "_WINDOW_WIDTH", 32)
    monkeypatch.setattr(compare, "_WINDOW_PIXELS", 32 * 11)
    monkeypatch.setattr(compare, "_LEAST_ROWS", 1)
    seen: list[float] = []
    cut = evaluate(
        labels_path,
        truth_path,
        boundary_tolerance=2,
        aoi="500020,3999840,500140,3999990",
        progress=seen.append,
    )
    assert as_dict(cut) == as_dict(whole)
    assert seen == sorted(seen)
    assert len(seen) > 10
    assert seen[-1] == pytest.approx(1)


def test_nothing_in_common_is_an_error(pair, tmp_path: Path) -> None:
    empty = write(tmp_path / "t.tif", np.full((90, 70), 255, np.uint8))
    with pytest.raises(EvaluationError, match="no pixel can be compared"):
        evaluate(pair[0], empty)


# Folders


def test_folders_are_matched_by_name(tmp_path: Path) -> None:
    matrices = []
    (tmp_path / "truth").mkdir()
    for seed, name in enumerate(("north", "south")):
        labels, truth = draw(seed)
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        write(folder / "labels.tif", labels, names=NAMES)
        Image.fromarray(truth).save(tmp_path / "truth" / f"{name}.png")
        matrices.append(expected(labels, truth))
    got = evaluate(tmp_path / "runs", tmp_path / "truth")
    assert np.array_equal(got.scores.confusion, sum(matrices))
    assert [p.truth.name for p in got.pairs] == ["north.png", "south.png"]
    for found, matrix in zip(got.pairs, matrices, strict=True):
        assert np.array_equal(found.scores.confusion, matrix)
    (tmp_path / "truth" / "south.png").unlink()
    with pytest.raises(EvaluationError, match="no truth for it"):
        evaluate(tmp_path / "runs", tmp_path / "truth")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nowhere"):
        evaluate(tmp_path / "nowhere", tmp_path)


# Reports


def test_report_files(pair, tmp_path: Path) -> None:
    got = evaluate(pair[0], pair[1], boundary_tolerance=1)
    write_report(got, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == as_dict(got)
    rows = (tmp_path / "out" / "classes.csv").read_text().splitlines()
    assert rows[0].startswith("class,iou,f1,precision,recall,support,predicted,boundary_f1")
    assert len(rows) == 4
    assert (tmp_path / "out" / "confusion.csv").read_text().splitlines()[2].startswith("building,")
    with pytest.raises(OutputError, match="--overwrite"):
        write_report(got, tmp_path / "out")
    write_report(got, tmp_path / "out", overwrite=True)
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_confusion_picture_shows_the_shares() -> None:
    confusion = np.array([[8, 2], [0, 10]])
    image = draw_confusion(confusion, ("one", "a much longer name"))
    pixels = np.asarray(image).astype(int)
    # Darkest cell colour in the picture is that of a row's full share.
    dark = (pixels[..., 2] - pixels[..., 0]).max()
    assert dark > 100
    assert image.width == image.height


def test_confusion_picture_of_many_classes_stays_small() -> None:
    image = draw_confusion(np.eye(300, dtype=np.int64), [f"class {i}" for i in range(300)])
    assert max(image.size) < 3000


def test_absent_class_is_null_in_json(tmp_path: Path) -> None:
    labels, truth = draw(classes=2)
    got = as_dict(
        evaluate(
            write(tmp_path / "labels.tif", labels, names=NAMES), write(tmp_path / "t.tif", truth)
        )
    )
    assert got["classes"][2]["iou"] is None
    json.dumps(got, allow_nan=False)


def command(*arguments: object):
    return CliRunner().invoke(app, ["evaluate", *(str(a) for a in arguments)])


def test_command_prints_the_contracts_json(pair) -> None:
    result = command(pair[0], pair[1], "--classes", ";".join(NAMES), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"miou", "accuracy", "classes", "confusion"} <= set(found)
    assert set(found["classes"][0]) == {"name", "iou", "f1", "precision", "recall", "support"}
    assert found["boundary"]["tolerance"] == 3


def test_command_prints_tables_and_writes_files(pair, tmp_path: Path) -> None:
    result = command(pair[0], pair[1], "--out", tmp_path / "report", "--no-boundary")
    assert result.exit_code == 0, result.output
    assert "building" in result.stdout
    assert "mean IoU" in result.stdout
    assert (tmp_path / "report" / "confusion.png").is_file()


# Real pairs


def test_vegas_labels_evaluate_with_their_encoding(shared: Path, tmp_path: Path) -> None:
    folder = shared / "scenes" / "labelled" / "vegas_multiclass"
    names = ("other", "building", "road", "tree")
    with rasterio.open(folder / "image_rgb_uint8.tif") as scene:
        crs, transform = scene.crs, scene.transform
    truth = np.asarray(Image.open(folder / "label.png"))
    labels = np.roll(truth, 3, axis=1)
    path = write(tmp_path / "labels.tif", labels, transform=transform, crs=crs, names=names)
    values = "0=other;1=building;2=road;3=tree"

    got = evaluate(path, folder / "label.png", classes=names, truth_values=values)
    assert np.array_equal(got.scores.confusion, sk.confusion_matrix(truth.ravel(), labels.ravel()))
    iou = sk.jaccard_score(truth.ravel(), labels.ravel(), average=None)
    assert [c.iou for c in got.scores.classes] == pytest.approx(list(iou), abs=1e-9)
    assert got.scores.miou == pytest.approx(iou.mean(), abs=1e-9)

    # The vector file burns to the same picture.
    vector = evaluate(
        path, folder / "label.geojson", classes=names, truth_values=values, outside="other"
    )
    assert np.array_equal(vector.scores.confusion, got.scores.confusion)


def test_atlanta_buildings_evaluate_with_their_encoding(shared: Path, tmp_path: Path) -> None:
    folder = shared / "scenes" / "labelled" / "atlanta_buildings"
    with rasterio.open(folder / "buildings_mask.tif") as mask:
        truth, crs, transform = mask.read(1), mask.crs, mask.transform
    labels = np.roll(truth, (2, 1), axis=(0, 1))
    names = ("other", "building")
    path = write(tmp_path / "labels.tif", labels, transform=transform, crs=crs, names=names)
    got = evaluate(path, folder / "buildings_mask.tif", boundary_tolerance=3)
    assert got.scores.classes[1].iou == pytest.approx(
        sk.jaccard_score(truth.ravel(), labels.ravel()), abs=1e-9
    )
    assert got.boundary is not None
    assert got.boundary[1].f1 > got.scores.classes[1].f1
    vector = evaluate(
        path, folder / "buildings.geojson", truth_values="*=building", outside="other"
    )
    assert np.array_equal(vector.scores.confusion, got.scores.confusion)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_depend_on_the_rasters(tmp_path: Path) -> None:
    peaks = []
    for side in (3000, 9000):
        rng = np.random.default_rng(0)
        values = np.kron(
            rng.integers(0, 3, (side // 50, side // 50)), np.ones((50, 50), np.uint8)
        ).astype(np.uint8)
        labels = write(tmp_path / f"l{side}.tif", values, names=NAMES)
        truth = write(tmp_path / f"t{side}.tif", values)
        code = (
            "import re; from geoseg.evaluation import evaluate; "
            f"e = evaluate({str(labels)!r}, {str(truth)!r}, boundary_tolerance=3); "
            "assert e.scores.accuracy == 1; "
            # Not ru_maxrss: a child inherits that from its parent.
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        peaks.append(int(out.stdout))
    # kB. GDAL's cache may fill; class numbers of the larger pair alone would be 650 MB.
    assert peaks[1] < peaks[0] + 250_000


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        (np.float32, float(np.finfo(np.float32).min)),
        (np.float32, -3.4028230607370965e38),
        (np.float64, -1.7976931348623157e308),
        (np.float32, -9999.0),
        (np.float32, float("nan")),
        (np.float32, 1e20),
        (np.float64, -0.5),
        (np.int16, -32768),
    ],
)
def test_whatever_marks_nodata_is_left_out(pair, tmp_path: Path, dtype: type, nodata: float):
    labels_path, _, labels, truth = pair
    holes = truth.astype(dtype)
    holes[:10] = nodata
    keep = np.ones(truth.shape, bool)
    keep[:10] = False
    path = write(tmp_path / "t.tif", holes, nodata=nodata)
    for values in (None, "0=background;1=building;2=road;-9999=ignore;-32768=ignore"):
        got = evaluate(labels_path, path, truth_values=values)
        assert np.array_equal(got.scores.confusion, expected(labels, truth, keep))
        assert got.ignored_pixels == (~keep).sum()


def test_nodata_that_no_pixel_can_have_marks_nothing(pair, tmp_path: Path) -> None:
    labels_path, _, labels, truth = pair
    path = write(tmp_path / "t.tif", truth)
    # Rasterio refuses to write such a value, other software does not.
    vrt = tmp_path / "t.vrt"
    rasterio.shutil.copy(path, vrt, driver="VRT")
    text = vrt.read_text()
    mark = '<VRTRasterBand dataType="Byte" band="1"'
    assert mark in text
    start = text.index(">", text.index(mark)) + 1
    vrt.write_text(text[:start] + "<NoDataValue>-9999</NoDataValue>" + text[start:])
    got = evaluate(labels_path, vrt)
    assert np.array_equal(got.scores.confusion, expected(labels, truth))


def test_labels_and_truth_may_be_whole_numbers_in_floats(pair, tmp_path: Path) -> None:
    _, truth_path, labels, truth = pair
    floats = write(tmp_path / "l.tif", labels.astype(np.float32), names=NAMES)
    got = evaluate(floats, truth_path)
    assert np.array_equal(got.scores.confusion, expected(labels, truth))
