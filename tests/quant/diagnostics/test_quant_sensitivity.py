import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from quant_nets import ResNet, TwoSensors, ViTBlock, noise, seeded, two_sensor_batch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.diagnostics.fidelity import Fidelity, FidelityMeter
from bevquant.quant.diagnostics.sensitivity import sensitivity
from bevquant.quant.diagnostics.sensitivity_rows import write_csv
from bevquant.quant.layers import quant_modules
from bevquant.quant.prepare import apply, quantize
from bevquant.quant.spec import W2A8, W4A8, W8A8

BATCHES = [noise(2, 3, 8, 8, seed=seed) for seed in (0, 1)]


def calibrated(precision: Any = W8A8) -> nn.Module:
    model = quantize(seeded(ResNet()), precision)
    calibrate(model, BATCHES)
    return model


def test_fidelity_of_several_calls_is_that_of_the_whole() -> None:
    a, b = noise(6, 5), noise(6, 5, seed=1)
    meter = FidelityMeter()
    for part in (slice(0, 2), slice(2, 6)):
        meter.update([a[part]], [b[part]])
    a, b = a.double(), b.double()
    found = meter.fidelity
    assert found.mse == pytest.approx(float(nn.functional.mse_loss(a, b)))
    assert found.cosine == pytest.approx(
        float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    )
    assert found.normalised_mse == pytest.approx(float(((a - b).norm() / b.norm()) ** 2))
    assert found.sqnr == pytest.approx(20 * math.log10(float(b.norm() / (a - b).norm())))


def test_fidelity_at_the_edges() -> None:
    meter = FidelityMeter()
    meter.update([torch.zeros(2), torch.ones(3)], [torch.zeros(2), torch.ones(3)])
    assert meter.fidelity == Fidelity(0.0, 0.0, 1.0)
    assert meter.fidelity.sqnr == math.inf
    meter = FidelityMeter()
    meter.update([torch.ones(2)], [torch.zeros(2)])
    assert meter.fidelity.sqnr == -math.inf
    with pytest.raises(BevquantError, match="cannot be compared"):
        meter.update([torch.ones(3)], [torch.zeros(2)])
    with pytest.raises(BevquantError, match="no floating-point output"):
        FidelityMeter().fidelity  # noqa: B018


def test_rows_are_those_of_the_model_with_one_quantized_layer() -> None:
    model = calibrated()
    rows = sensitivity(model, BATCHES, [W2A8, W8A8])
    assert len(rows) == 2 * len(quant_modules(model))
    assert all(layer.precision == W8A8 for layer in quant_modules(model))
    calls: list[str] = []
    for layer in quant_modules(model):
        layer.register_forward_pre_hook(lambda layer, _: calls.append(layer.name))
    row = next(r for r in rows if r.layer == "body.1.conv2" and r.precision == W2A8)
    with torch.no_grad():
        layer = model.body[1].conv2
        outputs: dict[Any, list[Tensor]] = {}
        for precision in (None, W2A8):
            seen: list[Tensor] = []
            hook = layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            apply(model, W8A8)
            for other in quant_modules(model):
                other.precision = precision if other is layer else None
            outputs[precision] = [torch.cat([model(b) for b in BATCHES]), torch.cat(seen)]
            hook.remove()
    for found, i in ((row.model_output, 0), (row.layer_output, 1)):
        error = nn.functional.mse_loss(outputs[W2A8][i].double(), outputs[None][i].double())
        assert found.mse == pytest.approx(float(error), rel=1e-4)
    assert list(dict.fromkeys(r.layer for r in rows)) == list(dict.fromkeys(calls))


def test_fewer_bits_cost_more() -> None:
    rows = sensitivity(calibrated(), BATCHES, [W2A8, W8A8])
    for two, eight in zip(rows[::2], rows[1::2], strict=True):
        assert two.layer_output.mse > eight.layer_output.mse
        assert two.layer_output.sqnr < eight.layer_output.sqnr


def test_a_task_error_sees_both_results() -> None:
    rows = sensitivity(
        calibrated(), BATCHES, [W4A8], task_error=lambda a, b: float((a - b).abs().max())
    )
    assert all(row.task_error is not None and row.task_error > 0 for row in rows)


def test_any_batch_and_nested_outputs_and_unreached_layers() -> None:
    model = quantize(seeded(TwoSensors()), W8A8)
    batches = [two_sensor_batch()]
    calibrate(model, batches)
    rows = sensitivity(model, batches, [W4A8])
    assert [row.layer for row in rows] == ["camera.0", "voxels", "fuse"]  # not auxiliary
    picked = sensitivity(model, batches, [W4A8], outputs=lambda out: [out["fused"]])
    assert picked == rows


def test_products_of_activations_share_a_pass_between_weight_bits() -> None:
    model, x = quantize(seeded(ViTBlock()), W8A8), noise(2, 5, 8)
    calibrate(model, [x])
    calls: Counter[str] = Counter()
    model.scores.register_forward_pre_hook(lambda layer, _: calls.update([str(layer.precision)]))
    rows = [row for row in sensitivity(model, [x], [W2A8, W8A8]) if row.layer == "scores"]
    assert rows[0].model_output == rows[1].model_output
    assert calls["W2A8"] == 1 and calls["W8A8"] == 0


class Stopped(Exception):
    pass


def test_a_stopped_run_continues_to_the_same_rows(tmp_path: Path) -> None:
    expected = sensitivity(calibrated(), BATCHES, [W2A8, W8A8])
    log, passes = tmp_path / "rows.jsonl", 0

    def stopping(model: nn.Module, batch: Tensor) -> Any:
        nonlocal passes
        passes += 1
        if passes == 8:
            raise Stopped
        return model(batch)

    with pytest.raises(Stopped):
        sensitivity(calibrated(), BATCHES, [W2A8, W8A8], forward=stopping, log=log)
    with log.open("a") as file:
        file.write('{"layer": "st')  # killed while writing
    passes = 100
    assert sensitivity(calibrated(), BATCHES, [W2A8, W8A8], forward=stopping, log=log) == expected
    assert passes == 100 + 2 * (1 + len(expected) - 2)
    before = passes
    assert sensitivity(calibrated(), BATCHES, [W2A8, W8A8], forward=stopping, log=log) == expected
    assert passes == before
    first, *lines = log.read_text().splitlines()
    assert set(json.loads(first)) == {"setup"}
    assert len(lines) == len(expected)


@pytest.mark.parametrize("changed", ["calibrated model", "batches", "task_error"])
def test_a_changed_set_up_is_refused_by_name(tmp_path: Path, changed: str) -> None:
    log, model = tmp_path / "rows.jsonl", calibrated()
    sensitivity(model, BATCHES, [W8A8], log=log)
    before = log.read_bytes()
    if changed == "calibrated model":
        with torch.no_grad():
            model.head.weight[0, 0] += 1e-3
    batches = [BATCHES[0], BATCHES[1] + 1e-3] if changed == "batches" else BATCHES
    task_error = (lambda a, b: 0.0) if changed == "task_error" else None
    with pytest.raises(BevquantError, match=f"rows.jsonl: was started with another {changed}"):
        sensitivity(model, batches, [W8A8], task_error=task_error, log=log)
    assert log.read_bytes() == before


@pytest.mark.parametrize("content", ["not json\n", "[]\n", "no line", '{"layer": 1}\n', "\n"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    log = tmp_path / "rows.jsonl"
    log.write_text(content)
    with pytest.raises(BevquantError, match="not the rows of an earlier run"):
        sensitivity(calibrated(), BATCHES, [W8A8], log=log)
    assert log.read_text() == content


def test_csv(tmp_path: Path) -> None:
    rows = sensitivity(calibrated(), BATCHES, [W2A8, W8A8])
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(line["layer"], line["precision"]) for line in table] == [
        (row.layer, str(row.precision)) for row in rows
    ]
    assert [float(line["model_sqnr"]) for line in table] == [row.model_output.sqnr for row in rows]
    assert {line["task_error"] for line in table} == {""}


def test_misuse_is_refused() -> None:
    with pytest.raises(BevquantError, match="not calibrated"):
        sensitivity(quantize(seeded(ResNet()), W8A8), BATCHES)
    with pytest.raises(BevquantError, match="no batch"):
        sensitivity(calibrated(), [])
    with pytest.raises(BevquantError, match="no floating-point output"):
        sensitivity(calibrated(), BATCHES, outputs=lambda _: [])
