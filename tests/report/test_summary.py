import pytest

from bevquant.report.results import Results
from bevquant.report.summary import scope, summary, verdict


def deployed(results: Results, **changes: float) -> Results:
    return results.model_copy(update={"deployed": results.deployed.model_copy(update=changes)})


def test_the_summary_says_what_was_measured(results: Results) -> None:
    assert summary(results) == (
        "Deployed as W8A8, the network keeps 99.1 % of its NDS (0.553 of 0.558), is 1.8x faster "
        "than FP32 in OpenVINO 2026.4.1, and its file is 0.27 of the size."
    )


@pytest.mark.parametrize(
    ("latency_ms", "words"),
    [
        (145.32, "is 2.0x slower than FP32"),
        (70.0, "is as fast as FP32 within the spread of the timing"),
        (75.0, "is as fast as FP32 within the spread of the timing"),
    ],
)
def test_the_summary_claims_no_speed_that_was_not_measured(
    results: Results, latency_ms: float, words: str
) -> None:
    text = summary(deployed(results, latency_ms=latency_ms))
    assert words in text and "faster" not in text


def test_a_float_network_that_scores_nothing_is_no_base_for_a_ratio(results: Results) -> None:
    nothing = results.float_.model_copy(update={"NDS": 0.0})
    assert "%" not in summary(results.model_copy(update={"float_": nothing}))


def test_a_generated_world_is_never_called_nuscenes(results: Results) -> None:
    assert "80 key frames of 8 scenes of test world" in scope(results)
    assert "a generated world, not nuScenes" in scope(results)
    recorded = results.dataset.model_copy(update={"kind": "recorded drives"})
    assert "generated" not in scope(results.model_copy(update={"dataset": recorded}))


def test_a_quick_run_says_so(results: Results) -> None:
    quick = results.provenance.model_copy(update={"quick": True})
    assert "quick" in scope(results.model_copy(update={"provenance": quick}))
    assert "quick" not in scope(results)


def test_the_verdict_counts_goals(results: Results) -> None:
    assert verdict(results) == "8 of 9 goals hold"
