"""Queries that lean towards places whose class is known: a linear probe that begins at the words.

Few-shot adaptation of a frozen model usually trains a classifier of its features from nothing. Here
what the words say stands first, as the mean of a prior, and places only move it: the logits of a
class get an offset and a direction, both drawn to zero, and a direction the more so the more the
scene itself varies along it. So a few places change what is like them and little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.optimize
import scipy.special

from geoseg.store.pool import Survey
from geoseg.text.vocabulary import VocabularyClass
from geoseg.types import FloatArray

Numbers = npt.NDArray[np.float64]

SPREADS = (0.4, 0.8, 1.2)
"""How far places may move the log odds of a usual pixel, as a standard deviation; those tried."""
_FREE, _MOST = (4.0, 12.0), 0.5
"""Those tried where words fail, and so many of the left-out places are told wrong with the others:
they have to tell as many right."""
UNTRIED = 0.8
"""Where no class has two places, so that leaving one out says nothing."""
_OFFSET = 0.4
"""Standard deviation of what a class gains or loses everywhere, in log odds."""
_ROUND = 0.5
"""How far the scene's covariance is drawn towards a ball's."""
_CHANCE = 0.5
"""Standard errors by which a wider spread has to tell left-out places better."""
_FOLDS = 20
_DIGITS = 6


@dataclass(frozen=True, eq=False)
class Places:
    """Places whose class is known."""

    truth: npt.NDArray[np.int64]
    """``(n,)`` class of each."""
    logits: Numbers
    """``(n, K)`` cosine logit that each class has there, offsets included."""
    looks: Numbers
    """``(n, D)`` mean token of each."""


@dataclass(frozen=True, eq=False)
class Lean:
    """What is added to the cosine logits of each class: ``look @ direction + offset``."""

    offsets: Numbers
    """``(K,)``."""
    directions: Numbers
    """``(K, D)``."""

    def classes(
        self, some: Sequence[VocabularyClass], words: FloatArray, scene: Numbers
    ) -> tuple[VocabularyClass, ...]:
        """The same classes, with this in their examples and offsets.

        Queries are of unit length, so that a class's change by a factor too; its offset makes good
        for that where the scene looks as it does on average.

        Parameters
        ----------
        some
            The classes.
        words
            ``(N, D)`` unit vectors of all their prompts.
        scene
            ``(D,)`` mean token of the scene.
        """
        made, first = [], 0
        for entry, offset, direction in zip(some, self.offsets, self.directions, strict=True):
            own = words[first : first + len(entry.prompts)].astype(np.float64)
            first += len(entry.prompts)
            if not (offset or direction.any()):
                made.append(entry)
                continue
            kept, share = 1 - entry.share, entry.share
            if not entry.prompts:
                own, kept, share = np.zeros((1, len(direction))), 0.0, 1.0
            elif not entry.example:
                kept, share = 1.0, 0.0
            pull = share * np.array(entry.example or 0.0)
            before = kept * own + pull
            vector = pull + np.linalg.norm(before, axis=1).mean() * direction
            after = kept * own + vector
            old, new = (v @ scene / np.linalg.norm(v, axis=1) for v in (before, after))
            gained = float(offset + direction @ scene + np.mean(old - new))
            changed = replace(
                entry, offset=float(np.clip(round(entry.offset + gained, _DIGITS), -1, 1))
            )
            part = float(np.linalg.norm(vector))
            if part:
                example = tuple(np.round(vector / part, _DIGITS).tolist())
                share = round(part / (part + kept), _DIGITS)
                changed = replace(changed, example=example, share=share)
            made.append(changed)
        return tuple(made)


@dataclass(frozen=True)
class Found:
    """What left-out places say of a spread."""

    spread: float
    """0 where the words are best as they are."""
    before: float
    """Part of the places that the words tell right."""
    after: float
    """Part that is told right where each is left out in turn."""


class Probe:
    """Learns from places how classes should lean.

    Parameters
    ----------
    places
        What is known.
    survey
        What the scene looks like.
    scale
        Of cosine logits, before the softmax.
    """

    def __init__(self, places: Places, survey: Survey, scale: float) -> None:
        self._places, self._scale, self._mean = places, scale, survey.mean
        size = len(survey.mean)
        outside = np.eye(size) - np.outer(survey.cls, survey.cls)
        spread = outside @ survey.covariance @ outside
        ball = max(np.trace(spread) / size, np.finfo(float).tiny)
        factor = np.linalg.cholesky((1 - _ROUND) * spread + _ROUND * ball * np.eye(size))
        white = scipy.linalg.solve_triangular(factor, outside, lower=True)
        # A usual pixel of the scene is one long.
        self._white = white / np.sqrt(max(np.trace(white @ spread @ white.T), 1e-12))

    def best(self) -> Found:
        """The spread that left-out places speak for.

        None where the words tell all right, nor one with which the places of any class are told
        worse; of the others the least that is about as likely as the likeliest.
        """
        truth = self._places.truth
        told = {0.0: self._told(self._places.logits)}
        if told[0.0][1].all():
            return Found(0.0, 1.0, 1.0)
        wanted, best = np.bincount(truth, told[0.0][1]), 0.0
        for spreads, least in ((SPREADS, 0.0), (_FREE, _MOST)):
            for spread in spreads:
                likely, right = self._told(self._left_out(spread))
                if right.mean() >= least and (np.bincount(truth, right) >= wanted).all():
                    told[spread] = likely, right
            likeliest = max((likely for likely, _ in told.values()), key=np.sum)
            best = next(spread for spread, one in told.items() if not _behind(one[0], likeliest))
            if told[best][1].mean() >= _MOST:
                break
        return Found(best, *(float(np.mean(told[spread][1])) for spread in (0.0, best)))

    def lean(self, spread: float) -> Lean:
        """What all places make of the classes; nothing with a spread of 0."""
        classes, size = self._places.logits.shape[1], len(self._mean)
        if not spread:
            return Lean(np.zeros(classes), np.zeros((classes, size)))
        at, meaning = self._coordinates(spread)
        moved = meaning.T @ self._fit(at, np.ones(len(at), bool)) / self._scale
        directions = moved[1:].T @ self._white * spread
        return Lean(moved[0] * _OFFSET - directions @ self._mean, directions)

    def _coordinates(self, spread: float) -> tuple[Numbers, Numbers]:
        """Places in as few numbers ``(n, r)`` as tell them apart, and what each means."""
        looks = (self._places.looks - self._mean) @ self._white.T
        known = np.column_stack([np.full(len(looks), _OFFSET), spread * looks])
        left, lengths, meaning = np.linalg.svd(known, full_matrices=False)
        return left * lengths, meaning

    def _fit(self, at: Numbers, some: npt.NDArray[np.bool_]) -> Numbers:
        """Most likely ``(r, K)`` of independent normal ones, by what some places are."""
        own, truth = at[some], self._places.truth[some]
        logits = self._places.logits[some] * self._scale
        wanted = np.eye(logits.shape[1])[truth]

        def cost(flat: Numbers) -> tuple[float, Numbers]:
            moved = logits + own @ flat.reshape(-1, logits.shape[1])
            likely = scipy.special.log_softmax(moved, axis=1)
            slope = own.T @ (np.exp(likely) - wanted)
            return float(flat @ flat / 2 - (likely * wanted).sum()), slope.ravel() + flat

        shape = at.shape[1], logits.shape[1]
        start = np.zeros(shape[0] * shape[1])
        found = scipy.optimize.minimize(cost, start, jac=True, method="L-BFGS-B")
        return np.asarray(found.x.reshape(shape))

    def _left_out(self, spread: float) -> Numbers:
        """Logits ``(n, K)`` of places by what the others make of the classes."""
        at, _ = self._coordinates(spread)
        found, folds = np.empty_like(self._places.logits), min(len(at), _FOLDS)
        for fold in range(folds):
            out = np.arange(len(at)) % folds == fold
            moved = at[out] @ self._fit(at, ~out) / self._scale
            found[out] = self._places.logits[out] + moved
        return found

    def _told(self, logits: Numbers) -> tuple[Numbers, npt.NDArray[np.bool_]]:
        """Log likelihood of the class of each place, and whether it is the likeliest."""
        truth = self._places.truth
        likely = scipy.special.log_softmax(logits * self._scale, axis=1)
        return likely[np.arange(len(truth)), truth], logits.argmax(1) == truth


def _behind(some: Numbers, best: Numbers) -> bool:
    """Whether one likelihood of places is less than another by more than chance."""
    less = best - some
    error = less.std(ddof=1) / np.sqrt(len(less)) if len(less) > 1 else 0.0
    return bool(less.mean() > _CHANCE * error)
