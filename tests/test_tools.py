"""The scripts that make the bundled model do what they say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")

import open_clip  # noqa: E402

from geoseg.inference.segmenter import Segmenter  # noqa: E402
from geoseg.model.attention.last_block import Naclip, SegEarth  # noqa: E402
from geoseg.model.loading import load_model  # noqa: E402
from geoseg.model.upsampling.learned import LearnedJbu  # noqa: E402
from geoseg.model.vision import DenseEncoder  # noqa: E402
from geoseg.options import Options  # noqa: E402
from tools import export_tiny, phrases, prune_tiny, train_tiny, train_upsampler  # noqa: E402
from tools.crops import CropSampler, patch_shares  # noqa: E402
from tools.evaluate_tiny import held_out_scenes, measure  # noqa: E402
from tools.scenes import HELD_OUT_WORDS, WORDS, Cover, class_names, draw_scene  # noqa: E402
from tools.scenes.landscapes import LANDSCAPES  # noqa: E402
from tools.scenes.palette import HELD_OUT_REGIONS, TRAINING_REGIONS  # noqa: E402
from tools.scenes.pool import ScenePool  # noqa: E402
from tools.text_distill import encode_short  # noqa: E402
from tools.tiny_model import (  # noqa: E402
    build,
    model_config,
    normalise,
    read_checkpoint,
    restore,
)

SMALL = {"image_size": 32, "width": 32, "layers": 2, "head_width": 16}
BUNDLED = export_tiny.FOLDER


@pytest.fixture(scope="module")
def small_clip():
    torch.manual_seed(3)
    return build(model_config(SMALL)).eval()


# -- scenes


def test_a_seed_fixes_every_pixel() -> None:
    first, again = draw_scene(7, 96), draw_scene(7, 96)
    np.testing.assert_array_equal(first.picture, again.picture)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not np.array_equal(first.picture, draw_scene(8, 96).picture)


@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_every_landscape_is_drawn_at_both_ends_of_its_range(landscape: str) -> None:
    for gsd_m in LANDSCAPES[landscape].gsd_m:
        scene = draw_scene(11, 128, landscape=landscape, gsd_m=gsd_m)
        assert scene.picture.shape == (128, 128, 3)
        assert scene.picture.dtype == np.uint8
        assert scene.bands.shape == (128, 128, 4)
        assert scene.picture.std() > 1
        assert set(np.unique(scene.labels)) <= set(Cover)


def test_held_out_scenes_share_neither_seeds_nor_palettes_with_training() -> None:
    assert not set(HELD_OUT_REGIONS) & set(TRAINING_REGIONS)
    train, held_out = draw_scene(5, 96), draw_scene(5, 96, split="held-out")
    assert held_out.region in HELD_OUT_REGIONS
    assert train.region in TRAINING_REGIONS
    assert not np.array_equal(train.labels, held_out.labels)


def test_every_class_occurs_among_few_scenes() -> None:
    seen = np.zeros(len(Cover), bool)
    for seed, landscape in enumerate([*LANDSCAPES] * 3):
        seen[np.unique(draw_scene(seed, 256, landscape=landscape).labels)] = True
    assert seen.all(), [c.name for c in Cover if not seen[c]]


def test_vegetation_is_bright_in_infrared_and_water_dark() -> None:
    wet, green = [], []
    for seed in range(6):
        scene = draw_scene(seed, 128, landscape="lakes", region="temperate")
        nir = scene.bands[..., 3]
        wet.append(nir[scene.labels == Cover.WATER].mean())
        green.append(nir[scene.labels == Cover.TREE].mean())
    assert np.nanmean(wet) < 0.5 * np.nanmean(green)


def test_grey_and_false_colour_renderings() -> None:
    grey = draw_scene(3, 96, rendering="grey", landscape="woods").picture.astype(int)
    assert np.abs(grey[..., 0] - grey[..., 2]).mean() < 2
    false = draw_scene(3, 96, rendering="false-colour", landscape="woods", region="tropical")
    woods = false.picture[false.labels == Cover.TREE].mean(0)
    assert woods[0] > woods[1]


# -- words


def test_held_out_words_are_never_shown_in_training() -> None:
    known = {word for words in WORDS.values() for word in words}
    held_out = [word for words in HELD_OUT_WORDS.values() for word in words]
    assert len(held_out) == len(set(held_out)) >= 60
    assert not known & set(held_out)
    assert not set(phrases.phrases()) & set(held_out)
    assert set(WORDS) == set(HELD_OUT_WORDS) == set(Cover)


def test_short_text_encoding_equals_open_clips(small_clip) -> None:
    tokens = open_clip.tokenizer.SimpleTokenizer()(
        ["a lake", "an aerial photo of the dense forest."]
    )
    with torch.no_grad():
        short, full = encode_short(small_clip, tokens), small_clip.encode_text(tokens)
    torch.testing.assert_close(short, full, atol=1e-5, rtol=0)


# -- training


def test_patch_shares_count_pixels() -> None:
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, 0, 2:] = Cover.WATER
    shares = patch_shares(labels, 2)
    assert shares.shape == (1, 4, len(Cover))
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 4))
    assert shares[0, 1, Cover.WATER] == 0.5
    assert shares[0, 0, Cover.BUILDING] == 1


def test_crops_keep_labels_on_their_pixels() -> None:
    pool = ScenePool(2, size=96)
    pool.fill(2)
    pool.pictures[:] = pool.labels[..., None] * 16
    pictures, labels = CropSampler(pool, seed=0, scales=(1.0, 1.0)).with_labels(8, 48)
    for picture, label in zip(pictures.numpy(), labels.numpy(), strict=True):
        # Brightness is jittered by one table a band: equal labels stay equal.
        for value in np.unique(label):
            assert len(np.unique(picture[label == value][:, 0])) == 1


def test_a_pool_renews_its_oldest_scene_and_reads_its_cache(tmp_path: Path) -> None:
    pool = ScenePool(2, size=64)
    pool.fill(2, tmp_path / "scenes.npz")
    kept = pool.labels[1].copy()
    pool.renew()
    np.testing.assert_array_equal(pool.labels[1], kept)
    np.testing.assert_array_equal(pool.labels[0], draw_scene(2, 64).labels)
    again = ScenePool(2, size=64)
    again.fill(2, tmp_path / "scenes.npz")
    np.testing.assert_array_equal(again.labels[1], kept)


@pytest.mark.parametrize("attention", [SegEarth(), Naclip()])
def test_training_forward_equals_inference(small_clip, attention: SegEarth | Naclip) -> None:
    encoder = DenseEncoder(small_clip.visual, attention)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trained, used = train_tiny.forward(encoder, images, attention), encoder(images)
        plain = small_clip.encode_image(images)
    torch.testing.assert_close(trained.patches, used.patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.bias, used.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.cls, plain, atol=1e-5, rtol=0)


def test_pruning_takes_the_units_that_are_missed_least() -> None:
    """Copies of other units, and constant ones, go first and are made up for to the last digit."""
    random = torch.Generator().manual_seed(0)
    own = torch.randn(500, 6, generator=random)
    activations = torch.cat([own, own[:, :3] + own[:, 3:], torch.ones(500, 1)], 1)
    weight, bias = torch.randn(4, 10, generator=random), torch.randn(4, generator=random)
    expected = activations @ weight.T + bias
    chosen, fewer, shift, lost = prune_tiny.fewer_units(activations, weight, bias, 6)
    assert 9 not in chosen
    assert lost < 1e-4
    found = activations[:, chosen] @ fewer.T + shift
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    *_, lost = prune_tiny.fewer_units(activations, weight, bias, 4)
    assert 0.01 < lost < 1


def test_a_pruned_checkpoint_is_a_narrower_model(small_clip, tmp_path: Path) -> None:
    config = model_config(SMALL)
    saved = {"config": config, "state_dict": build(config).state_dict()}
    width = config["vision_cfg"]["width"]
    pool = ScenePool(2, size=256)
    pool.fill(2)
    prune_tiny.prune(saved, 2.0, pool, batches=2, seed=0)
    narrow = build(saved["config"])
    narrow.load_state_dict(saved["state_dict"])
    assert narrow.visual.transformer.resblocks[0].mlp.c_fc.out_features == 2 * width


def ready_to_train(scenes: int) -> tuple[dict[str, Any], open_clip.CLIP, ScenePool]:
    torch.manual_seed(0)
    config = model_config(SMALL)
    model = build(config)
    train_tiny.prepare(model)
    pool = ScenePool(scenes, size=96)
    pool.fill(scenes)
    return config, model, pool


@pytest.mark.slow
def test_a_short_training_lowers_the_loss_and_exports(tmp_path: Path) -> None:
    config, model, pool = ready_to_train(scenes=6)
    sampler = CropSampler(pool, 0)
    bank = train_tiny.TextBank(model, 0)
    attention = Naclip()
    encoder = DenseEncoder(model.visual, attention)
    optimizers = train_tiny.Optimizers(model, 3e-3)
    losses = []
    for _ in range(60):
        batch = sampler.batch(8, 32, 8)
        out = train_tiny.forward(encoder, normalise(batch.pictures), attention)
        scale = model.logit_scale.exp()
        loss, parts = train_tiny.dense_loss(
            out, batch, bank.draw(), scale, train_tiny.Weights(), subtract=False
        )
        optimizers.step(loss, 1.0)
        losses.append(parts["patch"])
    assert np.mean(losses[-10:]) < np.mean(losses[:10])

    checkpoint = tmp_path / "tiny.pt"
    torch.save(
        {"config": config, "state_dict": model.state_dict(), "facts": {"steps": 60}}, checkpoint
    )
    export_tiny.export([checkpoint], tmp_path / "model")
    again = load_model(f"local-dir:{tmp_path / 'model'}", device="cpu")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            again.clip.visual(images), model.visual.eval()(images), atol=2e-2, rtol=0
        )
    assert json.loads((tmp_path / "model" / "geoseg.json").read_text())["card"]["trained_with"]


@pytest.mark.slow
def test_a_pruned_tower_learns_to_see_as_its_teacher() -> None:
    config, teacher, pool = ready_to_train(scenes=4)
    saved = {"config": copy.deepcopy(config), "state_dict": copy.deepcopy(teacher.state_dict())}
    prune_tiny.prune(saved, 0.5, pool, batches=2, seed=0)
    student = restore(saved)
    train_tiny.prepare(student)
    student.load_state_dict(saved["state_dict"])
    attention = Naclip()
    towers = [DenseEncoder(model.visual, attention) for model in (student, teacher)]
    sampler, optimizers = CropSampler(pool, 0), train_tiny.Optimizers(student, 2e-3)
    unlike = []
    for _ in range(40):
        pictures = normalise(sampler.batch(6, 32, 8).pictures)
        out = train_tiny.forward(towers[0], pictures, attention)
        with torch.no_grad():
            wanted = train_tiny.forward(towers[1], pictures, attention)
        loss, parts = train_tiny.likeness_loss(out, wanted)
        optimizers.step(loss, 1.0)
        unlike.append(parts["patches"])
    assert np.mean(unlike[-5:]) < 0.7 * np.mean(unlike[:2])
    same, parts = train_tiny.likeness_loss(wanted, wanted)
    assert same.item() == pytest.approx(0, abs=1e-5)
    assert set(parts) == {"patches", "bias", "cls"}


def test_several_checkpoints_are_read_as_the_mean_of_their_weights(tmp_path: Path) -> None:
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for steps, file in zip((1, 2), files, strict=True):
        state = {"w": torch.full((2,), float(steps))}
        torch.save({"config": {}, "state_dict": state, "facts": {"steps": steps}}, file)
    mean = read_checkpoint(files)
    assert mean["state_dict"]["w"].tolist() == [1.5, 1.5]
    assert mean["facts"] == {"steps": 2}


# -- upsampler


def test_trained_upsampler_is_the_one_geoseg_reads(tmp_path: Path) -> None:
    torch.manual_seed(1)
    upsampler = train_upsampler.JbuOne(channels=16).eval()
    torch.nn.init.normal_(upsampler.fixup_proj[1].weight, std=0.3)
    torch.nn.init.normal_(upsampler.fixup_proj[1].bias, std=0.3)
    train_upsampler.save(upsampler, tmp_path / "simfeatup.pt")
    state = torch.load(tmp_path / "simfeatup.pt", weights_only=True)["state_dict"]
    assert "upsampler.up.range_temp" in state
    read = LearnedJbu(state, source="simfeatup.pt")
    tokens, guidance = torch.randn(1, 16, 8, 8), torch.randn(1, 3, 64, 64)
    folded, constant = read.fold(tokens.flatten(2).transpose(1, 2))
    grid = folded.transpose(1, 2).reshape(1, 16, 8, 8)
    with torch.no_grad():
        expected = upsampler(tokens, guidance, torch.eye(16)).permute(0, 2, 3, 1)
        found = read.operator(guidance, (8, 8))(grid) + constant
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


# -- the bundled model

bundled = pytest.mark.skipif(
    not (BUNDLED / "open_clip_model.safetensors").is_file(), reason="no bundled model"
)


@bundled
def test_open_clip_loads_the_bundled_folder_by_itself() -> None:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{BUNDLED}")
    assert preprocess is not None
    text = open_clip.get_tokenizer(f"local-dir:{BUNDLED}")(["a lake"])
    with torch.no_grad():
        assert model.encode_text(text).shape == (1, 128)
        assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 128, 128))).all()


@bundled
def test_bundled_files_are_complete_and_small() -> None:
    names = {file.name for file in BUNDLED.iterdir()}
    assert {
        "open_clip_config.json", "open_clip_model.safetensors", "geoseg.json", "simfeatup.pt",
        "MODEL_CARD.md",
    } <= names  # fmt: skip
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 25e6
    card = json.loads((BUNDLED / "geoseg.json").read_text())["card"]
    assert card["licence"] == "Apache-2.0"


@bundled
@pytest.mark.slow
def test_bundled_model_beats_the_commonest_class_twofold() -> None:
    segmenter = Segmenter(
        load_model("geoseg-tiny", device="cpu"),
        ";".join(", ".join(words[:3]) for words in WORDS.values()),
        Options(templates="none", upsampler="none"),
    )
    pairs = ((s.picture, s.labels) for s in held_out_scenes(16, size=256))
    scores = measure(segmenter, pairs)
    assert scores.miou > 2 * scores.baseline_miou


@bundled
@pytest.mark.slow
def test_bundled_text_tower_understands_unseen_words() -> None:
    from tools.text_distill import embedder, word_test

    clip = load_model("geoseg-tiny", device="cpu").clip
    right, total, misses = word_test(embedder(clip, ("{}", "an aerial photo of {}.")))
    assert right / total >= 0.7, misses


def test_class_names_are_the_first_words() -> None:
    assert class_names()[Cover.POOL] == "swimming pool"
    assert len(class_names()) == len(Cover)
