"""State dicts in files of ``torch.save``, read without running anything that is in them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from bevquant.errors import BevquantError
from bevquant.tensors import check_archive

KEYS = ("state_dict", "model", "model_state_dict", "model_state", "ema", "network", "net")
"""Under which training frameworks keep the weights; what comes first counts."""

PREFIXES = ("module.", "_orig_mod.", "model.")


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
        check_archive(path)
        content = _load(path)
    except Exception as error:  # torch.load raises whatever a broken file provokes
        raise BevquantError(
            f"{path}: not a readable checkpoint of tensors ({_reason(path, error)}); "
            "restore it, or save its state_dict alone with torch.save"
        ) from error
    state = _state_in(content)
    if state is None:
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else "none"
        raise BevquantError(
            f"{path}: holds no state dict of tensors, neither by itself nor under one of "
            f"{', '.join(KEYS)}; its keys: {keys[:200] or 'none'}"
        )
    return _without_prefix(state)


def _state_in(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict that a file's content is, or holds under a usual key."""
    if not isinstance(content, dict):
        return None
    for candidate in (content, *(content.get(key) for key in KEYS)):
        if isinstance(candidate, dict) and candidate and all(map(_is_entry, candidate.items())):
            return dict(candidate)
    return None


def _is_entry(item: tuple[Any, Any]) -> bool:
    name, value = item
    return isinstance(name, str) and torch.is_tensor(value)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put before every name: DDP, averaging, compilation, Lightning."""
    state = {name: value for name, value in state.items() if name != "n_averaged"}
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _reason(path: Path, error: Exception) -> str:
    start = path.read_bytes()[:2]
    if not start:
        return "it is empty"
    if start not in (b"PK", b"\x80\x02"):
        return "it is no file of torch.save"
    return str(error).partition("\n")[0] or type(error).__name__


def _load(path: Path) -> Any:
    try:
        foreign = get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format before torch 1.6 cannot be looked into
        foreign = []
    with safe_globals([(_Ignored, name) for name in foreign]):
        return torch.load(path, map_location="cpu", weights_only=True)
