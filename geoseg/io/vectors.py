"""Polygons in: vector files of every format, laid on a raster.

Areas of interest, zones, regions and truth all come through :func:`read_polygons`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import pyproj
import shapely
from pyogrio.errors import DataSourceError
from pyproj.exceptions import ProjError

from geoseg._address import as_given, is_address
from geoseg._inputs import file_looks_like, named_path, shown
from geoseg._optional import require
from geoseg.errors import OptionError, SceneError, not_found, warn
from geoseg.io.crs import crs_name, horizontal, same_crs
from geoseg.io.grid import FloatArray, Grid, is_plain_degrees

VECTOR_SUFFIXES = frozenset(
    {
        ".dxf", ".fgb", ".gdb", ".geojson", ".geojsonl", ".geoparquet", ".gml", ".gpkg", ".gpx",
        ".json", ".kml", ".kmz", ".mif", ".parquet", ".shp", ".shz", ".sqlite", ".tab",
        ".topojson",
    }
)  # fmt: skip
_PARQUET = (".parquet", ".geoparquet")
_POLYGONS = ("Polygon", "MultiPolygon")
_PIECES = 1024
"""Parts of a straight edge across the raster, which in another CRS is a curve."""
_FINE = 513
"""Points to a side of a raster whose corners lie off the Earth."""
_MARGIN = 0.1
"""How far beyond the raster features are kept, in its own width and height."""
_LEAST_MARGIN = 2.0
"""The same in pixels."""
_NARROW = 0.9
"""Share of the Earth's circumference up to which a raster has one side and the other."""
_KEPT_TYPES = (0, 3, 4, 6)
"""Numbers of points and polygons, single and multiple."""

Shapes = npt.NDArray[np.object_]
Box = tuple[float, float, float, float]


class Laid(NamedTuple):
    """Features of a vector file on a raster."""

    table: gpd.GeoDataFrame
    """Attributes and polygons on the raster's plane, cut to its surroundings; an empty polygon
    where a feature lies elsewhere. The index is the feature's place in the file."""
    whole: gpd.GeoSeries
    """The polygons as they are in the file, in its CRS."""


def is_vector_file(path: Path) -> bool:
    """Tell whether a file is one of features, by its name or else by looking at it."""
    if path.suffix.lower() in VECTOR_SUFFIXES:
        return True
    try:
        return len(pyogrio.list_layers(_for_ogr(as_given(path)))) > 0
    except (DataSourceError, OSError, ValueError):
        return False


def read_polygons(
    path: str | Path, grid: Grid, *, what: str, layer: str | None, points: bool = False
) -> Laid:
    """Read the features of a vector file that have polygons, laid on a raster.

    Parameters
    ----------
    path
        Any file that pyogrio opens, or (Geo)Parquet.
    grid
        Grid of the raster.
    what
        What the file is for and what its option begins with: ``aoi``, ``mask``, ``zone``,
        ``regions`` or ``truth``.
    layer
        Layer to take; None for the one that has polygons.
    points
        Points count too.

    Returns
    -------
    Laid
        All features with polygons, also within geometry collections. Polygons are flat and
        valid; longitudes are counted as the raster counts them.

    Raises
    ------
    SceneError
        If the file cannot be read, has no polygons, or cannot be laid on the raster.
    OptionError
        If there is no such file or layer, or several layers have polygons.
    """
    name = shown(as_given(path))
    return _laid(_read(_find(path, what), name, what, layer), name, grid, what, points=points)


def lay_polygons(
    frame: gpd.GeoDataFrame | gpd.GeoSeries, grid: Grid, *, what: str, points: bool = False
) -> Laid:
    """Lay the features of a GeoDataFrame on a raster, as `read_polygons` does those of a file.

    One without a CRS counts in the raster's.
    """
    if isinstance(frame, gpd.GeoSeries):
        frame = gpd.GeoDataFrame(geometry=frame)
    if frame.crs is None and grid.crs is not None:
        frame = frame.set_crs(pyproj.CRS.from_user_input(grid.crs))
    return _laid(frame, f"the {what}", grid, what, points=points)


def _laid(frame: gpd.GeoDataFrame, name: str, grid: Grid, what: str, *, points: bool) -> Laid:
    frame = _only_areas(frame, name, what, points=points)
    crs = frame.crs
    if (crs is None) != (grid.crs is None):
        which = "the file" if crs is None else "the raster"
        raise SceneError(
            f"{name}: cannot be laid on the raster, {which} has no CRS; assign it one first"
        )
    if crs is not None and grid.misfit is not None and not same_crs(crs, grid.crs):
        raise SceneError(f"{name}: cannot be laid on the raster, {grid.misfit}")
    whole = np.asarray(frame.geometry.values)
    try:
        laid = _lay(whole, crs, grid)
    except ProjError as error:
        raise SceneError(
            f"{name}: cannot be brought from its CRS, {crs_name(crs)}, into the raster's, "
            f"{crs_name(grid.crs)}"
        ) from error
    except (shapely.errors.ShapelyError, ValueError) as error:
        raise SceneError(f"{name}: has outlines that are no areas ({shown(error)})") from error
    crs = None if grid.crs is None else pyproj.CRS.from_user_input(grid.crs)
    columns = frame.drop(columns=frame.geometry.name)
    return Laid(gpd.GeoDataFrame(columns, geometry=laid, crs=crs), frame.geometry)


# -- reading --------------------------------------------------------------------------------------


def _find(path: str | Path, what: str) -> str:
    text = as_given(path)
    if is_address(text):
        return text
    found = named_path(text, what, OptionError)  # a folder is a File Geodatabase
    if found is None and what == "aoi":
        raise not_found(OptionError)(
            f"aoi {shown(text)}: no such file; give a vector file or minx,miny,maxx,maxy"
        )
    if found is None:
        raise not_found(SceneError)(f"{shown(text)}: no such file")
    return str(found)


def _for_ogr(path: str | Path) -> str | Path:
    """Path as pyogrio wants it, for which a "!" parts an archive from a name in it."""
    text = str(path)
    return f"/vsisubfile/0,{text}" if "!" in text and "://" not in text else path


def _read(path: str, name: str, what: str, layer: str | None) -> gpd.GeoDataFrame:
    with _explained(path, name):
        if Path(path).suffix.lower() in _PARQUET:
            require("pyarrow", extra="parquet", feature="Parquet")
            return gpd.read_parquet(path)
        source = _for_ogr(path)
        layers = [(str(n), None if kind is None else str(kind)) for n, kind in _layers(source)]
    chosen = _choose_layer(source, layers, name, what, layer)
    with _explained(path, name):
        table = gpd.read_file(source, engine="pyogrio", layer=chosen)
    if not isinstance(table, gpd.GeoDataFrame):
        raise SceneError(f"{name}: has no geometries")
    return table


def _layers(source: str | Path) -> Any:
    found = pyogrio.list_layers(source)
    if not len(found):
        raise ValueError("it has no layers")
    return found


@contextmanager
def _explained(path: str, name: str) -> Iterator[None]:
    try:
        yield
    except (SceneError, OptionError):
        raise
    except Exception as error:  # whatever a file or an answer makes of four libraries
        reason = file_looks_like(path) or shown((str(error) or repr(error)).splitlines()[0])
        raise SceneError(f"{name}: is not a vector file that can be read ({reason})") from error


def _choose_layer(
    source: str | Path,
    layers: list[tuple[str, str | None]],
    name: str,
    what: str,
    wanted: str | None,
) -> str:
    names = [layer for layer, _ in layers]
    if wanted is not None:
        if wanted not in names:
            raise OptionError(
                f"{name}: has no layer '{shown(wanted)}'; it has {shown(', '.join(names))}"
            )
        return wanted
    spatial = [(layer, kind) for layer, kind in layers if kind is not None]
    if len(spatial) < 2:
        return spatial[0][0] if spatial else names[0]
    found = [layer for layer, kind in spatial if _has_polygons(source, layer, str(kind))]
    if len(found) > 1:
        raise OptionError(
            f"{name}: {len(found)} layers have polygons, {shown(', '.join(found))}; name one with "
            f"--{what}-layer"
        )
    if not found:
        return spatial[0][0]
    warn(
        f"{name}: takes the layer '{shown(found[0])}', the only one of {len(spatial)} that has "
        f"polygons; --{what}-layer names another"
    )
    return found[0]


def _has_polygons(source: str | Path, layer: str, kind: str) -> bool:
    if any(word in kind for word in ("Point", "Line", "Curve")) and "Polygon" not in kind:
        return False
    table = gpd.read_file(source, engine="pyogrio", layer=layer, columns=[])
    return bool(len(table)) and any(_polygons_in(shape) is not None for shape in table.geometry)


# -- polygons -------------------------------------------------------------------------------------


def _only_areas(frame: gpd.GeoDataFrame, name: str, what: str, *, points: bool) -> gpd.GeoDataFrame:
    shapes = shapely.force_2d(np.asarray(frame.geometry.values))
    if not np.isfinite(shapely.get_coordinates(shapes)).all():
        raise SceneError(f"{name}: has corners that are no numbers")
    try:
        areas = [shape if points and _is_point(shape) else _polygons_in(shape) for shape in shapes]
    except shapely.errors.ShapelyError as error:
        raise SceneError(f"{name}: has outlines that are no areas ({shown(error)})") from error
    kept = np.array([area is not None for area in areas], bool)
    if not kept.any():
        kinds = {shape.geom_type for shape in shapes if shape is not None and not shape.is_empty}
        holds = " and ".join(sorted({_WORDS.get(kind, kind) for kind in kinds})) or "no feature"
        raise SceneError(f"{name}: has no polygons for {_USES[what]}, it holds {holds}")
    frame = frame.reset_index(drop=True)[kept].copy()
    frame[frame.geometry.name] = gpd.GeoSeries(
        [area for area in areas if area is not None], frame.index, crs=frame.crs
    )
    if not kept.all():
        warn(
            f"{name}: {int((~kept).sum())} of {len(kept)} features have no polygon and are left out"
        )
    return frame


_WORDS = {
    "Point": "points", "MultiPoint": "points", "LineString": "lines", "LinearRing": "lines",
    "MultiLineString": "lines", "GeometryCollection": "collections without polygons",
}  # fmt: skip
_USES = {
    "aoi": "an area of interest", "zone": "zones", "truth": "the truth", "mask": "a mask",
    "examples": "examples", "regions": "regions",
}  # fmt: skip


def _is_point(shape: Any) -> bool:
    return shape is not None and shape.geom_type in ("Point", "MultiPoint") and not shape.is_empty


def _polygons_in(shape: Any) -> Any:
    """The polygons of a geometry, also within collections, as one; None if there are none."""
    if shape is None or shape.is_empty:
        return None
    if shape.geom_type in _POLYGONS:
        return shape
    if shape.geom_type != "GeometryCollection":
        return None
    parts = [part for part in map(_polygons_in, shape.geoms) if part is not None]
    return shapely.union_all(shapely.make_valid(parts)) if parts else None


_GIVEN = "given_"
_RESERVED = ("fid", "geom", "geometry", "bbox")
"""Names that a format keeps for itself."""


def field_names(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Names of attributes that every format has room for, and nobody else has, in any case.

    Parameters
    ----------
    names
        As they are; what cannot stay gets ``given_`` before it.
    taken
        Names of others.
    """
    used = {name.lower() for name in (*taken, *_RESERVED)}
    found, given = list[str](), {name.lower() for name in names}
    for name in names:
        new = name
        while new.lower() in used or (new != name and new.lower() in given):
            new = f"{_GIVEN}{new}"
        used.add(new.lower())
        found.append(new)
    return found


# -- placing --------------------------------------------------------------------------------------


def _lay(shapes: Shapes, crs: Any, grid: Grid) -> Shapes:
    """Bring features of a CRS onto a raster's plane, cut to its surroundings."""
    x, y = _lattice(grid.drawn)
    near = (x.min(), y.min(), x.max(), y.max())
    target = None if grid.crs is None else horizontal(grid.crs)
    circle = None if target is None else _circle(target)
    if crs is None or grid.crs is None or target is None or same_crs(crs, grid.crs):
        return _cut(_valid(shapes), near, circle)
    source, wkt = horizontal(crs), grid.crs.to_wkt()
    forth = pyproj.Transformer.from_crs(crs, wkt, always_xy=True)
    back = pyproj.Transformer.from_crs(wkt, crs, always_xy=True)
    turn = _circle(source)
    around = _surroundings(x, y, near, forth, back, turn)
    shapes = _cut(_valid(shapes), around, turn)
    step = max(around[2] - around[0], around[3] - around[1]) / _PIECES
    shapes = shapely.segmentize(shapes, step)
    centre = (near[0] + near[2]) / 2

    def move(points: FloatArray) -> FloatArray:
        x, y = forth.transform(points[:, 0], points[:, 1])
        if circle is not None:
            # PROJ counts longitudes from -180 to 180 and would tear what lies across that line.
            like = centre if turn is None else points[:, 0] * circle / turn
            if turn is not None:
                finite = np.isfinite(x - like)
                like = like + ((x - like)[finite][0] if finite.any() else 0)
            if turn is not None or near[2] - near[0] < _NARROW * circle:
                x = like + np.remainder(x - like + circle / 2, circle) - circle / 2
        return np.column_stack([x, y])

    moved = shapely.transform(shapes, move)
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        known = _domain(grid, back, around, turn)
        for index in range(len(moved)):
            if not np.isfinite(shapely.get_coordinates(moved[index])).all():
                part = shapely.segmentize(shapely.intersection(shapes[index], known), step)
                moved[index] = _within_domain(shapely.transform(part, move))
    return _cut(_valid(moved), near, circle)


def _lattice(grid: Grid, points: int = 33) -> tuple[FloatArray, FloatArray]:
    """Points all over a raster and its surroundings, so many to a side."""
    steps = np.linspace(0, 1, points)
    sides = [
        side * steps + (2 * steps - 1) * max(_MARGIN * side, _LEAST_MARGIN)
        for side in (grid.width, grid.height)
    ]
    cols, rows = (axis.ravel() for axis in np.meshgrid(*sides))
    x, y = grid.to_ground(cols, rows)
    return x, y


def _circle(crs: pyproj.CRS) -> float | None:
    """Once around the Earth along a CRS's x; None where x does not count longitudes evenly."""
    if is_plain_degrees(crs):
        return float(2 * np.pi / crs.axis_info[0].unit_conversion_factor)
    if not crs.is_projected or crs.geodetic_crs is None:
        return None
    lon, lat = np.array([(10, 0), (40, 0), (10, 50), (40, 50), (100, -60), (130, -60)]).T
    try:
        to_x = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
        east = np.diff(np.asarray(to_x.transform(lon, lat)[0]))[::2]
    except ProjError:
        return None
    return float(12 * east[0]) if np.allclose(east, east[0]) and east[0] > 0 else None


def _domain(grid: Grid, back: pyproj.Transformer, around: Box, turn: float | None) -> Any:
    """Where, in the CRS of the features, a raster lies that is partly off the Earth."""
    u, v = (np.asarray(axis) for axis in back.transform(*_lattice(grid.drawn, _FINE)))
    known = np.isfinite(u) & np.isfinite(v)
    u, v = u[known], v[known]
    if turn is not None:
        middle = (around[0] + around[2]) / 2
        u = middle + np.remainder(u - middle + turn / 2, turn) - turn / 2
    return shapely.convex_hull(shapely.multipoints(np.column_stack([u, v])))


def _surroundings(
    x: FloatArray,
    y: FloatArray,
    near: Box,
    forth: pyproj.Transformer,
    back: pyproj.Transformer,
    circle: float | None,
) -> Box:
    """Bounds, in the CRS of the features, of a raster and its surroundings."""
    u, v = (np.asarray(axis) for axis in back.transform(x, y))
    known = np.isfinite(u) & np.isfinite(v)
    if not known.any():
        raise ProjError("no point of the raster has a place in the file's CRS")
    u, v = u[known], v[known]
    top, bottom = v.max(), v.min()
    if circle is not None:
        turn = circle / (2 * np.pi)
        middle = np.angle(np.exp(1j * u / turn).mean()) * turn
        u = middle + np.remainder(u - middle + circle / 2, circle) - circle / 2
        for pole in (-circle / 4, circle / 4):
            px, py = forth.transform(0, pole)
            if near[0] <= px <= near[2] and near[1] <= py <= near[3]:
                u = np.array([middle - circle / 2, middle + circle / 2])
                top, bottom = max(top, pole), min(bottom, pole)
        if np.ptp(u) > _NARROW * circle:
            u = np.array([middle - circle / 2, middle + circle / 2])
    wide, high = _MARGIN * np.ptp(u), _MARGIN * (top - bottom)
    left, right = float(u.min() - wide), float(u.max() + wide)
    if circle is not None and right - left > circle:
        left, right = middle - circle / 2, middle + circle / 2
    return left, float(bottom - high), right, float(top + high)


def _cut(shapes: Shapes, box: Box, circle: float | None) -> Shapes:
    """Parts of features in a box, also of those that lie there once more around the Earth."""
    bounds = shapely.bounds(shapes)
    areas = shapely.get_dimensions(shapes) == 2
    parts = []
    for turns in (0,) if circle is None else (0, -1, 1):
        shift = turns * (circle or 0)
        left, bottom, right, top = box[0] - shift, box[1], box[2] - shift, box[3]
        meets = (bounds[:, 0] < right) & (bounds[:, 2] > left)
        meets &= (bounds[:, 1] < top) & (bounds[:, 3] > bottom)
        inside = (bounds[:, 0] >= left) & (bounds[:, 2] <= right)
        inside &= (bounds[:, 1] >= bottom) & (bounds[:, 3] <= top)
        found = np.where(meets, shapes, shapely.Polygon())
        crossing = meets & ~inside
        found[crossing] = shapely.intersection(
            found[crossing], shapely.box(left, bottom, right, top)
        )
        # Two areas that touch have points and lines in common.
        found[areas & (shapely.get_dimensions(found) < 2)] = shapely.Polygon()
        parts.append(_moved(found, shift) if shift else found)
    result = parts[0]
    for part in parts[1:]:
        both = ~shapely.is_empty(part)
        result[both] = shapely.union(result[both], part[both])
    return _valid(result)


def _moved(shapes: Shapes, by: float) -> Shapes:
    moved: Shapes = shapely.transform(shapes, lambda points: points + np.array([by, 0.0]))
    return moved


def _within_domain(shape: Any) -> Any:
    """A polygon without the corners that have no place in the raster's CRS."""

    def ring(points: Any) -> Any:
        known = shapely.get_coordinates(points)
        known = known[np.isfinite(known).all(axis=1)]
        return known if len(known) > 2 else None

    if _is_point(shape):
        return shapely.Polygon()
    polygons = [
        shapely.Polygon(outer, [hole for hole in map(ring, part.interiors) if hole is not None])
        for part in shapely.get_parts(shape)
        if (outer := ring(part.exterior)) is not None
    ]
    return shapely.union_all(shapely.make_valid(polygons)) if polygons else shapely.Polygon()


def _valid(shapes: Shapes) -> Shapes:
    """Polygons that do not cross themselves, without the lines that mending leaves; and points."""
    made = np.array(shapes, object)
    other = ~np.isin(shapely.get_type_id(made), _KEPT_TYPES)
    for index in np.flatnonzero(other | ~shapely.is_valid(made)):
        made[index] = _polygons_in(shapely.make_valid(made[index])) or shapely.Polygon()
    return made
