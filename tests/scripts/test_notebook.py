"""The notebook runs from its first cell to its last, with a tiny network."""

import nbclient
import nbformat

from support import tiny
from support.paths import ROOT
from torch_utils.checkpoint import save_snapshot

NOTEBOOK = ROOT / 'examples' / 'quickstart.ipynb'


def test_the_quickstart_runs(tmp_path, monkeypatch):
    save_snapshot(tmp_path / 'tiny.pkl', {'G_ema': tiny.generator()}, {'kimg': 1.5})
    monkeypatch.setenv('PV3D_NETWORK', str(tmp_path / 'tiny.pkl'))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get('outputs') for cell in notebook.cells)  # none are committed
    nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    images = [output for output in outputs if 'image/png' in output.get('data', {})]
    texts = ' '.join(output['data']['text/plain'] for output in outputs if output not in images)
    assert len(images) == 5 and '(32, 16, 1.5)' in texts and "'synthesis.b4.motion'" in texts
