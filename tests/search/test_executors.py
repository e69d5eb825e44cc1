import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from search_toys import batches, dying, quantized, squared_error
from torch import Tensor

import bevquant as bq
from bevquant.search.executors import Executor, Processes
from bevquant.search.front import Front
from bevquant.search.ray_executor import Ray
from bevquant.search.search import search
from bevquant.search.surrogate import Surrogate

STRATEGY = Surrogate(evaluations=12, start=6, at_once=3)


@pytest.fixture(autouse=True)
def workers_find_this_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join([str(Path(__file__).parent), *sys.path]))


@pytest.fixture(scope="module")
def local() -> list[tuple[object, ...]]:
    return described(search(quantized(), batches(), error=squared_error, strategy=STRATEGY))


def described(front: Front) -> list[tuple[object, ...]]:
    return [(point.genome, point.error, point.costs) for point in front.evaluated]


def found(executor: Executor, error: object = squared_error) -> list[tuple[object, ...]]:
    front = search(quantized(), batches(), error=error, strategy=STRATEGY, executor=executor)
    return described(front)


def test_processes_find_the_same(local: list[tuple[object, ...]]) -> None:
    assert found(Processes(2)) == local


def test_workers_that_die_come_back(
    local: list[tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lives").write_text("x")
    monkeypatch.setenv("DYING", str(tmp_path / "lives"))
    assert found(Processes(1), dying) == local


@pytest.mark.slow
def test_a_genome_that_kills_every_worker_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lives").write_text("x\n" * 99)
    monkeypatch.setenv("DYING", str(tmp_path / "lives"))
    with pytest.raises(bq.BevquantError, match=r"3 workers died of genome \("):
        found(Processes(1), dying)


def test_error_in_a_worker_arrives() -> None:
    with pytest.raises(bq.BevquantError, match="returned -1"):
        found(Processes(1), negative)


def negative(outputs: Tensor, float_outputs: Tensor) -> float:
    return -1.0


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(bq.BevquantError, match="top of a module"):
        found(Processes(1), lambda a, b: 0.0)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "lives"


@pytest.fixture(scope="module")
def cluster(lives: Path) -> Iterator[str]:
    pytest.importorskip("ray")
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or shutil.which("ray")
    assert ray is not None
    address = "127.0.0.1:26379"
    head = [ray, "start", "--head", "--port=26379", "--node-ip-address=127.0.0.1"]
    small = ["--num-cpus=1", "--include-dashboard=false", "--object-store-memory=100000000"]
    # Workers have the environment of the cluster, not that of the search.
    path = ":".join([str(Path(__file__).parent), *sys.path])
    environment = {"PYTHONPATH": path, "DYING": str(lives)}
    started = subprocess.Popen(
        [*head, *small, "--block"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield address
    started.terminate()
    started.wait()


@pytest.mark.slow
def test_ray_finds_the_same_although_a_worker_dies(
    local: list[tuple[object, ...]], cluster: str, lives: Path
) -> None:
    assert found(Ray(1, cluster)) == local
    lives.write_text("x")
    assert found(Ray(1, cluster), dying) == local
    assert not lives.read_text()


def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    with pytest.raises(bq.BevquantError, match="no cluster at 'nowhere'"):
        found(Ray(1, "nowhere"))
