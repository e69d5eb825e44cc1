"""The schema of ``results.json``: every figure that a report shows, and nothing else.

``docs/results.md`` explains the same fields to readers of the file.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bevquant.errors import BevquantError
from bevquant.files import read_json, write_text

SIMULATED = ("W16A16", "W8A8", "W4A8", "W2A8")
"""The precisions that every results file simulates."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Spread = Annotated[float, Field(ge=0)]
Error = Annotated[float, Field(ge=0)] | None
Count = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(gt=0)]


class _Figures(BaseModel):
    """Plain, immutable figures; an unknown key or a NaN is an error, not a surprise."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Dataset(_Figures):
    """What the figures were measured on."""

    name: str
    version: str
    """Folder of the tables, such as ``v1.0-world``."""
    split: str
    kind: Literal["generated world", "recorded drives"]
    scenes: Count
    frames: Annotated[int, Field(gt=0)]
    """Key frames that were evaluated."""


class ClassMetrics(_Figures):
    """One class by the official nuScenes metric; ``None`` where it is undefined."""

    AP: Share | None
    ATE: Error
    """Translation, metres."""
    ASE: Error
    """Scale, 1 - IoU."""
    AOE: Error
    """Orientation, radians."""
    AVE: Error
    """Velocity, metres a second."""
    AAE: Error
    """Attribute, 1 - accuracy."""


class Score(_Figures):
    """The two headline figures of the official nuScenes metric, 0..1."""

    NDS: Share
    mAP: Share
    frames: Annotated[int, Field(gt=0)]
    """Key frames, the same for every figure of a file."""


class Metrics(Score):
    """The official nuScenes detection metric; errors are ``None`` where undefined."""

    mATE: Error
    mASE: Error
    mAOE: Error
    mAVE: Error
    mAAE: Error
    per_class: Annotated[dict[str, ClassMetrics], Field(min_length=1)]


class FloatMetrics(Metrics):
    """The network before quantization."""

    weight_bits: Annotated[int, Field(gt=0)]
    """Bits of the weights of all quantizable layers, 32 for each weight."""


class SimulatedMetrics(Metrics):
    """The network with quantization simulated in floating point."""

    scheme: Literal["per-channel activations", "per-tensor activations"]
    """Per channel is the thesis' form and simulation only; per tensor can be deployed."""
    weight_bits: Annotated[int, Field(gt=0)]
    relative_weight_bits: Positive
    """``weight_bits`` as a share of the float network's."""


class DeployedMetrics(Metrics):
    """The deployed file itself: accuracy, latency and size, against FP32 of the same engine."""

    precision: str
    """Weight and activation bits of the file, such as ``W8A8``."""
    simulated: str
    """The entry of ``simulated`` with the same arithmetic as the file."""
    engine: str
    threads: Annotated[int, Field(gt=0)]
    latency_ms: Positive
    """Median of one frame through the network, without the preparation of its inputs."""
    latency_spread_ms: Spread
    """Interquartile range."""
    fp32_latency_ms: Positive
    fp32_latency_spread_ms: Spread
    memory_bytes: Bytes | None = None
    """Peak resident memory while running, where it was measured."""
    fp32_memory_bytes: Bytes | None = None
    file_bytes: Bytes
    fp32_file_bytes: Bytes
    integer_layers: Count
    """Quantizable layers that the engine really runs as integers."""
    quantizable_layers: Count

    @model_validator(mode="after")
    def _count_layers(self) -> Self:
        if self.integer_layers > self.quantizable_layers:
            raise ValueError("integer_layers exceeds quantizable_layers")
        return self


class Ablation(_Figures):
    """The float network with one sensor impaired."""

    images_blanked: Score
    lidar_half_beams: Score


class Unquantized(_Figures):
    """A layer that stayed float, and why."""

    name: str
    kind: str
    reason: str


class Claim(_Figures):
    """One of the goals, held against what was measured."""

    claim: str
    bound: Literal["at least", "at most"]
    goal: float
    measured: float
    holds: bool


class MarkedObject(_Figures):
    """An object that quantization lost, or a false one that it added."""

    label: str
    """Class."""
    distance: Spread
    """Metres from the ego car, on the ground."""
    score: Share
    """The float network's for a lost object, the quantized network's for a false one."""


class Picture(_Figures):
    """What one frame's picture shows, counted.

    An object is found when a box of its class, scored at least ``min_score``, has its
    centre within 2 m on the ground.
    """

    title: str
    quantized: str
    """Name of the quantized network in the picture."""
    min_score: Share
    objects: Count
    """Annotated within the picture."""
    found_by_float: Count
    found_by_quantized: Count
    lost: tuple[MarkedObject, ...]
    """Found by the float network and not by the quantized one, nearest first."""
    new_false: tuple[MarkedObject, ...]
    """False boxes of the quantized network that the float one does not have."""


class Provenance(_Figures):
    """Whatever it takes to get the same figures again."""

    command: str
    versions: dict[str, str]
    """Package -> version, with ``bevquant`` and ``python`` among them."""
    commit: str | None
    """Of the source tree; ``None`` for an installed package."""
    cpu: str
    cores: Annotated[int, Field(gt=0)]
    seed: int
    data_fingerprint: str
    checkpoint_sha256: str
    quick: bool
    """Measured on few frames: rougher figures."""


class Results(_Figures):
    """Everything that one run measured."""

    network: str
    dataset: Dataset
    float_: FloatMetrics = Field(alias="float")
    simulated: dict[str, SimulatedMetrics]
    """Precision, such as ``W4A8`` -> metrics; at least those of :data:`SIMULATED`."""
    deployed: DeployedMetrics
    ablation: Ablation
    claims: tuple[Claim, ...]
    unquantized: tuple[Unquantized, ...]
    pictures: tuple[Picture, ...]
    seconds: dict[str, Spread]
    """Step -> wall-clock seconds."""
    provenance: Provenance

    @model_validator(mode="after")
    def _agree(self) -> Self:
        missing = {*SIMULATED, self.deployed.simulated} - set(self.simulated)
        if missing:
            raise ValueError(f"simulated lacks {', '.join(sorted(missing))}")
        networks = {"float": self.float_, **self.simulated, "deployed": self.deployed}
        for name, metrics in networks.items():
            if set(metrics.per_class) != set(self.float_.per_class):
                raise ValueError(f"per_class of {name} has other classes than that of float")
        impaired = {"images_blanked": self.ablation.images_blanked}
        impaired["lidar_half_beams"] = self.ablation.lidar_half_beams
        for name, score in {**networks, **impaired}.items():
            if score.frames != self.dataset.frames:
                raise ValueError(f"{name} was measured on other frames than the data set's")
        return self


def save_results(results: Results, path: Path) -> None:
    """Write ``results`` as JSON to ``path``, atomically."""
    write_text(path, results.model_dump_json(by_alias=True, indent=1) + "\n")


def load_results(path: Path) -> Results:
    """Read what :func:`save_results` wrote.

    Raises:
        BevquantError: the file is missing, not JSON, or not of this schema; the message
            names the first wrong field.
    """
    try:
        return Results.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "results"
        what = {"missing": "is missing", "extra_forbidden": "is not a known field"}
        fault = what.get(first["type"], f"is wrong ({first['msg']})")
        raise BevquantError(
            f"{path}: {field} {fault}; write the file again with this version of bevquant"
        ) from error
