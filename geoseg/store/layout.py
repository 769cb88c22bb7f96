"""How a store lies on the disk, and what it says of itself.

::

    town.store/                  a Zarr v3 group, whose attributes say what was encoded and how
    ├── cls        (R, C, D)     CLS token of every window of the lattice; NaN where none was run
    ├── full/
    │   ├── patches (R, C, N, D) int16: patch tokens after the last block and projection
    │   ├── steps   (R, C, N)    what makes numbers of them
    │   │                        with --channels r, where patches are codes (R, C, N, r + 1):
    │   ├── basis   (D, r)       leading directions of the scene's unit patch tokens
    │   ├── scale   (r + 1,)     what else makes numbers of codes
    │   ├── worst   (R, C, 2)    the most that the directions, and rounding, miss of a unit token
    │   └── probes  (P, D)       exact tokens, which say how near codes are
    └── fast/
        ├── basis   (D, r)       leading directions of the scene's unit patch tokens
        ├── field   (y, x, r, b + 2, b + 2)   int8: the merged direction field in them, in blocks
        │                        of b x b cells and one cell around
        ├── scale, offset (y, x, r)           what makes numbers of them
        ├── residual (y, x)      the most that the directions miss of a unit token
        ├── valid   (H, W)       1 where there is data, 0 where not
        └── probes, places       exact vectors of some cells, which say how near the field is

A group's attributes are written last, so that a store that can be opened is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import zarr
from torch import Tensor
from zarr.codecs import BloscCodec
from zarr.errors import BaseZarrError

from geoseg._inputs import is_there, shown
from geoseg.errors import SceneError, TileError, not_found
from geoseg.model.vision import DenseFeatures
from geoseg.options.store import Tier
from geoseg.store.channels import Channels
from geoseg.tiling.lattice import Lattice
from geoseg.types import Window

LAYOUT, LAYOUT_OF_CHANNELS = 2, 3
"""Numbers of this layout, without and with channels; stores of another one are refused."""
MARK = "geoseg_store"
GROUP = "zarr.json"
"""Record of a group, which comes last."""
WORK_FOLDER, JOURNAL = ".geoseg-work", "journal.jsonl"
BLOCK = 128
"""Cells of a side of the fast tier's blocks."""
_SHARD_BYTES, _SHARD_SIDE = 2**26, 16
"""Of a shard's tokens at most, and windows of its side."""


@dataclass(frozen=True)
class Layout:
    """Sizes of a store's arrays; plain numbers."""

    height: int
    width: int
    window: int
    stride: int
    grid: tuple[int, int]
    """Patches of a window, down and across."""
    embedding: int
    shard: int
    """Windows of a side of what is encoded and written at once."""
    tiers: tuple[Tier, ...]
    directions: int
    """Of the fast tier, r."""
    cell: int
    """Pixels of a side of the fast tier's cells."""
    channels: int | None = None
    """Directions of the full tier; None keeps all channels as they are."""

    @property
    def number(self) -> int:
        """Which layout this is."""
        return LAYOUT if self.channels is None else LAYOUT_OF_CHANNELS

    def facts(self, tiers: Sequence[str]) -> dict[str, Any]:
        """What a store of some tiers says of it; plain JSON values."""
        told = asdict(self) | {"tiers": list(tiers)}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def numbers(self) -> int:
        """Of a token."""
        return self.embedding if self.channels is None else self.channels + 1

    @property
    def token_arrays(self) -> tuple[str, ...]:
        """Names of the arrays that are filled shard by shard."""
        usual = ("cls", "full/patches", "full/steps")
        return usual if self.channels is None else (*usual, "full/worst")

    @cached_property
    def lattice(self) -> Lattice:
        """Encoder windows of the scene."""
        return Lattice(self.height, self.width, self.window, self.stride)

    @property
    def windows(self) -> tuple[int, int]:
        """Windows of the whole lattice, down and across."""
        return len(self.lattice.row_starts), len(self.lattice.col_starts)

    @property
    def block(self) -> int:
        """Pixels of a side of the fast tier's blocks."""
        return BLOCK * self.cell

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of the fast tier, down and across."""
        return -(-self.height // self.block), -(-self.width // self.block)

    def make_tokens(self, root: zarr.Group) -> None:
        """Make the arrays of the windows."""
        rows, cols = self.windows
        size, side = self.embedding, self.shard
        root.create_array(
            "cls",
            shape=(rows, cols, size),
            chunks=(side, side, size),
            dtype="float32",
            fill_value=np.nan,
        )
        tokens = self.grid[0] * self.grid[1]
        root.create_array(
            "full/patches",
            shape=(rows, cols, tokens, self.numbers),
            chunks=(1, 1, tokens, self.numbers),
            shards=(side, side, tokens, self.numbers),
            dtype="int16",
            fill_value=LOST_TOKEN,
            compressors=None,  # noise to a compressor, and in the way of reading
        )
        root.create_array(
            "full/steps",
            shape=(rows, cols, tokens),
            chunks=(1, 1, tokens),
            shards=(side, side, tokens),
            dtype="float32",
            fill_value=np.nan,
            compressors=None,
        )
        if self.channels is not None:
            root.create_array(
                "full/worst",
                shape=(rows, cols, 2),
                chunks=(side, side, 2),
                dtype="float32",
                fill_value=np.nan,
            )

    def make_field(self, root: zarr.Group) -> None:
        """Make the arrays of the direction field."""
        down, across = self.blocks
        r, side = self.directions, BLOCK + 2
        root.create_array(
            "fast/field",
            shape=(down, across, r, side, side),
            chunks=(1, 1, r, side, side),
            dtype="int8",
            fill_value=LOST,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=1),
        )
        for name in ("scale", "offset"):
            root.create_array(
                f"fast/{name}",
                shape=(down, across, r),
                chunks=(1, 1, r),
                dtype="float32",
                fill_value=np.nan,
            )
        root.create_array(
            "fast/residual",
            shape=(down, across),
            chunks=(1, 1),
            dtype="float32",
            fill_value=np.nan,
        )
        root.create_array(
            "fast/valid",
            shape=(self.height, self.width),
            chunks=(self.block, self.block),
            dtype="uint8",
            fill_value=MISSING,
        )


LOST = -128
"""In ``field``: a block that nobody has written."""
LOST_TOKEN = -(2**15)
"""In ``patches``: a token that nobody has written."""


def shard_side(token_bytes: int, tile: int | None, stride: int) -> int:
    """Windows of a side of a shard, for windows of so many bytes and tiles of so many pixels."""
    side = _SHARD_SIDE if tile is None else max(tile // stride, 1)
    while side > 1 and side * side * token_bytes > _SHARD_BYTES:
        side -= 1
    return side


MISSING = 255
"""In ``valid``: a block that nobody has written."""


def open_group(path: Path) -> zarr.Group:
    """Open a complete store's group.

    Raises
    ------
    SceneError
        If there is none, or not a complete one of this layout; the message says what to do.
    """
    if not is_there(path):
        raise not_found(SceneError)(
            f"{shown(path)}: there is no such store; make one with geoseg encode"
        )
    if (path / WORK_FOLDER / JOURNAL).exists() and not (path / GROUP).exists():
        raise SceneError(
            f"{shown(path)} is a store half written; finish it with geoseg encode --resume, or "
            "start anew with --overwrite"
        )
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
        found = group.attrs.get(MARK)
    except (BaseZarrError, OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SceneError(
            f"{shown(path)} is not a store of geoseg encode ({type(error).__name__})"
        ) from error
    if found is None:
        raise SceneError(f"{shown(path)} is not a store of geoseg encode")
    if found not in (LAYOUT, LAYOUT_OF_CHANNELS):
        made_by = group.attrs.get("geoseg", "another version")
        raise SceneError(
            f"{shown(path)} has layout {shown(found)}, made by geoseg {shown(made_by)}, and this "
            f"version reads layouts {LAYOUT} and {LAYOUT_OF_CHANNELS}; encode the scene anew"
        )
    return group


def _mark(path: Path) -> tuple[int, int]:
    try:
        stat = (path / GROUP).stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


@dataclass(frozen=True)
class StoreFile:
    """A store as opened; what can travel of it is its path."""

    path: Path
    facts: Mapping[str, Any]
    """The group's attributes."""
    mark: tuple[int, int]
    """What tells its record on the disk from one that takes its place."""

    @classmethod
    def open(cls, path: str | Path) -> StoreFile:
        """Open a complete store.

        Raises
        ------
        SceneError
            As `open_group`.
        """
        target = Path(path)
        group = open_group(target)
        made = cls(target, dict(group.attrs), _mark(target))
        try:
            _ = made.layout, made.facts["model"]["fingerprint"], dict(made.facts["options"])
            _ = made.facts["identity"], made.facts["area"], made.facts["scene"]["fingerprint"]
            _ = made.facts["scene"]["path"], dict(made.facts["scene"]["reading"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SceneError(f"{shown(path)}: what the store says of itself is damaged") from error
        return made

    @cached_property
    def layout(self) -> Layout:
        """Sizes of its arrays."""
        given = dict(self.facts["layout"])
        return Layout(**{**given, "grid": tuple(given["grid"]), "tiers": tuple(given["tiers"])})

    @cached_property
    def _group(self) -> zarr.Group:
        return zarr.open_group(self.path, mode="r", zarr_format=3)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path.absolute(), "facts": self.facts, "mark": self.mark}

    def array(self, name: str) -> zarr.Array[Any]:
        """One of its arrays."""
        found = self._arrays.get(name)
        if found is None:
            try:
                made = self._group[name]
            except (KeyError, OSError, ValueError) as error:
                raise SceneError(f"{self.path}: the store's {name} is gone or damaged") from error
            assert isinstance(made, zarr.Array)
            found = self._arrays[name] = made
        return found

    def read(self, name: str, *place: int | slice) -> npt.NDArray[Any]:
        """Part of one of its arrays.

        Raises
        ------
        SceneError
            If the store is damaged there.
        """
        try:
            return np.asarray(self.array(name)[place or ...])
        except (BaseZarrError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            if isinstance(error, SceneError):
                raise
            raise SceneError(
                f"{self.path}: the store's {name} is damaged ({type(error).__name__}); encode the "
                "scene anew"
            ) from error

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any]]:
        return {}

    @cached_property
    def channels(self) -> Channels | None:
        """Directions along which it keeps its tokens; None for all channels."""
        if self.layout.channels is None:
            return None
        return Channels.of(self.read("full/basis"), self.read("full/scale"))

    def nearness(self, text: Tensor) -> tuple[float, float] | None:
        """How far cosines of queries with tokens are from exact ones; None with all channels."""
        if self.channels is None:
            return None
        return self.channels.error(text, self.read("full/worst"), self.read("full/probes"))

    @cached_property
    def cls_tokens(self) -> npt.NDArray[np.float32]:
        """CLS tokens ``(R, C, D)``; NaN where no window was run."""
        return self.read("cls")

    def refuse_other(self) -> None:
        """Refuse to go on once another store lies there.

        Raises
        ------
        SceneError
            If it has been replaced since it was opened.
        """
        if self.mark != _mark(self.path) and any(self.mark):
            raise SceneError(f"{self.path} was replaced while it was read; run again")

    def tokens(self, places: Sequence[Window]) -> DenseFeatures:
        """Features of windows of the lattice, known by where they lie; patches as `patches`.

        Raises
        ------
        TileError
            If the store has none of one of them.
        """
        layout = self.layout
        rows = np.searchsorted(layout.lattice.row_starts, [place.row for place in places])
        cols = np.searchsorted(layout.lattice.col_starts, [place.col for place in places])
        cls = self.cls_tokens[rows, cols]
        if not np.isfinite(cls).all():
            raise TileError(
                f"{self.path}: the store holds nothing of some windows there; encode the scene anew"
            )
        some: list[Tensor] = []
        first = 0
        while first < len(places):  # neighbours along a row are read together
            last = first + 1
            while last < len(places) and (
                rows[last] == rows[first] and cols[last] == cols[last - 1] + 1
            ):
                last += 1
            along = slice(int(cols[first]), int(cols[last - 1]) + 1)
            some.append(self.patches(int(rows[first]), along))
            first = last
        return DenseFeatures(torch.from_numpy(cls), torch.cat(some), layout.grid)

    def patches(self, *place: int | slice) -> Tensor:
        """Patch tokens ``(…, N, D)`` float32 of windows, by their rows and columns.

        Of a store with channels, their codes ``(…, N, r + 1)``.

        Raises
        ------
        TileError
            If there are none.
        """
        numbers, steps = (self.read(f"full/{name}", *place) for name in ("patches", "steps"))
        if not np.isfinite(steps).all() or (numbers[..., 0] == LOST_TOKEN).any():
            raise TileError(f"{self.path}: a part of the full tier is gone; encode the scene anew")
        found = torch.from_numpy(numbers).float().mul_(torch.from_numpy(steps)[..., None])
        return found if self.channels is None else found.mul_(self.channels.scale)

    def units(self, row: int, col: int) -> Tensor:
        """Unit patch tokens ``(N, D)`` float64 of a window, as far as the store holds them."""
        unit = F.normalize(self.patches(row, col).double(), dim=-1)
        return unit if self.channels is None else unit @ self.channels.rows().double()
