"""Accuracy and cost of post-training quantization, small BEVFusion, generated world.

Every layer is quantized, products of attention included, with the scheme that engines run.
The world is one that the network was not trained on; the calibration frames are random ones
of its training scenes, another set for each seed. Finished figures are kept in
``runs/benchmark_ptq``, and an interrupted run continues.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from _ptq_cost import cost_rows
from _rows import Row, of_seeds, report

from bevquant.data.world.settings import WorldSettings
from bevquant.experiments.variants import Bench, Variant, cores, measure
from bevquant.quant.spec import W2A8, W3A8, W4A8, W8A8, Precision

FOLDER = Path("runs/benchmark_ptq")
WORLD = WorldSettings(scenes=36, keyframes=5, seed=1000, val_fraction=20 / 36)
FRAMES = 24
SEEDS = (0, 1, 2)
PRECISIONS = (W2A8, W3A8, W4A8, W8A8)
NOISE = 0.3
"""Points of NDS within which calibration on other frames moves a figure."""


def rows() -> Sequence[Row]:
    bench = Bench(FOLDER, WORLD, FRAMES)
    plain = [Variant(seed=seed) for seed in SEEDS]
    refined = [Variant(alphas="measured", seed=seed) for seed in SEEDS]
    ours = [Variant(alphas="measured", reconstructed=True, seed=seed) for seed in SEEDS]
    ends = [
        Variant("ends at 8 bits", alphas="measured", reconstructed=True, seed=seed)
        for seed in SEEDS
    ]
    work = [(variant, PRECISIONS) for variant in (*ours, *refined, *plain)]
    measure(bench, [*work, *((variant, (W2A8,)) for variant in ends)], cores())
    exact = bench.float()["NDS"]

    def nds(variants: Sequence[Variant], precision: Precision) -> list[float]:
        return [bench.figures(variant, precision)["NDS"] for variant in variants]

    def lost(precision: Precision, goal: float) -> Row:
        points = [100 * (exact - value) for value in nds(ours, precision)]
        return of_seeds(f"{precision}: NDS points lost", "at most", goal, points, fmean(points))

    def share(name: str, variants: Sequence[Variant], precision: Precision, goal: float) -> Row:
        kept = [value / exact for value in nds(variants, precision)]
        return of_seeds(
            f"{precision}{name}: share of float NDS", "at least", goal, kept, fmean(kept)
        )

    def gain(precision: Precision) -> Row:
        before, after = nds(plain, precision), nds(refined, precision)
        points = [100 * (new - old) for old, new in zip(before, after, strict=True)]
        return of_seeds(
            f"{precision}: NDS points, refine over min-max",
            "at least",
            -NOISE,
            points,
            fmean(points),
        )

    return [
        lost(W8A8, 0.3),
        lost(W4A8, 1.0),
        share("", ours, W3A8, 0.96),
        share("", ours, W2A8, 0.80),
        share(", ends at 8 bits", ends, W2A8, 0.90),
        *(gain(precision) for precision in PRECISIONS),
        *cost_rows(),
    ]


if __name__ == "__main__":
    report("ptq", rows)
