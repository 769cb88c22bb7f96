"""What a run has finished, kept beside its outputs so that it can go on after a crash.

One JSON object a line: first what the run depends on, then a line for each tile whose pixels were
read back from the work files as they were meant. A line cut off by a crash is ignored; its tile
is run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from geoseg._files import whole_file, writing_to
from geoseg.errors import OutputError

_LAYOUT = "the layout of the record"
_VERSION = 3


@dataclass(frozen=True)
class TileRecord:
    """One finished tile."""

    tile: int
    windows: int
    """Windows that were encoded."""
    checksums: Mapping[str, int]
    """CRC-32 of its pixels in each work file, by the raster's name."""
    retried: str = ""
    """Why it was tried again; empty if it was not."""

    @classmethod
    def of(cls, line: Any) -> TileRecord:
        """Read a line of the record.

        Raises
        ------
        ValueError
            If it is not one.
        """
        try:
            numbers = [line["tile"], line["windows"], *line["checksums"].values()]
            sound = all(type(number) is int and number >= 0 for number in numbers)
            if sound and isinstance(line["retried"], str) and len(line) == len(fields(cls)):
                return cls(**line)
        except (KeyError, TypeError, AttributeError):
            pass
        raise ValueError(f"{line!r} is no record of a tile")


class Journal:
    """Append-only record of finished tiles.

    Parameters
    ----------
    path
        The file.
    facts
        Everything the result depends on: input, options, model, vocabulary. Any change makes a
        resumed run impossible.
    resume
        Read what an earlier run has finished; otherwise start anew.
    update
        Start anew, too, where a resumed run would not be the recorded one.

    Raises
    ------
    OutputError
        If a resumed run differs from the recorded one (the message names what changed), or the
        record is damaged or cannot be written.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], *, resume: bool, update: bool = False
    ) -> None:
        self.path = path
        self.finished: dict[int, TileRecord] = {}
        self._facts = json.loads(json.dumps({**facts, _LAYOUT: _VERSION}, default=str))
        if resume and path.is_file():
            try:
                self._read()
            except OutputError:
                if not update:
                    raise
        self._rewrite()

    def _read(self) -> None:
        content = _readable_lines(self.path)
        recorded = content[0] if content else None
        if not isinstance(recorded, dict):
            raise OutputError(
                f"{self.path}: the record of the earlier run is damaged; "
                "start anew with --overwrite"
            )
        changed = sorted(
            key
            for key in self._facts.keys() | recorded.keys()
            if self._facts.get(key) != recorded.get(key)
        )
        if changed:
            raise OutputError(
                f"{self.path.parent}: cannot resume, because {_or_list(changed)} changed since "
                "the interrupted run; give the same input and options, or start anew with "
                "--overwrite"
            )
        for line in content[1:]:
            try:
                record = TileRecord.of(line)
            except ValueError:
                break
            self.finished[record.tile] = record

    def _rewrite(self) -> None:
        # What follows a cut-off line would be unreadable; what was understood is written back.
        lines = [self._facts, *(asdict(record) for record in self.finished.values())]
        with writing_to(self.path), whole_file(self.path) as part:
            part.write_text("".join(map(_as_line, lines)), encoding="utf-8")

    def add(self, record: TileRecord) -> None:
        """Record a tile; call it only when its pixels were read back as they were meant."""
        with writing_to(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_as_line(asdict(record)))
        self.finished[record.tile] = record

    def forget(self, tiles: Iterable[int]) -> None:
        """Drop tiles, so that they are run again."""
        dropped = set(tiles)
        if dropped:
            self.finished = {k: v for k, v in self.finished.items() if k not in dropped}
            self._rewrite()


def _as_line(value: Any) -> str:
    return json.dumps(value, sort_keys=True) + "\n"


def _readable_lines(path: Path) -> list[Any]:
    """Read a JSON-lines file up to its first unreadable line."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            break
    return lines


def digest(facts: Any) -> str:
    """SHA-256 of a JSON-able value, for identities that are long."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _or_list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
