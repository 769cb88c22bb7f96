"""Rasters out: placed, complete, compact, and with nothing of the source in them."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.shutil import copy
from rio_cogeo.cogeo import cog_validate

from geoseg.errors import OutputError
from geoseg.io.grid import Grid
from geoseg.io.scene import Scene
from geoseg.io.write import (
    confidence_writer,
    label_writer,
    margin_writer,
    probability_writer,
)
from geoseg.types import Window, as_label_classes

UTM = CRS.from_epsg(32631)
UPRIGHT = Affine(2, 0, 500000, 0, -2, 5000000)
SOUTH_UP = Affine(2, 0, 500000, 0, 2, 5000000)
ROTATED = Affine(1.8, 0.8, 500000, 0.8, -1.8, 5000000)
CLASSES = as_label_classes(["building", "road, street", "Häuser = 屋"])


def grid(height: int = 700, width: int = 900, transform: Affine = UPRIGHT) -> Grid:
    return Grid(UTM, transform, height, width)


def labels(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def finish(writer: object, tmp_path: Path) -> Path:
    final = tmp_path / "labels.tif"
    writer.finish(final)  # type: ignore[attr-defined]
    return final


@pytest.mark.parametrize("transform", [UPRIGHT, SOUTH_UP, ROTATED, Affine(1, 0, 0, 0, -1, 0)])
def test_labels_come_back_where_they_belong(tmp_path: Path, transform: Affine) -> None:
    place, pixels = grid(transform=transform), labels((700, 900))
    pixels[:100] = 255
    with label_writer(tmp_path / "w.tif", place, CLASSES) as writer:
        writer.write(place.window, pixels)
        final = finish(writer, tmp_path)
    with rasterio.open(final) as dataset:
        assert dataset.crs == UTM
        assert dataset.transform == transform
        assert dataset.shape == (700, 900)
        assert dataset.dtypes == ("uint8",)
        assert dataset.nodata == 255
        np.testing.assert_array_equal(dataset.read(1), pixels)
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, pixels != 255)


def test_labels_carry_names_and_colours(tmp_path: Path) -> None:
    place = grid()
    with label_writer(tmp_path / "w.tif", place, CLASSES) as writer:
        writer.write(place.window, labels(place.shape))
        final = finish(writer, tmp_path)
    with rasterio.open(final) as dataset:
        tags, table = dataset.tags(1), dataset.colormap(1)
        assert dataset.colorinterp == (ColorInterp.palette,)
        assert dataset.descriptions == ("class",)
        assert dataset.tags()["GEOSEG_PRODUCT"] == "labels"
    for entry in CLASSES:
        assert tags[f"CLASS_{entry.index}"] == entry.name
        assert table[entry.index][:3] == entry.rgb
    assert not list(tmp_path.glob("*.aux.xml"))


def test_more_than_254_classes_are_16_bit(tmp_path: Path) -> None:
    classes = as_label_classes([f"class {i}" for i in range(300)])
    place = grid(600, 600)
    pixels = (np.arange(360000).reshape(600, 600) % 300).astype(np.uint16)
    pixels[:5] = 65535
    with label_writer(tmp_path / "w.tif", place, classes) as writer:
        writer.write(place.window, pixels)
        final = finish(writer, tmp_path)
    with rasterio.open(final) as dataset:
        assert dataset.nodata == 65535
        np.testing.assert_array_equal(dataset.read(1), pixels)
        table = dataset.colormap(1)
        assert all(table[c.index][:3] == c.rgb for c in classes)
        assert dataset.tags(1)["CLASS_299"] == "class 299"


def test_the_result_is_a_cloud_optimised_geotiff(tmp_path: Path) -> None:
    place = grid(1300, 1100)
    with label_writer(tmp_path / "w.tif", place, CLASSES) as writer:
        writer.write(place.window, labels(place.shape))
        final = finish(writer, tmp_path)
    with rasterio.open(final) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.overviews(1) == [2, 4]
        # Overviews come before the full image in the file, coarsest first.
        full = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
        halves = [int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1, o)) for o in (0, 1)]
        assert halves[1] < halves[0] < full
        assert set(np.unique(dataset.read(1, out_shape=(325, 275)))) <= {0, 1, 2}


def test_what_was_never_written_is_nodata_and_takes_no_room(tmp_path: Path) -> None:
    place = grid(9000, 12000)
    part = Window(2000, 3000, 700, 600)
    with label_writer(tmp_path / "w.tif", place, CLASSES) as writer:
        writer.write(part, labels(part.shape))
        writer.flush()
        assert writer.work.stat().st_size < 3_000_000
        final = finish(writer, tmp_path)
    assert final.stat().st_size < 1_000_000
    with rasterio.open(final) as dataset:
        got = dataset.read(1, window=((1999, 2701), (2999, 3601)))
        np.testing.assert_array_equal(got[1:-1, 1:-1], labels(part.shape))
        assert (got[0] == 255).all()
        assert (got[:, -1] == 255).all()
        assert (dataset.read(1, window=((0, 600), (0, 600))) == 255).all()
    assert Scene.open(final, bands=[1]).is_empty(Window(4096, 0, 4096, 4096))


@st.composite
def partitions(draw: st.DrawFn) -> tuple[int, int, list[Window]]:
    """Draw a raster size and windows that cover it once."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    rows = sorted({0, height, *draw(st.lists(st.integers(0, height), max_size=4))})
    cols = sorted({0, width, *draw(st.lists(st.integers(0, width), max_size=4))})
    windows = [Window(r, c, r2 - r, c2 - c) for r, r2 in pairwise(rows) for c, c2 in pairwise(cols)]
    return height, width, draw(st.permutations(windows))


@given(partitions(), st.data())
@settings(max_examples=25, deadline=None)
def test_any_partition_in_any_order_with_interruptions_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[int, int, list[Window]],
    data: st.DataObject,
) -> None:
    height, width, windows = case
    folder = tmp_path_factory.mktemp("partition")
    place, pixels = grid(height, width), labels((height, width))
    stops = data.draw(st.sets(st.integers(0, len(windows) - 1)))
    writer = label_writer(folder / "w.tif", place, CLASSES)
    for number, window in enumerate(windows):
        if number in stops:
            writer.close()
            writer = label_writer(folder / "w.tif", place, CLASSES, resume=True)
        rows, cols = window.slices()
        writer.write(window, pixels[rows, cols])
    final = finish(writer, folder)
    with rasterio.open(final) as dataset:
        np.testing.assert_array_equal(dataset.read(1), pixels)


def test_a_resumed_raster_has_the_same_bytes(tmp_path: Path) -> None:
    place, pixels = grid(), labels((700, 900))
    top, bottom = Window(0, 0, 333, 900), Window(333, 0, 367, 900)
    for name, interrupted in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        writer = label_writer(tmp_path / name / "w.tif", place, CLASSES)
        for window in (bottom, top) if interrupted else (top, bottom):
            writer.write(window, pixels[window.slices()])
            if interrupted:
                writer.close()
                writer = label_writer(tmp_path / name / "w.tif", place, CLASSES, resume=True)
        finish(writer, tmp_path / name)
    one, two = ((tmp_path / n / "labels.tif").read_bytes() for n in "ab")
    assert one == two


def test_flushed_pixels_outlive_a_killed_process(tmp_path: Path) -> None:
    code = f"""
import os, signal
import numpy as np
from test_io_write import CLASSES, grid, labels
from geoseg.io.write import label_writer
from geoseg.types import Window
from pathlib import Path
writer = label_writer(Path({str(tmp_path / "w.tif")!r}), grid(), CLASSES)
writer.write(Window(0, 0, 300, 900), labels((300, 900)))
writer.flush()
writer.write(Window(300, 0, 300, 900), labels((300, 900), 1))
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == -9
    writer = label_writer(tmp_path / "w.tif", grid(), CLASSES, resume=True)
    writer.write(Window(300, 0, 400, 900), labels((400, 900), 2))
    with rasterio.open(finish(writer, tmp_path)) as dataset:
        np.testing.assert_array_equal(dataset.read(1)[:300], labels((300, 900)))
        np.testing.assert_array_equal(dataset.read(1)[300:], labels((400, 900), 2))


def test_the_final_name_appears_only_when_complete(tmp_path: Path) -> None:
    place = grid()
    with label_writer(tmp_path / "w.tif", place, CLASSES) as writer:
        writer.write(place.window, labels(place.shape))
    assert names_in(tmp_path) == ["w.tif"]
    writer.discard()
    assert names_in(tmp_path) == []


def test_a_failed_finish_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rasterio.shutil

    def half_a_file(source: str, target: str, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    place = grid()
    writer = label_writer(tmp_path / "w.tif", place, CLASSES)
    writer.write(place.window, labels(place.shape))
    monkeypatch.setattr(rasterio.shutil, "copy", half_a_file)
    with pytest.raises(OutputError, match="No space left"):
        finish(writer, tmp_path)
    assert names_in(tmp_path) == ["w.tif"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    place = grid(20, 20)
    (tmp_path / "labels.tif").write_bytes(b"precious")
    writer = label_writer(tmp_path / "w.tif", place, CLASSES)
    writer.write(place.window, labels(place.shape))
    with pytest.raises(OutputError, match="--overwrite"):
        finish(writer, tmp_path)
    assert (tmp_path / "labels.tif").read_bytes() == b"precious"
    writer.finish(tmp_path / "labels.tif", overwrite=True)
    with rasterio.open(tmp_path / "labels.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels((20, 20)))


def test_the_work_file_of_another_run_is_made_anew(tmp_path: Path) -> None:
    whole = Window(0, 0, 50, 60)

    def written() -> None:
        with label_writer(tmp_path / "w.tif", grid(70, 90), CLASSES) as writer:
            writer.write(whole, np.ones(whole.shape, np.uint8))

    written()
    with label_writer(tmp_path / "w.tif", grid(70, 90), CLASSES, resume=True) as writer:
        assert (writer.read(whole) == 1).all()
    for size, classes in ((grid(60, 90), CLASSES), (grid(70, 90), as_label_classes(["other"]))):
        written()
        with label_writer(tmp_path / "w.tif", size, classes, resume=True) as writer:
            assert (writer.read(whole) == 255).all()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        label_writer(tmp_path / "missing" / "w.tif", grid(), CLASSES)


def test_pixels_that_do_not_fit_are_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with label_writer(tmp_path / "w.tif", grid(), CLASSES) as writer:
        with pytest.raises(ValueError, match="do not fit"):
            writer.write(Window(0, 0, 5, 5), np.zeros((5, 6), np.uint8))
        with pytest.raises(ValueError, match="int64"):
            writer.write(Window(0, 0, 5, 5), np.zeros((5, 5), np.int64))
        with pytest.raises(ValueError, match="not inside"):
            writer.write(Window(699, 0, 5, 5), np.zeros((5, 5), np.uint8))


def test_threads_may_write_together(tmp_path: Path) -> None:
    place, pixels = grid(), labels((700, 900))
    windows = [Window(r, c, 70, 90) for r in range(0, 700, 70) for c in range(0, 900, 90)]
    start = threading.Barrier(4)
    with label_writer(tmp_path / "w.tif", place, CLASSES) as writer:

        def work(part: list[Window]) -> None:
            start.wait()
            for window in part:
                writer.write(window, pixels[window.slices()])
                writer.flush()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, [windows[i::4] for i in range(4)]))
        final = finish(writer, tmp_path)
    with rasterio.open(final) as dataset:
        np.testing.assert_array_equal(dataset.read(1), pixels)


def test_confidence_and_probabilities(tmp_path: Path) -> None:
    place = grid()
    per_cent = np.random.default_rng(0).integers(0, 101, (3, *place.shape)).astype(np.uint8)
    per_cent[:, :50] = 255
    with confidence_writer(tmp_path / "c.tif", place) as writer:
        writer.write(place.window, per_cent[0])
        writer.finish(tmp_path / "confidence.tif")
    with probability_writer(tmp_path / "p.tif", place, CLASSES) as writer:
        writer.write(place.window, per_cent)
        writer.finish(tmp_path / "probabilities.tif")
    with rasterio.open(tmp_path / "confidence.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), per_cent[0])
        assert dataset.nodata == 255
    with rasterio.open(tmp_path / "probabilities.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), per_cent)
        assert dataset.descriptions == tuple(c.name for c in CLASSES)
        assert dataset.nodata == 255


def test_nothing_of_the_source_profile_leaks(tmp_path: Path) -> None:
    plain = tmp_path / "plain.tif"
    with rasterio.open(
        plain, "w", driver="GTiff", height=64, width=64, count=3, dtype="uint8", crs=UTM,
        transform=UPRIGHT,
    ) as dataset:  # fmt: skip
        dataset.write(np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8))
        dataset.update_tags(SECRET="yes", TIFFTAG_ARTIST="somebody")
        dataset.nodata = 137
    source = tmp_path / "ycbcr.tif"
    copy(
        str(plain), str(source), driver="GTiff", COMPRESS="JPEG", PHOTOMETRIC="YCBCR",
        TILED="YES", BLOCKXSIZE="16", BLOCKYSIZE="16",
    )  # fmt: skip
    scene = Scene.open(source)
    with label_writer(tmp_path / "w.tif", scene.grid, CLASSES) as writer:
        writer.write(scene.grid.window, labels(scene.shape))
        final = finish(writer, tmp_path)
    with rasterio.open(final) as dataset:
        assert dataset.compression.name == "deflate"
        assert dataset.photometric is None or dataset.photometric.name != "ycbcr"
        assert dataset.block_shapes == [(512, 512)] or dataset.shape == (64, 64)
        assert dataset.nodata == 255
        assert not {"SECRET", "TIFFTAG_ARTIST"} & dataset.tags().keys()
        np.testing.assert_array_equal(dataset.read(1), labels((64, 64)))


def test_a_scene_without_crs_gives_labels_without_crs(tmp_path: Path) -> None:
    place = Grid(None, Affine.identity(), 30, 40)
    with label_writer(tmp_path / "w.tif", place, CLASSES) as writer:
        writer.write(place.window, labels(place.shape))
        final = finish(writer, tmp_path)
    with rasterio.open(final) as dataset:
        assert dataset.crs is None
        assert dataset.transform == Affine.identity()


@pytest.mark.parametrize(
    "product", ["labels", "many labels", "runner_up", "confidence", "margin", "probabilities"]
)
@pytest.mark.parametrize("shape", [(1, 1), (513, 700), (1, 3000), (1100, 600)])
@pytest.mark.parametrize(
    ("filled", "placed"), [("all", True), ("one window", True), ("none", False)]
)
def test_every_raster_is_a_sound_cog(
    tmp_path: Path, product: str, shape: tuple[int, int], filled: str, placed: bool
) -> None:
    place = Grid(*((UTM, UPRIGHT) if placed else (None, Affine.identity())), *shape)
    classes = as_label_classes([f"c{i}" for i in range(300 if product == "many labels" else 5)])
    work = tmp_path / "w.tif"
    writer = {
        "confidence": lambda: confidence_writer(work, place),
        "margin": lambda: margin_writer(work, place),
        "probabilities": lambda: probability_writer(work, place, classes),
        "runner_up": lambda: label_writer(work, place, classes, product="runner_up"),
    }.get(product, lambda: label_writer(work, place, classes))()
    window = place.window if filled == "all" else Window(0, 0, min(9, shape[0]), min(9, shape[1]))
    bands = len(writer.layout.descriptions)
    if filled != "none":
        values = np.random.default_rng(1).integers(0, 5, (bands, *window.shape))
        writer.write(window, values.astype(writer.layout.dtype))
    writer.finish(tmp_path / "out.tif")
    writer.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        assert cog_validate(tmp_path / "out.tif", strict=True, quiet=True) == (True, [], [])
