"""From averaged logits to labels and class scores."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.options import Resolved
from geoseg.options.scorer import Activation
from geoseg.text.queries import Pool, Queries
from geoseg.text.vocabulary import Vocabulary

_LEAST = 1e-30
"""What a sum of probabilities is taken for, where it is next to nothing."""
_REDUCTIONS: dict[Pool, str] = {"max": "amax", "mean": "mean", "sum": "sum"}


@dataclass(frozen=True)
class Decision:
    """How averaged logits become classes."""

    query_classes: Tensor
    """``(Q,)`` int64: class of each query; ``classes`` for the hidden background."""
    classes: int
    logit_scale: float
    thresholds: Tensor | None
    """``(K,)`` least probability for a class to hold; None for no threshold."""
    background: int
    """Class of pixels that none holds: below the threshold, or a hidden query is best."""
    offsets: Tensor | None = None
    """``(Q,)`` added to the logits before the scale, or None."""
    hidden: bool = False
    """Whether there are queries of a hidden background."""
    pool: Pool = "max"
    """How the probabilities of a class's queries make its score."""
    activation: Activation = "softmax"
    """What makes probabilities of the scaled logits."""
    by_logits: bool = False
    """Of a scorer without thresholds: the best logit's class holds, no matter how it is rounded."""

    @classmethod
    def of(
        cls, queries: Queries, vocabulary: Vocabulary, options: Resolved, device: torch.device
    ) -> Decision:
        """Decide between the classes of a vocabulary.

        Raises
        ------
        OptionError
            If the background is not one of the classes.
        """
        names = vocabulary.names
        background = names[0] if options.background is None else options.background
        if background not in names:
            raise OptionError(
                f"background {background!r} is not one of the classes: {', '.join(names)}"
            )
        own = [c.threshold for c in vocabulary.classes]
        thresholds = None
        if options.threshold is not None or any(t is not None for t in own):
            general = options.threshold or 0.0
            thresholds = torch.tensor(
                [general if t is None else t for t in own], device=device, dtype=torch.float32
            )
        offsets = torch.from_numpy(queries.offset).to(device)
        return cls(
            query_classes=torch.from_numpy(queries.class_of).long().to(device),
            classes=len(names),
            logit_scale=options.logit_scale,
            thresholds=thresholds,
            background=names.index(background),
            offsets=offsets if offsets.any() else None,
            hidden=queries.hidden,
            pool=queries.pool,
        )

    def __call__(self, logits: Tensor) -> Decided:
        """Decide what pixels with these averaged logits ``(..., Q)`` are."""
        return Decided(self, logits)

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Class of the best of ``(..., K)`` logits, and that logit; one query a class."""
        best, labels = (logits if self.offsets is None else logits + self.offsets).max(-1)
        return labels, best

    def scores(self, logits: Tensor) -> Tensor:
        """Activation (a softmax) over queries, then what a class's queries make of it together.

        Returns
        -------
        torch.Tensor
            ``(..., K)`` in [0, 1]; a column more for a hidden background.
        """
        if self.offsets is not None:
            logits = logits + self.offsets
        if self.activation != "softmax":  # of a scorer, which has one query a class
            scaled = self.logit_scale * logits
            return scaled.sigmoid() if self.activation == "sigmoid" else scaled.clamp(0, 1)
        # Over the first dimension a softmax is several times as fast as over a short last one.
        probabilities = (self.logit_scale * logits).movedim(-1, 0).softmax(0).movedim(0, -1)
        if self._one_query_each:
            return probabilities
        if self.pool == "max" and self._in_order is not None:
            # Several times as fast, for the same largest values.
            planes = torch.split(probabilities.movedim(-1, 0), self._in_order)
            return torch.stack([some.amax(0) for some in planes]).movedim(0, -1)
        index = self.query_classes.expand(probabilities.shape)
        scores = probabilities.new_zeros(*probabilities.shape[:-1], self.classes + self.hidden)
        return scores.scatter_reduce(
            -1, index, probabilities, _REDUCTIONS[self.pool], include_self=False
        )

    @functools.cached_property
    def _one_query_each(self) -> bool:
        return self.query_classes.tolist() == list(range(self.classes + self.hidden))

    @functools.cached_property
    def _in_order(self) -> list[int] | None:
        """How many queries each class has, if they come class by class and each has some."""
        classes = self.query_classes.tolist()
        counts = [classes.count(number) for number in range(self.classes + self.hidden)]
        return counts if classes == sorted(classes) and all(counts) else None

    def labels(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Class index and winning score of each pixel, the first class on ties."""
        best, labels = scores[..., : self.classes].max(-1)
        if self.thresholds is not None:
            labels = labels.where(best >= self.thresholds[labels], self.background)
        if self.hidden:
            labels = labels.where(best >= scores[..., -1], self.background)
        return labels, best


@dataclass(frozen=True, kw_only=True)
class FusedDecision(Decision):
    """How averaged logits of words, and beside them averaged scores of a scorer, become classes.

    Both sides make probabilities by themselves: a class's is its words' share of the sum over all
    classes, and what the scorer's activation makes of its score. Their weighted mean decides.

    A scorer need not know all classes. Between those that it does not have the words alone decide:
    after a softmax, which only tells its own classes from each other, its classes share among them
    what the words give to all of them, and the others stay as the words have them. Other
    activations say how likely a class is: what is left of 1 goes to the other classes, in the
    proportions that the words have. With weight 1 a scorer of all classes is alone.
    """

    said: Decision
    """Of the scorer; one score a class that it has."""
    weight: float
    """Of the scorer, in (0, 1]."""
    has: Tensor
    """``(S,)`` int64: class of each of its scores, ascending."""

    def __call__(self, logits: Tensor) -> Decided:
        """Decide what pixels with these ``(..., Q + S)`` logits and scores are."""
        if self.weight == 1 and len(self.has) == self.classes:
            return self.said(logits[..., len(self.query_classes) :])
        return super().__call__(logits)

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities ``(..., K)`` of both together; a column more for a hidden background."""
        queries, share = len(self.query_classes), self.weight
        words = super().scores(logits[..., :queries])
        words = words / words.sum(-1, keepdim=True)
        said = self.said.scores(logits[..., queries:])
        own = words.index_select(-1, self.has)
        if self.said.activation == "softmax":
            said = said * own.sum(-1, keepdim=True)
        else:
            others = words.clone().index_fill_(-1, self.has, 0).sum(-1, keepdim=True)
            left = (1 - said.sum(-1, keepdim=True)).clamp_min(0)
            words = words * (1 - share + share * left / others.clamp_min(_LEAST))
        return words.index_copy(-1, self.has, (1 - share) * own + share * said)


class Decided:
    """What some pixels are; only what is asked for is worked out."""

    def __init__(self, decision: Decision, logits: Tensor) -> None:
        self._decision, self._logits = decision, logits

    @functools.cached_property
    def _all_scores(self) -> Tensor:
        return self._decision.scores(self._logits)

    @functools.cached_property
    def _labels(self) -> tuple[Tensor, Tensor]:
        if self._decision.by_logits:
            return self._decision.best(self._logits)
        return self._decision.labels(self._all_scores)

    @property
    def labels(self) -> Tensor:
        """``(...)`` class index."""
        return self._labels[0]

    @property
    def finite(self) -> Tensor:
        """Whether all logits are that decide; bool, of no dimension."""
        return self._labels[1].isfinite().all()

    @property
    def all_scores(self) -> Tensor:
        """``(..., K)`` in [0, 1]; a column more for a hidden background."""
        return self._all_scores

    @property
    def scores(self) -> Tensor:
        """``(..., K)`` in [0, 1]."""
        return self._all_scores[..., : self._decision.classes]

    @property
    def confidence(self) -> Tensor:
        """``(...)`` the best score."""
        return self.scores.amax(-1) if self._decision.by_logits else self._labels[1]


def lead(scores: Tensor) -> Tensor:
    """By how much the best of ``(..., K)`` scores is ahead of the second; 0 without one."""
    best, index = scores.max(-1)
    if scores.shape[-1] == 1:
        return torch.zeros_like(best)
    return best - scores.scatter(-1, index[..., None], -torch.inf).amax(-1)


def runner_up(scores: Tensor, labels: Tensor) -> Tensor:
    """Class of ``(..., K)`` scores that is best but for the label itself."""
    return scores.scatter(-1, labels[..., None], -torch.inf).max(-1)[1]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(H, W, Q)`` logits bilinearly (half-pixel centres) to another size."""
    planes = logits.permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0)
