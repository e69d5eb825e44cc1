"""How the selected layers are trained."""

from pydantic import BaseModel, ConfigDict, Field


class Training(BaseModel):
    """The optimisation: Adam, a learning rate that falls to 0 along half a cosine.

    Attributes:
        steps: of the optimizer.
        batch_size: batches whose gradients are averaged in a step.
        lr: first learning rate.
        distillation: weight of the distance from the float network's outputs beside the
            task's loss; 0 trains on labels only. A task without a loss is distilled.
        learn_scale: whether scales are learned too (LSQ, Esser et al., ICLR 2020).
        bfloat16: whether forward passes run in bfloat16 where torch's autocast does so.
        recompute: whether main modules run again in the backward pass rather than keep what
            they computed (gradient checkpointing): about a third more time, less memory.
        clip: largest norm of the gradient.
        checks: how often the weights are judged on the validation batches; the best ones
            are kept, those before the first step among them.
        checkpoint_steps: steps between two checkpoints.
        seed: of the order of the batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    distillation: float = Field(default=1.0, ge=0)
    learn_scale: bool = False
    bfloat16: bool = False
    recompute: bool = False
    clip: float = Field(default=10.0, gt=0)
    checks: int = Field(default=5, ge=1)
    checkpoint_steps: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0)
