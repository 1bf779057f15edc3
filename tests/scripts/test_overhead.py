"""The table of what calls cost."""

from benchmarks import overhead


def test_table(capsys):
    overhead.main.main(['--calls', '1'], standalone_mode=False)
    rows = {line[:22].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    assert set(overhead._PARTS) <= set(rows) and rows['addition'][-2:] == ['1.00x', '1.00x']
    assert all(float(row[-1].rstrip('x')) > 0 for row in rows.values())
