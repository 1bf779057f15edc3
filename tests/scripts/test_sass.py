"""Counting machine code: on a listing counted by hand, and the limits that our kernels keep."""

import pytest

from benchmarks import sass
from torch_utils.ops import build as kernel_build

LISTING = """
 Function _Z11pv3d_kernelI7ForwardI6__halfLi8EEEvT_l:
  REG:42 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:504 TEXTURE:0 SURFACE:0 SAMPLER:0
		Function : _Z11pv3d_kernelI7ForwardI6__halfLi8EEEvT_l
        /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00000a00ff017b82 */
                                                                           /* 0x000fe20000000800 */
        /*0010*/               @P0 EXIT ;                                  /* 0x000000000000094d */
        /*0020*/                   STL [R1], R9 ;                          /* 0x000000000000094d */
        /*0030*/                   LDG.E.128.CONSTANT R4, desc[UR8][R2.64] ;
        /*0040*/              @!P1 LDG.E.U16 R8, desc[UR8][R2.64+0x20] ;
        /*0050*/                   HADD2.F32 R9, -RZ, R7.H1_H1 ;
        /*0060*/                   LDG.E R10, desc[UR8][R8.64] ;
        /*0070*/                   STG.E.128 desc[UR8][R2.64], R4 ;
        /*0080*/               @P0 BRA 0x30 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0;
		Function : _Z11pv3d_kernelI7ForwardIfLi4EEEvT_l
        /*0000*/                   EXIT ;
"""


def test_figures_are_those_counted_by_hand():
    """Its loop has six instructions and stores eight halves; before the first use it loads 18 bytes."""
    found = sass.figures(LISTING, 'bias_act', 'half')
    assert found.per_result == 6 / 8 and found.registers == 42 and found.spills == 1
    assert found.in_flight == 18 * 32 * 40  # five blocks of eight warps with 48 registers a thread
    assert found.room == pytest.approx(38.3, abs=0.1)  # of four bytes


def test_without_a_disassembler_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_build, 'cuda_program', lambda name: None)
    with pytest.raises(sass.click.ClickException, match='cuobjdump.* was not found: pip install'):
        sass.disassemble(tmp_path)


def test_kernels_keep_their_limits():
    """Instructions per result, no spills, and 16 KiB on their way to a multiprocessor, which hide 700 ns."""
    try:
        chain = kernel_build.cuda_toolchain(['80', '90'])  # as tests/torch_utils/ops/test_build.py
        listing = sass.disassemble(kernel_build.build('cuda', chain, kernel_build.cache_folder()))
    except (kernel_build.BuildError, sass.click.ClickException) as err:
        pytest.skip(str(err))
    for kernel in sass._KERNELS:
        for dtype, limit in (('half', 90), ('float', 110)):
            found = sass.figures(listing, kernel, dtype)
            assert found.per_result < min(limit, 1.1 * found.room) and found.spills == 0, kernel
            assert found.in_flight > 2**14
