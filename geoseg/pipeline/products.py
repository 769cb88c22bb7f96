"""Products of a scene: refused early where they cannot be, made of its work files at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg._address import scene_name
from geoseg._files import writing_to
from geoseg.errors import OptionError, SceneError
from geoseg.io.crs import crs_name, is_storable
from geoseg.io.regions import GivenRegions, PolygonRegions
from geoseg.io.scene import Scene
from geoseg.model.checkpoint import file_digest
from geoseg.options import Products, Reading
from geoseg.options.products import CLASS_RASTERS, ITEM, REGION_TABLE
from geoseg.preview import preview_files
from geoseg.run.folder import REPORT, OutputFolder
from geoseg.run.rasters import WorkRasters
from geoseg.run.regions import RegionTable
from geoseg.run.scenes import open_area
from geoseg.run.tally import Tally
from geoseg.types import BoolArray, Window
from geoseg.vector import style, vectorize
from geoseg.vector.regions import write_polygons, write_table


def check_products(scene: Scene, products: Products) -> None:
    """Refuse, before any work, polygons that a scene without such a place cannot have."""
    grid = scene.native_grid
    if not is_storable(grid.crs):
        raise SceneError(
            f"{scene.path}: no GeoTIFF can hold its CRS, {crs_name(grid.crs)}, so its map could "
            "not be placed; bring the scene into another one first, for example with gdalwarp "
            "-t_srs EPSG:4326"
        )
    if products.polygons == "geojson" and grid.without_degrees is not None:
        raise OptionError(
            f"{scene.path}: GeoJSON needs longitude and latitude, but {grid.without_degrees}; "
            "take --polygons gpkg, fgb or parquet"
        )
    measured = products.min_area_m2 or products.simplify_m
    if products.polygons != "none" and measured and grid.unmeasured is not None:
        raise OptionError(
            f"{scene.path}: --min-area and --simplify need metres, but {grid.unmeasured}; leave "
            "them out"
        )


def on_native_grid(rasters: WorkRasters, scene: Scene, reading: Reading) -> WorkRasters:
    """Bring the work files to the grid of the scene's own pixels."""
    native = scene.native_grid
    area = open_area(reading, native)
    region = native.window if area is None else area.window
    mask = scene.source.left_out

    def left_out(window: Window) -> BoolArray:
        assert mask is not None
        row, col = region.row + window.row, region.col + window.col
        return mask.read(Window(row, col, *window.shape), window.shape)

    return rasters.on_grid(native.crop(region), left_out if mask else None)


@dataclass(frozen=True)
class Maker:
    """Makes every product, complete, in the work folder."""

    scene: Scene
    products: Products
    rasters: WorkRasters
    """On the grid of the outputs."""
    folder: OutputFolder
    stage: Callable[[str], AbstractContextManager[None]]
    """Says which one is being made, and times it."""

    def make_rasters(self) -> Tally:
        """Finish the rasters, and count the pixels of the classes."""
        for name in self.rasters.names:
            with self.stage(f"{name}.tif"):
                self.rasters.finish(name, self._file(f"{name}.tif"))
        return Tally.of_raster(self._file("labels.tif"), len(self.rasters.classes))

    def describe(self, tally: Tally) -> None:
        """Write what other programs need beside the rasters: names, colours, styles."""
        rasters = self.rasters
        contents: dict[Path, str] = {}
        for name in rasters.names:
            raster = self._file(f"{name}.tif")
            if name in CLASS_RASTERS:
                own = tally if name == "labels" else Tally.of_raster(raster, len(rasters.classes))
                counts = dict(enumerate(map(int, own.counts)))
                contents |= style.side_files(raster, rasters.classes, counts)
            else:
                contents[raster.with_suffix(".qml")] = style.per_cent_qml()
        for path, text in contents.items():
            with writing_to(self.folder.path / path.name):
                path.write_text(text, encoding="utf-8")

    def make_polygons(self) -> dict[str, int]:
        """Make polygons of the labels, and say how many there are."""
        products = self.products
        if products.polygons == "none":
            return {}
        with self.stage(name := f"polygons.{products.polygons}"):
            summary = vectorize(
                self._file("labels.tif"),
                self._file(name),
                confidence=self._file("confidence.tif") if products.confidence else None,
                runner_up=self._file("runner_up.tif") if products.runner_up else None,
                options=products,
            )
        return {"polygons": summary.count}

    def write_regions(self, regions: GivenRegions, table: RegionTable) -> None:
        """Write what became of the regions of a file."""
        classes = self.rasters.classes
        columns = table.columns([item.name for item in classes])
        if not isinstance(regions, PolygonRegions):
            with self.stage(REGION_TABLE):
                write_table(self._file(REGION_TABLE), table.numbers, columns)
        elif self.products.polygons != "none":
            assert regions.table is not None
            with self.stage(name := f"regions.{self.products.polygons}"):
                write_polygons(
                    self._file(name), regions.table, table.numbers, columns, classes,
                    self.rasters.tags,
                )  # fmt: skip

    def make_preview(self, *, native: bool) -> None:
        """Draw the scene beside its map."""
        if not self.products.preview:
            return
        with self.stage("preview.png"):
            picture = self.scene.picture()
            preview_files(
                picture.native() if native else picture,
                self._file("labels.tif"),
                self._file("preview.png"),
                title=scene_name(self.scene.path),
            )

    def digests(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Sizes and SHA-256 of the files, but for those that tell of the others."""
        return {
            name: {"bytes": (file := self._file(name)).stat().st_size, "sha256": file_digest(file)}
            for name in names
            if name not in (REPORT, ITEM)
        }

    def _file(self, name: str) -> Path:
        return self.folder.ready / name
