"""The first step of the `geoseg` script: whoever stops it while it is loaded sees no traceback."""

from __future__ import annotations

import gc
import time

CLOCK = time.perf_counter()
"""When this process began, nearly."""


def run() -> None:
    """Load the commands, and run what the command line names."""
    try:
        from geoseg_cli.main import run as run_commands
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        run_commands()
    finally:
        # Python looks for cycles as it ends, for a second and more among all that torch made.
        gc.freeze()
