"""Several processes, one for each GPU, that train together (``torchrun``).

Each takes its share of a step's batches; gradients are summed, so that all take the same
step. In a single process nothing here does anything.
"""

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import distributed, nn

from bevquant.errors import BevquantError

T = TypeVar("T")


def join() -> None:
    """Meet the other processes that ``torchrun`` started, if it did.

    Raises:
        BevquantError: there are others, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    try:
        from accelerate import PartialState  # noqa: PLC0415
    except ImportError as error:
        raise BevquantError(
            "ptqat: several processes need accelerate; pip install 'bevquant[accelerate]'"
        ) from error
    PartialState(cpu=not torch.cuda.is_available())


def size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's share of ``items``."""
    return items[distributed.get_rank() :: size()] if size() > 1 else items


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over all processes; none counts as zero."""
    if size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def add(value: float) -> float:
    """Return the sum of a number over all processes."""
    if size() == 1:
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total)
