"""What a run depends on, and what it says of itself in ``run.json``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

from geoseg.errors import in_words
from geoseg.inference.network import NetworkSegmenter
from geoseg.inference.segmenter import Segmenter
from geoseg.io.aoi import Aoi
from geoseg.io.crs import crs_name
from geoseg.io.grid import Grid
from geoseg.io.scene import Scene
from geoseg.options import Products, Reading, Resolved
from geoseg.options.segmentation import WORDS_ONLY
from geoseg.run.journal import digest
from geoseg.run.scenes import MOSAIC, STACK
from geoseg.run.tally import Tally
from geoseg.text.templates import load_templates
from geoseg.text.vocabulary import Vocabulary

SCHEMA = "geoseg/run/1"
"""What ``run.json`` says of its own form; ``geoseg/schemas/run.json`` describes it."""
_PACKAGES = ("geoseg", "torch", "open_clip_torch", "rasterio", "numpy", "dask")


@dataclass(frozen=True)
class Method:
    """What there is to say about a segmenter, without its weights."""

    options: Resolved
    vocabulary: Vocabulary
    model: dict[str, Any]
    """Specification, name and digest of its weights, digests of what else it reads."""
    fingerprint: str
    """Of the weights and the architecture."""
    device: str
    batch_size: int
    precision: str

    @classmethod
    def of(cls, segmenter: Segmenter) -> Method:
        """Describe a segmenter as it is now."""
        if isinstance(segmenter, NetworkSegmenter):
            return cls(
                segmenter.options,
                segmenter.vocabulary,
                segmenter.facts | {"spec": segmenter.facts["scorer"]},
                digest(segmenter.facts),
                str(segmenter.device),
                segmenter.batch_size,
                segmenter.precision,
            )
        model = segmenter.model
        return cls(
            segmenter.options,
            segmenter.vocabulary,
            {
                "spec": model.spec,
                "weights": model.weights.name,
                "weights_sha256": model.weights_sha256,
                "upsampler_weights_sha256": segmenter.upsampler_sha256,
                "backbone_weights_sha256": segmenter.backbone_sha256,
                "templates_sha256": digest(list(load_templates(segmenter.options.templates))),
            }
            | ({} if segmenter.source is None else {"store": segmenter.source})
            | ({} if segmenter.beside is None else {"beside": segmenter.beside}),
            model.fingerprint,
            str(segmenter.device),
            segmenter.batch_size,
            segmenter.precision,
        )

    @property
    def spec(self) -> str:
        """What a person knows the model by, and what is asked beside it."""
        beside = self.model.get("beside")
        with_it = "" if beside is None else f" with {beside['scorer']} ({beside['weight']:g})"
        return f"{self.model['spec']}{with_it}"

    @property
    def scored(self) -> bool:
        """Whether a scorer of the user's takes the place of a model of words."""
        return "scorer" in self.model

    def without_words(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the names of options, without those that a scorer has no use for."""
        return {k: v for k, v in values.items() if not (self.scored and k in WORDS_ONLY)}

    def facts(self) -> dict[str, Any]:
        """Everything that labels depend on, by the name the user knows it by."""
        options, store = self.without_words(asdict(self.options)), self.model.get("store")
        beside = self.model.get("beside")
        del options["sources"]
        if not self.scored:
            options["upsampler_weights"] = self.model["upsampler_weights_sha256"]
            options["backbone_weights"] = self.model["backbone_weights_sha256"]
            options["templates"] = self.model["templates_sha256"]
        return {
            "--classes": digest(asdict(self.vocabulary)),
            "--scorer" if self.scored else "--model": self.fingerprint,
            **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
            **({"--scorer": digest(beside)} if beside else {}),
            **({"the store": store["identity"], "--fast": store["tier"]} if store else {}),
            "the kind of device": self.device.partition(":")[0],
        }


def run_facts(
    scene: Scene,
    reading: Reading,
    area: Aoi | None,
    method: Method,
    products: Products,
    tile: tuple[int, int],
) -> dict[str, Any]:
    """Everything the outputs depend on, by the name the user knows it by."""
    return {
        **reading_facts(scene, reading, area),
        "--tile": tile,
        "the wanted products": asdict(products),
        **method.facts(),
    }


def reading_facts(
    scene: Scene, reading: Reading, area: Aoi | None, *, quick: bool = False
) -> dict[str, Any]:
    """Everything of the input that labels depend on, by the name the user knows it by."""
    return {
        "geoseg's version": version("geoseg"),
        "the scene": scene.fingerprint(quick=quick),
        "--bands, --stretch or --gsd": [scene.bands, scene.stretch, reading.gsd],
        "--crs": reading.crs,
        "--nodata or --ignore-alpha": [reading.fill, reading.ignore_alpha],
        "--mask": None if scene.source.left_out is None else scene.source.left_out.identity(),
        "--aoi": area_digest(area),
    }


def area_digest(area: Aoi | None) -> str | None:
    """Which part of a scene is mapped; None for all of it."""
    return None if area is None else digest([area.window, area.outline.wkt])


def scene_report(scene: Scene, reading: Reading, grid: Grid) -> dict[str, Any]:
    """What was mapped, and on which grid its map lies."""
    return {
        "scene": scene.path,
        "size": list(grid.shape),
        "crs": None if grid.crs is None else crs_name(grid.crs),
        "gsd_m": grid.gsd_m,
        "reading": asdict(reading)
        | {
            "bands": list((scene.source.assets and reading.bands) or scene.bands),
            "bands_told_by": scene.source.told_by,
            "assets": list(scene.source.assets) or None,
            "limits": scene.stretch,
            "scale_offset": scene.source.units or None,
            "limits_in_units": scene.limits_in_units,
            "fill": list(scene.source.fill),
        },
    }


def place_report(grid: Grid) -> dict[str, Any]:
    """Where a map lies: in its CRS, in degrees, and how pixels are placed."""
    placed = grid.with_transform
    return {
        "bounds": list(grid.bounds) if placed else None,
        "bbox_wgs84": None if grid.bbox_wgs84 is None else list(grid.bbox_wgs84),
        "transform": list(grid.transform)[:6] if placed else None,
    }


def source_report(scene: Scene, out: Path) -> list[dict[str, Any]]:
    """Files that a scene was read from, without those that the run has made itself."""
    made = {str(out.resolve() / name) for name in (MOSAIC, STACK)}
    local = [one for one in scene.sources if one["path"] not in made]
    return local + [{"path": path, "server": mark} for path, mark in scene.servers.items()]


def class_report(vocabulary: Vocabulary, grid: Grid, tally: Tally) -> dict[str, Any]:
    """Pixels, shares and areas of every class."""
    total = max(int(tally.counts.sum()), 1)
    classes = [
        {
            "index": index,
            "name": entry.name,
            "queries": list(entry.prompts),
            "color": entry.color,
            "threshold": entry.threshold,
            "offset": entry.offset,
            "descriptions": list(entry.descriptions),
            **({"example": list(entry.example), "share": entry.share} if entry.example else {}),
            "pixels": int(count),
            "per_cent": round(100 * int(count) / total, 3),
            "area_m2": None if area is None else round(float(area), 2),
        }
        for index, (entry, count, area) in enumerate(
            zip(
                vocabulary.classes,
                tally.counts,
                repeat(None) if tally.areas_m2 is None else tally.areas_m2,
                strict=False,
            )
        )
    ]
    nodata = int(grid.height * grid.width - tally.counts.sum())
    hidden = [
        {name: getattr(entry, name) for name in ("name", "color", "offset", "share")}
        | {"example": list(entry.example)}
        for entry in vocabulary.hidden
    ]
    return {"classes": classes, **({"hidden": hidden} if hidden else {}), "nodata_pixels": nodata}


def method_report(method: Method) -> dict[str, Any]:
    """Model, options and the parameters of all methods."""
    options = method.without_words(asdict(method.options))
    sources, options["regions"] = options.pop("sources"), in_words(options["regions"])
    return {
        "model": method.model,
        "options": options | {"batch_size": method.batch_size, "precision": method.precision},
        "option_sources": method.without_words(sources),
        "methods": method.without_words(method.options.described_methods()),
        "device": method.device,
    }


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that may change a map."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
