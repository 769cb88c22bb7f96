"""Label rasters to polygons."""

from geoseg.vector.polygons import VectorOptions, VectorSummary, vectorize

__all__ = ["VectorOptions", "VectorSummary", "vectorize"]
