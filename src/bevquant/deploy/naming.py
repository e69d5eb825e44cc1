"""Names of layers as names of nodes and files, whatever characters they have.

Engines cut node names at some characters (``/``, ``,``) and put others behind them; ours use
``#`` and ``:``. All but letters, digits, ``_``, ``.`` and ``-`` become ``%`` and a number, so
that usual names stay what they are.
"""

from collections.abc import Collection
from urllib.parse import quote

CALL = "#"
"""The second product of a layer that is called repeatedly is named after it, with ``#1``."""

PART = ":"
"""Any other node is named after the layer or main module whose code made it: ``head:7``."""

FILE_CHARACTERS = 64
"""Of a main module's name in the name of its file: file systems have 255 for the whole."""


def node_name(name: str) -> str:
    """Return what the node of layer or main module ``name`` is called; no two share one."""
    # ONNX Runtime numbers the nodes that it makes of one: conv_token_7.
    return quote(name, safe="").replace("_token_", "%5Ftoken_")


def product_layers(layers: Collection[str]) -> dict[str, str]:
    """Return each of ``layers`` by the name of its product's node."""
    return {node_name(layer): layer for layer in layers}


def part_file(stem: str, name: str, digest: str) -> str:
    """Return the name of the file of main module ``name`` with the SHA-256 ``digest``."""
    # Without dots, so that no part of "a" is called like one of "a.b".
    words = quote(name, safe="").replace(".", "%2E")[:FILE_CHARACTERS]
    return f"{stem}.{words}.{digest[:8]}.onnx"
