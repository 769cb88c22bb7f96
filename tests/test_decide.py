"""Logits become classes: against the rule written pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import OptionError
from geoseg.inference.decide import Decision, lead, resize_logits
from geoseg.inference.steps import AlsoCls, ClsBias
from geoseg.options import Options
from geoseg.text.queries import Queries
from geoseg.text.vocabulary import Vocabulary

CPU = torch.device("cpu")
POOLS: dict[str, Any] = {"max": np.max, "mean": np.mean, "sum": np.sum}


def slow(decision: Decision, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and winning scores of ``(N, Q)`` logits, one pixel after another."""
    scores, labels, best = [], [], []
    offsets = 0 if decision.offsets is None else decision.offsets.numpy()
    for pixel in logits:
        power = np.exp(decision.logit_scale * (pixel + offsets))
        shares = power / power.sum()
        own = [
            POOLS[decision.pool](shares[decision.query_classes.numpy() == k])
            for k in range(decision.classes + decision.hidden)
        ]
        label = int(np.argmax(own[: decision.classes]))
        winner = own[label]
        below = decision.thresholds is not None and winner < decision.thresholds[label]
        if below or (decision.hidden and winner < own[-1]):
            label = decision.background
        scores.append(own)
        labels.append(label)
        best.append(winner)
    return np.array(scores), np.array(labels), np.array(best)


@given(st.data())
def test_any_decision_follows_the_rule(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 4))
    hidden = data.draw(st.booleans())
    extra = data.draw(st.lists(st.integers(0, classes - 1 + hidden), max_size=4))
    of = data.draw(st.permutations([*range(classes + hidden), *extra]))
    numbers = np.random.default_rng(data.draw(st.integers(0, 1000)))
    decision = Decision(
        query_classes=torch.tensor(of),
        classes=classes,
        logit_scale=data.draw(st.sampled_from([1.0, 30.0])),
        thresholds=(
            torch.from_numpy(numbers.random(classes).astype(np.float32))
            if data.draw(st.booleans())
            else None
        ),
        background=data.draw(st.integers(0, classes - 1)),
        offsets=(
            torch.from_numpy(numbers.normal(0, 0.05, len(of)).astype(np.float32))
            if data.draw(st.booleans())
            else None
        ),
        hidden=hidden,
        pool=data.draw(st.sampled_from(["max", "mean", "sum"])),
    )
    logits = numbers.normal(0, 0.1, (12, len(of))).astype(np.float32)
    scores, labels, best = slow(decision, logits.astype(np.float64))
    found = decision.scores(torch.from_numpy(logits).reshape(3, 4, -1))
    np.testing.assert_allclose(found.reshape(12, -1), scores, atol=2e-6)
    found_labels, found_best = decision.labels(found)
    np.testing.assert_array_equal(found_labels.flatten(), labels)
    np.testing.assert_allclose(found_best.flatten(), best, atol=2e-6)
    ranks = np.sort(scores, axis=-1)
    ahead = ranks[:, -1] - ranks[:, -2] if scores.shape[-1] > 1 else np.zeros(12)
    np.testing.assert_allclose(lead(found).flatten(), ahead, atol=2e-6)


def test_ties_go_to_the_first_class_and_what_just_holds_holds() -> None:
    decision = Decision(torch.tensor([0, 1, 2]), 2, 1.0, torch.tensor([0.25, 0.5]), 0, hidden=True)
    scores = torch.tensor([[0.3, 0.3, 0.1], [0.1, 0.5, 0.2], [0.1, 0.5, 0.5], [0.2, 0.49, 0.1]])
    labels, _ = decision.labels(scores)
    assert labels.tolist() == [0, 1, 1, 0]
    assert lead(scores[:, :2]).tolist()[0] == 0


def of(words: str, **options: Any) -> Decision:
    vocabulary = Vocabulary.parse(words)
    queries = Queries.of(vocabulary, lambda texts: np.eye(len(texts), 8, dtype=np.float32))
    return Decision.of(queries, vocabulary, Options(**options).resolve({}), CPU)


def test_thresholds_of_classes_go_before_the_general_one() -> None:
    assert of("a; b").thresholds is None
    general = of("a; b", threshold=0.25, background="b")
    assert general.thresholds is not None
    assert general.thresholds.tolist() == [0.25, 0.25]
    assert general.background == 1
    assert general.offsets is None
    first, second = Vocabulary.parse("a; b").classes
    vocabulary = Vocabulary((replace(first, threshold=0.5, offset=0.5), second))
    queries = Queries.of(vocabulary, lambda texts: np.eye(len(texts), 8, dtype=np.float32))
    for threshold, expected in ((None, [0.5, 0.0]), (0.25, [0.5, 0.25])):
        options = Options(threshold=threshold).resolve({})
        own = Decision.of(queries, vocabulary, options, CPU)
        assert own.thresholds is not None
        assert own.thresholds.tolist() == expected
        assert own.offsets is not None
        assert own.offsets.tolist() == [0.5, 0.0]
        assert own.background == 0


def test_a_background_that_is_no_class_is_refused() -> None:
    with pytest.raises(OptionError, match="lava"):
        of("a; b", threshold=0.5, background="lava")


def test_logits_are_resized_between_the_centres_of_pixels() -> None:
    logits = torch.tensor([[[0.0], [4.0]]])
    assert resize_logits(logits, (2, 4)).squeeze(-1).tolist() == [[0.0, 1.0, 3.0, 4.0]] * 2


def test_steps_of_a_window() -> None:
    logits, cls = torch.rand(2, 3, 4, 5), torch.rand(2, 5)
    features: Any = None
    expected = logits - 0.3 * cls.reshape(2, 1, 1, 5)
    torch.testing.assert_close(ClsBias(0.3)(logits.clone(), cls, features, logits), expected)
    assert torch.equal(ClsBias(0)(logits.clone(), cls, features, logits), logits)
    both = AlsoCls()(logits, cls, features, logits)
    assert torch.equal(both[..., :5], logits)
    assert torch.equal(both[..., 5:], cls.reshape(2, 1, 1, 5).expand(2, 3, 4, 5))
