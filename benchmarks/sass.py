"""Counts what kernels execute, in the machine code that the compiler makes for an H100; needs no GPU.

    python -m benchmarks.sass

Of each kernel the smallest loop that loads and stores is counted: every instruction in it, also where
branches part, so that the figure is a bound. "Room" is how many an H100 executes while its memory moves the
bytes of one result: a kernel that needs fewer waits for memory alone, if enough loads are on their way.
"""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import click

from torch_utils.ops import build

_PER_SECOND = 132 * 4 * 32 * 1.70e9  # instructions of threads that an H100 executes
_BANDWIDTH = 3.0e12  # bytes a second that its memory moves
_REGISTERS, _WARPS, _BLOCK = 65536, 64, 8  # of a multiprocessor; warps of it, and those that start together
_TYPES = {'half': ('6__half', 2), 'float': ('f', 4)}  # name in symbols, bytes

# kernel -> its name in symbols, with the type as {}, and how many elements are moved for one of the result
_KERNELS = {
    'upfirdn2d, same size': ('BlocksI{}Li1ELi1E', 2),
    'upfirdn2d, doubling': ('BlocksI{}Li2ELi1E', 1.25),
    'upfirdn2d, halving': ('BlocksI{}Li1ELi2E', 5),
    'bias_act': ('ForwardI{}Li[48]E', 2),
    'bias_act, derivative': ('DerivativeI{}Li[48]E', 3),
    'bias_act, backward': ('BackwardI{}Li[48]E', 3),
}


class Instruction(NamedTuple):
    """A line of machine code."""

    address: int
    name: str  # such as LDG.E.128.CONSTANT
    operands: list[str]

    @property
    def size(self) -> int:
        """Returns how many bytes a load or store moves."""
        return next((n // 8 for n in (128, 64, 16, 8) if re.search(rf'\.[US]?{n}\b', self.name)), 4)


class Figures(NamedTuple):
    """What is counted of a kernel."""

    per_result: float  # instructions
    room: float  # instructions for which there is time
    registers: int
    spills: int  # instructions that move registers to memory or back
    in_flight: int  # bytes for which the warps of a multiprocessor wait at a time, at most


def disassemble(library: Path) -> str:
    """Returns the machine code for an H100 in a library, and the registers of its kernels, as text."""
    program = build.cuda_program('cuobjdump')
    if program is None:
        message = 'cuobjdump, which shows machine code, was not found: pip install nvidia-cuda-cuobjdump'
        raise click.ClickException(message)
    command = (program, '-arch', 'sm_90', '-sass', '-res-usage', library)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parse(text: str) -> list[Instruction]:
    """Reads the lines of a function."""
    lines = re.findall(r'/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)([^;]*);', text)
    return [Instruction(int(at, 16), name, operands.split(',')) for at, name, operands in lines]


def inner_loop(code: list[Instruction]) -> list[Instruction]:
    """Returns the smallest loop that loads and stores."""
    found = []
    for jump in code:
        target = re.search('0x([0-9a-f]+)', jump.operands[-1])
        if jump.name.startswith('BRA') and target and int(target[1], 16) <= jump.address:
            loop = [x for x in code if int(target[1], 16) <= x.address <= jump.address]
            names = {x.name[:3] for x in loop}
            found += [loop] if {'LDG', 'STG'} <= names else []
    return min(found, key=len)


def waiting(loop: list[Instruction]) -> int:
    """Returns how many bytes a thread has asked for, at most, before it uses the first of them."""
    register, pending, most = re.compile(r'\bR(\d+)'), [], 0
    for x in loop:
        load = x.name.startswith('LDG')
        used = {int(n) for n in register.findall(','.join(x.operands[load:]))}
        pending = [(size, names) for size, names in pending if not used & names]
        if load:
            first = int(register.search(x.operands[0])[1])
            pending.append((x.size, set(range(first, first + -(-x.size // 4)))))
        most = max(most, sum(size for size, _ in pending))
    return most


def figures(listing: str, kernel: str, dtype: str) -> Figures:
    """Counts one kernel of a listing of `disassemble`."""
    (name, moved), (symbol, itemsize) = _KERNELS[kernel], _TYPES[dtype]
    pattern = rf'(\S*{name.format(symbol)}\S*)'
    text = re.search(rf'Function : {pattern}\n(.*?)(?=Function : |\Z)', listing, re.DOTALL)[2]
    registers = int(re.search(rf'Function {pattern}:\s+REG:(\d+)', listing)[2])
    code = parse(text)
    loop = inner_loop(code)
    results = sum(x.size for x in loop if x.name.startswith('STG')) / itemsize
    blocks = _REGISTERS // (-(-registers // 8) * 8 * 32 * _BLOCK)
    return Figures(
        per_result=len(loop) / results,
        room=moved * itemsize / _BANDWIDTH * _PER_SECOND,
        registers=registers,
        spills=sum(x.name.startswith(('STL', 'LDL')) for x in code),
        in_flight=waiting(loop) * 32 * min(blocks * _BLOCK, _WARPS),
    )


@click.command()
def main() -> None:
    """Prints a table in Markdown; builds the kernels first, which takes a minute."""
    try:
        library = build.build('cuda', build.cuda_toolchain(['90']), build.cache_folder())
    except build.BuildError as err:
        raise click.ClickException(
            f'nothing to count, since kernels were not compiled: {err.reason}'
        ) from err
    listing = disassemble(library)
    click.echo('| kernel | type | instructions per result | room | registers | spills | KiB in flight |')
    click.echo('|---|---|---|---|---|---|---|')
    for kernel in _KERNELS:
        for dtype in _TYPES:
            f = figures(listing, kernel, dtype)
            counts = (
                f'{f.per_result:.1f} | {f.room:.0f} | {f.registers} | {f.spills} | {f.in_flight / 1024:.0f}'
            )
            click.echo(f'| {kernel} | {dtype} | {counts} |')


if __name__ == '__main__':
    main()
