"""The limits of the design: imports, sizes, error handling, words, nothing that executes a file's content.

Each check is a function from sources to violations, so that it is itself tested on bad sources.
"""

import ast
import functools
import graphlib
import re
import statistics
from typing import NamedTuple

import pytest

from support.paths import ROOT

# Each room may import those before it, and not its neighbours in the same row.
ORDER = 'dnnlib|torch_utils|training|viz interop heads|metrics|preprocessing|editing|studies benchmarks'
ROWS = [row.split() for row in ORDER.split('|')]
ROOMS = [room for row in ROWS for room in row]
FOLDERS = [*ROOMS, 'tests']

NODES = (ast.stmt, ast.ExceptHandler, ast.Call)  # what the checks look at


class Source(NamedTuple):
    """One file."""

    text: str
    nodes: list[ast.AST]  # those of NODES, from the outside in
    imports: list[tuple[int, str]]  # (line, dotted name), anywhere; `from a import b` gives a.b

    @property
    def functions(self):
        """Pairs of a function and its number of lines."""
        found = (n for n in self.nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
        return [(n, n.end_lineno - n.lineno + 1) for n in found]


Sources = dict[str, Source]  # path relative to the root -> file


def parse(texts: dict[str, str]) -> Sources:
    """Parses the texts of files by path."""
    files = {}
    for path, text in texts.items():
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, NODES)]
        files[path] = Source(text, nodes, list(imported(path, nodes)))
    return files


def imported(path, nodes):
    """Yields (line, dotted name) of all imports."""
    package = path.split('/')[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split('.') if node.module else []
            yield from ((node.lineno, '.'.join([*base, alias.name])) for alias in node.names)


@functools.cache
def project() -> Sources:
    """Parses every Python file of the project, once."""
    paths = [*ROOT.glob('*.py'), *(p for folder in FOLDERS for p in (ROOT / folder).rglob('*.py'))]
    return parse({p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted(paths)})


def outside_tests(files: Sources) -> Sources:
    return {path: source for path, source in files.items() if not path.startswith('tests/')}


def module_name(path: str) -> str:
    """Turns a/b.py into a.b and a/__init__.py into a."""
    return path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


def within(name: str, *modules: str) -> bool:
    """Returns whether a dotted name is one of these modules or inside one."""
    return any(name == m or name.startswith(m + '.') for m in modules)


def below(room: str) -> list[str]:
    """Returns the rooms that a room may import: itself and those in the rows before its own."""
    row = next(i for i, rooms in enumerate(ROWS) if room in rooms)
    return [room, *(r for rooms in ROWS[:row] for r in rooms)]


def import_arrows(files: Sources) -> list[str]:
    """Lists imports against the order of the rooms; scripts may import every room but the last row."""
    scripts = [module_name(p) for p in files if '/' not in p]
    found = []
    for path, source in files.items():
        room = path.split('/')[0]
        above = [r for r in ROOMS if r not in below(room)] if room in ROOMS else ROWS[-1]
        banned = [] if room == 'tests' else [*scripts, 'tests', *above]
        banned += ['torch', 'torchvision'] if room == 'dnnlib' else []
        found += [f'{path}:{line} imports {name}' for line, name in source.imports if within(name, *banned)]
    return found


def arrows_inside_training(files: Sources) -> list[str]:
    """Lists imports against volumetric_rendering <- networks <- loss <- training_loop; camera is a leaf."""
    above = ('loss', 'loss_contract', 'data', 'config', 'presets', 'training_loop')
    rendering = 'training.volumetric_rendering'
    rules = [  # module, what it may not import, but for these exceptions
        ('training.networks', [f'training.{m}' for m in above], []),
        ('training.loss', ['training.training_loop'], []),
        ('training.loss_contract', ['training.loss', 'training.training_loop'], []),
        (rendering, ['training', 'torch_utils'], [rendering, 'torch_utils.ops']),
        ('training.camera', ROOMS, ['dnnlib.scene']),
    ]
    return [
        f'{path}:{line} imports {target}'
        for path, source in files.items()
        for module, banned, free in rules
        if within(module_name(path), module)
        for line, target in source.imports
        if within(target, *banned) and not within(target, *free)
    ]


def import_cycles(files: Sources) -> list[str]:
    """Lists modules that import themselves through others."""
    modules = {module_name(p) for p in files}
    graph = {}
    for path, source in files.items():
        known = {t if t in modules else t.rpartition('.')[0] for _, t in source.imports} & modules
        graph[module_name(path)] = known - {module_name(path)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as err:
        return [' <- '.join(err.args[1])]
    return []


def unsafe_loading(files: Sources) -> list[str]:
    """Lists what could run code that a file brings: pickle, eval, exec, torch.load without weights_only."""
    loaders = ['pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve']
    found = []
    for path, source in outside_tests(files).items():
        kin = loaders[path == 'interop/reader.py' :]  # its unpickler looks up and calls nothing
        found += [f'{path}:{line} imports {name}' for line, name in source.imports if within(name, *kin)]
        for node in (n for n in source.nodes if isinstance(n, ast.Call)):
            call = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            bad = call in ('eval', 'exec', '__import__')
            bad |= call == 'torch.load' and options.get('weights_only') != 'True'
            bad |= options.get('allow_pickle', 'False') != 'False'
            found += [f'{path}:{node.lineno} calls {ast.unparse(node)[:60]}'] if bad else []
    return found


def mutable_globals(files: Sources) -> list[str]:
    """Lists `global` statements."""
    return matches(files, r'^\s*global \w+$')


def large_functions(files: Sources) -> list[str]:
    """Lists functions of more than 60 lines, or of more than 7 parameters beside self, cls and ctx."""
    found = []
    for path, source in files.items():
        for node, length in source.functions:
            a = node.args
            parameters = filter(None, (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg))
            count = len([p for p in parameters if p.arg not in ('self', 'cls', 'ctx')])
            where = f'{path}:{node.lineno} {node.name}'
            found += [f'{where} has {length} lines'] if length > 60 else []
            found += [f'{where} has {count} parameters'] if count > 7 else []
    return found


def long_median(files: Sources) -> list[str]:
    """Limits the median length of functions to 12 lines."""
    lengths = [n for source in outside_tests(files).values() for _, n in source.functions]
    return ['the median function is longer'] if lengths and statistics.median(lengths) > 12 else []


def large_files(files: Sources) -> list[str]:
    """Lists files of more than 400 lines and lines of more than 110 columns."""
    found = []
    for path, source in files.items():
        lines = source.text.splitlines()
        found += [f'{path} has {len(lines)} lines'] if len(lines) > 400 else []
        found += [f'{path}:{i} has {len(x)} columns' for i, x in enumerate(lines, 1) if len(x) > 110]
    return found


def matches(files: Sources, pattern: str) -> list[str]:
    """Lists where a pattern is found, whatever the case."""
    compiled = re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    return [
        f'{path}:{source.text.count(chr(10), 0, found.start()) + 1} has {found[0]!r}'
        for path, source in files.items()
        for found in compiled.finditer(source.text)
    ]


def choices_of_networks(files: Sources) -> list[str]:
    """Lists code outside networks (and interop, presets, tables) that asks which PV3D a generator is."""
    free = ('training/networks/', 'interop/', 'training/presets.py', 'training/baselines.py')
    free += ('studies/paper.py',)
    others = {path: s for path, s in outside_tests(files).items() if not path.startswith(free)}
    return matches(others, r'\bmotion\.(kind|path)\b|\bcamera_condition\b')


def error_lines(source: Source) -> set[int]:
    """Returns the lines that handle errors: raise statements with their guards, except blocks, asserts."""
    lines = set()
    for node in source.nodes:
        end = node.end_lineno if isinstance(node, (ast.Raise, ast.Assert, ast.ExceptHandler)) else 0
        if isinstance(node, ast.If):  # up to the last raise that it guards
            end = max((x.end_lineno for x in node.body if isinstance(x, ast.Raise)), default=0)
        lines.update(range(node.lineno, end + 1))
    return lines


def much_error_handling(files: Sources) -> list[str]:
    """Limits error handling to 4.5 % of all lines; lists the files that have most of it."""
    counts = {path: len(error_lines(source)) for path, source in outside_tests(files).items()}
    total = sum(source.text.count('\n') for source in outside_tests(files).values())
    if sum(counts.values()) <= 0.045 * total:
        return []
    most = sorted(counts, key=counts.get, reverse=True)[:10]
    return [f'{sum(counts.values())} of {total} lines', *(f'{path} {counts[path]}' for path in most)]


def unwanted_words(files: Sources) -> list[str]:
    """Lists words that the design replaces, in prose and in names; [x] keeps this line out of the list."""
    return matches(files, r'(?<![a-z])([p]ictures?|[s]poilt|[a]new|[f]or want of)(?![a-z])')


STRUCTURE = [import_arrows, arrows_inside_training, import_cycles, unsafe_loading, mutable_globals]
STRUCTURE += [large_functions, long_median, large_files, choices_of_networks]
MANNERS = [much_error_handling, unwanted_words]


@pytest.mark.parametrize('check', STRUCTURE, ids=lambda c: c.__name__)
def test_structure(check):
    found = check(project())
    assert not found, f'{check.__doc__}\n' + '\n'.join(found)


@pytest.mark.parametrize('check', MANNERS, ids=lambda c: c.__name__)
def test_manners(check):
    test_structure(check)


def importing(pairs):
    """One set of files for each pair such as training/a>viz.images: a module, and what it imports."""
    split = (pair.partition('>') for pair in pairs.split())
    return [{'train.py': '', f'{module}.py': f'def f():\n    import {name}'} for module, _, name in split]


def texts(*contents):
    """One file a.py each, of the given content."""
    return [{'a.py': text} for text in contents]


BAD = {
    import_arrows: importing("""
        dnnlib/a>torch dnnlib/a>torch_utils.misc training/a>metrics.x training/a>train training/a>viz.x
        training/a>interop.x viz/a>interop.x heads/a>preprocessing.x preprocessing/a>editing.x
        editing/a>studies.x metrics/a>tests.x gen>train gen>studies.x"""),
    arrows_inside_training: importing("""
        training/networks/a>training.config training/loss>training.training_loop training/camera>dnnlib.util
        training/loss_contract>training.loss
        training/volumetric_rendering/a>training.camera training/volumetric_rendering/a>torch_utils.misc""")
    + [{'training/networks/a.py': 'from ..loss import f'}],
    import_cycles: [{'training/a.py': 'from training.b import x', 'training/b.py': 'from training import a'}],
    unsafe_loading: texts('import pickle as p', 'from pickle import loads', 'eval("1")', 'torch.load(path)')
    + texts('torch.load(path, weights_only=False)', 'np.load(path, allow_pickle=True)'),
    mutable_globals: texts('def f():\n    global x\n    x = 1'),
    large_functions: texts('def f(a, b, c, d, *, e, f, g, h): ...', 'def f():\n' + '    x = 1\n' * 60),
    long_median: texts('def f():\n' + '    x = 1\n' * 12),
    large_files: texts('x = 1\n' * 401, '# ' + 'x' * 109),
    choices_of_networks: texts('if G.config.motion.kind == "mlp": ...', 'getattr(c, "camera_condition")')
    + texts('x = c.motion.path'),
    much_error_handling: texts(
        'x = 1\n' * 60 + 'if x:\n    y = 1\n    raise E\n',
        'x = 1\n' * 40 + 'try:\n    y = 1\nexcept E:\n    pass\n',
        'x = 1\n' * 20 + 'assert x\n',
    ),
    unwanted_words: texts('# made An\u0065w', 'draw_pictur\u0065s(x)'),
}


@pytest.mark.parametrize('check', BAD, ids=lambda c: c.__name__)
def test_checks_find_bad_code(check):
    assert [files for files in BAD[check] if not check(parse(files))] == []


GOOD = {
    'torch_utils/a.py': 'from dnnlib.util import x\ntorch.load(p, map_location="cpu", weights_only=True)',
    'training/camera.py': 'import torch',
    'training/volumetric_rendering/a.py': 'from dnnlib import config\nfrom torch_utils.ops import b',
    'training/networks/a.py': 'from training.volumetric_rendering import a\nfrom training import camera',
    'training/training_loop.py': 'from training import loss, data, config',
    'training/loss.py': 'def f(ctx, a, b, c, d, e, f, g): ...\nmodel.eval()',
    'interop/reader.py': 'import pickle',
    'editing/a.py': 'import viz.images, metrics.a, interop.b',
    'studies/a.py': 'import metrics.a',
    'training/networks/b.py': 'x = config.motion.kind, config.camera_condition  # a new one',
    'train.py': 'import metrics.a',
    'tests/test_train.py': 'import train\nimport pickle\nassert pickle',
}


@pytest.mark.parametrize('check', [*STRUCTURE, *MANNERS], ids=lambda c: c.__name__)
def test_checks_accept_good_code(check):
    assert check(parse(GOOD)) == []
