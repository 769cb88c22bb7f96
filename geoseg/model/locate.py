"""Where a model's config and weights lie: in a folder or file, in a cache, or on the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg._inputs import named_file, named_path, shown
from geoseg.errors import ModelError, UnknownModelError, WeightsError, not_found
from geoseg.model.checkpoint import StateDict, file_digest, mean_of_files, read_state_dict
from geoseg.model.config import CONFIG_FILE, read_config
from geoseg.model.spec import OFFLINE_CHOICES, ModelSpec, check_architecture, parts_of

_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""File names open_clip tries on a hub repository, in its order."""
_PROBE_SECONDS = 8.0


@dataclass(frozen=True)
class Located:
    """Everything known about a model before its weights are read."""

    factory_name: str
    """What open_clip's factory calls it."""
    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path
    quick_gelu_weights: bool | None
    """Whether the weights are known to want QuickGELU; None if nothing says so."""
    mixed: tuple[tuple[float, Path], ...] = ()
    """Shares and files whose mean the weights are; ``weights`` is the first of them then."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All weights files."""
        return tuple(file for _, file in self.mixed) or (self.weights,)

    def read(self) -> StateDict:
        """All tensors: of one file, or the weighted mean of several."""
        return mean_of_files(self.mixed) if self.mixed else read_state_dict(self.weights)

    def checksum(self) -> str:
        """SHA-256 of the file, or of several files' and their shares."""
        if not self.mixed:
            return file_digest(self.weights)
        facts = json.dumps([[share, file_digest(file)] for share, file in self.mixed])
        return hashlib.sha256(facts.encode()).hexdigest()

    def fingerprint(self, checksum: str) -> str:
        """SHA-256 over the checksum and the architecture."""
        facts = json.dumps([checksum, self.config, self.preprocess], sort_keys=True, default=str)
        return hashlib.sha256(facts.encode()).hexdigest()


def _locate_folder(spec: ModelSpec, _download: bool) -> Located:
    folder = named_path(spec.source, "model folder", ModelError)
    if folder is None or not folder.is_dir():
        reason = "does not exist" if folder is None else "is a file, not a folder"
        kind = not_found(ModelError) if folder is None else ModelError
        raise kind(f"model folder {shown(spec.source)} {reason}; check the path")
    file = folder / CONFIG_FILE
    if named_path(file, "model config", ModelError) is None:
        raise ModelError(
            f"model folder {shown(folder)} has no {CONFIG_FILE}; see open_clip's local-dir format"
        )
    config, preprocess = _read_config(file, spec.text)
    weights = _weights_in(folder)
    return Located(f"local-dir:{folder}", config, preprocess, weights, None)


def _weights_in(folder: Path) -> Path:
    preferred = (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pth",
    )
    for name in preferred:
        if named_path(folder / name, "weights file", WeightsError) is not None:
            return folder / name
    raise WeightsError(
        f"model folder {shown(folder)} holds no weights; expected one of {', '.join(preferred)}"
    )


def _locate_hub(spec: ModelSpec, download: bool) -> Located:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(spec.source)
    except ValueError as error:
        raise UnknownModelError(
            f"model {shown(spec.text)} names no repository of the hub; write hf-hub:ORG/NAME"
        ) from error
    config_file = cached_file(spec.source, CONFIG_FILE)
    if config_file is None:
        config_file = fetched(
            spec.text, download, lambda: hf_hub_download(spec.source, CONFIG_FILE)
        )
    config, preprocess = _read_config(config_file, spec.text)
    cfg = {"hf_hub": f"{spec.source}/"}
    weights = cached_tag(cfg)
    if weights is None:
        import open_clip

        weights = fetched(spec.text, download, lambda: open_clip.download_pretrained(cfg))
    return Located(f"hf-hub:{spec.source}", config, preprocess, weights, None)


def _locate_tag(spec: ModelSpec, download: bool) -> Located:
    import open_clip

    cfg = open_clip.get_pretrained_cfg(spec.architecture, spec.source)
    weights = cached_tag(cfg)
    if weights is None:
        weights = fetched(spec.text, download, lambda: open_clip.download_pretrained(cfg))
    config = open_clip.get_model_config(spec.architecture)
    quick = bool(cfg.get("quick_gelu", False))
    if quick:
        # open_clip 3 builds plain GELU for e.g. ViT-B-16/openai and only warns.
        config["quick_gelu"] = True
    return Located(spec.architecture, config, cfg, weights, quick)


def _locate_file(spec: ModelSpec, _download: bool) -> Located:
    import open_clip

    config = open_clip.get_model_config(spec.architecture)
    mixed = tuple(
        (share, named_file(file, "weights file", WeightsError))
        for share, file in parts_of(spec.source)
    )
    several = mixed if len(mixed) > 1 else ()
    return Located(spec.architecture, config, {}, mixed[0][1], None, several)


_LOCATORS = {
    "folder": _locate_folder,
    "hub": _locate_hub,
    "tag": _locate_tag,
    "file": _locate_file,
}


def locate(spec: ModelSpec, download: bool) -> Located:
    """Find a model's config and weights; those that are not here are fetched if ``download``."""
    return _LOCATORS[spec.kind](spec, download)


def _read_config(file: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config, preprocess = read_config(file)
    check_architecture(config, name)
    return config, preprocess


def cached_file(repository: str, filename: str) -> Path | None:
    """Path of a hub file that is already on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found: Any = try_to_load_from_cache(repository, filename)
    if not isinstance(found, str):
        return None  # never asked for, or known not to exist
    return Path(found)


def cached_tag(cfg: dict[str, Any]) -> Path | None:
    """Local file of a pretrained tag's weights, if it has been downloaded before.

    Parameters
    ----------
    cfg
        open_clip's pretrained config of the tag.
    """
    if hub := cfg.get("hf_hub"):
        repository, _, filename = hub.rpartition("/")
        for name in (filename,) if filename else _HUB_WEIGHTS:
            if found := cached_file(repository, name):
                return found
    if url := cfg.get("url"):
        try:
            file: Path = Path.home() / ".cache" / "clip" / url.rsplit("/", 1)[-1]
        except RuntimeError:  # no home folder to be found
            return None
        if file.is_file():
            return file
    return None


def fetched(
    what: str, download: bool, fetch: Callable[[], Any], choices: str = OFFLINE_CHOICES
) -> Path:
    """Download a file, if that is wanted and possible, and return where it lies.

    Parameters
    ----------
    what
        Whose weights they are, for messages.
    download
        False only says that they are missing.
    fetch
        Gets them and returns the path.
    choices
        What else can be done, for messages.

    Raises
    ------
    WeightsError
        If there is no way to them.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if not download:
        raise WeightsError(f"the weights of {what} are not in the cache; {choices}")
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            f"the weights of {what} are not in the cache and HF_HUB_OFFLINE is set; {choices}"
        )
    try:
        # One answer first, so that an unreachable hub fails in seconds, not minutes.
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
        return Path(fetch())
    except Exception as error:  # hub, network and disk errors of four libraries
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"the weights of {what} are not in the cache ({constants.HF_HUB_CACHE}) and could not "
            f"be downloaded ({cause}); {choices}"
        ) from error
