"""Words that are not asked for, so that what they stand for is not taken for a class."""

from __future__ import annotations

from dataclasses import dataclass

from geoseg.errors import OptionError, VocabularyError
from geoseg.text._words import clean_prompt
from geoseg.text.queries import Embed, Queries


@dataclass(frozen=True)
class Contrast:
    """Hidden queries beside the classes; where one of them is best, a pixel is background.

    After Wysoczańska et al., "A Study of Test-Time Contrastive Concepts for Open-World,
    Open-Vocabulary Semantic Segmentation", 2024; the words are given here, not mined.

    Raises
    ------
    OptionError
        If there are no words, or one cannot be a prompt.
    """

    words: tuple[str, ...]
    """E.g. ``cloud`` and ``shadow``."""

    def __post_init__(self) -> None:
        if not self.words or not all(word.strip() for word in self.words):
            raise OptionError("contrast needs words; write for example contrast:words=cloud+shadow")
        try:
            words = tuple(clean_prompt(word) for word in self.words)
        except VocabularyError as error:
            raise OptionError(f"contrast: {error}") from None
        object.__setattr__(self, "words", words)

    def __call__(self, queries: Queries, embed: Embed) -> Queries:
        """Add the words."""
        return queries.with_hidden(embed(self.words))
