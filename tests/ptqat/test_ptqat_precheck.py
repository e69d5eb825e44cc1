import pytest
import torch
from quant_nets import ResNet, TwoSensors, noise, seeded, two_sensor_batch
from torch import Tensor, nn

import bevquant as bq
from bevquant.ptqat.precheck import divergence, precheck
from bevquant.quant.layers import floating, quant_modules

BATCHES = [noise(2, 3, 8, 8, seed=seed) for seed in (0, 1)]


def quantized(model: nn.Module, batches: list) -> nn.Module:
    bq.fold_batchnorm(model, batches[0])
    bq.quantize(model, bq.W2A8)
    bq.calibrate(model, batches)
    return model.eval()


@pytest.fixture
def model() -> nn.Module:
    return quantized(seeded(ResNet()), BATCHES)


def outputs(model: nn.Module, name: str) -> list[Tensor]:
    """A layer's outputs in the model as it runs now, before anything changes them in place."""
    layer = model.get_submodule(name)
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    with torch.no_grad():
        for batch in BATCHES:
            model(batch)
    handle.remove()
    return seen


def test_alone_is_one_quantized_layer_in_a_float_network(model: nn.Module) -> None:
    rows = {row.layer: row for row in precheck(model, BATCHES)}
    sensitivities = bq.sensitivity(model, BATCHES, [bq.W2A8])
    assert list(rows) == [row.layer for row in sensitivities]
    for row in sensitivities:
        for measure in ("mse", "normalised_mse", "cosine"):
            expected = getattr(row.layer_output, measure)
            assert getattr(rows[row.layer].output, measure) == pytest.approx(expected)
        assert rows[row.layer].weights == row.weights
        assert rows[row.layer].kl > 0


def test_upstream_compares_the_two_networks(model: nn.Module) -> None:
    rows = {row.layer: row for row in precheck(model, BATCHES, upstream=True)}
    name = "body.1.conv2"
    with floating(model):
        reference = torch.cat(outputs(model, name))
    quantized = torch.cat(outputs(model, name))
    mse = nn.functional.mse_loss(quantized, reference)
    assert rows[name].score("mse") == pytest.approx(float(mse), rel=1e-5)
    power = reference.square().mean()
    assert rows[name].score("normalised_mse") == pytest.approx(float(mse / power), rel=1e-5)
    assert rows[name].score("sqnr") == pytest.approx(float(10 * (mse / power).log10()), rel=1e-5)
    cosine = torch.cosine_similarity(quantized.flatten(), reference.flatten(), dim=0)
    assert rows[name].score("cosine") == pytest.approx(float(1 - cosine), rel=1e-4)
    # The first layer is alone in any case.
    assert rows["stem.0"] == precheck(model, BATCHES)[0]


def test_each_channel_counts_the_same(model: nn.Module) -> None:
    rows = {row.layer: row for row in precheck(model, BATCHES, granularity="channel")}
    layer = model.get_submodule("head")
    with floating(model):
        inputs: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        reference = torch.cat(outputs(model, "head"))
        handle.remove()
    with torch.no_grad():
        error = (layer(torch.cat(inputs)) - reference).square().sum(0)
    expected = (error / reference.square().sum(0)).mean()
    assert rows["head"].score("normalised_mse") == pytest.approx(float(expected), rel=1e-5)


def test_a_block_shares_its_error(model: nn.Module) -> None:
    alone = {row.layer: row for row in precheck(model, BATCHES)}
    rows = {row.layer: row for row in precheck(model, BATCHES, granularity="block")}
    names = ["body.1.conv1", "body.1.conv2", "body.1.shortcut"]
    for measure in ("mse", "kl"):
        mean = sum(alone[name].score(measure) for name in names) / 3
        assert [rows[name].score(measure) for name in names] == pytest.approx([mean] * 3)
    assert rows["head"] == alone["head"]


def test_divergence_of_known_histograms() -> None:
    values = torch.linspace(0, 1, 1000)
    assert divergence(values, values) == 0
    # All values in the first of 256 bins instead of evenly over all.
    q = torch.tensor([1001.0] + [1.0] * 255) / 1256
    r = torch.histc(values, 256) + 1
    r = r / r.sum()
    expected = nn.functional.kl_div(q.log(), r, reduction="sum")
    assert divergence(torch.zeros(1000), values) == pytest.approx(float(expected), rel=1e-5)


def test_only_layers_with_weights_that_were_called() -> None:
    batches = [two_sensor_batch(seed) for seed in (0, 1)]
    model = quantized(seeded(TwoSensors()), batches)
    model.get_submodule("fuse").precision = None
    before = {layer: (layer.precision, layer.bypass) for layer in quant_modules(model)}
    assert [row.layer for row in precheck(model, batches)] == ["camera.0", "voxels"]
    assert before == {layer: (layer.precision, layer.bypass) for layer in quant_modules(model)}


def test_nothing_to_compare_is_refused(model: nn.Module) -> None:
    with pytest.raises(bq.BevquantError, match="no batch"):
        precheck(model, [])
    with pytest.raises(bq.BevquantError, match="no layer is quantized"):
        precheck(seeded(ResNet()), BATCHES)
    with pytest.raises(bq.BevquantError, match="was called"):
        precheck(model, BATCHES, lambda model, batch: batch)
