"""The house keeps its plan: who imports whom, what loads when, what may stand in a file."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import geoseg

ROOT = Path(__file__).resolve().parents[1]

FOUNDATION = {
    "_address", "_html", "bars", "errors", "types", "_optional", "_files", "_fonts", "_claim",
    "_inputs", "_remote", "_texts", "_fields",
    "methods", "options", "runtime",
}  # fmt: skip
INPUTS = {"io", "tiling", "text", "model"}
PRODUCTS = {"vector", "evaluation", "preview"}

# Room of geoseg -> rooms it may import. Data flows one way, imports point back along it.
ROOMS: dict[str, set[str]] = {
    "_address": set(),
    "_html": set(),
    "bars": set(),
    "errors": {"_address"},
    "_files": {"errors", "_address", "_inputs"},
    "_remote": {"errors", "_address"},
    "_fonts": {"errors"},
    "_claim": {"errors"},
    "_inputs": {"errors"},
    "types": {"errors"},
    "_optional": {"errors"},
    "_texts": {"errors", "_inputs"},
    "methods": {"errors", "_inputs"},
    "_fields": {"errors", "_inputs", "methods"},
    "options": {"errors", "methods", "_files", "_inputs", "_texts", "_fields"},
    "runtime": {"_address", "errors", "types"},
    **dict.fromkeys(INPUTS, FOUNDATION),
    "inference": FOUNDATION | INPUTS,
    "legend": FOUNDATION | {"io", "text"},
    **dict.fromkeys(PRODUCTS, FOUNDATION | {"io", "text", "legend"}),
    "run": FOUNDATION | INPUTS | {"inference"},
    "pipeline": FOUNDATION | INPUTS | PRODUCTS | {"inference", "run"},
    "lazy": FOUNDATION | INPUTS | {"inference", "run"},
    "inspect": FOUNDATION | INPUTS | {"inference", "run"},
    "xarray": FOUNDATION | INPUTS | PRODUCTS | {"inference", "run", "legend", "lazy", "explore"},
    "explore": FOUNDATION | {"io"},
    "dense": FOUNDATION | INPUTS | {"inference"},
    "changes": FOUNDATION | {"io", "vector", "xarray"},
    "store": FOUNDATION | INPUTS | {"inference", "run"},
    "ask": FOUNDATION | INPUTS | {"inference", "run", "lazy", "pipeline", "store"},
    "probe": FOUNDATION | {"text", "store"},
    "pooling": FOUNDATION | INPUTS | {"inference", "store", "ask", "probe"},
    "correction": FOUNDATION | INPUTS | {"inference", "run", "store", "ask", "pooling", "probe"},
    "suggestion": FOUNDATION | INPUTS | {"inference", "run", "store", "ask", "correction"},
    "testing": FOUNDATION | INPUTS | {"inference"},
}

# Inside a room, folders that others in it may not know: they can be deleted.
DELETABLE = {"geoseg.inference.runners.shared": {"geoseg.inference.runners"}}

# Single modules that may see more than their room does.
EXCEPTIONS: dict[str, set[str]] = {
    "geoseg.evaluation.benchmark": {"inference"},
    "geoseg.evaluation.tune_samples": {"inference", "model", "tiling", "ask"},
}

HEAVY = {
    "torch", "rasterio", "geopandas", "pandas", "shapely", "open_clip", "dask", "xarray", "scipy",
    "timm",
}  # fmt: skip


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Dotted name and syntax tree of every module that gets installed."""
    for folder, package in (("geoseg", "geoseg"), ("cli", "geoseg_cli")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            yield name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all imports, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """Room that a dotted name of geoseg lies in, or None for the package itself."""
    parts = name.split(".")
    known = ROOMS.keys() | {path.stem for path in (ROOT / "geoseg").iterdir()}
    return parts[1] if len(parts) > 1 and parts[1] in known else None


def test_every_room_is_on_the_plan() -> None:
    rooms = {
        room for name, _ in modules() if name.startswith("geoseg.") and (room := room_of(name))
    }
    assert rooms <= ROOMS.keys(), "give the new room a row in ROOMS"


def test_imports_point_back_along_the_line() -> None:
    wrong = []
    for name, tree in modules():
        room = room_of(name)
        if not name.startswith("geoseg.") or room is None:
            continue
        allowed = ROOMS[room] | EXCEPTIONS.get(name, set()) | {room}
        for target in imports(tree):
            if target.startswith("geoseg_cli"):
                wrong.append(f"{name} imports {target}")
            elif target == "geoseg":
                wrong.append(f"{name} imports the public surface; name the room instead")
            elif target.startswith("geoseg.") and (seen := room_of(target)) not in allowed | {None}:
                wrong.append(f"{name} imports {target}, and {room} may not see {seen}")
    assert wrong == []


def test_the_plan_itself_has_no_circle() -> None:
    order = list(ROOMS)
    done: set[str] = set()
    while remaining := [room for room in order if room not in done]:
        ready = {room for room in remaining if ROOMS[room] <= done}
        assert ready, f"{remaining} wait for each other"
        done |= ready


def test_only_one_place_knows_what_can_be_deleted() -> None:
    wrong = []
    for folder, allowed in DELETABLE.items():
        for name, tree in modules():
            if name.startswith(folder) or name in allowed:
                continue
            wrong += [f"{name} imports {t}" for t in imports(tree) if t.startswith(folder)]
    assert wrong == []


def loaded_after(code: str) -> set[str]:
    """Heavy packages that are loaded once the code has run in a fresh interpreter."""
    report = "import json, sys; print(); print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    names = json.loads(result.stdout.splitlines()[-1])
    return {name for name in names if name in HEAVY}


def test_importing_geoseg_loads_nothing_heavy() -> None:
    assert loaded_after("import geoseg") == set()


def test_the_check_itself_sees_what_is_loaded() -> None:
    assert loaded_after("import torch") >= {"torch"}


@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["info", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['geoseg', *{arguments!r}]\n"
        "from geoseg_cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded_after(code) == set()


# The brackets keep these lines from finding themselves.
UNWANTED = {
    "a path of somebody's machine": r"(?<![\w.~-])/(?:[w]ork|[r]oot|[h]ome/\w+|[U]sers/\w+)/",
    "the host of a package registry": (
        r"py[p]i\.org|python[h]osted|download\.[p]ytorch|deb\.[d]ebian|registry\.[n]pmjs"
    ),
    "an unresolved merge": r"^(?:[<]{7}|[>]{7}) ",
}


def project_files() -> list[Path]:
    """Files under version control."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", UNWANTED)
def test_no_file_names(what: str) -> None:
    pattern = re.compile(UNWANTED[what], re.IGNORECASE | re.MULTILINE)
    found = []
    for path in project_files():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        hits = pattern.finditer(data.decode("utf-8", errors="replace"))
        found += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in hits]
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a path of somebody's machine", "open('/wo" + "rk/data.tif')"),
        ("a path of somebody's machine", "see /home/some" + "body/data"),
        ("the host of a package registry", "https://pyp" + "i.org/simple"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, text: str) -> None:
    assert re.search(UNWANTED[what], text)


def public_objects() -> Iterator[tuple[str, object]]:
    """Public classes and functions, and the public methods of the classes."""
    for name in geoseg.__all__:
        value = getattr(geoseg, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        yield name, value
        if inspect.isclass(value) and value.__module__.startswith("geoseg"):
            for method, member in vars(value).items():
                if not method.startswith("_") and (
                    callable(member) or isinstance(member, property | classmethod | staticmethod)
                ):
                    yield f"{name}.{method}", member


def test_the_public_surface_explains_itself() -> None:
    silent = []
    for name, value in public_objects():
        text = inspect.getdoc(value) or ""
        # A dataclass without a docstring gets its signature as one.
        if not text or text.startswith(f"{name}("):
            silent.append(name)
    assert silent == []
    assert len(geoseg.__all__) == len(set(geoseg.__all__)) > 0
