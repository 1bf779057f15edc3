"""gen_videos.py on a tiny random network."""

from click.testing import CliRunner

import gen_videos
from support import tiny
from torch_utils.checkpoint import save_snapshot
from viz import trajectories

SPAN = 4


def network(density):
    """Builds a tiny generator whose density is shifted by `density`."""
    G = tiny.generator(span=SPAN).eval()
    G.decoder.out.bias.data[0] += density
    return G


def saved(G, folder):
    """Saves a snapshot with cameras and returns its path."""
    path = folder / 'network-snapshot-000001.pkl'
    cameras = [trajectories.orbit(3).tolist(), trajectories.front(5).tolist()]
    save_snapshot(path, {'G_ema': G}, {'kimg': 1, 'cameras': cameras})
    return str(path)


def call(snapshot, outdir, *args):
    """Runs the command; an exception that is not a clear error fails the test."""
    usual = {'--network': snapshot, '--outdir': str(outdir), '--device': 'cpu', '--seeds': '0'}
    command = [word for pair in usual.items() if pair[0] not in args for word in pair]
    result = CliRunner().invoke(gen_videos.main, [*command, *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def names(folder):
    return sorted(p.name for p in folder.iterdir())
