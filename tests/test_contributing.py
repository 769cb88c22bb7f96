"""The worked examples of CONTRIBUTING.md work as they stand there, and what it names exists."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import geoseg
from geoseg import methods
from geoseg.testing import tiny_random_model, write_scene

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def file_of(block: str) -> str | None:
    """Path that a block names in its first line."""
    found = re.match(r"# (\S+\.py)\n", block)
    return found[1] if found else None


FILES = {name: block for block in BLOCKS if (name := file_of(block))}
LINES = [block for block in BLOCKS if file_of(block) is None]
TESTS = [name for name in FILES if name.startswith("tests/")]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> dict[str, methods.Table]:
    """Modules and table lines of the examples, as if they were in the package."""
    for name, block in FILES.items():
        if name.startswith("geoseg/"):
            module = ModuleType(name.removesuffix(".py").replace("/", "."))
            monkeypatch.setitem(sys.modules, module.__name__, module)
            exec(compile(block, name, "exec"), vars(module))
    found = {}
    for line in LINES:
        ((name, entry),) = eval(f"{{{line}}}", {"Entry": methods.Entry}).items()
        table = methods.REFINERS if ".refine." in entry.where else methods.ATTENTIONS
        monkeypatch.setitem(table.entries, name, entry)
        found[name] = table
    return found


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_of_the_examples_pass(
    added: dict[str, methods.Table], name: str, tmp_path: Path
) -> None:
    scope: dict[str, object] = {}
    exec(compile(FILES[name], name, "exec"), scope)
    tests = [value for key, value in scope.items() if key.startswith("test_")]
    assert tests
    for test in tests:
        assert inspect.isfunction(test)
        (marked,) = test.pytestmark
        argument, values = marked.args
        for number, value in enumerate(values):
            paths = {"tmp_path": tmp_path / str(number)}
            wanted = {key: paths[key] for key in inspect.signature(test).parameters if key in paths}
            test(**wanted, **{argument: value})


def test_the_examples_map_a_scene(added: dict[str, methods.Table], tmp_path: Path) -> None:
    assert added == {"earlier": methods.ATTENTIONS, "mean": methods.REFINERS}
    run = geoseg.segment_to_files(
        write_scene(tmp_path / "scene.tif", 90, 130),
        "road; water; tree",
        tmp_path / "map",
        model=tiny_random_model(tmp_path / "model"),
        options=geoseg.Options(attention="earlier:back=1", refine="mean:radius=3"),
    )
    assert run.report["methods"]["attention"] == {"name": "earlier", "back": 1}
    assert run.report["methods"]["refine"] == [{"name": "mean", "radius": 3}]


def fenced(file: str) -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_both_drawings_of_the_data_flow_are_the_same() -> None:
    (drawing,) = fenced("docs/how-it-is-built.md")
    assert drawing in fenced("CONTRIBUTING.md")


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", "docs/how-it-is-built.md"])
def test_every_file_it_names_exists(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"`((?:geoseg|cli|tests|docs|benchmarks)/[\w./-]*)`", prose)
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", prose)
    paths = [*(ROOT / name for name in named), *((ROOT / file).parent / link for link in links)]
    assert paths
    assert [path for path in paths if not path.exists()] == []
