from __future__ import annotations

from pathlib import Path

import pytest

from geoseg.errors import VocabularyError
from geoseg.text.templates import REMOTE_SENSING_TEMPLATES, fill, load_templates


def test_imagenet_is_clip_s_own_list() -> None:
    import open_clip

    templates = load_templates("imagenet")

    assert len(templates) == 80
    for template, original in zip(templates, open_clip.OPENAI_IMAGENET_TEMPLATES, strict=True):
        assert fill(template, "green field") == original("green field")


def test_remote_sensing_templates_are_distinct_sentences() -> None:
    templates = load_templates("remote-sensing")

    assert templates == REMOTE_SENSING_TEMPLATES
    assert len(set(templates)) == len(templates) == 26
    assert all(template.count("{}") == 1 and template.endswith("{}.") for template in templates)
    assert "aerial imagery of the {}." in templates


def test_none_is_the_bare_query() -> None:
    assert [fill(template, "road") for template in load_templates("none")] == ["road"]


def test_a_file_gives_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_bytes(b"\xef\xbb\xbf# mine\r\na  map of {}.\r\n\r\n{} seen from a plane  # ours\r\n")

    expected = ("a map of {}.", "{} seen from a plane")
    assert load_templates(path) == load_templates(str(path)) == expected
    assert load_templates(list(expected)) == expected


def test_a_name_wins_over_a_file_called_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("none").write_text("a map of {}.\n")

    assert load_templates("none") == ("{}",)
    assert load_templates("./none") == load_templates(Path("none")) == ("a map of {}.",)


def test_a_line_without_a_slot_is_named(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("a map of {}.\n\na map of roads.\n")

    with pytest.raises(VocabularyError, match=r"templates\.txt, line 3: 'a map of roads\.' has no"):
        load_templates(path)
    with pytest.raises(VocabularyError, match="template 2: 'x' has no"):
        load_templates(["{}", "x"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("imagnet", "did you mean imagenet"),
        ("remote_sensing", "did you mean remote-sensing"),
        ("qwertz", "use imagenet, remote-sensing, none or a text file"),
        ("missing.txt", "template file missing.txt does not exist"),
        ([], "list of templates is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    spec: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VocabularyError, match=said):
        load_templates(spec)


def test_templates_have_a_length_and_a_number(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("{}\n" + "a" * 999 + "{}\n")
    with pytest.raises(VocabularyError, match=r"line 2: the template has 1,001 letters.* 1,000"):
        load_templates(path)
    path.write_text("{}\n" * 10_001)
    with pytest.raises(VocabularyError, match="has 10,001 templates, and there may be 10,000"):
        load_templates(path)
    path.write_text("{}\n" * 1_400_000)
    with pytest.raises(VocabularyError, match="is larger than 4 MiB"):
        load_templates(path)
    with pytest.raises(VocabularyError, match=r"template 2: .* is not a string"):
        load_templates(["{}", 3])  # type: ignore[list-item]


def test_an_unknown_user_has_no_templates() -> None:
    with pytest.raises(VocabularyError, match="there is no home folder ~nosuchuser"):
        load_templates("~nosuchuser")


def test_braces_in_a_query_stay_as_they_are() -> None:
    assert fill("a photo of {}, from {above}.", "{x} {}") == "a photo of {x} {}, from {above}."
