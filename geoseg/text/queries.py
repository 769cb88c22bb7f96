"""What the head asks of every pixel: vectors, and what each of them means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from geoseg.text.vocabulary import Vocabulary
from geoseg.types import FloatArray

Embed = Callable[[Sequence[str]], FloatArray]
"""Words to unit vectors ``(N, D)``, averaged over the prompt templates."""
Pool = Literal["max", "mean", "sum"]


@dataclass(frozen=True, eq=False)
class Queries:
    """Directions in the model's space, each of which speaks for a class.

    They need not be words: the mean feature of an example is a direction too.
    """

    vectors: FloatArray
    """``(Q, D)`` float32, unit length."""
    class_of: npt.NDArray[np.int32]
    """``(Q,)`` class of each query; ``classes`` stands for the hidden background."""
    offset: FloatArray
    """``(Q,)`` float32, added to the logits before the scale."""
    classes: int
    """Number K of classes that a map can show."""
    pool: Pool = "max"
    """How the probabilities of a class's queries make its score."""
    descriptions: tuple[tuple[str, ...], ...] = ()
    """Of each class, for steps that read them."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, embed: Embed) -> Queries:
        """Queries of all words of a vocabulary, with its classes' offsets."""
        class_of = vocabulary.query_classes
        offsets = np.array([c.offset for c in vocabulary.classes], np.float32)
        return cls(
            embed(vocabulary.queries),
            class_of,
            offsets[class_of],
            len(vocabulary.classes),
            descriptions=tuple(c.descriptions for c in vocabulary.classes),
        )

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def hidden(self) -> bool:
        """Whether some queries belong to no class that a map can show."""
        return bool((self.class_of == self.classes).any())

    def with_hidden(self, vectors: FloatArray) -> Queries:
        """Add queries of the hidden background: ``(N, D)`` unit vectors."""
        return replace(
            self,
            vectors=np.concatenate([self.vectors, vectors]),
            class_of=np.concatenate([self.class_of, np.full(len(vectors), self.classes, np.int32)]),
            offset=np.concatenate([self.offset, np.zeros(len(vectors), np.float32)]),
        )


class VocabularyStep(Protocol):
    """Changes the queries before a run; a frozen dataclass, a line in `VOCABULARY_STEPS`."""

    def __call__(self, queries: Queries, embed: Embed) -> Queries:
        """Return other queries of the same classes."""
