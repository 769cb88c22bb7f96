from __future__ import annotations

import codecs
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import GeosegWarning, VocabularyError
from geoseg.text.vocabulary import Vocabulary, VocabularyClass
from geoseg.types import LabelClass, default_color


def prompts_of(vocabulary: Vocabulary) -> list[tuple[str, ...]]:
    return [entry.prompts for entry in vocabulary.classes]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- What a vocabulary says -------------------------------------------------------------------


def test_rows_and_values_follow_the_order_of_the_classes() -> None:
    vocabulary = Vocabulary.parse("building,roof,house;road;water,river")

    assert vocabulary.names == ("building", "road", "water")
    assert vocabulary.queries == ("building", "roof", "house", "road", "water", "river")
    assert vocabulary.query_classes.tolist() == [0, 0, 0, 1, 2, 2]
    assert vocabulary.query_classes.dtype == np.int32
    assert vocabulary.label_classes == (
        LabelClass(0, "building", "#d7443e"),
        LabelClass(1, "road", "#8f8a9b"),
        LabelClass(2, "water", "#3b7dd8"),
    )


def test_colours_are_the_expected_ones_and_never_repeat() -> None:
    vocabulary = Vocabulary.parse("Water body; swimming pool; lake; quux; zork; building")
    colors = [c.color for c in vocabulary.classes]
    assert colors[:2] == ["#3b7dd8", "#17becf"]
    assert colors[5] == "#d7443e"
    assert len(set(colors)) == len(colors)


def test_every_way_to_write_the_same_classes_gives_the_same_vocabulary(tmp_path: Path) -> None:
    expected = Vocabulary.parse("bare ground, barren; road")

    text = write(tmp_path / "classes.txt", "bare ground,barren\nroad\n")
    toml = write(
        tmp_path / "classes.toml",
        '[[class]]\nname = "bare ground"\nprompts = ["bare ground", "barren"]\n'
        '[[class]]\nname = "road"\n',
    )
    for source in (
        expected,
        text,
        str(text),
        toml,
        "bare ground,barren\n road",
        ["bare ground, barren", "road"],
        [("bare ground", "barren"), ["road"]],
        ("bare ground,barren", "road"),
        {"bare ground": ["bare ground", "barren"], "road": []},
        {"bare ground": "bare ground, barren", "road": "road"},
    ):
        assert Vocabulary.parse(source) == expected
    assert Vocabulary.parse(expected) is expected


def test_a_display_name_need_not_be_a_query() -> None:
    vocabulary = Vocabulary.parse({"sealed": ["asphalt", "concrete"], "road": ["street"]})

    assert vocabulary.names == ("sealed", "road")
    assert vocabulary.queries == ("asphalt", "concrete", "street")


def test_default_colours_avoid_those_that_were_chosen(tmp_path: Path) -> None:
    chosen = default_color(0).upper()
    path = write(
        tmp_path / "c.toml",
        f'[[class]]\nname = "a"\n[[class]]\nname = "b"\ncolor = "{chosen}"\n[[class]]\nname = "c"',
    )

    colors = [entry.color for entry in Vocabulary.parse(path).classes]

    assert colors[1] == default_color(0)
    assert colors[2] == default_color(2)
    assert len(set(colors)) == 3


def test_a_vocabulary_travels_to_a_worker() -> None:
    vocabulary = Vocabulary.parse("a;b")
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


# --- Text files as people save them -----------------------------------------------------------


def test_comments_blank_lines_and_white_space_are_no_words(tmp_path: Path) -> None:
    path = write(
        tmp_path / "classes.txt",
        "# what we look for\n\n  building ,  flat\troof  # both kinds\n\n   # nothing\n"
        "C# major field\nroad#1\n\u00a0open\u2003water \n",
    )

    assert prompts_of(Vocabulary.parse(path)) == [
        ("building", "flat roof"),
        ("C# major field",),
        ("road#1",),
        ("open water",),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("suffix", [".txt", ".toml"])
def test_line_ends_and_a_byte_order_mark_change_nothing(
    tmp_path: Path, end: str, mark: bytes, suffix: str
) -> None:
    lines = ["Gewässer, Fluß", "道路"]
    if suffix == ".toml":
        lines = ["[[class]]", 'name = "Gewässer"', 'prompts = ["Gewässer", "Fluß"]']
        lines += ["[[class]]", 'name = "道路"']
    path = write(tmp_path / f"classes{suffix}", mark + end.join([*lines, ""]).encode())

    assert prompts_of(Vocabulary.parse(path)) == [("Gewässer", "Fluß"), ("道路",)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("road\nGewässer\n".encode("latin-1"), "line 2: byte 0xe4 is not UTF-8"),
        ("road\r\nvoie ferrée\r\n".encode("cp1252"), "line 2: byte 0xe9 is not UTF-8"),
        ("road\nwater\n".encode("utf-16"), "line 1: this is UTF-16"),
        ("road\nwater\n".encode("utf-16-be"), "line 1: this is UTF-16"),
    ],
)
def test_other_encodings_are_named_with_their_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = write(tmp_path / "classes.txt", data)

    with pytest.raises(VocabularyError, match=re.escape(f"{path}, {said}")) as caught:
        Vocabulary.parse(path)
    assert "save the file as UTF-8" in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n   # comments\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(VocabularyError, match="is empty"):
        Vocabulary.parse(write(tmp_path / "classes.txt", text))


@pytest.mark.parametrize("line", ["building,roof,", "building,,roof", ",building,roof"])
def test_an_empty_synonym_is_skipped_with_a_warning(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "classes.txt", f"road\n{line}\n")

    with pytest.warns(GeosegWarning, match=re.escape(f"{path}: line 2: an empty name")):
        vocabulary = Vocabulary.parse(path)
    assert prompts_of(vocabulary) == [("road",), ("building", "roof")]


def test_a_line_of_commas_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"line 2: ', ,' names no class"):
        Vocabulary.parse(write(tmp_path / "classes.txt", "road\n, ,\nwater\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("road\n\nwater\nROAD\n", "class name 'ROAD' stands in line 1 and again in line 4"),
        ("road,street\nwater\npath, Street", "query 'Street' stands in line 1 and again in line 3"),
        ("road,Road\nwater", "query 'Road' stands twice in line 1"),
        ("open  water\nroad\nopen water", "class name 'open water' stands in line 1 and again"),
        ("cafe\u0301\nroad\ncaf\u00e9", "class name 'café' stands in line 1 and again in line 3"),
        ("Straße\nwater\nstrasse", "class name 'strasse' stands in line 1 and again in line 3"),
    ],
)
def test_repeats_are_refused_with_both_lines(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "classes.txt", text)

    with pytest.raises(VocabularyError) as caught:
        Vocabulary.parse(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_control_characters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"line 1: .*control characters"):
        Vocabulary.parse(write(tmp_path / "classes.txt", "ro\x07ad\nwater"))


@pytest.mark.parametrize("letter", ["\ufffe", "\uffff", "\ud800", "\x00", "\x1b"])
def test_letters_that_xml_cannot_hold_are_refused(letter: str) -> None:
    for source in ([f"a{letter}b", "road"], {"water": [f"a{letter}b"], "road": []}):
        with pytest.raises(VocabularyError, match=r"class 1: .*(control characters|XML)") as caught:
            Vocabulary.parse(source)
        assert str(caught.value).isprintable()


def test_letters_beyond_the_first_plane_are_words(tmp_path: Path) -> None:
    path = write(tmp_path / "classes.txt", "🌳\n𝔸\U0010fffd\n")
    assert Vocabulary.parse(path).names == ("🌳", "𝔸\U0010fffd")


def test_names_and_prompts_have_a_length() -> None:
    VocabularyClass("a" * 200, ("b" * 1000,), "#000000")
    with pytest.raises(VocabularyError, match=r"the name 'aaa.* has 201 letters, .* may have 200"):
        VocabularyClass("a" * 201, ("b",), "#000000")
    with pytest.raises(VocabularyError, match=r"the prompt 'bbb.* has 1,001 letters, .* 1,000"):
        VocabularyClass("a", ("b" * 1001,), "#000000")
    assert VocabularyClass(" a " * 99, ("b",), "#000000").name == " ".join("a" * 99)


def test_classes_and_queries_have_a_number() -> None:
    names = [f"class {number}" for number in range(65_535)]
    assert len(Vocabulary.parse(names[:-1]).classes) == 65_534
    with pytest.raises(VocabularyError, match="65,535 classes, and there may be 65,534"):
        Vocabulary.parse(names)
    with pytest.raises(VocabularyError, match="100,001 queries, and there may be 100,000"):
        Vocabulary.parse({"a": [f"word {number}" for number in range(100_000)], "b": []})


@pytest.mark.parametrize("suffix", [".txt", ".toml"])
def test_a_class_file_has_a_size(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"classes{suffix}", b"#" * (4 * 2**20 + 1))
    with pytest.raises(VocabularyError, match=r"is larger than 4 MiB"):
        Vocabulary.parse(path)


def test_a_saved_web_page_is_called_one(tmp_path: Path) -> None:
    for page in ("<!DOCTYPE html><html>", "\n <HTML>", '<?xml version="1.0"?>\n<Error><Code>'):
        path = write(tmp_path / "classes.txt", page)
        with pytest.raises(VocabularyError, match=r"classes\.txt is none: .*like a web page"):
            Vocabulary.parse(path)


def test_a_colour_comes_twice_where_all_are_taken(tmp_path: Path) -> None:
    """There are fewer default colours than classes may be."""
    taken = sorted({default_color(index) for index in range(70_000)})
    classes = tuple(
        VocabularyClass(f"class {index}", (f"class {index}",), color)
        for index, color in enumerate(taken)
    )
    more = Vocabulary(classes).to_toml() + '\n[[class]]\nname = "one more"\n'
    assert Vocabulary.parse(write(tmp_path / "c.toml", more)).classes[-1].color in taken


# --- TOML -------------------------------------------------------------------------------------


def test_toml_says_everything(tmp_path: Path) -> None:
    path = write(
        tmp_path / "classes.toml",
        "# two classes\n"
        '[[class]]\nname = "trees"\nprompts = ["tree", "forest, dense"]\n'
        'color = "#1F7A3D"\nthreshold = 0.25\noffset = -0.02\n'
        '[[class]]\nname = "water"\nthreshold = 1\n',
    )

    assert Vocabulary.parse(path).classes == (
        VocabularyClass("trees", ("tree", "forest, dense"), "#1f7a3d", 0.25, -0.02),
        VocabularyClass("water", ("water",), "#3b7dd8", 1.0),
    )


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[[class]]\nname = "a"\ncolour = "#ffffff"', "class 1: unknown key colour; did you mean"),
        (
            '[[class]]\nname = "a"\nx = 1',
            "unknown key x; known: name, prompts, color, threshold, offset",
        ),
        ('[[classes]]\nname = "a"', "unknown key classes; did you mean class?"),
        ('[class]\nname = "a"', "[[class]] tables"),
        ('class = ["a", "b"]', "[[class]] tables"),
        ("", "has no [[class]] table"),
        ('[[class]]\nprompts = ["a"]', "class 1: name must be a string"),
        ('[[class]]\nname = "a"\n[[class]]\nname = 3', "class 2: name must be a string"),
        ('[[class]]\nname = "a"\nprompts = "a"', "class 1: prompts must be a list of strings"),
        ('[[class]]\nname = "a"\nprompts = []', "class 1: prompts is empty"),
        ('[[class]]\nname = "a"\nprompts = ["x", ""]', "class 1: a name or prompt is empty"),
        ('[[class]]\nname = "a"\ncolor = "red"', "'red' is not a colour"),
        ('[[class]]\nname = "a"\ncolor = "#12345g"', "'#12345g' is not a colour"),
        ('[[class]]\nname = "a"\ncolor = 255', "class 1: color must be a string"),
        ('[[class]]\nname = "a"\nthreshold = 1.5', "threshold 1.5 is not between 0 and 1"),
        ('[[class]]\nname = "a"\nthreshold = -0.1', "threshold -0.1 is not between 0 and 1"),
        ('[[class]]\nname = "a"\nthreshold = nan', "threshold nan is not between 0 and 1"),
        ('[[class]]\nname = "a"\nthreshold = true', "class 1: threshold must be a number"),
        ('[[class]]\nname = "a"\nthreshold = "0.2"', "class 1: threshold must be a number"),
        ('[[class]]\nname = "a"\noffset = 1.5', "offset 1.5 is not in -1 to 1"),
        ('[[class]]\nname = "a"\noffset = nan', "offset nan is not in -1 to 1"),
        ('[[class]]\nname = "a"\noffset = "x"', "class 1: offset must be a number"),
        ('[[class]]\nname = "a', "is not valid TOML"),
        ('[[class]]\nname = "a"\nthreshold = 1' + "0" * 400, "is not between 0 and 1"),
        ('[[class]]\nname = "a"\nthreshold = 1' + "0" * 9000, "is not valid TOML"),
        ('[[class]]\nname = "a"\noffset = 0x' + "f" * 9000, "is not in -1 to 1"),
        ('[[class]]\nname = "a"\ncolor = """\nred"""', "'red' is not a colour"),
        ("class = " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
        ("class" + ".a" * 100_000 + " = 1", "is nested too deeply"),
    ],
)
def test_wrong_toml_is_refused_with_its_place(tmp_path: Path, toml: str, said: str) -> None:
    path = write(tmp_path / "classes.toml", toml)

    with pytest.raises(VocabularyError, match=re.escape(str(path))) as caught:
        Vocabulary.parse(path)
    assert said in str(caught.value)


word = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\ufffe\uffff"),
    min_size=1,
    max_size=12,
).filter(lambda text: bool(text.strip()))


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Any vocabulary: distinct words dealt out to classes, with colours and thresholds."""
    count = draw(st.integers(2, 6))
    sizes = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    words = draw(
        st.lists(
            word,
            min_size=sum(sizes),
            max_size=sum(sizes),
            unique_by=lambda text: VocabularyClass(text, (text,), "#000000").name.casefold(),
        )
    )
    classes = []
    for size in sizes:
        prompts, words = tuple(words[:size]), words[size:]
        color = f"#{draw(st.integers(0, 0xFFFFFF)):06x}"
        threshold = draw(st.none() | st.floats(0, 1))
        offset = draw(st.floats(-1, 1))
        classes.append(VocabularyClass(prompts[0], prompts, color, threshold, offset))
    return Vocabulary(tuple(classes))


@given(vocabulary=vocabularies())
def test_toml_written_is_the_vocabulary_read(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = write(tmp_path / "round.toml", vocabulary.to_toml())
    assert Vocabulary.parse(path) == vocabulary


@given(vocabulary=vocabularies())
def test_rows_agree_with_classes(vocabulary: Vocabulary) -> None:
    rows = list(zip(vocabulary.query_classes, vocabulary.queries, strict=True))
    assert rows == [
        (index, prompt)
        for index, entry in enumerate(vocabulary.classes)
        for prompt in entry.prompts
    ]


# --- Inline, lists and paths ------------------------------------------------------------------


def test_an_existing_file_wins_over_inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a;b", "road\nwater\n")

    assert Vocabulary.parse("a;b").names == ("road", "water")
    assert Vocabulary.parse("a;c").names == ("a", "c")


def test_a_slash_inside_inline_classes_is_no_path() -> None:
    assert Vocabulary.parse("trees/shrubs;road").names == ("trees/shrubs", "road")


@pytest.mark.parametrize("missing", ["clases.txt", "sub/classes", "clases.toml", "a;b.txt"])
def test_what_looks_like_a_path_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VocabularyError, match=re.escape(f"{missing} does not exist")):
        Vocabulary.parse(missing)


def test_a_missing_file_is_answered_with_near_names(tmp_path: Path) -> None:
    for name in ("classes.txt", "notes.toml", "scene.tif"):
        write(tmp_path / name, "x")

    with pytest.raises(VocabularyError, match=r"its folder has classes\.txt$"):
        Vocabulary.parse(tmp_path / "clases.txt")


def test_a_folder_is_not_a_class_file(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="is a folder"):
        Vocabulary.parse(tmp_path)


@pytest.mark.parametrize("source", ["building", "a,b,c", ["building"], {"building": ["a", "b"]}])
def test_one_class_alone_is_refused_with_a_way_out(source: str) -> None:
    with pytest.raises(VocabularyError, match=r"building;|separate classes with ';'"):
        Vocabulary.parse(source)


@pytest.mark.parametrize("source", ["", "  ", " ; ;", [], {}])
def test_no_class_at_all_is_refused(source: object) -> None:
    with pytest.raises(VocabularyError, match=r"empty|no class"):
        Vocabulary.parse(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["a;;b", "a;b;", " ;a;b"])
def test_an_empty_inline_class_is_skipped_with_a_warning(source: str) -> None:
    with pytest.warns(GeosegWarning, match="a class is empty"):
        vocabulary = Vocabulary.parse(source)
    assert vocabulary.names == ("a", "b")


@pytest.mark.parametrize(
    "source", [["a", ""], ["a", " , "], ["a", []], ["a", [""]], {"a": [], "": []}]
)
def test_an_empty_entry_of_a_list_would_shift_the_labels_and_is_refused(source: object) -> None:
    with pytest.raises(VocabularyError, match="class 2"):
        Vocabulary.parse(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [3, None, ["a", 4], {"a": 1, "b": 2}, {1: ["a"]}, b"a;b"])
def test_other_types_are_refused(source: object) -> None:
    with pytest.raises(VocabularyError):
        Vocabulary.parse(source)  # type: ignore[arg-type]


@given(text=st.text(max_size=60))
def test_any_string_gives_a_vocabulary_or_one_clear_line(text: str) -> None:
    refusal = ""
    queries: tuple[str, ...] = ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeosegWarning)
        try:
            queries = Vocabulary.parse(text).queries
        except VocabularyError as error:
            refusal = str(error)

    assert bool(queries) != bool(refusal)
    assert "\n" not in refusal
    assert all(query == " ".join(query.split()) != "" for query in queries)
    assert len(queries) != 1


def test_a_vocabulary_made_by_hand_is_checked_too() -> None:
    with pytest.raises(VocabularyError, match="'A' stands in class 1 and again in class 2"):
        Vocabulary(
            (VocabularyClass("a", ("x",), "#000000"), VocabularyClass("A", ("y",), "#ffffff"))
        )
    with pytest.raises(VocabularyError, match="no prompt"):
        VocabularyClass("a", (), "#000000")


@pytest.mark.parametrize(
    "text",
    [
        '{"water": ["lake"], "tree": "forest, wood"}',
        '{"water": ["water", "lake"], "tree": ["tree", "forest", "wood"]}',
        '[["water", "lake"], "tree, forest, wood"]',
        '{"classes": [{"id": 1, "name": "water", "prompts": ["water", "lake"]}, '
        '{"class": "tree", "synonyms": ["tree", "forest", "wood"]}]}',
    ],
)
def test_json_is_read_as_json(tmp_path: Path, text: str) -> None:
    read = Vocabulary.parse(write(tmp_path / "classes.json", text))
    assert read.names == ("water", "tree")
    assert read.queries == ("water", "lake", "tree", "forest", "wood")


@pytest.mark.parametrize(
    "text",
    [
        'id,name,color,prompts\n1,water,#0000FF,lake\n\n2,tree,,"forest, wood"\n',
        "\ufeffName;Synonyms;Colour\r\nwater;lake;#0000ff\r\ntree;forest|wood;\r\n",
        "class_name\tprompts\tcolor\nwater\tlake\t#0000ff\ntree\tforest,wood\n",
    ],
)
def test_a_csv_table_is_read_by_its_header(tmp_path: Path, text: str) -> None:
    read = Vocabulary.parse(write(tmp_path / "classes.csv", text))
    assert read.names == ("water", "tree")
    assert read.queries == ("water", "lake", "tree", "forest", "wood")
    assert read.classes[0].color == "#0000ff"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.json", '{"water": {"a": 1}, "tree": []}', "write prompts as a list"),
        ("c.json", '{"water": [], "water": []}', "twice"),
        ("c.json", '{"water": ', "is not valid JSON"),
        ("c.json", "[1, 2]", "class 1: write a name"),
        ("c.json", '[{"name": "water", "colr": "#0000ff"}, "tree"]', "did you mean color"),
        ("c.json", "7", "write an object"),
        ("c.csv", "water,lake\ntree,forest\n", "headed name or class"),
        ("c.csv", "name,color\nwater,#0000ff,x\ntree\n", "line 2: 3 cells under a header of 2"),
        ("c.csv", "name,offset\nwater,much\ntree,0\n", "'much' is not a number"),
        ("c.txt", '{\n"water": ["lake"],\n"tree": []\n}', "name it .json"),
        ("c.txt", "[[class]]\nname = 'a'\n", "name it .toml"),
        ("c.txt", "id,name,color\n1,water,#0000ff\n", "name it .csv"),
        ("c.txt", "- water\n- tree\n", "holds YAML"),
        ("c.yaml", "water:\n- lake\ntree: []\n", "is YAML"),
        ("c.xlsx", "PK", "is an Excel workbook"),
    ],
)
def test_another_format_is_never_one_class_a_line(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    with pytest.raises(VocabularyError, match=re.escape(said)):
        Vocabulary.parse(str(write(tmp_path / name, text)))
