"""Weights on disk: our own files (safetensors), and public mmdetection3d checkpoints.

Nothing is ever loaded with silent gaps: names and shapes must match exactly.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.models.bevfusion.encoder import FUSING, REFINING, BEVEncoder
from bevquant.models.pickled import read_state
from bevquant.tensors import read_tensors, write_tensors

IMAGE_BRANCH = ("img_backbone", "img_neck")
"""Main modules that turn images into features."""

LISTED = 5
"""Names that an error spells out of a longer list."""

OLD_PREFIX = "vtransform."
"""What ``view_transform.`` was called in checkpoints converted from the MIT code."""

MIT_PREFIXES = {
    "encoders.camera.backbone.": "img_backbone.",
    "encoders.camera.neck.": "img_neck.",
    "encoders.camera.vtransform.": "view_transform.",
    "encoders.lidar.backbone.": "pts_middle_encoder.",
    "fuser.": "fusion_layer.",
    "decoder.backbone.": "pts_backbone.",
    "decoder.neck.": "pts_neck.",
    "heads.map.": "map_head.",
}
"""Names of the main modules in the code of BEVFusion's authors, and ours."""

BOX_HEAD = "bbox_head.prediction_heads.0"


def save_weights(module: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the state of ``module`` to ``path`` (safetensors), atomically, with a checksum.

    Args:
        module: whose parameters and persistent buffers to write.
        path: the file.
        metadata: texts kept in the file's header.

    Raises:
        BevquantError: ``path`` cannot be written.
    """
    state = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    write_tensors(path, state, metadata or {})


def load_weights(module: nn.Module, path: Path) -> dict[str, str]:
    """Load a file of :func:`save_weights` into ``module``.

    Returns:
        The metadata of the file.

    Raises:
        BevquantError: the file is missing, damaged, or of another model.
    """
    state, metadata = _read(path)
    load_state(module, state, path)
    return metadata


def load_encoder(model: BEVEncoder, path: Path) -> None:
    """Load the weights of another network's encoder; the head of ``model`` stays as it is.

    Raises:
        BevquantError: the file is missing, damaged, or of another encoder.
    """
    _load_parts(model, (*FUSING, *REFINING), path)


def load_camera(camera: nn.Module, path: Path) -> None:
    """Load another network's image backbone and neck.

    Args:
        camera: holds ``img_backbone`` and ``img_neck``; its other modules stay as they are.
        path: a file of :func:`save_weights`, of a BEVFusion or of a camera-only detector.

    Raises:
        BevquantError: the file is missing, damaged, or its image branch is another.
    """
    _load_parts(camera, IMAGE_BRANCH, path, "backbone.")  # where a BEVDepth has its image branch


def import_checkpoint(module: nn.Module, path: Path, old_boxes: bool | None = None) -> None:
    """Load a public checkpoint of BEVFusion into ``module``.

    Names are mmdetection3d's, or those of the authors' own code (map segmentation).

    Sparse kernels in the layout of spconv 1 ([kx, ky, kz, in, out]) are recognised by
    their shape. Heads trained in the box convention before mmdetection3d 1.0 (width
    before length, yaw clockwise from -y) are converted to today's.

    Args:
        module: a full :class:`~bevquant.models.bevfusion.BEVFusion`, or a network with
            another head on its encoder.
        path: a file of ``torch.save``; what it holds beside the weights is ignored.
        old_boxes: whether the file has the old convention; ``None`` takes the old name of
            the view transform as the sign of it.

    Raises:
        BevquantError: the file is missing, damaged, or of another model.
    """
    state = read_state(path)
    if old_boxes is None:
        old_boxes = any(name.startswith(OLD_PREFIX) for name in state)
    state = {_our_name(name): value for name, value in state.items()}
    expected = module.state_dict()
    state = {
        name: _second_layout(value, expected[name]) if name in expected else value
        for name, value in state.items()
    }
    if old_boxes and not _differences(expected, state):
        state |= _today_boxes(state)
    load_state(module, state, path)


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load ``state`` strictly.

    Raises:
        BevquantError: names or shapes differ; the message lists what is missing, left
            over, or of another shape.
    """
    differences = _differences(module.state_dict(), state)
    if differences:
        raise BevquantError(f"{source}: the weights of another model: {'; '.join(differences)}")
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise BevquantError(f"{source}: {name} holds NaN or infinity; restore the checkpoint")
    module.load_state_dict(state, strict=True)


def _load_parts(module: nn.Module, names: Sequence[str], path: Path, prefix: str = "") -> None:
    parts = nn.ModuleDict({name: module.get_submodule(name) for name in names})
    state = {name.removeprefix(prefix): value for name, value in _read(path)[0].items()}
    shared = {name: value for name, value in state.items() if name.partition(".")[0] in names}
    load_state(parts, shared, path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return weights and metadata of a file of :func:`save_weights`."""
    if not path.is_file():
        raise BevquantError(f"{path}: no such weights file")
    file = read_tensors(path)
    file.check()
    return file.tensors, file.metadata


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Say in a few phrases how the names and shapes differ."""
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    phrases = [
        _phrase("missing", [name for name in expected if name not in given]),
        _phrase("left over", [name for name in given if name not in expected]),
        _phrase("of another shape", shapes),
    ]
    return [phrase for phrase in phrases if phrase]


def _phrase(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {title} ({', '.join(names[:LISTED])}{more})"


def _our_name(name: str) -> str:
    if name.startswith(OLD_PREFIX):
        return f"view_{name.removeprefix('v')}"
    for theirs, ours in MIT_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _second_layout(weight: Tensor, expected: Tensor) -> Tensor:
    """Bring a sparse kernel to the layout of spconv 2 if only that is wrong with it."""
    if weight.ndim != 5 or weight.shape == expected.shape:
        return weight
    permuted = weight.permute(4, 0, 1, 2, 3)
    return permuted.contiguous() if permuted.shape == expected.shape else weight


def _today_boxes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the last layers that predict size and yaw.

    yaw = -old - pi/2, so (sin, cos) = (-old cos, -old sin); length and width swap.
    """
    converted = {}
    for part in ("weight", "bias"):
        size, rotation = f"{BOX_HEAD}.dim.1.{part}", f"{BOX_HEAD}.rot.1.{part}"
        converted[size] = state[size][[1, 0, 2]]
        converted[rotation] = -state[rotation][[1, 0]]
    return converted
