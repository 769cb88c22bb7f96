"""Writing that fails is noticed, told in one line and leaves nothing; names stay only names."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET
from zlib import crc32

import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyogrio.errors import DataSourceError
from typer.testing import CliRunner
from vectors import blobs, label_file

from geoseg._files import csv_cell, whole_file, whole_files, xml_text
from geoseg.errors import OutputError, SceneError
from geoseg.evaluation import evaluate
from geoseg.evaluation.report import write_csv, write_report
from geoseg.io.mosaic import build_mosaic
from geoseg.types import as_label_classes
from geoseg.vector import style, vectorize
from geoseg.vector.stats import as_csv, write_stats, zone_stats
from geoseg_cli.main import app

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs limits and signals of POSIX")
SUFFIXES = [".gpkg", ".parquet", ".fgb", ".geojson"]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    values = blobs(60, 80, 3, seed=4)
    return label_file(tmp_path / "labels.tif", values, ["=1+1", "-roof", "tree"])


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of its own: what it prints past Python is seen, and it may be limited."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


# -- no room --------------------------------------------------------------------------------------

_LIMITED = """
import json, resource, sys, warnings
from pathlib import Path
from geoseg.errors import OutputError
from geoseg.runtime.allocator import own_process
from geoseg.runtime.quiet import native_lines
warnings.simplefilter("ignore")
{work}
said = []
with own_process(), native_lines(shown=False):
    for limit in map(int, sys.argv[3].split()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(Path(sys.argv[1]), Path(sys.argv[2]))
            said.append("")
        except OutputError as error:
            said.append(str(error))
print(json.dumps(said))
"""
_POLYGONS = """
import sqlite3
from geoseg.vector import vectorize
def write(labels, out):
    vectorize(labels, out, overwrite=True)
    if out.suffix == ".gpkg":
        with sqlite3.connect(out) as file:
            (count,) = file.execute("SELECT count(*) FROM segments").fetchone()
            assert file.execute("SELECT count(*) FROM rtree_segments_geom").fetchone() == (count,)
            assert file.execute("SELECT count(*) FROM layer_styles").fetchone() == (1,)
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    out.unlink()
"""
_RASTER = """
import rasterio
from geoseg.io.grid import Grid
from geoseg.io.write import label_writer
from geoseg.types import as_label_classes
def write(labels, out):
    with rasterio.open(labels) as dataset:
        grid, pixels = Grid(dataset.crs, dataset.transform, *dataset.shape), dataset.read(1)
    work = out.with_name("work.tif")
    try:
        with label_writer(work, grid, as_label_classes(["a", "b", "c"])) as writer:
            writer.write(grid.window, pixels)
            writer.finish(out, overwrite=True)
        with rasterio.open(out) as made:
            assert (made.read(1) == pixels).all()
    finally:
        out.unlink(missing_ok=True)
        work.unlink(missing_ok=True)
"""


@posix
@pytest.mark.parametrize(
    ("work", "suffix"),
    [(_RASTER, ".tif"), *((_POLYGONS, suffix) for suffix in SUFFIXES)],
)
def test_wherever_the_room_ends_the_file_is_right_or_one_line_says_so(
    labels: Path, tmp_path: Path, work: str, suffix: str
) -> None:
    if work == _RASTER:
        noise = np.random.default_rng(0).integers(0, 3, (700, 900)).astype(np.uint8)
        label_file(labels, noise, ["a", "b", "c"])
        size = 900_000
    else:
        size = _size_of_polygons(labels, tmp_path / f"whole{suffix}")
    limits = " ".join(str(int(part * size)) for part in np.linspace(0.01, 3, 40))
    before = names_in(tmp_path)
    done = python(_LIMITED.format(work=work), labels, tmp_path / f"out{suffix}", limits)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said[-1] == ""
    assert said[0] != ""
    for line in filter(None, said):
        assert "cannot be written, it would be larger than files may be here" in line
        assert "\n" not in line
        assert ".part" not in line
    assert names_in(tmp_path) - {"out.qml"} == before  # QGIS's style of a GeoPackage


def _size_of_polygons(labels: Path, out: Path) -> int:
    vectorize(labels, out)
    return out.stat().st_size


@posix
def test_nothing_is_unexpected_about_a_full_disk(labels: Path, tmp_path: Path) -> None:
    """The command says one line, whatever it writes and where."""
    (tmp_path / "more").mkdir()
    vectorize(labels, tmp_path / "zones.gpkg")
    code = (
        "import resource, sys, geoseg_cli.main as cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "cli.app(sys.argv[1:])"
    )
    out = tmp_path / "more"
    before = names_in(tmp_path)
    for command in (
        ["vectorize", labels, "-o", out / "p.gpkg"],
        ["vectorize", labels, "-o", out / "p.gpkg", "--raster-style"],
        ["stats", labels, "--zones", tmp_path / "zones.gpkg", "-o", out / "s.csv"],
        ["stats", labels, "--zones", tmp_path / "zones.gpkg", "-o", out / "s.json"],
        ["evaluate", labels, labels, "--out", out / "e"],
        ["preview", labels, labels, "-o", out / "p.png", "--bands", "1"],
    ):
        done = python(code, *command)
        assert done.returncode == 1, command
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert "cannot be written, it would be larger than files may be here" in line
        assert names_in(out) <= {"e"}
        assert names_in(tmp_path) == before


def test_output_that_nobody_takes_is_one_line(labels: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = "import sys, geoseg_cli.main as cli; cli.app(sys.argv[1:])"
    for given_ in (["evaluate", labels, labels], ["info", labels, "--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-c", command, *map(str, given_)],
                stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
            )  # fmt: skip
        assert done.returncode == 1
        assert "error: standard output: cannot be written, there is no room" in done.stderr
        assert "unexpected failure" not in done.stderr


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_a_complaint_names_the_file_that_was_asked_for(
    labels: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *more: object, **options: object) -> None:
        raise DataSourceError(f"sqlite3_open({path}) failed")

    monkeypatch.setattr(pyogrio.raw, "write", refuse)
    with pytest.raises(OutputError, match=r"written \(sqlite3_open\(.*/p(\.spool)?\.gpkg\) failed"):
        vectorize(labels, tmp_path / f"p{suffix}")


# -- raw lines ------------------------------------------------------------------------------------

_NATIVE = """
import contextlib, os, sys, threading
from geoseg.runtime.allocator import own_process
from geoseg.runtime.quiet import hushed, native_lines
own, shown = (word == "yes" for word in sys.argv[1:])
def print_past_python(number):
    with hushed():
        meeting.wait(30)
        os.write(2, b"native\\n")
        sys.stderr.write("python\\n")
        meeting.wait(30)
meeting = threading.Barrier(4)
with own_process() if own else contextlib.nullcontext(), native_lines(shown=shown):
    threads = [threading.Thread(target=print_past_python, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    os.write(2, b"between\\n")
    with hushed():
        os.write(2, b"native\\n")
print("after", file=sys.stderr)
os.write(2, b"end\\n")
"""


@pytest.mark.parametrize(
    ("own", "shown", "count"), [("yes", "no", 0), ("yes", "yes", 5), ("no", "no", 5)]
)
def test_only_lines_of_libraries_are_hidden(own: str, shown: str, count: int) -> None:
    done = python(_NATIVE, own, shown)
    lines = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    assert [lines.count(word) for word in ("python", "between", "after", "end")] == [4, 1, 1, 1]
    assert lines.count("native") == count


# -- what a killed process leaves -----------------------------------------------------------------

_WRITES = """
import os, signal, sys, time
from pathlib import Path
from geoseg._files import whole_file
with whole_file(Path(sys.argv[1])) as part:
    part.write_text("half")
    part.with_name(part.stem + ".spool.gpkg").write_text("half")
    part.with_name(part.name + "-journal").write_text("half")
    print("begun", flush=True)
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


@posix
def test_the_next_run_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    final = tmp_path / "p.gpkg"
    assert python(_WRITES, final, "dies").returncode == -signal.SIGKILL
    others = {".q.99999999-1.part.gpkg", ".p.gpkg", ".p.mine.part.gpkg", f".p.{os.getpid()}.gpkg"}
    elsewhere = f".p.99999999-1-{crc32(b'another machine'):08x}.part.gpkg"
    old = ".p.99999999.part.gpkg"
    for name in (*others, elsewhere, old):
        (tmp_path / name).write_text("half")
    assert len(names_in(tmp_path)) == 3 + len(others) + 2
    with whole_file(final) as part:
        part.write_text("whole")
    assert names_in(tmp_path) == {"p.gpkg", elsewhere, *others}


@posix
def test_files_of_living_processes_stay(tmp_path: Path) -> None:
    final = tmp_path / "p.gpkg"
    other = subprocess.Popen(
        [sys.executable, "-c", _WRITES, str(final), "waits"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "begun\n"
        theirs = names_in(tmp_path)
        assert len(theirs) == 3
        with whole_file(final) as outer, whole_file(tmp_path / "p.fgb") as inner:
            outer.write_text("mine")
            inner.write_text("mine too")
            with whole_file(final) as again:
                again.write_text("first")
        assert names_in(tmp_path) == {"p.gpkg", "p.fgb", *theirs}
        other.stdin.close()
    assert other.returncode == 0
    assert names_in(tmp_path) == {"p.gpkg", "p.fgb"}
    assert final.read_text() == "half"


def test_a_number_that_is_used_again_protects_nothing(tmp_path: Path) -> None:
    """In a container every run may have the same process number."""
    mark = f"{crc32(socket.gethostname().encode()):08x}"
    (tmp_path / f".p.{os.getpid()}-1-{mark}.part.gpkg").write_text("half")
    with whole_file(tmp_path / "p.gpkg") as part:
        part.write_text("whole")
    assert names_in(tmp_path) == {"p.gpkg"}


# -- all or none ----------------------------------------------------------------------------------


def test_files_that_belong_together_appear_together(tmp_path: Path) -> None:
    (tmp_path / "taken.txt").mkdir()
    finals = [tmp_path / "one.txt", tmp_path / "taken.txt"]
    refused = pytest.raises(OutputError, match=r"taken\.txt: cannot be written \(Is a directory\)")
    with refused, whole_files(finals) as parts:
        _fill(parts)
    assert names_in(tmp_path) == {"taken.txt"}
    (tmp_path / "taken.txt").rmdir()
    with whole_files(finals) as parts:
        _fill(parts)
        assert not names_in(tmp_path) & {"one.txt", "taken.txt"}
    assert names_in(tmp_path) == {"one.txt", "taken.txt"}


def _fill(parts: list[Path]) -> None:
    for part in parts:
        part.write_text("new")


def test_an_evaluation_is_written_whole(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, out = evaluate(labels, labels), tmp_path / "out"
    write_report(found, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def no_room(self: object, path: Path, *more: object, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (out / "classes.csv").write_text("of an earlier run")
    monkeypatch.setattr(Image.Image, "save", no_room)
    with pytest.raises(OutputError, match=r"confusion\.png: cannot be written, there is no room"):
        write_report(found, out, overwrite=True)
    assert (out / "classes.csv").read_text() == "of an earlier run"
    assert names_in(out) == before.keys()


def test_polygons_and_style_of_the_raster_come_together(
    labels: Path, tmp_path: Path, runner: CliRunner
) -> None:
    polygons = tmp_path / "labels.gpkg"
    command = ["vectorize", str(labels), "-o", str(polygons), "--raster-style"]
    aux = tmp_path / "labels.tif.aux.xml"
    aux.write_text("mine")
    done = runner.invoke(app, command)
    assert done.exit_code == 1
    assert "labels.tif.aux.xml: exists already" in done.stderr
    assert names_in(tmp_path) == {"labels.tif", "labels.tif.aux.xml"}
    aux.unlink()
    polygons.write_text("mine")
    assert runner.invoke(app, command).exit_code == 1
    assert names_in(tmp_path) == {"labels.tif", "labels.gpkg"}
    assert runner.invoke(app, [*command, "--overwrite"]).exit_code == 0
    assert names_in(tmp_path) == {"labels.tif", "labels.gpkg", "labels.qml", "labels.tif.aux.xml"}


# -- texts of others ------------------------------------------------------------------------------


@given(st.text(max_size=5) | st.sampled_from(["=1+1", "+1", "-1", "@a", "\t=1", "\r=1"]))
def test_no_cell_begins_like_a_formula(text: str) -> None:
    cell = csv_cell(text)
    assert isinstance(cell, str)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell in (text, f"'{text}")
    assert csv_cell(cell) == cell


@pytest.mark.parametrize("value", [-1, -0.5, None, True])
def test_numbers_are_no_formulas(value: object) -> None:
    assert csv_cell(value) is value


def test_tables_of_zones_hold_no_formulas(labels: Path, tmp_path: Path) -> None:
    vectorize(labels, tmp_path / "zones.gpkg")
    table = zone_stats(labels, tmp_path / "zones.gpkg", column="class_name")
    out = write_stats(table, tmp_path / "s.csv")
    assert out.read_text() == as_csv(table)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class_name"] for row in rows} == {"'=1+1", "'-roof", "tree"}
    assert {row["zone"] for row in rows} == {"'=1+1", "'-roof", "tree"}
    assert set(table.class_name) == {"=1+1", "-roof", "tree"}
    write_stats(table, tmp_path / "s.json")
    assert {row["zone"] for row in json.loads((tmp_path / "s.json").read_text())} == set(table.zone)


def test_tables_of_an_evaluation_hold_no_formulas(labels: Path, tmp_path: Path) -> None:
    write_report(evaluate(labels, labels), tmp_path / "out")
    for name, at in (("classes.csv", "class"), ("confusion.csv", "truth \\ labelled as")):
        with (tmp_path / "out" / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row[at] for row in rows] == ["'=1+1", "'-roof", "tree"]
    assert list(rows[0])[1:] == ["'=1+1", "'-roof", "tree"]
    write_csv(tmp_path / "t.csv", [["a", Path("-x"), -1, None]])
    assert (tmp_path / "t.csv").read_text() == "a,'-x,-1,\n"


@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
        | st.sampled_from(["a\ufffeb", "\x01", "</label>", "a & b", '"<!--', "]]>"]),
        min_size=1, max_size=4, unique=True,
    )
)  # fmt: skip
def test_styles_are_xml_whatever_the_names(names: list[str]) -> None:
    classes = as_label_classes(names)
    shown = [xml_text(name) for name in names]
    makers: list[tuple[Callable[..., str], str]] = [
        (style.polygon_qml, "category"),
        (style.raster_qml, "paletteEntry"),
    ]
    for make, tag in makers:
        root = ET.fromstring(make(classes).split("\n", 1)[1])
        assert [entry.get("label") for entry in root.iter(tag)] == shown
    assert len(list(ET.fromstring(style.raster_metadata(classes, {})).iter("Category"))) == len(
        names
    )


def test_what_xml_cannot_hold_is_shown() -> None:
    assert xml_text("a\ufffeb\x01") == "a\\ufffeb\\u0001"
    assert xml_text("Wäldchen & 屋 <b> \U0001f332") == "Wäldchen & 屋 <b> \U0001f332"


@posix
def test_a_mosaic_of_files_that_xml_cannot_name_is_refused(tmp_path: Path) -> None:
    strange = tmp_path / "a\x01.tif"
    with rasterio.open(
        strange, "w", driver="GTiff", count=1, height=2, width=2, dtype="uint8",
        crs="EPSG:32631", transform=Affine(1, 0, 500_000, 0, -1, 5_000_000),
    ):  # fmt: skip
        pass
    with pytest.raises(SceneError, match="rename it"):
        build_mosaic([strange], tmp_path / "m.vrt")
    assert names_in(tmp_path) == {strange.name}
