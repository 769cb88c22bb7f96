"""Cells of the page on notebooks run; those of a library that is not installed parse."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pytest
import rioxarray
import shapely
import xarray as xr

import geoseg
import geoseg.xarray
from geoseg.testing import tiny_random_model, write_scene

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "notebooks.md").read_text(encoding="utf-8")
CELLS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def lacking(cell: str) -> list[str]:
    """Libraries of a cell that are not installed."""
    found = set()
    for node in ast.walk(ast.parse(cell)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return sorted(name for name in found if importlib.util.find_spec(name) is None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def names(place: Path) -> dict[str, Any]:
    """What cells find there, to begin with what the page takes for granted."""
    (place / "sample_tiles").mkdir()
    scene = write_scene(place / "sample_tiles" / "town_river.tif", 120, 150)
    array = rioxarray.open_rasterio(scene)
    assert isinstance(array, xr.DataArray)
    left, bottom, right, top = array.rio.bounds()
    middle = shapely.box(left, bottom, (left + right) / 2, (bottom + top) / 2)
    dates = pd.Index(pd.date_range("2024-05-01", periods=2), name="time")
    model = geoseg.load_model(tiny_random_model(place / "model"), device="cpu")
    labels = geoseg.segment(scene, "water; road; tree", model=model).labels.compute()
    labels.geoseg.to_cog(place / "truth.tif")
    return {
        "model": model,
        "stack": xr.concat([array, array], dates),
        "dataset": array.isel(band=[0, 1, 2]).to_dataset("band"),
        "before": labels,
        "after": labels,
        "truth": place / "truth.tif",
        "polygon": middle,
        "zones": gpd.GeoDataFrame({"name": ["a"]}, geometry=[middle], crs=array.rio.crs),
    }


@pytest.mark.parametrize("place_of_cell", range(len(CELLS)))
def test_a_cell_of_the_page_runs(
    place_of_cell: int, names: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(place)
    cell = CELLS[place_of_cell]
    if missing := lacking(cell):
        pytest.skip(f"parses; {', '.join(missing)} is not installed")
    # The tests' model is as good, and quicker.
    text = cell.replace('model="geoseg-tiny"', "model=model").replace("truth.gpkg", "truth.tif")
    if place_of_cell == 0:
        assert len([line for line in cell.splitlines() if line.strip()]) <= 5
    exec(compile(text, f"cell {place_of_cell}", "exec"), names)


def test_the_libraries_shown_are_an_extra() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extra = " ".join(project["optional-dependencies"]["docs"])
    for name in ("hvplot", "leafmap", "odc-geo", "xbatcher"):
        assert name in extra
        assert any(name.replace("-", ".") in cell for cell in CELLS)
