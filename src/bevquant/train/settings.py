"""What a training run is: everything but the network and the data."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bevquant.models.bevfusion.losses import LossSettings


class AugmentSettings(BaseModel):
    """Random changes of the training frames.

    Attributes:
        flip: probability of mirroring the LiDAR frame, for x and for y each.
        rotation: largest turn of the LiDAR frame about z, in radians.
        scale: largest relative change of the LiDAR frame's scale.
        image_flip: probability of mirroring an image.
        contrast: largest relative change of an image's contrast.
        brightness: largest shift of an image's values, in standard deviations.
        thin_lidar: probability of losing most LiDAR points of a frame, so that the
            network learns to look at its cameras too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: float = Field(default=0.5, ge=0, le=1)
    rotation: float = Field(default=0.4, ge=0, le=3.15)
    scale: float = Field(default=0.05, ge=0, lt=1)
    image_flip: float = Field(default=0.5, ge=0, le=1)
    contrast: float = Field(default=0.2, ge=0, lt=1)
    brightness: float = Field(default=0.2, ge=0)
    thin_lidar: float = Field(default=0.1, ge=0, le=1)


class OptimSettings(BaseModel):
    """The optimisation: AdamW, one learning-rate cycle, averaged weights.

    Attributes:
        epochs: passes over the training frames.
        batch_size: frames a step.
        replicas: parts of a batch that run side by side, each on a processor core with
            batch statistics of its own; a divisor of ``batch_size``.
        lr: highest learning rate.
        warmup: part of the steps during which the learning rate rises.
        weight_decay: of weights with at least two dimensions; biases and norms have none.
        clip: largest norm of the gradient.
        ema_decay: of the exponential moving average of the weights, per step.
        seed: of the first weights, the frame order and the augmentation.
        workers: loader processes.
        checkpoint_steps: steps between two checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=16, ge=1)
    batch_size: int = Field(default=4, ge=1)
    replicas: int = Field(default=2, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    warmup: float = Field(default=0.1, gt=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=10.0, gt=0)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=1, ge=0)
    checkpoint_steps: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _parts_are_equal(self) -> "OptimSettings":
        if self.batch_size % self.replicas:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of replicas {self.replicas}"
            )
        return self


class TailSettings(OptimSettings):
    """Training of what lies behind the fused map.

    Attributes:
        window: output cells along one side of the square that a step looks at, at a random
            place in each batch; ``None`` for all. Neighbouring cells tell much the same: a
            quarter of them makes a step of the occupancy network twice as fast.
    """

    window: int | None = Field(default=None, ge=1)


class DetectorSettings(OptimSettings):
    """Training of a whole detector.

    Attributes:
        augment: random changes of the training frames.
    """

    augment: AugmentSettings = AugmentSettings()


class TrainSettings(DetectorSettings):
    """Training of a BEVFusion.

    Attributes:
        loss: weights of the loss terms.
    """

    loss: LossSettings = LossSettings()
