import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quant_nets import ResNet, TwoSensors, noise, seeded, two_sensor_batch

from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.inventory import layers
from bevquant.quant.prepare import apply, quantize
from bevquant.quant.spec import DEPLOY, THESIS, W4A8, W8A8

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
