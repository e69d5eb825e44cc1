"""Whatever is wrong with a file, it is one sentence that names the file: never a traceback.

Each loader is given files that were changed at random: bytes flipped, cut, repeated; keys taken
out; values of other types, sizes and signs.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import bevquant as bq
from bevquant.data.sweeps import read_points
from bevquant.data.world.settings import WorldSettings
from bevquant.files import read_json, write_json
from bevquant.models.pickled import read_state
from bevquant.models.weights import load_state, load_weights, save_weights
from bevquant.quant.policy import BitPolicy
from bevquant.quant.rowlog import RowLog
from bevquant.recipe import TrainRecipe, checked, load_recipe
from bevquant.search.costs import latency
from bevquant.search.ledger import Ledger
from bevquant.search.space import space
from bevquant.search.status import print_status
from bevquant.steps import Steps

ODD: list[Any] = [None, [], {}, "", "x", -1, 0, 1.5, 10**40, True, [1], {"a": 1}, float("nan")]
ODD += [float("inf"), "2020-99-99"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def quantized() -> nn.Module:
    model = bq.quantize(network(), "W8A8")
    bq.calibrate(model, [torch.ones(2, 6), torch.arange(12.0).view(2, 6)])
    return model


def damage(path: Path, chance: random.Random) -> None:
    """Change the bytes of a file."""
    content = bytearray(path.read_bytes())
    kind = chance.randrange(5)
    start = chance.randrange(len(content))
    if kind == 0:
        for _ in range(chance.choice((1, 1, 4, 64))):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif kind == 1:
        del content[start:]
    elif kind == 2:
        del content[start : start + chance.randrange(1, 64)]
    elif kind == 3:
        content[start:start] = content[start : start + chance.randrange(1, 64)]
    else:
        content = bytearray(chance.choice((b"", b"text", b"[" * 5000, b"\xff" * 40, b"9" * 5000)))
    path.write_bytes(bytes(content))


def distort(value: Any, chance: random.Random) -> Any:
    """Change one place in a tree of plain values."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        if chance.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: distort(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        index = chance.randrange(len(value))
        return [*value[:index], distort(value[index], chance), *value[index + 1 :]]
    return chance.choice(ODD)


RECIPE = yaml.safe_load(Path("recipes/bevfusion_small_world.yaml").read_text())
POLICY = {"*": "W4A8", "2": "float"}
TABLE = {name: dict.fromkeys(("W2A8", "W4A8", "W8A8", "float"), 0.5) for name in ("0", "2")}
SETUP = {"weights": "w", "batches": "b"}


def make_points(path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    points[:, 4] = np.arange(64) % 32
    points.tofile(path)


def make_ledger(path: Path) -> None:
    ledger = Ledger(path, SETUP)
    for genome in range(40):
        ledger.record((genome,), (0.5, 0.25), {"bits": 3.0}, 0.1, "here")
    ledger.progress("random", 100, 40, False)
    ledger.close()


def open_ledger(path: Path) -> None:
    ledger = Ledger(path, SETUP)
    ledger.all()
    ledger.close()
    print_status(path)


def use_latency(path: Path) -> None:
    model = quantized()
    choices = [bq.W2A8, bq.W4A8, bq.W8A8]
    latency(read_json(path))(model, space(model, choices))


def make_steps(path: Path) -> None:
    Steps(path.parent, {"a": 1}).run("one", lambda: [1, 2])


def open_steps(path: Path) -> None:
    steps = Steps(path.parent, {"a": 1})
    steps.value("one")
    steps.seconds()


def append_row(path: Path) -> None:
    RowLog(path, SETUP).append({"layer": "a", "error": 0.5})


def import_state(path: Path) -> None:
    load_state(network(), read_state(path), path)


LOADERS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "recipe": (
        "r.yaml",
        lambda path: path.write_text(yaml.safe_dump(RECIPE)),
        lambda path: load_recipe(path, TrainRecipe),
    ),
    "policy": (
        "p.json",
        lambda path: write_json(path, POLICY),
        lambda path: bq.apply(quantized(), BitPolicy.of(read_json(path))),
    ),
    "latency table": ("t.json", lambda path: write_json(path, TABLE), use_latency),
    "world settings": (
        "settings.json",
        lambda path: write_json(path, WorldSettings(scenes=2, keyframes=2).model_dump(mode="json")),
        lambda path: checked(read_json(path), WorldSettings, path),
    ),
    "step": ("step-one.json", make_steps, open_steps),
    "set-up of steps": ("setup.json", make_steps, open_steps),
    "rows": ("rows.jsonl", append_row, append_row),
    "points": ("p.bin", make_points, read_points),
    "pickled checkpoint": (
        "c.pth",
        lambda path: torch.save({"state_dict": network().state_dict()}, path),
        import_state,
    ),
    "weights": (
        "w.safetensors",
        lambda path: save_weights(network(), path),
        lambda path: load_weights(network(), path),
    ),
    "calibration": (
        "c.safetensors",
        lambda path: bq.save_calibration(quantized(), path),
        lambda path: bq.load_calibration(bq.quantize(network(), "W8A8"), path),
    ),
    "ledger": ("l.sqlite", make_ledger, open_ledger),
    "exported file": (
        "m.onnx",
        lambda path: bq.export(quantized(), [torch.ones(2, 6)], path),
        bq.lint,
    ),
    "manifest": (
        "m.json",
        lambda path: bq.export(quantized(), [torch.ones(2, 6)], path),
        bq.lint,
    ),
}


def tracebacks(name: str, folder: Path, count: int, seed: int) -> list[str]:
    """Return what a loader raised beside our own errors."""
    file, make, load = LOADERS[name]
    path = folder / file
    make(path)
    load(path)
    whole = {each: each.read_bytes() for each in folder.iterdir() if each.is_file()}
    found = []
    chance = random.Random(seed)
    for number in range(count):
        for each in folder.iterdir():
            if each not in whole:
                each.unlink()
        for each, data in whole.items():
            each.write_bytes(data)
        if path.suffix in (".json", ".yaml") and chance.random() < 0.6:
            value = distort(yaml.safe_load(whole[path]), chance)
            path.write_text(json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value))
        else:
            damage(path, chance)
        try:
            load(path)
        except bq.BevquantError as error:
            if "\n" in str(error):
                found.append(f"{number}: more than a line: {error}")
        except BaseException as error:
            found.append(f"{number}: {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    assert tracebacks(name, tmp_path, 15, seed=1) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    assert tracebacks(name, tmp_path, 300, seed=2) == []
