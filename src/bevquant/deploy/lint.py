"""Which layers of a file would run as integers on a target, and why the others would not."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from bevquant.deploy.artefact import Artefact, read
from bevquant.deploy.naming import CALL, product_layers
from bevquant.deploy.qdq import FLOAT
from bevquant.deploy.rules import product_of, reason
from bevquant.deploy.targets import Target, target_of

NO_PRODUCT = (
    "the file has no product of it: never called, nothing reads its result, or computed at export"
)


@dataclass(frozen=True)
class Verdict:
    """What a target would do with a layer.

    Attributes:
        layer: name in the model that was exported.
        precision: in the file, ``"W8A8"`` or ``"float"``.
        reason: why it would not run as integers; ``None`` if it would.
        present: whether the file has its product; no engine runs one that is not there.
    """

    layer: str
    precision: str
    reason: str | None
    present: bool = True

    @property
    def runs(self) -> str:
        """``"integers"``, ``"float"`` or ``"not at all"``."""
        if self.reason is None:
            return "integers"
        return "float" if self.present else "not at all"

    @property
    def falls_short(self) -> bool:
        """Whether the layer is quantized and would run as float nevertheless."""
        return self.precision != FLOAT and self.runs == "float"


def lint(path: str | Path, target: str | None = None) -> list[Verdict]:
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
    artefact = read(Path(path))
    return verdicts(artefact, target_of(target or artefact.card.target))


def verdicts(artefact: Artefact, target: Target) -> list[Verdict]:
    """Judge every quantizable layer of a network."""
    products, absent = products_of(artefact), artefact.card.absent
    found = []
    for layer, precision in artefact.card.layers.items():
        own = products.get(layer, [])
        present = bool(own) or (precision == FLOAT and layer not in absent)
        why = artefact.card.kept_float.get(layer) or _why(precision, own, target)
        why = why if present else absent.get(layer, NO_PRODUCT)
        found.append(Verdict(layer, precision, why, present))
    return found


def summary(found: Sequence[Verdict], target: Target) -> str:
    """Return a line that says how many of the layers would run as integers."""
    quantized = [verdict for verdict in found if verdict.precision != FLOAT and verdict.present]
    integers = sum(verdict.reason is None for verdict in quantized)
    missing = sum(not verdict.present for verdict in found)
    layers = f"{integers} of {len(quantized)} quantized layers run as integers on {target.name}"
    counts = f"{layers}, of {len(found)} layers in all"
    if missing:
        counts += f", {missing} of which are not in the file"
    return counts if integers else f"NO LAYER RUNS AS INTEGERS: {counts}"


def products_of(artefact: Artefact) -> dict[str, list[ir.Node]]:
    """Return the products of each quantizable layer, one for each call."""
    return named_products([model for _, model in artefact.parts], artefact.card.layers)


def named_products(models: Iterable[ir.Model], names: Collection[str]) -> dict[str, list[ir.Node]]:
    """Return the products of the layers of these names, one for each call."""
    products: dict[str, list[ir.Node]] = {}
    layers = product_layers(names)
    for model in models:
        for node in model.graph:
            layer = layers.get((node.name or "").split(CALL)[0])
            if layer is not None:
                products.setdefault(layer, []).append(node)
    return products


def _why(precision: str, products: list[ir.Node], target: Target) -> str | None:
    if precision == FLOAT:
        return "float in the file"
    reasons = (reason(product_of(node), target.rules) for node in products)
    return next((text for text in reasons if text is not None), None)
