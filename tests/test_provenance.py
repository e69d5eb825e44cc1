"""Every artefact says what it takes to make it again."""

import platform
import re
from importlib import metadata

from bevquant.provenance import provenance, source_commit


def test_versions_are_those_installed() -> None:
    found = provenance(seed=3, data_fingerprint="abc").to_json()
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert (found["seed"], found["data_fingerprint"]) == (3, "abc")


def test_commit_is_a_full_hash_or_absent() -> None:
    commit = source_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
