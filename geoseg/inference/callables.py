"""What a scorer calls: found by its name or in a file, and told from others by what it is."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import inspect
import json
import pickle
import sys
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoseg._inputs import is_file
from geoseg._optional import require
from geoseg.errors import OptionError, not_found
from geoseg.io.scores import band_names
from geoseg.model.checkpoint import file_digest
from geoseg.options.scorer import SCORE_RASTERS, is_score_raster

_SCRIPTS, _ONNX = (".pt", ".ts", ".pth", ".torchscript"), ".onnx"


def name_of(call: Any) -> str:
    """What a person knows a scorer by."""
    if isinstance(call, str | Path):
        return str(call)
    if isinstance(call, functools.partial):
        return name_of(call.func)
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}:{named.__qualname__}"


def loaded(call: Any, device: torch.device) -> Any:
    """Return what is called, ready on a device; a module of the user's stays as it is."""
    if isinstance(call, str | Path):
        call = _found(str(call), device)
    if isinstance(call, torch.nn.Module):
        return copy.deepcopy(call).to(device).eval()
    if not callable(call):
        raise OptionError(
            f"a scorer is a function, a torch.nn.Module or the name of one, not "
            f"{type(call).__name__}"
        )
    return call


def _found(spec: str, device: torch.device) -> Any:
    """Load a file, or import ``module:function``, also from the current folder."""
    suffix = Path(spec).suffix.lower()
    if suffix in (*_SCRIPTS, _ONNX, *SCORE_RASTERS):
        if not is_file(spec):
            raise not_found(OptionError)(f"scorer {spec} does not exist; check the path")
        if suffix in SCORE_RASTERS:
            return _as_they_are
        return _onnx(spec, device) if suffix == _ONNX else _script(spec, device)
    module, _, name = spec.partition(":")
    if not module or not name:
        raise OptionError(
            f"scorer '{spec}' is none of module:function, a TorchScript file (.pt, .ts), an ONNX "
            "file (.onnx) or a raster of scores (.tif)"
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise OptionError(
            f"scorer {spec} cannot be imported from here or from what is installed: "
            f"{type(error).__name__}: {words}"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise OptionError(f"scorer {spec} is {type(found).__name__}; name a function or a network")
    return found


def names_told(call: Any, made: Any) -> tuple[str, ...] | None:
    """Names of its classes that a scorer tells itself, in the order of its scores; None if none.

    Parameters
    ----------
    call
        What a `geoseg.Scorer` calls; of a raster, the descriptions of its bands are the names.
    made
        What `loaded` made of it, whose ``classes`` they are otherwise.
    """
    found = band_names(str(call)) if is_score_raster(call) else getattr(made, "classes", None)
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        names = tuple(found)
        if names and all(isinstance(name, str) and name.strip() for name in names):
            return tuple(name.strip() for name in names)
    return None


def _as_they_are(scores: Tensor) -> Tensor:
    """A raster of scores needs no network; see `geoseg.io.scores`."""
    return scores


def _script(path: str, device: torch.device) -> Any:
    try:
        return torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise OptionError(
            f"scorer {path} is no TorchScript file; save the network with "
            "torch.jit.trace(network, window).save(path)"
        ) from error


def _onnx(path: str, device: torch.device) -> Callable[[Tensor], Any]:
    require("onnxruntime", extra="onnx", feature="an ONNX scorer")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    if device.type == "cpu":
        settings.intra_op_num_threads = 1  # windows run side by side already
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    known = onnxruntime.get_available_providers()
    providers = [p for p in (*wanted, "CPUExecutionProvider") if p in known]
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=providers)
    except Exception as error:
        raise OptionError(f"scorer {path} is no ONNX file that onnxruntime can run") from error
    entry = session.get_inputs()[0]

    def run(windows: Tensor) -> Tensor:
        step = 1 if entry.shape and entry.shape[0] == 1 else len(windows)
        parts = [
            session.run(None, {entry.name: part.cpu().numpy()})[0]
            for part in torch.split(windows, step)
        ]
        return torch.from_numpy(np.concatenate(parts))

    run.classes = _listed(  # type: ignore[attr-defined]
        session.get_modelmeta().custom_metadata_map.get("classes", "")
    )
    return run


def _listed(text: str) -> list[str]:
    """Names in a file's metadata: a list of JSON, or separated by semicolons."""
    try:
        found = json.loads(text)
    except ValueError:
        found = text.split(";")
    return found if isinstance(found, list) else []


# -- which one it is --------------------------------------------------------------------------


def identity(call: Any) -> str:
    """SHA-256 of a file, or of a function's or network's code, values and weights."""
    if isinstance(call, str | Path):
        path = Path(call)
        if path.suffix.lower() in (*_SCRIPTS, _ONNX, *SCORE_RASTERS):
            return file_digest(path)
        return identity(_found(str(call), torch.device("cpu")))
    told = hashlib.sha256()
    _tell(call, told.update, {})
    return told.hexdigest()


def _tell(value: Any, say: Callable[[bytes], None], seen: dict[int, Any]) -> None:
    """Say everything that a callable's answer depends on, as far as Python can tell."""
    if id(value) in seen:
        return
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().contiguous() if isinstance(value, Tensor) else value
        say(f"{array.dtype}{tuple(array.shape)}".encode())
        flat = array.view(torch.uint8).numpy() if isinstance(array, Tensor) and array.ndim else None
        say(flat.tobytes() if flat is not None else np.asarray(array).tobytes())
        return
    if value is None or isinstance(value, str | bytes | int | float | complex | bool | Path):
        say(repr(value).encode())
        return
    seen[id(value)] = value  # kept, so that no other object gets its number
    if isinstance(value, torch.nn.Module):
        say(f"{type(value).__qualname__} {value!r}".encode())
        _tell(dict(value.state_dict()), say, seen)
        _tell(_source(type(value)), say, seen)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _tell(str(key), say, seen)
            _tell(value[key], say, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in sorted(value, key=str) if isinstance(value, set | frozenset) else value:
            _tell(one, say, seen)
    elif isinstance(value, functools.partial):
        _tell([value.func, value.args, value.keywords], say, seen)
    elif isinstance(value, ModuleType):
        say(value.__name__.encode())
    elif inspect.isfunction(value):
        say(value.__qualname__.encode())
        _tell([_source(value), value.__code__], say, seen)
        _tell([value.__defaults__, value.__kwdefaults__], say, seen)
        used = inspect.getclosurevars(value)
        _tell([dict(used.nonlocals), dict(used.globals)], say, seen)
    elif inspect.iscode(value):
        _tell([value.co_code, value.co_consts, value.co_names], say, seen)
    elif inspect.ismethod(value):
        _tell([value.__func__, value.__self__], say, seen)
    elif isinstance(value, type) or inspect.isbuiltin(value):
        say(f"{value.__module__}.{value.__qualname__}".encode())
        _tell(_source(value), say, seen)
    elif hasattr(value, "__dict__"):
        say(type(value).__qualname__.encode())
        _tell([_source(type(value)), dict(vars(value))], say, seen)
    else:
        try:
            say(pickle.dumps(value))
        except Exception:  # what cannot be told apart by its value is by its type
            say(type(value).__qualname__.encode())


def _source(value: Any) -> str | None:
    try:
        return inspect.getsource(value)
    except (
        OSError,
        TypeError,
        SyntaxError,
        tokenize.TokenError,
    ):  # also of a file that has changed
        return None
