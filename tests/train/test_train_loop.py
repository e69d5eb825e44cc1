"""A run, stopped and continued, is the run that was never stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_toys import PREPROCESS, ToyFrames, toy_config

from bevquant.errors import BevquantError
from bevquant.files import read_json
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.weights import load_weights
from bevquant.train import loop
from bevquant.train.settings import TrainSettings

SETTINGS = TrainSettings(epochs=2, batch_size=4, replicas=2, workers=0, checkpoint_steps=2)
FRAMES = ToyFrames(12)
STEPS = 6


def run(folder: Path, settings: TrainSettings = SETTINGS) -> dict[str, torch.Tensor]:
    """Train the toy network and return the weights on disk."""
    torch.manual_seed(0)
    model = BEVFusion(toy_config())
    loop.train(model, PREPROCESS, FRAMES, None, settings, run_folder=folder)  # type: ignore[arg-type]
    load_weights(model, folder / "weights.safetensors")
    return model.state_dict()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = BEVFusion(toy_config())
    load_weights(model, folder / "weights.safetensors")
    return model.state_dict()


def test_killed_run_continues_to_the_same_weights(tmp_path: Path, uninterrupted: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; import test_train_loop as t;"
        "step = t.loop.train_step\n"
        "def killed(state, *rest):\n"
        "    if state.step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(state, *rest)\n"
        "t.loop.train_step = killed; t.run(Path(sys.argv[1]))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=Path(__file__).parent, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert len((tmp_path / "curves.jsonl").read_text().splitlines()) == 3
    continued, expected = run(tmp_path), weights(uninterrupted)
    assert all(torch.equal(continued[name], value) for name, value in expected.items())
    steps = [
        json.loads(row)["step"] for row in (tmp_path / "curves.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, STEPS + 1))


def test_folder_of_a_run(uninterrupted: Path) -> None:
    card = read_json(uninterrupted / "card.json")
    assert card["data"] == "toy12"
    assert card["train"] == SETTINGS.model_dump(mode="json")
    assert card["provenance"]["seed"] == SETTINGS.seed
    assert (uninterrupted / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_run_is_not_trained_again(tmp_path: Path, uninterrupted: Path) -> None:
    before = (uninterrupted / "curves.jsonl").read_text()
    expected = weights(uninterrupted)
    again = run(uninterrupted)
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert (uninterrupted / "curves.jsonl").read_text() == before


def test_folder_of_another_run_is_refused(uninterrupted: Path) -> None:
    other = SETTINGS.model_copy(update={"lr": 1e-3})
    with pytest.raises(BevquantError, match=r"checkpoint\.pt: .*differs in train;"):
        run(uninterrupted, other)


def test_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(BevquantError, match=r"checkpoint\.pt: not a readable checkpoint"):
        run(tmp_path)


def test_diverging_run_stops_with_its_step(tmp_path: Path) -> None:
    wild = SETTINGS.model_copy(update={"lr": 1e30, "clip": 1e30})
    with pytest.raises(BevquantError, match=r"step \d: the loss or its gradient is not finite"):
        run(tmp_path, wild)
