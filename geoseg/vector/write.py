"""Polygons to files, batch by batch, and under their final name only when complete."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyogrio
from pyogrio._err import CPLE_BaseError
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS

from geoseg._files import complaint, plain_path, release_database, whole_file, writing_to, xml_text
from geoseg._optional import require
from geoseg.errors import OptionError, OutputError
from geoseg.io.times import source_date
from geoseg.runtime.libraries import without_warnings
from geoseg.runtime.quiet import hushed
from geoseg.types import LabelClass
from geoseg.vector import parquet, style

Column = npt.NDArray[Any]
_CLASSES_NAMED = 20
_ERRORS = (DataSourceError, DataLayerError, CPLE_BaseError, sqlite3.Error)


@dataclass(frozen=True)
class Layer:
    """What a vector file holds, apart from its features."""

    name: str
    crs: CRS | None
    classes: tuple[LabelClass, ...]
    geometry_type: str
    """``Polygon`` or ``MultiPolygon``."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Where its content comes from."""

    @property
    def description(self) -> str:
        """What it is, in a line."""
        scene, version = (self.tags.get(f"GEOSEG_{name}") for name in ("SCENE", "VERSION"))
        names = ", ".join(item.name for item in self.classes[:_CLASSES_NAMED])
        more = len(self.classes) - _CLASSES_NAMED
        made = f", made by geoseg {version}" if version else ""
        others = f" and {more} more" if more > 0 else ""
        return xml_text(f"Map{f' of {scene}' if scene else ''}{made}: {names}{others}")


class Target(Protocol):
    """A file that takes features in batches; the file is complete after ``close``."""

    def write(self, wkb: Column, columns: Mapping[str, Column]) -> None:
        """Add features: geometries as well-known binary, and one array a field."""

    def close(self) -> None:
        """Finish the file."""

    def count(self) -> int:
        """Count the features that can be read from the file once it is finished."""


class GeoPackage:
    """A GeoPackage, with a spatial index and the class colours.

    Parameters
    ----------
    path
        Where to write.
    layer
        What it holds.
    """

    def __init__(self, path: Path, layer: Layer) -> None:
        self._path = path
        self._layer = layer
        self._begun = False

    def write(self, wkb: Column, columns: Mapping[str, Column]) -> None:
        """Append features."""
        about = {"DESCRIPTION": self._layer.description}
        _write_features(self._path, self._layer, wkb, columns, append=self._begun, **about)
        self._begun = True

    def close(self) -> None:
        """Add the styles."""
        told = source_date()
        time = None if told is None else told.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        style.add_to_geopackage(self._path, self._layer.name, self._layer.classes, time)

    def count(self) -> int:
        """Count the features in the file that the spatial index knows too."""
        # GDAL goes on without a word where there is no room for the index.
        with closing(sqlite3.connect(self._path)) as connection:
            column = style.geometry_column(connection, self._layer.name)
            index = f"rtree_{self._layer.name}_{column}".replace('"', '""')
            (indexed,) = connection.execute(f'SELECT count(*) FROM "{index}"').fetchone()
        return min(int(indexed), _count(self._path, self._layer))


class Translated:
    """A format that cannot be appended to: features are spooled and translated at the end.

    Parameters
    ----------
    path
        Where to write.
    layer
        What it holds.
    driver
        GDAL's name of the format.
    options
        GDAL's layer creation options.
    """

    def __init__(self, path: Path, layer: Layer, driver: str, **options: str) -> None:
        self._path = path
        self._layer = layer
        self._driver = driver
        self._options = options
        self._spool = path.with_name(f"{path.stem}.spool.gpkg")
        self._begun = False

    def write(self, wkb: Column, columns: Mapping[str, Column]) -> None:
        """Append features to the spool."""
        _write_features(
            self._spool, self._layer, wkb, columns, append=self._begun, SPATIAL_INDEX="NO"
        )
        self._begun = True

    def close(self) -> None:
        """Stream the spool into the file."""
        layer = self._layer.name
        try:
            with (
                plain_path(self._spool) as spool,
                plain_path(self._path) as path,
                pyogrio.open_arrow(spool, layer=layer, use_pyarrow=False) as (meta, stream),
            ):
                pyogrio.write_arrow(
                    stream,
                    path,
                    layer=layer,
                    driver=self._driver,
                    geometry_name=meta["geometry_name"] or "geom",
                    geometry_type=self._layer.geometry_type,
                    crs=meta["crs"],
                    **self._options,
                )
        finally:
            self._spool.unlink(missing_ok=True)

    def count(self) -> int:
        """Count the features in the file."""
        return _count(self._path, self._layer)


def _count(path: Path, layer: Layer) -> int:
    """Count features, so that a file that was cut short is seen."""
    with plain_path(path) as plain:
        info = pyogrio.read_info(plain, layer=layer.name, force_feature_count=True)
    return int(info["features"])


def _write_features(
    path: Path,
    layer: Layer,
    wkb: Column,
    columns: Mapping[str, Column],
    *,
    append: bool,
    **options: str,
) -> None:
    silent = without_warnings(UserWarning) if layer.crs is None else nullcontext()
    with plain_path(path) as plain, silent:
        pyogrio.raw.write(
            plain,
            geometry=wkb,
            field_data=[np.ma.getdata(values) for values in columns.values()],
            field_mask=[
                values.mask if isinstance(values, np.ma.MaskedArray) else None
                for values in columns.values()
            ],
            fields=np.array(list(columns), object),
            layer=layer.name,
            driver="GPKG",
            geometry_type=layer.geometry_type,
            crs=None if layer.crs is None else layer.crs.to_wkt(),
            append=append,
            layer_metadata=None if append else {k: xml_text(v) for k, v in layer.tags.items()},
            # Readers of some years ago warn of the newest version, of which nothing is used here.
            **({} if append else {"VERSION": "1.3", **options}),
        )


def _geoparquet(path: Path, layer: Layer) -> Target:
    require("pyarrow", extra="parquet", feature="GeoParquet")
    return parquet.GeoParquet(path, layer.crs, layer.geometry_type)


FORMATS: Mapping[str, Callable[[Path, Layer], Target]] = {
    ".gpkg": GeoPackage,
    ".parquet": _geoparquet,
    ".fgb": partial(Translated, driver="FlatGeobuf"),
    ".geojson": partial(Translated, driver="GeoJSON", RFC7946="YES"),
}
"""How each suffix is written."""


class VectorFile:
    """A vector file in the making; a context that leaves a whole file or none.

    Parameters
    ----------
    path
        Final name; its suffix decides the format.
    layer
        What it holds.
    overwrite
        Replace a file of that name.

    Raises
    ------
    OptionError
        If the suffix is not known, or the format cannot hold the layer.
    OutputError
        If the file exists or cannot be written.
    MissingExtraError
        If the format needs a package that is not installed.
    """

    def __init__(self, path: Path, layer: Layer, *, overwrite: bool = False) -> None:
        check_target(path, overwrite=overwrite)
        self._final = path
        self._layer = layer
        self._count = 0
        self._overwrite = overwrite
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        part = self._ending.enter_context(whole_file(self._final, replaces=self._overwrite))
        self._target = FORMATS[self._final.suffix.lower()](part, self._layer)
        self._ending.push(self._close_target)
        return self

    def write(self, wkb: Column, columns: Mapping[str, Column]) -> None:
        """Add features; the fields must be the same every time."""
        with self._explained():
            self._target.write(wkb, columns)
        self._count += len(wkb)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._explained():
            self._ending.__exit__(exc_type, exc, traceback)

    def _close_target(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None:
            return
        # Here, because a full disk shows only as long as the file is there.
        with self._explained():
            self._target.close()
            if self._target.count() != self._count:
                raise OutputError(complaint(self._final, "what was written cannot be read back"))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        with writing_to(self._final, *_ERRORS), hushed():
            yield


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse early what could not be written at the end.

    Raises
    ------
    OptionError
        If the suffix is not known.
    OutputError
        If the file exists and ``overwrite`` is False, or there is no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"{path}: polygons can be written as {', '.join(FORMATS)}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; replace it with --overwrite")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: cannot be written, the folder is read-only")
    if path.suffix.lower() == ".gpkg":
        release_database(path)
