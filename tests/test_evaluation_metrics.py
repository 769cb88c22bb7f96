"""Scores from counts against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from geoseg.evaluation.metrics import (
    IGNORE,
    BoundaryCounts,
    ConfidenceCounts,
    Scores,
    confusion_matrix,
)

NAMES = tuple("abcdefgh")


def draw(seed: int, classes: int, shape: tuple[int, int] = (40, 53), ignored: float = 0.1):
    """Truth and prediction that agree often, with ignored pixels in both."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape).astype(np.int32)
    predicted = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes, shape))
    truth[rng.random(shape) < ignored] = IGNORE
    predicted[rng.random(shape) < ignored / 2] = IGNORE
    return truth, predicted.astype(np.int32)


def patches(seed: int, classes: int, shape: tuple[int, int] = (61, 47)):
    """Blobs instead of noise: areas with outlines."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.random(shape), 3) for _ in range(classes)]
    truth = np.argmax(fields, axis=0).astype(np.int32)
    moved = np.argmax([f + ndimage.gaussian_filter(rng.random(shape), 2) for f in fields], axis=0)
    truth[rng.random(shape) < 0.02] = IGNORE
    return truth, moved.astype(np.int32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 8), ignored=st.floats(0, 0.9))
def test_scores_equal_scikit_learn(seed: int, classes: int, ignored: float) -> None:
    truth, predicted = draw(seed, classes, ignored=ignored)
    counted = (truth != IGNORE) & (predicted != IGNORE)
    t, p = truth[counted], predicted[counted]
    labels = range(classes)

    matrix = confusion_matrix(truth, predicted, classes)
    got = Scores.from_confusion(matrix, NAMES[:classes])

    assert np.array_equal(matrix, sk.confusion_matrix(t, p, labels=labels))
    assert got.accuracy == pytest.approx(sk.accuracy_score(t, p), abs=1e-9)
    assert got.kappa == pytest.approx(sk.cohen_kappa_score(t, p), abs=1e-9)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        t, p, labels=labels, zero_division=np.nan
    )
    iou = sk.jaccard_score(t, p, labels=labels, average=None, zero_division=0)
    present = [i for i in labels if (t == i).any() or (p == i).any()]
    for i, entry in enumerate(got.classes):
        assert entry.support == support[i]
        if i in present:
            assert entry.iou == pytest.approx(iou[i], abs=1e-9)
            assert entry.f1 == pytest.approx(f1[i], abs=1e-9)
            assert entry.precision == pytest.approx(precision[i], abs=1e-9, nan_ok=True)
            assert entry.recall == pytest.approx(recall[i], abs=1e-9, nan_ok=True)
    true_classes = [i for i in labels if (t == i).any()]
    assert got.miou == pytest.approx(np.mean(iou[true_classes]), abs=1e-9)
    assert got.miou_mmseg == pytest.approx(np.mean(iou[present]), abs=1e-9)


def test_a_class_absent_in_truth_and_prediction_is_left_out_of_the_means() -> None:
    truth = np.array([[0, 0, 1, 1]], np.int32)
    predicted = np.array([[0, 1, 1, 1]], np.int32)
    got = Scores.from_confusion(confusion_matrix(truth, predicted, 3), NAMES[:3])
    assert math.isnan(got.classes[2].iou)
    assert got.miou == got.miou_mmseg == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_class_only_predicted_counts_for_mmseg_but_not_for_the_truth_mean() -> None:
    truth = np.array([[0, 0, 1, 1]], np.int32)
    predicted = np.array([[0, 2, 1, 1]], np.int32)
    got = Scores.from_confusion(confusion_matrix(truth, predicted, 3), NAMES[:3])
    assert got.classes[2].iou == 0
    assert got.miou == pytest.approx((1 / 2 + 1) / 2)
    assert got.miou_mmseg == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_nothing_to_compare_gives_nan_and_no_warning() -> None:
    empty = np.full((3, 3), IGNORE, np.int32)
    got = Scores.from_confusion(confusion_matrix(empty, empty, 2), NAMES[:2])
    assert got.pixels == 0
    assert all(math.isnan(x) for x in (got.accuracy, got.kappa, got.miou, got.miou_mmseg))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 60))
def test_counts_of_windows_add_up(seed: int, cut: int) -> None:
    truth, predicted = patches(seed, 4)
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 101, truth.shape)
    whole, parts = ConfidenceCounts(), ConfidenceCounts()
    whole.add(confidence, truth, predicted)
    for rows in (slice(None, cut), slice(cut, None)):
        parts.add(confidence[rows], truth[rows], predicted[rows])
    assert np.array_equal(whole.pixels, parts.pixels)
    assert np.array_equal(whole.correct, parts.correct)


def test_calibration_follows_its_definition() -> None:
    truth, predicted = draw(3, 4, (200, 200))
    confidence = np.random.default_rng(5).integers(0, 101, truth.shape)
    confidence[:10] = 255
    counts = ConfidenceCounts()
    counts.add(confidence, truth, predicted)

    counted = (truth != IGNORE) & (predicted != IGNORE) & (confidence <= 100)
    right = (truth == predicted)[counted]
    share = confidence[counted] / 100
    bins = np.minimum((share * 10).astype(int), 9)
    expected = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - share[bins == b].mean())
        for b in range(10)
    )
    assert counts.expected_calibration_error() == pytest.approx(expected, abs=1e-9)
    assert sum(each.pixels for each in counts.reliability()) == counted.sum()
    assert counts.reliability()[-1].high == 1


def test_most_confident_pixels_are_scored_with_ties_shared() -> None:
    counts = ConfidenceCounts()
    truth = np.zeros((1, 10), np.int32)
    predicted = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]], np.int32)
    counts.add(np.array([[90, 90, 90, 90, 80, 80, 80, 80, 10, 10]]), truth, predicted)
    assert counts.accuracy_of_most_confident(0.4) == 1
    # Half of the tie at 80 is taken, none of it right.
    assert counts.accuracy_of_most_confident(0.6) == pytest.approx(4 / 6)
    assert counts.accuracy_of_most_confident(1) == pytest.approx(0.4)


def boundary_by_distance(index: np.ndarray, other: np.ndarray, name: int, tolerance: float):
    """Share of one outline near another, by distance transform: an independent way."""

    def edge(of: np.ndarray) -> np.ndarray:
        padded = np.pad(of, 1, constant_values=IGNORE)
        out = np.zeros(of.shape, bool)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            near = padded[dy : dy + of.shape[0], dx : dx + of.shape[1]]
            out |= (of == name) & (near != name) & (near != IGNORE)
        return out

    mine, theirs = edge(index), edge(other)
    if not mine.any():
        return math.nan
    if not theirs.any():
        return 0.0
    return float((ndimage.distance_transform_edt(~theirs)[mine] <= tolerance).mean())


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 3])
@pytest.mark.parametrize("classes", [2, 5])
def test_boundary_score_equals_distance_transforms(classes: int, tolerance: float) -> None:
    truth, predicted = patches(11, classes)
    predicted = np.where(truth == IGNORE, IGNORE, predicted)
    counts = BoundaryCounts(classes, tolerance)
    counts.add(truth, predicted)
    for i, got in enumerate(counts.scores(NAMES[:classes])):
        precision = boundary_by_distance(predicted, truth, i, tolerance)
        recall = boundary_by_distance(truth, predicted, i, tolerance)
        assert got.precision == pytest.approx(precision, nan_ok=True)
        assert got.recall == pytest.approx(recall, nan_ok=True)
        assert got.f1 == pytest.approx(
            2 * precision * recall / (precision + recall) if precision + recall else 0
        )


def test_boundary_score_of_many_classes() -> None:
    rng = np.random.default_rng(0)
    truth = np.kron(rng.permutation(150).reshape(10, 15), np.ones((6, 6), int)).astype(np.int32)
    predicted = np.roll(truth, 2, axis=1)
    counts = BoundaryCounts(150, 1)
    counts.add(truth, predicted)
    for name in (0, 63, 64, 127, 128, 149):
        expected = boundary_by_distance(predicted, truth, name, 1)
        assert counts.predicted_hits[name] / counts.predicted[name] == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    row=st.integers(1, 59),
    col=st.integers(1, 45),
    tolerance=st.sampled_from([0, 1, 2.5, 4]),
)
def test_boundary_windows_with_halo_equal_the_whole(
    seed: int, row: int, col: int, tolerance: float
) -> None:
    truth, predicted = patches(seed, 3)
    whole, parts = BoundaryCounts(3, tolerance), BoundaryCounts(3, tolerance)
    whole.add(truth, predicted)
    height, width = truth.shape
    halo = parts.halo
    for top, bottom in ((0, row), (row, height)):
        for left, right in ((0, col), (col, width)):
            y, x = max(top - halo, 0), max(left - halo, 0)
            read = (slice(y, bottom + halo), slice(x, right + halo))
            core = (slice(top - y, bottom - y), slice(left - x, right - x))
            parts.add(truth[read], predicted[read], core)
    for name in ("predicted", "predicted_hits", "true", "true_hits"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
