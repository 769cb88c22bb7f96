"""How large are modules and functions? ``python tools/shape.py`` prints a table.

A function's body is its lines without its docstring; blank lines count. Run it before and after
a change: ``python tools/shape.py path/to/another/checkout``.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("geoseg", "cli")


def bodies(tree: ast.Module) -> Iterator[tuple[int, str, int]]:
    """Lines of every function's body, its name, and how many parameters it has."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        arguments = node.args
        count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
        yield lines, node.name, count


def main(root: Path) -> None:
    modules, functions = [], []
    for path in (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(root))
        modules.append((len(text.splitlines()), name))
        functions += [
            (lines, f"{name}:{each}", count) for lines, each, count in bodies(ast.parse(text))
        ]
    sizes = sorted(lines for lines, _ in modules if lines > 1)
    lengths = sorted(lines for lines, _, _ in functions)
    print(f"modules              {len(modules)}, {sum(sizes)} lines in all")
    print(f"lines a module       median {statistics.median(sizes):.0f}, largest {sizes[-1]}")
    print(f"functions            {len(functions)}")
    print(
        f"lines a body         median {statistics.median(lengths):.0f}, "
        f"90th percentile {lengths[int(0.9 * len(lengths))]}, largest {lengths[-1]}"
    )
    print("largest modules      " + ", ".join(f"{n} {s}" for s, n in sorted(modules)[::-1][:6]))
    print(
        "largest bodies       " + ", ".join(f"{n} {s}" for s, n, _ in sorted(functions)[::-1][:6])
    )
    most = sorted(functions, key=lambda f: -f[2])[:6]
    print("most parameters      " + ", ".join(f"{n} {c}" for _, n, c in most))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
