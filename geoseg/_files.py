"""Files that are whole or not there, texts of others in them, and paths that hold in any folder."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from zlib import crc32

from geoseg._address import as_given, is_address
from geoseg._inputs import is_there
from geoseg.errors import GeosegError, OutputError

_numbers = itertools.count(1)
_under_way: set[Path] = set()
"""Files that threads of this process are writing."""
_OWNER = re.compile(r"(?P<process>\d+)(-\d+)?(-(?P<machine>[0-9a-f]{8}))?\.part")


@contextmanager
def whole_file(final: Path, *, replaces: bool = True) -> Iterator[Path]:
    """Give a path to write to; its file gets the final name once the block has ended well.

    The path lies beside the final one, hidden, with the same suffix, which some libraries go by,
    and every call has one of its own. After an exception nothing is left of it, nor
    of files that a library has put beside it under longer names. What a process that was killed
    has left of the same file goes first. Unless it ``replaces`` what has the name, somebody else's
    file of that name is left alone, even if it has only just come.
    """
    with whole_files([final], replaces=replaces) as (part,):
        yield part


@contextmanager
def whole_files(finals: Sequence[Path], *, replaces: bool = True) -> Iterator[list[Path]]:
    """Do as `whole_file` does for files that belong together: all get their names, or none does.

    Raises
    ------
    OutputError
        If a complete file cannot get its name.
    """
    parts = [_part_of(final) for final in finals]
    for final in finals:
        _remove_abandoned(final)
    _under_way.update(parts)
    try:
        yield parts
        for final, part in zip(finals, parts, strict=True):
            if not part.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(final))
            if final.is_dir():
                raise OutputError(complaint(final, os.strerror(errno.EISDIR)))
            with writing_to(final):
                _settle(part)
        for final, part in zip(finals, parts, strict=True):
            if final.suffix.lower() == ".gpkg":
                release_database(final)
            with writing_to(final):
                _give_name(part, final, replaces=replaces)
    finally:
        for part in parts:
            _remove(part.parent.glob(f"{glob.escape(part.stem)}*"))
        _under_way.difference_update(parts)


def _settle(part: Path) -> None:
    """Have a file's bytes on the disk before it gets its name.

    Some systems tell only now that there is no room, and after a loss of power a file could have
    its name and no bytes.
    """
    handle = os.open(part, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _give_name(part: Path, final: Path, *, replaces: bool) -> None:
    if not replaces:
        try:
            os.link(part, final)  # which fails where the name is taken, unlike a renaming
            return
        except FileExistsError:
            words = f"{final}: exists already; replace it with --overwrite"
            raise OutputError(words) from None
        except OSError:  # a file system without links
            pass
    part.replace(final)


def _machine() -> str:
    """Mark of this machine, or container: the numbers of its processes mean nothing elsewhere."""
    return f"{crc32(socket.gethostname().encode()):08x}"


def _part_of(final: Path) -> Path:
    owner = f"{os.getpid()}-{next(_numbers)}-{_machine()}"
    return final.with_name(f"{_beginning(final)}{owner}.part{final.suffix}")


def _beginning(final: Path) -> str:
    return f".{re.sub(f'[{_MARKS}]', '_', final.stem)}."


def _remove_abandoned(final: Path) -> None:
    """Remove what nobody writes any more of files that were to have this name."""
    beginning = _beginning(final)
    for path in final.parent.glob(f"{glob.escape(beginning)}*.part*"):
        owner = _OWNER.match(path.name.removeprefix(beginning))
        if owner is None or owner["machine"] not in (None, _machine()):
            continue
        process = int(owner["process"])
        mine = process == os.getpid()
        if (
            not any(path.name.startswith(part.stem) for part in tuple(_under_way))
            if mine
            else not _is_alive(process)
        ):
            _remove([path])


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


_MARKS = "!;"
"""What pyogrio reads in a path as parts of an address."""


@contextmanager
def plain_path(path: str | Path) -> Iterator[str]:
    """Give another name, for pyogrio and geopandas, to a file whose path they would take apart.

    What is read has its neighbours of the same stem beside it; what is to be written needs a file
    name without marks, as those of `whole_file` are.
    """
    file = Path(path)
    local = file.parent.is_dir() and "://" not in str(path) and not str(path).startswith("/vsi")
    if not local or not any(mark in str(path) for mark in _MARKS):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="geoseg-") as folder:
        link = Path(folder) / "here"
        if any(mark in file.name for mark in _MARKS):
            link.mkdir()
            for near in file.parent.glob(f"{glob.escape(file.stem)}.*"):
                name = f"file{near.name.removeprefix(file.stem)}"
                (link / name).symlink_to(near.resolve())
            yield str(link / f"file{file.suffix}")
        else:
            link.symlink_to(file.parent.resolve(), target_is_directory=True)
            yield str(link / file.name)


_LOGS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database that it changes; applied to another one, it breaks that."""


def release_database(path: Path) -> None:
    """Make sure that a GeoPackage which is to be replaced has no logs beside it.

    Raises
    ------
    OutputError
        If another program has it open.
    """
    logs = [path.with_name(path.name + end) for end in _LOGS]
    if not any(map(os.path.lexists, logs)):
        return
    busy = f"{path}: is open in another program; close the layer there, or give another name"
    with suppress(sqlite3.DatabaseError), closing(_opened(path)) as database:
        try:
            # Only who has it alone may leave the write-ahead log.
            (mode,) = database.execute("PRAGMA journal_mode=DELETE").fetchone()
            database.execute("BEGIN EXCLUSIVE")
            database.rollback()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise OutputError(busy) from None
            raise
        if mode == "wal":
            raise OutputError(busy)
    for log in logs:
        with writing_to(log):
            log.unlink(missing_ok=True)


def _opened(path: Path) -> sqlite3.Connection:
    if not path.exists():  # which SQLite would make
        raise sqlite3.DatabaseError
    return sqlite3.connect(path, timeout=0)


def absolute(path: str | Path) -> str:
    """Return a path as a process in another folder finds it; as it is where nothing lies there."""
    return str(Path(path).absolute()) if is_there(path) else str(path)


def local_target(path: str | Path) -> Path:
    """Return the path of a file or folder that is to be written.

    Raises
    ------
    OutputError
        If it is an address, or what can be no name of a file.
    """
    if is_address(path):
        raise OutputError(
            f"{as_given(path)}: is an address, and this is written on this machine alone; give "
            "a local path and copy it there"
        )
    target = Path(path)
    with writing_to(target, ValueError), suppress(FileNotFoundError, NotADirectoryError):
        target.lstat()
    return target


def refuse_source(target: Path, sources: Iterable[str | Path]) -> None:
    """Refuse to write over a file that is being read, under whatever name.

    Raises
    ------
    OutputError
        If one of the sources is the target.
    """
    for source in sources:
        if target.exists() and is_there(source) and target.samefile(source):
            raise OutputError(
                f"{as_given(source)} is the scene itself and would be replaced; give another --out"
            )


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_LITTLE_ROOM_BYTES = 2**20


@contextmanager
def writing_to(path: Path, *native: type[Exception]) -> Iterator[None]:
    """Turn an error of the system while writing a file into one line.

    Put it inside of `whole_file` where a library does not tell that the disk is full: that shows
    only while the file is still there.

    Parameters
    ----------
    path
        The file as the user knows it.
    native
        What the library that writes raises besides.

    Raises
    ------
    OutputError
        That names the file, and says so where there is no room.
    """
    errors: tuple[type[Exception], ...] = (OSError, *native)
    try:
        yield
    except GeosegError:
        raise
    except errors as error:
        raise OutputError(complaint(path, error)) from error


def complaint(path: Path, error: BaseException | str) -> str:
    """Say why a file could not be written, also where a library does not tell."""
    number = error.errno if isinstance(error, OSError) else None  # GDAL has numbers of its own
    if number in _NO_ROOM or (number is None and _is_full(path)):
        return f"{path}: cannot be written, there is no room on the disk; make room and go on"
    if number == errno.EFBIG or (number is None and _is_at_limit()):
        return f"{path}: cannot be written, it would be larger than files may be here (ulimit -f)"
    # Libraries name the file that they write, which the user has never heard of.
    unfinished = rf"{re.escape(_beginning(path))}{_OWNER.pattern}"
    reason = re.sub(unfinished, lambda _: path.stem, getattr(error, "strerror", None) or str(error))
    return f"{path}: cannot be written ({reason})"


def lacks_room(error: BaseException) -> bool:
    """Whether an error of the system says that there is no room to write."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM | {errno.EFBIG}


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LITTLE_ROOM_BYTES
    except OSError:
        return False


def _is_at_limit() -> bool:
    """Whether files may not grow for ever; the size of one that failed says little."""
    try:
        import resource
    except ImportError:  # not on Windows
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


_BEGIN_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def csv_cell(value: object) -> object:
    """Return a cell of a table as CSV may have it.

    A text that a spreadsheet would take for a formula, because it begins with ``=``, ``+``, ``-``,
    ``@``, a tab or a carriage return, gets an apostrophe in front. Numbers are left as they are.
    """
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.fspath(value)
    return f"'{text}" if text.startswith(_BEGIN_FORMULAS) else text


_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """Show characters that XML cannot hold, such as U+FFFE, as ``\\ufffe``."""
    return _NOT_IN_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
