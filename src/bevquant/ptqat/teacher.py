"""What the float network says of a batch, worked out when it is needed or once for all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.ptqat.task import Task
from bevquant.quant.choices import Recorded
from bevquant.quant.fingerprint import fingerprint
from bevquant.quant.layers import floating


@dataclass(frozen=True)
class Answer:
    """The float network's.

    Attributes:
        outputs: those that count for the task.
        weights: how much their elements count, broadcasting against them.
        choices: indices that it picked with topk and the like on the way.
    """

    outputs: Sequence[Tensor]
    weights: Sequence[Tensor]
    choices: list[Tensor]


@dataclass(frozen=True)
class Lesson:
    """A batch with the float network's answer to it.

    Attributes:
        batch: of the task.
        answer: to it.
    """

    batch: Any
    answer: Answer


class Lessons(Sequence[Lesson]):
    """The batches of a task, loaded as ever, with answers that are kept.

    Attributes:
        batches: of the task.
        answers: one for each.
        weights: of the float network that gave them, see :func:`weights_of`.
    """

    def __init__(
        self, batches: Sequence[Any], answers: Sequence[Answer], weights: tuple[str, str]
    ) -> None:
        self.batches, self.answers, self.weights = batches, answers, weights

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Lesson(self.batches[index], self.answers[index])


def weights_of(model: nn.Module) -> tuple[str, str]:
    """Return digests of the names in a model's state, and of its values."""
    state = model.state_dict()
    return fingerprint(list(state)), fingerprint(list(state.values()))


def check_answers(task: Task, model: nn.Module) -> None:
    """Refuse answers that a network gave before its weights were changed.

    Nothing is known if its layers have other names by now, as they have once quantized.

    Raises:
        BevquantError: they are those of other weights.
    """
    kept = [x.weights for x in (task.batches, task.validation) if isinstance(x, Lessons)]
    if not kept:
        return
    names, values = weights_of(model)
    if any(names == known and values != old for known, old in kept):
        raise BevquantError(
            "ptqat: the float network's answers were kept before its weights changed; "
            "call taught again"
        )


@torch.no_grad()
def answer(model: nn.Module, task: Task, batch: Any) -> Answer:
    """Ask the float network, which is ``model`` itself without quantization.

    Raises:
        BevquantError: the outputs hold no floating-point tensor.
    """
    with floating(model), Recorded() as recorded:
        output = task.forward(model, batch)
        outputs = task.outputs(output)
        weights = task.weights(model, output) if task.weights else [x.new_ones(()) for x in outputs]
    if not outputs:
        raise BevquantError("ptqat: the model returns no floating-point tensor to distil")
    return Answer(outputs, weights, recorded.choices)


def taught(model: nn.Module, task: Task) -> Task:
    """Return ``task`` with the float network's answers to all batches, found in one pass.

    Training does not ask again then: a step of distillation has one forward pass less, and
    any number of trainings may share the answers. They stay in memory.

    Args:
        model: quantized or not; only its float weights matter.
        task: what is to be trained for.
    """
    weights = weights_of(model)

    def lessons(batches: Sequence[Any]) -> Lessons:
        answers = [answer(model, task, batch) for batch in track(batches, "float network")]
        return Lessons(batches, answers, weights)

    def unpacked(run: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], Any]:
        return lambda model, lesson: run(model, lesson.batch)

    return replace(
        task,
        batches=lessons(task.batches),
        validation=lessons(task.validation),
        forward=unpacked(task.forward),
        loss=unpacked(task.loss) if task.loss else None,
    )
