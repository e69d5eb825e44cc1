"""The networks by the names under which the command line knows them."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from bevquant.data import preprocess
from bevquant.data.labels import MapGrid
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import Preprocess
from bevquant.errors import BevquantError
from bevquant.models import bevdepth, bevfusion, occupancy, petr, segmentation
from bevquant.models.bevdepth import BEVDepth
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.camera import CameraDetector
from bevquant.models.dense import DenseNetwork
from bevquant.models.occupancy import BEVOccupancy
from bevquant.models.petr import PETR
from bevquant.models.segmentation import BEVSegmentation
from bevquant.models.weights import import_checkpoint, load_weights

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Network(Generic[M]):
    """A network before it has weights.

    Attributes:
        build: makes it, with random weights.
        preprocess: what becomes of a frame before it enters the network.
        past_images: of how many earlier key frames it sees the images too.
        map_grid: cells of the map labels it is measured on, if it is.
        occupancy: whether it is measured on occupancy labels.
    """

    build: Callable[[], M]
    preprocess: Preprocess
    past_images: int = 0
    map_grid: MapGrid | None = None
    occupancy: bool = False

    def load(self, path: Path, old_boxes: bool | None = None) -> M:
        """Build the network with the weights of ``path``, in evaluation mode.

        Args:
            path: our own ``.safetensors``, or anything else as a public checkpoint.
            old_boxes: see :func:`~bevquant.models.weights.import_checkpoint`.

        Raises:
            BevquantError: the file is missing, damaged, or of another model.
        """
        model = self.build().eval()
        if path.suffix == ".safetensors":
            load_weights(model, path)
        else:
            import_checkpoint(model, path, old_boxes)
        return model

    def dataset(
        self, root: Path, version: str, split: str, *, limit: int | None = None
    ) -> NuScenesDataset:
        """Open a split with the sweeps and labels that belong to the network."""
        return NuScenesDataset(
            root,
            version,
            split,
            sweeps=self.preprocess.sweeps,
            past_images=self.past_images,
            limit=limit,
            map_grid=self.map_grid,
            occupancy=self.occupancy,
        )


DETECTORS = {
    "bevfusion": Network(partial(BEVFusion, bevfusion.FULL), preprocess.FULL),
    "bevfusion_small": Network(partial(BEVFusion, bevfusion.SMALL), preprocess.SMALL),
}

CAMERA: dict[str, Network[CameraDetector]] = {
    "bevdepth4d": Network(
        partial(BEVDepth, bevdepth.FULL),
        Preprocess(
            image_size=bevdepth.FULL.image_size,
            image_resize=0.44,
            point_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
            sweeps=0,
        ),
        past_images=1,
    ),
    "bevdepth4d_small": Network(
        partial(BEVDepth, bevdepth.SMALL),
        preprocess.SMALL.model_copy(update={"sweeps": 0}),
        past_images=1,
    ),
    "petr": Network(
        partial(PETR, petr.FULL),
        Preprocess(
            image_size=petr.FULL.image_size,
            image_resize=0.9,
            point_range=petr.FULL.head.point_range,
            sweeps=0,
        ),
    ),
    "petr_small": Network(
        partial(PETR, petr.SMALL), preprocess.SMALL.model_copy(update={"sweeps": 0})
    ),
}
"""Detectors without LiDAR; its points, of the key frame alone, only teach them depth."""

DENSE: dict[str, Network[DenseNetwork]] = {
    "bevfusion_seg": Network(
        partial(BEVSegmentation, segmentation.FULL),
        preprocess.FULL.model_copy(update={"point_range": segmentation.FULL.point_range}),
        map_grid=segmentation.FULL.map_head.grid,
    ),
    "bevfusion_seg_small": Network(
        partial(BEVSegmentation, segmentation.SMALL),
        preprocess.SMALL,
        map_grid=segmentation.SMALL.map_head.grid,
    ),
    "bevfusion_occ": Network(
        partial(BEVOccupancy, occupancy.FULL), preprocess.FULL, occupancy=True
    ),
    "bevfusion_occ_small": Network(
        partial(BEVOccupancy, occupancy.SMALL), preprocess.SMALL, occupancy=True
    ),
}

NETWORKS: dict[str, Network[Any]] = {**DETECTORS, **CAMERA, **DENSE}


CHECKPOINTS = Path(__file__).parent / "checkpoints"


def shipped(name: str) -> Path:
    """Return where the trained weights of the network called ``name`` come with the package."""
    return CHECKPOINTS / f"{name}_world.safetensors"


def network(name: str) -> Network[Any]:
    """Return the network called ``name``.

    Raises:
        BevquantError: there is none; the message names the nearest.
    """
    if name not in NETWORKS:
        nearest = get_close_matches(name, NETWORKS, n=1, cutoff=0.0)[0]
        raise BevquantError(
            f"model {name!r} is unknown; did you mean {nearest!r}? available: {', '.join(NETWORKS)}"
        )
    return NETWORKS[name]
