"""One learned upsampling step as one GPU kernel, in Triton's language.

A program takes blocks of pixels, one after another. What it computes for a block stays in registers
and in two small stores of its own, which the GPU's caches hold; kernels never go to memory::

    range features --products--> store --own neighbours--> softmax --fix-up--> weights
    weights --to their neighbours' places--> store --products with fine pixels--> block

The stores turn "pixel and tap" into "pixel and neighbour" and back, so that both sums over
neighbours are matrix products: a block's pixels share their neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def upsample_blocks(
    features,
    guidance,
    fine,
    out,
    first,
    first_guided,
    second,
    second_bias,
    log_spatial,
    stores,
    blocks,
    rows,
    cols,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    ALL_TAPS: tl.constexpr,
    RANGE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SOME: tl.constexpr,
    SOME_CHANNELS: tl.constexpr,
    SOME_UNITS: tl.constexpr,
):
    """Upsample all blocks; see `geoseg.model.upsampling.fused.FusedStep`.

    Parameters
    ----------
    features
        ``(B, SIDE rows + TAPS - 1, SIDE cols + TAPS - 1, RANGE)``: with mirrored margins.
    guidance
        ``(B, SIDE rows, SIDE cols, 4)``, the fourth channel ones.
    fine
        ``(B, SIDE rows + TAPS - 1, SIDE cols + TAPS - 1, CHANNELS)``: bicubically resized, with
        mirrored margins.
    out
        ``(B, SIDE rows, SIDE cols, CHANNELS)``.
    first, second
        ``(ALL_TAPS, ALL_TAPS)`` float16: layers of the fix-up, inputs first, zeros beyond TAPS².
    first_guided
        ``(4, ALL_TAPS)``.
    second_bias, log_spatial
        ``(ALL_TAPS,)``; the latter minus infinity beyond TAPS².
    stores
        ``(programs, 2, SIDE², ALL)`` zeros, with ALL neighbours filled up to a multiple of SOME:
        scores, and weights at their neighbours' places.
    blocks
        B times rows times cols.
    """
    REACH: tl.constexpr = SIDE + TAPS - 1
    NEIGHBOURS: tl.constexpr = REACH * REACH
    ALL: tl.constexpr = (NEIGHBOURS + SOME - 1) // SOME * SOME
    PIXELS: tl.constexpr = SIDE * SIDE

    pixel = tl.arange(0, PIXELS)
    tap = tl.arange(0, ALL_TAPS)
    is_tap = (tap < TAPS * TAPS)[None, :]
    place = (pixel // SIDE)[:, None] * REACH + (pixel % SIDE)[:, None]
    place += (tap // TAPS * REACH + tap % TAPS)[None, :]
    scores = stores + tl.program_id(0) * 2 * PIXELS * ALL
    banded = scores + pixel[:, None] * ALL + place  # where a pixel's own neighbours are
    SPREAD: tl.constexpr = PIXELS * ALL  # from scores to weights
    unit = tl.arange(0, RANGE)
    some = tl.arange(0, SOME)
    tall = rows * SIDE + TAPS - 1
    wide = cols * SIDE + TAPS - 1
    RADIUS: tl.constexpr = TAPS // 2

    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        image = block // (rows * cols)
        top = block // cols % rows * SIDE
        left = block % cols * SIDE
        corner = ((image * tall + top) * wide + left).to(tl.int64)
        inside = corner + (pixel // SIDE + RADIUS) * wide + pixel % SIDE + RADIUS
        centres = tl.load(features + inside[:, None] * RANGE + unit[None, :])
        for start in range(0, ALL, SOME):
            neighbour = start + some
            there = corner + neighbour // REACH * wide + neighbour % REACH
            around = tl.load(
                features + there[None, :] * RANGE + unit[:, None],
                mask=(neighbour < NEIGHBOURS)[None, :],
                other=0.0,
            )
            products = tl.dot(centres, around, input_precision="tf32x3")
            tl.store(scores + pixel[:, None] * ALL + neighbour[None, :], products)
        tl.debug_barrier()

        score = tl.load(banded, mask=is_tap, other=0.0) + tl.load(log_spatial + tap)
        shares = tl.exp(score - tl.max(score, axis=1)[:, None])
        shares = shares / tl.sum(shares, axis=1)[:, None]

        here = ((image * rows * SIDE + top) * cols * SIDE + left).to(tl.int64)
        here += pixel // SIDE * cols * SIDE + pixel % SIDE
        weights = shares
        for begin in range(0, ALL_TAPS, SOME_UNITS):
            units = begin + tl.arange(0, SOME_UNITS)
            layer = tl.load(first + tap[:, None] * ALL_TAPS + units[None, :])
            hidden = tl.dot(shares.to(tl.float16), layer)
            for channel in tl.static_range(4):
                guided = tl.load(guidance + here * 4 + channel)
                share = tl.load(first_guided + channel * ALL_TAPS + units)
                hidden += guided[:, None] * share[None, :]
            hidden = 0.5 * hidden * (1 + tl.erf(hidden * 0.7071067811865476))
            layer = tl.load(second + units[:, None] * ALL_TAPS + tap[None, :])
            weights = tl.dot(hidden.to(tl.float16), layer, weights)
        weights += tl.load(second_bias + tap)[None, :]
        tl.store(banded + SPREAD, weights, mask=is_tap)
        tl.debug_barrier()

        for begin in range(0, CHANNELS, SOME_CHANNELS):
            channels = begin + tl.arange(0, SOME_CHANNELS)
            found = tl.zeros((PIXELS, SOME_CHANNELS), tl.float32)
            for start in range(0, ALL, SOME):
                neighbour = start + some
                there = corner + neighbour // REACH * wide + neighbour % REACH
                of_each = tl.load(scores + SPREAD + pixel[:, None] * ALL + neighbour[None, :])
                pixels = tl.load(
                    fine + there[:, None] * CHANNELS + channels[None, :],
                    mask=(neighbour < NEIGHBOURS)[:, None] & (channels < CHANNELS)[None, :],
                    other=0.0,
                )
                found = tl.dot(of_each, pixels, found, input_precision="tf32x3")
            tl.store(
                out + here[:, None] * CHANNELS + channels[None, :],
                found,
                mask=(channels < CHANNELS)[None, :],
            )
