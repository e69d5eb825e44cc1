"""The exponential moving average of a network's weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return the moving average ``e <- decay e + (1 - decay) w`` of ``model``.

    The first update copies. Buffers (batch-norm statistics, which average themselves)
    and integer parameters (the view transform's constants) are always copied: torch's
    own function would truncate their average.
    """
    average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(mean: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        if mean[0].is_floating_point():
            average(mean, current, count)
        else:
            for old, new in zip(mean, current, strict=True):
                old.copy_(new)

    return AveragedModel(model, multi_avg_fn=update)
