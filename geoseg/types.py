"""Small frozen values that the rooms of geoseg hand to each other.

Conventions, everywhere inside the library: row before column, ``(C, H, W)`` images, sizes as
``(height, width)``; a ``valid`` mask is boolean and True means real data. Rasterio's windows and
masks are converted at the ``geoseg.io`` boundary and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]
LabelArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A rectangle of whole pixels: ``height`` rows from ``row``, ``width`` columns from ``col``.

    Raises
    ------
    ValueError
        If a size is negative.
    """

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 0 or self.width < 0:
            raise ValueError(f"a window cannot have a negative size: {self}")

    @property
    def shape(self) -> tuple[int, int]:
        """Size as ``(height, width)``."""
        return self.height, self.width

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    def intersection(self, other: Window) -> Window | None:
        """Pixels that lie in both windows, or None if there are none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.row_stop, other.row_stop) - row
        width = min(self.col_stop, other.col_stop) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None

    def grown(self, margin: int) -> Window:
        """Return the window with so many pixels more on each side, wherever the scene ends."""
        return Window(
            self.row - margin,
            self.col - margin,
            self.height + 2 * margin,
            self.width + 2 * margin,
        )

    def relative_to(self, origin: Window) -> Window:
        """Return the same pixels, counted from the upper left corner of ``origin``."""
        return Window(self.row - origin.row, self.col - origin.col, self.height, self.width)

    def slices(self) -> tuple[slice, slice]:
        """Row and column slices for indexing an array of the scene's size."""
        return slice(self.row, self.row_stop), slice(self.col, self.col_stop)


@dataclass(frozen=True, slots=True)
class LabelClass:
    """One class of a label raster: the value pixels carry, its name and its colour."""

    index: int
    """Pixel value, counted from 0."""
    name: str
    """Display name."""
    color: str
    """``#rrggbb``."""

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Colour as three values of 0 to 255."""
        return (int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16))


@dataclass(frozen=True, slots=True)
class PixelBlock:
    """Pixels of one window of a scene, as the encoder wants them."""

    rgb: FloatArray
    """``(3, H, W)`` float32 in [0, 1], or bands for a `geoseg.Scorer`; 0 where not valid."""
    valid: BoolArray
    """``(H, W)``; True where the scene has data."""
    regions: npt.NDArray[np.int64] | None = None
    """``(H, W)``: number of each pixel's region, 0 for none, where an attention reads them."""


def label_dtype(classes: int) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """Pixel type of a label raster with that many classes: uint8 up to 254, uint16 above."""
    return np.dtype(np.uint8) if classes <= 254 else np.dtype(np.uint16)


def label_nodata(dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> int:
    """Value that marks nodata in a label raster: 255 (uint8) or 65535 (uint16)."""
    return int(np.iinfo(dtype).max)


_PALETTE = (
    "#d7443e", "#f2c14e", "#3b7dd8", "#1f7a3d", "#9bcf63", "#b9b3a8", "#c98b4a", "#8e5bb5",
    "#e377c2", "#17becf", "#7f4f24", "#5b6770", "#f28e2b", "#2ca58d", "#a4243b", "#6a8caf",
    "#d4e157", "#4e342e", "#ffb3ba", "#00695c",
)  # fmt: skip


def default_color(index: int) -> str:
    """Return a distinct ``#rrggbb`` for the class with this index; the same one every time."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    # Golden-angle hues with alternating saturation and lightness keep later classes apart.
    import colorsys

    hue = (index * 0.61803398875) % 1.0
    lightness = (0.42, 0.58, 0.72)[index % 3]
    saturation = (0.85, 0.55)[(index // 3) % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def as_label_classes(
    names: Sequence[str], colors: Sequence[str] | None = None
) -> tuple[LabelClass, ...]:
    """Number names from 0 and give each its colour, or the default one for its index."""
    if colors is None:
        colors = [default_color(i) for i in range(len(names))]
    return tuple(
        LabelClass(i, name, color)
        for i, (name, color) in enumerate(zip(names, colors, strict=True))
    )


PER_CENT_NODATA = 255
"""Value of the per-cent rasters where there is no data."""
