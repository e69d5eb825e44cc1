"""PTQAT in one call: pre-check, selection, selective training."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bevquant.errors import BevquantError
from bevquant.progress import console
from bevquant.ptqat import parallel
from bevquant.ptqat.cuts import Candidate
from bevquant.ptqat.layers import parameters_of
from bevquant.ptqat.precheck import precheck
from bevquant.ptqat.promise import promises
from bevquant.ptqat.selection import PROMISE, PROMISING, Rule, Selection
from bevquant.ptqat.settings import Training
from bevquant.ptqat.show import draw_selection, selection_table
from bevquant.ptqat.task import Task
from bevquant.ptqat.train import Trained, train
from bevquant.quant.layers import QuantLayer, quant_modules

CHECKED = 8
"""Batches that layers are judged on."""


@dataclass(frozen=True)
class Tuned:
    """What was selected, and what training came to.

    Attributes:
        selection: of the layers.
        trained: by them.
    """

    selection: Selection
    trained: Trained


def ptqat(
    model: nn.Module,
    task: Task,
    rule: Rule = PROMISING,
    training: Training = Training(),  # noqa: B008 (immutable)
    folder: Path | None = None,
) -> Tuned:
    """Fine-tune the layers of a quantized model that are worth it (PTQAT, arXiv 2508.10557).

    The model keeps its bits, any mix of them, and is afterwards what it was: a quantized
    model, to be evaluated, saved, exported or restored. The best result comes from a
    reconstructed one. The selection is printed before training starts.

    Args:
        model: quantized, calibrated, and better reconstructed; its batch norms folded.
        task: data, and a loss if there are labels.
        rule: which layers are trained. ``PROMISING``, the half of the parameters that the
            loss can win most by, is our measured default; ``PAPER`` trains the layers with
            an error below 0.01, ``INVERTED`` the others, ``EVERYTHING`` all of them.
        training: steps, learning rate and so on.
        folder: for ``selection.png``, the curves, and a checkpoint from which the same call
            continues what was stopped.

    Raises:
        BevquantError: the rule leaves nothing to train, or as
            :func:`~bevquant.ptqat.train.train`.
    """
    parallel.join()
    selection = select(model, task, rule, training.distillation)
    if parallel.first():
        console.print(selection_table(selection))
        if folder:
            draw_selection(selection, folder / "selection.png")
    return Tuned(selection, train(model, selection.layers, task, training, folder))


def select(model: nn.Module, task: Task, rule: Rule, distillation: float = 1.0) -> Selection:
    """Measure each layer and apply ``rule``.

    Raises:
        BevquantError: the rule leaves nothing to train, or nothing is quantized.
    """
    found = candidates(model, task, rule, distillation)
    selection = rule.select(found)
    if not selection.layers:
        scores = [candidate.score for candidate in found]
        raise BevquantError(
            f"ptqat: the rule leaves nothing to train ({rule.reason}): {rule.measure} goes from "
            f"{min(scores):.3g} to {max(scores):.3g}"
        )
    return selection


def candidates(
    model: nn.Module, task: Task, rule: Rule, distillation: float = 1.0
) -> list[Candidate]:
    """Measure each quantized layer on the first batches of the task, as ``rule`` says.

    In order of the calls.

    Raises:
        BevquantError: nothing is quantized, or there is no batch.
    """
    batches = [task.batches[i] for i in range(min(CHECKED, len(task.batches)))]
    if rule.measure == PROMISE:
        return promises(model, task, batches, distillation)
    rows = precheck(
        model, batches, task.forward, upstream=rule.upstream, granularity=rule.granularity
    )
    sizes = {x.name: parameters_of(x) for x in quant_modules(model) if isinstance(x, QuantLayer)}
    return [Candidate(row.layer, sizes[row.layer], row.score(rule.measure)) for row in rows]
