"""Whatever is given: it works, or it is refused with one line of GeosegError.

Generators make what is valid and bend it. ``GEOSEG_FUZZ_EXAMPLES=1000`` looks longer than the
suite does.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from safetensors.torch import save_file
from typer.testing import CliRunner

import geoseg
from geoseg import methods
from geoseg._texts import parse_bands, parse_stretch
from geoseg.errors import GeosegError
from geoseg.io.aoi import Aoi
from geoseg.io.expand import expand_scenes
from geoseg.io.grid import Grid
from geoseg.model import loading
from geoseg.model.checkpoint import read_state_dict
from geoseg.model.defaults import read_defaults
from geoseg.model.loading import load_model, resolve_device
from geoseg.options import Options
from geoseg.testing import tiny_random_model, write_scene
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary
from geoseg_cli.main import app

EXAMPLES = int(os.environ.get("GEOSEG_FUZZ_EXAMPLES", "40"))
few = settings(max_examples=max(EXAMPLES // 4, 1))
many = settings(max_examples=EXAMPLES)

LONGEST_MESSAGE_LETTERS = 2000
GRID = Grid(CRS.from_epsg(32631), Affine(2, 0, 500000, 0, -2, 5000000), 100, 120)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or None where it is refused as it should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except GeosegError as error:
            said = str(error)
    assert len(said.splitlines()) == 1, said
    assert len(said) <= LONGEST_MESSAGE_LETTERS
    return None


# -- what is bent, and how -----------------------------------------------------------------------

AWKWARD = (
    "", " ", ".", "..", "/", "~", "~nosuchuser", "~nosuchuser/x.txt", "/dev/zero", "/dev/null",
    "a" * 5000, "a/" * 3000, "\0", "a\0b", "a\nb", "\r", "\x1b[2J", "\x85", "\u2028", "\u202e",
    "\ufffe", "\uffff", "\ud800", "\udcff", "\ufeff", "e\u0301" * 300, "nan", "inf", "-inf",
    "1e999", "-0", "9" * 5000, "1_0", "٣", ",", ";", ":", "=", "+", "{}", "{", "%s", "[red]",
    "a,b;c", "x.txt", "x.toml", "http://127.0.0.1:9/x", "/vsimem/x", "/vsizip/x", "file://x",
)  # fmt: skip
texts = st.sampled_from(AWKWARD) | st.text(max_size=30) | st.text(st.characters(), max_size=8)
surrogates = st.text(st.characters(categories=("Cs", "Cc", "Cn", "Lu", "Mn")), max_size=8)
words = texts | surrogates
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**30), 2**31, 2**63, True])
values = st.recursive(
    st.none() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def bent(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes that were valid: cut, changed, added to, or written in another way."""
    data = bytearray(valid)
    for way in draw(
        st.lists(st.sampled_from(["cut", "flip", "insert", "repeat", "swap"]), max_size=4)
    ):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        if way == "cut":
            data = data[:place] if draw(st.booleans()) else data[place:]
        elif way == "flip" and data:
            data[place] ^= draw(st.integers(1, 255))
        elif way == "insert":
            data[place:place] = draw(
                st.binary(max_size=9)
                | st.sampled_from([b"\0", b"\xff\xfe", b"nan", b"1e999", b"[" * 9000, b"{" * 9000,
                                   b"\n" * 99, b"a" * 70_000, b"<html>", b"9" * 5000])
            )  # fmt: skip
        elif way == "repeat":
            data *= draw(st.integers(2, 3))
        else:
            half = data[place : place + 9]
            data[place : place + 9] = half[::-1]
    encoding = draw(st.sampled_from(["", "", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]))
    return data.decode("latin-1").encode(encoding) if encoding else bytes(data)


@st.composite
def bent_json(draw: st.DrawFn, valid: Any) -> Any:
    """An object of JSON in which some values are others, or gone."""
    content = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 2))):
        place, parent, key = content, None, None
        while isinstance(place, dict | list) and place and (parent is None or draw(st.booleans())):
            parent = place
            key = draw(
                st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
            )
            place = place[key]
        if parent is None or draw(st.integers(0, 9)) == 0:
            return draw(values)
        if draw(st.integers(0, 4)) == 0:
            del parent[key]
        else:
            parent[key] = draw(values | numbers)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model; the tests bend copies of its files."""
    path = tmp_path_factory.mktemp("model") / "sound"
    tiny_random_model(path)
    return path


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(autouse=True)
def empty_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(elsewhere)


# -- words ---------------------------------------------------------------------------------------

TEXT = "# classes\nwater, lake\nGewässer, Fluß\ntree # woods\nroad\n".encode()
TOML = (
    b'[[class]]\nname = "water"\nprompts = ["lake", "sea"]\ncolor = "#3b7dd8"\nthreshold = 0.25\n'
    b'[[class]]\nname = "road"\noffset = -0.02\n'
)


@given(data=bent(TEXT))
@example(data=b"<!DOCTYPE html><html><body>404</body></html>")
@example(data="e\u0301".encode() * 200_000)
@example(data=b"a\n" * 70_000)
@example(data=",".join(map(str, range(200_000))).encode() + b"\nroad")
@example(data=b"x" * (5 * 2**20))
@many
def test_class_files(data: bytes, elsewhere: Path) -> None:
    file = elsewhere / "classes.txt"
    file.write_bytes(data)
    check(outcome(lambda: Vocabulary.parse(file)))


@given(data=bent(TOML))
@example(data=b"a = " + b"[" * 5000 + b"]" * 5000)
@example(data=b"a" + b".a" * 500_000 + b" = 1")
@example(data=b"[" + b"'a' . " * 500_000 + b"a]")
@example(data=b'"' * 100_001 + b"a" * 100_000)
@example(data=b"class = " + b"9" * 5000)
@example(data=TOML.replace(b"0.25", b"0x" + b"f" * 9000))
@example(data=TOML.replace(b"0.25", b"1979-05-27"))
@example(data=TOML.replace(b"#3b7dd8", b"\\n\\u001b[2J"))
@example(data=TOML.replace(b"sea", b"a\\uFFFEb"))
@example(data=TOML.replace(b'"water"', b'"' + b"a " * 5000 + b'"'))
@many
def test_toml_class_files(data: bytes, elsewhere: Path) -> None:
    file = elsewhere / "classes.toml"
    file.write_bytes(data)
    check(outcome(lambda: Vocabulary.parse(file)))


@given(
    source=words | st.lists(words).map(";".join) | st.lists(values) | st.dictionaries(words, values)
)
@example(source={"a": [], "\ud800": []})
@example(source=["a", ["b"] * 3])
@many
def test_classes_given_inline(source: Any) -> None:
    check(outcome(lambda: Vocabulary.parse(source)))


def check(vocabulary: Vocabulary | None) -> None:
    """What is accepted can be written to every file."""
    if vocabulary is None:
        return
    assert len(vocabulary.names) >= 2
    for word in (*vocabulary.names, *vocabulary.queries):
        assert word == " ".join(word.split())
        assert 0 < len(word) <= 3000
        assert not {"\ufffe", "\uffff"} & set(word)
        word.encode()


@given(data=bent(b"# mine\na map of {}.\n{} seen from a plane\n"), spec=words)
@example(data=b"{}" * 3_000_000, spec="none")
@example(data=b"{}\n" * 20_000, spec="~nosuchuser")
@many
def test_templates(data: bytes, spec: str, elsewhere: Path) -> None:
    file = elsewhere / "templates.txt"
    file.write_bytes(data)
    for given_spec in (file, spec, [spec], [spec + "{}"]):
        templates = outcome(lambda given_spec=given_spec: load_templates(given_spec))
        assert templates is None or all("{}" in template for template in templates)


# -- models --------------------------------------------------------------------------------------


@given(
    prefix=st.sampled_from(
        ["", "ViT-B-32:", "ViT-B-32/", "hf-hub:", "local-dir:", "geoseg-tiny/", ":", "RN50:"]
    ),
    text=words,
)
@example(prefix="", text="~nosuchuser/x")
@example(prefix="hf-hub:", text="a b")
@many
def test_specifications(prefix: str, text: str) -> None:
    assert outcome(lambda: load_model(prefix + text, device="cpu", download=False)) is None


@given(text=words | st.sampled_from(["cuda:", "cuda:-1", "cpu:99999", "cuda:" + "9" * 40]))
@many
def test_devices(text: str) -> None:
    outcome(lambda: resolve_device(text))


@functools.cache
def checkpoint(kind: str) -> bytes:
    import io

    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half(), "c": torch.tensor(1)}
    if kind == "safetensors":
        from safetensors.torch import save

        return save(state)
    stream = io.BytesIO()
    torch.save({"state_dict": state}, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@given(data=st.data())
@many
def test_checkpoint_files(kind: str, data: st.DataObject, elsewhere: Path) -> None:
    file = elsewhere / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    file.write_bytes(data.draw(bent(checkpoint(kind))))
    state = outcome(lambda: read_state_dict(file))
    for tensor in (state or {}).values():
        assert bool(tensor.float().isfinite().all())


tensors = st.sampled_from(
    [
        torch.tensor([1.0, torch.nan]),
        torch.tensor([torch.inf, -torch.inf]),
        torch.full((3,), 3e38),
        torch.tensor([1e300], dtype=torch.float64),
        torch.tensor([1j]),
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2).bfloat16(),
        torch.tensor([True]),
        torch.empty(0),
        torch.ones(2, device="meta"),
    ]
)


@given(
    content=st.dictionaries(words | st.integers(), tensors | numbers | st.none(), max_size=4),
    wrap=st.sampled_from(["", "state_dict", "model"]),
    more=st.booleans(),
)
@many
def test_what_a_checkpoint_holds(
    content: Any, wrap: str, more: bool, elsewhere: Path, folder: Path
) -> None:
    file = elsewhere / "weights.pt"
    if more:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = read_state_dict(folder / "open_clip_model.safetensors") | content
    try:
        torch.save({wrap: content} if wrap else content, file)
    except (UnicodeError, OverflowError, NotImplementedError):
        return  # not even torch writes it
    state = outcome(lambda: read_state_dict(file))
    for tensor in (state or {}).values():
        assert bool(tensor.float().isfinite().all())


CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        "quick_gelu": False,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16,
                       "head_width": 32, "mlp_ratio": 4.0, "pool_type": "tok"},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2,
                     "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}  # fmt: skip


def with_value(*keys: Any, value: Any) -> Any:
    content: Any = copy.deepcopy(CONFIG)
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return content


@given(content=bent_json(CONFIG))
@example(content=with_value("preprocess_cfg", "std", value=[0, 0, 0]))
@example(content=with_value("preprocess_cfg", "mean", value=[float("nan")] * 3))
@example(content=with_value("preprocess_cfg", "mean", value=[10**400] * 3))
@example(content=with_value("preprocess_cfg", "mean", value="abc"))
@example(content=with_value("model_cfg", "vision_cfg", "patch_size", value=0))
@example(content=with_value("model_cfg", "vision_cfg", "layers", value=500))
@example(content=with_value("model_cfg", "vision_cfg", "width", value=2**14))
@example(content=with_value("model_cfg", "vision_cfg", "timm_model_name", value=3))
@example(content=with_value("model_cfg", "text_cfg", "vocab_size", value=2**22))
@example(content=with_value("model_cfg", "text_cfg", "heads", value=7))
@example(content=with_value("model_cfg", "text_cfg", value=None))
@few
def test_model_configs(
    content: Any, elsewhere: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = elsewhere / "model"
    place.mkdir(exist_ok=True)
    (place / "open_clip_config.json").write_text(json.dumps(content), errors="replace")
    weights = place / "open_clip_model.safetensors"
    if not weights.exists():
        weights.symlink_to(folder / weights.name)
    monkeypatch.setattr(loading, "_tokenizer", one_tokenizer)  # reading its words takes a second
    model = outcome(lambda: load_model(f"local-dir:{place}", device="cpu"))
    if model is not None:
        assert np.isfinite(model.mean).all()
        assert np.isfinite(1 / np.float32(model.std)).all()


@functools.cache
def one_tokenizer(name: str, context: int | None) -> Any:
    import open_clip

    return open_clip.get_tokenizer("ViT-B-32")


DEFAULTS = {
    "attention": "segearth", "upsampler": "jbu", "cls_bias": 0.3, "logit_scale": 40, "window": 64,
    "stride": 32, "blend": "hann", "upsampler_weights": "u.pt",
}  # fmt: skip


@given(content=bent_json(DEFAULTS), data=bent(json.dumps(DEFAULTS).encode()))
@example(content={"cls_bias": float("nan")}, data=b"[" * 9000)
@example(content={"cls_bias": 10**400}, data=b"\xff")
@example(content={"attention": "naclip:std=-1"}, data=b'{"window": 1e999}')
@many
def test_model_defaults(content: Any, data: bytes, elsewhere: Path) -> None:
    for written in (json.dumps(content).encode(errors="replace"), data):
        (elsewhere / "geoseg.json").write_bytes(written)
        found = outcome(lambda: read_defaults(elsewhere))
        if found is not None:
            outcome(lambda found=found: Options().resolve(found))


# -- areas ---------------------------------------------------------------------------------------

RING = [[500020, 4999960], [500150, 4999820], [500150, 4999960], [500020, 4999960]]
AREA = {
    "type": "FeatureCollection",
    "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}},
    "features": [
        {"type": "Feature", "properties": {"a": 1},
         "geometry": {"type": "Polygon", "coordinates": [RING]}}
    ],
}  # fmt: skip


def with_rings(*rings: Any) -> Any:
    content = copy.deepcopy(AREA)
    content["features"][0]["geometry"]["coordinates"] = list(rings)  # type: ignore[index]
    return content


@given(content=bent_json(AREA))
@example(content=with_rings(RING[:2]))
@example(content=with_rings(RING[:1] * 4))
@example(content=with_rings())
@example(content=with_rings([[x, 1e308] for x, _ in RING]))
@example(content=with_rings([[float("nan"), y] for _, y in RING]))
@example(content=with_rings([[x * 1e10, y * 1e10] for x, y in RING]))
@few
def test_areas_in_files(content: Any, elsewhere: Path) -> None:
    file = elsewhere / "area.geojson"
    file.write_text(json.dumps(content), errors="replace")
    check_area(outcome(lambda: Aoi.open(file, GRID)))


@given(data=bent(json.dumps(AREA).encode()))
@few
def test_files_of_areas(data: bytes, elsewhere: Path) -> None:
    file = elsewhere / "area.geojson"
    file.write_bytes(data)
    check_area(outcome(lambda: Aoi.open(file, GRID)))


@given(text=words | st.lists(numbers.map(str) | words, min_size=4, max_size=4).map(",".join))
@example(text="-1e308,-1e308,1e308,1e308")
@example(text="-1e30,-1e30,1e30,1e30")
@example(text="500010,4999850,500011,1e300")
@example(text="1" * 5000 + ",2")
@many
def test_areas_as_texts(text: str) -> None:
    check_area(outcome(lambda: Aoi.open(text, GRID)))


def check_area(aoi: Aoi | None) -> None:
    assert aoi is None or aoi.mask(aoi.window).any()


# -- options -------------------------------------------------------------------------------------


@given(text=words | st.lists(numbers.map(str) | words, max_size=4).map(",".join))
@many
def test_bands(text: str) -> None:
    bands = outcome(lambda: parse_bands(text))
    assert bands is None or all(b if isinstance(b, str) else b >= 1 for b in bands)


@given(text=words | st.lists(numbers.map(str) | words, max_size=3).map(":".join))
@many
def test_stretches(text: str) -> None:
    stretch = outcome(lambda: parse_stretch(text))
    if stretch is not None and stretch.kind in ("range", "percent"):
        assert np.isfinite([stretch.low, stretch.high]).all()


METHODS = [(table, name) for table in methods.TABLES for name in table.entries]
KEYS = ("std", "residual", "ffn", "depth", "iterations", "dilations", "words", "radius", "x")


@given(
    method=st.sampled_from(METHODS),
    keys=st.lists(st.tuples(st.sampled_from(KEYS) | words, numbers.map(str) | words), max_size=3),
)
@many
def test_methods(method: tuple[methods.Table, str], keys: list[tuple[str, str]]) -> None:
    table, name = method
    text = f"{name}:{','.join(f'{key}={value}' for key, value in keys)}"
    made = outcome(lambda: methods.resolve(table, text))
    if made is not None:
        for field in fields(made):
            value = getattr(made, field.name)
            assert not isinstance(value, float) or np.isfinite(value)


@given(text=words)
@many
def test_names_of_methods(text: str) -> None:
    for table in methods.TABLES:
        outcome(lambda table=table: methods.resolve(table, text))


STRINGS = ("attention", "upsampler", "views", "blend", "precision", "background", "templates")
NUMBERS = ("cls_bias", "logit_scale", "threshold", "batch_size")


@given(
    chosen=st.dictionaries(st.sampled_from(STRINGS), words, max_size=2),
    numeric=st.dictionaries(st.sampled_from(NUMBERS), numbers, max_size=2),
    steps=st.dictionaries(
        st.sampled_from(["refine", "vocabulary_steps"]), st.lists(words), max_size=1
    ),
)
@many
def test_options(chosen: Any, numeric: Any, steps: Any) -> None:
    outcome(lambda: Options(**chosen, **numeric, **steps).resolve({}))


# -- what a command reads besides -----------------------------------------------------------------

LIST = b"scene.tif\n\n  scene.tif  \nfolder\n*.tif\n"
OPTIONS = (
    b'classes = ["water", "road"]\ngsd = 1.0\nstretch = "0:255"\nresume = false\n'
    b'bands = [1, 2, 3]\nthreshold = 0.3\nblend = "hann"\ntile = 256\n'
)


@pytest.fixture(scope="module")
def scene(elsewhere: Path) -> Path:
    (elsewhere / "folder").mkdir()
    write_scene(elsewhere / "folder" / "one.tif", 40, 40)
    return write_scene(elsewhere / "scene.tif", 40, 40)


def dry_run(config: str) -> None:
    """`segment` with a configuration would work, or says in one line why not."""
    arguments = ["segment", "scene.tif", "--out", "nowhere", "--dry-run", "--config", config]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (0, 1, 2, 3), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "unexpected" not in result.output, result.output
    if result.exit_code:
        said = result.output.strip()
        assert len(said) <= LONGEST_MESSAGE_LETTERS, said
        assert said.count("\n") <= 3, said


@given(data=bent(LIST) | words.map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(data=b"a" * 5000)
@example(data=b"a/" * 3000)
@example(data=b"a\0b")
@example(data=b"[" * 9000)
@many
def test_lists_of_scenes(data: bytes, scene: Path, elsewhere: Path) -> None:
    (elsewhere / "list.txt").write_bytes(data)
    found = outcome(lambda: expand_scenes([f"@{elsewhere / 'list.txt'}"]))
    assert found is None or (found and all(isinstance(name, str) for name in found))


@given(data=bent(OPTIONS))
@few
def test_configurations(data: bytes, scene: Path, elsewhere: Path) -> None:
    (elsewhere / "config.toml").write_bytes(data)
    dry_run("config.toml")


@given(
    key=st.sampled_from(
        [
            "gsd",
            "classes",
            "bands",
            "tile",
            "threshold",
            "resume",
            "stretch",
            "scale",
            "bogus",
            "window",
            "aoi",
        ]
    ),
    value=values,
)
@few
def test_values_of_configurations(key: str, value: Any, scene: Path, elsewhere: Path) -> None:
    (elsewhere / "options.json").write_text(
        json.dumps({"classes": "water; road", key: value}), encoding="utf-8"
    )
    dry_run("options.json")


def mapped(scene: Path, folder: Path, **how: bool) -> Path:
    quick = geoseg.Options(templates="none")
    model = f"local-dir:{folder}"
    return geoseg.segment_to_files(
        scene, "water; road", scene.parent / "done", model=model, options=quick, **how
    ).out


@pytest.fixture(scope="module")
def record(scene: Path, folder: Path) -> Any:
    return json.loads((mapped(scene, folder) / "run.json").read_text())


@given(data=st.data())
@few
def test_records_of_runs(
    data: st.DataObject, record: Any, scene: Path, folder: Path, elsewhere: Path
) -> None:
    text = json.dumps(data.draw(bent_json(record)))
    (elsewhere / "record.json").write_text(text, encoding="utf-8")
    dry_run("record.json")
    for how in ("update", "resume"):
        (elsewhere / "done" / "run.json").write_text(text, encoding="utf-8")
        outcome(lambda how=how: mapped(scene, folder, **{how: True}))


# -- what is no file -----------------------------------------------------------------------------


def pipe(place: Path) -> str:
    os.mkfifo(place / "pipe.txt")
    return str(place / "pipe.txt")


def dangling(place: Path) -> str:
    (place / "link.txt").symlink_to(place / "gone.txt")
    return str(place / "link.txt")


def circle(place: Path) -> str:
    (place / "circle.txt").symlink_to(place / "circle.txt")
    return str(place / "circle.txt")


def page(place: Path) -> str:
    (place / "page.txt").write_text("\n<!DOCTYPE html><html><body>404 not found</body></html>")
    return str(place / "page.txt")


SPECIAL: dict[str, tuple[Callable[[Path], str], str]] = {
    "folder": (str, "folder"),
    "pipe": (pipe, "is a pipe, not a file"),
    "dangling": (dangling, "is a link to"),
    "circle": (circle, "cannot be read"),
    "device": (lambda _: "/dev/zero", "is a device, not a file"),
    "user": (lambda _: "~nosuchuser/x.txt", "no home folder ~nosuchuser"),
    "long": (lambda _: "/" + "a" * 5000 + ".txt", "cannot be read: File name too long"),
    "nul": (lambda _: "/a\0b.txt", "is no name of a file"),
    "page": (page, "begins like a web page"),
}  # fmt: skip

READERS: dict[str, Callable[[str], Any]] = {
    "classes": lambda path: Vocabulary.parse(Path(path)),
    "templates": lambda path: load_templates(Path(path)),
    "weights": read_state_dict,
    "checkpoint": lambda path: load_model(f"ViT-B-32:{path}", device="cpu"),
    "aoi": lambda path: Aoi.open(path, GRID),
}


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of Unix")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_said_before_it_is_read(kind: str, reader: str, tmp_path: Path) -> None:
    make, said = SPECIAL[kind]
    if (kind, reader) == ("folder", "aoi"):
        said = "not a vector file"  # a File Geodatabase is a folder
    with pytest.raises(GeosegError, match=said) as caught:
        READERS[reader](make(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_the_sound_ones_are_read(folder: Path, elsewhere: Path) -> None:
    """The generators begin with what works."""
    files = {"c.txt": TEXT, "c.toml": TOML, "a.geojson": json.dumps(AREA).encode(),
             "w.pt": checkpoint("zip"), "old.pt": checkpoint("legacy"),
             "w.safetensors": checkpoint("safetensors")}  # fmt: skip
    for name, data in files.items():
        (elsewhere / name).write_bytes(data)
    assert len(Vocabulary.parse(elsewhere / "c.txt").names) == 4
    assert len(Vocabulary.parse(elsewhere / "c.toml").names) == 2
    assert Aoi.open(elsewhere / "a.geojson", GRID).mask(GRID.window).any()
    for name in ("w.pt", "old.pt", "w.safetensors"):
        assert set(read_state_dict(elsewhere / name)) == {"a", "b", "c"}
    (elsewhere / "geoseg.json").write_text(json.dumps(DEFAULTS))
    assert read_defaults(elsewhere).keys() == DEFAULTS.keys()
    save_file(read_state_dict(folder / "open_clip_model.safetensors"), elsewhere / "s.safetensors")
    assert load_model(f"local-dir:{folder}", device="cpu").patch_size == 16
