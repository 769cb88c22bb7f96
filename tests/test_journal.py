"""The record of finished tiles: what it says is what was added, whatever happens to the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import OutputError
from geoseg.run.journal import Journal, TileRecord, digest

FACTS: dict[str, Any] = {"the scene": {"size": 5}, "--tile": 64, "--aoi": None}
RECORDS = [
    TileRecord(4, 9, {"labels": 7, "confidence": 2**32 - 1}),
    TileRecord(0, 0, {}),
    TileRecord(17, 4, {"labels": 0, "confidence": 1}, "gone for a moment, Größe ∞"),
]


def written(path: Path) -> Journal:
    journal = Journal(path, FACTS, resume=False)
    for record in RECORDS:
        journal.add(record)
    return journal


def read(path: Path) -> list[TileRecord]:
    return list(Journal(path, FACTS, resume=True).finished.values())


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert list(written(path).finished) == [4, 0, 17]
    before = path.read_bytes()
    assert read(path) == RECORDS
    assert path.read_bytes() == before
    assert len(before.splitlines()) == 1 + len(RECORDS)
    assert all(isinstance(json.loads(line), dict) for line in before.splitlines())
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]


def test_without_resume_nothing_is_left_of_an_earlier_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    assert Journal(path, FACTS, resume=False).finished == {}
    assert read(path) == []


def test_without_a_record_there_is_nothing_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert Journal(path, FACTS, resume=True).finished == {}
    assert read(path) == []


def test_a_tile_that_is_recorded_again_has_its_last_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = written(path)
    journal.add(TileRecord(4, 3, {"labels": 8}))
    assert Journal(path, FACTS, resume=True).finished[4].windows == 3


def test_what_is_forgotten_is_gone_from_the_file_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = written(path)
    journal.forget([0, 99])
    assert list(journal.finished) == [4, 17]
    assert read(path) == [RECORDS[0], RECORDS[2]]
    journal.add(RECORDS[1])
    assert read(path) == [RECORDS[0], RECORDS[2], RECORDS[1]]
    before = path.stat().st_mtime_ns
    journal.forget([])
    assert path.stat().st_mtime_ns == before


@given(st.data())
def test_a_file_cut_anywhere_keeps_its_first_records(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal.jsonl"
    written(path)
    content = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == 10]
    stop = data.draw(st.integers(ends[0] - 1, len(content)))
    path.write_bytes(content[:stop])
    # A line is whole without its end, too.
    whole = sum(end - 1 <= stop for end in ends[1:])
    resumed = Journal(path, FACTS, resume=True)
    assert list(resumed.finished.values()) == RECORDS[:whole]
    resumed.add(RECORDS[0])
    assert read(path)[: max(whole, 1)] == RECORDS[: max(whole, 1)]


@pytest.mark.parametrize(
    "line",
    [
        "[]", "3", "null", '"x"', "{}", "", "{", '{"tile": 3}',
        '{"tile": 3, "windows": 4, "checksums": {}}',
        '{"tile": true, "windows": 4, "checksums": {}, "retried": ""}',
        '{"tile": 3.0, "windows": 4, "checksums": {}, "retried": ""}',
        '{"tile": -1, "windows": 4, "checksums": {}, "retried": ""}',
        '{"tile": 3, "windows": null, "checksums": {}, "retried": ""}',
        '{"tile": 3, "windows": 4, "checksums": [], "retried": ""}',
        '{"tile": 3, "windows": 4, "checksums": {"labels": -1}, "retried": ""}',
        '{"tile": 3, "windows": 4, "checksums": {"labels": "1"}, "retried": ""}',
        '{"tile": 3, "windows": 4, "checksums": {}, "retried": null}',
        '{"tile": 3, "windows": 4, "checksums": {}, "retried": "", "more": 0}',
    ],
)  # fmt: skip
def test_what_follows_a_line_that_is_no_record_is_run_again(line: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    assert read(path) == RECORDS[:1]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("first", ["", "[]", "3", "{", "null"])
def test_a_record_without_its_first_line_is_damaged(first: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    path.write_text("\n".join([first, *path.read_text().splitlines()[1:]]))
    with pytest.raises(OutputError, match="damaged; start anew with --overwrite"):
        read(path)
    path.write_text("")
    with pytest.raises(OutputError, match="damaged; start anew with --overwrite"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"--tile": 65}, "because --tile changed"),
        ({"--tile": 65, "--aoi": "x"}, "because --aoi and --tile changed"),
        ({"--tile": 65, "--aoi": "x", "the scene": {}}, "because --aoi, --tile and the scene"),
        ({"--new": 1}, "because --new changed"),
        ({"the layout of the record": 0}, "because the layout of the record changed"),
    ],
)
def test_changed_facts_are_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | changes), *lines[1:]]))
    before = path.read_bytes()
    with pytest.raises(OutputError, match=named):
        read(path)
    assert path.read_bytes() == before


def test_a_record_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "missing" / "journal.jsonl", FACTS, resume=False)
    journal = written(tmp_path / "journal.jsonl")
    journal.path.unlink()
    journal.path.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        journal.add(TileRecord(5, 1, {}))
    assert 5 not in journal.finished


def test_a_digest_does_not_depend_on_the_order_of_names() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest(None)) == 64
    assert digest({"a": Path("x")}) == digest({"a": "x"})
