"""Files that are whole or not there, and settings of the process that are put back."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg._files import absolute, whole_file
from geoseg.errors import OutputError
from geoseg.runtime.setting import Setting

# -- files ----------------------------------------------------------------------------------------

NAMES = st.text("ab.[]*?!é ", min_size=1, max_size=12).filter(lambda name: set(name) != {"."})


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@given(
    name=NAMES,
    before=st.none() | st.just("old"),
    sidecars=st.lists(st.sampled_from(["-journal", ".aux.xml", ".ovr.tmp"]), unique=True),
    fails=st.booleans(),
    begun=st.booleans(),
)
def test_a_file_is_whole_or_as_before(
    name: str, before: str | None, sidecars: list[str], fails: bool, begun: bool
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        final, others = folder / name, {"other.part": "kept", ".hidden": "kept"}
        for other, text in others.items():
            (folder / other).write_text(text)
        known = others | ({} if before is None else {name: before})
        if before is not None:
            final.write_text(before)
        with _failing(fails), whole_file(final) as part:
            assert part.parent == final.parent
            assert part.name.startswith(".")
            assert part.name.endswith(final.suffix)
            assert part != final
            if begun or not fails:
                part.write_text("new")
            for sidecar in sidecars:
                part.with_name(part.name + sidecar).write_text("by a library")
            assert contents(folder).items() >= known.items()
            if fails:
                raise ZeroDivisionError
        assert contents(folder) == known | ({} if fails else {name: "new"})


def _failing(fails: bool) -> AbstractContextManager[object]:
    return pytest.raises(ZeroDivisionError) if fails else nullcontext()


def test_a_block_that_wrote_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "file.txt"):
        pass
    assert contents(tmp_path) == {"file.txt": "old"}


def test_what_the_disk_tells_last_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk may say only when bytes are to settle that there is no room for them."""
    final = tmp_path / "map.tif"
    final.write_text("old")
    settled: list[bool] = []

    def full(handle: int) -> None:
        settled.append(final.read_text() == "old")
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    no_room = pytest.raises(OutputError, match=r"map\.tif: cannot be written, there is no room")
    with no_room, whole_file(final) as part:
        part.write_text("new")
    assert settled == [True]
    assert contents(tmp_path) == {"map.tif": "old"}


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    """The last to finish wins, and its file is its own from the first byte to the last."""
    final, meeting = tmp_path / "file.txt", threading.Barrier(4, timeout=30)

    def write(letter: str) -> None:
        with whole_file(final) as part, part.open("w") as file:
            for _ in range(5):
                meeting.wait()
                file.write(letter * 1000)
                file.flush()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    (text,) = contents(tmp_path).values()
    assert text == text[0] * 5000


def test_a_path_holds_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scene.tif").touch()
    monkeypatch.chdir(tmp_path)
    assert absolute("scene.tif") == str(tmp_path / "scene.tif")
    assert absolute("s3://bucket/scene.tif") == "s3://bucket/scene.tif"


# -- settings -------------------------------------------------------------------------------------

VALUES = st.none() | st.integers(0, 3)


class Process:
    """Something with a setting."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def setting(self) -> Setting[Any]:
        return Setting(lambda: self.value, lambda value: setattr(self, "value", value))


@given(
    first=VALUES,
    moves=st.lists(st.tuples(st.booleans(), VALUES, st.integers(0, 9), st.booleans())),
)
def test_the_latest_change_that_is_open_holds(
    first: Any, moves: list[tuple[bool, Any, int, bool]]
) -> None:
    """Blocks may end in any order, well or not, as those of several threads do."""
    process = Process(first)
    setting = process.setting()
    held: list[tuple[Any, AbstractContextManager[None]]] = []
    for opens, value, which, fails in [*moves, *[(False, None, 0, False)] * len(moves)]:
        if opens:
            change = setting.changed_to(value)
            change.__enter__()
            held.append((value, change))
        elif held:
            _leave(held.pop(which % len(held))[1], fails=fails)
        assert process.value == (held[-1][0] if held else first)
        assert setting.usual() == first
    assert not held


def _leave(change: AbstractContextManager[None], *, fails: bool) -> None:
    error = ZeroDivisionError() if fails else None
    assert not change.__exit__(type(error) if error else None, error, None)


def test_what_was_set_between_the_changes_is_what_is_put_back() -> None:
    process = Process(1)
    setting = process.setting()
    with setting.changed_to(2):
        pass
    process.value = 5
    with setting.changed_to(2):
        assert setting.usual() == 5
    assert process.value == 5


def test_a_value_that_is_refused_changes_nothing() -> None:
    values = [1]

    def write(value: int) -> None:
        if value < 0:
            raise ValueError(value)
        values.append(value)

    setting = Setting(lambda: values[-1], write)
    with setting.changed_to(2):
        with pytest.raises(ValueError, match="-1"), setting.changed_to(-1):
            pass
        assert values[-1] == 2
    assert values[-1] == setting.usual() == 1


@given(
    first=VALUES,
    moves=st.lists(st.tuples(st.integers(0, 2), st.booleans(), VALUES, st.booleans()), max_size=20),
)
def test_every_thread_gets_its_own_back(
    first: Any, moves: list[tuple[int, bool, Any, bool]]
) -> None:
    """Of a setting that a thread takes from the process when it begins, and then keeps."""
    default, own = Process(first), threading.local()

    def read() -> Any:
        if not hasattr(own, "value"):
            own.value = default.value
        return own.value

    def write(value: Any) -> None:
        own.value = default.value = value

    setting = Setting(read, write, per_thread=True)
    pools = [ThreadPoolExecutor(1) for _ in range(3)]

    def there(thread: int, function: Callable[[], Any]) -> Any:
        return pools[thread].submit(function).result(30)

    held: list[list[tuple[Any, AbstractContextManager[None]]]] = [[], [], []]
    try:
        for thread, opens, value, fails in moves:
            if opens:
                change = setting.changed_to(value)
                there(thread, change.__enter__)
                held[thread].append((value, change))
            elif held[thread]:
                change = held[thread].pop()[1]
                there(thread, partial(_leave, change, fails=fails))
                expected = held[thread][-1][0] if held[thread] else first
                assert there(thread, read) == expected
            assert there(thread, setting.usual) == first
        for thread, changes in enumerate(held):
            while changes:
                there(thread, partial(_leave, changes.pop()[1], fails=False))
            assert there(thread, setting.usual) == first
    finally:
        for pool in pools:
            pool.shutdown()
    assert default.value == first


def test_threads_at_once() -> None:
    """However they interleave, nobody sees the first value while inside, and it is there after."""
    process = Process("first")
    setting, seen = process.setting(), []

    def work(number: int) -> None:
        for _ in range(50):
            with setting.changed_to(number):
                seen.append(process.value)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(seen) == 200
    assert "first" not in seen
    assert process.value == "first"
