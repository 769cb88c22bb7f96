"""What people see in QGIS, looked at headless; skipped where QGIS is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
from PIL import Image
from rasters import rgb

import geoseg
from geoseg.testing import tiny_random_model

_LOOK = """
import json, os, sqlite3, sys
from pathlib import Path
from qgis.core import QgsApplication, QgsRasterLayer, QgsVectorLayer
application = QgsApplication([], False)
application.initQgis()
photo, out = map(Path, sys.argv[1:3])
seen = {}
for raster in [photo, *sorted(out.glob("*.tif"))]:
    layer = QgsRasterLayer(str(raster), raster.stem)
    renderer = layer.renderer()
    seen[raster.stem] = {
        "kind": renderer.type(),
        "legend": [[label, colour.name()] for label, colour in renderer.legendSymbologyItems()],
        "extent": layer.extent().toString(3),
    }
layer = QgsVectorLayer(f"{out / 'polygons.gpkg'}|layername=segments", "polygons", "ogr")
seen["polygons"] = {
    "legend": [[c.label(), c.symbol().color().name()] for c in layer.renderer().categories()],
    "extent": layer.extent().toString(3),
    "abstract": layer.metadata().abstract(),
}
with sqlite3.connect(out / "polygons.gpkg") as package:
    (sld,) = package.execute("SELECT styleSLD FROM layer_styles").fetchone()
(out / "polygons.sld").write_text(sld, encoding="utf-8")
_, loaded = layer.loadSldStyle(str(out / "polygons.sld"))
rules = layer.renderer().rootRule().children() if loaded else []
seen["sld"] = [
    [rule.label(), rule.symbol().color().name(), rule.filterExpression()] for rule in rules
]
print("SEEN" + json.dumps(seen), flush=True)
os._exit(0)  # some versions crash while they end
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What QGIS makes of an image without a place and of its map."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if shutil.which("qgis_process") is None or python is None:
        pytest.skip("needs QGIS with its Python")
    folder = tmp_path_factory.mktemp("qgis")
    photo = folder / "photo.png"
    Image.fromarray(rgb().transpose(1, 2, 0)).save(photo)
    with pytest.warns(geoseg.errors.GeosegWarning, match="no CRS and no transform"):
        run = geoseg.segment_to_files(
            photo,
            ["water", "field & <crop>", "Wäldchen"],
            folder / "out",
            model=tiny_random_model(folder / "model"),
            options=geoseg.Options(templates="none"),
            products=geoseg.Products(margin=True, probabilities=True, runner_up=True),
        )
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", _LOOK, str(photo), str(run.out)],
        capture_output=True, text=True, check=False, timeout=120,
        env=env | {"QT_QPA_PLATFORM": "offscreen"},
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith("SEEN")]
    if not found and "No module named" in done.stderr:
        pytest.skip("QGIS has no Python here")
    assert found, done.stderr
    return dict(json.loads(found[0].removeprefix("SEEN")))


def test_the_legends_are_the_classes(seen: dict[str, Any]) -> None:
    names = ["water", "field & <crop>", "Wäldchen"]
    for layer in ("labels", "runner_up", "polygons"):
        assert [label for label, _ in seen[layer]["legend"]] == names
        assert seen[layer]["legend"] == seen["labels"]["legend"]
    assert [rule[:2] for rule in seen["sld"]] == seen["labels"]["legend"]
    assert [rule[2] for rule in seen["sld"]] == [f"class_id = {i}" for i in range(3)]


def test_per_cents_are_a_ramp(seen: dict[str, Any]) -> None:
    for layer in ("confidence", "margin", "probabilities"):
        assert seen[layer]["kind"] == "singlebandpseudocolor"
        assert [label for label, _ in seen[layer]["legend"]][::4] == ["0 %", "100 %"]


def test_an_image_without_a_place_and_its_map_lie_on_each_other(seen: dict[str, Any]) -> None:
    extents = {layer: seen[layer]["extent"] for layer in ("photo", "labels", "polygons")}
    assert len(set(extents.values())) == 1, extents


def test_the_polygons_say_what_they_are(seen: dict[str, Any]) -> None:
    assert seen["polygons"]["abstract"].startswith("Map of photo.png, made by geoseg ")
