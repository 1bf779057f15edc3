"""The portrait file and the generator that it makes of a network."""

import pytest
import torch

from dnnlib.util import CheckpointError
from editing import codes
from support import tiny
from support.portraits import portrait
from training.networks.contract import Codes


@pytest.fixture(scope='module', params=['line', 'waves'])
def G(request):
    return tiny.generator(motion=tiny.motion(path=request.param)).eval().requires_grad_(False)


def test_file_keeps_everything(G, tmp_path):
    before = portrait(G, 3, tuned={'decoder.out.bias': torch.ones(3)}, scores={'psnr': [1.5, None]})
    codes.save_portrait(tmp_path / 'a.portrait.pt', before)
    codes.save_portrait(tmp_path / 'b.portrait.pt', before)
    assert (tmp_path / 'a.portrait.pt').read_bytes() == (tmp_path / 'b.portrait.pt').read_bytes()
    after = codes.load_portrait(tmp_path / 'a.portrait.pt')
    for name in ('network', 'fps', 'provenance', 'scores'):
        assert getattr(after, name) == getattr(before, name)
    for name in ('ws', 'u', 'cameras', 'images'):
        assert torch.equal(getattr(after, name), getattr(before, name))
    assert torch.equal(after.tuned['decoder.out.bias'], torch.ones(3))


@pytest.mark.parametrize(
    'change',
    [{'u': torch.zeros(2, 16)}, {'ws': torch.full((1, 2, 3), torch.nan)}, {'tuned': {'a': 1}}, {'fps': 'x'}],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(G, tmp_path, change):
    codes.save_portrait(tmp_path / 'a.portrait.pt', portrait(G, 1, **change))
    with pytest.raises(CheckpointError, match='a.portrait.pt: parts'):
        codes.load_portrait(tmp_path / 'a.portrait.pt')


def test_every_code_moves_from_the_neutral_frame(G):
    person = portrait(G, 2)
    own = codes.PortraitGenerator(G, person)
    z_a, z_m, _, cameras = tiny.codes(2, seed=5)
    both = Codes(z_a, z_m)
    ws = own.condition(both, cameras, torch.zeros(2))
    still = own.render(own.scene(both, ws, torch.zeros(2)), ws, cameras).image
    expected = G.render(G.moved_scene(person.ws, person.u[:1].expand(2, -1)), ws, cameras).image
    assert torch.equal(still, expected)
    tiny.differs(own.render(own.scene(both, ws, torch.ones(2)), ws, cameras).image, still)
    calm = codes.PortraitGenerator(G, person, strength=0.0)
    assert torch.equal(calm.motion_at(both, torch.ones(2)), person.u[:1].expand(2, -1))


def test_scene_is_that_of_its_motion(G):
    z_a, z_m, times, cameras = tiny.codes(2)
    both = Codes(z_a, z_m)
    ws = G.condition(both, cameras, times)
    assert torch.equal(G.scene(both, ws, times), G.moved_scene(ws, G.motion_at(both, times)))


def test_tuned_tensors_replace_those_of_a_copy(G):
    bias = G.decoder.out.bias
    own = codes.own_network(G, portrait(G, tuned={'decoder.out.bias': bias + 1}), 'a')
    assert torch.equal(own.decoder.out.bias, bias + 1) and own is not G
    assert codes.own_network(G, portrait(G), 'a') is G
    with pytest.raises(CheckpointError, match='do not fit'):
        codes.own_network(G, portrait(G, tuned={'decoder.out.bias': torch.zeros(1)}), 'a')


def test_portrait_of_another_network_is_refused(G):
    with pytest.raises(CheckpointError, match='was made with tiny.pkl'):
        codes.own_network(G, portrait(G, network='0' * 64), 'a')
