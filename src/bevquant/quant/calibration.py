"""The ranges of a calibrated model as a file."""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from bevquant.errors import BevquantError
from bevquant.files import write_bytes
from bevquant.quant.affine import Range
from bevquant.quant.inventory import macs_of, set_macs
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantModule, quant_modules


def save_calibration(model: nn.Module, path: Path) -> None:
    """Write the ranges of a calibrated model to a safetensors file.

    Bits are no part of it: they are the policy's, and any can be applied after loading.

    Raises:
        BevquantError: ``model`` is not calibrated, or the file cannot be written.
    """
    tensors = {}
    for layer in quant_modules(model):
        for index, quantizer in enumerate(layer.inputs):
            if quantizer.range is not None:
                for key, value in quantizer.range._asdict().items():
                    tensors[f"{layer.name}:{index}:{key}"] = value.contiguous()
    if not tensors:
        raise BevquantError(f"{path}: the model is not calibrated, there is nothing to save")
    metadata = {"fingerprint": _fingerprint(model), "macs": json.dumps(macs_of(model))}
    write_bytes(path, safetensors.torch.save(tensors, metadata))


def load_calibration(model: nn.Module, path: Path) -> None:
    """Give a quantized model the ranges that :func:`save_calibration` wrote.

    Outputs are then those of the model that was saved, bit for bit. On an error the model
    keeps the ranges it had.

    Raises:
        BevquantError: the file cannot be read, or is that of another model: other layers,
            weights or scheme.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BevquantError(f"{path}: cannot be read as a calibration ({error})") from error
    if metadata.get("fingerprint") != _fingerprint(model):
        raise BevquantError(
            f"{path}: the calibration of another model (layers, weights or scheme differ); "
            "quantize as when it was saved, or calibrate anew"
        )
    for layer in quant_modules(model):
        for index, quantizer in enumerate(layer.inputs):
            keys = [f"{layer.name}:{index}:{field}" for field in Range._fields]
            known = keys[0] in tensors
            quantizer.range = Range(*(tensors[key] for key in keys)) if known else None
    set_macs(model, json.loads(metadata["macs"]))


def _fingerprint(model: nn.Module) -> str:
    """Return a digest of the layers: names, kinds, schemes, shapes and float weights."""
    digest = hashlib.sha256()
    for layer in quant_modules(model):
        digest.update(_describe(layer).encode())
        if layer.kind.weight_axis is not None:
            weight = weight_of(layer.wrapped).detach().cpu().contiguous()
            digest.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _describe(layer: QuantModule) -> str:
    return f"{layer.name} {layer.kind.name} {layer.scheme}"
