"""Options of the commands that train several runs; apart from what they do, so that --help is quick."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

from dnnlib.cli import Numbers, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """Options of all such commands."""

    outdir: Annotated[Path, 'DIR']  # folder of all runs and of their results
    seeds: Numbers = (0, 1)  # of training [default: 0,1]
    parallel: Annotated[int, Range(1)] = 1  # runs at a time
    device: str = 'cpu'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available

    def begin(self) -> None:
        """Prepares this process; those that train have one thread each, so that runs cost the same."""
        os.environ['OMP_NUM_THREADS'] = '1'
        from torch_utils.misc import prepare_process

        prepare_process()
