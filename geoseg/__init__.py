"""geoseg: maps from plain words."""
