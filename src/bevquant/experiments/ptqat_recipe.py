"""What a comparison of PTQ, QAT and PTQAT is measured on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bevquant.data.world.generate import splits
from bevquant.data.world.settings import WorldSettings
from bevquant.errors import BevquantError
from bevquant.experiments.ptqat_rules import COMPARED, RULES
from bevquant.models.zoo import NETWORKS, network, shipped
from bevquant.ptqat.settings import Training
from bevquant.quant.spec import Precision


class PtqatTable(BaseModel):
    """What the table is measured on.

    Attributes:
        experiment: names this table.
        network: one with shipped weights, for instance ``bevfusion_seg_small``.
        world: the generated data: calibration and training on its training split, metrics
            from the other. Never nuScenes' own figures.
        frames: to calibrate and to reconstruct on, the first of those to train on.
        train_frames: to train on.
        judge_frames: more of the training split, on which the weights are judged while a row
            is trained.
        curve_frames: first validation frames, on which the metric is followed while a row
            is trained.
        precisions: of all layers, a table each; ``W4A16`` for weights only.
        labels: whether the task's loss is used beside the distance from the float network.
        rules: names of the rows beside PTQ: see :data:`.ptqat_rules.RULES`.
        training: the same for every row; its seed is not used.
        seeds: repetitions, each with frames, and an order of them, of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: Literal["ptqat"]
    network: str
    world: WorldSettings
    frames: int = Field(ge=1)
    train_frames: int = Field(ge=1)
    judge_frames: int = Field(default=12, ge=1)
    curve_frames: int = Field(default=8, ge=1)
    precisions: tuple[str, ...] = Field(default=("W4A8",), min_length=1)
    labels: bool = True
    rules: tuple[str, ...] = COMPARED
    training: Training = Training()
    seeds: int = Field(default=3, ge=1)

    @field_validator("precisions")
    @classmethod
    def _readable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(Precision.parse(name)) for name in names)
        except BevquantError as error:
            raise ValueError(str(error)) from error

    @field_validator("rules")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in RULES:
                raise ValueError(f"{name!r} is no rule; choose from {', '.join(RULES)}")
        return names

    @field_validator("network")
    @classmethod
    def _shipped(cls, name: str) -> str:
        names = [each for each in NETWORKS if shipped(each).is_file()]
        if name not in names:
            raise ValueError(f"{name!r} comes without weights; choose from {', '.join(names)}")
        return name

    @model_validator(mode="after")
    def _enough(self) -> "PtqatTable":
        wanted = self.train_frames + self.judge_frames
        there = len(splits(self.world)["world_train"]) * self.world.keyframes
        if there < wanted:
            raise ValueError(
                f"train_frames and judge_frames: {wanted} asked for, {there} in the training "
                "split; ask for fewer, or for more world.scenes"
            )
        return self

    @model_validator(mode="after")
    def _labelled(self) -> "PtqatTable":
        net = network(self.network)
        if (net.map_grid or net.occupancy) and not self.world.labels:
            raise ValueError(f"world.labels must be true: {self.network} is measured on them")
        return self
