"""BEV pooling against a loop over the points."""

import torch

from bevquant.models.bevfusion.bev_pool import bev_pool

CELLS, PIXELS, BINS, CHANNELS = 7, 5, 3, 4


def example() -> tuple[torch.Tensor, ...]:
    """Random points in order of cell; cells 0 and 6 stay empty."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randperm(BINS * PIXELS, generator=generator)[:11]
    cells = torch.randint(1, 6, (11,), generator=generator).sort().values
    depth = torch.rand(BINS * PIXELS, generator=generator, dtype=torch.double)
    context = torch.randn(PIXELS, CHANNELS, generator=generator, dtype=torch.double)
    return depth.requires_grad_(), context.requires_grad_(), points, points % PIXELS, cells


def pool(depth, context, points, pixels, cells):  # type: ignore[no-untyped-def]
    return bev_pool(depth, context, points=points, pixels=pixels, cells=cells, num_cells=CELLS)


def by_hand(depth, context, points, pixels, cells):  # type: ignore[no-untyped-def]
    rows = [torch.zeros(CHANNELS, dtype=torch.double) for _ in range(CELLS)]
    for point, pixel, cell in zip(points.tolist(), pixels.tolist(), cells.tolist(), strict=True):
        rows[cell] = rows[cell] + depth[point] * context[pixel]
    return torch.stack(rows)


def test_sums_and_gradients() -> None:
    inputs = example()
    pooled, expected = pool(*inputs), by_hand(*inputs)
    torch.testing.assert_close(pooled, expected)
    gradient = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(pooled, inputs[:2], gradient),
        torch.autograd.grad(expected, inputs[:2], gradient),
    )


def test_exportable_form_agrees() -> None:
    class Pool(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return pool(*inputs)

    inputs = tuple(value.detach() for value in example())
    program = torch.export.export(Pool(), inputs)
    assert "index_add" in str(program.graph)
    torch.testing.assert_close(program.module()(*inputs), by_hand(*inputs))
