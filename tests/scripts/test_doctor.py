"""The page about the kernels: what it compares, and that it notices kernels that are wrong or missing."""

import pytest
import torch

from benchmarks import doctor, ops
from torch_utils.ops import kernels


@pytest.fixture
def built():
    if not kernels.has_kernels(torch.zeros(1), 'auto'):
        pytest.skip('no kernels: no C++ compiler')


def test_operators_are_called_as_the_networks_call_them(built):
    found = doctor.examples(2, 12, 'cpu', 'fp16')  # which on a CPU is float32
    assert {c.name for c in found} == {*doctor._FEATURE_OPS, *doctor._FLOAT32_OPS}
    for example in found:
        x = example.inputs[0]
        assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
        assert doctor.implementation(example) == 'kernel'


@pytest.fixture
def half_kernels(built, monkeypatch, choose_kernels):
    """What kernels of a GPU do with half precision: they compute in float32 and store the rounded results."""
    call = kernels.call

    def rounding(name, x, *args):
        halves = {id(a): a for a in args if isinstance(a, torch.Tensor) and a.dtype.itemsize == 2}
        wide = {key: a.float() for key, a in halves.items()}
        call(name, wide.get(id(x), x), *(wide.get(id(a), a) for a in args))
        for key, a in halves.items():
            a.data.copy_(wide[key])

    monkeypatch.setattr(kernels, 'call', rounding)
    monkeypatch.setattr(kernels, '_HOST_TYPES', tuple(kernels._TYPES))
    choose_kernels('auto')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', doctor._FEATURE_OPS)
def test_half_precision_keeps_well_inside_its_tolerance(name, dtype, half_kernels):
    cases = {c.name: c for c in ops.cases(ops.Sizes(2, 64, 16, dtype, last=True), 'cpu')}
    found = doctor.errors(cases[name])
    assert min(found) > 0 and max(found) < doctor._TOLERANCE[dtype] / 2


@pytest.fixture
def brief(monkeypatch, built):
    """Small measurements."""
    examples = doctor.examples
    monkeypatch.setattr(doctor, 'examples', lambda n, size, *args: examples(1, 8, *args))
    monkeypatch.setattr(doctor, '_REPEATS', 1)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


def test_page(brief, capsys, choose_kernels):
    with pytest.raises(SystemExit) as end:
        doctor.main.main([])
    page = capsys.readouterr().out
    assert end.value.code == 0 and page.endswith('\nhealthy\n')
    assert page.count('float32, channels last') == page.count('   kernel, ') == 6
    choose_kernels('ref')
    assert doctor.report() == 0 and 'PV3D_OPS=ref is set' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['bias_act', 'bias_act_grad', 'upfirdn2d', 'triplane_render'])
def test_a_wrong_kernel_is_noticed(brief, capsys, monkeypatch, name):
    call = kernels.call

    def bend(kernel, x, *args):
        call(kernel, x, *args)
        if kernel == name:
            [a for a in args if isinstance(a, torch.Tensor)][-1].mul_(2)

    monkeypatch.setattr(kernels, 'call', bend)
    assert doctor.report() == 1
    page = capsys.readouterr().out
    assert 'WRONG' in page and 'not healthy' in page


def test_without_a_compiler_it_explains(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('CXX', str(tmp_path / 'no-such-compiler'))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    kernels.load.cache_clear()
    try:
        assert doctor.report() == 1
    finally:
        kernels.load.cache_clear()
    page = capsys.readouterr().out
    assert 'cpu  cannot be built' in page and 'no-such-compiler' in page and 'install g++' in page
