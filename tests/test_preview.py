"""Previews: the right colours in the right places, at any shape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasters import make, rgb

from geoseg import _fonts
from geoseg.errors import GeosegWarning, OptionError, OutputError, SceneError
from geoseg.io.grid import Grid
from geoseg.io.scene import Scene
from geoseg.io.write import label_writer
from geoseg.preview import preview_files, render_preview
from geoseg.types import PixelBlock, Window, as_label_classes

UTM = CRS.from_epsg(32631)
CLASSES = as_label_classes(["water", "field"], ["#0000ff", "#ff0000"])


def place(height: int, width: int, crs: CRS | None = UTM) -> Grid:
    transform = Affine(1, 0, 500000, 0, -1, 5000000) if crs is not None else Affine.identity()
    return Grid(crs, transform, height, width)


def draw(path: Path, labels: np.ndarray, grid: Grid | None = None, **options: object) -> np.ndarray:
    height, width = labels.shape
    block = PixelBlock(np.full((3, height, width), 0.5, np.float32), np.ones((height, width), bool))
    target = grid if grid is not None else place(height, width)
    render_preview(block, labels, CLASSES, target, path, **options)  # type: ignore[arg-type]
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def share_of(page: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(page.astype(int) - colour).max(axis=2) <= 2).mean())


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (7, 3), (500, 600), (60, 3000), (3000, 60), (1500, 2500)]
)
def test_every_shape_fits_the_page(tmp_path: Path, height: int, width: int) -> None:
    page = draw(tmp_path / "p.png", np.zeros((height, width), np.uint8), title="A title " * 30)
    assert page.shape[1] <= 2000
    assert page.shape[0] <= 3500
    small = draw(tmp_path / "q.png", np.zeros((height, width), np.uint8), max_width=400)
    assert small.shape[1] <= 800


def test_colours_stand_where_the_labels_are(tmp_path: Path) -> None:
    labels = np.zeros((400, 400), np.uint8)
    labels[:, 200:] = 1
    page = draw(tmp_path / "p.png", labels, opacity=1.0)
    right = page[:, page.shape[1] // 2 :]
    blue = np.nonzero((right == (0, 0, 255)).all(axis=2))[1]
    red = np.nonzero((right[: right.shape[0] - 150] == (255, 0, 0)).all(axis=2))[1]
    assert blue.size
    assert red.min() >= np.quantile(blue, 0.9)
    assert share_of(page, (127, 127, 127)) + share_of(page, (128, 128, 128)) > 0.3


def test_nodata_is_not_coloured(tmp_path: Path) -> None:
    full = draw(tmp_path / "a.png", np.zeros((300, 300), np.uint8), opacity=1.0)
    none = draw(tmp_path / "b.png", np.full((300, 300), 255, np.uint8), opacity=1.0)
    assert share_of(full, (0, 0, 255)) > 0.25
    assert share_of(none, (0, 0, 255)) < 0.01
    assert share_of(none, (233, 234, 236)) > 0.2


def test_a_scale_bar_needs_a_known_pixel_size(tmp_path: Path) -> None:
    labels = np.zeros((300, 300), np.uint8)
    with_bar = draw(tmp_path / "a.png", labels, opacity=1.0)
    without = draw(tmp_path / "b.png", labels, place(300, 300, None), opacity=1.0)
    assert share_of(with_bar, (33, 37, 41)) > share_of(without, (33, 37, 41))


def test_many_classes_and_long_names(tmp_path: Path) -> None:
    classes = as_label_classes([f"a rather long class name with number {i}" for i in range(300)])
    labels = (np.arange(160000).reshape(400, 400) % 300).astype(np.uint16)
    block = PixelBlock(np.zeros((3, 400, 400), np.float32), np.ones((400, 400), bool))
    render_preview(block, labels, classes, place(400, 400), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.width <= 2000
        assert image.height <= 2000


def test_labels_of_a_part_and_on_coarser_pixels_are_found_on_the_scene(tmp_path: Path) -> None:
    data = np.zeros((3, 200, 300), np.uint8)
    data[:, 100:, 150:] = 255
    scene = Scene.open(make(tmp_path / "s.tif", data), nodata=())
    part = scene.grid.crop(Window(100, 150, 100, 150))
    for name, grid in (("part", part), ("coarse", part.scaled(4, 4))):
        writer = label_writer(tmp_path / f"{name}.work", grid, CLASSES)
        writer.write(grid.window, np.zeros(grid.shape, np.uint8))
        writer.finish(tmp_path / f"{name}.tif")
        preview_files(scene, tmp_path / f"{name}.tif", tmp_path / f"{name}.png", title="Part")
        with Image.open(tmp_path / f"{name}.png") as image:
            page = np.asarray(image.convert("RGB"))
        middle = page[
            page.shape[0] // 3 : page.shape[0] // 2, page.shape[1] // 8 : page.shape[1] // 3
        ]
        assert (middle == 255).all()


def test_labels_of_elsewhere_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "s.tif", rgb())
    grid = Grid(UTM, Affine(1, 0, 700000, 0, -1, 5000000), 40, 50)
    writer = label_writer(tmp_path / "w", grid, CLASSES)
    writer.write(grid.window, np.zeros(grid.shape, np.uint8))
    writer.finish(tmp_path / "l.tif")
    with pytest.raises(SceneError, match="does not lie on the scene"):
        preview_files(tmp_path / "s.tif", tmp_path / "l.tif", tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def test_nothing_is_overwritten_unasked_nor_left_half(tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    draw(out, np.zeros((9, 9), np.uint8))
    with pytest.raises(OutputError, match="--overwrite"):
        draw(out, np.zeros((9, 9), np.uint8))
    draw(out, np.zeros((9, 9), np.uint8), overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        draw(tmp_path / "missing" / "p.png", np.zeros((9, 9), np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("options", [{"opacity": 1.5}, {"opacity": -0.1}, {"max_width": 50}])
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        draw(tmp_path / "p.png", np.zeros((9, 9), np.uint8), **options)


def test_other_formats_than_png_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "s.tif", rgb())
    with pytest.raises(OptionError, match=r"p\.jpg: a preview is a PNG"):
        preview_files(tmp_path / "s.tif", tmp_path / "s.tif", tmp_path / "p.jpg")


def test_a_preview_never_replaces_its_scene(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 30)).save(photo)
    before = photo.read_bytes()
    with pytest.raises(OutputError, match="is the scene itself and would be replaced"):
        preview_files(photo, tmp_path / "labels.tif", photo, overwrite=True)
    assert photo.read_bytes() == before


def ink_of(name: str, folder: Path) -> bytes:
    """Pixels of a preview with that title."""
    out = folder / f"{len(list(folder.iterdir()))}.png"
    return draw(out, np.zeros((9, 9), np.uint8), title=name).tobytes()


@pytest.fixture
def without_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that has no font of its own."""
    monkeypatch.setattr(_fonts, "_paths", lambda: iter(["nothing.ttf"]))
    _fonts._choice.cache_clear()
    yield
    _fonts._choice.cache_clear()


@pytest.mark.usefixtures("without_fonts")
def test_letters_that_no_font_has_are_named(tmp_path: Path) -> None:
    draw(tmp_path / "plain.png", np.zeros((9, 9), np.uint8), title="Buildings (roofs), 100 % …")
    with pytest.warns(GeosegWarning, match=r"p\.png: no font .* the letters ä 屋, which are drawn"):
        draw(tmp_path / "p.png", np.zeros((9, 9), np.uint8), title="Wäldchen 屋\u0301")
    with pytest.warns(GeosegWarning, match="…, which are drawn as boxes"):
        draw(
            tmp_path / "q.png",
            np.zeros((9, 9), np.uint8),
            title="".join(map(chr, range(0x4E00, 0x4E20))),
        )


def test_a_font_that_has_the_letters_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [path for folder in _fonts._folders() for path in folder.rglob("DejaVuSans.ttf")]
    if not found:
        pytest.skip("this machine has no such font")
    monkeypatch.setattr(_fonts, "_FIRST", ())
    monkeypatch.setattr(_fonts, "_folders", lambda: [tmp_path / "fonts", tmp_path / "none"])
    (tmp_path / "fonts" / "deep").mkdir(parents=True)
    (tmp_path / "fonts" / "broken.ttf").write_text("no font")
    (tmp_path / "fonts" / "deep" / "Some Font.TTF").write_bytes(found[0].read_bytes())
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    _fonts._choice.cache_clear()
    try:
        words = ["вода", "лес 1", "غابة", "Wäldchen"]
        assert len({ink_of(word, pictures) for word in words}) == len(words)
        assert not _fonts._choice(frozenset("".join(words)))[1] - {" "}
    finally:
        _fonts._choice.cache_clear()
