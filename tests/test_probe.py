"""Queries that lean towards places whose class is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.probe import SPREADS, Places, Probe
from geoseg.store.pool import Survey
from geoseg.text.queries import Queries
from geoseg.text.vocabulary import Vocabulary, VocabularyClass

SIZE, SCALE = 12, 40.0


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def scene(rng: np.random.Generator, count: int = 400) -> np.ndarray:
    """Tokens that vary far more along some directions than along others."""
    return unit(rng.normal(1, np.geomspace(2, 0.02, SIZE), (count, SIZE)))


def survey_of(tokens: np.ndarray) -> Survey:
    cls = unit(np.random.default_rng(9).normal(size=(3, SIZE)))
    return Survey.of(tokens.mean(0), tokens.T @ tokens / len(tokens), cls)


def places_of(rng: np.random.Generator, tokens: np.ndarray, count: int, classes: int) -> Places:
    looks = tokens[rng.choice(len(tokens), count)]
    words = unit(rng.normal(size=(classes, SIZE)))
    # What is there: another direction than the words say.
    true = unit(words + rng.normal(size=words.shape))
    return Places((looks @ true.T).argmax(1), looks @ words.T, looks)


@pytest.mark.parametrize("count", [1, 7, 90])  # fewer and more than there are directions
@pytest.mark.parametrize("spread", SPREADS)
def test_what_is_learnt_is_the_most_likely_under_the_prior(count: int, spread: float) -> None:
    rng = np.random.default_rng(count)
    tokens = scene(rng)
    known, places = survey_of(tokens), places_of(rng, tokens, count, 3)
    found = Probe(places, known, SCALE).lean(spread)

    # The same in plain words: offsets of a standard deviation of 0.4 in log odds, directions that
    # cost what they change on a usual pixel of the scene, half of it as if that were a ball.
    outside = np.eye(SIZE) - np.outer(known.cls, known.cls)
    inside = np.linalg.svd(outside)[0][:, : SIZE - 1]
    spreads = outside @ known.covariance @ outside
    drawn = (spreads + np.trace(spreads) / SIZE * np.eye(SIZE)) / 2
    usual = np.trace(outside @ np.linalg.inv(drawn) @ outside @ spreads)
    cost_of = np.linalg.inv(inside.T @ np.linalg.inv(drawn) @ inside)

    def cost(flat: np.ndarray) -> float:
        offsets, directions = flat[:3], flat[3:].reshape(3, -1)
        moved = offsets + (places.looks - known.mean) @ (directions @ inside.T).T
        likely = scipy.special.log_softmax(places.logits * SCALE + moved, axis=1)
        prior = (offsets**2).sum() / 0.4**2
        prior += usual * np.einsum("kd,de,ke->", directions, cost_of, directions) / spread**2
        return float(prior / 2 - likely[np.arange(count), places.truth].sum())

    start = np.zeros(3 * SIZE)
    right = scipy.optimize.minimize(cost, start, method="BFGS", options={"gtol": 1e-7}).x
    directions = right[3:].reshape(3, -1) @ inside.T / SCALE
    assert found.directions == pytest.approx(directions, abs=2e-4)
    assert found.offsets == pytest.approx(right[:3] / SCALE - directions @ known.mean, abs=2e-4)
    assert found.directions @ known.cls == pytest.approx(np.zeros(3), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 5))
def test_no_class_is_told_worse_than_by_the_words(seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = scene(rng)
    places = places_of(rng, tokens, count, classes)
    probe = Probe(places, survey_of(tokens), SCALE)
    found = probe.best()
    told = places.logits.argmax(1) == places.truth
    assert found.before == pytest.approx(told.mean())
    assert found.after >= found.before
    left_out = probe._left_out(found.spread) if found.spread else places.logits
    right = left_out.argmax(1) == places.truth
    assert found.after == pytest.approx(right.mean())
    assert (np.bincount(places.truth, right) >= np.bincount(places.truth, told)).all()


def test_words_that_are_right_stay_and_words_that_fail_do_not_hold_back() -> None:
    rng = np.random.default_rng(0)
    tokens = scene(rng)
    places = places_of(rng, tokens, 60, 3)
    sure = replace(places, logits=np.eye(3)[places.truth])
    assert Probe(sure, survey_of(tokens), SCALE).best().spread == 0
    wrong = replace(places, logits=np.eye(3)[(places.truth + 1) % 3] * 0.2)
    found = Probe(wrong, survey_of(tokens), SCALE).best()
    assert found.spread > max(SPREADS)
    assert found.before == 0
    assert found.after > 0.6


def test_a_scene_that_is_the_same_everywhere_teaches_nothing() -> None:
    tokens = np.repeat(unit(np.ones((1, SIZE))), 6, axis=0)
    places = Places(np.arange(6) % 2, np.zeros((6, 2)), tokens)
    lean = Probe(places, survey_of(tokens), SCALE).lean(1.2)
    assert np.isfinite(lean.directions).all()
    assert lean.offsets == pytest.approx(np.zeros(2), abs=1e-6)


@pytest.mark.parametrize("before", ["words", "words and an example", "an example"])
def test_queries_score_what_was_learnt(before: str) -> None:
    rng = np.random.default_rng(3)
    tokens = scene(rng)
    words = unit(rng.normal(size=(3, SIZE))).astype(np.float32)
    example = tuple(unit(rng.normal(size=SIZE)))
    first = VocabularyClass("a", ("a", "b"), "#000001", offset=0.01)
    if before != "words":
        first = replace(first, example=example, share=0.3)
    if before == "an example":
        first, words = replace(first, prompts=()), words[2:]
    classes = (first, VocabularyClass("c", ("c",), "#000002"))
    queries = Queries.of(Vocabulary(classes), lambda _: words)
    own = queries.class_of == 0

    def scores(queries: Queries) -> np.ndarray:
        logits = tokens @ queries.vectors.T + queries.offset
        return np.stack([logits[:, queries.class_of == k].max(1) for k in range(2)], 1)

    logits = scores(queries)
    truth = (tokens[:, 0] > np.median(tokens[:, 0])).astype(int)
    known = survey_of(tokens)
    lean = Probe(Places(truth[:40], logits[:40], tokens[:40]), known, SCALE).lean(1.2)
    made = Vocabulary(lean.classes(classes, words, known.mean))
    after = scores(Queries.of(made, lambda _: words))
    wanted = logits + tokens @ lean.directions.T + lean.offsets
    # Queries of unit length say it as nearly as these can, and all over the scene exactly.
    assert np.abs(after - wanted).max() < 0.35 * np.abs(wanted - logits).max()
    assert (after - wanted)[:, 1].mean() == pytest.approx(0, abs=1e-4)
    assert own.sum() == (1 if before == "an example" else 2)
    assert made.classes[0].prompts == first.prompts
    nothing = Probe(Places(truth[:40], logits[:40], tokens[:40]), known, SCALE).lean(0)
    assert nothing.classes(classes, words, known.mean) == classes
