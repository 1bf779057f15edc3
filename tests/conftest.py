"""Shared fixtures: a small data set, made without the renderer of heads, and the config of runs on it."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch

from support import foreign_files
from support.small_data import CLIPS, SIZE, smooth_clip, write_zip
from torch_utils.ops import kernels
from training.config import OutputConfig
from training.presets import tiny


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    """Makes sums independent of the machine, also in subprocesses."""
    torch.set_num_threads(1)
    os.environ['OMP_NUM_THREADS'] = '1'


@pytest.fixture(autouse=True)
def signals_as_before():
    """Takes back the signal handlers that train.py sets."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(n) for n in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def choose_kernels(monkeypatch):
    """Returns a function that sets what operators run, as the environment does for a new process."""

    def choose(value):
        monkeypatch.setenv(kernels.ENVIRONMENT, value)
        kernels.forget()

    yield choose
    monkeypatch.undo()
    kernels.forget()


@pytest.fixture(params=['ref', 'auto', kernels.DEVICE_BODY])
def implementation(request, choose_kernels):
    """A test runs with stock operators, with kernels, and with the CUDA kernels' code on the CPU."""
    if request.param != 'ref':
        try:
            kernels.load('cpu')
        except kernels.BuildError as err:
            pytest.skip(str(err))
    choose_kernels(request.param)


@pytest.fixture(scope='session')
def clip_files():
    """The files of a data set: name -> bytes; `dataset.json` among them."""
    files, labels = {}, []
    for clip in range(CLIPS):
        images, cameras = smooth_clip(np.random.default_rng(clip))
        for i, (image, camera) in enumerate(zip(images, cameras, strict=True)):
            name = f'{clip:06d}/{i:05d}.png'
            files[name] = image
            labels.append([name, camera])
    table = {'format': 'pv3d-dataset', 'version': 1, 'resolution': SIZE, 'fps': 25.0, 'labels': labels}
    return {'dataset.json': json.dumps(table).encode(), **files}


@pytest.fixture(scope='session')
def data(clip_files, tmp_path_factory):
    """Path of the data set as a zip."""
    return write_zip(tmp_path_factory.mktemp('data') / 'clips.zip', clip_files)


@pytest.fixture(scope='session')
def small(data):
    """A run that shows every phase within four steps, draws no images and probes nothing."""
    return dataclasses.replace(
        tiny(data),
        batch=2,
        g_reg_interval=2,
        d_reg_interval=3,
        total_nimg=12,
        output=OutputConfig(tick_nimg=4, snapshot_ticks=0, image_ticks=0, sheet_seeds=2, probe_ticks=0),
    )


@pytest.fixture(scope='session')
def networks():
    """The networks of a snapshot of 128 x 128 pixels, which the released layout can hold."""
    return foreign_files.small_networks()


@pytest.fixture
def ckpt(tmp_path, networks):
    """A .ckpt of these networks in the released layout."""
    foreign_files.save_ckpt(tmp_path / 'a.ckpt', foreign_files.released_model(networks))
    return tmp_path / 'a.ckpt'
