"""Encoder files as others publish them: long text towers, means of files, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import rasterio
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from geoseg import methods
from geoseg.errors import GeosegError, OptionError, WeightsError
from geoseg.inference.segmenter import Segmenter
from geoseg.model.attention.last_block import SegEarth
from geoseg.model.check import check_model
from geoseg.model.loading import load_model
from geoseg.model.published import PUBLISHED, published
from geoseg.model.spec import parts_of, portable
from geoseg.model.vision import DenseEncoder
from geoseg.options import Options
from geoseg.testing import tiny_random_model
from geoseg_cli.main import app

FAMILY = Path(__file__).resolve().parent / "goldens" / "family"
ARRAYS = np.load(FAMILY / "long.npz")
LONG = json.loads((FAMILY / "long_j.json").read_text())
TEXT, TOKENS, PIXELS = 1e-5, 1e-4, 10
NAME = "tiny-for-tests"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture of the long tower's shape, with 77 positions as open_clip's have."""
    config = LONG["model"] | {"text_cfg": LONG["model"]["text_cfg"] | {"context_length": 77}}
    for name, quick in ((NAME, False), (f"{NAME}-quickgelu", True)):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config | {"quick_gelu": quick})
    return NAME


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    found = {k: torch.from_numpy(v) for k, v in np.load(FAMILY / "long_j.npz").items()}
    rows, values = found.pop("token_embedding.rows"), found.pop("token_embedding.values")
    table = torch.full((49408, values.shape[1]), 1000.0)
    table[rows.long()] = values.float()
    return found | {"token_embedding.weight": table.half()}


def saved(state: dict[str, torch.Tensor], file: Path) -> Path:
    """As the training program saves."""
    content = {f"module.{k}": v for k, v in state.items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": content}, file)
    return file


# -- long text towers ----------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [True, False])
def test_a_long_text_tower_is_told_by_its_keys(
    state: dict[str, torch.Tensor], registry: str, tmp_path: Path, masks: bool
) -> None:
    kept = {k: v for k, v in state.items() if masks or k not in ("mask1", "mask2")}
    model = load_model(
        f"{registry}-quickgelu:{saved(kept, tmp_path / 'FarSLIP2.pt')}", device="cpu"
    )
    assert model.context_length == 248
    tokens = model.tokenize(LONG["sentences"])
    assert np.array_equal(tokens.numpy(), ARRAYS["tokens"])
    found = model.encode_text(tokens).numpy()
    assert np.abs(found - ARRAYS["embeddings"]).max() < TEXT
    segmenter = Segmenter(model, "building; road; water", Options(upsampler="none"))
    assert np.abs(segmenter.text_embeddings - ARRAYS["query_features"]).max() < TEXT
    rgb = torch.from_numpy(ARRAYS["rect"].transpose(2, 0, 1).copy()).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    features = DenseEncoder(model.clip.visual, SegEarth())(((rgb - mean) / std)[None])
    assert np.abs(features.patches[0].numpy() - ARRAYS["rect__segearth__tokens"]).max() < TOKENS


def test_a_long_text_tower_maps_a_scene_as_a_checkpoint_file(
    state: dict[str, torch.Tensor], registry: str, tmp_path: Path
) -> None:
    pixels = ARRAYS["rect"]
    height, width = pixels.shape[:2]
    scene = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        scene, "w", crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6), **profile
    ) as out:
        out.write(pixels.transpose(2, 0, 1))
    file = saved(state, tmp_path / "weights.pt")
    given = [
        *("segment", scene, "--classes", "building; road; water", "--out", tmp_path / "out"),
        *("--model", f"{registry}-quickgelu:{file}", "--device", "cpu", "--window", 0),
        *("--upsampler", "none", "--cls-bias", 0, "--polygons", "none"),
    ]
    result = CliRunner().invoke(app, [str(each) for each in given])
    assert result.exit_code == 0, result.output
    tokens = F.normalize(torch.from_numpy(ARRAYS["rect__segearth__tokens"]), dim=-1)
    cosines = (tokens @ torch.from_numpy(ARRAYS["query_features"]).T).T.reshape(1, 3, 13, 10)
    wanted = F.interpolate(cosines, (height, width), mode="bilinear")[0].argmax(0).numpy()
    with rasterio.open(tmp_path / "out" / "labels.tif") as labels:
        assert (labels.read(1) != wanted).sum() <= PIXELS


def test_a_long_text_tower_has_quick_gelu(
    state: dict[str, torch.Tensor], registry: str, tmp_path: Path
) -> None:
    file = saved(state, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=f"QuickGELU.*write {registry}-quickgelu:{file}"):
        load_model(f"{registry}:{file}", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positional_embedding_res": torch.zeros(200, 16)}, "two tables of one shape"),
        ({"mask1": torch.ones(248, 1)}, "do not keep the first 20"),
        ({"something": torch.zeros(2)}, "1 unknown .first something"),
    ],
)
def test_other_tables_and_keys_are_told(
    state: dict[str, torch.Tensor], registry: str, tmp_path: Path, change: Any, message: str
) -> None:
    file = saved(state | change, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=message):
        load_model(f"{registry}-quickgelu:{file}", device="cpu")


# -- means of files ------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two files of one architecture."""
    files = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        tiny_random_model(folder, seed)
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, config)
        files.append(folder / "open_clip_model.safetensors")
    return files[0], files[1]


@pytest.mark.parametrize(("text", "share"), [("{0}+{1}", 0.5), ("3*{0}+1*{1}", 0.75)])
def test_a_weighted_mean_of_files_is_a_model(
    pair: tuple[Path, Path], text: str, share: float
) -> None:
    model = load_model(f"{NAME}:{text.format(*pair)}", device="cpu")
    one, other = (load_file(file) for file in pair)
    for name, value in model.clip.state_dict().items():
        if name in one:
            torch.testing.assert_close(value, share * one[name] + (1 - share) * other[name])
    alone = load_model(f"{NAME}:{pair[0]}", device="cpu")
    assert model.fingerprint != alone.fingerprint


def test_every_share_is_another_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    texts = ("{0}+{1}", "{1}+{0}", "2*{0}+{1}")
    prints = {load_model(f"{NAME}:{t.format(*pair)}", device="cpu").fingerprint for t in texts}
    assert len(prints) == 3


def test_files_of_other_tensors_are_not_averaged(pair: tuple[Path, Path], tmp_path: Path) -> None:
    state = load_file(pair[0])
    state.pop("visual.proj")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match=r"cannot be averaged.*visual\.proj"):
        load_model(f"{NAME}:{pair[0]}+{tmp_path / 'less.safetensors'}", device="cpu")


def test_a_plus_in_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a+b.pt"
    for each in (file, tmp_path / "c.pt", tmp_path / "d.pt"):
        each.touch()
    assert parts_of(str(file)) == [(1.0, str(file))]
    monkeypatch.chdir(tmp_path)
    assert portable("ViT-B-16:a+b.pt") == f"ViT-B-16:{file}"
    both = portable("ViT-B-16:0.5*c.pt+d.pt")
    assert both == f"ViT-B-16:0.5*{tmp_path / 'c.pt'}+1.0*{tmp_path / 'd.pt'}"
    for wrong in ("0*a.pt+b.pt", "x*a.pt+b.pt", "a.pt+"):
        with pytest.raises(WeightsError, match="no share and file"):
            parts_of(wrong)


# -- the CLS token, the last blocks --------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_several_last_blocks_are_their_formula(tmp_path: Path, residual: bool) -> None:
    model = load_model(tiny_random_model(tmp_path, layers=4), device="cpu")
    visual, image = model.clip.visual, torch.rand(2, 3, 64, 96)
    x, _ = DenseEncoder(visual, SegEarth()).stem(image)
    total = torch.zeros_like(x)
    for number, block in enumerate(visual.transformer.resblocks):
        if number >= 2:
            attn, y = block.attn, block.ln_1(x)
            qkv = F.linear(y, attn.in_proj_weight, attn.in_proj_bias)
            heads = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            scale = heads.shape[-1] ** -0.5
            weights = sum((scale * each @ each.mT).softmax(-1) for each in heads)
            out = attn.out_proj((weights @ heads[2]).transpose(1, 2).flatten(2))
            if residual:
                out = x + out
                out = out + block.mlp(block.ln_2(out))
            total += out
        x = block(x)
    expected = visual.ln_post(total) @ visual.proj
    options = Options(last_blocks=2, residual=residual, templates="none")
    segmenter = Segmenter(model, "a; b", options)
    assert segmenter.options.described_methods()["attention"]["last"] == 2
    found = segmenter.encode(image)
    torch.testing.assert_close(found.patches, expected[:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["segearth", "clearclip-rcs", "scclip", "pearl"])
def test_the_vanilla_cls_token_is_the_image_embedding(tmp_path: Path, attention: str) -> None:
    model = load_model(tiny_random_model(tmp_path, layers=3), device="cpu")
    image = torch.rand(2, 3, 64, 64)
    made = methods.resolve(methods.ATTENTIONS, attention)
    plain, vanilla = (
        DenseEncoder(model.clip.visual, made, source)(image) for source in ("modified", "vanilla")
    )
    torch.testing.assert_close(vanilla.cls, model.clip.encode_image(image), atol=1e-5, rtol=1e-4)
    assert torch.equal(plain.patches, vanilla.patches)
    assert not torch.allclose(plain.cls, vanilla.cls)
    logits = [
        Segmenter(model, "a; b", Options(attention=attention, cls_source=source, templates="none"))
        .window_logits(image)
        for source in ("modified", "vanilla")
    ]  # fmt: skip
    assert not torch.allclose(*logits)


def test_last_blocks_that_cannot_be(tmp_path: Path) -> None:
    model = load_model(tiny_random_model(tmp_path), device="cpu")
    with pytest.raises(OptionError, match="belongs to the last block alone"):
        Segmenter(model, "a; b", Options(attention="resclip", last_blocks=2))
    with pytest.raises(OptionError, match="the model has 2"):
        Segmenter(model, "a; b", Options(last_blocks=3, templates="none"))
    with pytest.raises(OptionError, match="last is 0; give a whole number from 1"):
        Options(last_blocks=0).resolve({})


# -- geoseg models -------------------------------------------------------------------------------


def test_check_tells_a_quick_gelu_mistake_by_name(
    state: dict[str, torch.Tensor], registry: str, tmp_path: Path
) -> None:
    file = saved(state, tmp_path / "FarSLIP2.pt")
    result = CliRunner().invoke(app, ["models", "check", f"{registry}:{file}"])
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "wrong activation" in said
    assert "QuickGELU" in said
    assert f"{registry}-quickgelu" in said


def test_check_finds_the_architecture_of_a_file(
    state: dict[str, torch.Tensor], registry: str, tmp_path: Path
) -> None:
    file = saved(state, tmp_path / "FarSLIP2.pt")
    result = CliRunner().invoke(app, ["models", "check", str(file), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["ok"] is True
    assert found["spec"] == f"{registry}-quickgelu:{file}"
    said = {each["what"]: each for each in found["findings"]}
    assert said["activation"]["said"] == "QuickGELU"
    assert "248 positions" in said["tokenizer and context"]["said"]
    assert "by its name FarSLIP" in said["published"]["said"]


def test_check_says_what_nothing_tells(pair: tuple[Path, Path]) -> None:
    checked = check_model(str(pair[0]))
    (activation,) = (each for each in checked.findings if each.what == "activation")
    assert activation.ok is None
    assert "nothing in the file or its name says" in activation.said
    assert checked.ok


@pytest.mark.parametrize(
    ("name", "ok"),
    [
        ("own.pt", None),
        ("FarSLIP1.pt", True),
        ("CLIP-laion2B.pt", False),
        ("quickgelu-of-laion2B.pt", True),
    ],
)
def test_check_compares_quick_gelu_with_what_is_known_of_the_file(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ok: Any
) -> None:
    config = open_clip.factory._MODEL_CONFIGS[NAME] | {"quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"{NAME}-quickgelu", config)
    torch.save(load_file(pair[0]), tmp_path / name)
    checked = check_model(f"{NAME}-quickgelu:{tmp_path / name}")
    (activation,) = (each for each in checked.findings if each.what == "activation")
    assert activation.ok is ok
    assert checked.ok is (ok is not False)
    if ok is not True:
        assert f"{NAME}:{tmp_path / name}" in activation.said or f"take {NAME}:" in activation.said


def test_check_knows_the_bundled_model() -> None:
    assert all(each.ok for each in check_model("geoseg-tiny").findings)


def test_check_tells_an_upsampler_of_other_numbers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    upsampler = tmp_path / "up.pt"
    torch.save({"state_dict": {"upsampler.fixup_proj.1.weight": torch.zeros(3)}}, upsampler)
    checked = check_model(str(pair[0]), str(upsampler))
    (found,) = (each for each in checked.findings if each.what == "upsampler")
    assert found.ok is False
    assert not checked.ok


def test_check_of_what_is_no_clip(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="no image tower"):
        check_model(str(tmp_path / "other.pt"))
    with pytest.raises(GeosegError):
        check_model(str(tmp_path / "nothing.pt"))
    assert CliRunner().invoke(app, ["models", "check"]).exit_code == 2


def test_what_is_known_of_files() -> None:
    result = CliRunner().invoke(app, ["models", "farslip"])
    assert "35.4" in result.output
    assert "eight remote-sensing sets" in " ".join(result.output.split())
    listed = json.loads(CliRunner().invoke(app, ["models", "--json"]).output)["published"]
    assert [each["name"] for each in listed["encoders"]] == [each.name for each in PUBLISHED]
    found = published("FarSLIP2_ViT-B-16.pt")
    assert found is not None
    assert found.name == "FarSLIP"
    assert published("my_own.pt") is None
    for name in ("ViT-B-16-of-mine.pt", "ViT-H-14.pt", "CLIP-ViT-B-32-laion2B-s34B-b79K.pt"):
        assert published(name) is None
    for name in ("ViT-B-16.pt", "ViT-L-14-336px.pt", "clip-vit-base-patch16.safetensors"):
        assert published(name) == next(each for each in PUBLISHED if "OpenAI" in each.name)
