"""Runs the tries, two at once, and says what became of them."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks._common import machine, table
from tools.faults.stand import LostError, Stand, Try, WrongError

KINDS = ("kills", "disks", "pairs", "damages", "checkpoints")
_RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "faults.json"
# What a run imports late; a fork that has it already is quick.
_EARLY = ("geoseg.pipeline", "geoseg.testing", "geoseg.preview", "geoseg.vector.stats",
          "geoseg.evaluation.tune_samples", "geoseg.evaluation.report", "geoseg_cli.main",
          "open_clip", "geopandas", "pyarrow", "rich.progress", "distributed")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tries that are asked for; exit status 1 if anything is lost or silently wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few tries of each kind")
    parser.add_argument("--only", choices=KINDS, action="append", help="kinds to try")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other tries")
    parser.add_argument("--try", type=int, dest="number", help="this try alone; its files stay")
    parser.add_argument("--json", type=Path, help=f"file to write [full form: {_RESULTS.name}]")
    given = parser.parse_args(arguments)
    for name in _EARLY:
        importlib.import_module(name)
    root, start = Path(tempfile.mkdtemp(prefix="geoseg-faults-")), time.monotonic()
    kinds = given.only or list(KINDS)
    try:
        verdicts = _run_all(root, kinds, given)
    finally:
        if given.number is None:
            shutil.rmtree(root, ignore_errors=True)
        else:
            print(f"its files: {root}")
    rows = rows_of(verdicts)
    table([*rows, {"fault": "all", **{k: sum(r[k] for r in rows) for k in list(rows[0])[1:]}}])
    target = given.json or (None if given.short or given.only else _RESULTS)
    if target:
        facts = {
            "benchmark": "faults",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seed": given.seed,
            "seconds": round(time.monotonic() - start),
            "machine": machine(),
            "rows": rows,
            "failures": [verdict for verdict in verdicts if verdict["outcome"] != "survived"],
        }
        target.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return int(any(verdict["outcome"] != "survived" for verdict in verdicts))


def _run_all(root: Path, kinds: list[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    rooms = {kind: importlib.import_module(f"tools.faults.{kind}") for kind in kinds}
    stand = Stand(root)
    stand.build([job for room in rooms.values() for job in room.USES])
    tries = [
        (kind, number)
        for kind, room in rooms.items()
        for number in ([given.number] if given.number is not None else
                       range(room.SHORT_TRIES if given.short else room.TRIES))
    ]  # fmt: skip
    verdicts = []
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        waiting = [pool.submit(attempt, stand, k, n, given.seed, given.short) for k, n in tries]
        for done in as_completed(waiting):
            verdict = done.result()
            verdicts.append(verdict)
            _report(verdict, given, root)
            if given.number is None:
                shutil.rmtree(root / f"{verdict['kind']}-{verdict['try']}", ignore_errors=True)
    return sorted(verdicts, key=lambda v: (KINDS.index(v["kind"]), v["try"]))


def attempt(stand: Stand, kind: str, number: int, seed: int, short: bool) -> dict[str, Any]:
    """Run one try and return what became of it."""
    t = Try(stand, kind, number, random.Random(f"{seed}/{kind}/{number}"))
    outcome, why = "survived", ""
    try:
        importlib.import_module(f"tools.faults.{kind}").attempt(t, short=short)
    except LostError as error:
        outcome, why = "lost", str(error)
    except WrongError as error:
        outcome, why = "wrong", str(error)
    except Exception as error:
        outcome, why = "lost", f"the try itself failed: {type(error).__name__}: {error}"
    return {
        "kind": kind,
        "try": number,
        "fault": t.fault,
        "detail": t.detail.strip(", "),
        "outcome": outcome,
        "why": why.replace(str(t.here), "HERE"),
        "long": [str(end) for end in t.ends if end.long],
        "unexpected": [str(end) for end in t.ends if end.unexpected],
        "litter": t.litter,
        "felt": any(end.code != 0 for end in t.ends),
        "commands": [end.command for end in t.ends],
    }


def _report(verdict: dict[str, Any], given: argparse.Namespace, root: Path) -> None:
    """Say at once what went wrong, and how to see it again."""
    name = f"{verdict['fault']} ({verdict['detail']})"
    again = f"python -m tools.faults --only {verdict['kind']} --seed {given.seed}"
    again += f" --try {verdict['try']}{' --short' if given.short else ''}"
    if verdict["outcome"] != "survived":
        print(f"{verdict['outcome'].upper()}: {name}: {verdict['why']}\n  again: {again}")
        for command in verdict["commands"]:
            print(f"  {command.replace(str(root), 'ROOT')}")
    for what in ("long", "unexpected", "litter"):
        if verdict[what]:
            print(f"{what}: {name}: {verdict[what][0]}\n  again: {again}")
    sys.stdout.flush()


def rows_of(verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add up what became of the tries, fault by fault."""
    rows: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        # "felt": some process did not end with exit 0; a cluster gets over the end of a worker.
        names = ("tries", "felt", "survived", "lost", "wrong", "long", "unexpected", "litter")
        row = rows.setdefault(
            verdict["fault"], {"fault": verdict["fault"], **dict.fromkeys(names, 0)}
        )
        row["tries"] += 1
        row[verdict["outcome"]] += 1
        for name in ("felt", "long", "unexpected", "litter"):
            row[name] += bool(verdict[name])
    return list(rows.values())
