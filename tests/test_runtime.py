"""A call from a notebook or another program leaves its process as it was."""

from __future__ import annotations

import ctypes
import gc
import importlib
import itertools
import json
import locale
import logging
import os
import pkgutil
import random
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

CLASSES = "road; water; roof"
GDAL_OPTIONS = (
    "GDAL_CACHEMAX", "GDAL_NUM_THREADS", "GDAL_DISABLE_READDIR_ON_OPEN", "GDAL_DATA", "PROJ_DATA",
    "GDAL_TIFF_INTERNAL_MASK", "GDAL_PAM_ENABLED", "VSI_CACHE", "VSI_CACHE_SIZE", "CPL_DEBUG",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS", "CPL_VSIL_CURL_CACHE_SIZE", "GDAL_HTTP_MAX_RETRY",
    "GDAL_HTTP_TIMEOUT", "GDAL_HTTP_MULTIPLEX", "OGR_SQLITE_SYNCHRONOUS", "OGR_SQLITE_CACHE",
    "OGR_CURRENT_DATE", "GTIFF_SRS_SOURCE", "CHECK_WITH_INVERT_PROJ",
)  # fmt: skip


# -- what a process is, seen from inside ----------------------------------------------------------


def in_new_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1, "probe") as pool:
        return pool.submit(function).result()


class WatchedLibrary(ctypes.CDLL):
    """A C library that notes who changes the allocator; nobody can ask glibc for its settings."""

    changes: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name == "mallopt":
            self.changes.append(name)
        return super().__getattr__(name)


def state() -> dict[str, str]:
    """Everything of the process that a call could leave changed."""
    import dask
    import PIL.Image
    import pyogrio
    import pyproj
    import rasterio.env
    import torch
    import xarray

    backends = torch.backends
    loggers = {
        name: (one.level, one.handlers, one.propagate, one.disabled)
        for name, one in logging.root.manager.loggerDict.items()
        if isinstance(one, logging.Logger) and (one.level or one.handlers or not one.propagate)
    }
    mask = os.umask(0)
    os.umask(mask)
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "threads of a new thread": in_new_thread(torch.get_num_threads),
        "threads between operations": torch.get_num_interop_threads(),
        "precision of products": (
            torch.get_float32_matmul_precision(),
            backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        ),
        "GPU libraries": (
            backends.cudnn.enabled,
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
        ),
        "oneDNN": backends.mkldnn.enabled,
        "modes of torch": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cpu"),
        ),
        "warnings": (warnings.filters, warnings.showwarning),
        "randomness of torch": torch.get_rng_state().tolist(),
        "randomness of numpy": np.random.get_state(),  # noqa: NPY002
        "randomness of Python": random.getstate(),
        "numpy": (np.geterr(), np.get_printoptions()),
        "environment": sorted(os.environ.items()),
        "folder": (str(Path.cwd()), mask),
        "root logger": (logging.root.level, logging.root.handlers, logging.root.disabled),
        "loggers": loggers,
        "GDAL": {name: rasterio.env.get_gdal_config(name) for name in GDAL_OPTIONS},
        "GDAL of vectors": {name: pyogrio.get_gdal_config_option(name) for name in GDAL_OPTIONS},
        "rasterio's Env": rasterio.env.hasenv(),
        "PROJ": (pyproj.network.is_network_enabled(), pyproj.datadir.get_data_dir()),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "dask": dask.config.config,
        "xarray": xarray.get_options(),
        "Pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.Image.WARN_POSSIBLE_FORMATS),
        "Python": (sys.path, sys.excepthook, sys.getrecursionlimit(), sys.getswitchinterval()),
        "streams": (id(sys.stdin), id(sys.stdout), id(sys.stderr)),
        "garbage": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "locale": (locale.setlocale(locale.LC_ALL), socket.getdefaulttimeout()),
        "allocator": len(WatchedLibrary.changes),
        "threads left": [t.name for t in threading.enumerate() if t.name.startswith("geoseg")],
    }
    return {name: repr(value) for name, value in found.items()}


# -- what is called, in a process of its own ------------------------------------------------------


def everything_is_imported() -> None:
    import geoseg

    for module in pkgutil.walk_packages(geoseg.__path__, "geoseg."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if (error.name or "geoseg").startswith("geoseg"):
                raise  # it is not a package that need not be installed


def a_model_is_loaded() -> None:
    import geoseg

    geoseg.load_model("local-dir:model", device="cpu")


def a_scene_is_mapped_to_files() -> None:
    to_files("files")


def an_image_is_mapped_in_memory() -> None:
    import geoseg

    model = geoseg.load_model("local-dir:model", device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (150, 170, 3), np.uint8)
    geoseg.Segmenter(model, CLASSES).predict(image)


def a_lazy_map_is_computed() -> None:
    import geoseg

    geoseg.segment("scene.tif", CLASSES, model="local-dir:model", tile=128, device="cpu").compute()


def labels_become_polygons() -> None:
    import geoseg

    options = geoseg.Products(min_area_m2=20, simplify_m=1)
    geoseg.vectorize("labels.tif", "polygons.gpkg", options=options, overwrite=True)


def labels_are_compared() -> None:
    import geoseg

    geoseg.evaluate("labels.tif", "labels.tif", boundary_tolerance=2)


def zones_are_counted() -> None:
    from geoseg.vector.stats import zone_stats

    zone_stats("labels.tif", "zones.gpkg")


def a_preview_is_drawn() -> None:
    from geoseg.preview import preview_files

    preview_files("scene.tif", "labels.tif", Path("preview.png"), overwrite=True)


def a_run_fails_in_the_middle() -> None:
    expect_broken(lambda progress: to_files("broken", progress=progress), at=2)


def a_vector_file_fails_in_the_middle() -> None:
    import geoseg

    expect_broken(lambda progress: geoseg.vectorize("labels.tif", "no.gpkg", progress=progress))
    assert not list(Path.cwd().glob("*no*"))


def a_comparison_fails_in_the_middle() -> None:
    import geoseg

    expect_broken(lambda progress: geoseg.evaluate("labels.tif", "labels.tif", progress=progress))


def two_runs_go_on_at_once() -> None:
    import torch

    both = threading.Barrier(2)

    def one(name: str) -> tuple[int, int]:
        before = torch.get_num_threads()
        both.wait(60)
        a_model_is_loaded()
        to_files(name)
        labels_are_compared()
        return before, torch.get_num_threads()

    with ThreadPoolExecutor(2) as pool:
        for before, after in pool.map(one, ("one", "two")):
            assert before == after


def everything_is_changed() -> None:
    """What no call may do; here so that the check itself is checked."""
    import torch
    from rasterio.env import set_gdal_config

    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    warnings.simplefilter("ignore")
    os.environ["SOMETHING"] = "else"
    logging.root.setLevel(logging.DEBUG)
    set_gdal_config("GDAL_CACHEMAX", 2**20)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    os.chdir("model")
    ctypes.CDLL(None).mallopt(-1, 2**17)


CALLS: tuple[Callable[[], None], ...] = (
    everything_is_imported,
    a_model_is_loaded,
    a_scene_is_mapped_to_files,
    an_image_is_mapped_in_memory,
    a_lazy_map_is_computed,
    labels_become_polygons,
    labels_are_compared,
    zones_are_counted,
    a_preview_is_drawn,
    a_run_fails_in_the_middle,
    a_vector_file_fails_in_the_middle,
    a_comparison_fails_in_the_middle,
    two_runs_go_on_at_once,
    everything_is_changed,
)


def to_files(name: str, **given: Any) -> None:
    import geoseg

    products = geoseg.Products(polygons="gpkg", preview=True)
    geoseg.segment_to_files(
        "scene.tif", CLASSES, name, model="local-dir:model", products=products, tile=128,
        device="cpu", **given,
    )  # fmt: skip


class BrokenError(Exception):
    """What a caller's own function raises."""


def expect_broken(call: Callable[[Callable[..., None]], object], *, at: int = 1) -> None:
    """Make a call and let its progress function raise at one of the times it is called."""
    times = itertools.count(1)

    def progress(*_: object) -> None:
        if next(times) == at:
            raise BrokenError

    try:
        call(progress)
    except BrokenError:
        return
    raise AssertionError("it did not fail")


def use_third_parties() -> None:
    """Load what changes a process when it is loaded, which is not this library's doing."""
    import distributed  # noqa: F401
    import geopandas
    import open_clip  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import rasterio
    import rich.console  # noqa: F401
    import rioxarray  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import torch

    torch.rand(64, 64) @ torch.rand(64, 64)
    geopandas.read_file("zones.gpkg")
    with rasterio.open("scene.tif") as scene:
        scene.read()


def report() -> None:
    """Make every call in turn and print what each of them left changed."""
    ctypes.CDLL = WatchedLibrary  # type: ignore[misc]
    use_third_parties()
    found = {}
    for call in CALLS:
        before = state()
        call()
        after = state()
        found[call.__name__] = [
            f"{name}: {before[name]:.300} -> {after[name]:.300}"
            for name in before
            if before[name] != after[name]
        ]
    print(json.dumps(found))


# -- the tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a scene, labels on it and zones."""
    import geopandas as gpd
    import shapely

    from geoseg.io.scene import Scene
    from geoseg.io.write import label_writer
    from geoseg.testing import tiny_random_model, write_scene
    from geoseg.types import LabelClass

    folder = tmp_path_factory.mktemp("runtime")
    tiny_random_model(folder / "model")
    grid = Scene.open(write_scene(folder / "scene.tif", 300, 260)).grid
    classes = [LabelClass(0, "road", "#111111"), LabelClass(1, "roof", "#aa0000")]
    with label_writer(folder / "work.tif", grid, classes) as writer:
        blocks = np.indices(grid.shape).sum(0) // 40 % 2
        writer.write(grid.window, blocks.astype(np.uint8))
        writer.finish(folder / "labels.tif")
    corners = [grid.to_ground(col, row) for col, row in ((20, 20), (200, 30), (90, 250))]
    zones = gpd.GeoDataFrame(geometry=[shapely.Polygon(corners)], crs=grid.crs)
    zones.to_file(folder / "zones.gpkg")
    return folder


@pytest.fixture
def inside(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same inputs, which is the current one."""
    for name in ("model", "scene.tif", "labels.tif", "zones.gpkg"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def left_changed(folder: Path) -> dict[str, list[str]]:
    """What every call left changed in a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", "import test_runtime; test_runtime.report()"],
        cwd=folder,
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "GEOSEG_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "2",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("call", [call.__name__ for call in CALLS[:-1]])
def test_the_process_is_as_it_was_after(call: str, left_changed: dict[str, list[str]]) -> None:
    assert left_changed[call] == []


def test_the_check_sees_what_is_changed(left_changed: dict[str, list[str]]) -> None:
    assert {line.partition(":")[0] for line in left_changed["everything_is_changed"]} == {
        "threads", "threads of a new thread", "randomness of torch", "randomness of numpy",
        "randomness of Python", "warnings", "environment", "root logger", "GDAL", "signals",
        "folder", "allocator",
    }  # fmt: skip


def test_only_a_process_of_its_own_sets_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    from geoseg.runtime.allocator import kept_memory, own_process

    monkeypatch.setattr(ctypes, "CDLL", WatchedLibrary)
    monkeypatch.setattr(WatchedLibrary, "changes", [])
    with kept_memory():
        pass
    assert WatchedLibrary.changes == []
    with own_process(), kept_memory():
        assert WatchedLibrary.changes


def test_workers_that_are_threads_leave_the_allocator_alone(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are threads of somebody's notebook."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(ctypes, "CDLL", WatchedLibrary)
    monkeypatch.setattr(WatchedLibrary, "changes", [])
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as client:
        to_files("files", client=client)
    assert (inside / "files" / "labels.tif").is_file()
    assert WatchedLibrary.changes == []


# -- GDAL's cache ---------------------------------------------------------------------------------


def cache_bytes() -> int:
    from rasterio.env import get_gdal_config

    return int(get_gdal_config("GDAL_CACHEMAX"))


@pytest.fixture
def large_cache() -> Iterator[int]:
    from rasterio.env import set_gdal_config

    before, large = cache_bytes(), 3 * 2**30
    set_gdal_config("GDAL_CACHEMAX", large)
    yield large
    set_gdal_config("GDAL_CACHEMAX", before)


@pytest.mark.parametrize(
    "call",
    [
        a_scene_is_mapped_to_files,
        a_lazy_map_is_computed,
        labels_become_polygons,
        labels_are_compared,
        zones_are_counted,
        a_preview_is_drawn,
    ],
)
def test_what_reads_rasters_bounds_the_cache(
    call: Callable[[], None], inside: Path, large_cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geoseg.io.labels import LabelRaster
    from geoseg.io.scene import Scene

    seen = []

    def spied(kind: Any, name: str) -> None:
        read = getattr(kind, name)

        def reading(*given: Any) -> Any:
            seen.append(cache_bytes())
            return read(*given)

        monkeypatch.setattr(kind, name, reading)

    spied(LabelRaster, "_read")
    spied(Scene, "read")
    call()
    assert seen
    assert max(seen) <= 64 * 2**20
    assert cache_bytes() == large_cache


def test_a_smaller_cache_stays(large_cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from rasterio.env import set_gdal_config

    from geoseg.runtime.gdal import bounded_cache

    set_gdal_config("GDAL_CACHEMAX", 5 * 2**20)
    with bounded_cache():
        assert cache_bytes() == 5 * 2**20
    set_gdal_config("GDAL_CACHEMAX", large_cache)
    monkeypatch.setenv("GDAL_CACHEMAX", "3000")
    with bounded_cache():
        assert cache_bytes() == large_cache


# -- settings that several threads want -----------------------------------------------------------


def test_two_threads_both_get_their_number_back() -> None:
    """PyTorch keeps it by thread, so the last to leave cannot put it back for the first."""
    import torch

    from geoseg.runtime.threads import in_order

    def one(begins: threading.Event, waits: threading.Event, ends: threading.Event) -> int:
        results = in_order(lambda _: 1, range(9), most=2, share=False)
        next(results)
        begins.set()
        assert waits.wait(30)
        results.close()
        ends.set()
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    first, second, left = threading.Event(), threading.Event(), threading.Event()
    try:
        with ThreadPoolExecutor(2) as pool:
            earlier = pool.submit(one, first, second, left)
            assert first.wait(30)
            later = pool.submit(one, second, left, threading.Event())
            assert (earlier.result(30), later.result(30)) == (4, 4)
        assert torch.get_num_threads() == 4
        assert in_new_thread(torch.get_num_threads) == 4
    finally:
        torch.set_num_threads(before)
