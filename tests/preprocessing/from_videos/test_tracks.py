"""Faces of procedural heads in small videos, followed."""

import numpy as np
import pytest
from PIL import Image

from dnnlib.video import write_video
from preprocessing.faces.mesh import FaceMesh
from preprocessing.from_videos.tracks import Track, box_of, select, track_video
from support.synthetic_faces import SIZE, head, scene

FRAMES = 24


@pytest.fixture(scope='module')
def networks():
    return FaceMesh()


@pytest.fixture
def track(networks, tmp_path):
    def run(frames, shots=None, min_frames=16, min_size=0.25):
        write_video(tmp_path / 'a.mp4', frames)
        return track_video(tmp_path / 'a.mp4', shots or [[0, len(frames)]], networks, min_frames, min_size)

    return run


def image(seed=4, size=SIZE):
    return np.array(Image.fromarray(head(seed)[0]).resize((size, size), Image.LANCZOS))


def spans(found):
    return [(t['shot'], t['first'], t['frames']) for t in found['tracks']]


EMPTY = scene([])


def test_a_face_that_moves_is_followed(track):
    places = [(20 + 5 * i, 10 + 3 * i) for i in range(FRAMES)]
    frames = [scene([(image(), *place)]) for place in places]
    arrays, found = track(frames)
    assert spans(found) == [(0, 0, FRAMES)] and found['rejected'] == []
    points, scores = arrays['landmarks_0'], arrays['scores_0']
    assert points.shape == (FRAMES, 468, 3) and points.dtype == np.float32
    assert scores.shape == (FRAMES,) and scores.min() > 0.95
    still = points[:, :, :2] - np.array(places)[:, None]
    assert np.abs(still - still.mean(axis=0)).mean() < 1
    boxes = [box_of(p) for p in points]
    np.testing.assert_allclose(found['tracks'][0]['box'], np.mean(boxes, axis=0), atol=1e-3)


def test_a_frame_without_a_face_ends_a_track(track):
    with_face = scene([(image(), 100, 50)])
    frames = [with_face] * 20 + [EMPTY] + [with_face] * 5
    _, found = track(frames)
    assert spans(found) == [(0, 0, 20)]
    reason = 'face only in frames 21 to 25, fewer than 16 frames'
    assert found['rejected'] == [{'shot': 0, 'reason': reason}]
    assert spans(track(frames, min_frames=5)[1]) == [(0, 0, 20), (0, 21, 5)]


def test_each_shot_is_followed_alone(track):
    here, there = scene([(image(), 30, 50)]), scene([(image(5), 60, 40)])
    frames = [here] * 18 + [there] * 20 + [EMPTY] * 3
    arrays, found = track(frames, [[0, 18], [20, 38], [38, 41], [90, 99]])
    assert spans(found) == [(0, 0, 18), (1, 20, 18)]
    none = 'no face in any frame'
    assert found['rejected'] == [{'shot': 2, 'reason': none}, {'shot': 3, 'reason': none}]
    assert sorted(arrays) == ['landmarks_0', 'landmarks_1', 'scores_0', 'scores_1']


def test_a_missed_cut_ends_a_track(track):
    frames = [scene([(image(), 0, 0)])] * 17 + [scene([(image(5), 190, 90)])] * 19
    assert sorted(spans(track(frames)[1])) == [(0, 0, 17), (0, 17, 19)]


def test_several_faces(track):
    """The largest comes first; others count if they are not too small beside it, even if they come later."""
    large, small = (image(4), 0, 50), (image(5, 110), 250, 90)
    frames = [scene([large])] * 5 + [scene([large, small])] * 30
    arrays, found = track(frames, min_size=0.4)
    (first, second), sizes = spans(found), [t['size'] for t in found['tracks']]
    assert first == (0, 0, 35) and sizes[1] == pytest.approx(sizes[0] * 110 / SIZE, rel=0.15)
    assert 5 <= second[1] <= 8 and second[1] + second[2] == 35
    assert box_of(arrays['landmarks_1'][0])[0] > 240
    _, found = track(frames, min_size=0.9)
    assert spans(found) == [(0, 0, 35)] and len(found['rejected']) == 1
    assert 'pixels beside one of' in found['rejected'][0]['reason']


def test_a_small_face_in_a_large_frame(track):
    frames = [scene([(image(4, 130), 700 + i, 400)], 720, 1280) for i in range(16)]
    assert spans(track(frames)[1]) == [(0, 0, 16)]


def test_selection():
    def made(size, frames):
        square = np.zeros((468, 3), np.float32)
        square[0, :2] = size
        return Track(0, 3, [square] * frames, [1.0] * frames)

    large, half, tiny, short = made(100, 4), made(50, 9), made(24, 9), made(200, 3)
    kept, reasons = select([short, large, half, tiny], 4, 0.25)
    assert kept == [large, half]
    assert reasons == [
        'face only in frames 3 to 5, fewer than 4 frames',
        'face of 24 pixels beside one of 100, less than 0.25 of it',
    ]
    assert select([], 4, 0.25) == ([], ['no face in any frame'])
