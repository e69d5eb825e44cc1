"""One frame as two networks saw it: what its pictures are drawn from."""

from dataclasses import dataclass

from bevquant.data.frame import CLASSES, Array, Boxes
from bevquant.report.compare import Comparison, compare
from bevquant.report.results import MarkedObject, Picture


@dataclass(frozen=True)
class CameraView:
    """One camera image, small.

    Attributes:
        name: as the page calls it.
        jpeg: the encoded image.
        size: width and height in pixels.
        lidar2image: float [4, 4], LiDAR frame -> homogeneous pixels of this image.
    """

    name: str
    jpeg: bytes
    size: tuple[int, int]
    lidar2image: Array


@dataclass(frozen=True)
class FramePicture:
    """One frame as two networks saw it, in the LiDAR frame of the key frame; all on the CPU.

    Attributes:
        title: what the reader knows the frame by, such as scene, time and weather.
        points: float [p, 2] or wider, x and y of LiDAR points first.
        cameras: views in reading order, three a row.
        truth: annotated objects.
        float_: boxes of the float network.
        quantized: boxes of the quantized network.
        quantized_name: what the page calls the quantized network.
        min_score: boxes scored below are neither drawn nor counted as found.
        reach: metres from the car to the edge of the picture; what lies beyond does not
            count, for the networks see no farther.
    """

    title: str
    points: Array
    cameras: tuple[CameraView, ...]
    truth: Boxes
    float_: Boxes
    quantized: Boxes
    quantized_name: str
    min_score: float
    reach: float = 54.0

    def compare(self) -> Comparison:
        """Return what quantization changed in this frame."""
        return compare(self.truth, self.float_, self.quantized, self.min_score, self.reach)


def count(picture: FramePicture) -> Picture:
    """Return what the picture shows as figures for ``results.json``."""
    change = picture.compare()
    return Picture(
        title=picture.title,
        quantized=picture.quantized_name,
        min_score=picture.min_score,
        objects=len(change.truth),
        found_by_float=change.found_by_float,
        found_by_quantized=len(change.found),
        lost=_marked(change.lost),
        new_false=_marked(change.new_false),
    )


def _marked(boxes: Boxes) -> tuple[MarkedObject, ...]:
    assert boxes.scores is not None
    distances = boxes.values[:, :2].norm(dim=1).tolist()
    figures = zip(boxes.labels.tolist(), distances, boxes.scores.tolist(), strict=True)
    return tuple(
        MarkedObject(label=CLASSES[label], distance=distance, score=score)
        for label, distance, score in figures
    )
