"""Write a network to an ONNX file: quantized layers with packed integer weights, or all float."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from bevquant.data.preprocess import Preprocess
from bevquant.deploy.graph import finish
from bevquant.deploy.qdq import TRANSLATION, integer_form
from bevquant.errors import BevquantError
from bevquant.files import write_bytes
from bevquant.models.bevfusion import BEVFusion, HeadOutput, NetworkInput
from bevquant.quant.layers import floating
from bevquant.quant.running import evaluating

OPSET = 21
FOLDED_BYTES = 4096
"""Constants up to this size are computed at export; larger ones (position biases that are
looked up in small tables) are left to the engine, so that the file stays small."""

LAYERS_KEY = "bevquant.layers"
CONFIG_KEY = "bevquant.config"
PREPROCESS_KEY = "bevquant.preprocess"


def export_module(
    module: nn.Module,
    inputs: Sequence[Any],
    path: Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``module`` to ``path`` as one ONNX file.

    Layers that are quantized and calibrated with the scheme ``DEPLOY`` are stored with
    integer weights in the bits they have (8, 4 and 2 bits take 1, 1/2 and 1/4 byte) and
    with QuantizeLinear and DequantizeLinear around them, in which engines recognise
    integer layers; everything else is float32. Fold batch normalisation beforehand.

    Args:
        module: any network that :func:`torch.export.export` takes.
        inputs: example arguments.
        path: written atomically.
        input_names: of the flattened inputs.
        output_names: of the flattened outputs.
        dynamic_shapes: as :func:`torch.onnx.export` takes it, one entry per input.
        metadata: stored in the file, beside the precision of each layer.

    Raises:
        BevquantError: a layer is quantized in a way that no engine runs in integers, or
            ``path`` cannot be written.
    """
    with evaluating(module), integer_form(module) as layers, torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            tuple(inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes,
            custom_translation_table=TRANSLATION,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        model = program.model
        onnxscript.optimizer.optimize(
            model, input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES
        )
    finish(model, layers)
    model.metadata_props.clear()
    model.metadata_props.update({LAYERS_KEY: json.dumps(layers), **(metadata or {})})
    write_bytes(path, ir.serde.serialize_model(model).SerializeToString())


def export(model: BEVFusion, sample: NetworkInput, preprocess: Preprocess, path: Path) -> None:
    """Write a BEVFusion, quantized or float, to ``path`` with all that is needed to run it.

    Args:
        model: for integer layers calibrated with the scheme ``DEPLOY``, batch
            normalisation folded.
        sample: of one frame; the file takes single frames with the same number of
            cameras and any number of points.
        preprocess: what a frame goes through before ``model.prepare``.
        path: written atomically.

    Raises:
        BevquantError: as :func:`export_module`, or ``sample`` has several frames.
    """
    inputs = sample.with_tables()
    if len(sample.images) != 1:
        raise BevquantError(f"export: the sample has {len(sample.images)} frames; give one")

    def run(inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        return tuple(model.network(NetworkInput(*inputs)))

    network = copy.copy(model)
    network.forward = run  # type: ignore[method-assign, assignment]
    rows = {0: torch.export.Dim.AUTO}
    shapes = {
        "images": {},
        "depth_map": {},
        "pool_points": rows,
        "pool_pixels": rows,
        "pool_cells": rows,
        "voxels": rows,
        "rules": tuple(rows for _ in inputs.rules),
        "sites": rows,
    }
    export_module(
        network,
        (tuple(inputs),),
        path,
        input_names=_input_names(inputs),
        output_names=HeadOutput._fields,
        dynamic_shapes=(tuple(shapes[name] for name in NetworkInput._fields),),
        metadata={
            CONFIG_KEY: model.config.model_dump_json(),
            PREPROCESS_KEY: preprocess.model_dump_json(),
        },
    )


def export_float(
    model: BEVFusion, sample: NetworkInput, preprocess: Preprocess, path: Path
) -> None:
    """Write a BEVFusion in float32 whatever its precision: what :func:`export` is held against.

    Arguments and errors are those of :func:`export`.
    """
    with floating(model):
        export(model, sample, preprocess, path)


def _input_names(inputs: NetworkInput) -> list[str]:
    return [
        name if isinstance(value, Tensor) else f"{name}_{i}"
        for name, value in inputs._asdict().items()
        for i in range(1 if isinstance(value, Tensor) else len(value))
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes about libraries that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
