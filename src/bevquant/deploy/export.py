"""Write a network to an ONNX file: quantized layers with packed integer weights, or all float."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from keyword import iskeyword
from pathlib import Path
from typing import Any

import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bevquant.data.preprocess import Preprocess
from bevquant.deploy.absent import traced_layers, why_absent
from bevquant.deploy.artefact import Artefact, check_path, names_of, write
from bevquant.deploy.card import Card, Expected
from bevquant.deploy.compare import compare as compare_with_simulation
from bevquant.deploy.engines import PACKAGES, EngineName
from bevquant.deploy.graph import finish
from bevquant.deploy.installed import is_installed
from bevquant.deploy.lint import named_products
from bevquant.deploy.qdq import FLOAT, TRANSLATION, integer_form
from bevquant.deploy.simulation import operand_shapes
from bevquant.deploy.size import FileSize, file_size
from bevquant.deploy.targets import target_of
from bevquant.errors import BevquantError
from bevquant.models.bevfusion import BEVFusion, HeadOutput, NetworkInput
from bevquant.quant.fingerprint import model_fingerprint
from bevquant.quant.layers import floating, quant_modules
from bevquant.quant.running import evaluating

OPSET = 21
FOLDED_BYTES = 4096
"""Constants up to this size are computed at export; larger ones (position biases that are
looked up in small tables) are left to the engine, so that the file stays small."""

METADATA_KEY = "bevfusion"
"""What the runtime of a BEVFusion needs is kept under this key of a file's metadata."""


def export_module(
    module: nn.Module,
    inputs: Tensor | Sequence[Any],
    path: str | Path,
    *,
    target: str = "openvino",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    recipe: Mapping[str, Any] | None = None,
    expected: Expected | None = None,
    metadata: Mapping[str, Any] | None = None,
    widen: bool = False,
    compare: bool = True,
) -> FileSize:
    """Write ``module`` to ``path`` as ONNX: one file, or one for each main module.

    Layers that are quantized and calibrated are stored with integer weights in the bits
    they have (8, 4 and 2 bits take 1, 1/2 and 1/4 byte) and with QuantizeLinear and
    DequantizeLinear around them, in which engines recognise integer layers; everything else
    is float32. A warning names layers that have bits but were not calibrated. Fold batch
    normalisation beforehand.

    Args:
        module: any network that :func:`torch.export.export` takes; for integer layers
            quantized with the scheme of the target: ``SYMMETRIC`` for ``tensorrt``,
            ``DEPLOY`` for all others.
        inputs: example arguments; a tensor is the only one.
        path: written atomically. ``X.onnx`` is one file; ``X.json`` is a manifest, beside
            which every child of ``module`` gets a file.
        target: ``openvino``, ``onnxruntime``, ``tensorrt`` or ``literal``; see
            :mod:`bevquant.deploy.targets`.
        input_names: of the flattened inputs.
        output_names: of the flattened outputs.
        dynamic_batch: let the file take any size along the first axis of every input; the
            example then has at least 2 there.
        dynamic_shapes: as :func:`torch.onnx.export` takes it, one entry per input; for more
            than ``dynamic_batch``.
        recipe: how the network came to be; kept in the file, JSON values.
        expected: what its simulation measured; kept in the file.
        metadata: what else a runtime needs; kept in the file, JSON values.
        widen: store weights of 4 and 2 bits as int8, so that engines open the file, and run
            it as integers, without bevquant's loader; it then has the size of 8 bits.
        compare: whether to run the file once in its engine, if that is installed, and warn
            where a layer computes on ``inputs`` what was not simulated. A file for TensorRT
            is run step by step in float.

    Returns:
        What takes the room in the files, and whether they need bevquant's loader.

    Raises:
        BevquantError: there is no such target, a layer is quantized in a way that the
            target does not run in integers, the model is quantized but not calibrated, or
            ``path`` cannot be written or has another suffix.
    """
    path = Path(path)
    check_path(path)
    placed = target_of(target)
    if isinstance(inputs, Tensor):
        inputs = [inputs]
    if dynamic_batch:
        dynamic_shapes = _any_batch(inputs, dynamic_shapes)
    _name_uncalibrated(module)
    _check_dtype(module)
    operands = operand_shapes(module, inputs)
    with (
        evaluating(module),
        integer_form(module, placed, operands) as form,
        _quiet(),
        _naming_what_torch_cannot(module),
    ):
        layers = form.precisions
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
        traced = traced_layers(model, layers)
        onnxscript.optimizer.optimize(
            model, input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES
        )
    main_modules = [name for name, _ in module.named_children()] if path.suffix == ".json" else []
    moves_codes = placed.moves_codes
    parts = finish(model, layers, moves_codes=moves_codes, main_modules=main_modules, widen=widen)
    graphs = [graph for _, graph in parts]
    inside = {name for name, varies in traced.items() if varies and layers[name] == FLOAT}
    inside |= named_products(graphs, layers).keys()
    card = Card(
        target=placed.name,
        layers=layers,
        fingerprint=model_fingerprint(module),
        recipe=dict(recipe or {}),
        expected=expected,
        metadata=dict(metadata or {}),
        absent=why_absent(module, layers, traced, inside),
        kept_float=form.kept_float,
    )
    for layer, why in form.kept_float.items():
        warnings.warn(f"{path}: {layer} is float in the file: {why}", stacklevel=2)
    inputs_, outputs = (names_of(ends) for ends in (model.graph.inputs, model.graph.outputs))
    total = write(path, Artefact(card, inputs_, outputs, tuple(parts)))
    engine: EngineName = "literal" if placed.name == "tensorrt" else placed.name
    if compare and is_installed(PACKAGES[engine]):
        objection = compare_with_simulation(path, module, inputs, engine)
        if objection is not None:
            warnings.warn(objection, stacklevel=2)
    return file_size(graphs, total)


def _any_batch(inputs: Sequence[Any], dynamic_shapes: Any) -> Any:
    """Return dynamic shapes with which the first axis of each tensor may have any size."""
    if dynamic_shapes is not None:
        raise BevquantError("export: give dynamic_batch or dynamic_shapes, not both")
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if any(tensor.ndim == 0 or len(tensor) < 2 for tensor in tensors):
        raise BevquantError(
            "export: for dynamic_batch=True give an example of at least 2 along the first axis of "
            "every input"
        )
    batch = torch.export.Dim("batch")
    return tree_map(lambda x: {0: batch} if isinstance(x, Tensor) else None, tuple(inputs))


def export(
    model: BEVFusion,
    sample: NetworkInput,
    preprocess: Preprocess,
    path: Path,
    *,
    target: str = "openvino",
    recipe: Mapping[str, Any] | None = None,
    expected: Expected | None = None,
    widen: bool = False,
    compare: bool = True,
) -> FileSize:
    """Write a BEVFusion, quantized or float, to ``path`` with all that is needed to run it.

    Args:
        model: for integer layers calibrated with the scheme of the target, batch
            normalisation folded.
        sample: of one frame; the file takes single frames with the same number of
            cameras and any number of points.
        preprocess: what a frame goes through before ``model.prepare``.
        path: see :func:`export_module`, as for the following.
        target: the engine.
        recipe: how the network came to be.
        expected: what its simulation measured.
        widen: as the former.
        compare: whether to compare the file with the simulation.

    Returns:
        What takes the room in the files, and whether they need bevquant's loader.

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
    return export_module(
        network,
        (tuple(inputs),),
        path,
        input_names=_input_names(inputs),
        output_names=HeadOutput._fields,
        dynamic_shapes=(tuple(shapes[name] for name in NetworkInput._fields),),
        target=target,
        recipe=recipe,
        expected=expected,
        widen=widen,
        compare=compare,
        metadata={
            METADATA_KEY: {
                "config": model.config.model_dump(mode="json"),
                "preprocess": preprocess.model_dump(mode="json"),
            }
        },
    )


def export_float(
    model: BEVFusion, sample: NetworkInput, preprocess: Preprocess, path: Path
) -> FileSize:
    """Write a BEVFusion in float32 whatever its precision: what :func:`export` is held against.

    Arguments and errors are those of :func:`export`.
    """
    with floating(model):
        return export(model, sample, preprocess, path)


def _check_dtype(module: nn.Module) -> None:
    """Refuse a model that is not float32: no engine runs another one as it is.

    Raises:
        BevquantError: naming a parameter of another floating type.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise BevquantError(
                f"export: {name} is {str(parameter.dtype).removeprefix('torch.')}; files are "
                "float32 and integers: call model.float(), and give float32 inputs"
            )


def _input_names(inputs: NetworkInput) -> list[str]:
    return [
        name if isinstance(value, Tensor) else f"{name}_{i}"
        for name, value in inputs._asdict().items()
        for i in range(1 if isinstance(value, Tensor) else len(value))
    ]


def _name_uncalibrated(module: nn.Module) -> None:
    """Warn of layers that stay float although they have bits.

    Raises:
        BevquantError: that are all layers that have bits.
    """
    wanted = [m for m in quant_modules(module) if m.precision is not None and not m.bypass]
    float_layers = [layer.name for layer in wanted if not layer.calibrated]
    if not float_layers:
        return
    if len(float_layers) == len(wanted):
        raise BevquantError(
            "export: the model is quantized but not calibrated, all of it would be float; "
            "call calibrate, or restore for a float file"
        )
    warnings.warn(
        f"export: {len(float_layers)} of {len(wanted)} quantized layers stay float, as calibrate "
        f"never saw an input of theirs: {', '.join(float_layers)}; calibrate on batches that "
        "reach them, or leave them float by the policy",
        stacklevel=3,
    )


@contextmanager
def _naming_what_torch_cannot(module: nn.Module) -> Iterator[None]:
    """Say where the exporter may have failed of a name: torch writes code with names in it.

    Raises:
        BevquantError: it failed, and there is such a name.
    """
    try:
        yield
    except Exception as error:
        names = {part for path, _ in module.named_modules() for part in path.split(".")}
        odd = [name for name in sorted(names) if iskeyword(name) or set(name) & set('"\\\n\r')]
        if not odd:
            raise
        raise BevquantError(
            f"export: torch cannot export modules that are called {', '.join(map(repr, odd))}, "
            "words of Python or with quotes, backslashes or line ends; give them other names"
        ) from error


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
