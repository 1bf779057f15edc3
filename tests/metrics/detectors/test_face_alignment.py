import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metrics.detectors import face_alignment as alignment
from metrics.detectors import yunet as yunet_module
from metrics.detectors.face_alignment import align_faces, find_faces, project_face_points
from metrics.detectors.yunet import Faces, YuNet, merge
from support.real_faces import real_frames, sface_file, trimmed_onnx, yunet_file
from training.camera import mirror_label, orbit_label

TEMPLATE_POINTS = torch.tensor(alignment.TEMPLATE)


@pytest.fixture(scope='module')
def yunet():
    return YuNet(yunet_file())


@pytest.fixture(scope='module')
def frames():
    """Frames of all real clips and their labels."""
    clips = real_frames()
    return torch.cat([f for f, _ in clips.values()]), torch.cat([c for _, c in clips.values()])


def smooth_image():
    y, x = torch.meshgrid(torch.arange(200) / 200, torch.arange(200) / 200, indexing='ij')
    waves = [127 + 100 * torch.sin(k * x + (9 - k) * y) for k in (3, 5, 8)]
    return torch.stack(waves)[None]


def moved(points, angle, scale, shift):
    """Rotates, scales and shifts points."""
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    return points @ torch.tensor([[c, s], [-s, c]]).to(points) + torch.tensor(shift)


def umeyama(source, target):
    """Returns the similarity [2, 3] as in the paper, with a singular value decomposition."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    linear = (u * signs) @ vt * (d * signs).sum() / (a**2).sum()
    return np.concatenate([linear, (target.mean(0) - linear @ source.mean(0))[:, None]], axis=1)


def test_similarity_equals_umeyama():
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.rand(6, 5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    target[:3] = source[:3] * 3 + 0.2 * target[:3]  # others are far from similar
    for ours, a, b in zip(alignment.similarity(source, target), source, target, strict=True):
        np.testing.assert_allclose(ours.numpy(), umeyama(a.numpy(), b.numpy()), atol=1e-9)


def test_aligned_crop_shows_the_image_where_the_points_are():
    image, how = smooth_image(), (0.3, 1.2, [20.5, 10.25])
    crop = align_faces(image, moved(TEMPLATE_POINTS, *how)[None])
    axis = torch.arange(112.0)
    places = moved(torch.cartesian_prod(axis, axis).flip(1), *how).view(1, 112, 112, 2)  # x, y
    expected = F.grid_sample(image, places / 199 * 2 - 1, align_corners=True)
    torch.testing.assert_close(crop, expected, atol=0.01, rtol=0)
    assert crop.dtype == torch.float32


def test_outside_of_the_image_is_black_and_bytes_are_accepted():
    image = torch.full([1, 3, 64, 80], 200, dtype=torch.uint8)
    crop = align_faces(image, TEMPLATE_POINTS[None])
    torch.testing.assert_close(crop[0, :, :63, :79], torch.full([3, 63, 79], 200.0))
    assert crop[0, :, 65:].abs().max() < 1e-6 and crop[0, :, :, 81:].abs().max() < 1e-6


def test_mean_face_is_symmetric_and_where_portraits_have_it():
    labels = torch.stack([orbit_label(0.0), orbit_label(0.5, 0.2)])
    points = project_face_points(labels, 512)
    assert points.shape == (2, 5, 2)
    mirrored = project_face_points(mirror_label(labels), 512)[:, [1, 0, 2, 4, 3]]
    expected = torch.stack([511 - mirrored[..., 0], mirrored[..., 1]], dim=-1)
    torch.testing.assert_close(points, expected, atol=1e-3, rtol=1e-5)
    right_eye, left_eye, nose, right_mouth, left_mouth = points[0]
    assert right_eye[0] < nose[0] < left_eye[0] and right_mouth[0] < left_mouth[0]
    assert right_eye[1] < nose[1] < right_mouth[1]
    # pixel i covers [i, i + 1] / size
    torch.testing.assert_close(project_face_points(labels, 64), (points + 0.5) / 8 - 0.5)
    assert np.array(alignment.FACE_POINTS)[[0, 1, 3, 4], 0].sum() == 0


def test_merging_takes_the_mean_of_cells_that_agree():
    box = torch.tensor([10.0, 10, 30, 30])
    boxes = torch.stack([box, box + 2, box + 15, box + 100, box + 1])[None]
    scores = torch.tensor([[0.9, 0.6, 0.8, 0.7, 0.3]])  # third and fourth lie elsewhere, the last is unsure
    points = torch.arange(50.0).reshape(1, 5, 5, 2) ** 2
    face = merge(Faces(boxes, points, scores))
    weight = torch.tensor([0.6, 0.4])
    torch.testing.assert_close(face.boxes[0], (boxes[0, :2] * weight[:, None]).sum(dim=0))
    torch.testing.assert_close(face.points[0], (points[0, :2] * weight[:, None, None]).sum(dim=0))
    assert face.scores.tolist() == pytest.approx([0.9])


def test_no_face_in_noise(yunet):
    noise = torch.randint(0, 256, [2, 3, 96, 64], generator=torch.Generator().manual_seed(0)).byte()
    assert find_faces(noise, yunet) == [None, None]
    assert find_faces(noise[:0], yunet) == []


def test_detection_agrees_with_opencv(frames):
    cv2 = pytest.importorskip('cv2')
    images = frames[0][::4]
    cells = YuNet(yunet_file(), side=512).detect(images)
    detector = cv2.FaceDetectorYN.create(str(yunet_file()), '', (512, 512), 0.6)
    for i, image in enumerate(images):
        found = detector.detect(np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy()))[1]
        theirs = found[found[:, -1].argmax()]
        best = cells.scores[i].argmax()
        box = cells.boxes[i, best]
        np.testing.assert_allclose(torch.cat([box[:2], box[2:] - box[:2]]), theirs[:4], atol=0.05)
        np.testing.assert_allclose(cells.points[i, best].flatten(), theirs[4:14], atol=0.05)
        assert cells.scores[i, best].item() == pytest.approx(theirs[14], abs=1e-4)


def test_detection_of_other_shapes(frames, monkeypatch, yunet):
    """Images with margins, batches cut into pieces."""
    images = F.pad(frames[0][::16], (0, 128, 64, 0))
    whole = yunet(images)
    monkeypatch.setattr(yunet_module, 'BATCH', 2)
    for a, b in zip(yunet(images), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-4)
    square = yunet(frames[0][::16]).points + torch.tensor([0, 64])
    assert (whole.points - square).norm(dim=-1).mean() < 8
    assert ((whole.points > whole.boxes[:, None, :2]) & (whole.points < whole.boxes[:, None, 2:])).all()


@pytest.mark.parametrize('size', [512, 64])
def test_every_face_is_found_where_the_camera_says(size, frames, yunet):
    images, labels = frames
    if size != 512:
        images = F.interpolate(images.float(), (size, size), mode='bilinear', antialias=True).round().byte()
    found = find_faces(images, yunet)
    assert all(points is not None for points in found)
    error = (torch.stack(found) - project_face_points(labels, size)).norm(dim=-1) * (512 / size)
    assert error.square().mean().sqrt() < 10.5  # pixels in 512
    assert error.mean(dim=1).max() < 25


def test_alignment_agrees_with_opencv(frames, yunet, tmp_path):
    cv2 = pytest.importorskip('cv2')
    recognizer = cv2.FaceRecognizerSF.create(trimmed_onnx(sface_file(), tmp_path), '')
    images = frames[0][::8]
    points = torch.stack(find_faces(images, yunet))
    for image, face, crop in zip(images, points, align_faces(images, points), strict=True):
        row = torch.cat([torch.zeros(4), face.flatten(), torch.ones(1)]).numpy()
        theirs = recognizer.alignCrop(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), row)
        difference = np.abs(theirs - crop.permute(1, 2, 0).numpy())  # theirs is rounded: 0.25 on average
        assert difference.mean() < 0.3 and difference.max() < 1
