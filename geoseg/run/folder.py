"""The folder of a run: what may be replaced, who works in it, and when files get their names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geoseg._claim import claimed
from geoseg._files import local_target, refuse_source, release_database, writing_to
from geoseg.errors import OptionError, OutputError, warn
from geoseg.io.write import PRODUCT_TAG
from geoseg.model.checkpoint import file_digest
from geoseg.options.products import ALL_PRODUCTS, ITEM, SIDE_FILES
from geoseg.run.journal import Journal

WORK_FOLDER = ".geoseg-work"
JOURNAL = "journal.jsonl"
CLAIM = ".geoseg-claim"
REPORT = "run.json"
GEOPACKAGES = ("polygons.gpkg", "regions.gpkg")

_MARKS = (PRODUCT_TAG.encode(), b"GEOSEG_VERSION", b"made by geoseg")
"""What geoseg's own files say of themselves near their beginning."""
MULTIHASH = "1220"
"""How a SHA-256 of a STAC item begins: which digest, and its length in bytes."""
MARKED_BYTES = 16 * 2**20


def _vouches(item: Path, record: Path) -> bool:
    """Whether a map's item is of the run whose record is given."""
    try:
        told = json.loads(item.read_text(encoding="utf-8"))["assets"][record.stem]
        return bool(told["file:checksum"] == MULTIHASH + file_digest(record))
    except (OSError, ValueError, KeyError, TypeError):
        return False


_KINDS: dict[str, type[Any]] = {"files": dict, "sources": list}
"""What parts of a record are that are read from it."""


def record_in(content: bytes) -> dict[str, Any]:
    """What a ``run.json`` says; empty if it is none."""
    try:
        found = dict(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return {}
    sound = all(isinstance(found.get(name, kind()), kind) for name, kind in _KINDS.items())
    return found if sound else {}


class OutputFolder:
    """Where a run leaves its products, with a work folder in it while it goes on.

    Parameters
    ----------
    path
        The folder; made when a run claims it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_target(path)
        self.place: Path | str = self.path
        """The folder as the user knows it."""
        self.work = self.path / WORK_FOLDER
        self.journal = self.work / JOURNAL
        self.ready = self.work / "ready"
        self._opened: Journal | None = None

    def check(
        self,
        *,
        overwrite: bool,
        resume: bool,
        update: bool = False,
        item: bool = False,
        sources: Iterable[str] = (),
    ) -> None:
        """Fail before anything is loaded if a run would replace something.

        Parameters
        ----------
        overwrite, resume, update
            As for `geoseg.segment_to_files`.
        item
            Whether it leaves a STAC item; otherwise one that is not geoseg's is none of its files.
        sources
            Files that the scene is read from.

        Raises
        ------
        OutputError
            If files are there that may not be replaced, or one of them is the scene itself.
        OptionError
            If two of the three are set.
        """
        out, place = self.path, self.place
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out} is a file; give a folder with --out")
        if overwrite and resume:
            raise OptionError("--overwrite starts anew and --resume goes on; give one of them")
        if update and (overwrite or resume):
            raise OptionError(
                "--update goes on or starts anew as need be; give it without --overwrite and "
                "--resume"
            )
        for name in (*ALL_PRODUCTS, *SIDE_FILES, CLAIM):
            if (out / name).is_dir():
                raise OutputError(f"{out / name} is a folder, not a file; give another --out")
        if self.work.exists() and not self.work.is_dir():
            raise OutputError(f"{self.work} is a file where a folder has to be; give another --out")
        existing = [
            name
            for name in (*ALL_PRODUCTS, *SIDE_FILES)
            if self._holds(name) and (name != ITEM or item or self._is_own(name))
        ]
        sources = tuple(sources)
        for name in existing:
            refuse_source(out / name, sources)
        interrupted = self.journal.exists()
        if overwrite or update or interrupted:
            self._release_databases()
        if overwrite or not (existing or interrupted):
            return
        if resume and (interrupted or self._holds(REPORT) or self._left_over(existing)):
            return
        if update:
            if (strange := self._strange(existing)) is not None:
                raise OutputError(
                    f"{place}/{strange} is not geoseg's; move it, or give another --out"
                )
            return
        if interrupted:
            raise OutputError(
                f"{place} holds an interrupted run; finish it with --resume "
                "or start anew with --overwrite"
            )
        if existing:
            way_out = "" if resume else "finish an interrupted run with --resume, "
            raise OutputError(
                f"{place} already holds {existing[0]}; replace it with --overwrite, {way_out}"
                "or give another --out"
            )

    def _release_databases(self) -> None:
        for name in GEOPACKAGES:
            release_database(self.path / name)

    def _strange(self, existing: Sequence[str]) -> str | None:
        """Name a file that no run here has left; None if there is none."""
        record = self.recorded()
        known = {*record.get("files", ()), *([REPORT] if "identity" in record else [])}
        others = [name for name in existing if name not in known]
        return None if not others or self._left_over(others) else others[0]

    def _left_over(self, existing: Sequence[str]) -> bool:
        """Whether files without a record are geoseg's own, of which somebody has taken some away.

        Not every format can say so; in doubt the others speak for such a file.
        """
        doubtful = (".geojson", ".fgb", ".parquet")
        told = [name for name in existing if not name.endswith(doubtful)]
        return bool(told) and all(map(self._is_own, told))

    def _holds(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def _is_own(self, name: str) -> bool:
        """Whether a file says that geoseg made it."""
        head = self._head(name)
        return any(mark in head for mark in _MARKS)

    def _head(self, name: str) -> bytes:
        """First bytes of a file; none if it cannot be read."""
        try:
            with (self.path / name).open("rb") as content:
                return content.read(MARKED_BYTES)
        except OSError:
            return b""

    def probe(self) -> None:
        """Fail before anything is loaded if nothing can be written; a folder here shows it soon."""

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder, so that two runs never write into it at the same time.

        Afterwards a run that failed leaves what a resumed one can use, and nothing else.
        """
        made_out = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be made: {error.strerror}") from error
        try:
            with claimed(self.path / CLAIM, self.path):
                try:
                    self.work.mkdir(exist_ok=True)
                    yield
                finally:
                    self._tidy()
        finally:
            if made_out and self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()

    def open_journal(self, facts: dict[str, Any], *, resume: bool, update: bool = False) -> Journal:
        """Open the record of finished tiles; unless it is gone on with nothing else stays."""
        if not ((resume or update) and self.journal.exists()):
            self.clear()
            self.work.mkdir()
        self._opened = Journal(self.journal, facts, resume=resume or update, update=update)
        return self._opened

    def recorded(self) -> dict[str, Any]:
        """Content of ``run.json``; empty where there is none that can be read."""
        try:
            return record_in((self.path / REPORT).read_bytes())
        except OSError:
            return {}

    def clear(self) -> None:
        """Remove the work folder."""
        # The record goes first: without it, what is left behind is never taken for a run.
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def _tidy(self) -> None:
        # Without a journal of its own, what is there is an earlier run's that it could not use.
        opened = self._opened
        if self.work.exists() and not (
            self.journal.exists() if opened is None else opened.finished
        ):
            self.clear()

    def finished(
        self,
        identity: str,
        names: Sequence[str],
        side_files: Sequence[str] = (),
        *,
        update: bool = False,
    ) -> dict[str, Any] | None:
        """Report of a finished run with the same identity; None if there is no finished run.

        Side files that have changed get a warning: other programs write into them.

        Parameters
        ----------
        identity
            Digest of what the run depends on.
        names, side_files
            What it leaves.
        update
            Another run, or one whose files have changed, is none.

        Raises
        ------
        OutputError
            If the finished run is another one.
        """
        if self.journal.exists() or not self._holds(REPORT):
            return None
        report, place = self.recorded(), self.place
        if not report and not update:
            words = "is not a record of a run; replace it with --overwrite"
            raise OutputError(f"{place}/{REPORT} {words}")
        if report.get("identity") != identity:
            if update:
                return None
            raise OutputError(
                f"{place} holds a finished run with other input or options; "
                "replace it with --overwrite"
            )
        if report.get("holes"):
            return None
        for name in names:
            if name != REPORT and not self._is_intact(name, report):
                if update:
                    if self._holds(name):
                        words = "has changed since the run that made it, and is made anew"
                        warn(f"{place}/{name} {words}")
                    return None
                raise OutputError(
                    f"{place}/{name} is missing or has changed since the run that made it; "
                    "make it anew with --overwrite"
                )
        changed = [name for name in side_files if not self._is_intact(name, report)]
        if changed:
            warn(
                f"{place}: {', '.join(changed)} is missing or has changed since the run; if "
                "no other program did that, make all anew with --overwrite"
            )
        self.clear()
        return report

    def _is_intact(self, name: str, report: dict[str, Any]) -> bool:
        """Whether a file is the one that the run left."""
        if name == ITEM:
            return _vouches(self.path / name, self.path / REPORT)
        try:
            return bool(file_digest(self.path / name) == report["files"][name]["sha256"])
        except (OSError, KeyError, TypeError):
            return False

    def make_ready(self) -> Path:
        """Return an empty folder for complete products that wait for their final names."""
        shutil.rmtree(self.ready, ignore_errors=True)
        self.ready.mkdir(exist_ok=True)
        return self.ready

    def publish(
        self, names: Sequence[str], side_files: Sequence[str] = (), *, finished: bool = True
    ) -> tuple[Path | str, ...]:
        """Give complete files their final names; keep the record of a run that is not finished.

        An earlier run's report goes first, with all that describes its rasters, and the new one
        comes last, so that a folder that has one holds the files of one run.
        """
        self._release_databases()
        others = (name for name in ALL_PRODUCTS if name not in names)
        for stale in (REPORT, *SIDE_FILES, *others):
            if stale == ITEM and not self._is_own(stale):
                continue
            with writing_to(self.path / stale):
                (self.path / stale).unlink(missing_ok=True)
        for name in (*names[:-1], *side_files, *names[-1:]):
            with writing_to(self.path / name):
                (self.ready / name).replace(self.path / name)
        if finished:
            self.clear()
        return tuple(map(self.file, names))

    def file(self, name: str) -> Path | str:
        """Return the path or the address of a file."""
        return self.path / name
