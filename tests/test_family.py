"""Attentions of the family against the released programs' numbers, and against their formulas.

`tests/goldens/family/README.md` says where the arrays come from and which tolerances they suggest.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from geoseg import dense, methods
from geoseg.errors import GeosegWarning, OptionError, VocabularyError
from geoseg.inference.network import NetworkSegmenter
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.views import blurred, grey
from geoseg.model.attention import trunk
from geoseg.model.attention.resclip import ResClip, paths
from geoseg.model.attention.scclip import ScClip
from geoseg.model.attention.trunk import Context, Trunk, Words
from geoseg.model.loading import Model, load_model
from geoseg.model.vision import DenseEncoder, DenseFeatures
from geoseg.options import Options
from geoseg.testing import drawn_rgb, tiny_random_model, write_scene
from geoseg.text.vocabulary import Vocabulary
from geoseg.types import PixelBlock, Window

GOLDENS = Path(__file__).resolve().parent / "goldens"
FAMILY = GOLDENS / "family"
SCENE = Path(__file__).resolve().parents[2] / "shared" / "goldens_scene"
ARRAYS = np.load(FAMILY / "arrays.npz")
BOXES = json.loads((GOLDENS / "cases.json").read_text())["boxes"]
TOKENS, LOGITS, SCORES, FEEDBACK, FACTOR, PIXELS = 1e-4, 2e-5, 1e-4, 1e-5, 5e-4, 10
CLASSES = GOLDENS / "classes_a.txt"

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of twelve blocks as a folder in open_clip's local-dir format."""
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


def pixels(box: str) -> npt.NDArray[np.uint8]:
    row, col, height, width = BOXES[box]
    whole = np.asarray(Image.open(GOLDENS / "structured_300x260.png"))
    return whole[row : row + height, col : col + width]


def normalised(rgb: npt.NDArray[np.uint8], model: Model) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    scaled = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float() / 255
    return ((scaled - mean) / std)[None]


def encoded(model: Model, attention: str, box: str, words: Words | None = None) -> DenseFeatures:
    made = methods.resolve(methods.ATTENTIONS, attention)
    if words is None:
        text = torch.from_numpy(ARRAYS["text__query_features"])
        words = Words(text, torch.ones(len(text), dtype=torch.bool))
    return DenseEncoder(model.clip.visual, made)(normalised(pixels(box), model), words)


def largest(found: Tensor | Array, wanted: Array) -> float:
    difference = np.asarray(found, dtype=np.float64) - wanted
    assert difference.shape == wanted.shape
    return float(np.abs(difference).max())


# -- against the released programs ---------------------------------------------------------------

RESCLIP = {
    "main__default": "resclip",
    "rect__default": "resclip",
    "main__other": "resclip:std=2,threshold=0.5,strength=1.5,weight=0.6,feedback_strength=2.2,"
    "feedback_weight=0.6,scale=60,decay=no",
    "main__rcs_only": "resclip:feedback=no",
    "main__sfr_only": "resclip:weight=0,threshold=0.28",
    "main__sclip_base": "resclip:base=sclip,residual=yes,ffn=yes,threshold=0.4",
    "main__clearclip_base": "resclip:base=clearclip,threshold=0.48",
}
SCCLIP = {
    "main__default": "scclip",
    "rect__default": "scclip",
    "main__other": "scclip:middle=6,post=3,fused=5+6+7+8,cls_weight=0.1",
}
CASES = [
    *(("resclip", case, text) for case, text in RESCLIP.items()),
    *(("scclip", case, text) for case, text in SCCLIP.items()),
    *((name, box, name) for name in ("itaclip", "cliptrase") for box in ("main", "rect")),
]


@pytest.mark.parametrize(("name", "case", "attention"), CASES)
def test_tokens_are_those_of_the_released_program(
    model: Model, name: str, case: str, attention: str
) -> None:
    found = encoded(model, attention, case.partition("__")[0])
    key = f"{name}__{case}__"
    assert largest(found.patches[0, ::2], ARRAYS[f"{key}tokens_s2"]) < TOKENS
    if f"{key}cls" in ARRAYS:
        assert largest(found.cls[0], ARRAYS[f"{key}cls"]) < TOKENS
    if f"{key}token_logits" in ARRAYS:
        cosines = (
            F.normalize(found.patches[0], dim=-1)
            @ torch.from_numpy(ARRAYS["text__query_features"]).T
        )
        assert largest(cosines, ARRAYS[f"{key}token_logits"]) < LOGITS


@pytest.mark.parametrize("box", ["main", "rect"])
def test_stages_of_resclips_feedback(model: Model, box: str) -> None:
    text = torch.from_numpy(ARRAYS["text__query_features"])
    words = Words(text, torch.ones(len(text), dtype=torch.bool))
    image, attention = normalised(pixels(box), model), ResClip()
    first = DenseEncoder(model.clip.visual, ResClip(feedback=False))(image)
    labels = attention.first_labels(first.patches, Context(first.grid, image), words)
    wanted = ARRAYS[f"resclip__{box}__default__patch_labels"]
    assert np.array_equal(labels[0].view(first.grid).numpy(), wanted)
    straight = np.unpackbits(ARRAYS[f"resclip__{box}__path_bits"])[: labels.shape[1] ** 2]
    assert np.array_equal(paths(labels, first.grid)[0][0].flatten().numpy(), straight)
    if box == "rect":
        found = attention.feedback_map(labels, first.grid)[0]
        assert largest(found, ARRAYS["resclip__rect__sfr"]) < FEEDBACK


def test_outliers_are_those_of_the_released_program(model: Model) -> None:
    encoder = DenseEncoder(model.clip.visual, ScClip())
    x, _ = encoder.stem(normalised(pixels("main"), model))
    walker = Trunk(model.clip.visual)
    with torch.no_grad():
        for block in walker.blocks[:-1]:
            x = walker.ordinary(block, x)
        factor = ScClip().factor(x[:, 1:])[0]
        bad = ScClip().outlying(x[:, 1:])[0]
    assert largest(factor, ARRAYS["scclip__main__default__lof"]) < FACTOR
    assert bad.nonzero().flatten().tolist() == ARRAYS["scclip__main__default__outliers"].tolist()


CLIPER = {"main": "cliper", "rect": "cliper", "main_thr": "cliper:scale=50,cut=0.5"}


@pytest.mark.parametrize("case", CLIPER)
def test_scores_of_cliper(model: Model, case: str) -> None:
    text = torch.from_numpy(ARRAYS["cliper__text"])
    words = Words(text, torch.arange(len(text)) < 9)
    found = encoded(model, CLIPER[case], case[:4], words)
    assert found.scores is not None
    planes = found.scores[0].T.reshape(-1, *found.grid)[:9]
    assert largest(planes, ARRAYS[f"cliper__{case}__seg"]) < SCORES
    assert not found.cls.any()


@functools.cache
def class_of_query() -> list[int]:
    return Vocabulary.parse(CLASSES).query_classes.tolist()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("resclip", "resclip__main__default"),
        ("scclip", "scclip__main__default"),
    ],
)
def test_its_name_alone_gives_the_released_programs_labels(
    spec: str, tmp_path: Path, name: str, key: str
) -> None:
    """From the command line, over one window."""
    import rasterio
    from typer.testing import CliRunner

    from geoseg_cli.main import app

    scene = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "height": 224, "width": 224, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        scene, "w", crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6), **profile
    ) as out:
        out.write(pixels("main").transpose(2, 0, 1))
    given = [
        *("segment", scene, "--classes", CLASSES, "--out", tmp_path / "out", "--model", spec),
        *("--device", "cpu", "--attention", name, "--upsampler", "none", "--cls-bias", 0),
        *("--polygons", "none"),
    ]
    result = CliRunner().invoke(app, [str(each) for each in given])
    assert result.exit_code == 0, result.output
    tokens = torch.from_numpy(ARRAYS[f"{key}__token_logits"]).T.reshape(1, -1, 14, 14)
    best = F.interpolate(tokens, (224, 224), mode="bilinear")[0].argmax(0)
    wanted = torch.tensor(class_of_query())[best].numpy()
    with rasterio.open(tmp_path / "out" / "labels.tif") as labels:
        assert (labels.read(1) != wanted).sum() <= PIXELS


# -- ITACLIP's views and texts ---------------------------------------------------------------------

DEFINITIONS = (
    "everything that is not named", "bare earth without plants",
    "short green plants on the ground", "a hard surface for walking", "a way for vehicles",
    "a tall plant with a wooden trunk", "a clear liquid in lakes and seas",
    "land where food is grown", "a structure with walls and a top",
)  # fmt: skip
ITACLIP = {
    "attention": "itaclip", "views": "itaclip", "vocabulary_steps": "describe:unit=no",
    "upsampler": "none", "cls_bias": 0, "window": 224, "stride": 28, "blend": "uniform",
    "logit_scale": 40,
}  # fmt: skip


def described(skipped: int = 0) -> Vocabulary:
    """The classes with their definitions, but for the first so many."""
    plain = Vocabulary.parse(CLASSES)
    pairs = zip(plain.classes[skipped:], DEFINITIONS[skipped:], strict=True)
    rest = tuple(replace(one, descriptions=(text,)) for one, text in pairs)
    return Vocabulary((*plain.classes[:skipped], *rest))


def test_descriptions_are_mixed_into_the_words(model: Model) -> None:
    mixed = Segmenter(model, described(), ITACLIP).text_embeddings
    assert largest(mixed, ARRAYS["itaclip__text__mixed"]) < LOGITS
    some = ITACLIP | {"vocabulary_steps": "describe:share=0.05,unit=no"}
    found = Segmenter(model, described(skipped=1), some).text_embeddings
    assert largest(found, ARRAYS["itaclip__text__mixed_bg"]) < LOGITS
    unit = Segmenter(model, described(), ITACLIP | {"vocabulary_steps": "describe"})
    lengths = np.linalg.norm(unit.text_embeddings, axis=1)
    assert largest(lengths, np.ones(len(lengths))) < LOGITS


def test_no_share_leaves_the_words_bit_for_bit(model: Model) -> None:
    none = Segmenter(model, described(), Options(vocabulary_steps="describe:share=0"))
    plain = Segmenter(model, CLASSES, Options())
    assert np.array_equal(none.text_embeddings, plain.text_embeddings)


def test_descriptions_that_nobody_reads_are_told(model: Model) -> None:
    with pytest.warns(GeosegWarning, match="--vocabulary-step describe"):
        Segmenter(model, described(), Options())
    with pytest.raises(OptionError, match="into the class file"):
        Segmenter(model, CLASSES, Options(vocabulary_steps="describe"))


def test_descriptions_are_written_and_read_back(tmp_path: Path) -> None:
    file = described().save(tmp_path / "classes.toml")
    assert Vocabulary.parse(file) == described()
    (tmp_path / "c.csv").write_text("name,description\nroad,a way for vehicles\nwater,\n")
    found = Vocabulary.parse(tmp_path / "c.csv")
    assert [one.descriptions for one in found.classes] == [("a way for vehicles",), ()]
    (tmp_path / "wrong.toml").write_text('[[class]]\nname = "a"\ndescriptions = "b"\n')
    with pytest.raises(VocabularyError, match="descriptions must be a list of strings"):
        Vocabulary.parse(tmp_path / "wrong.toml")


@pytest.mark.parametrize(("box", "share"), [("rect", 0.75), ("main", 0.7)])
def test_views_of_itaclip(model: Model, box: str, share: float) -> None:
    segmenter = Segmenter(model, described(), ITACLIP | {"views": f"itaclip:share={share}"})
    image = normalised(pixels(box), model)
    found = segmenter.window_logits(image)[0].permute(2, 0, 1)
    assert largest(found[:, ::5, ::5], ARRAYS[f"itaclip__{box}__logits_{share}_s5"]) < LOGITS
    if box == "main":
        assert largest(grey(image)[0, 0, ::5, ::5], ARRAYS["itaclip__main__gray_s5"]) < LOGITS
        assert largest(blurred(image)[0, :, ::5, ::5], ARRAYS["itaclip__main__blur_s5"]) < LOGITS


@pytest.mark.parametrize("shape", [(1, 1), (4, 60), (60, 5)])
def test_scenes_of_a_few_pixels_are_blurred_too(shape: tuple[int, int]) -> None:
    found = blurred(torch.full((1, 3, *shape), 0.25))
    assert torch.allclose(found, torch.full((1, 3, *shape), 0.25))


def test_all_of_itaclip_on_a_whole_image(model: Model) -> None:
    image = np.asarray(Image.open(GOLDENS / "structured_300x260.png"))
    block = PixelBlock(
        np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255,
        np.ones(image.shape[:2], dtype=bool),
    )
    averaged = Segmenter(model, described(), ITACLIP).logits(block)
    assert largest(averaged[:, ::15, ::15], ARRAYS["itaclip__whole__logits_s15"]) < LOGITS
    refined = Segmenter(model, described(), ITACLIP | {"refine": "pamr:dilations=8+16"})
    logits = refined.logits(block)
    assert largest(logits[:, ::15, ::15], ARRAYS["itaclip__whole__pamr_logits_s15"]) < SCORES
    wrong = refined.decide(logits).labels != ARRAYS["itaclip__whole__plain__labels_before_closing"]
    assert wrong.sum() <= PIXELS


def test_grey_views_are_for_models_of_words() -> None:
    def scores(rgb: Any) -> Any:
        return rgb[:, :2]

    with pytest.raises(OptionError, match="take hflip or d4"):
        NetworkSegmenter(scores, "a; b", Options(views="itaclip"))


# -- against the larger set, where it is present -------------------------------------------------

SCENE_BOXES = {
    "main": (112, 96, 224, 224), "rect": (40, 60, 208, 160), "native": (200, 220, 64, 64),
    "whole": (0, 0, 448, 448),
}  # fmt: skip
RCS = {"coninfer": "segearth-rcs", "sclip": "sclip-rcs", "clearclip": "clearclip-rcs"}


def scene_cases() -> list[tuple[str, str, str]]:
    """Archive, array and attention; none where the set is absent: then their tests skip."""
    found = []
    for archive in ("coninfer.npz", "pearl_pa.npz"):
        file = SCENE / archive
        for array in np.load(file).files if file.is_file() else []:
            parts = array.split("__")
            if parts[-1] != "tokens" or len(parts) < 3:
                continue
            kept = ",residual=yes,ffn=yes" if "res" in parts else ""
            if archive == "coninfer.npz" and parts[1] in RCS:
                text = f"{RCS[parts[1]]}:weight={parts[2][1:]}{kept}"
            elif archive == "pearl_pa.npz":
                steps = 5 if "ns5" in parts[1] else 0
                own = ",own=0" if "nokk" in parts[1] else ""
                text = f"pearl:steps={steps}{own}{kept}"
            else:
                continue
            found.append((archive, array, text))
    return found


@pytest.fixture(scope="module")
def scene_tower() -> Any:
    config = json.loads((SCENE / "clip_j.json").read_text())
    clip = open_clip.CLIP(**config)
    state = load_file(SCENE / "clip_j.safetensors")
    clip.load_state_dict({k: v.float() for k, v in state.items()})
    return clip.eval().visual


@pytest.mark.parametrize(("archive", "array", "attention"), scene_cases())
def test_tokens_of_the_larger_set(
    scene_tower: Any, model: Model, archive: str, array: str, attention: str
) -> None:
    arrays = np.load(SCENE / archive)
    row, col, height, width = SCENE_BOXES[array.split("__")[0]]
    image = np.load(SCENE / "images.npz")["scene_448x448"]
    window = normalised(image[row : row + height, col : col + width], model)
    found = DenseEncoder(scene_tower, methods.resolve(methods.ATTENTIONS, attention))(window)
    assert largest(found.patches[0], arrays[array]) < TOKENS
    if (cls := array.replace("tokens", "cls")) in arrays.files:
        assert largest(found.cls[0], arrays[cls]) < TOKENS


# -- against their formulas, in every clone ------------------------------------------------------


def maps_of(model: Model, image: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Tokens before the last block, ordinary attention of all blocks, and the last one's q, k, v.

    From open_clip's own blocks and PyTorch's own attention.
    """
    visual, maps = model.clip.visual, []
    x, _ = DenseEncoder(visual, ResClip()).stem(image)
    for block in visual.transformer.resblocks[:-1]:
        y = block.ln_1(x)
        maps.append(block.attn(y, y, y, average_attn_weights=False)[1])
        x = block(x)
    attn = visual.transformer.resblocks[-1].attn
    y = visual.transformer.resblocks[-1].ln_1(x)
    qkv = F.linear(y, attn.in_proj_weight, attn.in_proj_bias)
    return x, maps, qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)


def through(model: Model, weights: Tensor, value: Tensor) -> Tensor:
    visual = model.clip.visual
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    out = visual.transformer.resblocks[-1].attn.out_proj(mixed)
    return visual.ln_post(out) @ visual.proj


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Five blocks: those named by a model of twelve lie elsewhere."""
    return load_model(tiny_random_model(tmp_path_factory.mktemp("small"), layers=5), device="cpu")


@torch.no_grad()
def test_middle_blocks_are_their_formula(small: Model) -> None:
    image = torch.rand(2, 3, 64, 96)
    _, maps, (q, k, v) = maps_of(small, image)
    scale = q.shape[-1] ** -0.5

    def own(a: Tensor) -> Tensor:
        return (scale * a @ a.mT).softmax(-1)

    blocks = [1, 2, 3, 4]  # 2, 5, 8 and 11 of 12
    middle = sum(maps[n - 1] for n in blocks)
    for name, base in (
        ("segearth-rcs", own(q) + own(k) + own(v)),
        ("sclip-rcs", own(q) + own(k)),
        ("clearclip-rcs", own(q)),
    ):
        expected = through(small, 3 * (0.4 * base + 0.6 * middle), v)
        made = methods.resolve(methods.ATTENTIONS, name)
        found = DenseEncoder(small.clip.visual, made)(image)
        torch.testing.assert_close(found.cls, expected[:, 0])
        torch.testing.assert_close(found.patches, expected[:, 1:])


@torch.no_grad()
def test_pearl_is_its_formula(small: Model) -> None:
    image = torch.rand(1, 3, 96, 96)
    _, _, (q, k, v) = maps_of(small, image)
    weights = torch.empty(q.shape[1], q.shape[2], q.shape[2])
    for head in range(q.shape[1]):
        one, other = q[0, head].double(), k[0, head].double()
        share = one.norm(dim=1)
        share[0] = 0
        share = share / (share.sum() + 1e-6)
        centred = other - share @ other
        u, _, vt = np.linalg.svd((centred.T @ (one - share @ one)).numpy())
        turned = other @ torch.from_numpy(u @ vt)
        scores = (one @ turned.T + 0.08 * centred @ centred.T) * q.shape[-1] ** -0.5
        weights[head] = scores.softmax(-1)
    expected = through(small, weights, v)
    found = DenseEncoder(small.clip.visual, methods.resolve(methods.ATTENTIONS, "pearl"))(image)
    torch.testing.assert_close(found.patches, expected[:, 1:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_reattn_is_its_formula(small: Model) -> None:
    image = torch.rand(2, 3, 64, 64)
    visual = small.clip.visual
    _, maps, (_, _, v) = maps_of(small, image)
    states, (x, _) = [], DenseEncoder(visual, ResClip()).stem(image)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
        states.append(x[:, 1:])
    alike = [
        (s @ s.mT * s.shape[-1] ** -0.5).softmax(-1) for s in (states[3], states[3], states[3])
    ]
    middle = torch.stack([maps[n - 1] for n in (2, 3, 3, 4)])  # 6 to 9 of 12
    patches = middle[..., 1:, 1:] / middle[..., 1:, 1:].sum(-1, keepdim=True)
    weights = middle.mean(0)
    weights[..., 1:, 0] = 0
    weights[..., 1:, 1:] = 0.8 * patches.mean(0) + 0.2 * (sum(alike) / 3)[:, None]
    expected = through(small, weights, v)
    found = DenseEncoder(visual, methods.resolve(methods.ATTENTIONS, "reattn"))(image)
    torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.patches, expected[:, 1:], atol=1e-5, rtol=1e-4)


# -- what always holds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("segearth-rcs:weight=0", "segearth"),
        ("sclip-rcs:weight=0", "sclip"),
        ("clearclip-rcs:weight=0", "clearclip"),
        ("itaclip:weight=0,residual=no", "sclip"),
        ("resclip:weight=0,feedback=no", "naclip"),
        ("resclip:weight=0,feedback_weight=0", "naclip"),
        ("resclip:weight=0,feedback=no,base=clearclip", "clearclip"),
    ],
)
def test_without_strength_the_base_is_left_bit_for_bit(small: Model, text: str, base: str) -> None:
    image = torch.rand(2, 3, 64, 96)
    one, other = (
        DenseEncoder(small.clip.visual, methods.resolve(methods.ATTENTIONS, each))(image)
        for each in (text, base)
    )
    assert torch.equal(one.patches, other.patches)
    assert torch.equal(one.cls, other.cls)


@pytest.mark.parametrize("name", ["resclip", "pearl", "segearth-rcs", "reattn"])
def test_fused_calls_give_the_same(
    small: Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As on a GPU, and on processors whose products are left to PyTorch."""
    image = torch.rand(2, 3, 64, 96)
    segmenter = Segmenter(small, "a; b", Options(attention=name, templates="none"))
    found = []
    for own in (True, False):
        monkeypatch.setattr(trunk, "has_full_width", lambda value, own=own: own)
        found.append(segmenter.encode(image).patches)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


NEW = ["segearth-rcs", "itaclip", "resclip", "pearl", "scclip", "cliper", "reattn"]


@pytest.mark.parametrize("name", NEW)
def test_a_window_of_one_patch(small: Model, name: str) -> None:
    segmenter = Segmenter(small, "a; b", Options(attention=name, templates="none"))
    assert segmenter.encode(torch.rand(2, 3, 16, 16)).patches.isfinite().all()


def test_a_model_without_middle_blocks_is_told(tmp_path: Path) -> None:
    shallow = load_model(tiny_random_model(tmp_path, layers=1), device="cpu")
    for name in ("segearth-rcs", "resclip", "scclip", "cliper", "reattn"):
        with pytest.raises(OptionError, match="has one block"):
            Segmenter(shallow, "a; b", Options(attention=name, templates="none"))


@pytest.mark.parametrize("name", NEW)
def test_a_flat_window_has_features(small: Model, name: str) -> None:
    """Water, snow or nodata: all patches alike, no distance and no spread."""
    segmenter = Segmenter(small, "a; b", Options(attention=name, templates="none"))
    features = segmenter.encode(torch.zeros(1, 3, 64, 64))
    assert features.patches.isfinite().all()
    assert features.cls.isfinite().all()


def test_scores_take_the_place_of_cosines_with_every_upsampler(small: Model) -> None:
    rgb = drawn_rgb(Window(0, 0, 64, 64)).astype(np.float32) / 255
    block = PixelBlock(rgb, np.ones((64, 64), bool))
    found = {}
    for upsampler in ("none", "jbu"):
        chosen = Options(attention="cliper", upsampler=upsampler, templates="none", cls_bias=0.3)
        segmenter = Segmenter(small, "road; water; tree", chosen)
        found[upsampler] = segmenter.logits(block)
    window = normalised(np.round(255 * rgb.transpose(1, 2, 0)).astype(np.uint8), small)
    scores = segmenter.encode(window).scores
    assert scores is not None
    planes = F.interpolate(scores.mT.reshape(1, -1, 4, 4), (64, 64), mode="bilinear")[0]
    assert largest(found["none"], planes.numpy()) < SCORES
    assert found["jbu"].min() >= 0
    assert (found["jbu"].argmax(0) == planes.argmax(0).numpy()).mean() > 0.5


def test_features_of_no_words_have_no_first_labels(small: Model, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 64, 64)
    with pytest.raises(OptionError, match="feedback=no"):
        dense.features(scene, model=small, options={"attention": "resclip"})
    found = dense.features(scene, model=small, options={"attention": "resclip:feedback=no"})
    assert found.sizes["feature"] == small.embedding_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resclip:base=segearth", "naclip or sclip or clearclip"),
        ("resclip:weight=2", "weight is 2.0; give a number from 0 to 1"),
        ("resclip:std=0", "a number from 0.1 to 1000"),
        ("segearth-rcs:blocks=2+12", "blocks is 12; give a whole number from 1 to 11, several"),
        ("scclip:neighbours=0", "from 1 to 1000"),
        ("pearl:steps=-1", "a whole number from 0 to 100"),
        ("cliper:scale=nan", "scale is nan; give a number from"),
        ("reattn:late=0", "from 1 to 11"),
    ],
)
def test_what_cannot_be_is_named(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        methods.resolve(methods.ATTENTIONS, text)
