"""Two runs in one folder, or to one file: one has it at a time, and what is left is one's."""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path

from tools.faults.process import Process
from tools.faults.stand import LostError, Try, WrongError, differences

TRIES, SHORT_TRIES = 48, 4
_OVER, _RESUME = ("--overwrite",), ("--resume",)
_CASES: dict[str, tuple[str, str, tuple[str, ...], str, tuple[str, ...]]] = {
    # what is there before, first job, its options, second job, its options
    "run, another --overwrite": ("", "segment", (), "other scene", _OVER),
    "--resume, --resume": ("interrupted", "segment", _RESUME, "segment", _RESUME),
    "vectorize, --overwrite": ("", "vectorize", (), "vectorize other", _OVER),
    "run, another": ("", "segment", (), "other scene", ()),
    "run, --resume": ("", "segment", (), "segment", _RESUME),
    "--resume, --overwrite": ("interrupted", "segment", _RESUME, "other scene", _OVER),
    "both --overwrite": ("finished", "segment", _OVER, "other scene", _OVER),
    "vectorize, another": ("", "vectorize", (), "vectorize other", ()),
}
_YIELDED = re.compile("at work there|exists|already|holds")
"""How a run says that it gives way."""
USES = ("segment", "other scene", "vectorize", "vectorize other")


def attempt(t: Try, *, short: bool) -> None:
    """Start the second run while the first is at work, or while it is stopped."""
    name = list(_CASES)[t.number % len(_CASES)]
    before, first, options, second, more = _CASES[name]
    out = t.here / "out"
    if before == "interrupted":
        t.run(first, out, event=(t.stand.events[first] // 2, signal.SIGKILL))
    elif before:
        shutil.copytree(t.stand.reference(first), out)
    t.fault = f"pair: {name}"
    if t.rng.random() < 0.5:
        number = t.rng.randint(1, t.stand.events[first])
        t.detail = f"the first one sleeps at file event {number} until the second has ended"
        one = t.start(first, out, *options, event=(number, signal.SIGSTOP))
        _until_stopped(one)
        other_end = t.run(second, out, *more)
        one.signal(signal.SIGCONT)
    else:
        pause = t.rng.uniform(0, 1.2 * t.stand.seconds[first])
        t.detail = f"{pause:.2f} s apart"
        one = t.start(first, out, *options)
        time.sleep(pause)
        other_end = t.run(second, out, *more)
    one_end = t.ended(one)
    codes = (one_end.code, other_end.code)
    told = f"first: {one_end}; second: {other_end}"
    if None in codes:
        raise LostError(f"does not end; {told}")
    if 0 not in codes:
        raise LostError(f"neither has its map; {told}")
    left = [j for j in (first, second) if not differences(out, t.stand.reference(j))]
    if not left:
        raise WrongError(f"what is left belongs to neither; {told}")
    if codes.count(0) == 1 and (first if codes[0] == 0 else second) not in left:
        raise WrongError(f"the one that says it has succeeded is not there; {told}")
    for end in (one_end, other_end):
        if end.code != 0 and not any(_YIELDED.search(line) for line in end.lines):
            raise LostError(f"a run fails because of the other; {told}")
    asked = "--overwrite" in (options if left == [first] else more)
    if codes == (0, 0) and first != second and not asked:
        raise LostError(f"both exit 0, {left[0]} has replaced the other without --overwrite")


def _until_stopped(process: Process) -> None:
    """Wait until a process sleeps at its event, or has ended without one."""
    while process.running():
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        if stat.rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.01)
