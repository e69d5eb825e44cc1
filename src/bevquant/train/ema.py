"""The exponential moving average of a network's weights."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return the moving average ``e <- decay e + (1 - decay) w`` of ``model``.

    The first update copies. Buffers (batch-norm statistics, which average themselves) and
    integer parameters (constants of the view transform) are always copied: torch's own
    ``get_ema_multi_avg_fn`` would truncate the average of integers.
    """

    def update(mean: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        for old, new in zip(mean, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)

    return AveragedModel(model, multi_avg_fn=update)
