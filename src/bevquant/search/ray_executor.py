"""Evaluations on a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bevquant.errors import BevquantError
from bevquant.search.evaluator import Evaluator, Job, Outcome
from bevquant.search.executors import Pool, packed


@dataclass(frozen=True)
class Ray:
    """Workers on a Ray cluster; Ray brings back those that die and runs their genome again.

    The machines need bevquant and the code of the model; only this process writes the ledger.

    Attributes:
        workers: how many, one CPU each.
        address: of the cluster, ``"127.0.0.1:6379"`` or ``"auto"``.
    """

    workers: int
    address: str = "auto"

    @contextmanager
    def open(self, evaluator: Evaluator) -> Iterator[Pool]:
        """Yield the pool.

        Raises:
            BevquantError: Ray is not installed, no cluster is at the address, or the model
                cannot be pickled.
        """
        ray = _ray()
        payload = packed(evaluator)
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BevquantError(f"ray: no cluster at {self.address!r} ({error})") from error
        try:
            # -1: as often as it takes.
            remote = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Actor)
            shared = ray.put(payload)
            actors = [remote.remote(shared) for _ in range(self.workers)]

            def pool(jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
                return _run(ray, list(actors), jobs)

            yield pool
        finally:
            ray.shutdown()


class _Actor:
    """One worker; its methods run in a process of the cluster."""

    def __init__(self, evaluator: bytes) -> None:
        import pickle  # noqa: PLC0415

        self._evaluator: Evaluator = pickle.loads(evaluator)

    def evaluate(self, job: Job) -> Outcome:
        return self._evaluator.evaluate(job)


def _run(ray: Any, idle: list[Any], jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
    running: dict[Any, tuple[Any, Job]] = {}
    while True:
        while idle and (job := next(jobs, None)) is not None:
            actor = idle.pop()
            running[actor.evaluate.remote(job)] = actor, job
        if not running:
            return
        (done, *_), _ = ray.wait(list(running), num_returns=1)
        actor, job = running.pop(done)
        idle.append(actor)
        try:
            yield job, ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise BevquantError("search: Ray is missing; pip install 'bevquant[ray]'") from error
    return ray
