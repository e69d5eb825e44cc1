"""Where a figure comes from: versions, commit, machine, seed, data."""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("bevquant", "torch", "numpy", "openvino", "onnx", "nuscenes-devkit")


@dataclass(frozen=True)
class Provenance:
    """What it takes to make an artefact again.

    Attributes:
        versions: package -> version, Python included.
        commit: git commit of the source tree (``-dirty`` appended when files differ from
            it), or ``None`` for an installed package.
        cpu: processor name as the operating system gives it.
        cores: processors this process may run on.
        seed: seed of every random choice.
        data_fingerprint: fingerprint of the data set that was used.
    """

    versions: dict[str, str]
    commit: str | None
    cpu: str
    cores: int
    seed: int
    data_fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def provenance(seed: int, data_fingerprint: str) -> Provenance:
    """Describe this process, its source tree and its machine."""
    versions = {package: metadata.version(package) for package in PACKAGES}
    return Provenance(
        versions={"python": platform.python_version(), **versions},
        commit=source_commit(),
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        seed=seed,
        data_fingerprint=data_fingerprint,
    )


def source_commit() -> str | None:
    """Return the commit of the checkout this package runs from, or ``None``."""
    folder = Path(__file__).parent
    try:
        description = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=folder,
            capture_output=True,
            check=False,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return description if tracked.returncode == 0 else None


def cpu_name() -> str:
    """Return the processor's name with the integer instructions that decide INT8 speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in values.items()}
    flags = facts.get("flags", "").split()
    vnni = "VNNI" if any("vnni" in flag for flag in flags) else "no VNNI"
    return f"{facts.get('model name', platform.machine())} ({vnni})"
