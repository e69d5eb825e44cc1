"""Open the tables of a nuScenes-format data root through the devkit, and list its splits."""

from difflib import get_close_matches
from pathlib import Path

from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from bevquant.errors import BevquantError
from bevquant.files import read_json

TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)

OFFICIAL_SPLITS = {
    "v1.0-mini": ("mini_train", "mini_val"),
    "v1.0-trainval": ("train", "val", "train_detect", "train_track"),
    "v1.0-test": ("test",),
}


def open_tables(root: Path, version: str) -> NuScenes:
    """Open the tables in ``root/version`` with the official devkit.

    Raises:
        BevquantError: the folder or a table is missing, a table is not JSON, or tables
            refer to records that do not exist.
    """
    folder = root / version
    if not folder.is_dir():
        raise BevquantError(
            f"{folder}: no such version folder; {_choices(version, _versions(root))}"
        )
    for table in TABLES:
        if not (folder / f"{table}.json").is_file():
            raise BevquantError(f"{folder / f'{table}.json'}: missing table; restore it")
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:
        # The devkit checks nothing and fails with whatever Python meets first, so the
        # cause is looked for only now: reading trainval's tables twice takes a minute.
        _diagnose(folder)
        raise BevquantError(f"{folder}: the tables cannot be opened ({error!r})") from error


def split_tokens(devkit: NuScenes, split: str) -> tuple[str, ...]:
    """List the sample tokens of a split, in the order of the sample table.

    Official versions have the official splits; any version folder may define its own in
    ``splits.json``: {split name: [scene names]}.

    Raises:
        BevquantError: the split is unknown, or none of its scenes is in the tables.
    """
    folder = Path(devkit.dataroot) / devkit.version
    official = create_splits_scenes()
    splits = {name: official[name] for name in OFFICIAL_SPLITS.get(devkit.version, ())}
    if (folder / "splits.json").is_file():
        own = read_json(folder / "splits.json")
        if not isinstance(own, dict) or not all(isinstance(v, list) for v in own.values()):
            raise BevquantError(
                f"{folder / 'splits.json'}: must map split names to lists of scene names"
            )
        splits |= own
    if split not in splits:
        raise BevquantError(f"{folder}: no split {split!r}; {_choices(split, sorted(splits))}")
    names = set(splits[split])
    scenes = {scene["token"] for scene in devkit.scene if scene["name"] in names}
    tokens = tuple(s["token"] for s in devkit.sample if s["scene_token"] in scenes)
    if not tokens:
        raise BevquantError(f"{folder}: split {split!r} has no sample in sample.json")
    return tokens


def _versions(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/sample.json"))


def _choices(name: str, available: list[str]) -> str:
    nearest = get_close_matches(name, available, n=1, cutoff=0.0)
    if not nearest:
        return "none is available here"
    return f"did you mean {nearest[0]!r}? available: {', '.join(available)}"


def _diagnose(folder: Path) -> None:
    """Raise a BevquantError for the first table that is broken or refers to nothing."""
    tables = {}
    for name in TABLES:
        path = folder / f"{name}.json"
        records = tables[name] = read_json(path)
        if not isinstance(records, list) or (not records and name == "map"):
            raise BevquantError(f"{path}: must be a list of records")
        for record in records:
            if not isinstance(record, dict) or "token" not in record:
                raise BevquantError(f"{path}: a record has no field 'token'")
    tokens = {name: {record["token"] for record in records} for name, records in tables.items()}
    for name, records in tables.items():
        for target in TABLES:
            for record in records:
                token = record.get(f"{target}_token")
                if token is not None and token not in tokens[target]:
                    raise BevquantError(
                        f"{folder / f'{target}.json'}: no record {token!r}, "
                        f"to which {name}.json refers ({target}_token); restore the table"
                    )
