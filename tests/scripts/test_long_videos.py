"""gen_videos.py --seconds: parts, breaks, windows by themselves, what it says of the network."""

import re
import signal
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from click.testing import CliRunner

import gen_videos
from support import tiny
from support.paths import ROOT
from support.small_runs import wait_for
from torch_utils.checkpoint import save_snapshot
from viz import long_video
from viz.clip_writer import ClipWriter

SPAN = 4
LONG = ('--seconds', '1.2', '--fps', '10', '--crf', '0', '--no-sheet')  # 12 frames


def call(snapshot, outdir, *args):
    """Runs the command."""
    usual = ['--network', str(snapshot), '--outdir', str(outdir), '--device', 'cpu', '--seeds', '0']
    return CliRunner().invoke(gen_videos.main, [*usual, *args])


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
    """Snapshots of a network with each of two paths of motion."""
    folder, found = tmp_path_factory.mktemp('networks'), {}
    for path in ('line', 'spline'):
        G = tiny.generator(span=SPAN, motion=tiny.motion(path=path)).eval()
        G.decoder.out.bias.data[0] += 8
        found[path] = folder / f'{path}.pkl'
        save_snapshot(found[path], {'G_ema': G}, {'kimg': 1})
    return found


def test_a_break_leaves_the_same_bytes(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(long_video, 'PART', 4)
    assert call(paths['spline'], tmp_path / 'whole', *LONG, '--depth').exit_code == 0
    videos, made = ClipWriter.videos, []

    def break_at(count):
        def stopped(self, clip, *args, **options):
            if len(made) == count:
                raise KeyboardInterrupt
            made.append(clip.name)
            return videos(self, clip, *args, **options)

        return stopped

    out = tmp_path / 'parts'
    monkeypatch.setattr(ClipWriter, 'videos', break_at(2))
    assert call(paths['spline'], out, *LONG, '--depth').exit_code == 1
    assert names(out) == ['seed0000-parts']
    other = call(paths['spline'], out, *LONG, '--depth', '--upscale', '2')
    assert other.exit_code == 1 and 'other networks, data or options' in other.output
    (out / 'seed0000-parts' / '00000004-depth.mp4').unlink()  # both kinds of a part or none
    monkeypatch.setattr(ClipWriter, 'videos', break_at(99))
    assert call(paths['spline'], out, *LONG, '--depth').exit_code == 0
    assert made == ['00000000', '00000004', '00000004', '00000008']
    assert names(out) == names(tmp_path / 'whole') == ['seed0000-depth.mp4', 'seed0000.mp4']
    for name in names(out):
        assert (out / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_kill_leaves_the_same_bytes(paths, tmp_path, monkeypatch):
    """SIGKILL in the second of three parts, in a process of its own."""
    monkeypatch.setattr(long_video, 'PART', 4)
    out, first = tmp_path / 'out', tmp_path / 'out' / 'seed0000-parts' / '00000000.mp4'
    usual = ['--network', str(paths['spline']), '--device', 'cpu', '--seeds', '0', *LONG]
    code = 'import gen_videos, viz.long_video as v; v.PART = 4; gen_videos.main()'
    process = subprocess.Popen([sys.executable, '-c', code, '--outdir', str(out), *usual], cwd=ROOT)
    wait_for(first.exists, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL and first.exists()
    made, videos = [], ClipWriter.videos

    def spied(self, clip, *args, **options):
        made.append(clip.name)
        return videos(self, clip, *args, **options)

    monkeypatch.setattr(ClipWriter, 'videos', spied)
    assert call(paths['spline'], out, *LONG).exit_code == 0
    assert made[-1] == '00000008' and '00000000' not in made  # what was finished stays
    assert call(paths['spline'], tmp_path / 'whole', *LONG).exit_code == 0
    assert names(out) == ['seed0000.mp4']
    assert (out / 'seed0000.mp4').read_bytes() == (tmp_path / 'whole' / 'seed0000.mp4').read_bytes()


def test_parts_are_the_frames_of_one_video(paths, tmp_path, monkeypatch):
    """Which also means that a window of a long video is the same by itself."""
    monkeypatch.setattr(long_video, 'PART', 4)
    result = call(paths['spline'], tmp_path / 'long', *LONG)
    assert 'motion continues for 1.2 s without repeating' in result.output
    plain = ['--frames', '12', '--fps', '10', '--crf', '0', '--no-sheet', '--time', 'extend']
    assert call(paths['spline'], tmp_path / 'plain', *plain).exit_code == 0
    long, once = (iio.imread(tmp_path / n / 'seed0000.mp4') for n in ('long', 'plain'))
    assert long.shape == once.shape == (12, 32, 32, 3)
    assert np.abs(long.astype(int) - once).max() <= 2
    assert np.abs(long[6:].astype(int) - long[:6]).max() > 2  # it does not repeat


@pytest.mark.parametrize(
    ('path', 'options', 'said'),
    [
        (
            'line',
            '',
            'along a line only: .* forth and back, and repeats every 0.8 s; .* with a spline continues',
        ),
        ('line', '--time extend', 'is extrapolated: heads come to rest within about 3.2 s'),
        ('spline', '--time cycle', 'can go on: .* with a jump every 0.4 s; --time extend does'),
    ],
)
def test_what_will_happen_is_said(paths, tmp_path, path, options, said):
    result = call(paths[path], tmp_path, *LONG, *options.split())
    assert result.exit_code == 0 and re.search(said, result.output)


def test_two_lengths_are_refused(paths, tmp_path):
    result = call(paths['line'], tmp_path, *LONG, '--frames', '3')
    assert result.exit_code == 1 and '--seconds' in result.output and '--frames' in result.output
