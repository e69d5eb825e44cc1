"""Files that are either whole or absent: write to a temporary name, then rename."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bevquant.errors import BevquantError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary file name beside ``path``; rename it to ``path`` on success.

    Raises:
        BevquantError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise BevquantError(f"{path}: cannot be written ({error.strerror})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise BevquantError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def append_text(path: Path, text: str) -> None:
    """Add ``text`` to the end of a file, as UTF-8.

    Raises:
        BevquantError: the file cannot be written, or the disk is full.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BevquantError(
            f"{path}: cannot be written ({error.strerror}); make room, then the same command "
            "continues"
        ) from error


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        BevquantError: the file is missing, no regular file, or not UTF-8.
    """
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BevquantError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BevquantError(f"{path}: not UTF-8 text (byte {error.start})") from error


def read_json(path: Path) -> Any:
    """Read JSON from ``path``.

    Raises:
        BevquantError: the file is missing, not JSON, or names a key twice; the message names
            it.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise BevquantError(f"{path}: not valid JSON ({reason})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def check_unused(path: Path) -> None:
    """Refuse a folder to make.

    Raises:
        BevquantError: ``path`` is a non-empty folder or a file.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BevquantError(f"{path}: exists and is not an empty folder; choose another")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; rename it to ``path`` on success.

    Raises:
        BevquantError: ``path`` is a non-empty folder or a file, or cannot be written.
    """
    check_unused(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise BevquantError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(path)
    except OSError as error:
        raise BevquantError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_regular(path: Path) -> None:
    """Refuse what is no file to read: opening a pipe or a device may wait for ever.

    Raises:
        BevquantError: there is no ``path``, or it is a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise BevquantError(f"{path}: cannot be read ({why})") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise BevquantError(f"{path}: cannot be read ({what}, no file)")


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the bytes of ``path``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
