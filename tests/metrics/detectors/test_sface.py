import numpy as np
import pytest
import torch

from metrics.detectors.face_alignment import align_faces, find_faces, project_face_points
from metrics.detectors.sface import SFace
from metrics.detectors.yunet import YuNet
from support.real_faces import person, real_frames, sface_file, trimmed_onnx, yunet_file


@pytest.fixture(scope='module')
def sface():
    return SFace(sface_file())


def test_contract(sface):
    crops = torch.rand(3, 3, 112, 112) * 255
    embeddings = sface(crops)
    assert embeddings.shape == (3, 128) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(sface(crops[1:2]), embeddings[1:2], atol=1e-5, rtol=0)


def test_agrees_with_opencv_which_shows_that_it_wants_rgb(sface, tmp_path):
    cv2 = pytest.importorskip('cv2')
    frames = real_frames(24, 2)['generated48/rgb_0004.mp4'][0][:1]
    crop = align_faces(frames, find_faces(frames, YuNet(yunet_file()))[0][None]).round()
    recognizer = cv2.FaceRecognizerSF.create(trimmed_onnx(sface_file(), tmp_path), '')
    bgr = np.ascontiguousarray(crop[0].flip(0).permute(1, 2, 0).numpy().astype(np.uint8))
    theirs = torch.from_numpy(recognizer.feature(bgr))[0]
    theirs = theirs / theirs.norm()
    assert sface(crop)[0] @ theirs > 1 - 1e-5
    assert sface(crop.flip(1))[0] @ theirs < 0.9


def test_gradient():
    network, generator = SFace(sface_file()).double(), torch.Generator().manual_seed(0)
    crop, step = torch.rand((2, 1, 3, 112, 112), generator=generator, dtype=torch.float64) - 0.5
    weight = torch.rand(128, generator=generator, dtype=torch.float64) - 0.5
    crop = (crop * 200 + 128).requires_grad_()
    (network(crop) @ weight).sum().backward()
    with torch.no_grad():
        eps = 1e-6  # small, since every PReLU has a kink
        high, low = ((network(crop + sign * eps * step) @ weight).item() for sign in (1, -1))
    slope = (crop.grad * step).sum().item()
    assert abs(slope) > 1e-7 and slope == pytest.approx((high - low) / (2 * eps), rel=1e-4)


@pytest.mark.parametrize('protocol', ['found', 'projected'])
def test_people_are_told_apart(sface, protocol):
    clips = real_frames(24, 2)
    names = [name for name, (frames, _) in clips.items() for _ in frames]
    frames = torch.cat([frames for frames, _ in clips.values()])
    labels = torch.cat([labels for _, labels in clips.values()])
    if protocol == 'found':
        points = torch.stack(find_faces(frames, YuNet(yunet_file())))
    else:
        points = project_face_points(labels, frames.shape[-1])
    embeddings = sface(align_faces(frames, points))
    alike = embeddings @ embeddings.T
    people = np.array([person(name) for name in names])
    same = torch.from_numpy(people[:, None] == people[None])
    assert alike[~same].max() < 0.45
    assert alike[same].mean() > 0.85
    for someone in set(people):  # heads turn by up to 50 degrees
        rows = torch.from_numpy(people == someone)
        assert alike[rows][:, rows].mean() > 0.7, someone
    short, long = (torch.tensor([n == f'woman_{k}f.mp4' for n in names]) for k in (16, 120))
    assert alike[short][:, long].min() > 0.7
