import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from bevquant.deploy.pack import narrow, pack, set_constant, widen


def model_of(name: str, array: np.ndarray) -> ir.Model:
    """A graph that returns one initializer."""
    value = ir.Value(name=name)
    set_constant(value, array)
    output = ir.node("Identity", [value])
    output.outputs[0].name = "y"
    graph = ir.Graph([], output.outputs, nodes=[output], initializers=[value])
    return ir.Model(graph, ir_version=10)


def packed_by_hand(codes: np.ndarray, bits: int) -> bytes:
    """The first code in the lowest bits of the first byte."""
    number = 0
    for i, code in enumerate(codes.flatten().tolist()):
        number |= (code % 2**bits) << (bits * i)
    return number.to_bytes(-(-codes.size * bits // 8), "little")


@pytest.mark.parametrize(("bits", "opset"), [(4, 21), (2, 25)])
@given(data=st.data())
def test_packed_weights_are_bits_side_by_side_and_widen_to_themselves(bits, opset, data):
    codes = data.draw(
        arrays(
            np.int8,
            array_shapes(max_dims=3, max_side=5),
            elements=st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        )
    )
    model = model_of(f"layer.weight_int{bits}", codes)
    pack(model)
    stored = ir.serde.serialize_model(model)
    assert stored.graph.initializer[0].raw_data == packed_by_hand(codes, bits)
    assert stored.opset_import[0].version == opset
    again = ir.serde.deserialize_model(stored)
    widen(again)
    widened = ir.serde.serialize_model(again)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(widened.graph.initializer[0]), codes)
    assert widened.graph.initializer[0].data_type == onnx.TensorProto.INT8
    assert widened.opset_import[0].version == 21


def test_eight_and_sixteen_bits_are_stored_as_they_are():
    for bits, dtype in ((8, np.int8), (16, np.int16)):
        codes = np.arange(-100, 100, dtype=dtype)
        model = model_of(f"layer.weight_int{bits}", codes)
        pack(model)
        tensor = ir.serde.serialize_model(model).graph.initializer[0]
        assert tensor.raw_data == codes.tobytes()


@pytest.mark.parametrize(
    ("array", "stored"),
    [
        (np.repeat(np.float32([0, -100]), 1000), np.int8),
        (np.arange(2000, dtype=np.float32) / 2, np.float16),
        (np.linspace(0, 1, 2000, dtype=np.float32), np.float32),
        (np.repeat(np.float32([0, np.inf]), 1000), np.float16),
        (np.repeat(np.float32([0, 1e30]), 1000), np.float32),
        (np.arange(2000) % 256, np.uint8),
        (np.arange(2000) - 1000, np.int16),
        (np.arange(2000) * 10**6, np.int64),
        (np.zeros(10, np.float32), np.float32),
    ],
)
def test_constants_are_narrowed_only_where_nothing_is_lost(array, stored):
    model = model_of("mask", array)
    narrow(model)
    proto = ir.serde.serialize_model(model)
    tensor = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    assert tensor.dtype == stored
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    assert len(casts) == (stored != array.dtype)
    np.testing.assert_array_equal(tensor.astype(array.dtype), array)
    if casts:
        target = onnx.helper.tensor_dtype_to_np_dtype(casts[0].attribute[0].i)
        assert target == array.dtype


def test_a_large_constant_that_is_an_output_stays_as_it_is():
    array = np.arange(2000, dtype=np.float32)  # fits float16, as the table above
    value = ir.Value(name="mask")
    set_constant(value, array)
    output = ir.node("Identity", [value])
    output.outputs[0].name = "y"
    ends = [value, *output.outputs]
    graph = ir.Graph([], ends, nodes=[output], initializers=[value])
    model = ir.Model(graph, ir_version=10)
    model.opset_imports[""] = 21
    narrow(model)
    proto = ir.serde.serialize_model(model)
    assert proto.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    for result in ReferenceEvaluator(proto).run(None, {}):
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, array)
