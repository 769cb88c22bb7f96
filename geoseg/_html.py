"""How objects show themselves in a notebook: small tables, all of whose texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def swatch(color: str) -> Html:
    """A square of a colour, ``#rrggbb``, with its code as the tooltip."""
    return Html(
        f'<span title="{escape(color)}" style="display:inline-block;width:1em;height:1em;'
        f'border:1px solid #8886;vertical-align:middle;background:{escape(color)}"></span>'
    )


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with a line above it.

    Parameters
    ----------
    title
        The line.
    head
        Heads of the columns; empty for none.
    rows
        Their cells; everything but `Html` is escaped.
    """
    return (
        f"<div><b>{escape(title)}</b><table>"
        + (f"<thead><tr>{_cells('th', head)}</tr></thead>" if head else "")
        + "<tbody>"
        + "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
        + "</tbody></table></div>"
    )


def _cells(tag: str, cells: Sequence[object]) -> str:
    style = "text-align:left"
    texts = (one if isinstance(one, Html) else escape(str(one)) for one in cells)
    return "".join(f'<{tag} style="{style}">{text}</{tag}>' for text in texts)
