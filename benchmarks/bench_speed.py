"""How much time does geoseg add to the encoder, and how does it compare with a plain port?

Eight questions, each with both sides timed in this process, in turns, and given as a ratio:

- pipeline: the whole run from pixels to labels against encoding the same windows, once one after
  another with all threads on each, once as the whole run does it, a few windows at a time and
  such batches side by side with a thread each, and once (with ``simfeatup``) in open_clip's own
  forward; of an image alone, of a tile inside a larger scene, where windows overlap on all sides,
  and of a GeoTIFF with everything from reading it to labels, confidence, polygons and preview;
- original: geoseg against a straightforward port of the original pipeline (one window at a time,
  all feature channels upsampled, logits of the whole image held), same weights, image and labels;
- precisions: bfloat16 in the encoder against float32;
- bundled: a window of geoseg-tiny against one of ViT-B/16;
- libraries: the encoder with the library that geoseg takes for float32 products here against the
  one that PyTorch takes;
- compiled: the encoder through torch.compile against the encoder as it is (needs a C++ compiler);
- sharing: a tile with ``simfeatup`` whose windows share kernels against one whose windows do not;
- upsamplers: time a window and largest logit error of the exact and the default path.

Weights are random in ViT-B/16's shape, because only shapes matter for time; the learned
upsampler's kernel weights are those bundled with geoseg-tiny, which do not depend on channels.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _common
import numpy as np
import open_clip
import rasterio
import torch
import torch.nn.functional as F

from geoseg import Options, Segmenter, segment_to_files
from geoseg.inference import runners
from geoseg.inference.head import Head
from geoseg.inference.steps import ClsBias
from geoseg.model.attention.last_block import SegEarth
from geoseg.model.attention.trunk import Context, Trunk
from geoseg.model.checkpoint import read_state_dict
from geoseg.model.loading import Model, load_model
from geoseg.model.spec import bundled_folder
from geoseg.model.upsampling.learned import LearnedJbu
from geoseg.model.vision import DenseEncoder
from geoseg.runtime.allocator import keep_freed_memory, own_process
from geoseg.runtime.matmul import full_width
from geoseg.runtime.threads import in_order
from geoseg.testing import write_scene
from geoseg.tiling.tiles import TilePlan
from geoseg.types import PixelBlock, Window

ROOT = Path(__file__).resolve().parents[1]
WORDS = "building; road; water; tree; grass; cropland; bare soil; car; pool; railway"
Image = np.ndarray[Any, np.dtype[np.float32]]


def random_model() -> Model:
    """ViT-B/16 with random weights, as a loaded model."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16", load_weights=False, pretrained_text=False)
    clip.eval().requires_grad_(False)
    return Model(
        spec="random",
        clip=clip,
        tokenizer=open_clip.get_tokenizer("ViT-B-16"),
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        weights=Path("random"),
        fingerprint="random",
        weights_sha256="random",
        defaults={},
        device=torch.device("cpu"),
    )


def upsampler_file(folder: Path, channels: int) -> Path:
    """The bundled kernel weights with a last convolution for another number of channels."""
    state = read_state_dict(bundled_folder() / "simfeatup.pt")
    name = next(k for k in state if k.endswith("fixup_proj.1.weight")).removesuffix("weight")
    torch.manual_seed(1)
    state[f"{name}weight"] = torch.randn(channels, channels, 1, 1) / channels**0.5
    state[f"{name}bias"] = 0.01 * torch.randn(channels)
    file = folder / "upsampler.pt"
    torch.save({"state_dict": state}, file)
    return file


def sample_image(size: int) -> Image:
    """A square of a sample tile, repeated if it is too small; ``(3, size, size)``."""
    with rasterio.open(ROOT / "sample_tiles" / "town_river.tif") as scene:
        rgb = scene.read([1, 2, 3]).astype(np.float32) / 255
    times = -(-size // min(rgb.shape[1:]))
    return np.ascontiguousarray(np.tile(rgb, (1, times, times))[:, :size, :size])


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def best_of(runs: int, sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Shortest time of each side, the sides taking turns so that a busy machine hits them alike."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(runs):
        for name, run in sides.items():
            best[name] = min(best[name], timed(run)[0])
    return best


# -- a port of the original, as one would write it down --------------------------------------


class Port:
    """One window at a time; every feature channel upsampled; logits of the whole image held."""

    def __init__(self, segmenter: Segmenter, model: Model, state: dict[str, torch.Tensor]) -> None:
        self.segmenter, self.model = segmenter, model
        prefix = "upsampler."
        self.state = {k.removeprefix(prefix): v.float() for k, v in state.items()}
        self.text = torch.from_numpy(segmenter.text_embeddings)

    def labels(self, image: Image, gather: str | None) -> np.ndarray[Any, Any]:
        """Label an image; ``gather`` picks how features are upsampled, None for not at all."""
        options = self.segmenter.options
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.model.mean, self.model.std))
        pixels = ((torch.from_numpy(image) - mean) / std)[None]
        height, width = image.shape[1:]
        total, count = torch.zeros(1, len(self.text), height, width), torch.zeros(height, width)
        for row in range(0, max(height - options.window, 0) + 1, options.stride):
            for col in range(0, max(width - options.window, 0) + 1, options.stride):
                part = slice(row, row + options.window), slice(col, col + options.window)
                total[(..., *part)] += self.window(pixels[(..., *part)], gather)
                count[part] += 1
        return (total / count)[0].argmax(0).numpy()

    @torch.no_grad()
    def window(self, pixels: torch.Tensor, gather: str | None) -> torch.Tensor:
        """Logits ``(1, Q, H, W)`` of one window."""
        visual = self.model.clip.visual
        x = visual._embeds(pixels)
        blocks = visual.transformer.resblocks
        for block in blocks[:-1]:
            x = block(x)
        blocks[-1](x)  # the original computes the ordinary last block too, and drops it
        last = blocks[-1]
        y = last.ln_1(x)
        heads = last.attn.num_heads
        q, k, v = (
            u.view(len(y), -1, heads, y.shape[2] // heads).transpose(1, 2)
            for u in F.linear(y, last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, -1)
        )
        scale = q.shape[-1] ** -0.5
        weights = sum((scale * u @ u.transpose(-1, -2)).softmax(-1) for u in (q, k, v))
        out = last.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        tokens = visual.ln_post(out) @ visual.proj
        side = int((tokens.shape[1] - 1) ** 0.5)
        features = tokens[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
        if gather is not None:
            features = self.upsample(features, pixels, gather)
        unit = F.normalize(features, dim=1)
        logits = torch.einsum("bdhw,qd->bqhw", unit, self.text)
        bias = F.normalize(tokens[:, 0], dim=-1) @ self.text.T
        logits = logits - self.segmenter.options.cls_bias * bias[..., None, None]
        return F.interpolate(logits, size=pixels.shape[2:], mode="bilinear")

    def conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """One of the upsampler's 1 x 1 convolutions."""
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def upsample(self, x: torch.Tensor, pixels: torch.Tensor, gather: str) -> torch.Tensor:
        """All feature channels through four learned doublings and the last convolution."""
        taps = int(self.state["up.fixup_proj.3.weight"].shape[0] ** 0.5)
        radius = taps // 2
        axis = torch.linspace(-1, 1, taps)
        sigma = self.state["up.sigma_spatial"]
        spatial = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2)).view(1, -1, 1, 1)
        for _ in range(4):
            size = (x.shape[2] * 2, x.shape[3] * 2)
            small = F.adaptive_avg_pool2d(pixels, size)
            ranged = self.conv("up.range_proj.3", F.gelu(self.conv("up.range_proj.0", small)))
            around = F.unfold(F.pad(ranged, (radius,) * 4, mode="reflect"), taps)
            around = around.view(1, -1, taps**2, *size)
            scores = (around * ranged[:, :, None]).sum(1)
            weights = (scores * self.state["up.range_temp"].exp()).softmax(1) * spatial
            weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-7)
            hidden = F.gelu(self.conv("up.fixup_proj.0", torch.cat([weights, small], 1)))
            weights = weights + 0.1 * self.conv("up.fixup_proj.3", hidden)
            big = F.interpolate(x, size=size, mode="bicubic")
            padded = F.pad(big, (radius,) * 4, mode="reflect")
            x = _GATHERS[gather](padded, weights, taps)
        return x + 0.1 * self.conv("fixup_proj.1", x)


def _unfold(padded: torch.Tensor, weights: torch.Tensor, taps: int) -> torch.Tensor:
    # All channels at once would take 25 GB at the last doubling; half of them fit most machines.
    size = weights.shape[2:]
    parts = []
    for part in padded.chunk(2, dim=1):
        unfolded = F.unfold(part, taps).view(1, part.shape[1], taps**2, *size)
        parts.append((unfolded * weights[:, None]).sum(2))
    return torch.cat(parts, dim=1)


def _tap_loop(padded: torch.Tensor, weights: torch.Tensor, taps: int) -> torch.Tensor:
    height, width = weights.shape[2:]
    out = torch.zeros(1, padded.shape[1], height, width)
    for tap in range(taps**2):
        dy, dx = divmod(tap, taps)
        out.addcmul_(weights[:, tap : tap + 1], padded[..., dy : dy + height, dx : dx + width])
    return out


_GATHERS = {"unfold": _unfold, "tap loop": _tap_loop}


# -- the questions ----------------------------------------------------------------------------


def pipeline(model: Model, weights: Path, size: int, runs: int) -> list[dict[str, Any]]:
    rows = []
    for name in ("none", "jbu", "simfeatup"):
        file = str(weights) if name == "simfeatup" else None
        options = Options(upsampler=name, upsampler_weights=file, templates="none")
        segmenter = Segmenter(model, WORDS, options)
        rows += [_of_image(segmenter, size, runs), _of_tile(segmenter, size, runs)]
        if name != "none":
            rows.append(_of_file(segmenter, options, 2000 if runs > 1 else size, runs))
    return rows


def _of_image(segmenter: Segmenter, size: int, runs: int) -> dict[str, Any]:
    block = PixelBlock(sample_image(size), np.ones((size, size), dtype=bool))
    windows = segmenter.lattice(size, size).touching(Window(0, 0, size, size))
    batches = _batches(segmenter, block, windows)

    @torch.no_grad()
    def open_clip_forward() -> None:
        for batch in batches:
            segmenter.model.clip.encode_image(batch)

    others = {}
    if segmenter.options.upsampler == "simfeatup":
        others["open_clip"] = open_clip_forward
    return _against_encoder(
        segmenter,
        "an image",
        batches,
        lambda: segmenter.decide(segmenter.logits(block)),
        runs,
        others,
    )


def _of_tile(segmenter: Segmenter, size: int, runs: int) -> dict[str, Any]:
    stride = segmenter.options.stride
    side = size + 2 * stride
    block = PixelBlock(sample_image(side), np.ones((side, side), dtype=bool))
    plan = TilePlan(segmenter.lattice(side, side), size, Window(stride, stride, size, size))
    (tile,) = plan
    assert tile.read == Window(0, 0, side, side)
    batches = _batches(segmenter, block, tile.windows)
    return _against_encoder(
        segmenter, "a tile", batches, lambda: segmenter.segment_tile(block, tile), runs, {}
    )


def _of_file(segmenter: Segmenter, options: Options, size: int, runs: int) -> dict[str, Any]:
    """From a GeoTIFF to all products; its size is no multiple of the stride, as most are not."""
    image = sample_image(size)
    block = PixelBlock(image, np.ones((size, size), dtype=bool))
    windows = segmenter.lattice(size, size).touching(Window(0, 0, size, size))
    with tempfile.TemporaryDirectory() as folder:
        scene = write_scene(Path(folder) / "scene.tif", size, size)
        with rasterio.open(scene, "r+") as file:
            file.write((255 * image).round().astype(np.uint8))

        def whole() -> None:
            done = segment_to_files(
                scene,
                WORDS,
                Path(folder) / "map",
                model=segmenter.model,
                options=options,
                overwrite=True,
            )
            assert done.report["windows"] == len(windows)

        batches = _batches(segmenter, block, windows)
        return _against_encoder(segmenter, "a file", batches, whole, runs, {})


def _batches(
    segmenter: Segmenter, block: PixelBlock, windows: Sequence[Window]
) -> list[torch.Tensor]:
    pixels = segmenter.encoder.normalise(block)
    return [pixels[(slice(None), *window.slices())][None] for window in windows]


def _against_encoder(
    segmenter: Segmenter,
    of: str,
    batches: list[torch.Tensor],
    whole: Callable[[], Any],
    runs: int,
    others: dict[str, Callable[[], Any]],
) -> dict[str, Any]:
    def encode() -> None:
        for batch in batches:
            segmenter.encoder(batch)

    size = segmenter.batch_size
    several = [torch.cat(batches[k : k + size]) for k in range(0, len(batches), size)]

    def beside() -> None:
        for _ in in_order(segmenter.encoder, several, most=len(several), share=False):
            pass

    keep_freed_memory()  # as every run does; one that has ended has given it back
    best = best_of(runs, {"encoder": encode, "side by side": beside, "whole": whole, **others})
    return {
        "upsampler": segmenter.options.upsampler,
        "of": of,
        "windows": len(batches),
        "encoder s": best["encoder"],
        "encoder side by side s": best["side by side"],
        "whole s": best["whole"],
        "whole / encoder": best["whole"] / best["encoder"],
        "whole / encoder side by side": best["whole"] / best["side by side"],
        "whole / open_clip's forward": (
            best["whole"] / best["open_clip"] if "open_clip" in best else None
        ),
    }


def original(model: Model, weights: Path, size: int) -> list[dict[str, Any]]:
    image = sample_image(size)
    block = PixelBlock(image, np.ones((size, size), dtype=bool))
    options = Options(upsampler="simfeatup", upsampler_weights=str(weights), templates="none")
    segmenter = Segmenter(model, WORDS, options)
    port = Port(segmenter, model, read_state_dict(weights))

    def ours() -> Any:
        return segmenter.decide(segmenter.logits(block)).labels

    found = ours()
    # The short sides take turns; the slow ones run once.
    best = best_of(2, {"geoseg": ours, "none": lambda: port.labels(image, None)})
    rows = [_against("none", best["none"], best["geoseg"], None)]
    seconds, labels = timed(lambda: port.labels(image, "tap loop"))
    rows.append(_against("tap loop", seconds, best["geoseg"], float((labels == found).mean())))
    windows = len(segmenter.lattice(size, size).touching(Window(0, 0, size, size)))
    one = np.ascontiguousarray(image[:, :224, :224])
    seconds, labels = timed(lambda: port.labels(one, "unfold"))
    alone = segmenter.decide(
        segmenter.logits(PixelBlock(one, np.ones((224, 224), dtype=bool)))
    ).labels
    name = f"unfold (one window, times {windows})"
    equal = float((labels == alone).mean())
    rows.append(_against(name, seconds * windows, best["geoseg"], equal))
    return rows


def _against(port: str, seconds: float, ours: float, equal: float | None) -> dict[str, Any]:
    return {
        "port": port,
        "port s": seconds,
        "geoseg with simfeatup s": ours,
        "ratio": seconds / ours,
        "labels equal": equal,
    }


def precisions(model: Model, size: int) -> list[dict[str, Any]]:
    """bfloat16 in the encoder, which is an option on a CPU: how much faster, how different?"""
    image = sample_image(size)
    block = PixelBlock(image, np.ones((size, size), dtype=bool))
    segmenters = {
        name: Segmenter(model, WORDS, Options(upsampler="jbu", templates="none", precision=name))
        for name in ("fp32", "bf16")
    }
    logits = {name: one.logits(block) for name, one in segmenters.items()}
    best = best_of(2, {n: lambda one=one: one.logits(block) for n, one in segmenters.items()})
    return [
        {
            "encoder in": name,
            "s": best[name],
            "of fp32": best[name] / best["fp32"],
            "largest logit difference": float(np.abs(logits[name] - logits["fp32"]).max()),
            "labels equal": float((logits[name].argmax(0) == logits["fp32"].argmax(0)).mean()),
        }
        for name in segmenters
    ]


def bundled(model: Model, runs: int) -> list[dict[str, Any]]:
    """One window of geoseg-tiny against one of ViT-B/16, here and in open_clip's own forward."""
    block = PixelBlock(sample_image(224), np.ones((224, 224), dtype=bool))
    options = Options(upsampler="none", templates="none")
    large = Segmenter(model, WORDS, options)
    small = Segmenter(load_model("geoseg-tiny", device="cpu"), WORDS, options)
    one, other = large.encoder.normalise(block)[None], small.encoder.normalise(block)[None]

    @torch.no_grad()
    def open_clip_forward() -> Any:
        return model.clip.encode_image(one)

    def beside(segmenter: Segmenter, window: torch.Tensor) -> None:
        for _ in in_order(segmenter.encoder, [window] * 8, most=8, share=False):
            pass

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "encode": (lambda: large.encoder(one), lambda: small.encoder(other)),
        "encode 8, side by side": (lambda: beside(large, one), lambda: beside(small, other)),
        "window_logits": (lambda: large.window_logits(one), lambda: small.window_logits(other)),
        "open_clip's forward": (open_clip_forward, lambda: small.encoder(other)),
    }
    rows = []
    for what, (of_large, of_small) in pairs.items():
        best = best_of(10 * runs, {"large": of_large, "small": of_small})
        rows.append(
            {
                "ViT-B/16's step": what,
                "ViT-B/16 s": best["large"],
                "geoseg-tiny s": best["small"],
                "ratio": best["large"] / best["small"],
            }
        )
    return rows


@contextmanager
def _without_onednn() -> Iterator[None]:
    warnings.simplefilter("ignore")  # it warns of a setting for other processors
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def libraries(model: Model, runs: int) -> list[dict[str, Any]]:
    """One window with PyTorch's own products, and with those that geoseg takes here."""
    block = PixelBlock(sample_image(224), np.ones((224, 224), dtype=bool))
    options = Options(upsampler="none", templates="none")
    rows = []
    for one in (model, load_model("geoseg-tiny", device="cpu")):
        segmenter = Segmenter(one, WORDS, options)
        pixels = segmenter.encoder.normalise(block)[None]

        def own(segmenter: Segmenter = segmenter, pixels: torch.Tensor = pixels) -> None:
            with warnings.catch_warnings(), _without_onednn():
                segmenter.encoder(pixels)

        def chosen(segmenter: Segmenter = segmenter, pixels: torch.Tensor = pixels) -> None:
            segmenter.encoder(pixels)

        best = best_of(10 * runs, {"own": own, "chosen": chosen})
        rows.append(
            {
                "model": "ViT-B/16" if one is model else one.spec,
                "PyTorch's own s": best["own"],
                "geoseg's choice s": best["chosen"],
                "ratio": best["own"] / best["chosen"],
            }
        )
    return rows


def compiled(model: Model, runs: int) -> list[dict[str, Any]]:
    """Does torch.compile pay? It fuses what lies between the products of a block."""
    block = PixelBlock(sample_image(224), np.ones((224, 224), dtype=bool))
    options = Options(upsampler="none", templates="none", attention="segearth")
    rows = []
    for one in (model, load_model("geoseg-tiny", device="cpu")):
        segmenter = Segmenter(one, WORDS, options)
        pixels = segmenter.encoder.normalise(block)[None]
        encoder = DenseEncoder(one.clip.visual, SegEarth())

        def tokens(images: torch.Tensor, encoder: DenseEncoder = encoder) -> torch.Tensor:
            visual = encoder.visual
            x, grid = encoder.stem(images)
            x, _ = encoder.attention.run(Trunk(visual), x, Context(grid, images))
            return F.linear(visual.ln_post(x), visual.proj.T)

        fused: Any = torch.compile(tokens)

        @full_width()
        @torch.no_grad()
        def encode(fused: Any = fused, pixels: torch.Tensor = pixels) -> Any:
            return fused(pixels)

        def plain(segmenter: Segmenter = segmenter, pixels: torch.Tensor = pixels) -> Any:
            return segmenter.encoder(pixels)

        seconds, found = timed(encode)
        best = best_of(10 * runs, {"plain": plain, "compiled": encode})
        rows.append(
            {
                "model": "ViT-B/16" if one is model else one.spec,
                "to compile s": seconds,
                "as it is s": best["plain"],
                "compiled s": best["compiled"],
                "ratio": best["plain"] / best["compiled"],
                "largest difference": float((found[:, 1:] - plain().patches).abs().max()),
            }
        )
    return rows


def upsamplers(model: Model, weights: Path, runs: int) -> list[dict[str, Any]]:
    image = sample_image(224)
    segmenter = Segmenter(model, WORDS, Options(upsampler="none", templates="none"))
    block = PixelBlock(image, np.ones((224, 224), dtype=bool))
    guidance = segmenter.encoder.normalise(block)[None]
    features = segmenter.encoder(guidance)
    text = torch.from_numpy(segmenter.text_embeddings)
    upsampler = LearnedJbu(read_state_dict(weights), source=str(weights))
    exact, default = (Head(text, upsampler, (ClsBias(0.3),), exact) for exact in (True, False))
    port = Port(segmenter, model, read_state_dict(weights))
    reference = port.window(guidance, "tap loop").permute(0, 2, 3, 1)
    sides: dict[str, Callable[[], Any]] = {
        "exact norms": lambda: exact(features, guidance),
        "default": lambda: default(features, guidance),
    }
    best = best_of(runs, sides)
    encoder = best_of(runs, {"encoder": lambda: segmenter.encoder(guidance)})["encoder"]
    return [
        {
            "path": name,
            "s a window": best[name],
            "of the encoder's time": best[name] / encoder,
            "largest logit error": float((run() - reference).abs().max()),
        }
        for name, run in sides.items()
    ]


def sharing(model: Model, weights: Path, size: int, runs: int) -> list[dict[str, Any]]:
    """What is `geoseg.inference.runners.shared` worth?"""
    options = Options(upsampler="simfeatup", upsampler_weights=str(weights), templates="none")
    segmenter = Segmenter(model, WORDS, options)
    stride = segmenter.options.stride
    side = size + 2 * stride
    block = PixelBlock(sample_image(side), np.ones((side, side), dtype=bool))
    (tile,) = segmenter.plan((side, side), size, Window(stride, stride, size, size))
    shared = runners.shared_lattices

    def run(lattices: Callable[..., Any]) -> Any:
        runners.shared_lattices = lattices
        try:
            return segmenter.segment_tile(block, tile).labels
        finally:
            runners.shared_lattices = shared

    sides = {"shared": lambda: run(shared), "each alone": lambda: run(lambda *window: {})}
    best = best_of(runs, sides)
    return [
        {
            "windows": len(tile.windows),
            "shared s": best["shared"],
            "each alone s": best["each alone"],
            "each alone / shared": best["each alone"] / best["shared"],
            "labels that differ": int((sides["shared"]() != sides["each alone"]()).sum()),
        }
    ]


def main() -> None:
    parser = _common.parser(__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", metavar="QUESTION", help="these questions only")
    arguments = parser.parse_args()
    size, scene, runs = (336, 336, 1) if arguments.quick else (448, 1120, 2)
    turns = 1 if arguments.quick else 3  # of what is nearest to its bound
    model = random_model()
    with tempfile.TemporaryDirectory() as folder, own_process():
        weights = upsampler_file(Path(folder), model.embedding_size)
        questions: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "upsamplers": lambda: upsamplers(model, weights, runs),
            "bundled": lambda: bundled(model, runs),
            "libraries": lambda: libraries(model, runs),
            "precisions": lambda: precisions(model, size),
            "compiled": lambda: compiled(model, runs),
            "sharing": lambda: sharing(model, weights, scene, runs),
            "pipeline": lambda: pipeline(model, weights, scene, turns),
            "original": lambda: original(model, weights, size),
        }
        for name in arguments.only or questions:
            keep_freed_memory()  # as every run does
            rows = questions[name]()
            print(f"\n{name}", flush=True)
            _common.table(rows)
            if not arguments.no_save:
                _common.save(f"speed_{name}", rows, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
