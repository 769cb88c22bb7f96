"""Scenes in, rasters out: everything that touches GDAL for pixels."""
