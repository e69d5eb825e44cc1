import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bevquant as bq
from bevquant.deploy.engines import open_engine
from bevquant.deploy.latency import latency_table
from bevquant.deploy.naming import node_name, part_file, product_layers
from bevquant.errors import BevquantError

ODD = (
    "cls:0", "a#1", "a#", "x/y", "/up", "x[0]", "x0", "*", "?", "a b", "ü€", "_token_3",
    "a_token_1", "a", "q'", "a,b", "%41", "A", "self", "tab\tx", "L['self']", "n" * 300,
)  # fmt: skip
# A dot parts modules; torch itself writes code with the other characters in it.
KEYS = st.text(st.characters(codec="utf-8", exclude_characters='."\\\n\r'), min_size=1, max_size=12)
KEYS |= st.text("a#:/,[]*?%_ü token1", min_size=1, max_size=9)


class Heads(nn.Module):
    """A chain of layers under the keys of a dictionary, and the first of them once more."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({key: nn.Linear(6, 6) for key in keys})
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for head in (*self.heads.values(), next(iter(self.heads.values()))):
            x = head(x).relu()
        return self.out(x)


class Children(nn.Module):
    """The same with main modules of odd names."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__()
        for key in keys:
            self.add_module(key, nn.Linear(96, 96))

    def forward(self, x: Tensor) -> Tensor:
        for head in self.children():
            x = head(x).relu()
        return x


def calibrated(model: nn.Module, *shape: int) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(*shape or (5, 6))
    bq.quantize(model.eval(), bq.W8A8)
    bq.calibrate(model, [x])
    return x


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_layers_of_any_name_are_found_in_the_file_and_in_the_engines(tmp_path, engine):
    model = Heads(ODD)
    x = calibrated(model)
    names = {f"heads.{key}" for key in ODD} | {"out"}
    bq.export(model, [x], tmp_path / "odd.onnx", target=engine)
    assert {v.layer: v.reason for v in bq.lint(tmp_path / "odd.onnx")} == dict.fromkeys(names)
    assert set(open_engine(tmp_path / "odd.onnx", engine).integer_layers) == names


def test_main_modules_of_any_name_get_files_beside_the_manifest_and_times(tmp_path):
    model = Children(ODD)
    x = calibrated(model, 300, 96)  # large enough for a clock of microseconds
    folder = tmp_path / "in" / "here"
    bq.export(model, [x], folder / "net.json")
    parts = json.loads((folder / "net.json").read_text())["parts"]
    assert [part["name"] for part in parts] == list(ODD)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {f"in/here/{part['file']}" for part in parts} | {"in/here/net.json"}
    assert set(open_engine(folder / "net.json").integer_layers) == set(ODD)
    int8, floating = tmp_path / "int8.onnx", tmp_path / "float.onnx"
    bq.export(model, [x], int8)
    bq.export(bq.restore(model), [x], floating)
    times = latency_table(floating, int8, [[x.numpy()]], rounds=3)
    assert set(times) == set(ODD)
    assert all(row["W8A8"] > 0 for row in times.values())


@given(st.sets(KEYS, min_size=1, max_size=6))
def test_no_two_names_share_a_node_and_engines_leave_them_alone(names):
    found = product_layers(names)
    assert set(found.values()) == names
    for node in found:
        assert re.fullmatch(r"[\w.~%-]+", node, re.ASCII)
        assert not re.search(r"_token_\d+$", node)


@given(KEYS)
def test_usual_names_stay_and_files_are_short_names_in_the_folder(name):
    if re.fullmatch(r"[A-Za-z0-9_.-]+", name) and "_token_" not in name:
        assert node_name(name) == name
    file = part_file("net", name, "0123456789abcdef")
    assert Path(file).name == file
    assert len(file.encode()) < 100


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(keys=st.lists(KEYS, min_size=1, max_size=4, unique=True))
def test_exact_rules_and_saved_ranges_know_layers_of_any_name(tmp_path, keys):
    names = [f"heads.{key}" for key in keys]
    model = Heads(tuple(keys))
    for place, name in enumerate(names):
        policy = bq.BitPolicy({"*": bq.W8A8, name: bq.W4A8})
        wanted = [bq.W4A8 if i == place else bq.W8A8 for i in range(len(names))]
        assert [policy.assign([*names, "out"])[each] for each in names] == wanted
    x = calibrated(model)
    expected = model(x)
    bq.save_calibration(model, tmp_path / "ranges.safetensors")
    bq.quantize(bq.restore(model), bq.W8A8)
    bq.load_calibration(model, tmp_path / "ranges.safetensors")
    assert not bq.unquantized(model)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("key", ["class", "new\nline", "q'\"", "a\\x"])
def test_names_that_torch_cannot_export_are_exported_or_named_in_one_line(tmp_path, key):
    model = Heads((key, "b"))
    x = calibrated(model)
    try:
        bq.export(model, [x], tmp_path / "odd.onnx")
    except BevquantError as error:
        assert repr(key) in str(error)
        assert len(str(error).splitlines()) == 1
    else:
        assert not [v for v in bq.lint(tmp_path / "odd.onnx") if v.reason]


class Branch(nn.Module):
    """A layer that only some inputs reach, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(6, 6)
        self.sometimes = nn.Linear(6, 6)
        self.kept = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.kept(self.always(x))
        return self.sometimes(x) if len(x) == 5 else x


def test_a_quantized_model_is_never_exported_float_in_silence(tmp_path):
    path = tmp_path / "net.onnx"
    model = Branch().eval()
    bq.quantize(model, bq.BitPolicy({"*": bq.W8A8, "kept": None}))
    with pytest.raises(BevquantError, match="quantized but not calibrated"):
        bq.export(model, [torch.randn(5, 6)], path)
    assert not path.exists()
    bq.calibrate(model, [torch.randn(3, 6)])
    with pytest.warns(UserWarning, match=r"1 of 2 quantized layers stay float.*: sometimes;"):
        bq.export(model, [torch.randn(5, 6)], path)
    assert {v.layer: v.precision for v in bq.lint(path)} == {
        "always": "W8A8",
        "sometimes": "float",
        "kept": "float",
    }
    bq.calibrate(model, [torch.randn(5, 6)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        bq.export(model, [torch.randn(5, 6)], path)
        bq.apply(model, bq.BitPolicy({"always": bq.W8A8}))
        bq.export(model, [torch.randn(5, 6)], path)
        bq.apply(model, bq.BitPolicy({"*": None}))
        bq.export(model, [torch.randn(5, 6)], path)
    assert {v.precision for v in bq.lint(path)} == {"float"}
