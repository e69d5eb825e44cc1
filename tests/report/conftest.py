"""TEST DATA, made up: a results object and two pictures. No network was measured."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from bevquant.data.frame import CLASSES, Boxes
from bevquant.report.claims import check_claims
from bevquant.report.results import (
    Ablation,
    ClassMetrics,
    Dataset,
    DeployedMetrics,
    FloatMetrics,
    Metrics,
    Provenance,
    Results,
    Score,
    SimulatedMetrics,
    Unquantized,
)
from bevquant.report.scene import CameraView, FramePicture, count

NO_ORIENTATION = ("traffic_cone",)
NO_VELOCITY = ("traffic_cone", "barrier")
CAMERA_YAWS = {
    "front left": 145.0,
    "front": 90.0,
    "front right": 35.0,
    "back left": 200.0,
    "back": 270.0,
    "back right": 340.0,
}
SIZE = (352, 198)


def made_up_metrics(NDS: float, mAP: float, seed: int) -> Metrics:
    random = np.random.default_rng(seed)
    per_class = {}
    for label in CLASSES:
        ap, ate, ase, aoe, ave, aae = random.uniform(0.02, 0.98, 6)
        per_class[label] = ClassMetrics(
            AP=min(1.0, mAP * (0.5 + ap)),
            ATE=ate,
            ASE=ase,
            AOE=None if label in NO_ORIENTATION else aoe,
            AVE=None if label in NO_VELOCITY else 2 * ave,
            AAE=None if label in NO_VELOCITY else aae,
        )
    mate, mase, maoe, mave, maae = random.uniform(0.1, 0.9, 5)
    return Metrics(
        NDS=NDS,
        mAP=mAP,
        frames=80,
        mATE=mate,
        mASE=mase,
        mAOE=maoe,
        mAVE=mave,
        mAAE=maae,
        per_class=per_class,
    )


def made_up_results(pictures: tuple[FramePicture, ...]) -> Results:
    bits = 60_817_408
    float_ = FloatMetrics(**made_up_metrics(0.5581, 0.5713, 0).model_dump(), weight_bits=bits)

    def simulated(NDS: float, mAP: float, width: int, tensor: bool = False) -> SimulatedMetrics:
        return SimulatedMetrics(
            **made_up_metrics(NDS, mAP, width + tensor).model_dump(),
            scheme="per-tensor activations" if tensor else "per-channel activations",
            weight_bits=bits * width // 32,
            relative_weight_bits=width / 32,
        )

    simulations = {
        "W2A8": simulated(0.0123, 0.0004, 2),
        "W4A8": simulated(0.5077, 0.4952, 4),
        "W8A8": simulated(0.5562, 0.5681, 8),
        "W8A8 per tensor": simulated(0.5541, 0.5657, 8, tensor=True),
        "W16A16": simulated(0.5580, 0.5712, 16),
    }
    deployed = DeployedMetrics(
        **made_up_metrics(0.5532, 0.5650, 9).model_dump(),
        precision="W8A8",
        simulated="W8A8 per tensor",
        engine="OpenVINO 2026.4.1",
        threads=2,
        latency_ms=41.27,
        latency_spread_ms=1.93,
        fp32_latency_ms=72.66,
        fp32_latency_spread_ms=3.41,
        memory_bytes=181_000_000,
        fp32_memory_bytes=263_000_000,
        file_bytes=2_204_511,
        fp32_file_bytes=8_123_904,
        integer_layers=88,
        quantizable_layers=91,
    )
    ablation = Ablation(
        images_blanked=Score(NDS=0.4413, mAP=0.4228, frames=80),
        lidar_half_beams=Score(NDS=0.5102, mAP=0.5011, frames=80),
    )
    norms = [
        Unquantized(
            name=f"img_backbone.stages.{stage}.blocks.{block}.norm{part}",
            kind="LayerNorm",
            reason="normalises, no product to quantize",
        )
        for stage in range(4)
        for block in range(2)
        for part in (1, 2)
    ]
    head = Unquantized(
        name="bbox_head.decoder.0.self_attn.attn",
        kind="Softmax",
        reason="<attention> & softmax lose more than they save",
    )
    return Results(
        network="a made-up network (test data)",
        dataset=Dataset(
            name="test world",
            version="v1.0-world",
            split="world_val",
            kind="generated world",
            scenes=8,
            frames=80,
        ),
        float=float_,
        simulated=simulations,
        deployed=deployed,
        ablation=ablation,
        claims=check_claims(float_, simulations, deployed, ablation),
        unquantized=(*norms, head),
        pictures=tuple(map(count, pictures)),
        seconds={"world": 41.26, "float": 12.91, "simulated": 64.38, "deployed": 9.07},
        provenance=Provenance(
            command="bevquant demo --out bevquant-demo --seed 0",
            versions={"bevquant": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
            commit="0123456789abcdef0123456789abcdef01234567",
            cpu="Some Processor 9000 @ 2.00 GHz",
            cores=2,
            seed=7,
            data_fingerprint="1f2e3d4c" * 8,
            checkpoint_sha256="a1b2c3d4" * 8,
            quick=False,
        ),
    )


def made_up_picture(seed: int) -> FramePicture:
    """Return a frame in which the quantized network loses 3 objects and adds 2 false ones."""
    random = np.random.default_rng(seed)
    count_, lost = 34, 3
    place = random.uniform(-46, 46, (count_, 2))
    place[np.linalg.norm(place, axis=1) < 5] += 9
    labels = random.integers(0, len(CLASSES), count_)
    size = np.array([[4.6, 1.9, 1.7], [0.7, 0.7, 1.8]])[(labels > 7).astype(int)]
    yaw = random.choice([0.0, np.pi / 2, np.pi], (count_, 1)) + random.normal(0, 0.1, (count_, 1))
    values = np.hstack([place, np.full((count_, 1), -1.0), size, yaw, np.zeros((count_, 2))])
    truth = Boxes(torch.tensor(values, dtype=torch.float32), torch.tensor(labels))

    def detected(kept: slice, extra: int) -> Boxes:
        near = values[kept].copy()
        near[:, :2] += random.normal(0, 0.2, (len(near), 2))
        false = values[:extra].copy()
        false[:, :2] = random.uniform(-40, 40, (extra, 2))
        return Boxes(
            torch.tensor(np.vstack([near, false]), dtype=torch.float32),
            torch.tensor(np.concatenate([labels[kept], labels[:extra]])),
            torch.tensor(random.uniform(0.4, 0.95, len(near) + extra), dtype=torch.float32),
        )

    angle = random.uniform(0, 2 * np.pi, 9000)
    radius = random.gamma(2, 12, 9000)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return FramePicture(
        title=f"scene-000{seed}, key frame 4: night, rain (made up)",
        points=points.astype(np.float32),
        cameras=tuple(made_up_view(name, yaw) for name, yaw in CAMERA_YAWS.items()),
        truth=truth,
        float_=detected(slice(4, None), 0),
        quantized=detected(slice(4 + lost, None), 2),
        quantized_name="deployed W8A8",
        min_score=0.3,
    )


def made_up_view(name: str, degrees: float) -> CameraView:
    """Return an image of sky and ground by a level camera that looks along ``degrees``."""
    yaw, focal = np.deg2rad(degrees), 0.75 * SIZE[0]
    forward, right = (np.cos(yaw), np.sin(yaw)), (np.sin(yaw), -np.cos(yaw))
    camera = np.array([[*right, 0, 0], [0, 0, -1, 0], [*forward, 0, 0], [0, 0, 0, 1.0]])
    pixels = np.array(
        [[focal, 0, SIZE[0] / 2, 0], [0, focal, SIZE[1] / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )
    image = Image.new("RGB", SIZE, (120, 150, 190))
    ImageDraw.Draw(image).rectangle((0, SIZE[1] // 2, *SIZE), fill=(92, 96, 92))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=80)
    return CameraView(name, encoded.getvalue(), SIZE, pixels @ camera)


@pytest.fixture(scope="session")
def pictures() -> tuple[FramePicture, ...]:
    return made_up_picture(1), made_up_picture(2)


@pytest.fixture(scope="session")
def results(pictures: tuple[FramePicture, ...]) -> Results:
    return made_up_results(pictures)
