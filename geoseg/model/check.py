"""Does a file of weights make a model: architecture, activation, tokenizer, context, upsampler?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from geoseg._inputs import is_file, named_file, shown
from geoseg.errors import GeosegError, WeightsError
from geoseg.methods import UPSAMPLERS, resolve
from geoseg.model.checkpoint import StateDict, folded_text, read_state_dict
from geoseg.model.loading import Model, known_activation, load_model
from geoseg.model.published import published
from geoseg.model.spec import BUNDLED, ModelSpec, parts_of
from geoseg.model.upsampling.base import Fit

_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.")


@dataclass(frozen=True)
class Finding:
    """One thing that belongs together with the others, or does not."""

    what: str
    ok: bool | None
    """None if nothing tells."""
    said: str


@dataclass(frozen=True)
class Checked:
    """What `check_model` has found."""

    spec: str
    """What ``--model`` takes, as far as it could be told."""
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(each.ok is not False for each in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self) | {"ok": self.ok}


def check_model(text: str, upsampler_weights: str | None = None) -> Checked:
    """Look at a file of weights, or at all that a specification names.

    Parameters
    ----------
    text
        A specification as ``--model`` takes it, or a checkpoint file alone, whose architecture is
        then told from its tensors.
    upsampler_weights
        Checkpoint of a learned upsampler that is to go with it.

    Returns
    -------
    Checked
        What belongs together. Whatever is wrong with the weights is a finding, not an error.

    Raises
    ------
    GeosegError
        If there is no such file, or it is no checkpoint.
    """
    spec = text
    if is_file(text):
        state = read_state_dict(named_file(text, "weights file", WeightsError))
        architecture = _architecture(state, Path(text))
        quick = known_activation(Path(text), state)
        spec = f"{architecture}{'-quickgelu' if quick else ''}:{text}"
    parsed = ModelSpec.parse(spec)
    try:
        model = load_model(spec, device="cpu", download=False)
    except WeightsError as error:
        what = "activation" if "QuickGELU" in str(error) else "weights"
        return Checked(spec, (Finding(what, False, str(error)),))
    if parsed.kind == "talk2dino":
        said = f"fit: patches of {model.patch_size} pixels, {model.embedding_size} numbers"
        findings = [Finding("weights", True, said)]
    else:
        findings = list(_of_model(model, parsed))
    if upsampler_weights is not None:
        findings.append(_upsampler(model, upsampler_weights))
    return Checked(spec, tuple(findings))


def _architecture(state: StateDict, file: Path) -> str:
    """open_clip's name of the plain architecture that has these tensors.

    Raises
    ------
    WeightsError
        If there is none, or the image tower is no vision transformer of CLIP's.
    """
    import open_clip

    state, context = folded_text(state, file)
    try:
        conv, table = state["visual.conv1.weight"], state["positional_embedding"]
        found = {
            "width": conv.shape[0],
            "patch": conv.shape[2],
            "layers": 1 + max(int(m[1]) for name in state if (m := _BLOCK.match(name))),
            "positions": len(state["visual.positional_embedding"]),
            "embedding": state["visual.proj"].shape[1],
            "text width": table.shape[1],
            "context": len(table) if context is None else None,
        }
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(
            f"weights file {shown(file)} has no image tower of CLIP's kind; geoseg reads classic "
            "CLIP vision transformers"
        ) from error
    for name in sorted(open_clip.list_models(), key=lambda each: (len(each), each)):
        config = open_clip.get_model_config(name)
        if not name.endswith("-quickgelu") and _shape(config, context) == found:
            return str(name)
    sizes = ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)
    raise WeightsError(
        f"weights file {shown(file)} fits no architecture that open_clip knows ({sizes}); put it "
        "into a folder with an open_clip_config.json and give local-dir:FOLDER"
    )


def _shape(config: Mapping[str, Any], context: int | None) -> dict[str, Any] | None:
    """Sizes of an architecture as `_architecture` reads them of tensors."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    side, patch = vision.get("image_size", 224), vision.get("patch_size")
    if not isinstance(side, int) or not isinstance(patch, int) or config.get("custom_text"):
        return None
    return {
        "width": vision.get("width"),
        "patch": patch,
        "layers": vision.get("layers"),
        "positions": 1 + (side // patch) ** 2,
        "embedding": config.get("embed_dim"),
        "text width": text.get("width"),
        "context": text.get("context_length", 77) if context is None else None,
    }


def _of_model(model: Model, spec: ModelSpec) -> Iterator[Finding]:
    visual, file = model.clip.visual, model.weights
    blocks = len(visual.transformer.resblocks)
    yield Finding(
        "weights",
        True,
        f"fit: patches of {model.patch_size} pixels, {blocks} blocks, {model.embedding_size} "
        "numbers",
    )
    yield _activation(model, spec)
    same = len(model.clip.positional_embedding) == model.context_length
    yield Finding(
        "tokenizer and context",
        same and model.clip.vocab_size >= _words(model),
        f"{model.context_length} positions, {model.clip.vocab_size} tokens",
    )
    known = published(file.name)
    if known is not None:
        scores = [
            f"ViT-B/{side}: {value}"
            for side, value in ((16, known.b16), (32, known.b32))
            if value is not None
        ]
        said = f"by its name {known.name} ({', '.join(scores)}): {known.advice}"
        yield Finding("published", None, said)


def _words(model: Model) -> int:
    return int(model.tokenize(["a word"]).max()) + 1


def _activation(model: Model, spec: ModelSpec) -> Finding:
    block = model.clip.visual.transformer.resblocks[0]
    quick = type(block.mlp.gelu).__name__ == "QuickGELU"
    name = "QuickGELU" if quick else "plain GELU"
    files = [file for _, file in parts_of(spec.source)] if spec.kind == "file" else [model.weights]
    known = (known_activation(Path(file), read_state_dict(file)) for file in files)
    if spec.kind == "tag" or spec.text == BUNDLED or any(each is not None for each in known):
        return Finding("activation", True, name)  # with the other it would not have loaded
    if spec.architecture:
        plain = spec.architecture.removesuffix("-quickgelu")
        other = plain if quick else f"{plain}-quickgelu"
    else:
        other = f'"quick_gelu": {"false" if quick else "true"} in the config'
    return Finding(
        "activation",
        None,
        f"{name}; nothing in the file or its name says which it was trained with. If it was the "
        f"other one, as in files that were tuned from {'LAION' if quick else 'OpenAI'}'s weights, "
        f"take {other}: the wrong one loads without complaint and gives wrong maps",
    )


def _upsampler(model: Model, weights: str) -> Finding:
    fit = Fit(model.embedding_size, model.std, torch.device("cpu"), weights)
    reasons = []
    for name in ("simfeatup", "featup"):
        try:
            resolve(UPSAMPLERS, name).build(fit)
        except GeosegError as error:
            reasons.append(str(error))
        else:
            said = f"{name} of {model.embedding_size} numbers, as the model has"
            return Finding("upsampler", True, said)
    return Finding("upsampler", False, reasons[0])
