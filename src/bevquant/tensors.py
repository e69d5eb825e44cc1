"""Files of tensors that tell when a byte of them has changed.

The header of a safetensors file holds the SHA-256 of all its bytes, with zeros where the sum itself
stands. Files of others, and ours from before, have none and are read as they are.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bevquant.errors import BevquantError
from bevquant.files import atomic_path, check_regular

_SUM = "sha256"
_SEALED = "sealed"
"""Present beside the sum: a file that has lost the name of one of them is damaged, not old."""
_ZEROS = "0" * 64
_LENGTH = 8
"""Bytes in front of the header, which say how long it is."""


@dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    Attributes:
        path: of the file.
        tensors: by name.
        metadata: texts of its header.
        intact: whether it is as it was written, as far as it has a checksum.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    intact: bool

    def check(self) -> None:
        """Refuse a damaged file.

        Raises:
            BevquantError: it is not :attr:`intact`.
        """
        if not self.intact:
            raise BevquantError(
                f"{self.path}: damaged: its content is not what was written (the checksum "
                "differs); copy or make the file anew"
            )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and texts to ``path`` atomically, with a checksum.

    Raises:
        BevquantError: ``path`` cannot be written.
    """
    header = {**metadata, _SEALED: "yes", _SUM: _ZEROS}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(dict(tensors), temporary, header)
        except SafetensorError as error:
            raise BevquantError(f"{path}: cannot be written; is the disk full?") from error
        _seal(temporary)


def read_tensors(path: Path) -> TensorFile:
    """Read a file of :func:`write_tensors`, or any safetensors file.

    Raises:
        BevquantError: it cannot be read as one.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = _checksum(path, metadata.get(_SUM, _ZEROS))
    except OSError as error:
        raise BevquantError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a broken file provokes all sorts
        raise BevquantError(
            f"{path}: cannot be read: damaged, or no safetensors file; copy or make it anew"
        ) from error
    sealed, expected = metadata.pop(_SEALED, None), metadata.pop(_SUM, None)
    intact = found == expected if sealed else expected is None
    return TensorFile(path, tensors, metadata, intact)


def _seal(path: Path) -> None:
    """Put the checksum where zeros are, and texts in order: the same content is the same file."""
    header = _header(path)
    entries = json.loads(header[_LENGTH:])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    with path.open("r+b") as file:
        file.seek(_LENGTH)
        file.write(text.ljust(len(header) - _LENGTH))
    header, checksum = _header(path), _checksum(path, _ZEROS)
    with path.open("r+b") as file:
        file.write(header.replace(_entry(_ZEROS), _entry(checksum), 1))


def _header(path: Path) -> bytes:
    """Return the header with the bytes in front of it."""
    with path.open("rb") as file:
        start = file.read(_LENGTH)
        return start + file.read(int.from_bytes(start, "little"))


def _entry(checksum: str) -> bytes:
    return f'"{_SUM}":"{checksum}"'.encode()


def _checksum(path: Path, present: str) -> str:
    """Return the SHA-256 of a file, with zeros where it has ``present``."""
    header = _header(path)
    digest = hashlib.sha256(header.replace(_entry(present), _entry(_ZEROS), 1))
    with path.open("rb") as file:
        file.seek(len(header))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_saved(path: Path) -> Any:
    """Return what ``torch.save`` wrote, on the CPU, without running anything that is in it.

    The archive has a CRC-32 of each of its parts, at which ``torch.load`` does not look.

    Raises:
        Exception: of any type, if the file is damaged or something else.
    """
    check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def check_archive(path: Path) -> None:
    """Refuse an archive of ``torch.save`` that has changed; files of torch before 1.6 are none.

    Raises:
        ValueError: a part of it is not what was written.
        zipfile.BadZipFile: it is no whole archive.
    """
    with path.open("rb") as file:
        archive = file.read(2) == b"PK"
    if archive:
        with zipfile.ZipFile(path) as parts:
            broken = parts.testzip()
        if broken is not None:
            raise ValueError(f"{broken} is not what was written")
