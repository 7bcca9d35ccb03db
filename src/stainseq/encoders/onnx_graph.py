"""Our own networks as ONNX graphs, by walking their torch.fx trace.

torch's exporters change between releases and need further packages; our networks use a dozen operations,
so a walk over the trace with the shapes of one example is short and exact. Batch norms are folded in
float64. The batch size stays open.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import DependencyError, StainseqError
from .layers import ConvUnit

if TYPE_CHECKING:
    from onnx import NodeProto

OPSET = 18
LEAVES = (ConvUnit, nn.Conv2d, nn.GroupNorm, nn.ReplicationPad2d)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LEAVES, nn.Identity))


class _Writer(fx.Interpreter):
    """Runs the trace on one example and notes an ONNX node for each step."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        from onnx import helper, numpy_helper

        self.helper, self.numpy_helper = helper, numpy_helper
        self.nodes: list[NodeProto] = []
        self.weights: list[Any] = []
        self.seen: dict[str, str] = {}
        self.current = ""

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype)
        array = np.ascontiguousarray(array)
        key = f"{array.dtype}{array.shape}" + (repr(array.tolist()) if array.size < 16 else str(len(self.weights)))
        if key not in self.seen:
            self.seen[key] = f"constant.{len(self.weights)}"
            self.weights.append(self.numpy_helper.from_array(array, self.seen[key]))
        return self.seen[key]

    def emit(self, op: str, inputs: list[str], *, last: bool = False, **attributes: Any) -> str:
        out = self.current if last else f"{self.current}.{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(op, inputs, [out], **attributes))
        return out

    def ref(self, arg: Any) -> str:
        return arg.name if isinstance(arg, fx.Node) else self.constant(arg)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.current = n.name
        if n.op == "get_attr":
            self.nodes.append(self.helper.make_node("Identity", [self.constant(value)], [n.name]))
        elif n.op == "call_module":
            module = self.module.get_submodule(str(n.target))
            shape = self.env[n.args[0]].shape  # type: ignore[index]
            _MODULES[type(module)](self, module, n.args[0].name, shape)  # type: ignore[union-attr]
        elif n.op in ("call_function", "call_method"):
            rule = _RULES.get(n.target)
            if rule is None:
                raise StainseqError(f"operation {n.target} has no ONNX form", where=n.name)
            rule(self, n)
        return value


def _activation(w: _Writer, x: str, act: str | None) -> None:
    if act == "relu6":
        w.emit("Clip", [x, w.constant(0.0), w.constant(6.0)], last=True)
    elif act == "relu":
        w.emit("Relu", [x], last=True)


def _conv_unit(w: _Writer, m: ConvUnit, x: str, shape: tuple[int, ...]) -> None:
    weight, bias = m.folded()
    pads = list(m.pads(shape[-2], shape[-1]))
    if m.edge:
        x, pads = _with_border(w, x, pads), [0, 0, 0, 0]
    out = w.emit("Conv", [x, w.constant(weight), w.constant(bias)], last=m.act is None,
                 kernel_shape=[m.kernel] * 2, strides=[m.stride] * 2, group=m.groups, pads=pads)  # fmt: skip
    _activation(w, out, m.act)


def _conv(w: _Writer, m: nn.Conv2d, x: str, shape: tuple[int, ...]) -> None:
    inputs = [x, w.constant(m.weight)] + ([w.constant(m.bias)] if m.bias is not None else [])
    pad = [int(p) for p in m.padding]
    if m.padding_mode == "replicate" and any(pad):
        inputs[0], pad = _with_border(w, x, pad + pad), [0, 0]
    w.emit("Conv", inputs, last=True, kernel_shape=list(m.kernel_size), strides=list(m.stride), group=m.groups,
           pads=pad + pad)  # fmt: skip


def _with_border(w: _Writer, x: str, pads: list[int], *, last: bool = False) -> str:
    """Repeat the border: rows and columns at top, left, bottom, right."""
    top, left, bottom, right = pads
    if not any(pads):
        return x
    amounts = w.constant([0, 0, top, left, 0, 0, bottom, right], np.int64)
    return w.emit("Pad", [x, amounts], last=last, mode="edge")


def _repeat_border(w: _Writer, m: nn.ReplicationPad2d, x: str, shape: tuple[int, ...]) -> None:
    left, right, top, bottom = m.padding
    _with_border(w, x, [top, left, bottom, right], last=True)


def _group_norm(w: _Writer, m: nn.GroupNorm, x: str, shape: tuple[int, ...]) -> None:
    _, c, height, width = shape
    ones, zeros = np.ones(m.num_groups), np.zeros(m.num_groups)
    flat = w.emit("Reshape", [x, w.constant([0, m.num_groups, -1], np.int64)])
    normal = w.emit("InstanceNormalization", [flat, w.constant(ones), w.constant(zeros)], epsilon=m.eps)
    back = w.emit("Reshape", [normal, w.constant([0, c, height, width], np.int64)])
    gain = w.emit("Mul", [back, w.constant(m.weight.detach().view(-1, 1, 1))])
    w.emit("Add", [gain, w.constant(m.bias.detach().view(-1, 1, 1))], last=True)


def _identity(w: _Writer, m: nn.Module, x: str, shape: tuple[int, ...]) -> None:
    w.emit("Identity", [x], last=True)


_MODULES: dict[type, Callable[..., None]] = {
    ConvUnit: _conv_unit,
    nn.Conv2d: _conv,
    nn.GroupNorm: _group_norm,
    nn.ReplicationPad2d: _repeat_border,
    nn.Identity: _identity,
}


def _binary(op: str) -> Callable[[_Writer, fx.Node], None]:
    return lambda w, n: void(w.emit(op, [w.ref(a) for a in n.args], last=True))


def _unary(op: str) -> Callable[[_Writer, fx.Node], None]:
    return lambda w, n: void(w.emit(op, [w.ref(n.args[0])], last=True))


def void(_: object) -> None:
    """Drop a value."""


def _permute(w: _Writer, n: fx.Node) -> None:
    w.emit("Transpose", [w.ref(n.args[0])], last=True, perm=list(n.args[1:]))


def _transpose(w: _Writer, n: fx.Node) -> None:
    w.emit("Transpose", [w.ref(n.args[0])], last=True, perm=[1, 0])


def _float(w: _Writer, n: fx.Node) -> None:
    w.emit("Cast", [w.ref(n.args[0])], last=True, to=1)


def _reduce(op: str) -> Callable[[_Writer, fx.Node], None]:
    def rule(w: _Writer, n: fx.Node) -> None:
        axes = list(n.args[1]) if isinstance(n.args[1], (tuple, list)) else [n.args[1]]
        keep = int(bool(n.kwargs.get("keepdim", False)))
        w.emit(op, [w.ref(n.args[0]), w.constant(axes, np.int64)], last=True, keepdims=keep)

    return rule


def _clamp_min(w: _Writer, n: fx.Node) -> None:
    w.emit("Max", [w.ref(n.args[0]), w.constant(float(n.args[1]))], last=True)  # type: ignore[arg-type]


def _cat(w: _Writer, n: fx.Node) -> None:
    axis = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim", 0)
    w.emit("Concat", [w.ref(a) for a in n.args[0]], last=True, axis=axis)  # type: ignore[union-attr]


def _log10(w: _Writer, n: fx.Node) -> None:
    w.emit("Mul", [w.emit("Log", [w.ref(n.args[0])]), w.constant(1 / np.log(10))], last=True)


def _clamp(w: _Writer, n: fx.Node) -> None:
    low, high = (w.constant(float(v)) for v in n.args[1:3])  # type: ignore[arg-type]
    w.emit("Clip", [w.ref(n.args[0]), low, high], last=True)


def _conv2d(w: _Writer, n: fx.Node) -> None:
    w.emit("Conv", [w.ref(a) for a in n.args[:2]], last=True)


def _flatten(w: _Writer, n: fx.Node) -> None:
    kept = [0] * int(n.args[1])  # type: ignore[arg-type]
    w.emit("Reshape", [w.ref(n.args[0]), w.constant([*kept, -1], np.int64)], last=True)


def _unsqueeze(w: _Writer, n: fx.Node) -> None:
    w.emit("Unsqueeze", [w.ref(n.args[0]), w.constant([n.args[1]], np.int64)], last=True)


def _topk(w: _Writer, n: fx.Node) -> None:
    inputs = [w.ref(n.args[0]), w.constant([n.args[1]], np.int64)]
    largest = int(bool(n.kwargs["largest"]))
    w.nodes.append(
        w.helper.make_node("TopK", inputs, [n.name, f"{n.name}.places"], axis=n.kwargs["dim"], largest=largest)
    )


def _values(w: _Writer, n: fx.Node) -> None:
    w.emit("Identity", [w.ref(n.args[0])], last=True)


def _mish(w: _Writer, n: fx.Node) -> None:
    # tanh(softplus(x)) = (1 - t^2) / (1 + t^2) with t = sigmoid(-x): no overflow, and twice as fast in ONNX
    # Runtime, whose softplus is not vectorised.
    x, one = w.ref(n.args[0]), w.constant(1.0)
    t = w.emit("Sigmoid", [w.emit("Neg", [x])])
    square = w.emit("Mul", [t, t])
    ratio = w.emit("Div", [w.emit("Sub", [one, square]), w.emit("Add", [one, square])])
    w.emit("Mul", [x, ratio], last=True)


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * 2


def _pool(op: str) -> Callable[[_Writer, fx.Node], None]:
    def rule(w: _Writer, n: fx.Node) -> None:
        given = {"padding": 0, **dict(zip(("kernel_size", "stride", "padding"), n.args[1:], strict=False)), **n.kwargs}
        pads = _pair(given["padding"])
        w.emit(op, [w.ref(n.args[0])], last=True, kernel_shape=_pair(given["kernel_size"]),
               strides=_pair(given["stride"]), pads=pads + pads)  # fmt: skip

    return rule


def _slice(w: _Writer, n: fx.Node) -> None:
    index = n.args[1] if isinstance(n.args[1], tuple) else (n.args[1],)
    cuts = [(axis, s) for axis, s in enumerate(index) if isinstance(s, slice) and s != slice(None)]
    far = np.iinfo(np.int64).max
    starts = w.constant([s.start or 0 for _, s in cuts], np.int64)
    stops = w.constant([far if s.stop is None else s.stop for _, s in cuts], np.int64)
    w.emit("Slice", [w.ref(n.args[0]), starts, stops, w.constant([a for a, _ in cuts], np.int64)], last=True)


_RULES: dict[Any, Callable[[_Writer, fx.Node], None]] = {
    operator.add: _binary("Add"),
    operator.mul: _binary("Mul"),
    operator.sub: _binary("Sub"),
    operator.truediv: _binary("Div"),
    torch.matmul: _binary("MatMul"),
    torch.cat: _cat,
    torch.relu: _unary("Relu"),
    F.relu: _unary("Relu"),
    F.mish: _mish,
    F.max_pool2d: _pool("MaxPool"),
    F.avg_pool2d: _pool("AveragePool"),
    torch.amax: _reduce("ReduceMax"),
    torch.abs: _unary("Abs"),
    torch.ge: _binary("GreaterOrEqual"),
    torch.gt: _binary("Greater"),
    operator.getitem: _slice,
    torch.log10: _log10,
    torch.topk: _topk,
    getattr: _values,
    F.conv2d: _conv2d,
    "clamp": _clamp,
    "flatten": _flatten,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "t": _transpose,
    "float": _float,
    "mean": _reduce("ReduceMean"),
    "clamp_min": _clamp_min,
    "sqrt": _unary("Sqrt"),
}


def build(module: nn.Module, *, input_px: int) -> bytes:
    """Serialised ONNX model of a network.

    Parameters
    ----------
    module
        In eval mode; takes uint8 [n, input_px, input_px, 3] and returns one tensor.
    input_px
        Side of the input.

    Returns
    -------
    bytes of a ModelProto with one uint8 input (open batch size) and output "out" (float32).

    Raises
    ------
    DependencyError
        The package onnx is not installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as e:
        raise DependencyError("the package onnx is not installed", fix="pip install onnx, or runtime='torch'") from e
    tracer = _Tracer()
    graph = tracer.trace(module.eval())
    traced = fx.GraphModule(tracer.root, graph)
    writer = _Writer(traced)
    with torch.no_grad():
        # Only shapes are wanted; constants that the graph keeps come from the weights.
        out = writer.run(torch.zeros(1, input_px, input_px, 3, dtype=torch.uint8))
    nodes = list(graph.nodes)
    source, last = nodes[0].name, nodes[-1].args[0].name
    writer.nodes.append(helper.make_node("Identity", [last], ["out"]))
    model = helper.make_model(
        helper.make_graph(
            writer.nodes,
            "encoder",
            [helper.make_tensor_value_info(source, TensorProto.UINT8, ["n", input_px, input_px, 3])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", *out.shape[1:]])],
            writer.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="stainseq",
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
