"""Converts checkpoints of the released PV3D and of EG3D, and back. `python legacy.py --help` explains."""

import os

from dnnlib.cli import one_sentence

import click

from dnnlib.util import UserError
from interop.convert import build_networks, describe, is_foreign, open_foreign
from interop.export import export_released
from torch_utils.checkpoint import read_snapshot, save_snapshot

_EPILOG = """
\b
Examples:
  # the released PV3D
  python legacy.py --source pv3d.ckpt --dest pv3d.pkl
\b
  # EG3D
  python legacy.py --source ffhq512-128.pkl --dest eg3d.pkl
\b
  # volume rendering at 128x128, which no checkpoint of PV3D tells
  python legacy.py --source pv3d.ckpt --dest pv3d.pkl --set renderer.resolution=128
\b
  # back: .ckpt the whole layout, .pth the bare model
  python legacy.py --source network-snapshot.pkl --dest pv3d.pth --to released

Nothing in a source is executed: the reader builds tensors and containers only.
gen_videos.py, calc_metrics.py and train.py --resume also open such files by themselves.
"""


@click.command(
    epilog=_EPILOG,
    context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 110, 'show_default': True},
)
@click.option(
    '--source', required=True, metavar='FILE', help='.ckpt or .pth of PV3D, .pkl of EG3D or of ours.'
)
@click.option('--dest', metavar='FILE', help='What to write.  [default: only say what the source is]')
@click.option(
    '--to',
    'layout',
    type=click.Choice(['ours', 'released']),
    default='ours',
    help='Layout of --dest; released needs a snapshot that the released networks can hold.',
)
@click.option(
    '--set',
    'overrides',
    multiple=True,
    metavar='PATH=VALUE',
    help='Generator option that shapes do not tell, e.g. renderer.resolution=128.',
)
def main(source: str, dest: str | None, layout: str, overrides: tuple[str, ...]) -> None:
    """Turns checkpoints of the released PV3D and of EG3D into snapshots, without running their code."""
    with one_sentence('this file needs a machine with more'):
        if dest is not None and os.path.realpath(dest) == os.path.realpath(source):
            raise UserError(f'--dest {dest} is the source itself, which would be lost; name another file')
        if layout == 'released':
            if overrides or dest is None:
                raise UserError('--to released needs --dest, and does not take --set')
            snapshot = open_foreign(source).snapshot if is_foreign(source) else read_snapshot(source)
            say(export_released(snapshot, dest))
        else:
            convert(source, dest, overrides)
        if dest is not None:
            click.echo(dest)


def convert(source: str, dest: str | None, overrides: tuple[str, ...]) -> None:
    """Opens a foreign checkpoint, says what it is, and writes it as a snapshot of ours."""
    for text in overrides:
        if '=' not in text:
            raise UserError(f'--set {text} must be PATH=VALUE, for example --set renderer.resolution=128')
    changes = [(path.strip(), value.strip()) for path, _, value in (o.partition('=') for o in overrides)]
    if not is_foreign(source):
        if dest is not None or overrides:
            raise UserError(
                f'{source} is a snapshot of ours already; copy it, or export it with --to released'
            )
        describe_own(source)
        return
    foreign = open_foreign(source, changes)
    click.echo(f'{source}: {foreign.kind}')
    say(foreign.facts)
    if dest is None:
        return
    networks = build_networks(foreign.snapshot)
    save_snapshot(dest, networks, foreign.snapshot.meta)


def describe_own(source: str) -> None:
    """Says what a snapshot of ours is, which needs no conversion."""
    snapshot = read_snapshot(source)
    click.echo(f'{source}: a snapshot of ours')
    told = {'preset': 'cfg', 'clips seen': 'cur_nimg', 'schedules at': 'schedule_nimg', 'data': 'dataset'}
    say([f'{word}: {snapshot.meta[key]}' for word, key in told.items() if key in snapshot.meta])
    say(describe(snapshot))


def say(lines: list[str]) -> None:
    """Prints lines, indented."""
    for line in lines:
        click.echo(f'  {line}')


if __name__ == '__main__':
    main()
