"""Files of tensors: every changed byte is noticed, and files without a checksum are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from bevquant.errors import BevquantError
from bevquant.models.pickled import read_state
from bevquant.tensors import load_saved, read_tensors, write_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(7, dtype=torch.int16)}
METADATA = {"train": '{"seed": 1}\n\x7f\x01 \u00e4 "sha256":"', "zeros": "0" * 64}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", TENSORS, METADATA)
    file = read_tensors(tmp_path / "a")
    file.check()
    assert file.metadata == METADATA
    assert file.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(file.tensors[name], value) for name, value in TENSORS.items())
    others = safetensors.torch.load_file(tmp_path / "a")
    assert torch.equal(others["a.weight"], TENSORS["a.weight"])


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    texts = {str(number): "x" for number in range(9)}
    for name in "ab":
        write_tensors(tmp_path / name, TENSORS, texts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_tensors(path, TENSORS, METADATA)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(changed))
        with pytest.raises(BevquantError, match="damaged"):
            read_tensors(path).check()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_other_lengths_are_noticed(change: object, tmp_path: Path) -> None:
    assert callable(change)
    write_tensors(tmp_path / "a", TENSORS, METADATA)
    (tmp_path / "a").write_bytes(change((tmp_path / "a").read_bytes()))
    with pytest.raises(BevquantError, match="damaged"):
        read_tensors(tmp_path / "a").check()


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "a", {"epoch": "3"})
    file = read_tensors(tmp_path / "a")
    file.check()
    assert file.metadata == {"epoch": "3"}


def test_what_is_no_file_of_tensors_is_refused_in_a_line(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"not tensors at all"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BevquantError, match=f"{name}: cannot be read: damaged"):
            read_tensors(tmp_path / name)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(BevquantError, match="cannot be read"):
            read_tensors(path)


@pytest.mark.parametrize("read", [load_saved, read_state])
def test_flipped_bits_of_what_torch_saved_are_noticed(
    read: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Or else are no part of what is read: names and dates are in the archive twice."""
    path = tmp_path / "a.pth"
    state = {"a": torch.randn(500), "b": torch.arange(3)}
    torch.save(state, path)
    content, noticed = path.read_bytes(), 0
    random = np.random.default_rng(0)
    for place in random.integers(len(content), size=200):
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(changed))
        try:
            found = read(path)
        except Exception:
            noticed += 1
        else:
            assert all(torch.equal(found[name], value) for name, value in state.items())
    assert noticed > 100
