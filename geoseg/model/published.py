"""What is known of encoder files that others publish: how good dense maps of them are."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

SOURCE = (
    "mean IoU over eight remote-sensing sets (OpenEarthMap, LoveDA, Potsdam, Vaihingen, UDD5, VDD, "
    "UAVid, iSAID), one pipeline for all: self-self attention, windows of 224, no upsampler; "
    "published by FarSLIP's authors (NJU-LHRS/RS-OVSS)"
)
"""Of the figures."""


@dataclass(frozen=True)
class PublishedEncoder:
    """A family of files."""

    name: str
    pattern: str
    """Of file names, as a regular expression."""
    b16: float | None
    """Mean IoU in per cent with ViT-B/16."""
    b32: float | None
    """And with ViT-B/32."""
    advice: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, but for the pattern."""
        return {key: value for key, value in asdict(self).items() if key != "pattern"}


PUBLISHED = (
    PublishedEncoder(
        "FarSLIP", r"farslip", 35.4, 30.5,
        "the best of these; QuickGELU; FarSLIP2 has a text tower of 248 positions",
    ),
    PublishedEncoder("GeoRSCLIP", r"georsclip|rs5m", 34.3, 28.3, "better than OpenAI's"),
    PublishedEncoder(
        "LRSCLIP", r"lrsclip|dgtrs", 33.2, None,
        "a little better than OpenAI's; QuickGELU, a text tower of 248 positions",
    ),
    PublishedEncoder(
        "CLIP (OpenAI)", r"openai|clip-vit-(base|large)-patch|^vit-[bl]-\d\d(.336px)?\.pt$",
        32.3, 27.3, "the reference",
    ),
    PublishedEncoder("MetaCLIP", r"metaclip", 28.0, None, "worse than OpenAI's"),
    PublishedEncoder("SkyCLIP", r"skyclip|skyscript", None, 26.8, "worse than OpenAI's"),
    PublishedEncoder("RemoteCLIP", r"remoteclip", None, 23.2, "worse than OpenAI's"),
)  # fmt: skip
"""Best first."""


def published(file_name: str) -> PublishedEncoder | None:
    """What is known of a file by its name alone; the most telling name goes first."""
    special = sorted(PUBLISHED, key=lambda each: each.name == "CLIP (OpenAI)")
    return next((e for e in special if re.search(e.pattern, file_name, re.IGNORECASE)), None)
