"""What README, docs, Makefile and help texts name exists: commands, flags, options, files, functions."""

import ast
import importlib
import json
import operator
import re
import runpy
import subprocess
from pathlib import Path

import click
import numpy as np
import pytest
import trimesh
from click.testing import CliRunner
from distributed.cli import dask_worker
from PIL import Image
from test_style import ROOMS
from torch.distributed.run import get_args_parser

import train
from dnnlib.config import flatten, override, to_dict
from dnnlib.util import UserError
from support.doc_commands import SCRIPTS, commands, parse
from support.paths import ROOT
from training.camera import front_label
from training.presets import PRESETS
from training.run_folder import run_name

PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').glob('*.md'))]
INDEX = ROOT / 'docs' / 'README.md'
OTHERS = {'--logdir': 'tensorboard'}  # options of programs that are not asked here
FIELDS = (
    r'(?!dataset\.json)(?:generator|d_image|d_video|loss|dataset|sampling|g_opt|d_opt|ema|output)(?:\.\w+)+'
    r'|float32_precision'
)


def documented() -> list[tuple[str, str, list[str]]]:
    """Lists (where, script, arguments) of all commands in pages, Slurm script, Makefile and help texts."""
    texts = {p.relative_to(ROOT).as_posix(): p.read_text() for p in [*PAGES, ROOT / 'docs' / 'slurm.sh']}
    done = subprocess.run(['make', '-n', '-B', 'demo'], cwd=ROOT, capture_output=True, text=True, check=True)
    texts['make demo'] = done.stdout
    for script in SCRIPTS:
        command = importlib.import_module(script).main
        texts[f'{script} --help'] = f'{command.help}\n{command.epilog}'
        for name, child in getattr(command, 'commands', {}).items():
            texts[f'{script} {name} --help'] = f'{child.help}\n{child.epilog}'
    return [(where, script, args) for where, text in texts.items() for script, args in commands(text)]


def test_commands_parse():
    found = documented()
    assert {script for where, script, _ in found if where == 'README.md'} == set(SCRIPTS)
    text = ' '.join(page.read_text() for page in PAGES)
    assert {*re.findall(r'python -m ((?:studies|benchmarks)\.\w+)', text)} == {*modules()}  # each is shown
    assert [script for where, script, _ in found if where == 'docs/slurm.sh'] == ['train']
    assert len([where for where, _, _ in found if where == 'make demo']) == 6
    wrong = []
    for where, script, args in found:
        try:
            context = parse(script, args)
            if script == 'train':
                train.build_config(train.Options(**context.params))
        except click.exceptions.Exit:  # --help
            continue
        except (click.ClickException, UserError) as err:
            wrong.append(f'{where}: {script}.py {" ".join(args)}: {err}')
    assert not wrong, '\n'.join(wrong)


WRONG = ('python train.py --outdir a', 'python gen_videos.py --nets a', 'python -m studies.run --no', 'x')


@pytest.mark.parametrize('line', WRONG)
def test_wrong_commands_are_found(line):
    for script, args in commands(line):
        with pytest.raises(click.ClickException):
            parse(script, args)
    assert len(list(commands(line))) == (line != 'x')


def modules() -> list[str]:
    """Lists what runs as `python -m NAME`."""
    paths = [path for room in ('studies', 'benchmarks') for path in (ROOT / room).glob('*.py')]
    return [f'{p.parent.name}.{p.stem}' for p in paths if "__name__ == '__main__'" in p.read_text()]


def options_of(command: click.Command) -> set[str]:
    """Returns all options of a command and of those below it."""
    children = getattr(command, 'commands', {}).values()
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return own.union(*map(options_of, children))


def test_options_exist():
    """Each `--option` that a page names, in a sentence too, is one of ours or of a program that it shows."""
    ours = [importlib.import_module(name).main for name in [*SCRIPTS, *modules()]]
    known = set().union(*map(options_of, [*ours, dask_worker.main]), OTHERS)
    known |= {name for action in get_args_parser()._actions for name in action.option_strings}
    theirs = re.compile(r'^\| `-[^|]*\|', flags=re.M)  # first column of the table of EG3D's flags
    unknown = {
        f'{page.name}: {name}'
        for page in PAGES
        for name in re.findall(r'(?<![\w-])--[a-z][\w-]*', theirs.sub('', page.read_text()))
        if name not in known
    }
    assert len(known) > 200 and not unknown


def test_targets_and_extras_exist():
    text = '\n'.join(page.read_text() for page in PAGES)
    makefile = (ROOT / 'Makefile').read_text()
    targets = {*re.findall(r'^([a-z]+):', makefile, flags=re.M)}
    assert {'install', 'demo', 'test'} <= {*re.findall(r'(?:^|`)make ([a-z]+)', text, flags=re.M)} <= targets
    variables = {*re.findall(r'make [a-z]+ ([A-Z]+)=', text)}
    assert all(re.search(rf'^{name} \?=|ifdef {name}$', makefile, flags=re.M) for name in variables)
    _, _, extras = (ROOT / 'pyproject.toml').read_text().partition('[project.optional-dependencies]\n')
    known = {*re.findall(r'^(\w+) =', extras.partition('\n[')[0], flags=re.M)}
    named = {name for group in re.findall(r"'\.\[([\w,]+)\]'", text) for name in group.split(',')}
    assert {'metrics', 'cluster'} <= named <= known


def test_run_folders_are_named_as_presets_name_them():
    sources = [*PAGES, *(ROOT / f'{name}.py' for name in SCRIPTS), *(ROOT / 'studies').glob('*.py')]
    text = '\n'.join(path.read_text() for path in sources)
    found = {*re.findall(r'runs/\d{5}-([a-z0-9]+(?:-[a-z0-9]+)?)-([a-z]+)-gpus(\d)-(\S+?)[` \n]', text)}
    assert len(found) > 2 and len(found) == len({*re.findall(r'runs/\d{5}-([^\s`]+)', text)})
    for cfg, data, ranks, rest in found:
        name = run_name(PRESETS[cfg](f'{data}.zip'), int(ranks), None)
        assert name == f'{cfg}-{data}-gpus{ranks}-{rest.rstrip(":")}'


def links_of(text: str) -> list[tuple[str, str]]:
    """Lists (file or address, anchor) of all links and images outside code."""
    text = re.sub(r'<!--.*?-->|^```.*?^```|`[^`\n]*`', '', text, flags=re.S | re.M)
    return re.findall(r'\]\(([^)#\s]*)(?:#([^)\s]*))?\)', text)


def anchors_of(text: str) -> set[str]:
    """Returns the anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
    words = (re.sub(r'[^\w\- ]', '', title.lower()) for title in re.findall(r'^#+ (.*)$', text, flags=re.M))
    return {title.strip().replace(' ', '-') for title in words}


def broken_links(page: Path, text: str) -> list[str]:
    """Lists links to files or headings that do not exist, and addresses that are none."""
    broken = []
    for target, anchor in links_of(text):
        path = page.parent / target if target else page
        if '://' in target:
            good = re.fullmatch(r'https?://[\w.-]+\.\w+(:\d+)?(/\S*)?', target) is not None
        else:
            good = path.exists() and (not anchor or anchor in anchors_of(path.read_text()))
        broken += [] if good else [f'{target}#{anchor}']
    return broken


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_names(page):
    """Linked files and headings exist, and so do `file.py:Name` and the option paths."""
    text = re.sub(r'<!--.*?-->', '', page.read_text(), flags=re.S)
    missing = broken_links(page, text)
    for path, name in re.findall(r'`([\w/]+\.py):([\w.]+)`', text):
        if not (ROOT / path).exists() or name not in names((ROOT / path).read_text()):
            missing.append(f'{path}:{name}')
    config = PRESETS['tiny']('none.zip')
    for path, value in re.findall(rf'`(?:--set )?({FIELDS})(?:=(\w[\w.]*))?`', text):
        try:
            override(config, {path: value}) if value else operator.attrgetter(path)(config)
        except (AttributeError, UserError) as err:
            missing.append(f'{path}={value}: {err}')
    assert not missing, '\n'.join(missing)


def test_broken_links_are_found():
    links = '[x](#license) ![](docs/README.md) [x](nowhere.md) [x](README.md#no) [x](#e) [x](http:/y)'
    text = f'# A `b`: c, d\n{links}'
    page = ROOT / 'README.md'
    assert anchors_of(text) == {'a-b-c-d'}
    broken = broken_links(page, text)
    assert broken == ['nowhere.md#', 'README.md#no', '#e', 'http:/y#']


def test_every_page_is_in_the_index():
    linked = {(INDEX.parent / target).resolve() for target, _ in links_of(INDEX.read_text())}
    assert {page for page in PAGES if page != INDEX} <= linked
    assert f'](docs/{INDEX.name})' in (ROOT / 'README.md').read_text()


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r'```py\n(.*?)```', (ROOT / 'README.md').read_text(), flags=re.S)
    assert len([line for line in code.splitlines() if line]) == 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'assets').symlink_to(ROOT / 'assets')
    runpy.run_path(str(write(tmp_path / 'ten_lines.py', code)))
    with Image.open(tmp_path / 'head.png') as image:
        assert image.size == (64, 64) and max(high - low for low, high in image.getextrema()) > 100


def test_drawings_of_the_architecture(monkeypatch):
    """They can be made again, and the rooms are those that imports are checked by."""
    draw = runpy.run_path(str(ROOT / 'docs' / 'draw.py'))
    for name in ('network', 'block', 'rooms'):
        pixels = draw['pixels'](draw[name]())
        with Image.open(ROOT / 'docs' / f'architecture-{name}.png') as committed:
            assert committed.size == pixels.shape[1::-1]
            difference = np.abs(np.asarray(committed.convert('RGB'), np.int16) - pixels)
            assert difference.mean() < 6  # fonts differ a little between machines
    texts = [text.get_text().partition('/')[0] for text in draw['rooms']().axes[0].texts]
    assert {*ROOMS} <= {*texts}


def test_figures_of_the_docs(tmp_path):
    """A ball is drawn as a disc of the right size, brighter above; statistics may be missing."""
    figures = runpy.run_path(str(ROOT / 'docs' / 'figures.py'))
    ball = trimesh.creation.icosphere(4, radius=0.1)
    image = figures['clay'](ball, front_label(7.0), 64).astype(float)
    disc = (image != image[0, 0]).any(axis=-1)
    assert disc.sum() == pytest.approx(np.pi * (64 * 7 * 0.1 / 2.7 + 0.5) ** 2, rel=0.05)
    assert image[24][disc[24]].mean() > image[40][disc[40]].mean() + 20
    lines = [{'Progress/kimg': i / 10, 'Loss/G/image': 0.7, 'Loss/r1/image': 0.1} for i in range(3)]
    write(tmp_path / 'stats.jsonl', '\n'.join(map(json.dumps, lines)))
    done = CliRunner().invoke(figures['main'], ['curves', str(tmp_path), str(tmp_path / 'c.png')])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / 'c.png') as drawn:
        assert drawn.width > 1000


def test_drawing_of_the_crop(tmp_path):
    figures = runpy.run_path(str(ROOT / 'docs' / 'figures.py'))
    done = CliRunner().invoke(figures['main'], ['crop', str(tmp_path / 'crop.jpg')])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / 'crop.jpg') as drawn, Image.open(ROOT / 'docs' / 'crop.jpg') as committed:
        assert drawn.size == committed.size
        assert np.abs(np.asarray(drawn, np.int16) - np.asarray(committed)).mean() < 6  # fonts differ


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def names(source: str) -> set[str]:
    """Returns the functions, classes and methods of a module: `f`, `C`, `C.method`."""
    found = set()
    nodes = [('', node) for node in ast.parse(source).body]
    while nodes:
        prefix, node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            nodes += [(f'{prefix}{node.name}.', child) for child in node.body]
    return found


def test_released_preset_table():
    """The table of docs/code.md: the released preset differs from the default in these fields alone."""
    text = (ROOT / 'docs' / 'code.md').read_text().partition('paper and released code differ')[2]
    fields = re.findall(rf'^\| `({FIELDS})`', text, flags=re.M)
    presets = (PRESETS[name]('none.zip') for name in ('pv3d-voxceleb', 'pv3d-released'))
    ours, released = (flatten(to_dict(preset)) for preset in presets)
    assert {name for name in ours if ours[name] != released[name]} == {*fields, 'cfg'}
