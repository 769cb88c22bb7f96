"""What are examples, corrections and suggested places worth?

The bundled model on the sample tiles and on drawn scenes whose seeds and palettes it has not seen.
Of every scene the words are those of the classes that fill at least one per cent of it, and pixels
of others count nowhere. Figures are of counts over all scenes of a set.

- *examples*: three polygons a class, each the class's own ground in a square of 48 pixels about a
  random place, first without words, then beside them.
- *correct*: 20 random points with their true class, on the map of the words.
- *fast as full*: cells of the fast tier that have the class of the full tier's mean logits, on the
  scene where that is least.
- *suggest*: how many of 20 suggested places are wrong in that map, and how many of random ones.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import scipy.ndimage
import shapely

import geoseg
from geoseg.evaluation.metrics import IGNORE, Scores, confusion_matrix
from geoseg.inference.lane import TilePixels
from geoseg.io.labels import LabelRaster
from geoseg.tiling.tiles import TilePlan
from tools.evaluate_tiny import REAL_SCENES, held_out_scenes
from tools.scenes import class_names, vocabulary_lines

SAMPLES = Path(__file__).resolve().parents[1] / "sample_tiles"
NAMES, WORDS = class_names(), vocabulary_lines()
BARE = geoseg.Products(polygons="none", preview=False)
LEAST_SHARE = 0.01
REAL_SIDE = 1024
SIDE, EXAMPLES, POINTS = 48, 3, 20
"""Of a square that an example lies in, in pixels; examples a class; corrected places."""
_SCENES_A_SEED = 1000
PLACE = rasterio.transform.from_origin(500000, 5000000, 1, 1)


@dataclass(frozen=True)
class Case:
    """A scene whose ground is known."""

    store: geoseg.Store
    truth: npt.NDArray[np.int32]
    """``(H, W)`` number in `NAMES`, or `IGNORE`."""
    rng: np.random.Generator

    @property
    def present(self) -> list[int]:
        """Classes that count."""
        return sorted(set(self.truth[self.truth != IGNORE].tolist()))

    def points(self, places: npt.NDArray[np.int64]) -> gpd.GeoDataFrame:
        """Places, rows and columns, with what is there."""
        with rasterio.open(self.store.facts["scene"]["path"]) as scene:
            x, y = scene.transform * (places[:, 1] + 0.5, places[:, 0] + 0.5)
            crs = scene.crs
        names = [NAMES[self.truth[row, col]] for row, col in places]
        return gpd.GeoDataFrame({"class": names}, geometry=gpd.points_from_xy(x, y), crs=crs)

    def random_places(self) -> npt.NDArray[np.int64]:
        """Some of the pixels whose class is known."""
        known = np.argwhere(self.truth != IGNORE)
        return known[self.rng.choice(len(known), POINTS, replace=False)]

    def examples(self) -> gpd.GeoDataFrame:
        """Some polygons of each class, as a person would draw them about a place."""
        names, shapes = [], []
        with rasterio.open(self.store.facts["scene"]["path"]) as scene:
            transform, crs = scene.transform, scene.crs
        for number in self.present:
            known = np.argwhere(self.truth == number)
            for row, col in known[self.rng.choice(len(known), EXAMPLES, replace=False)]:
                near = np.zeros(self.truth.shape, bool)
                square = tuple(slice(max(at - SIDE // 2, 0), at + SIDE // 2) for at in (row, col))
                near[square] = self.truth[square] == number
                parts, _ = scipy.ndimage.label(near)
                own = (parts == parts[row, col]).astype(np.uint8)
                found = rasterio.features.shapes(own, own > 0, transform=transform)
                names.append(NAMES[number])
                shapes.append(shapely.union_all([shapely.geometry.shape(s) for s, _ in found]))
        return gpd.GeoDataFrame({"class": names}, geometry=shapes, crs=crs)


def main() -> None:
    parser = _common.parser(__doc__)
    parser.add_argument("--drawn", type=int, help="drawn scenes of 512 x 512 pixels [12]")
    parser.add_argument("--folder", type=Path, help="keeps scenes and stores for the next time")
    parser.add_argument("--scenes", type=Path, default=REAL_SCENES, help="folder with real scenes")
    parser.add_argument("--seed", type=int, default=0, help="other drawn scenes and examples [0]")
    given = parser.parse_args()
    count = given.drawn or (1 if given.quick else 12)
    warnings.simplefilter("ignore", geoseg.errors.GeosegWarning)
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(exist_ok=True)
        model = geoseg.load_model("geoseg-tiny", device="cpu")
        first = _SCENES_A_SEED * given.seed
        rows = measure("samples", samples(folder, model, first), Path(name))
        rows += measure("drawn", drawn(folder, model, range(first, first + count)), Path(name))
        if not given.quick:
            rows += aerial(given.scenes, folder, model)
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name) for name in names} for row in rows]
    _common.table(rows)
    if not given.no_save:
        _common.save("prompts", rows, drawn=count, seed=given.seed)


def samples(folder: Path, model: geoseg.Model, first: int) -> Iterator[Case]:
    """The tiles that come with geoseg."""
    for number, path in enumerate(sorted(SAMPLES.glob("*_labels.tif")), first):
        with rasterio.open(path) as raster:
            labels = raster.read(1)
        scene = path.with_name(path.name.replace("_labels", ""))
        yield case(folder, scene, labels, model, number)


def drawn(folder: Path, model: geoseg.Model, numbers: range) -> Iterator[Case]:
    """Scenes that the model has not seen."""
    for number in numbers:
        scene, truth = folder / f"drawn_{number}.tif", folder / f"drawn_{number}.npy"
        if not truth.exists():
            one = next(held_out_scenes(1, first_seed=500_000 + number))
            bands = one.picture.transpose(2, 0, 1)
            form = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
            height, width = bands.shape[1:]
            with rasterio.open(
                scene, "w", height=height, width=width, transform=PLACE, **form
            ) as raster:
                raster.write(bands)
            np.save(truth, one.labels)
        yield case(folder, scene, np.load(truth), model, 100 + number)


def case(folder: Path, scene: Path, labels: Any, model: geoseg.Model, seed: int) -> Case:
    """A scene and its store, made or found."""
    path = folder / f"{scene.stem}.store"
    store = geoseg.encode(scene, path, model=model, resume=True)
    truth = labels.astype(np.int32)
    truth[labels == 255] = IGNORE
    counts = np.bincount(truth[truth != IGNORE], minlength=len(NAMES))
    truth[np.isin(truth, np.flatnonzero(counts < LEAST_SHARE * counts.sum()))] = IGNORE
    return Case(store, truth, np.random.default_rng(seed))


def measure(kind: str, cases: Iterator[Case], folder: Path) -> list[dict[str, Any]]:
    """Rows of one set of scenes."""
    maps = ("words", "examples alone", "words and examples", "corrected")
    total = {name: np.zeros((len(NAMES), len(NAMES)), np.int64) for name in maps}
    change: list[float] = []
    wrong: dict[str, list[float]] = {"suggested": [], "random": []}
    equal: list[float] = []
    for each in cases:
        words = "; ".join(WORDS[k] for k in each.present)
        made = each.store.to_files(words, folder / "map", products=BARE, overwrite=True)
        told, scores = {"words": labels_of(made.out, each)}, {}
        polygons = each.examples()
        for name, classes in (("examples alone", None), ("words and examples", words)):
            found = geoseg.examples(each.store, polygons, classes)
            answer = each.store.to_files(found, folder / "examples", products=BARE, overwrite=True)
            told[name] = labels_of(answer.out, each)
        points = each.points(each.random_places())
        new = geoseg.correct(
            each.store, made.out, points, folder / "new", products=BARE, overwrite=True
        )
        told["corrected"] = labels_of(new.run.out, each)
        for name, labels in told.items():
            confusion = confusion_matrix(each.truth, labels, len(NAMES))
            total[name] += confusion
            scores[name] = Scores.from_confusion(confusion, NAMES).miou
        change.append(scores["corrected"] - scores["words"])
        known = each.truth != IGNORE
        wrong["random"].append(float(np.mean(told["words"][known] != each.truth[known])))
        hits = wrong_at(geoseg.suggest(each.store, made.out, POINTS), each)
        wrong["suggested"].append(hits)
        equal.append(fast_as_full(each.store, words))
    return rows_of(kind, total, change, wrong, equal)


def fast_as_full(store: geoseg.Store, words: str) -> float:
    """Share of the fast tier's cells that have the class of the full tier's mean logits there."""
    plain = geoseg.Options()
    full, fast = (store._segmenter(words, tier, plain, None, "cpu") for tier in (False, True))
    source, _ = store._open(None, None)
    scorer: Any = fast._scorer
    side, cell = store._file.layout.block, store._file.layout.cell
    down, across = (length // cell for length in source.shape)
    means = np.zeros((down, across, len(full.vocabulary.queries)), np.float32)
    known = np.zeros((down, across), bool)
    for tile in TilePlan(full.lattice(*source.shape), side, alone=True):
        assert tile.core.row % cell == tile.core.col % cell == 0
        block = source.read(tile.read)
        keep = block.valid[tile.core.relative_to(tile.read).slices()]
        shape = keep.shape[0] // cell, cell, keep.shape[1] // cell, cell
        part = slice(shape[0] * cell), slice(shape[2] * cell)
        first = tile.core.row // cell, tile.core.col // cell
        cells = tuple(slice(k, k + n) for k, n in zip(first, shape[::2], strict=True))
        logits = full.core_logits(TilePixels(tile, block, keep))[part]
        means[cells] = logits.reshape(*shape, -1).mean((1, 3))
        known[cells] = keep[part].reshape(shape).all((1, 3))
    rows = []
    for row in range(-(-source.shape[0] // side)):
        found = [scorer.field.at_cells(row, col) for col in range(-(-source.shape[1] // side))]
        empty = next(one for one in found if one is not None) * 0
        rows.append(np.concatenate([(empty if f is None else f)[:, 1:-1, 1:-1] for f in found], 2))
    near = np.concatenate(rows, 1)[:, :down, :across]
    classes = full.vocabulary.query_classes
    return float((classes[near.argmax(0)] == classes[means.argmax(-1)])[known].mean())


def aerial(scenes: Path, folder: Path, model: geoseg.Model) -> list[dict[str, Any]]:
    """The fast tier against the full one on middles of real scenes, where these are there."""
    rows = []
    for path in sorted(scenes.glob("naip/*.tif")):
        crop = folder / path.name
        with rasterio.open(path) as scene:
            top, left = (max(length - REAL_SIDE, 0) // 2 for length in scene.shape)
            here = rasterio.windows.Window(left, top, REAL_SIDE, REAL_SIDE)
            pixels, form = scene.read(window=here), scene.profile
            form |= {"height": pixels.shape[1], "width": pixels.shape[2]}
            form |= {"transform": scene.window_transform(here)}
        if not crop.exists():
            with rasterio.open(crop, "w", **form) as raster:
                raster.write(pixels)
        store = geoseg.encode(crop, folder / f"{path.stem}.store", model=model, resume=True)
        rows.append({"scenes": path.stem, "fast as full": fast_as_full(store, "; ".join(WORDS))})
    return rows


def wrong_at(points: gpd.GeoDataFrame, each: Case) -> float:
    """Part of some places that the map has wrong, of those whose class is known."""
    with rasterio.open(each.store.facts["scene"]["path"]) as scene:
        cols, rows = ~scene.transform * (points.geometry.x.values, points.geometry.y.values)
    truth = each.truth[rows.astype(int), cols.astype(int)]
    known = truth != IGNORE
    return float(np.mean(np.array([NAMES.index(n) for n in points.label])[known] != truth[known]))


def labels_of(folder: Path, each: Case) -> npt.NDArray[np.int32]:
    """A map in numbers of `NAMES`."""
    raster = LabelRaster.open(folder / "labels.tif")
    numbers = np.full(256, IGNORE, np.int32)
    for entry in raster.classes:
        numbers[entry.index] = NAMES.index(entry.name)
    return numbers[raster.read()]


def rows_of(
    kind: str,
    total: dict[str, Any],
    change: Sequence[float],
    wrong: dict[str, list[float]],
    equal: Sequence[float],
) -> list[dict[str, Any]]:
    """Figures of a set of scenes."""
    scores = {name: Scores.from_confusion(found, NAMES) for name, found in total.items()}
    before = scores["words"]
    rows = []
    for name, after in scores.items():
        pairs = zip(before.classes, after.classes, strict=True)
        moved = [new.iou - old.iou for old, new in pairs if np.isfinite(old.iou) and old.support]
        rows.append(
            {
                "scenes": kind,
                "map": name,
                "mean IoU": after.miou,
                "to words": after.miou / before.miou,
                "worst class": min(moved),
                "best class": max(moved),
            }
        )
    rows[0] |= {"fast as full": min(equal)}
    rows[0] |= {f"{name}, wrong": float(np.mean(some)) for name, some in wrong.items()}
    lower = int(np.sum(np.array(change) < -1e-4))
    rows[-1] |= {"mean change": float(np.mean(change)), "scenes lower": lower}
    return rows


if __name__ == "__main__":
    main()
