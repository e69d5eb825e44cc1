"""The bytes of an exported graph, by what they are for."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bevquant.deploy.pack import NEEDS_LOADER, loader_note
from bevquant.deploy.rules import PRODUCTS, QUANTIZERS
from bevquant.quant.size import Size


@dataclass(frozen=True)
class FileSize(Size):
    """Bytes of a file, by what they are for.

    Attributes:
        note: what an engine misses that opens the file without bevquant's loader; empty if
            nothing. See :func:`~bevquant.deploy.pack.loader_note`.
    """

    note: str = ""

    @property
    def needs_loader(self) -> bool:
        """Whether no engine opens the file without bevquant's loader."""
        return self.note == NEEDS_LOADER


def file_size(models: Sequence[ir.Model], total: int) -> FileSize:
    """Return what takes the room in the files of a network.

    Args:
        models: the graphs that are stored.
        total: bytes of all files.
    """
    weights = scales = rest = 0
    for model in models:
        for value in model.graph.initializers.values():
            size = _stored_bytes(value)
            uses = [(use.node.op_type, use.idx) for use in value.uses()]
            if ("DequantizeLinear", 0) in uses or any(
                operator in PRODUCTS and position == 1 for operator, position in uses
            ):
                weights += size
            elif any(operator in QUANTIZERS for operator, _ in uses):
                scales += size
            else:
                rest += size
    graph = total - weights - scales - rest
    return FileSize(weights, scales, rest, graph, loader_note(models))


def _stored_bytes(value: ir.Value) -> int:
    tensor = value.const_value
    assert tensor is not None
    return int(tensor.nbytes)
