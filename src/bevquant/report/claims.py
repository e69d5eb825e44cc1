"""The goals of the demo, held against what was measured."""

from collections.abc import Mapping

from bevquant.report.results import (
    Ablation,
    Claim,
    DeployedMetrics,
    FloatMetrics,
    SimulatedMetrics,
)


def check_claims(
    float_: FloatMetrics,
    simulated: Mapping[str, SimulatedMetrics],
    deployed: DeployedMetrics,
    ablation: Ablation,
) -> tuple[Claim, ...]:
    """Return each goal with its measured figure and whether it holds.

    The collapse of W2 is the thesis' (table 3.3: 2Q keeps .0249 mAP of .6130).
    """
    blanked = float_.mAP - ablation.images_blanked.mAP
    half_beams = float_.mAP - ablation.lidar_half_beams.mAP
    rounded = abs(float_.NDS - simulated["W8A8"].NDS)
    shipped = abs(deployed.NDS - simulated[deployed.simulated].NDS)
    return (
        _at_least("float mAP", 0.55, float_.mAP),
        _at_least("float NDS", 0.55, float_.NDS),
        _at_least("mAP lost without images", 0.10, blanked),
        _at_least("mAP lost with half of the LiDAR beams", 0.01, half_beams),
        _at_most("NDS between float and simulated W8A8", 0.01, rounded),
        _at_most("mAP left by W2A8 min-max: it collapses", 0.05, simulated["W2A8"].mAP),
        _at_most("NDS between simulated and deployed", 0.005, shipped),
        _at_least("speed-up over FP32", 2.0, deployed.fp32_latency_ms / deployed.latency_ms),
        _at_most("file size over FP32's", 0.30, deployed.file_bytes / deployed.fp32_file_bytes),
    )


def _at_least(claim: str, goal: float, measured: float) -> Claim:
    holds = measured >= goal
    return Claim(claim=claim, bound="at least", goal=goal, measured=measured, holds=holds)


def _at_most(claim: str, goal: float, measured: float) -> Claim:
    holds = measured <= goal
    return Claim(claim=claim, bound="at most", goal=goal, measured=measured, holds=holds)
