"""What each layer costs when it alone is quantized."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.quant.choices import Recorded, Replayed
from bevquant.quant.diagnostics.fidelity import FidelityMeter
from bevquant.quant.diagnostics.sensitivity_rows import Sensitivity, from_json, to_json
from bevquant.quant.fingerprint import fingerprint, model_fingerprint
from bevquant.quant.inputs import precisions_of, sequence_of
from bevquant.quant.inventory import macs_of
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantModule, quant_modules
from bevquant.quant.outputs import Outputs, error_of, floating_tensors
from bevquant.quant.rowlog import RowLog
from bevquant.quant.running import Forward, call, evaluating
from bevquant.quant.spec import W2A8, W4A8, W8A8, Precision

TaskError = Callable[[Any, Any], float]
"""Says how much worse what the quantized model returned is than what the float one did."""


def sensitivity(
    model: nn.Module,
    batches: Sequence[Any],
    precisions: Sequence[Precision] = (W2A8, W4A8, W8A8),
    forward: Forward = call,
    outputs: Outputs = floating_tensors,
    task_error: TaskError | None = None,
    log: Path | None = None,
) -> list[Sensitivity]:
    """Quantize each layer of a calibrated model alone, at each precision, and compare.

    Costs one forward pass over the batches for each layer and precision, and one more for
    the float outputs, which are kept. Bits of the model are left as they were. A product of
    activations has no weight: precisions with the same activation bits share a pass. What
    the float model picked with topk and the like is picked again, or rows of the outputs
    would not be the same things.

    Args:
        model: quantized and calibrated; layers that calibration did not reach are left out.
        batches: to compare on; the same as for calibration, or others.
        precisions: bits to try.
        forward: runs the model on one batch; ``model(batch)`` by default.
        outputs: picks what is compared from what the model returns: all floating-point
            tensors by default.
        task_error: takes what the model and what the float model returned for a batch.
        log: a file to which each row goes as soon as it is known. If it exists already its
            rows are taken as they are, so that the same call continues what was stopped,
            and more precisions only cost their own passes.

    Returns:
        Rows by layer, in order of the calls, then by precision.

    Raises:
        BevquantError: the model is not calibrated, there is no batch or no output to
            compare, or ``log`` was started with another model, other batches or another way
            to compare.
    """
    layers = calibrated_layers(model)
    if not layers:
        raise BevquantError("sensitivity: the model is not calibrated; call calibrate first")
    batches = sequence_of(batches, "sensitivity")
    precisions = precisions_of(precisions, "sensitivity")
    writer = RowLog(Path(log), _setup(model, batches, outputs, task_error)) if log else None
    rows = {
        (row.layer, row.precision): row for row in map(from_json, writer.rows if writer else ())
    }
    todo = [(x, p) for x in layers for p in precisions if (x.name, p) not in rows]
    if todo:
        with evaluating(model), _left_as_it_was(model):
            trial = _Trial(model, batches, forward, outputs, task_error)
            for layer, precision in track(todo, "sensitivity"):
                row = _same(rows, layer, precision) or trial.row(layer, precision)
                rows[layer.name, precision] = row
                if writer:
                    writer.append(to_json(row))
    return [rows[layer.name, precision] for layer in layers for precision in precisions]


def calibrated_layers(model: nn.Module) -> list[QuantModule]:
    """Return the calibrated layers of ``model`` in order of their first call."""
    order = {name: position for position, name in enumerate(macs_of(model) or ())}
    layers = [layer for layer in quant_modules(model) if layer.calibrated]
    return sorted(layers, key=lambda layer: order.get(layer.name, len(order)))


class _Trial:
    """Float outputs of a model, to compare with those when one layer is quantized."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        forward: Forward,
        outputs: Outputs,
        task_error: TaskError | None,
    ) -> None:
        self.model, self.batches, self.forward = model, batches, forward
        self.outputs, self.task_error = outputs, task_error
        self.references = []
        self.choices = []
        for batch in track(batches, "float outputs"):
            with Recorded() as recorded:
                self.references.append(forward(model, batch))
            self.choices.append(recorded.choices)

    def row(self, layer: QuantModule, precision: Precision) -> Sensitivity:
        own, whole = FidelityMeter(), FidelityMeter()
        errors = []

        def compare(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            layer.bypass = True
            own.update([output], [layer.forward(*args, **kwargs)])
            layer.bypass = False

        hook = layer.register_forward_hook(compare, with_kwargs=True)
        layer.precision = precision
        try:
            for batch, reference, choices in zip(
                self.batches, self.references, self.choices, strict=True
            ):
                with Replayed(choices):
                    result = self.forward(self.model, batch)
                whole.update(self.outputs(result), self.outputs(reference))
                if self.task_error:
                    error = self.task_error(result, reference)
                    errors.append(error_of(error, result, "sensitivity"))
        finally:
            layer.precision, layer.bypass = None, False
            hook.remove()
        return Sensitivity(
            layer=layer.name,
            main_module=layer.main_module,
            weights=0 if layer.kind.weight_axis is None else weight_of(layer.wrapped).numel(),
            precision=precision,
            layer_output=own.fidelity,
            model_output=whole.fidelity,
            task_error=fmean(errors) if errors else None,
        )


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Take away the bits of all layers for the time of a ``with`` block."""
    before = {layer: layer.precision for layer in quant_modules(model)}
    for layer in before:
        layer.precision = None
    try:
        yield
    finally:
        for layer, precision in before.items():
            layer.precision = precision


def _same(
    rows: dict[tuple[str, Precision], Sensitivity], layer: QuantModule, precision: Precision
) -> Sensitivity | None:
    """Return the row of a product of activations from that with other weight bits."""
    if layer.kind.weight_axis is None:
        for (name, other), row in rows.items():
            if name == layer.name and other.activations == precision.activations:
                return replace(row, precision=precision)
    return None


def _setup(
    model: nn.Module, batches: Sequence[Any], outputs: Outputs, task_error: TaskError | None
) -> dict[str, str]:
    return {
        "calibrated model": model_fingerprint(model),
        "batches": fingerprint(list(batches)),
        "outputs": outputs.__qualname__,
        "task_error": task_error.__qualname__ if task_error else "none",
    }
