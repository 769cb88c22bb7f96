"""The page on methods names all of them and shows pictures that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from geoseg.methods import (
    ATTENTIONS,
    REFINERS,
    UPSAMPLERS,
    VIEWS,
    VOCABULARY_STEPS,
    WINDOW_STEPS,
    Table,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "methods.md").read_text(encoding="utf-8")
PICTURES = re.findall(r"!\[.+\]\((.+)\)", PAGE)


@pytest.mark.parametrize(
    "table",
    [ATTENTIONS, UPSAMPLERS, VIEWS, WINDOW_STEPS, REFINERS, VOCABULARY_STEPS],
    ids=lambda table: table.kind,
)
def test_every_method_is_explained_and_in_a_table(table: Table) -> None:
    for name in table.entries:
        if (table, name) == (VIEWS, "none"):
            continue
        told = re.search(rf"^- (?:`[\w-]+`, )*`{name}`(?:, `[\w-]+`)*: ", PAGE, re.MULTILINE)
        assert told, f"{name} is not explained"
        assert re.search(rf"^\| [^|]*`{name}`[^|]* \|", PAGE, re.MULTILINE), f"{name} has no row"


def test_the_pictures_are_there_and_small() -> None:
    files = [DOCS / name for name in PICTURES]
    assert len(files) == 5
    assert sum(file.stat().st_size for file in files) < 1.5e6
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 600


def test_options_in_the_table_of_systems_exist() -> None:
    from typer.main import get_command

    from geoseg_cli.main import app

    found = get_command(app).commands["segment"].params  # type: ignore[attr-defined]
    known = {name for parameter in found for name in parameter.opts}
    systems = PAGE[PAGE.index("## Systems of the field") :]
    assert set(re.findall(r"(--[a-z][a-z-]+)", systems)) <= known
    for kind, table in (("attention", ATTENTIONS), ("refine", REFINERS), ("views", VIEWS)):
        for name in re.findall(rf"--{kind} ([a-z-]+)", systems):
            table.check(name)
