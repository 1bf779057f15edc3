"""Converts checkpoints of the released PV3D and of EG3D, and back. `python legacy.py --help` explains."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal

from dnnlib.cli import OnlyWith, command

import click

from dnnlib.util import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turns checkpoints of the released PV3D and of EG3D into snapshots, without running their code.

    Nothing in a source is executed: a restricted reader builds tensors and containers only. gen_videos.py,
    calc_metrics.py and train.py --resume also open such files by themselves.

    Examples:
      # the released PV3D
      python legacy.py --source pv3d.ckpt --dest pv3d.pkl

      # EG3D
      python legacy.py --source ffhq512-128.pkl --dest eg3d.pkl

      # volume rendering at 128x128, which is not stored in a checkpoint of PV3D
      python legacy.py --source pv3d.ckpt --dest pv3d.pkl --set renderer.resolution=128

      # back: .ckpt the whole layout, .pth the bare model
      python legacy.py --source network-snapshot.pkl --dest pv3d.pth --to released
    """

    source: Annotated[str, 'FILE']  # .ckpt or .pth of PV3D, .pkl of EG3D or of this program
    dest: Annotated[str, 'FILE'] | None = None  # what to write [default: only print what the source is]
    # layout of --dest; released needs a snapshot that the released networks can hold
    to: Literal['ours', 'released'] = 'ours'
    # generator option that shapes do not show, e.g. renderer.resolution=128
    set: Annotated[tuple[str, ...], 'PATH=VALUE', OnlyWith('to', 'ours')] = ()


def run(options: Options) -> None:
    """Converts, exports, or describes a file."""
    from interop.convert import is_foreign, open_foreign
    from interop.export import export_released
    from torch_utils.checkpoint import read_snapshot

    source, dest = options.source, options.dest
    if dest is not None and os.path.realpath(dest) == os.path.realpath(source):
        raise UserError(f'--dest {dest} is the source itself, which would be lost; name another file')
    if options.to == 'ours':
        convert(source, dest, options.set)
    elif dest is None:
        raise UserError('--to released needs --dest, the file to write')
    else:
        snapshot = open_foreign(source).snapshot if is_foreign(source) else read_snapshot(source)
        report(export_released(snapshot, dest))
    if dest is not None:
        click.echo(dest)


def convert(source: str, dest: str | None, overrides: tuple[str, ...]) -> None:
    """Opens a foreign checkpoint, reports what it is, and writes it as a snapshot."""
    from interop.convert import build_networks, is_foreign, open_foreign
    from torch_utils.checkpoint import read_snapshot, save_snapshot

    wrong = [text for text in overrides if '=' not in text]
    if wrong:
        raise UserError(f'--set {wrong[0]} must be PATH=VALUE, for example --set renderer.resolution=128')
    if not is_foreign(source):
        if dest is not None or overrides:
            read_snapshot(source)  # where it is none, this is the error
            raise UserError(f'{source} is already a snapshot; copy it, or export it with --to released')
        describe_own(source)
        return
    parts = [text.partition('=') for text in overrides]
    foreign = open_foreign(source, [(path.strip(), value.strip()) for path, _, value in parts])
    click.echo(f'{source}: {foreign.kind}')
    report(foreign.facts)
    if dest is not None:
        save_snapshot(dest, build_networks(foreign.snapshot), foreign.snapshot.meta)


def describe_own(source: str) -> None:
    """Prints what a snapshot of this program is, which needs no conversion."""
    from interop.convert import describe
    from torch_utils.checkpoint import read_snapshot

    snapshot = read_snapshot(source)
    click.echo(f'{source}: a snapshot of this program')
    words = {'preset': 'cfg', 'clips seen': 'cur_nimg', 'schedules at': 'schedule_nimg', 'data': 'dataset'}
    report([f'{word}: {snapshot.meta[key]}' for word, key in words.items() if key in snapshot.meta])
    report(describe(snapshot))


def report(lines: list[str]) -> None:
    """Prints lines, indented."""
    for line in lines:
        click.echo(f'  {line}')


main = command(Options, run, 'this file needs a machine with more memory')

if __name__ == '__main__':
    main()
