import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from search_toys import TwoBranches, batches, quantized, squared_error
from torch import Tensor, nn

import bevquant as bq
from bevquant.quant.layers import floating, quant_modules
from bevquant.search.errors import OutputOf, cosine_error, mse_error
from bevquant.search.evaluator import Evaluator, Job
from bevquant.search.space import Genome, space


def job(genome: Genome, bound: float = math.inf, known: tuple[float, ...] = ()) -> Job:
    return Job(genome, known, 3, bound)


def plain_errors(model: TwoBranches, genome: Genome) -> tuple[float, ...]:
    bq.apply(model, space(model).policy(genome))
    errors = []
    with torch.no_grad():
        for batch in batches():
            with floating(model):
                reference = model(batch)
            errors.append(squared_error(model(batch), reference))
    return tuple(errors)


def test_errors_are_those_of_plain_forward_passes_whatever_is_reused() -> None:
    evaluator = Evaluator(quantized(), space(quantized()), batches(), squared_error)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(evaluator.space.sizes)
    for _ in range(12):
        genome = tuple((torch.rand(len(sizes), generator=generator) * sizes).int().tolist())
        assert evaluator.evaluate(job(genome)).errors == plain_errors(quantized(), genome)
    assert evaluator.reuse is not None
    assert evaluator.reuse.found > 0


@pytest.mark.parametrize(
    ("layer", "computed"),
    [("camera.0", {"camera", "fuser", "head"}), ("lidar.0", {"lidar", "fuser", "head"}),
     ("fuser.1", {"fuser", "head"}), ("head.out", {"head"})],
)  # fmt: skip
def test_only_what_depends_on_a_changed_layer_runs_again(layer: str, computed: set[str]) -> None:
    model = quantized()
    evaluator = Evaluator(model, space(model), batches(), squared_error)
    evaluator.evaluate(job(evaluator.space.highest))
    ran = set()
    for module in quant_modules(model):
        module.register_forward_hook(lambda m, *_: ran.add(m.main_module))
    changed = list(evaluator.space.highest)
    changed[[gene.layers[0] for gene in evaluator.space.genes].index(layer)] = 0
    evaluator.evaluate(job(tuple(changed)))
    assert ran == computed


def test_memory_is_bounded() -> None:
    model = quantized()
    evaluator = Evaluator(model, space(model), batches(), squared_error, memory=2000)
    for choice in (0, 1, 2, 0):
        genome = (choice,) * 4 + (0, choice)
        assert evaluator.evaluate(job(genome)).errors == plain_errors(quantized(), genome)
    assert evaluator.reuse is not None
    kept = sum(size for _, size in evaluator.reuse._kept.values())
    assert 0 < kept <= 2000


class Counting(nn.Module):
    """Its output depends on how often it was called: nothing of it may be reused."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) + self.calls


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.counting = Counting()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.counting(batch["image"])


def test_module_that_is_no_function_of_its_inputs_is_not_reused() -> None:
    model = bq.quantize(Stateful(), bq.W8A8)
    bq.calibrate(model, batches())
    evaluator = Evaluator(model, space(model), batches(), squared_error)
    evaluator.evaluate(job((0,)))
    assert evaluator.reuse is None


def test_stops_when_sure_to_be_beaten_and_continues_where_it_stopped() -> None:
    model = quantized()
    evaluator = Evaluator(model, space(model), batches(), squared_error)
    whole = evaluator.evaluate(job(evaluator.space.lowest)).errors
    assert evaluator.evaluate(job(evaluator.space.lowest, bound=whole[0] / 4)).errors == whole[:1]
    assert evaluator.evaluate(job(evaluator.space.lowest, known=whole[:2])).errors == whole


def test_bits_and_threads_are_as_before() -> None:
    model = quantized()
    before = [layer.precision for layer in quant_modules(model)]
    threads = torch.get_num_threads()
    evaluator = Evaluator(model, space(model), batches(), squared_error)
    evaluator.evaluate(job(evaluator.space.lowest))
    assert [layer.precision for layer in quant_modules(model)] == before
    assert torch.get_num_threads() == threads
    assert "forward" not in model.camera.__dict__


def test_pickled_evaluator_finds_the_same() -> None:
    model = quantized()
    evaluator = Evaluator(model, space(model), batches(), squared_error)
    expected = evaluator.evaluate(job(evaluator.space.lowest)).errors
    again = pickle.loads(pickle.dumps(evaluator))
    assert again.evaluate(job(evaluator.space.lowest)).errors == expected


def test_outputs_that_are_not_finite_have_an_infinite_error() -> None:
    model = quantized()
    spoilt = partial(_spoilt, factor=math.nan)
    evaluator = Evaluator(model, space(model), batches(), cosine_error, spoilt)
    assert evaluator.evaluate(job(evaluator.space.lowest)).errors == (math.inf,) * 3


def _spoilt(model: nn.Module, batch: torch.Tensor, factor: float) -> torch.Tensor:
    return model(batch) * factor


@pytest.mark.parametrize("error", [math.nan, math.inf, "much", None, torch.ones(2)])
def test_an_error_that_is_no_finite_number_is_refused(error: Any) -> None:
    """Of finite outputs: what is wrong is the function, not the network."""
    model = quantized()
    evaluator = Evaluator(model, space(model), batches(), lambda *_: error)
    with pytest.raises(bq.BevquantError, match="search: the error function returned"):
        evaluator.evaluate(job(evaluator.space.lowest))


def test_negative_error_is_refused() -> None:
    model = quantized()
    evaluator = Evaluator(model, space(model), batches(), lambda *_: -1.0)
    with pytest.raises(bq.BevquantError, match=r"returned -1\.0"):
        evaluator.evaluate(job(evaluator.space.lowest))


def test_cosine_error_of_nested_outputs() -> None:
    def outputs(x: float) -> Any:
        return {"a": torch.tensor([1.0, 0.0]), "b": [torch.tensor([1.0, x]), torch.arange(2)]}

    assert cosine_error(outputs(1.0), outputs(1.0)) == pytest.approx(0, abs=1e-12)
    assert cosine_error(outputs(1.0), outputs(0.0)) == pytest.approx((1 - 2**-0.5) / 2)


def test_mse_error_is_relative_to_the_variance() -> None:
    reference = torch.tensor([1.0, 3.0])
    assert mse_error(torch.tensor([2.0, 2.0]), reference) == pytest.approx(1.0)
    assert mse_error(1000 * torch.tensor([2.0, 2.0]), 1000 * reference) == pytest.approx(1.0)


def test_error_of_outputs_without_floats() -> None:
    with pytest.raises(bq.BevquantError, match="no floating-point tensor"):
        cosine_error(torch.arange(3), torch.arange(3))


def test_output_of_one_module() -> None:
    model = quantized()
    head: list[int] = []
    model.head.register_forward_hook(lambda *_: head.append(1))
    with floating(model), torch.no_grad():
        found = OutputOf("lidar")(model, batches()[0])
        assert torch.equal(found, model.lidar(batches()[0]["points"]))
    assert not head
