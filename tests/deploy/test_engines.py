import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bevquant.deploy import installed, run_openvino
from bevquant.deploy.artefact import read
from bevquant.deploy.engines import open_engine
from bevquant.deploy.export import export_module
from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.prepare import quantize
from bevquant.quant.spec import W8A8


@pytest.fixture(scope="module")
def inputs() -> list[np.ndarray]:
    return [np.random.default_rng(0).normal(size=(2, 7, 16)).astype(np.float32)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, inputs: list[np.ndarray]) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    model = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 9, bias=False))
    x = torch.from_numpy(inputs[0])
    quantize(model, W8A8)
    calibrate(model, [x])
    export_module(model, [x], path)
    return path


@pytest.mark.parametrize("vnni", [True, False])
def test_both_placements_run_every_layer_in_integers(file, inputs, vnni, monkeypatch):
    monkeypatch.setattr(run_openvino, "has_vnni", lambda: vnni)
    engine = open_engine(file)
    assert engine.integer_layers == ("0", "2")
    (expected,) = open_engine(file, "literal")(inputs)
    assert np.abs(engine(inputs)[0] - expected).max() < 0.02 * np.abs(expected).max()


def test_threads_do_not_change_the_result(file, inputs):
    one, two = (open_engine(file, threads=threads)(inputs)[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_outputs_outlive_the_next_call(file, inputs):
    engine = open_engine(file)
    (first,) = engine(inputs)
    kept = first.copy()
    engine([-inputs[0]])
    np.testing.assert_array_equal(first, kept)


def test_inputs_of_another_shape_are_refused(file, inputs):
    engine = open_engine(file)
    for wrong in ([inputs[0][:1]], [inputs[0][0]], [], inputs * 2):
        with pytest.raises(BevquantError, match="the file takes"):
            engine(wrong)


def test_a_truncated_file_is_named(file, tmp_path):
    data = file.read_bytes()
    broken = tmp_path / "broken.onnx"
    for length in (0, 1, *range(10, len(data) - 1, 97), len(data) - 1):
        broken.write_bytes(data[:length])
        with pytest.raises(BevquantError, match=r"broken\.onnx"):
            read(broken)


def test_a_foreign_file_is_named(tmp_path):
    foreign = tmp_path / "foreign.onnx"
    foreign.write_text("{}")
    with pytest.raises(BevquantError, match=r"foreign\.onnx"):
        read(foreign)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [value], [value])), foreign)
    with pytest.raises(BevquantError, match="not exported by bevquant"):
        read(foreign)
    with pytest.raises(BevquantError, match=r"missing\.onnx"):
        read(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("engine", "package"),
    [("openvino", "openvino"), ("onnxruntime", "onnxruntime"), ("literal", "onnxruntime")],
)
def test_an_engine_that_is_missing_or_too_old_is_named(file, engine, package, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        with pytest.raises(BevquantError, match=rf"{package} is not installed.*pip install"):
            open_engine(file, engine)
    monkeypatch.setattr(installed, "version", lambda name: "1.2.3")
    with pytest.raises(BevquantError, match=rf"{package} 1\.2\.3 is too old.*pip install"):
        open_engine(file, engine)


def test_the_oldest_engines_are_those_of_the_package():
    found = {}
    for line in requires("bevquant") or ():
        match = re.match(r"(openvino|onnxruntime)>=(\d+)\.(\d+)", line)
        if match:
            found[match[1]] = (int(match[2]), int(match[3]))
    assert found == installed.OLDEST


def test_inputs_of_another_type_are_refused(file, inputs):
    with pytest.raises(BevquantError, match=r"float64 .* takes .* float32"):
        open_engine(file)([inputs[0].astype(np.float64)])


@pytest.mark.skipif(run_openvino.has_bf16(), reason="this processor computes in bfloat16")
def test_bfloat16_is_refused_where_it_would_be_float32(file):
    with pytest.raises(BevquantError, match="bfloat16"):
        open_engine(file, arithmetic="bf16")


def test_signals_still_arrive_after_files_were_opened_and_dropped(file):
    """As the end of a data loader's worker does while faulthandler is on, in any test run."""
    script = (
        "import faulthandler, os, signal, sys\n"
        "from pathlib import Path\n"
        "from bevquant.deploy.engines import open_engine\n"
        "faulthandler.enable()\n"
        "for _ in range(3):\n"
        "    before = globals().get('kept')\n"
        "    kept = open_engine(Path(sys.argv[1]))\n"
        "del before, kept\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, file], check=False).returncode == 7


class Positions(nn.Module):
    """Encodes constants: a map by convolutions, queries by layers that attention reads."""

    def __init__(self):
        super().__init__()
        self.register_buffer("map", torch.randn(1, 3, 16, 16))
        self.queries = nn.Parameter(torch.randn(5, 4))
        self.encode = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.query = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        tokens = self.mix(x + self.encode(self.map)).flatten(2)
        return self.query(self.queries.sin()) @ tokens


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_layers_of_constants_are_loaded(engine, tmp_path):
    torch.manual_seed(0)
    model, x = Positions(), torch.randn(1, 4, 16, 16)
    quantize(model, W8A8)
    calibrate(model, [x])
    export_module(model, [x], tmp_path / "m.onnx")
    opened = open_engine(tmp_path / "m.onnx", engine)
    (expected,) = open_engine(tmp_path / "m.onnx", "literal")([x.numpy()])
    assert np.abs(opened([x.numpy()])[0] - expected).max() < 0.02 * np.abs(expected).max()
