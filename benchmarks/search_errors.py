"""Which error a search should minimise: how each goes with the NDS that is lost.

Policies along the additive fronts of three errors, at 2 to 4.3 bits a weight, and uniform
ones; each error is what a search would see of them, NDS that of the reconstructed network.
"""

from collections.abc import Sequence

import numpy as np
import torch
from _rows import Row, conclude, parser
from _search_setup import Options, errors_of
from rich.table import Table
from scipy.stats import spearmanr

import bevquant as bq
from bevquant.mixed import SmallProblem, run_network
from bevquant.progress import console, track
from bevquant.quant.layers import floating
from bevquant.quant.policy import BitPolicy
from bevquant.run import deployable, ends_at_8_bits
from bevquant.search.ilp import ILP

FRONT = 24
EACH = 4
"""Points of each front whose NDS is measured."""
MOST = 0.135
"""Relative weight bits; above, no NDS is lost."""


def measure(options: Options) -> Sequence[Row]:
    problem = options.problem(0)
    names = list(errors_of(problem))
    policies = {
        "uniform W2A8": deployable(bq.W2A8),
        "uniform W4A8": deployable(bq.W4A8),
        "W4A8, ends at 8": BitPolicy({**ends_at_8_bits(bq.W4A8).rules, "*matmul*": None}),
    }
    for name in names:
        front = options.search(problem, ILP(points=FRONT), 0, name)
        low = [p for p in front.points if front.relative(p)["weight_bits"] <= MOST][1:]
        for i in np.linspace(0, len(low) - 1, EACH).round().astype(int):
            share = front.relative(low[i])["weight_bits"]
            policies[f"{name} {share:.4f}"] = BitPolicy(low[i].rules)
    errors = _errors(problem, list(policies.values()))
    nds = np.array(options.nds([(0, policy) for policy in policies.values()]))
    table = Table("policy", *names, "NDS", title="errors and NDS")
    for policy, row, value in zip(policies, errors, nds, strict=True):
        table.add_row(policy, *(f"{error:.5f}" for error in row), f"{value:.4f}")
    console.print(table)
    found = [float(spearmanr(column, -nds).statistic) for column in errors.T]
    best = max(found[1:])
    rows = [
        Row(f"{name}: rank correlation with lost NDS", "at least", 0.0, value, 0.0)
        for name, value in zip(names[1:], found[1:], strict=True)
    ]
    return [
        Row("box error: rank correlation with lost NDS", "at least", best, found[0], 0.0),
        *rows,
    ]


def _errors(problem: SmallProblem, policies: Sequence[BitPolicy]) -> np.ndarray:
    """Return the mean of every error over the compared frames, [policies, errors]."""
    found = errors_of(problem).values()
    rows = []
    with torch.no_grad():
        with floating(problem.model):
            exact = [run_network(problem.model, inputs) for inputs in problem.inputs]
        for policy in track(policies, "errors"):
            bq.apply(problem.model, policy)
            outputs = [run_network(problem.model, inputs) for inputs in problem.inputs]
            pairs = list(zip(outputs, exact, strict=True))
            rows.append([np.mean([error(*pair) for pair in pairs]) for error in found])
    return np.array(rows)


if __name__ == "__main__":
    command_line = parser("search_errors")
    chosen, target = Options.read(command_line)
    conclude("search_errors", measure(chosen), target)
