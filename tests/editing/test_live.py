"""Portraits of images that are sent: what is refused, progress, stopping."""

import io

import pytest
import torch
from PIL import Image

from dnnlib.util import DataError, UserError
from editing import live
from editing.inputs import Source
from editing.objective import Weights
from editing.recipes import Recipe
from support import tiny

QUICK = Recipe(steps=3, layer_steps=0, tune_steps=2, hold=0.0, weights=Weights(perceptual=0.0))


def image_file(size, kind):
    file = io.BytesIO()
    Image.new('RGB', size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize('content', [b'', b'x' * 99, image_file((8, 8), 'BMP'), image_file((9000, 1), 'PNG')])
def test_what_is_no_usual_image_is_refused(content):
    with pytest.raises(UserError, match='image'):
        live.check_image(content)


@pytest.fixture
def project(monkeypatch, tmp_path):
    """Returns a function that projects an image in which a face was found, quickly."""
    found = Source('upload', torch.zeros(1, 3, 32, 32, dtype=torch.uint8), tiny.cameras(1), 25.0, {})
    found.facts.update({'source': 'upload.png', 'first frame': 0})
    monkeypatch.setattr(live, 'open_source', lambda *args: found)
    network = tmp_path / 'a.pkl'
    network.write_bytes(b'')

    def run(watch, should_stop=lambda: False):
        G = tiny.generator().eval().requires_grad_(False)
        return live.project_upload(G, image_file((8, 8), 'PNG'), str(network), watch, should_stop, QUICK)

    return run


def test_progress(project):
    steps = []
    portrait = project(lambda *step: steps.append(step[:3]))
    assert steps == [('code', i + 1, 3) for i in range(3)] + [('tuning', i + 1, 2) for i in range(2)]
    assert len(portrait.u) == 1 and portrait.tuned and 'viewer.py' in portrait.note


def test_stopping_gives_the_best_so_far(project):
    steps = []
    portrait = project(lambda *step: steps.append(step), lambda: len(steps) == 2)
    assert len(steps) == 2 and portrait.ws.isfinite().all()


def test_messages_name_no_folder_of_the_server(monkeypatch):
    def refuse(path, *args):
        raise DataError(f'{path}: no face was found')

    monkeypatch.setattr(live, 'open_source', refuse)
    with pytest.raises(UserError, match=r'^the upload\.png: no face'):
        live.project_upload(tiny.generator(), image_file((8, 8), 'PNG'), 'a.pkl', print, lambda: False)
