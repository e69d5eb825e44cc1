from pathlib import Path

import numpy as np
import pytest
from deploy_nets import BITS, Zoo, zoo
from torch import Tensor

import bevquant as bq
from bevquant.deploy import run_openvino
from bevquant.deploy.engines import open_engine
from bevquant.deploy.export import export_module
from bevquant.deploy.lint import lint
from bevquant.errors import BevquantError

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
