"""What every quantizer is given, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch

from bevquant.data import preprocess
from bevquant.data.frame import Batch, Boxes
from bevquant.deploy.export import export
from bevquant.deploy.runtime import flatten
from bevquant.evaluate import Predictor
from bevquant.models.bevfusion import BEVFusion, HeadOutput, NetworkInput
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.spec import Precision
from bevquant.run import load_small

Feed = dict[str, Any]
"""Input name -> array."""


@dataclass(frozen=True)
class Job:
    """A network to quantize.

    Attributes:
        precision: of weights and activations.
        batches: to calibrate on, of one frame each.
        folder: for files.
    """

    precision: Precision
    batches: Sequence[Batch]
    folder: Path

    @property
    def inputs(self) -> list[NetworkInput]:
        """What the layers of the network are given for each batch."""
        model = load_small()
        return [model.prepare(batch).with_tables() for batch in self.batches]

    def graph(self) -> Path:
        """Write the float network as ONNX, norms folded and all constants computed."""
        path = self.folder / "float.onnx"
        model = load_small()
        fold_batchnorm(model, self.batches[0])
        export(model, model.prepare(self.batches[0]), preprocess.SMALL, path)
        graph = ir.load(path)
        # A file that is deployed computes the kernels of sparse convolutions at load; no
        # quantizer would take them for weights.
        onnxscript.optimizer.optimize(graph, input_size_limit=1 << 30, output_size_limit=1 << 30)
        ir.save(graph, path)
        return path


class Quantized(NamedTuple):
    """A quantized network.

    Attributes:
        predict: runs it.
        weights: how many weight tensors are on a grid of the asked bits; 81 in the modules
            of the network, 79 where the encoding of constant positions is computed ahead.
    """

    predict: Predictor
    weights: int


def predictor(
    model: BEVFusion, network: Callable[[NetworkInput], Sequence[torch.Tensor]]
) -> Predictor:
    """Return the predictor with the layers of ``network`` between the code of ``model``."""

    def predict(batch: Batch) -> list[Boxes]:
        with torch.no_grad():
            inputs = model.prepare(batch).with_tables()
            return model.decode(HeadOutput(*network(inputs)))

    return predict


def feeds_of(job: Job, model: bytes) -> list[Feed]:
    """Return what each batch feeds to the inputs of an ONNX model, by name."""
    names = [each.name for each in onnx.load_model_from_string(model).graph.input]
    return [dict(zip(names, flatten(inputs), strict=True)) for inputs in job.inputs]
