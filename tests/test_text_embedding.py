from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from geoseg import methods
from geoseg.errors import OptionError, VocabularyError, WeightsError
from geoseg.text.embedding import embed_queries
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary


class LetterEncoder:
    """A text encoder small enough to check by hand: letter codes in, sines of them out."""

    context_length = 40
    embedding_size = 5

    def __init__(self, fingerprint: str = "letters", scale: float = 1.0) -> None:
        self.fingerprint = fingerprint
        self.scale = scale
        self.encoded: list[int] = []

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [len(text) + 2 for text in texts]

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in enumerate(texts):
            codes = [ord(letter) for letter in text][: self.context_length - 2]
            tokens[row, 1 : 1 + len(codes)] = torch.tensor(codes)
        return tokens

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        self.encoded.append(len(tokens))
        places = torch.arange(tokens.shape[1], dtype=torch.float32)
        angles = tokens[:, :, None] * self.scale + places[:, None] * torch.arange(1.0, 6.0)
        return torch.sin(angles).sum(dim=1) * tokens.count_nonzero(dim=1)[:, None]


TEMPLATES = ("a photo of {}.", "{}", "an extremely long map of {}.")


def expected_row(encoder: LetterEncoder, query: str) -> np.ndarray:
    rows = []
    for template in TEMPLATES:
        vector = encoder.encode_text(encoder.tokenize([template.replace("{}", query)]))[0]
        rows.append((vector / vector.norm()).double().numpy())
    mean = np.mean(rows, axis=0)
    return mean / np.linalg.norm(mean)


def test_the_mean_of_unit_vectors_is_made_a_unit_vector() -> None:
    encoder = LetterEncoder()
    queries = ("road", "bare ground")

    embeddings = embed_queries(encoder, queries, TEMPLATES, cache_dir=None)

    assert embeddings.shape == (2, 5)
    assert embeddings.dtype == np.float32
    for row, query in zip(embeddings, queries, strict=True):
        np.testing.assert_allclose(row, expected_row(encoder, query), atol=1e-6)


def test_a_query_s_vector_depends_neither_on_its_company_nor_on_the_cache(tmp_path: Path) -> None:
    queries = ("road", "water", "bare ground")
    alone = [embed_queries(LetterEncoder(), [q], TEMPLATES, cache_dir=None)[0] for q in queries]

    first = embed_queries(LetterEncoder(), queries[1:], TEMPLATES, cache_dir=tmp_path)
    mixed = embed_queries(LetterEncoder(), queries, TEMPLATES, cache_dir=tmp_path)

    np.testing.assert_array_equal(mixed, np.stack(alone))
    np.testing.assert_array_equal(mixed[1:], first)


def test_calls_are_no_larger_than_the_batch_size() -> None:
    encoder = LetterEncoder()
    embed_queries(encoder, ["road", "water"], TEMPLATES, cache_dir=None, batch_size=2)
    assert encoder.encoded == [2, 1, 2, 1]


# --- The cache --------------------------------------------------------------------------------


def test_the_second_run_encodes_nothing(own_cache: Path) -> None:
    first = embed_queries(LetterEncoder(), ["road", "water"], TEMPLATES)
    encoder = LetterEncoder()
    second = embed_queries(encoder, ["water", "road"], TEMPLATES)

    assert encoder.encoded == []
    np.testing.assert_array_equal(second, first[::-1])
    assert len(list(own_cache.rglob("*.npz"))) == 2


def test_a_cached_vector_serves_its_own_weights_templates_and_words_only(tmp_path: Path) -> None:
    embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=tmp_path)

    for encoder, query, templates in (
        (LetterEncoder("other", scale=2.0), "road", TEMPLATES),
        (LetterEncoder(), "Road", TEMPLATES),
        (LetterEncoder(), "road", TEMPLATES[:2]),
        (LetterEncoder(), "road", TEMPLATES[::-1]),
    ):
        embedding = embed_queries(encoder, [query], templates, cache_dir=tmp_path)
        assert encoder.encoded
        fresh = embed_queries(encoder, [query], templates, cache_dir=None)
        np.testing.assert_array_equal(embedding, fresh)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "other"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    good = embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    data = bytearray(file.read_bytes())
    if damage == "flip":
        place = data.find(good[0].tobytes())
        assert place > 0
        data[place] ^= 1
    if damage == "other":
        np.savez(file, embedding=np.zeros((2, 2)))
    else:
        file.write_bytes(
            {"cut": data[: len(data) // 2], "flip": data, "empty": b"", "text": b"hello"}[damage]
        )

    encoder = LetterEncoder()
    np.testing.assert_array_equal(
        embed_queries(encoder, ["road"], TEMPLATES, cache_dir=tmp_path), good
    )
    assert encoder.encoded
    again = LetterEncoder()
    embed_queries(again, ["road"], TEMPLATES, cache_dir=tmp_path)
    assert again.encoded == []


BENT = {
    "nan": lambda entry: entry | {"embedding": np.full(5, np.nan, np.float32)},
    "infinite": lambda entry: entry | {"embedding": np.full(5, np.inf, np.float32)},
    "one not finite": lambda entry: entry | {"embedding": np.float32([np.nan, 1, 0, 0, 0])},
    "not unit": lambda entry: entry | {"embedding": entry["embedding"] * 2},
    "zero": lambda entry: entry | {"embedding": np.zeros(5, np.float32)},
    "longer": lambda entry: entry | {"embedding": np.float32([1, 0, 0, 0, 0, 0])},
    "shorter": lambda entry: entry | {"embedding": np.float32([1])},
    "other type": lambda entry: entry | {"embedding": entry["embedding"].astype(np.float64)},
    "text": lambda entry: entry | {"embedding": np.array("road")},
    "other words": lambda entry: entry | {"key": np.array(str(entry["key"]) + " ")},
    "no words": lambda entry: {"embedding": entry["embedding"]},
    "nothing": lambda entry: {"key": entry["key"]},
}  # fmt: skip


@pytest.mark.parametrize("how", BENT)
def test_an_entry_that_lies_is_made_again(tmp_path: Path, how: str) -> None:
    good = embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    with np.load(file) as archive:
        entry = dict(archive)
    np.savez(file, **BENT[how](entry))

    encoder = LetterEncoder()
    again = embed_queries(encoder, ["road"], TEMPLATES, cache_dir=tmp_path)
    np.testing.assert_array_equal(again, good)
    assert encoder.encoded
    with np.load(file) as archive:
        assert dict(archive).keys() == entry.keys()


@pytest.mark.parametrize("kind", ["array", "folder", "pipe", "pickle"])
def test_what_is_no_entry_is_made_again(tmp_path: Path, kind: str) -> None:
    good = embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    file.unlink()
    if kind == "array":
        with file.open("wb") as opened:
            np.save(opened, good[0])
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        np.savez(file, embedding=np.array([print], dtype=object), key=np.array("x"))
    again = embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=tmp_path)
    np.testing.assert_array_equal(again, good)


def test_an_entry_under_another_name_is_not_believed(tmp_path: Path) -> None:
    embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=tmp_path)
    (road,) = tmp_path.rglob("*.npz")
    good = embed_queries(LetterEncoder(), ["water"], TEMPLATES, cache_dir=tmp_path)
    (water,) = set(tmp_path.rglob("*.npz")) - {road}
    water.write_bytes(road.read_bytes())
    again = embed_queries(LetterEncoder(), ["water"], TEMPLATES, cache_dir=tmp_path)
    np.testing.assert_array_equal(again, good)


@pytest.mark.parametrize(
    "folder", ["~nosuchuser/x", "/dev/null", "/dev/null/x", "/proc/x", "/" + "a" * 5000]
)
def test_an_unusable_cache_is_no_cache(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOSEG_CACHE", folder)
    np.testing.assert_array_equal(
        embed_queries(LetterEncoder(), ["road"], TEMPLATES),
        embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=None),
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_text_tower_without_a_direction_is_refused(tmp_path: Path, value: float) -> None:
    class Broken(LetterEncoder):
        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().encode_text(tokens) * value

    with pytest.raises(WeightsError, match="no finite embedding for 'road'; its weights"):
        embed_queries(Broken(), ["road"], TEMPLATES, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


def test_a_text_tower_of_another_length_is_refused() -> None:
    class Longer(LetterEncoder):
        embedding_size = 6

    with pytest.raises(WeightsError, match="gives 5 numbers for 'road' and its image tower 6"):
        embed_queries(Longer(), ["road"], TEMPLATES, cache_dir=None)


def test_hidden_words_are_clean_too() -> None:
    step = methods.resolve(methods.VOCABULARY_STEPS, "contrast:words= cloud  cover +shadow")
    assert step.words == ("cloud cover", "shadow")
    for word in ("a\x07b", "a\ud800", "\uffff", "a" * 1001):
        with pytest.raises(OptionError, match="contrast: "):
            methods.resolve(methods.VOCABULARY_STEPS, f"contrast:words=cloud+{word}")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")

    embeddings = embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=blocked)

    np.testing.assert_array_equal(
        embeddings, embed_queries(LetterEncoder(), ["road"], TEMPLATES, cache_dir=None)
    )
    assert blocked.read_text() == "not a folder"


def test_no_half_written_file_is_left(own_cache: Path) -> None:
    embed_queries(LetterEncoder(), ["road"], TEMPLATES)
    files = [path.name for path in own_cache.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert not files[0].startswith(".")


def test_the_cache_lies_where_the_user_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEOSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    embed_queries(LetterEncoder(), ["road"], TEMPLATES)
    assert list((tmp_path / "xdg" / "geoseg").rglob("*.npz"))

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    embed_queries(LetterEncoder(), ["road"], TEMPLATES)
    assert list((tmp_path / "home" / ".cache" / "geoseg").rglob("*.npz"))


# --- Too long ---------------------------------------------------------------------------------


def test_a_query_that_would_be_cut_is_refused_before_anything_is_encoded() -> None:
    encoder = LetterEncoder()
    longest = encoder.context_length - 2 - len("an extremely long map of .")

    embed_queries(encoder, ["x" * longest], TEMPLATES, cache_dir=None)
    encoder.encoded.clear()
    with pytest.raises(
        VocabularyError,
        match=rf"'{'x' * (longest + 1)}' is too long: it has {longest + 1} tokens and may have at "
        rf"most {longest} in the template 'an extremely long",
    ):
        embed_queries(encoder, ["road", "x" * (longest + 1)], TEMPLATES, cache_dir=None)
    assert encoder.encoded == []


@pytest.mark.parametrize(("queries", "templates"), [([], TEMPLATES), (["road"], [])])
def test_nothing_to_embed_is_refused(queries: list[str], templates: Sequence[str]) -> None:
    with pytest.raises(VocabularyError, match="at least one"):
        embed_queries(LetterEncoder(), queries, templates, cache_dir=None)


# --- The reference arrays ---------------------------------------------------------------------


class OpenClipEncoder:
    """The recorded model's text side, straight from open_clip."""

    fingerprint = "reference"
    context_length = 77
    embedding_size = 64

    def __init__(self, folder: Path) -> None:
        import open_clip
        from safetensors.torch import load_file

        self.model = open_clip.CLIP(**json.loads((folder / "clip_a.json").read_text())).eval()
        state = load_file(folder / "clip_a.safetensors")
        self.model.load_state_dict({name: value.float() for name, value in state.items()})
        self.tokenizer = open_clip.get_tokenizer("ViT-B-16")

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [len(self.tokenizer.encode(text)) + 2 for text in texts]

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        return self.tokenizer(list(texts))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(tokens)


@pytest.fixture(scope="module")
def reference_encoder(shared: Path) -> OpenClipEncoder:
    return OpenClipEncoder(shared / "goldens")


@pytest.mark.parametrize("name", ["a", "a_single"])
def test_the_original_s_text_embeddings_are_reproduced(
    shared: Path, reference_encoder: OpenClipEncoder, name: str
) -> None:
    vocabulary = Vocabulary.parse(shared / "goldens" / f"classes_{name}.txt")
    templates = load_templates("imagenet")

    embeddings = embed_queries(reference_encoder, vocabulary.queries, templates, cache_dir=None)

    with np.load(shared / "goldens" / "text.npz") as golden:
        np.testing.assert_array_equal(vocabulary.query_classes, golden[f"{name}__query_index"])
        np.testing.assert_allclose(embeddings, golden[f"{name}__query_features"], rtol=0, atol=1e-5)
        filled = [template.replace("{}", vocabulary.queries[1]) for template in templates]
        np.testing.assert_array_equal(
            reference_encoder.tokenize(filled), golden[f"{name}__templates_tokens_of_query1"]
        )


def test_clip_s_silent_cut_is_noticed(reference_encoder: OpenClipEncoder) -> None:
    templates = load_templates("imagenet")
    longest = max(reference_encoder.token_counts([t.replace("{}", "") for t in templates]))
    fits = " ".join(["road"] * (77 - longest))

    embed_queries(reference_encoder, [fits], templates, cache_dir=None)
    with pytest.raises(VocabularyError, match=rf"may have at most {77 - longest} in"):
        embed_queries(reference_encoder, [fits + " road"], templates, cache_dir=None)
