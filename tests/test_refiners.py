"""Refiners against the original programs' numbers, and what always holds of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import geoseg
from geoseg import methods
from geoseg.errors import OptionError
from geoseg.inference.refine import Asked, prepared
from geoseg.inference.refine import laplace as tlp
from geoseg.inference.refine.guided import Guided
from geoseg.inference.refine.lposs import Lposs, lab
from geoseg.inference.segmenter import Segmenter
from geoseg.io.scene import Scene
from geoseg.model.loading import Model, load_model
from geoseg.options import Options
from geoseg.testing import tiny_random_model, write_scene

GOLDENS = Path(__file__).resolve().parent / "goldens"
ARRAYS = np.load(GOLDENS / "family" / "refiners.npz")
GUIDED, LAB, AFFINITY, SPREAD, CELLS = 2e-4, 5e-6, 5e-5, 5e-5, 1e-4
SOLUTION = {1: 5e-6, 50: 1e-4}

Array = npt.NDArray[Any]


def pixels(row: int, col: int, height: int, width: int) -> Tensor:
    whole = np.asarray(Image.open(GOLDENS / "structured_300x260.png"))
    part = whole[row : row + height, col : col + width].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(part)).float() / 255


def everywhere(rgb: Tensor) -> Tensor:
    return torch.ones(rgb.shape[1:], dtype=torch.bool)


def largest(found: Tensor | Array, wanted: Array) -> float:
    difference = np.asarray(found, dtype=np.float64) - wanted
    assert difference.shape == wanted.shape
    return float(np.abs(difference).max())


# -- against the original numbers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "radius", "eps"), [("colour_r4", 4, 0.01), ("colour_r8", 8, 0.001)]
)
def test_guided_filter(case: str, radius: int, eps: float) -> None:
    rgb = pixels(120, 100, 40, 52)
    logits = torch.from_numpy(ARRAYS["guided__input"]).float().permute(1, 2, 0)
    found = Guided(radius, eps)(logits, rgb, everywhere(rgb)).permute(2, 0, 1)
    assert largest(found, ARRAYS[f"guided__{case}__valid"]) < GUIDED


def test_guided_filter_of_a_grey_scene() -> None:
    """Three equal bands are one, with a third of eps."""
    rgb = pixels(120, 100, 40, 52).mean(0, keepdim=True).expand(3, -1, -1)
    logits = torch.from_numpy(ARRAYS["guided__input"]).float().permute(1, 2, 0)
    found = Guided(3, 0.003)(logits, rgb, everywhere(rgb)).permute(2, 0, 1)
    assert largest(found, ARRAYS["guided__grey_r3__valid"]) < GUIDED


@pytest.mark.parametrize(
    ("case", "box", "tau", "side"),
    [("plus", (120, 90, 40, 52), 0.01, 13), ("whole_plus", (200, 100, 40, 50), 0.1, 7)],
)
def test_lposs_plus(case: str, box: tuple[int, ...], tau: float, side: int) -> None:
    rgb, key = pixels(*box), f"lposs__{case}__"
    valid = everywhere(rgb)
    colours = lab(rgb)[:, ::3, ::3].permute(1, 2, 0)
    assert largest(colours, ARRAYS[f"{key}lab_s3"]) < LAB
    method, count = Lposs(tau=tau, side=side, steps=60), valid.numel()
    affinity, index = torch.zeros(count, count), torch.arange(count).view(1, *valid.shape)
    for weight, here, there in method.weights(rgb, valid):
        affinity[index[here].flatten(), index[there].flatten()] = weight.flatten()
    affinity += affinity.T.clone()
    rows = ARRAYS[f"{key}plus_affinity_rows_yx"] @ [valid.shape[1], 1]
    assert largest(affinity[rows], ARRAYS[f"{key}plus_affinity_rows"]) < AFFINITY
    logits, wanted = torch.from_numpy(ARRAYS[f"{key}logits"]), ARRAYS[f"{key}plus_exact"]
    spread = method.spread(logits, rgb, valid)
    assert largest(spread, wanted) < SPREAD * np.abs(wanted).max()
    refined = Lposs(tau=tau, side=side)(logits.permute(1, 2, 0), rgb, valid)
    assert np.array_equal(refined.argmax(-1).numpy(), wanted.argmax(0))


@pytest.mark.parametrize(("scale", "words"), [(1, "diag"), (50, "full")])
def test_pearls_propagation(scale: int, words: str) -> None:
    alike = tlp.text_similarity(torch.from_numpy(ARRAYS["tlp__text"]))
    assert largest(alike, ARRAYS["tlp__text_similarity"]) < CELLS
    if words == "diag":
        alike = torch.diag(alike.diagonal())
    rgb = torch.from_numpy(ARRAYS["tlp__rgb"].transpose(2, 0, 1).copy()).float() / 255
    coarse = torch.from_numpy(ARRAYS["tlp__coarse_logits"]).float()[None]
    logits = F.interpolate(coarse, rgb.shape[1:], mode="bilinear")[0].permute(1, 2, 0) * scale
    grey, known = tlp.cells_of(tlp.grey_of(rgb)[..., None], everywhere(rgb), 1)
    grey = grey[..., 0]
    means = tuple(float(grey.diff(dim=dim).abs().mean()) for dim in (1, 0))
    shares, key = logits.softmax(-1), f"tlp__scale{scale}__{words}__"
    trust = tlp.confidence(shares, alike, 0.05)
    edges = tlp.edge_weights(grey, known, shares, alike, means)
    for found, name in zip((trust, *edges), ("rho", "edge_h", "edge_v"), strict=True):
        assert largest(found, ARRAYS[key + name]) < CELLS
    solution = tlp.solve(trust, edges, logits, strength=1, floor=0.05, steps=400)
    assert largest(solution.permute(2, 0, 1), ARRAYS[f"{key}cells"]) < SOLUTION[scale]


# -- what always holds ---------------------------------------------------------------------------

NEW = ["guided", "lposs:steps=4", "laplace:steps=8", "laplace:words=diag,cell=3,steps=8"]


def ready(text: str, count: int = 3) -> Any:
    asked = Asked(torch.eye(8)[:count], 50.0)
    (made,) = prepared([methods.resolve(methods.REFINERS, text)], asked)
    return made


@pytest.mark.parametrize("text", NEW)
def test_equal_logits_stay_equal(text: str) -> None:
    rgb = pixels(20, 30, 60, 70)
    logits = torch.tensor([0.3, 0.1, -0.2]).expand(60, 70, 3).contiguous()
    found = ready(text)(logits, rgb, everywhere(rgb), (5, 6))
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("text", ["laplace:strength=0", "lposs:alpha=0"])
def test_without_strength_logits_are_left_bit_for_bit(text: str) -> None:
    rgb = pixels(20, 30, 60, 70)
    logits = torch.rand(60, 70, 3)
    made = ready(text)
    assert made.reach == 0
    assert torch.equal(made(logits, rgb, everywhere(rgb), (0, 0)), logits)


@pytest.mark.parametrize("text", NEW)
def test_a_pixel_depends_on_what_it_reaches(text: str) -> None:
    """And on nothing beyond: an array that begins elsewhere gives the same inside."""
    made, generator = ready(text), torch.Generator().manual_seed(0)
    rgb = pixels(0, 0, 160, 150)
    logits = torch.rand(160, 150, 3, generator=generator)
    whole = made(logits, rgb, everywhere(rgb), (0, 0))
    row, col, reach = 7, 5, made.reach
    part = made(logits[row:, col:], rgb[:, row:, col:], everywhere(rgb)[row:, col:], (row, col))
    inner = whole[row + reach :, col + reach :]
    assert inner.numel()
    torch.testing.assert_close(part[reach:, reach:], inner, atol=2e-6, rtol=0)


@pytest.mark.parametrize("text", NEW)
def test_edges_of_the_image_hold(text: str) -> None:
    """Two fields, logits blurred across their boundary: they part where the colours do."""
    rgb = torch.full((3, 64, 64), 0.3)
    rgb[:, :, 32:] = 0.7
    ramp = torch.linspace(-0.1, 0.1, 64) + 0.02  # its zero lies left of the boundary
    logits = torch.stack([-ramp, ramp, torch.full_like(ramp, -1)], -1).expand(64, 64, 3)
    found = ready(text)(logits.contiguous(), rgb, everywhere(rgb), (0, 0))
    truth = torch.arange(64) >= 32
    right = (found.argmax(-1) == truth).float().mean()
    before = (logits.argmax(-1) == truth).float().mean()
    assert right >= before


def test_the_global_logits_go_the_way_of_the_patches() -> None:
    """Where both lie beside each other, as tuning has them, the map's own bias decides."""
    rgb, generator = pixels(0, 0, 64, 64), torch.Generator().manual_seed(1)
    patch, cls = torch.rand(2, 64, 64, 3, generator=generator)
    asked = Asked(torch.eye(3), 5.0, 0.3)
    (made,) = prepared([methods.resolve(methods.REFINERS, "laplace:steps=8")], asked)
    valid = everywhere(rgb)
    one = made(patch - 0.3 * cls, rgb, valid, (0, 0))
    both = made(torch.cat([patch, cls], -1), rgb, valid, (0, 0))
    torch.testing.assert_close(both[..., :3] - 0.3 * both[..., 3:], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guided:radius=0", "a whole number from 1 to 256"),
        ("guided:eps=0", "a number from 1e-05"),
        ("lposs:alpha=1", "alpha is 1.0; give a number from 0 to 0.999"),
        ("lposs:side=4", "an odd number"),
        ("lposs:side=21,steps=60", "reaches 610 pixels; give less"),
        ("laplace:cell=0", "from 1 to 64"),
        ("laplace:floor=0", "from 0.01 to 1"),
        ("laplace:gradient=0.1", "give two"),
        ("laplace:words=some", "full or diag"),
    ],
)
def test_what_cannot_be_is_named(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        methods.resolve(methods.REFINERS, text)


# -- what is measured over the scene -------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_random_model(tmp_path_factory.mktemp("model")), device="cpu")


def test_a_scene_smaller_than_a_cell_has_the_usual_gradient(tmp_path: Path) -> None:
    scene = Scene.open(write_scene(tmp_path / "thin.tif", 4, 60))
    measured = tlp.Laplace(cell=16).measured(scene)
    assert measured.gradient[1] == 0.1


def test_the_gradient_is_measured_once_and_written_down(model: Model, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 170, 150)
    products = geoseg.Products(polygons="none", preview=False)

    def run(out: str, refine: str, **more: Any) -> dict[str, Any]:
        options = Options(refine=refine, templates="none", upsampler="none")
        geoseg.segment_to_files(
            scene, "a; b; c", tmp_path / out, model=model, options=options, products=products,
            **more,
        )  # fmt: skip
        return dict(json.loads((tmp_path / out / "run.json").read_text()))

    whole = run("whole", "laplace:steps=6")
    (described,) = whole["methods"]["refine"]
    across, down = described["gradient"]
    block = Scene.open(scene).read(geoseg.types.Window(0, 0, 168, 148))
    grey, known = tlp.cells_of(
        tlp.grey_of(torch.from_numpy(block.rgb))[..., None], torch.from_numpy(block.valid), 4
    )
    assert known.all()
    for dim, found in ((1, across), (0, down)):
        assert found == pytest.approx(float(grey[..., 0].diff(dim=dim).abs().mean()), rel=0.2)
    # A part of the scene has the whole scene's, and so the whole scene's labels.
    reading = geoseg.Reading(aoi=area_of(scene, 30, 20, 90, 100))
    part = run("part", "laplace:steps=6", reading=reading, tile=64)
    assert part["methods"]["refine"] == [described]
    one, other = (labels(tmp_path / name) for name in ("whole", "part"))
    assert (one[30:120, 20:120] != other).sum() <= 1
    # Given, it is left alone; and another one is another run.
    given = run("given", "laplace:steps=6,gradient=0.5+0.5")
    assert given["methods"]["refine"][0]["gradient"] == [0.5, 0.5]


def area_of(scene: Path, row: int, col: int, height: int, width: int) -> str:
    import rasterio

    with rasterio.open(scene) as source:
        left, top = source.xy(row, col, offset="ul")
        right, bottom = source.xy(row + height, col + width, offset="ul")
    return f"{left},{bottom},{right},{top}"


def labels(folder: Path) -> Array:
    import rasterio

    with rasterio.open(folder / "labels.tif") as source:
        return np.asarray(source.read(1))


def test_refiners_sharpen_scores_of_a_network_too(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 128, 128)

    def scores(rgb: Any) -> Any:
        return torch.stack([rgb.mean(1), 1 - rgb.mean(1)], 1)

    out = tmp_path / "out"
    geoseg.segment_to_files(
        scene, "bright; dark", out, scorer=scores,
        options=Options(refine=("laplace:steps=4", "guided"), window=64, stride=64),
        products=geoseg.Products(polygons="none", preview=False),
    )  # fmt: skip
    assert set(np.unique(labels(out))) <= {0, 1}


def test_laplace_is_the_same_in_memory(model: Model) -> None:
    """Arrays have no scene that could be measured: the usual gradient holds."""
    options = Options(refine="laplace:steps=4", templates="none")
    segmenter = Segmenter(model, "a; b", options)
    rgb = (pixels(0, 0, 64, 64).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    given = Segmenter(
        model, "a; b", Options(refine="laplace:steps=4,gradient=0.1+0.1", templates="none")
    )
    assert np.array_equal(segmenter.predict(rgb).labels, given.predict(rgb).labels)
