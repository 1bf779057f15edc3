"""Training, sheets and PNG samples do without the packages that only videos, meshes and metrics need."""

import subprocess
import sys

from PIL import Image

from support.paths import ROOT

# Makes packages look as if they were not installed, imports all modules of the rooms, trains, renders.
SCRIPT = """
import importlib, pkgutil, runpy, sys

ABSENT = {'imageio', 'imageio_ffmpeg', 'trimesh', 'skimage', 'scipy', 'onnx', 'cv2', 'matplotlib'}
finders = list(sys.meta_path)

class Finder:
    def find_spec(self, name, path=None, target=None):
        found = (f.find_spec(name, path, target) for f in finders if name.split('.')[0] not in ABSENT)
        return next((spec for spec in found if spec), None)

sys.meta_path[:] = [Finder()]
for room in ('dnnlib', 'torch_utils', 'training', 'viz', 'interop'):
    for module in pkgutil.walk_packages(importlib.import_module(room).__path__, room + '.'):
        importlib.import_module(module.name)
assert 'torch._dynamo' not in sys.modules  # takes as long to import as torch

data, folder = sys.argv[1:]
sys.argv = ['train.py', '--outdir', folder, '--data', data]
sys.argv += '--cfg tiny --set output.sheet_seeds=1 --batch 2 --kimg 0.008 --device cpu'.split()
try:
    runpy.run_path('train.py', run_name='__main__')
except SystemExit as end:
    assert not end.code, end.code

import pathlib, torch
from interop.convert import open_snapshot
from training.networks.registry import load_generator
from viz import images, rollout, trajectories

snapshot, = pathlib.Path(folder).glob('*/network-snapshot-*.pkl')
G = load_generator(open_snapshot(snapshot))
codes, camera, time = rollout.draw_codes(G, 0), trajectories.front(1), torch.zeros(1)
frame, = rollout.render_frames(G, codes, rollout.map_codes(G, codes, camera, time), camera, time)
images.save_png(f'{folder}/frame.png', images.to_uint8(frame.image)[0])
"""


def test_training_and_images_need_no_package_of_videos_meshes_and_metrics(data, tmp_path):
    command = [sys.executable, '-c', SCRIPT, data, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'warning: not all images of this tick could be made: videos need ffmpeg' in done.stdout
    (run,) = tmp_path.glob('*tiny*')
    assert {p.name for p in run.glob('*000000000.*')} == {
        f'{n}000000000.png' for n in ('fakes', 'depth', 'views', 'strip')
    }
    assert (run / 'reals.png').exists()
    assert Image.open(tmp_path / 'frame.png').size == (32, 32)
