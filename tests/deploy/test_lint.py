import json
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from deploy_nets import BITS, Zoo, zoo
from torch import Tensor, nn

import bevquant as bq
from bevquant.cli import main
from bevquant.deploy import run_openvino
from bevquant.deploy.artefact import read
from bevquant.deploy.engines import open_engine
from bevquant.deploy.export import export_module
from bevquant.deploy.lint import lint
from bevquant.errors import BevquantError
from bevquant.ship import lint_artefact

PRODUCTS = {"tokens.scores"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Zoo, Tensor]]:
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for target, rules, scheme in (
        ("openvino", BITS, bq.DEPLOY),
        ("tensorrt", {"w4": bq.W4A8, "w2": bq.W2A8, "kept": None}, bq.SYMMETRIC),
    ):
        model, image = zoo(rules, scheme)
        export_module(model, [image], folder / f"{target}.onnx", target=target)
        made[target] = folder / f"{target}.onnx", model, image
    return made


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize("made_for", ["openvino", "tensorrt"])
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_verdicts_are_what_the_engines_execute(files, engine, made_for, vnni, monkeypatch):
    monkeypatch.setattr(run_openvino, "has_vnni", lambda: vnni)
    file = files[made_for][0]
    expected = {verdict.layer for verdict in lint(file, engine) if verdict.reason is None}
    executed = set(open_engine(file, engine).integer_layers)
    assert len(executed) > 6
    # Whether OpenVINO has integer products of two activations depends on the processor.
    assert executed - PRODUCTS == expected - PRODUCTS


@pytest.mark.parametrize(
    ("engine", "reasons"),
    [
        (
            "openvino",
            {
                "up": "zero point",
                "tokens.w16": "16-bit weights",
                "tokens.a16": "16-bit activations",
                "tokens.kept": "float in the file",
                "tokens.scores": "two activations",
            },
        ),
        (
            "onnxruntime",
            {
                "residual": "output is not quantized",
                "pointwise": "output is not quantized",
                "last": "output is not quantized",
                "w2": "several grids",
                "up": "no integer ConvTranspose",
                "tokens.up1d": "no integer ConvTranspose",
                "tokens.w16": "16-bit weights",
                "tokens.a16": "16-bit activations",
                "tokens.kept": "float in the file",
            },
        ),
        ("tensorrt", dict.fromkeys(("stem", "tokens.linear", "w2"), "unsigned codes")),
    ],
)
def test_reasons(files, engine, reasons):
    found = {verdict.layer: verdict.reason for verdict in lint(files["openvino"][0], engine)}
    for layer, reason in reasons.items():
        assert reason in found[layer]
    if engine == "tensorrt":
        assert all(found.values())
    elif engine == "openvino":
        assert {layer for layer, reason in found.items() if reason} == set(reasons)


def test_every_quantized_layer_of_a_tensorrt_file_keeps_its_rules(files):
    file = files["tensorrt"][0]
    assert {v.layer for v in lint(file) if v.reason} == {"tokens.kept"}
    assert {v.precision for v in lint(file)} == {"W8A8", "W4A8", "W2A8", "float"}


@pytest.mark.parametrize("made_for", ["openvino", "tensorrt"])
def test_all_engines_compute_what_was_simulated(files, made_for):
    file, model, image = files[made_for]
    expected = [y.detach().numpy() for y in model(image)]
    for engine in ("literal", "openvino", "onnxruntime"):
        for y, wanted in zip(open_engine(file, engine)([image.numpy()]), expected, strict=True):
            # A rounding that falls the other way is 1/255 of a range.
            assert np.abs(y - wanted).max() < 0.02 * np.abs(wanted).max()


def test_every_layer_of_the_reference_is_float(files):
    assert all(
        "executed in float" in v.reason
        for v in lint(files["tensorrt"][0], "literal")
        if v.precision != "float"
    )


def test_unknown_targets_and_wrong_schemes_are_refused(tmp_path):
    model, image = zoo({}, bq.DEPLOY)
    path = tmp_path / "x.onnx"
    with pytest.raises(BevquantError, match="'npu' is none of openvino"):
        export_module(model, [image], path, target="npu")
    with pytest.raises(BevquantError, match="scheme SYMMETRIC"):
        export_module(model, [image], path, target="tensorrt")
    model, image = zoo({"w16": bq.W16A16}, bq.SYMMETRIC)
    with pytest.raises(BevquantError, match="scheme DEPLOY"):
        export_module(model, [image], path)
    with pytest.raises(BevquantError, match=r"tokens\.w16: tensorrt has no .* 16 bits"):
        export_module(model, [image], path, target="tensorrt")
    with pytest.raises(BevquantError, match=r"X\.onnx for one file"):
        export_module(model, [image], tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())


class Folded(nn.Module):
    """Layers that a file has no product of, each for another reason, and one that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.const, self.never, self.unused, self.twin, self.equal = (
            nn.Linear(4, 4) for _ in range(6)
        )
        self.alias = self.live
        self.equal.load_state_dict(self.twin.state_dict())
        self.register_buffer("positions", torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.live(x) + self.const(self.positions) + self.twin(x) * self.equal(x)


def test_layers_that_are_not_in_the_file_say_what_became_of_them(tmp_path):
    torch.manual_seed(0)
    model, x = Folded().eval(), torch.randn(3, 4)
    bq.quantize(model, bq.BitPolicy({"*": bq.W8A8, "const": None}))
    bq.calibrate(model, [x])
    for path in (tmp_path / "net.onnx", tmp_path / "net.json"):
        with pytest.warns(UserWarning, match="never"):
            export_module(model, [x], path)
        found = {verdict.layer: verdict for verdict in lint(path)}
        reasons = {layer: v.reason for layer, v in found.items() if not v.present}
        for layer, words in {
            "const": "its inputs are constants",
            "never": "never called",
            "unused": "nothing reads its result",
            "equal": "merged with twin",
            "alias": "another name of live",
        }.items():
            assert words in reasons.pop(layer)
        assert not reasons
        assert {layer for layer, v in found.items() if v.runs == "integers"} == {"live", "twin"}
        # Layers that are not there do not run as float.
        assert not any(verdict.falls_short for verdict in found.values())


def test_a_file_that_says_nothing_of_absent_layers_has_no_entry_for_them(files):
    card = read(files["openvino"][0]).card
    assert "absent" not in card.model_dump_json()
    assert not card.absent


LINES = {
    "all": (bq.W8A8, "openvino", "3 of 3 quantized layers run as integers on openvino"),
    "some": (bq.W8A8, "onnxruntime", "2 of 3 quantized layers run as integers on onnxruntime"),
    "none": (bq.W16A16, "openvino", "NO LAYER RUNS AS INTEGERS: 0 of 3 quantized layers"),
    "float": (None, "openvino", "NO LAYER RUNS AS INTEGERS: 0 of 0 quantized layers"),
}


@pytest.mark.parametrize("case", LINES)
def test_the_command_says_in_its_last_line_and_exit_code_what_runs(
    case, tmp_path, monkeypatch, capsys
):
    precision, target, line = LINES[case]
    model, x = chain(bq.W8A8)
    bq.apply(model, bq.BitPolicy({"*": precision}))
    path = tmp_path / "net.onnx"
    export_module(model, [x], path)

    def run(*options: str) -> tuple[int, str]:
        capsys.readouterr()
        arguments = ["bevquant", "lint", str(path), "--target", target, *options]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0), capsys.readouterr().out

    code, output = run()
    assert code == 0
    assert output.splitlines()[-1].startswith(line)
    code, output = run("--strict")
    assert code == (0 if case == "all" else 1)
    code, output = run("--json", "--strict")
    assert code == (0 if case == "all" else 1)
    found = json.loads(output)
    assert found["ok"] is (case == "all")
    assert found["target"] == target
    by_layer = {layer["layer"]: layer for layer in found["layers"]}
    for verdict in lint(path, target):
        assert by_layer[verdict.layer]["reason"] == verdict.reason
        assert by_layer[verdict.layer]["runs"] == verdict.runs
    assert found["integers"] == sum(layer["runs"] == "integers" for layer in found["layers"])
    assert found["needs_loader"] is False


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
def test_what_says_that_it_needs_the_loader_is_what_no_engine_opens(bits, tmp_path, capsys):
    model, x = chain(bq.Precision(bits, 8))
    path = tmp_path / "net.onnx"
    size = export_module(model, [x], path)
    assert size.needs_loader == (openvino_alone(path, x) is None)
    assert size.needs_loader == (onnxruntime_alone(path, x) is None)
    assert ("needs bevquant's loader" in size.note) == size.needs_loader
    assert ("run as float" in size.note) == (bits in (3, 4))
    lint_artefact(path, None)
    assert size.note in capsys.readouterr().out
    assert lint_artefact(path, None, as_json=True) is (bits < 16)
    assert json.loads(capsys.readouterr().out)["needs_loader"] == size.needs_loader


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_widened_file_opens_in_either_engine_alone_and_computes_the_same(bits, tmp_path):
    model, x = chain(bq.Precision(bits, 8))
    packed, widened = tmp_path / "packed.onnx", tmp_path / "widened.onnx"
    export_module(model, [x], packed)
    size = export_module(model, [x], widened, widen=True)
    assert size.note == ""
    assert size.weights == 4 * 27 + 4 * 36 + 2 * 4
    (expected,) = open_engine(packed, "literal")([x.numpy()])
    (literal,) = open_engine(widened, "literal")([x.numpy()])
    np.testing.assert_array_equal(literal, expected)
    for alone in (openvino_alone(widened, x), onnxruntime_alone(widened, x)):
        # ONNX Runtime rounds biases to the product of the scales, coarse at 2 bits.
        assert np.abs(alone - expected).max() < 0.1 * np.abs(expected).max()
    assert [v.precision for v in lint(widened)] == [f"W{bits}A8"] * 3
    assert open_engine(widened).integer_layers == ("0", "2", "4")


def chain(precision: bq.Precision) -> tuple[nn.Module, Tensor]:
    """Three convolutions, calibrated; ONNX Runtime runs the last in float."""
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    first, second, last = convolutions
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).eval()
    x = torch.randn(1, 3, 9, 9)
    bq.quantize(model, precision)
    bq.calibrate(model, [x])
    return model, x


def openvino_alone(path: Path, x: Tensor) -> np.ndarray | None:
    """Return the output of a file that OpenVINO itself opens, ``None`` if it does not."""
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = run_openvino._core(openvino).compile_model(str(path), "CPU", options)
    except RuntimeError:
        return None
    return np.array(compiled(x.numpy())[0])


def onnxruntime_alone(path: Path, x: Tensor) -> np.ndarray | None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options)
    except Exception:  # its exceptions are not public
        return None
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return np.asarray(output)
