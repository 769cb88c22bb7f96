"""What the page on pipelines shows is what geoseg takes, and parses where a tool is missing."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from rasters import make, rgb
from typer.main import get_command
from typer.testing import CliRunner

from geoseg.testing import tiny_random_model
from geoseg_cli.main import app

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "pipelines.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def command(text: str) -> None:
    """Parse a command line as geoseg does, without running it."""
    words = re.sub(r"\$?[({<@][^ ]*", "x", text).split()
    assert words[0] == "geoseg"
    known = {name for p in COMMANDS[words[1]].params for name in (*p.opts, *p.secondary_opts)}
    assert {word for word in words[2:] if word.startswith("--")} <= known


def test_commands_have_these_options() -> None:
    shown = [line.removeprefix("$ ") for text in blocks("console") for line in text.splitlines()]
    shown += [line.strip() for text in blocks("make") for line in text.splitlines()]
    (snakefile,) = blocks("python snakemake")
    shell = "".join(re.findall(r'^ {8}"(.*)"$', snakefile[snakefile.index("shell:") :], re.M))
    found = [line for line in [*shown, shell] if line.startswith("geoseg ")]
    assert len(found) == 8
    for line in found:
        command(line)


def test_the_options_file_is_one(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    known = {name.removeprefix("--") for p in COMMANDS["segment"].params for name in p.opts}
    assert set(tomllib.loads(text)) <= known


def test_the_snakefile_parses(tmp_path: Path) -> None:
    (text,) = blocks("python snakemake")
    if shutil.which("snakemake"):
        (tmp_path / "Snakefile").write_text(text)
        done = subprocess.run(["snakemake", "--lint", "-s", tmp_path / "Snakefile"], check=False)
        assert done.returncode == 0
    # A rule is Python but for its heads, each of which holds the arguments of a call.
    text = re.sub(r"^rule (\w+):$", r"class \1:", text, flags=re.M)
    text = re.sub(r"^    (\w+): (\S+)$", r"    \1 = \2", text, flags=re.M)
    text = re.sub(
        r"^    (\w+):\n((?: {8}.*\n)+)", r"    \1 = dict_or_list(\n\2    )\n", text, flags=re.M
    )
    tree = ast.parse(text)
    rules = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert rules == ["all", "map"]


def test_the_python_scripts_call_what_there_is() -> None:
    scripts = blocks("python")
    assert len(scripts) == 2
    for script in scripts:
        compile(script, "pipelines.md", "exec")
        names = {}
        for node in ast.walk(ast.parse(script)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("geoseg"):
                module = importlib.import_module(str(node.module))
                names |= {alias.name: getattr(module, alias.name) for alias in node.names}
        names["segment_to_files"] = importlib.import_module("geoseg").segment_to_files
        called = [
            node
            for node in ast.walk(ast.parse(script))
            if isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", None)) in names
        ]
        assert called
        for node in called:
            function = names[getattr(node.func, "id", getattr(node.func, "attr", ""))]
            given = {keyword.arg for keyword in node.keywords}
            parameters = set(inspect.signature(function).parameters)
            if "settings" in parameters:
                one = importlib.import_module("geoseg").segment_to_files
                many = importlib.import_module("geoseg.pipeline").segment_jobs
                parameters |= set(inspect.signature(one).parameters)
                parameters |= set(inspect.signature(many).parameters)
            assert given <= parameters


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_makefile_maps_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = blocks("make")
    (tmp_path / "Makefile").write_text(text)
    (tmp_path / "scenes").mkdir()
    make(tmp_path / "scenes" / "a.tif", rgb())
    spec = tiny_random_model(tmp_path / "model")
    (tmp_path / "geoseg.toml").write_text(
        f'model = "{spec}"\nclasses = "water; tree"\ntemplates = "none"\n'
    )
    monkeypatch.chdir(tmp_path)

    def recipe() -> list[str]:
        done = subprocess.run(["make", "-n"], capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.startswith("geoseg")]

    (line,) = recipe()
    done = CliRunner().invoke(app, line.split()[1:])
    assert done.exit_code == 0, done.output
    Path("maps/a/run.json").touch()
    assert recipe() == []
