"""What the head asks of every pixel: vectors, and what each of them means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from geoseg.errors import VocabularyError
from geoseg.text.vocabulary import Vocabulary, VocabularyClass
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
        """Queries of all words and examples of a vocabulary, with its classes' offsets.

        Raises
        ------
        VocabularyError
            If an example was made with another model.
        """
        offsets = np.array([c.offset for c in vocabulary.classes], np.float32)
        words = vocabulary.queries
        vectors, class_of = embed(words) if words else None, vocabulary.query_classes
        if any(entry.example for entry in vocabulary.classes):
            vectors, class_of = _with_examples(vocabulary, vectors)
        assert vectors is not None
        made = cls(
            vectors,
            class_of,
            offsets[class_of],
            len(vocabulary.classes),
            descriptions=tuple(c.descriptions for c in vocabulary.classes),
        )
        if not vocabulary.hidden:
            return made
        size = vectors.shape[1]
        for entry in vocabulary.hidden:
            _refuse_other_size(entry, size)
        examples = _unit(np.array([entry.example for entry in vocabulary.hidden]))
        found = made.with_hidden(examples.astype(np.float32))
        hidden = np.array([entry.offset for entry in vocabulary.hidden], np.float32)
        return replace(found, offset=np.concatenate([made.offset, hidden]))

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


def _with_examples(
    vocabulary: Vocabulary, words: FloatArray | None
) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """Words drawn towards the examples of their classes; an example by itself where none is."""
    rows: list[FloatArray] = []
    class_of: list[int] = []
    first = 0
    size = None if words is None else words.shape[1]
    for index, entry in enumerate(vocabulary.classes):
        own = entry.prompts
        found = np.zeros((0, 0)) if words is None else words[first : first + len(own)]
        first += len(own)
        if entry.example:
            example = _unit(np.array(entry.example))
            _refuse_other_size(entry, size)
            size = len(example)
            found = (
                _unit((1 - entry.share) * found + entry.share * example) if own else example[None]
            )
        rows.append(found.astype(np.float32))
        class_of += [index] * len(found)
    return np.concatenate(rows), np.array(class_of, np.int32)


def _refuse_other_size(entry: VocabularyClass, size: int | None) -> None:
    if size not in (None, len(entry.example)):
        raise VocabularyError(
            f"class '{entry.name}': its example has {len(entry.example)} numbers and the model's "
            f"directions have {size}; make examples with the same model"
        )


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12))


class VocabularyStep(Protocol):
    """Changes the queries before a run; a frozen dataclass, a line in `VOCABULARY_STEPS`."""

    def __call__(self, queries: Queries, embed: Embed) -> Queries:
        """Return other queries of the same classes."""
