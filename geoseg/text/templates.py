"""Into which sentences are the queries put before the text encoder reads them?"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from geoseg._inputs import named_path, shown
from geoseg.errors import VocabularyError
from geoseg.text._files import content_lines

SLOT = "{}"
"""Stands for the query in a template."""

REMOTE_SENSING_TEMPLATES: tuple[str, ...] = (
    # Six names of an overhead picture, each with three articles: the prompts that CLIP's authors
    # used for RESISC45.
    *(
        f"{picture} of {article}{{}}."
        for picture, article in product(
            (
                "satellite imagery",
                "aerial imagery",
                "satellite photo",
                "aerial photo",
                "satellite view",
                "aerial view",
            ),
            ("", "a ", "the "),
        )
    ),
    # Their EuroSAT prompts.
    "a centered satellite photo of {}.",
    "a centered satellite photo of a {}.",
    "a centered satellite photo of the {}.",
    # SATIN's wordings, with the full stop that the other templates have.
    "a satellite photo of {}.",
    "an aerial view of {}.",
    "a top-down view of {}.",
    # Drone pictures.
    "a drone photo of {}.",
    "an oblique aerial photo of {}.",
)
"""Templates that speak of pictures from above (CLIP, SATIN and two of our own)."""

LONGEST_TEMPLATE_LETTERS = 1000
"""Far beyond what a text encoder reads (77 tokens)."""
MOST_TEMPLATES = 10_000
"""Every query is encoded in each of them; the usual number is 80."""

_NAMES = ("imagenet", "remote-sensing", "none")
_FILE = "template file"


def load_templates(spec: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return the prompt templates that a name, a file or a list stands for.

    Parameters
    ----------
    spec
        ``imagenet``: the 80 sentences of CLIP's ImageNet evaluation (Radford et al., 2021), in
        their order. ``remote-sensing``: `REMOTE_SENSING_TEMPLATES`. ``none``: the bare query.
        Otherwise the path of a UTF-8 file with a template a line (``#`` comments allowed), or
        the templates themselves. A name wins over a file called the same; write ``./none`` then.

    Returns
    -------
    tuple of str
        Each with at least one ``{}``; fill it with `fill`.

    Raises
    ------
    VocabularyError
        If the name is unknown, the file unreadable, or a template has no ``{}``.
    """
    if isinstance(spec, str):
        if spec == "imagenet":
            return _imagenet_templates()
        if spec == "remote-sensing":
            return REMOTE_SENSING_TEMPLATES
        if spec == "none":
            return (SLOT,)
        return _from_file(_path_of(spec))
    if isinstance(spec, Path):
        return _from_file(spec)
    templates = tuple(spec)
    if not templates:
        raise VocabularyError("the list of templates is empty; use 'none' for bare queries")
    places = [f"template {number}" for number in range(1, len(templates) + 1)]
    return _usable(templates, places, "the list of templates")


def fill(template: str, query: str) -> str:
    """Put a query into a template, braces inside the query left alone."""
    return template.replace(SLOT, query)


def _imagenet_templates() -> tuple[str, ...]:
    import open_clip  # imports torch, which reading a class file must not cost

    return tuple(template(SLOT) for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def _path_of(spec: str) -> Path:
    path = Path(spec)
    if path.suffix or path.name != spec or named_path(spec, _FILE, VocabularyError) is not None:
        return path
    near = difflib.get_close_matches(shown(spec), _NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(_NAMES)} or a text file"
    raise VocabularyError(f"templates '{shown(spec)}' are not known; {hint}")


def _from_file(path: Path) -> tuple[str, ...]:
    lines = content_lines(path, _FILE)
    origin = f"{_FILE} {shown(path)}"
    places = [f"{origin}, line {number}" for number, _ in lines]
    return _usable(tuple(line for _, line in lines), places, origin)


def _usable(templates: tuple[str, ...], places: Sequence[str], origin: str) -> tuple[str, ...]:
    """Return templates that have a slot, and whose letters and number are sane."""
    if len(templates) > MOST_TEMPLATES:
        raise VocabularyError(
            f"{origin} has {len(templates):,} templates, and there may be {MOST_TEMPLATES:,}"
        )
    for template, place in zip(templates, places, strict=True):
        if not isinstance(template, str):
            raise VocabularyError(f"{place}: {shown(repr(template))} is not a string")
        if SLOT not in template:
            raise VocabularyError(
                f"{place}: '{shown(template)}' has no {{}} for the query, as in "
                "'a satellite photo of {}.'"
            )
        if len(template) > LONGEST_TEMPLATE_LETTERS:
            raise VocabularyError(
                f"{place}: the template has {len(template):,} letters, and one may have "
                f"{LONGEST_TEMPLATE_LETTERS:,}; shorten it"
            )
        if any(unicodedata.category(letter) == "Cs" for letter in template):
            raise VocabularyError(f"{place}: {template!a} has half letters (surrogates) in it")
    return templates
