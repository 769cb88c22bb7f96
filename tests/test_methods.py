"""Whatever method is chosen: tiles leave no seam, and nothing but the scene changes a label."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from backbones import NAMES, random_backbone
from torch import Tensor

import geoseg
from geoseg import methods
from geoseg._fields import choices
from geoseg.errors import OptionError, OutputError
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.views import View
from geoseg.model.attention.trunk import Context, Grid, Trunk
from geoseg.model.loading import Model, load_model
from geoseg.options import Options
from geoseg.testing import assert_same_raster, drawn_rgb, tiny_random_model, write_scene
from geoseg.text.queries import Embed, Queries
from geoseg.types import PixelBlock, Window

WORDS = "building, roof; road; water, river; tree"
DESCRIBED = [
    {"name": "building", "prompts": ["building", "roof"], "descriptions": ["it has walls"]},
    *("road", ["water", "river"], "tree"),
]
HEIGHT, WIDTH = 200, 170
HOLE = Window(60, 70, 50, 40)
NEEDS = {
    "contrast": "contrast:words=cloud+shadow",
    "describe": "describe:share=0.3",
    "pamr": "pamr:iterations=3,dilations=1+2",
    "lposs": "lposs:steps=4,side=5,tau=0.1",
    "laplace": "laplace:steps=6,gradient=0.3+0.2",
    "proxy": "proxy:backbone=tiny_dino",
    "cass": "cass:backbone=tiny_dino",
    "corrclip": "corrclip:backbone=tiny_dino",
}
"""How a method is written whose defaults are not enough, or too slow for a small scene."""

CHOSEN = [
    (field, NEEDS.get(name, name))
    for field, choice in choices(Options).items()
    if choice.table is not None
    for name in choice.table.entries
]
every_method = pytest.mark.parametrize(("field", "method"), CHOSEN)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"), layers=3)


@pytest.fixture(scope="module")
def model(spec: str) -> Model:
    return load_model(spec, device="cpu")


def parcels() -> npt.NDArray[np.int64]:
    """Region of each pixel of the scene; some lie in none."""
    rows, cols = np.indices((HEIGHT, WIDTH)) // 37
    numbers = (1 + rows * 10 + cols) * 90_000_001 % (2**31 - 1)
    numbers[40:70, 60:110] = 0
    return numbers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What some methods need.

    Random weights of both learned upsamplers, in the published format, and of backbones; a raster
    of the regions of a scene.
    """
    folder, found = tmp_path_factory.mktemp("upsamplers"), {}
    for kind, names in {"simfeatup": ["up"], "featup": [f"up{i}" for i in range(1, 5)]}.items():
        generator = torch.Generator().manual_seed(0)
        state = {"fixup_proj.1.weight": torch.eye(64)[..., None, None] * 0.1}
        state["fixup_proj.1.bias"] = torch.zeros(64)
        layers = {
            "range_proj.0": (32, 3),
            "range_proj.3": (32, 32),
            "fixup_proj.0": (9, 12),
            "fixup_proj.3": (9, 9),
        }
        for name in names:
            for layer, (out, into) in layers.items():
                matrix = torch.randn(out, into, 1, 1, generator=generator) / into**0.5
                state[f"{name}.{layer}.weight"] = matrix
                state[f"{name}.{layer}.bias"] = torch.zeros(out)
            state[f"{name}.range_temp"] = torch.tensor(0.0)
            state[f"{name}.sigma_spatial"] = torch.tensor(1.0)
        torch.save({"state_dict": {f"upsampler.{k}": v for k, v in state.items()}}, folder / kind)
        found[kind] = str(folder / kind)
    for name in NAMES:
        found[name] = random_backbone(folder, name)
    with rasterio.open(write_scene(folder / "like.tif", HEIGHT, WIDTH)) as like:
        place = {"crs": like.crs, "transform": like.transform}
    size = {"count": 1, "height": HEIGHT, "width": WIDTH, "dtype": "int32", "nodata": 0}
    found["regions"] = str(folder / "parcels.tif")
    with rasterio.open(found["regions"], "w", driver="GTiff", **place, **size) as out:
        out.write(parcels(), 1)
    return found


def options_for(field: str, method: str, files: dict[str, str]) -> Options:
    several = isinstance(getattr(Options(), field), tuple)
    chosen: dict[str, Any] = {field: (method,) if several else method}
    return Options(
        templates="none",
        blend="hann",
        upsampler_weights=files.get(method),
        backbone_weights=files["tiny_dino"] if "tiny_dino" in method else None,
        **({"upsampler": "jbu"} | chosen),
        **({"regions": files["regions"]} if method.startswith("corrclip") else {}),
    )


def words_for(method: str) -> Any:
    return DESCRIBED if method.startswith("describe") else WORDS


def scene_block() -> PixelBlock:
    rgb = drawn_rgb(Window(0, 0, HEIGHT, WIDTH), seed=3).astype(np.float32) / 255
    valid = np.ones((HEIGHT, WIDTH), dtype=bool)
    valid[HOLE.slices()] = False
    return PixelBlock(np.where(valid, rgb, 0).astype(np.float32), valid, parcels())


def cut(block: PixelBlock, window: Window) -> PixelBlock:
    assert block.regions is not None
    here = window.slices()
    return PixelBlock(block.rgb[:, *here], block.valid[here], block.regions[here])


def mapped(
    segmenter: Segmenter, block: PixelBlock, tile: int, region: Window | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Labels and per cents of a region, tile by tile."""
    plan = segmenter.plan(block.valid.shape, tile, region)
    found = {name: np.zeros(plan.region.shape, np.uint8) for name in ("labels", "confidence")}
    for each in plan:
        part = cut(block, each.read)
        if not segmenter.reads_regions:
            part = replace(part, regions=None)
        result = segmenter.segment_tile(part, each)
        place = each.core.relative_to(plan.region).slices()
        for name, array in found.items():
            array[place] = getattr(result, name)
    return found


def assert_same_map(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal, but for what float rounding may do to a tie."""
    differ = one["labels"] != other["labels"]
    assert differ.sum() <= differ.size / 50_000
    apart = one["confidence"].astype(int) - other["confidence"]
    assert np.abs(apart).max() <= 1


def test_every_table_has_its_methods() -> None:
    assert {field for field, _ in CHOSEN} >= {
        "attention", "upsampler", "views", "refine", "vocabulary_steps",
    }  # fmt: skip
    for table in methods.TABLES:
        for name in table.entries:
            assert table.find(name).__doc__


@every_method
def test_tiles_leave_no_seam(field: str, method: str, model: Model, files: dict[str, str]) -> None:
    segmenter = Segmenter(model, words_for(method), options_for(field, method, files))
    block = scene_block()
    whole = mapped(segmenter, block, 1000)
    assert len(np.unique(whole["labels"])) > 2
    for tile in (64, 110):
        assert_same_map(mapped(segmenter, block, tile), whole)


@every_method
def test_a_part_equals_the_whole(
    field: str, method: str, model: Model, files: dict[str, str]
) -> None:
    segmenter = Segmenter(model, words_for(method), options_for(field, method, files))
    block, region = scene_block(), Window(37, 51, 101, 83)
    whole = mapped(segmenter, block, 1000)
    part = mapped(segmenter, block, 70, region)
    assert_same_map(part, {name: array[region.slices()] for name, array in whole.items()})


@every_method
def test_batches_change_nothing(
    field: str, method: str, model: Model, files: dict[str, str]
) -> None:
    chosen = options_for(field, method, files)
    maps = [
        mapped(
            Segmenter(model, words_for(method), replace(chosen, batch_size=size)),
            scene_block(),
            128,
        )
        for size in (1, 5)
    ]
    assert_same_map(*maps)


@every_method
def test_what_lies_under_nodata_changes_nothing(
    field: str, method: str, model: Model, files: dict[str, str]
) -> None:
    segmenter = Segmenter(model, words_for(method), options_for(field, method, files))
    block = scene_block()
    other = np.random.default_rng(0).random(block.rgb.shape, dtype=np.float32)
    filled = replace(block, rgb=np.where(block.valid, block.rgb, other))
    one, two = (mapped(segmenter, each, 128) for each in (block, filled))
    assert (one["labels"][~block.valid] == 255).all()
    assert np.array_equal(one["labels"], two["labels"])


@every_method
def test_it_pickles(field: str, method: str, model: Model, files: dict[str, str]) -> None:
    segmenter = Segmenter(model, words_for(method), options_for(field, method, files))
    again = pickle.loads(pickle.dumps(segmenter))
    assert again.options.described_methods() == segmenter.options.described_methods()
    assert_same_map(mapped(again, scene_block(), 128), mapped(segmenter, scene_block(), 128))


class StopError(Exception):
    """Raised in the middle of a run."""


@every_method
def test_a_resumed_run_gives_the_same_map(
    field: str, method: str, model: Model, files: dict[str, str], tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "scene.tif", HEIGHT, WIDTH, holes=[HOLE])

    def run(out: str, **more: Any) -> geoseg.pipeline.Run:
        return geoseg.segment_to_files(
            scene, words_for(method), tmp_path / out, model=model, tile=64,
            options=options_for(field, method, files),
            products=geoseg.Products(polygons="none", preview=False), **more,
        )  # fmt: skip

    def stop(state: Any) -> None:
        if state.tiles_done == 3:
            raise StopError

    with pytest.raises(StopError):
        run("resumed", progress=stop)
    for resumed, straight in [(run("resumed", resume=True), run("straight"))]:
        for name in ("labels.tif", "confidence.tif"):
            assert_same_raster(resumed.out / name, straight.out / name)
    # The method is part of what a run is.
    record = json.loads((tmp_path / "straight" / "run.json").read_text())
    described = record["methods"][field]
    one = described[0] if isinstance(described, list) else described
    assert one["name"] == method.partition(":")[0]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    alone = {"processes": False, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(2, **alone) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.mark.slow
@every_method
def test_workers_make_the_same_map(
    field: str, method: str, model: Model, files: dict[str, str], client: Any, tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "scene.tif", HEIGHT, WIDTH, holes=[HOLE])
    here, there = (
        geoseg.segment_to_files(
            scene, words_for(method), tmp_path / name, model=model, tile=64, client=chosen,
            options=options_for(field, method, files),
            products=geoseg.Products(polygons="none", preview=False),
        )
        for name, chosen in (("here", False), ("there", client))
    )  # fmt: skip
    for name in ("labels.tif", "confidence.tif"):
        assert_same_raster(here.out / name, there.out / name)


# -- names and keys ------------------------------------------------------------------------------


def test_keys_are_the_fields() -> None:
    found = methods.resolve(methods.ATTENTIONS, "naclip:std=3, ffn=yes")
    assert (found.std, found.residual, found.ffn) == (3.0, False, True)
    assert methods.canonical(methods.ATTENTIONS, found) == "naclip:ffn=yes,std=3"
    assert methods.resolve(methods.REFINERS, "pamr:dilations=8+16").dilations == (8, 16)


@pytest.mark.parametrize(("field", "method"), CHOSEN)
def test_a_canonical_text_means_the_same_method(field: str, method: str) -> None:
    table = choices(Options)[field].table
    assert table is not None
    made = methods.resolve(table, method)
    assert methods.resolve(table, methods.canonical(table, made)) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segearht", "did you mean segearth"),
        ("nothing like it", "choose from vanilla, maskclip"),
        ("naclip:sdt=3", "no key 'sdt'; did you mean std"),
        ("naclip:std", "'std' is not key=value"),
        ("naclip:std=wide", "std is 'wide'; give a number"),
        ("naclip:std=nan", "std is nan; give a number from 0.1 to 1000"),
        ("gem:depth=1", "depth is 1; give a whole number from 2"),
        ("gem:depth=2.5", "give a whole number"),
        ("naclip:ffn=maybe", "give yes or no"),
    ],
)
def test_what_is_not_possible_is_named(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        methods.resolve(methods.ATTENTIONS, text)


NUMBERS = {
    (field, name, key): hint
    for field, choice in choices(Options).items()
    if choice.table is not None
    for name in choice.table.entries
    for key, hint in get_type_hints(choice.table.find(name), include_extras=True).items()
    if key in {f.name for f in fields(choice.table.find(name))} and "bool" not in str(hint)
}
"""The keys of all methods but switches, and what they take."""


def numeric(hint: Any) -> bool:
    return "int" in str(hint) or "float" in str(hint)


def written(field: str, name: str, key: str, value: Any) -> str:
    """The method as a test has it, with one number in another's place."""
    before, _, rest = NEEDS.get(name, name).partition(":")
    others = [part for part in rest.split(",") if part and not part.startswith(f"{key}=")]
    return f"{before}:{','.join([*others, f'{key}={value}'])}"


@pytest.mark.parametrize(("field", "name", "key"), [k for k, h in NUMBERS.items() if numeric(h)])
def test_numbers_have_limits_within_which_methods_work(
    field: str, name: str, key: str, model: Model, files: dict[str, str]
) -> None:
    table, hint = choices(Options)[field].table, NUMBERS[field, name, key]
    assert table is not None
    limits = next(each for each in hint.__metadata__ if isinstance(each, methods.Within))
    whole = "int" in str(hint)
    ends = [f"{int(end) if whole else end}" for end in (limits.least, limits.most)]
    several = "+".join([*ends, ends[0]][: 2 if key == "gradient" else 3])
    small = cut(scene_block(), Window(50, 45, 48, 48))
    plain = {} if field == "upsampler" else {"upsampler": "none"}
    for value in [several] if "tuple" in str(hint) else ends:
        text = written(field, name, key, value)
        options = replace(options_for(field, text, files), **plain)
        if (key, value) in TOO_DEEP:
            with pytest.raises(OptionError, match="the model has 3"):
                Segmenter(model, words_for(text), options)
            continue
        segmenter = Segmenter(model, words_for(text), options)
        found = mapped(segmenter, small, 1000)["labels"]
        assert (found[small.valid] < 4).all()
    for value in ("-1e-9", "0", "1e-30", "1e30", "nan", "inf", "-inf", "-1", "9" * 30, "9" * 9000):
        if not limits.least <= float(value) <= limits.most:
            text = written(field, name, key, value)
            with pytest.raises(OptionError, match=rf"{key} is .*; give a (whole )?number from "):
                methods.resolve(table, text)


TOO_DEEP = {("last", "64"), ("depth", "65")}
"""What needs more blocks than the model of these tests has."""


def test_the_same_method_in_other_words_is_the_same_run() -> None:
    first, second = (Options(attention=text).resolve({}) for text in ("naclip:std=5.0", "naclip"))
    assert first.attention == second.attention == "naclip"


def test_hidden_words_take_what_is_none_of_the_classes(model: Model) -> None:
    """Where a hidden word is best, a pixel is background; all others stay as they were."""
    block, plain = scene_block(), Options(templates="none", upsampler="none")
    asked = mapped(Segmenter(model, "road; water; tree", plain), block, 1000)["labels"]
    third = asked == 2
    assert third.any()
    assert (asked == 0).any()
    chosen = replace(plain, vocabulary_steps="contrast:words=tree", background="water")
    hidden = mapped(Segmenter(model, "road; water", chosen), block, 1000)["labels"]
    assert np.array_equal(hidden, np.where(third, 1, asked))


# -- a new method is one class and one line ------------------------------------------------------


@dataclass(frozen=True)
class FirstBlocks:
    """An attention: the ordinary blocks, scaled."""

    scale: float = 1.0

    antialias_positions: ClassVar[bool] = False

    def run(self, trunk: Trunk, x: Tensor, context: Context) -> tuple[Tensor, Grid]:
        for block in trunk.blocks:
            x = trunk.ordinary(block, x)
        return self.scale * x, context.grid


@dataclass(frozen=True)
class Nudge:
    """A refiner: looks one pixel to the left."""

    pixels: int = 1

    @property
    def reach(self) -> int:
        return self.pixels

    def __call__(self, logits: Tensor, rgb: Tensor, valid: Tensor) -> Tensor:
        columns = torch.arange(logits.shape[1]).sub(self.pixels).clamp_min(0)
        return torch.where(valid[:, columns, None], logits[:, columns], logits)


@dataclass(frozen=True)
class UpsideDown:
    """Views: the window on its head."""

    def views(self) -> tuple[View, ...]:
        return (View(turns=2),)


@dataclass(frozen=True)
class Louder:
    """A vocabulary step: one class is louder."""

    by: float = 0.1

    def __call__(self, queries: Queries, embed: Embed) -> Queries:
        offset = queries.offset.copy()
        offset[0] += self.by
        return replace(queries, offset=offset)


NEW = {
    "attention": (methods.ATTENTIONS, FirstBlocks, "new:scale=2"),
    "refine": (methods.REFINERS, Nudge, "new:pixels=3"),
    "views": (methods.VIEWS, UpsideDown, "new"),
    "vocabulary_steps": (methods.VOCABULARY_STEPS, Louder, "new:by=0.005"),
}


@pytest.mark.parametrize("field", NEW)
def test_a_new_method_is_a_class_and_a_line(
    field: str, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, kind, text = NEW[field]
    line = methods.Entry(f"{kind.__module__}:{kind.__qualname__}", "does something new")
    monkeypatch.setitem(table.entries, "new", line)

    test_tiles_leave_no_seam(field, text, model, {})
    test_a_resumed_run_gives_the_same_map(field, text, model, {}, tmp_path)

    scene = write_scene(tmp_path / "scene.tif", HEIGHT, WIDTH)
    common = {"model": model, "products": geoseg.Products(polygons="none", preview=False)}
    out = tmp_path / "straight"
    with pytest.raises(OutputError, match="other input or options"):
        geoseg.segment_to_files(
            scene, WORDS, out, options=Options(templates="none"), resume=True, **common
        )


def test_new_methods_show_in_the_help() -> None:
    lines = "\n".join(
        f"methods.{table}.entries['new-{table.lower()}'] = methods.Entry('some:Where', 'a line')"
        for table in ("ATTENTIONS", "REFINERS", "VIEWS", "VOCABULARY_STEPS", "WINDOW_STEPS")
    )
    code = (
        f"from geoseg import methods\n{lines}\nimport sys\n"
        "sys.argv = ['geoseg', 'segment', '--help']\nfrom geoseg_cli.main import run\nrun()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"COLUMNS": "200", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
    ).stdout  # fmt: skip
    flat = " ".join(shown.replace("│", " ").split())
    for table in ("attentions", "refiners", "views", "vocabulary_steps", "window_steps"):
        assert f"new-{table}: a line" in flat
    assert "--window-step" in flat
