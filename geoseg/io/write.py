"""Rasters out: written piece by piece, and under their final name only when complete."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.env import GDALVersion
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from geoseg._address import scene_name
from geoseg._files import complaint, whole_file, writing_to, xml_text
from geoseg.errors import OutputError
from geoseg.io._handles import open_dataset
from geoseg.io.crs import storable
from geoseg.io.grid import Grid, pieces
from geoseg.io.overviews import overviews_beside
from geoseg.io.sparse import StoredBlocks
from geoseg.io.times import TIFF_TIME, as_tiff_time, read_time, time_taken
from geoseg.runtime.quiet import hushed
from geoseg.types import PER_CENT_NODATA, LabelClass, Window, label_dtype, label_nodata

logger = logging.getLogger(__name__)

BLOCK = 512
_COMPARED_SIDE = 8 * BLOCK
"""Pixels a side that are compared at a time."""
_MANY_PIXELS = 2**32
"""Beyond these blocks are larger, so that the list of them stays small."""
_CLASSIC_BYTES = 2**31
"""Bytes of pixels, without overviews and compression, that any reader's classic TIFF can hold."""
_STARTED_IN = os.getpid()
PRODUCT_TAG = "GEOSEG_PRODUCT"

Rgba = tuple[int, int, int, int]
Product = Literal["labels", "runner_up", "confidence", "margin", "probabilities", "similarity"]


@dataclass(frozen=True)
class RasterLayout:
    """What an output raster is, apart from its pixels. Nothing of it comes from the source file."""

    product: Product
    dtype: str
    nodata: float
    descriptions: tuple[str, ...]
    """One a band."""
    overviews: Literal["MODE", "AVERAGE"]
    """How GDAL makes the overviews."""
    predictor: bool
    """Whether neighbouring values are close, so that differences compress better."""
    band_tags: Mapping[str, str] = field(default_factory=dict)
    """Metadata of band 1."""
    colours: Mapping[int, Rgba] = field(default_factory=dict)
    """Colour table of band 1."""
    unit: str | None = None
    """Of the values."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the file: where its content comes from."""


class RasterWriter:
    """Writes a raster window by window into a work file, and makes the final COG of it.

    The work file is a tiled, sparse and uncompressed GeoTIFF: what was never written reads as
    nodata and takes no room, and a block that is rewritten keeps its place, so a process that dies
    while writing harms no pixels that :meth:`flush` has secured. Safe to use from several threads.

    Parameters
    ----------
    work
        Work file; left where it is by :meth:`close`, so that a later run can resume.
    grid
        Placement and size.
    layout
        Bands, type, nodata and colours.
    resume
        Go on with the work file, if it is there and sound; otherwise it is made anew, empty.

    Raises
    ------
    OutputError
        If the work file cannot be made.
    """

    def __init__(
        self, work: Path, grid: Grid, layout: RasterLayout, *, resume: bool = False
    ) -> None:
        self.work = work
        self.grid = grid
        self.layout = layout
        self._lock = threading.RLock()
        self._dataset: Any = None
        if not (resume and self._goes_on()):
            self._create()

    def _goes_on(self) -> bool:
        """Whether the work file is there and can be written on."""
        try:
            with hushed():
                self._reopen()
        except (RasterioError, OSError, ValueError, TypeError) as error:
            logger.info("%s is made anew: %s", self.work, error)
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, window: Window, pixels: npt.NDArray[Any]) -> None:
        """Write one window.

        Parameters
        ----------
        window
            Where, in pixels of the grid.
        pixels
            ``(h, w)``, or ``(bands, h, w)``, in the raster's own type.

        Raises
        ------
        OutputError
            If the disk does not take it.
        ValueError
            If shape or type do not fit.
        """
        bands = pixels if pixels.ndim == 3 else pixels[None]
        if bands.shape != (len(self.layout.descriptions), *window.shape):
            raise ValueError(f"pixels of shape {pixels.shape} do not fit {window}")
        if bands.dtype != np.dtype(self.layout.dtype):
            raise ValueError(f"pixels are {bands.dtype}, the raster is {self.layout.dtype}")
        if window.intersection(self.grid.window) != window:
            raise ValueError(f"{window} is not inside the raster of {self.grid.shape} pixels")
        target = RasterioWindow(window.col, window.row, window.width, window.height)
        with self._lock, _writing(self.work):
            if self._dataset is None:
                self._reopen()
            self._dataset.write(bands, window=target)

    def flush(self) -> None:
        """Hand all pixels written so far to the operating system; the next write goes on."""
        self.close()

    def read(self, window: Window) -> npt.NDArray[Any] | None:
        """Pixels of a window as they lie in the work file, ``(h, w)`` or ``(bands, h, w)``.

        None where they cannot be read.
        """
        target = RasterioWindow(window.col, window.row, window.width, window.height)
        self.close()
        try:
            with self._lock, hushed(), open_dataset(str(self.work)) as dataset:
                bands: npt.NDArray[Any] = dataset.read(window=target)
        except RasterioError:
            return None
        return bands[0] if len(bands) == 1 else bands

    def complaint(self, error: BaseException | str) -> str:
        """Say in one line that the work file could not be written, and why."""
        return complaint(self.work, error)

    def close(self) -> None:
        """Close the work file and keep it."""
        with self._lock:
            if self._dataset is not None:
                dataset, self._dataset = self._dataset, None
                with _writing(self.work):
                    dataset.close()

    def discard(self) -> None:
        """Close the work file and delete it."""
        self.close()
        self.work.unlink(missing_ok=True)

    def finish(self, final: Path, *, overwrite: bool = False) -> None:
        """Make a cloud-optimised GeoTIFF of the work file and give it its final name at once.

        The work file stays; :meth:`discard` removes it.

        Raises
        ------
        OutputError
            If ``final`` exists and ``overwrite`` is False, or it cannot be written.
        """
        self.close()
        if final.exists() and not overwrite:
            raise OutputError(f"{final}: exists already; replace it with --overwrite")
        # GDAL's threads do not outlive a fork, and starting new ones then hangs.
        threads = "ALL_CPUS" if os.getpid() == _STARTED_IN else "1"
        layout = self.layout
        with (
            writing_to(final),
            whole_file(final) as part,
            _writing(final),
            overviews_beside(self.work, layout.overviews, BLOCK),
        ):
            rasterio.shutil.copy(
                str(self.work),
                str(part),
                driver="COG",
                COMPRESS="DEFLATE",
                PREDICTOR="YES" if layout.predictor else "NO",
                BLOCKSIZE=BLOCK if self.grid.window.area <= _MANY_PIXELS else 2 * BLOCK,
                OVERVIEW_RESAMPLING=layout.overviews,
                SPARSE_OK="TRUE",
                BIGTIFF="YES" if self.work.stat().st_size > _CLASSIC_BYTES else "NO",
                NUM_THREADS=threads,
                **self._by_bands(),
            )
            if not self._is_copied(part):
                raise OutputError(complaint(final, "what was written cannot be read back"))

    def _by_bands(self) -> dict[str, str]:
        """Bands one after another, where GDAL can: one class is read without the others."""
        several = len(self.layout.descriptions) > 1
        return {"INTERLEAVE": "BAND"} if several and GDALVersion.runtime().at_least("3.11") else {}

    def _is_copied(self, copy: Path) -> bool:
        """Whether a copy holds what the work file does, pixel for pixel."""
        with open_dataset(str(self.work)) as work, open_dataset(str(copy)) as made:
            stored = StoredBlocks.of(work), StoredBlocks.of(made)
            return all(
                np.array_equal(
                    work.read(band, window=piece.slices()), made.read(band, window=piece.slices())
                )
                for piece in pieces(self.grid.window, _COMPARED_SIDE, _COMPARED_SIDE)
                if any(blocks.any_in(piece) for blocks in stored)
                for band in work.indexes
            )

    def _create(self) -> None:
        layout = self.layout
        with _writing(self.work), ExitStack() as undo:
            self.work.unlink(missing_ok=True)
            dataset = open_dataset(
                str(self.work),
                "w",
                driver="GTiff",
                height=self.grid.height,
                width=self.grid.width,
                count=len(layout.descriptions),
                dtype=layout.dtype,
                nodata=layout.nodata,
                crs=storable(self.grid.crs),
                # GIS software obeys an identity, and draws an image without one otherwise.
                transform=self.grid.transform if self.grid.with_transform else None,
                tiled=True,
                blockxsize=BLOCK,
                blockysize=BLOCK,
                interleave="band",
                BIGTIFF="IF_SAFER",
                SPARSE_OK=True,
                **_plain_bands(len(layout.descriptions)),
            )
            undo.callback(dataset.close)
            if len(layout.descriptions) > 1:
                others = [ColorInterp.undefined] * (len(layout.descriptions) - 1)
                dataset.colorinterp = [ColorInterp.gray, *others]
            software = f"geoseg {version('geoseg')}"
            known = {PRODUCT_TAG: layout.product, "TIFFTAG_SOFTWARE": software}
            dataset.update_tags(**{**layout.tags, **known})
            if layout.unit is not None:
                dataset.units = [layout.unit] * len(layout.descriptions)
            dataset.update_tags(1, **layout.band_tags)
            for number, text in enumerate(layout.descriptions, start=1):
                dataset.set_band_description(number, text)
            if layout.colours:
                dataset.write_colormap(1, dict(layout.colours))
            undo.pop_all()
            self._dataset = dataset

    def _reopen(self) -> None:
        dataset = open_dataset(str(self.work), "r+")
        found = (dataset.shape, dataset.count, dataset.dtypes[0], dict(dataset.tags(1)))
        layout = self.layout
        wanted = (self.grid.shape, len(layout.descriptions), layout.dtype, dict(layout.band_tags))
        if found != wanted:
            dataset.close()
            raise ValueError(f"{self.work} is another raster's")
        self._dataset = dataset


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """GDAL at work on a file: its errors become one line, and it prints none of its own."""
    # Rasterio raises TypeError where GDAL opens a file that it then cannot read, and lets GDAL's
    # own errors through where it copies one.
    with writing_to(path, RasterioError, CPLE_BaseError, TypeError), hushed():
        yield


def _plain_bands(count: int) -> dict[str, str]:
    """Options that keep GDAL from taking three bands for colours and a fourth for alpha."""
    return {"photometric": "MINISBLACK", "ALPHA": "UNSPECIFIED"} if count > 1 else {}


def provenance(
    scene: str,
    model: str,
    classes: Sequence[Sequence[str]],
    *,
    opened: str = "",
    taken: str = "",
) -> dict[str, str]:
    """Tags that say what a map was made of, without the secrets of an address.

    Parameters
    ----------
    scene
        Its path; the time that its file names is the map's too, see `geoseg.io.times`.
    model
        Specification.
    classes
        The words of each class.
    opened
        What GDAL opens of the scene, where that is not its path.
    taken
        When it was taken, where something else says it.
    """
    tags = {
        "GEOSEG_SCENE": scene_name(scene),
        "GEOSEG_MODEL": model,
        "GEOSEG_CLASSES": "; ".join(", ".join(words) for words in classes),
        "GEOSEG_VERSION": version("geoseg"),
    }
    tags = {name: xml_text(text) for name, text in tags.items()}
    time = read_time(taken)
    try:
        with open_dataset(opened or scene) as dataset:
            time = time or time_taken(dataset)
    except RasterioError:  # an array, or a file that is no longer there
        pass
    return tags | ({} if time is None else {TIFF_TIME: as_tiff_time(time)})


def label_writer(
    work: Path,
    grid: Grid,
    classes: Sequence[LabelClass],
    *,
    tags: Mapping[str, str] | None = None,
    resume: bool = False,
    product: Literal["labels", "runner_up"] = "labels",
) -> RasterWriter:
    """Make the writer of a label raster, or of the second best classes.

    One band of class indices: uint8 with nodata 255, or uint16 with nodata 65535 for more than
    254 classes. It carries the classes' colours as its colour table and their names as tags
    ``CLASS_0``, ``CLASS_1``, … of the band.
    """
    dtype = label_dtype(max((c.index for c in classes), default=0) + 1)
    nodata = label_nodata(dtype)
    colours: dict[int, Rgba] = {c.index: (*c.rgb, 255) for c in classes}
    layout = RasterLayout(
        product=product,
        dtype=dtype.name,
        nodata=nodata,
        descriptions=("class" if product == "labels" else "second best class",),
        overviews="MODE",
        predictor=False,
        band_tags={f"CLASS_{c.index}": c.name for c in classes},
        colours=colours | {nodata: (0, 0, 0, 0)},
        tags=tags or {},
    )
    return RasterWriter(work, grid, layout, resume=resume)


def confidence_writer(
    work: Path, grid: Grid, *, tags: Mapping[str, str] | None = None, resume: bool = False
) -> RasterWriter:
    """Make the writer of a confidence raster: one uint8 band, 0 to 100 per cent, nodata 255."""
    return RasterWriter(work, grid, _per_cent_layout("confidence", tags or {}), resume=resume)


def margin_writer(
    work: Path, grid: Grid, *, tags: Mapping[str, str] | None = None, resume: bool = False
) -> RasterWriter:
    """Make the writer of a margin raster: per cent between the two best classes, nodata 255."""
    return RasterWriter(work, grid, _per_cent_layout("margin", tags or {}), resume=resume)


def _per_cent_layout(
    product: Literal["confidence", "margin"], tags: Mapping[str, str]
) -> RasterLayout:
    return RasterLayout(
        product=product,
        dtype="uint8",
        nodata=PER_CENT_NODATA,
        descriptions=(f"{product} in per cent",),
        overviews="AVERAGE",
        predictor=True,
        unit="%",
        tags=tags,
    )


def similarity_writer(
    work: Path, grid: Grid, nodata: float, what: str, *, tags: Mapping[str, str]
) -> RasterWriter:
    """Make the writer of cosines of similarity: one float32 band, -1 to 1."""
    layout = RasterLayout(
        product="similarity",
        dtype="float32",
        nodata=nodata,
        descriptions=(f"similarity to {what}",),
        overviews="AVERAGE",
        predictor=True,
        tags=tags,
    )
    return RasterWriter(work, grid, layout)


def probability_writer(
    work: Path,
    grid: Grid,
    classes: Sequence[LabelClass],
    *,
    tags: Mapping[str, str] | None = None,
    resume: bool = False,
) -> RasterWriter:
    """Make the writer of class probabilities: a uint8 per-cent band a class, nodata 255.

    The band descriptions are the class names.
    """
    layout = RasterLayout(
        product="probabilities",
        dtype="uint8",
        nodata=PER_CENT_NODATA,
        descriptions=tuple(c.name for c in classes),
        overviews="AVERAGE",
        predictor=True,
        unit="%",
        tags=tags or {},
    )
    return RasterWriter(work, grid, layout, resume=resume)
