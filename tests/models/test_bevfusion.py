"""The whole network: names, batches, gradients, input in two forms."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bevquant.data.frame import Batch
from bevquant.models.bevfusion import FULL, SMALL, BEVFusion
from bevquant.nn import MatMul

REFERENCE = Path(__file__).parents[2] / "../shared/reference"
STATE_DICT, LAYERS = REFERENCE / "state_dict.json", REFERENCE / "layers_table.json"


@pytest.fixture(scope="module")
def model() -> BEVFusion:
    torch.manual_seed(0)
    return BEVFusion(SMALL).eval()


def test_names_are_the_public_checkpoints() -> None:
    if not STATE_DICT.is_file():
        pytest.skip(f"{STATE_DICT} is absent")
    with torch.device("meta"):
        model = BEVFusion(FULL)
    entries = json.loads(STATE_DICT.read_text())["entries"]
    expected = {e["name"]: (tuple(e["shape"]), e["dtype"], e["kind"]) for e in entries}
    buffers = dict(model.named_buffers())
    found = {
        name: (
            tuple(value.shape),
            str(value.dtype).removeprefix("torch."),
            "buffer" if name in buffers else "parameter",
        )
        for name, value in model.state_dict().items()
    }
    assert found == expected


def test_layers_are_the_thesis_genes_in_its_order() -> None:
    if not LAYERS.is_file():
        pytest.skip(f"{LAYERS} is absent")
    with torch.device("meta"):
        model = BEVFusion(FULL)
    kinds = {nn.Conv2d: "conv2d", nn.Linear: "linear", MatMul: "matmul"}
    found = [
        (name, kinds[type(module)])
        for name, module in model.named_modules()
        # The thesis' tool does not see the projections of the decoder's attention.
        if type(module) in kinds and "_attn.attn." not in name
    ]
    genes = json.loads(LAYERS.read_text())["layers"]
    assert found == [(gene["path"], gene["kind"]) for gene in genes]


def test_small_is_small(model: BEVFusion) -> None:
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 1e6 < learned < 3e6


@torch.no_grad()
def test_a_batch_of_two_is_two_frames(model: BEVFusion, make_batch: Callable[..., Batch]) -> None:
    both = make_batch(SMALL, frames=2)
    together = model(both)
    for i in range(2):
        one = {name: value[i : i + 1] for name, value in vars(both).items() if value is not None}
        alone = model(Batch(**one))
        assert torch.equal(together.query_cells[i], alone.query_cells[0])
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[i : i + 1], theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2])
def test_a_frame_without_points(
    model: BEVFusion, make_batch: Callable[..., Batch], frames: int
) -> None:
    """LiDAR drop-out in training leaves such frames."""
    batch = make_batch(SMALL, frames=frames)
    empty = (*batch.points[:-1], batch.points[-1][:0])
    output = model(dataclasses.replace(batch, points=empty))
    assert all(value.isfinite().all() for value in output)


def test_every_weight_gets_a_gradient(make_batch: Callable[..., Batch]) -> None:
    torch.manual_seed(0)
    model = BEVFusion(SMALL).train()
    output = model(make_batch(SMALL, frames=2))
    floats = [value for value in output if value.requires_grad]
    assert len(floats) == 7  # six branches and the dense heat map
    torch.stack([value.square().mean() for value in floats]).sum().backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum())
    ]
    # Softmax does not see what all keys have in common.
    assert not [name for name in silent if "memory_proj.bias" not in name]


@torch.no_grad()
def test_tables_give_what_pairs_give(model: BEVFusion, make_batch: Callable[..., Batch]) -> None:
    inputs = model.prepare(make_batch(SMALL))
    tables = inputs.with_tables()
    assert all(torch.is_tensor(rule) for rule in tables.rules)
    for pairs, table in zip(model.network(inputs), model.network(tables), strict=True):
        torch.testing.assert_close(pairs, table, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_decoded_boxes(model: BEVFusion, make_batch: Callable[..., Batch]) -> None:
    output = model(make_batch(SMALL))
    (boxes,) = model.decode(output)
    assert boxes.scores is not None
    assert len(boxes) <= SMALL.bbox_head.num_proposals
    assert boxes.values.shape[1] == 9
    assert ((boxes.scores >= 0) & (boxes.scores <= 1)).all()


def test_grids_must_agree() -> None:
    fields = SMALL.model_dump()
    fields["bbox_head"]["grid"] = (100, 100)
    with pytest.raises(ValueError, match="BEV grids differ"):
        SMALL.__class__(**fields)


def test_image_size_must_fit_the_backbone() -> None:
    fields = SMALL.model_dump() | {"image_size": (128, 360)}
    with pytest.raises(ValueError, match="multiples of 16"):
        SMALL.__class__(**fields)
