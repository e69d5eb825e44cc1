"""What a stopped training continues from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.files import atomic_path
from bevquant.tensors import load_saved

KEYS = {"identity", "learned", "optimizer", "step", "best", "losses"}
"""Of a checkpoint."""


@dataclass
class State:
    """Everything that changes while layers are trained.

    Attributes:
        learned: the parameters, by name.
        optimizer: and its moments.
        step: steps done.
        best: the best parameters so far.
        best_loss: and their loss on the validation batches.
        first_loss: the loss before the first step.
    """

    learned: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: int
    best: dict[str, Tensor]
    best_loss: float
    first_loss: float

    def judge(self, loss: float) -> None:
        """Keep the present parameters if ``loss`` is the smallest so far."""
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: p.detach().clone() for name, p in self.learned.items()}

    def take_best(self) -> None:
        """Go back to the best parameters."""
        with torch.no_grad():
            for name, parameter in self.learned.items():
                parameter.copy_(self.best[name])


def save(state: State, identity: dict[str, Any], path: Path) -> None:
    """Write ``state`` atomically; ``identity`` says which training it belongs to."""
    content = {
        "identity": identity,
        "learned": {name: parameter.detach() for name, parameter in state.learned.items()},
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "best": state.best,
        "losses": [state.best_loss, state.first_loss],
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def resume(state: State, identity: dict[str, Any], path: Path) -> None:
    """Bring ``state`` to where the checkpoint at ``path`` was.

    Raises:
        BevquantError: the checkpoint cannot be read or belongs to another training.
    """
    try:
        content = load_saved(path)
        found = set(content)
    except Exception as error:  # a broken file provokes all sorts
        raise BevquantError(
            f"{path}: not a readable checkpoint; delete it to start anew"
        ) from error
    if found != KEYS:
        raise BevquantError(f"{path}: not a checkpoint of ptqat; choose another folder")
    kept = content["identity"] if isinstance(content["identity"], dict) else {}
    changed = [key for key in identity if kept.get(key) != identity[key]]
    if changed:
        raise BevquantError(
            f"{path}: the training it belongs to differs in {', '.join(changed)}; "
            "choose another folder or delete it to start anew"
        )
    try:
        with torch.no_grad():
            for name, parameter in state.learned.items():
                parameter.copy_(content["learned"][name])
                state.best[name] = content["best"][name].to(parameter.device)
        state.optimizer.load_state_dict(content["optimizer"])
        state.step = int(content["step"])
        state.best_loss, state.first_loss = map(float, content["losses"])
    except Exception as error:  # of another shape: each part objects in its own way
        raise BevquantError(
            f"{path}: not a checkpoint of these layers; delete it to start anew"
        ) from error
