"""Sheets: labels beside whole images, and what a training tick draws."""

import numpy as np
import torch

from support import tiny
from viz import images, rollout, sheets, trajectories


def test_contact_sheet_keeps_images_whole():
    rows = [np.full((3, 40, 60, 3), value, np.uint8) for value in (50, 90)]
    sheet = sheets.contact_sheet(rows, ['yaw 0', 'yaw 30'], ['a', 'b', 'c'])
    height, width = sheet.shape[:2]
    assert (height - 80, width % 60) == (20, (width - 180) % 60)
    assert (sheet[20:60, -180:] == 50).all()
    assert (sheet[60:, -180:] == 90).all()
    for part in (sheet[:20, -180:], sheet[20:60, :-180]):  # labels: dark letters on white
        assert part.max() == 255
        assert part.min() < 100
    assert sheets.contact_sheet(rows).shape == (80, 180, 3)


def test_training_sheets():
    G = tiny.generator().eval()
    cameras = trajectories.orbit(3)
    drawn = sheets.training_sheets(G, range(6), cameras)
    assert {name: s.shape for name, s in drawn.items()} == {
        'fakes': (64, 96, 3),
        'depth': (2 * 128, 3 * 128, 3),
        'views': (4 * 128 + 20, 3 * 128, 3),
        'strip': (4 * 32 + 20, 8 * 32, 3),
        'video': (16, 256, 256, 3),
    }
    codes = rollout.draw_codes(G, 4)  # second row, second column: camera 4 % 3
    label = cameras[1:2]
    with torch.no_grad():
        expected = images.to_uint8(G(codes.z_a, codes.z_m, torch.tensor([0.5]), label).image)[0]
    assert np.abs(drawn['fakes'][32:, 32:64].astype(int) - expected).max() <= 1
    strip, video = drawn['strip'][20:], drawn['video']
    assert (strip[:32, :32] == video[0, :128:4, :128:4]).all()  # t = 0
    assert (strip[:32, -32:] == video[14, :128:4, :128:4]).all()  # every second of 16 frames
    assert (strip[:32, :32] != strip[:32, -32:]).any()
