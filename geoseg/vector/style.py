"""Class colours for QGIS: style files and the styles table of a GeoPackage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

from geoseg._files import whole_file, whole_files, writing_to, xml_text
from geoseg.errors import OutputError
from geoseg.legend import open_labels
from geoseg.text.vocabulary import VocabularySource
from geoseg.types import LabelClass

_VERSION = "3.22.0"
_MADE_BY = "made by geoseg"
"""Comment by which a file is known that may be replaced."""

_TABLE = """
CREATE TABLE IF NOT EXISTS layer_styles (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256),
  f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
  useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
  update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now'))
)
"""


def polygon_qml(classes: Sequence[LabelClass]) -> str:
    """Style of label polygons: one filled symbol a class, chosen by ``class_id``."""
    root = ET.Element("qgis", version=_VERSION, styleCategories="Symbology")
    renderer = ET.SubElement(
        root,
        "renderer-v2",
        type="categorizedSymbol",
        attr="class_id",
        symbollevels="0",
        enableorderby="0",
        forceraster="0",
    )
    categories = ET.SubElement(renderer, "categories")
    symbols = ET.SubElement(renderer, "symbols")
    for number, item in enumerate(classes):
        ET.SubElement(
            categories,
            "category",
            value=str(item.index),
            label=xml_text(item.name),
            symbol=str(number),
            render="true",
            type="long",
        )
        symbols.append(_fill(str(number), item.rgb))
    return _document(root)


def polygon_sld(classes: Sequence[LabelClass], layer: str) -> str:
    """Give the same style as a Styled Layer Descriptor (OGC 05-077r4), for other programs."""
    root = ET.Element("sld:StyledLayerDescriptor", _NAMESPACES | {"version": "1.1.0"})
    named = _tag(root, "sld:NamedLayer")
    _tag(named, "se:Name", xml_text(layer))
    style = _tag(named, "sld:UserStyle")
    _tag(style, "se:Name", "classes")
    rules = _tag(style, "se:FeatureTypeStyle")
    for item in classes:
        rule = _tag(rules, "se:Rule")
        _tag(rule, "se:Name", xml_text(item.name))
        _tag(_tag(rule, "se:Description"), "se:Title", xml_text(item.name))
        equal = _tag(_tag(rule, "ogc:Filter"), "ogc:PropertyIsEqualTo")
        _tag(equal, "ogc:PropertyName", "class_id")
        _tag(equal, "ogc:Literal", str(item.index))
        symbol = _tag(rule, "se:PolygonSymbolizer")
        fill, stroke = _tag(symbol, "se:Fill"), _tag(symbol, "se:Stroke")
        _tag(fill, "se:SvgParameter", item.color, name="fill")
        _tag(fill, "se:SvgParameter", f"{_OPACITY / 255:.2f}", name="fill-opacity")
        dark = "#" + "".join(f"{level:02x}" for level in _darker(item.rgb))
        _tag(stroke, "se:SvgParameter", dark, name="stroke")
        _tag(stroke, "se:SvgParameter", "0.4", name="stroke-width")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


_NAMESPACES = {
    "xmlns:sld": "http://www.opengis.net/sld",
    "xmlns:se": "http://www.opengis.net/se",
    "xmlns:ogc": "http://www.opengis.net/ogc",
}


def _tag(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    made = ET.SubElement(parent, tag, attributes)
    made.text = text
    return made


def raster_qml(classes: Sequence[LabelClass]) -> str:
    """Style of a label raster: a palette with the classes' names, to lie beside the GeoTIFF."""
    root, renderer = _raster_renderer("paletted")
    palette = ET.SubElement(renderer, "colorPalette")
    for item in classes:
        label = xml_text(item.name)
        _entry(palette, "paletteEntry", item.index, label, item.color)
    return _document(root)


def per_cent_qml() -> str:
    """Style of a raster of per cents: a ramp from 0 to 100, whatever values occur."""
    root, renderer = _raster_renderer(
        "singlebandpseudocolor", classificationMin="0", classificationMax="100"
    )
    ET.SubElement(ET.SubElement(renderer, "minMaxOrigin"), "limits").text = "None"
    ramp = ET.SubElement(
        ET.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
        minimumValue="0",
        maximumValue="100",
    )
    for value, color in _VIRIDIS.items():
        _entry(ramp, "item", value, f"{value} %", color)
    return _document(root)


def _raster_renderer(kind: str, **more: str) -> tuple[ET.Element, ET.Element]:
    root = ET.Element("qgis", version=_VERSION, styleCategories="Symbology")
    renderer = ET.SubElement(
        ET.SubElement(root, "pipe"),
        "rasterrenderer",
        {"type": kind, "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""} | more,
    )
    return root, renderer


def _entry(parent: ET.Element, tag: str, value: int, label: str, color: str) -> None:
    ET.SubElement(parent, tag, value=str(value), label=label, color=color, alpha="255")


_OPACITY = 200
"""Of polygons, of 255: what lies below shows."""
_VIRIDIS = {0: "#440154", 25: "#3b528b", 50: "#21918c", 75: "#5ec962", 100: "#fde725"}
_COLUMNS = (
    ("Value", _INTEGER := "0", "5"),
    ("Count", _REAL := "1", "1"),
    ("Class_Name", _TEXT := "2", "2"),
    ("Red", _INTEGER, "6"),
    ("Green", _INTEGER, "7"),
    ("Blue", _INTEGER, "8"),
    ("Alpha", _INTEGER, "9"),
)
"""Of the attribute table: name, GDAL's type and GDAL's usage. Counts may exceed GDAL's integers."""


def raster_metadata(classes: Sequence[LabelClass], counts: Mapping[int, int]) -> str:
    """Class names and attribute table as GDAL keeps them beside a raster, in its ``.aux.xml``.

    Parameters
    ----------
    classes
        Classes of the raster.
    counts
        Pixels by class index.
    """
    root = ET.Element("PAMDataset")
    root.append(ET.Comment(_MADE_BY))
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    names = ET.SubElement(band, "CategoryNames")
    by_value = {item.index: item.name for item in classes}
    for value in range(max(by_value, default=-1) + 1):
        ET.SubElement(names, "Category").text = xml_text(by_value.get(value, ""))
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_COLUMNS):
        column = ET.SubElement(table, "FieldDefn", index=str(index))
        for tag, text in (("Name", name), ("Type", kind), ("Usage", usage)):
            ET.SubElement(column, tag).text = text
    for index, item in enumerate(classes):
        row = ET.SubElement(table, "Row", index=str(index))
        for cell in (item.index, counts.get(item.index, 0), xml_text(item.name), *item.rgb, 255):
            ET.SubElement(row, "F").text = str(cell)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def side_files(
    raster: Path, classes: Sequence[LabelClass], counts: Mapping[int, int]
) -> dict[Path, str]:
    """Files that lie beside a label raster, with their content: for QGIS, and for all of GDAL."""
    return {
        raster.with_suffix(".qml"): raster_qml(classes),
        raster.with_name(f"{raster.name}.aux.xml"): raster_metadata(classes, counts),
    }


def write_polygon_style(polygons: Path, classes: Sequence[LabelClass]) -> None:
    """Write the style that QGIS opens polygons with beside them, unless another style lies there.

    It may be one of the user's, or that of a raster of the same name.
    """
    path = polygons.with_suffix(".qml")
    if any(polygons.with_suffix(end).exists() for end in (".tif", ".tiff", ".vrt")):
        return  # whose style QGIS would look for under the same name
    if path.exists() and not (_is_ours(path) and "<renderer-v2" in path.read_text("utf-8")):
        return
    with writing_to(path), whole_file(path) as part:
        part.write_text(polygon_qml(classes), encoding="utf-8")


def _is_ours(path: Path) -> bool:
    return _MADE_BY in path.read_text(encoding="utf-8", errors="replace")


def write_raster_style(
    labels: str | Path, *, classes: VocabularySource | None = None, overwrite: bool = False
) -> tuple[Path, Path]:
    """Write names and colours beside a label raster, for QGIS (``.qml``) and GDAL (``.aux.xml``).

    Characters that XML cannot hold are written as ``\\ufffe``.

    Raises
    ------
    SceneError
        If the raster cannot be read.
    OutputError
        If one of the files exists, is not geoseg's and ``overwrite`` is False, or cannot be
        written.
    """
    with raster_style(labels, classes=classes, overwrite=overwrite) as paths:
        return paths


@contextmanager
def raster_style(
    labels: str | Path, *, classes: VocabularySource | None = None, overwrite: bool = False
) -> Iterator[tuple[Path, Path]]:
    """Do as `write_raster_style` does, but let the files appear once the block has ended well.

    They are written before it, so that what cannot be written shows before other work.
    """
    raster = open_labels(labels, classes)
    contents = side_files(Path(labels), raster.classes, raster.counts())
    for path in contents:
        if path.exists() and not overwrite and not _is_ours(path):
            raise OutputError(f"{path}: exists already; replace it with --overwrite")
    qml, names = contents
    with whole_files([qml, names]) as parts:
        for (path, text), part in zip(contents.items(), parts, strict=True):
            with writing_to(path):
                part.write_text(text, encoding="utf-8")
        yield qml, names


_TIMES = {
    "layer_styles": "update_time",
    "gpkg_contents": "last_change",
    "gpkg_metadata_reference": "timestamp",
}
"""Tables of a GeoPackage that say when something was written, and in which column."""


def geometry_column(connection: sqlite3.Connection, layer: str) -> str:
    """Name of the column of a GeoPackage's layer that holds the geometries.

    Raises
    ------
    sqlite3.Error
        If there is no such layer.
    """
    found = connection.execute(
        "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
    ).fetchone()
    if found is None:
        raise sqlite3.DatabaseError(f"there is no layer {layer}")
    return str(found[0])


def add_to_geopackage(
    path: Path, layer: str, classes: Sequence[LabelClass], time: str | None = None
) -> None:
    """Store the polygons' style in a GeoPackage, for programs that look for its table.

    ``time`` is when it was made, in place of the clock's.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        column = geometry_column(connection, layer)
        connection.execute(_TABLE)
        connection.execute(
            # As a table of a kind of its own: readers that take the only layer find one.
            "INSERT OR IGNORE INTO gpkg_contents (table_name, data_type, identifier) "
            "VALUES ('layer_styles', 'styles', 'layer_styles')"
        )
        connection.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
            "f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner) "
            "VALUES ('', '', ?, ?, 'classes', ?, ?, 1, 'Class colours', '')",
            (layer, column, polygon_qml(classes), polygon_sld(classes, layer)),
        )
        if time is not None:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in found}
            for table, column in _TIMES.items():
                if table in tables:
                    connection.execute(f"UPDATE {table} SET {column} = ?", (time,))


def _darker(rgb: Iterable[int]) -> list[int]:
    """Colour of an outline."""
    return [level * 6 // 10 for level in rgb]


def _fill(name: str, rgb: Sequence[int]) -> ET.Element:
    symbol = ET.Element("symbol", name=name, type="fill", alpha="1", clip_to_extent="1")
    layer = ET.SubElement(
        symbol, "layer", attrib={"class": "SimpleFill"}, enabled="1", locked="0"
    ).append
    properties = {
        "color": ",".join(map(str, (*rgb, _OPACITY))),
        "style": "solid",
        "outline_color": ",".join(map(str, (*_darker(rgb), 255))),
        "outline_style": "solid",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
    }
    options = ET.Element("Option", type="Map")
    for key, value in properties.items():
        ET.SubElement(options, "Option", name=key, type="QString", value=value)
    layer(options)
    for key, value in properties.items():  # what QGIS before 3.16 reads
        layer(ET.Element("prop", k=key, v=value))
    return symbol


def _document(root: ET.Element) -> str:
    root.insert(0, ET.Comment(_MADE_BY))
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n"
