"""Label rasters to polygons."""

from geoseg.options import VectorOptions
from geoseg.vector.polygons import VectorSummary, vectorize

__all__ = ["VectorOptions", "VectorSummary", "vectorize"]
