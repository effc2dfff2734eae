"""The encoder as an ONNX graph, written node by node: fused operators, int8 matrices with one scale a column.

Building the graph by hand keeps the exporter of torch (and its many passes) out, and gives the operators that ONNX Runtime
runs fastest on a CPU. What goes into a matrix is rounded to eight bits by a step that is the same for all texts, and padding
is masked, so a text's vector does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]
MICROSOFT = "com.microsoft"
HEADS = 12

WEIGHT_LIMIT = 63
"""Seven bits: with eight, processors without VNNI overflow when they add products in pairs."""

NEVER = -1e4
"""Added to the weight of a word that must not count."""

SMOOTHED = (".qkv", ".inner", ".outer")
"""The matrices before which a few channels are ten times as wide as the others."""

SMOOTHNESS = 0.65
"""How far a channel's width moves into the matrix before both are rounded (alpha in Xiao et al. 2023, "SmoothQuant")."""

Ranges = Mapping[str, tuple[Array, Array]]
"""The least and the greatest number in each channel of what goes into a matrix, by the matrix's name."""


class Graph:
    """Nodes and constants gathered so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        """Stores a constant and returns its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], domain=domain, **attributes))
        return output

    def quantised(self, name: str, weight: Array) -> tuple[str, str, str]:
        """Stores an inputs x outputs matrix as int8 with a scale a column; returns the names of matrix, scales and zeros."""
        scales = np.maximum(np.abs(weight).max(0), 1e-8) / WEIGHT_LIMIT
        values = np.clip(np.rint(weight / scales), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
        zeros = np.zeros(len(scales), np.int8)
        return (
            self.constant(f"{name}.int8", values),
            self.constant(f"{name}.scale", scales.astype(np.float32)),
            self.constant(f"{name}.zero", zeros),
        )

    def linear(self, x: str, name: str, weights: Mapping[str, Array], ranges: Ranges) -> str:
        """X times the transposed weight plus the bias, in int8."""
        x, x_scale, x_zero, matrix, scale, zero = self.rounded(x, name, weights[f"{name}.weight"], ranges[name])
        bias = self.constant(f"{name}.bias", weights[f"{name}.bias"])
        return self.node("MatMulIntegerToFloat", [x, matrix, x_scale, scale, x_zero, zero, bias], f"{name}.out", MICROSOFT)

    def attention(self, x: str, lengths: str, name: str, weights: Mapping[str, Array], ranges: Ranges) -> str:
        """Self-attention up to its mixed values, in int8; `lengths` says how much of each row is no padding."""
        x, x_scale, x_zero, matrix, scale, zero = self.rounded(x, name, weights[f"{name}.weight"], ranges[name])
        bias = self.constant(f"{name}.bias", weights[f"{name}.bias"])
        inputs = [x, matrix, bias, x_scale, scale, lengths, x_zero, zero]
        return self.node("QAttention", inputs, f"{name}.mixed", MICROSOFT, num_heads=HEADS)

    def rounded(self, x: str, name: str, weight: Array, span: tuple[Array, Array]) -> tuple[str, str, str, str, str, str]:
        """The names of x in unsigned eight bits, its scale and zero, and of the matrix (transposed), its scales and zeros."""
        lowest, highest = np.minimum(span[0], 0), np.maximum(span[1], 0)
        if name.endswith(SMOOTHED):
            reach, strength = np.maximum(-lowest, highest), np.abs(weight).max(0)
            smooth = reach**SMOOTHNESS / np.maximum(strength, 1e-5) ** (1 - SMOOTHNESS)
            smooth = np.maximum(smooth / np.median(smooth), 1e-3).astype(np.float32)
            x = self.node("Mul", [x, self.constant(f"{name}.smooth", 1 / smooth)], f"{name}.smoothed")
            lowest, highest, weight = lowest / smooth, highest / smooth, weight * smooth
        step = np.float32(max(highest.max() - lowest.min(), 1e-6) / 255)
        scale = self.constant(f"{name}.x_scale", np.array(step))
        zero = self.constant(f"{name}.x_zero", np.array(np.rint(-lowest.min() / step), np.uint8))
        return self.node("QuantizeLinear", [x, scale, zero], f"{name}.x"), scale, zero, *self.quantised(name, weight.T)

    def norm(self, x: str, skip: str, name: str, weights: Mapping[str, Array]) -> str:
        """Layer normalisation of x + skip; in two steps, since ONNX Runtime's operator for both takes a quarter longer."""
        gamma, beta = (self.constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        summed = self.node("Add", [x, skip], f"{name}.sum")
        return self.node("LayerNormalization", [summed, gamma, beta], f"{name}.out", axis=-1, epsilon=1e-12)


def encoder_model(
    weights: Mapping[str, Array], weigh: Array, none_weight: Array, none_bias: Array, ranges: Ranges
) -> onnx.ModelProto:
    """The ONNX model: `ids`, `segments` (int32, rows x length) to unit `vectors` (rows x width) and `none` scores (rows).

    Rows are padded with `PAD`.
    """
    graph = Graph()
    lengths, barred = _masks(graph)
    x = _embeddings(graph, weights)
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    for number in range(layers):
        inside = f"layers.{number}"
        mixed = graph.attention(x, lengths, f"{inside}.qkv", weights, ranges)
        x = graph.norm(graph.linear(mixed, f"{inside}.attended", weights, ranges), x, f"{inside}.attended_norm", weights)
        fed = graph.node("Gelu", [graph.linear(x, f"{inside}.inner", weights, ranges)], f"{inside}.gelu", MICROSOFT)
        x = graph.norm(graph.linear(fed, f"{inside}.outer", weights, ranges), x, f"{inside}.outer_norm", weights)
    axis = graph.constant("axis", np.array([1], np.int64))
    raw = graph.node("MatMul", [x, graph.constant("weigh", weigh.reshape(-1, 1))], "weigh.product")
    shares = graph.node("Softmax", [graph.node("Add", [raw, barred], "weigh.barred")], "weigh.shares", axis=1)
    mean = graph.node("ReduceSum", [graph.node("Mul", [x, shares], "weighed"), axis], "mean", keepdims=0)
    vectors = graph.node("LpNormalization", [mean], "vectors", axis=-1, p=2)
    column, bias = graph.constant("none.weight", none_weight.reshape(-1, 1)), graph.constant("none.bias", none_bias.reshape(1))
    scored = graph.node("Add", [graph.node("MatMul", [vectors, column], "none.product"), bias], "none.column")
    graph.node("Squeeze", [scored, axis], "none")
    return _model(graph, table_width=weights["words.weight"].shape[1])


def weights_of(model: onnx.ModelProto) -> dict[str, Array]:
    """What `encoder_model` was made of, up to rounding: the encoder's weights, `weigh`, `none.weight` and `none.bias`."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {}
    for name, value in found.items():
        matrix, _, kind = name.rpartition(".")
        if kind == "int8":
            exact = value.astype(np.float32) * found[f"{matrix}.scale"]
            exact = exact if matrix == "words" else np.ascontiguousarray(exact.T)
            weights[f"{matrix}.weight"] = exact * found.get(f"{matrix}.smooth", np.float32(1))
        elif kind in ("weight", "bias"):
            weights[name] = value
    weights |= {"positions.weight": found["positions"], "segments.weight": found["segments.table"]}
    weights |= {"weigh": found["weigh"].reshape(1, -1), "none.weight": found["none.weight"].reshape(1, -1)}
    return weights


def _model(graph: Graph, table_width: int) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT32, ["rows", "length"]) for n in ("ids", "segments")]
    outputs = [
        helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["rows", table_width]),
        helper.make_tensor_value_info("none", TensorProto.FLOAT, ["rows"]),
    ]
    made = helper.make_graph(graph.nodes, "fingerpost", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(made, opset_imports=opsets, producer_name="fingerpost", ir_version=9)


def _embeddings(graph: Graph, weights: Mapping[str, Array]) -> str:
    table = weights["words.weight"]
    scales = np.maximum(np.abs(table).max(1, keepdims=True), 1e-8) / 127
    graph.constant("words.int8", np.rint(table / scales).astype(np.int8))
    graph.constant("words.scale", scales.astype(np.float32))
    raw = graph.node("Cast", [graph.node("Gather", ["words.int8", "ids"], "words.raw")], "words.float", to=TensorProto.FLOAT)
    words = graph.node("Mul", [raw, graph.node("Gather", ["words.scale", "ids"], "words.scales")], "words.out")
    places = graph.constant("positions", weights["positions.weight"][:256])
    length = graph.node("Shape", ["ids"], "length", start=1, end=2)
    zero = graph.constant("zero", np.array([0], np.int64))
    positions = graph.node("Slice", [places, zero, length, zero], "positions.out")
    graph.constant("segments.table", weights["segments.weight"])
    segments = graph.node("Gather", ["segments.table", "segments"], "segments.out")
    return graph.norm(graph.node("Add", [words, positions], "placed"), segments, "norm", weights)


def _masks(graph: Graph) -> tuple[str, str]:
    """The names of the rows' lengths and of what is added to the padding's weights, rows x length x 1."""
    said = graph.node("Cast", [graph.node("Cast", ["ids"], "said", to=TensorProto.BOOL)], "said.int", to=TensorProto.INT32)
    axis, last = graph.constant("length.axis", np.array([1], np.int64)), graph.constant("last", np.array([2], np.int64))
    lengths = graph.node("ReduceSum", [said, axis], "lengths", keepdims=0)
    padding = graph.node("Cast", [graph.node("Not", ["said"], "padding")], "padding.float", to=TensorProto.FLOAT)
    barred = graph.node("Mul", [padding, graph.constant("never", np.array(NEVER, np.float32))], "barred")
    return lengths, graph.node("Unsqueeze", [barred, last], "barred.column")
