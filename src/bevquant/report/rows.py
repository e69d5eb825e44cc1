"""The measured networks in the order in which every table lists them."""

from dataclasses import dataclass

from bevquant.report.results import Metrics, Results


@dataclass(frozen=True)
class Row:
    """One network of the tables.

    Attributes:
        name: as the tables call it.
        how: how it was measured, in a few words.
        metrics: its figures.
        weight_bits: of all quantizable layers, or ``None`` where a file counts instead.
        relative_weight_bits: as a share of the float network's, or ``None``.
    """

    name: str
    how: str
    metrics: Metrics
    weight_bits: int | None = None
    relative_weight_bits: float | None = None


def rows(results: Results) -> tuple[Row, ...]:
    """Return float, every simulated precision from the most bits down, and deployed."""
    reference, deployed = results.float_, results.deployed
    simulated = sorted(results.simulated.items(), key=lambda item: -item[1].weight_bits)
    return (
        Row("float", "32-bit floating point", reference, reference.weight_bits, 1.0),
        *(
            Row(name, f"simulated, {m.scheme}", m, m.weight_bits, m.relative_weight_bits)
            for name, m in simulated
        ),
        Row("deployed", f"{deployed.precision} file in {deployed.engine}", deployed),
    )
