"""What was found for a quantized model, as a file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.files import write_bytes
from bevquant.quant.affine import QuantParams, Range
from bevquant.quant.inventory import macs_of, set_macs
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import Alphas, QuantLayer, QuantModule, Rounding, quant_modules
from bevquant.quant.spec import Precision


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
        tensors |= {f"{_key(layer)}:{key}": value for key, value in _pack(layer).items()}
    if not tensors:
        raise BevquantError(f"{path}: the model is not calibrated, there is nothing to save")
    header = {"fingerprint": _fingerprint(model), "macs": json.dumps(macs_of(model))}
    write_bytes(path, safetensors.torch.save(tensors, {**(metadata or {}), **header}))


def load_calibration(model: nn.Module, path: str | Path) -> None:
    """Give a quantized model what :func:`save_calibration` wrote.

    Outputs are then those of the model that was saved, bit for bit. On an error the model
    keeps what it had.

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
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, rest = key.partition(":")
        found.setdefault(name, {})[rest] = value
    for layer in quant_modules(model):
        _unpack(layer, found.get(_key(layer), {}))
    set_macs(model, json.loads(metadata["macs"]))


def _key(layer: QuantModule) -> str:
    """Return the name of a layer without ``:``, which parts it from what was found."""
    return layer.name.replace("%", "%25").replace(":", "%3A")


def _pack(layer: QuantModule) -> dict[str, Tensor]:
    """Return what was found for a layer; keys are paths with ``:`` between their parts."""
    packed = {}
    for index, quantizer in enumerate(layer.inputs):
        for bits, values in quantizer.ranges.items():
            packed[f"range:{index}:{bits}:minimum"] = values.minimum.clone()
            packed[f"range:{index}:{bits}:maximum"] = values.maximum.clone()
    for precision, alphas in layer.refined.items():
        packed[f"refined:{precision}:weight"] = alphas.weight.contiguous()
        packed[f"refined:{precision}:inputs"] = torch.tensor(alphas.inputs, dtype=torch.float64)
    for precision, rounding in layer.rounded.items() if isinstance(layer, QuantLayer) else ():
        start = f"rounded:{precision}"
        smallest = torch.int16 if precision.weights <= 8 else torch.int32
        packed[f"{start}:codes"] = rounding.codes.to(smallest).contiguous()
        packed[f"{start}:scale"] = rounding.params.scale.contiguous()
        packed[f"{start}:zero_point"] = rounding.params.zero_point.contiguous()
        packed[f"{start}:bias"] = rounding.bias.contiguous()
    return packed


def _unpack(layer: QuantModule, packed: Mapping[str, Tensor]) -> None:
    """Undo :func:`_pack`."""
    layer.forget()
    ranges: list[dict[int, Range]] = [{} for _ in layer.inputs]
    for key, value in packed.items():
        what, first, *rest = key.split(":")
        if what == "range" and rest[-1] == "minimum":
            maximum = packed[f"range:{first}:{rest[0]}:maximum"]
            ranges[int(first)][int(rest[0])] = Range(value, maximum)
        elif what == "refined" and rest == ["weight"]:
            inputs = packed[f"refined:{first}:inputs"].tolist()
            layer.adjust(Precision.parse(first), Alphas(value, tuple(inputs)))
        elif what == "rounded" and rest == ["codes"]:
            assert isinstance(layer, QuantLayer)
            precision = Precision.parse(first)
            spec = layer.scheme.weights.spec(precision.weights, None)
            scale, zero_point = (packed[f"rounded:{first}:{x}"] for x in ("scale", "zero_point"))
            grid = QuantParams(scale, zero_point, spec.quant_min, spec.quant_max)
            bias = packed[f"rounded:{first}:bias"]
            layer.learn(precision, Rounding(value.to(torch.int32), grid, bias))
    for quantizer, values in zip(layer.inputs, ranges, strict=True):
        quantizer.ranges = values


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
