"""Steps whose results are kept, so that an interrupted run continues where it stopped."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bevquant.errors import BevquantError
from bevquant.files import read_json, write_json


class Steps:
    """The finished steps of one run, each a JSON file in ``folder``.

    Attributes:
        folder: of the files.

    Raises:
        BevquantError: ``folder`` holds the steps of a run that was set up differently; the
            message names the difference.
    """

    def __init__(self, folder: Path, setup: Mapping[str, Any]) -> None:
        """Open ``folder`` for the run described by ``setup`` (plain JSON values)."""
        self.folder = folder
        record = folder / "setup.json"
        if not record.exists():
            write_json(record, dict(setup))
        before = read_json(record)
        if not isinstance(before, dict):
            raise BevquantError(f"{record}: not the set-up of a run; delete the folder")
        changed = sorted(key for key in setup | before if setup.get(key) != before.get(key))
        if changed:
            raise BevquantError(
                f"{record}: the steps there differ in {', '.join(changed)}; choose another "
                "folder or delete this one"
            )

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the JSON value of step ``name``: the kept one, or that of ``work()``."""
        path = self._path(name)
        if not self.has(name):
            started = time.monotonic()
            value = work()
            seconds = round(time.monotonic() - started, 2)
            write_json(path, {"seconds": seconds, "value": value})
        return self.value(name)

    def value(self, name: str) -> Any:
        """Return the JSON value of a finished step."""
        return self._record(self._path(name))["value"]

    def has(self, name: str) -> bool:
        """Whether step ``name`` is finished."""
        return self._path(name).exists()

    def seconds(self) -> dict[str, float]:
        """Return the wall-clock seconds that each finished step took, when it was run."""
        finished = sorted(self.folder.glob("step-*.json"), key=lambda path: path.stat().st_mtime)
        return {path.stem.removeprefix("step-"): self._record(path)["seconds"] for path in finished}

    @staticmethod
    def _record(path: Path) -> dict[str, Any]:
        record = read_json(path)
        if not isinstance(record, dict) or not {"value", "seconds"} <= set(record):
            raise BevquantError(f"{path}: not a finished step; delete it, and it is run again")
        return record

    def _path(self, name: str) -> Path:
        return self.folder / f"step-{name.replace(' ', '_')}.json"
