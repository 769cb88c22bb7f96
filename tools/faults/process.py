"""geoseg in a process of its own: forked from one that has imported everything, or started anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 150.0
_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_ASKED = {signal.SIGTERM, signal.SIGINT}
_GEOSEG = (sys.executable, "-c", "from geoseg_cli.start import run; run()")


@dataclass(frozen=True)
class Ended:
    """How a process has ended."""

    command: str
    code: int | None
    """Exit status, less than 0 for a signal, None if it did not end."""
    lines: tuple[str, ...]
    """What it said on stderr, without progress and warnings."""
    warnings: tuple[str, ...] = ()

    @property
    def long(self) -> bool:
        """Whether a refusal took more than three lines."""
        return self.code not in (None, 0) and len(self.lines) > 3

    @property
    def unexpected(self) -> bool:
        """Whether it failed in a way that nobody expected."""
        return any("unexpected failure" in line or "Traceback" in line for line in self.lines)

    def __str__(self) -> str:
        end = "does not end" if self.code is None else f"exit {self.code}"
        return f"{end}: {self.lines[-1][:200]}" if self.lines else end


class Process:
    """A geoseg command under way.

    Parameters
    ----------
    args
        Its arguments.
    log
        File for what it says.
    env
        Variables to set.
    forked
        Fork this process, which saves the imports; otherwise start an interpreter.
    prepare
        Called in the forked process first.
    """

    def __init__(
        self,
        args: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str],
        forked: bool = True,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.command = " ".join(["geoseg", *(f'"{a}"' if " " in a else a for a in args)])
        self.log = log
        if forked:
            held = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED)  # until geoseg has begun
            self.pid = os.fork()
            if self.pid == 0:
                _become(args, log, env, prepare)
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        else:
            with log.open("wb") as said:
                self.pid = subprocess.Popen(
                    [*_GEOSEG, *args], env={**os.environ, **env}, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
                ).pid  # fmt: skip
        self._code: int | None = None

    def running(self) -> bool:
        """Whether it has not ended."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is None

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.running():
            os.kill(self.pid, number)

    def wait(self, seconds: float = LIMIT_SECONDS) -> Ended:
        """Wait for its end, and end all that it has started."""
        last = time.monotonic() + seconds
        while self.running() and time.monotonic() < last:
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it and what it has started
        code, self._code = self._code, self._code or -signal.SIGKILL
        if code is None:
            os.waitpid(self.pid, 0)
        said = self.log.read_text(errors="replace").splitlines()
        spoken = [s for s in said if s and " %  tile" not in s and not s.startswith("warning")]
        warned = [s for s in said if s.startswith("warning")]
        return Ended(self.command, code, tuple(spoken), tuple(warned))


def _become(args: Sequence[str], log: Path, env: Mapping[str, str], prepare: Any) -> None:
    """Turn a forked process into geoseg; does not return."""
    code: Any = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDWR)
        for source, target in ((nothing, 0), (nothing, 1), (said, 2)):
            os.dup2(source, target)
        for stream, number in ("stdin", 0), ("stdout", 1), ("stderr", 2):
            setattr(sys, stream, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
        os.environ.update(env)
        sys.argv = ["geoseg", *args]
        from geoseg_cli.main import run

        prepare()
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKED)
        except KeyboardInterrupt:  # as where the commands are loaded, see geoseg_cli.start
            raise SystemExit(130) from None
        run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def at_file_event(folder: Path, number: int | None, sent: int, count: Path) -> Callable[[], None]:
    """Make what a forked process does first, so that it sends itself a signal at a file event.

    Parameters
    ----------
    folder
        Only what happens under it counts.
    number
        Which event, from 1; None only counts them.
    sent
        The signal.
    count
        File that grows by a byte an event.
    """

    def prepare() -> None:
        handle = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        inside, seen = str(folder), 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in _FILE_EVENTS or not str(args[0]).startswith(inside):
                return
            seen += 1
            os.write(handle, b".")
            if seen == number:
                os.kill(os.getpid(), sent)

        sys.addaudithook(hook)

    return prepare
