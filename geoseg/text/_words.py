"""Words that every file, tokenizer and picture can hold."""

from __future__ import annotations

import unicodedata

from geoseg._inputs import shown
from geoseg.errors import VocabularyError
from geoseg.text._files import collapse

LONGEST_NAME_LETTERS = 200
"""A name is drawn in legends and is a layer of vector files, where longer ones break."""
LONGEST_PROMPT_LETTERS = 1000
"""Far beyond what a text encoder reads (77 tokens); longer ones cost the tokenizer minutes."""
MOST_CLASSES = 65_534
"""Values of a 16-bit raster of labels beside its nodata."""
MOST_QUERIES = 100_000
"""Each is encoded in every template, and has its vector in memory."""


_NO_LETTERS = {"\ufffe", "\uffff"}


def clean_name(name: str) -> str:
    """Clean a display name, see `clean_prompt`; it may have fewer letters.

    Raises
    ------
    VocabularyError
        As `clean_prompt`.
    """
    return _clean(name, LONGEST_NAME_LETTERS, "name")


def clean_prompt(prompt: str) -> str:
    """Collapse white space and compose accents.

    Raises
    ------
    VocabularyError
        If nothing is left, or a letter or the length is one that not every file, tokenizer and
        picture can hold.
    """
    return _clean(prompt, LONGEST_PROMPT_LETTERS, "prompt")


def _clean(word: str, most_letters: int, what: str) -> str:
    word = collapse(word)
    if len(word) > most_letters:  # looked at first: composing accents of endless words takes hours
        raise VocabularyError(
            f"the {what} '{shown(word[:30])}…' has {len(word):,} letters, and a {what} may have "
            f"{most_letters:,}; shorten it"
        )
    cleaned = collapse(unicodedata.normalize("NFC", word))
    if not cleaned:
        raise VocabularyError("a name or prompt is empty")
    if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in cleaned):
        raise VocabularyError(f"{cleaned!a} has control characters in it")
    if not _NO_LETTERS.isdisjoint(cleaned):
        raise VocabularyError(
            f"{cleaned!a} has U+FFFE or U+FFFF in it, which XML cannot hold; take it out"
        )
    return cleaned
