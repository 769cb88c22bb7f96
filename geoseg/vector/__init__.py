"""Label rasters to polygons."""

from geoseg.vector.polygons import VectorSummary, vectorize

__all__ = ["VectorSummary", "vectorize"]
