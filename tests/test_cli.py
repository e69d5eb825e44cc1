"""The command line as a user meets it, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bevquant as bq
from bevquant.run import SHIPPED

COMMAND = [sys.executable, "-c", "from bevquant.cli import main; main()"]


def bevquant(*args: object, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        **settings,
    )


def assert_refused(result: subprocess.CompletedProcess[str], *fragments: object) -> None:
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for fragment in fragments:
        assert str(fragment) in lines[0]


@pytest.mark.parametrize("command", [COMMAND, [sys.executable, "-m", "bevquant"]])
def test_version(command: list[str]) -> None:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"bevquant {bq.__version__}"


def test_a_verb_without_arguments_prints_its_help_and_no_empty_line() -> None:
    result = bevquant("search")
    assert "search [OPTIONS] COMMAND" in result.stdout
    assert result.stderr == ""


def test_world_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    assert_refused(bevquant("world", tmp_path, "--scenes", 1, "--keyframes", 2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_world_refuses_what_is_no_number_of_key_frames(tmp_path: Path) -> None:
    result = bevquant("world", tmp_path / "w", "--keyframes", 1)
    assert_refused(result, "keyframes")


def test_world_stopped_by_ctrl_c_is_completed_by_the_same_command(
    tmp_path: Path,
) -> None:
    command = [*COMMAND, "world", str(tmp_path / "w"), "--scenes", "1", "--keyframes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the world was finished before the signal came")
    assert process.returncode == 130
    assert "the same command continues" in errors
    assert [path.name for path in tmp_path.iterdir()] == [".w.unfinished"]
    assert bevquant(*command[len(COMMAND) :]).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_demo_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    assert_refused(bevquant("demo", "--out", tmp_path), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_train_names_the_nearest_key(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: a\nmodel: bevfusion_small\nworld: {}\ntrain: {epocs: 1}\n")
    result = bevquant("train", recipe, "--out", tmp_path / "run")
    assert_refused(result, recipe, "'train.epocs'", "'epochs'")
    assert not (tmp_path / "run").exists()


def test_eval_names_the_wrong_version_and_the_missing_file(tiny_world: Path) -> None:
    arguments = ("--data", tiny_world, "--version", "v9", "--split", "world_val")
    assert_refused(bevquant("eval", "weights.safetensors", *arguments), "weights.safetensors")
    assert_refused(bevquant("eval", "file.onnx", *arguments), "file.onnx")


@pytest.mark.parametrize(
    "verb", [("sensitivity", "--bits", "W2A8,W5A8"), ("debug", "--precision", "W5A8")]
)
def test_bits_that_do_not_exist_are_refused_before_any_work(
    verb: tuple[str, ...], tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out") if verb[0] == "sensitivity" else ()
    assert_refused(bevquant(*verb, *out, "--data", tmp_path), "5 bits for weights")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sensitivity_continues_and_debug_names_a_planted_layer(
    tiny_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--data", tiny_world, "--frames", 1, "--threads", 1)
    command = ("sensitivity", *options, "--out", out, "--bits")
    assert bevquant(*command, "W8A8").returncode == 0
    first = (out / "rows.jsonl").read_text().splitlines()
    assert bevquant(*command, "W2A8,W8A8").returncode == 0
    lines = (out / "rows.jsonl").read_text().splitlines()
    assert lines[: len(first)] == first
    assert len(lines) - 1 == 2 * (len(first) - 1)
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "sensitivity.csv").read_text().splitlines()) == len(lines)

    tensors = load_file(SHIPPED)
    tensors["pts_neck.deblocks.1.0.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, tmp_path / "broken.safetensors")
    result = bevquant("debug", *options, "--checkpoint", tmp_path / "broken.safetensors")
    assert result.returncode == 0, result.stderr
    assert "pts_neck.deblocks.1.0: the first output that is not finite" in result.stdout


@pytest.mark.slow
def test_export_eval_and_bench_of_the_shipped_network(tiny_world: Path, tmp_path: Path) -> None:
    int8, fp32 = tmp_path / "int8.onnx", tmp_path / "fp32.onnx"
    data = ("--data", tiny_world)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for path, precision, more in (
        (int8, "W8A8", ("--measure-on", "world_val")),
        (fp32, "float", ()),
    ):
        result = bevquant(
            "export", path, *data, "--precision", precision, "--frames", 2, *more, env=environment
        )
        assert result.returncode == 0, result.stderr
        assert f"{path.stat().st_size:,}" in result.stdout
    assert int8.stat().st_size < 0.5 * fp32.stat().st_size
    figures = tmp_path / "figures.json"
    result = bevquant("eval", int8, *data, "--limit", 1, "--json", figures, env=environment)
    assert result.returncode == 0, result.stderr
    assert 0 <= json.loads(figures.read_text())["NDS"] <= 1
    assert "on other frames" in result.stdout
    result = bevquant("eval", int8, *data, "--json", figures, env=environment)
    assert result.returncode == 0, result.stderr
    deployed = json.loads(figures.read_text())
    assert abs(deployed["NDS"] - deployed["simulated"]["NDS"]) < 0.1  # of two frames
    assert "simulated" in result.stdout
    result = bevquant("lint", int8, "--target", "tensorrt", env=environment)
    assert result.returncode == 0, result.stderr
    assert "not run on TensorRT" in result.stdout
    assert "0 of 81 quantized layers" in result.stdout
    times = tmp_path / "times.json"
    options = ("--runs", 3, "--threads", "1,2", "--json", times)
    result = bevquant("bench", fp32, int8, *data, *options, env=environment)
    assert result.returncode == 0, result.stderr
    assert "int8.onnx" in result.stdout
    rows = json.loads(times.read_text())["measurements"]
    measured = [(row["file"], row["threads"]) for row in rows]
    assert measured == [(file, n) for n in (1, 2) for file in ("fp32.onnx", "int8.onnx")]
    for row in rows:
        parts = [stage["runs"] for stage in row["stages"].values()]
        assert list(map(sum, zip(*parts, strict=True))) == pytest.approx(row["latency"]["runs"])


@pytest.mark.slow
def test_an_export_says_last_whether_it_needs_the_loader_and_widen_mends_it(
    tiny_world: Path, tmp_path: Path
) -> None:
    options = ("--data", tiny_world, "--precision", "W2A8", "--frames", 1, "--ranges-only")
    packed, widened = tmp_path / "packed.onnx", tmp_path / "widened.onnx"
    result = bevquant("export", packed, *options)
    assert result.returncode == 0, result.stderr
    assert "needs bevquant's loader" in result.stdout.splitlines()[-1]
    result = bevquant("export", widened, *options, "--widen")
    assert result.returncode == 0, result.stderr
    assert "layers run as integers" in result.stdout.splitlines()[-1]
    assert widened.stat().st_size > 2 * packed.stat().st_size
    for path, needs in ((packed, True), (widened, False)):
        found = json.loads(bevquant("lint", path, "--json").stdout)
        assert found["needs_loader"] is needs


def test_lint_and_eval_name_a_pipe_instead_of_waiting_for_it(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.json", "net.safetensors"):
        os.mkfifo(tmp_path / name)
        assert_refused(bevquant("eval", tmp_path / name, "--data", tmp_path), name, "pipe")
    assert_refused(bevquant("lint", tmp_path / "net.onnx"), "net.onnx", "pipe")


def test_bench_refuses_a_number_of_threads(tmp_path: Path) -> None:
    for threads in ("0", "two", "1,,2"):
        result = bevquant("bench", "x.onnx", "--data", tmp_path, "--threads", threads)
        assert result.returncode == 2
        assert f"--threads {threads}: give numbers" in result.stderr


@pytest.mark.slow
def test_a_measured_latency_table_is_what_a_search_takes(tiny_world: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "table.json", tmp_path / "run"
    data = ("--data", tiny_world)
    result = bevquant("latency", "--out", table, *data, "--frames", 1, "--runs", 3)
    assert result.returncode == 0, result.stderr
    times = json.loads(table.read_text())
    assert sum(row["W8A8"] for row in times.values()) > 0
    for space in ("all", "thesis"):
        options = ("--strategy", "random", "--evaluations", 2, "--frames", 1, "--calibration", 1)
        result = bevquant(
            "search", *data, "--out", out / space, "--latency", table, "--space", space, *options
        )
        assert result.returncode == 0, result.stderr
        points = json.loads((out / space / "front.json").read_text())["points"]
        assert all(point["costs"]["latency"] > 0 for point in points)
