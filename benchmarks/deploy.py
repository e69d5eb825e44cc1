"""Deployed INT8 files against FP32 on the same engine, and against other quantizers.

    python benchmarks/deploy.py [--only full small] [--rounds N] [--json FILE]

A ratio is the median over rounds in which both ran side by side on the same frame. The goals
were set for processors that multiply and sum 8-bit integers in one instruction (VNNI); on
others an 8-bit product is at most about twice as fast as a float one, and rows stay red.
NNCF comes with the extra ``peers``; without it its rows count as not holding.
"""

import tempfile
from pathlib import Path

import _deploy_full
import _deploy_small
import torch
from _rows import conclude, parser

from bevquant.provenance import cpu_name

NETWORKS = {"full": _deploy_full.measure, "small": _deploy_small.measure}


def main() -> None:
    options = parser("deploy")
    options.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options.add_argument("--rounds", type=int, default=10, help="runs of each file that count")
    given = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            rows += NETWORKS[name](Path(folder), given.rounds)
    conclude(f"deploy on {cpu_name()}", rows, given.json)


if __name__ == "__main__":
    main()
