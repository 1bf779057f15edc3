"""Training with single images beside clips; `python -m studies.joint --help` explains."""

import dataclasses
from pathlib import Path
from typing import Annotated

from dnnlib.cli import Range, command

from dnnlib.util import usable_cores
from studies.options import Runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Runs):
    """Compares training on clips of few people alone, with images of many, and after images of many.

    The base sees clips alone; the second run also images (--images of train.py); the third learns from images
    for half of the time, without motion, then from clips. All have the same time of the processor. Nobody may
    be in both data sets. The same command given again continues.

    Example:
      python dataset_tool.py synth --dest clips8.zip --people 8 --motions 24 --focal 7
        --resolution 32 --seed 4
      python dataset_tool.py synth --dest images200.zip --people 200 --motions 1 --focal 7
        --resolution 32 --seed 5
      python -m studies.joint --data clips8.zip --images images200.zip --outdir joint --minutes 30
    """

    data: Annotated[str, 'ZIP|DIR']  # clips, of `dataset_tool.py synth`
    images: Annotated[str, 'ZIP|DIR']  # frames of this set, of `dataset_tool.py synth`, are the images
    base: Annotated[str, 'CFG|PRESET'] = 'study'  # preset, or training_options.json of a run
    minutes: Annotated[float, Range(above=0)] = 30.0  # of training, for each run
    # folder that keeps renderings of the data [default: beside them]
    cache: Annotated[Path, 'DIR'] | None = None


def run(options: Options) -> None:
    """Trains what is not trained yet, measures, and reports."""
    options.begin()
    from studies.comparison import run_and_compare
    from studies.joint_rows import Data, make_tasks
    from studies.measure import FULL, Settings
    from torch_utils.misc import pick_device

    device = pick_device(options.device)
    settings = Settings(sizes=FULL, cache=options.cache, workers=usable_cores(), device=device)
    data = Data(options.data, options.images)
    tasks = make_tasks(options.base, data, options.seeds, options.outdir, settings, 60 * options.minutes)
    run_and_compare(tasks, options.parallel, options.outdir)


main = command(Options, run, 'use --parallel 1')

if __name__ == '__main__':
    main()
