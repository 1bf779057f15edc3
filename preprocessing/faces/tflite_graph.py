"""Runs a TFLite graph with torch; only the operators that the face networks of MediaPipe use.

Field numbers and codes are those of TensorFlow's schema.fbs. Anything unknown is refused when the file is
opened. Weights stored as float16 become float32 then, once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib.util import UserError
from preprocessing.faces.flatbuffer import Table

TorchFunction = Callable[..., Tensor]
_SAME, _VALID = 0, 1  # paddings
_ACTIVATIONS: Mapping[int, TorchFunction] = {0: lambda x: x, 1: torch.relu}
_TYPES = {0: '<f4', 1: '<f2', 2: '<i4'}
Option = tuple[int, str, int]  # number of the field, its type, its default


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Returns how many zeros TensorFlow's SAME puts before and after an axis: ceil(size / stride) remain."""
    reach = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _pad(
    x: Tensor, kernel: Sequence[int], options: Mapping[str, int], value: float
) -> tuple[Tensor, list[int]]:
    """Does what the padding of a window says to NCHW.

    Returns:
        the picture, padded where the two ends of an axis differ; and the padding that is left to the
        operator, which need not copy for it.
    """
    if options['padding'] == _VALID:
        return x, [0, 0]
    dilations = options.get('dilation_h', 1), options.get('dilation_w', 1)
    vertical = same_padding(x.shape[2], kernel[0], options['stride_h'], dilations[0])
    horizontal = same_padding(x.shape[3], kernel[1], options['stride_w'], dilations[1])
    if vertical[0] == vertical[1] and horizontal[0] == horizontal[1]:
        return x, [vertical[0], horizontal[0]]
    return F.pad(x, (*horizontal, *vertical), value=value), [0, 0]


def _convolution(depthwise: bool) -> Callable[..., TorchFunction]:
    def build(**options: int) -> TorchFunction:
        activation = _ACTIVATIONS[options['activation']]
        stride = options['stride_h'], options['stride_w']
        dilation = options['dilation_h'], options['dilation_w']

        def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            weight = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)
            x = x.permute(0, 3, 1, 2)  # of NHWC in memory: torch's channels_last
            groups = x.shape[1] if depthwise else 1
            x, padding = _pad(x, weight.shape[2:], options, 0.0)
            y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
            return activation(y).permute(0, 2, 3, 1)

        return run

    return build


def _max_pool(**options: int) -> TorchFunction:
    activation = _ACTIVATIONS[options['activation']]
    kernel, stride = (options['kernel_h'], options['kernel_w']), (options['stride_h'], options['stride_w'])

    def run(x: Tensor) -> Tensor:
        x, padding = _pad(x.permute(0, 3, 1, 2), kernel, options, -torch.inf)
        return activation(F.max_pool2d(x, kernel, stride, padding)).permute(0, 2, 3, 1)

    return run


def _add(*, activation: int) -> TorchFunction:
    return lambda a, b: _ACTIVATIONS[activation](a + b)


def _concatenation(*, axis: int, activation: int) -> TorchFunction:
    return lambda *xs: _ACTIVATIONS[activation](torch.cat(xs, axis))


def _constant_pad(*, paddings: Sequence[Sequence[int]]) -> TorchFunction:
    flat = [n for pair in reversed(paddings) for n in pair]  # torch begins with the last axis
    return lambda x: F.pad(x, flat)


def _reshape(*, shape: Sequence[int]) -> TorchFunction:
    if shape[0] != 1:
        raise ValueError(f'its shape is {list(shape)}, supported is a batch of 1')
    return lambda x: x.reshape(x.shape[0], *shape[1:])


def _prelu() -> TorchFunction:
    return lambda x, slope: F.prelu(x.permute(0, 3, 1, 2), slope.flatten()).permute(0, 2, 3, 1)


_WINDOW: dict[str, Option] = {
    'padding': (0, 'i1', _SAME),
    'stride_w': (1, '<i4', 0),
    'stride_h': (2, '<i4', 0),
}


@dataclasses.dataclass(frozen=True)
class Operator:
    """How to read and build an operator."""

    name: str
    build: Callable[..., TorchFunction]
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    static: str = ''  # what the second input says if it must be a constant, treated as an option


OPERATORS: Mapping[int, Operator] = {  # by code
    0: Operator('ADD', _add, {'activation': (0, 'i1', 0)}),
    2: Operator('CONCATENATION', _concatenation, {'axis': (0, '<i4', 0), 'activation': (1, 'i1', 0)}),
    3: Operator(
        'CONV_2D',
        _convolution(depthwise=False),
        _WINDOW | {'activation': (3, 'i1', 0), 'dilation_w': (4, '<i4', 1), 'dilation_h': (5, '<i4', 1)},
    ),
    4: Operator(
        'DEPTHWISE_CONV_2D',
        _convolution(depthwise=True),
        _WINDOW | {'activation': (4, 'i1', 0), 'dilation_w': (5, '<i4', 1), 'dilation_h': (6, '<i4', 1)},
    ),
    6: Operator('DEQUANTIZE', lambda: Tensor.float),
    17: Operator(
        'MAX_POOL_2D',
        _max_pool,
        _WINDOW | {'kernel_w': (3, '<i4', 0), 'kernel_h': (4, '<i4', 0), 'activation': (5, 'i1', 0)},
    ),
    19: Operator('RELU', lambda: torch.relu),
    22: Operator('RESHAPE', _reshape, static='shape'),
    34: Operator('PAD', _constant_pad, static='paddings'),
    54: Operator('PRELU', _prelu),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A node of the graph; values are named by the numbers of their tensors."""

    function: TorchFunction
    inputs: Sequence[int]
    output: int


class TfliteGraph(nn.Module):
    """A TFLite graph of one input as a module; pictures are NHWC as in the file, any batch size.

    Args:
        data: the content of the .tflite file.

    Raises:
        UserError: if it is no TFLite model, or needs something that is not supported.
    """

    def __init__(self, data: bytes):
        super().__init__()
        try:
            self._read(data)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f'this is not a TFLite model, or damaged: {error}') from error

    def _read(self, data: bytes) -> None:
        if data[4:8] != b'TFL3':
            raise ValueError('it does not begin as one')
        model = Table.root(data)
        codes = [max(t.scalar(0, 'i1'), t.scalar(3, '<i4')) for t in model.tables(1)]  # old field, and new
        (graph,) = model.tables(2)
        buffers = [t.vector(0, 'u1') for t in model.tables(4)]
        tensors = graph.tables(0)
        constants = {
            i: _constant(t, buffers) for i, t in enumerate(tensors) if len(buffers[t.scalar(2, '<u4')])
        }
        (self._input,) = graph.vector(1, '<i4').tolist()
        self._outputs = {tensors[i].text(3): i for i in graph.vector(2, '<i4').tolist()}
        self._steps: list[Step] = []
        for node in graph.tables(3):
            step = _build_step(node, codes[node.scalar(0, '<u4')], constants)
            if all(i in constants for i in step.inputs):
                constants[step.output] = step.function(*(constants[i] for i in step.inputs))
            else:
                self._steps.append(step)
        self._constants = sorted({i for step in self._steps for i in step.inputs} & set(constants))
        for i in self._constants:
            self.register_buffer(f'constant_{i}', constants[i])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the graph's outputs by name; the same bits with any number of threads."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small pictures gain nothing by more, but the order of sums would change
        try:
            return self._run(x)
        finally:
            torch.set_num_threads(threads)

    def _run(self, x: Tensor) -> dict[str, Tensor]:
        values = {i: getattr(self, f'constant_{i}') for i in self._constants}
        values[self._input] = x
        for step in self._steps:
            values[step.output] = step.function(*(values[i] for i in step.inputs))
        return {name: values[i] for name, i in self._outputs.items()}


def _constant(tensor: Table, buffers: Sequence[np.ndarray]) -> Tensor:
    kind = tensor.scalar(1, 'i1')
    if kind not in _TYPES:
        raise UserError(f'tensor {tensor.text(3)!r} of the TFLite graph has the unsupported type {kind}')
    values = buffers[tensor.scalar(2, '<u4')].view(_TYPES[kind]).reshape(tensor.vector(0, '<i4'))
    return torch.from_numpy(values.copy())


def _build_step(node: Table, code: int, constants: Mapping[int, Tensor]) -> Step:
    if code not in OPERATORS:
        known = ', '.join(f'{o.name} ({c})' for c, o in OPERATORS.items())
        raise UserError(f'the TFLite graph has an operator of the unknown code {code}; known are {known}')
    operator = OPERATORS[code]
    inputs = [i for i in node.vector(1, '<i4').tolist() if i >= 0]  # -1 = left out
    (output,) = node.vector(2, '<i4').tolist()
    table = node.table(4)
    options: dict[str, Any] = {
        name: default if table is None else table.scalar(number, kind, default)
        for name, (number, kind, default) in operator.options.items()
    }
    if options.get('activation', 0) not in _ACTIVATIONS:
        raise UserError(f'{operator.name} of the TFLite graph has an unsupported activation')
    if operator.static and len(inputs) == 2:
        options[operator.static] = constants[inputs.pop(1)].tolist()
    elif operator.static:  # a RESHAPE may say it in its options instead
        options[operator.static] = table.vector(0, '<i4').tolist()
    return Step(operator.build(**options), inputs, output)
