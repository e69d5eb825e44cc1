"""Milliseconds of each layer at each precision on the target engine, for the search."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bevquant.deploy.engines import Array, open_engine
from bevquant.deploy.profile import Profile
from bevquant.deploy.qdq import FLOAT
from bevquant.progress import track
from bevquant.quant.spec import W2A8, W4A8, W8A8, W16A16

WARM_UP = 2

AS_INTEGERS = (str(W2A8), str(W4A8), str(W8A8))
"""Weights of 2 and 4 bits are widened to 8 when a file is loaded, and so take the same time."""

AS_FLOAT = (str(W16A16), FLOAT)
"""No engine has kernels for 16-bit integers: they are computed in float."""


def latency_table(
    float_file: Path,
    int8_file: Path,
    inputs: Sequence[Sequence[Array]],
    threads: int = 1,
    rounds: int = 20,
) -> dict[str, dict[str, float]]:
    """Measure the layers of one network with OpenVINO, in float and in 8-bit integers.

    A layer's time is that of its product and of all that is done for it alone: rounding its
    input, gathering its rows, changing the memory layout. Where the engine fuses several
    layers, the first has the time of all. A layer that the engine leaves in float although
    it could be integer has that time at every precision.

    Args:
        float_file: of :func:`~bevquant.deploy.export.export_float`.
        int8_file: the same network, its layers at W8A8.
        inputs: of the network, frame by frame; they take turns.
        threads: of the engine.
        rounds: interleaved runs of each file that count, after two that do not.

    Returns:
        Layer -> precision -> milliseconds, the median over rounds; what
        :func:`bevquant.search.costs.latency` takes.

    Raises:
        BevquantError: a file cannot be loaded, or takes other inputs.
    """
    engines = [open_engine(path, threads=threads) for path in (float_file, int8_file)]
    profiles = list(map(Profile, engines))
    times: list[dict[str, list[float]]] = [defaultdict(list) for _ in profiles]
    for number in track(range(WARM_UP + rounds), f"layers, {threads} threads"):
        for profile, own in zip(profiles, times, strict=True):
            _, spent = profile(inputs[number % len(inputs)])
            if number >= WARM_UP:
                for part, milliseconds in spent.items():
                    own[part].append(milliseconds)
    in_float, in_integers = (
        {part: float(np.median(runs)) for part, runs in own.items()} for own in times
    )
    return {
        layer: {
            **dict.fromkeys(AS_INTEGERS, in_integers.get(layer, 0.0)),
            **dict.fromkeys(AS_FLOAT, in_float.get(layer, 0.0)),
        }
        for layer in engines[1].precisions
    }
