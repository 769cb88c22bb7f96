"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from geoseg.text.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks("python")
    assert len(example.splitlines()) < 15
    shutil.copytree(ROOT / "sample_tiles", tmp_path / "sample_tiles")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    features = json.loads(Path("town.geojson").read_text(encoding="utf-8"))["features"]
    assert len(features) > 10
    assert {"labels.tif", "polygons.gpkg"} <= {f.name for f in Path("town_map").iterdir()}
    assert Path("labels.tif").stat().st_size > 0


def test_the_class_files_parse(tmp_path: Path) -> None:
    (text,) = blocks("text")
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    assert Vocabulary.parse(tmp_path / "classes.txt").names == ("building", "road", "water", "tree")
    (toml,) = blocks("toml")
    assert tomllib.loads(toml)["class"][0]["threshold"] == 0.4


def test_every_file_it_points_to_exists() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_every_option_it_shows_exists() -> None:
    from typer.main import get_command

    from geoseg_cli.main import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for line in "\n".join(blocks("console")).replace("\\\n", " ").splitlines():
        words = line.removeprefix("$ ").split()
        if words[:1] != ["geoseg"] or words[1].startswith("-"):
            continue
        known = {name for p in commands[words[1]].params for name in p.opts}
        assert {w for w in words if w.startswith("--")} <= known | {"--help"}
