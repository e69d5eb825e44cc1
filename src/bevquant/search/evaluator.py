"""What a genome is worth: the quantized network's outputs beside the float network's."""

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bevquant.quant.layers import floating, quant_modules
from bevquant.quant.outputs import error_of
from bevquant.quant.running import Forward, call, evaluating
from bevquant.search.digest import digest
from bevquant.search.reuse import Memory
from bevquant.search.space import Genome, Space

ErrorFunction = Callable[[Any, Any], float]
"""Takes what ``forward`` returned quantized and float; 0 for no difference."""


@dataclass(frozen=True)
class Job:
    """A genome to evaluate.

    Attributes:
        genome: of the evaluator's space.
        known: errors on the first batches, if those have been run before.
        batches: how many of the batches to run.
        bound: stop as soon as the mean error is sure to be greater.
    """

    genome: Genome
    known: tuple[float, ...]
    batches: int
    bound: float


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    Attributes:
        errors: on each batch, from the first; ``inf`` where an output was not finite.
        seconds: what it took.
        host: machine that ran it.
    """

    errors: tuple[float, ...]
    seconds: float
    host: str


class Evaluator:
    """A quantized model, batches, and what the float model makes of them.

    Weights are quantized once for each layer and bit-width (the layers keep them) and the
    outputs of main modules are kept, see :class:`~bevquant.search.reuse.Memory`. It can be
    pickled if its parts can; what it keeps stays behind.

    Args:
        model: quantized and calibrated.
        space: what genomes mean.
        batches: of any type that ``forward`` takes.
        error: of the outputs on one batch.
        forward: runs the model on one batch.
        threads: of PyTorch while it evaluates; part of what makes figures repeatable.
        memory: bytes of outputs that are kept; 0 for a plain forward pass each time.
    """

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        batches: Sequence[Any],
        error: ErrorFunction,
        forward: Forward = call,
        threads: int = 1,
        memory: int = 1 << 30,
    ) -> None:
        self.model = model
        self.space = space
        self.batches = batches
        self.error = error
        self.forward = forward
        self.threads = threads
        self.memory = memory
        self._layers = {layer.name: layer for layer in quant_modules(model)}
        self._references: list[Any] | None = None
        self._memory: Memory | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept: the next process computes it anew."""
        return {**self.__dict__, "_references": None, "_memory": None, "_layers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo :meth:`__getstate__`."""
        self.__dict__.update(state)
        self._layers = {layer.name: layer for layer in quant_modules(self.model)}

    @property
    def reuse(self) -> Memory | None:
        """The memory, ``None`` before the first evaluation and where it cannot be used."""
        return self._memory

    def evaluate(self, job: Job) -> Outcome:
        """Run the batches of a job that have not been run yet.

        The bits of the model are as before afterwards.
        """
        before = {layer: layer.precision for layer in self._layers.values()}
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with evaluating(self.model):
                if self._references is None:
                    self._prepare()
                started = time.perf_counter()
                errors = self._errors(job)
                return Outcome(errors, time.perf_counter() - started, platform.node())
        finally:
            torch.set_num_threads(threads)
            for layer, precision in before.items():
                layer.precision = precision

    def _errors(self, job: Job) -> tuple[float, ...]:
        assert self._references is not None
        self._set(job.genome)
        errors = list(job.known)
        with self._memory.attached() if self._memory else nullcontext():
            while len(errors) < job.batches and not hopeless(errors, job.batches, job.bound):
                output = self.forward(self.model, self.batches[len(errors)])
                error = self.error(output, self._references[len(errors)])
                errors.append(error_of(error, output, "search"))
        return tuple(errors)

    def _prepare(self) -> None:
        with floating(self.model):
            self._references = [self.forward(self.model, batch) for batch in self.batches]
        memory = Memory(self.model, self.batches, self.memory)
        if self.memory and self._same_outputs(memory):
            self._memory = memory

    def _same_outputs(self, memory: Memory) -> bool:
        """Whether outputs from memory are those of a plain forward pass, bit for bit."""
        self._set(self.space.lowest)
        digests = [digest(self.forward(self.model, self.batches[0]))]
        with memory.attached():
            digests += [digest(self.forward(self.model, self.batches[0])) for _ in range(2)]
        return len(set(digests)) == 1

    def _set(self, genome: Genome) -> None:
        for name, precision in self.space.assign(genome).items():
            self._layers[name].precision = precision


def hopeless(errors: Sequence[float], batches: int, bound: float) -> bool:
    """Whether the mean over ``batches`` is sure to exceed ``bound``; no error is negative."""
    return sum(errors) > bound * batches
