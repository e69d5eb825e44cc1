import pytest
import torch
from search_toys import choices, quantized

import bevquant as bq
from bevquant.search.costs import bops, latency, model_bytes, weight_bits
from bevquant.search.space import space


def test_weight_bits_is_the_sum_of_bits_times_weights() -> None:
    model = quantized()
    where = space(model, pinned={"lidar.0": None})
    cost = weight_bits(model, where)
    # camera.0 6x8, camera.2 8x8, lidar.0 5x8 float, fuser.1 16x8, head.out 8x3
    assert cost((0, 1, 2, 0, 3)) == 2 * 48 + 4 * 64 + 32 * 40 + 8 * 128 + 16 * 24
    assert cost.float_value == 32 * (48 + 64 + 40 + 128 + 24)


def test_bytes_of_the_float_model_are_those_of_its_state() -> None:
    model = quantized()
    cost = model_bytes(model, space(model))
    bq.restore(model)
    assert cost.float_value == sum(v.numel() * 4 for v in model.state_dict().values())


def test_bytes_count_weights_scales_and_the_rest() -> None:
    model = quantized()
    cost = model_bytes(model, space(model, choices(4, 8)))
    weights = {"camera.0": 48, "camera.2": 64, "lidar.0": 40, "fuser.1": 128, "head.out": 24}
    biases = scales = 8 + 8 + 8 + 8 + 3
    inputs = 5 * (len(weights) + 2)  # scale and zero point; the product has two
    expected = sum(weights.values()) / 2 + 4 * biases + 4 * scales + inputs
    assert cost((0, 0, 0, 0, 0)) == expected


def test_bops_against_macs_by_hand() -> None:
    model = quantized()
    cost = bops(model, space(model))
    # one batch of 4 rows; the product is [4, 4] @ [4, 8]
    macs = {"camera.0": 192, "camera.2": 256, "lidar.0": 160, "fuser.1": 512, "head.out": 96}
    product = 4 * 4 * 8
    assert cost(space(model).lowest) == 2 * 8 * sum(macs.values()) + 8 * 8 * product
    assert cost.float_value == 32 * 32 * (sum(macs.values()) + product)


def test_bops_need_a_counted_pass() -> None:
    torch.manual_seed(0)
    model = bq.quantize(torch.nn.Sequential(torch.nn.Linear(2, 2)), bq.W8A8)
    with pytest.raises(bq.BevquantError, match="calibrate the model first"):
        bops(model, space(model))


def test_latency_adds_up_the_table() -> None:
    model = quantized()
    where = space(model, choices(4, 8))
    table = {"camera.0": {"W4A8": 1.0, "W8A8": 3.0, "float": 9.0}}
    cost = latency(table)(model, where)
    assert cost(where.lowest) == 1.0
    assert cost(where.highest) == 3.0
    assert cost.float_value == 9.0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"camera.9": {"W4A8": 1.0}}, "'camera.9', which is no layer"),
        ({"camera.0": {"W4A8": 1.0}}, "no time of 'camera.0' at W8A8"),
    ],
)
def test_latency_table_that_does_not_fit(table: dict[str, dict[str, float]], message: str) -> None:
    model = quantized()
    with pytest.raises(bq.BevquantError, match=message):
        latency(table)(model, space(model, choices(4, 8)))
