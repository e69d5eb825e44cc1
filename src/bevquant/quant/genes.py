"""The layers that the thesis counts: one gene each in its search."""

from fnmatch import fnmatchcase

from torch import nn

from bevquant.quant.inventory import find_layers

KINDS = frozenset({"conv2d", "linear", "matmul"})
"""Kinds with genes; 1-D, transposed and sparse convolutions have none."""

LEFT_OUT = ("*.attn.query_proj", "*.attn.memory_proj", "*.attn.out_proj")
"""Linear layers without a gene. In the thesis' framework they are parameters of
``nn.MultiheadAttention``, which neither a type test nor a forward hook finds."""


def thesis_genes(model: nn.Module) -> list[str]:
    """Return the names of the layers with a gene, in the order of the thesis' genome.

    That is the order of definition. All other layers can be quantized here as well; the
    thesis leaves them float. For the public BEVFusion these are its 108 genes: 31 Conv2d,
    53 Linear and 24 MatMul.

    Args:
        model: a float or a quantized model.
    """
    return [
        name
        for name, _, kind in find_layers(model)
        if kind.name in KINDS and not any(fnmatchcase(name, pattern) for pattern in LEFT_OUT)
    ]
