"""Where an engine's time goes, by its own performance counters."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from urllib.parse import unquote

import openvino

from bevquant.deploy.engines import Array, Engine
from bevquant.deploy.naming import CALL, PART, product_layers
from bevquant.errors import BevquantError

MILLISECOND = timedelta(milliseconds=1)


class Profile:
    """Runs a network and says how long each part of it took.

    A part is a quantizable layer of the file or, for all other code, a main module. What
    the engine fused counts for the layer whose product is in it. What the engine itself
    inserted counts for the main module around it, and a change of memory layout (Reorder)
    for the part that wanted it.

    Args:
        engine: OpenVINO with a file; it has not run yet, and runs by this class alone.

    Raises:
        BevquantError: the engine has no counters.
    """

    def __init__(self, engine: Engine) -> None:
        if engine.request is None:
            raise BevquantError("only OpenVINO says how long each layer took")
        self._engine = engine
        self._request = engine.request
        self._parts = _parts(engine.request.get_compiled_model(), engine.precisions)
        self._totals: dict[str, float] = {}
        self._runs = 0

    def __call__(self, arrays: Sequence[Array]) -> tuple[list[Array], dict[str, float]]:
        """Run once.

        Returns:
            The outputs, and the milliseconds of each part: a layer by its path, a main
            module by its name, ``""`` for what belongs to none.
        """
        outputs = self._engine(arrays)
        self._runs += 1
        spent: dict[str, float] = defaultdict(float)
        for node in self._request.get_profiling_info():
            # The counters tell the mean over all runs so far.
            total = self._runs * (node.real_time / MILLISECOND)
            part = self._parts.get(node.node_name, "")
            spent[part] += total - self._totals.get(node.node_name, 0.0)
            self._totals[node.node_name] = total
        return outputs, dict(spent)


def main_modules(spent: Mapping[str, float]) -> dict[str, float]:
    """Sum the milliseconds of the parts of each main module."""
    modules: dict[str, float] = defaultdict(float)
    for part, milliseconds in spent.items():
        modules[_main_module(part)] += milliseconds
    return dict(modules)


def _parts(compiled: openvino.CompiledModel, layers: Mapping[str, str]) -> dict[str, str]:
    """Return the part that each executed node belongs to."""
    parts: dict[str, str] = {}
    known_layers = product_layers(layers)
    inserted = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        name = node.get_friendly_name()
        origins = str(node.rt_info["originalLayersNames"].astype(str)).split(",")
        part = _part(origins, known_layers)
        if part is None:
            inserted.append(node)
            before = (node.input_value(i).get_node() for i in range(node.get_input_size()))
            known = (parts.get(producer.get_friendly_name(), "") for producer in before)
            part = _main_module(next(filter(None, known), ""))
        parts[name] = part
    for node in reversed(inserted):
        consumers = [
            target.get_node().get_friendly_name()
            for output in node.outputs()
            for target in output.get_target_inputs()
        ]
        is_reorder = str(node.rt_info["layerType"].astype(str)) == "Reorder"
        if consumers and (is_reorder or not parts[node.get_friendly_name()]):
            after = parts[consumers[0]]
            parts[node.get_friendly_name()] = after if is_reorder else _main_module(after)
    return parts


def _part(origins: Sequence[str], layers: Mapping[str, str]) -> str | None:
    """Return the part of a node that the engine made of these nodes of the file.

    Args:
        origins: names of the nodes.
        layers: see :func:`~bevquant.deploy.naming.product_layers`.
    """
    names = [origin.split("/")[0] for origin in origins]
    products = [layers[name.split(CALL)[0]] for name in names if name.split(CALL)[0] in layers]
    others = [unquote(name.split(PART)[0]) for name in names if PART in name]
    return next(iter([*products, *others]), None)


def _main_module(part: str) -> str:
    return part.split(".", maxsplit=1)[0]
