"""What finds broken heads, shown known damage: the damage itself, and the command on a small network."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from studies import broken, nearest, truth
from studies.broken import Seen
from support import tiny
from torch_utils.checkpoint import save_snapshot


def pixels(images, _device):
    return images.reshape(len(images), -1)


def test_damage_is_as_large_as_it_says():
    images = torch.zeros(8, 3, 32, 32)
    images[..., ::2] = 0.5  # stripes one pixel wide
    found = nearest.damaged(images, 0)
    assert torch.equal(found['real, along other paths'], images)
    noise = (found['real, noise of 2 gray levels'] - images) * 127.5
    assert noise.std() == pytest.approx(2, rel=0.02) and abs(noise.mean()) < 0.02
    blur = found['real, blur of 0.7 pixels'][..., 8:24]
    assert blur.std() < 0.5 * found['real, blur of 0.5 pixels'][..., 8:24].std() < 0.5 * images.std()
    assert found['real, half the resolution'].shape == images.shape
    assert found['real, half the resolution'][..., 8:24].std() < 0.2 * images.std()


def test_fine_detail_is_what_a_blur_takes_away():
    rows = torch.arange(64.0)
    waves = [torch.sin(2 * torch.pi * rows / period).expand(1, 3, 64, 64) for period in (3, 8)]
    fine, coarse = map(nearest.fine_detail, waves)
    assert coarse < 1e-3 * fine
    assert nearest.fine_detail(waves[0] / 2) == pytest.approx(fine / 4)


def test_command(data, tmp_path, monkeypatch):
    save_snapshot(tmp_path / 'a.pkl', {'G_ema': tiny.solid_generator()}, {'kimg': 1.0})
    moved = np.full((5, 2, 32, 32, 3), 100, np.uint8)
    real = moved[:, 0].transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    border = np.full(9, np.sqrt(3 * 32 * 32) / 127.5)  # as far as noise of one level
    seen = Seen(pixels(real, None), 1.5 * border, 3 * border)
    monkeypatch.setattr(truth, 'load_truth', lambda *_: SimpleNamespace(moved=moved))
    monkeypatch.setattr(broken, 'features_of_data', lambda *_: seen)
    monkeypatch.setattr(broken, 'features', pixels)
    args = ['--data', data, '--count', '4', '--device', 'cpu', '--network', str(tmp_path / 'a.pkl')]
    done = CliRunner().invoke(nearest.main, args)
    assert done.exit_code == 0, done.output
    rows = {
        row[0]: row[1:]
        for row in (re.split(r' *\| *', line.strip('| ')) for line in done.output.splitlines())
    }
    assert rows['real, along other paths'] == ['0.00', '0.0%', '0.0%', '1.00']
    size = np.sqrt(3 * 32 * 32) / 127.5  # distance of noise of one level
    assert float(rows['real, noise of 1 gray levels'][0]) == pytest.approx(size, abs=0.03)
    assert rows['real, noise of 1 gray levels'][1:3] == ['0.0%', '0.0%']
    assert rows['real, noise of 2 gray levels'][1:3] == ['100.0%', '0.0%']
    assert rows['real, noise of 4 gray levels'][1:3] == ['100.0%', '100.0%']
    assert rows['a.pkl'][1] == '100.0%'


def test_a_network_of_another_size_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        truth, 'load_truth', lambda *_: SimpleNamespace(moved=np.zeros((5, 2, 32, 32, 3), np.uint8))
    )
    monkeypatch.setattr(broken, 'features_of_data', lambda *_: None)
    save_snapshot(tmp_path / 'a.pkl', {'G_ema': tiny.generator(resolution=64)}, {'kimg': 1.0})
    args = ['--data', data, '--count', '2', '--device', 'cpu', '--network', str(tmp_path / 'a.pkl')]
    done = CliRunner().invoke(nearest.main, args)
    assert done.exit_code == 1 and 'a.pkl makes 64x64 images, --data holds 32x32' in done.output
