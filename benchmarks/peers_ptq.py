"""Our post-training quantization against peers': same network, data, bits and frames.

NDS and mAP of the shipped small BEVFusion on a generated world that it was not trained on,
for several random choices of frames to calibrate on. Peers: the extra ``peers``. What cannot
be installed or run is listed with its error. docs/peers.md has the settings of each.

``best peer`` is the peer with the highest mean, so that noise works for the peers. We are
tied with it down to minus the noise: two standard errors of a difference of two means, from
the standard deviation over seeds, pooled over all methods at that precision.

Finished figures are kept in the folder, and an interrupted run continues. To measure one
again, delete its file below ``figures/``.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import chain
from math import sqrt
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

from _peers import LOW_BITS_ONLY, OURS, PEERS
from _peers_cell import FLOAT, WORLD, Cell
from _rows import Row, conclude, parser
from rich.table import Table

from bevquant.experiments.variants import cores
from bevquant.progress import console, track
from bevquant.run import ensure_world

PRECISIONS = ("W8A8", "W4A8")
PACKAGES = ("torch", "onnxruntime", "openvino", "nncf", "aimet-onnx", "torchao", "brevitas")
WEIGHTS = 79
"""Weight tensors of the network; two more are seen by those who do not compute constants."""


@dataclass(frozen=True)
class Result:
    """A method at a precision, over seeds.

    Attributes:
        method: its name.
        cells: the figures of each seed.
    """

    method: str
    cells: Sequence[dict[str, Any]]

    @property
    def failure(self) -> str | None:
        """Why there are no figures."""
        return next((cell["failed"] for cell in self.cells if "failed" in cell), None)

    def points(self, metric: str) -> list[float]:
        """Return the metric of each seed, of 100."""
        return [100 * cell[metric] for cell in self.cells]


def main() -> None:
    options = parser("peers_ptq")
    options.add_argument("--out", type=Path, default=Path("runs/benchmark_peers"))
    options.add_argument("--frames", type=int, default=40, help="validation frames, at most 100")
    options.add_argument("--calibration", type=int, default=12, help="frames, at most 80")
    options.add_argument("--seeds", type=int, default=2, help="choices of calibration frames")
    options.add_argument("--jobs", type=int, default=cores(), help="processes at a time")
    options.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], help="these methods")
    given = options.parse_args()
    if given.seeds < 2:
        options.error("--seeds: the noise is a spread over seeds; give 2 or more")
    ensure_world(given.out / "world", WORLD, given.jobs)

    cell = partial(Cell, str(given.out), calibration=given.calibration, frames=given.frames)
    methods = given.only or [*OURS, *PEERS]
    cells = {
        (precision, method): [cell(method, precision, seed) for seed in range(given.seeds)]
        for precision in PRECISIONS
        for method in methods
        if precision != "W8A8" or method not in LOW_BITS_ONLY
    }
    reference = cell(FLOAT, "", 0)
    # One seed of every method, then the next: what is there early is worth most.
    todo = [reference, *sorted(chain(*cells.values()), key=lambda each: each.seed)]
    with ThreadPoolExecutor(given.jobs) as pool:
        for _ in track(pool.map(Cell.measure, todo), "quantizers", total=len(todo)):
            pass

    exact = Result(FLOAT, [reference.measure()])
    rows = []
    for precision in PRECISIONS:
        results = [
            Result(method, [each.measure() for each in group])
            for (bits, method), group in cells.items()
            if bits == precision
        ]
        console.print(_table(precision, exact, results))
        rows += _rows(precision, [result for result in results if result.failure is None])
    console.print(", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    conclude("peers_ptq", rows, given.json)


def _rows(precision: str, results: Sequence[Result]) -> list[Row]:
    by_name = {result.method: result.points("NDS") for result in results}
    peers = [name for name in by_name if name in PEERS]
    ours, *_ = OURS
    if ours not in by_name or not peers:
        return []
    best = max(peers, key=lambda name: fmean(by_name[name]))
    seeds = len(by_name[best])
    variance = fmean(pvariance(values) for values in by_name.values()) * seeds / (seeds - 1)
    noise = 2 * sqrt(2 * variance / seeds)
    gains = [a - b for a, b in zip(by_name[ours], by_name[best], strict=True)]
    figure = f"NDS at {precision}: ours - best peer ({best})"
    return [Row(figure, "at least", -noise, fmean(gains), max(gains) - min(gains))]


def _table(precision: str, exact: Result, results: Sequence[Result]) -> Table:
    table = Table("method", "NDS", "range", "mAP", "weights", title=f"{precision}, of 100")
    for result in (exact, *results):
        if result.failure is not None:
            table.add_row(result.method, "-", "-", "-", f"[red]{result.failure[:160]}[/]")
            continue
        nds, weights = result.points("NDS"), result.cells[0].get("weights")
        table.add_row(
            result.method,
            f"{fmean(nds):.2f}",
            f"{max(nds) - min(nds):.2f}",
            f"{fmean(result.points('mAP')):.2f}",
            f"{weights} of {max(weights, WEIGHTS)}" if weights is not None else "",
        )
    return table


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
