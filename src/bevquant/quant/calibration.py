"""What was found for a quantized model, as a file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.findings import KEY, Findings, pack, unpack
from bevquant.quant.inventory import macs_of, set_macs
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantModule, quant_modules
from bevquant.tensors import TensorFile, read_tensors, write_tensors

MEND = "calibrate anew, or take another copy of the file"


def save_calibration(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ranges, refined factors and reconstructed weights to a safetensors file.

    Which bits a layer has is no part of it: that is the policy's, and any can be applied
    after loading.

    Args:
        model: calibrated.
        path: written atomically.
        metadata: kept in the file's JSON header (provenance, say).

    Raises:
        BevquantError: ``model`` is not calibrated, or the file cannot be written.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for layer in quant_modules(model):
        tensors |= {f"{_key(layer)}:{key}": value for key, value in pack(layer).items()}
    if not tensors:
        raise BevquantError(f"{path}: the model is not calibrated, there is nothing to save")
    header = {
        "fingerprint": _fingerprint(model),
        "biases": _biases(model),
        "calibrated": json.dumps(_calibrated(model)),
        "macs": json.dumps(macs_of(model)),
    }
    write_tensors(path, tensors, {**(metadata or {}), **header})


def load_calibration(model: nn.Module, path: str | Path) -> None:
    """Give a quantized model what :func:`save_calibration` wrote.

    Outputs are then those of the model that was saved, bit for bit. All is checked first: on
    an error the model keeps what it had.

    Raises:
        BevquantError: the file cannot be read or is damaged, or is that of another model:
            other layers, weights or scheme.
    """
    file = read_tensors(Path(path))
    metadata = file.metadata
    if metadata.get("fingerprint") != _fingerprint(model) or (
        metadata.get("biases", _biases(model)) != _biases(model)
    ):
        file.check()
        raise BevquantError(
            f"{path}: the calibration of another model (layers, weights or scheme differ); "
            "quantize as when it was saved, or calibrate anew"
        )
    try:
        macs = _macs(metadata)
        found = _findings(model, file, macs)
    except BevquantError as error:
        raise BevquantError(f"{path}: {error}; {MEND}") from error
    file.check()
    for layer, findings in found.items():
        findings.give(layer)
    set_macs(model, macs)


def _findings(
    model: nn.Module, file: TensorFile, macs: Mapping[str, int] | None
) -> dict[QuantModule, Findings]:
    """Return what a file holds for each layer, checked.

    Raises:
        BevquantError: a tensor is missing, of no layer, or not what it must be.
    """
    layers = {layer.name: layer for layer in quant_modules(model)}
    names = {name: name for name in layers} | {_key(x): name for name, x in layers.items()}
    packed: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
    for key, value in file.tensors.items():
        match = KEY.fullmatch(key)
        if match is None or match["layer"] not in names:
            raise BevquantError(f"{key}: of no layer of the model")
        packed[names[match["layer"]]][match["field"]] = value
    found = {layer: unpack(layer, packed[name]) for name, layer in layers.items()}
    for name, index in _expected(file.metadata, layers.values(), macs or {}):
        if name not in layers or index >= len(layers[name].inputs):
            raise BevquantError(f"{name}: said to be calibrated, and not in the model")
        if not found[layers[name]].ranges[index]:
            raise BevquantError(f"{name}: the range of its input {index} is missing")
    return found


def _key(layer: QuantModule) -> str:
    """Return the name of a layer without ``:``, which parts it from what was found."""
    return layer.name.replace("%", "%25").replace(":", "%3A")


def _expected(
    metadata: Mapping[str, str], layers: Iterable[QuantModule], macs: Mapping[str, int]
) -> list[tuple[str, int]]:
    """Return the names of layers and the inputs of theirs for which there must be ranges."""
    if "calibrated" not in metadata:  # older files do not say; what ran has been calibrated
        return [(x.name, i) for x in layers if macs.get(x.name) for i in range(len(x.inputs))]
    try:
        return [(str(name), int(index)) for name, index in json.loads(metadata["calibrated"])]
    except (ValueError, TypeError) as error:
        raise BevquantError("which layers are calibrated is not readable") from error


def _calibrated(model: nn.Module) -> list[tuple[str, int]]:
    return [
        (layer.name, index)
        for layer in quant_modules(model)
        for index, quantizer in enumerate(layer.inputs)
        if quantizer.ranges
    ]


def _macs(metadata: Mapping[str, str]) -> dict[str, int] | None:
    """Return the MACs of each layer, ``None`` if they were not counted.

    Raises:
        BevquantError: they are missing, or no numbers.
    """
    try:
        macs: dict[str, int] | None = json.loads(metadata["macs"])
    except (KeyError, ValueError) as error:
        raise BevquantError("the MACs of the layers are missing") from error
    valid = isinstance(macs, dict) and all(type(x) is int and x >= 0 for x in macs.values())
    if macs is not None and not valid:
        raise BevquantError("the MACs of the layers are no numbers")
    return macs


def _fingerprint(model: nn.Module) -> str:
    """Return a digest of the layers: names, kinds, schemes, shapes and float weights."""
    digest = hashlib.sha256()
    for layer in quant_modules(model):
        digest.update(f"{layer.name} {layer.kind.name} {layer.scheme}".encode())
        if layer.kind.weight_axis is not None:
            weight = weight_of(layer.wrapped).detach().cpu().contiguous()
            digest.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _biases(model: nn.Module) -> str:
    """Return a digest of the layers' biases, for which learned integers stand as well."""
    digest = hashlib.sha256()
    for layer in quant_modules(model):
        bias = layer.wrapped._parameters.get("bias")
        if bias is not None:
            digest.update(f"{layer.name} {bias.dtype} {tuple(bias.shape)}".encode())
            digest.update(bias.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
