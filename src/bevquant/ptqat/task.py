"""What training must know of a user's problem."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.outputs import Outputs, floating_tensors
from bevquant.quant.running import Forward, call


@dataclass(frozen=True)
class Task:
    """Data, how a model takes it, and what it should make of it.

    Attributes:
        batches: to train on, of any type; loaded when they are indexed, if you like.
        forward: runs the model on one batch; ``model(batch)`` by default.
        loss: ``loss(model, batch)`` runs the model and returns a scalar to be minimised,
            from labels in the batch. Without it the float network is the only teacher.
        outputs: picks what the quantized network should have in common with the float one
            from what ``forward`` returns: all floating-point tensors by default.
        weights: how much each element of ``outputs`` counts, 0 or more, in tensors that
            broadcast against them: ``weights(model, output)`` of what ``forward`` returned for
            the float model. All elements of a tensor count the same by default.
        validation: batches to judge the weights on while they are trained; the first eight
            of ``batches`` if there are none.
        metric: measures the model each time its weights are judged, for the curves.

    Raises:
        BevquantError: batches that have no length or no index, as a ``DataLoader`` has none.
    """

    batches: Sequence[Any]
    forward: Forward = call
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    outputs: Outputs = floating_tensors
    weights: Callable[[nn.Module, Any], list[Tensor]] | None = None
    validation: Sequence[Any] = ()
    metric: Callable[[nn.Module], float] | None = None

    def __post_init__(self) -> None:
        for what, batches in (("batches", self.batches), ("validation", self.validation)):
            if not (hasattr(batches, "__len__") and hasattr(batches, "__getitem__")):
                raise BevquantError(
                    f"Task: {what} must be a sequence, not {type(batches).__name__}; list(...) "
                    "makes one"
                )
