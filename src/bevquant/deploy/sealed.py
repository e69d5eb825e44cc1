"""ONNX files that end with the SHA-256 of all that comes before.

The checksum is an entry of the file's metadata, so that any ONNX tool reads the file, and it
is looked at before anything is parsed.
"""

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir

from bevquant.errors import BevquantError

CHECKSUM_KEY = "bevquant.sha256"


def seal(body: bytes) -> bytes:
    """Return a serialized ONNX file with its checksum at the end.

    Serialized messages that follow each other are one message, with the entries of both.
    """
    entry = onnx.StringStringEntryProto(key=CHECKSUM_KEY, value=hashlib.sha256(body).hexdigest())
    trailer: bytes = onnx.ModelProto(metadata_props=[entry]).SerializeToString()
    return body + trailer


_TRAILER = len(seal(b""))


def sealed(model: ir.Model) -> bytes:
    """Return ``model`` as the bytes of a file."""
    return seal(ir.serde.serialize_model(model).SerializeToString())


def unsealed(path: Path, data: bytes) -> ir.Model:
    """Return the model in the bytes of a file.

    Raises:
        BevquantError: naming ``path``: the bytes are not what :func:`sealed` returned.
    """
    if data != seal(data[:-_TRAILER]):
        raise BevquantError(
            f"{path}: truncated, changed since, or not exported by bevquant; export it again"
        )
    try:
        return ir.serde.deserialize_model(onnx.load_model_from_string(data))
    except Exception as error:  # whatever a parser makes of what somebody sealed by hand
        raise BevquantError(f"{path}: not an ONNX file ({error}); export it again") from error
