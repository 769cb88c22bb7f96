"""geoseg: maps from plain words.

Give it a scene and class names; it gives back a georeferenced label raster, a confidence raster
and polygons, with no training and no annotation. Names load when they are first used, so that
``import geoseg`` is quick.

Import order inside the package, each room only from those before it::

    types, errors -> io | tiling | text | model -> inference -> vector | evaluation | preview
    -> pipeline, lazy -> xarray, ask -> geoseg_cli
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoseg.ask import Store, encode, open_store
    from geoseg.changes import change
    from geoseg.correction import Correction, correct
    from geoseg.dense import features, similarity
    from geoseg.evaluation import evaluate
    from geoseg.evaluation.tune_samples import tune_on_scenes as tune
    from geoseg.inference.segmenter import Segmenter
    from geoseg.lazy import measure_stretch, segment
    from geoseg.model.loading import Model, load_model
    from geoseg.options import Options, Products, Reading, Scorer, StoreOptions
    from geoseg.pipeline import segment_to_files
    from geoseg.pooling import examples
    from geoseg.suggestion import suggest
    from geoseg.text.vocabulary import Vocabulary
    from geoseg.vector import vectorize
    from geoseg.vector.stats import zone_stats as stats
    from geoseg.xarray import open_labels

__all__ = [
    "Correction",
    "Model",
    "Options",
    "Products",
    "Reading",
    "Scorer",
    "Segmenter",
    "Store",
    "StoreOptions",
    "Vocabulary",
    "__version__",
    "change",
    "correct",
    "encode",
    "evaluate",
    "examples",
    "features",
    "load_model",
    "measure_stretch",
    "open_labels",
    "open_store",
    "preview",
    "segment",
    "segment_to_files",
    "similarity",
    "stats",
    "suggest",
    "tune",
    "vectorize",
]

_HOMES = {
    "Correction": "geoseg.correction",
    "Model": "geoseg.model.loading",
    "Options": "geoseg.options",
    "Products": "geoseg.options",
    "Reading": "geoseg.options",
    "Scorer": "geoseg.options",
    "Segmenter": "geoseg.inference.segmenter",
    "Store": "geoseg.ask",
    "StoreOptions": "geoseg.options",
    "Vocabulary": "geoseg.text.vocabulary",
    "change": "geoseg.changes",
    "correct": "geoseg.correction",
    "encode": "geoseg.ask",
    "evaluate": "geoseg.evaluation",
    "examples": "geoseg.pooling",
    "features": "geoseg.dense",
    "load_model": "geoseg.model.loading",
    "measure_stretch": "geoseg.lazy",
    "open_labels": "geoseg.xarray",
    "open_store": "geoseg.ask",
    "preview": "geoseg",  # a module that can be called, since there is one of that name
    "segment": "geoseg.lazy",
    "segment_to_files": "geoseg.pipeline",
    "similarity": "geoseg.dense",
    "stats": "geoseg.vector.stats:zone_stats",
    "suggest": "geoseg.suggestion",
    "tune": "geoseg.evaluation.tune_samples:tune_on_scenes",
    "vectorize": "geoseg.vector",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("geoseg")
    if name not in _HOMES:
        raise AttributeError(f"module 'geoseg' has no attribute {name!r}")
    home, _, called = _HOMES[name].partition(":")
    if home == "geoseg":
        return importlib.import_module(f"geoseg.{name}")
    value = getattr(importlib.import_module(home), called or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
