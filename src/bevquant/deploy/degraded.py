"""Frames that lack a sensor, brought into a form that a network can still answer."""

from dataclasses import replace

import numpy as np

from bevquant.data.frame import CAMERAS, Array, Frame
from bevquant.data.preprocess import Preprocess
from bevquant.errors import BevquantError


def mend(frame: Frame, preprocess: Preprocess) -> tuple[Frame, tuple[str, ...]]:
    """Replace what a sensor did not deliver by what says least.

    A camera is dead if its image is empty or of one colour; its image becomes the mean
    colour of the training images, which is 0 to the network. Without a single LiDAR point
    in range one point in the corner of the range stands in, as a network needs one voxel.
    Points that hold NaN or infinity are left out.

    Args:
        frame: as the sensors gave it; ``images[i]`` may be an empty array.
        preprocess: of the network.

    Returns:
        The frame, mended, and one sentence for each thing that was missing.

    Raises:
        BevquantError: every camera is dead and there is no point: nothing to answer from.
    """
    dead = [i for i, image in enumerate(frame.images) if _is_dead(image)]
    points = frame.points[np.isfinite(frame.points).all(axis=1)]
    notes = [f"{CAMERAS[i]}: no image; the mean colour stands in" for i in dead]
    if len(points) < len(frame.points):
        notes.append(f"LiDAR: {len(frame.points) - len(points)} points are not finite; left out")
    low, high = np.array(preprocess.point_range, dtype=np.float32).reshape(2, 3)
    if not ((points[:, :3] > low) & (points[:, :3] < high)).all(axis=1).any():
        if len(dead) == len(frame.images):
            raise BevquantError(
                f"sample {frame.token}: no camera has an image and no LiDAR point is in range; "
                "there is nothing to answer from"
            )
        points = np.append(low + (high - low) * 1e-3, (0.0, 0.0))[None]
        notes.append("LiDAR: no point in range; the answer is that of the cameras")
    if not notes:
        return frame, ()
    images = _with_mean_colour(frame.images, dead, preprocess)
    return replace(frame, images=images, points=points.astype(np.float32)), tuple(notes)


def _is_dead(image: Array) -> bool:
    return image.size == 0 or bool(image.min() == image.max())


def _with_mean_colour(
    images: tuple[Array, ...], dead: list[int], preprocess: Preprocess
) -> tuple[Array, ...]:
    """Return the images with dead ones replaced, of their size or of a living one's."""
    colour = np.rint(preprocess.image_mean).astype(np.uint8)
    height, width = (int(np.ceil(n / preprocess.image_resize)) for n in preprocess.image_size)
    shapes = [image.shape for image in images if image.size] or [(height, width, 3)]
    mended = list(images)
    for i in dead:
        mended[i] = np.broadcast_to(colour, images[i].shape if images[i].size else shapes[0]).copy()
    return tuple(mended)
