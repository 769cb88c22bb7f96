"""Options of the method that the commands for labelled data share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg_cli.segment import Attention, Precision, Upsampler

__all__ = ["METHOD", "MODEL", "Attention", "Precision", "Upsampler"]

MODEL, METHOD = "Model", "Method"

TemplatesOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        rich_help_panel=MODEL,
        help="Prompt templates: imagenet (80), remote-sensing, none, or a text file with {} in "
        "every line.",
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(rich_help_panel=MODEL, help="Arithmetic of the encoder; auto is bf16 on a GPU."),
]
AttentionOption = Annotated[
    Attention | None,
    typer.Option(
        rich_help_panel=METHOD,
        help="Attention of the last block. \\[default: the model's, else segearth]",
    ),
]
UpsamplerOption = Annotated[
    Upsampler | None,
    typer.Option(
        rich_help_panel=METHOD,
        help="From patches to pixels: jbu needs no weights, simfeatup and featup do. "
        "\\[default: the model's, else jbu]",
    ),
]
UpsamplerWeightsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=METHOD,
        help="Checkpoint of simfeatup (JBU-One) or featup (JBU-Stack).",
    ),
]
ClsBiasOption = Annotated[
    float | None,
    typer.Option(
        metavar="λ",
        rich_help_panel=METHOD,
        help="Subtract λ times the window's global logits from every pixel. \\[default: the data "
        "set's or model's, else 0.3]",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=METHOD,
        help="Windows encoded at once. \\[default: picked for the device]",
    ),
]
