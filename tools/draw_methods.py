"""Draw the pictures of docs/methods.md: what each method does to one crop of a sample tile.

    python -m tools.draw_methods

They show steps, not gains: the bundled model cannot judge attentions. Every method in a table of
`geoseg.methods` that needs nothing from elsewhere gets a picture, so that a new one appears here
by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import geoseg
from geoseg._fonts import font_for
from geoseg.inference.segmenter import Segmenter
from geoseg.inference.views import View
from geoseg.methods import ATTENTIONS, REFINERS, UPSAMPLERS, VIEWS
from geoseg.model.loading import Model
from geoseg.options import Options
from geoseg.text.vocabulary import Vocabulary
from geoseg.types import PixelBlock, UInt8Array

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "methods"
SCENE = ROOT / "sample_tiles" / "town_river.tif"
CLASSES = Vocabulary.parse(ROOT / "sample_tiles" / "classes.txt")
CORNER, SIDE = (96, 224), 224
"""Of the crop."""
PATCH = (14, 9)
"""Row and column of the patch that attentions are asked about."""
CLASS = "water"
DETAIL = slice(16, 112), slice(80, 176)
"""Of the crop, for what happens at edges."""
CELL, GAP, LETTERS = 168, 6, 14
NEEDS = {"featup"}
"""Methods whose weights are not here."""
DESCRIBED = {
    "tree": ("the crown of a tree from above",),
    "grass": ("short green plants that cover the ground",),
    "pavement": ("a grey sealed surface where cars park or people walk",),
}
"""Descriptions of classes for the step that reads them."""


def crop() -> UInt8Array:
    """The pixels ``(H, W, 3)`` that all pictures are of."""
    row, col = CORNER
    with rasterio.open(SCENE) as dataset:
        pixels = dataset.read((1, 2, 3), window=((row, row + SIDE), (col, col + SIDE)))
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def block_of(image: UInt8Array) -> PixelBlock:
    """The crop as the encoder's pixels."""
    rgb = image.astype(np.float32).transpose(2, 0, 1) / 255
    return PixelBlock(rgb, np.ones(image.shape[:2], dtype=bool))


def sheet(name: str, cells: Mapping[str, UInt8Array], columns: int) -> None:
    """Write named pictures side by side."""
    rows = -(-len(cells) // columns)
    high = CELL + LETTERS + 2 * GAP
    page = Image.new("RGB", (columns * (CELL + GAP) + GAP, rows * high + GAP), "white")
    pen = ImageDraw.Draw(page)
    for index, (title, pixels) in enumerate(cells.items()):
        left = GAP + index % columns * (CELL + GAP)
        top = GAP + index // columns * high
        pen.text((left, top), title, fill="black", font=font_for(title, LETTERS - 1))
        picture = Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)
        page.paste(picture, (left, top + LETTERS + GAP // 2))
    OUT.mkdir(exist_ok=True)
    page.save(OUT / f"{name}.jpg", quality=82, optimize=True)


def lit(image: UInt8Array, heat: np.ndarray) -> UInt8Array:
    """An image, bright where heat is 1 and dark where it is 0."""
    return (image * (0.12 + 0.88 * heat[..., None])).astype(np.uint8)


def scaled(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1, their extremes cut."""
    low, high = np.percentile(values, (2, 98))
    return ((values - low) / max(high - low, 1e-9)).clip(0, 1)


def attentions(model: Model, image: UInt8Array) -> None:
    """How like the marked patch all others are, once an attention has mixed them."""
    cells = {"image": marked(image)}
    for name in ATTENTIONS.entries:
        text = "resclip:feedback=no" if name == "resclip" else name
        segmenter = Segmenter(model, CLASSES, Options(attention=text, upsampler="none"))
        pixels = segmenter.encoder.normalise(block_of(image))[None]  # type: ignore[attr-defined]
        features = segmenter.encode(pixels)
        unit = F.normalize(features.patches[0], dim=-1)
        likeness = unit @ unit[PATCH[0] * features.grid[1] + PATCH[1]]
        heat = scaled(likeness.view(features.grid).numpy())
        cells[name] = lit(image, np.kron(heat, np.ones((model.patch_size,) * 2)))
    sheet("attentions", cells, 5)


def marked(image: UInt8Array) -> UInt8Array:
    """The crop with a frame around the patch that is asked about."""
    picture = Image.fromarray(image)
    top, left = (8 * place for place in PATCH)
    box = (left - 3, top - 3, left + 10, top + 10)
    ImageDraw.Draw(picture).rectangle(box, outline="yellow", width=2)
    return np.asarray(picture)


def upsamplers(model: Model, image: UInt8Array) -> None:
    """Probability of one class around its edges."""
    cells = {"image": image[DETAIL]}
    for name in UPSAMPLERS.entries:
        if name not in NEEDS:
            found = Segmenter(model, CLASSES, Options(upsampler=name)).predict(image)
            heat = found.scores[CLASSES.names.index(CLASS)]
            cells[name] = lit(np.full_like(image, 255), scaled(heat))[DETAIL]
    sheet("upsamplers", cells, 5)


def views(image: UInt8Array) -> None:
    """What the encoder sees."""
    cells = {}
    pixels = torch.from_numpy(block_of(image).rgb)[None]
    for name in VIEWS.entries:
        for number, view in enumerate(made_views(name)):
            seen = view.apply(pixels)[0].permute(1, 2, 0).clamp(0, 1).numpy()
            title = name if number == 0 else f"{name} {number + 1}"
            if number < 5 and not (number == 0 and cells):
                cells[title] = (255 * seen).astype(np.uint8)
    sheet("views", cells, 5)


def made_views(name: str) -> Any:
    """Views of a method, the plain one first."""
    found = Options(views=name).resolve({}).method("views").views()
    return sorted(found, key=lambda view: view != View(weight=view.weight))


def coloured(segmenter: Segmenter, image: UInt8Array) -> UInt8Array:
    """Labels in the colours of their classes."""
    colours = [one.color for one in segmenter.vocabulary.label_classes]
    table = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], np.uint8)
    return table[segmenter.predict(image).labels]


def refiners(model: Model, image: UInt8Array) -> None:
    """Labels around some edges."""
    cells = {"image": image[DETAIL]}
    for name in ("none", *REFINERS.entries):
        options = Options(refine=() if name == "none" else (name,))
        cells[name] = coloured(Segmenter(model, CLASSES, options), image)[DETAIL]
    sheet("refiners", cells, 6)


def texts(model: Model, image: UInt8Array) -> None:
    """Labels with other words."""
    from dataclasses import replace

    told = Vocabulary(
        tuple(replace(c, descriptions=DESCRIBED.get(c.name, ())) for c in CLASSES.classes)
    )
    few = Vocabulary.parse("building, roof; road; water")
    hidden = Options(vocabulary_steps=("contrast:words=tree+grass+bare soil",), background="road")
    cells = {
        "image": image,
        "words": coloured(Segmenter(model, CLASSES), image),
        "describe": coloured(Segmenter(model, told, Options(vocabulary_steps="describe")), image),
        "three classes": coloured(Segmenter(model, few), image),
        "contrast": coloured(Segmenter(model, few, hidden), image),
    }
    sheet("texts", cells, 5)


def main() -> None:
    """Draw all."""
    torch.manual_seed(0)
    model, image = geoseg.load_model("geoseg-tiny", device="cpu"), crop()
    with torch.no_grad():
        attentions(model, image)
        upsamplers(model, image)
        views(image)
        refiners(model, image)
        texts(model, image)


if __name__ == "__main__":
    main()
