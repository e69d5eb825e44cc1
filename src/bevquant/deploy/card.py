"""What an exported network says about itself."""

from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

FORMAT = 2
"""Version of all that a file says about itself; a file of another version is refused."""

TargetName = Literal["openvino", "onnxruntime", "tensorrt", "literal"]


class Record(BaseModel):
    """A frozen record that knows all of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Expected(Record):
    """What the simulation of an exported network measured.

    Attributes:
        data: fingerprint of the data set and its split.
        split: name of the split.
        frames: key frames.
        NDS: nuScenes detection score, 0..1.
        mAP: mean average precision, 0..1.
    """

    data: str
    split: str
    frames: int = Field(ge=1)
    NDS: float = Field(ge=0, le=1)
    mAP: float = Field(ge=0, le=1)


class Card(Record):
    """What a file says about itself.

    Attributes:
        format: see :data:`FORMAT`.
        bevquant: version of the package that wrote it.
        target: the engine that its quantization is placed for.
        layers: precision of each quantizable layer, ``"W8A8"`` or ``"float"``.
        fingerprint: of the exported model: its weights, ranges, factors and integers.
        recipe: how that model came to be, in the words of whoever exported it.
        expected: what its simulation measured, where that is known.
        metadata: what else the runtime of a certain network needs.
        absent: those of ``layers`` that the file has no product of, and why.
        kept_float: those that are float although the exported model has them quantized, and why.
    """

    format: int = FORMAT
    bevquant: str = Field(default_factory=lambda: version("bevquant"))
    target: TargetName
    layers: dict[str, str]
    fingerprint: str
    recipe: dict[str, Any] = {}
    expected: Expected | None = None
    metadata: dict[str, Any] = {}
    absent: dict[str, str] = {}
    kept_float: dict[str, str] = {}

    @model_serializer(mode="wrap")
    def _sparing(self, content: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what most files have no entry of."""
        sparse = ("absent", "kept_float")
        return {key: value for key, value in content(self).items() if key not in sparse or value}


class PartEntry(Record):
    """A part of a split network.

    Attributes:
        name: of the main module.
        file: beside the manifest.
        sha256: of the file.
        inputs: names of the tensors it takes, in order.
        outputs: names of the tensors it returns, in order.
    """

    name: str
    file: str
    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Manifest(Record):
    """What ties the files of a split network together.

    Attributes:
        card: what the network says about itself.
        inputs: names of the tensors that the network takes, in order.
        outputs: names of the tensors that it returns, in order.
        parts: in the order in which they are run; each takes inputs of the network and
            outputs of parts before it.
    """

    card: Card
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[PartEntry, ...] = Field(min_length=1)
