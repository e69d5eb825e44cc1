import json
from pathlib import Path

import pytest

from bevquant.errors import BevquantError
from bevquant.quant.policy import BitPolicy
from bevquant.search.front import Front, Point
from bevquant.search.front_file import read_front, write_front

RULES = {"a": "W2A8", "b": "W16A16", "c": "float"}
FRONT = Front(
    points=(
        Point(BitPolicy.from_json(RULES).rules, (0, 3), 0.5, {"bits": 10.0, "bytes": 1 / 3}),
        Point(BitPolicy.from_json({"*": "W8A8"}).rules, (2, 2), 0.1, {"bits": 80.0, "bytes": 7.0}),
    ),
    evaluated=(),
    float_costs={"bits": 320.0, "bytes": 40.0},
    passes=12.5,
)


def test_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_front(FRONT, tmp_path / "front.json")
    front = read_front(tmp_path / "front.json")
    assert front.points == FRONT.points
    assert (front.float_costs, front.passes) == (FRONT.float_costs, FRONT.passes)
    assert front.under(bits=79.0).to_json() == RULES


def test_files_that_hold_no_front_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    with pytest.raises(BevquantError, match=r"front\.json"):
        read_front(path)
    path.write_text('{"points": []}')
    with pytest.raises(BevquantError, match="see float_costs"):
        read_front(path)
    write_front(Front((), (), FRONT.float_costs, 0.0), path)
    with pytest.raises(BevquantError, match="empty"):
        read_front(path)
    write_front(FRONT, path)
    content = json.loads(path.read_text())
    content["points"][0]["policy"]["a"] = "W3000"
    path.write_text(json.dumps(content))
    with pytest.raises(BevquantError, match="W3000"):
        read_front(path)
