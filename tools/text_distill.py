"""Teach the text tower a sentence encoder's sense of words, so that it knows more than our classes.

The teacher's vectors are centred and reduced to the tower's width by PCA; the tower learns to give
each word or phrase its vector, alone and inside every prompt template. It is locked afterwards.

``python -m tools.text_distill WORK`` writes ``WORK/text_tower.pt``.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from geoseg.text.templates import load_templates
from tools import phrases, teacher
from tools.scenes import HELD_OUT_WORDS, WORDS
from tools.tiny_model import EMBEDDING, build, model_config, text_state

log = logging.getLogger(__name__)

Embedder = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Targets:
    """What every text should become."""

    texts: list[str]
    vectors: Tensor
    """``(N, D)`` unit rows."""
    words: int
    """The first so many texts are single words."""


def make_targets(work: Path) -> Targets:
    """Reduce the teacher's vectors to the tower's width; cached in the work folder."""
    words, more = phrases.whole_words(), phrases.phrases()
    cache = work / "teacher_vectors.pt"
    if not cache.exists():
        torch.save(teacher.embed(words + more), cache)
    raw = torch.load(cache, weights_only=True)
    # The field's phrases weigh more than the whole language in what the few dimensions keep.
    weight = torch.ones(len(raw), 1)
    weight[len(words) :] = 2.0
    mean = (raw * weight).sum(0) / weight.sum()
    centred = raw - mean
    covariance = (centred * weight).T @ centred
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors[:, -EMBEDDING:]
    log.info("%.0f %% of the variance kept", 100 * float(values[-EMBEDDING:].sum() / values.sum()))
    return Targets(words + more, F.normalize(centred @ basis, dim=-1), len(words))


class _Sampler:
    """Batches of texts in templates, with their targets."""

    def __init__(self, targets: Targets, seed: int) -> None:
        self._targets = targets
        self._random = torch.Generator().manual_seed(seed)
        self._templates = (*load_templates("imagenet"), *load_templates("remote-sensing"))
        class_words = {word for words in WORDS.values() for word in words}
        place = {text: i for i, text in enumerate(targets.texts)}
        self._class_words = torch.tensor([place[word] for word in sorted(class_words)])

    def _integers(self, high: int, count: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, (count,), generator=self._random)

    def batch(self, size: int) -> tuple[list[str], Tensor]:
        """Half words, three eighths phrases, one eighth class words; 70 % of them in a template."""
        total = len(self._targets.texts)
        known = self._class_words[self._integers(len(self._class_words), size // 8)]
        more = self._integers(total, 3 * size // 8, self._targets.words)
        words = self._integers(self._targets.words, size - len(known) - len(more))
        index = torch.cat([words, more, known])
        kinds = self._integers(len(self._templates), size)
        framed = torch.rand(size, generator=self._random) < 0.7
        texts = [
            self._templates[int(k)].format(self._targets.texts[int(i)]) if inside
            else self._targets.texts[int(i)]
            for i, k, inside in zip(index, kinds, framed, strict=True)
        ]  # fmt: skip
        return texts, self._targets.vectors[index]


def encode_short(model: CLIP, tokens: Tensor) -> Tensor:
    """open_clip's ``encode_text`` on no more positions than the longest text has."""
    length = int((tokens != 0).sum(1).max())
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    return x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection


def start_from_teacher(model: CLIP, targets: Targets) -> None:
    """Whole-word tokens begin at their vector, the projection as identity."""
    ids = SimpleTokenizer().encoder
    with torch.no_grad():
        model.token_embedding.weight.mul_(0.5)
        for text, vector in zip(targets.texts[: targets.words], targets.vectors, strict=False):
            token = ids.get(f"{text}</w>")
            if token is not None:
                model.token_embedding.weight[token] = 0.3 * vector
        model.text_projection.copy_(torch.eye(EMBEDDING))


def distill(model: CLIP, targets: Targets, steps: int, seed: int = 0, batch: int = 256) -> None:
    """Train the text tower; prints the word test now and then."""
    tokenizer = SimpleTokenizer()
    sampler = _Sampler(targets, seed)
    parameters = [
        p for name, p in model.named_parameters()
        if not name.startswith("visual.") and name != "logit_scale"
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, fused=True)
    start = time.monotonic()
    for step in range(steps):
        rate = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate + 1e-5
        texts, wanted = sampler.batch(batch)
        found = F.normalize(encode_short(model, tokenizer(texts)), dim=-1)
        distance = 1 - (found * wanted).sum(1).mean()
        same = F.cross_entropy(20 * found @ wanted.T, torch.arange(len(texts)))
        loss = distance + 0.2 * same
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            right, total, _ = word_test(embedder(model))
            log.info(
                "step %d, %.0f s: cosine %.3f, contrast %.3f, held-out words %d of %d",
                step + 1, time.monotonic() - start, 1 - distance.item(), same.item(), right, total,
            )  # fmt: skip


def embedder(model: CLIP, templates: Sequence[str] = ("{}",)) -> Embedder:
    """Return a function from words to unit vectors, averaged over templates as geoseg does."""
    tokenizer = SimpleTokenizer()

    @torch.no_grad()
    def embed(words: Sequence[str]) -> Tensor:
        total = torch.zeros(len(words), EMBEDDING)
        for template in templates:
            filled = tokenizer([template.format(word) for word in words])
            total += F.normalize(encode_short(model, filled).float(), dim=-1)
        return F.normalize(total, dim=-1)

    return embed


def word_test(embed: Embedder) -> tuple[int, int, list[str]]:
    """Of the held-out words, how many are nearest to one of the words of their own class?

    Returns
    -------
    tuple
        Right ones, all, and the misses as ``word -> class``.
    """
    covers = list(WORDS)
    owners = torch.tensor([i for i, cover in enumerate(covers) for _ in WORDS[cover]])
    known = embed([word for cover in covers for word in WORDS[cover]])
    misses, total = [], 0
    for i, cover in enumerate(covers):
        nearest = owners[(embed(HELD_OUT_WORDS[cover]) @ known.T).argmax(1)]
        for word, found in zip(HELD_OUT_WORDS[cover], nearest, strict=True):
            total += 1
            if int(found) != i:
                misses.append(f"{word} -> {WORDS[covers[int(found)]][0]}")
    return total - len(misses), total, misses


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    log.info("teacher: %d of %d held-out words", *word_test(teacher.embed)[:2])
    targets = make_targets(options.work)
    model = build(model_config())
    start_from_teacher(model, targets)
    distill(model, targets, options.steps, options.seed)
    for name in ("imagenet", "remote-sensing"):
        right, total, misses = word_test(embedder(model, load_templates(name)))
        log.info("%s templates: %d of %d; misses: %s", name, right, total, ", ".join(misses))
    torch.save(text_state(model), options.work / "text_tower.pt")


if __name__ == "__main__":
    main()
