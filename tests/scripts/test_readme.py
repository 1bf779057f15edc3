"""Every command of README.md is run: here, some in a smaller size, or by the test that is named here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
from click.testing import CliRunner

import train
from support import tiny
from support.doc_commands import commands, parse
from support.paths import ROOT
from torch_utils.checkpoint import save_snapshot
from torch_utils.ops.kernels import ENVIRONMENT
from training.presets import PRESETS
from training.run_folder import run_name

TESTS = ROOT / 'tests'
# the beginning of a command -> options that are given here as well, or instead, so that it takes seconds
RUN = {
    'python gen_videos.py --network assets/demo.pkl --seeds 0,3,8,9': '--seeds 0,3 --frames 3 --upscale 1',
    'python gen_videos.py --network assets/demo.pkl --seeds 3 --motion-seeds': '--frames 2 --upscale 1',
    'python gen_videos.py --network assets/demo.pkl --seeds 3 --outdir out/image': '',
    'python gen_videos.py --network assets/demo.pkl --interpolate': '--frames 3 --upscale 1',
    'python gen_videos.py --network assets/demo.pkl --seeds 3 --outdir out/meshes': '--shape-resolution 24',
    'python legacy.py --source pv3d.ckpt': '',
    'python dataset_tool.py synth --dest data/one.zip': '--frames 2 --workers 1',
    'python dataset_tool.py synth --dest data/heads': '--people 2 --frames 17 --resolution 32 --workers 1',
    'python dataset_tool.py pack --source clips': '--resolution 32 --workers 1',
    'python dataset_tool.py check': '--workers 1',
    'python dataset_tool.py show': '',
    'python train.py --outdir runs --cfg pv3d-voxceleb --data data/vox.zip --dry-run': '--cfg tiny',
    'python train.py --outdir runs --cfg pv3d-128 --data data/heads.zip': '--cfg tiny --kimg 0.004 --snap 0',
    'python train.py --outdir runs --cfg pv3d-128 --data data/heads.zip --metrics': (
        '--cfg tiny --kimg 0.004 --snap 1 --metrics cd2,motion2'
    ),
    'python calc_metrics.py --plot': '',
}
# the beginning of a command -> file and test that run it
ELSEWHERE = {
    'make test': '',  # it is what runs this
    'source .venv/bin/activate': '',
    'make demo': 'scripts/test_readme.py::test_make_demo',
    'make metrics': 'scripts/test_readme.py::test_make_demo',
    'python edit_videos.py project': 'scripts/test_edit_videos.py::test_project_and_reconstruct_write_all',
    'python edit_videos.py animate': 'scripts/test_edit_videos.py::test_applications',
    'python viewer.py': 'scripts/test_viewer.py::test_the_command_prints_its_address_and_ends_well',
    'python dataset_tool.py from-videos': 'preprocessing/from_videos/test_pipeline.py::test_whole',
    'python dataset_tool.py pack --source vox': 'scripts/test_dataset_tool.py::test_released_layout',
    'torchrun --nproc_per_node=8': 'scripts/test_train.py::test_torchrun',
    'torchrun --nnodes=2': 'scripts/test_train.py::test_torchrun',
    'python calc_metrics.py --network snapshot.pkl': (
        'scripts/test_calc_metrics.py::test_snapshot_and_stored_views_agree'
    ),
    'python calc_metrics.py --real': 'scripts/test_calc_metrics.py::test_folders_of_two_sizes',
}


def shown() -> list[str]:
    """Lists the commands in the shell blocks of README.md, without their comments."""
    blocks = re.findall(r'```sh\n(.*?)```', (ROOT / 'README.md').read_text(), flags=re.S)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [shlex.join(command) for command in words if command]


def entry(command: str) -> str:
    """Returns the longest beginning in the tables."""
    found = [begin for begin in (*RUN, *ELSEWHERE) if command.startswith(begin)]
    assert found, f'README.md shows a command that no test runs: {command}'
    return max(found, key=len)


def changed(args: list[str], options: list[str]) -> list[str]:
    """Gives a command other values of some options, each of which has one."""
    for name in options[::2]:
        if name in args:
            at = args.index(name)
            args = [*args[:at], *args[at + 2 :]]
    return [*args, *options]


def test_each_command_has_a_test():
    assert {entry(command) for command in shown()} == {*RUN, *ELSEWHERE}
    for place in filter(None, ELSEWHERE.values()):
        file, _, name = place.partition('::')
        assert re.search(rf'^def {name}\(', (TESTS / file).read_text(), flags=re.M), place


@pytest.fixture
def folder(tmp_path, monkeypatch, clip_files, ckpt):
    """A folder with what the commands need: clips with cameras, and a foreign checkpoint."""
    (tmp_path / 'assets').symlink_to(ROOT / 'assets')
    shutil.copy(ckpt, tmp_path / 'pv3d.ckpt')
    labels = json.loads(clip_files['dataset.json'])['labels']
    cameras = {}
    for name, label in labels:
        cameras.setdefault(name.partition('/')[0], []).append(label)
    for clip in cameras:
        for name in (name for name, _ in labels if name.startswith(clip)):
            path = tmp_path / 'clips' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(clip_files[name])
    (tmp_path / 'cameras.json').write_text(json.dumps(cameras))
    monkeypatch.chdir(tmp_path)
    return tmp_path


MADE = """
out/orbit/seed0003-normals.mp4 out/orbit/grid.mp4 out/motions/seed0003-motion0003.mp4 out/image/seed0003.png
out/meshes/seed0003-0015.glb pv3d.pkl data/one.zip data/heads.zip data/my.zip my.png
"""


def test_commands_run(folder, monkeypatch):
    """In the order of the page, in one folder, some with other options."""
    ours = [(command, RUN[begin]) for command in shown() if (begin := entry(command)) in RUN]
    for command, options in ours:
        ((script, args),) = commands(command)
        if '--metrics' in args:
            config = train.build_config(train.Options(**parse(script, args).params))
            monkeypatch.setenv('PV3D_CACHE_DIR', str(folder / 'cache'))  # of records; kernels are loaded
        if '--plot' in args:
            assert args[-1] == f'runs/00000-{run_name(config, 1, None)}'  # of the command before
            (measured,) = folder.glob('runs/*/metric-cd2.jsonl')
            measured.parent.rename(args[-1])
        result = CliRunner().invoke(import_module(script).main, changed(args, options.split()))
        assert result.exit_code == 0, f'{command}\n{result.output}'
    missing = [name for name in MADE.split() if not (folder / name).is_file()]
    assert not missing


@pytest.mark.slow
def test_make_demo(data, tmp_path):
    """`make demo` and `make metrics`, with a tiny network that has a surface."""
    demo = tmp_path / 'demo'
    demo.mkdir()
    shutil.copy(data, demo / 'heads.zip')
    G = tiny.build(PRESETS['tiny'](str(data)).generator)
    G.decoder.out.bias.data[0] += 30
    save_snapshot(tmp_path / 'solid.pkl', {'G': G, 'G_ema': G}, {})
    run = f'train.py --outdir {demo}/runs --data {demo}/heads.zip --resume {tmp_path}/solid.pkl --cfg tiny'
    given = {
        'DEMO': demo,
        'PY': sys.executable,
        'TRAIN': f'{sys.executable} {run} --kimg 0.008 --max-minutes 0.001',
        'METRICS': 'cd2,motion2',
    }
    words = [f'{name}={value}' for name, value in given.items()]
    env = {**os.environ, 'PV3D_CACHE_DIR': str(tmp_path / 'cache'), ENVIRONMENT: 'ref'}  # nothing to compile
    texts = []
    for target in ('demo', 'metrics'):
        command = ['make', '-o', '.venv/.installed', target, *words]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        texts.append(done.stdout)
    assert 'stopped; the same command continues this run' in texts[0] and 'continuing ' in texts[0]
    shown = re.findall(rf'^  ({demo}/\S+)', texts[0], flags=re.M)
    assert len(shown) == 5 and all(os.path.exists(path) for path in shown)
    assert 'motion2' in texts[1] and len(list(demo.glob('runs/*/metrics.png'))) == 1
