"""The networks by the names under which the command line knows them."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from bevquant.data import preprocess
from bevquant.data.preprocess import Preprocess
from bevquant.errors import BevquantError
from bevquant.models.bevfusion import FULL, SMALL, BEVFusion, BEVFusionConfig
from bevquant.models.weights import import_checkpoint, load_weights


@dataclass(frozen=True)
class Network:
    """A network before it has weights.

    Attributes:
        config: what it is made of.
        preprocess: what becomes of a frame before it enters the network.
    """

    config: BEVFusionConfig
    preprocess: Preprocess

    def load(self, path: Path, old_boxes: bool | None = None) -> BEVFusion:
        """Build the network with the weights of ``path``, in evaluation mode.

        Args:
            path: our own ``.safetensors``, or anything else as a checkpoint of
                mmdetection3d.
            old_boxes: see :func:`~bevquant.models.weights.import_checkpoint`.

        Raises:
            BevquantError: the file is missing, damaged, or of another model.
        """
        model = BEVFusion(self.config).eval()
        if path.suffix == ".safetensors":
            load_weights(model, path)
        else:
            import_checkpoint(model, path, old_boxes)
        return model


NETWORKS = {
    "bevfusion": Network(FULL, preprocess.FULL),
    "bevfusion_small": Network(SMALL, preprocess.SMALL),
}


def network(name: str) -> Network:
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
