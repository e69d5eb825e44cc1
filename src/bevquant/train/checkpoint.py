"""What a stopped training run continues from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from bevquant.errors import BevquantError
from bevquant.files import atomic_path
from bevquant.tensors import load_saved


@dataclass
class State:
    """Everything that changes during a run.

    Attributes:
        model: the network that learns.
        average: the moving average of its weights.
        optimizer: and its moments.
        schedule: of the learning rate.
        step: steps done.
        seconds: time spent on them.
    """

    model: nn.Module
    average: AveragedModel
    optimizer: Optimizer
    schedule: LRScheduler
    step: int = 0
    seconds: float = 0.0


def save(state: State, identity: dict[str, Any], path: Path) -> None:
    """Write ``state`` atomically; ``identity`` says which run it belongs to."""
    content = {
        "identity": identity,
        "model": state.model.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "step": state.step,
        "seconds": state.seconds,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def resume(state: State, identity: dict[str, Any], path: Path) -> None:
    """Bring ``state`` to where the checkpoint at ``path`` was, if there is one.

    Raises:
        BevquantError: the checkpoint cannot be read or belongs to another run.
    """
    if not path.exists():
        return
    try:
        content = load_saved(path)
    except Exception as error:  # a broken file provokes all sorts
        raise BevquantError(
            f"{path}: not a readable checkpoint; delete it to start anew"
        ) from error
    try:
        changed = [key for key in identity if content["identity"].get(key) != identity[key]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BevquantError(f"{path}: not a checkpoint of a training; delete it") from error
    if changed:
        raise BevquantError(
            f"{path}: the run it belongs to differs in {', '.join(changed)}; "
            "choose another run folder or delete it to start anew"
        )
    try:
        state.model.load_state_dict(content["model"])
        state.average.load_state_dict(content["average"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.schedule.load_state_dict(content["schedule"])
        state.step = int(content["step"])
        state.seconds = float(content["seconds"])
    except Exception as error:  # of another shape: each part objects in its own way
        raise BevquantError(
            f"{path}: not a checkpoint of this network; delete it to start anew"
        ) from error
