"""Which module's channels reach which layer's input, but for positive factors unchanged."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bevquant.quant.equalization.commute import Channels, propagate
from bevquant.quant.watch import Watch


class Flow(Watch[Channels]):  # type: ignore[no-untyped-call]
    """Follows channels from producers to consumers in one forward pass.

    Any operators may lie between that commute with positive factors on the channels, see
    :func:`.commute.propagate`. If one on tensors of several producers does so only where they
    share their factors (a residual addition), the channels that meet
    are tied. Whatever else reads a channel blocks it.

    Attributes:
        produced: producer -> ids of the channels of its output, int64 [C], on the CPU.
        carried: carrier -> ids of the channels of its input and output.
        consumed: consumer -> ids of the channels of its input; 0 for those of no producer.
        tied: pairs of ids, int64 [C] each.
        blocked: id -> what else reads the channel.
        count: number of ids with 0, which stands for channels of no producer.
    """

    def __init__(
        self,
        names: Mapping[nn.Module, str],
        producers: Mapping[nn.Module, int],
        consumers: Mapping[nn.Module, int],
        carriers: Mapping[nn.Module, int],
    ) -> None:
        """Say which modules to look at.

        Args:
            names: those of all modules that are looked at as one.
            producers: those whose output's channels can be scaled -> axis of the channels.
            consumers: those that can make up for factors on the channels of their first
                argument -> axis of the channels.
            carriers: those that add a vector with an element for each channel to their
                argument -> axis of the channels.
        """
        super().__init__()
        self._names, self._producers = names, producers
        self._consumers, self._carriers = consumers, carriers
        self.produced: dict[nn.Module, Tensor] = {}
        self.carried: dict[nn.Module, Tensor] = {}
        self.consumed: dict[nn.Module, Tensor] = {}
        self.tied: list[tuple[Tensor, Tensor]] = []
        self.blocked: dict[int, str] = {}
        self.count = 1
        self._carrying: Channels | None = None

    def watched(self, module: nn.Module) -> bool:
        """Return whether ``module`` has a name."""
        return module in self._names

    def entered(self, module: nn.Module, inputs: list[Any]) -> None:
        """Note what a module reads."""
        first, *rest = inputs
        channels = self.get(first)
        axes = self._consumers.get(module, self._carriers.get(module))
        if axes is None:
            rest = inputs
        elif channels is not None and channels.axis != axes % first.ndim:
            channels, rest = None, inputs
        self._block(self.labels(rest), f"read by {self._names[module]}")
        self._carrying = channels if module in self._carriers else None
        taken = self.consumed if module in self._consumers else self.carried
        if axes is not None:
            ids = channels.ids if channels else torch.zeros(first.shape[axes], dtype=torch.int64)
            if not torch.equal(taken.setdefault(module, ids), ids):
                why = f"{self._names[module]} reads different channels in different calls"
                self._block([Channels(0, ids), Channels(0, taken[module])], why)

    def left(self, module: nn.Module, output: Any) -> None:
        """Note what a module hands on."""
        if module in self._carriers:
            if self._carrying is not None:
                self.put(output, self._carrying)
        elif module in self._producers and isinstance(output, Tensor):
            axis = self._producers[module] % output.ndim
            if module not in self.produced:
                last = self.count + output.shape[axis]
                self.produced[module] = torch.arange(self.count, last)
                self.count = last
            self.put(output, Channels(axis, self.produced[module]))

    def read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Note what becomes of channels in an operator.

        Products of activations are quantized themselves, and are no place for factors.
        """
        leaves = tree_leaves((args, kwargs))
        known = {id(leaf): label for leaf in leaves if (label := self.get(leaf)) is not None}
        product = func.overloadpacket in flop_registry
        outputs = None if product else self._outputs(func, args, kwargs, known)
        result = func(*args, **kwargs)
        if outputs is None:
            self._block(known.values(), f"read by {func.overloadpacket}")
        else:
            for leaf, channels in zip(tree_leaves(result), outputs, strict=True):
                if channels is not None:
                    self.put(leaf, channels)
        return result

    def outlived(self, living: list[Channels]) -> None:
        """Note what the model returns or keeps."""
        self._block(living, "returned or kept by the model")

    def _outputs(
        self, func: Any, args: Any, kwargs: Any, known: dict[int, Channels]
    ) -> list[Channels | None] | None:
        first, *others = known.values()
        if func._schema.is_mutable:
            written = args[0] if args else None
            outputs = propagate(func, args, kwargs, known) if id(written) in known else None
            same = outputs is not None and known[id(written)].same(outputs[0])
            return outputs if same else None
        outputs = propagate(func, args, kwargs, known)
        if outputs is None and others and all(len(o.ids) == len(first.ids) for o in others):
            shared = {key: Channels(label.axis, first.ids) for key, label in known.items()}
            outputs = propagate(func, args, kwargs, shared)
            if outputs is not None:
                self.tied += [(first.ids, other.ids) for other in others]
        return outputs

    def _block(self, channels: Any, why: str) -> None:
        for label in channels:
            for channel in label.ids[label.ids > 0].tolist():
                self.blocked.setdefault(channel, why)
