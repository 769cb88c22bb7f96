"""The original's resize, pixel by pixel against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.evaluation.resize import fitted_size, resize_image


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def compare(height: int, width: int, long_side: int) -> None:
    rgb = image(height, width)
    size = fitted_size(height, width, long_side)
    got = resize_image(rgb, size)
    reference = cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert got.shape == (*size, 3)
    assert np.abs(got.astype(int) - reference).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (300, 260, (448, 388)),  # the reference data's image
        (512, 512, (448, 448)),
        (1024, 1024, (448, 448)),
        (896, 896, (448, 448)),
        (1080, 1280, (378, 448)),
        (3000, 4000, (336, 448)),
        (1000, 1000, (448, 448)),
        (448, 299, (448, 299)),
        (1300, 650, (448, 224)),
        (333, 777, (192, 448)),
        (7, 1999, (2, 448)),
        (1500, 11, (448, 3)),
        (5, 3, (448, 269)),
    ],
)
def test_sizes_and_pixels_of_the_original(height: int, width: int, expected) -> None:
    assert fitted_size(height, width, 448) == expected
    compare(height, width, 448)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 300))
def test_any_size_is_within_a_grey_level_of_opencv(height: int, width: int, long_side: int) -> None:
    compare(height, width, long_side)


def test_other_rules() -> None:
    rgb = image(200, 100)
    assert resize_image(rgb, (50, 25), "none") is rgb
    soft = resize_image(rgb, (50, 25), "antialias")
    sharp = resize_image(rgb, (50, 25), "opencv")
    assert soft.std() < 0.7 * sharp.std()  # noise is averaged away only by antialiasing
