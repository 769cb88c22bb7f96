"""Which models a user can name, and which are on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import open_clip

from geoseg.errors import UnsupportedModelError
from geoseg.model.locate import cached_tag
from geoseg.model.spec import BUNDLED, bundled_folder, check_architecture


@dataclass(frozen=True)
class KnownModel:
    """One model a user can name."""

    spec: str
    """What ``--model`` takes."""
    patch_size: int
    """Side of a patch in pixels."""
    image_size: int
    """Side of the images it was trained at, in pixels."""
    bundled: bool
    cached: bool
    """Whether its weights are on this machine."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def known_models() -> list[KnownModel]:
    """List the bundled model and open_clip's pretrained classic ViTs, in open_clip's order."""
    return [*_bundled(), *_pretrained()]


def _bundled() -> Iterator[KnownModel]:
    file = bundled_folder() / "open_clip_config.json"
    if file.is_file():
        vision = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]["vision_cfg"]
        yield KnownModel(BUNDLED, vision["patch_size"], vision["image_size"], True, True)


def _pretrained() -> Iterator[KnownModel]:
    for architecture, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(architecture)
        if config is None:
            continue
        try:
            check_architecture(config, architecture)
        except UnsupportedModelError:
            continue
        if architecture.endswith("-quickgelu") and open_clip.get_pretrained_cfg(
            architecture.removesuffix("-quickgelu"), tag
        ):
            continue  # the plain name loads the same weights with QuickGELU switched on
        vision = config["vision_cfg"]
        weights = cached_tag(open_clip.get_pretrained_cfg(architecture, tag))
        yield KnownModel(
            f"{architecture}/{tag}",
            vision["patch_size"],
            vision["image_size"],
            False,
            weights is not None,
        )
