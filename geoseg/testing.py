"""Small scenes and models for tests: drawn from a seed, needing no data and no network.

::

    spec = tiny_random_model(tmp_path / "model")
    scene = write_scene(tmp_path / "scene.tif", 500, 700)
    geoseg.segment_to_files(scene, "building; road; water", tmp_path / "out", model=spec)
    assert_same_raster(tmp_path / "out" / "labels.tif", expected)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from geoseg.io._handles import open_dataset
from geoseg.types import UInt8Array, Window

_COLOURS = np.array(
    [(34, 60, 92), (46, 84, 44), (132, 146, 84), (168, 142, 106), (196, 186, 170)], np.int16
)
"""Water, wood, meadow, soil, rock."""
_ROOFS = np.array([(158, 72, 58), (92, 94, 102), (226, 224, 220)], np.int16)
_PLOT = 40
_BLOCK = 512


def tiny_random_model(
    folder: Path,
    seed: int = 0,
    *,
    window: int = 64,
    stride: int = 32,
    upsampler: str = "none",
    width: int = 64,
    layers: int = 2,
    patch: int = 16,
) -> str:
    """Make a CLIP with random weights: what it sees is nonsense, but always the same nonsense.

    Parameters
    ----------
    folder
        Where configuration and weights (about 7 MB) are written; made if it is not there.
    seed
        Of the weights.
    window, stride, upsampler
        The defaults the model brings, see `geoseg.model.defaults.read_defaults`.
    width, layers, patch
        Size of the image tower; ``width`` is a multiple of 32.

    Returns
    -------
    str
        Specification for `geoseg.load_model`.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "embed_dim": 64,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": window,
            "layers": layers,
            "width": width,
            "patch_size": patch,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**config)
        # open_clip's start values leave all patches alike; larger ones tell them apart.
        for tower in (clip.visual.transformer, clip.transformer):
            for block in tower.resblocks:
                for matrix in (block.attn.in_proj_weight, block.attn.out_proj.weight):
                    torch.nn.init.normal_(matrix, std=0.2)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    _write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
    _write_json(
        folder / "geoseg.json", {"window": window, "stride": stride, "upsampler": upsampler}
    )
    return f"local-dir:{folder}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def drawn_rgb(window: Window, seed: int = 0) -> UInt8Array:
    """Draw land with roofs on it, ``(3, H, W)``.

    A pixel depends on its place and the seed only, so windows agree where they overlap.
    """
    rows = np.arange(window.row, window.row_stop)[:, None]
    cols = np.arange(window.col, window.col_stop)[None, :]
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 4)
    height = (
        np.sin(rows / 61 + phase[0])
        + np.sin(cols / 83 + phase[1])
        + np.sin((rows + 2 * cols) / 47 + phase[2])
        + 0.6 * np.sin((rows - cols) / 19 + phase[3])
    )
    land = np.digitize(height, (-1.5, -0.5, 0.6, 1.6))
    image = _COLOURS[land]
    dice = _hash(rows // _PLOT, cols // _PLOT, seed + 1)
    inner_rows, inner_cols = rows % _PLOT, cols % _PLOT
    far_rows, far_cols = 16 + dice % 16, 16 + dice // 16 % 16
    built = (
        (dice % 3 == 0)
        & (land > 1)
        & (inner_rows >= 8) & (inner_rows < far_rows)
        & (inner_cols >= 8) & (inner_cols < far_cols)
    )  # fmt: skip
    image = np.where(built[..., None], _ROOFS[dice // 3 % 3], image)
    grain = (_hash(rows, cols, seed) % 25).astype(np.int16) - 12
    return np.clip(image + grain[..., None], 1, 255).astype(np.uint8).transpose(2, 0, 1)


def _hash(rows: npt.NDArray[Any], cols: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    """Random-looking value of 0 to 65535 for every pair."""
    mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B1) + cols.astype(np.uint64) * np.uint64(
        0x85EBCA77
    )
    mixed = mixed + np.uint64(seed + 1) * np.uint64(0xC2B2AE3D)
    for shift in (15, 13, 16):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(0x27D4EB2F165667C5)
    return ((mixed >> np.uint64(24)) & np.uint64(0xFFFF)).astype(np.int64)


def write_scene(
    path: Path,
    height: int,
    width: int,
    *,
    seed: int = 0,
    origin: tuple[int, int] = (0, 0),
    regions: Sequence[Window] | None = None,
    holes: Sequence[Window] = (),
    dtype: str = "uint8",
    gsd_m: float = 0.5,
    crs: str | None = "EPSG:32632",
    nodata: int | None = 0,
) -> Path:
    """Draw a scene into a GeoTIFF, block by block, so that it may be large.

    Parameters
    ----------
    path
        File to write.
    height, width
        Size in pixels.
    seed
        Of the drawing.
    origin
        Row and column of the upper left pixel in the endless drawing: scenes with the same seed
        fit together.
    regions
        Windows to draw; the rest stays unwritten in the sparse file. None draws everything.
    holes
        Windows that are filled with nodata.
    dtype
        ``uint8``, ``uint16`` (values up to about 4000, as sensors give) or ``float32``
        (reflectance of 0 to 1).
    gsd_m
        Side of a pixel in CRS units.
    crs
        Coordinate system; None for a plain image.
    nodata
        Value of pixels without data.

    Returns
    -------
    Path
        ``path``.
    """
    transform = Affine(
        gsd_m, 0, 500_000 + origin[1] * gsd_m, 0, -gsd_m, 5_200_000 - origin[0] * gsd_m
    )
    scene = Window(0, 0, height, width)
    with open_dataset(
        str(path), "w", driver="GTiff", height=height, width=width, count=3, dtype=dtype,
        nodata=nodata, crs=crs, transform=transform if crs else Affine.identity(),
        tiled=True, blockxsize=_BLOCK, blockysize=_BLOCK, compress="deflate", zlevel=1,
        photometric="RGB", SPARSE_OK=True, BIGTIFF="IF_SAFER",
    ) as dataset:  # fmt: skip
        for block in _blocks([scene] if regions is None else regions, scene):
            moved = Window(block.row + origin[0], block.col + origin[1], block.height, block.width)
            pixels = _as_dtype(drawn_rgb(moved, seed), dtype)
            for hole in holes:
                shared = hole.intersection(block)
                if shared is not None:
                    pixels[(slice(None), *shared.relative_to(block).slices())] = nodata or 0
            dataset.write(pixels, window=block.slices())
    return path


def _blocks(regions: Sequence[Window], scene: Window) -> list[Window]:
    """Pieces of the regions, each within one block of the file, row by row."""
    pieces = []
    for region in regions:
        for row in range(region.row // _BLOCK * _BLOCK, region.row_stop, _BLOCK):
            for col in range(region.col // _BLOCK * _BLOCK, region.col_stop, _BLOCK):
                piece = Window(row, col, _BLOCK, _BLOCK).intersection(region)
                piece = None if piece is None else piece.intersection(scene)
                if piece is not None:
                    pieces.append(piece)
    return pieces


def _as_dtype(rgb: UInt8Array, dtype: str) -> npt.NDArray[Any]:
    if dtype == "uint8":
        return rgb.copy()
    if dtype == "uint16":
        return rgb.astype(np.uint16) * 16
    return (rgb / 255).astype(dtype)


def assert_same_raster(actual: Path, expected: Path) -> None:
    """Assert that two rasters have the same placement, size, type, nodata and pixels."""
    with open_dataset(str(actual)) as one, open_dataset(str(expected)) as other:
        for name in ("crs", "transform", "shape", "dtypes", "nodatavals"):
            found, wanted = getattr(one, name), getattr(other, name)
            assert found == wanted, f"{name} is {found}, expected {wanted}"
        for _, part in one.block_windows(1):
            differ = one.read(window=part) != other.read(window=part)
            assert not differ.any(), f"{int(differ.sum())} values differ in {part}"
