import itertools
import struct

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from preprocessing.faces import files
from preprocessing.faces.flatbuffer import Table
from preprocessing.faces.tflite_graph import OPERATORS, TfliteGraph, same_padding
from support.paths import GOLDEN

GOLDEN_FILE = GOLDEN / 'face_networks.npz'
NETWORKS = {  # file -> size of the input, its lowest value
    'face_landmark.tflite': (192, 0),
    'face_detection_short_range.tflite': (128, -1),
}
TOLERANCE = {'conv2d_21': 1e-3, 'regressors': 1e-3}  # pixels of the input; 1e-4 of the rest


def waves(size, low):
    """A smooth colourful picture, float32 [1, size, size, 3] in low..1."""
    y, x = np.mgrid[:size, :size] / size
    channels = [np.sin(9 * x + k) * np.cos(7 * y - 2 * k) + 0.5 * np.sin(40 * x * y) for k in range(3)]
    picture = np.stack(channels, axis=-1) / 3 + 0.5
    return (low + (1 - low) * picture).astype(np.float32)[None]


def thinned(name, values):
    """The part of an output that is stored."""
    return values[:, ::8] if name in ('regressors', 'classificators') else values


def load(name):
    return TfliteGraph(files.read_data(name))


@torch.inference_mode()
def run(graph, x):
    return {name: y.numpy() for name, y in graph(torch.from_numpy(x)).items()}


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_are_those_that_litert_gave(name):
    """The golden file holds what ai-edge-litert 2.3.0 makes of `waves`."""
    ours = run(load(name), waves(*NETWORKS[name]))
    with np.load(GOLDEN_FILE) as golden:
        for key, y in ours.items():
            stored = golden[key]
            assert np.abs(stored).max() > 1
            np.testing.assert_allclose(thinned(key, y), stored, rtol=1e-5, atol=TOLERANCE.get(key, 1e-4))


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_are_those_of_litert(name):
    litert = pytest.importorskip('ai_edge_litert.interpreter')
    size, low = NETWORKS[name]
    x = np.random.default_rng(1).uniform(low, 1, (2, size, size, 3)).astype(np.float32)
    ours = run(load(name), x)
    reference = litert.Interpreter(model_content=files.read_data(name), num_threads=1)
    reference.allocate_tensors()
    for i in range(2):
        reference.set_tensor(reference.get_input_details()[0]['index'], x[i : i + 1])
        reference.invoke()
        for output in reference.get_output_details():
            key = output['name']
            theirs = reference.get_tensor(output['index'])
            np.testing.assert_allclose(ours[key][i : i + 1], theirs, rtol=1e-5, atol=TOLERANCE.get(key, 1e-4))


@pytest.mark.parametrize('name', NETWORKS)
def test_a_batch_is_its_pictures_one_by_one(name):
    graph, (size, low) = load(name), NETWORKS[name]
    x = np.concatenate([waves(size, low), waves(size, low)[:, ::-1]])
    both, second = run(graph, x), run(graph, x[1:])
    for key in both:
        np.testing.assert_allclose(both[key][1:], second[key], rtol=1e-5, atol=TOLERANCE.get(key, 1e-4))


def test_bits_do_not_depend_on_the_number_of_threads():
    graph, results = load('face_landmark.tflite'), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(run(graph, waves(192, 0))['conv2d_21'])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize('size, kernel, stride, dilation, expected', [
    (8, 3, 1, 1, (1, 1)),
    (8, 3, 2, 1, (0, 1)),
    (7, 3, 2, 1, (1, 1)),
    (128, 5, 2, 1, (1, 2)),
    (6, 2, 2, 1, (0, 0)),
    (8, 3, 1, 2, (2, 2)),
    (5, 1, 2, 1, (0, 0)),
])  # fmt: skip
def test_same_padding(size, kernel, stride, dilation, expected):
    assert same_padding(size, kernel, stride, dilation) == expected


def naive_windows(x, kernel, stride, same, fill):
    """Yields (row, column, window [N, h, w, C]) of NHWC as TensorFlow's documentation of padding says."""
    if same:
        pads = [same_padding(n, k, stride) for n, k in zip(x.shape[1:3], kernel, strict=True)]
        x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], kernel, strict=True))
    for i, j in itertools.product(range(rows), range(columns)):
        yield i, j, x[:, i * stride : i * stride + kernel[0], j * stride : j * stride + kernel[1]]


def build(name, **options):
    return next(o for o in OPERATORS.values() if o.name == name).build(**options)


@pytest.mark.parametrize('height, width', [(6, 6), (7, 6)])
@pytest.mark.parametrize('stride, same, activation', [(1, True, 0), (2, True, 1), (2, False, 0)])
@pytest.mark.parametrize('name', ['CONV_2D', 'DEPTHWISE_CONV_2D', 'MAX_POOL_2D'])
def test_windows_against_loops(name, height, width, stride, same, activation):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, 4)).astype(np.float32) - 2 * (name == 'MAX_POOL_2D')
    options = {'padding': 0 if same else 1, 'stride_w': stride, 'stride_h': stride, 'activation': activation}
    kernel, fill, constants = (3, 2), 0, []
    if name == 'MAX_POOL_2D':
        options |= {'kernel_h': 3, 'kernel_w': 2}
        fill = -np.inf
    else:
        shapes = [(5, 3, 2, 4), (5,)] if name == 'CONV_2D' else [(1, 3, 2, 4), (4,)]
        constants = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
        options |= {'dilation_w': 1, 'dilation_h': 1}
    ours = build(name, **options)(torch.from_numpy(x), *map(torch.from_numpy, constants)).numpy()
    for i, j, window in naive_windows(x, kernel, stride, same, fill):
        if name == 'MAX_POOL_2D':
            expected = window.max(axis=(1, 2))
        else:
            formula = 'nhwc,ohwc->no' if name == 'CONV_2D' else 'nhwc,ohwc->nc'
            expected = np.einsum(formula, window, constants[0]) + constants[1]
        expected = np.maximum(expected, 0) if activation else expected
        np.testing.assert_allclose(ours[:, i, j], expected, atol=1e-5)
    assert ours.shape[1:3] == (i + 1, j + 1)


def test_elementwise_operators():
    x = torch.arange(-6.0, 6.0).reshape(1, 2, 2, 3)
    slope = torch.tensor([[[0.5, 0.0, 2.0]]])
    assert build('PRELU')(x, slope)[0, 0].tolist() == [[-3, 0, -8], [-1.5, 0, -2]]
    assert build('RELU')(x).min() == 0
    assert build('ADD', activation=1)(x, x).flatten().tolist() == [0] * 6 + [0, 2, 4, 6, 8, 10]
    padded = build('PAD', paddings=[[0, 0], [1, 0], [0, 2], [0, 1]])(x)
    assert padded.shape == (1, 3, 4, 4) and padded[0, 1:, :2, :3].equal(x[0]) and padded.sum() == x.sum()
    assert build('RESHAPE', shape=[1, 4, 3])(torch.cat([x, x])).shape == (2, 4, 3)
    assert build('CONCATENATION', axis=1, activation=0)(x, x).shape == (1, 4, 2, 3)
    with pytest.raises(ValueError, match='supported is a batch of 1'):
        build('RESHAPE', shape=[2, 6])


def test_tables_of_a_flatbuffer():
    """Written by hand: field 0 = int8, 1 is not stored, 2 = vector of int32, 3 = vector of one table."""
    vtable = struct.pack('<6H', 12, 16, 4, 0, 8, 12)  # sizes of itself and the table, places in the table
    data = struct.pack('<I', 16) + vtable  # the root table is at 16, its vtable 12 before
    data += struct.pack('<ib3xII', 12, -7, 8, 16)  # vector at 24 + 8, tables at 28 + 16
    data += struct.pack('<Iii', 2, 5, -6)
    data += struct.pack('<II', 1, 4)  # table at 48 + 4
    data += struct.pack('<ib', 48, -9)  # the same vtable
    table = Table.root(data)
    assert (table.scalar(0, 'i1'), table.scalar(1, '<i4', 9), table.scalar(40, '<i4', 3)) == (-7, 9, 3)
    assert table.vector(2, '<i4').tolist() == [5, -6] and table.vector(1, '<i4').tolist() == []
    assert [child.scalar(0, 'i1') for child in table.tables(3)] == [-9]
    assert table.table(1) is None and table.tables(1) == [] and table.text(1) == ''
    with pytest.raises(ValueError, match='it ends before byte'):
        Table.root(data[:36]).vector(2, '<i4')


def test_what_is_not_supported_is_said(monkeypatch):
    monkeypatch.delitem(OPERATORS, 54)
    with pytest.raises(UserError, match='operator of the unknown code 54; known are ADD'):
        load('face_landmark.tflite')
    load('face_detection_short_range.tflite')  # has none


@pytest.mark.parametrize('length', [0, 7, 8, 1000, 200_000])
def test_broken_models_are_named_so(length):
    data = files.read_data('face_detection_short_range.tflite')
    with pytest.raises(UserError, match='not a TFLite model, or damaged'):
        TfliteGraph(data[:length])


def test_data_is_checked(tmp_path):
    name = 'face_geometry.binarypb'
    data = bytearray(files.read_data(name))
    data[100] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f'{name} is damaged'):
        files.read_data(name, tmp_path)
    with pytest.raises(UserError, match='face_landmark.tflite'):
        files.read_data('face_landmark.tflite', tmp_path)
