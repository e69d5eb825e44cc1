"""Files and folders are whole or absent, whatever interrupts the writing."""

from pathlib import Path

import pytest

from bevquant.errors import BevquantError
from bevquant.files import atomic_folder, atomic_path, read_json, write_json, write_text


def test_interrupted_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half of the new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_folder_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "world"
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as temporary:
        (temporary / "scene.json").write_text("[]")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_folder_arrives_whole_and_may_replace_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "world"
    path.mkdir()
    with atomic_folder(path) as temporary:
        (temporary / "scene.json").write_text("[]")
    assert (path / "scene.json").read_text() == "[]"


def test_full_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("precious")
    with pytest.raises(BevquantError, match=tmp_path.name), atomic_folder(tmp_path):
        pass
    assert (tmp_path / "kept.txt").read_text() == "precious"


def test_path_below_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BevquantError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_json_round_trip_and_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"NDS": 0.5, "names": ["car"]})
    assert read_json(path) == {"NDS": 0.5, "names": ["car"]}
    path.write_text('{"NDS": ')
    with pytest.raises(BevquantError, match=r"a\.json: not valid JSON"):
        read_json(path)
    with pytest.raises(BevquantError, match=r"b\.json: cannot be read"):
        read_json(tmp_path / "b.json")
