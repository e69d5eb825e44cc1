"""What the error of a genome is likely to be, from sensitivities and from evaluations."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bevquant.search.front import Point
from bevquant.search.space import Genome

Floats = npt.NDArray[np.float64]

_FLOOR = 1e-9
"""Added to errors before their logarithm is taken."""
_VARIANCES = (0.01, 0.1, 1.0, 10.0)
_LENGTHS = (4.0, 16.0, 64.0)
_NOISE = 1e-3


class ErrorModel:
    """A Gaussian process on the logarithm of the error.

    Its mean is the additive error of the sensitivities. Its kernel has two parts: one that is
    linear in the shares that genes have in the additive error (a layer matters more, or less,
    than it did alone), and one that falls with the number of genes that differ (layers that
    interact). Their scales are those of the greatest likelihood.

    Args:
        base: error of the genome of the most bits.
        added: for each gene the error that each choice adds, alone.
        points: what has been evaluated.

    Attributes:
        added: the same as given, corrected by what has been learnt.
    """

    def __init__(
        self, base: float, added: Sequence[Sequence[float]], points: Sequence[Point]
    ) -> None:
        self._base = max(base, 0.0) + _FLOOR
        self._given = added
        finite = [point for point in points if np.isfinite(point.error)]
        genomes = [point.genome for point in finite]
        errors = np.array([point.error for point in finite])
        self._genomes = np.array(genomes, dtype=np.int64).reshape(len(genomes), len(added))
        self._shares, prior = self._features(self._genomes)
        residual = np.log(errors + _FLOOR) - prior
        self._level = float(np.median(residual)) if len(residual) else 0.0
        self._fit(residual - self._level)
        weights = self._linear * (self._shares.T @ self._solved)
        self.added = [
            [
                error * float(np.exp(np.clip(weight, -5, 5)))
                for error, weight in zip(*rows, strict=True)
            ]
            for rows in zip(added, _ragged(weights, added), strict=True)
        ]

    def predict(self, genomes: Sequence[Genome]) -> Floats:
        """Return the expected natural logarithm of the error of each genome, [n]."""
        array = np.array(genomes, dtype=np.int64)
        shares, prior = self._features(array)
        kernel = self._linear * (shares @ self._shares.T)
        kernel += self._local * _similarity(array, self._genomes, self._length)
        predicted: Floats = prior + self._level + kernel @ self._solved
        return predicted

    def _features(self, genomes: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return the share of every (gene, choice) in the additive error, and its logarithm."""
        columns = []
        for gene, errors in enumerate(self._given):
            chosen = np.arange(len(errors)) == genomes[:, gene, None]
            columns.append(chosen * np.array(errors))
        added = np.concatenate(columns, axis=1)
        total = added.sum(axis=1) + self._base
        return added / total[:, None], np.log(total)

    def _fit(self, residual: Floats) -> None:
        """Choose the scales of the kernel by marginal likelihood, and condition on the data."""
        best = -np.inf
        linear_part = self._shares @ self._shares.T
        for length in _LENGTHS:
            similar = _similarity(self._genomes, self._genomes, length)
            for linear in _VARIANCES:
                for local in _VARIANCES[:-1]:
                    kernel = linear * linear_part + local * similar
                    kernel[np.diag_indices_from(kernel)] += _NOISE
                    factor = np.linalg.cholesky(kernel)
                    solved = np.linalg.solve(factor.T, np.linalg.solve(factor, residual))
                    likelihood = -0.5 * residual @ solved - np.log(np.diag(factor)).sum()
                    if likelihood > best:
                        best = likelihood
                        self._linear, self._local, self._length = linear, local, length
                        self._solved = solved


def _similarity(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], length: float) -> Floats:
    """Return exp(-steps / length), where steps are those between two genomes, [n, m]."""
    steps = np.abs(a[:, None] - b[None]).sum(axis=2)
    similar: Floats = np.exp(-steps / length)
    return similar


def _ragged(flat: Floats, like: Sequence[Sequence[float]]) -> list[Floats]:
    ends = np.cumsum([len(row) for row in like])
    return np.split(flat, ends[:-1])
