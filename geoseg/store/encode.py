"""Scene to store: the run that fills one, shard by shard, so that it can go on after a break."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import shapely
import torch
import zarr

from geoseg._address import without_secrets
from geoseg._fields import choices
from geoseg._files import absolute, writing_to
from geoseg._inputs import is_clutter, shown
from geoseg.errors import OptionError, OutputError
from geoseg.inference.lane import TilePixels
from geoseg.io.aoi import Aoi
from geoseg.io.scene import Scene
from geoseg.model.spec import portable
from geoseg.options import Reading, StoreOptions
from geoseg.run.folder import CLAIM, OutputFolder
from geoseg.run.journal import Journal, TileRecord, digest
from geoseg.run.progress import TileBar
from geoseg.run.report import Method, reading_facts
from geoseg.run.result import ProgressCallback
from geoseg.run.scenes import MOSAIC, STACK, open_area
from geoseg.run.tiles import TileJob, run_tiles
from geoseg.runtime.allocator import kept_memory
from geoseg.runtime.threads import in_order
from geoseg.store.channels import Channels, leading_directions
from geoseg.store.encoding import Encoding, FieldSegmenter, FieldTile, Tokens
from geoseg.store.layout import BLOCK, GROUP, MARK, Layout, StoreFile, shard_side
from geoseg.store.plans import FieldPlan, WindowPlan
from geoseg.store.recorded import MARGIN, SETTLED
from geoseg.tiling.tiles import TilePlan
from geoseg.types import Window

_PARTS = (GROUP, "cls", "full", "fast")
"""What of a store's folder is the store; its record comes first."""
_KEPT = (*SETTLED["fast"], "exact")
"""Options that a store is made with."""
_FITTED_WINDOWS, _FITTED_TOKENS, _FITTED_SHARE, _FEWEST_FITTED = 256, 2**16, 16, 32
"""Windows that say which directions lead, at most. Where they are encoded for that alone also
tokens at most, and one window in how many of the scene, but so many at least."""
_LEFT_OUT, _TOKEN_PROBES, _TOKENS_A_PROBE = 4, 256, 16
"""One in how many of those windows fits nothing: its exact tokens say how near codes are. How many
of these are kept at most, and how many were seen for each."""
_PROBES, _PROBE_SIDE, _PROBE_CHANNELS, _WINDOWS_A_PROBE = 4, 8, 64, 64
"""Places at most whose exact vectors are kept, cells of their sides, numbers worked out at once,
and windows of a scene for each place."""


class StoreFolder(OutputFolder):
    """Where a store comes to lie, with a work folder in it while it is being filled."""

    def check_store(self, *, overwrite: bool, resume: bool) -> None:
        """Fail before anything is loaded if something would be replaced.

        Raises
        ------
        OutputError
            If something is there that may not be replaced.
        OptionError
            If both are set.
        """
        out = self.path
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out} is a file; give another --out")
        if overwrite and resume:
            raise OptionError("--overwrite starts anew and --resume goes on; give one of them")
        strange = [] if not out.exists() else [p.name for p in out.iterdir() if not self._owns(p)]
        if strange:
            raise OutputError(f"{out} holds {strange[0]}, which is no store's; give another --out")
        if overwrite or resume:
            return
        if self.journal.exists():
            raise OutputError(
                f"{out} holds a store half written; finish it with --resume or start anew with "
                "--overwrite"
            )
        if (out / GROUP).exists():
            raise OutputError(
                f"{out} already holds a store; replace it with --overwrite, or give another --out"
            )

    def _owns(self, path: Path) -> bool:
        """Whether what lies in the folder is a store's, and no one else's of the same name."""
        if path.name == GROUP:
            try:
                return MARK in json.loads(path.read_text(encoding="utf-8"))["attributes"]
            except (OSError, ValueError, KeyError, TypeError):
                return False
        if path.name in _PARTS:
            return (path / GROUP).is_file()
        return is_clutter(path) or path.name in (self.work.name, MOSAIC, STACK, CLAIM)

    def publish_store(self, made: Path, names: Sequence[str]) -> None:
        """Put a complete store where it belongs; the old record goes first, the new comes last."""
        (self.path / GROUP).unlink(missing_ok=True)
        for name in _PARTS[1:]:
            shutil.rmtree(self.path / name, ignore_errors=True)
            if name in names:
                with writing_to(self.path / name):
                    (made / name).replace(self.path / name)
        with writing_to(self.path / GROUP):
            (made / GROUP).replace(self.path / GROUP)
        self.clear()

    def recall_store(self, made: Path) -> None:
        """Take back what an interrupted `publish_store` has put in its place."""
        for name in _PARTS:
            if not (made / name).exists() and (self.path / name).exists():
                with writing_to(made / name):
                    (self.path / name).replace(made / name)


@dataclass
class EncodeRun:
    """One run that fills a store; its methods are the stages, in order."""

    scene: Scene
    segmenter: Encoding
    reading: Reading
    wanted: StoreOptions
    folder: StoreFolder
    tile: int | None = None
    client: Any = None
    progress: ProgressCallback = field(default=lambda state: None)

    def __post_init__(self) -> None:
        _refuse_views(self.segmenter)
        self.area = open_area(self.reading, self.scene.grid)
        self.layout = _layout(self.scene, self.segmenter, self.wanted, self.tile)
        region = None if self.area is None else self.area.window
        self.windows = WindowPlan(self.layout, region, 0 if self.area is None else MARGIN)
        self.blocks = FieldPlan(self.layout, region)
        self.method = Method.of(self.segmenter)
        self.facts = _facts(self)
        self.first = 0 if self.layout.channels is None else 1
        """Number of the first shard in the journal, after that of what is fitted before."""
        self.made = self.folder.work / "store"

    def execute(self, *, resume: bool) -> None:
        """Fill the store, or finish it, unless it is there.

        Raises
        ------
        OutputError
            If the store that is there, or begun there, is another one.
        """
        group = self.folder.path / GROUP
        if resume and group.exists() and not self.folder.journal.exists():
            if StoreFile.open(self.folder.path).facts["identity"] != digest(self.facts):
                raise OutputError(
                    f"{self.folder.path} holds a store of another scene or with other options; "
                    "replace it with --overwrite"
                )
            return
        journal = self.folder.open_journal(self.facts, resume=resume)
        self._open(fresh=not journal.finished)
        with kept_memory():
            if (r := self.layout.channels) is not None:
                self._fitted(journal, 0, lambda: self._channels(r))
                self.segmenter = self.segmenter.keeping(self._kept_channels())
            self._encode(journal)
            if "fast" in self.wanted.tiers:
                self._make_field(journal)
        self._finish()

    def _open(self, *, fresh: bool) -> None:
        if fresh:
            shutil.rmtree(self.made, ignore_errors=True)
            self.group = zarr.open_group(self.made, mode="w", zarr_format=3)
            self.layout.make_tokens(self.group)
            self.layout.make_field(self.group)
        else:
            self.folder.recall_store(self.made)
            self.group = zarr.open_group(self.made, mode="r+", zarr_format=3)

    # -- tokens -----------------------------------------------------------------------------

    def _channels(self, r: int) -> dict[str, npt.NDArray[Any]]:
        """Directions of the tokens of a fixed sample of windows, and tokens of others beside."""
        size = self.layout.embedding

        def seen(window: Window) -> torch.Tensor:
            return self.segmenter.seen(self.scene, window).patches[0].float()

        found = list(in_order(seen, list(self._some()), most=_FITTED_WINDOWS, share=False))
        found = found or [torch.zeros(1, size)]  # a scene without data
        left_out = -(-len(found) // _LEFT_OUT)
        made = Channels.fitted(torch.cat(found[left_out:] or found), r).to(torch.device("cpu"))
        beside = torch.cat(found[:left_out])
        probes = beside[:: max(-(-len(beside) // _TOKEN_PROBES), _TOKENS_A_PROBE)].cpu()
        return {
            "full/basis": made.basis.numpy(),
            "full/scale": made.scale.numpy(),
            "full/probes": probes.numpy(),
        }

    def _kept_channels(self) -> Channels:
        return Channels.of(self._array("full/basis")[:], self._array("full/scale")[:])

    def _some(self) -> Iterator[Window]:
        """Windows with data, of the whole scene or area, in no order."""
        windows = self.windows.lattice.touching(self.windows.grown)
        tokens = self.layout.grid[0] * self.layout.grid[1]
        share = max(len(windows) // _FITTED_SHARE, _FEWEST_FITTED)
        left = min(share, _FITTED_WINDOWS, max(_FITTED_TOKENS // tokens, 1))
        area = self._wide_area
        for k in np.random.default_rng(0).permutation(len(windows)).tolist():
            window = windows[k]
            inside = area is None or area.mask(window).any()
            if left and inside and not self.scene.is_empty(window):
                left -= 1
                yield window

    @cached_property
    def _wide_area(self) -> _Grown | None:
        return None if self.area is None else _Grown(self.area, MARGIN)

    def _encode(self, journal: Journal) -> None:
        self._verify(journal, self.windows, self.first, self._shard)
        job = TileJob(self.scene, self.segmenter, self.windows, self._wide_area)

        def write(index: int, found: Tokens) -> dict[str, int]:
            rows, cols = self.windows.places(index)
            shape = rows.stop - rows.start, cols.stop - cols.start
            lattice = self.layout.lattice
            blocks = self._shard(index, empty=shape)
            at = (
                lattice.row_starts.searchsorted([w.row for w in found.places]) - rows.start,
                lattice.col_starts.searchsorted([w.col for w in found.places]) - cols.start,
            )
            for name, values in found.arrays.items():
                blocks[name][at] = values
            return self._write(blocks, (rows, cols))

        self._fill("encode", job, journal, self.first, write, self.client)

    def _shard(
        self, index: int, empty: tuple[int, int] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """What lies in a shard, or an empty one of a shape."""
        found = {}
        for name in self.layout.token_arrays:
            array: Any = self.group[name]
            if empty is None:
                found[name] = np.ascontiguousarray(array[self.windows.places(index)])
            else:
                found[name] = np.full((*empty, *array.shape[2:]), array.fill_value, array.dtype)
        return found

    # -- the field --------------------------------------------------------------------------

    def _make_field(self, journal: Journal) -> None:
        first = self.first + len(self.windows)
        store = self._store()
        known = np.argwhere(np.isfinite(store.cls_tokens[..., 0]))
        if not len(known):  # a scene without data
            known = np.zeros((0, 2), int)
        some = known[np.linspace(0, len(known) - 1, min(len(known), _FITTED_WINDOWS)).astype(int)]

        def leading() -> dict[str, npt.NDArray[Any]]:
            units = (store.units(*one) for one in some.tolist())
            found = leading_directions(units, self.layout.embedding, self.layout.directions)
            return {"fast/basis": found.numpy()}

        self._fitted(journal, first, leading)
        directions = self._array("fast/basis")[:]
        segmenter = FieldSegmenter(store, directions, str(self.segmenter.device))
        self._verify(journal, self.blocks, first + 1, self._blocks_of)
        job = TileJob(self.scene, segmenter, self.blocks, self.area)

        def write(index: int, found: FieldTile) -> dict[str, int]:
            for (row, col), block in found.blocks.items():
                if block is not None:
                    for name in ("field", "scale", "offset"):
                        self._array(f"fast/{name}")[row, col] = getattr(block, name)
                    self._array("fast/residual")[row, col] = found.residual
            core = self.blocks.core(index)
            self._put("fast/valid", core.slices(), found.valid)
            return _checksums(self._blocks_of(index))

        def nothing(index: int) -> None:
            core = self.blocks.core(index)
            self._put("fast/valid", core.slices(), np.zeros(core.shape, np.uint8))

        self._fill("directions", job, journal, first + 1, write, None, nothing)
        self._probe(store, some)

    def _blocks_of(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """What lies in the blocks of a tile."""
        core, side = self.blocks.core(index), self.layout.block
        rows = slice(core.row // side, -(-core.row_stop // side))
        cols = slice(core.col // side, -(-core.col_stop // side))
        names = ("field", "scale", "offset", "residual")
        found = {f"fast/{name}": self._array(f"fast/{name}")[rows, cols] for name in names}
        found["fast/valid"] = self._array("fast/valid")[core.slices()]
        return {name: np.ascontiguousarray(block) for name, block in found.items()}

    def _probe(self, store: StoreFile, some: npt.NDArray[Any]) -> None:
        """Exact vectors of a few places, against which an answer of the field can be held."""
        layout, cell = self.layout, self.layout.cell
        side = _PROBE_SIDE
        vectors, places = [], []
        count = min(_PROBES, 1 + len(some) // _WINDOWS_A_PROBE)
        for row, col in some[:: max(len(some) // count, 1)][:count]:
            height, width = layout.lattice.window_shape
            middle = (
                int(layout.lattice.row_starts[row]) + height // 2,
                int(layout.lattice.col_starts[col]) + width // 2,
            )
            place = _inside_of_block(middle, layout, side)
            pixels = Window(place[0] * cell, place[1] * cell, side * cell, side * cell)
            here = pixels.intersection(Window(0, 0, layout.height, layout.width))
            if here is None or here.shape != pixels.shape:
                continue
            plan = TilePlan(layout.lattice, here.shape, here, alone=True)
            tile = replace(plan[0], core=here, grown=here)
            each = TilePixels(tile, self.scene.read(tile.read), np.ones(here.shape, bool))
            exact = []
            for first in range(0, layout.embedding, _PROBE_CHANNELS):
                axes = np.eye(layout.embedding, dtype=np.float32)
                axes = np.ascontiguousarray(axes[:, first : first + _PROBE_CHANNELS])
                asked = FieldSegmenter(store, axes, str(self.segmenter.device))
                means, known, _ = asked.cells(each)
                exact.append(means)
            if known.all():
                vectors.append(np.concatenate(exact, axis=-1))
                places.append(place)
        found = np.stack(vectors) if vectors else np.zeros((0, side, side, layout.embedding), "f4")
        at = np.array(places, np.int64).reshape(-1, 2)
        self.group.create_array("fast/probes", data=found.astype(np.float32), overwrite=True)
        self.group.create_array("fast/places", data=at, overwrite=True)

    # -- in common --------------------------------------------------------------------------

    def _fitted(
        self, journal: Journal, index: int, fit: Callable[[], dict[str, npt.NDArray[Any]]]
    ) -> None:
        """Keep arrays that were fitted before the run was interrupted, or fit them now.

        What came after those that are gone goes with them.
        """
        record = journal.finished.get(index)
        if record is not None and all(name in self.group for name in record.checksums):
            kept = {name: np.ascontiguousarray(self._array(name)[:]) for name in record.checksums}
            if _checksums(kept) == record.checksums:
                return
        made = fit()
        for name, values in made.items():
            self.group.create_array(name, data=values, chunks=values.shape, overwrite=True)
        journal.forget([k for k in journal.finished if k >= index])
        journal.add(TileRecord(index, 0, _checksums(made)))

    def _array(self, name: str) -> Any:
        return self.group[name]

    def _put(self, name: str, places: tuple[slice, slice], block: npt.NDArray[Any]) -> None:
        """Write whole chunks anew, whatever is there: it may be damaged."""
        array = self._array(name)
        sides = array.shards or array.chunks
        ranges = [
            range(place.start // side, -(-place.stop // side))
            for place, side in zip(places, sides, strict=False)
        ]
        rest = (0,) * (array.ndim - len(ranges))
        for key in itertools.product(*ranges):
            file = self.made / name / array.metadata.encode_chunk_key((*key, *rest))
            file.unlink(missing_ok=True)
        array[places] = block

    def _store(self) -> StoreFile:
        """The store as it is so far, to read from."""
        return StoreFile(self.made, self._record(("full", "fast")), (0, 0))

    def _write(
        self, blocks: Mapping[str, npt.NDArray[Any]], places: tuple[slice, slice]
    ) -> dict[str, int]:
        """Write blocks and read them back.

        Raises
        ------
        OutputError
            If what lies there is not what was written.
        """
        with writing_to(self.made):
            for name, block in blocks.items():
                self._put(name, places, block)
        found = {name: np.ascontiguousarray(self._array(name)[places]) for name in blocks}
        checksums = _checksums(blocks)
        if _checksums(found) != checksums:
            raise OutputError(f"{self.folder.path}: what was written cannot be read back")
        return checksums

    def _fill(
        self,
        stage: str,
        job: TileJob,
        journal: Journal,
        first: int,
        write: Callable[[int, Any], dict[str, int]],
        client: Any,
        nothing: Callable[[int], None] = lambda index: None,
    ) -> None:
        """Run what is not finished; tiles of a plan are numbered from ``first`` on."""
        plan = job.plan
        todo = [index for index in range(len(plan)) if first + index not in journal.finished]
        bar = TileBar(stage, plan, todo, self.progress)
        with closing(run_tiles(job, todo, client=client, seen=bar.windows)) as results:
            index: int
            found: Any  # of the job's own kind, where it is more than nodata
            for index, found in results:
                if isinstance(found, Tokens | FieldTile):
                    with writing_to(self.folder.path):
                        checksums = write(index, found)
                    record = TileRecord(first + index, found.windows, checksums, found.retried)
                else:
                    nothing(index)
                    record = TileRecord(first + index, 0, {})
                journal.add(record)
                bar.tile(index, record.windows)

    def _verify(
        self,
        journal: Journal,
        plan: TilePlan,
        first: int,
        read: Callable[[int], dict[str, npt.NDArray[Any]]],
    ) -> None:
        """Forget recorded tiles of which not all lies in the store as it was."""
        damaged = []
        for index in range(len(plan)):
            record = journal.finished.get(first + index)
            if record is None or not record.checksums:
                continue
            try:
                sound = _checksums(read(index)) == record.checksums
            except (OSError, ValueError, KeyError, RuntimeError):
                sound = False
            if not sound:
                damaged.append(first + index)
        journal.forget(damaged)

    def _record(self, tiers: Sequence[str]) -> dict[str, Any]:
        """The store's attributes."""
        model, options = self.segmenter.model, self.method.options
        area, encoder = self.area, self.segmenter.pixels
        kept = {name: getattr(options, name) for name in _KEPT}
        kept["precision"] = self.segmenter.precision
        if kept["upsampler_weights"] is not None:
            kept["upsampler_weights"] = absolute(kept["upsampler_weights"])
        reading = asdict(self.reading) | {"aoi": None, "aoi_layer": None}
        if reading["mask"] is not None:
            reading["mask"] = absolute(reading["mask"])
        facts = {
            MARK: self.layout.number,
            "geoseg": version("geoseg"),
            "identity": digest(self.facts),
            "layout": self.layout.facts(tiers),
            "scene": {
                "path": absolute(self.scene.path),
                "reading": reading,
                "fingerprint": self.scene.fingerprint(),
            },
            "area": None if area is None else _on_ground(area, self.scene),
            "model": self.method.model
            | {
                "spec": portable(model.spec),
                "fingerprint": model.fingerprint,
                "mean": list(model.mean),
                "std": list(model.std),
                "patch": model.patch_size,
                "places": [encoder.step, encoder.patch],
                "embedding": model.embedding_size,
                "defaults": dict(model.defaults),
                "device": self.segmenter.device.type,
            },
            "options": kept,
        }
        if self.layout.channels is not None:
            energy = self._kept_channels().energy(self._array("full/probes")[:])
            facts["channels"] = {"kept": self.layout.channels, "energy": round(energy, 6)}
        return dict(without_secrets(facts))

    def _finish(self) -> None:
        for left in self.made.rglob("*.partial"):
            left.unlink()
        self.group.attrs.put(self._record(self.wanted.tiers))
        # What is not wanted goes with the work folder, last: a resumed run would miss it.
        self.folder.publish_store(self.made, ("cls", *self.wanted.tiers))


@dataclass(frozen=True)
class _Grown:
    """An area and the pixels around it."""

    area: Aoi
    margin: int

    def mask(self, window: Window) -> npt.NDArray[np.bool_]:
        """Which pixels of a window lie within the margin of the area."""
        wide = replace(self.area, outline=self.area.outline.buffer(self.margin, join_style="mitre"))
        return wide.mask(window)


def _on_ground(area: Aoi, scene: Scene) -> str:
    """The area in the scene's coordinates, as the text that `Reading` keeps."""
    grid = scene.grid.drawn
    moved = shapely.transform(
        area.outline, lambda points: np.column_stack(grid.to_ground(*points.T))
    )
    return str(moved.wkt)


def _refuse_views(segmenter: Encoding) -> None:
    for name in ("views", "window_steps"):
        value = getattr(segmenter.options, name)
        if value not in ("none", ()):
            flag = choices(type(segmenter.options))[name].flag or f"--{name}"
            raise OptionError(
                f"{flag} {value}: a store holds every window once, as it is; leave it out"
            )


def _layout(scene: Scene, segmenter: Encoding, wanted: StoreOptions, tile: int | None) -> Layout:
    (height, width), chosen = scene.shape, segmenter.options
    lattice = segmenter.lattice(height, width)
    grid, size = segmenter.patches(lattice.window_shape), segmenter.model.embedding_size
    kept = wanted.channels
    if kept is not None and kept > size:
        raise OptionError(
            f"--channels {kept}: tokens of {shown(segmenter.model.spec)} have {size}; give fewer, "
            "or leave it out"
        )
    numbers = size if kept is None else kept + 1
    return Layout(
        height,
        width,
        chosen.window,
        chosen.stride,
        grid,
        size,
        shard_side(2 * grid[0] * grid[1] * numbers, tile, chosen.stride),
        wanted.tiers,
        min(wanted.directions, kept or size),
        wanted.cell,
        kept,
    )


def _facts(run: EncodeRun) -> dict[str, Any]:
    """Everything the store depends on, by the name the user knows it by."""
    kept = {f"--{name.replace('_', '-')}" for name in _KEPT}
    method = {
        name: value
        for name, value in run.method.facts().items()
        if name in kept or name in ("--model", "the kind of device")
    }
    return {
        **reading_facts(run.scene, run.reading, run.area),
        **method,
        "--precision": run.segmenter.precision,
        "--backbone-weights": run.segmenter.backbone_sha256,
        "--tier": run.wanted.tier,
        "--directions": run.layout.directions,
        "--cell": run.layout.cell,
        "--tile": run.layout.shard,
        "the layout of stores": run.layout.number,
        **({} if run.layout.channels is None else {"--channels": run.layout.channels}),
    }


def _inside_of_block(middle: tuple[int, int], layout: Layout, side: int) -> tuple[int, int]:
    """First cell of a square of cells about some pixels that lies in one block."""
    cells = []
    for at in middle:
        cell = at // layout.cell
        first = cell // BLOCK * BLOCK
        cells.append(max(min(cell, first + BLOCK - side), first))
    return cells[0], cells[1]


def _checksums(blocks: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    return {
        name: crc32(np.ascontiguousarray(block).data.cast("B")) for name, block in blocks.items()
    }
