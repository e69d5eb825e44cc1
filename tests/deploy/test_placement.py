import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bevquant.deploy.pack import constant, set_constant
from bevquant.deploy.placement import gemm_as_product, linear_as_convolution, unsigned_codes

CHANNELS_IN, CHANNELS_OUT = 6, 4


def network(operator: str, shape: list[int | str], bias: bool, added: bool) -> ir.Model:
    """A matrix product of dequantized rows with a dequantized weight."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (CHANNELS_OUT, CHANNELS_IN)).astype(np.int8)
    axis = 0 if operator == "Gemm" else 1
    constants = {
        "codes": codes if operator == "Gemm" else np.ascontiguousarray(codes.T),
        "scales": rng.uniform(0.01, 0.02, CHANNELS_OUT).astype(np.float32),
        "step": np.float32(0.05),
        "zero": np.uint8(10),
        "bias": rng.normal(size=CHANNELS_OUT).astype(np.float32),
    }
    inputs = ["x", "w", "bias"] if bias else ["x", "w"]
    attributes = {"transB": 1} if operator == "Gemm" else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["x"]),
        helper.make_node(operator, inputs, ["product"], name="layer", **attributes),
    ]
    if added:
        nodes.append(helper.make_node("Add", ["product", "bias"], ["sum"]))
    nodes.append(helper.make_node("Relu", ["sum" if added else "product"], ["y"]))
    full = [*shape, CHANNELS_IN]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("q", TensorProto.UINT8, full)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape, CHANNELS_OUT])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        value_info=[helper.make_tensor_value_info("x", TensorProto.FLOAT, full)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.serde.deserialize_model(proto)


def run(model: ir.Model, q: np.ndarray) -> np.ndarray:
    (y,) = ReferenceEvaluator(ir.serde.serialize_model(model)).run(None, {"q": q})
    return np.asarray(y)


@pytest.mark.parametrize(
    ("operator", "shape", "bias", "added"),
    [
        ("Gemm", ["rows"], True, False),
        ("Gemm", ["rows"], False, True),
        ("Gemm", ["rows"], False, False),
        ("Gemm", [5], True, False),
        ("MatMul", [5], False, True),
        ("MatMul", [2, 3, 4], False, True),
        ("MatMul", [2, 3, 4], False, False),
    ],
)
def test_a_product_becomes_a_convolution_with_the_same_result(operator, shape, bias, added):
    model = network(operator, shape, bias, added)
    sizes = [5 if size == "rows" else size for size in shape]
    q = np.random.default_rng(1).integers(0, 256, (*sizes, CHANNELS_IN)).astype(np.uint8)
    expected = run(model, q)
    linear_as_convolution(model)
    operators = [node.op_type for node in model.graph]
    assert operators.count("Conv") == 1
    assert not {"MatMul", "Gemm", "Add"} & set(operators)
    assert [node.name for node in model.graph if node.op_type == "Conv"] == ["layer"]
    np.testing.assert_allclose(run(model, q), expected, atol=1e-5)


def test_a_matrix_that_is_added_is_no_bias():
    model = network("MatMul", [5], False, True)
    graph = model.graph
    (bias,) = (value for value in graph.initializers.values() if value.name == "bias")
    matrix = np.random.default_rng(2).normal(size=(5, CHANNELS_OUT)).astype(np.float32)
    set_constant(bias, matrix)
    q = np.random.default_rng(1).integers(0, 256, (5, CHANNELS_IN)).astype(np.uint8)
    expected = run(model, q)
    linear_as_convolution(model)
    operators = [node.op_type for node in graph]
    assert operators.count("Conv") == operators.count("Add") == 1
    np.testing.assert_allclose(run(model, q), expected, atol=1e-5)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gemm_becomes_a_product_with_the_same_result(turned, bias):
    model = network("Gemm", [5], bias, False)
    graph = model.graph
    if not turned:
        (codes,) = (value for value in graph.initializers.values() if value.name == "codes")
        set_constant(codes, constant(codes).T)
        for node in graph:
            if node.op_type == "Gemm":
                node.attributes["transB"] = ir.AttrInt64("transB", 0)
            elif node.inputs[0] is codes:
                node.attributes["axis"] = ir.AttrInt64("axis", 1)
    q = np.random.default_rng(1).integers(0, 256, (5, CHANNELS_IN)).astype(np.uint8)
    expected = run(model, q)
    gemm_as_product(model)
    assert [node.op_type for node in graph if node.name == "layer"] == ["MatMul"]
    assert "Gemm" not in {node.op_type for node in graph}
    np.testing.assert_allclose(run(model, q), expected, atol=1e-5)


def test_maps_of_unknown_size_stay_products():
    model = network("MatMul", ["n", 3], False, True)
    linear_as_convolution(model)
    assert [node.op_type for node in model.graph if node.name == "layer"] == ["MatMul"]


def test_signed_codes_become_unsigned_ones_of_the_same_values():
    rng = np.random.default_rng(0)
    constants = {"step": np.float32(0.05), "zero": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [400])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [400])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = rng.uniform(-8, 8, 400).astype(np.float32)  # codes end at 0.05 * 127
    (signed,) = ReferenceEvaluator(proto).run(None, {"x": x})
    model = ir.serde.deserialize_model(proto)
    unsigned_codes(model)
    proto = ir.serde.serialize_model(model)
    (unsigned,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_array_equal(signed, unsigned)
    (zero,) = (each for each in proto.graph.initializer if each.name == "zero")
    assert numpy_helper.to_array(zero).dtype == np.uint8
