"""What an engine makes of a graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

Arithmetic = Literal["f32", "bf16"]
Array = npt.NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]


@dataclass(frozen=True)
class Compiled:
    """A graph that is ready to run.

    Attributes:
        run: input arrays to output arrays, both in the order of the graph.
        integers: names of the nodes that are executed in 8-bit integers.
        request: of OpenVINO, whose performance counters are on.
    """

    run: Run
    integers: frozenset[str] = frozenset()
    request: Any = None
