"""Motion that is sampled, continued, transferred."""

import pytest
import torch

from editing import motion
from support import tiny
from training.networks.contract import Codes

U = torch.randn(5, 16, generator=tiny.seeded(0))


@pytest.mark.parametrize('path', ['line', 'waves'])
def test_sampled_motion_begins_at_zero(path):
    G = tiny.generator(motion=tiny.motion(path=path))
    z_a, z_m, _, _ = tiny.codes(1)
    moved = motion.sampled(G, Codes(z_a, z_m), torch.tensor([0.0, 1.0]))
    assert not moved[0].any() and moved[1].any()


def test_continued_motion_begins_at_the_frame_and_ends_in_its_own_way():
    moved = torch.cat([torch.zeros(1, 16), U])
    u = motion.continued(U[3:4], U[:1], moved, 4)
    torch.testing.assert_close(u[0], U[3])
    torch.testing.assert_close(u[4:], U[:1] + moved[4:])
    weights = ((motion.continued(U[3:4], U[:1], 0 * moved, 4) - U[:1]) / (U[3:4] - U[:1]))[:, 0]
    torch.testing.assert_close(weights, torch.tensor([1, 27 / 32, 0.5, 5 / 32, 0, 0]))


def test_transfer_to_oneself_is_exact_and_of_a_still_is_a_still():
    assert torch.equal(motion.transferred(U, U[:1], U[:1]), U)
    still = motion.transferred(U[:1].expand(4, -1), U[:1], U[2:3], 0.7)
    assert torch.equal(still, still[:1].expand(4, -1))
    assert torch.equal(motion.transferred(U, U[:1], U[2:3], 0.0), U[2:3].expand(5, -1))
    torch.testing.assert_close(motion.transferred(U, U[:1], U[2:3], 2.0), U[2:3] + 2 * (U - U[:1]))
