"""Every benchmark on drawn images, in exactly its folders and label encoding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from geoseg.errors import EvaluationError, GeosegWarning, OptionError, OutputError
from geoseg.evaluation.benchmark import paper_options, run_benchmark
from geoseg.evaluation.registry import Dataset, Layout, Tiles, dataset_ids, load_dataset
from geoseg.evaluation.samples import tile_windows
from geoseg.options import Options
from geoseg.testing import tiny_random_model
from geoseg_cli.main import app

IDS = [
    "chn6-cug",
    "deepglobe-road",
    "inria",
    "isaid",
    "loveda",
    "massachusetts-road",
    "openearthmap",
    "potsdam",
    "spacenet-road",
    "uavid",
    "udd5",
    "vaihingen",
    "vdd",
    "wbs-si",
    "whu-aerial",
    "whu-satellite-2",
    "xbd",
]
LAYOUTS = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name in IDS
    for number in range(len(load_dataset(name).layouts))
]

# What the stars of each layout stand for in two or three files of the real data set.
STARS: dict[tuple[str, int], list[tuple[str, ...]]] = {
    ("chn6-cug", 0): [("am100001",), ("bs100007",)],
    ("chn6-cug", 1): [("am100001",), ("bs100007",)],
    ("deepglobe-road", 0): [("100393",), ("10078",)],
    ("deepglobe-road", 1): [("100393",), ("10078",)],
    ("inria", 0): [("austin1_0_0_1000_1000",), ("kitsap9_0_0_1000_1000",)],
    ("inria", 1): [("austin1",), ("austin2",), ("kitsap9",)],
    ("isaid", 0): [("P0003_0_896_0_896",), ("P0003_0_896_512_1408",)],
    ("isaid", 1): [("P0003",), ("P0004",)],
    ("isaid", 2): [("P0003",), ("P0004",)],
    ("loveda", 0): [("2522",), ("2523",), ("3514",)],
    ("loveda", 1): [("Rural", "2522"), ("Rural", "2523"), ("Urban", "3514")],
    ("massachusetts-road", 0): [("10828720_15",), ("10978735_15",)],
    ("massachusetts-road", 1): [("10828720_15",), ("10978735_15",)],
    ("openearthmap", 0): [("aachen_1",), ("koeln_50",)],
    ("openearthmap", 1): [("aachen", "aachen_1"), ("aachen", "aachen_2"), ("koeln", "koeln_50")],
    ("potsdam", 0): [("2_13_0_0_512_512",), ("7_13_5488_5488_6000_6000",)],
    ("potsdam", 1): [("2_13",), ("2_10",), ("7_13",)],
    ("spacenet-road", 0): [("RGB-PanSharpen_img1",), ("RGB-PanSharpen_img2",)],
    ("spacenet-road", 1): [("RGB-PanSharpen_img1",), ("RGB-PanSharpen_img2",)],
    ("uavid", 0): [("seq21_000000_0_1080_0_1280",), ("seq22_000100_1080_2160_0_1280",)],
    ("uavid", 1): [("seq21", "000000"), ("seq22", "000100")],
    ("udd5", 0): [("DJI_0285",), ("DJI_0601",)],
    ("vaihingen", 0): [("area6_0_0_512_512",), ("area24_0_512_512_1024",)],
    ("vaihingen", 1): [("area6",), ("area1",), ("area24",)],
    ("vdd", 0): [("DJI_0051",), ("DJI_0102",)],
    ("wbs-si", 0): [("water_body_8",), ("water_body_14",), ("water_body_9",)],
    ("whu-aerial", 0): [("2_100", "TIF"), ("2_101", "TIF")],
    ("whu-aerial", 1): [("2_100", "png"), ("2_101", "png")],
    ("whu-satellite-2", 0): [("100",), ("101",)],
    ("whu-satellite-2", 1): [("100",), ("101",)],
    ("xbd", 0): [("hurricane-florence_00000003",), ("mexico-earthquake_00000000",)],
    ("xbd", 1): [("hurricane-florence_00000003_pre_disaster",), ("mexico_pre_disaster",)],
}
# Files that the published protocol leaves out.
LEFT_OUT = {"austin2", "2_10", "area1", "aachen_2", "water_body_9"}

# The label encodings of the data sets themselves: class order and colours.
COLORS = {
    "isaid": "000000 00003f 003f3f 003f00 003f7f 003fbf 003fff 007f3f 007f7f 00007f 0000bf 0000ff "
    "00bf7f 007fbf 007fff 00649b",
    "potsdam": "ffffff 0000ff 00ffff 00ff00 ffff00 ff0000",
    "vaihingen": "ffffff 0000ff 00ffff 00ff00 ffff00 ff0000",
    "uavid": "000000 800000 804080 c000c0 008000 808000 404000",
}
ZERO_IS_IGNORED = {"loveda", "potsdam", "vaihingen"}
RAW_IS_BINARY = {name for name in IDS if load_dataset(name).foreground is not None}
CLASS_COLORS = np.array(
    [(37 * k % 256, (90 + 83 * k) % 256, (200 + 151 * k) % 256) for k in range(16)], np.uint8
)


@dataclass(frozen=True)
class Labelled:
    labels: np.ndarray


class ColorSegmenter:
    """Knows the colour of every class; as sure of it as a resized image allows."""

    def __init__(self, classes: int) -> None:
        self.palette = CLASS_COLORS[:classes].astype(int)
        self.seen: list[tuple[int, int]] = []

    def predict(self, rgb: np.ndarray, *, out_shape: tuple[int, int]) -> Labelled:
        assert rgb.dtype == np.uint8
        self.seen.append(rgb.shape[:2])
        distance = np.abs(rgb[:, :, None].astype(int) - self.palette).sum(-1)
        labels = distance.argmin(-1).astype(np.uint8)
        resized = Image.fromarray(labels).resize(out_shape[::-1], Image.Resampling.NEAREST)
        return Labelled(np.asarray(resized))


def draw_truth(dataset: Dataset, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Large blocks of classes, so that resizing costs little."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, len(dataset.vocabulary.names), (3, 4))
    return np.kron(blocks, np.ones((shape[0] // 3 + 1, shape[1] // 4 + 1), int))[
        : shape[0], : shape[1]
    ]


def encode(name: str, layout: Layout, truth: np.ndarray, jpeg: bool) -> Image.Image:
    """Write labels as the data set does; the upper left corner is unlabelled where it can be."""
    corner = np.zeros(truth.shape, bool)
    corner[:6, :6] = True
    if layout.values is not None and layout.values.colored:
        colors = np.array(
            [[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in COLORS[name].split()], np.uint8
        )
        pixels = colors[truth]
        if name in ("potsdam", "vaihingen"):
            pixels[corner] = 0
        return Image.fromarray(pixels)
    if layout.binary is not None:
        pixels = truth * (3 if name == "xbd" else 255)
        return Image.fromarray(pixels.astype(np.uint8))
    shifted = truth + (name in ZERO_IS_IGNORED)
    if name in ZERO_IS_IGNORED:
        shifted[corner] = 0
    return Image.fromarray(shifted.astype(np.uint8))


def draw(name: str, number: int, root: Path, shape: tuple[int, int] = (90, 120)) -> int:
    """Draw a data set's files; return how many of them are scored."""
    dataset = load_dataset(name)
    layout = dataset.layouts[number]
    stars = STARS[name, number]
    for seed, parts in enumerate(stars):
        image, labels = layout.images, root / layout.labels.format(*parts)
        for part in parts:
            image = image.replace("*", part, 1)
        truth = draw_truth(dataset, seed, shape)
        for path in (root / image, labels):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(CLASS_COLORS[truth]).save(root / image, quality=100, subsampling=0)
        encode(name, layout, truth, labels.suffix == ".jpg").save(labels, quality=95)
    kept = [parts for parts in stars if parts[-1] not in LEFT_OUT]
    if layout.keep_file is not None:
        suffix = ".tif" if name == "openearthmap" else ""
        (root / layout.keep_file).write_text("".join(f"{parts[-1]}{suffix}\n" for parts in kept))
    return len(kept)


def cuts(layout: Layout, shape: tuple[int, int] = (90, 120)) -> int:
    if layout.tiles is None:
        return 1
    rows = -(-shape[0] // layout.tiles.step_y)
    return rows * -(-shape[1] // layout.tiles.step_x)


def run(name: str, root: Path, out: Path, **options):
    dataset = load_dataset(name)
    return run_benchmark(
        dataset, root, ColorSegmenter(len(dataset.vocabulary.names)), out=out, **options
    )


def test_all_seventeen_are_there() -> None:
    assert list(dataset_ids()) == IDS


@pytest.mark.parametrize(("name", "number"), LAYOUTS)
def test_folders_and_encodings(name: str, number: int, tmp_path: Path) -> None:
    dataset = load_dataset(name)
    layout = dataset.layouts[number]
    kept = draw(name, number, tmp_path / "data")

    result = run(name, tmp_path / "data", tmp_path / "out")

    assert result.layout == layout.name
    assert result.files == kept
    assert len(result.images) == kept * cuts(layout)
    if layout.tiles is None:
        assert result.scores.accuracy > 0.97  # only edges between blocks suffer
        assert result.score > 0.9
    else:
        # Padding is as large as the tile, so shapes are resized differently; labels still agree.
        assert result.scores.accuracy > 0.9
    ignored = 36 * kept if name in ZERO_IS_IGNORED else 0
    assert result.scores.pixels == 90 * 120 * kept - ignored


@pytest.mark.parametrize("name", [n for n in IDS if load_dataset(n).inside])
def test_root_may_be_a_folder_above(name: str, tmp_path: Path) -> None:
    inside = load_dataset(name).inside[-1]
    draw(name, 0, tmp_path / inside)
    assert load_dataset(name).find(tmp_path).root == tmp_path / inside


@pytest.mark.parametrize("name", IDS)
def test_wrong_folder_shows_the_layout(name: str, tmp_path: Path) -> None:
    (tmp_path / "something.txt").touch()
    with pytest.raises(EvaluationError) as caught:
        load_dataset(name).find(tmp_path)
    message = str(caught.value)
    assert load_dataset(name).layouts[0].images in message
    assert "\n" not in message


@pytest.mark.parametrize("name", IDS)
def test_what_is_written_about_a_data_set_is_complete(name: str) -> None:
    dataset = load_dataset(name)
    names = dataset.vocabulary.names
    assert dataset.background in names
    assert dataset.home.startswith("http")
    assert dataset.licence
    assert dataset.long_side == 448
    assert dataset.foreground is None or dataset.foreground == names[1]
    paper = [p for p in dataset.published if p.method == "SegEarth-OV"]
    assert paper
    assert all(p.evidence in {"X", "T", "M"} and 0 < p.score < 100 for p in dataset.published)
    for layout in dataset.layouts:
        known = layout.values.names if layout.values else (names[0], layout.binary.name)
        assert set(known) == set(names)


def test_settings_of_the_paper() -> None:
    given = paper_options(load_dataset("xbd"), Options())
    assert (given.threshold, given.cls_bias, given.background) == (0.0, 0.0, "background")
    given = paper_options(load_dataset("potsdam"), Options(cls_bias=0.1))
    assert (given.threshold, given.cls_bias, given.background) == (0.1, 0.1, "clutter")
    assert paper_options(load_dataset("vdd"), Options()).cls_bias is None


# The protocol


def test_images_are_resized_by_the_long_side(tmp_path: Path) -> None:
    draw("vdd", 0, tmp_path / "data")
    dataset = load_dataset("vdd")
    for rule, expected in (("opencv", (336, 448)), ("none", (90, 120))):
        segmenter = ColorSegmenter(7)
        result = run_benchmark(
            dataset, tmp_path / "data", segmenter, out=tmp_path / rule, resize=rule
        )
        assert set(segmenter.seen) == {expected}
        assert result.images[0].height == 90
    assert result.scores.accuracy == pytest.approx(1, abs=0.02)  # JPEG only
    assert not result.comparable


@pytest.mark.parametrize(
    ("size", "tiles", "count"),
    [
        ((6000, 6000), Tiles(512, 512, 512, 512), 144),  # Potsdam: 14 areas, 2016 images
        ((2160, 3840), Tiles(1080, 1280, 1080, 1280), 6),
        ((896, 896), Tiles(896, 896, 512, 512), 1),
        ((1000, 2000), Tiles(896, 896, 512, 512), 2 * 4),
    ],
)
def test_tiles_cover_the_image_and_come_once(size, tiles: Tiles, count: int) -> None:
    windows = list(tile_windows(*size, tiles))
    covered = np.zeros(size, bool)
    for window in windows:
        assert window.row_stop <= size[0]
        assert window.col_stop <= size[1]
        covered[window.slices()] = True
    assert covered.all()
    assert len(set(windows)) == len(windows)
    assert len(windows) == count


def test_images_without_labels_are_named(tmp_path: Path) -> None:
    draw("loveda", 1, tmp_path)
    (tmp_path / "Val/Rural/masks_png/2523.png").unlink()
    with pytest.raises(EvaluationError, match=r"2523.png: its labels are missing.*1 of 3"):
        load_dataset("loveda").find(tmp_path)


def test_unknown_label_values_are_named(tmp_path: Path) -> None:
    draw("udd5", 0, tmp_path / "data")
    Image.fromarray(np.full((90, 120), 9, np.uint8)).save(tmp_path / "data/val/gt/DJI_0285.png")
    with pytest.raises(EvaluationError, match=r"DJI_0285.png: no class is known for value 9"):
        run("udd5", tmp_path / "data", tmp_path / "out")


def test_without_the_list_all_images_run_with_a_warning(tmp_path: Path) -> None:
    draw("wbs-si", 0, tmp_path / "data")
    (tmp_path / "data/wbs-si_val.txt").unlink()
    with pytest.warns(GeosegWarning, match="wbs-si_val.txt"):
        assert run("wbs-si", tmp_path / "data", tmp_path / "out").files == 3


def test_unknown_data_set_names_near_ones() -> None:
    with pytest.raises(OptionError, match="did you mean loveda"):
        load_dataset("lovda")
    assert load_dataset("LoveDA").id == "loveda"


# Results


def test_results_are_left_in_the_folder(tmp_path: Path) -> None:
    draw("loveda", 1, tmp_path / "data")
    result = run("loveda", tmp_path / "data", tmp_path / "out", limit=2)
    rows = (tmp_path / "out/images.csv").read_text().splitlines()
    assert rows[0].startswith("image,height,width,pixels,miou,accuracy,iou background")
    assert [row.split(",")[0] for row in rows[1:]] == [
        "Val/Rural/images_png/2522.png",
        "Val/Rural/images_png/2523.png",
    ]
    found = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert found["score"] == pytest.approx(result.score)
    assert found["files_total"] == 3
    assert found["comparable"] is False
    assert found["published"][0].keys() == {"method", "score", "evidence", "class_names"}


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    draw("loveda", 1, tmp_path / "data")
    whole = run("loveda", tmp_path / "data", tmp_path / "whole")
    dataset = load_dataset("loveda")

    class Killed(ColorSegmenter):
        def predict(self, rgb, *, out_shape):
            if self.seen:
                raise KeyboardInterrupt
            return super().predict(rgb, out_shape=out_shape)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(dataset, tmp_path / "data", Killed(7), out=out)
    assert not (out / "images.csv").exists()
    with (out / ".images.part.jsonl").open("a") as journal:
        journal.write('{"file": "Val/Rural/images_png/2523.png", "ima')  # cut off by the crash

    with pytest.raises(OutputError, match="--resume"):
        run("loveda", tmp_path / "data", out)
    segmenter = ColorSegmenter(7)
    resumed = run_benchmark(dataset, tmp_path / "data", segmenter, out=out, resume=True)
    assert len(segmenter.seen) == 2
    assert np.array_equal(resumed.scores.confusion, whole.scores.confusion)
    assert (out / "images.csv").read_bytes() == (tmp_path / "whole/images.csv").read_bytes()


def test_other_settings_cannot_resume(tmp_path: Path) -> None:
    draw("udd5", 0, tmp_path / "data")
    run("udd5", tmp_path / "data", tmp_path / "out", facts={"model": "a"})
    with pytest.raises(OutputError, match="another model"):
        run("udd5", tmp_path / "data", tmp_path / "out", facts={"model": "b"}, resume=True)
    run("udd5", tmp_path / "data", tmp_path / "out", facts={"model": "b"}, overwrite=True)


@pytest.mark.parametrize("limit", [0, -1])
def test_impossible_limit(limit: int, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="limit"):
        run("udd5", tmp_path, tmp_path / "out", limit=limit)


# The command


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("tiny"), width=32)


def command(*arguments: object):
    return CliRunner().invoke(app, ["benchmark", *(str(a) for a in arguments)])


@pytest.mark.parametrize("name", IDS)
def test_command_runs_every_data_set(name: str, tiny_model: str, tmp_path: Path) -> None:
    number = len(load_dataset(name).layouts) - 1
    kept = draw(name, number, tmp_path / "data")
    result = command(
        name, "--root", tmp_path / "data", "--model", tiny_model, "--templates", "none",
        "--long-side", 128, "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["files"] == kept
    assert 0 <= found["score"] <= 1
    assert found["settings"]["options"]["threshold"] == load_dataset(name).threshold
    assert (tmp_path / "out/images.csv").is_file()


def test_command_prints_a_table_beside_the_published_scores(
    tiny_model: str, tmp_path: Path
) -> None:
    draw("udd5", 0, tmp_path / "data")
    result = command(
        "udd5", "--root", tmp_path / "data", "--model", tiny_model, "--templates", "none",
        "--long-side", 128, "--out", tmp_path / "out", "--limit", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "SegEarth-OV" in result.stdout
    assert "50.6" in result.stdout
    assert "1 of 2 image files: not comparable" in result.stdout


def test_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    wrong = command("loveda", "--root", tmp_path)
    assert wrong.exit_code == 1
    assert "Val/*/images_png/*.png" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
    missing = command("loveda")
    assert missing.exit_code == 2
    assert "--root is missing" in missing.stderr
    assert command("lovda").exit_code == 2


def test_command_lists_the_data_sets() -> None:
    listed = json.loads(command("--json").stdout)["datasets"]
    assert [entry["id"] for entry in listed] == IDS
    assert "whu-aerial" in command().stdout
