"""report.html: parses, escapes, counts right, and stays small."""

import base64
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from preprocessing.from_videos import report
from preprocessing.from_videos.report import make_page, write_report
from preprocessing.from_videos.report_facts import angles, collect
from preprocessing.from_videos.report_images import Histogram, annotate, draw_histograms, histograms
from preprocessing.from_videos.work_folder import WorkFolder
from support.videos import write_video
from support.work_folders import EVIL, SIZE, add_verdict, add_video, make, mesh, pack, write_json
from training.camera import orbit_label

VOID = {'meta', 'img', 'br', '!doctype'}

CLIP_STAGES = ('align', 'cameras', 'embeddings', 'verify')


class Page(html.parser.HTMLParser):
    """Collects text, tags and attributes; every tag that is opened must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], '', []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + '\n'

    def images(self):
        """All but the charts."""
        charts, *images = [value for name, value in self.attributes if name == 'src']
        assert charts.startswith('data:image/png;base64,')
        return [decode(uri) for uri in images]


def decode(uri):
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2], validate=True)))
    image.load()
    return image


@pytest.fixture
def run(tmp_path):
    """A work folder of a run that has ended, and its clips."""
    root = tmp_path / 'w'
    clips = make(root)
    write_json(root / 'pack.json', pack(tmp_path, 'd&d.zip'))
    return root, clips


def test_page_of_a_whole_run(run):
    root, clips = run
    path = write_report(root, {'--source': '<i>"x"</i>', 'sigma': 2.0}, CLIP_STAGES)
    text = path.read_text(encoding='utf-8')
    page = Page(text)
    assert path == root / 'report.html'
    assert '<script' not in text and 'http' not in text
    assert page.tags.count('i') == 0 and '<i>"x"</i>' in page.text
    assert 'Data set d&d.zip' in page.text
    assert f'{EVIL}.mp4' in page.text and 'speaker id<1>' in page.text
    images = page.images()
    assert [image.size for image in images[:3]] == [(6 * 168, 168)] * 3
    assert len(images) == 3 + 2  # clips, and the two left out
    assert '3 of 4 examined frames are noisy' in page.text
    assert 'identity 1 has 2 clips of at least its resolution (11 pixels): others' in page.text
    for cell in ('5 videos', '5 clips', '4 clips of 2 people', '3 clips, 48 frames'):
        assert cell in page.text, cell
    assert (
        write_report(root, {'--source': '<i>"x"</i>', 'sigma': 2.0}, CLIP_STAGES).read_text(encoding='utf-8')
        == text
    )


def test_histograms_of_a_run(run):
    charts = histograms(collect(WorkFolder(run[0]), CLIP_STAGES))
    found = [chart.counts()[0] for chart in charts]
    assert [count.sum() for count in found] == [48, 48, 48, 4 * 5, 3, 3, 3]
    assert np.flatnonzero(found[0]).tolist() == [5, 15, 20]  # -19, 1 and 11 degrees in 30 bins from -30 to 30
    assert [chart.mark for chart in charts] == [None] * 3 + [0.5] + [None] * 3
    drawn = draw_histograms(charts)
    assert drawn == draw_histograms(charts) and np.asarray(decode(drawn)).std() > 10


@pytest.mark.parametrize('stage', ['', 'sources', 'tracks', 'align', 'cameras', 'verify', 'identities'])
def test_page_of_a_run_that_has_not_ended(run, stage):
    root, clips = run
    kept = ['sources', 'shots', 'tracks', 'align', 'cameras', 'verify', 'identities', 'pack']
    for name in kept[kept.index(stage) + 1 if stage else 0 :]:
        (root / f'{name}.json').unlink(missing_ok=True)
        for path in root.glob(f'{name}/*.json'):
            path.unlink()
    page = Page(make_page(WorkFolder(root), {}, CLIP_STAGES))
    assert 'No data set has been written yet' in page.text
    shown = {'': 0, 'sources': 0, 'tracks': 0, 'align': 5, 'cameras': 5, 'verify': 5, 'identities': 5}
    assert len(page.images()) == shown[stage]


def test_results_of_other_videos_and_options_are_skipped(run):
    root, clips = run
    before = make_page(WorkFolder(root), {}, CLIP_STAGES)
    old = add_video(root, 'gone')
    add_verdict(root, old, [0.1], 'noisy')
    sources = json.loads((root / 'sources.json').read_text())
    sources['videos'].pop()
    write_json(root / 'sources.json', sources)
    text = (root / 'align' / f'{clips[0]}.json').read_text()
    (root / 'align' / 'one-000099.json').write_text(text)
    assert make_page(WorkFolder(root), {}, CLIP_STAGES) == before


def test_rejections_of_every_stage(run, tmp_path):
    root, _ = run
    frames = np.zeros([30, 48, 64, 3], np.uint8)
    frames[..., 1] = 200
    write_video(tmp_path / 'green.mp4', frames)
    for name, path in (('green', str(tmp_path / 'green.mp4')), ('lost', '/no/such.mp4')):
        clip = add_video(root, name, path=path, fps=10.0)
        rejected = [{'shot': 1, 'reason': f'no face in {name}'}]
        write_json(root / 'shots' / f'{name}.json', {'shots': [[0, 15], [15, 30]]})
        write_json(root / 'tracks' / f'{name}.json', {'tracks': [], 'rejected': rejected})
    write_json(root / 'shots' / 'two.json', {'rejected': 'cannot be decoded'})
    write_json(root / 'tracks' / 'noisy.json', {'rejected': 'no face at all'})
    write_json(root / 'cameras' / 'one-000000.json', {'rejected': 'no <finite> camera'})
    write_json(root / 'align' / 'many-000000.json', {'rejected': 'too large'})
    sources = json.loads((root / 'sources.json').read_text())
    write_json(root / 'sources.json', {**sources, 'rejected': {'x.txt': 'no video'}})
    facts = collect(WorkFolder(root), CLIP_STAGES)
    found = {(r.stage, r.item): r for r in facts.rejections}
    assert set(found) == {
        *(('sources', 'x.txt'), ('shots', 'two'), ('align', 'many-000000'), ('cameras', 'one-000000')),
        *(('tracks', 'noisy'), ('tracks', 'green, shot 2'), ('tracks', 'lost, shot 2')),
    }
    assert found['tracks', 'green, shot 2'].time_sec == 1.5
    assert clip not in facts.clips
    page = Page(make_page(WorkFolder(root), {}, CLIP_STAGES))
    assert 'no <finite> camera' in page.text and 'no face in lost' in page.text
    colors = [np.asarray(p).mean(axis=(0, 1)) for p in page.images()]
    assert any(g > 150 and r < 60 and b < 60 for r, g, b in colors)  # the frame of the video


def test_page_of_many_clips_is_a_sample(run, monkeypatch):
    root, clips = run
    monkeypatch.setattr(report, '_SHEETS', 2)
    monkeypatch.setattr(report, '_THUMBNAILS', 2)
    monkeypatch.setattr(report, '_LISTED', 1)
    page = Page(make_page(WorkFolder(root), {}, CLIP_STAGES))
    assert '2 of 3 clips; time' in page.text and '1 of 3 clips; crops' in page.text
    assert len(page.images()) == 2 + 2
    assert report.sample(range(10), 4) == [0, 3, 6, 9]


def test_histogram():
    values = np.array([-5.0, 0.0, 0.1, 1.02, 2.95, 3.0, 99.0])
    counts, _ = Histogram('a', '°', values, (0.0, 3.0)).counts()
    assert len(counts) == 30 and counts.sum() == 7
    assert counts[[0, 1, 10, 29]].tolist() == [2, 1, 1, 3]  # what is outside counts at the ends
    empty = Histogram('none', '', np.zeros(0), (0.0, 1.0))
    assert empty.counts()[0].sum() == 0 and draw_histograms([empty])


@pytest.mark.parametrize(('yaw', 'pitch'), [(0.0, 0.0), (0.5, 0.0), (-0.3, 0.4)])
def test_angles_are_those_of_the_camera(yaw, pitch):
    label = orbit_label(yaw, pitch).numpy()
    np.testing.assert_allclose(angles(label)[0], [np.degrees(yaw), np.degrees(pitch), 0], atol=1e-4)
    turn = np.eye(4)  # the camera turns about its axis, its right side down
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    label[:16] = (label[:16].reshape(4, 4) @ turn).ravel()
    np.testing.assert_allclose(angles(label)[0, 2], np.degrees(0.2), atol=1e-4)


def test_annotate_draws_landmarks_and_axes():
    black, points = np.zeros([SIZE, SIZE, 3], np.uint8), mesh(1)[0]
    plain = annotate(black, points * 0 - 99, None, 64)
    assert plain.shape == (64, 64, 3) and plain.max() == 0
    lines = annotate(black, points, None, 64)
    assert (lines > 60).any() and (lines.max(axis=2) == lines.min(axis=2)).all()  # white
    axes = annotate(black, points * 0 - 99, orbit_label(0.5).tolist(), 64).astype(int)
    (red_y, red_x), (green_y, green_x), (blue_y, blue_x) = (
        np.argwhere(axes[..., c] > 60 + np.delete(axes, c, axis=2).max(axis=2)).mean(axis=0) for c in range(3)
    )
    assert red_x > green_x + 4 and abs(red_y - 32) < 2  # x to the right
    assert green_y < 28  # y up
    assert blue_x < green_x - 4 and abs(blue_y - 32) < 2  # the face looks to the left of the image
