import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import SMALL as PREPROCESS
from bevquant.data.preprocess import collate
from bevquant.deploy.artefact import read
from bevquant.deploy.bench import bench
from bevquant.deploy.engines import open_engine
from bevquant.deploy.export import METADATA_KEY, export, export_float, export_module
from bevquant.deploy.latency import latency_table
from bevquant.deploy.lint import lint
from bevquant.deploy.measurement import STAGE_OF, STAGES, Candidate
from bevquant.deploy.profile import Profile
from bevquant.deploy.runtime import flatten, load
from bevquant.deploy.size import file_size
from bevquant.errors import BevquantError
from bevquant.models.bevfusion import SMALL, BEVFusion, HeadOutput
from bevquant.quant.calibrate import calibrate
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply, quantize
from bevquant.quant.size import Size, model_size
from bevquant.quant.spec import W2A8, W4A8, W8A8, W16A16
from bevquant.search.costs import latency
from bevquant.search.space import space

TINY = SMALL.model_copy(
    update={
        "img_backbone": SMALL.img_backbone.model_copy(update={"depths": (1, 1, 2)}),
        "pts_backbone": SMALL.pts_backbone.model_copy(update={"layers": (0, 0, 1)}),
        "bbox_head": SMALL.bbox_head.model_copy(update={"num_proposals": 20}),
    }
)


@pytest.fixture(scope="module")
def batches(tiny_world: Path) -> list[Batch]:
    frames = [
        NuScenesDataset(tiny_world, "v1.0-world", split, sweeps=1).frame(0)
        for split in ("world_train", "world_val")
    ]
    return [collate([frame], PREPROCESS) for frame in frames]


@dataclasses.dataclass
class Exported:
    """A network of random weights, float and quantized, as files and as simulations."""

    float_file: Path
    file: Path
    float_model: BEVFusion
    model: BEVFusion


def random_model() -> BEVFusion:
    torch.manual_seed(0)
    model = BEVFusion(TINY).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def exported(batches: list[Batch], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("deployed")
    float_model, model = random_model(), random_model()
    sample = model.prepare(batches[0])
    fold_batchnorm(model, batches[0])
    quantize(model, BitPolicy({"*": W8A8, "*_matmul": None}))
    calibrate(model, batches)
    export(model, sample, PREPROCESS, folder / "int8.onnx")
    export_float(model, sample, PREPROCESS, folder / "float.onnx")
    return Exported(folder / "float.onnx", folder / "int8.onnx", float_model, model)


def decibels(y: np.ndarray, wanted: np.ndarray) -> float:
    noise = ((y - wanted) ** 2).sum()
    return float(10 * np.log10((wanted**2).sum() / noise))


def file_size_of(path: Path) -> Size:
    artefact = read(path)
    return file_size([model for _, model in artefact.parts], artefact.total)


@pytest.mark.parametrize("engine", ["openvino", "literal"])
def test_a_float_file_computes_what_the_network_computes(engine, exported, batches):
    deployed = load(exported.float_file, engine)
    for batch in batches:  # other points, other numbers of voxels
        output = deployed.network(deployed.prepare(batch))
        with torch.no_grad():
            expected = exported.float_model(batch)
        torch.testing.assert_close(
            output.dense_heatmap, expected.dense_heatmap, atol=1e-4, rtol=1e-4
        )
        # Queries of nearly the same heat may swap ranks.
        same = (output.query_cells == expected.query_cells)[0]
        assert same.float().mean() > 0.8
        for name in ("center", "height", "dim", "rot", "vel", "heatmap", "query_heatmap_score"):
            y, wanted = (getattr(result, name)[..., same] for result in (output, expected))
            torch.testing.assert_close(y, wanted, atol=1e-3, rtol=1e-3, msg=name)


def test_the_quantized_file_computes_what_was_simulated(exported, batches):
    literal, deployed = (load(exported.file, engine) for engine in ("literal", "openvino"))
    arrays = deployed.prepare(batches[1])
    with torch.no_grad():
        simulated = exported.model(batches[1]).dense_heatmap.numpy()
        original = exported.float_model(batches[1]).dense_heatmap.numpy()
    assert decibels(literal.network(arrays).dense_heatmap.numpy(), simulated) > 60
    agreement = decibels(deployed.network(arrays).dense_heatmap.numpy(), simulated)
    assert agreement > 3 + decibels(simulated, original)


def test_every_quantized_layer_runs_in_integers(exported):
    engine = load(exported.file).engine
    quantized = [name for name, bits in engine.precisions.items() if bits == "W8A8"]
    assert len(quantized) > 40
    assert set(engine.integer_layers) == set(quantized)
    left = {name.rpartition(".")[2] for name in engine.precisions if name not in quantized}
    assert left == {"q_k_matmul", "attn_v_matmul"}


def test_a_file_is_all_it_takes(exported, batches):
    deployed = load(exported.file, threads=2)
    assert deployed.preprocess == PREPROCESS
    assert deployed.model.config == TINY
    (boxes,) = deployed(batches[0])
    assert len(boxes.values) == len(boxes.labels) == len(boxes.scores) <= 20


def test_raw_frames_are_answered_with_what_their_sensors_delivered(exported, tiny_world):
    deployed = load(exported.file)
    frame = NuScenesDataset(tiny_world, "v1.0-world", "world_val", sweeps=1).frame(0)
    whole = deployed.detect(frame)
    assert whole.degraded == ()
    (boxes,) = deployed(collate([frame], PREPROCESS))
    assert whole.boxes.values.equal(boxes.values)
    blind = (np.zeros_like(frame.images[0]), *frame.images[1:])
    for broken, named in (
        (dataclasses.replace(frame, points=frame.points[:0]), "LiDAR"),
        (dataclasses.replace(frame, images=blind), "CAM_FRONT"),
    ):
        answer = deployed.detect(broken)
        assert len(answer.degraded) == 1 and named in answer.degraded[0]
        assert answer.boxes.values.shape == (len(answer.boxes.labels), 9)
        assert answer.boxes.values[:, :7].isfinite().all()


def test_split_by_main_module_it_computes_the_same(exported, batches, tmp_path):
    model, path = exported.model, tmp_path / "net.json"
    export(model, model.prepare(batches[0]), PREPROCESS, path)
    assert {name for name, _ in read(path).parts} == {name for name, _ in model.named_children()}
    assert load(path).engine.integer_layers == load(exported.file).engine.integer_layers
    parts, whole = load(path, "literal"), load(exported.file, "literal")
    arrays = parts.prepare(batches[1])
    for y, wanted in zip(parts.engine(arrays), whole.engine(arrays), strict=True):
        np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_verdicts_on_a_whole_network_are_what_the_engine_executes(exported, engine):
    expected = {verdict.layer for verdict in lint(exported.file, engine) if not verdict.reason}
    assert len(expected) > 30
    assert set(load(exported.file, engine).engine.integer_layers) == expected


def test_a_mixed_file_has_the_size_that_was_computed(exported, batches, tmp_path):
    model, sample = exported.model, exported.model.prepare(batches[0])
    before = model_size(model)
    assert before.weights == file_size_of(exported.file).weights
    rest = exported.file.stat().st_size - before.weights - before.scales
    policy = {"*": W4A8, "pts_*": W2A8, "bbox_head.*": W8A8, "img_neck.*": W16A16}
    apply(model, BitPolicy({**policy, "*_matmul": None}))
    computed = model_size(model)
    try:
        size = export(model, sample, PREPROCESS, tmp_path / "mixed.onnx")
    finally:
        apply(model, BitPolicy({"*": W8A8, "*_matmul": None}))
    assert size.weights == computed.weights < 0.6 * before.weights
    assert size.total == (tmp_path / "mixed.onnx").stat().st_size
    assert size.total == pytest.approx(computed.weights + computed.scales + rest, rel=0.01)


def test_the_packed_file_is_small(exported):
    assert exported.file.stat().st_size < 0.31 * exported.float_file.stat().st_size


def test_several_frames_are_refused(exported, batches, tmp_path):
    both = [frame for batch in batches for frame in batch.points]
    model = exported.float_model
    double = dataclasses.replace(
        batches[0],
        points=tuple(both),
        **{
            field.name: torch.cat([getattr(batch, field.name) for batch in batches])
            for field in dataclasses.fields(Batch)
            if isinstance(getattr(batches[0], field.name), torch.Tensor)
        },
    )
    with pytest.raises(BevquantError, match="2 frames"):
        export(model, model.prepare(double), PREPROCESS, tmp_path / "x.onnx")
    with pytest.raises(BevquantError, match="the file takes"):
        load(exported.float_file)(double)


def test_other_files_are_named(exported, tmp_path):
    path = tmp_path / "other.onnx"
    export_module(torch.nn.ReLU(), [torch.zeros(3)], path)
    with pytest.raises(BevquantError, match="holds no BEVFusion"):
        load(path)
    settings = {"config": {**TINY.model_dump(mode="json"), "neck_channels": "many"}}
    metadata = {METADATA_KEY: settings}
    export_module(torch.nn.ReLU(), [torch.zeros(3)], path, metadata=metadata)
    with pytest.raises(BevquantError, match="another version"):
        load(path)


def test_bench_measures_files_on_the_same_frames(exported, tiny_world):
    dataset = NuScenesDataset(tiny_world, "v1.0-world", "world_train", sweeps=1)
    candidates = [Candidate(exported.float_file), Candidate(exported.file)]
    original, quantized = bench(candidates, dataset, rounds=2, frames=1)
    assert quantized.file_bytes == exported.file.stat().st_size
    assert original.integer_layers == 0 < quantized.integer_layers < quantized.quantizable_layers
    assert quantized.footprint.weight_bytes < 0.35 * original.footprint.weight_bytes
    for result in (original, quantized):
        assert len(result.latency.runs) == 2
        assert set(result.modules) == set(STAGE_OF)
        assert all(timing.median_ms > 0 for timing in result.modules.values())
        for i, whole in enumerate(result.latency.runs):
            parts = {name: timing.runs[i] for name, timing in result.stages.items()}
            assert set(parts) == set(STAGES)
            assert sum(parts.values()) == pytest.approx(whole, rel=1e-3)
            # What the engine does outside of the main modules is next to nothing.
            assert 0 < parts["other"] < 0.2 * result.network.runs[i]
        footprint = result.footprint
        assert footprint.load_seconds > 0
        # The engine holds what the file does: nothing unfolds to a large constant at load.
        assert 0.7 < footprint.weight_bytes / result.file_bytes < 1.2
        loaded, peak = footprint.loaded_bytes, footprint.peak_bytes
        assert loaded is None or 2**20 < loaded < peak < 2**32


def test_an_engine_without_counters_is_named(exported):
    with pytest.raises(BevquantError, match="OpenVINO"):
        Profile(open_engine(exported.float_file, "literal"))


def test_a_profile_accounts_for_the_whole_run(exported, batches):
    for file in (exported.float_file, exported.file):
        deployed = load(file)
        profile = Profile(deployed.engine)
        arrays = deployed.prepare(batches[0])
        shares = []
        for _ in range(4):
            start = time.perf_counter()
            outputs, spent = profile(arrays)
            seconds = time.perf_counter() - start
            shares.append(sum(spent.values()) / 1e3 / seconds)
            assert len(outputs) == len(HeadOutput._fields)
        assert 0.8 < np.median(shares) < 1.01
        parts = set(deployed.engine.precisions) | set(STAGE_OF) | {""}
        assert set(spent) <= parts
        # A layer that is fused with another, or that is its own output, may be missing.
        assert len(set(spent) & set(deployed.engine.precisions)) > 0.7 * len(spent)


def test_the_search_takes_a_measured_latency_table(exported, batches):
    arrays = flatten(exported.model.prepare(batches[0]))
    table = latency_table(exported.float_file, exported.file, [arrays], rounds=3)
    profile = Profile(open_engine(exported.float_file))
    layers = [sum(profile(arrays)[1].get(layer, 0.0) for layer in table) for _ in range(4)]
    total = sum(times["float"] for times in table.values())
    assert 0.3 * min(layers) < total < 3 * max(layers)
    for times in table.values():
        assert times["W2A8"] == times["W4A8"] == times["W8A8"] >= 0
        assert times["W16A16"] == times["float"] >= 0
    free = space(exported.model, pinned={"*matmul*": None})
    cost = latency(table)(exported.model, free)
    assert cost.float_value == pytest.approx(total)
    lowest, highest = (cost(tuple(pick(range(n)) for n in free.sizes)) for pick in (min, max))
    assert highest == pytest.approx(total)
    matmuls = sum(times["float"] for name, times in table.items() if "matmul" in name)
    rest = sum(times["W2A8"] for name, times in table.items() if "matmul" not in name)
    assert lowest == pytest.approx(matmuls + rest)
