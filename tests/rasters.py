"""Small rasters for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

UTM = "EPSG:32631"


def make(path: Path, data: np.ndarray, **profile: Any) -> Path:
    """Write ``(bands, h, w)`` as a small GeoTIFF."""
    colors = profile.pop("colorinterp", None)
    settings_ = {
        "driver": "GTiff",
        "count": data.shape[0],
        "height": data.shape[1],
        "width": data.shape[2],
        "dtype": data.dtype,
        "crs": UTM,
        "transform": from_origin(500000, 5000000, 1, 1),
    } | profile
    with rasterio.open(path, "w", **settings_) as dataset:
        if colors is not None:
            dataset.colorinterp = colors
        dataset.write(data)
    return path


def rgb(height: int = 40, width: int = 50, seed: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    top = 256 if dtype == np.uint8 else 4000
    return np.random.default_rng(seed).integers(1, top, (3, height, width)).astype(dtype)
