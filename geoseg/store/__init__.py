"""Feature stores: what an encoder has made of a scene, kept for any words that come later."""

from geoseg.runtime.libraries import without_warnings

with without_warnings():
    import zarr  # noqa: F401 - its filters of warnings would be the whole process's
