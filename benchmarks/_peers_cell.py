"""One quantizer at one precision, measured in a process of its own; for peers_ptq.py.

A process each, since peers change global state, print a lot, and may crash.
"""

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _job import Job
from _peers import OURS, PEERS

from bevquant.data import preprocess
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.errors import BevquantError
from bevquant.evaluate import evaluate, float_predictor
from bevquant.experiments.variants import Bench
from bevquant.quant.spec import Precision
from bevquant.run import load_small

WORLD = WorldSettings(scenes=36, keyframes=5, seed=1000, val_fraction=20 / 36)
"""The network was trained on seed 0."""

FLOAT = "float"

CRASHES = (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
"""Signals that are a finding about a peer; all others come from outside."""


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Attributes:
        folder: of the whole run.
        method: name of the quantizer, or ``float``.
        precision: such as ``W4A8``; empty for ``float``.
        seed: of the choice of frames to calibrate on.
        calibration: how many these are.
        frames: validation frames to measure on.
    """

    folder: str
    method: str
    precision: str
    seed: int
    calibration: int
    frames: int

    @property
    def name(self) -> str:
        """The cell as a file name."""
        what = f"{self.method}-{self.precision}-{self.seed}-{self.frames}"
        return what.replace(",", "").replace(" ", "-")

    @property
    def bench(self) -> Bench:
        """Data and figures of the run."""
        return Bench(Path(self.folder), WORLD, self.calibration)

    def measure(self) -> dict[str, Any]:
        """Measure unless that is done; return the metrics, or as ``failed`` why there are none."""
        steps = self.bench.steps
        if not steps.has(self.name):
            log = Path(self.folder) / "logs" / f"{self.name}.log"
            log.parent.mkdir(exist_ok=True)
            with log.open("w") as out:
                command = [sys.executable, __file__, json.dumps(asdict(self))]
                code = subprocess.run(command, stdout=out, stderr=out, check=False).returncode
            if -code in CRASHES:
                steps.run(self.name, lambda: {"failed": f"crash: {signal.strsignal(-code)}"})
            elif code:
                raise BevquantError(f"{log}: ended with {code}; run again to continue")
        figures: dict[str, Any] = steps.run(self.name, self._figures)
        return figures

    def _figures(self) -> dict[str, Any]:
        validation = NuScenesDataset(
            Path(self.folder) / "world",
            VERSION,
            "world_val",
            sweeps=preprocess.SMALL.sweeps,
            limit=self.frames,
        )

        def nds(predict: Any) -> dict[str, Any]:
            metrics = evaluate(predict, validation, preprocess.SMALL, description=self.name)
            return {"NDS": metrics.NDS, "mAP": metrics.mAP}

        if self.method == FLOAT:
            return nds(float_predictor(load_small()))
        batches = self.bench.batches(self.seed)
        with tempfile.TemporaryDirectory() as folder:
            job = Job(Precision.parse(self.precision), batches, Path(folder))
            try:
                quantized = (OURS | PEERS)[self.method](job)
                return {**nds(quantized.predict), "weights": quantized.weights}
            except Exception as error:  # whatever a peer may raise is a finding
                return {"failed": f"{type(error).__name__}: {str(error).strip()}"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    cell = Cell(**json.loads(sys.argv[1]))
    cell.bench.steps.run(cell.name, cell._figures)
