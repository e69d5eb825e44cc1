"""Which layers are trained, by the names that recipes and tables know."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bevquant.ptqat.cuts import Budget, Candidate, Knee, Quantile, Theta
from bevquant.ptqat.selection import EVERYTHING, INVERTED, PAPER, PROMISING, Rule, Selection

PTQ, RANDOM = "PTQ", "random half"
RULES: Mapping[str, Rule] = {
    "QAT": EVERYTHING,
    "PTQAT": PAPER,
    "inverted": INVERTED,
    RANDOM: Rule(Budget(0.5)),  # of shuffled scores
    "promising half": PROMISING,
    "theta 0.005": Rule(Theta(0.005)),
    "theta 0.02": Rule(Theta(0.02)),
    "adaptive": Rule(Knee()),
    "low half, mse": Rule(Quantile(0.5)),
    "low half, normalised mse": Rule(Quantile(0.5), "normalised_mse"),
    "low half, cosine": Rule(Quantile(0.5), "cosine"),
    "low half, sqnr": Rule(Quantile(0.5), "sqnr"),
    "low half, kl": Rule(Quantile(0.5), "kl"),
    "low half, normalised mse, by channel": Rule(
        Quantile(0.5), "normalised_mse", granularity="channel"
    ),
    "low half, mse, by block": Rule(Quantile(0.5), granularity="block"),
    "low half, mse, all quantized": Rule(Quantile(0.5), upstream=True),
    "high half, mse": Rule(Quantile(0.5), lowest=False),
}
COMPARED = (
    "QAT",
    "PTQAT",
    "inverted",
    RANDOM,
    "low half, mse",
    "high half, mse",
    "promising half",
)


def select(name: str, candidates: Sequence[Candidate], seed: int) -> Selection:
    """Apply the rule called ``name``; ``seed`` is that of the random one."""
    if name == RANDOM:
        scores = np.random.default_rng(seed).random(len(candidates)).tolist()
        candidates = [replace(c, score=s) for c, s in zip(candidates, scores, strict=True)]
    return RULES[name].select(candidates)
