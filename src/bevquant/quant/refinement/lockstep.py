"""Running a model over several batches side by side, layer after layer.

What is done to a layer must see what the layers before it, already changed, compute; a pass
over all batches for each layer would take as many passes as there are layers. Here every
batch has a thread of its own, of which one runs at a time: it stops in front of each layer
that is yet to be changed, and goes on when all batches have come as far. So one pass over
the batches serves for all layers, of any model: nothing is traced.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bevquant.quant.running import Forward

Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True)
class Call:
    """A call of a layer that is about to run.

    Attributes:
        batch: index of the batch.
        args: positional arguments.
        kwargs: others.
    """

    batch: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def lockstep(
    model: nn.Module, layers: Collection[Layer], batches: Sequence[Any], forward: Forward
) -> Iterator[tuple[Layer, list[Call]]]:
    """Run ``model`` over all batches; yield each of ``layers`` before it first runs.

    In the order in which the first batch calls them, with the first call of every batch
    that waits for the layer. The layer runs, changed or not, when the next one is asked
    for. A batch that comes to it later, or a second time, does not stop any more. Layers
    that no batch reaches are not yielded. All batches are held in memory in mid-forward.

    Args:
        model: any module.
        layers: modules of ``model``.
        batches: of any type that ``forward`` takes.
        forward: runs the model on one batch.
    """
    runs: list[_Run[Layer]] = [_Run() for _ in batches]
    here = threading.local()
    visited: set[nn.Module] = set()
    grad = torch.is_grad_enabled()

    def stop(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if layer in visited:
            return
        given = next(iter((*args, *kwargs.values())), None)
        if not isinstance(given, Tensor):
            raise TypeError(f"a layer is given a {type(given).__name__} instead of a tensor")
        run: _Run[Layer] = here.run
        run.waiting = layer, Call(here.index, args, kwargs)
        run.pause()

    def work(index: int) -> None:
        here.index, here.run = index, runs[index]
        with torch.set_grad_enabled(grad):
            runs[index].work(lambda: forward(model, batches[index]))

    hooks = [layer.register_forward_pre_hook(stop, with_kwargs=True) for layer in layers]
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(runs))]
    try:
        for thread, run in zip(threads, runs, strict=True):
            thread.start()
            run.proceed()
        while waiting := [run for run in runs if run.waiting]:
            layer = _layer(waiting[0])
            group = [run for run in waiting if _layer(run) is layer]
            yield layer, [_call(run) for run in group]
            visited.add(layer)
            for run in group:
                run.waiting = None
                run.proceed()
    finally:
        for run in runs:
            run.abandon()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        for hook in hooks:
            hook.remove()


class _Abandoned(BaseException):
    """Ends the forward pass of a batch that nobody waits for any more."""


@dataclass
class _Run(Generic[Layer]):
    """One batch's forward pass, in turns with the thread that started it."""

    waiting: tuple[Layer, Call] | None = None
    error: BaseException | None = None
    abandoned: bool = False
    ended: bool = False
    theirs: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ours: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def work(self, forward: Callable[[], Any]) -> None:
        """Run, in the batch's own thread, once it is told to proceed."""
        self.theirs.acquire()
        try:
            if not self.abandoned:
                forward()
        except _Abandoned:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self.ours.release()

    def pause(self) -> None:
        """Hand over to the other thread until it says proceed."""
        self.ours.release()
        self.theirs.acquire()
        if self.abandoned:
            raise _Abandoned

    def proceed(self) -> None:
        """Let the batch run until it pauses or ends; what it raised is raised here."""
        self.theirs.release()
        self.ours.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """End the batch's thread if it is still there."""
        if not self.ended:
            self.abandoned = True
            self.theirs.release()


def _layer(run: _Run[Layer]) -> Layer:
    assert run.waiting is not None
    return run.waiting[0]


def _call(run: _Run[Any]) -> Call:
    assert run.waiting is not None
    return run.waiting[1]
