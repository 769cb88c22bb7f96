"""Text embeddings kept on disk: one small file a query, right or not there at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geoseg._files import whole_file
from geoseg.types import FloatArray

logger = logging.getLogger(__name__)

# Part of every key: raise it when the way embeddings are computed changes.
_RECIPE = 1


def default_cache_dir() -> Path | None:
    """Folder for geoseg's cache: ``GEOSEG_CACHE``, else the user's cache folder, else None."""
    if chosen := os.environ.get("GEOSEG_CACHE"):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "geoseg"
    try:
        return Path.home() / ".cache" / "geoseg"
    except RuntimeError:  # no home folder to be found
        return None


def cache_file(folder: Path, fingerprint: str, templates: Sequence[str], query: str) -> Path:
    """Path of one query's embedding; any other weights, templates or words give another path."""
    key = json.dumps([_RECIPE, fingerprint, list(templates), query])
    digest = hashlib.sha256(key.encode()).hexdigest()
    return folder / "text" / digest[:2] / f"{digest}.npz"


def load(path: Path) -> FloatArray | None:
    """Return the ``(D,)`` embedding in a cache file, or None if it is not there or damaged."""
    try:
        # A zip archive carries a checksum, so a damaged file is noticed while it is read.
        with np.load(path, allow_pickle=False) as archive:
            embedding: FloatArray = archive["embedding"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.info("text cache file %s is not readable and is made again: %s", path, error)
        return None
    sound = embedding.dtype == np.float32 and embedding.ndim == 1
    return embedding if sound else None


def store(path: Path, embedding: FloatArray) -> None:
    """Write an embedding under its final name once complete; do without where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            np.savez(part, embedding=embedding)
    except OSError as error:
        logger.info("text cache file %s cannot be written: %s", path, error)
