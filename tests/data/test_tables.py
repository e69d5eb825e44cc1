import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nuscenes.utils.splits import mini_val

from bevquant.data.tables import OFFICIAL_SPLITS, open_tables, split_tokens
from bevquant.errors import BevquantError

VERSION = "v1.0-world"


def replace_file(path: Path, text: str) -> None:
    path.unlink()  # the copy is made of hard links
    path.write_text(text)


def edit_table(world: Path, name: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    path = world / VERSION / f"{name}.json"
    records = json.loads(path.read_text())
    change(records)
    replace_file(path, json.dumps(records))


def test_splits_are_those_of_splits_json(tiny_world: Path):
    devkit = open_tables(tiny_world, VERSION)
    splits = json.loads((tiny_world / VERSION / "splits.json").read_text())
    seen = []
    for split, names in splits.items():
        tokens = split_tokens(devkit, split)
        assert len(tokens) == 2 * len(names)
        for token in tokens:
            scene = devkit.get("scene", devkit.get("sample", token)["scene_token"])
            assert scene["name"] in names
        seen += tokens
    assert sorted(seen) == sorted(sample["token"] for sample in devkit.sample)


def test_official_versions_have_the_official_splits(damaged_world: Path):
    (damaged_world / VERSION).rename(damaged_world / "v1.0-mini")
    (damaged_world / "v1.0-mini" / "splits.json").unlink()
    scenes = damaged_world / "v1.0-mini" / "scene.json"
    records = json.loads(scenes.read_text())
    records[1]["name"] = mini_val[0]
    replace_file(scenes, json.dumps(records))
    devkit = open_tables(damaged_world, "v1.0-mini")
    tokens = split_tokens(devkit, "mini_val")
    assert {devkit.get("sample", t)["scene_token"] for t in tokens} == {records[1]["token"]}
    with pytest.raises(BevquantError, match="'mini_train' has no sample"):
        split_tokens(devkit, "mini_train")
    with pytest.raises(BevquantError, match="no split 'val'; did you mean 'mini_val'"):
        split_tokens(devkit, "val")


def test_official_splits_belong_to_their_own_version_only(tiny_world: Path):
    devkit = open_tables(tiny_world, VERSION)
    for split in (name for names in OFFICIAL_SPLITS.values() for name in names):
        with pytest.raises(BevquantError, match=r"available: world_train, world_val"):
            split_tokens(devkit, split)


@pytest.mark.parametrize("text", ["[]", '{"world_val": "scene-0001"}'])
def test_splits_json_of_another_form_is_refused(damaged_world: Path, text: str):
    replace_file(damaged_world / VERSION / "splits.json", text)
    with pytest.raises(BevquantError, match=r"splits\.json: must map split names to lists"):
        split_tokens(open_tables(damaged_world, VERSION), "world_val")


def test_unknown_version_names_the_nearest(tiny_world: Path):
    with pytest.raises(BevquantError, match=r"no such version folder; did you mean 'v1\.0-world'"):
        open_tables(tiny_world, "v1.0-wrold")


def test_missing_root(tmp_path: Path):
    with pytest.raises(BevquantError, match=r"nowhere.*no such version folder; none is available"):
        open_tables(tmp_path / "nowhere", VERSION)


def test_missing_table(damaged_world: Path):
    (damaged_world / VERSION / "ego_pose.json").unlink()
    with pytest.raises(BevquantError, match=r"ego_pose\.json: missing table"):
        open_tables(damaged_world, VERSION)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[{"token": ', r"sample_data\.json: not valid JSON"),
        ('{"token": 1}', r"sample_data\.json: must be a list of records"),
        ('[{"tokken": 1}]', r"sample_data\.json: a record has no field 'token'"),
    ],
)
def test_broken_table(damaged_world: Path, text: str, complaint: str):
    replace_file(damaged_world / VERSION / "sample_data.json", text)
    with pytest.raises(BevquantError, match=complaint):
        open_tables(damaged_world, VERSION)


def test_reference_to_a_missing_record(damaged_world: Path):
    edit_table(damaged_world, "sensor", lambda records: records.pop())
    with pytest.raises(BevquantError, match=r"sensor\.json: no record .* calibrated_sensor\.json"):
        open_tables(damaged_world, VERSION)


def test_missing_map(damaged_world: Path):
    for mask in (damaged_world / "maps").glob("*.png"):
        mask.unlink()
    with pytest.raises(BevquantError, match=r"cannot be opened .*maps"):
        open_tables(damaged_world, VERSION)
