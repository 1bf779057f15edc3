"""The page about the kernels: what it compares, and that it notices kernels that are wrong or missing."""

import pytest
import torch

from benchmarks import doctor
from torch_utils.ops import kernels as custom_ops

CASES = [*(c.name for c in doctor.cases(8, 'cpu')), 'tri-plane rendering']


def case(name, size=12):
    (found,) = [c for c in [*doctor.cases(size, 'cpu'), doctor.renderer(size, 'cpu')] if c.name == name]
    return found


@pytest.fixture
def kernels():
    if not custom_ops.has_kernels(torch.zeros(1), 'auto'):
        pytest.skip('no kernels: there is no C++ compiler')


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', CASES)
def test_kernels_agree_in_double_precision(name, layout, kernels):
    found = doctor.errors(case(name), 'cpu', torch.float64, layout)
    assert len(found) == (2 if name == 'tri-plane rendering' else 3)
    assert max(found) < 1e-11


def test_variants_are_those_that_kernels_know():
    names = [v.name for v in doctor.variants(case('bias_act'), 'cuda')]
    assert names == [text for t in ('float32', 'float16', 'bfloat16') for text in (t, f'{t}, channels last')]
    for name, device in (('bias_act', 'cpu'), ('tri-plane rendering', 'cuda')):
        assert {v.dtype for v in doctor.variants(case(name), device)} == {torch.float32}


@pytest.mark.parametrize('name', CASES)
def test_inputs_have_the_layout_and_the_type_of_the_variant(name):
    for variant in doctor.variants(case(name), 'cuda'):
        first, *small = doctor._inputs(case(name), 'cpu', variant.dtype, variant.layout)
        assert first.dtype == variant.dtype and first.is_contiguous(memory_format=variant.layout)
        assert {x.dtype for x in small} <= {torch.float32}


@pytest.fixture
def half_kernels(kernels, monkeypatch):
    """What kernels of a GPU do with half precision: they compute in float32 and store the rounded results."""
    call = custom_ops.call

    def rounding(name, x, *args):
        halves = {id(a): a for a in args if isinstance(a, torch.Tensor) and a.dtype in doctor._HALF}
        wide = {key: a.float() for key, a in halves.items()}
        call(name, wide.get(id(x), x), *(wide.get(id(a), a) for a in args))
        for key, a in halves.items():
            a.data.copy_(wide[key])

    monkeypatch.setattr(custom_ops, 'call', rounding)
    monkeypatch.setattr(custom_ops, '_HOST_TYPES', tuple(custom_ops._TYPES))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', CASES[:-1])
def test_half_precision_keeps_well_inside_its_tolerance(name, dtype, layout, half_kernels):
    found = doctor.errors(case(name, 16), 'cpu', dtype, layout)
    assert min(found) > 0 and max(found) < doctor._TOLERANCE[dtype] / 2


@pytest.fixture
def brief(monkeypatch, kernels):
    """Small measurements."""
    cases, renderer = doctor.cases, doctor.renderer
    monkeypatch.setattr(doctor, 'cases', lambda size, device: cases(8, device))
    monkeypatch.setattr(doctor, 'renderer', lambda size, device: renderer(8, device))
    monkeypatch.setattr(doctor, '_SECONDS', 0)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


def test_help_examines_nothing(capsys):
    with pytest.raises(SystemExit) as end:
        doctor.main.main(['-h'], prog_name='doctor')
    page = capsys.readouterr().out
    assert not end.value.code and page.startswith('Usage: doctor') and 'value' not in page


def test_page(brief, capsys):
    with pytest.raises(SystemExit) as end:
        doctor.main.main([])
    assert end.value.code == 0
    page = capsys.readouterr().out
    assert page.endswith('\nhealthy\n') and all(f'\n  {name}\n' in page for name in CASES)
    assert page.count('float32, channels last') == len(CASES)


@pytest.mark.parametrize('name', ['bias_act', 'bias_act_grad', 'upfirdn2d', 'triplane_render'])
def test_a_wrong_kernel_is_noticed(brief, capsys, monkeypatch, name):
    call = custom_ops.call

    def bend(kernel, x, *args):
        call(kernel, x, *args)
        if kernel == name:
            [a for a in args if isinstance(a, torch.Tensor)][-1].mul_(2)

    monkeypatch.setattr(custom_ops, 'call', bend)
    assert doctor.report() == 1
    page = capsys.readouterr().out
    assert 'WRONG' in page and 'not healthy' in page


def test_without_a_compiler_it_says_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('CXX', str(tmp_path / 'no-such-compiler'))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    custom_ops.load.cache_clear()
    try:
        assert doctor.report() == 1
    finally:
        custom_ops.load.cache_clear()
    page = capsys.readouterr().out
    assert 'cpu  built by nothing: ' in page and 'no-such-compiler' in page and 'install g++' in page
