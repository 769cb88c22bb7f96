"""What a run has finished, kept beside its outputs so that it can go on after a crash.

One JSON object a line: first the key of the run, then a line for each tile whose pixels are
safely in the work files. A line cut off by a crash is ignored; its tile is run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from geoseg._files import whole_file
from geoseg.errors import OutputError


@dataclass(frozen=True)
class TileRecord:
    """One finished tile."""

    tile: int
    counts: tuple[int, ...]
    """Pixels of each class."""
    windows: int
    """Windows that were encoded."""


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

    Raises
    ------
    OutputError
        If a resumed run differs from the recorded one; the message names what changed.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.finished: dict[int, TileRecord] = {}
        wanted = json.loads(json.dumps(facts, sort_keys=True, default=str))
        if resume and path.is_file():
            self._read(wanted)
        else:
            self._rewrite(wanted)

    def _read(self, wanted: dict[str, Any]) -> None:
        content = _readable_lines(self.path)
        if not content:
            raise OutputError(f"{self.path}: the record of the earlier run is damaged; "
                              "start anew with --overwrite")  # fmt: skip
        recorded = content[0]
        changed = sorted(
            k for k in wanted.keys() | recorded.keys() if wanted.get(k) != recorded.get(k)
        )
        if changed:
            raise OutputError(
                f"{self.path.parent}: cannot resume, because {_or_list(changed)} changed since "
                "the interrupted run; give the same input and options, or start anew with "
                "--overwrite"
            )
        for line in content[1:]:
            try:
                record = TileRecord(line["tile"], tuple(line["counts"]), line["windows"])
            except (KeyError, TypeError):
                break
            self.finished[record.tile] = record
        # What follows a cut-off line would be unreadable; write back what was understood.
        self._rewrite(wanted)

    def _rewrite(self, facts: dict[str, Any]) -> None:
        lines = [facts, *(asdict(record) for record in self.finished.values())]
        with whole_file(self.path) as part:
            part.write_text("".join(_as_line(line) for line in lines), encoding="utf-8")

    def add(self, record: TileRecord) -> None:
        """Record a tile; call it only when the tile's pixels have left this process."""
        self.finished[record.tile] = record
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_as_line(asdict(record)))


def _as_line(value: Any) -> str:
    return json.dumps(value, sort_keys=True) + "\n"


def _readable_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file up to its first unreadable line."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def digest(facts: Any) -> str:
    """SHA-256 of a JSON-able value, for identities that are long."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _or_list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
