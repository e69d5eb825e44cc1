"""Two processes on this machine must come to what one comes to."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from quant_nets import ResNet, noise, seeded
from torch import nn

import bevquant as bq
from bevquant.ptqat.train import train
from bevquant.quant.layers import QuantLayer, quant_modules

pytestmark = pytest.mark.slow

BATCHES = [noise(2, 3, 8, 8, seed=seed) for seed in range(4)]
SETTINGS = bq.Training(steps=4, lr=0.02, batch_size=2, checkpoint_steps=2)


def quantized(batches: Sequence[torch.Tensor]) -> nn.Module:
    model = seeded(ResNet())
    bq.fold_batchnorm(model, batches[0])
    bq.calibrate(bq.quantize(model, bq.W2A8), batches)
    return model


def trained(folder: Path) -> tuple[nn.Module, tuple[float, float]]:
    model = quantized(BATCHES)
    found = train(model, ["stem.0", "up.0"], bq.Task(BATCHES), SETTINGS, folder)
    return model, (found.before, found.after)


def learned(model: nn.Module) -> list[torch.Tensor]:
    layers = [x for x in quant_modules(model) if isinstance(x, QuantLayer) and x.rounded]
    return [
        x for layer in layers for x in (layer.weight_codes, layer.learned_bias) if x is not None
    ]


def report(folder: str) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    model, losses = trained(Path(folder) / "together")
    rank = torch.distributed.get_rank()
    torch.save([losses, learned(model)], Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def launch(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("accelerate")
    file = folder / "script.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, str(file), str(folder)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_take_the_same_steps_as_one(tmp_path: Path) -> None:
    script = "import sys, test_ptqat_parallel as t; t.report(sys.argv[1])"
    result = launch(tmp_path, script)
    assert result.returncode == 0, result.stderr
    model, losses = trained(tmp_path / "alone")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for found, values in ranks:
        assert found == pytest.approx(losses, rel=1e-5)
        for mine, theirs in zip(learned(model), values, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    rows = [
        (tmp_path / name / "curves.jsonl").read_text().count("\n") for name in ("alone", "together")
    ]
    assert rows == [SETTINGS.steps + 1, SETTINGS.steps + 1]


def test_a_process_without_a_batch_is_refused(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, test_ptqat_parallel as t\n"
        "t.SETTINGS = t.SETTINGS.model_copy(update={'batch_size': 1})\n"
        "t.trained(pathlib.Path(sys.argv[1]))"
    )
    result = launch(tmp_path, script)
    assert result.returncode != 0
    assert "batch_size 1 is less than the 2 processes" in result.stderr


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, torch, test_ptqat_parallel as t\n"
        "t.BATCHES[0] = t.BATCHES[0] * torch.inf\n"
        "try:\n"
        "    t.train(t.quantized(t.BATCHES[1:]), ['stem.0'], t.bq.Task(t.BATCHES), t.SETTINGS)\n"
        "except t.bq.BevquantError as error:\n"
        "    rank = torch.distributed.get_rank()\n"
        "    (pathlib.Path(sys.argv[1]) / f'{rank}.txt').write_text(str(error))\n"
        "torch.distributed.destroy_process_group()"
    )
    result = launch(tmp_path, script)
    assert result.returncode == 0, result.stderr
    messages = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert all("before the first step is not finite" in message for message in messages)
    assert "the first layer to fail is" in messages[0]
