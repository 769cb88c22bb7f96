"""Which direction in the model's space does each query stand for?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from geoseg._inputs import shown
from geoseg.errors import VocabularyError, WeightsError
from geoseg.text import _cache
from geoseg.text.templates import fill
from geoseg.types import FloatArray


class TextEncoder(Protocol):
    """What the text side needs of a model: tokens and their embeddings."""

    @property
    def fingerprint(self) -> str:
        """Hash of the text weights and the tokenizer: equal only where embeddings are equal."""
        ...

    @property
    def context_length(self) -> int:
        """Number of tokens that the encoder reads, start and end markers included."""
        ...

    @property
    def embedding_size(self) -> int:
        """Length D of the embeddings."""
        ...

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text needs, markers included, *before* any truncation."""
        ...

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Return ``(N, context_length)`` int64 token ids; too long texts may be cut silently."""
        ...

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``(N, D)`` float32 embeddings, not normalised, on any device."""
        ...


def embed_queries(
    encoder: TextEncoder,
    queries: Sequence[str],
    templates: Sequence[str],
    *,
    cache_dir: Path | Literal["default"] | None = "default",
    batch_size: int = 256,
) -> FloatArray:
    """Return one unit vector a query: the mean direction of its filled templates.

    Every filled template's embedding is scaled to unit length, they are averaged, and the mean
    is scaled to unit length (Radford et al., 2021; SegEarth-OV, Li et al., 2025). An encoder with a
    ``projection`` into another space projects the mean of the embeddings as they are. A query is
    encoded by itself, so its vector depends neither on the other queries nor on what is cached.

    Parameters
    ----------
    encoder
        Model to ask.
    queries
        Words, as in `geoseg.text.vocabulary.Vocabulary.queries`.
    templates
        As from `geoseg.text.templates.load_templates`.
    cache_dir
        Folder of the disk cache, ``"default"`` for the user's (the environment variable
        ``GEOSEG_CACHE`` moves it), None for no cache. A folder that cannot be written is no error.
    batch_size
        Largest number of texts in one call of the encoder.

    Returns
    -------
    numpy.ndarray
        ``(Q, D)`` float32, rows of unit length.

    Raises
    ------
    VocabularyError
        If a query in its longest template has more tokens than the encoder reads, or there is
        no query or no template.
    WeightsError
        If an embedding is no direction, as damaged weights make them.
    """
    if not queries or not templates:
        raise VocabularyError("embedding needs at least one query and one template")
    folder = _cache.default_cache_dir() if cache_dir == "default" else cache_dir
    entries = [
        _cache.Entry.of(folder, encoder.fingerprint, encoder.embedding_size, templates, query)
        if folder
        else None
        for query in queries
    ]
    rows = [entry.load() if entry else None for entry in entries]
    # All lengths are looked at before the first query is encoded, which may take minutes.
    for query, row in zip(queries, rows, strict=True):
        if row is None:
            _refuse_too_long(encoder, query, templates)
    for index, query in enumerate(queries):
        if rows[index] is None:
            rows[index] = row = _embed(encoder, query, templates, batch_size)
            if entry := entries[index]:
                entry.store(row)
    return np.stack([row for row in rows if row is not None])


def _embed(
    encoder: TextEncoder, query: str, templates: Sequence[str], batch_size: int
) -> FloatArray:
    """Return the ``(D,)`` mean direction of one query in all templates."""
    texts = [fill(template, query) for template in templates]
    with torch.inference_mode():
        parts = [
            encoder.encode_text(encoder.tokenize(texts[start : start + batch_size]))
            for start in range(0, len(texts), batch_size)
        ]
        found = torch.cat(parts).float().cpu()
        project = getattr(encoder, "projection", None)
        if project is not None:  # of the mean as it is, not of unit vectors
            found = project(found.mean(dim=0, keepdim=True))
        units = torch.nn.functional.normalize(found, dim=-1)
        mean = torch.nn.functional.normalize(units.mean(dim=0), dim=-1)
    if not (units.isfinite().all() and mean.norm() > 0):
        raise WeightsError(
            f"the model's text tower gives no finite embedding for '{shown(query)}'; its weights "
            "are damaged or do not fit it: get them again"
        )
    if mean.shape != (encoder.embedding_size,):
        raise WeightsError(
            f"the model's text tower gives {len(mean)} numbers for '{shown(query)}' and its image "
            f"tower {encoder.embedding_size}; use a model whose towers belong together"
        )
    embedding: FloatArray = mean.numpy()
    return embedding


def _refuse_too_long(encoder: TextEncoder, query: str, templates: Sequence[str]) -> None:
    """Refuse what the tokenizer would cut off without a word."""
    counts = encoder.token_counts([fill(template, query) for template in templates])
    longest = int(np.argmax(counts))
    over = counts[longest] - encoder.context_length
    if over > 0:
        needed = counts[longest] - encoder.token_counts([fill(templates[longest], "")])[0]
        shown = query if len(query) <= 60 else f"{query[:57]}..."
        raise VocabularyError(
            f"query '{shown}' is too long: it has {needed} tokens and may have at most "
            f"{needed - over} in the template '{templates[longest]}' (the model reads "
            f"{encoder.context_length} tokens, markers included); shorten it"
        )
