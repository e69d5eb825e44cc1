import pytest

from bevquant.report.claims import check_claims
from bevquant.report.results import Claim, Results


def claims(results: Results, latency_ms: float = 20.0) -> dict[str, Claim]:
    deployed = results.deployed.model_copy(update={"latency_ms": latency_ms})
    checked = check_claims(results.float_, results.simulated, deployed, results.ablation)
    return {claim.claim: claim for claim in checked}


def test_measured_figures_are_those_of_the_results(results: Results) -> None:
    measured = {name: claim.measured for name, claim in claims(results).items()}
    assert measured == pytest.approx(
        {
            "float mAP": 0.5713,
            "float NDS": 0.5581,
            "mAP lost without images": 0.5713 - 0.4228,
            "mAP lost with half of the LiDAR beams": 0.5713 - 0.5011,
            "NDS between float and simulated W8A8": 0.5581 - 0.5562,
            "mAP left by W2A8 min-max: it collapses": 0.0004,
            "NDS between simulated and deployed": 0.5541 - 0.5532,
            "speed-up over FP32": 72.66 / 20,
            "file size over FP32's": 2_204_511 / 8_123_904,
        }
    )


@pytest.mark.parametrize(("latency_ms", "holds"), [(36.33, True), (36.34, False)])
def test_a_goal_holds_up_to_its_bound(results: Results, latency_ms: float, holds: bool) -> None:
    claim = claims(results, latency_ms)["speed-up over FP32"]
    assert (claim.bound, claim.goal, claim.holds) == ("at least", 2.0, holds)
