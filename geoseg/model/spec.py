"""What the user means by ``--model``, and which architectures geoseg can read densely."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from geoseg._address import is_address
from geoseg._files import absolute
from geoseg._inputs import is_there, shown
from geoseg.errors import UnknownModelError, UnsupportedModelError, WeightsError

BUNDLED = "geoseg-tiny"
DEFAULT_MODEL = "ViT-B-16/openai"

OFFLINE_CHOICES = (
    f"offline, use --model {BUNDLED} (bundled), a checkpoint file (--model ARCH:/path/to/file), "
    "a folder (--model local-dir:/path), or copy the weights into the hub cache"
)


@dataclass(frozen=True)
class ModelSpec:
    """A parsed model specification."""

    text: str
    """As the user wrote it."""
    kind: Literal["folder", "hub", "tag", "file", "talk2dino"]
    architecture: str = ""
    """open_clip's name; empty for ``folder`` and ``hub``, which bring their own config."""
    source: str = ""
    """Folder, hub repository, pretrained tag or checkpoint file."""

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Understand a specification.

        ``geoseg-tiny`` · ``ARCH/PRETRAINED`` · ``ARCH:/path/to/checkpoint`` ·
        ``hf-hub:ORG/NAME`` · ``local-dir:/path`` · ``talk2dino:/path/to/file.json``.

        Raises
        ------
        UnknownModelError
            If it is none of these; the message lists near names.
        UnsupportedModelError
            If the named architecture is not a classic CLIP ViT.
        """
        if not isinstance(text, str):
            raise UnknownModelError(
                f"model is a {type(text).__name__}; give what names one, for example {BUNDLED}"
            )
        if text == BUNDLED:
            return cls(text, "folder", source=str(bundled_folder()))
        scheme, colon, rest = text.partition(":")
        if is_address(rest):
            raise WeightsError(
                f"model {shown(text)}: weights are read from this machine; fetch {shown(rest)} "
                f"and give {scheme}:/path/to/it"
            )
        if colon and scheme == "local-dir":
            return cls(text, "folder", source=rest)
        if colon and scheme == "hf-hub":
            return cls(text, "hub", source=rest)
        if colon and scheme == "talk2dino":
            return cls(text, "talk2dino", source=rest)
        if colon:
            return cls(text, "file", architecture=_known(scheme, text), source=rest)
        architecture, slash, tag = text.partition("/")
        if slash and not is_there(text):
            return cls(
                text, "tag", architecture=_known(architecture, text), source=_tag(architecture, tag)
            )
        raise UnknownModelError(_explain(text))


def portable(text: str) -> str:
    """Write a specification as a process in another folder understands it: paths absolute."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme == "hf-hub":
        return text
    parts = [(1.0, rest)] if scheme in ("local-dir", "talk2dino") else parts_of(rest)
    if len(parts) == 1:
        return f"{scheme}:{absolute(rest)}"
    return f"{scheme}:{'+'.join(f'{share!r}*{absolute(file)}' for share, file in parts)}"


def parts_of(source: str) -> list[tuple[float, str]]:
    """Shares and files of ``A.pt``, ``A.pt+B.pt`` or ``0.7*A.pt+0.3*B.pt``.

    Raises
    ------
    WeightsError
        If a share is no number above 0.
    """
    if "+" not in source or is_there(source):
        return [(1.0, source)]
    return [_part(each, source) for each in source.split("+")]


def _part(text: str, source: str) -> tuple[float, str]:
    before, star, file = text.partition("*")
    if not star or is_there(text):
        before, file = "1", text
    try:
        share = float(before)
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf or not file.strip():
        raise WeightsError(
            f"weights {shown(source)}: '{shown(text)}' is no share and file; write A.pt+B.pt, or "
            "0.7*A.pt+0.3*B.pt"
        )
    return share, file.strip()


def bundled_folder() -> Path:
    """Folder of the bundled model inside the installed package."""
    return Path(__file__).resolve().parent.parent / "bundled" / BUNDLED


def _known(architecture: str, text: str) -> str:
    import open_clip

    config = open_clip.get_model_config(architecture)
    if config is None:
        raise UnknownModelError(_explain(text, architecture))
    check_architecture(config, architecture)
    return architecture


def _tag(architecture: str, tag: str) -> str:
    import open_clip

    tags: list[str] = open_clip.list_pretrained_tags_by_model(architecture)
    if not open_clip.get_pretrained_cfg(architecture, tag):
        near = difflib.get_close_matches(shown(tag), tags, n=3, cutoff=0.3) or tags[:3]
        hint = (
            f"did you mean {_or(f'{architecture}/{t}' for t in near)}?"
            if near
            else ("it has no pretrained tags; give a checkpoint as ARCH:/path/to/file")
        )
        raise UnknownModelError(f"{architecture} has no pretrained weights '{shown(tag)}'; {hint}")
    return tag


def _explain(text: str, architecture: str | None = None) -> str:
    import open_clip

    said = shown(text)
    if is_there(text):
        if Path(text).is_dir():
            return f"model '{said}' is a folder; write local-dir:{said}"
        return f"model '{said}' is a file; write ARCH:{said}, for example ViT-B-32:{said}"
    if architecture is None and open_clip.get_model_config(text) is not None:
        tags = [f"{text}/{tag}" for tag in open_clip.list_pretrained_tags_by_model(text)[:4]]
        return f"model '{said}' names no weights; write {_or(tags) or f'{said}:/path/to/file'}"
    names = [BUNDLED, *(f"{a}/{t}" for a, t in open_clip.list_pretrained())]
    near = difflib.get_close_matches(said, names, n=3, cutoff=0.5)
    if not near and architecture:
        near = difflib.get_close_matches(
            shown(architecture), open_clip.list_models(), n=3, cutoff=0.5
        )
    hint = f"did you mean {_or(near)}?" if near else "run `geoseg models` for the list"
    return f"model '{said}' is not known; {hint}"


def _or(names: Any) -> str:
    return " or ".join(names)


def check_architecture(config: Mapping[str, Any], name: str) -> None:
    """Refuse an open_clip config that is not a classic CLIP vision transformer.

    Dense CLIP inference needs patch tokens, a CLS token and q, k, v projections in the last
    block.

    Raises
    ------
    UnsupportedModelError
        In one line that says why.
    """
    reason = _unsupported(config)
    if reason:
        raise UnsupportedModelError(
            f"model {shown(name)} cannot be used densely: {reason}; "
            "use a classic CLIP ViT such as ViT-B-16, ViT-L-14 or ViT-H-14"
        )


def _unsupported(config: Mapping[str, Any]) -> str | None:
    vision = config.get("vision_cfg", {})
    if "multimodal_cfg" in config:
        return "CoCa pools its tokens by attention and has no plain CLS embedding"
    if "timm_model_name" in vision:
        tower = shown(vision["timm_model_name"])
        if "siglip" in tower or vision.get("timm_pool") == "map":
            return f"its image tower {tower} (SigLIP type) pools by attention and has no CLS token"
        return f"its image tower {tower} is not open_clip's own vision transformer with a CLS token"
    if isinstance(vision.get("layers"), list | tuple):
        return "its image tower is a ResNet, which has no patch tokens"
    if vision.get("attentional_pool"):
        return "it pools its tokens by attention and has no plain CLS embedding"
    if vision.get("pool_type", "tok") != "tok":
        return f"it pools tokens by {shown(repr(vision['pool_type']))} instead of a CLS token"
    if vision.get("block_type") or vision.get("qk_norm") or vision.get("scaled_cosine_attn"):
        return "its attention blocks are not the classic ones"
    return None
