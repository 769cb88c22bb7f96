"""From nothing to the bundled model in one command.

``python -m tools.make_tiny WORK`` distils the text tower, trains the image tower and the upsampler
on scenes that it draws, exports and measures; `tools/README.md` says how long that takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tools.export_tiny import FOLDER


def commands(work: Path, folder: Path, minutes: float, seed: int) -> list[list[str]]:
    """Return the steps, each a module with its arguments."""
    where, named = str(work), f"local-dir:{folder}"
    names = ("wide", "narrow", "tiny_middle", "tiny", "cut", "thin")
    wide, narrow, middle, tiny, cut, thin = (str(work / f"{name}.pt") for name in names)
    train = ["tools.train_tiny", where, "--seed", str(seed)]
    # Trained wide, pruned, trained on at a third of the rate. The mean of the weights before, in
    # the middle of and after that is pruned once more, and teaches what is left of it.
    again = ["--init", narrow, "--rate", "8e-4", "--vision", '{"mlp_ratio": 2.0}']
    mean = (narrow, middle, tiny)
    taught = ["--init", cut, "--rate", "1.2e-3", "--vision", '{"mlp_ratio": 1.0}']
    export = ["tools.export_tiny", thin, "--folder", str(folder)]
    return [
        ["tools.text_distill", where, "--seed", str(seed)],
        [*train, "--name", "wide", "--minutes", str(0.55 * minutes)],
        ["tools.prune_tiny", wide, narrow],
        [*train, "--name", "tiny", "--minutes", str(0.25 * minutes), *again],
        ["tools.prune_tiny", *mean, cut, "--ratio", "1.0"],
        [*train, "--name", "thin", "--minutes", str(0.2 * minutes), *taught, "--teacher", *mean],
        export,
        ["tools.train_upsampler", where, "--model", named, "--minutes", str(minutes / 8)],
        [*export, "--upsampler", str(work / "simfeatup.pt")],
        ["tools.evaluate_tiny", "--model", named],
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model goes")
    parser.add_argument("--minutes", type=float, default=75, help="for the image tower")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for command in commands(options.work, options.folder, options.minutes, options.seed):
        subprocess.run([sys.executable, "-m", *command], check=True)


if __name__ == "__main__":
    main()
