"""Specifications, checkpoint formats, the two traps, and what happens without a hub."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from geoseg import methods
from geoseg.errors import (
    ModelError,
    OptionError,
    UnknownModelError,
    UnsupportedModelError,
    WeightsError,
)
from geoseg.model import locate
from geoseg.model.attention.last_block import LastBlock, SegEarth, Vanilla
from geoseg.model.attention.trunk import Context, Proxied, Trunk
from geoseg.model.catalogue import known_models
from geoseg.model.checkpoint import read_state_dict
from geoseg.model.loading import Model, load_model, resolve_device
from geoseg.model.spec import ModelSpec
from geoseg.model.vision import DenseEncoder, padding_to_patch, resample_positions
from geoseg.testing import tiny_random_model

ARCHITECTURE = "tiny-classic"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random"
    tiny_random_model(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(f"local-dir:{folder}", device="cpu")


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "open_clip_model.safetensors")


@pytest.fixture
def architecture(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The random model's config under a name of open_clip's registry, plain and QuickGELU."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    for name, quick in ((ARCHITECTURE, False), (f"{ARCHITECTURE}-quickgelu", True)):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config | {"quick_gelu": quick})
    return ARCHITECTURE


# -- checkpoint formats ------------------------------------------------------------------------


def _plain(state: dict[str, torch.Tensor], file: Path) -> Path:
    torch.save(state, file.with_suffix(".pt"))
    return file.with_suffix(".pt")


def _safetensors(state: dict[str, torch.Tensor], file: Path) -> Path:
    save_file(state, file.with_suffix(".safetensors"))
    return file.with_suffix(".safetensors")


def _training(state: dict[str, torch.Tensor], file: Path) -> Path:
    """As RemoteCLIP, GeoRSCLIP and SkyCLIP publish theirs."""
    content = {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
    }
    torch.save(content, file.with_suffix(".pt"))
    return file.with_suffix(".pt")


def _half(state: dict[str, torch.Tensor], file: Path) -> Path:
    torch.save({k: v.half() for k, v in state.items()}, file.with_suffix(".bin"))
    return file.with_suffix(".bin")


@pytest.mark.parametrize("write", [_plain, _safetensors, _training, _half])
def test_checkpoint_formats(
    write: Any, state: dict[str, torch.Tensor], model: Model, architecture: str, tmp_path: Path
) -> None:
    file = write(state, tmp_path / "weights")
    loaded = load_model(f"{architecture}:{file}", device="cpu")
    for name, value in model.clip.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(loaded.clip.state_dict()[name], value, atol=2e-3)
    assert not loaded.clip.training
    assert loaded.patch_size == model.patch_size == 16


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code ran",)


def test_a_checkpoint_never_runs_code(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evil.pt"
    torch.save({"state_dict": _Evil()}, file)
    with pytest.raises(WeightsError, match="more than tensors"):
        load_model(f"{architecture}:{file}", device="cpu")
    assert "code ran" not in capsys.readouterr().out


def _scripted(file: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "does not exist"),
        (lambda f: f.write_bytes(b""), "not a PyTorch checkpoint"),
        (lambda f: f.write_text("hello"), "not a PyTorch checkpoint|more than tensors"),
        (lambda f: f.write_bytes(pickle.dumps([1, 2])), "no state dict|not a PyTorch|more than"),
        (lambda f: torch.save({"a": 1}, f), "no tensors"),
        (_scripted, "TorchScript"),
    ],
)
def test_unusable_checkpoints(make: Any, message: str, architecture: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    make(file)
    with pytest.raises(WeightsError, match=message) as caught:
        load_model(f"{architecture}:{file}", device="cpu")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_safetensors(architecture: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_model(f"{architecture}:{file}", device="cpu")


def test_weights_of_another_architecture(
    state: dict[str, torch.Tensor], architecture: str, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"does not fit the architecture.*another shape.*ARCH"):
        load_model(f"ViT-B-32:{tmp_path / 'weights.pt'}", device="cpu")


BENT: dict[str, tuple[torch.Tensor, str]] = {
    "nan": (torch.tensor([1.0, torch.nan, 2.0]), r"holds NaN or infinite numbers \(1 of 3\)"),
    "inf": (torch.tensor([[torch.inf], [-torch.inf]]), r"infinite numbers \(2 of 2\)"),
    "half": (torch.tensor([1.0, torch.nan]).half(), r"infinite numbers \(1 of 2\)"),
    "brain": (torch.tensor([1.0, torch.inf]).bfloat16(), r"infinite numbers \(1 of 2\)"),
    "double": (torch.tensor([1e300, 1.0], dtype=torch.float64), r"infinite numbers \(1 of 2\)"),
    "complex": (torch.tensor([1j]), "holds complex numbers"),
    "sparse": (torch.eye(2).to_sparse(), "is not a plain one"),
    "meta": (torch.ones(2, device="meta"), "is not a plain one"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BENT)
def test_weights_are_finite_real_numbers(
    kind: str, state: dict[str, torch.Tensor], architecture: str, tmp_path: Path
) -> None:
    tensor, said = BENT[kind]
    file = _plain(state | {"visual.proj": tensor}, tmp_path / "weights")
    with pytest.raises(WeightsError, match=rf"weights\.pt: the tensor visual\.proj .*{said}"):
        load_model(f"{architecture}:{file}", device="cpu")


def test_sums_that_overflow_are_no_reason(tmp_path: Path) -> None:
    large = {"a": torch.full((9,), 3e38), "b": torch.full((9,), 6e4).half(), "c": torch.empty(0)}
    file = _plain(large, tmp_path / "weights")
    for name, tensor in read_state_dict(file).items():
        assert torch.equal(tensor, large[name])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>404 not found</body></html>", "it begins like a web page"),
        (
            b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey',
            "it begins like a web page",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a pointer of Git LFS"),
        (b'{"error": "not found"}', "it begins with something else"),
        (b"", "it is empty"),
    ],
)
def test_what_was_saved_in_place_of_a_checkpoint(
    content: bytes, said: str, architecture: str, tmp_path: Path
) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights\.pt is not a PyTorch checkpoint \({said}"):
        load_model(f"{architecture}:{tmp_path / 'weights.pt'}", device="cpu")
    if "begins like" in said:
        (tmp_path / "weights.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match=f"cannot be read as safetensors: {said}"):
            load_model(f"{architecture}:{tmp_path / 'weights.safetensors'}", device="cpu")


@pytest.mark.parametrize("old", [False, True])
def test_a_name_without_an_end_is_told_at_once(
    old: bool, architecture: str, tmp_path: Path
) -> None:
    name = "a" * 2_000_000
    data = b"\x80\x02c" + f"{name}\n{name}\n".encode() + b"."
    file = tmp_path / "weights.pt"
    if old:
        file.write_bytes(data)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("weights/data.pkl", data)
            archive.writestr("weights/version", "3")
    with pytest.raises(WeightsError, match=r"is not a PyTorch checkpoint \(it is damaged: a name"):
        load_model(f"{architecture}:{file}", device="cpu")


def test_a_scale_of_another_size_does_not_fit(
    state: dict[str, torch.Tensor], architecture: str, tmp_path: Path
) -> None:
    file = _plain(state | {"logit_scale": torch.ones(7)}, tmp_path / "weights")
    with pytest.raises(WeightsError, match=r"logit_scale is \(7,\), expected \(\)"):
        load_model(f"{architecture}:{file}", device="cpu")


# -- configs -----------------------------------------------------------------------------------


def _bent(folder: Path, place: Path, keys: tuple[str, ...], value: Any) -> str:
    """Copy a model with another value in its config."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    section = config
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = value
    (place / "open_clip_config.json").write_text(json.dumps(config))
    (place / "open_clip_model.safetensors").symlink_to(folder / "open_clip_model.safetensors")
    return f"local-dir:{place}"


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize(
    "value",
    [[0.5, 0.5], [0.5] * 4, 0.5, "0.5", [], ["a", "b", "c"], [True] * 3, [0.5, 0.5, None],
     [0.5, float("nan"), 0.5], [float("inf")] * 3, [10**400] * 3, {"r": 1}],
)  # fmt: skip
def test_the_normalisation_is_three_finite_numbers(
    key: str, value: Any, folder: Path, tmp_path: Path
) -> None:
    spec = _bent(folder, tmp_path, ("preprocess_cfg", key), value)
    with pytest.raises(ModelError, match=rf"open_clip_config\.json: preprocess_cfg\.{key} "):
        load_model(spec, device="cpu")


@pytest.mark.parametrize("std", [[0, 0, 0], [0.2, -0.2, 0.2], [0.2, 0.2, 1e-300]])
def test_a_deviation_is_above_zero(std: list[float], folder: Path, tmp_path: Path) -> None:
    spec = _bent(folder, tmp_path, ("preprocess_cfg", "std"), std)
    with pytest.raises(ModelError, match=r"preprocess_cfg\.std has .* in it; give numbers from"):
        load_model(spec, device="cpu")


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "16", None, {}, float("nan"), 10**30])
@pytest.mark.parametrize(
    ("section", "key"),
    [("vision_cfg", "patch_size"), ("vision_cfg", "width"), ("vision_cfg", "layers"),
     ("vision_cfg", "head_width"), ("vision_cfg", "image_size"), ("text_cfg", "layers"),
     ("text_cfg", "heads"), ("text_cfg", "context_length"), ("text_cfg", "vocab_size")],
)  # fmt: skip
def test_sizes_are_whole_numbers(
    section: str, key: str, value: Any, folder: Path, tmp_path: Path
) -> None:
    spec = _bent(folder, tmp_path, ("model_cfg", section, key), value)
    with pytest.raises(ModelError, match=rf"config\.json: model_cfg\.{section}\.{key} is .*give a"):
        load_model(spec, device="cpu")


def test_an_architecture_far_beyond_its_weights_is_never_built(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _bent(folder, tmp_path, ("model_cfg", "vision_cfg", "width"), 16_384)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(WeightsError, match=r"does not fit the architecture: it holds .* numbers"):
        load_model(spec, device="cpu")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html>", "is not JSON: it begins like a web page"),
        (b"[" * 9000, "is not JSON"),
        (b"\xff\xfe{\0}\0", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"model_cfg": []}', r"model_cfg is \[\]; it must be a JSON object"),
        (b" " * (2**20 + 1), "is larger than 1 MiB"),
    ],
)
def test_configs_that_are_none(content: bytes, said: str, folder: Path, tmp_path: Path) -> None:
    spec = _bent(folder, tmp_path, ("x",), 1)
    (tmp_path / "open_clip_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"open_clip_config\.json:? {said}"):
        load_model(spec, device="cpu")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"cls_bias": NaN}', "cls_bias is nan"),
        ('{"cls_bias": -1}', "cls-bias is -1"),
        ('{"logit_scale": 1e999}', "logit_scale is inf"),
        ('{"logit_scale": true}', "logit_scale is True"),
        ('{"window": 1000000000000}', "window is 1000000000000"),
        ('{"attention": "naclip:std=0"}', "std is 0.0"),
        ('{"blend": "none"}', "blend is 'none'"),
        ("[" * 9000, "is not JSON"),
        ("[]", "is not a JSON object"),
    ],
)
def test_defaults_that_cannot_be(content: str, said: str, folder: Path, tmp_path: Path) -> None:
    spec = _bent(folder, tmp_path, ("x",), 1)
    (tmp_path / "geoseg.json").write_text(content)
    with pytest.raises(ModelError, match=rf"geoseg\.json.*{said}"):
        load_model(spec, device="cpu")


# -- the QuickGELU trap ------------------------------------------------------------------------


def test_openai_type_weights_need_quick_gelu(
    state: dict[str, torch.Tensor], architecture: str, tmp_path: Path
) -> None:
    named = tmp_path / "ViT-B-16-openai.pt"
    torch.save(state, named)
    with pytest.raises(WeightsError, match=f"{architecture}-quickgelu:{named}"):
        load_model(f"{architecture}:{named}", device="cpu")
    marked = tmp_path / "weights.pt"
    torch.save(state | {"input_resolution": torch.tensor(64)}, marked)
    with pytest.raises(WeightsError, match="QuickGELU"):
        load_model(f"{architecture}:{marked}", device="cpu")
    quick = load_model(f"{architecture}-quickgelu:{marked}", device="cpu")
    blocks = quick.clip.visual.transformer.resblocks
    assert type(blocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_openai_tags_get_quick_gelu(
    state: dict[str, torch.Tensor],
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tmp_path / "cached.safetensors"
    save_file(state, weights)
    tag = {"hf_hub": "someone/something/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: tag)
    monkeypatch.setattr(locate, "cached_file", lambda *_: weights)
    loaded = load_model(f"{architecture}/openai", device="cpu")
    blocks = loaded.clip.visual.transformer.resblocks
    assert type(blocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert loaded.mean == (0.1, 0.2, 0.3)


def test_plain_gelu_tag_in_a_quick_gelu_architecture(
    state: dict[str, torch.Tensor],
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tmp_path / "cached.safetensors"
    save_file(state, weights)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"hf_hub": "a/b/"})
    monkeypatch.setattr(locate, "cached_file", lambda *_: weights)
    with pytest.raises(WeightsError, match="trained with plain GELU"):
        load_model(f"{architecture}-quickgelu/laion2b", device="cpu")


# -- architectures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ViT-B-16-SigLIP/webli", "no CLS token"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "CoCa"),
        ("RN50/openai", "ResNet"),
        ("convnext_base/laion400m_s13b_b51k", "not open_clip's own vision transformer"),
        ("EVA02-B-16/merged2b_s8b_b131k", "not open_clip's own vision transformer"),
    ],
)
def test_other_architectures_are_refused_before_any_download(name: str, why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=why) as caught:
        load_model(name)
    assert name.split("/")[0] in str(caught.value)


def test_a_folder_with_another_architecture(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["pool_type"] = "avg"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="avg"):
        load_model(f"local-dir:{tmp_path}")


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("geoseg-tny", "geoseg-tiny"),
        ("ViT-B-16", "ViT-B-16/openai"),
        ("ViT-B-61/openai", "ViT-B-16/openai|ViT-B-16"),
        ("ViT-B-16/opnai", "ViT-B-16/openai"),
        ("nonsense-xyz", "geoseg models"),
    ],
)
def test_near_names_are_listed(text: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        ModelSpec.parse(text)


def test_paths_without_a_scheme(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=f"local-dir:{tmp_path}"):
        ModelSpec.parse(str(tmp_path))
    file = tmp_path / "weights.pt"
    file.touch()
    with pytest.raises(UnknownModelError, match=f"ARCH:{file}"):
        ModelSpec.parse(str(file))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        load_model(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ModelError, match="model_cfg"):
        load_model(f"local-dir:{tmp_path}")


def test_the_catalogue_holds_classic_vits_only() -> None:
    specs = {entry.spec for entry in known_models()}
    assert "ViT-B-16/openai" in specs
    assert not any("SigLIP" in s or s.startswith(("RN", "coca", "convnext")) for s in specs)


# -- without a hub -----------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and a hub address that refuses connections at once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(locate, "cached_file", lambda *_: None)


@pytest.mark.parametrize("spec", ["ViT-B-16/openai", "hf-hub:someone/something"])
@pytest.mark.usefixtures("no_hub")
def test_unreachable_hub_names_the_offline_choices(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's own download retries for most of a minute; it may not even be started.
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_: pytest.fail("retried"))
    with pytest.raises(WeightsError) as caught:
        load_model(spec)
    message = str(caught.value)
    for part in (spec, "could not be downloaded", "geoseg-tiny", "ARCH:/path", "cache"):
        assert part in message
    assert "\n" not in message


@pytest.mark.usefixtures("no_hub")
def test_no_download_when_not_wanted() -> None:
    with pytest.raises(WeightsError, match="not in the cache"):
        load_model("ViT-B-16/openai", download=False)


# -- device ------------------------------------------------------------------------------------


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    for other in ("warp", "mps", "meta"):
        with pytest.raises(OptionError, match=f"{other}.*use auto, cpu, cuda or cuda:N"):
            resolve_device(other)
    if not torch.cuda.is_available():
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(OptionError, match="no CUDA GPU"):
            resolve_device("cuda")


# -- the visual forward ------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_vanilla_with_residual_is_open_clips_image_embedding(tmp_path: Path, patch: int) -> None:
    spec = tiny_random_model(tmp_path, window=patch * 4, patch=patch)
    loaded = load_model(spec, device="cpu")
    encoder = DenseEncoder(loaded.clip.visual, Vanilla(residual=True, ffn=True))
    images = torch.randn(3, 3, patch * 4, patch * 4, generator=torch.Generator().manual_seed(1))
    expected = loaded.clip.encode_image(images)
    assert torch.allclose(encoder(images).cls, expected, atol=1e-5)


@pytest.mark.parametrize("name", list(methods.ATTENTIONS.entries))
@pytest.mark.parametrize("residual", [False, True])
def test_every_variant_runs_on_any_window(model: Model, name: str, residual: bool) -> None:
    kept = {"residual": residual, "ffn": residual, "feedback": False}
    attention = methods.resolve(methods.ATTENTIONS, name, **kept)
    if isinstance(attention, Proxied):
        pytest.skip("it needs a backbone; tests/test_proxies.py")
    encoder = DenseEncoder(model.clip.visual, attention)
    features = encoder(torch.randn(2, 3, 48, 112))
    assert features.grid == (3, 7)
    assert features.patches.shape == (2, 21, 64)
    assert torch.isfinite(features.patches).all()


def test_segearth_is_the_sum_of_its_terms(model: Model) -> None:
    """Before the output projection's bias, which is added once."""
    trunk, x = Trunk(model.clip.visual), torch.randn(1, 17, 64)
    bias = trunk.blocks[-1].attn.out_proj.bias
    context = Context((4, 4), torch.zeros(1, 3, 64, 64))

    class OneTerm(LastBlock):
        def __init__(self, letter: str) -> None:
            super().__init__()
            object.__setattr__(self, "terms", ((letter, letter),))

    terms = [OneTerm(letter).run(trunk, x, context)[0] - bias for letter in "qkv"]
    whole = SegEarth().run(trunk, x, context)[0] - bias
    assert torch.allclose(sum(terms), whole, atol=1e-5)


def test_positions_are_resampled_by_grid_not_by_count() -> None:
    embedding = torch.randn(1 + 16, 8)
    assert resample_positions(embedding, (4, 4), (4, 4)) is embedding
    same_count = resample_positions(embedding, (2, 8), (4, 4))
    assert same_count.shape == embedding.shape
    assert not torch.allclose(same_count, embedding, atol=1e-3)
    scaled = resample_positions(embedding, (9, 9), (4, 4))
    sized = resample_positions(embedding, (9, 9), (4, 4), antialias=True)
    assert 1e-4 < (scaled - sized).abs().max() < 1.0


def test_padding_puts_the_larger_half_after() -> None:
    assert padding_to_patch(224, 101, 16) == (5, 6, 0, 0)
    assert padding_to_patch(20, 20, 16, min_grid=3) == (14, 14, 14, 14)


def test_unknown_attention() -> None:
    with pytest.raises(OptionError, match="segearth"):
        methods.resolve(methods.ATTENTIONS, "segearht")
    with pytest.raises(OptionError, match="std"):
        methods.resolve(methods.ATTENTIONS, "naclip:std=0")
    with pytest.raises(OptionError, match="depth"):
        methods.resolve(methods.ATTENTIONS, "gem:depth=1")
