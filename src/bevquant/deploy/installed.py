"""Engines as optional packages: present and new enough, or one clear sentence."""

import importlib
import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bevquant.errors import BevquantError

OLDEST = {"openvino": (2026, 4), "onnxruntime": (1, 24)}
"""Oldest releases that were tested; the same as in pyproject.toml."""

INSTALL = {"openvino": "openvino", "onnxruntime": "bevquant[onnxruntime]"}


def is_installed(name: str) -> bool:
    """Return whether the package of an engine is there at all, whatever its version."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # it was put out of the way for this process
        return False


def engine_package(name: str) -> Any:
    """Return the package of an engine.

    Raises:
        BevquantError: it is not installed, or too old.
    """
    mend = f"pip install --upgrade '{INSTALL[name]}'"
    try:
        package = importlib.import_module(name)
        found = version(name)
    except (ImportError, PackageNotFoundError) as error:
        raise BevquantError(f"{name} is not installed, or broken ({error}): {mend}") from error
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise BevquantError(f"{name} {found} is too old, {oldest} is the oldest: {mend}")
    return package
