"""Layer by layer, on the very input that a layer had in simulation.

End to end there is no such agreement: a single rounding that falls the other way grows from
layer to layer until it is as large as the quantization error itself.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from deploy_nets import BITS, zoo
from torch import nn

import bevquant as bq
from bevquant.deploy.artefact import read
from bevquant.deploy.export import export_module
from bevquant.deploy.lint import products_of
from bevquant.deploy.pack import widen
from bevquant.deploy.run_onnxruntime import compile_literal, compile_onnxruntime
from bevquant.deploy.run_openvino import compile_openvino
from bevquant.quant.layers import quant_modules

COMPILE = {
    "literal": compile_literal,
    "openvino": compile_openvino,
    "onnxruntime": compile_onnxruntime,
}


def layer_alone(model: ir.Model, product: ir.Node, inputs: list[np.ndarray]) -> ir.Model:
    """Return the part of the graph from the float inputs of a layer to its output."""
    starts = []
    for operand in product.inputs[:2]:
        codes = operand.producer().inputs[0]
        while codes.producer() is not None and codes.producer().op_type != "QuantizeLinear":
            codes = codes.producer().inputs[0]
        if not codes.is_initializer():
            starts.append(codes.producer().inputs[0])
    (output,) = product.outputs
    readers = list(output.consumers())
    if len(readers) == 1 and readers[0].op_type == "Add":
        other = next(value for value in readers[0].inputs if value is not output)
        output = readers[0].outputs[0] if other.is_initializer() else output
    graph = ir.convenience.extract(model.graph, list(dict.fromkeys(starts)), [output])
    for value, array in zip(graph.inputs, inputs, strict=False):
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
    graph.outputs[0].dtype = ir.DataType.FLOAT
    graph.opset_imports.update(model.graph.opset_imports)
    return ir.Model(graph, ir_version=model.ir_version)


def simulated(model: nn.Module, image: Any) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """Return the inputs and the output of each quantized layer."""
    found = {}

    def keep(layer, inputs, output):
        found[layer.name] = [x.detach().numpy() for x in inputs], output.detach().numpy()

    hooks = [layer.register_forward_hook(keep) for layer in quant_modules(model) if layer.precision]
    model(image)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("engine", list(COMPILE))
def test_every_layer_computes_what_was_simulated(engine, tmp_path):
    model, image = zoo(BITS, bq.DEPLOY)
    path = tmp_path / "zoo.onnx"
    export_module(model, [image], path)
    artefact = read(path)
    ((_, graph),) = artefact.parts
    widen(graph)
    products = products_of(artefact)
    layers = simulated(model, image)
    assert len(layers) == len(artefact.card.layers) - 1
    for name, (inputs, wanted) in layers.items():
        alone = layer_alone(graph, products[name][0], inputs)
        (y,) = COMPILE[engine](alone, 1, "f32").run(inputs[: len(alone.graph.inputs)])
        error = np.abs(y - wanted) / np.abs(wanted).max()
        # An engine may round an input to the neighbouring code, one step of 255 (15 at 4 bits).
        assert np.median(error) < 1e-5, name
        assert error.max() < (2e-6 if engine == "literal" else 0.02), name
