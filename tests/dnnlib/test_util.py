"""Files that are never half written, errors that name them, logs, formats."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from dnnlib.util import (
    Logger,
    UserError,
    append_json_line,
    atomic_write,
    explain_os_error,
    format_count,
    format_time,
    is_out_of_memory,
    memory_advice,
    remove_temp_files,
    usable_cores,
)
from support.paths import ROOT


def test_atomic_write_replaces_the_file_at_the_end(tmp_path):
    """Text is UTF-8, permissions are the usual ones, a link is followed."""
    path, link = tmp_path / 'a.txt', tmp_path / 'link'
    path.write_bytes(b'old')
    mode = path.stat().st_mode
    link.symlink_to('a.txt')
    with atomic_write(link, 'w') as file:
        file.write('Größe')
        assert path.read_bytes() == b'old'
    assert path.read_bytes() == 'Größe'.encode() and path.stat().st_mode == mode
    assert link.is_symlink() and sorted(os.listdir(tmp_path)) == ['a.txt', 'link']


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_atomic_write_keeps_the_old_file_on_any_error(tmp_path, error):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b'half')
        raise error
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.bin']


def test_kill_between_write_and_rename_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    code = (
        'import sys, time\nfrom dnnlib.util import atomic_write\n'
        'with atomic_write(sys.argv[1]) as f:\n'
        '    f.write(b"new" * 100000); f.flush(); print("written", flush=True); time.sleep(60)\n'
    )
    command = [sys.executable, '-c', code, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'written\n'
        assert remove_temp_files(tmp_path) == []  # its writer lives
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b'old'
    left = [n for n in os.listdir(tmp_path) if n != 'a.bin']
    assert len(left) == 1  # the temporary file of the dead process
    (tmp_path / '.hidden.tmp').touch()  # somebody else's
    assert remove_temp_files(tmp_path) == left
    assert sorted(os.listdir(tmp_path)) == ['.hidden.tmp', 'a.bin']


READ_ONLY = pytest.param('locked/a', marks=pytest.mark.skipif(os.geteuid() == 0, reason='root may write'))


@pytest.mark.parametrize('path', ['missing/a', 'file/a', 'folder', READ_ONLY])
def test_atomic_write_explains_what_stops_it(tmp_path, path):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'locked').mkdir(0o500)
    with pytest.raises(UserError, match=f'cannot write .*{path}: '), atomic_write(tmp_path / path):
        pass
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder', 'locked']


def test_atomic_write_names_the_file_that_failed(tmp_path):
    message = r'cannot write .*a\.bin: the disk is full; free some space'
    with pytest.raises(UserError, match=message), atomic_write(tmp_path / 'a.bin'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(FileNotFoundError, match='source'), atomic_write(tmp_path / 'a.bin') as file:
        file.write((tmp_path / 'source').read_bytes())
    assert os.listdir(tmp_path) == []


def test_explain_os_error_names_a_file():
    err = OSError(errno.ENOSPC, 'No space left on device')
    assert explain_os_error(err, 'x.pkl').startswith('x.pkl: the disk is full;')
    assert explain_os_error(err).startswith('the disk is full;')
    assert explain_os_error(FileNotFoundError(errno.ENOENT, 'x', 'y.zip')).startswith('y.zip: no such file')
    assert explain_os_error(OSError(errno.EMFILE, 'Too many open files'), 'z') == 'z: Too many open files'


def test_logger_copies_and_appends(tmp_path, capsys):
    path = tmp_path / 'log.txt'
    for text in ('one', 'two'):
        with Logger(path):
            print(text)
            assert path.read_text().endswith(f'{text}\n')  # at the end of the line, not of the run
    print('three')
    assert path.read_text() == 'one\ntwo\n'
    assert capsys.readouterr().out == 'one\ntwo\nthree\n'


def test_logger_keeps_the_error_that_ended_the_run(tmp_path):
    stdout = sys.stdout
    with pytest.raises(RuntimeError), Logger(tmp_path / 'log.txt'):
        raise RuntimeError('it broke')
    assert 'RuntimeError: it broke' in (tmp_path / 'log.txt').read_text()
    assert sys.stdout is stdout
    with pytest.raises(SystemExit), Logger(tmp_path / 'clean.txt'):
        sys.exit(0)
    assert (tmp_path / 'clean.txt').read_text() == ''


def test_logger_outlives_a_full_disk(capsys):
    with Logger('/dev/full'):
        print('one')
        print('two')
    captured = capsys.readouterr()
    assert captured.out == 'one\ntwo\n'
    assert captured.err.count('log stopped') == 1 and 'the disk is full' in captured.err


def test_format_time():
    times = {0: '0s', 59.4: '59s', 59.6: '1m 00s', 3599.9: '1h 00m 00s', 7384: '2h 03m 04s', -3: '0s'}
    times |= {273900: '3d 04h 05m', float('inf'): 'unknown'}
    assert {sec: format_time(sec) for sec in times} == times


def test_format_count():
    counts = {0: '0', 999: '999', 1000: '1.00k', 1234: '1.23k', 9999: '10.0k', 999499: '999k', 2e9: '2.00G'}
    counts |= {999500: '1.00M', 30.7e6: '30.7M', -1500: '-1.50k'}
    assert {count: format_count(count) for count in counts} == counts


@pytest.mark.parametrize('whole', [b'', b'{"a": 1}\n{"b": 1}\n'])
def test_json_lines(tmp_path, whole):
    """A half-written last line is dropped."""
    path = tmp_path / 'stats.jsonl'
    path.write_bytes(whole + b'{"c": "d')
    append_json_line(path, {'loss': float('nan'), 'list': [float('inf'), 0.5]})
    append_json_line(path, {'b': 'two\nlines'})
    assert path.read_bytes().startswith(whole)
    records = [json.loads(line) for line in path.read_bytes().removeprefix(whole).splitlines()]
    assert records == [{'loss': None, 'list': [None, 0.5]}, {'b': 'two\nlines'}]
    with pytest.raises(UserError, match='cannot write /dev/full: the disk is full'):
        append_json_line('/dev/full', {'a': 1})


def test_out_of_memory_differs_from_other_errors():
    cpu = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    full = [
        cpu,
        'CUDA out of memory. Tried to allocate 2 GiB.',
        'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`',
        'CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`',
        'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED',
        'cuDNN error: CUDNN_STATUS_NOT_INITIALIZED',
        'cuDNN error: CUDNN_STATUS_EXECUTION_FAILED',
        'GET was unable to find an engine to execute this computation',
    ]
    assert all(is_out_of_memory(RuntimeError(text)) for text in full) and is_out_of_memory(MemoryError())
    bugs = ('size mismatch', 'cuDNN error: CUDNN_STATUS_BAD_PARAM', 'CUDA error: illegal memory access')
    others = (*map(RuntimeError, bugs), ValueError(cpu), KeyboardInterrupt())
    assert not any(is_out_of_memory(err) for err in others)


@pytest.mark.parametrize(
    ('said', 'sentence'),
    [
        ("DefaultCPUAllocator: can't allocate memory", 'out of memory; use less'),
        (
            'CUDA out of memory. Tried to allocate 2 GiB.\nmore',
            'out of memory; use less, and export '
            'PYTORCH_ALLOC_CONF=expandable_segments:True, which wastes less',
        ),
        (
            'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR\nat a.cpp',
            'out of memory (CUDNN_STATUS_INTERNAL_ERROR is how a full GPU often shows); use less, and export '
            'PYTORCH_ALLOC_CONF=expandable_segments:True, which wastes less',
        ),
    ],
)
def test_out_of_memory_is_one_sentence_with_advice(said, sentence):
    assert memory_advice(RuntimeError(said), 'use less') == sentence


def test_usable_cores_are_those_of_the_process(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {1, 5, 6}, raising=False)
    assert usable_cores() == 3
