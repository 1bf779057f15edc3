"""Long videos: segments, returns, seams, identity, against closed forms and controls."""

import types

import numpy as np
import pytest
import torch

from dnnlib.util import Skip
from metrics.base import Context, Request, Sample, Settings
from metrics.measures.frechet import features, frechet_distance
from metrics.measures.lasting import (
    _identity,
    _lasting,
    _recurrence,
    _seam,
    autocovariance,
    identity_over_time,
    jerk_at_seams,
    segment_motion,
)
from metrics.sources.controls import looped, static

REQUEST = Request(name='x', metric='x', count=None, frames=128, detector=None)


def context(detector=None, seam=15.0):
    return Context(REQUEST, Settings(cache='x'), detector, None, None, None, seam)


def video(values):
    """Frames of 64x64 that are plain but for one half, whose gray level is given [T]."""
    frames = np.full((len(values), 64, 64, 3), 100, np.uint8)
    frames[:, :32] = np.asarray(values).round()[:, None, None, None]
    return frames


def sample(*records):
    numbers = range(len(records))
    return Sample.of(records, numbers, numbers)


def walk(seed, steps=128, kernel=25):
    """A smooth movement that does not repeat, 0 to 200."""
    noise = np.random.default_rng(seed).normal(size=steps + kernel - 1)
    x = np.convolve(noise, np.hanning(kernel), mode='valid')[:steps]
    return (x - x.min()) / np.ptp(x) * 200


def test_segments_and_their_ratio():
    values = np.concatenate([np.arange(16) * 4, 60 + np.arange(16) % 2 * 2, np.full(16, 50)])
    found = segment_motion(video(values))
    assert found.tolist() == pytest.approx([2.0, 1.0, 0.0], abs=1e-4)  # half of the image moves
    outcome = _lasting(context(), sample({'segments': found[:2]}, {'segments': 3 * found[:2]}), Sample())
    assert (outcome.value, outcome.error) == pytest.approx((0.5, 0.0), abs=1e-4)
    assert outcome.details == pytest.approx({'segment1': 4.0, 'segment2': 2.0}, abs=1e-4)
    still = segment_motion(static(video(values), None))
    assert _lasting(context(), sample({'segments': still}, {'segments': still}), Sample()).value == 0


def test_autocovariance_is_the_naive_sum():
    clip = video(walk(0, 20))
    luma = clip[..., 0].astype(float).reshape(20, -1)
    centred = luma - luma.mean(axis=0)
    expected = [np.mean([(centred[t] * centred[t + k]).mean() for t in range(20 - k)]) for k in range(11)]
    assert autocovariance(clip) == pytest.approx(expected, rel=1e-4)


def test_only_loops_return():
    def measured(change):
        curves = [{'curve': autocovariance(change(video(walk(i, kernel=11))))} for i in range(8)]
        return _recurrence(context(), sample(*curves), Sample())

    free = measured(lambda clip: clip)
    loop = measured(lambda clip: looped(clip, None))
    frozen = measured(lambda clip: static(clip, None))
    assert free.value < 0.35 and loop.value > 0.8 and loop.value > free.value + 4 * free.error
    assert loop.details['lag'] in (15, 30, 45, 60) and frozen.value == 0


def test_seams_show_linear_interpolation_and_loops_not_smooth_motion():
    knots = np.random.default_rng(1).uniform(0, 200, 12)
    kinks = np.interp(np.arange(128), 15 * np.arange(12), knots)

    def measured(*clips):
        return _seam(context(), sample(*({'jerk': jerk_at_seams(c, 15.0)} for c in clips)), Sample()).value

    smooth = [video(walk(i)) for i in range(6)]
    assert 0.5 < measured(*smooth) < 1.6
    assert measured(video(kinks), video(kinks)) > 3
    assert measured(*(looped(clip, None) for clip in smooth)) > 3
    assert measured(*(static(clip, None) for clip in smooth)) == 0
    at, elsewhere = jerk_at_seams(video([0] * 7 + [10] * 8), 7.0)
    assert (at, elsewhere) == pytest.approx((5.0, 5.0 / 12))
    with pytest.raises(Skip, match='seams every 200 frames'):
        jerk_at_seams(smooth[0], 200.0)


def test_identity_over_time_compares_with_the_first_frame():
    network = types.SimpleNamespace(network=lambda x: x.mean(dim=(2, 3))[:, :2] - 100)
    clip = np.full((40, 64, 64, 3), 100, np.uint8)
    clip[:, ..., 0] = 150  # (50, 0), at right angles with (0, 50)
    clip[15, ..., :2] = (100, 150)
    clip[31, ..., :2] = (150, 150)
    found = identity_over_time(clip, context(network))
    assert found == pytest.approx({'last': 1.0, 'after15': 0.0, 'after31': 0.5**0.5})
    outcome = _identity(context(), sample(found, found), sample({**found, 'after15': 0.5}))
    assert outcome.details['after15'] == 0 and outcome.details['real_after15'] == 0.5
    assert outcome.value == pytest.approx(1)


def test_features_of_long_videos_see_them_in_three_ways():
    network = types.SimpleNamespace(network=lambda x: x.float().mean(dim=(2, 3, 4)))
    clip = video(np.arange(128))
    seen = features(clip, context(network))
    expected = {'x': np.arange(0, 128, 8).mean(), 'first': 7.5, 'last': 119.5}
    assert {name: x.shape for name, x in seen.items()} == dict.fromkeys(expected, (16,))
    for name, half in expected.items():
        assert seen[name].mean() == pytest.approx((half + 100) / 2, abs=1e-3)
    assert features(clip[:32], context(network)).keys() == {'x'}
    assert frechet_distance([seen['x'], seen['first']], [seen['x'], seen['first']]) == pytest.approx(0)
    assert torch.is_tensor(network.network(torch.zeros(1, 16, 3, 4, 4)))
