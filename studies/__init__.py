"""Measuring what a network has learned of procedural people, and comparing changes at equal cost.

`python -m studies.table` prints the figures of a network, `python -m studies.ab` compares several.
`python -m studies.style_mixing` shows what the blocks of any network decide, `python -m studies.alignment`
what its D_video sees. `python -m studies.run` trains the rows of the paper's tables, and
`python -m studies.report` writes what came out. `python -m studies.table1` measures the paper's own network.
`python -m studies.protocols` asks what figures owe to how they are measured.
"""
