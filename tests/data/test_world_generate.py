import fcntl
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bevquant.data.frame import CAMERAS, CLASSES
from bevquant.data.world import VERSION, WorldSettings, generate
from bevquant.data.world.catalogue import KINDS
from bevquant.data.world.generate import splits
from bevquant.data.world.recording import record_scene
from bevquant.data.world.rig import LIDAR, MOUNTS
from bevquant.errors import BevquantError

generate_module = import_module("bevquant.data.world.generate")

QUICK = WorldSettings(scenes=2, keyframes=2, sweeps=1, image_size=(40, 64), azimuths=90)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quick") / "world"
    generate(root, QUICK)
    return root


def test_bytes_depend_on_the_settings_alone(quick: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", QUICK, jobs=2)
    assert contents(tmp_path / "again") == contents(quick)


def test_a_scene_does_not_depend_on_how_many_there_are(quick: Path, tmp_path: Path) -> None:
    generate(tmp_path / "one", QUICK.model_copy(update={"scenes": 1}))
    whole = contents(quick)
    files = {name: data for name, data in contents(tmp_path / "one").items() if "json" not in name}
    assert files
    assert files.items() <= whole.items()


def test_another_seed_is_another_world(quick: Path, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"scenes": 1, "seed": 1})
    generate(tmp_path / "other", settings)
    assert not {
        data for name, data in contents(tmp_path / "other").items() if name.endswith(".bin")
    } & set(contents(quick).values())


@pytest.mark.parametrize("share, val", [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_splits_share_out_the_scenes(share: float, val: int) -> None:
    both = splits(QUICK.model_copy(update={"val_fraction": share}))
    assert len(both["world_val"]) == val
    assert sorted(both["world_train"] + both["world_val"]) == ["world-0-0000", "world-0-0001"]


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BevquantError, match="not an empty folder"):
        generate(tmp_path, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_no_jobs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BevquantError, match="jobs"):
        generate(tmp_path / "world", QUICK, jobs=0)


def test_an_interrupt_leaves_nothing_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    module = import_module("bevquant.data.world.generate")
    monkeypatch.setattr(module, "record_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "world", QUICK)
    assert [path.name for path in tmp_path.iterdir()] == [".world.unfinished"]


def test_a_world_without_objects_can_be_made(tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"scenes": 1, "density": 0.0, "lookalikes": 0.0})
    generate(tmp_path / "empty", settings)
    assert (tmp_path / "empty" / VERSION / "sample_annotation.json").read_text() == "[]\n"


def test_all_detection_classes_and_sensors_are_there() -> None:
    assert {kind.name for kind in KINDS if kind.category} == set(CLASSES)
    assert set(MOUNTS) == {LIDAR, *CAMERAS}


def test_only_colours_tell_the_members_of_a_group_apart() -> None:
    for kind in KINDS:
        twins = [k for k in KINDS if k.shape is kind.shape]
        assert {(k.size, k.spread) for k in twins} == {(kind.size, kind.spread)}
        assert len(twins) > 1 or kind.name == "car"
        for twin in twins:
            if twin is not kind:
                ours, theirs = (
                    {colour for paint in k.paint.values() for colour in paint.colours}
                    for k in (kind, twin)
                )
                assert ours != theirs


def test_a_stopped_world_keeps_its_scenes_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QUICK.model_copy(update={"scenes": 3})
    generate(tmp_path / "whole", settings)
    made: list[int] = []

    def stop_at(last: int) -> None:
        def record(root: Path, settings: WorldSettings, index: int) -> Any:
            if index == last:
                raise KeyboardInterrupt
            made.append(index)
            return record_scene(root, settings, index)

        monkeypatch.setattr(generate_module, "record_scene", record)

    stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "w", settings)
    stop_at(-1)
    generate(tmp_path / "w", settings)
    assert made == [0, 1, 2]
    assert contents(tmp_path / "w") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"w", "whole"}


def test_an_unfinished_world_of_other_settings_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(generate_module, "record_scene", fail)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "w", QUICK.model_copy(update={"seed": 1}))
    settings = QUICK.model_copy(update={"seed": 2})
    generate(tmp_path / "w", settings)
    generate(tmp_path / "other", settings)
    assert contents(tmp_path / "w") == contents(tmp_path / "other")


def test_two_processes_do_not_make_the_same_world(tmp_path: Path) -> None:
    unfinished = tmp_path / ".w.unfinished"
    unfinished.mkdir()
    with (unfinished / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BevquantError, match="another process is making this world"):
            generate(tmp_path / "w", QUICK)
