"""The sample tiles are what their script draws, and are usable as scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from geoseg.text.vocabulary import Vocabulary

pytest.importorskip("cv2")

from tools.make_samples import LABEL_NODATA, SAMPLES, Sample, draw_sample
from tools.scenes import class_names

FOLDER = Path(__file__).resolve().parents[1] / "sample_tiles"
each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


@each
def test_a_tile_is_what_the_script_draws(sample: Sample) -> None:
    drawn = draw_sample(sample)
    with rasterio.open(FOLDER / f"{sample.name}.tif") as scene:
        kept = scene.read()
    with rasterio.open(FOLDER / f"{sample.name}_labels.tif") as labels:
        truth = labels.read(1)
    assert kept.dtype == drawn.scene.dtype
    # Other processors round the textures' Fourier transforms differently in the last bit.
    difference = np.abs(kept.astype(int) - drawn.scene.astype(int))
    assert (difference > 2).mean() < 1e-3
    assert (truth != drawn.labels).mean() < 1e-3


@each
def test_scene_and_labels_share_their_grid(sample: Sample) -> None:
    with (
        rasterio.open(FOLDER / f"{sample.name}.tif") as scene,
        rasterio.open(FOLDER / f"{sample.name}_labels.tif") as labels,
    ):
        assert scene.crs == labels.crs
        assert scene.crs.to_epsg() == sample.epsg
        assert scene.transform == labels.transform
        assert scene.res == (sample.gsd_m, sample.gsd_m)
        assert scene.shape == labels.shape == (sample.size, sample.size)
        assert labels.nodata == LABEL_NODATA
        values = set(np.unique(labels.read(1))) - {LABEL_NODATA}
        assert values <= set(range(len(class_names())))
        assert len(values) >= 5


def test_the_tiles_differ_in_what_a_reader_must_handle() -> None:
    found = {}
    for sample in SAMPLES:
        with rasterio.open(FOLDER / f"{sample.name}.tif") as scene:
            found[sample.name] = (scene.dtypes[0], scene.count, scene.nodata, scene.crs.to_epsg())
            valid = scene.dataset_mask() > 0
        with rasterio.open(FOLDER / f"{sample.name}_labels.tif") as labels:
            np.testing.assert_array_equal(labels.read(1) != LABEL_NODATA, valid)
    assert ("uint16", 4) in {entry[:2] for entry in found.values()}
    assert sum(entry[2] is not None for entry in found.values()) == 1
    assert len({entry[3] for entry in found.values()}) == len(SAMPLES)


def test_the_class_file_is_a_vocabulary_in_pixel_order() -> None:
    vocabulary = Vocabulary.parse(FOLDER / "classes.txt")
    assert vocabulary.names == class_names()


def test_the_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4e6
