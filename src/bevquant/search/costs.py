"""What a bit policy costs. Every cost is a sum over layers, hence a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from torch import nn

from bevquant.errors import BevquantError
from bevquant.quant.inventory import LayerInfo
from bevquant.quant.layers import quant_modules
from bevquant.quant.size import rest_bytes, scale_bytes, weight_bytes
from bevquant.quant.spec import Precision
from bevquant.search.space import Genome, Space, quantizable

FLOAT_BITS = 32


@dataclass(frozen=True)
class Cost:
    """A cost of every genome of one space.

    Attributes:
        name: what is counted.
        unit: of the figures.
        constant: what the pinned layers, and all that is not quantizable, cost.
        table: for each gene the cost of each of its choices.
        float_value: cost of the float network; what relative figures are relative to.
    """

    name: str
    unit: str
    constant: float
    table: tuple[tuple[float, ...], ...]
    float_value: float

    def __call__(self, genome: Genome) -> float:
        """Return the cost of ``genome``."""
        chosen = (row[choice] for row, choice in zip(self.table, genome, strict=True))
        return self.constant + sum(chosen)


CostMaker = Callable[[nn.Module, Space], Cost]
"""Makes the table of a cost for a quantized model and a space."""


def weight_bits(model: nn.Module, space: Space) -> Cost:
    """Bits of the weights of all quantizable layers: the thesis' F_bits, sum of b * |W|."""

    def bits(info: LayerInfo, precision: Precision | None) -> float:
        return info.weights * (FLOAT_BITS if precision is None else precision.weights)

    return _sum_over_layers("weight_bits", "bit", bits, model, space)


def model_bytes(model: nn.Module, space: Space) -> Cost:
    """Bytes of the whole model, the unquantized rest included; see :mod:`bevquant.quant.size`."""
    modules = {layer.name: layer for layer in quant_modules(model)}

    def size(info: LayerInfo, precision: Precision | None) -> float:
        return weight_bytes(info.weights, precision) + scale_bytes(modules[info.name], precision)

    cost = _sum_over_layers("bytes", "B", size, model, space)
    rest = rest_bytes(model)
    return Cost(cost.name, cost.unit, cost.constant + rest, cost.table, cost.float_value + rest)


def bops(model: nn.Module, space: Space) -> Cost:
    """Bit operations of a forward pass: sum of MACs * weight bits * activation bits.

    The two operands of a product of activations both have activation bits.
    """
    if any(info.macs is None for info in quantizable(model)):
        raise BevquantError("cost bops: no forward pass was counted; calibrate the model first")

    def operations(info: LayerInfo, precision: Precision | None) -> float:
        weights = activations = FLOAT_BITS
        if precision is not None:
            activations = precision.activations
            weights = activations if info.weight_shape is None else precision.weights
        return float(info.macs or 0) * weights * activations

    return _sum_over_layers("bops", "bit operations", operations, model, space)


def latency(table: Mapping[str, Mapping[str, float]]) -> CostMaker:
    """Return the cost that adds up measured times.

    Args:
        table: layer -> precision (``"W8A8"``, ..., ``"float"``) -> milliseconds on the
            target engine. Layers that are not in it cost nothing.
    """
    for name, times in table.items() if isinstance(table, Mapping) else [("", None)]:
        if not isinstance(times, Mapping) or not all(map(_is_time, times.values())):
            raise BevquantError(
                f"cost latency: {name!r}: a table has, for each layer, milliseconds of 0 or more "
                "for each precision, such as {'head': {'W8A8': 0.2, 'float': 0.5}}"
            )

    def make(model: nn.Module, space: Space) -> Cost:
        known = {info.name for info in quantizable(model)}
        for name in table:
            if name not in known:
                raise BevquantError(f"cost latency: the table names {name!r}, which is no layer")

        def time(info: LayerInfo, precision: Precision | None) -> float:
            times, key = table.get(info.name), str(precision or "float")
            if times is None:
                return 0.0
            if key not in times:
                raise BevquantError(
                    f"cost latency: the table has no time of {info.name!r} at {key}"
                )
            return times[key]

        return _sum_over_layers("latency", "ms", time, model, space)

    return make


COSTS: Mapping[str, CostMaker] = {
    "weight_bits": weight_bits,
    "bytes": model_bytes,
    "bops": bops,
}
"""Costs by the names under which :func:`~bevquant.search.search.search` knows them."""


def _is_time(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= float(value) < inf  # type: ignore[arg-type]


def _sum_over_layers(
    name: str,
    unit: str,
    price: Callable[[LayerInfo, Precision | None], float],
    model: nn.Module,
    space: Space,
) -> Cost:
    infos = {info.name: info for info in quantizable(model)}
    return Cost(
        name,
        unit,
        constant=sum(price(infos[layer], precision) for layer, precision in space.pinned.items()),
        table=tuple(
            tuple(
                sum(price(infos[layer], choice) for layer in gene.layers) for choice in gene.choices
            )
            for gene in space.genes
        ),
        float_value=sum(price(info, None) for info in infos.values()),
    )
