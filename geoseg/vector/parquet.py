"""GeoParquet in batches: WKB, zstd and a bounding-box covering (version 1.1 of the format)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from rasterio.crs import CRS

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class GeoParquet:
    """A GeoParquet file, one row group a batch.

    Parameters
    ----------
    path
        Where to write.
    crs
        Coordinate system, or None.
    geometry_type
        ``Polygon`` or ``MultiPolygon``.
    """

    def __init__(self, path: Path, crs: CRS | None, geometry_type: str) -> None:
        self._path = path
        self._crs = crs
        self._geometry_type = geometry_type
        self._writer: Any = None
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def write(self, wkb: npt.NDArray[Any], columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add features."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        bounds = shapely.bounds(shapely.from_wkb(wkb))
        if len(bounds):
            low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
            self._bounds[:2] = np.minimum(self._bounds[:2], low)
            self._bounds[2:] = np.maximum(self._bounds[2:], high)
        arrays = {name: pa.array(_plain(values)) for name, values in columns.items()}
        arrays["bbox"] = pa.StructArray.from_arrays(
            [pa.array(bounds[:, i], pa.float64()) for i in range(4)], names=list(_CORNERS)
        )
        arrays["geometry"] = pa.array(list(wkb), pa.binary())
        table = pa.table(arrays)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        """Add the metadata that makes it GeoParquet."""
        self._writer.add_key_value_metadata({"geo": json.dumps(self._metadata())})
        self._writer.close()

    def count(self) -> int:
        """Count the features in the file."""
        import pyarrow.parquet as pq

        return int(pq.read_metadata(self._path).num_rows)

    def _metadata(self) -> dict[str, Any]:
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": [self._geometry_type],
            "crs": None,
            "orientation": "counterclockwise",
            "covering": {"bbox": {corner: ["bbox", corner] for corner in _CORNERS}},
        }
        if self._crs is not None:
            column["crs"] = pyproj.CRS.from_user_input(self._crs).to_json_dict()
        if np.isfinite(self._bounds).all():
            column["bbox"] = self._bounds.tolist()
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _plain(values: npt.NDArray[Any]) -> Any:
    """Floats with NaN as missing, text as a list."""
    import pyarrow as pa

    if values.dtype.kind == "f":
        return pa.array(values, mask=np.isnan(values))
    return pa.array(values.tolist(), pa.string()) if values.dtype.kind == "O" else values
