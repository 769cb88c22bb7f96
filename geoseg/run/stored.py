"""The folder of a run at an address: products are made here and uploaded when they are whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from geoseg._address import as_given, is_address, lasting_address, shown_address
from geoseg._remote import store
from geoseg.errors import OutputError
from geoseg.options.products import ALL_PRODUCTS, ITEM, SIDE_FILES
from geoseg.run.folder import MARKED_BYTES, REPORT, OutputFolder, record_in

_PROBE = ".geoseg-probe"
_HTTP = ("http://", "https://", "ftp://", "/vsicurl")


def output_folder(out: Path | str) -> OutputFolder:
    """Return the folder of a run, on this machine or in an object store.

    Raises
    ------
    OutputError
        If it is an address where nothing can be written.
    MissingExtraError
        If the package that reaches the store is not installed.
    """
    given = as_given(out)
    if is_address(given) and not given.startswith(_HTTP):
        return StoredFolder(given)
    return OutputFolder(given)


class StoredFolder(OutputFolder):
    """A folder in an object store, and the one on this machine in which its run works.

    That has a name of its own among temporary files, which comes from the address: an interrupted
    run goes on if it is called again on this machine.

    Parameters
    ----------
    address
        ``s3://…``, ``gs://…``, ``az://…`` or what else fsspec knows.
    """

    def __init__(self, address: str) -> None:
        self._files, path = store(address, "results")
        self._address = path.rstrip("/")
        user = os.getuid() if hasattr(os, "getuid") else 0
        known = f"{user} {lasting_address(self._address)}"
        digest = hashlib.sha256(known.encode()).hexdigest()[:16]
        super().__init__(Path(tempfile.gettempdir()) / f"geoseg-{digest}")
        self.place = shown_address(address.rstrip("/"))

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Names and bytes of what lies at the address."""
        with self._reaching():
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._address, detail=True)
            except FileNotFoundError:
                return {}
        return {str(one["name"]).rsplit("/", 1)[-1]: int(one["size"] or 0) for one in found}

    @cached_property
    def _record(self) -> dict[str, Any]:
        if REPORT not in self._sizes:
            return {}
        with self._reaching():
            return record_in(self._files.cat_file(self._at(REPORT)))

    def recorded(self) -> dict[str, Any]:
        """Content of ``run.json``; empty where there is none that can be read."""
        return self._record

    def probe(self) -> None:
        """Fail before anything is loaded if nothing can be written."""
        name = self._at(f"{_PROBE}-{uuid.uuid4().hex}")
        with self._reaching():
            self._files.pipe_file(name, b"geoseg")
            self._files.rm_file(name)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder on this machine; it goes at the end if nothing is to be gone on with."""
        if self._is_strange():
            words = "belongs to somebody else; set TMPDIR to a folder of yours"
            raise OutputError(f"{self.path}: {words}")
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with super().claimed():
                yield
        finally:
            if not self.journal.exists():
                shutil.rmtree(self.path, ignore_errors=True)

    def publish(
        self, names: Sequence[str], side_files: Sequence[str] = (), *, finished: bool = True
    ) -> tuple[Path | str, ...]:
        """Upload complete files; an earlier run's record goes first, and the new one comes last."""
        others = [name for name in ALL_PRODUCTS if name not in names]
        for stale in (REPORT, *SIDE_FILES, *others):
            if stale in self._sizes and (stale != ITEM or self._is_own(stale)):
                with self._reaching():
                    self._files.rm_file(self._at(stale))
        for name in (*names[:-1], *side_files, *names[-1:]):
            with self._reaching(name):
                self._files.put_file(str(self.ready / name), self._at(name))
        if finished:
            self.clear()
        return tuple(map(self.file, names))

    def file(self, name: str) -> Path | str:
        """Return the address of a file."""
        return f"{self.place}/{name}"

    def _is_strange(self) -> bool:
        """Whether somebody else has made the folder, whose name can be guessed."""
        try:
            stat = self.path.lstat()
        except FileNotFoundError:
            return False
        return self.path.is_symlink() or (hasattr(os, "getuid") and stat.st_uid != os.getuid())

    def _at(self, name: str) -> str:
        return f"{self._address}/{name}"

    def _holds(self, name: str) -> bool:
        return name in self._sizes

    def _head(self, name: str) -> bytes:
        with suppress(Exception), self._files.open(self._at(name), "rb") as content:
            return bytes(content.read(MARKED_BYTES))
        return b""

    def _is_intact(self, name: str, report: dict[str, Any]) -> bool:
        """Whether a file has the size of the one that the run left."""
        if name == ITEM:
            return name in self._sizes
        try:
            return bool(self._sizes[name] == report["files"][name]["bytes"])
        except (KeyError, TypeError):
            return False

    @contextmanager
    def _reaching(self, name: str = "") -> Iterator[None]:
        """Turn what a store says into one line."""
        try:
            yield
        except Exception as error:  # every store has errors of its own
            words = " ".join(str(error).split()) or type(error).__name__
            place = f"{self.place}/{name}" if name else self.place
            raise OutputError(f"{place}: cannot be written ({shown_address(words)})") from error
