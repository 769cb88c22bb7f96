"""Attentions that look with another model: against released programs, files of weights, stores.

`tests/goldens/proxy/README.md` says where the arrays come from and which tolerances they suggest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import timm
import torch
import torch.nn.functional as F
from backbones import NAMES, random_backbone
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import geoseg
from geoseg import methods
from geoseg.errors import ModelError, OptionError, OutputError, WeightsError
from geoseg.inference.segmenter import Segmenter
from geoseg.model.attention.cass import Cass, clusters, eigen, mapped, matched
from geoseg.model.attention.corrclip import CorrClip, nearest
from geoseg.model.attention.proxy import Proxy, resized
from geoseg.model.attention.trunk import Trunk, Words
from geoseg.model.backbone import Backbone, load_backbone
from geoseg.model.loading import Model, load_model
from geoseg.model.vision import DenseEncoder, padding_to_patch
from geoseg.options import Options
from geoseg.testing import tiny_random_model, write_scene
from geoseg.types import Window
from geoseg_cli.main import app

GOLDENS = Path(__file__).resolve().parent / "goldens"
FAMILY, PROXY = GOLDENS / "family", GOLDENS / "proxy"
ARRAYS = np.load(PROXY / "arrays.npz")
BOXES = json.loads((GOLDENS / "cases.json").read_text())["boxes"]
TEXT = torch.from_numpy(np.load(FAMILY / "arrays.npz")["text__query_features"])
CPU = torch.device("cpu")
TOKENS, LOGITS, WEIGHTS, MIXED, PIXELS = 1e-4, 2e-5, 5e-5, 5e-4, 10
WORDS = "building, roof; road; water, river; tree"

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference data's model of twelve blocks as a folder."""
    folder = tmp_path_factory.mktemp("model")
    config = json.loads((FAMILY / "clip_h.json").read_text())
    state = {k: torch.from_numpy(v) for k, v in np.load(FAMILY / "clip_h.npz").items()}
    rows, values = state.pop("token_embedding.rows"), state.pop("token_embedding.values")
    table = torch.full((config["text_cfg"]["vocab_size"], values.shape[1]), 1000.0)
    table[rows.long()] = values.float()
    state["token_embedding.weight"] = table.half()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def model(spec: str) -> Model:
    return load_model(spec, device="cpu")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference data's backbone as a file."""
    file = tmp_path_factory.mktemp("dino") / "dino.safetensors"
    save_file({k: torch.from_numpy(v) for k, v in np.load(PROXY / "dino_h.npz").items()}, file)
    return str(file)


@pytest.fixture(scope="module")
def backbone(model: Model, dino: str) -> Backbone:
    return beside(model, "golden_dino", dino)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_random_model(tmp_path_factory.mktemp("small"), layers=3), device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("backbones")
    return {name: random_backbone(folder, name) for name in NAMES}


def beside(model: Model, name: str, file: str | None, **more: Any) -> Backbone:
    return load_backbone(name, file, mean=model.mean, std=model.std, device=CPU, **more)


def pixels(box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    row, col, height, width = box
    whole = np.asarray(Image.open(GOLDENS / "structured_300x260.png"))
    return whole[row : row + height, col : col + width]


def normalised(rgb: npt.NDArray[np.uint8], model: Model) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    scaled = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float() / 255
    return ((scaled - mean) / std)[None]


def largest(found: Tensor | Array, wanted: Array) -> float:
    difference = np.asarray(found, dtype=np.float64) - wanted
    assert difference.shape == wanted.shape
    return float(np.abs(difference).max())


# -- ProxyCLIP against the released program --------------------------------------------------------

PROXYCLIP = {
    "main__default": Proxy(),
    "main__other": Proxy(beta=0.92, gamma=6),
    "rect__lower_beta": Proxy(beta=0.97),
}


@pytest.mark.parametrize("case", PROXYCLIP)
def test_tokens_of_proxyclip(model: Model, backbone: Backbone, case: str) -> None:
    window = normalised(pixels(BOXES[case[:4]]), model)
    found = DenseEncoder(model.clip.visual, PROXYCLIP[case], backbone=backbone)(window)
    assert largest(found.patches[0, ::7], ARRAYS[f"proxyclip__{case}__tokens_s7"]) < TOKENS
    assert not found.cls.any()
    if case == "main__default":
        seen = backbone.tokens(window)[0][0]
        assert largest(seen[::7], ARRAYS[f"proxyclip__{case}__proxy_features_s7"]) < TOKENS
        cosines = F.normalize(found.patches[0], dim=-1) @ TEXT.T
        assert largest(cosines, ARRAYS[f"proxyclip__{case}__token_logits"]) < LOGITS


def test_proxyclip_on_a_whole_image(model: Model, backbone: Backbone) -> None:
    """In windows of 200 every 100 pixels, padded to 224 as the released program does."""
    encoder = DenseEncoder(model.clip.visual, Proxy(), backbone=backbone)
    total, seen = torch.zeros(14, 300, 260), torch.zeros(300, 260)
    left, right, top, bottom = padding_to_patch(200, 200, 56)
    for row in (0, 100):
        for col in (0, 60):
            image = normalised(pixels((row, col, 200, 200)), model)
            found = encoder(F.pad(image, (left, right, top, bottom)))
            cosines = (F.normalize(found.patches, dim=-1) @ TEXT.T).mT.unflatten(2, found.grid)
            wide = F.interpolate(cosines, (224, 224), mode="bilinear")[0]
            total[:, row : row + 200, col : col + 200] += wide[:, top : top + 200, left:-right]
            seen[row : row + 200, col : col + 200] += 1
    assert largest((total / seen)[:, ::15, ::15], ARRAYS["proxyclip__whole__logits_s15"]) < LOGITS


def test_proxy_gives_the_released_programs_labels(spec: str, dino: str, tmp_path: Path) -> None:
    """From the command line, over one window."""
    labels = mapped_by_command(
        tmp_path, spec, "--attention", "proxy:backbone=golden_dino", "--backbone-weights", dino
    )
    tokens = torch.from_numpy(ARRAYS["proxyclip__main__default__token_logits"]).T
    wide = F.interpolate(tokens.reshape(1, -1, 28, 28), (224, 224), mode="bilinear")[0]
    assert (labels != classes_of(wide)).sum() <= PIXELS


def mapped_by_command(folder: Path, spec: str, *more: str) -> Array:
    scene = folder / "scene.tif"
    profile = {"driver": "GTiff", "height": 224, "width": 224, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        scene, "w", crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6), **profile
    ) as out:
        out.write(pixels(BOXES["main"]).transpose(2, 0, 1))
    given = [
        *("segment", scene, "--classes", GOLDENS / "classes_a.txt", "--out", folder / "out"),
        *("--model", spec, "--device", "cpu", "--upsampler", "none", "--cls-bias", 0),
        *("--polygons", "none", *more),
    ]
    result = CliRunner().invoke(app, [str(each) for each in given])
    assert result.exit_code == 0, result.output
    with rasterio.open(folder / "out" / "labels.tif") as labels:
        return np.asarray(labels.read(1))


def classes_of(planes: Tensor) -> Array:
    classes = geoseg.Vocabulary.parse(GOLDENS / "classes_a.txt").query_classes
    return np.asarray(classes[planes.argmax(0).numpy()])


# -- against the formula, for every kind of backbone -----------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_proxy_is_its_formula(small: Model, files: dict[str, str], name: str) -> None:
    """With timm's own forward, and its own queries and keys, on a window that is not square."""
    made = beside(small, name, files[name])
    image = torch.rand(2, 3, 112, 224)
    seen = image * torch.tensor(small.std).view(3, 1, 1) + torch.tensor(small.mean).view(3, 1, 1)
    seen = (seen - torch.tensor(made.mean).view(3, 1, 1)) / torch.tensor(made.std).view(3, 1, 1)
    module, patch = made.module, made.patch_size
    grid = 112 // patch, 224 // patch
    if name == "tiny_dino":  # whose positions timm resamples in another way
        expected = made.tokens(image)[0]
    else:
        expected = module.forward_features(seen)[:, module.num_prefix_tokens :]
    features, prefix, found_grid = made.tokens(image)
    assert (found_grid, features.shape[1]) == (grid, grid[0] * grid[1])
    assert prefix.shape[1] == module.num_prefix_tokens
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)

    attention = Proxy(beta=0.9)
    found = DenseEncoder(small.clip.visual, attention, backbone=made)(image)
    visual = small.clip.visual
    x, own = DenseEncoder(visual, attention).stem(image)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    block = visual.transformer.resblocks[-1]
    width = x.shape[-1]
    value = block.ln_1(x)[:, 1:] @ block.attn.in_proj_weight[-width:].T
    value = (value + block.attn.in_proj_bias[-width:]).mT.unflatten(2, own)
    value = F.interpolate(value, grid, mode="bilinear").flatten(2).mT
    unit = F.normalize(expected, dim=-1)
    alike = unit @ unit.mT
    scores = 3 * (alike - 0.9 * alike.mean((1, 2), keepdim=True))
    weights = scores.masked_fill(scores < 0, -torch.inf).softmax(-1)
    wanted = visual.ln_post(block.attn.out_proj(weights @ value)) @ visual.proj
    assert found.grid == grid
    torch.testing.assert_close(found.patches, wanted, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_keys_are_the_last_blocks(small: Model, files: dict[str, str]) -> None:
    for name in NAMES:
        made, kept = beside(small, name, files[name]), []
        attn = made.module.blocks[-1].attn
        norms = attn.q_norm, attn.k_norm
        handles = [
            each.register_forward_hook(lambda module, given, out, kept=kept: kept.append(given[0]))
            for each in norms
        ]
        image = torch.rand(1, 3, 112, 112)
        made.tokens(image)
        for handle in handles:
            handle.remove()
        prefix = made.module.num_prefix_tokens
        expected = [each.transpose(1, 2).flatten(2)[:, prefix:] for each in kept]
        q, k, _ = made.queries_and_keys(image)
        torch.testing.assert_close(q, expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(k, expected[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", [Proxy(), Cass()])
def test_a_uniform_window_has_finite_tokens(
    small: Model, files: dict[str, str], attention: Any
) -> None:
    """All patches are alike there, and none is above the mean but by the rule for itself."""
    made = beside(small, "tiny_registers", files["tiny_registers"])
    encoder = DenseEncoder(small.clip.visual, attention, backbone=made)
    words = Words(F.normalize(torch.randn(1, 64), dim=-1), torch.ones(1, dtype=torch.bool))
    for image in (torch.zeros(1, 3, 112, 112), torch.zeros(1, 3, 16, 16)):
        found = encoder(F.pad(image, (0, 14, 0, 14)), words)
        assert found.patches.isfinite().all()
        assert found.scores is None or found.scores.isfinite().all()


# -- weights ---------------------------------------------------------------------------------------


def test_weights_come_in_the_authors_layout_too(
    small: Model, files: dict[str, str], tmp_path: Path
) -> None:
    state = torch.load(files["tiny_dino"])
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pt")
    # As the authors of DINOv2 save theirs.
    registers = torch.load(files["tiny_registers"])
    cls = registers.pop("cls_token")
    table = F.pad(registers.pop("pos_embed"), (0, 0, 1, 0))
    theirs = {k.replace("reg_token", "register_tokens"): v for k, v in registers.items()}
    theirs |= {"pos_embed": table, "cls_token": cls, "mask_token": torch.zeros(1, 32)}
    torch.save(theirs, tmp_path / "dinov2.pth")
    image = torch.rand(1, 3, 112, 112)
    for name, other in (("tiny_dino", "a.safetensors"), ("tiny_dino", "b.pt"),
                        ("tiny_registers", "dinov2.pth")):  # fmt: skip
        one, two = beside(small, name, files[name]), beside(small, name, str(tmp_path / other))
        torch.testing.assert_close(one.tokens(image)[0], two.tokens(image)[0])
        assert one.sha256 != two.sha256


def test_what_is_no_backbone_is_told(
    small: Model, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files["tiny_dino"]
    for name, message in (
        ("vit_base_patch8_224.dinoo", "did you mean vit_base_patch8_224.dino"),
        ("nothing like it", "is not known to timm; for example vit_base_patch8_224.dino"),
        ("resnet18", "no plain vision transformer"),
        ("swin_tiny_patch4_window7_224", "no plain vision transformer"),
    ):
        with pytest.raises(OptionError, match=message):
            beside(small, name, file)
    for name, message in (
        ("tiny_registers", "missing|shape"),
        ("golden_dino", "another shape"),
    ):
        with pytest.raises(WeightsError, match=f"does not fit backbone {name}.*({message})"):
            beside(small, name, file)
    with pytest.raises(WeightsError, match="no weights of backbone tiny_dino; give a file"):
        beside(small, "tiny_dino", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *given: None)
    with pytest.raises(WeightsError, match="--backbone-weights FILE") as told:
        beside(small, "vit_base_patch8_224.dino", None)
    assert "\n" not in str(told.value)
    with pytest.raises(OptionError, match="attention naclip has no backbone"):
        Options(attention="naclip", backbone_weights=file)
    for text, told_of in (
        ("proxy:gamma=0", "a number from 0.01"),
        ("cass:cut=-1", "a number from 0"),
        ("cass:global_share=2", "a number from 0 to 1"),
    ):
        with pytest.raises(OptionError, match=told_of):
            methods.resolve(methods.ATTENTIONS, text)
    wide = Options(attention="cass:backbone=golden_registers", templates="none")
    narrow = random_backbone(tmp_path, "golden_registers")
    other = load_model(tiny_random_model(tmp_path / "wide", width=160), device="cpu")
    with pytest.raises(OptionError, match="48 numbers a token, which the model's 5 heads"):
        Segmenter(other, WORDS, replace(wide, backbone_weights=narrow))


def test_cached_weights_of_the_hub_are_taken(
    small: Model, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def cached(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return files["tiny_dino"]

    cfg = timm.models.PretrainedCfg(hf_hub_id="timm/tiny_dino", mean=(0.4, 0.4, 0.4))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: cfg)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    made = beside(small, "tiny_dino", None)
    assert asked == [("timm/tiny_dino", "model.safetensors")]
    assert made.mean == (0.4, 0.4, 0.4)
    assert made.weights == Path(files["tiny_dino"])


# -- runs and stores -------------------------------------------------------------------------------


def proxied(files: dict[str, str], name: str = "tiny_registers", **more: Any) -> Options:
    return Options(
        attention=f"proxy:backbone={name}", backbone_weights=files[name], templates="none", **more
    )


def test_other_weights_are_another_run(small: Model, files: dict[str, str], tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 100, 120)
    products = geoseg.Products(polygons="none", preview=False)

    def run(file: str, **more: Any) -> geoseg.pipeline.Run:
        chosen = Options(
            attention="proxy:backbone=tiny_dino", backbone_weights=file, templates="none"
        )
        return geoseg.segment_to_files(
            scene, WORDS, tmp_path / "out", model=small, options=chosen, products=products, **more
        )

    record = json.loads((run(files["tiny_dino"]).out / "run.json").read_text())
    digest = beside(small, "tiny_dino", files["tiny_dino"]).sha256
    assert record["model"]["backbone_weights_sha256"] == digest
    moved = tmp_path / "moved.pth"
    moved.write_bytes(Path(files["tiny_dino"]).read_bytes())
    assert run(str(moved), resume=True)
    with pytest.raises(OutputError, match="other input or options"):
        run(random_backbone(tmp_path, "tiny_dino", seed=1), resume=True)


@pytest.mark.parametrize("name", ["tiny_registers", "tiny_dino"])
@pytest.mark.parametrize("window", [100, 0])
def test_a_store_maps_as_segment_does(
    small: Model, files: dict[str, str], tmp_path: Path, name: str, window: int
) -> None:
    """Windows are padded to patches of both models, and tokens lie on the backbone's grid."""
    scene, chosen = write_scene(tmp_path / "scene.tif", 130, 150), proxied(files, name)
    chosen = Options(**vars(chosen) | {"window": window, "stride": None})
    store = geoseg.encode(scene, tmp_path / "s.store", model=small, options=chosen)
    asked = store.ask(WORDS, options=Options(templates="none")).labels.values
    expected = geoseg.segment(scene, WORDS, model=small, options=chosen).labels.values
    assert (asked != expected).mean() < 0.001
    chosen = replace(chosen, attention=f"cass:backbone={name}")
    with pytest.raises(OptionError, match=r"attention cass.* reads the words of a map"):
        geoseg.encode(scene, tmp_path / "t.store", model=small, options=chosen)
    other = random_backbone(tmp_path, name, seed=1)
    with pytest.raises(OptionError, match=r"--backbone-weights .* was encoded with others"):
        store.ask(WORDS, options=Options(templates="none", backbone_weights=other))


def test_features_lie_on_the_backbones_grid(
    small: Model, files: dict[str, str], tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "scene.tif", 100, 120)
    found = geoseg.features(scene, model=small, options=proxied(files, "tiny_dino"))
    assert found.shape == (64, 13, 15)
    assert np.isfinite(found.values).all()


def test_half_precision_is_near(small: Model, files: dict[str, str]) -> None:
    image = torch.rand(1, 3, 112, 112)
    for name in NAMES:
        exact, rough = (
            Segmenter(small, WORDS, proxied(files, name, precision=precision))
            .encode(image).patches
            for precision in ("fp32", "bf16")
        )  # fmt: skip
        cosines = F.cosine_similarity(exact, rough, dim=-1)
        assert cosines.median() > 0.99


# -- CASS against the released program -------------------------------------------------------------

CASS = {
    "default": (Cass(), BOXES["main"]),
    "unstretched": (
        Cass(stretch=False, global_share=0.4, prototype_share=0.1, cut=0.2), BOXES["main"],
    ),
    "rect": (Cass(), (16, 30, 192, 160)),
}  # fmt: skip


@dataclass
class GivenPicture:
    """The backbone, which sees the picture that the released program has given it."""

    backbone: Backbone
    picture: Array

    @property
    def width(self) -> int:
        return self.backbone.width

    def queries_and_keys(self, images: Tensor) -> Any:
        rgb = torch.from_numpy(self.picture.transpose(2, 0, 1).copy()).float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.backbone.mean, self.backbone.std))
        bare = replace(self.backbone, factor=torch.ones(1), shift=torch.zeros(1))
        return bare.queries_and_keys(((rgb - mean) / std)[None])


@pytest.mark.parametrize("case", CASS)
def test_scores_of_cass(model: Model, backbone: Backbone, case: str) -> None:
    attention, box = CASS[case]
    picture = ARRAYS[f"cass__{'default' if case == 'unstretched' else case}__dino_input"]
    words = Words(TEXT, torch.ones(len(TEXT), dtype=torch.bool))
    given: Any = GivenPicture(backbone, picture)
    window, visual = normalised(pixels(box), model), model.clip.visual
    found = DenseEncoder(visual, attention, backbone=given)(window, words)
    assert largest(found.patches[0, ::2], ARRAYS[f"cass__{case}__tokens_s2"]) < TOKENS
    assert found.scores is not None
    planes = found.scores.mT.unflatten(2, found.grid)
    wide = F.interpolate(planes, window.shape[2:], mode="bilinear")[0, :, ::15, ::15]
    assert largest(wide, ARRAYS[f"cass__{case}__logits_s15"]) < LOGITS
    numbers = np.zeros(len(TEXT), int)
    for number, members in enumerate(clusters(words, attention.cut)):
        numbers[members] = number
    assert np.array_equal(numbers, ARRAYS[f"cass__{case}__text_clusters"])
    plain = DenseEncoder(visual, attention, "vanilla", given)(window, words)
    assert torch.equal(plain.patches, found.patches)
    if case != "unstretched":
        assert largest(plain.cls[0], ARRAYS[f"cass__{case}__plain_cls"]) < TOKENS


@pytest.mark.parametrize("case", ["default", "rect"])
def test_stages_of_cass(model: Model, backbone: Backbone, case: str) -> None:
    attention, box = CASS[case]
    key = f"cass__{case}__"
    window, visual = normalised(pixels(box), model), model.clip.visual
    walker = Trunk(visual)
    with torch.no_grad():
        x, grid = DenseEncoder(visual, attention).stem(window)
        for block in walker.blocks[:-1]:
            x = walker.ordinary(block, x)
        own = walker.heads(walker.blocks[-1], walker.blocks[-1].ln_1(x[:, 1:]), "k")["k"]
        seen, size = GivenPicture(backbone, ARRAYS[f"{key}dino_input"]).queries_and_keys(window)[1:]
    other = mapped(resized(seen.unflatten(-1, (4, -1)).transpose(1, 2), size, grid), own)
    assert largest(other[0, 0], ARRAYS[f"{key}dino_keys_head0"]) < TOKENS
    spectra = [eigen(each[0])[0] for each in (other, own)]
    # Eigenvalues of a graph are those of its keys' moments; there is no more than a width of them.
    for name, values in zip(("dino", "clip"), spectra, strict=True):
        wanted = np.sort(ARRAYS[f"{key}{name}_spectrum"])[:, ::-1]
        assert largest(F.normalize(values, dim=-1), wanted[:, :16]) < LOGITS
    cost, match = matched(*spectra)
    assert largest(cost, ARRAYS[f"{key}cost"]) < LOGITS
    assert match.tolist() == ARRAYS[f"{key}match"].tolist()
    mixed = attention.mixed(own[0], other[0])
    assert largest(mixed[:, ::28], ARRAYS[f"{key}mixed_rows"]) < MIXED


# -- Talk2DINO -------------------------------------------------------------------------------------

TALK = np.load(PROXY / "talk2dino_arrays.npz")


@pytest.fixture(scope="module")
def talk(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference data's, as a file that names its parts."""
    folder = tmp_path_factory.mktemp("talk")
    state = {k: torch.from_numpy(v) for k, v in np.load(PROXY / "talk2dino.npz").items()}
    for part, file in (("dino.", "dino.pth"), ("projection.", "mlp.pth")):
        torch.save(
            {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}, folder / file
        )
    parts = {"image": "golden_registers", "image_weights": "dino.pth", "projection": "mlp.pth"}
    file = folder / "talk.json"
    file.write_text(json.dumps(parts | {"text": model.spec}))
    return file


def test_talk2dino_is_the_released_program(talk: Path) -> None:
    model = load_model(f"talk2dino:{talk}", device="cpu")
    assert (model.patch_size, model.embedding_size, model.context_length) == (14, 48, 77)
    assert model.projection is not None
    projected = model.projection(torch.from_numpy(TALK["text_in"]))
    assert largest(projected, TALK["text_projected"]) < LOGITS
    segmenter = Segmenter(model, WORDS, Options(templates="none", window=70))
    found = segmenter.encode(normalised(TALK["pixels"], model))
    assert found.grid == (5, 5)
    assert largest(found.patches[0], TALK["patch_tokens"]) < TOKENS
    cosines = F.normalize(projected, dim=-1) @ F.normalize(found.patches[0], dim=-1).T
    assert largest(cosines.unflatten(1, (5, 5)), TALK["similarity"]) < LOGITS
    assert not found.cls.any()


def test_words_of_talk2dino_are_projected_as_a_mean(talk: Path, model: Model) -> None:
    """Of raw embeddings, in all templates."""
    made = load_model(f"talk2dino:{talk}", device="cpu")
    segmenter = Segmenter(made, "road; water", Options(templates=("a {}.", "some {} here.")))
    assert made.projection is not None
    for word, found in zip(("road", "water"), segmenter.text_embeddings, strict=True):
        raw = model.encode_text([f"a {word}.", f"some {word} here."])
        expected = F.normalize(made.projection(raw.mean(0)), dim=-1)
        assert largest(expected, found) < LOGITS


def test_talk2dino_maps_scenes_and_stores(talk: Path, tmp_path: Path) -> None:
    spec = f"talk2dino:{talk}"
    scene, chosen = write_scene(tmp_path / "scene.tif", 100, 120), Options(window=70)
    expected = geoseg.segment(scene, WORDS, model=spec, options=chosen, device="cpu").labels.values
    assert len(np.unique(expected)) > 1
    store = geoseg.encode(scene, tmp_path / "s.store", model=spec, options=chosen, device="cpu")
    assert (store.ask(WORDS).labels.values != expected).mean() < 0.001
    with pytest.raises(OptionError, match="leave --attention"):
        geoseg.segment(scene, WORDS, model=spec, options=Options(attention="naclip"))
    checked = CliRunner().invoke(app, ["models", "check", spec])
    assert checked.exit_code == 0, checked.output
    assert "48 numbers" in checked.output


def test_talk2dino_of_other_parts_is_told(
    talk: Path, files: dict[str, str], small: Model, tmp_path: Path
) -> None:
    parts = json.loads(talk.read_text()) | {
        "image_weights": str(talk.parent / "dino.pth"), "projection": str(talk.parent / "mlp.pth"),
    }  # fmt: skip
    file = tmp_path / "wrong.json"
    other = {"image": "tiny_dino", "image_weights": files["tiny_dino"]}
    for change, message in (
        ({"more": "x"}, "write .*projection"),
        ({"text": None}, "write .*projection"),
        ({"projection": files["tiny_dino"]}, "no projection of Talk2DINO"),
        (other, "to 48, text has 64 and image 32"),
    ):
        file.write_text(json.dumps(parts | change))
        with pytest.raises((ModelError, WeightsError), match=message):
            load_model(f"talk2dino:{file}", device="cpu")
    with pytest.raises(ModelError, match=r"nothing\.json"):
        load_model(f"talk2dino:{tmp_path / 'nothing.json'}", device="cpu")
    prints = {load_model(f"talk2dino:{talk}", device="cpu").fingerprint}
    torch.save(
        {k: v + 1 for k, v in torch.load(talk.parent / "mlp.pth").items()}, tmp_path / "mlp.pth"
    )
    file.write_text(json.dumps(parts | {"projection": "mlp.pth"}))
    prints.add(load_model(f"talk2dino:{file}", device="cpu").fingerprint)
    assert len(prints) == 2


# -- CorrCLIP --------------------------------------------------------------------------------------

NUMBERS = torch.from_numpy(ARRAYS["corrclip__label_map"].astype(np.int64))


@pytest.mark.parametrize("box", ["main", "rect"])
def test_tokens_of_corrclip(model: Model, backbone: Backbone, box: str) -> None:
    attention, key = CorrClip(), f"corrclip__{box}__"
    window = normalised(pixels(BOXES[box]), model)
    row, col, height, width = BOXES[box]
    given = NUMBERS[None, row : row + height, col : col + width]
    encoder = DenseEncoder(model.clip.visual, attention, backbone=backbone)
    found = encoder(window, None, given)
    assert largest(found.patches[0, ::7], ARRAYS[f"{key}tokens_s7"]) < TOKENS
    q, k, grid = backbone.queries_and_keys(window)
    unit = F.normalize(q + k, dim=-1)[0]
    coarse = nearest(given, grid).flatten()
    merged = attention.merged(coarse, unit)
    joined = [int(merged[coarse == number][0]) - 1 for number in torch.unique(coarse)[1:]]
    assert joined == ARRAYS[f"{key}merge_cluster"].tolist()
    rows = attention.weights(unit, merged)[::56]
    assert largest(rows, ARRAYS[f"{key}attention_rows_s2"]) < WEIGHTS


def test_corrclip_on_a_whole_image(model: Model, backbone: Backbone) -> None:
    """In windows of 200 every 100 pixels; what is padded is a region of its own there."""
    encoder = DenseEncoder(model.clip.visual, CorrClip(), backbone=backbone)
    total, seen = torch.zeros(14, 300, 260), torch.zeros(300, 260)
    pad = padding_to_patch(200, 200, 56)
    left, right, top, _ = pad
    for row in (0, 100):
        for col in (0, 60):
            image = F.pad(normalised(pixels((row, col, 200, 200)), model), pad)
            given = F.pad(NUMBERS[None, row : row + 200, col : col + 200], pad, value=10000)
            found = encoder(image, None, given)
            cosines = (F.normalize(found.patches, dim=-1) @ TEXT.T).mT.unflatten(2, found.grid)
            wide = F.interpolate(cosines, (224, 224), mode="bilinear")[0]
            total[:, row : row + 200, col : col + 200] += wide[:, top : top + 200, left:-right]
            seen[row : row + 200, col : col + 200] += 1
    mean = total / seen
    assert largest(mean[:, ::15, ::15], ARRAYS["corrclip__whole__logits_s15"]) < LOGITS
    best = mean.argmax(0)
    for number in torch.unique(NUMBERS)[1:]:
        inside = number == NUMBERS
        best[inside] = best[inside].bincount().argmax()
    assert (best.numpy() != ARRAYS["corrclip__whole__labels"]).sum() <= PIXELS


@pytest.fixture(scope="module")
def parcels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A scene with a hole, and a raster of parcels, some pixels of which lie in none."""
    folder = tmp_path_factory.mktemp("parcels")
    scene = write_scene(folder / "scene.tif", 150, 170, holes=[Window(20, 30, 30, 20)])
    rows, cols = np.indices((150, 170)) // 37
    numbers = ((1 + rows * 10 + cols) * 90_000_001 % (2**31 - 1)).astype(np.int32)
    numbers[40:70, 60:110] = 0
    with rasterio.open(scene) as like:
        profile = like.profile | {"count": 1, "dtype": "int32", "nodata": 0, "photometric": None}
    file = folder / "parcels.tif"
    with rasterio.open(file, "w", **{k: v for k, v in profile.items() if v is not None}) as out:
        out.write(numbers, 1)
    return scene, file


def corrclip(files: dict[str, str], parcels: Path, **more: Any) -> Options:
    return Options(
        attention="corrclip:backbone=tiny_dino", backbone_weights=files["tiny_dino"],
        templates="none", regions=str(parcels), region_agreement=1.0, **more,
    )  # fmt: skip


def test_corrclip_needs_regions_of_a_file(
    small: Model, files: dict[str, str], parcels: tuple[Path, Path], tmp_path: Path
) -> None:
    scene, file = parcels
    chosen = corrclip(files, file)
    bare = replace(chosen, regions=None, region_agreement=0.5)
    for options in (bare, replace(bare, regions="superpixels")):
        with pytest.raises(OptionError, match="give --regions FILE"):
            Segmenter(small, WORDS, options)
    with pytest.raises(OptionError, match="take hflip or d4"):
        Segmenter(small, WORDS, replace(chosen, views="itaclip"))
    with pytest.raises(OptionError, match=r"reads regions.*take another|give --regions FILE"):
        geoseg.features(scene, model=small, options=chosen)
    with pytest.raises(OptionError, match=r"regions"):
        geoseg.encode(scene, tmp_path / "s.store", model=small, options=chosen)
