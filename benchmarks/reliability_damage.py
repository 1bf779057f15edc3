"""Opens damaged and hostile files: each gives one sentence, or opens; nothing in it runs."""

import collections
import dataclasses
import io
import json
import os
import random
import resource
import signal
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks import reliability_runs as runs
from dnnlib.util import Skip, UserError
from dnnlib.video import video_frames
from editing.codes import open_portrait
from interop.convert import open_foreign, open_snapshot
from interop.export import released_model
from torch_utils.checkpoint import read_snapshot, save_snapshot, write_torch
from training.config import build_networks, with_resolution
from training.data.dataset import VideoDataset
from training.networks.registry import NETWORKS, load_generator
from training.presets import PRESETS

CANARY = 'executed'  # a file that hostile bytes make when somebody runs them
_HOSTILE = f'cos\nsystem\n(Vtouch {CANARY}\ntR.'.encode()  # a pickle in plain text
_ITEM_SEC = 60  # for one file
_MEMORY = 2**32  # bytes that the process may have beyond what it begins with
_SHARES = {'snapshot': 35, 'data': 30, 'foreign': 15, 'portrait': 17, 'video': 3}  # of all files
_SHOWN = 20  # defects in a report


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: a good one, how a process opens it, and the command that does."""

    file: Path
    open: Callable[[Path], object]
    command: tuple[str, ...]  # {} stands for the file


def kinds(files: Path) -> dict[str, Kind]:
    """Returns the kinds of files by name."""
    network = load_generator(read_snapshot(files / 'net.pkl'))

    def play(path: Path) -> None:
        for _ in video_frames(path):
            pass

    def read(path: Path) -> None:
        data = VideoDataset.Config(path=str(path), resolution=32, span=16).build()
        for clip in range(len(data)):
            data.draw(clip, 0)

    used = ('--network', str(files / 'net.pkl'), '--device', 'cpu', '--outdir', 'out')
    few = ('--frames', '2', '--steps', '1', '--tune-steps', '0', '--motion-steps', '1')
    return {
        'snapshot': Kind(
            files / 'net.pkl', lambda p: load_generator(open_snapshot(p)), ('legacy.py', '--source', '{}')
        ),
        'data': Kind(files / 'h32.zip', read, ('dataset_tool.py', 'check', '{}')),
        'foreign': Kind(_foreign(files), open_foreign, ('legacy.py', '--source', '{}')),
        'portrait': Kind(
            files / runs.PORTRAIT,
            lambda p: open_portrait(network, p),
            ('edit_videos.py', 'animate', '{}', '--frames', '2', *used),
        ),
        'video': Kind(
            files / 'videos' / 'head.mp4', play, ('edit_videos.py', 'reconstruct', '{}', *few, *used)
        ),
    }


def _foreign(files: Path) -> Path:
    """Writes a small network in the layout of the released PV3D, once."""
    path = files / 'released.pth'
    if not path.exists():
        config = with_resolution(PRESETS['tiny']('none'), 128)
        changes = {'plane_axes': 'released', 'sr_resolution': 64}
        config = dataclasses.replace(config, generator=dataclasses.replace(config.generator, **changes))
        networks = build_networks(config)
        named = dict(zip(NETWORKS, (*networks, networks.G), strict=True))
        save_snapshot(files / 'g128.pkl', named, {})
        write_torch(path, {'model': released_model(read_snapshot(files / 'g128.pkl'))})
    return path


def mutated(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damages the bytes of a file; returns how, and the result."""
    ways = [_flipped, _cut, _zeroed, _moved, _grown, lambda d, _: _HOSTILE + d]
    if data.startswith(b'PK'):
        ways += [_inside, _inside, _hostile]
    name = ('flipped', 'cut', 'zeroed', 'moved', 'grown', 'hostile', 'inside', 'inside', 'hostile inside')
    number = rng.randrange(len(ways))
    return name[number], ways[number](data, rng)


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(data))
    length = min(rng.randint(1, 4096), len(data) - first)
    return data[:first] + bytes(length) + data[first + length :]


def _moved(data: bytes, rng: random.Random) -> bytes:
    first, second, third = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def _grown(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.randint(1, 4096)) + data[place:]


def _inside(data: bytes, rng: random.Random) -> bytes:
    """Damages one entry of a zip, mostly the one that describes the others, with right checksums."""
    tables = ('data.pkl', 'dataset.json', 'version', 'byteorder')

    def change(name: str, content: bytes) -> bytes:
        way = rng.choice([_flipped, _cut, _zeroed, _moved, _grown, _number])
        return way(content, rng) if content else content

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    described = [name for name in names if name.rpartition('/')[2] in tables[:2]]
    chosen = rng.choice(described if rng.random() < 0.7 else names)
    return _rewritten(data, chosen, change)


def _number(content: bytes, rng: random.Random) -> bytes:
    """Replaces a digit or a byte that is a small number: counts, shapes and sizes change."""
    places = [i for i, byte in enumerate(content[:20_000]) if byte in b'0123456789' or byte < 32]
    changed = bytearray(content)
    for place in rng.sample(places, min(len(places), rng.randint(1, 3))):
        changed[place] = rng.choice(b'0123456789-e.\x00\x01\x7f\xff')
    return bytes(changed)


def _hostile(data: bytes, rng: random.Random) -> bytes:
    """Puts a pickle that calls a program in the place of the one in a zip, or in an image."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    pickles = [name for name in names if name.endswith('data.pkl')]
    return _rewritten(data, rng.choice(pickles or names), lambda name, content: _HOSTILE)


def _rewritten(data: bytes, chosen: str, change: Callable[[str, bytes], bytes]) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(name, content) if name == chosen else content)
    return result.getvalue()


def open_all(outdir: Path, times: int, seed: int, until: float) -> dict[str, Any]:
    """Opens damaged files in one process, whose memory is limited."""
    files = runs.make_files(outdir)
    folder = outdir / 'damaged'
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # where the canary would appear
    used = int(Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    known, defects, longest = kinds(files), [], 0.0
    for kind in known.values():
        kind.open(kind.file)  # what is loaded once counts before
    before, counts = common.reset_peak('cpu'), collections.Counter()
    for number, (name, rng) in enumerate(_plan(times, seed)):
        if time.time() > until:
            break
        way, content = mutated(known[name].file.read_bytes(), rng)
        path = folder / f'{number}{known[name].file.suffix}'
        path.write_bytes(content)
        start = time.process_time()
        result = _outcome(known[name].open, path)
        longest = max(longest, time.process_time() - start)
        counts[f'{name} {result.partition(":")[0]}'] += 1
        if result not in ('opened', 'refused'):
            defects.append({'file': path.name, 'kind': name, 'way': way, 'result': result})
        else:
            path.unlink()
    found = {'files': sum(counts.values()), **dict(sorted(counts.items())), 'defects': defects[:_SHOWN]}
    grown = (common.peak('cpu') - before) / 2**20
    found |= {'executed': Path(CANARY).exists(), 'longest_cpu_sec': round(longest, 2)}
    return found | {'peak_growth_mib': round(grown)}


def _plan(times: int, seed: int) -> Iterator[tuple[str, random.Random]]:
    """Yields the kind of each file, and a generator of its own."""
    for number in range(times):
        rng = random.Random(f'{seed}/damage/{number}')
        yield rng.choices(list(_SHARES), list(_SHARES.values()))[0], rng


def _outcome(run: Callable[[Path], object], path: Path) -> str:
    """Returns opened, refused, or what is wrong."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_ITEM_SEC)
    try:
        run(path)
    except (UserError, Skip) as err:
        return 'refused' if str(err) and '\n' not in str(err) else f'not one sentence: {err}'
    except BaseException as err:  # whatever it is, it is a defect
        return f'{type(err).__name__}: {err}'[:600]
    finally:
        signal.alarm(0)
    return 'opened'


def through_commands(outdir: Path, times: int, seed: int, until: float) -> dict[str, Any]:
    """Gives damaged files to commands: exit code 0, or 1 and one sentence."""
    files = runs.make_files(outdir)
    known, counts, defects = kinds(files), collections.Counter(), []
    for number in range(times):
        if time.time() > until:
            break
        rng = random.Random(f'{seed}/commands/{number}')
        name = list(known)[number % len(known)]
        place = outdir / 'commands' / f'{number:03d}'
        place.mkdir(parents=True, exist_ok=True)
        way, content = mutated(known[name].file.read_bytes(), rng)
        path = place / f'x{"".join(known[name].file.suffixes)}'
        path.write_bytes(content)
        life = runs.Life(tuple(w.format(path) for w in known[name].command), place)
        code, _ = life.wait()
        result = sentence(code, life.log.read_text(errors='replace'))
        result = 'executed' if (place / CANARY).exists() else result
        counts[f'{name} {result.partition(":")[0]}'] += 1
        if result not in ('succeeded', 'refused'):
            defects.append({'file': str(path), 'kind': name, 'way': way, 'result': result})
        else:
            path.unlink()
    return {'files': sum(counts.values()), **dict(sorted(counts.items())), 'defects': defects[:_SHOWN]}


def sentence(code: int | None, printed: str) -> str:
    """Judges the end of a command: succeeded, refused with one sentence, or what is wrong."""
    errors = [line for line in printed.splitlines() if line.startswith('Error: ')]
    if 'Traceback' in printed:
        return f'traceback: {printed[-600:]}'
    if code == 0:
        return 'succeeded'
    last = bool(errors) and printed.strip().splitlines()[-1:] == errors
    return 'refused' if code == 1 and last else f'exit code {code}, {len(errors)} sentences: {printed[-600:]}'


def in_fork(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Calls a function in a process of its own, whose limits and working folder end with it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(function(*args)).encode())
        except BaseException:  # the parent reports that there is no result
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    with open(reader, 'rb') as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    if not text:
        raise ChildProcessError(f'the process ended with {os.waitstatus_to_exitcode(status)}')
    return json.loads(text)
