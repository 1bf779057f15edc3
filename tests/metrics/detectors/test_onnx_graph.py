import sys

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from metrics.detectors.onnx_graph import OPERATORS, OnnxGraph
from support.real_faces import sface_file, trimmed_onnx, yunet_file

onnx = pytest.importorskip('onnx')
OPSET = 21


def save(path, nodes, constants, inputs, shape):
    """Writes a graph with the output `y`; inputs = {name: shape}."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        'test',
        [helper.make_tensor_value_info(k, float32, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info('y', float32, shape)],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=10)
    onnx.save(model, path)
    return path


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(*shape, low=-128, high=128):
    return np.random.default_rng(1).integers(low, high, shape).astype(np.int8)


X = (2, 4, 6, 8)  # of most cases
CASES = {  # operator -> [(attributes, constants that are its further inputs)]
    'Add': [({}, {'b': draw(4, 1, 1)})],
    'Sub': [({}, {'b': draw(4, 1, 1)})],
    'Mul': [({}, {'b': draw(1)})],
    'Relu': [({}, {})],
    'Sigmoid': [({}, {})],
    'PRelu': [({}, {'slope': draw(4, 1, 1)})],
    'BatchNormalization': [
        ({'epsilon': 0.1}, {'s': draw(4), 'b': draw(4, seed=1), 'm': draw(4, seed=2), 'v': draw(4) ** 2}),
    ],
    'Conv': [
        (
            {
                'kernel_shape': [3, 3],
                'pads': [1, 0, 1, 0],
                'strides': [2, 1],
                'dilations': [1, 2],
                'group': 2,
            },
            {'w': draw(6, 2, 3, 3), 'b': draw(6)},
        ),
        ({}, {'w': draw(3, 4, 1, 1)}),
    ],
    'MaxPool': [
        ({'kernel_shape': [3, 3], 'strides': [2, 2], 'pads': [1, 1, 1, 1]}, {}),
        ({'kernel_shape': [3, 3], 'strides': [2, 2], 'ceil_mode': 1}, {}),
    ],
    'Flatten': [({}, {})],
    'Dropout': [({}, {}), ({}, {'ratio': np.float32(0.4), 'training_mode': np.array(False)})],
    'Reshape': [({}, {'shape': np.array([0, -1, 4])}), ({}, {'shape': np.array([1, -1, 6])})],
    'Transpose': [({'perm': [0, 2, 3, 1]}, {})],
    'Resize': [
        (
            {'mode': 'nearest', 'nearest_mode': 'floor', 'coordinate_transformation_mode': 'asymmetric'},
            {'roi': np.zeros(0, np.float32), 'scales': np.array([1, 1, 2, 3], np.float32)},
        )
    ],
    'Gemm': [
        ({'transB': 1, 'alpha': 0.5, 'beta': 2.0}, {'b': draw(5, 8), 'c': draw(5)}),
        ({'transA': 1}, {'b': draw(6, 5)}),
    ],
}
DEQUANTIZE = [  # values, scales and zero points, attributes
    ((4, 9), (4, 3), {'axis': 1, 'block_size': 3}),
    ((4, 9), (4, 3), {'axis': 1, 'block_size': 4}),  # the last block is not full
    ((6, 3), (2, 3), {'axis': 0, 'block_size': 3}),
    ((4, 9), (), {}),
]


def run_both(path, x):
    """Returns what our executor and onnxruntime make of x."""
    session = pytest.importorskip('onnxruntime').InferenceSession(str(path))
    theirs = session.run(None, {session.get_inputs()[0].name: x})[0]
    return OnnxGraph(path)(torch.from_numpy(x))['y'].numpy(), theirs


def test_every_operator_has_a_case():
    assert set(CASES) | {'DequantizeLinear'} == set(OPERATORS)


@pytest.mark.parametrize(
    ('operator', 'case'), [(o, i) for o, cases in CASES.items() for i in range(len(cases))]
)
def test_operators_agree_with_onnxruntime(operator, case, tmp_path):
    attributes, constants = CASES[operator][case]
    node = onnx.helper.make_node(operator, ['x', *constants], ['y'], **attributes)
    x = draw(6, 8, seed=3) if operator == 'Gemm' else draw(*X, seed=3)
    path = save(tmp_path / 'a.onnx', [node], constants, {'x': x.shape}, None)
    ours, theirs = run_both(path, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('shape', 'scales', 'attributes'), DEQUANTIZE)
def test_dequantisation_agrees_with_onnxruntime(shape, scales, attributes, tmp_path):
    constants = {'q': integers(*shape), 's': np.exp(draw(*scales)), 'z': integers(*scales, low=-9, high=9)}
    constants = {k: np.asarray(v) for k, v in constants.items()}
    nodes = [
        onnx.helper.make_node('DequantizeLinear', ['q', 's', 'z'], ['w'], **attributes),
        onnx.helper.make_node('Add', ['x', 'w'], ['y']),
    ]
    path = save(tmp_path / 'a.onnx', nodes, constants, {'x': shape}, shape)
    ours, theirs = run_both(path, draw(*shape))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert len(OnnxGraph(path).steps) == 1, 'constants are computed when the file is opened'


def test_constants_follow_type_and_stale_inputs_do_not_count(tmp_path):
    value = onnx.numpy_helper.from_array(np.float32([0.5]))
    nodes = [
        onnx.helper.make_node('Constant', [], ['half'], value=value),
        onnx.helper.make_node('Sub', ['x', 'half'], ['a']),
        onnx.helper.make_node('Mul', ['a', 'b'], ['y']),
    ]
    inputs = {'x': (3,), 'b': (3,), 'left_over': (3,)}
    graph = OnnxGraph(save(tmp_path / 'a.onnx', nodes, {'b': np.float32([1, 2, 3])}, inputs, (3,))).double()
    x = torch.tensor([1.0, 2, 3], dtype=torch.float64, requires_grad=True)
    y = graph(x)['y']
    assert y.dtype == torch.float64 and y.tolist() == [0.5, 3, 7.5]
    y.sum().backward()
    assert x.grad.tolist() == [1, 2, 3]


BAD = [
    ('LSTM', {}, {}, 'LSTM'),
    ('Conv', {'auto_pad': 'SAME_UPPER'}, {'w': draw(3, 4, 1, 1)}, 'auto_pad'),
    ('Conv', {'pads': [0, 0, 1, 1]}, {'w': draw(3, 4, 1, 1)}, 'differ between the two ends'),
    ('MaxPool', {}, {}, 'kernel_shape'),
    ('Flatten', {'axis': 2}, {}, 'axis is 2'),
    ('Resize', {'mode': 'linear'}, {'roi': draw(0), 'scales': np.ones(4, np.float32)}, "mode is 'linear'"),
    ('Reshape', {}, {}, 'shape'),
    ('Dropout', {}, {'r': np.float32(0.4), 't': np.array(True)}, 'training_mode is True'),
]


@pytest.mark.parametrize(('operator', 'attributes', 'constants', 'message'), BAD)
def test_what_is_not_supported_is_refused_at_once(operator, attributes, constants, message, tmp_path):
    node = onnx.helper.make_node(operator, ['x', *constants], ['y'], name='here', **attributes)
    path = save(tmp_path / 'a.onnx', [node], constants, {'x': X}, None)
    with pytest.raises(UserError, match=message) as caught:
        OnnxGraph(path)
    assert str(path) in str(caught.value) and 'here' in str(caught.value)


def test_shapes_must_be_constant_and_the_input_single(tmp_path):
    nodes = [onnx.helper.make_node('Relu', ['x'], ['s']), onnx.helper.make_node('Reshape', ['x', 's'], ['y'])]
    with pytest.raises(UserError, match='Reshape'):
        OnnxGraph(save(tmp_path / 'a.onnx', nodes, {}, {'x': X}, None))
    node = onnx.helper.make_node('Add', ['x', 's'], ['y'])
    with pytest.raises(UserError, match='must have one input, it has x, s'):
        OnnxGraph(save(tmp_path / 'a.onnx', [node], {}, {'x': X, 's': X}, None))


def test_corrupted_files(tmp_path):
    path = tmp_path / 'a.onnx'
    for data in (b'', b'no network at all', yunet_file().read_bytes()[:60_000]):
        path.write_bytes(data)
        with pytest.raises(UserError, match='a.onnx'):
            OnnxGraph(path)


def test_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(UserError, match=r'pip install \.\[metrics\]'):
        OnnxGraph(tmp_path / 'a.onnx')


@pytest.mark.parametrize(('file', 'size'), [(sface_file, 112), (yunet_file, 640)])
def test_networks_agree_with_onnxruntime(file, size, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(trimmed_onnx(file(), tmp_path), options)
    x = np.random.default_rng(0).uniform(0, 255, (1, 3, size, size)).astype(np.float32)
    theirs = session.run(None, {session.get_inputs()[0].name: x})
    ours = OnnxGraph(file())(torch.from_numpy(x))
    assert list(ours) == [o.name for o in session.get_outputs()]
    for a, b in zip(ours.values(), theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=2e-5 * max(abs(b).max(), 1))


def test_a_batch_is_its_images():
    graph = OnnxGraph(yunet_file())
    x = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 3, 64, 96)).astype(np.float32))
    both, single = graph(x), [graph(x[:1]), graph(x[1:])]
    for name, value in both.items():
        torch.testing.assert_close(value, torch.cat([s[name] for s in single], dim=1), atol=1e-5, rtol=1e-5)
