from bevquant.deploy.measurement import Timing


def test_timing_is_median_and_interquartile_range():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 100.0))
    assert (timing.median_ms, timing.spread_ms) == (3.0, 2.0)


def test_a_ratio_is_of_runs_side_by_side():
    # The machine was ten times slower during the second run: that is no difference.
    slow, fast = Timing((2.0, 20.0, 2.0)), Timing((1.0, 10.0, 1.0))
    assert slow.speed_up(of=fast) == 2.0
    assert fast.speed_up(of=slow) == 0.5
