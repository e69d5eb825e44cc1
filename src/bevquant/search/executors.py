"""Where evaluations run: in this process, in worker processes, or on a Ray cluster."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

from bevquant.errors import BevquantError
from bevquant.search.evaluator import Evaluator, Job, Outcome

ATTEMPTS = 3
"""So many workers may die of one genome before the search gives up."""

Pool = Callable[[Iterator[Job]], Iterator[tuple[Job, Outcome]]]
"""Evaluates jobs in any order; takes the next one only when it has a worker for it."""


class Executor(Protocol):
    """A place for evaluations."""

    def open(self, evaluator: Evaluator) -> AbstractContextManager[Pool]:
        """Set up the workers for the time of a ``with`` block."""
        ...


@dataclass(frozen=True)
class Serial:
    """One evaluation after the other, in this process."""

    @contextmanager
    def open(self, evaluator: Evaluator) -> Iterator[Pool]:
        """Yield the pool."""

        def pool(jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
            for job in jobs:
                yield job, evaluator.evaluate(job)

        yield pool


@dataclass(frozen=True)
class Processes:
    """Worker processes on this machine; one that dies is replaced and its genome run again.

    Attributes:
        workers: how many; each holds its own model and batches.
    """

    workers: int

    @contextmanager
    def open(self, evaluator: Evaluator) -> Iterator[Pool]:
        """Yield the pool.

        Raises:
            BevquantError: the model, the batches or the functions cannot be pickled.
        """
        pool = _ProcessPool(packed(evaluator), self.workers)
        try:
            yield pool.run
        finally:
            pool.stop()


def packed(evaluator: Evaluator) -> bytes:
    """Return ``evaluator`` as bytes for another process.

    Raises:
        BevquantError: a part of it cannot be pickled.
    """
    try:
        return pickle.dumps(evaluator)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BevquantError(
            f"search: workers need a model, batches and functions that can be pickled ({error}); "
            "define functions at the top of a module"
        ) from error


class _ProcessPool:
    def __init__(self, evaluator: bytes, workers: int) -> None:
        self._evaluator = evaluator
        # Forked threads of PyTorch may hang: workers start as new interpreters.
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(workers)]

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
        running: dict[Connection, Job] = {}
        again: list[Job] = []
        deaths: dict[Job, int] = {}
        while True:
            for worker in self._workers:
                if worker.pipe not in running:
                    job = again.pop() if again else next(jobs, None)
                    if job is None:
                        break
                    running[worker.pipe] = job
                    worker.send(job)
            if not running:
                return
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                job = running.pop(pipe)
                try:
                    outcome = pipe.recv()
                except (EOFError, ConnectionError):
                    deaths[job] = deaths.get(job, 0) + 1
                    if deaths[job] == ATTEMPTS:
                        raise BevquantError(
                            f"search: {ATTEMPTS} workers died of genome {job.genome}; "
                            "is there memory for so many?"
                        ) from None
                    again.append(job)
                    self._replace(pipe)
                    continue
                if isinstance(outcome, BaseException):
                    raise outcome
                yield job, outcome

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _start(self) -> "_Worker":
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        worker.send(self._evaluator)
        return worker

    def _replace(self, pipe: Connection) -> None:
        for index, worker in enumerate(self._workers):
            if worker.pipe is pipe:
                worker.kill()
                self._workers[index] = self._start()


@dataclass(frozen=True)
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection

    def send(self, message: object) -> None:
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionError):
            return  # it died; whoever waits for its answer is told so

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: Connection) -> None:
    try:
        evaluator: Evaluator = pickle.loads(pipe.recv())
        while True:
            job = pipe.recv()
            try:
                pipe.send(evaluator.evaluate(job))
            except Exception as error:
                pipe.send(error)
    except (EOFError, KeyboardInterrupt):
        return
