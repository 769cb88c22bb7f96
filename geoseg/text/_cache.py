"""Text embeddings kept on disk: one small file a query, right or not there at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geoseg._files import whole_file
from geoseg.types import FloatArray

logger = logging.getLogger(__name__)

# Part of every key: raise it when the way embeddings are computed changes.
_RECIPE = 2
_UNIT_TOLERANCE = 1e-4
_LARGEST_ENTRY_BYTES = 2**24
"""Far beyond the templates and the numbers of one query."""


@dataclass(frozen=True)
class Entry:
    """Where one query's embedding is kept, and what it must be an embedding of."""

    path: Path
    key: str
    """Words, templates and weights; the file says them too."""
    length: int
    """Number D of its values."""

    @classmethod
    def of(
        cls, folder: Path, fingerprint: str, length: int, templates: Sequence[str], query: str
    ) -> Entry:
        """Name an entry; any other weights, templates or words give another path."""
        key = json.dumps([_RECIPE, fingerprint, list(templates), query])
        digest = hashlib.sha256(key.encode()).hexdigest()
        return cls(folder / "text" / digest[:2] / f"{digest}.npz", key, length)

    def load(self) -> FloatArray | None:
        """Return the ``(D,)`` unit vector, or None if it is not there or not what it should be."""
        try:
            if not self.path.is_file():
                return None
            if self.path.stat().st_size > _LARGEST_ENTRY_BYTES:
                raise ValueError("too large")
            # A zip archive carries a checksum, so a damaged file is noticed while it is read.
            with np.load(self.path, allow_pickle=False) as archive:
                return self._checked(str(archive["key"]), archive["embedding"])
        except Exception as error:  # whatever is wrong with it, it is made again
            logger.info("text cache file %s is not used and is made again: %s", self.path, error)
            return None

    def _checked(self, key: str, embedding: FloatArray) -> FloatArray:
        if key != self.key:
            raise ValueError("it is an embedding of other words or weights")
        if embedding.dtype != np.float32 or embedding.shape != (self.length,):
            raise ValueError(f"{embedding.dtype} {embedding.shape}, not {self.length} float32")
        if not abs(np.linalg.norm(embedding) - 1) <= _UNIT_TOLERANCE:  # nor for NaN
            raise ValueError("not of unit length")
        return embedding

    def store(self, embedding: FloatArray) -> None:
        """Write an embedding under its final name once complete; do without where that fails."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as part:
                np.savez(part, embedding=embedding, key=np.array(self.key))
        except (OSError, ValueError) as error:
            logger.info("text cache file %s cannot be written: %s", self.path, error)


def default_cache_dir() -> Path | None:
    """Folder for geoseg's cache: ``GEOSEG_CACHE``, else the user's cache folder, else None."""
    chosen, base = os.environ.get("GEOSEG_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(base) / "geoseg" if base else Path.home() / ".cache" / "geoseg"
    except RuntimeError as error:  # no such user, or no home folder to be found
        logger.info("there is no text cache: %s", error)
        return None
