import json

import pytest

from bevquant.errors import BevquantError
from bevquant.quant.policy import BitPolicy
from bevquant.quant.spec import W2A8, W4A8, W8A8

NAMES = ["stem", "body.0.conv", "body.1.conv", "head.conv"]


def test_the_last_matching_rule_decides() -> None:
    policy = BitPolicy({"*": W4A8, "*.conv": W2A8, "head.*": W8A8, "stem": None})
    assert policy.assign(NAMES) == {
        "stem": None,
        "body.0.conv": W2A8,
        "body.1.conv": W2A8,
        "head.conv": W8A8,
    }


def test_a_layer_without_a_rule_stays_float() -> None:
    assert BitPolicy({"body.*": W4A8}).assign(NAMES)["stem"] is None


def test_a_precision_is_a_policy_for_every_layer() -> None:
    assert set(BitPolicy.of(W8A8).assign(NAMES).values()) == {W8A8}


def test_json_round_trip_keeps_the_order() -> None:
    policy = BitPolicy({"*": W4A8, "head.*": None, "head.conv": W8A8})
    again = BitPolicy.from_json(json.loads(json.dumps(policy.to_json())))
    assert list(again.rules.items()) == list(policy.rules.items())


def test_a_rule_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BevquantError, match=r"'heat\.conv' matches no layer.*'head\.conv'"):
        BitPolicy({"*": W4A8, "heat.conv": W8A8}).assign(NAMES)
