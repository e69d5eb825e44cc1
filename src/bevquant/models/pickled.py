"""State dicts in files of ``torch.save``, read without running anything that is in them."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from bevquant.errors import BevquantError


class _Ignored:
    """Stands for an object of a training framework beside the weights.

    mmengine keeps its logs in the checkpoint, as objects of its own classes, which
    ``weights_only=True`` refuses. Nothing of them is needed, so none of their code is.
    """

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint: its ``state_dict``, or the file itself.

    Raises:
        BevquantError: the file is missing, damaged, or holds no state dict.
    """
    if not path.is_file():
        raise BevquantError(f"{path}: no such checkpoint")
    try:
        content = _load(path)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise BevquantError(
            f"{path}: not a readable checkpoint of tensors ({reason}); "
            "restore it, or save its state_dict alone with torch.save"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise BevquantError(f"{path}: holds no 'state_dict' of tensors")
    return dict(state)


def _load(path: Path) -> Any:
    try:
        foreign = get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format before torch 1.6 cannot be looked into
        foreign = []
    with safe_globals([(_Ignored, name) for name in foreign]):
        return torch.load(path, map_location="cpu", weights_only=True)
