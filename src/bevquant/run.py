"""What a verb of the command line does: data, network and quantizer put together."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from bevquant.data import preprocess
from bevquant.data.frame import Batch, Frame
from bevquant.data.labels import OCCUPANCY_ORIGIN
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.data.world.generate import generate
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.errors import BevquantError
from bevquant.files import read_json
from bevquant.memory import keep_freed_memory
from bevquant.metrics.agreement import CERTAIN
from bevquant.models.bevfusion import SMALL, BEVFusion
from bevquant.models.camera import CameraDetector
from bevquant.models.weights import load_camera, load_encoder, load_weights
from bevquant.models.zoo import CAMERA, DENSE, DETECTORS, Network, shipped
from bevquant.progress import console
from bevquant.quant.calibrate import calibrate
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import quantize
from bevquant.quant.spec import DEPLOY, Precision, Scheme
from bevquant.recipe import CameraRecipe, TailRecipe, TrainRecipe, checked, load_recipe, read_recipe
from bevquant.report.above import draw_map, draw_voxels
from bevquant.report.look import draw_frame
from bevquant.train.fused import train_tail
from bevquant.train.loop import train
from bevquant.train.settings import DetectorSettings, OptimSettings

M = TypeVar("M", bound=nn.Module)

SHIPPED = shipped("bevfusion_small")
"""The trained small BEVFusion that comes with the package; its card lies beside it."""


def ensure_world(directory: Path, settings: WorldSettings, jobs: int) -> None:
    """Generate a world at ``directory`` unless the same one is there already.

    Raises:
        BevquantError: another world, or something else, is there.
    """
    record = directory / VERSION / "settings.json"
    if not record.exists():
        generate(directory, settings, jobs)
    elif checked(read_json(record), WorldSettings, record) != settings:
        raise BevquantError(
            f"{record}: the world there was made with other settings; choose another folder"
        )


def train_from(path: Path, out: Path | None, jobs: int) -> None:
    """Train as the recipe at ``path`` says; continues a stopped run.

    Args:
        path: of a BEVFusion, or of another network that starts with parts of the shipped one.
        out: run folder, ``runs/NAME`` by default.
        jobs: processes that generate the data.

    Raises:
        BevquantError: the recipe is invalid, or the folder belongs to another run.
    """
    model = str(read_recipe(path).get("model"))
    if model in CAMERA:
        camera = load_recipe(path, CameraRecipe)
        run_camera_training(camera, out or Path("runs") / camera.name, jobs)
    elif model in DENSE:
        tail = load_recipe(path, TailRecipe)
        run_tail_training(tail, out or Path("runs") / tail.name, jobs)
    else:
        recipe = load_recipe(path, TrainRecipe)
        run_training(recipe, out or Path("runs") / recipe.name, jobs)


def run_training(recipe: TrainRecipe, out: Path, jobs: int) -> None:
    """Train the small detector as the recipe says, in the run folder ``out``."""
    net = DETECTORS[recipe.model]
    _start_training(recipe.world, recipe.train, out, jobs)
    _train(net, net.build(), recipe.train, out)


def run_camera_training(recipe: CameraRecipe, out: Path, jobs: int) -> None:
    """Train a camera-only detector, its image branch trained before, in the run folder ``out``."""
    net = CAMERA[recipe.model]
    _start_training(recipe.world, recipe.train, out, jobs)
    model = net.build()
    load_camera(model.camera, shipped(recipe.image_branch))
    _train(net, model, recipe.train, out)


def run_tail_training(recipe: TailRecipe, out: Path, jobs: int) -> None:
    """Train a dense network on the shipped detector's encoder, in the run folder ``out``."""
    net = DENSE[recipe.model]
    _start_training(recipe.world, recipe.train, out, jobs)
    train_set = net.dataset(out / "world", VERSION, "world_train")
    train_set.check_points(net.preprocess)
    model = net.build()
    load_encoder(model, SHIPPED)
    train_tail(
        model,
        net.preprocess,
        train_set=train_set,
        val_set=net.dataset(out / "world", VERSION, "world_val"),
        settings=recipe.train,
        run_folder=out,
    )


def _train(
    net: Network[BEVFusion] | Network[CameraDetector],
    model: BEVFusion | CameraDetector,
    settings: DetectorSettings,
    out: Path,
) -> None:
    train_set = net.dataset(out / "world", VERSION, "world_train")
    train_set.check_points(net.preprocess)
    train(
        model,
        net.preprocess,
        train_set=train_set,
        val_set=net.dataset(out / "world", VERSION, "world_val"),
        settings=settings,
        run_folder=out,
    )


def _start_training(world: WorldSettings, settings: OptimSettings, out: Path, jobs: int) -> None:
    ensure_world(out / "world", world, jobs)
    keep_freed_memory()
    torch.set_num_threads(1)  # parts of a batch run side by side, one core each
    torch.manual_seed(settings.seed)


def load_small(checkpoint: Path | None = None) -> BEVFusion:
    """Return the small BEVFusion with the weights of ``checkpoint``, the shipped ones by default.

    Raises:
        BevquantError: the file is missing, broken, or of another network.
    """
    model = BEVFusion(SMALL).eval()
    load_weights(model, checkpoint or SHIPPED)
    return model


def calibration_batches(dataset: NuScenesDataset, frames: int) -> list[Batch]:
    """Return ``frames`` batches of one frame, evenly spread over ``dataset``."""
    step = max(1, len(dataset) // frames)
    indices = islice(range(0, len(dataset), step), frames)
    return [collate([dataset.frame(index)], preprocess.SMALL) for index in indices]


def deployable(precision: Precision) -> BitPolicy:
    """Return ``precision`` for every layer but the products of two attention activations.

    Those stay float: no engine gains anything from them as integers.
    """
    return BitPolicy({"*": precision, "*matmul*": None})


ENDS = (
    "img_backbone.patch_embed.projection",
    "view_transform.dtransform.0",
    "pts_middle_encoder.conv_input.0",
    "bbox_head.class_encoding",
    "*_posembed.position_embedding_head.0",
    "bbox_head.heatmap_head.1",
    "bbox_head.prediction_heads.*.1",
)
"""Layers of BEVFusion that read its inputs (images, depths, voxels, classes, positions) or
write its outputs."""


def ends_at_8_bits(precision: Precision) -> BitPolicy:
    """Return ``precision`` for every layer, 8-bit weights for the first and last of them."""
    ends = Precision(8, precision.activations)
    return BitPolicy({"*": precision, **dict.fromkeys(ENDS, ends)})


def quantize_small(
    model: M,
    batches: Sequence[Batch],
    precision: Precision | BitPolicy,
    scheme: Scheme = DEPLOY,
) -> M:
    """Fold, quantize and calibrate ``model`` in place, and return it."""
    fold_batchnorm(model, batches[0])
    quantize(model, precision, scheme)
    calibrate(model, batches)
    return model


def look_at_frame(data: Path, version: str, split: str, index: int, out: Path) -> None:
    """Draw one frame as the sensors and the annotators gave it.

    Raises:
        BevquantError: the split has no such frame, or one of its files is broken.
    """
    dataset = NuScenesDataset(data, version, split, sweeps=0)
    draw_frame(_frame(dataset, index), out)
    console.print(f"{out}: frame {index} of {split}, sample {dataset.tokens[index]}")


def look_at_labels(
    model: str,
    checkpoint: Path | None,
    data: Path,
    version: str,
    split: str,
    index: int,
    out: Path,
) -> None:
    """Draw what a dense network makes of one frame beside its labels, seen from above.

    Raises:
        BevquantError: the network labels no cells, the split has no such frame, or one of
            its files is missing or broken.
    """
    if model not in DENSE:
        raise BevquantError(f"model {model!r}: labels no cells; choose from {', '.join(DENSE)}")
    net = DENSE[model]
    dataset = net.dataset(data, version, split)
    frame = _frame(dataset, index)
    loaded = net.load(checkpoint or shipped(model))
    batch = collate([frame], net.preprocess)
    with torch.inference_mode():
        found = loaded.decode(loaded(batch))[0].numpy()
    if frame.map_masks is not None and net.map_grid is not None:
        draw_map(frame.map_masks, found >= CERTAIN, net.map_grid.reach, out)
    elif frame.occupancy is not None:
        truth, seen = frame.occupancy.semantics.numpy(), frame.occupancy.mask_camera.numpy()
        draw_voxels(truth, found, seen, -OCCUPANCY_ORIGIN[0], out)
    console.print(f"{out}: frame {index} of {split}, sample {frame.token}")


def _frame(dataset: NuScenesDataset, index: int) -> Frame:
    if index >= len(dataset):
        raise BevquantError(
            f"frame {index}: split {dataset.split!r} ends at frame {len(dataset) - 1}"
        )
    return dataset.frame(index)
