"""Options refuse what cannot be when they are made, in the words of Python, and load nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import geoseg
from geoseg.errors import OptionError, on_command_line
from geoseg.options import VectorOptions

WRONG = [
    (geoseg.Options, {"threshold": 1.5}, "threshold is 1.5; give a probability from 0 to 1"),
    (geoseg.Options, {"threshold": "0.3"}, "threshold is '0.3'; give a probability"),
    (geoseg.Options, {"threshold": float("nan")}, "threshold is nan"),
    (geoseg.Options, {"threshold": 10**400}, "threshold is 1000"),
    (geoseg.Options, {"threshold": 10**9999}, "threshold is int of endless digits"),
    (geoseg.Options, {"cls_bias": -1}, "cls_bias is -1; give 0 to 1000000"),
    (geoseg.Options, {"cls_bias": True}, "cls_bias is True"),
    (geoseg.Options, {"logit_scale": 0}, "logit_scale is 0; give a value from 0.001"),
    (geoseg.Options, {"logit_scale": 1e38}, "logit_scale is 1e+38; give a value from 0.001 to 10"),
    (geoseg.Options, {"window": 224.0}, "window is 224.0; give a whole number"),
    (geoseg.Options, {"window": -1}, "window is -1; give its side in pixels"),
    (geoseg.Options, {"window": 64, "stride": 65}, "stride 65 with window 64 would leave gaps"),
    (geoseg.Options, {"stride": 0}, "stride 0 would leave gaps or not move; give 1 or more"),
    (geoseg.Options, {"attention": "nacl"}, "attention 'nacl' is not known; did you mean naclip?"),
    (geoseg.Options, {"refine": ["pamr", "pmr"]}, "refiner 'pmr' is not known"),
    (geoseg.Options, {"views": None}, "views is None; give a text"),
    (geoseg.Options, {"exact": "no"}, "exact is 'no'; give True or False"),
    (geoseg.Options, {"blend": "linear"}, "blend='linear' is not known; choose uniform or hann"),
    (geoseg.Options, {"precision": 16}, "precision is 16; choose auto, fp32, bf16 or fp16"),
    (geoseg.Options, {"templates": 7}, "templates is 7; give a text, or several"),
    (geoseg.Options, {"batch_size": 0}, "batch_size is 0; give 1 or more"),
    (geoseg.Options, {"upsampler": "jbu", "upsampler_weights": "w"}, "jbu takes no weights"),
    (geoseg.Reading, {"bands": 0}, "bands is 0; give numbers from 1, or names"),
    (geoseg.Reading, {"stretch": (3000, 0)}, "the first number must be below the second"),
    (geoseg.Reading, {"stretch": "2-98"}, "stretch '2-98' is not understood"),
    (geoseg.Reading, {"stretch": 5}, "stretch is not understood: give a text like 0:3000"),
    (geoseg.Reading, {"gsd": -2}, "gsd is -2; give a positive number of metres"),
    (geoseg.Reading, {"crs": 3.5}, "crs is 3.5; give a text"),
    (geoseg.Reading, {"nodata": "x"}, "nodata x: give a number"),
    (geoseg.Reading, {"mask": "m.tif", "mask_values": "bits:99"}, "mask values 'bits:99'"),
    (geoseg.Reading, {"mask_values": "3"}, "give mask too"),
    (geoseg.Products, {"polygons": "shp"}, "polygons='shp' is not known; choose gpkg, parquet"),
    (geoseg.Products, {"confidence": 1}, "confidence is 1; give True or False"),
    (geoseg.Products, {"attributes": "scene,x"}, "attributes is 'x'; give scene or date"),
    (VectorOptions, {"min_area_m2": "5"}, "min_area_m2 is '5'; give zero or a positive number"),
    (VectorOptions, {"simplify_m": -1}, "simplify_m is -1"),
    (VectorOptions, {"smooth": 9}, "smooth is 9; give 0 to 5 times"),
    (VectorOptions, {"connectivity": 6}, "connectivity is 6; give 4 or 8"),
    (VectorOptions, {"layer": "gpkg_x"}, "layer is 'gpkg_x'; give letters"),
    (geoseg.Scorer, {"call": print, "std": (1, 0)}, "std is 0.0; give numbers above 0"),
    (geoseg.Scorer, {"call": print, "mean": [float("inf")]}, "mean is inf; give finite numbers"),
    (geoseg.Scorer, {"call": print, "activation": "relu"}, "activation='relu' is not known"),
]


@pytest.mark.usefixtures("in_python")
@pytest.mark.parametrize(("kind", "given", "message"), WRONG)
def test_a_wrong_value_is_refused_where_it_is_given(kind: Any, given: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        kind(**given)
    assert message in str(caught.value)
    assert "--" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_command_line_calls_them_what_it_does() -> None:
    with on_command_line(), pytest.raises(OptionError) as caught:
        VectorOptions(min_area_m2=-3)
    with on_command_line():
        assert str(caught.value).startswith("--min-area is -3; ")


def test_what_means_the_same_is_the_same() -> None:
    given = geoseg.Options(
        window=np.int64(64), threshold=np.float32(0.5), exact=np.bool_(True), refine="pamr",
        templates=Path("t.txt"),
    )  # fmt: skip
    same = geoseg.Options(
        window=64, threshold=0.5, exact=True, refine=["pamr"], templates="t.txt"
    )  # fmt: skip
    assert given == same
    assert type(given.window) is int
    assert geoseg.Reading(bands=np.array([3, 2, 1]), gsd=2) == geoseg.Reading(
        bands=[3, 2, 1], gsd=2.0
    )
    assert geoseg.Reading(crs=32631) == geoseg.Reading(crs="32631")
    assert geoseg.Reading(stretch=np.array([[0, 1], [2, 3]])).stretch == "0.0:1.0,2.0:3.0"
    mask = {"mask": Path("m.tif")}
    assert geoseg.Reading(**mask, mask_values=(3, 8), mask_layer=2) == geoseg.Reading(
        mask="m.tif", mask_values="3,8", mask_layer="2"
    )
    assert geoseg.Reading(nodata=None) == geoseg.Reading()
    assert geoseg.Products(attributes="scene, date") == geoseg.Products(
        attributes=["scene", "date"]
    )


def test_a_crs_may_be_an_object() -> None:
    from rasterio.crs import CRS

    from geoseg.io.crs import parse_crs

    crs = CRS.from_epsg(32631)
    text = geoseg.Reading(crs=crs).crs  # type: ignore[arg-type]
    assert text is not None
    assert parse_crs(text) == crs


def test_making_options_loads_nothing_heavy() -> None:
    code = (
        "import sys, geoseg;"
        "geoseg.Options(attention='naclip:std=3'); geoseg.Reading(stretch=(0, 1), crs=32631);"
        "geoseg.Products(); geoseg.Scorer(call='a:b');"
        "print({'torch', 'rasterio', 'numpy', 'xarray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
