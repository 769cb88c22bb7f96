"""Everything a person may choose, each thing declared once: type, default, help, limits.

The command line makes its options of these fields, a model's own defaults are checked against
them, ``run.json`` lists them, and `Options.resolve` says which value holds.
"""

from geoseg.options.polygons import VectorOptions
from geoseg.options.products import Products
from geoseg.options.reading import Reading
from geoseg.options.scorer import Scorer
from geoseg.options.segmentation import Options, Resolved
from geoseg.options.store import StoreOptions

__all__ = ["Options", "Products", "Reading", "Resolved", "Scorer", "StoreOptions", "VectorOptions"]
