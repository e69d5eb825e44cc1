"""The float forward pass of the public network on one frame, against the reference's own forms.

mmdetection3d cannot run here, and its 11.75 s a frame were taken on another machine. So its
slow part is written out in plain torch and put into the same network: frustum geometry by
batched 3 x 3 products, BEV pooling of a (points x channels) tensor, the allocator as it is.
The other form is what ``bevquant eval`` runs. Times are processor time of one thread, for
which waiting for other work on the machine does not count; the two forms take turns, and a
figure is the median over rounds. Input: the points and cameras of the parity fixture (32,360
points, six cameras) and random weights, for neither speed nor memory depends on them.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from _rows import Row, of_runs, report
from torch import Tensor

from bevquant.data.frame import Batch
from bevquant.memory import keep_freed_memory
from bevquant.models.bevfusion import FULL, BEVFusion, NetworkInput, lift_splat
from bevquant.models.bevfusion import depth_lss as module
from bevquant.models.bevfusion.bev_pool import bev_pool
from bevquant.provenance import cpu_name

FIXTURE = Path(__file__).parents[1] / "tests/models/data/parity_public.npz"
ROUNDS = 3
POOL_ROUNDS = 5
REFERENCE_SECONDS = 11.75
REFERENCE_GIB = 3.0
GIB = 1024**3
STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


def frame() -> Batch:
    arrays = np.load(FIXTURE)

    def tensor(key: str) -> Tensor:
        return torch.from_numpy(arrays[f"in/{key}"])

    torch.manual_seed(0)
    return Batch(
        images=torch.randn(1, 6, 3, *FULL.image_size),
        points=(tensor("points"),),
        lidar2image=tensor("lidar2image"),
        intrinsics=tensor("cam_intrinsic"),
        camera2lidar=tensor("camera2lidar"),
        image_augmentation=tensor("img_aug_matrix"),
        lidar_augmentation=tensor("lidar_aug_matrix"),
        lidar2ego=torch.eye(4).expand(1, 4, 4),
        tokens=("fixture",),
    )


def network() -> BEVFusion:
    torch.manual_seed(0)
    return BEVFusion(FULL).eval()


# The forms of the reference (mmdetection3d v1.4.0, projects/BEVFusion/bevfusion/depth_lss.py)


def reference_geometry(self: module.DepthLSSTransform, batch: Batch) -> tuple[Tensor, ...]:
    """``get_geometry``: one batched product per frustum point."""

    def rotate(rotation: Tensor, points: Tensor) -> Tensor:
        return rotation[..., None, None, None, :, :].matmul(points[..., None])[..., 0]

    image, camera = batch.image_augmentation, batch.camera2lidar
    points = self.frustum - image[..., None, None, None, :3, 3]
    points = rotate(torch.inverse(image[..., :3, :3]), points)
    points = torch.cat((points[..., :2] * points[..., 2:], points[..., 2:]), -1)
    combined = camera[..., :3, :3].matmul(torch.inverse(batch.intrinsics[..., :3, :3]))
    points = rotate(combined, points) + camera[..., None, None, None, :3, 3]
    lidar = batch.lidar_augmentation[:, None]
    points = rotate(lidar[..., :3, :3], points) + lidar[..., None, None, None, :3, 3]
    return points.unbind(-1)


def reference_pool(
    depth: Tensor,
    context: Tensor,
    *,
    points: Tensor,
    pixels: Tensor,
    cells: Tensor,
    num_cells: int,
) -> Tensor:
    """``get_cam_feats`` and ``bev_pool``: write out every product, sort it, sum it."""
    bins = len(depth) // len(context)
    probability = depth.view(6, 1, bins, -1)
    features = context.view(6, -1, context.shape[1]).mT[:, :, None]
    lifted = (probability * features).permute(0, 2, 3, 1).reshape(-1, context.shape[1])
    lifted = lifted[points]
    return lifted.new_zeros(num_cells, lifted.shape[1]).index_add_(0, cells, lifted)


def forward(model: BEVFusion, batch: Batch, *, reference: bool) -> None:
    if not reference:
        model(batch)
        return
    with (
        patch.object(lift_splat, "bev_pool", reference_pool),
        patch.object(module.DepthLSSTransform, "geometry", reference_geometry),
    ):
        model(batch)


# The measurements, in processes of their own with one thread


class Alone:
    """A fresh process that does one thing after the other."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,))

    def __call__(self, work: Callable[..., Any], *arguments: object) -> Any:
        return self.pool.submit(work, *arguments).result()


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@cache
def ready(reference: bool) -> tuple[BEVFusion, Batch]:
    if not reference:
        keep_freed_memory()
    return network(), frame()


def time_forward(reference: bool) -> float:
    model, batch = ready(reference)
    with torch.inference_mode():
        return seconds(lambda: forward(model, batch, reference=reference))


def forward_memory() -> float:
    """Return the peak of a process that does nothing but two forward passes, in GiB."""
    time_forward(False)
    time_forward(False)
    return peak_bytes() / GIB


def pool_inputs() -> dict[str, Any]:
    view = network().view_transform
    points, pixels, cells = view.pool_indices(frame())
    bins, height, width = view.frustum.shape[:3]
    depth = torch.randn(6, bins, height, width).softmax(1).flatten()
    context = torch.randn(6 * height * width, FULL.view_transform.out_channels)
    indices = {"points": points, "pixels": pixels, "cells": cells}
    return {"depth": depth, "context": context, "num_cells": 360 * 360, **indices}


def time_pool() -> list[tuple[float, float]]:
    inputs = pool_inputs()
    ours, reference = bev_pool(**inputs), reference_pool(**inputs)
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)
    return [
        (seconds(lambda: bev_pool(**inputs)), seconds(lambda: reference_pool(**inputs)))
        for _ in range(POOL_ROUNDS)
    ]


def pool_memory(pool: Callable[..., Tensor]) -> float:
    """Return by how much the process grows in the pooling, as a part of (points x channels)."""
    inputs = pool_inputs()
    RESET_PEAK.write_text("5")
    before = peak_bytes()
    pool(**inputs)
    return (peak_bytes() - before) / (len(inputs["points"]) * inputs["context"].shape[1] * 4)


def sparse_difference() -> float:
    """Return the largest difference of the sparse encoder's output with 2 threads and with 1."""
    model = network()
    inputs: NetworkInput = model.prepare(frame())
    maps = []
    with torch.inference_mode():
        for threads in (1, 2, 2, 2):
            torch.set_num_threads(threads)
            maps.append(model.pts_middle_encoder(inputs.voxels, inputs.rules, inputs.sites, 1))
    assert maps[0].abs().max() > 0
    return max(float((other - maps[0]).abs().max()) for other in maps[1:])


def peak_bytes() -> int:
    """Return the highest resident memory of this process; Linux only."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measure() -> Sequence[Row]:
    ours, reference = Alone(), Alone()
    ours(time_forward, False), reference(time_forward, True)  # the first pass is slower
    passes = [(ours(time_forward, False), reference(time_forward, True)) for _ in range(ROUNDS)]
    pools = Alone()(time_pool)
    return [
        of_runs(
            "forward, 1 thread: speed-up over the same network with the reference's geometry, "
            "BEV pool and memory",
            "at least",
            1.3,
            [other / own for own, other in passes],
        ),
        of_runs(
            f"forward, 1 thread: speed-up over the {REFERENCE_SECONDS} s that the reference took "
            "on another, idle machine",
            "at least",
            1.3,
            [REFERENCE_SECONDS / own for own, _ in passes],
        ),
        of_runs(
            f"forward: peak memory of the process, part of the reference's {REFERENCE_GIB} GiB",
            "at most",
            0.5,
            [Alone()(forward_memory) / REFERENCE_GIB],
        ),
        of_runs(
            "BEV pool: speed-up over a (points x channels) tensor",
            "at least",
            8,
            [other / own for own, other in pools],
        ),
        of_runs(
            "BEV pool: memory growth, part of a (points x channels) tensor",
            "at most",
            0.2,
            [Alone()(pool_memory, bev_pool)],
        ),
        of_runs(
            "sparse encoder: largest difference of 2 threads from 1",
            "at most",
            0,
            [Alone()(sparse_difference)],
        ),
    ]


if __name__ == "__main__":
    report(f"float_forward on {cpu_name()}", measure)
