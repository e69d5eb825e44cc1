"""An interrupted demo continues with the steps it has; another setup is refused."""

from pathlib import Path

import pytest

from bevquant.errors import BevquantError
from bevquant.steps import Steps


def test_a_finished_step_is_not_run_again(tmp_path: Path) -> None:
    calls = []

    def work() -> dict[str, float]:
        calls.append(1)
        return {"NDS": 0.1 + 0.2}

    first = Steps(tmp_path, {"quick": True}).run("float", work)
    second = Steps(tmp_path, {"quick": True}).run("float", work)
    assert first == second == {"NDS": 0.1 + 0.2}
    assert len(calls) == 1


def test_an_interrupted_step_is_run_again_and_the_finished_ones_are_kept(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    steps = Steps(tmp_path, {})
    steps.run("world", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        steps.run("half of the beams", interrupted)
    assert list(steps.seconds()) == ["world"]
    assert steps.run("half of the beams", lambda: 3) == 3
    assert list(steps.seconds()) == ["world", "half_of_the_beams"]


def test_steps_of_another_setup_are_refused_by_what_differs(tmp_path: Path) -> None:
    Steps(tmp_path, {"quick": True, "seed": 1})
    with pytest.raises(BevquantError, match="differ in quick;"):
        Steps(tmp_path, {"quick": False, "seed": 1})
