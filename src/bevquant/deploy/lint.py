"""Which layers of a file would run as integers on a target, and why the others would not."""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from bevquant.deploy.artefact import Artefact, read
from bevquant.deploy.graph import CALL
from bevquant.deploy.qdq import FLOAT
from bevquant.deploy.rules import product_of, reason
from bevquant.deploy.targets import Target, target_of


@dataclass(frozen=True)
class Verdict:
    """What a target would do with a layer.

    Attributes:
        layer: name in the model that was exported.
        precision: in the file, ``"W8A8"`` or ``"float"``.
        reason: why it would not run as integers; ``None`` if it would.
    """

    layer: str
    precision: str
    reason: str | None


def lint(path: Path, target: str | None = None) -> list[Verdict]:
    """Judge every quantizable layer of an exported file.

    For ``openvino`` and ``onnxruntime`` the rules are held against what the engines execute
    (:attr:`~bevquant.deploy.engines.Engine.integer_layers`) by tests. Those of ``tensorrt``
    are NVIDIA's documented ones; nothing was run on TensorRT.

    Args:
        path: the file, or the manifest.
        target: by default the one it was exported for.

    Raises:
        BevquantError: the file is damaged or not one of ours, or there is no such target.
    """
    artefact = read(path)
    return verdicts(artefact, target_of(target or artefact.card.target))


def verdicts(artefact: Artefact, target: Target) -> list[Verdict]:
    """Judge every quantizable layer of a network."""
    products = products_of(artefact)
    found = []
    for layer, precision in artefact.card.layers.items():
        why = artefact.card.kept_float.get(layer)
        why = why or _why(precision, products.get(layer, []), target)
        found.append(Verdict(layer, precision, why))
    return found


def products_of(artefact: Artefact) -> dict[str, list[ir.Node]]:
    """Return the products of each quantizable layer, one for each call."""
    products: dict[str, list[ir.Node]] = {}
    for _, model in artefact.parts:
        for node in model.graph:
            layer = (node.name or "").split(CALL)[0]
            if layer in artefact.card.layers:
                products.setdefault(layer, []).append(node)
    return products


def _why(precision: str, products: list[ir.Node], target: Target) -> str | None:
    if precision == FLOAT:
        return "float in the file"
    if not products:
        return "no product of it is in the file"
    reasons = (reason(product_of(node), target.rules) for node in products)
    return next((text for text in reasons if text is not None), None)
