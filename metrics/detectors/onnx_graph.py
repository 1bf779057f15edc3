"""Runs an ONNX graph with torch, so that networks that exist only as .onnx run on any device, with gradients.

Only what SFace and YuNet need: the operators in OPERATORS with the attributes in their signatures. Anything
else is refused when the file is opened. What depends only on constants (dequantisation of weights) is
computed then, once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib.util import UserError

TorchFunction = Callable[..., Tensor]


def _symmetric(pads: Sequence[int]) -> list[int]:
    """Turns ONNX pads (all beginnings, all ends) into torch's one number per axis."""
    half = len(pads) // 2
    if list(pads[:half]) != list(pads[half:]):
        raise ValueError(f'pads {list(pads)} differ between the two ends of an axis')
    return list(pads[:half])


def _expect(name: str, value: Any, allowed: Any) -> None:
    if value != allowed:
        raise ValueError(f'{name} is {value!r}, supported is {allowed!r}')


def _conv(
    *,
    kernel_shape: Sequence[int] = (),  # the shape of the weight says it as well
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
) -> TorchFunction:
    padding = _symmetric(pads)
    return lambda x, weight, bias=None: F.conv2d(x, weight, bias, strides, padding, dilations, group)


def _batch_norm(*, epsilon: float = 1e-5, momentum: float = 0.9) -> TorchFunction:
    del momentum  # of training
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def _gemm(*, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0) -> TorchFunction:
    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = alpha * (a.T if transA else a) @ (b.T if transB else b)
        return product if c is None else product + beta * c

    return run


def _flatten(*, axis: int = 1) -> TorchFunction:
    _expect('axis', axis, 1)
    return lambda x: x.flatten(1)


def _dropout(*, ratio: float = 0.5, training_mode: bool = False) -> TorchFunction:
    del ratio  # of training
    _expect('training_mode', training_mode, False)
    return lambda x: x


def _reshape(*, shape: Sequence[int], allowzero: int = 0) -> TorchFunction:
    _expect('allowzero', allowzero, 0)
    return lambda x: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])


def _transpose(*, perm: Sequence[int]) -> TorchFunction:
    return lambda x: x.permute(*perm)


def _max_pool(
    *,
    kernel_shape: Sequence[int],
    ceil_mode: int = 0,
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
) -> TorchFunction:
    padding = _symmetric(pads)
    return lambda x: F.max_pool2d(x, kernel_shape, strides, padding, ceil_mode=bool(ceil_mode))


def _resize(
    *,
    scales: Sequence[float],
    roi: Sequence[float] = (),
    coordinate_transformation_mode: str = 'half_pixel',
    mode: str = 'nearest',
    nearest_mode: str = 'round_prefer_floor',
    cubic_coeff_a: float = -0.75,
) -> TorchFunction:
    del cubic_coeff_a  # of mode cubic
    _expect('roi', list(roi), [])
    _expect('mode', mode, 'nearest')
    _expect('coordinate_transformation_mode', coordinate_transformation_mode, 'asymmetric')
    _expect('nearest_mode', nearest_mode, 'floor')
    _expect('scales of batch and channels', list(scales[:2]), [1.0, 1.0])
    return lambda x: F.interpolate(x, scale_factor=list(scales[2:]), mode='nearest')


def _dequantize(*, axis: int = 1, block_size: int = 0) -> TorchFunction:
    """One scale per `block_size` neighbours along `axis`; without blocks one for all."""

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(scale.dtype)
        if block_size:
            length = x.shape[axis]
            scale, zero = (
                t.repeat_interleave(block_size, dim=axis).narrow(axis, 0, length) for t in (scale, zero)
            )
        return (x.to(scale.dtype) - zero) * scale

    return run


OPERATORS: Mapping[str, Callable[..., TorchFunction]] = {  # name -> from attributes to a function of tensors
    'Add': lambda: torch.add,
    'BatchNormalization': _batch_norm,
    'Conv': _conv,
    'DequantizeLinear': _dequantize,
    'Dropout': _dropout,
    'Flatten': _flatten,
    'Gemm': _gemm,
    'MaxPool': _max_pool,
    'Mul': lambda: torch.mul,
    'PRelu': lambda: lambda x, slope: torch.where(x >= 0, x, x * slope),
    'Relu': lambda: torch.relu,
    'Reshape': _reshape,
    'Resize': _resize,
    'Sigmoid': lambda: torch.sigmoid,
    'Sub': lambda: torch.sub,
    'Transpose': _transpose,
}
# Inputs that say how to compute: they must be constants and are treated as attributes.
STATIC_INPUTS: Mapping[str, Sequence[str]] = {
    'Dropout': ('ratio', 'training_mode'),
    'Reshape': ('shape',),
    'Resize': ('roi', 'scales'),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One node: which values go in and out."""

    function: TorchFunction
    inputs: Sequence[str]  # '' = an optional input that is left out
    output: str


class OnnxGraph(nn.Module):
    """An ONNX graph of one input as a module; constants are buffers (float ones follow `.double()`).

    Shapes are not checked against the file's: where the file's constants allow it, other batch and image
    sizes work. A Reshape to [1, -1, k] keeps its meaning for a batch: all its rows one after the other.

    Args:
        path: the .onnx file.

    Raises:
        UserError: if the package `onnx` is missing, or the file is not an ONNX model or needs an operator,
            attribute or value that is not supported.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        graph, constants = _read(path)
        inputs = [i.name for i in graph.input if i.name not in constants]
        used = {name for node in graph.node for name in node.input}
        inputs = [name for name in inputs if name in used]  # files list stale inputs, too
        if len(inputs) != 1:
            raise UserError(f'{path} must have one input, it has {", ".join(inputs) or "none"}')
        self.input_name = inputs[0]
        self.output_names = [o.name for o in graph.output]
        steps = []
        for node in graph.node:
            try:
                step = _build_step(node, constants)
            except (KeyError, TypeError, ValueError) as error:  # an unknown operator, attribute ...
                raise UserError(f'{path}: cannot run node {node.name!r} ({node.op_type}): {error}') from error
            if all(name == '' or name in constants for name in step.inputs):
                constants[step.output] = _call(step, constants)
            else:
                steps.append(step)
        self.steps = steps
        needed = {name for step in steps for name in step.inputs} & set(constants)
        self.constant_names = {name: f'constant_{i}' for i, name in enumerate(sorted(needed))}
        for name, attribute in self.constant_names.items():
            self.register_buffer(attribute, constants[name])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the graph's outputs by name."""
        values = {name: getattr(self, attribute) for name, attribute in self.constant_names.items()}
        values[self.input_name] = x
        for step in self.steps:
            values[step.output] = _call(step, values)
        return {name: values[name] for name in self.output_names}


def _read(path: str | Path) -> tuple[Any, dict[str, Tensor]]:
    """Returns the graph of an .onnx file and its initializers."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError as error:
        raise UserError(
            f'to read {path} needs the package onnx; install it with `pip install .[metrics]`'
        ) from error
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    except (DecodeError, ValueError, TypeError) as error:
        raise UserError(f'{path} is not an ONNX model, or corrupted: fetch it again ({error})') from error
    return graph, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _build_step(node: Any, constants: Mapping[str, Tensor]) -> Step:
    """Turns a node into a step; raises KeyError, TypeError or ValueError if something is not supported."""
    from onnx import helper, numpy_helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
    output, inputs = node.output[0], list(node.input)
    if node.op_type == 'Constant':
        value = torch.from_numpy(np.array(numpy_helper.to_array(attributes['value'])))
        return Step(lambda: value, [], output)
    if node.op_type in STATIC_INPUTS:
        for name, source in zip(STATIC_INPUTS[node.op_type], inputs[1:], strict=False):
            if source:
                attributes[name] = constants[source].tolist()
        inputs = inputs[:1]
    return Step(OPERATORS[node.op_type](**attributes), inputs, output)


def _call(step: Step, values: Mapping[str, Tensor]) -> Tensor:
    return step.function(*(values[name] if name else None for name in step.inputs))
