"""The limits of the design: who imports whom, sizes, nothing that executes a file's content.

Each check is a function from sources to offences, so that it is itself tested on bad sources.
"""

import ast
from collections.abc import Callable, Iterator

import pytest

from support.paths import ROOT

# Each room may import those before it, and not its neighbours in the same row.
ROWS = [
    ['dnnlib'],
    ['torch_utils'],
    ['training'],
    ['viz', 'interop', 'heads'],
    ['metrics'],
    ['preprocessing'],
    ['editing'],
    ['studies', 'benchmarks'],
]
ROOMS = [room for row in ROWS for room in row]
FOLDERS = [*ROOMS, 'tests']

Sources = dict[str, ast.Module]  # path relative to the root -> syntax tree


def sources() -> Sources:
    """Parses every Python file of the project."""
    paths = [*ROOT.glob('*.py'), *(p for folder in FOLDERS for p in (ROOT / folder).rglob('*.py'))]
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text()) for p in sorted(paths)}


def module_name(path: str) -> str:
    """Turns a/b.py into a.b and a/__init__.py into a."""
    return path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of everything imported anywhere in a file; `from a import b` gives a.b."""
    package = path.split('/')[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split('.') if node.module else []
            yield from ((node.lineno, '.'.join([*base, alias.name])) for alias in node.names)


def within(name: str, *modules: str) -> bool:
    """Tells whether a dotted name is one of these modules or inside one."""
    return any(name == m or name.startswith(m + '.') for m in modules)


def below(room: str) -> list[str]:
    """Returns the rooms that a room may import: itself and those in the rows before its own."""
    row = next(i for i, rooms in enumerate(ROWS) if room in rooms)
    return [room, *(r for rooms in ROWS[:row] for r in rooms)]


def import_arrows(files: Sources) -> list[str]:
    """Lists imports against the order of the rooms; scripts may import every room but the last row."""
    scripts = [module_name(p) for p in files if '/' not in p]
    found = []
    for path, tree in files.items():
        room = path.split('/')[0]
        above = [r for row in ROWS for r in row if room in ROOMS and r not in below(room)]
        banned = [] if room == 'tests' else [*scripts, 'tests', *(above if room in ROOMS else ROWS[-1])]
        banned = banned + (['torch', 'torchvision'] if room == 'dnnlib' else [])
        found += [
            f'{path}:{line} imports {name}' for line, name in imports(path, tree) if within(name, *banned)
        ]
    return found


def arrows_inside_training(files: Sources) -> list[str]:
    """Lists imports against volumetric_rendering <- networks <- loss <- training_loop; camera is a leaf."""
    above_loss = ['training.training_loop']
    above_networks = [f'training.{m}' for m in ('loss', 'data', 'config', 'presets', 'augment')] + above_loss
    found = []
    for path, tree in files.items():
        name = module_name(path)
        for line, target in imports(path, tree):
            bad = within(name, 'training.networks') and within(target, *above_networks)
            bad |= within(name, 'training.loss') and within(target, *above_loss)
            if within(name, 'training.volumetric_rendering'):
                foreign = within(target, 'training', 'torch_utils')
                bad |= foreign and not within(target, 'training.volumetric_rendering', 'torch_utils.ops')
            if name == 'training.camera':
                bad |= within(target, *ROOMS)
            found += [f'{path}:{line} imports {target}'] if bad else []
    return found


def import_cycles(files: Sources) -> list[str]:
    """Lists modules that import themselves through others."""
    modules = {module_name(p) for p in files}
    graph = {}
    for path, tree in files.items():
        targets = [t for _, t in imports(path, tree)]
        known = {t if t in modules else t.rpartition('.')[0] for t in targets} & modules
        graph[module_name(path)] = known - {module_name(path)}
    reach = {m: set(ts) for m, ts in graph.items()}
    for _ in graph:  # at most as many steps as modules
        longer = {m: ts.union(*(graph[t] for t in ts)) for m, ts in reach.items()}
        if longer == reach:
            break
        reach = longer
    return [f'{m} reaches itself through {sorted(graph[m])}' for m in sorted(graph) if m in reach[m]]


def unsafe_loading(files: Sources) -> list[str]:
    """Lists what could run code that a file brings: pickle, eval, exec, torch.load without weights_only."""
    found = []
    for path, tree in files.items():
        if path.startswith('tests/'):
            continue
        kin = ['pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve']
        kin = kin[1:] if path == 'interop/reader.py' else kin  # its unpickler looks up and calls nothing
        found += [f'{path}:{line} imports {name}' for line, name in imports(path, tree) if within(name, *kin)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                bad = call in ('eval', 'exec', '__import__')
                bad |= call == 'torch.load' and options.get('weights_only') != 'True'
                bad |= options.get('allow_pickle', 'False') != 'False'
                found += [f'{path}:{node.lineno} calls {ast.unparse(node)[:60]}'] if bad else []
    return found


def mutable_globals(files: Sources) -> list[str]:
    """Lists `global` statements."""
    nodes = ((path, node) for path, tree in files.items() for node in ast.walk(tree))
    return [f'{path}:{node.lineno} says global' for path, node in nodes if isinstance(node, ast.Global)]


def is_command(node: ast.FunctionDef) -> bool:
    """Tells whether click calls this function: its parameters are the options of a command line."""
    return any(ast.unparse(d).split('(')[0].endswith('.command') for d in node.decorator_list)


def large_functions(files: Sources) -> list[str]:
    """Lists functions of more than 60 lines, or of more than 7 parameters beside self, cls and ctx."""
    found = []
    for path, tree in files.items():
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            lines = node.end_lineno - node.lineno + 1
            a = node.args
            names = [
                p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p is not None
            ]
            count = len([n for n in names if n not in ('self', 'cls', 'ctx')])
            where = f'{path}:{node.lineno} {node.name}'
            found += [f'{where} has {lines} lines'] if lines > 60 else []
            found += [f'{where} has {count} parameters'] if count > 7 and not is_command(node) else []
    return found


CHECKS: list[Callable[[Sources], list[str]]] = [
    import_arrows,
    arrows_inside_training,
    import_cycles,
    unsafe_loading,
    mutable_globals,
    large_functions,
]


@pytest.mark.parametrize('check', CHECKS, ids=lambda c: c.__name__)
def test_project(check):
    found = check(sources())
    assert not found, f'{check.__doc__}\n' + '\n'.join(found)


def test_sizes_of_files():
    found = []
    for path in sources():
        lines = (ROOT / path).read_text().splitlines()
        found += [f'{path} has {len(lines)} lines, allowed are 400'] if len(lines) > 400 else []
        found += [
            f'{path}:{i} has {len(line)} columns, allowed are 110'
            for i, line in enumerate(lines, 1)
            if len(line) > 110
        ]
    assert not found, '\n'.join(found)


BAD = [
    (import_arrows, {'dnnlib/a.py': 'import torch'}),
    (import_arrows, {'dnnlib/a.py': 'from torch_utils import misc'}),
    (import_arrows, {'training/a.py': 'def f():\n    from metrics import metric_main'}),
    (import_arrows, {'training/a.py': 'import train', 'train.py': ''}),
    (import_arrows, {'training/a.py': 'from viz import images'}),
    (import_arrows, {'training/a.py': 'from interop.convert import open_snapshot'}),
    (import_arrows, {'viz/a.py': 'import interop.convert'}),
    (import_arrows, {'heads/a.py': 'from preprocessing import faces'}),
    (import_arrows, {'preprocessing/a.py': 'import editing.inversion'}),
    (import_arrows, {'editing/a.py': 'import studies.run'}),
    (import_arrows, {'train.py': 'import studies.run'}),
    (import_arrows, {'gen.py': 'from train import main', 'train.py': ''}),
    (import_arrows, {'metrics/a.py': 'import tests.test_style'}),
    (arrows_inside_training, {'training/networks/a.py': 'from training.config import TrainConfig'}),
    (arrows_inside_training, {'training/networks/a.py': 'from ..loss import f'}),
    (arrows_inside_training, {'training/loss.py': 'from training import training_loop'}),
    (arrows_inside_training, {'training/volumetric_rendering/a.py': 'from training import camera'}),
    (arrows_inside_training, {'training/volumetric_rendering/a.py': 'from torch_utils.misc import x'}),
    (arrows_inside_training, {'training/camera.py': 'from dnnlib import util'}),
    (import_cycles, {'training/a.py': 'from training.b import x', 'training/b.py': 'from training import a'}),
    (unsafe_loading, {'a.py': 'import pickle as p'}),
    (unsafe_loading, {'interop/a.py': 'from pickle import loads'}),
    (unsafe_loading, {'a.py': 'eval("1")'}),
    (unsafe_loading, {'a.py': 'torch.load(path)'}),
    (unsafe_loading, {'a.py': 'torch.load(path, weights_only=False)'}),
    (unsafe_loading, {'a.py': 'np.load(path, allow_pickle=True)'}),
    (mutable_globals, {'a.py': 'def f():\n    global x\n    x = 1'}),
    (large_functions, {'a.py': 'def f(a, b, c, d, *, e, f, g, h): ...'}),
    (large_functions, {'a.py': 'def f():\n' + '    x = 1\n' * 60}),
]


@pytest.mark.parametrize(('check', 'files'), BAD, ids=lambda v: v.__name__ if callable(v) else '')
def test_checks_find_bad_code(check, files):
    assert len(check({path: ast.parse(text) for path, text in files.items()})) >= 1


GOOD = {
    'dnnlib/util.py': 'import json',
    'torch_utils/a.py': 'from dnnlib.util import x\ntorch.load(p, map_location="cpu", weights_only=True)',
    'training/camera.py': 'import torch',
    'training/volumetric_rendering/a.py': 'from dnnlib import config\nfrom torch_utils.ops import b',
    'training/volumetric_rendering/b.py': 'from . import a',
    'training/networks/a.py': 'from training.volumetric_rendering import a\nfrom training import camera',
    'training/training_loop.py': 'from training import loss, data, config',
    'training/loss.py': 'def f(ctx, a, b, c, d, e, f, g): ...\nmodel.eval()',
    'interop/reader.py': 'import pickle',
    'metrics/a.py': 'from training import camera\nfrom torch_utils import misc',
    'viz/a.py': 'from training import camera',
    'editing/a.py': 'import viz.images, metrics.a, interop.b',
    'studies/a.py': 'import metrics.a',
    'train.py': '@click.command()\ndef main(a, b, c, d, e, f, g, h, i): ...\nimport metrics.a',
    'tests/test_train.py': 'import train\nimport pickle',
}


@pytest.mark.parametrize('check', CHECKS, ids=lambda c: c.__name__)
def test_checks_accept_good_code(check):
    assert check({path: ast.parse(text) for path, text in GOOD.items()}) == []
