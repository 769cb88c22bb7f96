"""Large, empty, cut up and many scenes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.env import get_gdal_config
from rasters import make
from typer.testing import CliRunner

import geoseg
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.inference import fusion, segmenter
from geoseg.io.grid import Grid
from geoseg.io.mosaic import build_mosaic
from geoseg.io.scene import Scene
from geoseg.pipeline import many
from geoseg.runtime import allocator
from geoseg.testing import assert_same_raster, drawn_rgb, tiny_random_model, write_scene
from geoseg.types import Window

CLASSES = "building; road; water; forest, trees; meadow"
QUICK = geoseg.Options(templates="none")
RASTERS = geoseg.Products(polygons="none", preview=False)
SIZE = (300, 420)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(spec: str) -> geoseg.Model:
    return geoseg.load_model(spec, device="cpu")


@pytest.fixture
def segment(loaded: geoseg.Model, tmp_path: Path) -> Any:
    def call(scene: Any, out: str = "out", **settings: Any) -> geoseg.pipeline.Run:
        defaults = {"model": loaded, "options": QUICK, "products": RASTERS, "tile": 96}
        return geoseg.segment_to_files(scene, CLASSES, tmp_path / out, **defaults | settings)

    return call


def test_a_model_that_the_run_has_loaded_is_gone_when_the_products_are_made(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, alive = [], {}

    def load(*given: Any, **settings: Any) -> geoseg.Model:
        model = geoseg.load_model(*given, **settings)
        models.append(weakref.ref(model.clip))
        return model

    def look(progress: geoseg.pipeline.Progress) -> None:
        alive[progress.stage] = models[0]() is not None

    monkeypatch.setattr(fusion, "load_model", load)
    scene = write_scene(tmp_path / "scene.tif", 150, 120)
    run = geoseg.segment_to_files(
        scene, CLASSES, tmp_path / "out", model=spec, options=QUICK, device="cpu", progress=look
    )
    assert alive == {"segment": True} | {path.name: False for path in run.files[:-1]}


def labels_of(run: geoseg.pipeline.Run) -> np.ndarray:
    with rasterio.open(run.out / "labels.tif") as dataset:
        return dataset.read(1)


def cut_in_four(folder: Path, **settings: Any) -> list[Path]:
    """The scene of `SIZE` in four files that no block, tile or window ends with."""
    height, width, row, col = *SIZE, 131, 205
    corners = [(0, 0, row, col), (0, col, row, width - col), (row, 0, height - row, col),
               (row, col, height - row, width - col)]  # fmt: skip
    return [
        write_scene(folder / f"part{i}.tif", h, w, origin=(r, c), **settings)
        for i, (r, c, h, w) in enumerate(corners)
    ]


# -- empty tiles ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*no pixel holds data")
def test_a_scene_of_nothing_costs_no_inference_and_no_reading(
    segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "scene.tif", 5000, 6000, regions=[])
    monkeypatch.setattr(segmenter, "run_windows", lambda *_, **__: pytest.fail("inference"))
    monkeypatch.setattr(Scene, "read", lambda *_: pytest.fail("reading"))
    run = segment(scene, tile=512)
    assert (labels_of(run) == 255).all()
    assert run.report["windows"] == 0
    assert run.report["nodata_pixels"] == 5000 * 6000


@pytest.mark.filterwarnings("ignore:.*no pixel holds data")
def test_written_nodata_costs_no_inference(
    segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "scene.tif", *SIZE, holes=[Window(0, 0, *SIZE)])
    monkeypatch.setattr(segmenter, "run_windows", lambda *_, **__: pytest.fail("inference"))
    assert (labels_of(segment(scene)) == 255).all()


def test_an_island_in_a_sparse_scene_is_labelled_as_it_is_alone(
    segment: Any, tmp_path: Path
) -> None:
    island = Window(1536, 2048, 512, 512)
    sparse = write_scene(tmp_path / "sparse.tif", 4096, 4096, regions=[island])
    holes = [Window(0, 0, 1536, 4096), Window(2048, 0, 2048, 4096), Window(1536, 0, 512, 2048),
             Window(1536, 2560, 512, 1536)]  # fmt: skip
    full = write_scene(tmp_path / "full.tif", 4096, 4096, holes=holes)
    one, other = segment(sparse, "one", tile=512), segment(full, "other", tile=384)
    assert_same_raster(one.out / "labels.tif", other.out / "labels.tif")
    assert (labels_of(one)[island.slices()] != 255).all()
    assert one.report["nodata_pixels"] == 4096 * 4096 - island.area


# -- areas of interest ----------------------------------------------------------------------------


def test_labels_in_an_area_are_those_of_the_whole_scene(segment: Any, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", *SIZE)
    whole = segment(scene, "whole")
    part = segment(scene, "part", reading=geoseg.Reading(aoi="500033,5199880,500120,5199970"))
    window = Window(60, 66, 180, 174)
    np.testing.assert_array_equal(labels_of(part), labels_of(whole)[window.slices()])
    assert part.report["windows"] <= whole.report["windows"] / 2


def test_a_thin_area_runs_only_the_windows_that_it_needs(segment: Any, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", *SIZE)
    corner = (500_000, 5_200_000)
    points = [(0, 0), (200, -150), (210, -150), (10, 0), (0, 0)]
    ring = [[corner[0] + x, corner[1] + y] for x, y in points]
    area = tmp_path / "area.geojson"
    area.write_text(json.dumps({
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}},
        "features": [{"type": "Feature", "properties": {},
                      "geometry": {"type": "Polygon", "coordinates": [ring]}}],
    }))  # fmt: skip
    whole = segment(scene, "whole")
    part = segment(scene, "part", reading=geoseg.Reading(aoi=str(area)))
    found, expected = labels_of(part), labels_of(whole)[: part.report["size"][0]]
    inside = found != 255
    assert 0.02 < inside.mean() < 0.2
    np.testing.assert_array_equal(found[inside], expected[inside])
    assert part.report["windows"] < whole.report["windows"] * 0.6


# -- mosaics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodata", [0, None])
def test_a_mosaic_is_labelled_as_the_uncut_scene(
    segment: Any, tmp_path: Path, nodata: int | None
) -> None:
    whole = segment(write_scene(tmp_path / "scene.tif", *SIZE, nodata=nodata), "whole")
    mosaic = segment(cut_in_four(tmp_path, nodata=nodata), "mosaic")
    for name in ("labels.tif", "confidence.tif"):
        assert_same_raster(mosaic.out / name, whole.out / name)
    assert (mosaic.out / "mosaic.vrt").exists()


@pytest.mark.parametrize("nodata", [0, None])
def test_gaps_between_scenes_are_nodata(segment: Any, tmp_path: Path, nodata: int | None) -> None:
    parts = cut_in_four(tmp_path, nodata=nodata)
    found = labels_of(segment([parts[0], parts[3]]))
    assert (found[:131, 205:] == 255).all()
    assert (found[131:, :205] == 255).all()
    assert (found[:131, :205] != 255).all()
    assert (found[131:, 205:] != 255).all()


def test_nodata_and_transparent_pixels_do_not_hide_another_scene(tmp_path: Path) -> None:
    full = write_scene(tmp_path / "full.tif", 64, 64)
    holed = write_scene(tmp_path / "holed.tif", 64, 64, holes=[Window(0, 0, 32, 64)])
    build_mosaic([full, holed], tmp_path / "mosaic.vrt")
    block = Scene.open(tmp_path / "mosaic.vrt").read(Window(0, 0, 64, 64))
    assert block.valid.all()
    with_alpha = []
    for name, top in (("below", 255), ("above", 0)):
        alpha = np.full((1, 64, 64), 255, np.uint8)
        alpha[0, :32] = top
        path = tmp_path / f"{name}.tif"
        with rasterio.open(full) as source, rasterio.open(
            path, "w", driver="GTiff", height=64, width=64, count=4, dtype="uint8",
            crs=source.crs, transform=source.transform,
        ) as dataset:  # fmt: skip
            dataset.colorinterp = [*list(source.colorinterp[:3]), ColorInterp.alpha]
            colour = source.read() if name == "below" else np.full((3, 64, 64), 7, np.uint8)
            dataset.write(np.concatenate([colour, alpha]))
        with_alpha.append(path)
    build_mosaic(with_alpha, tmp_path / "alpha.vrt")
    block = Scene.open(tmp_path / "alpha.vrt", nodata=()).read(Window(0, 0, 64, 64))
    assert block.valid.all()
    expected = drawn_rgb(Window(0, 0, 32, 64)).astype(np.float32) / 255
    np.testing.assert_array_equal(block.rgb[:, :32], expected)
    assert (block.rgb[:, 32:] == np.float32(7) / 255).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crs": "EPSG:32633"}, "has CRS EPSG:32633, but .* has EPSG:32632"),
        ({"crs": None}, "has CRS none"),
        ({"gsd_m": 1.0}, r"has pixels of 1 x -1, but .* has 0\.5 x -0\.5"),
        ({"dtype": "uint16"}, "has bands of type uint16"),
        ({"nodata": 255}, "has nodata"),
    ],
)
def test_scenes_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    first = write_scene(tmp_path / "first.tif", 40, 40)
    other = write_scene(tmp_path / "other.tif", 40, 40, **settings)
    with pytest.raises(SceneError, match=message):
        build_mosaic([first, other], tmp_path / "mosaic.vrt")
    assert not (tmp_path / "mosaic.vrt").exists()


def test_scenes_off_the_grid_are_refused(tmp_path: Path) -> None:
    first = write_scene(tmp_path / "first.tif", 40, 40)
    other = write_scene(tmp_path / "other.tif", 40, 40, origin=(0, 40))
    with rasterio.open(other, "r+") as dataset:
        dataset.transform = dataset.transform * rasterio.Affine.translation(0.3, 0)
    with pytest.raises(SceneError, match="its pixels lie between those of"):
        build_mosaic([first, other], tmp_path / "mosaic.vrt")


def test_a_file_of_the_users_is_not_taken_for_an_older_mosaic(tmp_path: Path) -> None:
    scenes = cut_in_four(tmp_path, nodata=0)
    target = tmp_path / "mosaic.vrt"
    target.write_text("<VRTDataset/>")
    with pytest.raises(OutputError, match="was not made by geoseg"):
        build_mosaic(scenes, target)
    assert target.read_text() == "<VRTDataset/>"
    target.unlink()
    build_mosaic(scenes[:2], target)
    first = target.read_text()
    build_mosaic(scenes, target)
    assert target.read_text() != first


def test_a_finished_mosaic_resumes_as_one(segment: Any, tmp_path: Path) -> None:
    parts = cut_in_four(tmp_path)
    first = segment(parts)
    assert segment(parts, resume=True).report == first.report


# -- other ways to name a scene -------------------------------------------------------------------


def test_a_scene_inside_an_archive(segment: Any, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 120, 150)
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        archive.write(scene, "folder/scene.tif")
    packed = segment(f"/vsizip/{tmp_path}/scenes.zip/folder/scene.tif", "packed")
    plain = segment(scene, "plain")
    assert_same_raster(packed.out / "labels.tif", plain.out / "labels.tif")


# -- many scenes ----------------------------------------------------------------------------------


@pytest.fixture
def geoseg_cli(spec: str) -> Any:
    from geoseg_cli.main import app

    def call(*arguments: object) -> Any:
        fixed = ["--classes", CLASSES, "--model", spec, "--templates", "none", "--tile", "96",
                 "--polygons", "none"]  # fmt: skip
        return CliRunner().invoke(app, ["segment", *map(str, arguments), *fixed])

    return call


def test_one_scene_that_fails_does_not_stop_the_others(geoseg_cli: Any, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    write_scene(scenes / "a.tif", 100, 100)
    (scenes / "b.tif").write_text("no raster")
    write_scene(scenes / "c.tif", 100, 100)
    result = geoseg_cli(scenes, "--out", tmp_path / "out")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert errors == [
        f"error: {scenes}/b.tif: is not a raster in a format GDAL knows",
        f"error: 1 of 3 scenes failed: {scenes}/b.tif",
    ]
    assert (tmp_path / "out" / "a" / "run.json").exists()
    assert (tmp_path / "out" / "c" / "run.json").exists()
    assert not (tmp_path / "out" / "b").exists()


def test_a_scene_that_fails_unexpectedly_is_named_and_the_others_run(
    geoseg_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    scenes = [write_scene(tmp_path / f"{name}.tif", 100, 100) for name in "abc"]
    as_before = many.segment_to_files

    def breaks_on_b(scene: str, *given: Any, **named: Any) -> Any:
        if Path(scene).stem == "b":
            raise ZeroDivisionError("by nothing")
        return as_before(scene, *given, **named)

    monkeypatch.setattr(many, "segment_to_files", breaks_on_b)
    result = geoseg_cli(*scenes, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [Path(run["out"]).name for run in found["runs"]] == ["a", "c"]
    (failed,) = found["failed"]
    assert failed["scene"].endswith("b.tif")
    assert "by nothing" in failed["error"]
    assert result.stderr.splitlines()[-1].endswith("1 of 3 scenes failed: " + failed["scene"])


def test_an_area_that_misses_one_of_the_scenes(geoseg_cli: Any, tmp_path: Path) -> None:
    write_scene(tmp_path / "near.tif", 100, 100)
    write_scene(tmp_path / "far.tif", 100, 100, origin=(0, 5000))
    result = geoseg_cli(
        tmp_path / "far.tif", tmp_path / "near.tif", "--out", tmp_path / "out",
        "--aoi", "500000,5199980,500020,5200000",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "far.tif" in result.stderr or "does not cover any pixel" in result.stderr
    assert (tmp_path / "out" / "near" / "labels.tif").exists()


def test_options_that_cannot_be_show_once_before_the_first_scene(
    geoseg_cli: Any, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_scene(tmp_path / f"{name}.tif", 100, 100)
    result = geoseg_cli(
        tmp_path / "a.tif", tmp_path / "b.tif", "--out", tmp_path / "out",
        "--threshold", "0.5", "--background", "nothing",
    )  # fmt: skip
    assert result.exit_code == 2
    assert result.stderr.count("error") == 1
    assert not (tmp_path / "out").exists()


def test_scenes_of_one_name_are_named_by_their_folders(geoseg_cli: Any, tmp_path: Path) -> None:
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        write_scene(tmp_path / folder / "scene.tif", 100, 100)
    given = (f"{tmp_path}/*/scene.tif", "--out", tmp_path / "out")
    refused = geoseg_cli(*given)
    assert refused.exit_code == 2
    assert "give --out-name" in refused.stderr
    assert not (tmp_path / "out").exists()
    result = geoseg_cli(*given, "--out-name", "{parent}_{stem}")
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["north_scene", "south_scene"]


def test_a_second_run_over_a_folder_that_holds_the_first_ones_maps(
    geoseg_cli: Any, tmp_path: Path
) -> None:
    write_scene(tmp_path / "scene.tif", 100, 100)
    assert geoseg_cli(tmp_path / "scene.tif", "--out", tmp_path).exit_code == 0
    again = geoseg_cli(tmp_path, "--out", tmp_path / "maps")
    assert again.exit_code == 0, again.stderr
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["scene"]
    first, second = (
        rasterio.open(folder / "labels.tif").read(1)
        for folder in (tmp_path, tmp_path / "maps/scene")
    )
    np.testing.assert_array_equal(first, second)


def test_a_batch_is_taken_up_where_it_ended(geoseg_cli: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_scene(tmp_path / f"{name}.tif", 100, 100)
    scenes = (tmp_path / "a.tif", tmp_path / "b.tif")
    assert geoseg_cli(*scenes, "--out", tmp_path / "out").exit_code == 0
    shutil.rmtree(tmp_path / "out" / "b")
    kept = (tmp_path / "out" / "a" / "labels.tif").stat().st_mtime_ns
    refused = geoseg_cli(*scenes, "--out", tmp_path / "out")
    assert refused.exit_code == 1
    assert "1 of 2 scenes failed" in refused.stderr, "a taken folder hinders its own scene alone"
    assert (tmp_path / "out" / "b" / "labels.tif").exists()
    shutil.rmtree(tmp_path / "out" / "b")
    assert geoseg_cli(*scenes, "--out", tmp_path / "out", "--resume").exit_code == 0
    assert (tmp_path / "out" / "b" / "labels.tif").exists()
    assert (tmp_path / "out" / "a" / "labels.tif").stat().st_mtime_ns == kept


def test_a_mosaic_on_the_command_line(geoseg_cli: Any, tmp_path: Path) -> None:
    cut_in_four(tmp_path)
    result = geoseg_cli(f"{tmp_path}/part*.tif", "--mosaic", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    with rasterio.open(tmp_path / "out" / "labels.tif") as dataset:
        assert dataset.shape == SIZE


# -- working GSD ----------------------------------------------------------------------------------


def test_the_process_is_left_as_it_would_be_without_a_run(
    segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings for a run's speed and memory would change whatever else the program does."""
    asked_of_c: list[str] = []

    class Library:
        def __init__(self, name: None) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *given: asked_of_c.append(name)

    monkeypatch.setattr(allocator, "ctypes", SimpleNamespace(CDLL=Library))

    def settings() -> tuple[Any, ...]:
        matmul = getattr(torch.backends.mkldnn, "matmul", None)
        return (
            torch.get_num_threads(),
            getattr(matmul, "fp32_precision", None),
            get_gdal_config("GDAL_CACHEMAX"),
        )

    before = settings()
    scene = write_scene(tmp_path / "scene.tif", 100, 100)
    segment(scene)
    assert settings() == before
    monkeypatch.setattr(segmenter, "run_windows", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segment(scene, "other")
    assert settings() == before
    assert set(asked_of_c) == {"malloc_trim"}  # free memory is given back, no setting is made


def test_a_gsd_needs_a_place_on_the_ground(segment: Any, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 100, 100, crs=None)
    with pytest.raises(OptionError, match=r"gsd 1 m cannot be reached"):
        segment(scene, reading=geoseg.Reading(gsd=1.0))


@pytest.mark.filterwarnings("ignore::geoseg.errors.GeosegWarning")
@pytest.mark.parametrize(
    "products",
    [
        geoseg.Products(polygons="geojson"),
        geoseg.Products(min_area_m2=10),
        geoseg.Products(simplify_m=1),
    ],
)
def test_polygons_that_need_a_place_are_refused_before_any_work(
    segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: geoseg.Products
) -> None:
    monkeypatch.setattr(segmenter, "run_windows", lambda *_, **__: pytest.fail("inference"))
    scene = write_scene(tmp_path / "scene.tif", 100, 100, crs=None)
    with pytest.raises(
        OptionError, match=r"scene\.tif: .* need.*, but it has no CRS; (leave|take)"
    ):
        segment(scene, products=products)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::geoseg.errors.GeosegWarning")
@pytest.mark.parametrize("gsd", [None, 9000.0])
def test_class_areas_follow_the_pixels_of_a_tall_scene(
    segment: Any, tmp_path: Path, gsd: float | None
) -> None:
    """Towards the pole degrees shrink: every row of pixels has an area of its own."""
    path, place = tmp_path / "tall.tif", Affine(0.1, 0, 5, 0, -0.1, 68)
    make(path, drawn_rgb(Window(0, 0, 300, 120)), crs="EPSG:4326", transform=place)
    run = segment(path, reading=geoseg.Reading(gsd=gsd))
    labels = labels_of(run)
    grid = Grid(CRS.from_epsg(4326), place, *labels.shape)
    rows = [grid.pixel_area_m2(Window(row, 0, 1, labels.shape[1])) for row in range(len(labels))]
    for entry in run.report["classes"]:
        expected = ((labels == entry["index"]).sum(1) * np.array(rows)).sum()
        assert entry["area_m2"] == pytest.approx(expected, rel=1e-5)


def shares(run: geoseg.pipeline.Run) -> np.ndarray:
    return np.array([entry["per_cent"] for entry in run.report["classes"]])


@pytest.mark.slow
def test_a_gsd_maps_like_a_scene_that_was_resampled_before(segment: Any, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 400, 400)
    fine = tmp_path / "fine.tif"
    with rasterio.open(scene) as source:
        pixels = source.read(out_shape=(3, 800, 800), resampling=rasterio.enums.Resampling.bilinear)
        profile = source.profile | {
            "height": 800, "width": 800,
            "transform": source.transform * rasterio.Affine.scale(0.5),
        }  # fmt: skip
        with rasterio.open(fine, "w", **profile) as target:
            target.write(pixels)
    settings = {"model": geoseg.load_model("geoseg-tiny", device="cpu"), "tile": 512}
    before = segment(fine, "before", **settings)
    native = segment(scene, "native", reading=geoseg.Reading(gsd=0.25), **settings)
    np.testing.assert_allclose(shares(native), shares(before), atol=1)
    assert native.report["size"] == [400, 400]
    working = segment(
        scene, "working", reading=geoseg.Reading(gsd=0.25),
        products=geoseg.Products(polygons="none", preview=False, output_grid="working"), **settings,
    )  # fmt: skip
    assert working.report["size"] == [800, 800]


@pytest.mark.slow
def test_sixteen_bits_and_eight_give_nearly_the_same_map(tmp_path: Path, shared: Path) -> None:
    scenes = shared / "scenes" / "labelled" / "vegas_multiclass"
    tiny = geoseg.load_model("geoseg-tiny", device="cpu")
    maps = [
        labels_of(
            geoseg.segment_to_files(
                scenes / f"image_rgb_{name}.tif",
                "other; building; road; tree",
                tmp_path / name,
                model=tiny,
                products=RASTERS,
                reading=geoseg.Reading(stretch="2,98"),
            )
        )
        for name in ("uint16", "uint8")
    ]
    assert (maps[0] == maps[1]).mean() >= 0.9


# -- memory ---------------------------------------------------------------------------------------

PEAK = """
import sys
import geoseg
scene, out, model = sys.argv[1:]
geoseg.segment_to_files(
    scene, "building; road; water", out, model=model, tile=256, device="cpu",
    options=geoseg.Options(templates="none", stride=64),
    products=geoseg.Products(polygons="none", preview=False),
)
print(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_scene(spec: str, tmp_path: Path) -> None:
    peaks = []
    for side in (1024, 3072):
        scene = write_scene(tmp_path / f"{side}.tif", side, side)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, scene, tmp_path / f"out{side}", spec],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] <= 1.1 * peaks[0], f"{peaks} KiB for 1 and 9 times the area"
