import copy
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bevquant as bq
from bevquant.deploy.artefact import CARD_KEY, _digest, read, write
from bevquant.deploy.card import FORMAT, Expected
from bevquant.deploy.engines import Engine, open_engine
from bevquant.deploy.export import export_module
from bevquant.deploy.sealed import seal
from bevquant.errors import BevquantError
from bevquant.quant.fingerprint import model_fingerprint

EXPECTED = Expected(data="d", split="val", frames=3, NDS=0.5, mAP=0.25)
LAYERS = ("camera.0", "lidar", "shared", "head", "side")
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Branches(nn.Module):
    """Parts that meet, one that is called twice, and code of the root between them."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        self.lidar = nn.Linear(5, 6)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(4 * 36 + 6, 3)
        self.side = nn.Linear(6, 2)

    def forward(self, image: Tensor, points: Tensor) -> tuple[Tensor, ...]:
        seen = self.lidar(points)
        lidar = self.shared(self.shared(seen).relu())
        found = self.head(torch.cat((self.camera(image), lidar.mean(0, keepdim=True)), 1))
        return found.sigmoid(), self.side(seen)


def quantized(seed: int = 0) -> tuple[Branches, list[Tensor]]:
    torch.manual_seed(seed)
    model, inputs = Branches().eval(), [torch.randn(1, 3, 8, 8), torch.randn(7, 5)]
    bq.quantize(model, bq.BitPolicy({"*": bq.W8A8, "lidar": bq.W4A8, "head": bq.W2A8}))
    bq.calibrate(model, [inputs], lambda model, batch: model(*batch))
    return model, inputs


def export(path: Path, seed: int = 0) -> None:
    model, inputs = quantized(seed)
    export_module(
        model,
        inputs,
        path,
        dynamic_shapes=({}, {0: torch.export.Dim("points")}),
        recipe={"stages": ["calibrate"]},
        expected=EXPECTED,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact")
    export(folder / "whole.onnx")
    export(folder / "net.json")
    return folder


def outputs(engine: Engine) -> list[np.ndarray]:
    _, inputs = quantized()
    return engine([x.numpy() for x in inputs])


@pytest.mark.parametrize("name", ["whole.onnx", "net.json"])
def test_a_file_says_what_it_is(folder, name):
    card = read(folder / name).card
    assert card.format == FORMAT
    assert card.target == "openvino"
    assert card.layers == dict.fromkeys(LAYERS, "W8A8") | {"lidar": "W4A8", "head": "W2A8"}
    assert card.recipe == {"stages": ["calibrate"]}
    assert card.expected == EXPECTED
    assert card.fingerprint == model_fingerprint(quantized()[0])
    assert card.fingerprint != model_fingerprint(quantized(1)[0])


def test_any_onnx_tool_reads_a_file(folder):
    model = onnx.load(folder / "whole.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert CARD_KEY in {entry.key for entry in model.metadata_props}


@pytest.mark.parametrize("engine", ["openvino", "literal"])
def test_the_parts_compute_what_the_whole_does(folder, engine):
    whole, parts = (open_engine(folder / name, engine) for name in ("whole.onnx", "net.json"))
    assert whole.inputs == parts.inputs
    assert whole.integer_layers == parts.integer_layers
    for y, wanted in zip(outputs(parts), outputs(whole), strict=True):
        np.testing.assert_allclose(y, wanted, atol=1e-6)


def test_there_is_a_part_for_each_main_module_in_the_order_of_use(folder):
    manifest = json.loads((folder / "net.json").read_text())
    names = [part["name"] for part in manifest["parts"]]
    assert sorted(names) == ["camera", "head", "lidar", "shared", "side"]
    assert names.index("lidar") < names.index("shared") < names.index("head")
    known = set(manifest["inputs"])
    for part in manifest["parts"]:
        assert known >= set(part["inputs"])
        known |= set(part["outputs"])
        stored = onnx.load(folder / part["file"]).graph
        layers = {node.name.split("#")[0] for node in stored.node} & set(LAYERS)
        assert {layer.split(".")[0] for layer in layers} == {part["name"]}


@FUZZ
@given(data=st.data())
def test_a_truncated_or_changed_file_is_named(folder, tmp_path, data):
    whole = (folder / "whole.onnx").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    for broken in (whole[:place], bytes(flipped), whole + b"\x00"):
        (tmp_path / "broken.onnx").write_bytes(broken)
        with pytest.raises(BevquantError, match=r"broken\.onnx"):
            read(tmp_path / "broken.onnx")


@FUZZ
@given(data=st.data())
def test_what_somebody_sealed_by_hand_is_read_or_named(folder, tmp_path, data):
    whole = (folder / "whole.onnx").read_bytes()
    body = bytearray(whole[: -len(seal(b""))])
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=8)):
        body[place] = data.draw(st.integers(0, 255))
    (tmp_path / "forged.onnx").write_bytes(seal(bytes(body)))
    try:
        read(tmp_path / "forged.onnx")
    except BevquantError as error:
        assert "forged.onnx" in str(error)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            found += _paths(child, (*path, key))
    return found


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(), SCALARS, max_size=3)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "\0", "\ud800"])
def test_a_part_that_is_no_file_beside_the_manifest_is_named(folder, name):
    manifest = json.loads((folder / "net.json").read_text())
    del manifest["sha256"]
    manifest["parts"][0]["file"] = name
    path = folder / "forged.json"
    path.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    with pytest.raises(BevquantError, match=re.escape(str(folder))):
        read(path)


@FUZZ
@given(data=st.data())
def test_a_manifest_with_wrong_fields_is_read_or_named(folder, data):
    manifest = json.loads((folder / "net.json").read_text())
    del manifest["sha256"]
    changed = copy.deepcopy(manifest)
    *way, last = data.draw(st.sampled_from(_paths(manifest)))
    place = changed
    for key in way:
        place = place[key]
    if data.draw(st.booleans()):
        del place[last]
    else:
        place[last] = data.draw(JSON)
    path = folder / "forged.json"
    path.write_text(json.dumps({**changed, "sha256": _digest(changed)}))
    try:
        found = read(path)
    except BevquantError as error:
        assert str(path.parent) in str(error)
    else:  # what changed decides nothing about how parts fit together
        assert found.parts
    path.write_text(json.dumps({**changed, "sha256": "0"}))
    with pytest.raises(BevquantError, match=r"forged\.json: changed"):
        read(path)


def test_other_parts_missing_parts_and_versions_are_named(folder, tmp_path):
    for file in folder.glob("net.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "net.json"
    manifest = json.loads(path.read_text())
    first, second = (tmp_path / manifest["parts"][i]["file"] for i in range(2))
    with pytest.raises(BevquantError, match=r"load its manifest"):
        read(first)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(BevquantError, match=rf"{first.name}: not the file that net\.json names"):
        read(path)
    first.unlink()
    with pytest.raises(BevquantError, match=rf"{first.name}: cannot be read"):
        read(path)
    first.write_bytes(kept)
    del manifest["sha256"]
    manifest["card"]["format"] = FORMAT + 1
    path.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    with pytest.raises(BevquantError, match=rf"another version \(format {FORMAT + 1}"):
        read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "nul", "\xff", "[" * 100_000])
def test_what_is_no_manifest_is_named(text, tmp_path):
    path = tmp_path / "net.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BevquantError, match=r"net\.json"):
        read(path)


@pytest.mark.parametrize("name", ["a.onnx", "a.json"])
def test_an_export_that_is_stopped_leaves_the_old_file(name, tmp_path, monkeypatch):
    path = tmp_path / name
    export(path)
    before = outputs(open_engine(path, "literal"))
    write_bytes = Path.write_bytes

    def stop(path: Path, data: bytes) -> None:
        write_bytes(path, data[: len(data) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", stop)
        with pytest.raises(KeyboardInterrupt):
            export(path, seed=1)
    after = outputs(open_engine(path, "literal"))
    for y, wanted in zip(after, before, strict=True):
        np.testing.assert_array_equal(y, wanted)
    export(path, seed=1)
    assert np.abs(outputs(open_engine(path, "literal"))[0] - before[0]).max() > 1e-3
    if path.suffix == ".json":
        named = {part["file"] for part in json.loads(path.read_text())["parts"]}
        assert {file.name for file in tmp_path.iterdir()} == named | {path.name}


def forge(path: Path, **entry: Any) -> None:
    """Change fields of the first part in a manifest, and make its digest right again."""
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["parts"][0].update(entry)
    path.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))


def forgeries(folder: Path, path: Path) -> list[dict[str, Any]]:
    """Entries that name files of somebody else, more and more like parts of ``path``."""
    part = next(iter(sorted(folder.glob("net.*.onnx")))).read_bytes()
    contents = {
        "notes.txt": b"mine",
        "other.head.onnx": part,
        "whole.onnx": (folder / "whole.onnx").read_bytes(),
    }
    entries = []
    for name, data in contents.items():
        digest = hashlib.sha256(data).hexdigest()
        # By the manifest's own rule, but no part; and a part, but of another manifest.
        ruled = f"{path.stem}.head.{digest[:8]}.onnx"
        beside = f"{path.stem}.head.more.{digest[:8]}.onnx"
        for file in (name, beside, *((ruled,) if data is not part else ())):
            path.with_name(file).write_bytes(data)
            entries += [
                {"file": file, "name": called, "sha256": digest} for called in ("head", "head.more")
            ]
    return entries


def test_an_export_deletes_no_file_that_is_no_part_of_its_own(folder, tmp_path):
    path = tmp_path / "net.json"
    entries = forgeries(folder, path)
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    outside = tmp_path.parent / "outside.onnx"
    outside.write_bytes(b"mine")
    export(path)
    before, after = read(folder / "net.json"), read(path)
    after.parts[0][1].metadata_props["note"] = "so that its file has another name"
    for entry in [*entries, {"file": "../outside.onnx"}, {"file": ".", "name": "\ud800"}]:
        write(path, before)
        forge(path, **entry)
        write(path, after)
        for name, data in kept.items():
            assert (tmp_path / name).read_bytes() == data, entry
        assert outside.read_bytes() == b"mine"
        assert read(path).parts


def test_an_export_leaves_a_part_that_somebody_changed_or_linked(tmp_path):
    path = tmp_path / "net.json"
    export(path)
    named = json.loads(path.read_text())["parts"]
    first, second, third, fourth, _ = (tmp_path / entry["file"] for entry in named)
    first.write_bytes(b"mine")
    third.write_bytes(fourth.read_bytes())
    (tmp_path / "kept").write_bytes(second.read_bytes())
    second.unlink()
    second.symlink_to(tmp_path / "kept")
    export(path, seed=1)
    assert first.read_bytes() == b"mine"
    assert third.is_file()
    assert not fourth.exists()
    assert second.is_symlink()
    assert (tmp_path / "kept").is_file()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("name", ["net.json", "whole.onnx", "part"])
def test_what_is_no_regular_file_is_named_and_never_opened(folder, tmp_path, kind, name):
    for file in folder.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((tmp_path / "net.json").read_text())
    broken = tmp_path / (manifest["parts"][1]["file"] if name == "part" else name)
    broken.unlink()
    if kind == "pipe":
        os.mkfifo(broken)  # opening it waits for a writer
    elif kind == "folder":
        broken.mkdir()
    else:
        broken.symlink_to("/dev/zero")
    path = tmp_path / "net.json" if name == "part" else broken
    for act in (read, bq.lint, open_engine):
        with pytest.raises(BevquantError, match=rf"{re.escape(broken.name)}: .*no file"):
            act(path)
    if name == "net.json" and kind != "folder":
        write(path, read(folder / "net.json"))  # takes the place of what was there
        assert read(path).parts


def test_a_part_that_is_a_link_is_read_in_the_folder_and_named_out_of_it(folder, tmp_path):
    inner = tmp_path / "net"
    inner.mkdir()
    for file in folder.glob("net.*"):
        (inner / file.name).write_bytes(file.read_bytes())
    path = inner / "net.json"
    part = inner / json.loads(path.read_text())["parts"][0]["file"]
    for elsewhere, inside in ((inner / "moved", True), (tmp_path / "moved", False)):
        elsewhere.write_bytes(part.read_bytes())
        part.unlink()
        part.symlink_to(elsewhere)
        if inside:
            assert read(path).parts
        else:
            with pytest.raises(BevquantError, match=rf"{part.name}: a link out of the folder"):
                read(path)


def test_a_manifest_that_names_an_output_of_no_part_is_refused(folder, tmp_path):
    for file in folder.glob("net.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "net.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for outputs_ in (["boxes"], [*manifest["outputs"], "boxes"]):
        changed = {**manifest, "outputs": outputs_}
        path.write_text(json.dumps({**changed, "sha256": _digest(changed)}))
        with pytest.raises(BevquantError, match="no part has the output it names"):
            read(path)
