"""The files that ship, and how they are known to be whole.

A network is one ONNX file or, split by main module, several and a manifest. Every file holds
its own SHA-256, a manifest that of its files too. Checksums find damage and careless edits;
they are no signature.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

import onnx_ir as ir
from pydantic import ValidationError

from bevquant.deploy.card import FORMAT, Card, Manifest, PartEntry, Record
from bevquant.deploy.naming import part_file
from bevquant.deploy.sealed import sealed, unsealed
from bevquant.errors import BevquantError
from bevquant.files import check_regular, read_json, write_bytes, write_json

CARD_KEY = "bevquant.card"

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Artefact:
    """A network as it is stored.

    Attributes:
        card: what it says about itself.
        inputs: names of its inputs, in order.
        outputs: names of its outputs, in order.
        parts: name and graph of each part, in the order in which they are run; tensors go
            by name from part to part.
        total: bytes of all files.
    """

    card: Card
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[tuple[str, ir.Model], ...]
    total: int = 0


def check_path(path: Path) -> None:
    """Refuse a name that says neither "one file" nor "a manifest".

    Raises:
        BevquantError: it ends with neither ``.onnx`` nor ``.json``.
    """
    if path.suffix not in (".onnx", ".json"):
        raise BevquantError(
            f"{path}: name it X.onnx for one file, or X.json for one per main module"
        )


def write(path: Path, artefact: Artefact) -> int:
    """Write a network; until it is whole, whatever was at ``path`` stays.

    Args:
        path: ``.onnx`` for a network in one part; ``.json`` for a manifest, beside which
            every part becomes a file that is named after its content.
        artefact: what to write.

    Returns:
        Bytes of all files.

    Raises:
        BevquantError: ``path`` cannot be written.
    """
    if path.suffix == ".onnx":
        ((_, model),) = artefact.parts
        model.metadata_props[CARD_KEY] = artefact.card.model_dump_json()
        data = sealed(model)
        write_bytes(path, data)
        return len(data)
    entries, total = [], 0
    for name, model in artefact.parts:
        data = sealed(model)
        digest = hashlib.sha256(data).hexdigest()
        file = part_file(path.stem, name, digest)
        write_bytes(path.with_name(file), data)
        total += len(data)
        entries.append(
            PartEntry(
                name=name,
                file=file,
                sha256=digest,
                inputs=names_of(model.graph.inputs),
                outputs=names_of(model.graph.outputs),
            )
        )
    manifest = Manifest(
        card=artefact.card,
        inputs=artefact.inputs,
        outputs=artefact.outputs,
        parts=tuple(entries),
    ).model_dump(mode="json")
    stale = _parts_of(path) - {entry.file for entry in entries}
    write_json(path, {**manifest, "sha256": _digest(manifest)})
    for file in stale:
        path.with_name(file).unlink(missing_ok=True)
    return total + path.stat().st_size


def read(path: Path) -> Artefact:
    """Read what :func:`write` wrote.

    Raises:
        BevquantError: a file is missing, truncated, changed, of another version, not one of
            ours or no regular file, or a part is a link out of the folder.
    """
    check_path(path)
    if path.suffix == ".onnx":
        data = _bytes(path)
        model = unsealed(path, data)
        if CARD_KEY not in model.metadata_props:
            raise BevquantError(f"{path}: a part of a network; load its manifest, the .json file")
        card = _record(path, Card, _json(path, model.metadata_props[CARD_KEY]))
        graph = model.graph
        names = names_of(graph.inputs), names_of(graph.outputs)
        return Artefact(card, *names, (("", model),), len(data))
    check_regular(path)
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        raise BevquantError(f"{path}: changed since it was exported, or no manifest of bevquant")
    manifest = _record(path, Manifest, content, content.get("card"))
    total, parts, known = path.stat().st_size, [], set(manifest.inputs)
    for entry in manifest.parts:
        if not entry.file or PurePath(entry.file).name != entry.file:
            raise BevquantError(f"{path}: {entry.file!r} is no name of a file beside it")
        _check_inside(path, entry.file)
        data = _bytes(path.with_name(entry.file))
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BevquantError(
                f"{path.with_name(entry.file)}: not the file that {path.name} names; "
                "copy them together, or export again"
            )
        model = unsealed(path.with_name(entry.file), data)
        graph = model.graph
        ends = (names_of(graph.inputs), names_of(graph.outputs))
        if ends != (entry.inputs, entry.outputs) or not known.issuperset(entry.inputs):
            raise BevquantError(f"{path}: part {entry.name!r} does not fit in; export again")
        known |= set(entry.outputs)
        parts.append((entry.name, model))
        total += len(data)
    if not known.issuperset(manifest.outputs):
        raise BevquantError(f"{path}: no part has the output it names; export again")
    return Artefact(manifest.card, manifest.inputs, manifest.outputs, tuple(parts), total)


def _record(path: Path, kind: type[R], content: Any, card: Any = None) -> R:
    """Return the record that ``content`` is, if it is one of this version."""
    card = content if card is None else card
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise BevquantError(
            f"{path}: written by another version (format {found}, this one reads {FORMAT}); "
            "export it again"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BevquantError(
            f"{path}: written by another version ({field}: {first['msg']}); export it again"
        ) from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BevquantError(f"{path}: {CARD_KEY} is not JSON; export it again") from error


def _check_inside(path: Path, file: str) -> None:
    """Refuse a part that is a link to elsewhere: it would not go where the manifest goes."""
    part = path.with_name(file)
    check_regular(part)
    if part.resolve().parent != path.parent.resolve():
        raise BevquantError(f"{part}: a link out of the folder; put the file itself there")


def _bytes(path: Path) -> bytes:
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BevquantError(f"{path}: cannot be read ({error.strerror})") from error


def _parts_of(path: Path) -> set[str]:
    """Return the files of the whole manifest that is there, if there is one.

    Anyone can write a manifest and name another's files in it: only files that have the
    name which :func:`write` gives a part of these bytes, and are one, are taken for ours.
    """
    try:
        check_regular(path)
        content = read_json(path)
        if content.pop("sha256") != _digest(content):
            return set()
        parts = Manifest.model_validate(content).parts
    except (BevquantError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {part.file for part in parts if _is_part(path, part)}


def _is_part(path: Path, entry: PartEntry) -> bool:
    """Return whether a file is the part of a network that a manifest at ``path`` names."""
    try:
        file = path.with_name(part_file(path.stem, entry.name, entry.sha256))
        if entry.file != file.name or file.is_symlink():
            return False
        data = _bytes(file)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            return False
        return CARD_KEY not in unsealed(file, data).metadata_props
    except (BevquantError, ValueError):
        return False


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def names_of(values: Sequence[ir.Value]) -> tuple[str, ...]:
    """Return the names of the inputs or outputs of a graph."""
    return tuple(str(value.name) for value in values)
