"""Into which sentences are the queries put before the text encoder reads them?"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import product
from pathlib import Path

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
        return _from_file(spec.expanduser())
    templates = tuple(spec)
    if not templates:
        raise VocabularyError("the list of templates is empty; use 'none' for bare queries")
    for number, template in enumerate(templates, start=1):
        _require_slot(template, f"template {number}")
    return templates


def fill(template: str, query: str) -> str:
    """Put a query into a template, braces inside the query left alone."""
    return template.replace(SLOT, query)


def _imagenet_templates() -> tuple[str, ...]:
    import open_clip  # imports torch, which reading a class file must not cost

    return tuple(template(SLOT) for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def _path_of(spec: str) -> Path:
    path = Path(spec).expanduser()
    if path.exists() or path.suffix or path.name != spec:
        return path
    near = difflib.get_close_matches(spec, _NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(_NAMES)} or a text file"
    raise VocabularyError(f"templates '{spec}' are not known; {hint}")


def _from_file(path: Path) -> tuple[str, ...]:
    lines = content_lines(path, _FILE)
    for number, line in lines:
        _require_slot(line, f"{_FILE} {path}, line {number}")
    return tuple(line for _, line in lines)


def _require_slot(template: str, where: str) -> None:
    if SLOT not in template:
        raise VocabularyError(
            f"{where}: '{template}' has no {{}} for the query, as in 'a satellite photo of {{}}.'"
        )
