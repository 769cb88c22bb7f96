"""Scenes at addresses: nothing that geoseg writes or says holds a secret of the address."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import rasterio
from fsspec import AbstractFileSystem
from fsspec.registry import _registry as registry
from rasterio.transform import from_origin
from rasters import make, rgb
from typer.testing import CliRunner

import geoseg
from geoseg._address import lasting_address, scene_name, shown_address
from geoseg.errors import GeosegError, GeosegWarning, OutputError, SceneError
from geoseg.io._handles import open_dataset
from geoseg.io.expand import expand_scenes
from geoseg.io.mosaic import build_mosaic, build_stack
from geoseg.io.scene import Scene
from geoseg.run.result import Progress
from geoseg.testing import tiny_random_model, write_scene
from geoseg.types import Window
from geoseg_cli.main import app

SECRET = "SECRETtoken%2Bx%3D"
SIGNED = f"?se=2030-01-01&sig={SECRET}"
QUICK = geoseg.Options(templates="none")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


_SERVER = """
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs
from range_server import RangeHandler

class Handler(RangeHandler):
    folder = Path(sys.argv[1])

    def do_GET(self):
        does = {file.name for file in (self.folder / "does").iterdir()}
        if "busy" in does or ("no head" in does and self.command == "HEAD"):
            self.send_error(503 if "busy" in does else 403)
        elif "refuses" in does:
            self.send_error(403)
        elif {"prefix", "delimiter", "max-keys"} & parse_qs(self.path.partition("?")[2]).keys():
            self.list_bucket()
        else:
            self.path = self.path.partition("?")[0]
            super().do_GET()

    def list_bucket(self):
        place, _, query = self.path.partition("?")
        prefix = parse_qs(query).get("prefix", [""])[0]
        bucket = self.folder / place.strip("/")
        keys = (f.relative_to(bucket).as_posix() for f in sorted(bucket.rglob("*")) if f.is_file())
        keys = [key for key in keys if key.startswith(prefix)]
        if "delimiter" in query:
            rests = [key[len(prefix):] for key in keys]
            folders = {prefix + rest.split("/")[0] for rest in rests if "/" in rest}
            keys = [prefix + rest for rest in rests if "/" not in rest]
        else:
            folders = ()
        body = "".join(
            [f"<Contents><Key>{k}</Key><Size>{(bucket / k).stat().st_size}</Size><ETag>1</ETag>"
             "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>" for k in keys]
            + [f"<CommonPrefixes><Prefix>{f}/</Prefix></CommonPrefixes>" for f in sorted(folders)]
        )
        text = f"<ListBucketResult><Prefix>{prefix}</Prefix>{body}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def end_headers(self):
        self.send_header("ETag", '"one"')
        super().end_headers()

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Server:
    """A process of its own: GDAL may wait for it while it holds Python's lock."""

    address: str
    folder: Path

    def does(self, what: str) -> None:
        (self.folder / "does" / what).touch()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "served"
    (folder / "does").mkdir(parents=True)
    write_scene(folder / "scene.tif", 400, 420)
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/http://127.0.0.1")
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(folder)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": here},
    ) as running:  # fmt: skip
        assert running.stdout is not None
        yield Server(running.stdout.readline().strip(), folder)
        running.kill()


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that GDAL finds at ``s3://NAME``, another one in every test, since GDAL caches."""
    for name, value in {
        "AWS_NO_SIGN_REQUEST": "YES", "AWS_S3_ENDPOINT": server.address.removeprefix("http://"),
        "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    folder = server.folder / f"bkt-{server.address.rpartition(':')[2]}"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a/b.tif?sig=1", "https://host/a/b.tif?***"),
        ("https://me:word@host:80/b.tif", "https://***@host:80/b.tif"),
        ("/vsicurl/https://host/b.tif?x", "/vsicurl/https://host/b.tif?***"),
        ("/vsicurl?token=1&url=https%3A%2F%2Fhost%2Fb.tif%3Fs%3D1", "/vsicurl/https://host/b.tif"
         "?***"),
        ("'/vsicurl/https://host/b.tif?s=1' fails (https://u@h/?x=1).",
         "'/vsicurl/https://host/b.tif?***' fails (https://***@h/?***)."),
        ("b.tif?sig=1: TIFFReadDirectory: at 3", "b.tif?***: TIFFReadDirectory: at 3"),
        ("/data/what?.tif", "/data/what?.tif"),
        ("NETCDF:a.nc:x", "NETCDF:a.nc:x"),
        ("is this it? yes", "is this it? yes"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_secrets(text: str, shown: str) -> None:
    assert shown_address(text) == shown
    assert shown_address(shown_address(text)) == shown_address(text)


def test_errors_and_warnings_hold_no_secret_by_themselves() -> None:
    for kind in (SceneError, OutputError, GeosegError, GeosegWarning):
        problem = kind(f"https://me:{SECRET}@host/a.tif{SIGNED}: is not there")
        assert SECRET not in repr(problem) + str(problem)
        assert str(problem) == "https://***@host/a.tif?***: is not there"
        assert str(pickle.loads(pickle.dumps(problem))) == str(problem)


def test_the_name_of_a_scene_and_its_lasting_address() -> None:
    assert scene_name(f"https://me:x@host/a/b.tif{SIGNED}") == "b.tif"
    assert scene_name("folder/b.tif") == "b.tif"
    azure = "https://host/a.tif?sv=2020&st=1&se=2&sr=b&sp=r&sig=1"
    amazon = "https://host/a.tif?X-Amz-Date=1&X-Amz-Signature=2"
    assert lasting_address(azure) == lasting_address(amazon) == "https://host/a.tif"
    one, other = (lasting_address(f"https://host/get?file={name}&token=1") for name in "ab")
    assert one != other
    assert one == lasting_address("https://host/get?file=a&token=2")


def test_no_file_and_no_stream_holds_the_secret(
    server: Server, spec: str, tmp_path: Path, runner: CliRunner
) -> None:
    address = f"{server.address}/scene.tif{SIGNED}"
    code = "from geoseg_cli.main import run; run()"
    common = ["--classes", "water; tree", "--model", spec, "--json", "--out"]
    done = subprocess.run(
        [sys.executable, "-c", code, "segment", address, *common, str(tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    missing = ["segment", address.replace("scene.tif", "none.tif"), *common, str(tmp_path / "no")]
    failed, debugged = runner.invoke(app, missing), runner.invoke(app, [*missing, "--debug"])
    for text in (done.stdout, done.stderr, failed.output, debugged.output):
        assert "SECRET" not in text
    assert "Traceback" in debugged.output
    assert json.loads(done.stdout)["runs"][0]["scene"] == f"{server.address}/scene.tif?***"
    (line,) = failed.stderr.splitlines()
    assert line.endswith("none.tif?***: cannot be opened, the server answers 404 (Not Found)")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert [file for file in files if b"SECRET" in file.read_bytes()] == []


def test_neither_logs_nor_causes_nor_tasks_hold_the_secret(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"{server.address}/scene.tif{SIGNED}"
    with caplog.at_level(logging.DEBUG, "rasterio"):
        assert SECRET not in repr(Scene.open(address))
        server.does("busy")
        with pytest.raises(SceneError, match="503") as found:
            Scene.open(address.replace("scene", "other"))
    assert SECRET not in caplog.text
    cause: BaseException | None = found.value
    while cause is not None:
        assert SECRET not in repr(cause)
        cause = cause.__cause__


@pytest.mark.parametrize(
    ("does", "words"),
    [("busy", r"the server answers 503 .*try again"), ("refuses", r"403 .*signature may have exp")],
)
def test_a_server_that_does_not_deliver_is_no_damaged_file(
    server: Server, does: str, words: str
) -> None:
    scene = Scene.open(f"{server.address}/scene.tif{SIGNED}")
    server.does(does)
    with pytest.raises(SceneError, match=words) as found:
        scene.read(Window(256, 0, 140, 420))
    assert "damaged" not in str(found.value)
    with pytest.raises(SceneError, match=words):
        Scene.open(f"{server.address}/elsewhere.tif{SIGNED}")


def test_a_server_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"a\.tif: cannot be opened, the server cannot be reached"):
        Scene.open("http://127.0.0.1:9/a.tif")


def test_a_resumed_run_knows_a_scene_that_was_signed_anew(
    server: Server, spec: str, tmp_path: Path
) -> None:
    server.does("no head")  # as where the signature is for reading alone
    address, out = f"{server.address}/scene.tif", tmp_path / "out"

    class StopError(Exception):
        pass

    def stop(state: Progress) -> None:
        if state.tiles_done == 1:
            raise StopError

    common = {"model": spec, "options": QUICK, "tile": 224}
    with pytest.raises(StopError):
        geoseg.segment_to_files(f"{address}?sig=old", "a; b", out, progress=stop, **common)
    geoseg.segment_to_files(f"{address}?sig=new", "a; b", out, resume=True, **common)
    report = json.loads((out / "run.json").read_text())
    assert report["scene"] == f"{address}?***"
    geoseg.segment_to_files(f"{address}?sig=newer", "a; b", out, resume=True, **common)
    with pytest.raises(OutputError, match="other input"):
        geoseg.segment_to_files(f"{address}?file=2", "a; b", out, resume=True, **common)


def test_settings_of_the_user_hold_for_addresses(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geoseg.runtime.gdal import http_settings

    monkeypatch.delenv("GDAL_HTTP_MAX_RETRY")
    found = http_settings("https://host/a.tif?sig=1")
    assert found["GDAL_HTTP_MAX_RETRY"] == "3"
    assert found["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"
    # A mask may lie beside a scene.
    assert http_settings("https://host/a.tif")["GDAL_DISABLE_READDIR_ON_OPEN"] == "TRUE"
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "7")
    assert "GDAL_HTTP_MAX_RETRY" not in http_settings("https://host/a.tif")
    before = dict(os.environ)
    with open_dataset(f"{server.address}/scene.tif") as dataset:
        assert dataset.count == 3
    assert os.environ == before


def test_the_mosaic_of_signed_scenes_goes_with_the_run(
    server: Server, spec: str, tmp_path: Path
) -> None:
    run = geoseg.segment_to_files(
        [f"{server.address}/scene.tif{SIGNED}"], "a; b", tmp_path / "out", model=spec, options=QUICK
    )
    assert not (tmp_path / "out" / "mosaic.vrt").exists()
    assert [file for file in run.files if b"SECRET" in file.read_bytes()] == []


def test_the_stack_of_signed_bands_goes_with_the_run(
    server: Server, spec: str, tmp_path: Path
) -> None:
    bands = ("B02", "B03", "B04")
    for number, name in enumerate(bands):
        make(server.folder / f"{name}.tif", rgb(seed=number)[:1])
    out = tmp_path / "out"
    geoseg.segment_to_files(
        [f"{server.address}/{name}.tif{SIGNED}" for name in bands], "a; b", out,
        model=spec, options=QUICK, reading=geoseg.Reading(rgb=True),
    )  # fmt: skip
    found = [file for file in out.rglob("*") if file.is_file()]
    assert len(found) > 5
    assert [file for file in found if b"SECRET" in file.read_bytes()] == []
    assert not (out / "rgb.vrt").exists()


def test_the_query_of_an_address_tells_no_colour(server: Server, tmp_path: Path) -> None:
    bands = ("B02", "B03", "B04")
    for number, name in enumerate(bands):
        make(server.folder / f"{name}.tif", np.full((1, 9, 9), number, np.uint8))
    signed = [
        f"{server.address}/{name}.tif?sig={SECRET}.{other}"
        for name, other in zip(bands, reversed(bands), strict=True)
    ]
    scene = Scene.open(build_stack(signed, tmp_path / "s.vrt"), nodata=())
    data, _ = scene.source.read(scene.grid.window)
    assert data[:, 0, 0].tolist() == [2, 1, 0]


def test_a_vrt_of_the_users_stays_where_signed_scenes_are_mapped(
    server: Server, spec: str, tmp_path: Path
) -> None:
    (tmp_path / "mosaic.vrt").write_text("<VRTDataset/>")
    with pytest.raises(OutputError, match="was not made by geoseg"):
        geoseg.segment_to_files(
            [f"{server.address}/scene.tif{SIGNED}"], "a; b", tmp_path, model=spec, options=QUICK
        )
    assert (tmp_path / "mosaic.vrt").read_text() == "<VRTDataset/>"


def test_class_files_are_read_at_addresses(server: Server) -> None:
    (server.folder / "classes.txt").write_text("water, lake\ntree\n")
    (server.folder / "classes.toml").write_text('[[class]]\nname = "a"\n[[class]]\nname = "b"\n')
    address = f"{server.address}/classes.txt"
    for given in (address, f"{address}?sig={SECRET}", f"/vsicurl/{address}", Path(address)):
        assert geoseg.Vocabulary.parse(given).names == ("water", "tree")
    assert geoseg.Vocabulary.parse(f"{server.address}/classes.toml").names == ("a", "b")
    with pytest.raises(GeosegError, match=rf"{server.address}/no.txt cannot.* 404"):
        geoseg.Vocabulary.parse(f"{server.address}/no.txt")


def test_messages_of_files_at_addresses_keep_the_address(tmp_path: Path) -> None:
    for given in ("s3://b/x.pt", "https://h/x.pt"):
        with pytest.raises(GeosegError, match=f"fetch {given} and give ViT-B-32:/path"):
            geoseg.load_model(f"ViT-B-32:{given}")
    with pytest.raises(GeosegError, match=r"s3://b/x\.qml: such a file is read from this"):
        geoseg.vectorize(labels(tmp_path / "l.tif"), tmp_path / "p.fgb", classes="s3://b/x.qml")
    with pytest.raises(GeosegError, match=r"s3://b/p\.fgb: is an address.*copy it there"):
        geoseg.vectorize(tmp_path / "l.tif", "s3://b/p.fgb")


def labels(path: Path, names: tuple[str, ...] = ("water", "tree")) -> Path:
    """Halves of two classes."""
    values = np.repeat([[0, 1]], 40, axis=0).repeat(20, axis=1).astype(np.uint8)[None]
    make(path, values, nodata=255)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(**{f"CLASS_{i}": name for i, name in enumerate(names)})
    return path


def test_every_command_takes_the_addresses_that_segment_takes(
    bucket: Path, server: Server, tmp_path: Path, runner: CliRunner
) -> None:
    labels(bucket / "labels.tif")
    geoseg.vectorize(bucket / "labels.tif", bucket / "zones.geojson")
    for start in (
        f"s3://{bucket.name}",
        f"/vsis3/{bucket.name}",
        f"{server.address}/{bucket.name}",
    ):
        out = tmp_path / start.strip("/").replace("/", "_").replace(":", "_")
        out.mkdir()
        for arguments in (
            ["vectorize", f"{start}/labels.tif", "-o", f"{out}/p.geojson"],
            ["vectorize", f"{start}/labels.tif", "-o", f"{out}/c.fgb",
             "--confidence", f"{start}/labels.tif", "--runner-up", f"{start}/labels.tif"],
            ["stats", f"{start}/labels.tif", "--zones", f"{start}/zones.geojson", "-o",
             f"{out}/s.csv"],
            ["preview", f"{start}/labels.tif", f"{start}/labels.tif", "-o", f"{out}/p.png"],
            ["evaluate", f"{start}/labels.tif", f"{start}/labels.tif", "-o", f"{out}/e"],
            ["evaluate", f"{start}/labels.tif", f"{start}/zones.geojson", "-o", f"{out}/v"],
            ["info", f"{start}/labels.tif", "--model", "geoseg-tiny"],
        ):  # fmt: skip
            done = runner.invoke(app, arguments)
            assert done.exit_code == 0, (arguments, done.output)


def test_a_mosaic_of_addresses_is_that_of_the_files(bucket: Path, tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        make(
            bucket / f"{name}.tif",
            rgb(seed=number)[:, :30, :30],
            transform=from_origin(5e5 + 30 * number, 5e6, 1, 1),
        )
    names = [
        f"{place}/{name}.tif" for place in (f"s3://{bucket.name}", str(bucket)) for name in "ab"
    ]
    far = Scene.open(build_mosaic(names[:2], tmp_path / "far.vrt"))
    near = Scene.open(build_mosaic(names[2:], tmp_path / "near.vrt"))
    assert near.shape == (30, 60)
    window = near.grid.window
    np.testing.assert_array_equal(far.read(window).rgb, near.read(window).rgb)
    with pytest.raises(SceneError, match=r"/none\.tif: cannot be opened"):
        build_mosaic([f"s3://{bucket.name}/none.tif"], tmp_path / "none.vrt")


class Store(AbstractFileSystem):  # type: ignore[misc]
    """Tells of a bucket what a package that reaches S3 tells."""

    protocol = "s3"
    cachable = False
    told: ClassVar[dict[str, Any]] = {}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self.told | {"name": path, "type": "file"}


def test_an_object_that_was_replaced_in_its_store_is_another_scene(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(bucket / "scene.tif", 60, 60)
    address = f"s3://{bucket.name}/scene.tif"
    monkeypatch.setitem(registry, "s3", Store)
    found = []
    for tag in ('"a"', '"a"', '"b"'):
        monkeypatch.setattr(Store, "told", {"ETag": tag, "size": 9, "LastModified": "2026-01-01"})
        found.append(Scene.open(address).fingerprint())
    assert found[0] == found[1] != found[2]
    assert found[0]["server"] == {
        "ETag": '"a"', "Last-Modified": "2026-01-01", "Content-Length": "9"
    }  # fmt: skip
    assert found[0]["pixels"] is None
    monkeypatch.setattr(Store, "told", {})  # a store that says nothing: some pixels are read
    assert Scene.open(address).fingerprint()["pixels"] is not None


def test_prefixes_and_patterns_of_a_store_are_listed(bucket: Path, server: Server) -> None:
    for name in ("x/b.tif", "x/a.tif", "x/notes.txt", "x/deep/c.tif", "y.tif"):
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(b"123456789")
    assert expand_scenes([f"s3://{bucket.name}/x/"]) == [
        f"s3://{bucket.name}/x/a.tif",
        f"s3://{bucket.name}/x/b.tif",
    ]
    assert expand_scenes([f"/vsis3/{bucket.name}/x/a*"]) == [f"/vsis3/{bucket.name}/x/a.tif"]
    assert expand_scenes([f"s3://{bucket.name}/x/d*/c.tif"]) == [f"s3://{bucket.name}/x/deep/c.tif"]
    for pattern in (f"s3://{bucket.name}/z/", f"s3://{bucket.name}/x/*.png"):
        with pytest.raises(SceneError, match=rf"{re.escape(pattern)}: "):
            expand_scenes([pattern])
    with pytest.raises(SceneError, match=r"web server cannot be listed; .*@FILE"):
        expand_scenes([f"{server.address}/*.tif"])
    signed = f"{server.address}/a.tif?x=[1]*"
    assert expand_scenes([signed]) == [signed]
