import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from quant_nets import ResNet, TwoSensors, noise, seeded, two_sensor_batch
from safetensors import safe_open
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.nn import MatMul
from bevquant.quant.calibrate import calibrate
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.findings import pack
from bevquant.quant.inventory import layers
from bevquant.quant.layers import quant_modules
from bevquant.quant.prepare import apply, quantize
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.refinement.refine import refine
from bevquant.quant.spec import DEPLOY, THESIS, W4A8, W8A8, Scheme

ELSEWHERE = """
import sys, torch
from pathlib import Path
from bevquant.quant.calibration import load_calibration
from bevquant.quant.prepare import quantize
from bevquant.quant.spec import THESIS, W4A8
from quant_nets import ResNet, noise, seeded
model = quantize(seeded(ResNet()), W4A8, THESIS)
load_calibration(model, Path(sys.argv[1]))
with torch.no_grad():
    sys.stdout.write(model(noise(2, 3, 8, 8)).numpy().tobytes().hex())
"""


def test_another_process_computes_the_same_bits(tmp_path: Path) -> None:
    model = quantize(seeded(ResNet()), W8A8, THESIS)
    calibrate(model, [noise(2, 3, 8, 8)])
    save_calibration(model, tmp_path / "ranges.safetensors")
    with torch.no_grad():
        expected = apply(model, W4A8)(noise(2, 3, 8, 8))
    output = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "ranges.safetensors"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output == expected.numpy().tobytes().hex()


def test_unreached_layers_and_macs_survive(tmp_path: Path) -> None:
    path = tmp_path / "ranges.safetensors"
    model = quantize(seeded(TwoSensors()), W8A8)
    calibrate(model, [two_sensor_batch()])
    save_calibration(model, path)
    again = quantize(seeded(TwoSensors()), W8A8)
    load_calibration(again, path)
    assert not again.auxiliary.calibrated
    assert layers(again) == layers(model)


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranges.safetensors"
    model = quantize(seeded(ResNet()), W8A8)
    with pytest.raises(BevquantError, match="not calibrated"):
        save_calibration(model, path)
    assert not path.exists()
    calibrate(model, [noise(2, 3, 8, 8)])
    save_calibration(model, path)
    for other, scheme in (
        (seeded(ResNet(), seed=1), DEPLOY),
        (seeded(ResNet(4)), DEPLOY),
        (seeded(TwoSensors()), DEPLOY),
        (seeded(ResNet()), THESIS),
    ):
        quantize(other, W8A8, scheme)
        with pytest.raises(BevquantError, match="another model"):
            load_calibration(other, path)


def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranges.safetensors"
    model = quantize(seeded(ResNet()), W8A8)
    with pytest.raises(BevquantError, match="cannot be read"):
        load_calibration(model, path)
    path.write_bytes(b"nonsense")
    with pytest.raises(BevquantError, match="cannot be read"):
        load_calibration(model, path)


class Heads(nn.Module):
    """A convolution per channel of its input, names with a colon, a product and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(4, 6, 3, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.heads = nn.ModuleDict({"cls:0": nn.Linear(4, 3), "50%": nn.Linear(4, 3)})
        self.product = MatMul()

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.body(x).relu()).mean((2, 3))
        a, b = (head(x) for head in self.heads.values())
        return self.product(a, b.t())


def found(scheme: Scheme = THESIS) -> nn.Module:
    model = quantize(seeded(Heads()), W4A8, scheme)
    batches = [noise(5, 4, 6, 6, seed=seed) for seed in range(2)]
    calibrate(model, batches)
    refine(model, batches)
    reconstruct(model, batches)
    return model


def state(model: nn.Module) -> dict[str, bytes]:
    """Return all that was found, to the bit."""
    tensors = {
        f"{layer.name}:{key}": value
        for layer in quant_modules(model)
        for key, value in pack(layer).items()
    }
    return {key: value.numpy().tobytes() for key, value in tensors.items()}


@pytest.mark.parametrize("scheme", [DEPLOY, THESIS], ids=["deploy", "thesis"])
def test_all_that_was_found_survives_whatever_layers_are_called(
    scheme: Scheme, tmp_path: Path
) -> None:
    model = found(scheme)
    path = tmp_path / "c.safetensors"
    save_calibration(model, path)
    again = quantize(seeded(Heads()), W4A8, scheme)
    load_calibration(again, path)
    assert state(again) == state(model)
    assert any("rounded" in key for key in state(again))
    with torch.no_grad():
        assert torch.equal(again(noise(5, 4, 6, 6)), model(noise(5, 4, 6, 6)))


Tensors = dict[str, Tensor]


def setting(field: str, value: Any) -> Callable[[Tensors], None]:
    """Return what replaces one tensor, or takes it out."""

    def change(tensors: Tensors) -> None:
        if value is None:
            del tensors[field]
        else:
            tensors[field] = value(tensors[field])

    return change


def without(layer: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith(f"{layer}:")]:
            del tensors[key]

    return change


BROKEN: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "no layer": (without("up"), "up: the range of its input 0 is missing"),
    "no operand": (
        lambda tensors: [
            tensors.pop(f"product:range:1:{bits}:{end}")
            for bits in (4, 8, 16)
            for end in ("minimum", "maximum")
        ],
        "product: the range of its input 1 is missing",
    ),
    "no end": (setting("body:range:0:8:maximum", None), "body: range:0:8:maximum is missing"),
    "no bits": (
        lambda tensors: [tensors.pop(f"body:range:0:8:{end}") for end in ("minimum", "maximum")],
        "body: input 0 has no range for 8 bits",
    ),
    "NaN": (setting("up:range:0:8:minimum", lambda x: x * float("nan")), "up: range.*NaN"),
    "infinity": (setting("up:range:0:8:maximum", lambda x: x + float("inf")), "up: range.*NaN"),
    "negative width": (
        setting("body:range:0:4:minimum", lambda x: x.abs() + 1e9),
        "body: range:0:4: its minimum is above",
    ),
    "other channels": (
        setting("body:range:0:8:minimum", lambda x: x[:3]),
        r"body: range:0:8:minimum has shape \[3, 1, 1\] instead of \[4, 1, 1\]",
    ),
    "other axes": (setting("up:range:0:8:maximum", lambda x: x.flatten()), "up: range.*shape"),
    "other type": (
        setting("body:range:0:8:minimum", lambda x: x.double()),
        "float64 instead of float32",
    ),
    "another input": (
        lambda tensors: tensors.update({"body:range:7:8:minimum": torch.zeros(4, 1, 1)}),
        "body: a range of input 7",
    ),
    "another layer": (
        lambda tensors: tensors.update({"tail:range:0:8:minimum": torch.zeros(())}),
        "tail:range:0:8:minimum: of no layer",
    ),
    "another field": (
        lambda tensors: tensors.update({"body:colour": torch.zeros(())}),
        "body:colour: of no layer",
    ),
    "no factor": (setting("body:refined:W4A8:inputs", None), "refined:W4A8:inputs is missing"),
    "factor 0": (
        setting("body:refined:W4A8:weight", lambda x: x * 0),
        "body: refined:W4A8:weight must be positive",
    ),
    "factors of others": (
        setting("body:refined:W4A8:weight", lambda x: x[:2].clone()),
        "body: refined:W4A8:weight has shape",
    ),
    "no codes": (setting("body:rounded:W4A8:codes", None), "rounded:W4A8:codes is missing"),
    "codes of other bits": (
        setting("body:rounded:W4A8:codes", lambda x: x + 16),
        r"body: rounded:W4A8:codes holds codes outside 0\.\.15",
    ),
    "codes of another shape": (
        setting("body:rounded:W4A8:codes", lambda x: x[:, :1].clone()),
        "body: rounded:W4A8:codes has shape",
    ),
    "scale 0": (setting("body:rounded:W4A8:scale", lambda x: x * 0), "scale must be positive"),
    "zero point outside": (
        setting("body:rounded:W4A8:zero_point", lambda x: x + 99),
        "zero_point holds codes outside",
    ),
    "NaN in a bias": (
        setting("heads.cls%3A0:rounded:W4A8:bias", lambda x: x * float("nan")),
        "cls:0",
    ),
    "no such bits": (
        lambda tensors: tensors.update({"body:refined:W9A9:weight": torch.ones(())}),
        "9 bits",
    ),
}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp("calibrated") / "c.safetensors"
    model = found()
    save_calibration(model, path)
    return path, model


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_is_taken_whole_or_not_at_all(
    name: str, calibrated: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    """The model keeps what it had, whichever layer of the file is wrong."""
    path, model = calibrated
    change, message = BROKEN[name]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors)
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    before = state(model)
    older = {key: metadata[key] for key in ("fingerprint", "macs")}
    for header in (metadata, older):
        safetensors.torch.save_file(tensors, tmp_path / "broken.safetensors", header)
        with pytest.raises(BevquantError, match=message) as caught:
            load_calibration(model, tmp_path / "broken.safetensors")
        assert "broken.safetensors: " in str(caught.value)
        assert "\n" not in str(caught.value)
        assert state(model) == before


@pytest.mark.parametrize("macs", ["", "[1]", '{"body": -1}', '{"body": "many"}', None])
def test_macs_that_are_none_are_refused(
    macs: str | None, calibrated: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path, model = calibrated
    with safe_open(path, "pt") as file:
        header = {"fingerprint": file.metadata()["fingerprint"]}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    header |= {} if macs is None else {"macs": macs}
    safetensors.torch.save_file(tensors, tmp_path / "c", header)
    with pytest.raises(BevquantError, match="MACs"):
        load_calibration(model, tmp_path / "c")


def test_a_file_from_before_there_were_checksums_is_read(
    calibrated: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path, model = calibrated
    with safe_open(path, "pt") as file:
        header = {key: file.metadata()[key] for key in ("fingerprint", "macs")}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, tmp_path / "old", header)
    again = quantize(seeded(Heads()), W4A8, THESIS)
    load_calibration(again, tmp_path / "old")
    assert state(again) == state(model)


def test_a_flipped_bit_is_noticed(calibrated: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, model = calibrated
    content, before = path.read_bytes(), state(model)
    random = np.random.default_rng(0)
    for place in random.integers(len(content), size=60):
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        (tmp_path / "c").write_bytes(bytes(changed))
        with pytest.raises(BevquantError):
            load_calibration(model, tmp_path / "c")
        assert state(model) == before


def test_other_biases_are_another_model(calibrated: tuple[Path, nn.Module]) -> None:
    path, _ = calibrated
    other = seeded(Heads())
    other.heads["cls:0"].bias.data.add_(1)
    with pytest.raises(BevquantError, match="another model"):
        load_calibration(quantize(other, W4A8, THESIS), path)
