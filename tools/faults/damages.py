"""Bytes and records of an interrupted run, of the text cache and of a finished run, damaged."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tools.faults.stand import LostError, Try

TRIES, SHORT_TRIES = 84, 6
USES = ("segment",)

Damage = Callable[[Path, random.Random], None]
_WHERE = ("work files", "record", "finished run", "record", "work files", "text cache")
_VALUES = ("-1", "0", "7", "1e99", "NaN", '"x"', "null", "[]", "{}", "true", "9" * 30, "3.5")


def attempt(t: Try, *, short: bool) -> None:
    """Damage something that an earlier run has left, and go on."""
    where, out = _WHERE[t.number % len(_WHERE)], t.here / "out"
    damages = _BYTES
    if where == "finished run":
        shutil.copytree(t.stand.reference("segment"), out)
        victims = sorted(out.iterdir())
    elif where == "text cache":
        t.run("segment", t.here / "earlier")
        victims = sorted((t.here / "cache").rglob("*.npz"))
        damages = _BYTES | _ARRAYS
    else:
        share = t.rng.uniform(0.4, 0.65)  # tiles are recorded, products not yet published
        t.run("segment", out, event=(round(share * t.stand.events["segment"]), signal.SIGKILL))
        found = sorted(file for file in (out / ".geoseg-work").rglob("*") if file.is_file())
        victims = [file for file in found if (file.suffix == ".jsonl") == (where == "record")]
        damages = _LINES | (_BYTES if t.rng.random() < 0.3 else {}) if where == "record" else _BYTES
    victim, name = t.rng.choice(victims), t.rng.choice(sorted(damages))
    t.fault, t.detail = f"damaged {where}", f"{victim.name}: {name}"
    damages[name](victim, t.rng)
    if where == "text cache":
        if (ended := t.run("segment", out)).code != 0:
            raise LostError(f"the entry is not made again: {ended}")
    else:
        ended = t.run("segment", out, "--resume")
    warned = where == "finished run" and any(victim.name in line for line in ended.warnings)
    if ended.code in (1, 2) or warned:
        ended = t.run("segment", out, "--overwrite")
    if ended.code in (1, 2) and name == "a folder" and victim.is_dir():
        victim.rmdir()  # no run replaces a folder of somebody's
        ended = t.run("segment", out, "--overwrite")
    if ended.code != 0:
        raise LostError(f"no way out: {ended}")
    t.expect_whole("segment", out)


def _edit(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Damage:
    def damage(file: Path, rng: random.Random) -> None:
        file.write_bytes(change(bytearray(file.read_bytes()), rng))

    return damage


def _zero(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    size = min(rng.choice((16, 512, 4096, 65536)), len(content) - start)
    content[start : start + size] = bytes(size)
    return content


def _flip(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _replace(make: Callable[[Path], None]) -> Damage:
    def damage(file: Path, rng: random.Random) -> None:
        file.unlink()
        make(file)

    return damage


_BYTES: dict[str, Damage] = {
    "cut": _edit(lambda content, rng: content[: rng.randrange(len(content))]),
    "emptied": _edit(lambda content, rng: b""),
    "zeroed": _edit(_zero),
    "flipped": _edit(_flip),
    "noise": _edit(lambda content, rng: rng.randbytes(len(content))),
    "longer": _edit(lambda content, rng: content + rng.randbytes(100)),
    "removed": _replace(lambda file: None),
    "a folder": _replace(Path.mkdir),
    "a dangling link": _replace(lambda file: file.symlink_to("nowhere")),
}


def _line(change: Callable[[list[str], int, random.Random], str]) -> Damage:
    """Put something else in place of one line."""

    def damage(file: Path, rng: random.Random) -> None:
        lines = file.read_text().splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at] = change(lines, at, rng)
        file.write_text("".join(lines))

    return damage


def _other_value(lines: list[str], at: int, rng: random.Random) -> str:
    """Put something else in place of one number."""
    numbers = list(re.finditer(r"\b\d+\b|$", lines[at]))
    start, end = rng.choice(numbers[:-1] or numbers).span()
    return lines[at][:start] + rng.choice(_VALUES) + lines[at][end:]


_LINES: dict[str, Damage] = {
    "another value": _line(_other_value),
    "another digit": _line(lambda s, at, rng: re.sub(r"\d\b", str(rng.randrange(10)), s[at])),
    "a line cut": _line(lambda s, at, rng: s[at][: rng.randrange(len(s[at]))] + "\n"),
    "a line removed": _line(lambda s, at, rng: ""),
    "a line twice": _line(lambda s, at, rng: 2 * s[at]),
    "a line in place of another": _line(lambda s, at, rng: rng.choice(s)),
    "a line of another type": _line(lambda s, at, rng: rng.choice(_VALUES) + "\n"),
}


def _array(make: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(file: Path, rng: random.Random) -> None:
        made = make(np.load(file)["embedding"])
        np.savez(file, embedding=made)

    return damage


def _plain(file: Path, rng: random.Random) -> None:
    array = np.load(file)["embedding"]
    with file.open("wb") as target:
        np.save(target, array)


_ARRAYS: dict[str, Damage] = {
    "not a number": _array(lambda a: np.full_like(a, np.nan)),
    "infinite": _array(lambda a: np.full_like(a, np.inf)),
    "another length": _array(lambda a: a[:-1]),
    "all zero": _array(np.zeros_like),
    "another type": _array(lambda a: a.astype(np.float64)),
    "two axes": _array(lambda a: a[None]),
    "a plain array": _plain,
}
