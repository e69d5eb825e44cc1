"""Generate a whole world: scenes in parallel, then the tables."""

import fcntl
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from bevquant.data.world import tables
from bevquant.data.world.recording import record_scene, scene_name
from bevquant.data.world.rig import LIDAR, MOUNTS
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.data.world.tables import Tables
from bevquant.errors import BevquantError
from bevquant.files import check_unused, read_json, write_json
from bevquant.progress import track

KEPT = "finished"
LOCK = "lock"
"""What an unfinished world holds beside its data: records of finished scenes, and a lock."""


def generate(directory: Path, settings: WorldSettings, jobs: int = 1) -> None:
    """Write a driving data set in the nuScenes schema.

    ``directory`` then is a data root with ``samples``, ``sweeps``, ``maps`` and the tables
    in the version folder :data:`VERSION`, whose ``splits.json`` defines ``world_train`` and
    ``world_val``. The bytes depend on ``settings`` alone. Nothing appears under the final
    name before all is written.

    Args:
        directory: absent, or an empty folder.
        settings: what to generate.
        jobs: processes that make scenes side by side.

    Raises:
        BevquantError: ``directory`` is not empty or cannot be written, or ``jobs`` < 1.
    """
    if jobs < 1:
        raise BevquantError(f"jobs: {jobs} processes cannot do any work; give at least 1")
    with _unfinished(directory, settings) as root:
        for channel in MOUNTS:
            (root / "samples" / channel).mkdir(parents=True, exist_ok=True)
        (root / "sweeps" / LIDAR).mkdir(parents=True, exist_ok=True)
        (root / "maps").mkdir(exist_ok=True)
        merged = tables.constant_tables()
        with _scenes(root, settings, jobs) as scenes:
            for scene in track(scenes, f"world {directory.name}", settings.scenes):
                for name, records in scene.items():
                    merged[name].extend(records)
        for name, records in merged.items():
            write_json(root / VERSION / f"{name}.json", records)
        write_json(root / VERSION / "splits.json", splits(settings))
        write_json(root / VERSION / "settings.json", settings.model_dump(mode="json"))


@contextmanager
def _unfinished(directory: Path, settings: WorldSettings) -> Iterator[Path]:
    """Give a folder beside ``directory`` that keeps finished scenes if the work is stopped.

    It is called ``.NAME.unfinished``, and renamed at the end. One of other settings or of
    another version is begun anew.

    Raises:
        BevquantError: ``directory`` is in use, another process is at work on it, or the folder
            cannot be written.
    """
    check_unused(directory)
    root = directory.parent / f".{directory.name}.unfinished"
    setup = {"settings": settings.model_dump(mode="json"), "version": version("bevquant")}
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / LOCK).open("w")
    except OSError as error:
        raise BevquantError(f"{directory}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BevquantError(f"{directory}: another process is making this world") from error
        kept = root / KEPT
        if not (kept / "setup.json").exists() or read_json(kept / "setup.json") != setup:
            for path in root.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path)
            write_json(kept / "setup.json", setup)
        try:
            yield root
            shutil.rmtree(kept)
            (root / LOCK).unlink()
            root.replace(directory)
        except OSError as error:
            raise BevquantError(
                f"{directory}: cannot be written ({error.strerror}); finished scenes are kept, the "
                "same command continues"
            ) from error


def _kept_scene(root: Path, settings: WorldSettings, index: int) -> Tables:
    """Return the records of a scene: those of an earlier, stopped run, or of making it now."""
    path = root / KEPT / f"{index}.json"
    if path.exists():
        kept: Tables = read_json(path)
        return kept
    scene = record_scene(root, settings, index)
    write_json(path, scene)
    return scene


def splits(settings: WorldSettings) -> dict[str, list[str]]:
    """Return split name -> scene names; the last scenes are for validation."""
    names = [scene_name(settings, index) for index in range(settings.scenes)]
    first = settings.scenes - round(settings.scenes * settings.val_fraction)
    return {"world_train": names[:first], "world_val": names[first:]}


@contextmanager
def _scenes(root: Path, settings: WorldSettings, jobs: int) -> Iterator[Iterator[Tables]]:
    """Give the records of all scenes, in order, as they are finished."""
    record = partial(_kept_scene, root, settings)
    indices = range(settings.scenes)
    if jobs == 1:
        yield map(record, indices)
        return
    # Forking a process that may already run OpenMP threads can hang the child.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, settings.scenes), context, _leave_interrupts_to_parent)
    try:
        yield pool.map(record, indices)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    """Let the parent end the work after Ctrl-C, without a traceback from every process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
