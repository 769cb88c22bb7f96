"""The command line as a person and a pipeline meet it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasters import make, rgb
from typer.main import get_command
from typer.testing import CliRunner, Result

from geoseg._claim import claimed
from geoseg._fields import choices
from geoseg.options import Options, Products, Reading
from geoseg.options.polygons import POLYGON_FORMATS
from geoseg.pipeline import Progress
from geoseg.run.folder import CLAIM
from geoseg.testing import tiny_random_model
from geoseg_cli._progress import progress_bar
from geoseg_cli._signals import stoppable
from geoseg_cli.main import app

PRODUCTS = [
    "confidence.qml", "confidence.tif", "labels.qml", "labels.tif", "labels.tif.aux.xml",
    "polygons.gpkg", "polygons.qml", "preview.png", "run.json",
]  # fmt: skip
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw(tmp_path / "scene.tif")


def draw(path: Path, height: int = 90, width: int = 130, **profile: object) -> Path:
    """A scene of blocky noise in UTM."""
    pixels = np.random.default_rng(0).integers(
        0, 255, (3, -(-height // 6), -(-width // 6)), np.uint8
    )
    pixels = pixels.repeat(6, 1).repeat(6, 2)[:, :height, :width]
    facts = {
        "driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8",
        "crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 2, 2),
    } | profile  # fmt: skip
    with rasterio.open(path, "w", **facts) as dataset:
        dataset.write(pixels.astype(facts["dtype"]))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def segment(scene: object, out: Path, model: str, *options: object) -> Result:
    words = "building, flat roof; open water ,river;tree"
    return run("segment", scene, "--classes", words, "--out", out, "--model", model, *options)


# -- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_has_a_sentence(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        if parameter.name != "help" and not parameter.hidden:
            assert text, parameter.name
            assert text.rstrip("]").endswith((".", ")", "]")) or "[default" in text, text


def test_segment_groups_its_options_in_panels() -> None:
    result = run("segment", "--help")
    for panel in ("Input", "Model", "Method", "Windows and tiles", "Output", "Run"):
        assert f"─ {panel} ─" in result.output
    options = [p for p in COMMANDS["segment"].params if p.opts[0].startswith("-")]
    shown = [p for p in options if not p.hidden]
    loose = [p.name for p in shown if not getattr(p, "rich_help_panel", None)]
    assert loose in ([], ["help"])


@pytest.mark.parametrize("name", list(COMMANDS))
def test_defaults_that_help_texts_name_are_shown(name: str) -> None:
    shown = " ".join(run(name, "--help").output.replace("│", " ").split())
    for parameter in COMMANDS[name].params:
        text = getattr(parameter, "help", None) or ""
        if "[default: " in text:
            default = text.split("[default: ")[1].split("]")[0].split()[0]
            assert f"[default: {default}" in shown, parameter.name


def test_help_lists_every_method_of_the_library() -> None:
    texts = {p.name: getattr(p, "help", "") for p in COMMANDS["segment"].params}
    for name, choice in choices(Options).items():
        for method in choice.table.entries if choice.table else ():
            assert f"{method}: " in texts[name], name
    refused = run("segment", "scene.tif", "--polygons", "shapefile").stderr
    assert all(f"'{name}'" in refused for name in POLYGON_FORMATS)


def test_library_and_command_line_are_twins() -> None:
    """Every option of the library can be given on the command line, if it has anything to give."""
    given = set(inspect.signature(COMMANDS["segment"].callback).parameters)
    for kind in (Options, Reading, Products):
        for field in dataclasses.fields(kind):
            table = choices(kind)[field.name].table
            assert (field.name in given) == (table is None or bool(table.entries)), field.name


def test_defaults_come_from_the_environment(
    scene: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = "".join(run("segment", "--help").output.replace("│", " ").split())
    for parameter in COMMANDS["segment"].params:
        named = [] if parameter.hidden or parameter.name == "help" else parameter.opts
        if named and named[0].startswith("--"):
            name = max(named, key=len).removeprefix("--").replace("-", "_").upper()
            assert parameter.envvar == f"GEOSEG_{name}"
    assert "envvar:GEOSEG_MODEL" in shown
    for name, value in {
        "GEOSEG_MODEL": model, "GEOSEG_CLASSES": "water;tree", "GEOSEG_OUT": str(tmp_path / "out"),
        "GEOSEG_TEMPLATES": "none", "GEOSEG_POLYGONS": "none", "GEOSEG_PREVIEW": "0",
        "GEOSEG_CONFIDENCE": "no", "GEOSEG_NODATA": "0 255", "GEOSEG_BANDS": "3,2,1",
        "GEOSEG_THRESHOLD": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert run("segment", scene, "--bands", "1,2,3").exit_code == 0
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [c["name"] for c in report["classes"]] == ["water", "tree"]
    assert set(report["files"]) == {"labels.tif", "labels.tif.aux.xml", "labels.qml"}
    assert (report["reading"]["nodata"], report["reading"]["bands"]) == ([0, 255], [1, 2, 3])
    # What means a file of this one call elsewhere is not taken from there.
    done = run("vectorize", tmp_path / "out" / "labels.tif", "-o", tmp_path / "p.geojson")
    assert done.exit_code == 0, done.output
    assert set(gpd.read_file(tmp_path / "p.geojson").columns) >= {"class_name"}
    monkeypatch.setenv("GEOSEG_STRIDE", "far")
    assert "GEOSEG_STRIDE" in run("segment", scene).stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom geoseg_cli.main import app\n"
        "from typer.testing import CliRunner\nCliRunner().invoke(app, ['--help'])\n"
        "heavy = {'torch', 'rasterio', 'open_clip', 'geopandas', 'dask'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version() -> None:
    assert run("--version").output.startswith("geoseg ")


# -- segment -----------------------------------------------------------------------------------


def test_segment_leaves_the_products_of_the_contract(
    scene: Path, tmp_path: Path, model: str
) -> None:
    result = segment(scene, tmp_path / "out", model)
    assert result.exit_code == 0, result.output
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == PRODUCTS
    assert result.stdout == ""
    assert "open water" in result.stderr
    with rasterio.open(tmp_path / "out" / "labels.tif") as labels:
        assert [labels.tags(1)[f"CLASS_{i}"] for i in range(3)] == [
            "building",
            "open water",
            "tree",
        ]
        assert labels.colormap(1)[1][:3] == (0x3B, 0x7D, 0xD8)
        counts = np.bincount(labels.read(1).ravel(), minlength=3)
    report = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert [c["pixels"] for c in report["classes"]] == counts[:3].tolist()
    for entry in report["classes"]:
        # 4 m² nominal; on the ellipsoid at the central meridian the scale is 0.9996.
        assert entry["area_m2"] == pytest.approx(4 * entry["pixels"] / 0.9996**2, rel=1e-3)
    assert report["option_sources"]["window"] == "model"
    assert report["model"]["weights_sha256"]
    with sqlite3.connect(tmp_path / "out" / "polygons.gpkg") as database:
        assert database.execute("select count(*) from segments").fetchone()[0] > 0
        assert database.execute("select count(*) from layer_styles").fetchone()[0] == 1


def test_json_is_one_object_on_stdout(scene: Path, tmp_path: Path, model: str) -> None:
    result = segment(scene, tmp_path / "out", model, "--json", "--no-confidence")
    report = json.loads(result.stdout)
    assert Path(report["runs"][0]["files"][0]).name == "labels.tif"
    assert not (tmp_path / "out" / "confidence.tif").exists()


def test_quiet_says_nothing(scene: Path, tmp_path: Path, model: str) -> None:
    result = segment(scene, tmp_path / "out", model, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb", "parquet", "none"])
def test_polygon_formats(scene: Path, tmp_path: Path, model: str, suffix: str) -> None:
    result = segment(scene, tmp_path / "out", model, "--polygons", suffix)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / f"polygons.{suffix}").exists() == (suffix != "none")


def test_probabilities(scene: Path, tmp_path: Path, model: str) -> None:
    assert segment(scene, tmp_path / "out", model, "--probabilities").exit_code == 0
    with rasterio.open(tmp_path / "out" / "probabilities.tif") as shares:
        assert shares.descriptions == ("building", "open water", "tree")
        values = shares.read()
    with rasterio.open(tmp_path / "out" / "labels.tif") as labels:
        best = values.argmax(0)
        clear = np.sort(values, 0)[-1] > np.sort(values, 0)[-2]
        assert np.array_equal(best[clear], labels.read(1)[clear])


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_probability_bands_are_no_colours(
    count: int, scene: Path, tmp_path: Path, model: str
) -> None:
    words = ";".join(f"thing {i}" for i in range(count))
    arguments = ["--out", tmp_path / "o", "--model", model, "--probabilities", "--polygons", "none"]
    assert run("segment", scene, "--classes", words, *arguments).exit_code == 0
    with rasterio.open(tmp_path / "o" / "probabilities.tif") as shares:
        names = [c.name for c in shares.colorinterp]
        assert names == ["gray", *["undefined"] * (count - 1)]
        assert (shares.dataset_mask() == 255).all()


def test_margin_is_the_gap_between_the_two_best(scene: Path, tmp_path: Path, model: str) -> None:
    assert segment(scene, tmp_path / "out", model, "--margin", "--probabilities").exit_code == 0
    with (
        rasterio.open(tmp_path / "out" / "margin.tif") as gap,
        rasterio.open(tmp_path / "out" / "probabilities.tif") as shares,
    ):
        ordered = np.sort(shares.read().astype(int), 0)
        assert np.abs(gap.read(1) - (ordered[-1] - ordered[-2])).max() <= 1  # both are rounded
        assert gap.nodata == 255


@pytest.mark.parametrize("more", [[], ["--threshold", "0.6", "--background", "tree"]])
def test_the_runner_up_comes_next_to_the_label(
    scene: Path, tmp_path: Path, model: str, more: list[str]
) -> None:
    given = ["--runner-up", "--probabilities", "--attributes", "scene,date", *more]
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(EXIF_DateTimeOriginal="2019:09:04 10:11:12")
    assert segment(scene, tmp_path / "out", model, *given).exit_code == 0
    blocks = {}
    for name in ("labels", "runner_up", "probabilities"):
        with rasterio.open(tmp_path / "out" / f"{name}.tif") as dataset:
            blocks[name] = dataset.read().astype(int)
    labels, second = blocks["labels"][0], blocks["runner_up"][0]
    data = labels != 255
    assert data.any()
    assert ((second == 255) == ~data).all()
    assert (second != labels)[data].all()
    shares = blocks["probabilities"]
    taken = np.take_along_axis(shares, np.where(data, second, 0)[None], 0)[0]
    np.put_along_axis(shares, np.where(data, labels, 0)[None], -1, 0)
    assert (taken == shares.max(0))[data].all()
    assert (tmp_path / "out" / "runner_up.tif.aux.xml").exists()
    frame = gpd.read_file(tmp_path / "out" / "polygons.gpkg", layer="segments")
    assert set(frame.runner_up) <= {"building", "open water", "tree"}
    assert (frame.runner_up != frame.class_name).all()
    assert set(frame.scene) == {scene.name}
    assert {str(date)[:19] for date in frame.date} == {"2019-09-04 10:11:12"}


def test_nothing_is_overwritten_unasked(scene: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.tif").write_text("precious")
    (out / "notes.txt").write_text("mine")
    result = segment(scene, out, model)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert (out / "labels.tif").read_text() == "precious"
    assert segment(scene, out, model, "--overwrite").exit_code == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert segment(scene, out, model, "--overwrite", "--polygons", "geojson").exit_code == 0
    assert not (out / "polygons.gpkg").exists()


def test_the_scene_itself_is_never_replaced(tmp_path: Path, model: str) -> None:
    scene = draw(tmp_path / "labels.tif")
    before = scene.read_bytes()
    result = segment(scene, tmp_path, model, "--overwrite")
    assert result.exit_code == 1
    assert "the scene itself" in result.stderr
    assert scene.read_bytes() == before


def test_a_folder_of_scenes_with_old_outputs_beside_them(tmp_path: Path, model: str) -> None:
    """A rerun does not take yesterday's labels for a scene; each scene gets its folder."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    draw(folder / "north.tif")
    draw(folder / "south.tif")
    assert segment(folder / "north.tif", folder, model).exit_code == 0
    result = segment(folder, tmp_path / "out", model)
    assert result.exit_code == 0, result.output
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["north", "south"]
    assert sorted(f.name for f in (tmp_path / "out" / "south").iterdir()) == PRODUCTS


def test_one_bad_scene_does_not_stop_the_others(tmp_path: Path, model: str) -> None:
    good, bad = draw(tmp_path / "good.tif"), tmp_path / "bad.tif"
    bad.write_text("no raster")
    result = segment(bad, tmp_path / "out", model, good)
    assert result.exit_code == 1
    assert "bad.tif" in result.stderr
    assert (tmp_path / "out" / "good" / "labels.tif").exists()


def test_a_float_scene_with_nodata_gives_integer_labels(tmp_path: Path, model: str) -> None:
    scene = draw(tmp_path / "scene.tif", dtype="float32", nodata=-9999.0)
    with rasterio.open(scene, "r+") as dataset:
        pixels = dataset.read()
        pixels[:, :20] = -9999
        dataset.write(pixels)
    assert segment(scene, tmp_path / "out", model).exit_code == 0
    with rasterio.open(tmp_path / "out" / "labels.tif") as labels:
        assert (labels.dtypes[0], labels.nodata) == ("uint8", 255)
        values = labels.read(1)
    assert (values[:20] == 255).all()
    assert (values[20:] < 3).all()


def test_more_than_255_objects_are_all_there(tmp_path: Path, model: str) -> None:
    """Identities of objects do not wrap at 8 bits."""
    out = tmp_path / "labels.tif"
    board = (np.indices((40, 40)).sum(0) % 2).astype(np.uint8)
    transform = from_origin(500000, 5000000, 1, 1)
    with rasterio.open(
        out, "w", driver="GTiff", height=40, width=40, count=1, dtype="uint8",
        crs="EPSG:32633", transform=transform, nodata=255,
    ) as dataset:  # fmt: skip
        dataset.write(board, 1)
    result = run("vectorize", out, "--out", tmp_path / "board.geojson")
    assert result.exit_code == 0, result.output
    features = json.loads((tmp_path / "board.geojson").read_text())["features"]
    assert len({f["properties"]["id"] for f in features}) == len(features) == 1600


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--cls-bias", "-0.3"), 2, "0 to 1000000"),
        (("--stride", "100", "--window", "64"), 2, "stride 100 with window 64"),
        (("--bands", "1,2"), 2, "three (red, green, blue) or one"),
        (("--bands", "1,2,9"), 1, "9"),
        (("--stretch", "wide"), 2, "wide"),
        (("--aoi", "0,0,1,1"), 2, "does not cover"),
        (("--background", "tree"), 2, "threshold"),
        (("--upsampler", "simfeatup"), 2, "--upsampler-weights"),
        (("--workers", "-1"), 2, "workers"),
        (("--resume", "--overwrite"), 2, "one of them"),
        (("--min-area", "-5"), 2, "positive"),
        (("--connectivity", "6"), 2, "4 or 8"),
        (("--device", "warp"), 2, "warp"),
        (("--tile", "0"), 2, "2048"),
        (("--no-such-option",), 2, "No such option"),
    ],
)
def test_wrong_usage(
    scene: Path, tmp_path: Path, model: str, options: tuple[str, ...], code: int, message: str
) -> None:
    result = segment(scene, tmp_path / "out", model, *options)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_scene(tmp_path: Path, model: str) -> None:
    result = segment(tmp_path / "nowhere.tif", tmp_path / "out", model)
    assert result.exit_code == 1
    assert "nowhere.tif" in result.stderr
    assert result.stderr.count("\n") == 1


def test_one_class_alone(scene: Path, tmp_path: Path, model: str) -> None:
    result = run(
        "segment", scene, "--classes", "water,river", "--out", tmp_path / "o", "--model", model
    )
    assert result.exit_code == 1
    assert "one class" in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path, model: str) -> None:
    result = segment(tmp_path / "nowhere.tif", tmp_path / "out", model, "--debug")
    assert "Traceback" in result.stderr
    assert result.exit_code == 1


# -- the other commands ------------------------------------------------------------------------


def test_info(scene: Path, model: str) -> None:
    result = run("info", scene, "--model", model, "--json")
    facts = json.loads(result.stdout)
    assert facts["scene"]["size"] == "130 x 90 pixels"
    assert facts["scene"]["gsd_m"] == pytest.approx(2, rel=1e-3)
    assert facts["run"]["windows"] == 8
    run_facts = facts["run"]
    parts = [run_facts[f"{name}_seconds"] for name in ("start", "inference", "products")]
    assert min(parts) > 0
    assert run_facts["total_seconds"] == pytest.approx(sum(parts), rel=0.02)
    low, high = run_facts["total_seconds_range"]
    assert low <= run_facts["total_seconds"] <= high
    assert "EPSG:32633" in run("info", scene, "--model", model).stdout


def test_info_in_a_pipe_rounds_no_coordinate_and_wraps_no_line(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    place = from_origin(488_099.123456, 5_208_746.654321, 2.5, 2.5)
    path = make(folder / "scene.tif", rgb(), crs="EPSG:32633", transform=place)
    shown = run("info", path, "--model", model).stdout
    assert str(path) in shown
    assert "488099.123456, 0, -2.5, 5208746.654321" in shown


def test_info_reads_a_scene_as_segment_does(tmp_path: Path, model: str) -> None:
    for name, band in zip(("B04", "B03", "B02"), rgb(), strict=True):
        make(tmp_path / f"{name}.tif", band[None])
    files = sorted(tmp_path.glob("B*.tif"))
    mask = make(tmp_path / "mask.tif", np.ones((1, 40, 25), np.uint8))
    options = ["--model", model, "--json", "--rgb"]
    result = run("info", *files, *options, "--mask", mask, "--mask-values", "1")
    facts = json.loads(result.stdout)["scene"]
    assert facts["path"] == ", ".join(map(str, files))
    assert facts["bands_told_by"] == "tags"
    assert facts["mask"] == str(mask)
    assert run("info", *files, "--model", model).exit_code == 2
    refused = run("info", *files, *options, "--mosaic")
    assert refused.exit_code == 2
    assert "give one" in refused.stderr


def test_info_without_weights(scene: Path) -> None:
    result = run("info", scene, "--model", "ViT-B-16/openai", "--json")
    if result.exit_code == 0:
        assert json.loads(result.stdout)["run"]["window"] == 224


def test_models() -> None:
    listed = json.loads(run("models", "--json").stdout)["models"]
    assert listed[0]["spec"] == "geoseg-tiny"
    assert listed[0]["bundled"]
    assert "ViT-B-16/openai" in run("models", "b-16/openai").stdout


def test_preview(scene: Path, tmp_path: Path, model: str) -> None:
    assert segment(scene, tmp_path / "out", model).exit_code == 0
    target = tmp_path / "picture.png"
    result = run("preview", scene, tmp_path / "out" / "labels.tif", "--out", target)
    assert result.exit_code == 0, result.output
    assert target.stat().st_size > 1000
    again = run("preview", scene, tmp_path / "out" / "labels.tif", "--out", target)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr


def test_two_runs_do_not_share_an_output_folder(scene: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with claimed(out / CLAIM, out):
        result = segment(scene, out, model)
    assert result.exit_code == 1
    assert "another run" in result.stderr
    assert segment(scene, out, model).exit_code == 0
    assert not (out / CLAIM).exists()


def test_an_output_folder_below_a_file(scene: Path, tmp_path: Path, model: str) -> None:
    (tmp_path / "file").write_text("mine")
    result = segment(scene, tmp_path / "file" / "out", model)
    assert result.exit_code == 1
    assert "cannot be made" in result.stderr
    assert result.stderr.count("\n") == 1


def test_nothing_to_label_is_said(tmp_path: Path, model: str) -> None:
    scene = draw(tmp_path / "empty.tif", nodata=0)
    with rasterio.open(scene, "r+") as dataset:
        dataset.write(np.zeros((3, 90, 130), np.uint8))
    result = segment(scene, tmp_path / "out", model)
    assert result.exit_code == 0
    assert "no pixel holds data" in result.stderr


def test_areas_follow_the_latitude(tmp_path: Path, model: str) -> None:
    """On a tall geographic scene pixels shrink towards the pole; areas add up to the polygons'."""
    from rasterio.transform import from_bounds

    scene = draw(
        tmp_path / "tall.tif", 128, 96,
        crs="EPSG:4326", transform=from_bounds(10, 40, 14, 60, 96, 128),
    )  # fmt: skip
    assert segment(scene, tmp_path / "out", model, "--tile", "32").exit_code == 0
    report = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    with sqlite3.connect(tmp_path / "out" / "polygons.gpkg") as database:
        rows = database.execute(
            "select class_name, sum(area_m2) from segments group by class_name"
        ).fetchall()
    polygons = dict(rows)
    for entry in report["classes"]:
        if entry["pixels"]:
            assert entry["area_m2"] == pytest.approx(polygons[entry["name"]], rel=0.02)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """A shell lets what it starts in the background ignore Ctrl-C, these tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_that_python_drops_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in a finaliser or a garbage collection goes nowhere, Ctrl-C too."""
    before = signal.getsignal(signal.SIGINT)
    state = Progress("segment", 1, 2, 100, 200)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # to have it put back
    with stoppable(), progress_bar(quiet=True) as progress:
        progress(state)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            progress(state)
    assert signal.getsignal(signal.SIGINT) is before


def test_libraries_that_stumble_over_a_signal_say_nothing() -> None:
    """Python shows what is raised in a garbage collection, and what it breaks at the exit."""
    code = """
import atexit, gc, signal
from geoseg_cli._signals import check, stoppable

def collected(phase, info):
    signal.raise_signal(signal.SIGTERM)

def ended():
    raise AssertionError("half started")

atexit.register(ended)
gc.callbacks.append(collected)
try:
    with stoppable():
        gc.collect(0)
        check()
except KeyboardInterrupt as stop:
    gc.callbacks.clear()
    raise SystemExit(stop.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "")
