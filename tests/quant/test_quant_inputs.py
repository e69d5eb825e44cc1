"""Every public function takes and refuses the same things, in the same words."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bevquant as bq

Verb = Callable[..., Any]


def batches() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(8, 6) for _ in range(3)]


def floats() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def calibrated() -> nn.Module:
    model = bq.quantize(floats(), "W8A8")
    bq.calibrate(model, batches())
    return model


SEVERAL_PASSES = [bq.refine, bq.reconstruct, bq.equalize, bq.sensitivity, bq.debug]


def model_for(verb: Verb) -> nn.Module:
    return floats() if verb is bq.equalize else calibrated()


@pytest.mark.parametrize("verb", SEVERAL_PASSES)
def test_a_generator_is_as_good_as_a_list(verb: Verb) -> None:
    x = torch.randn(5, 6)
    outputs = []
    for given in (batches(), iter(batches()), (each for each in batches()), tuple(batches())):
        model = model_for(verb)
        verb(model, given)
        with torch.no_grad():
            outputs.append(model(x))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("verb", [*SEVERAL_PASSES, bq.calibrate, bq.search])
@pytest.mark.parametrize("given", [[], (), iter(()), torch.zeros(3, 6), None, 3, "text", {"x": 1}])
def test_what_is_no_batches_is_refused(verb: Verb, given: Any) -> None:
    with pytest.raises(bq.BevquantError, match=r"batches is one|there is no batch"):
        verb(model_for(verb), given)


@pytest.mark.parametrize("verb", [*SEVERAL_PASSES, bq.calibrate, bq.search])
def test_a_loader_of_pairs_says_how_to_give_forward(verb: Verb) -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, 6), torch.zeros(8)), batch_size=4)
    with pytest.raises(
        bq.BevquantError, match=r"give forward=lambda model, batch: model\(batch\[0"
    ):
        verb(model_for(verb), loader)
    verb(model_for(verb), loader, forward=lambda model, batch: model(batch[0]))


def test_an_error_inside_the_model_is_still_seen() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Any) -> Tensor:
            return self.layer(x).no_such_method()

    model = bq.quantize(Broken().eval(), "W8A8")
    with pytest.raises(AttributeError, match="no_such_method"):
        bq.calibrate(model, batches())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("W4A8", bq.W4A8),
        ({"*": "W8A8", "2": "W2A8"}, bq.W2A8),
        (bq.BitPolicy({"*": "W4A8"}), bq.W4A8),
        ({"*": bq.W4A8, "0": "float"}, bq.W4A8),
        ({"*": bq.W4A8, "0": None}, bq.W4A8),
    ],
)
def test_texts_and_rules_are_precisions(given: Any, wanted: bq.Precision) -> None:
    for model in (bq.quantize(floats(), given), bq.apply(calibrated(), given)):
        assert {x.name: x.precision for x in bq.layers(model)}["2"] == wanted


@pytest.mark.parametrize(
    "given", ["W9A8", "8", 8, (8, 8), {"*": 8}, [], b"W8A8", {"*": "W5A8"}, {3: "W8A8"}, "w8a8 "]
)
@pytest.mark.parametrize("verb", [bq.quantize, bq.apply])
def test_what_is_no_precision_is_refused_and_nothing_changed(verb: Verb, given: Any) -> None:
    model = floats() if verb is bq.quantize else calibrated()
    before = {x.name: x.precision for x in bq.layers(model)}
    with pytest.raises(bq.BevquantError, match=r"^(precision|policy): "):
        verb(model, given)
    assert {x.name: x.precision for x in bq.layers(model)} == before


@pytest.mark.parametrize("verb", [bq.refine, bq.reconstruct, bq.sensitivity])
def test_lists_of_precisions(verb: Verb) -> None:
    verb(calibrated(), batches(), precisions=["W4A8", bq.W8A8])
    with pytest.raises(bq.BevquantError, match="precision"):
        verb(calibrated(), batches(), precisions=[8])


@pytest.mark.parametrize("scheme", ["DEPLOY", "symmetric", bq.THESIS])
def test_schemes_by_name(scheme: Any) -> None:
    bq.quantize(floats(), "W8A8", scheme=scheme)


def test_unknown_scheme_and_method() -> None:
    with pytest.raises(bq.BevquantError, match="scheme='DEPLOI' is no scheme"):
        bq.quantize(floats(), "W8A8", scheme="DEPLOI")
    with pytest.raises(bq.BevquantError, match="did you mean 'measured'"):
        bq.refine(calibrated(), batches(), method="mesured")


def test_a_layer_named_like_a_pattern_is_named_by_its_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("x[0]", "x0", "y*", "yz")})

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.h.values():
                x = layer(x)
            return x

    model = bq.quantize(Odd(), {"*": "W8A8", "h.x[0]": "W4A8", "h.y*": "W2A8"})
    assert [str(x.precision) for x in bq.layers(model)] == ["W4A8", "W8A8", "W2A8", "W8A8"]


def test_a_shuffling_loader_is_listed_once() -> None:
    """Passes over it would see other batches each time."""

    class Once:
        passes = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.passes += 1
            yield from batches()

    once = Once()
    bq.reconstruct(calibrated(), once)
    assert once.passes == 1
