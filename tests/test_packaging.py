"""`pip install .` takes the rooms, with the sources of the kernels, and nothing else."""

import fnmatch

import pytest
from test_style import ROOMS

from support.paths import ROOT

tomllib = pytest.importorskip('tomllib')  # of Python 3.11


def test_the_rooms_are_installed():
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']
    folders = [path for path in ROOT.iterdir() if path.is_dir() and any(path.glob('*.py'))]
    patterns = settings['packages']['find']['include']
    taken = {path.name for path in folders if any(fnmatch.fnmatch(path.name, p) for p in patterns)}
    assert taken == {*ROOMS} - {'benchmarks'}
    modules = [path for room in taken for path in (ROOT / room).rglob('*.py')]
    assert [path for path in modules if not (path.parent / '__init__.py').exists()] == []
    (data,) = settings['package-data']['torch_utils']
    kernels = {*(ROOT / 'torch_utils').glob(data)}
    assert {*(ROOT / 'torch_utils').rglob('*.cu')} <= kernels
    assert {*(ROOT / 'torch_utils').rglob('*.h')} <= kernels
